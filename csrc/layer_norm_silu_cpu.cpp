// Layer norm and SiLU over rows, their pullback, and its derivative: the kernels of
// nextham_kernels/ops/layer_norm_silu, which holds the formulas.
// Parallel over edges. A row (256 numbers, 1 kB, in NextHAM) stays in the first-level cache from its sums to its
// result: 88 ns per edge forward (AVX-512, float32, one core), of which the sums take 28 and the exponential most of
// the rest.
#include <omp.h>

#include <cmath>
#include <vector>

#include "module.h"
#include "rows.h"
#include "vector_math.h"

namespace NEXTHAM_ISA {
namespace {

// n_i = (h_i - mean) inverse
template <typename T>
struct Unit {
  T mean = 0, inverse = 0;
  Unit(const T* h, std::int64_t c, T eps) {
#pragma omp simd reduction(+ : mean)
    for (std::int64_t i = 0; i < c; ++i) mean += h[i];
    mean /= c;
    T square = 0;
#pragma omp simd reduction(+ : square)
    for (std::int64_t i = 0; i < c; ++i) square += (h[i] - mean) * (h[i] - mean);
    inverse = 1 / std::sqrt(square / c + eps);
  }
};

template <typename T>
void forward(const Array<T>& h_, const Array<T>& weight_, const Array<T>& bias_, T eps, Array<T>& y_) {
  const std::int64_t n = h_.shape(0), c = h_.shape(1);
  const T *h = in(h_), *weight = in(weight_), *bias = in(bias_);
  T* y = out(y_);
#pragma omp parallel for schedule(static) if (n * c > kParallelNumbers)
  for (std::int64_t e = 0; e < n; ++e) {
    const T* row = h + e * c;
    T* result = y + e * c;
    const Unit<T> unit(row, c, eps);
#pragma omp simd
    for (std::int64_t i = 0; i < c; ++i) {
      const T u = (row[i] - unit.mean) * unit.inverse * weight[i] + bias[i];
      result[i] = u * sigmoid_of(u);
    }
  }
}

// Sums over edges of what every thread has, in the order of the threads, so that the same thread count gives the same
// bits. Called by all threads.
template <typename T>
void add_in_order(const std::vector<T>& own, T* sum) {
#pragma omp for ordered schedule(static, 1)
  for (int t = 0; t < omp_get_num_threads(); ++t) {
#pragma omp ordered
    for (std::size_t i = 0; i < own.size(); ++i) sum[i] += own[i];
  }
}

// grad_h = vᵀ ∂y/∂h; with kSums also the sums over edges of the gradients of weight and bias.
template <bool kSums, typename T>
void pull(const Array<T>& v_, const Array<T>& h_, const Array<T>& weight_, const Array<T>& bias_, T eps,
          Array<T>& grad_h_, T* grad_weight, T* grad_bias) {
  const std::int64_t n = h_.shape(0), c = h_.shape(1);
  const T *all_v = in(v_), *h = in(h_), *weight = in(weight_), *bias = in(bias_);
  T* grad_h = out(grad_h_);
#pragma omp parallel if (n * c > kParallelNumbers)
  {
    std::vector<T> own_weight(kSums ? c : 0), own_bias(kSums ? c : 0);
    T *to_weight = own_weight.data(), *to_bias = own_bias.data();
#pragma omp for schedule(static)
    for (std::int64_t e = 0; e < n; ++e) {
      const T *row = h + e * c, *v = all_v + e * c;
      T* a = grad_h + e * c;  // ∂/∂n, then the result
      const Unit<T> unit(row, c, eps);
      T sum_a = 0, sum_an = 0;
#pragma omp simd reduction(+ : sum_a, sum_an)
      for (std::int64_t i = 0; i < c; ++i) {
        const T x = (row[i] - unit.mean) * unit.inverse, u = x * weight[i] + bias[i], s = sigmoid_of(u);
        const T pulled = v[i] * s * (1 + u * (1 - s));
        if constexpr (kSums) {
          to_weight[i] += pulled * x;
          to_bias[i] += pulled;
        }
        a[i] = pulled * weight[i];
        sum_a += a[i];
        sum_an += a[i] * x;
      }
      sum_a /= c;
      sum_an /= c;
#pragma omp simd
      for (std::int64_t i = 0; i < c; ++i) {
        a[i] = unit.inverse * (a[i] - sum_a - (row[i] - unit.mean) * unit.inverse * sum_an);
      }
    }
    if constexpr (kSums) {
      add_in_order(own_weight, grad_weight);
      add_in_order(own_bias, grad_bias);
    }
  }
}

template <typename T>
void vjp(const Array<T>& v, const Array<T>& h, const Array<T>& weight, const Array<T>& bias, T eps, Array<T>& grad_h) {
  pull<false, T>(v, h, weight, bias, eps, grad_h, nullptr, nullptr);
}

template <typename T>
void backward(const Array<T>& grad, const Array<T>& h, const Array<T>& weight, const Array<T>& bias, T eps,
              Array<T>& grad_h, Array<T>& grad_weight, Array<T>& grad_bias) {
  pull<true, T>(grad, h, weight, bias, eps, grad_h, out(grad_weight), out(grad_bias));
}

// The derivative of ⟨t, vjp(v, h)⟩ = ⟨v, ẏ⟩, ẏ being the derivative of y along t:
// ṅ = inverse (t − mean t − n mean nt), u̇ = w ṅ, ẏ = silu′ u̇ = grad_v.
template <typename T>
void vjp_backward(const Array<T>& t_, const Array<T>& v_, const Array<T>& h_, const Array<T>& weight_,
                  const Array<T>& bias_, T eps, Array<T>& grad_v_, Array<T>& grad_h_, Array<T>& grad_weight_,
                  Array<T>& grad_bias_) {
  const std::int64_t n = h_.shape(0), c = h_.shape(1);
  const T *all_t = in(t_), *all_v = in(v_), *h = in(h_), *weight = in(weight_), *bias = in(bias_);
  T *all_grad_v = out(grad_v_), *all_grad_h = out(grad_h_);
  T *grad_weight = out(grad_weight_), *grad_bias = out(grad_bias_);
#pragma omp parallel if (n * c > kParallelNumbers)
  {
    std::vector<T> own_weight(c), own_bias(c), sigmoid(c);
    T *to_weight = own_weight.data(), *to_bias = own_bias.data(), *sigma = sigmoid.data();
#pragma omp for schedule(static)
    for (std::int64_t e = 0; e < n; ++e) {
      const T *row = h + e * c, *t = all_t + e * c, *v = all_v + e * c;
      T *grad_v = all_grad_v + e * c, *grad_h = all_grad_h + e * c;
      const Unit<T> unit(row, c, eps);
      T mean_t = 0, mean_nt = 0, mean_a = 0, mean_an = 0, mean_at = 0;  // a = ∂⟨v, y⟩/∂n
#pragma omp simd reduction(+ : mean_t, mean_nt, mean_a, mean_an, mean_at)
      for (std::int64_t i = 0; i < c; ++i) {
        const T x = (row[i] - unit.mean) * unit.inverse, u = x * weight[i] + bias[i], s = sigmoid_of(u);
        const T a = v[i] * s * (1 + u * (1 - s)) * weight[i];
        sigma[i] = s;
        mean_t += t[i];
        mean_nt += x * t[i];
        mean_a += a;
        mean_an += a * x;
        mean_at += a * t[i];
      }
      mean_t /= c;
      mean_nt /= c;
      mean_a /= c;
      mean_an /= c;
      mean_at /= c;
      const T r = unit.inverse;
      T mean_b = 0, mean_bn = 0;  // b = ∂⟨v, ẏ⟩/∂n
#pragma omp simd reduction(+ : mean_b, mean_bn)
      for (std::int64_t i = 0; i < c; ++i) {
        const T x = (row[i] - unit.mean) * r, u = x * weight[i] + bias[i], s = sigma[i];
        const T first = s * (1 + u * (1 - s)), second = s * (1 - s) * (2 + u * (1 - 2 * s));
        const T along = r * (t[i] - mean_t - x * mean_nt), pulled = v[i] * second * along * weight[i];
        const T b = pulled * weight[i] - r * (v[i] * first * weight[i] * mean_nt + t[i] * mean_an);
        grad_v[i] = first * along * weight[i];
        to_weight[i] += pulled * x + v[i] * first * along;
        to_bias[i] += pulled;
        grad_h[i] = b;
        mean_b += b;
        mean_bn += b * x;
      }
      mean_b /= c;
      // The second term is the derivative by `inverse` where it stands in front of ṅ.
      const T along_n = mean_bn / c + r * (mean_at - mean_a * mean_t - mean_an * mean_nt);
#pragma omp simd
      for (std::int64_t i = 0; i < c; ++i) {
        grad_h[i] = r * (grad_h[i] - mean_b - (row[i] - unit.mean) * r * along_n);
      }
    }
    add_in_order(own_weight, grad_weight);
    add_in_order(own_bias, grad_bias);
  }
}

template <typename T>
void bind(Module& m) {
  m.def("layer_norm_silu_forward", &forward<T>);
  m.def("layer_norm_silu_backward", &backward<T>);
  m.def("layer_norm_silu_vjp", &vjp<T>);
  m.def("layer_norm_silu_vjp_backward", &vjp_backward<T>);
}

}  // namespace

void bind_layer_norm_silu(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
