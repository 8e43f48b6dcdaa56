// C = A B or C += A B for the sizes of one tile of edges: what a library call costs more in overhead than in
// arithmetic.
//
// B is packed once per call into panels of two vectors of columns, [panel][k][2 kLanes], the last padded with zeros; A
// is read where it lies, with any strides, so that a transposed A costs nothing. A piece of C of kRows rows and one
// panel is summed in registers: 24 multiply-adds cost 2 loads of B and 12 broadcasts of A (AVX-512).
//
// Where edges are lanes, a tile [k][2 kLanes] is such a panel already, and the weights are what is packed: once, in
// groups of kRows rows.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lanes.h"

namespace NEXTHAM_ISA {

constexpr int kRows = kVectorBytes == 64 ? 12 : 4;
template <typename T>
constexpr std::int64_t kPanel = 2 * kLanes<T>;

// Numbers of a packed matrix of k rows and n columns.
template <typename T>
constexpr std::int64_t packed_size(std::int64_t k, std::int64_t n) {
  return (n + kPanel<T> - 1) / kPanel<T> * kPanel<T> * k;
}

// Packs b[i * row + j * column], i < k, j < n.
template <typename T>
void pack(const T* b, std::int64_t row, std::int64_t column, std::int64_t k, std::int64_t n, T* packed) {
  for (std::int64_t first = 0; first < n; first += kPanel<T>) {
    const std::int64_t there = std::min(kPanel<T>, n - first);
    for (std::int64_t i = 0; i < k; ++i, packed += kPanel<T>) {
      const T* from = b + i * row + first * column;
      if (column == 1 && there == kPanel<T>) {
        for (int v = 0; v < kPanel<T>; v += kLanes<T>) store(packed + v, load_anywhere(from + v));
      } else {
        for (std::int64_t j = 0; j < there; ++j) packed[j] = from[j * column];
      }
      for (std::int64_t j = there; j < kPanel<T>; ++j) packed[j] = 0;
    }
  }
}

// A matrix read in place: a[i * row + j * column].
template <typename T>
struct Strided {
  const T* a;
  std::int64_t row, column;
};

// C[rows, n] = A[rows, k] B[k, n], or with `add` added to C; B is packed. In C, rows are row_c apart and panels
// panel_c: with row_c = kPanel and panel_c = rows kPanel, C is packed too.
template <typename T>
void product(Strided<T> a, std::int64_t rows, std::int64_t k, std::int64_t n, const T* packed, T* c, std::int64_t row_c,
             bool add = false, std::int64_t panel_c = kPanel<T>);

// Weights [rows, k] that multiply tiles of edges, packed as the product reads them.
template <typename T>
struct Weights {
  const T* packed;
  std::int64_t rows, k;
};

// Numbers of packed weights.
template <typename T>
std::int64_t weights_size(std::int64_t rows, std::int64_t k);

// Packs a[i * row + j * column], i < rows, j < k.
template <typename T>
void pack_weights(Strided<T> a, std::int64_t rows, std::int64_t k, T* packed);

// Rows of a tile [d][kPanel] of each of several panels, which lie `panel` numbers apart.
template <typename T>
struct Panels {
  T* base;
  std::int64_t panel;
};

// C = A B, or with `add` C += A B, for n_lanes edges (a multiple of kLanes): panel p holds edges p kPanel and on, B k
// rows and C as many as A.
template <typename T>
void tile_product(const Weights<T>& a, Panels<const T> b, std::int64_t n_lanes, Panels<T> c, bool add = false);

// Numbers of a sum of outer products [rows_a, rows_b], which lies in panels [rows_a][kPanel] of its columns.
template <typename T>
constexpr std::int64_t outer_size(std::int64_t rows_a, std::int64_t rows_b) {
  return packed_size<T>(rows_a, rows_b);
}

// C += A Bᵀ, the sum over n_lanes edges: the gradient of a matrix that takes B to where A is the gradient.
template <typename T>
void tile_outer(Panels<const T> a, std::int64_t rows_a, Panels<const T> b, std::int64_t rows_b, std::int64_t n_lanes,
                T* c);

}  // namespace NEXTHAM_ISA
