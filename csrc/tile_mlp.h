// Layer norm, SiLU and linear maps of tiles [d][lane] of edges; one panel of kWidth lanes behind the other.
#pragma once

#include <algorithm>
#include <cmath>
#include <vector>

#include "matrix_product.h"
#include "tiles.h"
#include "vector_math.h"

namespace NEXTHAM_ISA {

// Panels of tiles of d rows, with their memory.
template <typename T>
struct Tiles {
  std::int64_t d;
  Buffer<T> numbers;

  Tiles(std::int64_t d_, std::int64_t n_panels) : d(d_), numbers(buffer<T>(d_ * kWidth<T> * n_panels)) {}
  T* panel(std::int64_t p) const { return numbers.get() + p * d * kWidth<T>; }
  // From some row on.
  Panels<T> from(std::int64_t row = 0) const { return {numbers.get() + row * kWidth<T>, d * kWidth<T>}; }
  Panels<const T> read(std::int64_t row = 0) const { return {numbers.get() + row * kWidth<T>, d * kWidth<T>}; }
};

// f(panel, lanes there) for n lanes.
template <typename T, typename F>
void each_panel(std::int64_t n_lanes, const F& f) {
  for (std::int64_t p = 0; p * kWidth<T> < n_lanes; ++p) f(p, std::min(kWidth<T>, n_lanes - p * kWidth<T>));
}

template <typename T>
std::int64_t whole_vectors(std::int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

// to = matrix from + bias
template <typename T>
void tile_linear(const Weights<T>& matrix, const T* bias, Panels<const T> from, std::int64_t n_lanes, Panels<T> to) {
  each_panel<T>(n_lanes, [&](std::int64_t p, std::int64_t lanes) {
    for (std::int64_t i = 0; bias && i < matrix.rows; ++i)
      std::fill_n(to.base + p * to.panel + i * kWidth<T>, lanes, bias[i]);
  });
  tile_product<T>(matrix, from, n_lanes, to, bias != nullptr);
}

// n_i = (h_i − mean) inverse of one vector of lanes.
template <typename T>
struct LaneNorm {
  Vector<T> mean, inverse;

  LaneNorm(const T* h, std::int64_t c, T eps) {
    Vector<T> sum{}, odd{}, square{}, odd_square{};
    std::int64_t i = 0;
    for (; i + 2 <= c; i += 2) {
      sum += load(h + i * kWidth<T>);
      odd += load(h + (i + 1) * kWidth<T>);
    }
    if (i < c) sum += load(h + i * kWidth<T>);
    mean = (sum + odd) / static_cast<T>(c);
    for (i = 0; i + 2 <= c; i += 2) {
      const Vector<T> x = load(h + i * kWidth<T>) - mean, y = load(h + (i + 1) * kWidth<T>) - mean;
      square += x * x;
      odd_square += y * y;
    }
    if (i < c) square += (load(h + i * kWidth<T>) - mean) * (load(h + i * kWidth<T>) - mean);
    square = (square + odd_square) / static_cast<T>(c) + eps;
    for (int lane = 0; lane < kLanes<T>; ++lane) inverse[lane] = 1 / std::sqrt(square[lane]);
  }
};

// y = SiLU(weight n + shift) of one panel.
template <typename T>
void norm_silu(const T* h, std::int64_t c, const T* weight, const T* shift, T eps, std::int64_t lanes, T* y) {
  for (std::int64_t half = 0; half < lanes; half += kLanes<T>) {
    const LaneNorm<T> norm(h + half, c, eps);
    for (std::int64_t i = 0; i < c; ++i) {
      const Vector<T> u = (load(h + i * kWidth<T> + half) - norm.mean) * norm.inverse * weight[i] + shift[i];
      store(y + i * kWidth<T> + half, u * sigmoid_of_lanes<T>(u));
    }
  }
}

// Adds to a sum over edges that every channel has, one vector of lanes each.
template <typename T>
void add_to(T* sum, std::int64_t i, Vector<T> x) {
  store(sum + i * kLanes<T>, load(sum + i * kLanes<T>) + x);
}

// v becomes vᵀ ∂y/∂h; where sums are wanted, the gradients of weight and shift are added to them.
template <typename T>
void pull_norm_silu(const T* h, std::int64_t c, const T* weight, const T* shift, T eps, std::int64_t lanes, T* v,
                    T* to_weight = nullptr, T* to_shift = nullptr) {
  for (std::int64_t half = 0; half < lanes; half += kLanes<T>) {
    const LaneNorm<T> norm(h + half, c, eps);
    Vector<T> sum{}, sum_n{};
    for (std::int64_t i = 0; i < c; ++i) {
      const Vector<T> n = (load(h + i * kWidth<T> + half) - norm.mean) * norm.inverse, u = n * weight[i] + shift[i];
      const Vector<T> s = sigmoid_of_lanes<T>(u);
      T* to = v + i * kWidth<T> + half;
      const Vector<T> pulled = load(to) * (s * (1 + u * (1 - s))), a = pulled * weight[i];
      if (to_weight) {
        add_to(to_weight, i, pulled * n);
        add_to(to_shift, i, pulled);
      }
      store(to, a);
      sum += a;
      sum_n += a * n;
    }
    sum /= static_cast<T>(c);
    sum_n /= static_cast<T>(c);
    for (std::int64_t i = 0; i < c; ++i) {
      const Vector<T> n = (load(h + i * kWidth<T> + half) - norm.mean) * norm.inverse;
      T* to = v + i * kWidth<T> + half;
      store(to, norm.inverse * (load(to) - sum - n * sum_n));
    }
  }
}

// The derivative of g = vᵀ ∂y/∂h: t, the gradient by g, becomes that by v, grad_h is that by h, and those of weight and
// shift are added to sums. ⟨t, g⟩ = ⟨v, ẏ⟩, ẏ being the derivative of y along t:
// ṅ = inverse (t − mean t − n mean nt), u̇ = w ṅ, ẏ = silu′ u̇.
template <typename T>
void pull_pulled_norm_silu(const T* h, const T* v, std::int64_t c, const T* weight, const T* shift, T eps,
                           std::int64_t lanes, T* t, T* grad_h, T* to_weight, T* to_shift) {
  constexpr std::int64_t w = kWidth<T>;
  for (std::int64_t half = 0; half < lanes; half += kLanes<T>) {
    const LaneNorm<T> norm(h + half, c, eps);
    const Vector<T> r = norm.inverse;
    Vector<T> mean_t{}, mean_nt{}, mean_a{}, mean_an{}, mean_at{};  // a = ∂⟨v, y⟩/∂n
    for (std::int64_t at = half, i = 0; i < c; ++i, at += w) {
      const Vector<T> n = (load(h + at) - norm.mean) * r, u = n * weight[i] + shift[i], s = sigmoid_of_lanes<T>(u);
      const Vector<T> a = load(v + at) * (s * (1 + u * (1 - s)) * weight[i]), t_i = load(t + at);
      store(grad_h + at, s);
      mean_t += t_i;
      mean_nt += n * t_i;
      mean_a += a;
      mean_an += a * n;
      mean_at += a * t_i;
    }
    for (Vector<T>* mean : {&mean_t, &mean_nt, &mean_a, &mean_an, &mean_at}) *mean /= static_cast<T>(c);
    Vector<T> mean_b{}, mean_bn{};  // b = ∂⟨v, ẏ⟩/∂n
    for (std::int64_t at = half, i = 0; i < c; ++i, at += w) {
      const Vector<T> n = (load(h + at) - norm.mean) * r, u = n * weight[i] + shift[i], s = load(grad_h + at);
      const Vector<T> first = s * (1 + u * (1 - s)), second = s * (1 - s) * (2 + u * (1 - 2 * s));
      const Vector<T> t_i = load(t + at), v_i = load(v + at), along = r * (t_i - mean_t - n * mean_nt);
      const Vector<T> pulled = v_i * second * along * weight[i];
      const Vector<T> b = pulled * weight[i] - r * (v_i * first * weight[i] * mean_nt + t_i * mean_an);
      store(t + at, first * along * weight[i]);
      store(grad_h + at, b);
      add_to(to_weight, i, pulled * n + v_i * first * along);
      add_to(to_shift, i, pulled);
      mean_b += b;
      mean_bn += b * n;
    }
    mean_b /= static_cast<T>(c);
    // The second term is the derivative by `inverse` where it stands in front of ṅ.
    const Vector<T> along_n = mean_bn / static_cast<T>(c) + r * (mean_at - mean_a * mean_t - mean_an * mean_nt);
    for (std::int64_t at = half, i = 0; i < c; ++i, at += w)
      store(grad_h + at, r * (load(grad_h + at) - mean_b - (load(h + at) - norm.mean) * r * along_n));
  }
}

// Layer norm, SiLU, Linear; `back` is the Linear transposed, where someone goes back.
template <typename T>
struct MlpLayer {
  const T *weight, *shift;
  Weights<T> matrix;
  const T* bias;
  Weights<T> back;
};

// Linear, then layers.
template <typename T>
struct Mlp {
  Weights<T> first;
  const T* bias;
  std::vector<MlpLayer<T>> layers;
  T eps;
};

// Tiles of every h_j, the result of the j-th Linear, and of what comes between it and the next.
template <typename T>
struct MlpWork {
  const Mlp<T>& q;
  std::vector<Tiles<T>> h, y;

  MlpWork(const Mlp<T>& q_, std::int64_t n_panels) : q(q_) {
    h.emplace_back(q.first.rows, n_panels);
    for (const auto& layer : q.layers) {
      y.emplace_back(layer.matrix.k, n_panels);
      h.emplace_back(layer.matrix.rows, n_panels);
    }
  }

  // h_j for j < n, of which the last is returned.
  const Tiles<T>& forward(Panels<const T> x, std::int64_t n_lanes, std::size_t n) {
    tile_linear<T>(q.first, q.bias, x, n_lanes, h[0].from());
    for (std::size_t j = 0; j + 1 < n; ++j) {
      const MlpLayer<T>& layer = q.layers[j];
      each_panel<T>(n_lanes, [&](std::int64_t p, std::int64_t lanes) {
        norm_silu(h[j].panel(p), layer.matrix.k, layer.weight, layer.shift, q.eps, lanes, y[j].panel(p));
      });
      tile_linear<T>(layer.matrix, layer.bias, y[j].read(), n_lanes, h[j + 1].from());
    }
    return h[n - 1];
  }
  const Tiles<T>& forward(Panels<const T> x, std::int64_t n_lanes) { return forward(x, n_lanes, h.size()); }
};

}  // namespace NEXTHAM_ISA
