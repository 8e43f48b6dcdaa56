// Gram matrices of rows and products with them: the kernel of nextham_kernels/ops/gram, which holds the formulas.
// Parallel over tiles of kLanes edges, which are the lanes of the vectors: blocks of 8, 16 and 32 channels have no
// tails then, and packed symmetric matrices need no unpacking. NextHAM: 392
// numbers of x, 980 of the Gram matrices and 2.5k multiply-adds (gram of x with itself) or 4.7k (apply) per edge. The
// Gram matrices pass through the first-level cache block by block (34 kB of the largest) and are transposed there: of
// 155 ns per edge for gram (AVX-512, float32, one core) 87 ns are transposition. Vectors along the channels took as
// long with block sizes fixed at compile time, and twice as long without.
#include <omp.h>

#include <algorithm>

#include "gram.h"
#include "module.h"
#include "rows.h"

namespace NEXTHAM_ISA {
namespace {

// The rows of one tile. Lanes behind the last edge repeat it: they read, compute and write the same numbers again.
template <typename T>
struct Tile {
  T* row[kLanes<T>];
  Tile(T* base, std::int64_t d, std::int64_t first, std::int64_t n) {
    for (int lane = 0; lane < kLanes<T>; ++lane) row[lane] = base + std::min(first + lane, n - 1) * d;
  }
  void skip(std::int64_t numbers) {
    for (T*& r : row) r += numbers;
  }
};

// All blocks of one tile; `c` holds the packed C of one block at a time.
template <typename T>
void apply_tile(Tile<const T> rows, const T* x, const GramLayout& layout, T* c, T* y) {
  for (const GramBlock* b = layout.block; b < layout.block + layout.n_blocks; ++b) {
    rows_to_tile(rows.row, b->pairs(), c, kLanes<T>);
    rows.skip(b->pairs());
    apply_block(c, x, *b, layout.at + b->first, kLanes<T>, y);
  }
}

template <typename T>
void gram(const Array<T>& x_, const Array<T>& y_, const Array<std::int32_t>& blocks, const Array<std::int32_t>& places,
          Array<T>& gram_) {
  constexpr std::int64_t w = kLanes<T>;
  const std::int64_t n = x_.shape(0), d = x_.shape(1), n_pairs = gram_.shape(1);
  const T *x = in(x_), *y = in(y_);
  const GramLayout layout(blocks, places);
  T* result = out(gram_);
#pragma omp parallel if (n * d > kParallelNumbers)
  {
    const auto tile_x = buffer<T>(d * w), tile_y = buffer<T>(x == y ? 0 : d * w);
    const auto packed = buffer<T>(layout.most_pairs() * w);
#pragma omp for schedule(static)
    for (std::int64_t first = 0; first < n; first += w) {
      Tile<T> rows(result, n_pairs, first, n);
      rows_to_tile(Tile<const T>(x, d, first, n).row, d, tile_x.get(), w);
      if (x != y) rows_to_tile(Tile<const T>(y, d, first, n).row, d, tile_y.get(), w);
      for (const GramBlock* b = layout.block; b < layout.block + layout.n_blocks; ++b) {
        const std::int32_t* at = layout.at + b->first;
        if (x == y) {
          sum_block<true>(tile_x.get(), tile_x.get(), *b, at, w, packed.get());
        } else {
          sum_block<false>(tile_x.get(), tile_y.get(), *b, at, w, packed.get());
        }
        tile_to_rows(packed.get(), w, b->pairs(), rows.row);
        rows.skip(b->pairs());
      }
    }
  }
}

template <typename T>
void apply(const Array<T>& c_, const Array<T>& x_, const Array<std::int32_t>& blocks, const Array<std::int32_t>& places,
           Array<T>& y_) {
  constexpr std::int64_t w = kLanes<T>;
  const std::int64_t n = x_.shape(0), d = x_.shape(1), n_pairs = c_.shape(1);
  const T *c = in(c_), *x = in(x_);
  const GramLayout layout(blocks, places);
  T* y = out(y_);
#pragma omp parallel if (n * d > kParallelNumbers)
  {
    const auto tile_x = buffer<T>(d * w), tile_y = buffer<T>(d * w), packed = buffer<T>(layout.most_pairs() * w);
#pragma omp for schedule(static)
    for (std::int64_t first = 0; first < n; first += w) {
      rows_to_tile(Tile<const T>(x, d, first, n).row, d, tile_x.get(), w);
      apply_tile(Tile<const T>(c, n_pairs, first, n), tile_x.get(), layout, packed.get(), tile_y.get());
      tile_to_rows(tile_y.get(), w, d, Tile<T>(y, d, first, n).row);
    }
  }
}

template <typename T>
void bind(Module& m) {
  m.def("gram", &gram<T>);
  m.def("gram_apply", &apply<T>);
}

}  // namespace

void bind_gram(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
