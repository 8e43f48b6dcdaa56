// Sums of the tensor product with the harmonics of the edge over tiles of edges; edge_tensor_product_cpu.cpp says why
// they are done this way.
#pragma once

#include <algorithm>

#include "rows.h"
#include "tiles.h"

namespace NEXTHAM_ISA {

// Outputs summed at once: with two vectors each they fill half of the registers, which is what hides the latency.
constexpr int kOutputs = kVectorBytes == 64 ? 8 : 4;

// Channels of one irrep and one |m| of the result: where they lie, and what they sum over.
struct Part {
  std::int32_t term, n_terms;       // first of its terms, and their number
  std::int32_t n, y;                // outputs, and the first of them (of +m)
  std::int32_t y_stride, x_stride;  // from +m to −m
  std::int32_t components;          // 2, or 1 where m = 0
};
struct Term {
  std::int32_t x, radial;
};

// Distances between the two vectors that share a weight.
struct Pair {
  std::int64_t x, radial, y;
};

// y_n = Σ_k W_kn r_k x_k
template <int N, typename T>
void sum_terms(const Term* term, std::int32_t n_terms, const T* w, const T* x, const T* radial, T* y, Pair pair) {
  Vector<T> a[N], b[N];
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) a[n] = b[n] = Vector<T>{};
  for (const Term* end = term + n_terms; term < end; ++term, w += N) {
    const T *x_k = x + term->x * kWidth<T>, *r_k = radial + term->radial * kWidth<T>;
    const Vector<T> za = load(x_k) * load(r_k), zb = load(x_k + pair.x) * load(r_k + pair.radial);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n) {
      a[n] += w[n] * za;
      b[n] += w[n] * zb;
    }
  }
#pragma GCC unroll 8
  for (int n = 0; n < N; ++n) {
    store(y + n * kWidth<T>, a[n]);
    store(y + n * kWidth<T> + pair.y, b[n]);
  }
}

// f(N, o, half, pair) for outputs o … o + N - 1 of a part; half is the vector of the tile that comes first. A tile has
// one vector of edges or two.
template <typename T, typename F>
void each_pair(const Part& p, std::int64_t lanes, const F& f) {
  constexpr std::int64_t w = kLanes<T>;
  const bool two = p.components == 2;
  const std::int64_t other = lanes > w ? w : 0;  // where m = 0: with one vector the same again
  const Pair pair = two ? Pair{p.x_stride * kWidth<T>, 0, p.y_stride * kWidth<T>} : Pair{other, other, other};
  for (std::int64_t half = 0; half < (two ? lanes : w); half += w)
    for (std::int32_t o = 0; o < p.n; o += kOutputs)
      with_constant<kOutputs>(std::min(kOutputs, p.n - o), [&](auto n) { f(n, o, half, pair); });
}

// What the Python side tabulates.
struct ProductTable {
  const Part* part;
  std::int64_t n_parts;
  const Term* term;
  const std::int32_t* directed;  // places in radial that on-site edges do without
  std::int64_t n_directed;

  ProductTable(const Array<std::int32_t>& parts, const Array<std::int32_t>& terms, const Array<std::int32_t>& directed_)
      : part(reinterpret_cast<const Part*>(in(parts))),
        n_parts(parts.shape(0)),
        term(reinterpret_cast<const Term*>(in(terms))),
        directed(in(directed_)),
        n_directed(directed_.shape(0)) {}

  // Zeros in the radial tile of n edges.
  template <typename T>
  void shut_onsite(const bool* onsite, std::int64_t n, T* radial) const {
    for (std::int64_t lane = 0; lane < std::min(kWidth<T>, n); ++lane) {
      if (!onsite[lane]) continue;
      for (std::int64_t i = 0; i < n_directed; ++i) radial[directed[i] * kWidth<T> + lane] = 0;
    }
  }

  // y of one tile; the weights come in the order of reading, coefficients inside.
  template <typename T>
  void multiply(const T* w, const T* x, const T* radial, std::int64_t lanes, T* y) const {
    for (const Part* p = part; p < part + n_parts; w += p->n_terms * p->n, ++p)
      each_pair<T>(*p, lanes, [&](auto n, std::int32_t o, std::int64_t half, Pair pair) {
        sum_terms<n()>(term + p->term, p->n_terms, w + o * p->n_terms, x + half, radial + half,
                       y + (p->y + o) * kWidth<T> + half, pair);
      });
  }
};

}  // namespace NEXTHAM_ISA
