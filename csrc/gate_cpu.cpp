// Gate over rows: the kernel of nextham_kernels/ops/gate, which holds the formula.
// Parallel over edges. 496 numbers in and 392 out for each edge of NextHAM, 104 exponentials; bound by memory once the
// exponentials are vectorised. The first `skip` numbers of a row are passed over. `gate_of` says of each gated number
// which gate scales it, so both layouts are one kernel.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "module.h"
#include "rows.h"
#include "vector_math.h"

namespace NEXTHAM_ISA {
namespace {

template <typename T>
void forward(const Array<T>& x_, std::int64_t skip, const Array<std::int32_t>& gate_of_, std::int64_t n_scalars,
             std::int64_t n_gates, T silu, T sigmoid, Array<T>& y_) {
  const std::int64_t n = x_.shape(0), d = x_.shape(1), d_out = y_.shape(1), n_gated = gate_of_.shape(0);
  const T* x = in(x_);
  const std::int32_t* gate_of = in(gate_of_);
  T* y = out(y_);
#pragma omp parallel if (n * d > kParallelNumbers)
  {
    std::vector<T> gates(n_gates + 1);
#pragma omp for
    for (std::int64_t e = 0; e < n; ++e) {
      const T *row = x + e * d + skip, *gated = row + n_scalars + n_gates;
      T* result = y + e * d_out;
#pragma omp simd
      for (std::int64_t i = 0; i < n_scalars; ++i) result[i] = silu * row[i] * sigmoid_of(row[i]);
      T* g = gates.data();
#pragma omp simd
      for (std::int64_t i = 0; i < n_gates; ++i) g[i] = sigmoid * sigmoid_of(row[n_scalars + i]);
#pragma omp simd
      for (std::int64_t i = 0; i < n_gated; ++i) result[n_scalars + i] = gated[i] * g[gate_of[i]];
    }
  }
}

template <typename T>
void backward(const Array<T>& grad_, const Array<T>& x_, std::int64_t skip, const Array<std::int32_t>& gate_of_,
              std::int64_t n_scalars, std::int64_t n_gates, T silu, T sigmoid, Array<T>& grad_x_) {
  const std::int64_t n = x_.shape(0), d = x_.shape(1), d_out = grad_.shape(1), n_gated = gate_of_.shape(0);
  const T *x = in(x_), *grad = in(grad_);
  const std::int32_t* gate_of = in(gate_of_);
  T* grad_x = out(grad_x_);
#pragma omp parallel if (n * d > kParallelNumbers)
  {
    std::vector<T> gates(n_gates + 1), pull(n_gates + 1);
#pragma omp for
    for (std::int64_t e = 0; e < n; ++e) {
      const T *row = x + e * d + skip, *gated = row + n_scalars + n_gates, *above = grad + e * d_out;
      T* result = grad_x + e * d + skip;
      std::fill_n(grad_x + e * d, skip, T(0));
#pragma omp simd
      for (std::int64_t i = 0; i < n_scalars; ++i) {
        const T s = sigmoid_of(row[i]);
        result[i] = above[i] * silu * s * (1 + row[i] * (1 - s));
      }
      T *g = gates.data(), *p = pull.data();
#pragma omp simd
      for (std::int64_t i = 0; i < n_gates; ++i) {
        g[i] = sigmoid_of(row[n_scalars + i]);
        p[i] = 0;
      }
      for (std::int64_t i = 0; i < n_gated; ++i) p[gate_of[i]] += above[n_scalars + i] * gated[i];
#pragma omp simd
      for (std::int64_t i = 0; i < n_gates; ++i) result[n_scalars + i] = sigmoid * p[i] * g[i] * (1 - g[i]);
#pragma omp simd
      for (std::int64_t i = 0; i < n_gated; ++i) {
        result[n_scalars + n_gates + i] = sigmoid * g[gate_of[i]] * above[n_scalars + i];
      }
    }
  }
}

template <typename T>
void bind(Module& m) {
  m.def("gate_forward", &forward<T>);
  m.def("gate_backward", &backward<T>);
}

}  // namespace

void bind_gate(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
