// The derivative of TraceGrad's update, with the gradients of all weights: the other kernel of
// nextham_kernels/ops/tracegrad, whose page closed_form.py holds the formulas.
//
// Parallel over tiles of edges as in tracegrad_cpu.cpp, and for the same reasons; what the gradients of matrices sum
// over, edges, are the lanes of the tiles, so they are outer products of tiles, added to sums that every thread has of
// its own (1.8 MB) and that are added up in the order of the threads. NextHAM, per edge: 1.9 million multiply-adds, a
// third of them outer products; 8.3 kB read and 1.6 kB written.
#include <omp.h>

#include <vector>

#include "module.h"
#include "rows.h"
#include "tracegrad.h"

namespace NEXTHAM_ISA {
namespace {

constexpr std::int64_t kPanels = 4;

// The derivative's matrices: A and Aᵀ, and of each layer W, which leads on in the first sweep, and Wᵀ.
template <typename T>
struct Problem {
  GramLayout layout;
  std::int64_t d, n_pairs;
  std::vector<std::int64_t> widths;  // of h_0 … h_k
  std::vector<const T*> weight, shift;
  const T* last;
  T eps;
  Weights<T> forms, forms_back;
  std::vector<Weights<T>> on, back;  // W_j and W_jᵀ

  std::size_t k() const { return weight.size(); }
};

// Sums over the edges of a thread.
template <typename T>
struct Sums {
  struct Channels {
    std::int64_t c;
    Buffer<T> numbers;  // [c][lane]

    explicit Channels(std::int64_t c_) : c(c_), numbers(buffer<T>(c_ * kLanes<T>)) {
      std::fill_n(numbers.get(), c * kLanes<T>, T(0));
    }
    void add(const Tiles<T>& x, std::int64_t n_lanes) {
      each_panel<T>(n_lanes, [&](std::int64_t p, std::int64_t lanes) {
        for (std::int64_t half = 0; half < lanes; half += kLanes<T>)
          for (std::int64_t i = 0; i < c; ++i) add_to(numbers.get(), i, load(x.panel(p) + i * kWidth<T> + half));
      });
    }
    void give(T* to) const {
      for (std::int64_t i = 0; i < c; ++i)
        for (int lane = 0; lane < kLanes<T>; ++lane) to[i] += numbers[i * kLanes<T> + lane];
    }
  };
  struct Matrix {
    std::int64_t rows, columns;
    Buffer<T> numbers;  // panels of columns [rows][kPanel]

    Matrix(std::int64_t rows_, std::int64_t columns_)
        : rows(rows_), columns(columns_), numbers(buffer<T>(outer_size<T>(rows_, columns_))) {
      std::fill_n(numbers.get(), outer_size<T>(rows, columns), T(0));
    }
    void add(const Tiles<T>& a, const Tiles<T>& b, std::int64_t n_lanes) {
      tile_outer<T>(a.read(), rows, b.read(), columns, n_lanes, numbers.get());
    }
    void give(T* to) const {
      for (std::int64_t i = 0; i < rows; ++i)
        for (std::int64_t j = 0; j < columns; ++j)
          to[i * columns + j] += numbers[(j / kPanel<T> * rows + i) * kPanel<T> + j % kPanel<T>];
    }
  };

  Matrix forms;
  Channels bias, last;
  std::vector<Channels> weight, shift, constant;
  std::vector<Matrix> matrix;

  explicit Sums(const Problem<T>& q) : forms(q.n_pairs, q.widths[0]), bias(q.widths[0]), last(q.widths[q.k() - 1]) {
    for (std::size_t j = 0; j < q.k(); ++j) {
      weight.emplace_back(q.widths[j]);
      shift.emplace_back(q.widths[j]);
      matrix.emplace_back(q.widths[j + 1], q.widths[j]);
      constant.emplace_back(q.widths[j + 1]);
    }
  }
  // Adds everything to the results: forms, bias, last, then of each layer weight, shift, matrix and constant.
  void give(const std::vector<T*>& to) const {
    forms.give(to[0]);
    bias.give(to[1]);
    last.give(to[2]);
    for (std::size_t j = 0; j < weight.size(); ++j) {
      weight[j].give(to[3 + 4 * j]);
      shift[j].give(to[4 + 4 * j]);
      matrix[j].give(to[5 + 4 * j]);
      constant[j].give(to[6 + 4 * j]);
    }
  }
};

// What one thread works with. Of every h_j, v_j and g_j there are tiles, and of their gradients.
template <typename T>
struct Work {
  static constexpr std::int64_t w = kWidth<T>;
  const Problem<T>& q;
  std::int64_t n_lanes = 0;
  Tiles<T> x, along, grad, made, pairs;  // x, t = 2 s ∂L/∂x′, ∂L/∂x, C x, Gram matrices and C
  std::vector<Tiles<T>> h, v, g, grad_h, pull;

  Work(const Problem<T>& q_, std::int64_t n_panels)
      : q(q_),
        x(q.d, n_panels),
        along(q.d, n_panels),
        grad(q.d, n_panels),
        made(q.d, n_panels),
        pairs(q.n_pairs, n_panels) {
    for (std::size_t j = 0; j <= q.k(); ++j) {
      pull.emplace_back(q.widths[j], n_panels);
      for (auto* tiles : {&h, &v, &g, &grad_h})
        if (j < q.k()) tiles->emplace_back(q.widths[j], n_panels);
    }
  }

  template <typename F>
  void each(const F& f) const {
    each_panel<T>(n_lanes, f);
  }
  // f(block, its pairs in the panel's tile, its channels' places, half) of all Gram matrices of a panel.
  template <typename F>
  void each_block(std::int64_t p, std::int64_t lanes, const F& f) const {
    T* g_b = pairs.panel(p);
    for (const GramBlock* b = q.layout.block; b < q.layout.block + q.layout.n_blocks; g_b += b->pairs() * w, ++b)
      for (std::int64_t half = 0; half < lanes; half += kLanes<T>) f(*b, g_b + half, q.layout.at + b->first, half);
  }
  // ∂L/∂x += factor C y, C being in `pairs`.
  void apply(const Tiles<T>& y, T factor) {
    each([&](std::int64_t p, std::int64_t lanes) {
      each_block(p, lanes, [&](const GramBlock& b, const T* c, const std::int32_t* at, std::int64_t half) {
        apply_block(c, y.panel(p) + half, b, at, w, made.panel(p) + half);
      });
      for (std::int64_t i = 0; i < q.d * w; i += kLanes<T>)
        store(grad.panel(p) + i, load(grad.panel(p) + i) + factor * load(made.panel(p) + i));
    });
  }

  // The sweep back, x′ = x + s · 2 C x: from the gradient by x′ in `grad`.
  void first(Sums<T>& sums) {
    const std::size_t k = q.k();
    for (std::size_t j = 0; j < k; ++j)
      each([&](std::int64_t p, std::int64_t lanes) {
        std::copy_n(v[j].panel(p), q.widths[j] * w, g[j].panel(p));
        pull_norm_silu(h[j].panel(p), q.widths[j], q.weight[j], q.shift[j], q.eps, lanes, g[j].panel(p));
      });
    tile_product<T>(q.forms, g[0].read(), n_lanes, pairs.from());
    apply(along, 1);
    each([&](std::int64_t p, std::int64_t lanes) {
      each_block(p, lanes, [&](const GramBlock& b, T* gram, const std::int32_t* at, std::int64_t half) {
        sum_block<false>(along.panel(p) + half, x.panel(p) + half, b, at, w, gram);
      });
    });
    sums.forms.add(pairs, g[0], n_lanes);
    tile_product<T>(q.forms_back, pairs.read(), n_lanes, pull[0].from());
    for (std::size_t j = 0; j < k; ++j) {
      each([&](std::int64_t p, std::int64_t lanes) {
        pull_pulled_norm_silu(h[j].panel(p), v[j].panel(p), q.widths[j], q.weight[j], q.shift[j], q.eps, lanes,
                              pull[j].panel(p), grad_h[j].panel(p), sums.weight[j].numbers.get(),
                              sums.shift[j].numbers.get());
      });
      if (j + 1 == k) break;
      sums.matrix[j].add(g[j + 1], pull[j], n_lanes);
      tile_product<T>(q.on[j], pull[j].read(), n_lanes, pull[j + 1].from());
    }
    sums.last.add(pull[k - 1], n_lanes);
  }

  // The sweep forward, from the gradient by z in `pull`, where there is one, and those by h.
  void second(Sums<T>& sums, bool from_z) {
    for (std::size_t j = q.k(); j-- > 0;) {
      const Tiles<T>& y = g[j];  // no longer needed
      const bool pulls = from_z || j + 1 < q.k();
      if (pulls) {
        sums.constant[j].add(pull[j + 1], n_lanes);
        each([&](std::int64_t p, std::int64_t lanes) {
          norm_silu(h[j].panel(p), q.widths[j], q.weight[j], q.shift[j], q.eps, lanes, y.panel(p));
        });
        sums.matrix[j].add(pull[j + 1], y, n_lanes);
        tile_product<T>(q.back[j], pull[j + 1].read(), n_lanes, pull[j].from());
      }
      each([&](std::int64_t p, std::int64_t lanes) {
        T *to = pull[j].panel(p), *from = grad_h[j].panel(p);
        if (!pulls) return void(std::copy_n(from, q.widths[j] * w, to));
        pull_norm_silu(h[j].panel(p), q.widths[j], q.weight[j], q.shift[j], q.eps, lanes, to,
                       sums.weight[j].numbers.get(), sums.shift[j].numbers.get());
        for (std::int64_t i = 0; i < q.widths[j] * w; i += kLanes<T>) store(to + i, load(to + i) + load(from + i));
      });
    }
    sums.bias.add(pull[0], n_lanes);
    each([&](std::int64_t p, std::int64_t lanes) {
      each_block(p, lanes, [&](const GramBlock& b, T* gram, const std::int32_t* at, std::int64_t half) {
        sum_block<true>(x.panel(p) + half, x.panel(p) + half, b, at, w, gram);
      });
    });
    sums.forms.add(pairs, pull[0], n_lanes);
    tile_product<T>(q.forms, pull[0].read(), n_lanes, pairs.from());
    apply(x, 2);
  }
};

// layers: the four tensors of each, one after the other. kept: h_0 … h_k−1 and then v_0 … v_k−2. grad_z may be empty.
// sums: of forms, bias, last and the tensors of the layers; what is found is added to them.
template <typename T>
void backward(const Array<T>& grad_y_, const Array<T>& grad_z_, const Array<T>& x_, const Array<T>& scale_,
              const Array<T>& forms_, const Array<T>& last_, const std::vector<Array<T>>& layers,
              const std::vector<Array<T>>& kept, const Array<std::int32_t>& blocks, const Array<std::int32_t>& places,
              T eps, Array<T>& grad_x_, std::vector<Array<T>> sums_) {
  const GramLayout layout(blocks, places);
  const std::int64_t n = x_.shape(0), d = x_.shape(1), n_pairs = forms_.shape(0), c = forms_.shape(1);
  const std::int64_t n_threads = omp_get_max_threads();
  const bool from_z = grad_z_.size() > 0;
  std::vector<Packing<T>> packings;
  packings.reserve(2 + layers.size() / 2);
  const auto packed = [&](const T* matrix, std::int64_t row, std::int64_t column, std::int64_t rows, std::int64_t k) {
    packings.emplace_back(Strided<T>{matrix, row, column}, rows, k);
    return packings.back().weights();
  };
  Problem<T> q{layout,
               d,
               n_pairs,
               {c},
               {},
               {},
               in(last_),
               eps,
               packed(in(forms_), c, 1, n_pairs, c),
               packed(in(forms_), 1, c, c, n_pairs),
               {},
               {}};
  for (std::size_t i = 0; i < layers.size(); i += 4) {
    const std::int64_t n_out = layers[i + 2].shape(0), n_in = layers[i + 2].shape(1);
    const T* matrix = in(layers[i + 2]);
    q.weight.push_back(in(layers[i]));
    q.shift.push_back(in(layers[i + 1]));
    q.widths.push_back(n_out);
    q.on.push_back(packed(matrix, n_in, 1, n_out, n_in));
    q.back.push_back(packed(matrix, 1, n_in, n_in, n_out));
  }
  std::int64_t widest = d;
  for (const std::int64_t width : q.widths) widest = std::max(widest, width);
  const std::int64_t n_panels = (n + kWidth<T> - 1) / kWidth<T>;
  const std::int64_t rounds = (n_panels + kPanels * n_threads - 1) / (kPanels * n_threads);
  const std::int64_t size = (n_panels + rounds * n_threads - 1) / std::max<std::int64_t>(1, rounds * n_threads);
  const std::size_t k = q.k();
  const T *scale = in(scale_), *grad_y = in(grad_y_), *grad_z = from_z ? in(grad_z_) : nullptr, *x = in(x_);
  T* grad_x = out(grad_x_);
  std::vector<T*> totals;
  for (auto& array : sums_) totals.push_back(out(array));
#pragma omp parallel if (n_panels > 1)
  {
#pragma omp for schedule(dynamic)
    for (std::size_t i = 0; i < packings.size(); ++i) packings[i].run();
    Work<T> work(q, size);
    Sums<T> sums(q);
    const auto zeros = buffer<T>(widest), nowhere = buffer<T>(widest);
    std::fill_n(zeros.get(), widest, T(0));
#pragma omp for schedule(static)
    for (std::int64_t start = 0; start < n_panels; start += size) {
      const std::int64_t first = start * kWidth<T>;
      work.n_lanes = whole_vectors<T>(std::min(size * kWidth<T>, n - first));
      const auto read = [&](const T* from, const Tiles<T>& to) {
        work.each([&](std::int64_t p, std::int64_t) {
          read_tile<T>({from, to.d, n, zeros.get()}, first + p * kWidth<T>, to.panel(p));
        });
      };
      read(x, work.x);
      read(grad_y, work.grad);
      for (std::size_t j = 0; j < k; ++j) read(in(kept[j]), work.h[j]);
      for (std::size_t j = 0; j + 1 < k; ++j) read(in(kept[k + j]), work.v[j]);
      if (from_z) read(grad_z, work.pull[k]);
      work.each([&](std::int64_t p, std::int64_t) {
        T s[kWidth<T>], *to = work.along.panel(p), *last = work.v[k - 1].panel(p);
        const T* from = work.grad.panel(p);
        for (std::int64_t lane = 0, e = first + p * kWidth<T>; lane < kWidth<T>; ++lane, ++e)
          s[lane] = e < n ? 2 * scale[e] : T(0);
        for (std::int64_t i = 0; i < d; ++i, to += kWidth<T>, from += kWidth<T>)
          for (std::int64_t lane = 0; lane < kWidth<T>; ++lane) to[lane] = s[lane] * from[lane];
        for (std::int64_t i = 0; i < q.widths[k - 1]; ++i) std::fill_n(last + i * kWidth<T>, kWidth<T>, q.last[i]);
      });
      work.first(sums);
      work.second(sums, from_z);
      work.each([&](std::int64_t p, std::int64_t) {
        write_tile<T>(work.grad.panel(p), first + p * kWidth<T>, {grad_x, d, n, nowhere.get()});
      });
    }
#pragma omp for ordered schedule(static, 1)
    for (int t = 0; t < omp_get_num_threads(); ++t) {
#pragma omp ordered
      sums.give(totals);
    }
  }
}

template <typename T>
void bind(Module& m) {
  m.def("tracegrad_backward", &backward<T>);
}

}  // namespace

void bind_tracegrad_backward(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
