// Tensor product with the harmonics of the edge, then a linear map: the kernel of
// nextham_kernels/ops/edge_tensor_product, which holds the formula.
//
// Parallel over tiles of edges, whose lanes they become: a tile is two vectors of edges, 32 in float32 with AVX-512.
// NextHAM, per edge: 6.2 kB read, 2.0 kB written; 4,144 products z = r x and 47,232 multiply-adds W z, with the
// coupling coefficients inside W. Each weight, broadcast, multiplies two vectors (+m and −m, or two vectors of edges
// where m = 0) and z serves up to 8 outputs, so 16 independent multiply-adds cost 8 broadcasts and 2 products; nothing
// of the 6408-component product is ever stored. One core (AMD EPYC, Zen 5), 512 edges: 0.68 µs per edge, two thirds of
// it the sums, a quarter the transposing of rows; 146 GFLOP/s where MKL's 256-wide matrix product reaches 97.
// With the last layer of the radial MLP inside (64 to 1160 numbers, 74k multiply-adds more) r is never stored.
// Backward, 2.0 µs: the derivative by x and radial is the same loop turned round. The derivative by W sums kTiles tiles
// in registers, 16 vectors for two terms of 8 outputs, and then over their lanes.
#include <omp.h>

#include <algorithm>

#include "edge_tensor_product.h"
#include "matrix_product.h"
#include "module.h"

namespace NEXTHAM_ISA {
namespace {

// From 2 to 6 the time is the same: fewer make the sums over lanes dear, more leave the second-level cache.
constexpr int kTiles = 4;

// The table, the weights' coefficients, and the edges.
template <typename T>
struct Problem : ProductTable {
  const T* coefficient;       // of each weight, in the order of reading: per part, per kOutputs outputs, per term
  const std::int32_t* place;  // its place in the weights of the op
  std::int64_t n_weights;
  const bool* onsite;
  std::int64_t n, n_tiles;  // edges, and tiles of them

  Problem(const Array<bool>& onsite_, const Array<std::int32_t>& parts, const Array<std::int32_t>& terms,
          const Array<T>& coefficients, const Array<std::int32_t>& places, const Array<std::int32_t>& directed_)
      : ProductTable(parts, terms, directed_),
        coefficient(in(coefficients)),
        place(in(places)),
        n_weights(places.shape(0)),
        onsite(in(onsite_)),
        n(onsite_.shape(0)),
        n_tiles((n + kWidth<T> - 1) / kWidth<T>) {}

  Buffer<T> packed(const T* weight) const {
    auto w = buffer<T>(n_weights);
    for (std::int64_t i = 0; i < n_weights; ++i) w[i] = coefficient[i] * weight[place[i]];
    return w;
  }
};

// grad_z_k = Σ_n W_kn g_n, and with it grad_x_k += r_k grad_z_k, grad_radial_k += x_k grad_z_k
template <int N, typename T>
void pull_terms(const Term* term, std::int32_t n_terms, const T* w, const T* g, const T* x, const T* radial, T* grad_x,
                T* grad_radial, Pair pair) {
  Vector<T> a[N], b[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    a[n] = load(g + n * kWidth<T>);
    b[n] = load(g + n * kWidth<T> + pair.y);
  }
  for (const Term* end = term + n_terms; term < end; ++term, w += N) {
    // Two chains each: one of N would be longer than the latency that the terms in flight can hide.
    Vector<T> za = w[0] * a[0], zb = w[0] * b[0], za_odd{}, zb_odd{};
#pragma GCC unroll 8
    for (int n = 1; n < N; ++n) {
      (n % 2 ? za_odd : za) += w[n] * a[n];
      (n % 2 ? zb_odd : zb) += w[n] * b[n];
    }
    za += za_odd;
    zb += zb_odd;
    const std::int64_t ix = term->x * kWidth<T>, ir = term->radial * kWidth<T>;
    const Vector<T> xa = load(x + ix), xb = load(x + ix + pair.x);
    const Vector<T> ra = load(radial + ir), rb = load(radial + ir + pair.radial);
    store(grad_x + ix, load(grad_x + ix) + za * ra);
    store(grad_x + ix + pair.x, load(grad_x + ix + pair.x) + zb * rb);
    store(grad_radial + ir, load(grad_radial + ir) + za * xa);
    store(grad_radial + ir + pair.radial, load(grad_radial + ir + pair.radial) + zb * xb);
  }
}

// grad_W_kn += Σ_e r_ek x_ek g_en over the edges of some tiles, two terms at a time
template <int N, typename T>
void sum_edges(const Part& p, const Term* term, const T* x, std::int64_t x_tile, const T* radial,
               std::int64_t radial_tile, const T* g, std::int64_t g_tile, std::int64_t n_tiles, T* grad_w) {
  constexpr int w = kLanes<T>, n_vectors = (2 * N + w - 1) / w * w;
  const std::int64_t x_step = p.x_stride * kWidth<T>, g_step = p.y_stride * kWidth<T>;
  for (std::int32_t k = 0; k < p.n_terms; k += 2, grad_w += 2 * N) {
    const bool single = k + 1 == p.n_terms;
    const Term s = term[k], t = term[single ? k : k + 1];
    Vector<T> sum[n_vectors];
#pragma GCC unroll 16
    for (int i = 0; i < n_vectors; ++i) sum[i] = Vector<T>{};
    for (std::int64_t tile = 0; tile < n_tiles; ++tile) {
      const T *xs = x + tile * x_tile + s.x * kWidth<T>, *xt = x + tile * x_tile + t.x * kWidth<T>;
      const T* rs = radial + tile * radial_tile + s.radial * kWidth<T>;
      const T *rt = radial + tile * radial_tile + t.radial * kWidth<T>, *gt = g + tile * g_tile;
      for (std::int32_t i = 0; i < p.components; ++i, xs += x_step, xt += x_step, gt += g_step) {
#pragma GCC unroll 2
        for (int half = 0; half < 2 * w; half += w) {
          const Vector<T> zs = load(xs + half) * load(rs + half), zt = load(xt + half) * load(rt + half);
#pragma GCC unroll 8
          for (int n = 0; n < N; ++n) {
            const Vector<T> g_n = load(gt + n * kWidth<T> + half);
            sum[n] += zs * g_n;
            sum[N + n] += zt * g_n;
          }
        }
      }
    }
    const int n_numbers = single ? N : 2 * N;
    for (int i = 0; i < n_numbers; i += w) {
      const Vector<T> total = sums<T>(sum + i);
      if (n_numbers - i >= w) {
        store_anywhere(grad_w + i, load_anywhere(grad_w + i) + total);
      } else {
        for (int j = 0; j < n_numbers - i; ++j) grad_w[i + j] += total[j];
      }
    }
  }
}

// radial_weight: empty where radial_ holds r itself; then r = radial_weight t + radial_bias is made tile by tile.
template <typename T>
void forward(const Array<T>& x_, const Array<T>& radial_, const Array<T>& weight_, const Array<bool>& onsite_,
             const Array<T>& radial_weight_, const Array<T>& radial_bias_, const Array<T>& bias_,
             const Array<std::int32_t>& parts_, const Array<std::int32_t>& terms_, const Array<T>& coefficients_,
             const Array<std::int32_t>& places_, const Array<std::int32_t>& directed_,
             const Array<std::int32_t>& bias_columns_, Array<T>& y_) {
  const Problem<T> q(onsite_, parts_, terms_, coefficients_, places_, directed_);
  const bool fused = radial_weight_.size() > 0;
  const std::int64_t d = x_.shape(1), c = radial_.shape(1), d_radial = fused ? radial_weight_.shape(0) : c,
                     d_y = y_.shape(1), widest = std::max({d, d_radial, c, d_y}), n_bias = bias_.shape(0);
  const T *x = in(x_), *radial = in(radial_), *weight = in(weight_), *radial_weight = in(radial_weight_),
          *radial_bias = in(radial_bias_), *bias = in(bias_);
  const std::int32_t* bias_column = in(bias_columns_);
  T* y = out(y_);
  const auto packed = q.packed(weight);
#pragma omp parallel if (q.n_tiles > 1)
  {
    const auto zeros = buffer<T>(widest), nowhere = buffer<T>(widest);
    const auto tile_x = buffer<T>(d * kWidth<T>), tile_radial = buffer<T>(d_radial * kWidth<T>);
    const auto tile_t = buffer<T>(fused ? c * kWidth<T> : 0), tile_y = buffer<T>(d_y * kWidth<T>);
    std::fill_n(zeros.get(), widest, T(0));
#pragma omp for schedule(static)
    for (std::int64_t tile = 0; tile < q.n_tiles; ++tile) {
      const std::int64_t first = tile * kWidth<T>;
      read_tile<T>({x, d, q.n, zeros.get()}, first, tile_x.get());
      read_tile<T>({radial, c, q.n, zeros.get()}, first, fused ? tile_t.get() : tile_radial.get());
      if (fused) {
        for (std::int64_t p = 0; p < d_radial; ++p)
          std::fill_n(tile_radial.get() + p * kWidth<T>, kWidth<T>, radial_bias[p]);
        // A tile [c][lane] is what a packed matrix of one panel looks like.
        product<T>({radial_weight, c, 1}, d_radial, c, kWidth<T>, tile_t.get(), tile_radial.get(), kWidth<T>, true);
      }
      q.shut_onsite(q.onsite + first, q.n - first, tile_radial.get());
      q.multiply(packed.get(), tile_x.get(), tile_radial.get(), kWidth<T>, tile_y.get());
      for (std::int64_t j = 0; j < n_bias; ++j)
        for (std::int64_t lane = 0; lane < kWidth<T>; ++lane) tile_y[bias_column[j] * kWidth<T> + lane] += bias[j];
      write_tile<T>(tile_y.get(), first, {y, d_y, q.n, nowhere.get()});
    }
  }
}

// The gradients of x and radial if `inputs`, of the weight (which comes as zeros) if `weights`.
template <typename T>
void backward(const Array<T>& grad_, const Array<T>& x_, const Array<T>& radial_, const Array<T>& weight_,
              const Array<bool>& onsite_, const Array<std::int32_t>& parts_, const Array<std::int32_t>& terms_,
              const Array<T>& coefficients_, const Array<std::int32_t>& places_, const Array<std::int32_t>& directed_,
              bool inputs, bool weights, Array<T>& grad_x_, Array<T>& grad_radial_, Array<T>& grad_weight_) {
  const Problem<T> q(onsite_, parts_, terms_, coefficients_, places_, directed_);
  const std::int64_t d = x_.shape(1), d_radial = radial_.shape(1), d_y = grad_.shape(1),
                     widest = std::max({d, d_radial, d_y});
  const T *grad = in(grad_), *x = in(x_), *radial = in(radial_), *weight = in(weight_);
  T *grad_x = out(grad_x_), *grad_radial = out(grad_radial_), *grad_weight = out(grad_weight_);
  const auto packed = q.packed(weight);
  // Every thread sums the gradient of the weights of its own edges; these are added in the order of the threads.
  const std::int64_t n_threads = std::max<std::int64_t>(1, std::min<std::int64_t>(omp_get_max_threads(), q.n_tiles));
  const std::int64_t n_own = weights ? q.n_weights : 0;
  const auto own = buffer<T>(n_threads * n_own);
  std::fill_n(own.get(), n_threads * n_own, T(0));
  const std::int64_t share = std::max<std::int64_t>(1, (q.n_tiles + n_threads - 1) / n_threads);
  const std::int64_t most = weights ? std::min<std::int64_t>(kTiles, share) : 1;
  const std::int64_t size_x = d * kWidth<T>, size_radial = d_radial * kWidth<T>, size_g = d_y * kWidth<T>;
#pragma omp parallel num_threads(n_threads) if (n_threads > 1)
  {
    const auto zeros = buffer<T>(widest), nowhere = buffer<T>(widest);
    const auto tiles_x = buffer<T>(most * size_x), tiles_radial = buffer<T>(most * size_radial);
    const auto tiles_g = buffer<T>(most * size_g), pull_x = buffer<T>(size_x), pull_radial = buffer<T>(size_radial);
    std::fill_n(zeros.get(), widest, T(0));
#pragma omp for schedule(static)
    for (std::int64_t start = 0; start < q.n_tiles; start += most) {
      const std::int64_t n_tiles = std::min(most, q.n_tiles - start);
      for (std::int64_t tile = 0; tile < n_tiles; ++tile) {
        const std::int64_t first = (start + tile) * kWidth<T>;
        T *tile_x = tiles_x.get() + tile * size_x, *tile_radial = tiles_radial.get() + tile * size_radial;
        T* tile_g = tiles_g.get() + tile * size_g;
        read_tile<T>({x, d, q.n, zeros.get()}, first, tile_x);
        read_tile<T>({radial, d_radial, q.n, zeros.get()}, first, tile_radial);
        read_tile<T>({grad, d_y, q.n, zeros.get()}, first, tile_g);
        q.shut_onsite(q.onsite + first, q.n - first, tile_radial);
        if (!inputs) continue;
        std::fill_n(pull_x.get(), size_x, T(0));
        std::fill_n(pull_radial.get(), size_radial, T(0));
        const T* w = packed.get();
        for (const Part* p = q.part; p < q.part + q.n_parts; w += p->n_terms * p->n, ++p)
          each_pair<T>(*p, kWidth<T>, [&](auto n, std::int32_t o, std::int64_t half, Pair pair) {
            pull_terms<n()>(q.term + p->term, p->n_terms, w + o * p->n_terms, tile_g + (p->y + o) * kWidth<T> + half,
                            tile_x + half, tile_radial + half, pull_x.get() + half, pull_radial.get() + half, pair);
          });
        q.shut_onsite(q.onsite + first, q.n - first, pull_radial.get());
        write_tile<T>(pull_x.get(), first, {grad_x, d, q.n, nowhere.get()});
        write_tile<T>(pull_radial.get(), first, {grad_radial, d_radial, q.n, nowhere.get()});
      }
      if (!weights) continue;
      T* w = own.get() + omp_get_thread_num() * n_own;
      for (const Part* p = q.part; p < q.part + q.n_parts; w += p->n_terms * p->n, ++p)
        for (std::int32_t o = 0; o < p->n; o += kOutputs)
          with_constant<kOutputs>(std::min(kOutputs, p->n - o), [&](auto n) {
            sum_edges<n()>(*p, q.term + p->term, tiles_x.get(), size_x, tiles_radial.get(), size_radial,
                           tiles_g.get() + (p->y + o) * kWidth<T>, size_g, n_tiles, w + o * p->n_terms);
          });
    }
#pragma omp for schedule(static)
    for (std::int64_t i = 0; i < n_own; ++i)
      for (std::int64_t t = 1; t < n_threads; ++t) own[i] += own[t * n_own + i];
  }
  for (std::int64_t i = 0; i < n_own; ++i) grad_weight[q.place[i]] += q.coefficient[i] * own[i];
}

template <typename T>
void bind(Module& m) {
  m.def("edge_tensor_product_forward", &forward<T>);
  m.def("edge_tensor_product_backward", &backward<T>);
}

}  // namespace

void bind_edge_tensor_product(Module& m) {
  m.constant("edge_tensor_product_outputs", kOutputs);
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
