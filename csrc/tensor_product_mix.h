// The mixes of the tensor product: channel pairs q of a batch times a matrix of weights [q, w], rows being lanes.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "lanes.h"
#include "tensor_product_tables.h"

namespace NEXTHAM_ISA {

// Outputs of a mix of channels in registers, each with up to kComponents vectors.
constexpr int kOutputs = kVectorBytes == 64 ? 8 : 4;
constexpr int kComponents = 3;

// The weights of one path: none, one number for all rows, or a tile.
enum class Weights { none, shared, rows };

template <Weights kind, typename T>
__attribute__((always_inline)) inline Vector<T> weight_at(const T* w, std::int64_t i) {
  if constexpr (kind == Weights::rows) return load(w + i * kLanes<T>);
  if constexpr (kind == Weights::shared) return w[i] - Vector<T>{};
  return T(1) - Vector<T>{};
}

template <Weights kind, typename T>
const T* at_weight(const T* w, std::int64_t q) {
  return w + q * (kind == Weights::rows ? kLanes<T> : 1);
}

// f(N, K, o, k) for blocks of n outputs and of components
template <typename F>
void each_tile(std::int32_t n, std::int32_t dk, const F& f) {
  for (std::int32_t k = 0; k < dk; k += kComponents)
    with_constant<kComponents>(std::min(kComponents, dk - k), [&](auto n_k) {
      for (std::int32_t o = 0; o < n; o += kOutputs)
        with_constant<kOutputs>(std::min(kOutputs, n - o), [&](auto n_o) { f(n_o, n_k, o, k); });
    });
}

// out_wk += Σ_q W_qw z_qk
template <Weights kind, typename T>
void mix(const Path& p, const T* w, const std::vector<std::int32_t>& q, const T* z, T* out) {
  constexpr std::int64_t l = kLanes<T>;
  each_tile(p.n_w, p.dk, [&](auto n_o, auto n_k, std::int32_t o, std::int32_t k) {
    constexpr int N = n_o(), K = n_k();
    Vector<T> sum[N][K];
    T* at = out + (o * p.dk + k) * l;
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 3
      for (int c = 0; c < K; ++c) sum[n][c] = load(at + (n * p.dk + c) * l);
    const T* z_k = z + k * l;
    for (const std::int32_t pair : q) {
      Vector<T> z_c[K];
#pragma GCC unroll 3
      for (int c = 0; c < K; ++c) z_c[c] = load(z_k + c * l);
      const T* row = at_weight<kind>(w, std::int64_t(pair) * p.n_w + o);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const Vector<T> weight = weight_at<kind>(row, n);
#pragma GCC unroll 3
        for (int c = 0; c < K; ++c) sum[n][c] += weight * z_c[c];
      }
      z_k += p.dk * l;
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 3
      for (int c = 0; c < K; ++c) store(at + (n * p.dk + c) * l, sum[n][c]);
  });
}

// grad_z_qk = Σ_w W_qw g_wk
template <Weights kind, typename T>
void pull_mix(const Path& p, const T* w, const std::vector<std::int32_t>& q, const T* g, T* pull_z) {
  constexpr std::int64_t l = kLanes<T>;
  each_tile(q.size(), p.dk, [&](auto n_o, auto n_k, std::int32_t o, std::int32_t k) {
    constexpr int N = n_o(), K = n_k();
    Vector<T> sum[N][K];
    const T* row[N];
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      row[n] = at_weight<kind>(w, std::int64_t(q[o + n]) * p.n_w);
#pragma GCC unroll 3
      for (int c = 0; c < K; ++c) sum[n][c] = Vector<T>{};
    }
    const T* g_k = g + k * l;
    for (std::int32_t i = 0; i < p.n_w; ++i, g_k += p.dk * l) {
      Vector<T> g_c[K];
#pragma GCC unroll 3
      for (int c = 0; c < K; ++c) g_c[c] = load(g_k + c * l);
#pragma GCC unroll 8
      for (int n = 0; n < N; ++n) {
        const Vector<T> weight = weight_at<kind>(row[n], i);
#pragma GCC unroll 3
        for (int c = 0; c < K; ++c) sum[n][c] += weight * g_c[c];
      }
    }
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 3
      for (int c = 0; c < K; ++c) store(pull_z + ((o + n) * p.dk + k + c) * l, sum[n][c]);
  });
}

// grad_W_qw = Σ_k z_qk g_wk: of each row, or added up over the rows of the super-tile
template <Weights kind, typename T>
void pull_weights(const Path& p, const std::vector<std::int32_t>& q, const T* z_q, std::int64_t size_z, const T* g,
                  std::int64_t size_g, int n_tiles, T* pull_w) {
  constexpr std::int64_t l = kLanes<T>;
  for (std::size_t i = 0; i < q.size(); ++i) {
    const std::int64_t place = std::int64_t(q[i]) * p.n_w;
    const T* z = z_q + i * p.dk * l;
    if constexpr (kind == Weights::rows) {
      for (std::int32_t o = 0; o < p.n_w; ++o) {
        Vector<T> sum{};
        for (std::int32_t k = 0; k < p.dk; ++k) sum += load(z + k * l) * load(g + (o * p.dk + k) * l);
        store(pull_w + (place + o) * l, sum);
      }
    } else {
      for (std::int32_t o = 0; o < p.n_w; o += l)
        with_constant<kLanes<T>>(std::min<int>(l, p.n_w - o), [&](auto n_o) {
          constexpr int N = n_o();
          Vector<T> sum[l];
#pragma GCC unroll 16
          for (int n = 0; n < l; ++n) sum[n] = Vector<T>{};
          for (int t = 0; t < n_tiles; ++t) {
            const T *z_t = z + t * size_z, *g_t = g + t * size_g + o * p.dk * l;
            for (std::int32_t k = 0; k < p.dk; ++k) {
              const Vector<T> z_k = load(z_t + k * l);
#pragma GCC unroll 16
              for (int n = 0; n < N; ++n) sum[n] += z_k * load(g_t + (n * p.dk + k) * l);
            }
          }
          const Vector<T> total = sums<T>(sum);
          T* at = pull_w + place + o;
          if constexpr (N == l) {
            store_anywhere(at, load_anywhere(at) + total);
          } else {
            for (int n = 0; n < N; ++n) at[n] += total[n];
          }
        });
    }
  }
}

}  // namespace NEXTHAM_ISA
