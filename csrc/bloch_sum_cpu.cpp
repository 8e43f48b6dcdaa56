// Bloch sum: the kernel of nextham_kernels/ops/bloch_sum, which holds the formula.
//
// The blocks of one pair of atoms are one product C = A B: rows of B are the blocks (read where they lie), A holds the
// real and imaginary parts of the phases, C those of the dense block before its imaginary unit is multiplied out. For p
// phases that is 4 p multiply-adds per complex number, so from some four phases on arithmetic binds, below that reading
// the blocks. The adjoint is the same product with the transposed A.
// Parallel over pairs of atoms, and over groups of phases in the forward direction; each number of a result is summed
// by one thread in the order of the edges, so the number of threads changes nothing.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "lanes.h"
#include "module.h"
#include "rows.h"

namespace NEXTHAM_ISA {
namespace {

// 24 (12) sums in the 32 (16) registers.
constexpr int kRegisters = kVectorBytes == 64 ? 24 : 12;
constexpr int kRows = kVectorBytes == 64 ? 8 : 4;
template <int R>
constexpr int kColumns = std::min(8, kRegisters / R);
// Numbers of C that one group of phases takes at most: half of a second-level cache of 1 MB in double precision.
constexpr std::int64_t kGroup = 1 << 16;

// Columns of `vectors` vectors, of which the first `skip` lanes are already there (only where it adds).
template <typename T, int R, int V, bool Add>
__attribute__((always_inline)) inline void tile(std::int64_t n, const T* const* a, std::int64_t row, const T* const* b,
                                                std::int64_t column, T* const* c, int skip) {
  constexpr int w = kLanes<T>;
  Vector<T> sum[R][V];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[i][v] = Vector<T>{};
  for (std::int64_t k = 0; k < n; ++k) {
    const T *left = a[k] + row, *right = b[k] + column;
    Vector<T> x[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) x[v] = load_anywhere(right + v * w);
    // The rows of B lie far apart: the next columns are fetched while these are used.
    if (row == 0)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) __builtin_prefetch(right + (V + v) * w);
#pragma GCC unroll 8
    for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) sum[i][v] += left[i] * x[v];
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      T* to = c[row + i] + column + v * w;
      if (!Add)
        store_anywhere(to, sum[i][v]);
      else if (skip == 0)
        store_anywhere(to, load_anywhere(to) + sum[i][v]);
      else
        for (int lane = skip; lane < w; ++lane) to[lane] += sum[i][v][lane];
    }
}

template <typename T, int R, int V, bool Add>
void rows_of(std::int64_t n, std::int64_t m, std::int64_t row, const T* const* a, const T* const* b,
             std::int64_t column, T* const* c, int skip) {
  for (; row + R <= m; row += R) tile<T, R, V, Add>(n, a, row, b, column, c, skip);
  if constexpr (R > 1) {
    if (row < m) rows_of<T, R / 2, V, Add>(n, m, row, a, b, column, c, skip);
  }
}

// c[i][j] (+)= Σ_k a[k][i] b[k][j] for i < m, j < d, k < n.
template <typename T, int R, bool Add>
void product_of(std::int64_t n, std::int64_t m, std::int64_t d, const T* const* a, const T* const* b, T* const* c) {
  constexpr int w = kLanes<T>, V = kColumns<R>;
  if (d < w) {
    for (std::int64_t i = 0; i < m; ++i)
      for (std::int64_t j = 0; j < d; ++j) {
        T sum = 0;
        for (std::int64_t k = 0; k < n; ++k) sum += a[k][i] * b[k][j];
        c[i][j] = Add ? c[i][j] + sum : sum;
      }
    return;
  }
  std::int64_t column = 0;
  for (; column + V * w <= d; column += V * w) rows_of<T, R, V, Add>(n, m, 0, a, b, column, c, 0);
  for (; column < d; column += w) {
    const std::int64_t last = std::min(column, d - w);  // the last vector overlaps the one before
    rows_of<T, R, 1, Add>(n, m, 0, a, b, last, c, static_cast<int>(column - last));
  }
}

template <typename T, bool Add>
void product(std::int64_t n, std::int64_t m, std::int64_t d, const T* const* a, const T* const* b, T* const* c) {
  if (m >= kRows)
    product_of<T, kRows, Add>(n, m, d, a, b, c);
  else
    product_of<T, 2, Add>(n, m, d, a, b, c);
}

// A pair of atoms: where its block lies in the dense matrix.
struct Pair {
  std::int64_t first, last, row, column, a, b;
  Pair(const std::int64_t* edges, const std::int64_t* pairs, std::int64_t pair)
      : first(pairs[pair]), last(pairs[pair + 1]) {
    const std::int64_t* e = edges + 6 * first;
    row = e[2], column = e[3], a = e[4], b = e[5];
  }
};

// Calls f(row of the dense block, first number of it in the ragged block, stride of its columns) for each row of a
// pair.
template <typename F>
void each_row(const Pair& pair, std::int64_t size, std::int64_t spins, F f) {
  for (std::int64_t s = 0; s < spins * spins; ++s)
    for (std::int64_t a = 0; a < pair.a; ++a)
      f((pair.row + a * spins + s / spins) * size + pair.column + s % spins, (s * pair.a + a) * pair.b);
}

template <typename T>
void forward(const Array<T>& blocks_, const Array<T>& coefficient_, const Array<std::int64_t>& edges_,
             const Array<std::int64_t>& pairs_, std::int64_t spins, Array<T>& dense_) {
  const std::int64_t n_phases = coefficient_.shape(1), n_pairs = pairs_.shape(0) - 1, size = dense_.shape(1);
  const std::int64_t parts = blocks_.shape(1);
  const T *blocks = in(blocks_), *coefficient = in(coefficient_);
  const std::int64_t *edges = in(edges_), *pairs = in(pairs_);
  T* dense = out(dense_);
  if (n_phases == 0 || n_pairs == 0) return;
  std::int64_t largest = 1;
  for (std::int64_t p = 0; p < n_pairs; ++p) {
    const Pair pair(edges, pairs, p);
    largest = std::max(largest, spins * spins * parts * pair.a * pair.b);
  }
  const std::int64_t group = std::min(n_phases, std::max<std::int64_t>(4, kGroup / (2 * largest)));
  const std::int64_t n_groups = (n_phases + group - 1) / group;
  const bool parallel = blocks_.size() * n_phases > kParallelNumbers;
#pragma omp parallel if (parallel)
  {
    std::vector<T> sums(2 * group * largest);
    std::vector<T*> c(2 * group);
    std::vector<const T*> a, b;
#pragma omp for schedule(dynamic) collapse(2)
    for (std::int64_t p = 0; p < n_pairs; ++p) {
      for (std::int64_t g = 0; g < n_groups; ++g) {
        const Pair pair(edges, pairs, p);
        const std::int64_t q0 = g * group, q1 = std::min(n_phases, q0 + group),
                           d = spins * spins * parts * pair.a * pair.b;
        a.clear(), b.clear();
        for (std::int64_t e = pair.first; e < pair.last; ++e) {
          a.push_back(coefficient + 2 * (edges[6 * e + 1] * n_phases + q0));
          b.push_back(blocks + parts * edges[6 * e]);
        }
        for (std::int64_t i = 0; i < 2 * (q1 - q0); ++i) c[i] = sums.data() + i * d;
        product<T, false>(pair.last - pair.first, 2 * (q1 - q0), d, a.data(), b.data(), c.data());
        for (std::int64_t q = q0; q < q1; ++q) {
          const T *x = c[2 * (q - q0)], *y = c[2 * (q - q0) + 1];  // real and imaginary part of the phase times M
          T* matrix = dense + 2 * q * size * size;
          each_row(pair, size, spins, [&](std::int64_t row, std::int64_t from) {
            T* to = matrix + 2 * row;
            if (parts == 1) {
              for (std::int64_t i = 0; i < pair.b; ++i) {
                to[2 * spins * i] = x[from + i];
                to[2 * spins * i + 1] = y[from + i];
              }
            } else {
              for (std::int64_t i = 0; i < pair.b; ++i) {
                to[2 * spins * i] = x[2 * (from + i)] - y[2 * (from + i) + 1];
                to[2 * spins * i + 1] = x[2 * (from + i) + 1] + y[2 * (from + i)];
              }
            }
          });
        }
      }
    }
  }
}

template <typename T>
void backward(const Array<T>& grad_, const Array<T>& coefficient_, const Array<std::int64_t>& edges_,
              const Array<std::int64_t>& pairs_, std::int64_t spins, Array<T>& grad_blocks_) {
  const std::int64_t n_phases = coefficient_.shape(1), n_pairs = pairs_.shape(0) - 1, size = grad_.shape(1);
  const std::int64_t parts = grad_blocks_.shape(1);
  const T *grad = in(grad_), *coefficient = in(coefficient_);
  const std::int64_t *edges = in(edges_), *pairs = in(pairs_);
  T* grad_blocks = out(grad_blocks_);
  if (n_phases == 0) std::fill_n(grad_blocks, grad_blocks_.size(), T(0));
  const bool parallel = grad_blocks_.size() * n_phases > kParallelNumbers;
#pragma omp parallel if (parallel)
  {
    std::vector<T> above, phases;
    std::vector<T*> c;
    std::vector<const T*> a, b;
#pragma omp for schedule(dynamic)
    for (std::int64_t p = 0; p < n_pairs; ++p) {
      const Pair pair(edges, pairs, p);
      const std::int64_t n = pair.last - pair.first, d = spins * spins * parts * pair.a * pair.b;
      const std::int64_t group = std::max<std::int64_t>(4, kGroup / (2 * std::max<std::int64_t>(1, d)));
      c.clear();
      for (std::int64_t e = pair.first; e < pair.last; ++e) c.push_back(grad_blocks + parts * edges[6 * e]);
      for (std::int64_t q0 = 0; q0 < n_phases; q0 += group) {
        const std::int64_t q1 = std::min(n_phases, q0 + group), rows = 2 * (q1 - q0);
        above.resize(rows * d), phases.resize(rows * n);
        a.clear(), b.clear();
        for (std::int64_t i = 0; i < rows; ++i) {
          a.push_back(phases.data() + i * n);
          b.push_back(above.data() + i * d);
        }
        for (std::int64_t e = 0; e < n; ++e) {
          const T* phase = coefficient + 2 * (edges[6 * (pair.first + e) + 1] * n_phases + q0);
          for (std::int64_t i = 0; i < rows; ++i) phases[i * n + e] = phase[i];
        }
        for (std::int64_t q = q0; q < q1; ++q) {
          T *x = above.data() + 2 * (q - q0) * d, *y = x + d;
          const T* matrix = grad + 2 * q * size * size;
          each_row(pair, size, spins, [&](std::int64_t row, std::int64_t to) {
            const T* from = matrix + 2 * row;
            if (parts == 1) {
              for (std::int64_t i = 0; i < pair.b; ++i) {
                x[to + i] = from[2 * spins * i];
                y[to + i] = from[2 * spins * i + 1];
              }
            } else {
              for (std::int64_t i = 0; i < pair.b; ++i) {
                const T re = from[2 * spins * i], im = from[2 * spins * i + 1];
                x[2 * (to + i)] = re, x[2 * (to + i) + 1] = im;
                y[2 * (to + i)] = im, y[2 * (to + i) + 1] = -re;
              }
            }
          });
        }
        if (q0 == 0)
          product<T, false>(rows, n, d, a.data(), b.data(), c.data());
        else
          product<T, true>(rows, n, d, a.data(), b.data(), c.data());
      }
    }
  }
}

template <typename T>
void bind(Module& m) {
  m.def("bloch_sum_forward", &forward<T>);
  m.def("bloch_sum_backward", &backward<T>);
}

}  // namespace

void bind_bloch_sum(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
