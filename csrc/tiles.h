// Tiles [d][kWidth] of rows [n, d] of edges: two vectors of edges, whose lanes they become.
#pragma once

#include <cstdint>
#include <type_traits>

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

// Rows of a matrix [., d] that fill one vector, some of them picked or summed by an index.
template <typename T>
struct Lines {
  T* row[kLanes<T>];

  Lines(T* base, std::int64_t d, const std::int64_t* index, std::int64_t first, std::int64_t end, T* none) {
    for (int lane = 0; lane < kLanes<T>; ++lane) {
      const std::int64_t e = first + lane;
      row[lane] = e < end ? base + (index ? index[e] : e) * d : none;
    }
  }
  void at(std::int64_t offset, T* (&to)[kLanes<T>]) const {
    for (int lane = 0; lane < kLanes<T>; ++lane) to[lane] = row[lane] + offset;
  }
  void read(std::int64_t offset, std::int64_t d, std::remove_const_t<T>* tile) const {
    T* from[kLanes<T>];
    at(offset, from);
    rows_to_tile<std::remove_const_t<T>>(from, d, tile, kLanes<T>);
  }
  void write(std::int64_t offset, std::int64_t d, const T* tile) const {
    T* to[kLanes<T>];
    at(offset, to);
    tile_to_rows<T>(tile, kLanes<T>, d, to);
  }
  // Adds lane after lane, as several may be the same row; `between` holds kLanes d numbers.
  void add(std::int64_t offset, std::int64_t d, const T* tile, T* between) const {
    T* to[kLanes<T>];
    for (int lane = 0; lane < kLanes<T>; ++lane) to[lane] = between + lane * d;
    tile_to_rows<T>(tile, kLanes<T>, d, to);
    for (int lane = 0; lane < kLanes<T>; ++lane)
      for (std::int64_t c = 0; c < d; ++c) row[lane][offset + c] += to[lane][c];
  }
};

}  // namespace NEXTHAM_ISA
