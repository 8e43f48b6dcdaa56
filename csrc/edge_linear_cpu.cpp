// One matrix per |m| for rows of edges, with or without heads: the kernels of nextham_kernels/ops/edge_linear, which
// holds the formula.
//
// Parallel over tiles of up to 96 edges. NextHAM with four heads, per edge: 84k multiply-adds forward, 1.6 kB read and
// 1.6 kB written; the matrices (340 kB, packed once per call) stay in the second-level cache. The outer product of head
// coefficients and features is made for one block of one tile, so that all heads are one product 4 c deep, never in
// memory. On-site edges, one in a hundred, have matrices of their own: their rows are gathered into tiles and done
// last.
// One core (Xeon with AVX-512), 400 to 1300 edges: 100 GFLOP/s with heads and 90 without, where the 256-wide matrix
// product of MKL reaches 180: columns, 72, 40, 24 and 8, do not fill vectors of 16, and rows come from memory.
// Backward: pulls with the transposed matrices in the same way, and sums the gradient of the matrices of each thread's
// edges, then over threads in their order.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "edge_linear.h"
#include "matrix_product.h"
#include "module.h"
#include "rows.h"

namespace NEXTHAM_ISA {
namespace {

constexpr std::int64_t kTile = 96;

template <typename T>
struct Problem : LinearTable {
  const T *x, *heads, *matrix, *bias;
  const bool* onsite;  // null: no on-site edge
  std::int64_t n, d_x, d_y, n_heads, n_bias, n_sets, n_matrix;

  Problem(const Array<T>& x_, const Array<T>& heads_, const Array<T>& matrix_, const Array<T>& bias_,
          const Array<bool>& onsite_, const Array<std::int32_t>& blocks, const Array<std::int32_t>& zeros,
          const Array<std::int32_t>& scalars, std::int64_t d_y_)
      : LinearTable(blocks, zeros, scalars),
        x(in(x_)),
        heads(heads_.shape(1) ? in(heads_) : nullptr),
        matrix(in(matrix_)),
        bias(in(bias_)),
        onsite(onsite_.shape(0) ? in(onsite_) : nullptr),
        n(x_.shape(0)),
        d_x(x_.shape(1)),
        d_y(d_y_),
        n_heads(heads ? heads_.shape(1) : 1),
        n_bias(bias_.shape(0)),
        n_sets(matrix_.shape(0)),
        n_matrix(matrix_.shape(1)) {}

  std::int64_t depth(const LinearBlock& b) const { return n_heads * b.c_in; }
  // The coefficient of a row of the bias: of a head, or 1 in the row behind them.
  T of_bias(const T* a, std::int64_t h) const { return heads && h < n_heads ? a[h] : T(1); }

  std::int64_t widest() const {
    std::int64_t most = 0;
    for (const LinearBlock* b = block; b < block + n_blocks; ++b)
      most = std::max<std::int64_t>({most, depth(*b), b->c_out});
    return most;
  }

  std::vector<std::int64_t> onsite_edges() const {
    std::vector<std::int64_t> found;
    for (std::int64_t e = 0; onsite && e < n; ++e)
      if (onsite[e]) found.push_back(e);
    return found;
  }

  std::int64_t packed_of(const LinearBlock& b, bool transposed) const {
    return transposed ? packed_size<T>(b.c_out, depth(b)) : packed_size<T>(depth(b), b.c_out);
  }
  std::int64_t packed_of_set(bool transposed) const {
    std::int64_t total = 0;
    for (const LinearBlock* b = block; b < block + n_blocks; ++b) total += packed_of(*b, transposed);
    return total;
  }

  // All matrices, packed one after the other: [depth, c_out], or transposed.
  Buffer<T> packed(bool transposed) const {
    auto all = buffer<T>(n_sets * packed_of_set(transposed));
    T* to = all.get();
    for (std::int64_t set = 0; set < n_sets; ++set)
      for (const LinearBlock* b = block; b < block + n_blocks; to += packed_of(*b, transposed), ++b) {
        const T* from = matrix + set * n_matrix + b->matrix;
        if (transposed) {
          pack<T>(from, 1, b->c_out, b->c_out, depth(*b), to);
        } else {
          pack<T>(from, b->c_out, 1, depth(*b), b->c_out, to);
        }
      }
    return all;
  }
};

// Rows of some edges, one after the other: where they lie, or copies.
template <typename T>
struct EdgeRows {
  const T *x, *heads, *grad;
  T *y, *grad_x, *grad_heads;
  std::int64_t n;
};

template <typename T>
struct Tile {
  const Problem<T>& q;
  Buffer<T> outer, pulled, above;

  Tile(const Problem<T>& q_, std::int64_t rows, bool back)
      : q(q_),
        outer(buffer<T>(q.heads ? rows * q.widest() : 0)),
        pulled(buffer<T>(back ? rows * q.widest() : 0)),
        above(buffer<T>(back ? packed_size<T>(rows, q.widest()) : 0)) {}

  // The features of one component of a block, and with heads outer[r, (h, u)] = a_h x_u, zero where `without` says so.
  Strided<T> features(const LinearBlock& b, const EdgeRows<T>& rows, std::int64_t column, const bool* without) {
    if (!q.heads) return {rows.x + column, q.d_x, 1};
    T* to = outer.get();
    for (std::int64_t r = 0; r < rows.n; ++r)
      for (std::int64_t h = 0; h < q.n_heads; ++h, to += b.c_in) {
        const T a = without && without[r] ? 0 : rows.heads[r * q.n_heads + h], *from = rows.x + r * q.d_x + column;
#pragma omp simd
        for (std::int64_t u = 0; u < b.c_in; ++u) to[u] = a * from[u];
      }
    return {outer.get(), q.depth(b), 1};
  }

  void forward(const EdgeRows<T>& rows, const T* w) {
    for (const LinearBlock* b = q.block; b < q.block + q.n_blocks; w += q.packed_of(*b, false), ++b)
      for (std::int32_t i = 0; i < b->components; ++i)
        product<T>(features(*b, rows, b->x + i * b->c_in, nullptr), rows.n, q.depth(*b), b->c_out, w,
                   rows.y + b->y + i * b->c_out, q.d_y);
    for (std::int64_t r = 0; r < rows.n; ++r) {
      T* row = rows.y + r * q.d_y;
      for (std::int64_t j = 0; j < q.n_zero; ++j) row[q.zero[j]] = 0;
      for (std::int64_t h = 0; h < q.n_bias; ++h) {
        const T a = q.of_bias(rows.heads + r * q.n_heads, h), *bias = q.bias + h * q.n_scalar;
        for (std::int64_t j = 0; j < q.n_scalar; ++j) row[q.scalar[j]] += a * bias[j];
      }
    }
  }

  // grad_x and grad_heads.
  void pull(const EdgeRows<T>& rows, const T* w) {
    std::fill_n(rows.grad_x, rows.n * q.d_x, T(0));
    if (q.heads) std::fill_n(rows.grad_heads, rows.n * q.n_heads, T(0));
    for (const LinearBlock* b = q.block; b < q.block + q.n_blocks; w += q.packed_of(*b, true), ++b) {
      const std::int64_t k = q.depth(*b);
      for (std::int32_t i = 0; i < b->components; ++i) {
        const std::int64_t column = b->x + i * b->c_in;
        const Strided<T> g{rows.grad + b->y + i * b->c_out, q.d_y, 1};
        T* to = q.heads ? pulled.get() : rows.grad_x + column;
        product<T>(g, rows.n, b->c_out, k, w, to, q.heads ? k : q.d_x);
        for (std::int64_t r = 0; q.heads && r < rows.n; ++r)
          for (std::int64_t h = 0; h < q.n_heads; ++h) {
            const T a = rows.heads[r * q.n_heads + h], *x = rows.x + r * q.d_x + column;
            const T* p = pulled.get() + r * k + h * b->c_in;
            T *grad_x = rows.grad_x + r * q.d_x + column, sum = 0;
#pragma omp simd reduction(+ : sum)
            for (std::int64_t u = 0; u < b->c_in; ++u) {
              grad_x[u] += a * p[u];
              sum += x[u] * p[u];
            }
            rows.grad_heads[r * q.n_heads + h] += sum;
          }
      }
    }
    for (std::int64_t r = 0; q.heads && r < rows.n; ++r)
      for (std::int64_t h = 0; h < std::min(q.n_heads, q.n_bias); ++h) {
        T sum = 0;
        for (std::int64_t j = 0; j < q.n_scalar; ++j)
          sum += rows.grad[r * q.d_y + q.scalar[j]] * q.bias[h * q.n_scalar + j];
        rows.grad_heads[r * q.n_heads + h] += sum;
      }
  }

  // Adds to grad_matrix of one set the edges that `without` does not name, and to grad_bias all.
  void sum(const EdgeRows<T>& rows, const bool* without, T* grad_matrix, T* grad_bias) {
    for (const LinearBlock* b = q.block; b < q.block + q.n_blocks; ++b)
      for (std::int32_t i = 0; i < b->components; ++i) {
        Strided<T> a = features(*b, rows, b->x + i * b->c_in, without);
        std::swap(a.row, a.column);
        pack<T>(rows.grad + b->y + i * b->c_out, q.d_y, 1, rows.n, b->c_out, above.get());
        product<T>(a, q.depth(*b), rows.n, b->c_out, above.get(), grad_matrix + b->matrix, b->c_out, true);
      }
    for (std::int64_t r = 0; grad_bias && r < rows.n; ++r)
      for (std::int64_t h = 0; h < q.n_bias; ++h) {
        const T a = q.of_bias(rows.heads + r * q.n_heads, h);
        for (std::int64_t j = 0; j < q.n_scalar; ++j)
          grad_bias[h * q.n_scalar + j] += a * rows.grad[r * q.d_y + q.scalar[j]];
      }
  }
};

// Edges of a tile: whole pieces of rows, and shares of the threads that differ by less than one tile.
std::int64_t tile_size(std::int64_t n) {
  const std::int64_t threads = omp_get_max_threads(), share = (n + threads - 1) / threads;
  const std::int64_t tiles = std::max<std::int64_t>(1, (share + kTile - 1) / kTile), rows = (share + tiles - 1) / tiles;
  return std::max<std::int64_t>(1, (rows + kRows - 1) / kRows) * kRows;
}

// Copies rows `edge` of an array [n, d], or back.
template <typename T>
void gather(const T* from, std::int64_t d, const std::int64_t* edge, std::int64_t n, T* to) {
  for (std::int64_t r = 0; r < n; ++r) std::copy_n(from + edge[r] * d, d, to + r * d);
}
template <typename T>
void scatter(const T* from, std::int64_t d, const std::int64_t* edge, std::int64_t n, T* to) {
  for (std::int64_t r = 0; r < n; ++r) std::copy_n(from + r * d, d, to + edge[r] * d);
}

template <typename T>
void forward(const Array<T>& x_, const Array<T>& heads_, const Array<T>& matrix_, const Array<T>& bias_,
             const Array<bool>& onsite_, const Array<std::int32_t>& blocks_, const Array<std::int32_t>& zeros_,
             const Array<std::int32_t>& scalars_, Array<T>& y_) {
  const Problem<T> q(x_, heads_, matrix_, bias_, onsite_, blocks_, zeros_, scalars_, y_.shape(1));
  T* y = out(y_);
  const std::int64_t size = tile_size(q.n), n_tiles = (q.n + size - 1) / size, n_heads = q.heads ? q.n_heads : 0;
  const auto packed = q.packed(false);
  const auto onsite = q.onsite_edges();
  const std::int64_t n_onsite = onsite.size(), n_gathered = (n_onsite + size - 1) / size;
#pragma omp parallel if (n_tiles > 1)
  {
    Tile<T> tile(q, size, false);
    const auto copies = buffer<T>(n_onsite ? size * (q.d_x + q.d_y + n_heads) : 0);
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < n_tiles; ++t) {
      const std::int64_t e = t * size;
      tile.forward(
          {q.x + e * q.d_x, q.heads + e * n_heads, nullptr, y + e * q.d_y, nullptr, nullptr, std::min(size, q.n - e)},
          packed.get());
    }
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < n_gathered; ++t) {
      const std::int64_t *edge = onsite.data() + t * size, rows = std::min(size, n_onsite - t * size);
      T *x = copies.get(), *heads = x + size * q.d_x, *to = heads + size * n_heads;
      gather(q.x, q.d_x, edge, rows, x);
      gather(q.heads, n_heads, edge, rows, heads);
      tile.forward({x, heads, nullptr, to, nullptr, nullptr, rows}, packed.get() + q.packed_of_set(false));
      scatter(to, q.d_y, edge, rows, y);
    }
  }
}

// grad_x and grad_heads if `inputs`; grad_matrix and grad_bias (which come as zeros) if `weights`.
template <typename T>
void backward(const Array<T>& grad_, const Array<T>& x_, const Array<T>& heads_, const Array<T>& matrix_,
              const Array<T>& bias_, const Array<bool>& onsite_, const Array<std::int32_t>& blocks_,
              const Array<std::int32_t>& zeros_, const Array<std::int32_t>& scalars_, bool inputs, bool weights,
              Array<T>& grad_x_, Array<T>& grad_heads_, Array<T>& grad_matrix_, Array<T>& grad_bias_) {
  const Problem<T> q(x_, heads_, matrix_, bias_, onsite_, blocks_, zeros_, scalars_, grad_.shape(1));
  const T* grad = in(grad_);
  T *grad_x = out(grad_x_), *grad_heads = out(grad_heads_), *grad_matrix = out(grad_matrix_),
    *grad_bias = out(grad_bias_);
  const std::int64_t size = tile_size(q.n), n_tiles = (q.n + size - 1) / size, n_heads = q.heads ? q.n_heads : 0;
  const std::int64_t n_threads = std::max<std::int64_t>(1, std::min<std::int64_t>(omp_get_max_threads(), n_tiles));
  const std::int64_t n_matrices = q.n_sets * q.n_matrix, n_own = weights ? n_matrices + q.n_bias * q.n_scalar : 0;
  const auto packed = q.packed(true);
  const auto own = buffer<T>(n_threads * n_own);
  std::fill_n(own.get(), n_threads * n_own, T(0));
  const auto onsite = q.onsite_edges();
  const std::int64_t n_onsite = onsite.size(), n_gathered = (n_onsite + size - 1) / size;
#pragma omp parallel num_threads(n_threads) if (n_threads > 1)
  {
    Tile<T> tile(q, size, true);
    const auto copies = buffer<T>(n_onsite ? size * (2 * q.d_x + q.d_y + 2 * n_heads) : 0);
    T* own_matrix = own.get() + omp_get_thread_num() * n_own;
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < n_tiles; ++t) {
      const std::int64_t e = t * size;
      const EdgeRows<T> rows{q.x + e * q.d_x,    q.heads + e * n_heads,    grad + e * q.d_y,       nullptr,
                             grad_x + e * q.d_x, grad_heads + e * n_heads, std::min(size, q.n - e)};
      if (inputs) tile.pull(rows, packed.get());
      if (weights) tile.sum(rows, q.onsite ? q.onsite + e : nullptr, own_matrix, own_matrix + n_matrices);
    }
#pragma omp for schedule(static)
    for (std::int64_t t = 0; t < n_gathered; ++t) {
      const std::int64_t *edge = onsite.data() + t * size, n = std::min(size, n_onsite - t * size);
      T *x = copies.get(), *heads = x + size * q.d_x, *g = heads + size * n_heads, *to_x = g + size * q.d_y,
        *to_heads = to_x + size * q.d_x;
      gather(q.x, q.d_x, edge, n, x);
      gather(q.heads, n_heads, edge, n, heads);
      gather(grad, q.d_y, edge, n, g);
      const EdgeRows<T> rows{x, heads, g, nullptr, to_x, to_heads, n};
      if (inputs) {
        tile.pull(rows, packed.get() + q.packed_of_set(true));
        scatter(to_x, q.d_x, edge, n, grad_x);
        scatter(to_heads, n_heads, edge, n, grad_heads);
      }
      if (weights) tile.sum(rows, nullptr, own_matrix + q.n_matrix, static_cast<T*>(nullptr));
    }
  }
  for (std::int64_t t = 0; t < (weights ? n_threads : 0); ++t) {
    const T* from = own.get() + t * n_own;
    for (std::int64_t i = 0; i < n_matrices; ++i) grad_matrix[i] += from[i];
    for (std::int64_t i = 0; i < q.n_bias * q.n_scalar; ++i) grad_bias[i] += from[n_matrices + i];
  }
}

template <typename T>
void bind(Module& m) {
  m.def("edge_linear_forward", &forward<T>);
  m.def("edge_linear_backward", &backward<T>);
}

}  // namespace

void bind_edge_linear(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
