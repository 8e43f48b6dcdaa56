// Softmax over rows [n, heads] of one segment, in place.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vector_math.h"

namespace NEXTHAM_ISA {

template <typename T>
void softmax_rows(T* x, std::int64_t n, std::int64_t n_heads) {
  for (std::int64_t h = 0; h < n_heads; ++h) {
    T largest = n ? x[h] : 0;
    for (std::int64_t i = 1; i < n; ++i) largest = std::max(largest, x[i * n_heads + h]);
    for (std::int64_t i = 0; i < n; ++i) x[i * n_heads + h] -= largest;
  }
#pragma omp simd
  for (std::int64_t i = 0; i < n * n_heads; ++i) x[i] = exp_of(x[i]);
  for (std::int64_t h = 0; h < n_heads; ++h) {
    T sum = 0;
    for (std::int64_t i = 0; i < n; ++i) sum += x[i * n_heads + h];
    for (std::int64_t i = 0; i < n; ++i) x[i * n_heads + h] *= 1 / sum;
  }
}

}  // namespace NEXTHAM_ISA
