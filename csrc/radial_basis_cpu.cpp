// Gaussian radial basis: the kernel of nextham_kernels/ops/radial_basis, which holds the formula.
// Parallel over edges, vectorised over the Gaussians (64 in NextHAM): one number in and 64 exponentials out for each
// edge. What is below 1e-30 (1e-290) becomes zero: its product with a weight might be denormal, and that costs a matrix
// product ten times its time.
#include <omp.h>

#include "module.h"
#include "rows.h"
#include "vector_math.h"

namespace NEXTHAM_ISA {
namespace {

template <typename T>
T gaussian(T x) {
  constexpr T least = sizeof(T) == 4 ? T(1e-30) : T(1e-290);
  const T y = exp_of(x);
  return y < least ? 0 : y;
}

// y_ec = exp(−(r_e − μ_c)² factor)
template <typename T>
void forward(const Array<T>& distance_, const Array<T>& centre_, T factor, Array<T>& y_) {
  const std::int64_t n = distance_.shape(0), n_centres = centre_.shape(0);
  const T *distance = in(distance_), *centre = in(centre_);
  T* y = out(y_);
#pragma omp parallel for if (n * n_centres > kParallelNumbers)
  for (std::int64_t e = 0; e < n; ++e) {
    const T r = distance[e];
#pragma omp simd
    for (std::int64_t c = 0; c < n_centres; ++c) {
      const T x = r - centre[c];
      y[e * n_centres + c] = gaussian(-x * x * factor);
    }
  }
}

// grad_r = −2 factor Σ_c g_c (r − μ_c) y_c
template <typename T>
void backward(const Array<T>& grad_, const Array<T>& distance_, const Array<T>& centre_, T factor, Array<T>& grad_r_) {
  const std::int64_t n = distance_.shape(0), n_centres = centre_.shape(0);
  const T *grad = in(grad_), *distance = in(distance_), *centre = in(centre_);
  T* grad_r = out(grad_r_);
#pragma omp parallel for if (n * n_centres > kParallelNumbers)
  for (std::int64_t e = 0; e < n; ++e) {
    const T r = distance[e];
    T sum = 0;
#pragma omp simd reduction(+ : sum)
    for (std::int64_t c = 0; c < n_centres; ++c) {
      const T x = r - centre[c];
      sum += grad[e * n_centres + c] * x * gaussian(-x * x * factor);
    }
    grad_r[e] = -2 * factor * sum;
  }
}

template <typename T>
void bind(Module& m) {
  m.def("radial_basis_forward", &forward<T>);
  m.def("radial_basis_backward", &backward<T>);
}

}  // namespace

void bind_radial_basis(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
