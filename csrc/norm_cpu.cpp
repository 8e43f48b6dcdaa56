// Layer norm per irrep over rows: the kernel of nextham_kernels/ops/norm, which holds the formula.
// Parallel over edges. A row (392 numbers, 1.6 kB) is read once for its sums and once, from the first-level cache, for
// the result: 2 reads and 1 write of memory per number, 4 flops. The layout is a table of runs (start, stop, group), so
// e3nn's axis and the row of the edge frame are the same kernel; a run is 8 to 32 numbers in NextHAM.
#include <omp.h>

#include <cmath>
#include <vector>

#include "module.h"
#include "rows.h"

namespace NEXTHAM_ISA {
namespace {

struct Runs {
  const std::int32_t* table;  // [n, 3]: start, stop, group
  std::int64_t n;
};

// `centred` says of each group whether it loses its mean; the mean of the others counts as zero.
template <typename T>
struct Statistics {
  std::vector<T> mean, square, scale;
  explicit Statistics(std::int64_t n) : mean(n), square(n), scale(n) {}
};

template <typename T>
void measure(const T* x, Runs runs, const T* count, const T* share, const std::int32_t* centred, T eps, T floor,
             Statistics<T>& s) {
  const std::size_t n_groups = s.square.size();
  for (std::size_t b = 0; b < n_groups; ++b) s.mean[b] = 0;
  for (std::int64_t r = 0; r < runs.n; ++r) {
    const std::int32_t* run = runs.table + 3 * r;
    if (!centred[run[2]]) continue;
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int32_t i = run[0]; i < run[1]; ++i) sum += x[i];
    s.mean[run[2]] += sum / count[run[2]];
  }
  for (std::size_t b = 0; b < n_groups; ++b) s.square[b] = 0;
  for (std::int64_t r = 0; r < runs.n; ++r) {
    const std::int32_t* run = runs.table + 3 * r;
    const T mean = s.mean[run[2]];
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int32_t i = run[0]; i < run[1]; ++i) sum += (x[i] - mean) * (x[i] - mean);
    s.square[run[2]] += sum;
  }
  T whole = 0;
  for (std::size_t b = 0; b < n_groups; ++b) {
    s.square[b] /= count[b];
    whole += share[b] * s.square[b];
  }
  for (std::size_t b = 0; b < n_groups; ++b) s.scale[b] = 1 / std::sqrt(s.square[b] + floor * floor * whole + eps);
}

template <typename T>
void forward(const Array<T>& x_, const Array<T>& weight_, const Array<T>& bias_, const Array<std::int32_t>& runs_,
             const Array<T>& count_, const Array<T>& share_, const Array<std::int32_t>& centred_, T eps, T floor,
             Array<T>& y_) {
  const std::int64_t n = x_.shape(0), d = x_.shape(1), n_groups = count_.shape(0);
  const T *x = in(x_), *weight = in(weight_), *bias = in(bias_), *count = in(count_), *share = in(share_);
  const Runs runs{in(runs_), runs_.shape(0)};
  const std::int32_t* centred = in(centred_);
  T* y = out(y_);
#pragma omp parallel if (n * d > kParallelNumbers)
  {
    Statistics<T> s(n_groups);
#pragma omp for
    for (std::int64_t e = 0; e < n; ++e) {
      const T* row = x + e * d;
      measure(row, runs, count, share, centred, eps, floor, s);
      for (std::int64_t r = 0; r < runs.n; ++r) {
        const std::int32_t* run = runs.table + 3 * r;
        const T scale = s.scale[run[2]], mean = s.mean[run[2]];
#pragma omp simd
        for (std::int32_t i = run[0]; i < run[1]; ++i) y[e * d + i] = (row[i] - mean) * scale * weight[i] + bias[i];
      }
    }
  }
}

// grad_x, and the sums over edges grad_weight [d], grad_bias [d]; every thread sums its own and they are added in
// order.
template <typename T>
void backward(const Array<T>& grad_, const Array<T>& x_, const Array<T>& weight_, const Array<std::int32_t>& runs_,
              const Array<T>& count_, const Array<T>& share_, const Array<std::int32_t>& centred_, T eps, T floor,
              Array<T>& grad_x_, Array<T>& grad_weight_, Array<T>& grad_bias_) {
  const std::int64_t n = x_.shape(0), d = x_.shape(1), n_groups = count_.shape(0);
  const T *grad = in(grad_), *x = in(x_), *weight = in(weight_), *count = in(count_), *share = in(share_);
  const Runs runs{in(runs_), runs_.shape(0)};
  const std::int32_t* centred = in(centred_);
  T *grad_x = out(grad_x_), *grad_weight = out(grad_weight_), *grad_bias = out(grad_bias_);
#pragma omp parallel if (n * d > kParallelNumbers)
  {
    Statistics<T> s(n_groups);
    std::vector<T> pull(n_groups), mean_of_gx(n_groups), own_weight(d, 0), own_bias(d, 0);
#pragma omp for schedule(static)
    for (std::int64_t e = 0; e < n; ++e) {
      const T *row = x + e * d, *g = grad + e * d;
      T* gx = grad_x + e * d;
      measure(row, runs, count, share, centred, eps, floor, s);
      // pull_b = −∂L/∂(s_b + f² s) · 2 = scale³ Σ g w x
      for (std::int64_t b = 0; b < n_groups; ++b) pull[b] = 0;
      for (std::int64_t r = 0; r < runs.n; ++r) {
        const std::int32_t* run = runs.table + 3 * r;
        const T scale = s.scale[run[2]], mean = s.mean[run[2]];
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int32_t i = run[0]; i < run[1]; ++i) {
          const T centre = row[i] - mean;
          sum += g[i] * weight[i] * centre;
          own_weight[i] += g[i] * centre * scale;
          own_bias[i] += g[i];
        }
        pull[run[2]] += sum * scale * scale * scale;
      }
      T whole = 0;
      for (std::int64_t b = 0; b < n_groups; ++b) whole += pull[b];
      whole *= floor * floor;
      for (std::int64_t b = 0; b < n_groups; ++b) mean_of_gx[b] = 0;
      for (std::int64_t r = 0; r < runs.n; ++r) {
        const std::int32_t* run = runs.table + 3 * r;
        const std::int32_t b = run[2];
        const T scale = s.scale[b], mean = s.mean[b], k = (pull[b] + whole * share[b]) / count[b];
        T sum = 0;
#pragma omp simd reduction(+ : sum)
        for (std::int32_t i = run[0]; i < run[1]; ++i) {
          gx[i] = g[i] * weight[i] * scale - (row[i] - mean) * k;
          sum += gx[i];
        }
        mean_of_gx[b] += sum / count[b];
      }
      for (std::int64_t r = 0; r < runs.n; ++r) {
        const std::int32_t* run = runs.table + 3 * r;
        if (!centred[run[2]]) continue;
        for (std::int32_t i = run[0]; i < run[1]; ++i) gx[i] -= mean_of_gx[run[2]];
      }
    }
    // In the order of the threads, so that the same thread count gives the same bits.
#pragma omp for ordered schedule(static, 1)
    for (int t = 0; t < omp_get_num_threads(); ++t) {
#pragma omp ordered
      for (std::int64_t i = 0; i < d; ++i) {
        grad_weight[i] += own_weight[i];
        grad_bias[i] += own_bias[i];
      }
    }
  }
}

template <typename T>
void bind(Module& m) {
  m.def("norm_forward", &forward<T>);
  m.def("norm_backward", &backward<T>);
}

}  // namespace

void bind_norm(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
