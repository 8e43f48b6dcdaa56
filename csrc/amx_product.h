// Products of weights and tiles of edges on the matrix unit of recent Intel processors (AMX), in full single precision.
//
// The unit multiplies bfloat16 numbers, 8 bits long, and adds in float32. A float32 number is the sum of three of them,
// a = a₀ + a₁ + a₂, each the rest of the one before rounded to 8 bits; of the nine products the six that are not below
// 2⁻²⁵ of the whole are made: a₀b₂ + a₀b₁ + a₁b₁ + a₁b₀ + a₂b₀ + a₀b₀. One core (Xeon, 4th generation) multiplies 2040
// GFLOP/s in bfloat16, so 340 GFLOP/s this way, where its vector units reach 170. Infinite numbers become NaN.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "lanes.h"

namespace NEXTHAM_ISA {
namespace matrix_unit {

constexpr std::int64_t kRows = 16, kDepth = 32, kTile = kRows * kDepth;  // of one register, in bfloat16 numbers
constexpr int kParts = 3;

// The nearest number of 8 bits (of the upper half of its bits), ties away from zero.
inline float leading(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  bits = (bits + 0x8000u) & 0xffff0000u;
  std::memcpy(&x, &bits, sizeof bits);
  return x;
}

inline std::uint16_t upper_half(float x) {
  std::uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits >> 16;
}

inline std::int64_t row_tiles(std::int64_t rows) { return (rows + kRows - 1) / kRows; }
inline std::int64_t blocks(std::int64_t k) { return (k + kDepth - 1) / kDepth; }

// In bfloat16 numbers: tiles [row tile][block of k][part], each [16][32].
inline std::int64_t weights_size(std::int64_t rows, std::int64_t k) {
  return row_tiles(rows) * blocks(k) * kParts * kTile;
}

inline void pack_weights(const float* a, std::int64_t row, std::int64_t column, std::int64_t rows, std::int64_t k,
                         std::uint16_t* packed) {
  for (std::int64_t first = 0; first < row_tiles(rows) * kRows; first += kRows)
    for (std::int64_t start = 0; start < k; start += kDepth, packed += kParts * kTile)
      for (std::int64_t r = 0; r < kRows; ++r) {
        const float* from = a + (first + r) * row + start * column;
        const std::int64_t there = first + r < rows ? std::min(kDepth, k - start) : 0;
        std::uint16_t* to = packed + r * kDepth;
        for (std::int64_t i = 0; i < there; ++i) {
          const float x = from[i * column], x0 = leading(x), x1 = leading(x - x0), x2 = leading(x - x0 - x1);
          to[i] = upper_half(x0), to[kTile + i] = upper_half(x1), to[2 * kTile + i] = upper_half(x2);
        }
        for (std::int64_t i = there; i < kDepth; ++i) to[i] = to[kTile + i] = to[2 * kTile + i] = 0;
      }
}

// Numbers of a split panel.
inline std::int64_t panel_size(std::int64_t k) { return blocks(k) * kParts * 2 * kTile; }

// b [k][32] → tiles [block of k][part][half of the lanes], each [16][16][2]: rows 2i and 2i + 1 side by side.
inline void split_panel(const float* b, std::int64_t k, std::int64_t lanes, std::uint16_t* to) {
  typedef std::uint32_t Bits __attribute__((vector_size(64)));
  for (std::int64_t first = 0; first < k; first += kDepth, to += kParts * 2 * kTile)
    for (std::int64_t i = 0; i < kRows; ++i)
      for (std::int64_t half = 0; 16 * half < lanes; ++half) {
        const std::int64_t r = first + 2 * i;
        const float* from = b + r * 32 + 16 * half;
        Vector<float> x = r < k ? load(from) : Vector<float>{}, y = r + 1 < k ? load(from + 32) : Vector<float>{};
#pragma GCC unroll 3
        for (int part = 0; part < kParts; ++part) {
          const Bits hx = ((Bits)x + 0x8000u) & 0xffff0000u, hy = ((Bits)y + 0x8000u) & 0xffff0000u;
          store(reinterpret_cast<float*>(to + (part * 2 + half) * kTile + i * kDepth), (Vector<float>)(hx >> 16 | hy));
          x -= (Vector<float>)hx;
          y -= (Vector<float>)hy;
        }
      }
}

// Registers 0 to 3 sum, 4 and 5 hold weights of two row tiles, 6 and 7 both halves of a panel.
struct Configuration {
  std::uint8_t palette = 1, start = 0, reserved[14] = {};
  std::uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// Two row tiles (or one) and both halves (or one) of a panel: c [rows][32].
template <bool kTwo, bool kBoth>
void piece(const std::uint16_t* a, std::int64_t n_blocks, const std::uint16_t* b, std::int64_t rows, float* c,
           bool add) {
  const std::uint16_t* other = a + n_blocks * kParts * kTile;
  alignas(64) float edge[4][kRows * 16];  // a row tile that is not whole goes through here
  const auto whole = [&](int tile) { return rows >= (tile + 1) * kRows; };
  const auto copy = [&](int tile, bool out) {
    const std::int64_t there = std::min(kRows, rows - tile * kRows);
    for (std::int64_t r = 0; r < there; ++r)
      for (int half = 0; half < (kBoth ? 2 : 1); ++half) {
        float *at = c + (tile * kRows + r) * 32 + 16 * half, *kept = edge[2 * tile + half] + 16 * r;
        std::memcpy(out ? at : kept, out ? kept : at, 64);
      }
  };
  if (add) {
    const bool w0 = whole(0), w1 = whole(1);
    if (!w0) copy(0, false);
    if (kTwo && !w1) copy(1, false);
    _tile_loadd(0, w0 ? c : edge[0], w0 ? 128 : 64);
    if (kBoth) _tile_loadd(1, w0 ? c + 16 : edge[1], w0 ? 128 : 64);
    if (kTwo) _tile_loadd(2, w1 ? c + kRows * 32 : edge[2], w1 ? 128 : 64);
    if (kTwo && kBoth) _tile_loadd(3, w1 ? c + kRows * 32 + 16 : edge[3], w1 ? 128 : 64);
  } else {
    _tile_zero(0);
    if (kBoth) _tile_zero(1);
    if (kTwo) _tile_zero(2);
    if (kTwo && kBoth) _tile_zero(3);
  }
#define NEXTHAM_LOAD_A(part)              \
  _tile_loadd(4, a + (part) * kTile, 64); \
  if (kTwo) _tile_loadd(5, other + (part) * kTile, 64);
#define NEXTHAM_LOAD_B(part)                  \
  _tile_loadd(6, b + 2 * (part) * kTile, 64); \
  if (kBoth) _tile_loadd(7, b + (2 * (part) + 1) * kTile, 64);
#define NEXTHAM_MULTIPLY              \
  _tile_dpbf16ps(0, 4, 6);            \
  if (kBoth) _tile_dpbf16ps(1, 4, 7); \
  if (kTwo) _tile_dpbf16ps(2, 5, 6);  \
  if (kTwo && kBoth) _tile_dpbf16ps(3, 5, 7);
  for (std::int64_t k = 0; k < n_blocks; ++k, a += kParts * kTile, other += kParts * kTile, b += kParts * 2 * kTile) {
    NEXTHAM_LOAD_A(0)
    NEXTHAM_LOAD_B(2)
    NEXTHAM_MULTIPLY
    NEXTHAM_LOAD_B(1)
    NEXTHAM_MULTIPLY
    NEXTHAM_LOAD_A(1)
    NEXTHAM_MULTIPLY
    NEXTHAM_LOAD_B(0)
    NEXTHAM_MULTIPLY
    NEXTHAM_LOAD_A(2)
    NEXTHAM_MULTIPLY
    NEXTHAM_LOAD_A(0)
    NEXTHAM_MULTIPLY
  }
#undef NEXTHAM_LOAD_A
#undef NEXTHAM_LOAD_B
#undef NEXTHAM_MULTIPLY
  const bool w0 = whole(0), w1 = whole(1);
  _tile_stored(0, w0 ? c : edge[0], w0 ? 128 : 64);
  if (kBoth) _tile_stored(1, w0 ? c + 16 : edge[1], w0 ? 128 : 64);
  if (kTwo) _tile_stored(2, w1 ? c + kRows * 32 : edge[2], w1 ? 128 : 64);
  if (kTwo && kBoth) _tile_stored(3, w1 ? c + kRows * 32 + 16 : edge[3], w1 ? 128 : 64);
  if (!w0) copy(0, true);
  if (kTwo && !w1) copy(1, true);
}

// C [rows][32] of each panel = (+=) A B; the panels of B and C lie panel_b and panel_c numbers apart.
inline void tile_product(const std::uint16_t* a, std::int64_t rows, std::int64_t k, const float* b,
                         std::int64_t panel_b, std::int64_t n_lanes, float* c, std::int64_t panel_c, bool add) {
  const std::int64_t n_panels = (n_lanes + 31) / 32, n_blocks = blocks(k), size = panel_size(k);
  const auto split = buffer<std::uint16_t>(n_panels * size);
  for (std::int64_t p = 0; p < n_panels; ++p)
    split_panel(b + p * panel_b, k, std::min<std::int64_t>(32, n_lanes - 32 * p), split.get() + p * size);
  const Configuration configuration;
  _tile_loadconfig(&configuration);
  for (std::int64_t first = 0; first < rows; first += 2 * kRows)
    for (std::int64_t p = 0; p < n_panels; ++p) {
      const std::uint16_t *weights = a + first / kRows * n_blocks * kParts * kTile, *panel = split.get() + p * size;
      float* to = c + p * panel_c + first * 32;
      const bool two = rows - first > kRows, both = n_lanes - 32 * p > 16;
      const auto f =
          two ? (both ? piece<true, true> : piece<true, false>) : (both ? piece<false, true> : piece<false, false>);
      f(weights, n_blocks, panel, rows - first, to, add);
    }
  _tile_release();
}

// One row of lanes in three parts, each 32 numbers of 16 bits; of a row that is not there zeros, and without `both` of
// the upper half of the lanes.
inline void split_row(const float* from, bool there, bool both, std::uint16_t (*part)[kDepth]) {
  typedef std::uint32_t Bits __attribute__((vector_size(64)));
  typedef std::uint16_t Half __attribute__((vector_size(32)));
  Vector<float> x{}, y{};
  if (there) x = load(from);
  if (there && both) y = load(from + 16);
#pragma GCC unroll 3
  for (int i = 0; i < kParts; ++i) {
    const Bits hx = ((Bits)x + 0x8000u) & 0xffff0000u, hy = ((Bits)y + 0x8000u) & 0xffff0000u;
    const Half lower = __builtin_convertvector(hx >> 16, Half), upper = __builtin_convertvector(hy >> 16, Half);
    std::memcpy(part[i], &lower, sizeof lower);
    std::memcpy(part[i] + 16, &upper, sizeof upper);
    x -= (Vector<float>)hx;
    y -= (Vector<float>)hy;
  }
}

// C [panel of 32 columns][rows_a][32] += A Bᵀ over the lanes of panels of A and B, which become the depth: A is split
// like weights, B transposed like a panel.
inline void tile_outer(const float* a, std::int64_t panel_a, std::int64_t rows_a, const float* b, std::int64_t panel_b,
                       std::int64_t rows_b, std::int64_t n_lanes, float* c) {
  const std::int64_t n_panels = (n_lanes + 31) / 32, n_columns = (rows_b + 31) / 32;
  const auto split_a = buffer<std::uint16_t>(row_tiles(rows_a) * n_panels * kParts * kTile);
  const auto split_b = buffer<std::uint16_t>(n_columns * n_panels * kParts * 2 * kTile);
  alignas(64) std::uint16_t part[kParts][kDepth];
  for (std::int64_t r = 0; r < row_tiles(rows_a) * kRows; ++r)
    for (std::int64_t p = 0; p < n_panels; ++p) {
      std::uint16_t* to = split_a.get() + (r / kRows * n_panels + p) * kParts * kTile + r % kRows * kDepth;
      split_row(a + p * panel_a + r * 32, r < rows_a, n_lanes - 32 * p > 16, part);
      for (int i = 0; i < kParts; ++i) std::memcpy(to + i * kTile, part[i], 64);
    }
  for (std::int64_t half = 0; half < 2 * n_columns; ++half)
    for (std::int64_t p = 0; p < n_panels; ++p) {
      Vector<float> pairs[kParts][16];
      for (std::int64_t r = 0, row = 16 * half; r < 16; ++r, ++row) {
        split_row(b + p * panel_b + row * 32, row < rows_b, n_lanes - 32 * p > 16, part);
        for (int i = 0; i < kParts; ++i) std::memcpy(&pairs[i][r], part[i], 64);
      }
      std::uint16_t* to = split_b.get() + (half / 2 * n_panels + p) * kParts * 2 * kTile + half % 2 * kTile;
      for (int i = 0; i < kParts; ++i) {
        transpose<float>(pairs[i]);
        std::memcpy(to + 2 * i * kTile, pairs[i], 16 * 64);
      }
    }
  const Configuration configuration;
  _tile_loadconfig(&configuration);
  for (std::int64_t first = 0; first < rows_a; first += 2 * kRows)
    for (std::int64_t q = 0; q < n_columns; ++q) {
      const bool two = rows_a - first > kRows, both = rows_b - 32 * q > 16;
      const auto f =
          two ? (both ? piece<true, true> : piece<true, false>) : (both ? piece<false, true> : piece<false, false>);
      f(split_a.get() + first / kRows * n_panels * kParts * kTile, n_panels,
        split_b.get() + q * n_panels * kParts * 2 * kTile, rows_a - first, c + (q * rows_a + first) * 32, true);
    }
  _tile_release();
}

}  // namespace matrix_unit
}  // namespace NEXTHAM_ISA
