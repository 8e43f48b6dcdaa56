// Runs of the dense matrices of a Bloch sum: parts that fit a cache, and fetching one while another is computed.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <vector>

namespace NEXTHAM_ISA {

// Of a run of pairs in the dense matrices: a quarter of a second-level cache, since the next run is fetched meanwhile.
constexpr std::int64_t kRunBytes = 1 << 19;

// A pair of atoms: where its block lies in the dense matrix.
struct AtomPair {
  std::int64_t first, last, row, column, a, b;
  AtomPair(const std::int64_t* edges, const std::int64_t* pairs, std::int64_t pair)
      : first(pairs[pair]), last(pairs[pair + 1]) {
    const std::int64_t* e = edges + 6 * first;
    row = e[2], column = e[3], a = e[4], b = e[5];
  }
};

// A part of the dense matrices: the pairs [first, last) of one row of atoms, or rows without a pair.
struct DenseRun {
  std::int64_t first, last, row, rows, column, end;
};

// Cuts the dense matrices into runs that fit the second-level cache, and enough of them for all threads.
inline std::vector<DenseRun> runs_of(const std::int64_t* edges, const std::int64_t* pairs, std::int64_t n_pairs,
                                     std::int64_t size, std::int64_t spins, std::int64_t bytes_per_number) {
  const std::int64_t most = std::max<std::int64_t>(1, n_pairs / (4 * omp_get_max_threads()));
  std::vector<DenseRun> runs;
  std::int64_t covered = 0;
  for (std::int64_t p = 0; p < n_pairs; ++p) {
    const AtomPair pair(edges, pairs, p);
    const std::int64_t rows = spins * pair.a;
    if (runs.empty() || runs.back().row != pair.row || runs.back().rows != rows) {  // an atom may have no orbital
      if (covered < pair.row) runs.push_back({p, p, covered, pair.row - covered, 0, size});
      runs.push_back({p, p, pair.row, rows, 0, size});
      covered = pair.row + rows;
    } else if (p - runs.back().first >= most ||
               (pair.column + spins * pair.b - runs.back().column) * rows * bytes_per_number > kRunBytes) {
      runs.back().end = pair.column;
      runs.push_back({p, p, pair.row, rows, pair.column, size});
    }
    runs.back().last = p + 1;
  }
  if (covered < size) runs.push_back({n_pairs, n_pairs, covered, size - covered, 0, size});
  return runs;
}

// Panels of columns of a run, `numbers` for each pair of orbitals.
inline std::int64_t panels(const DenseRun& run, const std::int64_t* edges, const std::int64_t* pairs,
                           std::int64_t numbers, std::int64_t width) {
  std::int64_t n = 0;
  for (std::int64_t p = run.first; p < run.last; ++p) {
    const AtomPair pair(edges, pairs, p);
    n += (numbers * pair.a * pair.b + width - 1) / width;
  }
  return n;
}

// Asks for a run of dense matrices ahead of its use, some rows at a time in the order of memory: the rows of a pair are
// too short and too far apart for the processor to see them coming. (Not inlined, GCC 12 takes it for a function
// without effect.)
template <bool Write, typename T>
class Fetch {
 public:
  // In about so many steps, from `first` of n_matrices.
  Fetch(const DenseRun& run, std::int64_t steps, std::int64_t size, const T* first, std::int64_t n_matrices)
      : rows_(run.rows),
        left_(run.rows * n_matrices),
        per_step_(left_ / std::max<std::int64_t>(1, steps) + 1),
        next_row_(2 * size),
        next_matrix_(2 * size * (size - run.rows)),
        from_(first + 2 * (run.row * size + run.column)),
        length_(2 * (run.end - run.column)) {}
  __attribute__((always_inline)) inline void step() {
    for (std::int64_t i = std::min(per_step_, left_); i > 0; --i) {
      for (const T* at = from_; at < from_ + length_; at += 64 / sizeof(T)) __builtin_prefetch(at, Write, 2);
      from_ += next_row_;
      if (++row_ == rows_) row_ = 0, from_ += next_matrix_;
    }
    left_ = std::max<std::int64_t>(0, left_ - per_step_);
  }

 private:
  std::int64_t rows_, left_, per_step_, next_row_, next_matrix_, row_ = 0;
  const T* from_;
  std::int64_t length_;
};

// Zero where no pair of a run is.
template <typename T>
void clear(const DenseRun& run, const std::int64_t* edges, const std::int64_t* pairs, std::int64_t size,
           std::int64_t spins, T* matrix) {
  std::int64_t column = run.column;
  for (std::int64_t p = run.first; p <= run.last; ++p) {
    const std::int64_t end = p < run.last ? AtomPair(edges, pairs, p).column : run.end;
    for (std::int64_t row = run.row; row < run.row + run.rows && column < end; ++row)
      std::fill_n(matrix + 2 * (row * size + column), 2 * (end - column), T(0));
    if (p < run.last) column = end + spins * AtomPair(edges, pairs, p).b;
  }
}

}  // namespace NEXTHAM_ISA
