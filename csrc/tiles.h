// Tiles [d][kWidth] of rows [n, d] of edges: two vectors of edges, whose lanes they become.
#pragma once

#include <cstdint>

#include "lanes.h"

namespace NEXTHAM_ISA {

template <typename T>
constexpr std::int64_t kWidth = 2 * kLanes<T>;  // edges of a tile

// Rows [n, d]. Lanes behind the last edge read zeros and write where nobody looks.
template <typename T>
struct Rows {
  T* base;
  std::int64_t d, n;
  T* none;

  template <typename F>
  void each_half(std::int64_t first, const F& f) const {
    for (std::int64_t half = 0; half < kWidth<T>; half += kLanes<T>) {
      T* row[kLanes<T>];
      for (std::int64_t lane = 0, e = first + half; lane < kLanes<T>; ++lane, ++e)
        row[lane] = e < n ? base + e * d : none;
      f(row, half);
    }
  }
};
template <typename T>
void read_tile(const Rows<const T>& rows, std::int64_t first, T* tile) {
  rows.each_half(first, [&](auto row, std::int64_t half) { rows_to_tile<T>(row, rows.d, tile + half, kWidth<T>); });
}
template <typename T>
void write_tile(const T* tile, std::int64_t first, const Rows<T>& rows) {
  rows.each_half(first, [&](auto row, std::int64_t half) { tile_to_rows<T>(tile + half, kWidth<T>, rows.d, row); });
}

}  // namespace NEXTHAM_ISA
