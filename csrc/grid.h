// Grids of bricks: what the kernels superposition and grid_integrals share.
//
// A brick is cut into tiles of 4 × 4 × 4 points, whose points are the lanes. Of the atoms that may reach the brick, a
// tile visits those whose sphere reaches the ball around it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "lanes.h"

namespace NEXTHAM_ISA {

constexpr std::int64_t kEdge = 4, kPoints = kEdge * kEdge * kEdge;

// A tile: its points [3][kPoints] (those it lacks repeat the first), and where each lies among those of the brick.
template <typename T>
struct Tile {
  alignas(kVectorBytes) T r[3][kPoints];
  std::int64_t place[kPoints], n;
  T centre[3], radius;

  Tile(const T* step, const std::int64_t* brick, const std::int64_t* low) {
    std::int64_t size[3];
    for (int k = 0; k < 3; ++k) size[k] = std::min(kEdge, brick[3 + k] - low[k]);
    n = size[0] * size[1] * size[2];
    std::int64_t p = 0;
    for (std::int64_t a = low[0]; a < low[0] + size[0]; ++a)
      for (std::int64_t b = low[1]; b < low[1] + size[1]; ++b)
        for (std::int64_t c = low[2]; c < low[2] + size[2]; ++c, ++p) {
          place[p] = (a * brick[4] + b) * brick[5] + c;
          for (int x = 0; x < 3; ++x)
            r[x][p] = (brick[0] + a) * step[x] + (brick[1] + b) * step[3 + x] + (brick[2] + c) * step[6 + x];
        }
    for (; p < kPoints; ++p)
      for (int x = 0; x < 3; ++x) r[x][p] = r[x][0];
    T square = 0;
    for (int x = 0; x < 3; ++x) centre[x] = (r[x][0] + r[x][n - 1]) / 2;
    for (p = 0; p < n; ++p) {
      T d2 = 0;
      for (int x = 0; x < 3; ++x) d2 += (r[x][p] - centre[x]) * (r[x][p] - centre[x]);
      square = std::max(square, d2);
    }
    radius = std::sqrt(square);
  }

  bool reached(const T* atom, T reach) const {
    T d2 = 0;
    for (int x = 0; x < 3; ++x) d2 += (atom[x] - centre[x]) * (atom[x] - centre[x]);
    return d2 < (reach + radius) * (reach + radius);
  }
};

template <typename T, typename F>
void each_tile(const T* step, const std::int64_t* brick, const F& f) {
  for (std::int64_t a = 0; a < brick[3]; a += kEdge)
    for (std::int64_t b = 0; b < brick[4]; b += kEdge)
      for (std::int64_t c = 0; c < brick[5]; c += kEdge) {
        const std::int64_t low[3] = {a, b, c};
        f(Tile<T>(step, brick, low));
      }
}

// Vectors from an atom to the points, their squares, the row of its table that each point reads (`beyond` behind the
// last) and where in the interval. Returns whether the atom reaches a point.
template <typename T>
bool distances(const Tile<T>& tile, const T* atom, T per_length, std::int64_t first, std::int64_t last,
               std::int64_t beyond, T (*d)[kPoints], T* square, std::int32_t* row, T* t) {
  const std::int32_t n = static_cast<std::int32_t>(last - first);
  std::int32_t least = n;
#pragma omp simd reduction(min : least)
  for (std::int64_t p = 0; p < kPoints; ++p) {
    d[0][p] = tile.r[0][p] - atom[0];
    d[1][p] = tile.r[1][p] - atom[1];
    d[2][p] = tile.r[2][p] - atom[2];
    square[p] = d[0][p] * d[0][p] + d[1][p] * d[1][p] + d[2][p] * d[2][p];
    const T x = std::sqrt(square[p]) * per_length;
    const std::int32_t whole = static_cast<std::int32_t>(x);
    t[p] = x - whole;
    least = std::min(least, whole);
    row[p] = static_cast<std::int32_t>(whole < n ? first + whole : beyond);
  }
  return least < n;
}

}  // namespace NEXTHAM_ISA
