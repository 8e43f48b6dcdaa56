// TraceGrad's update in one sweep forward and one back: the kernel of nextham_kernels/ops/tracegrad, whose page
// closed_form.py holds the formulas.
//
// Parallel over tiles of edges, whose lanes they become: up to kPanels panels [numbers][lane], 32 lanes each in float32
// with AVX-512. A panel is what a packed matrix consists of, so every product is weights times tile, nothing is
// transposed between gram and step, the 980 Gram numbers and all activations (1 MB of a tile) never leave the
// second-level cache, and sums over channels need no sums over lanes. NextHAM: 0.76 million multiply-adds per edge, 1.6
// kB read and written; the weights, 2.5 MB, come from the third-level cache once per tile, which is why it has panels.
#include <omp.h>

#include <cmath>
#include <vector>

#include "gram.h"
#include "matrix_product.h"
#include "module.h"
#include "rows.h"
#include "tiles.h"
#include "vector_math.h"

namespace NEXTHAM_ISA {
namespace {

// Layer norm, SiLU, Linear.
template <typename T>
struct MlpLayer {
  const T *weight, *shift, *matrix, *bias;
  std::int64_t n_in, n_out;
};

// n_i = (h_i − mean) inverse of each lane.
template <typename T>
struct LaneNorm {
  alignas(kVectorBytes) T mean[kWidth<T>], inverse[kWidth<T>];

  LaneNorm(const T* h, std::int64_t c, T eps) {
    for (std::int64_t half = 0; half < kWidth<T>; half += kLanes<T>) {
      Vector<T> sum{}, square{};
      for (std::int64_t i = 0; i < c; ++i) sum += load(h + i * kWidth<T> + half);
      const Vector<T> m = sum / static_cast<T>(c);
      for (std::int64_t i = 0; i < c; ++i) {
        const Vector<T> x = load(h + i * kWidth<T> + half) - m;
        square += x * x;
      }
      store(mean + half, m);
      for (int lane = 0; lane < kLanes<T>; ++lane) inverse[half + lane] = 1 / std::sqrt(square[lane] / c + eps);
    }
  }
};

template <typename T>
void norm_silu(const T* h, const MlpLayer<T>& layer, T eps, T* y) {
  const LaneNorm<T> norm(h, layer.n_in, eps);
  for (std::int64_t i = 0; i < layer.n_in; ++i) {
    const T *row = h + i * kWidth<T>, weight = layer.weight[i], shift = layer.shift[i];
    T* to = y + i * kWidth<T>;
#pragma omp simd
    for (std::int64_t lane = 0; lane < kWidth<T>; ++lane) {
      const T u = (row[lane] - norm.mean[lane]) * norm.inverse[lane] * weight + shift;
      to[lane] = u * sigmoid_of(u);
    }
  }
}

// v becomes vᵀ ∂y/∂h.
template <typename T>
void pull_norm_silu(const T* h, const MlpLayer<T>& layer, T eps, T* v) {
  constexpr std::int64_t w = kWidth<T>;
  const LaneNorm<T> norm(h, layer.n_in, eps);
  alignas(kVectorBytes) T sum[w] = {}, sum_n[w] = {};
  for (std::int64_t i = 0; i < layer.n_in; ++i) {
    const T *row = h + i * w, weight = layer.weight[i], shift = layer.shift[i];
    T* a = v + i * w;
#pragma omp simd
    for (std::int64_t lane = 0; lane < w; ++lane) {
      const T n = (row[lane] - norm.mean[lane]) * norm.inverse[lane], u = n * weight + shift, s = sigmoid_of(u);
      a[lane] *= s * (1 + u * (1 - s)) * weight;
      sum[lane] += a[lane];
      sum_n[lane] += a[lane] * n;
    }
  }
  for (std::int64_t lane = 0; lane < w; ++lane) {
    sum[lane] /= layer.n_in;
    sum_n[lane] /= layer.n_in;
  }
  for (std::int64_t i = 0; i < layer.n_in; ++i) {
    const T* row = h + i * w;
    T* a = v + i * w;
#pragma omp simd
    for (std::int64_t lane = 0; lane < w; ++lane) {
      const T n = (row[lane] - norm.mean[lane]) * norm.inverse[lane];
      a[lane] = norm.inverse[lane] * (a[lane] - sum[lane] - n * sum_n[lane]);
    }
  }
}

template <typename T>
struct Problem {
  GramLayout layout;
  std::int64_t n_pairs, d, c, widest;
  const T *forms, *bias, *last;  // A [n_pairs, c], b [c] and the gradient of Σ z by y_k−1 (or h_0)
  std::vector<MlpLayer<T>> layers;
  T eps, residual;
};

constexpr std::int64_t kPanels = 4;

// What one thread works with: tiles of x, of C x and then of the result, of gram and then of C, and of y_j and v_j.
template <typename T>
struct Work {
  static constexpr std::int64_t w = kWidth<T>;
  const Problem<T>& q;
  Buffer<T> x, y, pairs, between, pulled;
  std::vector<Buffer<T>> h;
  std::int64_t n_panels = 0;

  explicit Work(const Problem<T>& q_)
      : q(q_), x(tile(q.d)), y(tile(q.d)), pairs(tile(q.n_pairs)), between(tile(q.widest)), pulled(tile(q.widest)) {
    h.push_back(tile(q.c));
    for (const auto& layer : q.layers) h.push_back(tile(layer.n_out));
  }

  static Buffer<T> tile(std::int64_t d) { return buffer<T>(d * w * kPanels); }

  // f(first number of each panel) of tiles of different d.
  template <typename F>
  void each_panel(const F& f) const {
    for (std::int64_t p = 0; p < n_panels; ++p) f([p](std::int64_t d) { return p * d * w; });
  }

  // to = matrix from + bias, for all panels; the matrix [n_out, n_in] has any strides.
  void multiply(Strided<T> matrix, std::int64_t n_out, std::int64_t n_in, const T* from, const T* bias, T* to) const {
    for (std::int64_t p = 0; bias && p < n_panels; ++p)
      for (std::int64_t i = 0; i < n_out; ++i) std::fill_n(to + (p * n_out + i) * w, w, bias[i]);
    product<T>(matrix, n_out, n_in, n_panels * w, from, to, w, bias != nullptr, n_out * w);
  }

  // h_j for j < n.
  void forward(std::size_t n) {
    each_panel([&](auto at) {
      T* g = pairs.get() + at(q.n_pairs);
      for (const GramBlock* b = q.layout.block; b < q.layout.block + q.layout.n_blocks; g += b->pairs() * w, ++b)
        for (std::int64_t half = 0; half < w; half += kLanes<T>) {
          const T* from = x.get() + at(q.d) + half;
          sum_block<true>(from, from, *b, q.layout.at + b->first, w, g + half);
        }
    });
    multiply({q.forms, 1, q.c}, q.c, q.n_pairs, pairs.get(), q.bias, h[0].get());
    for (std::size_t j = 0; j + 1 < n; ++j) {
      const MlpLayer<T>& layer = q.layers[j];
      each_panel(
          [&](auto at) { norm_silu(h[j].get() + at(layer.n_in), layer, q.eps, between.get() + at(layer.n_in)); });
      multiply({layer.matrix, layer.n_in, 1}, layer.n_out, layer.n_in, between.get(), layer.bias, h[j + 1].get());
    }
  }

  // C x of the sweep back; f(j, tile) sees each v_j.
  template <typename F>
  void back(const F& f) {
    const std::int64_t n_last = q.layers.empty() ? q.c : q.layers.back().n_in;
    each_panel([&](auto at) {
      for (std::int64_t i = 0; i < n_last; ++i) std::fill_n(between.get() + at(n_last) + i * w, w, q.last[i]);
    });
    for (std::size_t j = q.layers.size(); j-- > 0;) {
      const MlpLayer<T>& layer = q.layers[j];
      f(j, between.get());
      each_panel(
          [&](auto at) { pull_norm_silu(h[j].get() + at(layer.n_in), layer, q.eps, between.get() + at(layer.n_in)); });
      if (j == 0) break;
      const MlpLayer<T>& before = q.layers[j - 1];
      multiply({before.matrix, 1, before.n_in}, before.n_in, before.n_out, between.get(), nullptr, pulled.get());
      std::swap(between, pulled);
    }
    multiply({q.forms, q.c, 1}, q.n_pairs, q.c, between.get(), nullptr, pairs.get());
    each_panel([&](auto at) {
      const T* c = pairs.get() + at(q.n_pairs);
      for (const GramBlock* b = q.layout.block; b < q.layout.block + q.layout.n_blocks; c += b->pairs() * w, ++b)
        for (std::int64_t half = 0; half < w; half += kLanes<T>)
          apply_block(c + half, x.get() + at(q.d) + half, *b, q.layout.at + b->first, w, y.get() + at(q.d) + half);
    });
  }

  // y = x + s g, g being 2 C x, and s of each lane.
  void step(T* s) {
    each_panel([&](auto at) {
      for (std::int64_t half = 0; half < w; half += kLanes<T>) {
        const T* from = x.get() + at(q.d) + half;
        T *to = y.get() + at(q.d) + half, *s_half = s + at(1) + half;
        Vector<T> xx{}, yy{}, scale;
        for (std::int64_t i = 0; i < q.d * w; i += w) {
          xx += load(from + i) * load(from + i);
          yy += load(to + i) * load(to + i);
        }
        for (int lane = 0; lane < kLanes<T>; ++lane)
          s_half[lane] = scale[lane] = q.residual * std::sqrt(xx[lane]) / (2 * std::sqrt(yy[lane]) + T(1e-5));
        for (std::int64_t i = 0; i < q.d * w; i += w) store(to + i, load(from + i) + 2 * scale * load(to + i));
      }
    });
  }
};

// layers: the four tensors of each, one after the other. kept: empty, or arrays [n, c_j] for h_0 … h_k−1 and then for
// v_0 … v_k−2 (the last v is constant). z: empty, or [n, c].
template <typename T>
void update(const Array<T>& x_, const Array<T>& forms_, const Array<T>& bias_, const Array<T>& last_,
            const std::vector<Array<T>>& layers, const Array<std::int32_t>& blocks, const Array<std::int32_t>& places,
            T eps, T residual, Array<T>& y_, Array<T>& scale_, std::vector<Array<T>> kept_, Array<T>& z_) {
  Problem<T> q{GramLayout(blocks, places),
               0,
               x_.shape(1),
               bias_.shape(0),
               bias_.shape(0),
               in(forms_),
               in(bias_),
               in(last_),
               {},
               eps,
               residual};
  q.n_pairs = q.layout.pairs();
  for (std::size_t i = 0; i < layers.size(); i += 4) {
    const std::int64_t n_out = layers[i + 2].shape(0), n_in = layers[i + 2].shape(1);
    q.layers.push_back({in(layers[i]), in(layers[i + 1]), in(layers[i + 2]), in(layers[i + 3]), n_in, n_out});
    q.widest = std::max({q.widest, n_in, n_out});
  }
  const std::int64_t n = x_.shape(0), n_panels = (n + kWidth<T> - 1) / kWidth<T>, n_threads = omp_get_max_threads();
  const std::int64_t rounds = (n_panels + kPanels * n_threads - 1) / (kPanels * n_threads);
  const std::int64_t size = (n_panels + rounds * n_threads - 1) / std::max<std::int64_t>(1, rounds * n_threads);
  const std::size_t k = q.layers.size();
  const bool wanted = z_.size() > 0;
  const T* x = in(x_);
  T *y = out(y_), *scale = out(scale_), *z = wanted ? out(z_) : nullptr;
  std::vector<T*> kept;
  for (auto& array : kept_) kept.push_back(out(array));
#pragma omp parallel if (n_panels > 1)
  {
    Work<T> work(q);
    const std::int64_t widest = std::max(q.d, q.widest);
    const auto zeros = buffer<T>(widest), nowhere = buffer<T>(widest);
    std::fill_n(zeros.get(), widest, T(0));
#pragma omp for schedule(static)
    for (std::int64_t start = 0; start < n_panels; start += size) {
      work.n_panels = std::min(size, n_panels - start);
      const auto write = [&](const T* from, std::int64_t d, T* to) {
        for (std::int64_t p = 0; p < work.n_panels; ++p)
          write_tile<T>(from + p * d * kWidth<T>, (start + p) * kWidth<T>, {to, d, n, nowhere.get()});
      };
      for (std::int64_t p = 0; p < work.n_panels; ++p)
        read_tile<T>({x, q.d, n, zeros.get()}, (start + p) * kWidth<T>, work.x.get() + p * q.d * kWidth<T>);
      work.forward(wanted || k == 0 ? k + 1 : k);
      if (wanted) write(work.h[k].get(), k ? q.layers[k - 1].n_out : q.c, z);
      for (std::size_t j = 0; !kept.empty() && j < k; ++j) write(work.h[j].get(), q.layers[j].n_in, kept[j]);
      work.back([&](std::size_t j, const T* v) {
        if (!kept.empty() && j + 1 < k) write(v, q.layers[j].n_in, kept[k + j]);
      });
      alignas(kVectorBytes) T s[kPanels * kWidth<T>];
      work.step(s);
      write(work.y.get(), q.d, y);
      const std::int64_t first = start * kWidth<T>;
      std::copy_n(s, std::min(work.n_panels * kWidth<T>, n - first), scale + first);
    }
  }
}

template <typename T>
void bind(Module& m) {
  m.def("tracegrad_update", &update<T>);
}

}  // namespace

void bind_tracegrad(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
