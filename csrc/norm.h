// Layer norm per irrep of tiles [d][lane]: what norm_cpu.cpp does for rows.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "rows.h"
#include "tiles.h"

namespace NEXTHAM_ISA {

template <typename T>
struct NormTable {
  const std::int32_t* run;  // [n_runs, 3]: start, stop, group
  std::int64_t n_runs, n_groups;
  const T *count, *share;
  const std::int32_t* centred;  // whether a group loses its mean
  T eps, floor;

  // y of one panel; `sums` is scratch of 2 n_groups vectors of lanes.
  void apply(const T* x, const T* weight, const T* bias, std::int64_t lanes, T* sums, T* y) const {
    constexpr std::int64_t w = kWidth<T>, v = kLanes<T>;
    for (std::int64_t half = 0; half < lanes; half += v) {
      T *means = sums, *squares = sums + n_groups * v;
      std::fill_n(sums, 2 * n_groups * v, T(0));
      each_run([&](std::int32_t first, std::int32_t last, std::int32_t g) {
        if (!centred[g]) return;
        Vector<T> sum{};
        for (std::int32_t i = first; i < last; ++i) sum += load(x + i * w + half);
        store(means + g * v, load(means + g * v) + sum / count[g]);
      });
      each_run([&](std::int32_t first, std::int32_t last, std::int32_t g) {
        const Vector<T> mean = load(means + g * v);
        Vector<T> sum{};
        for (std::int32_t i = first; i < last; ++i) {
          const Vector<T> c = load(x + i * w + half) - mean;
          sum += c * c;
        }
        store(squares + g * v, load(squares + g * v) + sum);
      });
      Vector<T> whole{};
      for (std::int64_t g = 0; g < n_groups; ++g) {
        store(squares + g * v, load(squares + g * v) / count[g]);
        whole += share[g] * load(squares + g * v);
      }
      const Vector<T> least = floor * floor * whole + eps;
      for (std::int64_t g = 0; g < n_groups; ++g)
        for (int lane = 0; lane < v; ++lane) {
          T& s = squares[g * v + lane];
          s = 1 / std::sqrt(s + least[lane]);
        }
      each_run([&](std::int32_t first, std::int32_t last, std::int32_t g) {
        const Vector<T> mean = load(means + g * v), scale = load(squares + g * v);
        for (std::int32_t i = first; i < last; ++i)
          store(y + i * w + half, (load(x + i * w + half) - mean) * scale * weight[i] + bias[i]);
      });
    }
  }

 private:
  template <typename F>
  void each_run(const F& f) const {
    for (const std::int32_t* r = run; r < run + 3 * n_runs; r += 3) f(r[0], r[1], r[2]);
  }
};

}  // namespace NEXTHAM_ISA
