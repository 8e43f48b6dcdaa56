// Bloch sum: the kernel of nextham_kernels/ops/bloch_sum, which holds the formula.
//
// A phase is c + i s. The edges of one pair of atoms are its terms, a block or two: of an edge at R and one at −R,
// whose phases are conjugate, with x = M(R) + M(−R) and y = i (M(R) − M(−R)); of an edge alone with x = M and y = i M.
// Either adds c x + s y, four multiply-adds per complex number of a term and phase: half of what two edges cost one by
// one, and atoms of a small cell have nearly all edges in such pairs. For 64 phases of si2 that is 51 MFLOP instead
// of 95. Forward, x and y of some columns are packed once for all phases of a group (13 kB of a 48 kB first-level
// cache), and every sum of a tile stays in a register. One or two phases do little work per number read, so nothing is
// packed. The adjoint sums X = Σ c G and Z = Σ s G; M(R) receives X − i Z, M(−R) X + i Z. Real M need half of all this.
// Large cells have one to three terms a pair and are bound by the dense matrices, of which a pair has short rows far
// apart: while one run of pairs is computed, the next is fetched in the order of memory (four phases of si50, one
// thread: 11 ms instead of 19 and 24 without, 4 of them arithmetic and packing; copying as many bytes takes 7).
// Parallel over runs of pairs of one row of atoms, and over groups of phases in the forward direction; each number of a
// result is summed by one thread in the order of the terms, so the number of threads changes nothing.
#include <omp.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "dense_runs.h"
#include "lanes.h"
#include "module.h"
#include "rows.h"

namespace NEXTHAM_ISA {
namespace {

// 24 (12) sums in the 32 (16) registers, as 8 (4) rows of 3 vectors.
constexpr int kRows = kVectorBytes == 64 ? 8 : 4;
constexpr int kColumns = 3;
// Numbers that one group of phases takes at most: a quarter of a second-level cache of 2 MB in single precision.
constexpr std::int64_t kGroup = 1 << 17;
// Up to so many phases a pair is bound by reading its blocks, and the processor fetches in time.
constexpr std::int64_t kFewPhases = 2;

// A block, or two whose phases are conjugate; `other` is −1 where there is one.
struct Term {
  std::int64_t vector, block, other;
};

// Finds the terms of pairs. Vectors r and n − 1 − r are opposite where their phases are conjugate, to the last bit.
class Terms {
 public:
  template <typename T>
  Terms(const T* coefficient, std::int64_t n_vectors, std::int64_t n_phases)
      : conjugate_(n_vectors), waiting_(n_vectors, -1) {
    for (std::int64_t r = 0; r < n_vectors; ++r) {
      const T *x = coefficient + 2 * r * n_phases, *y = coefficient + 2 * (n_vectors - 1 - r) * n_phases;
      bool same = true;
      for (std::int64_t q = 0; q < n_phases; ++q) same &= x[2 * q] == y[2 * q] && x[2 * q + 1] == -y[2 * q + 1];
      conjugate_[r] = same;
    }
  }
  // Of blocks whose numbers have `parts` parts.
  void find(const std::int64_t* edges, const AtomPair& pair, std::int64_t parts) {
    const std::int64_t n = static_cast<std::int64_t>(conjugate_.size());
    all.clear();
    for (std::int64_t e = pair.first; e < pair.last; ++e) {
      const std::int64_t block = parts * edges[6 * e], r = edges[6 * e + 1], opposite = n - 1 - r;
      const std::int64_t partner = conjugate_[r] && opposite != r ? waiting_[opposite] : -1;
      if (partner >= 0) {
        all[partner].other = block;
        waiting_[opposite] = -1;
      } else {
        waiting_[r] = static_cast<std::int64_t>(all.size());
        all.push_back({r, block, -1});
      }
    }
    for (const Term& term : all) waiting_[term.vector] = -1;
  }
  std::vector<Term> all;

 private:
  std::vector<char> conjugate_;
  std::vector<std::int64_t> waiting_;
};

// i z of interleaved complex lanes.
template <typename T, std::size_t... I>
__attribute__((always_inline)) inline Vector<T> turned(Vector<T> z, std::index_sequence<I...>) {
  constexpr Vector<T> sign = {(I % 2 ? T(1) : T(-1))...};
  return sign * __builtin_shufflevector(z, z, (I ^ 1)...);
}
template <typename T>
__attribute__((always_inline)) inline Vector<T> turned(Vector<T> z) {
  return turned<T>(z, std::make_index_sequence<kLanes<T>>());
}

// x and y of a term from its blocks.
template <typename T, bool Real>
__attribute__((always_inline)) inline void combine(Vector<T> a, Vector<T> b, bool two, Vector<T>& x, Vector<T>& y) {
  x = two ? a + b : a;
  const Vector<T> difference = two ? a - b : a;
  y = Real ? difference : turned<T>(difference);
}

// panel[term][x or y][lane] of the columns [column, column + columns vectors), zero beyond d.
template <typename T, bool Real>
void pack(const std::vector<Term>& terms, const T* blocks, std::int64_t column, std::int64_t d, T* panel) {
  constexpr int w = kLanes<T>;
  for (const Term& term : terms) {
    const T *one = blocks + term.block + column, *two = blocks + (term.other < 0 ? term.block : term.other) + column;
    for (int v = 0; v < kColumns; ++v) {
      // The next panel: too many blocks for the processor to follow.
      __builtin_prefetch(one + (kColumns + v) * w, 0, 2);
      __builtin_prefetch(two + (kColumns + v) * w, 0, 2);
      const std::int64_t left = std::min<std::int64_t>(w, d - column - v * w);
      Vector<T> a{}, b{}, x, y;
      if (left == w) {
        a = load_anywhere(one + v * w), b = load_anywhere(two + v * w);
      } else {
        for (std::int64_t lane = 0; lane < left; ++lane) a[lane] = one[v * w + lane], b[lane] = two[v * w + lane];
      }
      combine<T, Real>(a, b, term.other >= 0, x, y);
      store(panel + v * w, x);
      store(panel + (kColumns + v) * w, y);
    }
    panel += 2 * kColumns * w;
  }
}

// Rows of C, one per phase (real and imaginary part of a phase, for real blocks), from a packed panel.
template <typename T, bool Real, int R>
void tile(const std::vector<const T*>& phases, std::int64_t row, const T* panel, T* c, std::int64_t stride) {
  constexpr int w = kLanes<T>, V = kColumns;
  Vector<T> sum[R][V];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) sum[i][v] = Vector<T>{};
  for (const T* start : phases) {
    const T* phase = start + (Real ? row : 2 * row);
#pragma GCC unroll 2
    for (int part = 0; part < 2; ++part) {
      Vector<T> x[V];
#pragma GCC unroll 8
      for (int v = 0; v < V; ++v) x[v] = load(panel + (part * V + v) * w);
#pragma GCC unroll 8
      for (int i = Real ? part : 0; i < R; i += Real ? 2 : 1)
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[i][v] += phase[Real ? i : 2 * i + part] * x[v];
    }
    panel += 2 * V * w;
  }
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) store(c + (row + i) * stride + v * w, sum[i][v]);
}

template <typename T, bool Real, int R = kRows>
void tiles(const std::vector<const T*>& phases, std::int64_t row, std::int64_t rows, const T* panel, T* c,
           std::int64_t stride) {
  for (; row + R <= rows; row += R) tile<T, Real, R>(phases, row, panel, c, stride);
  if constexpr (R > (Real ? 2 : 1)) {
    if (row < rows) tiles<T, Real, R / 2>(phases, row, rows, panel, c, stride);
  }
}

// One row (two, for real blocks) of C for one phase, straight from the blocks of the edges.
template <typename T, bool Real>
void one_phase(const std::vector<std::pair<const T*, const T*>>& edges, std::int64_t d, T* c, std::int64_t stride) {
  constexpr int w = kLanes<T>, V = 4;
  std::int64_t column = 0;
  for (; column + V * w <= d; column += V * w) {
    Vector<T> sum[2][V] = {};
    for (const auto& [phase, block] : edges) {
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) {
        const Vector<T> m = load_anywhere(block + column + v * w);
        sum[0][v] += phase[0] * m;
        sum[1][v] += phase[1] * m;
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      T* to = c + column + v * w;
      store_anywhere(to, Real ? sum[0][v] : sum[0][v] + turned<T>(sum[1][v]));
      if (Real) store_anywhere(to + stride, sum[1][v]);
    }
  }
  for (; column < d; column += Real ? 1 : 2) {
    T re = 0, im = 0;
    for (const auto& [phase, block] : edges) {
      const T x = block[column], y = Real ? 0 : block[column + 1];
      re += phase[0] * x - (Real ? 0 : phase[1] * y);
      im += phase[1] * x + (Real ? 0 : phase[0] * y);
    }
    c[column] = re;
    c[Real ? column + stride : column + 1] = im;
  }
}

// Calls f(row of the dense block, first number of it in the ragged block, stride of its columns) for each row of a
// pair.
template <typename F>
void each_row(const AtomPair& pair, std::int64_t size, std::int64_t spins, F f) {
  for (std::int64_t s = 0; s < spins * spins; ++s)
    for (std::int64_t a = 0; a < pair.a; ++a)
      f((pair.row + a * spins + s / spins) * size + pair.column + s % spins, (s * pair.a + a) * pair.b);
}

// One complex number, moved as one.
template <typename T>
struct __attribute__((may_alias)) Complex {
  T re, im;
};

// Two rows of complex numbers taken in turn, x₀ y₀ x₁ y₁ …: the vectors H = 0, 1 of (x; y), and back.
template <typename T, int H, std::size_t... I>
__attribute__((always_inline)) inline Vector<T> in_turn(Vector<T> x, Vector<T> y, std::index_sequence<I...>) {
  constexpr std::size_t n = kLanes<T> / 2;
  return __builtin_shufflevector(x, y, (2 * ((I / 2 + H * n) % 2 * n + (I / 2 + H * n) / 2) + I % 2)...);
}
template <typename T, int H, std::size_t... I>
__attribute__((always_inline)) inline Vector<T> every_second(Vector<T> a, Vector<T> b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, (2 * (I / 2 * 2 + H) + I % 2)...);
}

// to = x₀ y₀ x₁ y₁ … of n complex numbers each; the last vectors overlap those before.
template <typename T>
void interleave(const Complex<T>* x, const Complex<T>* y, std::int64_t n, Complex<T>* to) {
  constexpr std::int64_t step = kLanes<T> / 2;
  constexpr auto lanes = std::make_index_sequence<kLanes<T>>();
  if (n < step) {
    for (std::int64_t i = 0; i < n; ++i) to[2 * i] = x[i], to[2 * i + 1] = y[i];
    return;
  }
  for (std::int64_t next = 0; next < n; next += step) {
    const std::int64_t i = std::min(next, n - step);
    const Vector<T> a = load_anywhere(&x[i].re), b = load_anywhere(&y[i].re);
    store_anywhere(&to[2 * i].re, in_turn<T, 0>(a, b, lanes));
    store_anywhere(&to[2 * i + step].re, in_turn<T, 1>(a, b, lanes));
  }
}
template <typename T>
void separate(const Complex<T>* from, std::int64_t n, Complex<T>* x, Complex<T>* y) {
  constexpr std::int64_t step = kLanes<T> / 2;
  constexpr auto lanes = std::make_index_sequence<kLanes<T>>();
  if (n < step) {
    for (std::int64_t i = 0; i < n; ++i) x[i] = from[2 * i], y[i] = from[2 * i + 1];
    return;
  }
  for (std::int64_t next = 0; next < n; next += step) {
    const std::int64_t i = std::min(next, n - step);
    const Vector<T> a = load_anywhere(&from[2 * i].re), b = load_anywhere(&from[2 * i + step].re);
    store_anywhere(&x[i].re, every_second<T, 0>(a, b, lanes));
    store_anywhere(&y[i].re, every_second<T, 1>(a, b, lanes));
  }
}

// Calls f(row of the dense matrix, numbers of ↑ or ↓ with ↑, the same with ↓) for each row of a pair with two spins.
template <typename F>
void each_spin_row(const AtomPair& pair, std::int64_t size, F f) {
  for (std::int64_t s = 0; s < 2; ++s)
    for (std::int64_t a = 0; a < pair.a; ++a) {
      const std::int64_t from = (2 * s * pair.a + a) * pair.b;
      f((pair.row + 2 * a + s) * size + pair.column, from, from + pair.a * pair.b);
    }
}

// A row of C (two, for real blocks) to its places in a dense matrix.
template <typename T, bool Real>
void scatter(const AtomPair& pair, std::int64_t size, std::int64_t spins, const T* c, std::int64_t stride, T* matrix) {
  auto* to = reinterpret_cast<Complex<T>*>(matrix);
  if (!Real && spins == 2) {
    const auto* from = reinterpret_cast<const Complex<T>*>(c);
    each_spin_row(pair, size, [&](std::int64_t row, std::int64_t up, std::int64_t down) {
      interleave(from + up, from + down, pair.b, to + row);
    });
    return;
  }
  each_row(pair, size, spins, [&](std::int64_t row, std::int64_t from) {
    for (std::int64_t b = 0; b < pair.b; ++b) {
      const std::int64_t i = from + b;
      to[row + b * spins] = Real ? Complex<T>{c[i], c[i + stride]} : Complex<T>{c[2 * i], c[2 * i + 1]};
    }
  });
}

// The inverse.
template <typename T, bool Real>
void gather(const AtomPair& pair, std::int64_t size, std::int64_t spins, const T* matrix, T* c, std::int64_t stride) {
  const auto* from = reinterpret_cast<const Complex<T>*>(matrix);
  if (!Real && spins == 2) {
    auto* to = reinterpret_cast<Complex<T>*>(c);
    each_spin_row(pair, size, [&](std::int64_t row, std::int64_t up, std::int64_t down) {
      separate(from + row, pair.b, to + up, to + down);
    });
    return;
  }
  each_row(pair, size, spins, [&](std::int64_t row, std::int64_t to) {
    for (std::int64_t b = 0; b < pair.b; ++b) {
      const Complex<T> g = from[row + b * spins];
      const std::int64_t i = to + b;
      c[Real ? i : 2 * i] = g.re;
      c[Real ? i + stride : 2 * i + 1] = g.im;
    }
  });
}

template <typename T, bool Real>
void forward_of(const T* blocks, const T* coefficient, std::int64_t n_vectors, std::int64_t n_phases,
                const std::int64_t* edges, const std::int64_t* pairs, std::int64_t n_pairs, std::int64_t spins,
                std::int64_t size, std::int64_t n_numbers, T* dense) {
  if (n_phases == 0) return;
  constexpr std::int64_t w = kLanes<T>, parts = Real ? 1 : 2, rows_per_phase = Real ? 2 : 1, panel_width = kColumns * w;
  std::int64_t largest = 1, most = 1;
  for (std::int64_t p = 0; p < n_pairs; ++p) {
    const AtomPair pair(edges, pairs, p);
    largest = std::max(largest, spins * spins * parts * pair.a * pair.b);
    most = std::max(most, pair.last - pair.first);
  }
  const std::int64_t stride = (largest + panel_width - 1) / panel_width * panel_width;
  const bool parallel = parts * n_numbers * n_phases > kParallelNumbers;
  const std::int64_t threads = parallel ? omp_get_max_threads() : 1;
  std::int64_t group = std::min(n_phases, std::max<std::int64_t>(kRows, kGroup / (rows_per_phase * stride)));
  if (n_pairs < 4 * threads)  // few pairs: threads share the phases of one
    group = std::min(group, std::max<std::int64_t>(2 * kRows, (n_phases * n_pairs + 4 * threads - 1) / (4 * threads)));
  const std::int64_t n_groups = (n_phases + group - 1) / group;
  const auto runs = runs_of(edges, pairs, n_pairs, size, spins, 2 * sizeof(T) * group);
  const std::int64_t n_runs = static_cast<std::int64_t>(runs.size());
  const auto panels_of = [=](const DenseRun& run) {
    return panels(run, edges, pairs, spins * spins * parts, panel_width);
  };
#pragma omp parallel if (parallel) num_threads(threads)
  {
    const auto sums = buffer<T>(rows_per_phase * group * stride), panel = buffer<T>(2 * most * panel_width);
    Terms terms(coefficient, group > kFewPhases ? n_vectors : 0, n_phases);
    std::vector<const T*> phases;
    std::vector<std::pair<const T*, const T*>> one_by_one;
#pragma omp for schedule(dynamic)
    for (std::int64_t task = 0; task < n_runs * n_groups; ++task) {
      const DenseRun run = runs[task / n_groups];
      const std::int64_t q0 = task % n_groups * group, count = std::min(n_phases - q0, group);
      // Probably this thread's next; a run of one pair is written at its end, and fetched meanwhile.
      const std::int64_t next = run.last - run.first > 1 ? task + threads : task;
      const bool fetches = group > kFewPhases && next < n_runs * n_groups && run.last > run.first;
      const std::int64_t next_q0 = next % n_groups * group;
      Fetch<true, T> fetch(runs[fetches ? next / n_groups : 0], panels_of(run), size, dense + 2 * next_q0 * size * size,
                           fetches ? std::min(n_phases - next_q0, group) : 0);
      for (std::int64_t q = q0; q < q0 + count; ++q) clear(run, edges, pairs, size, spins, dense + 2 * q * size * size);
      for (std::int64_t p = run.first; p < run.last; ++p) {
        const AtomPair pair(edges, pairs, p);
        const std::int64_t d = spins * spins * parts * pair.a * pair.b;
        if (group <= kFewPhases) {
          for (std::int64_t q = 0; q < count; ++q) {
            one_by_one.clear();
            for (std::int64_t e = pair.first; e < pair.last; ++e)
              one_by_one.emplace_back(coefficient + 2 * (edges[6 * e + 1] * n_phases + q0 + q),
                                      blocks + parts * edges[6 * e]);
            one_phase<T, Real>(one_by_one, d, sums.get() + rows_per_phase * q * stride, stride);
          }
        } else {
          terms.find(edges, pair, parts);
          phases.clear();
          for (const Term& term : terms.all) phases.push_back(coefficient + 2 * (term.vector * n_phases + q0));
          for (std::int64_t column = 0; column < d; column += panel_width) {
            pack<T, Real>(terms.all, blocks, column, d, panel.get());
            fetch.step();
            tiles<T, Real>(phases, 0, rows_per_phase * count, panel.get(), sums.get() + column, stride);
          }
        }
        for (std::int64_t q = 0; q < count; ++q)
          scatter<T, Real>(pair, size, spins, sums.get() + rows_per_phase * q * stride, stride,
                           dense + 2 * (q0 + q) * size * size);
      }
    }
  }
}

template <typename T>
void forward(const Array<T>& blocks, const Array<T>& coefficient, const Array<std::int64_t>& edges,
             const Array<std::int64_t>& pairs, std::int64_t spins, Array<T>& dense) {
  const auto run = blocks.shape(1) == 1 ? &forward_of<T, true> : &forward_of<T, false>;
  expect_writes(out(dense), dense.size() * sizeof(T));
  run(in(blocks), in(coefficient), coefficient.shape(0), coefficient.shape(1), in(edges), in(pairs), pairs.shape(0) - 1,
      spins, dense.shape(1), blocks.shape(0), out(dense));
}

// Sums X and Z of R terms over the phases of a group, for the columns of V vectors.
template <typename T, bool Real, int R, int V>
void adjoint_tile(const T* const* phases, const Term* terms, std::int64_t n_phases, const T* above, std::int64_t stride,
                  std::int64_t column, std::int64_t d, bool add, T* blocks) {
  constexpr int w = kLanes<T>;
  Vector<T> x[R][V], z[R][V];
#pragma GCC unroll 8
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) x[i][v] = z[i][v] = Vector<T>{};
  for (std::int64_t q = 0; q < n_phases; ++q) {
    const T* row = above + (Real ? 2 : 1) * q * stride + column;
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const Vector<T> re = load(row + v * w), im = Real ? load(row + stride + v * w) : re;
#pragma GCC unroll 8
      for (int i = 0; i < R; ++i) {
        x[i][v] += phases[i][2 * q] * re;
        z[i][v] += phases[i][2 * q + 1] * im;
      }
    }
  }
  for (int i = 0; i < R; ++i)
    for (int v = 0; v < V; ++v) {
      // Where the next panel will be written.
      __builtin_prefetch(blocks + terms[i].block + column + (V + v) * w, 1, 2);
      __builtin_prefetch(blocks + std::max(terms[i].block, terms[i].other) + column + (V + v) * w, 1, 2);
      const std::int64_t left = std::min<std::int64_t>(w, d - column - v * w);
      const Vector<T> turn = Real ? -z[i][v] : turned<T>(z[i][v]);
      const auto write = [&](std::int64_t block, Vector<T> value) {
        T* to = blocks + block + column + v * w;
        if (left >= w) {
          store_anywhere(to, add ? load_anywhere(to) + value : value);
        } else {
          for (std::int64_t lane = 0; lane < left; ++lane) to[lane] = add ? to[lane] + value[lane] : value[lane];
        }
      };
      write(terms[i].block, x[i][v] - turn);
      if (terms[i].other >= 0) write(terms[i].other, x[i][v] + turn);
    }
}

template <typename T, bool Real, int R>
void adjoint_terms(const std::vector<const T*>& phases, const std::vector<Term>& terms, std::int64_t first,
                   std::int64_t n_phases, const T* above, std::int64_t stride, std::int64_t column, std::int64_t d,
                   bool add, T* blocks) {
  const std::int64_t n = static_cast<std::int64_t>(terms.size());
  for (; first + R <= n; first += R)
    adjoint_tile<T, Real, R, kColumns>(&phases[first], &terms[first], n_phases, above, stride, column, d, add, blocks);
  if constexpr (R > 1) {
    if (first < n) adjoint_terms<T, Real, R / 2>(phases, terms, first, n_phases, above, stride, column, d, add, blocks);
  }
}

// Σ (c − i s) G over few phases, to the block of one edge.
template <typename T, bool Real>
void adjoint_edge(const T* phases, std::int64_t n_phases, const T* above, std::int64_t stride, std::int64_t d,
                  T* block) {
  constexpr std::int64_t w = kLanes<T>;
  std::int64_t column = 0;
  for (; column + w <= d; column += w) {
    Vector<T> sum{};
    for (std::int64_t q = 0; q < n_phases; ++q) {
      const T* row = above + (Real ? 2 : 1) * q * stride + column;
      const T c = phases[2 * q], s = phases[2 * q + 1];
      sum += c * load(row) + s * (Real ? load(row + stride) : -turned<T>(load(row)));
    }
    store_anywhere(block + column, sum);
  }
  for (; column < d; ++column) {
    T sum = 0;
    for (std::int64_t q = 0; q < n_phases; ++q) {
      const T* row = above + (Real ? 2 : 1) * q * stride;
      const T other = Real ? row[column + stride] : column % 2 ? -row[column - 1] : row[column + 1];
      sum += phases[2 * q] * row[column] + phases[2 * q + 1] * other;
    }
    block[column] = sum;
  }
}

template <typename T, bool Real>
void backward_of(const T* grad, const T* coefficient, std::int64_t n_vectors, std::int64_t n_phases,
                 const std::int64_t* edges, const std::int64_t* pairs, std::int64_t n_pairs, std::int64_t spins,
                 std::int64_t size, std::int64_t n_numbers, T* grad_blocks) {
  constexpr std::int64_t w = kLanes<T>, parts = Real ? 1 : 2, rows_per_phase = Real ? 2 : 1, width = kColumns * w;
  if (n_phases == 0) std::fill_n(grad_blocks, parts * n_numbers, T(0));
  const auto runs = runs_of(edges, pairs, n_pairs, size, spins, 2 * sizeof(T) * n_phases);
  const std::int64_t n_runs = static_cast<std::int64_t>(runs.size());
  const auto panels_of = [=](const DenseRun& run) { return panels(run, edges, pairs, spins * spins * parts, width); };
#pragma omp parallel if (parts * n_numbers * n_phases > kParallelNumbers)
  {
    Terms terms(coefficient, n_phases > kFewPhases ? n_vectors : 0, n_phases);
    std::vector<const T*> phases;
#pragma omp for schedule(dynamic)
    for (std::int64_t r = 0; r < n_runs; ++r) {
      const DenseRun run = runs[r];
      const std::int64_t next = r + omp_get_num_threads();  // probably this thread's next
      const bool fetches = n_phases > kFewPhases && next < n_runs;
      Fetch<false, T> fetch(runs[fetches ? next : 0], panels_of(run), size, grad, fetches ? n_phases : 0);
      for (std::int64_t p = run.first; p < run.last; ++p) {
        const AtomPair pair(edges, pairs, p);
        const std::int64_t d = spins * spins * parts * pair.a * pair.b, stride = (d + width - 1) / width * width;
        const std::int64_t most =
            std::max<std::int64_t>(kRows, kGroup / (rows_per_phase * std::max<std::int64_t>(1, stride)));
        const std::int64_t group = std::min(n_phases, most);
        const auto above = buffer<T>(rows_per_phase * group * stride);
        if (n_phases > kFewPhases) terms.find(edges, pair, parts);
        for (std::int64_t q0 = 0; q0 < n_phases; q0 += group) {
          const std::int64_t count = std::min(n_phases - q0, group);
          for (std::int64_t q = 0; q < count; ++q) {
            T* to = above.get() + rows_per_phase * q * stride;
            gather<T, Real>(pair, size, spins, grad + 2 * (q0 + q) * size * size, to, stride);
            for (std::int64_t row = 0; row < rows_per_phase; ++row)
              std::fill_n(to + row * stride + d, stride - d, T(0));
          }
          if (n_phases <= kFewPhases) {
            for (std::int64_t e = pair.first; e < pair.last; ++e)
              adjoint_edge<T, Real>(coefficient + 2 * edges[6 * e + 1] * n_phases, n_phases, above.get(), stride, d,
                                    grad_blocks + parts * edges[6 * e]);
            continue;
          }
          phases.clear();
          for (const Term& term : terms.all) phases.push_back(coefficient + 2 * (term.vector * n_phases + q0));
          for (std::int64_t column = 0; column < d; column += width) {
            fetch.step();
            adjoint_terms<T, Real, kRows / 2>(phases, terms.all, 0, count, above.get(), stride, column, d, q0 > 0,
                                              grad_blocks);
          }
        }
      }
    }
  }
}

template <typename T>
void backward(const Array<T>& grad, const Array<T>& coefficient, const Array<std::int64_t>& edges,
              const Array<std::int64_t>& pairs, std::int64_t spins, Array<T>& grad_blocks) {
  const auto run = grad_blocks.shape(1) == 1 ? &backward_of<T, true> : &backward_of<T, false>;
  expect_writes(out(grad_blocks), grad_blocks.size() * sizeof(T));
  run(in(grad), in(coefficient), coefficient.shape(0), coefficient.shape(1), in(edges), in(pairs), pairs.shape(0) - 1,
      spins, grad.shape(1), grad_blocks.shape(0), out(grad_blocks));
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
