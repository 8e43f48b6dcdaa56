// Packed Gram matrices of one tile of edges and products with them; a tile is [d][w], w numbers from one row to the
// next.
#pragma once

#include <algorithm>
#include <cstdint>

#include "lanes.h"
#include "rows.h"

namespace NEXTHAM_ISA {

// Channels of one irrep: `first` is the place in `at` of its n components, each the place of channel 0 in the row; the
// next channel lies `stride` numbers behind.
struct GramBlock {
  std::int32_t mul, n, stride, first;
  std::int64_t pairs() const { return std::int64_t(mul) * (mul + 1) / 2; }
};

struct GramLayout {
  const GramBlock* block;
  std::int64_t n_blocks;
  const std::int32_t* at;

  GramLayout(const Array<std::int32_t>& blocks, const Array<std::int32_t>& places)
      : block(reinterpret_cast<const GramBlock*>(in(blocks))), n_blocks(blocks.shape(0)), at(in(places)) {}

  std::int64_t pairs() const {
    std::int64_t sum = 0;
    for (std::int64_t b = 0; b < n_blocks; ++b) sum += block[b].pairs();
    return sum;
  }
  std::int64_t most_pairs() const {
    std::int64_t most = 0;
    for (std::int64_t b = 0; b < n_blocks; ++b) most = std::max(most, block[b].pairs());
    return most;
  }
};

// g[k] = Σ_i ⟨x_u, y_v⟩ + ⟨x_v, y_u⟩, v = u + shift + k, k < K; x and y are of channel u.
template <int K, bool kSame, typename T>
void sum_pairs(const T* x, const T* y, std::int64_t shift, const GramBlock& b, const std::int32_t* at, std::int64_t w,
               T* g) {
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
void sum_block(const T* x, const T* y, const GramBlock& b, const std::int32_t* at, std::int64_t w, T* g) {
  for (std::int32_t u = 0; u < b.mul; ++u) {
    const std::int64_t channel = u * b.stride * w;
    T* diagonal = g;
    std::int32_t shift = 0;
    for (; shift + 4 <= b.mul - u; shift += 4, g += 4 * w)
      sum_pairs<4, kSame>(x + channel, y + channel, shift, b, at, w, g);
    for (; shift < b.mul - u; ++shift, g += w) sum_pairs<1, kSame>(x + channel, y + channel, shift, b, at, w, g);
    store(diagonal, load(diagonal) * T(0.5));
  }
}

// y_u = Σ_v C_uv x_v of one component, for channels u … u + K - 1. Row v of the packed C holds C_vv, C_v,v+1, …
template <int K, typename T>
void apply_rows(const T* c, const T* x, std::int32_t u, const GramBlock& b, std::int64_t w, T* y) {
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
void apply_block(const T* c, const T* x, const GramBlock& b, const std::int32_t* at, std::int64_t w, T* y) {
  for (std::int32_t i = 0; i < b.n; ++i) {
    const std::int64_t component = at[i] * w;
    std::int32_t u = 0;
    for (; u + 4 <= b.mul; u += 4) apply_rows<4>(c, x + component, u, b, w, y + component);
    for (; u < b.mul; ++u) apply_rows<1>(c, x + component, u, b, w, y + component);
  }
}

}  // namespace NEXTHAM_ISA
