// Gram matrices of rows and products with them: the kernel of nextham_kernels/ops/gram, which holds the formulas, and
// the step that TraceGrad makes of them.
// Parallel over tiles of kLanes edges, which are the lanes of the vectors: blocks of 8, 16 and 32 channels have no
// tails then, packed symmetric matrices need no unpacking, and the norms of the step are sums of vectors. NextHAM: 392
// numbers of x, 980 of the Gram matrices and 2.5k multiply-adds (gram of x with itself) or 4.7k (apply) per edge. The
// Gram matrices pass through the first-level cache block by block (34 kB of the largest) and are transposed there: of
// 155 ns per edge for gram (AVX-512, float32, one core) 87 ns are transposition. Vectors along the channels took as
// long with block sizes fixed at compile time, and twice as long without.
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "lanes.h"
#include "module.h"
#include "rows.h"

namespace NEXTHAM_ISA {
namespace {

// Channels of one irrep: `first` is the place in `at` of its n components, each the place of channel 0 in the row; the
// next channel lies `stride` numbers behind.
struct Block {
  std::int32_t mul, n, stride, first;
  std::int64_t pairs() const { return std::int64_t(mul) * (mul + 1) / 2; }
};

struct Layout {
  const Block* block;
  std::int64_t n_blocks;
  const std::int32_t* at;

  Layout(const Array<std::int32_t>& blocks, const Array<std::int32_t>& places)
      : block(reinterpret_cast<const Block*>(in(blocks))), n_blocks(blocks.shape(0)), at(in(places)) {}

  std::int64_t most_pairs() const {
    std::int64_t most = 0;
    for (std::int64_t b = 0; b < n_blocks; ++b) most = std::max(most, block[b].pairs());
    return most;
  }
};

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

// g[k] = Σ_i ⟨x_u, y_v⟩ + ⟨x_v, y_u⟩, v = u + shift + k, k < K; x and y are of channel u.
template <int K, bool kSame, typename T>
void sum_pairs(const T* x, const T* y, std::int64_t shift, const Block& b, const std::int32_t* at, T* g) {
  constexpr std::int64_t w = kLanes<T>;
  Vector<T> sum[K];
  for (int k = 0; k < K; ++k) sum[k] = Vector<T>{};
  for (std::int32_t i = 0; i < b.n; ++i) {
    const T *xi = x + at[i] * w, *yi = y + at[i] * w;
    const Vector<T> xu = load(xi), yu = load(yi);
    for (int k = 0; k < K; ++k) {
      const std::int64_t v = (shift + k) * b.stride * w;
      sum[k] += xu * load(yi + v);
      if constexpr (!kSame) sum[k] += yu * load(xi + v);
    }
  }
  for (int k = 0; k < K; ++k) store(g + k * w, kSame ? sum[k] + sum[k] : sum[k]);
}

template <bool kSame, typename T>
void sum_block(const T* x, const T* y, const Block& b, const std::int32_t* at, T* g) {
  constexpr std::int64_t w = kLanes<T>;
  for (std::int32_t u = 0; u < b.mul; ++u) {
    const std::int64_t channel = u * b.stride * w;
    T* diagonal = g;
    std::int32_t shift = 0;
    for (; shift + 4 <= b.mul - u; shift += 4, g += 4 * w)
      sum_pairs<4, kSame>(x + channel, y + channel, shift, b, at, g);
    for (; shift < b.mul - u; ++shift, g += w) sum_pairs<1, kSame>(x + channel, y + channel, shift, b, at, g);
    store(diagonal, load(diagonal) * T(0.5));
  }
}

// y_u = Σ_v C_uv x_v of one component, for channels u … u + K - 1. Row v of the packed C holds C_vv, C_v,v+1, …
template <int K, typename T>
void apply_rows(const T* c, const T* x, std::int32_t u, const Block& b, T* y) {
  constexpr std::int64_t w = kLanes<T>;
  const std::int64_t stride = b.stride * w;
  Vector<T> sum[K];
  for (int k = 0; k < K; ++k) sum[k] = Vector<T>{};
  for (std::int32_t v = 0; v < u; ++v) {
    const Vector<T> xv = load(x + v * stride);
    for (int k = 0; k < K; ++k) sum[k] += xv * load(c + (u - v + k) * w);
    c += (b.mul - v) * w;
  }
  const T* row[K];  // row[k][v]: C of u + k and v ≥ u + k
  for (int k = 0; k < K; ++k) {
    row[k] = c - (u + k) * w;
    c += (b.mul - u - k) * w;
  }
  for (int j = 0; j < K; ++j) {
    const Vector<T> xv = load(x + (u + j) * stride);
    for (int k = 0; k < K; ++k) sum[k] += xv * load(row[std::min(j, k)] + (u + std::max(j, k)) * w);
  }
  for (std::int32_t v = u + K; v < b.mul; ++v) {
    const Vector<T> xv = load(x + v * stride);
    for (int k = 0; k < K; ++k) sum[k] += xv * load(row[k] + v * w);
  }
  for (int k = 0; k < K; ++k) store(y + (u + k) * stride, sum[k]);
}

template <typename T>
void apply_block(const T* c, const T* x, const Block& b, const std::int32_t* at, T* y) {
  for (std::int32_t i = 0; i < b.n; ++i) {
    const std::int64_t component = at[i] * std::int64_t(kLanes<T>);
    std::int32_t u = 0;
    for (; u + 4 <= b.mul; u += 4) apply_rows<4>(c, x + component, u, b, y + component);
    for (; u < b.mul; ++u) apply_rows<1>(c, x + component, u, b, y + component);
  }
}

// All blocks of one tile; `c` holds the packed C of one block at a time.
template <typename T>
void apply_tile(Tile<const T> rows, const T* x, const Layout& layout, T* c, T* y) {
  for (const Block* b = layout.block; b < layout.block + layout.n_blocks; ++b) {
    rows_to_tile(rows.row, b->pairs(), c, kLanes<T>);
    rows.skip(b->pairs());
    apply_block(c, x, *b, layout.at + b->first, y);
  }
}

template <typename T>
void gram(const Array<T>& x_, const Array<T>& y_, const Array<std::int32_t>& blocks, const Array<std::int32_t>& places,
          Array<T>& gram_) {
  constexpr std::int64_t w = kLanes<T>;
  const std::int64_t n = x_.shape(0), d = x_.shape(1), n_pairs = gram_.shape(1);
  const T *x = in(x_), *y = in(y_);
  const Layout layout(blocks, places);
  T* result = out(gram_);
  py::gil_scoped_release release;
#pragma omp parallel if (n * d > kParallelNumbers)
  {
    const auto tile_x = buffer<T>(d * w), tile_y = buffer<T>(x == y ? 0 : d * w);
    const auto packed = buffer<T>(layout.most_pairs() * w);
#pragma omp for schedule(static)
    for (std::int64_t first = 0; first < n; first += w) {
      Tile<T> rows(result, n_pairs, first, n);
      rows_to_tile(Tile<const T>(x, d, first, n).row, d, tile_x.get(), w);
      if (x != y) rows_to_tile(Tile<const T>(y, d, first, n).row, d, tile_y.get(), w);
      for (const Block* b = layout.block; b < layout.block + layout.n_blocks; ++b) {
        const std::int32_t* at = layout.at + b->first;
        if (x == y) {
          sum_block<true>(tile_x.get(), tile_x.get(), *b, at, packed.get());
        } else {
          sum_block<false>(tile_x.get(), tile_y.get(), *b, at, packed.get());
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
  const Layout layout(blocks, places);
  T* y = out(y_);
  py::gil_scoped_release release;
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

// x + s g with g = 2 C x and s = residual ‖x‖ / (‖g‖ + 1e-5), and s.
template <typename T>
void step(const Array<T>& c_, const Array<T>& x_, const Array<std::int32_t>& blocks, const Array<std::int32_t>& places,
          T residual, Array<T>& y_, Array<T>& scale_) {
  constexpr std::int64_t w = kLanes<T>;
  const std::int64_t n = x_.shape(0), d = x_.shape(1), n_pairs = c_.shape(1);
  const T *c = in(c_), *x = in(x_);
  const Layout layout(blocks, places);
  T *y = out(y_), *scale = out(scale_);
  py::gil_scoped_release release;
#pragma omp parallel if (n * d > kParallelNumbers)
  {
    const auto tile_x = buffer<T>(d * w), tile_y = buffer<T>(d * w), packed = buffer<T>(layout.most_pairs() * w);
#pragma omp for schedule(static)
    for (std::int64_t first = 0; first < n; first += w) {
      T *tx = tile_x.get(), *ty = tile_y.get();
      rows_to_tile(Tile<const T>(x, d, first, n).row, d, tx, w);
      apply_tile(Tile<const T>(c, n_pairs, first, n), tx, layout, packed.get(), ty);
      Vector<T> xx{}, yy{};
      for (std::int64_t i = 0; i < d * w; i += w) {
        xx += load(tx + i) * load(tx + i);
        yy += load(ty + i) * load(ty + i);
      }
      Vector<T> s;
      for (int lane = 0; lane < w; ++lane) {
        s[lane] = residual * std::sqrt(xx[lane]) / (2 * std::sqrt(yy[lane]) + T(1e-5));
        if (first + lane < n) scale[first + lane] = s[lane];
      }
      for (std::int64_t i = 0; i < d * w; i += w) store(ty + i, load(tx + i) + 2 * s * load(ty + i));
      tile_to_rows(ty, w, d, Tile<T>(y, d, first, n).row);
    }
  }
}

template <typename T>
void bind(py::module_& m) {
  m.def("gram", &gram<T>);
  m.def("gram_apply", &apply<T>);
  m.def("gram_step", &step<T>);
}

}  // namespace

void bind_gram(py::module_& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
