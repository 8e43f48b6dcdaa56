// Hamiltonian blocks to irreps and back: the kernels of nextham_kernels/ops/blocks_irreps, which holds the formulas.
// Parallel over tiles of edges; the lanes of a vector are edges, so every coefficient is one scalar times one vector.
// A pair of shells is coupled in two sparse steps, m1m2 → LM and then LM, spin → J: (2 l1 + 1)(2 l2 + 1) numbers for
// each of 4 spin components and 2 parts, at most 25 kB of vectors in between. The published 27 x 27 orbitals with spin
// are 5,832 numbers (23 kB) in and out and 35,000 multiply-adds; silicon's 13 x 13 have 1,352 and 6,400. A tile of
// inputs and one of outputs (up to 370 kB each) lie in the second-level cache; blocks come in and irreps go out by
// transposition, so memory is what takes the time.
#include <omp.h>

#include <algorithm>

#include "lanes.h"
#include "module.h"
#include "rows.h"

namespace NEXTHAM_ISA {
namespace {

// Rows of a sparse matrix.
template <typename T>
struct Sparse {
  const std::int32_t *start, *column;
  const T* value;
};

template <typename T>
struct Coupling {
  std::int64_t n_pairs, n_spin_entries, n_columns;  // shell pairs; entries of the spin map; columns of a block
  std::int64_t n_numbers, d_block, d_part, width;   // orbitals a·b; numbers of a block; components of a part; of a row
  const std::int32_t* pairs;                        // [n, 6]: first row, first column, l1, l2, row of space, component
  const std::int32_t* spin_entries;                 // [n, 2]: number of a block's spin matrix, number of (h, part)
  const T* spin_values;
  Sparse<T> space, spin;       // m1m2 → LM for each pair of degrees; (M, s) → J for L = 0, 1, … from row 3 L²
  const std::int64_t* places;  // of each component in the row, or −1
  const T* scale;              // of each component
};

// S numbers for each orbital pair: 4 spin components and 2 parts, or one. A pair's LM of degree L begin at
// L² − (l1 − l2)².
template <typename T, int S>
void pair_to_irreps(const Coupling<T>& c, const std::int32_t* pair, const T* block, T* row, Vector<T>* h,
                    Vector<T>* x) {
  constexpr int w = kLanes<T>, n_parts = S == 8 ? 2 : 1;
  const std::int32_t l1 = pair[2], l2 = pair[3], n1 = 2 * l1 + 1, n2 = 2 * l2 + 1, n = n1 * n2;
  std::fill(h, h + n * S, Vector<T>{});
  for (std::int32_t i = 0; i < n1; ++i)
    for (std::int32_t j = 0; j < n2; ++j) {
      const std::int64_t orbital = (pair[0] + i) * c.n_columns + pair[1] + j;
      for (std::int64_t q = 0; q < c.n_spin_entries; ++q) {
        const std::int32_t to = c.spin_entries[2 * q], from = c.spin_entries[2 * q + 1];
        const std::int64_t number = ((to / n_parts) * c.n_numbers + orbital) * n_parts + to % n_parts;
        h[(i * n2 + j) * S + from] += c.spin_values[q] * load(block + number * w);
      }
    }
  for (std::int32_t k = 0; k < n; ++k) {
    Vector<T> sum[S] = {};
    for (std::int32_t q = c.space.start[pair[4] + k]; q < c.space.start[pair[4] + k + 1]; ++q) {
      const T value = c.space.value[q];
      const Vector<T>* from = h + c.space.column[q] * S;
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) sum[s] += value * from[s];
    }
#pragma GCC unroll 8
    for (int s = 0; s < S; ++s) x[k * S + s] = sum[s];
  }
  for (int part = 0; part < n_parts; ++part) {
    const std::int64_t first = part * c.d_part + pair[5];
    for (std::int32_t k = 0; k < n; ++k) {
      const std::int64_t place = c.places[first + k];
      if (place >= 0) store(row + place * w, load(row + place * w) + c.scale[first + k] * x[k * S + part]);
    }
    if (S == 1) continue;
    for (std::int32_t l = std::abs(l1 - l2); l <= l1 + l2; ++l) {
      const std::int32_t lm = l * l - (l1 - l2) * (l1 - l2);
      for (std::int32_t r = 0; r < 3 * (2 * l + 1); ++r) {
        const std::int64_t component = first + n + 3 * lm + r, place = c.places[component];
        if (place < 0) continue;
        Vector<T> sum = {};
        for (std::int32_t q = c.spin.start[3 * l * l + r]; q < c.spin.start[3 * l * l + r + 1]; ++q) {
          const std::int32_t m = c.spin.column[q] / 3, s = c.spin.column[q] % 3;
          sum += c.spin.value[q] * x[(lm + m) * S + (1 + s) * n_parts + part];
        }
        store(row + place * w, load(row + place * w) + c.scale[component] * sum);
      }
    }
  }
}

// The transpose.
template <typename T, int S>
void pair_to_blocks(const Coupling<T>& c, const std::int32_t* pair, const T* row, T* block, Vector<T>* h,
                    Vector<T>* x) {
  constexpr int w = kLanes<T>, n_parts = S == 8 ? 2 : 1;
  const std::int32_t l1 = pair[2], l2 = pair[3], n1 = 2 * l1 + 1, n2 = 2 * l2 + 1, n = n1 * n2;
  std::fill(h, h + n * S, Vector<T>{});
  std::fill(x, x + n * S, Vector<T>{});
  for (int part = 0; part < n_parts; ++part) {
    const std::int64_t first = part * c.d_part + pair[5];
    for (std::int32_t k = 0; k < n; ++k) {
      const std::int64_t place = c.places[first + k];
      if (place >= 0) x[k * S + part] = c.scale[first + k] * load(row + place * w);
    }
    if (S == 1) continue;
    for (std::int32_t l = std::abs(l1 - l2); l <= l1 + l2; ++l) {
      const std::int32_t lm = l * l - (l1 - l2) * (l1 - l2);
      for (std::int32_t r = 0; r < 3 * (2 * l + 1); ++r) {
        const std::int64_t component = first + n + 3 * lm + r, place = c.places[component];
        if (place < 0) continue;
        const Vector<T> value = c.scale[component] * load(row + place * w);
        for (std::int32_t q = c.spin.start[3 * l * l + r]; q < c.spin.start[3 * l * l + r + 1]; ++q) {
          const std::int32_t m = c.spin.column[q] / 3, s = c.spin.column[q] % 3;
          x[(lm + m) * S + (1 + s) * n_parts + part] += c.spin.value[q] * value;
        }
      }
    }
  }
  for (std::int32_t k = 0; k < n; ++k)
    for (std::int32_t q = c.space.start[pair[4] + k]; q < c.space.start[pair[4] + k + 1]; ++q) {
      const T value = c.space.value[q];
      Vector<T>* to = h + c.space.column[q] * S;
#pragma GCC unroll 8
      for (int s = 0; s < S; ++s) to[s] += value * x[k * S + s];
    }
  for (std::int32_t i = 0; i < n1; ++i)
    for (std::int32_t j = 0; j < n2; ++j) {
      const std::int64_t orbital = (pair[0] + i) * c.n_columns + pair[1] + j;
      for (std::int64_t q = 0; q < c.n_spin_entries; ++q) {
        const std::int32_t to = c.spin_entries[2 * q], from = c.spin_entries[2 * q + 1];
        T* number = block + (((to / n_parts) * c.n_numbers + orbital) * n_parts + to % n_parts) * w;
        store(number, load(number) + c.spin_values[q] * h[(i * n2 + j) * S + from]);
      }
    }
}

template <typename T, int S, bool kToBlocks>
void run(const Coupling<T>& c, std::int64_t n, T* blocks, T* rows) {
  constexpr int w = kLanes<T>;
  std::int32_t largest = 0;
  for (std::int64_t p = 0; p < c.n_pairs; ++p)
    largest = std::max(largest, (2 * c.pairs[6 * p + 2] + 1) * (2 * c.pairs[6 * p + 3] + 1));
#pragma omp parallel if (n * (c.d_block + c.width) > kParallelNumbers)
  {
    const auto block = buffer<T>(c.d_block * w), row = buffer<T>(c.width * w), spare = buffer<T>(c.d_block + c.width);
    const auto h = buffer<T>(2 * largest * S * w);
    Vector<T>*first = reinterpret_cast<Vector<T>*>(h.get()), *second = first + largest * S;
#pragma omp for
    for (std::int64_t e = 0; e < n; e += w) {
      T *block_of[w], *row_of[w];  // lanes beyond the last edge read it again and write nowhere
      for (int lane = 0; lane < w; ++lane) {
        const bool there = e + lane < n;
        const std::int64_t edge = there ? e + lane : n - 1;
        block_of[lane] = there || !kToBlocks ? blocks + edge * c.d_block : spare.get();
        row_of[lane] = there || kToBlocks ? rows + edge * c.width : spare.get();
      }
      if (kToBlocks) {
        rows_to_tile<T>(row_of, c.width, row.get(), w);
        std::fill(block.get(), block.get() + c.d_block * w, T(0));
        for (std::int64_t p = 0; p < c.n_pairs; ++p)
          pair_to_blocks<T, S>(c, c.pairs + 6 * p, row.get(), block.get(), first, second);
        tile_to_rows<T>(block.get(), w, c.d_block, block_of);
      } else {
        rows_to_tile<T>(block_of, c.d_block, block.get(), w);
        std::fill(row.get(), row.get() + c.width * w, T(0));
        for (std::int64_t p = 0; p < c.n_pairs; ++p)
          pair_to_irreps<T, S>(c, c.pairs + 6 * p, block.get(), row.get(), first, second);
        tile_to_rows<T>(row.get(), w, c.width, row_of);
      }
    }
  }
}

// blocks [e, d_block] and rows [e, width]; to_blocks says which is written.
template <typename T>
void couple(Array<T>& blocks_, Array<T>& rows_, bool to_blocks, std::int64_t n_columns, bool spinor,
            const Array<std::int32_t>& pairs_, const Array<std::int32_t>& spin_entries_, const Array<T>& spin_values_,
            const Array<std::int32_t>& space_start_, const Array<std::int32_t>& space_column_,
            const Array<T>& space_value_, const Array<std::int32_t>& spin_start_,
            const Array<std::int32_t>& spin_column_, const Array<T>& spin_value_, const Array<std::int64_t>& places_,
            const Array<T>& scale_) {
  const std::int64_t n = blocks_.shape(0), d_block = blocks_.shape(1), width = rows_.shape(1);
  if (!n || !d_block) return;
  const std::int64_t n_parts = spinor ? 2 : 1, n_numbers = d_block / (spinor ? 8 : 1);
  const Coupling<T> c{pairs_.shape(0),
                      spin_entries_.shape(0),
                      n_columns,
                      n_numbers,
                      d_block,
                      places_.shape(0) / n_parts,
                      width,
                      in(pairs_),
                      in(spin_entries_),
                      in(spin_values_),
                      {in(space_start_), in(space_column_), in(space_value_)},
                      {in(spin_start_), in(spin_column_), in(spin_value_)},
                      in(places_),
                      in(scale_)};
  // Only one of them is written; the other may be a view of memory that is not.
  T *blocks = to_blocks ? out(blocks_) : const_cast<T*>(in(blocks_)),
    *rows = to_blocks ? const_cast<T*>(in(rows_)) : out(rows_);
  if (spinor) {
    to_blocks ? run<T, 8, true>(c, n, blocks, rows) : run<T, 8, false>(c, n, blocks, rows);
  } else {
    to_blocks ? run<T, 1, true>(c, n, blocks, rows) : run<T, 1, false>(c, n, blocks, rows);
  }
}

}  // namespace

void bind_blocks_irreps(Module& m) {
  m.def("blocks_irreps", &couple<float>);
  m.def("blocks_irreps", &couple<double>);
}

}  // namespace NEXTHAM_ISA
