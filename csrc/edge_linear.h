// Edge linear maps of tiles [d][lane]: what edge_linear_cpu.cpp does for rows.
#pragma once

#include <algorithm>
#include <vector>

#include "rows.h"
#include "tile_mlp.h"

namespace NEXTHAM_ISA {

// A block of |m|: columns of its first component in both rows, channels, components, and where its matrix starts.
struct LinearBlock {
  std::int32_t x, c_in, components, y, c_out, matrix;
};

// Which blocks there are, which columns of y none of them writes, and to which the bias is added.
struct LinearTable {
  const LinearBlock* block;
  std::int64_t n_blocks;
  const std::int32_t* zero;
  std::int64_t n_zero;
  const std::int32_t* scalar;
  std::int64_t n_scalar;

  LinearTable(const Array<std::int32_t>& blocks, const Array<std::int32_t>& zeros, const Array<std::int32_t>& scalars)
      : block(reinterpret_cast<const LinearBlock*>(in(blocks))),
        n_blocks(blocks.shape(0)),
        zero(in(zeros)),
        n_zero(zeros.shape(0)),
        scalar(in(scalars)),
        n_scalar(scalars.shape(0)) {}
};

// A map of tiles, Σ_h a_h (M_h x + b_h) + b or, without heads, M x + b. The packed matrices [c_out, heads c_in] of the
// blocks lie one behind the other.
template <typename T>
struct TileMap {
  LinearTable table;
  const T* packed;
  const T* bias;                 // rows [n_scalar]: of each head, then b
  std::int64_t n_heads, n_bias;  // no heads: 0

  std::int64_t depth(const LinearBlock& b) const { return std::max<std::int64_t>(1, n_heads) * b.c_in; }
  std::int64_t deepest() const {
    std::int64_t most = 0;
    for (const LinearBlock* b = table.block; b < table.block + table.n_blocks; ++b) most = std::max(most, depth(*b));
    return most;
  }

  // y = map of x; `outer` is scratch of `deepest` rows. With `add` (and then without zeros) added to y.
  void apply(const Tiles<T>& x, const Tiles<T>* heads, std::int64_t n_lanes, const Tiles<T>* outer, const Tiles<T>& y,
             bool add = false) const {
    constexpr std::int64_t w = kWidth<T>;
    const T* matrix = packed;
    for (const LinearBlock* b = table.block; b < table.block + table.n_blocks; ++b) {
      const Weights<T> weights{matrix, b->c_out, depth(*b)};
      for (std::int32_t i = 0; i < b->components; ++i) {
        const std::int64_t row = b->x + i * b->c_in;
        if (heads)
          each_panel<T>(n_lanes, [&](std::int64_t p, std::int64_t lanes) {
            T* to = outer->numbers.get() + p * outer->d * w;
            for (std::int64_t h = 0; h < n_heads; ++h)
              for (std::int64_t half = 0; half < lanes; half += kLanes<T>) {
                const Vector<T> a = load(heads->panel(p) + h * w + half);
                const T* from = x.panel(p) + row * w + half;
                for (std::int64_t u = 0; u < b->c_in; ++u)
                  store(to + (h * b->c_in + u) * w + half, a * load(from + u * w));
              }
          });
        tile_product<T>(weights, heads ? outer->read() : x.read(row), n_lanes, y.from(b->y + i * b->c_out), add);
      }
      matrix += weights_size<T>(weights.rows, weights.k);
    }
    each_panel<T>(n_lanes, [&](std::int64_t p, std::int64_t lanes) {
      for (std::int64_t j = 0; !add && j < table.n_zero; ++j) std::fill_n(y.panel(p) + table.zero[j] * w, lanes, T(0));
      for (std::int64_t h = 0; h < n_bias; ++h)
        for (std::int64_t half = 0; half < lanes; half += kLanes<T>) {
          const Vector<T> a = h < n_heads ? load(heads->panel(p) + h * w + half) : Vector<T>{} + 1;
          for (std::int64_t j = 0; j < table.n_scalar; ++j) {
            T* to = y.panel(p) + table.scalar[j] * w + half;
            store(to, load(to) + a * bias[h * table.n_scalar + j]);
          }
        }
    });
  }
};

// Copies one lane of `from` to one of `to`.
template <typename T>
void copy_lane(const Tiles<T>& from, std::int64_t lane, const Tiles<T>& to, std::int64_t into) {
  constexpr std::int64_t w = kWidth<T>;
  const T* a = from.panel(lane / w) + lane % w;
  T* b = to.panel(into / w) + into % w;
  for (std::int64_t i = 0; i < from.d; ++i) b[i * w] = a[i * w];
}

}  // namespace NEXTHAM_ISA
