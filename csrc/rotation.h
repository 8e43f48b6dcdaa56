// Rotation of the row of one edge; rotation_cpu.cpp says why it is done this way.
#pragma once

#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "lanes.h"
#include "rows.h"

namespace NEXTHAM_ISA {

constexpr int kMaxDegree = 10;

template <typename T, int W>
struct Run {
  typedef T type __attribute__((vector_size(W * sizeof(T))));
};
template <typename V, typename T>
V load_run(const T* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <typename V, typename T>
void store_run(T* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

// Asks for numbers that are needed soon: edges in the order of their sources lie anywhere in memory.
template <typename T>
void fetch(const T* from, std::int64_t n) {
  for (std::int64_t i = 0; i < n; i += 64 / sizeof(T)) __builtin_prefetch(from + i);
}

// y_k = Σ_i D_ki (a + b)_i for W channels, or with kBack y_k += Σ_i D_ik a_i; component i lies at at[i], b may be null.
template <typename T, int L, bool kBack, int W>
inline void rotate_channels(const T* a, const T* b, const T* d, const std::int32_t* at, T* y) {
  constexpr int n = 2 * L + 1;
  using V = typename Run<T, W>::type;
  V x[n];
#pragma GCC unroll 21
  for (int i = 0; i < n; ++i) x[i] = load_run<V>(a + at[i]);
  if (b) {
#pragma GCC unroll 21
    for (int i = 0; i < n; ++i) x[i] += load_run<V>(b + at[i]);
  }
#pragma GCC unroll 1
  for (int k = 0; k < n; ++k) {
    V sum = kBack ? load_run<V>(y + at[k]) : V{};
#pragma GCC unroll 21
    for (int i = 0; i < n; ++i) sum += (kBack ? d[i * n + k] : d[k * n + i]) * x[i];
    store_run(y + at[k], sum);
  }
}

// The same for the channels u ... mul of an irrep, in runs of W and then of the smaller powers of two.
template <typename T, int L, bool kBack, int W = kLanes<T>>
void rotate_irrep(const T* a, const T* b, const T* d, const std::int32_t* at, std::int32_t mul, T* y) {
  std::int32_t u = 0;
  for (; u + W <= mul; u += W) rotate_channels<T, L, kBack, W>(a + u, b ? b + u : b, d, at, y + u);
  if constexpr (W > 1) {
    if (u < mul) rotate_irrep<T, L, kBack, W / 2>(a + u, b ? b + u : b, d, at, mul - u, y + u);
  }
}

template <typename T>
using RotateIrrep = void (*)(const T*, const T*, const T*, const std::int32_t*, std::int32_t, T*);
template <typename T, bool kBack, std::size_t... L>
constexpr std::array<RotateIrrep<T>, sizeof...(L)> rotations(std::index_sequence<L...>) {
  return {rotate_irrep<T, int(L), kBack>...};
}
using Degrees = std::make_index_sequence<kMaxDegree + 1>;
template <typename T, bool kBack>
constexpr auto kRotateIrrep = rotations<T, kBack>(Degrees());

// Where D^l begins among the numbers of an edge: Σ_{k<l} (2k+1)².
inline std::int64_t degree_start(std::int64_t l) { return l * (4 * l * l - 1) / 3; }

// Where the irreps lie in a row, and which place and sign on e3nn's flat axis each number of a row has.
template <typename T>
struct RotationLayout {
  const std::int32_t* irreps;  // [n_irreps, 4]: degree, channels, whether σ = −1, first entry of `at`
  const std::int32_t* at;      // place in the row of the first channel of each component
  const std::int32_t* index;   // [d]
  const T* sign;               // [d]
  const T* pair_sign;          // [n_pairs]: what the signs of an irrep with σ = −1 make of D
  std::int64_t n_irreps, d, n_pairs;

  RotationLayout(const Array<std::int32_t>& irreps_, const Array<std::int32_t>& at_, const Array<std::int32_t>& index_,
                 const Array<T>& sign_, const Array<T>& pair_sign_)
      : irreps(in(irreps_)),
        at(in(at_)),
        index(in(index_)),
        sign(in(sign_)),
        pair_sign(in(pair_sign_)),
        n_irreps(irreps_.shape(0)),
        d(sign_.shape(0)),
        n_pairs(pair_sign_.shape(0)) {}

  void to_row(const T* x, T* row) const {
    for (std::int64_t i = 0; i < d; ++i) row[i] = sign[i] * x[index[i]];
  }
  void from_row(const T* row, T* x) const {
    for (std::int64_t i = 0; i < d; ++i) x[index[i]] = sign[i] * row[i];
  }
  std::vector<T> all_to_rows(const T* x, std::int64_t n) const {
    std::vector<T> rows(n * d);
#pragma omp parallel for if (n * d > kParallelNumbers)
    for (std::int64_t i = 0; i < n; ++i) to_row(x + i * d, rows.data() + i * d);
    return rows;
  }
  // All irreps of one edge; `flipped` is scratch of n_pairs numbers.
  template <bool kBack>
  void rotate(const T* a, const T* b, const T* wigner, T* flipped, T* y) const {
    for (std::int64_t i = 0; i < n_pairs; ++i) flipped[i] = pair_sign[i] * wigner[i];
    for (std::int64_t r = 0; r < n_irreps; ++r) {
      const std::int32_t* irrep = irreps + 4 * r;
      const T* d_l = (irrep[2] ? flipped : wigner) + degree_start(irrep[0]);
      kRotateIrrep<T, kBack>[irrep[0]](a, b, d_l, at + irrep[3], irrep[1], y);
    }
  }
};

}  // namespace NEXTHAM_ISA
