// Gate of tiles [d][lane]: what gate_cpu.cpp does for rows.
#pragma once

#include "tiles.h"
#include "vector_math.h"

namespace NEXTHAM_ISA {

template <typename T>
struct Gate {
  const std::int32_t* gate_of;  // which gate scales each number behind the scalars
  std::int64_t n_scalars, n_gates, n_gated;
  T silu, sigmoid;

  // y of one panel; `gates` is scratch of n_gates rows.
  void apply(const T* x, std::int64_t lanes, T* gates, T* y) const {
    constexpr std::int64_t w = kWidth<T>;
    const T* gated = x + (n_scalars + n_gates) * w;
    for (std::int64_t half = 0; half < lanes; half += kLanes<T>) {
      for (std::int64_t i = 0; i < n_scalars; ++i) {
        const Vector<T> u = load(x + i * w + half);
        store(y + i * w + half, silu * u * sigmoid_of_lanes<T>(u));
      }
      for (std::int64_t i = 0; i < n_gates; ++i)
        store(gates + i * w + half, sigmoid * sigmoid_of_lanes<T>(load(x + (n_scalars + i) * w + half)));
      for (std::int64_t i = 0; i < n_gated; ++i)
        store(y + (n_scalars + i) * w + half, load(gated + i * w + half) * load(gates + gate_of[i] * w + half));
    }
  }
};

}  // namespace NEXTHAM_ISA
