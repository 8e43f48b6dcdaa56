// TraceGrad's update of panels of edges: one sweep forward and one back; nextham_kernels/ops/tracegrad/closed_form.py
// holds the formulas.
#pragma once

#include <cmath>
#include <vector>

#include "gram.h"
#include "tile_mlp.h"

namespace NEXTHAM_ISA {

template <typename T>
struct TraceGrad {
  GramLayout layout;
  std::int64_t n_pairs, d;
  Mlp<T> mlp;        // of the Gram matrices, the forms A transposed being its first matrix
  Weights<T> forms;  // A [n_pairs, c]
  const T* last;     // the gradient of Σ z by y_k−1 (or h_0)
  T residual;
};

// A matrix [rows, k] of any strides, packed by all threads of a parallel region.
template <typename T>
struct Packing {
  Strided<T> from;
  std::int64_t rows, k;
  Buffer<T> to;

  Packing(Strided<T> from_, std::int64_t rows_, std::int64_t k_)
      : from(from_), rows(rows_), k(k_), to(buffer<T>(weights_size<T>(rows_, k_))) {}
  Weights<T> weights() const { return {to.get(), rows, k}; }
  void run() const { pack_weights<T>(from, rows, k, to.get()); }
};

// What one thread works with: tiles of x, of C x and then of the result, of gram and then of C, and of the MLP, whose
// y_j become v_j on the way back.
template <typename T>
struct TraceGradWork {
  static constexpr std::int64_t w = kWidth<T>;
  const TraceGrad<T>& q;
  std::int64_t n_lanes = 0;
  Tiles<T> x, y, pairs;
  MlpWork<T> mlp;
  std::vector<Tiles<T>>& v;

  TraceGradWork(const TraceGrad<T>& q_, std::int64_t n_panels)
      : q(q_), x(q.d, n_panels), y(q.d, n_panels), pairs(q.n_pairs, n_panels), mlp(q.mlp, n_panels), v(mlp.y) {
    if (v.empty()) v.emplace_back(q.forms.k, n_panels);
  }
  TraceGradWork(const TraceGradWork&) = delete;

  // h_j for j < n.
  void forward(std::size_t n) {
    each_panel<T>(n_lanes, [&](std::int64_t p, std::int64_t lanes) {
      T* g = pairs.panel(p);
      for (const GramBlock* b = q.layout.block; b < q.layout.block + q.layout.n_blocks; g += b->pairs() * w, ++b)
        for (std::int64_t half = 0; half < lanes; half += kLanes<T>) {
          const T* from = x.panel(p) + half;
          sum_block<true>(from, from, *b, q.layout.at + b->first, w, g + half);
        }
    });
    mlp.forward(pairs.read(), n_lanes, n);
  }

  // C x of the sweep back; f(j, v_j) sees each v_j.
  template <typename F>
  void back(const F& f) {
    const Tiles<T>& end = v.back();
    each_panel<T>(n_lanes, [&](std::int64_t p, std::int64_t lanes) {
      for (std::int64_t i = 0; i < end.d; ++i) std::fill_n(end.panel(p) + i * w, lanes, q.last[i]);
    });
    const auto& layers = q.mlp.layers;
    for (std::size_t j = layers.size(); j-- > 0;) {
      const MlpLayer<T>& layer = layers[j];
      f(j, v[j]);
      each_panel<T>(n_lanes, [&](std::int64_t p, std::int64_t lanes) {
        pull_norm_silu(mlp.h[j].panel(p), layer.matrix.k, layer.weight, layer.shift, q.mlp.eps, lanes, v[j].panel(p));
      });
      if (j) tile_product<T>(layers[j - 1].back, v[j].read(), n_lanes, v[j - 1].from());
    }
    tile_product<T>(q.forms, v[0].read(), n_lanes, pairs.from());
    each_panel<T>(n_lanes, [&](std::int64_t p, std::int64_t lanes) {
      const T* c = pairs.panel(p);
      for (const GramBlock* b = q.layout.block; b < q.layout.block + q.layout.n_blocks; c += b->pairs() * w, ++b)
        for (std::int64_t half = 0; half < lanes; half += kLanes<T>)
          apply_block(c + half, x.panel(p) + half, *b, q.layout.at + b->first, w, y.panel(p) + half);
    });
  }

  // y = x + s g, g being 2 C x, and s of each lane.
  void step(T* s) {
    each_panel<T>(n_lanes, [&](std::int64_t p, std::int64_t lanes) {
      for (std::int64_t half = 0; half < lanes; half += kLanes<T>) {
        const T* from = x.panel(p) + half;
        T* to = y.panel(p) + half;
        Vector<T> xx{}, yy{}, scale;
        for (std::int64_t i = 0; i < q.d * w; i += w) {
          xx += load(from + i) * load(from + i);
          yy += load(to + i) * load(to + i);
        }
        for (int lane = 0; lane < kLanes<T>; ++lane)
          scale[lane] = q.residual * std::sqrt(xx[lane]) / (2 * std::sqrt(yy[lane]) + T(1e-5));
        store(s + p * w + half, scale);
        for (std::int64_t i = 0; i < q.d * w; i += w) store(to + i, load(from + i) + 2 * scale * load(to + i));
      }
    });
  }

  // The whole update, without invariants.
  void update(T* s) {
    forward(std::max<std::size_t>(1, q.mlp.layers.size()));
    back([](std::size_t, const Tiles<T>&) {});
    step(s);
  }
};

}  // namespace NEXTHAM_ISA
