// Vectors whose lanes are edges: rows [e, d] of a few edges, transposed to tiles [d][lane] and back.
// All of it lives in the instruction set's namespace, because the width does too.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <type_traits>
#include <utility>
#include <vector>

namespace NEXTHAM_ISA {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <typename T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
};
template <typename T>
using Vector = typename VectorOf<T>::type;

// Of an aligned address.
template <typename T>
Vector<T> load(const T* from) {
  return *reinterpret_cast<const Vector<T>*>(from);
}
template <typename T>
void store(T* to, Vector<T> v) {
  *reinterpret_cast<Vector<T>*>(to) = v;
}

template <typename T>
Vector<T> load_anywhere(const T* from) {
  Vector<T> v;
  std::memcpy(&v, from, kVectorBytes);
  return v;
}
template <typename T>
void store_anywhere(T* to, Vector<T> v) {
  std::memcpy(to, &v, kVectorBytes);
}

// Blocks that this thread has used and keeps: the first touch of fresh memory costs 0.1 to 0.4 ms per MB, as much as
// the work of a small call.
struct Pool {
  static constexpr std::size_t kMost = std::size_t(32) << 20;  // bytes kept
  std::vector<std::pair<std::size_t, void*>> blocks;
  std::size_t kept = 0;

  ~Pool() {
    for (auto& [size, block] : blocks) ::operator delete(block, std::align_val_t(kVectorBytes));
  }
  static Pool& own() {
    static thread_local Pool pool;
    return pool;
  }
  // A block of at least n bytes; n becomes its size.
  void* take(std::size_t& n) {
    std::size_t best = blocks.size();
    for (std::size_t i = 0; i < blocks.size(); ++i)
      if (blocks[i].first >= n && blocks[i].first <= 2 * n &&
          (best == blocks.size() || blocks[i].first < blocks[best].first))
        best = i;
    if (best == blocks.size()) return ::operator new(n, std::align_val_t(kVectorBytes));
    const auto found = blocks[best];
    blocks[best] = blocks.back();
    blocks.pop_back();
    n = found.first;
    kept -= n;
    return found.second;
  }
  void give(std::size_t n, void* block) {
    if (kept + n > kMost) return ::operator delete(block, std::align_val_t(kVectorBytes));
    blocks.emplace_back(n, block);
    kept += n;
  }
};

// Aligned numbers, not initialised.
struct Free {
  std::size_t size = 0;
  void operator()(void* p) const { Pool::own().give(size, p); }
};
template <typename T>
using Buffer = std::unique_ptr<T[], Free>;
template <typename T>
Buffer<T> buffer(std::int64_t n) {
  std::size_t bytes = std::max<std::int64_t>(n, 1) * sizeof(T);
  T* numbers = static_cast<T*>(Pool::own().take(bytes));
  return Buffer<T>(numbers, Free{bytes});
}

// Calls f with the constant n, 1 ≤ n ≤ N.
template <int N, typename F>
__attribute__((always_inline)) inline void with_constant(int n, const F& f) {
  if constexpr (N > 1) {
    if (n < N) return with_constant<N - 1>(n, f);
  }
  f(std::integral_constant<int, N>{});
}

// The two vectors that exchange the off-diagonal quarters of (a; b), cut in pieces of S lanes.
template <std::size_t S, typename V, std::size_t... I>
__attribute__((always_inline)) inline V upper(V a, V b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, ((I & S) ? sizeof...(I) + I - S : I)...);
}
template <std::size_t S, typename V, std::size_t... I>
__attribute__((always_inline)) inline V lower(V a, V b, std::index_sequence<I...>) {
  return __builtin_shufflevector(a, b, ((I & S) ? sizeof...(I) + I : I + S)...);
}

// v[i][j] ↔ v[j][i], in log₂ kLanes rounds.
template <typename T, std::size_t S = kLanes<T> / 2>
__attribute__((always_inline)) inline void transpose(Vector<T>* v) {
  constexpr auto lanes = std::make_index_sequence<kLanes<T>>();
#pragma GCC unroll 16
  for (std::size_t i = 0; i < kLanes<T>; ++i) {
    if (i & S) continue;
    const Vector<T> a = v[i], b = v[i + S];
    v[i] = upper<S>(a, b, lanes);
    v[i + S] = lower<S>(a, b, lanes);
  }
  if constexpr (S > 1) transpose<T, S / 2>(v);
}

// Vector of the sums over lanes of kLanes vectors, which it overwrites.
template <typename T, std::size_t S = kLanes<T> / 2>
__attribute__((always_inline)) inline Vector<T> sums(Vector<T>* v) {
  constexpr auto lanes = std::make_index_sequence<kLanes<T>>();
#pragma GCC unroll 8
  for (std::size_t i = 0; i < S; ++i) v[i] = upper<S>(v[i], v[i + S], lanes) + lower<S>(v[i], v[i + S], lanes);
  if constexpr (S > 1) return sums<T, S / 2>(v);
  return v[0];
}

// tile[c * stride + lane] = row[lane][c] for c < d; the tile is aligned and stride a multiple of kLanes.
template <typename T>
void rows_to_tile(const T* const* row, std::int64_t d, T* tile, std::int64_t stride) {
  constexpr int w = kLanes<T>;
  if (d < w) {
    for (int lane = 0; lane < w; ++lane)
      for (std::int64_t c = 0; c < d; ++c) tile[c * stride + lane] = row[lane][c];
    return;
  }
  for (std::int64_t next = 0; next < d; next += w) {
    const std::int64_t c = next < d - w ? next : d - w;  // the last square overlaps the one before
    Vector<T> v[w];
#pragma GCC unroll 16
    for (int lane = 0; lane < w; ++lane) v[lane] = load_anywhere(row[lane] + c);
    transpose<T>(v);
#pragma GCC unroll 16
    for (int i = 0; i < w; ++i) store(tile + (c + i) * stride, v[i]);
  }
}

// The inverse: row[lane][c] = tile[c * stride + lane].
template <typename T>
void tile_to_rows(const T* tile, std::int64_t stride, std::int64_t d, T* const* row) {
  constexpr int w = kLanes<T>;
  if (d < w) {
    for (int lane = 0; lane < w; ++lane)
      for (std::int64_t c = 0; c < d; ++c) row[lane][c] = tile[c * stride + lane];
    return;
  }
  for (std::int64_t next = 0; next < d; next += w) {
    const std::int64_t c = next < d - w ? next : d - w;
    Vector<T> v[w];
#pragma GCC unroll 16
    for (int i = 0; i < w; ++i) v[i] = load(tile + (c + i) * stride);
    transpose<T>(v);
#pragma GCC unroll 16
    for (int lane = 0; lane < w; ++lane) store_anywhere(row[lane] + c, v[lane]);
  }
}

}  // namespace NEXTHAM_ISA
