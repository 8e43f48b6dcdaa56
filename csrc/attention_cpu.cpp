// Softmax over the segments of edges: the kernel of nextham_kernels/ops/attention, which holds the formula.
// Parallel over segments, and over all numbers at once for the exponentials, so that those vectorise whatever the
// number of heads (4 in NextHAM). Edges of a segment are gathered by counting, in their order, so the sums have one
// order for any number of threads. 4 logits in and 4 weights out for each edge, two passes over memory; 4 exponentials.
#include <omp.h>

#include <vector>

#include "module.h"
#include "rows.h"
#include "vector_math.h"

namespace NEXTHAM_ISA {
namespace {

// The edges of segment s are edge[start[s]] … edge[start[s + 1] − 1], ascending.
struct Segments {
  std::vector<std::int64_t> start, edge;
  Segments(const std::int64_t* segment, std::int64_t n_edges, std::int64_t n) : start(n + 1, 0), edge(n_edges) {
    for (std::int64_t e = 0; e < n_edges; ++e) ++start[segment[e] + 1];
    for (std::int64_t s = 0; s < n; ++s) start[s + 1] += start[s];
    std::vector<std::int64_t> next(start.begin(), start.end() - 1);
    for (std::int64_t e = 0; e < n_edges; ++e) edge[next[segment[e]]++] = e;
  }
};

// To be called by all threads of a parallel region.
template <typename T>
void softmax(const T* x, const Segments& segments, std::int64_t n_segments, std::int64_t n_edges, std::int64_t n_heads,
             T* y, std::vector<T>& sum) {
#pragma omp for
  for (std::int64_t s = 0; s < n_segments; ++s)
    for (std::int64_t h = 0; h < n_heads; ++h) {
      const std::int64_t first = segments.start[s], last = segments.start[s + 1];
      if (first == last) continue;
      T largest = x[segments.edge[first] * n_heads + h];
      for (std::int64_t i = first; i < last; ++i) {
        const T value = x[segments.edge[i] * n_heads + h];
        largest = value > largest ? value : largest;
      }
      for (std::int64_t i = first; i < last; ++i) {
        const std::int64_t at = segments.edge[i] * n_heads + h;
        y[at] = x[at] - largest;
      }
    }
#pragma omp for simd
  for (std::int64_t i = 0; i < n_edges * n_heads; ++i) y[i] = exp_of(y[i]);
#pragma omp for
  for (std::int64_t s = 0; s < n_segments; ++s) {
    for (std::int64_t h = 0; h < n_heads; ++h) sum[h] = 0;
    for (std::int64_t i = segments.start[s]; i < segments.start[s + 1]; ++i)
      for (std::int64_t h = 0; h < n_heads; ++h) sum[h] += y[segments.edge[i] * n_heads + h];
    for (std::int64_t h = 0; h < n_heads; ++h) sum[h] = 1 / sum[h];
    for (std::int64_t i = segments.start[s]; i < segments.start[s + 1]; ++i)
      for (std::int64_t h = 0; h < n_heads; ++h) y[segments.edge[i] * n_heads + h] *= sum[h];
  }
}

template <typename T>
void forward(const Array<T>& x_, const Array<std::int64_t>& segment_, std::int64_t n_segments, Array<T>& y_) {
  const std::int64_t n_edges = x_.shape(0), n_heads = x_.shape(1);
  const T* x = in(x_);
  const std::int64_t* segment = in(segment_);
  T* y = out(y_);
  const Segments segments(segment, n_edges, n_segments);
#pragma omp parallel if (n_edges * n_heads > kParallelNumbers)
  {
    std::vector<T> sum(n_heads);
    softmax(x, segments, n_segments, n_edges, n_heads, y, sum);
  }
}

// grad_x = y (g − Σ y g over the segment).
template <typename T>
void backward(const Array<T>& grad_, const Array<T>& x_, const Array<std::int64_t>& segment_, std::int64_t n_segments,
              Array<T>& grad_x_) {
  const std::int64_t n_edges = x_.shape(0), n_heads = x_.shape(1);
  const T *x = in(x_), *grad = in(grad_);
  const std::int64_t* segment = in(segment_);
  T* y = out(grad_x_);
  const Segments segments(segment, n_edges, n_segments);
#pragma omp parallel if (n_edges * n_heads > kParallelNumbers)
  {
    std::vector<T> sum(n_heads);
    softmax(x, segments, n_segments, n_edges, n_heads, y, sum);
#pragma omp for
    for (std::int64_t s = 0; s < n_segments; ++s) {
      for (std::int64_t h = 0; h < n_heads; ++h) sum[h] = 0;
      for (std::int64_t i = segments.start[s]; i < segments.start[s + 1]; ++i)
        for (std::int64_t h = 0; h < n_heads; ++h) {
          const std::int64_t at = segments.edge[i] * n_heads + h;
          sum[h] += y[at] * grad[at];
        }
      for (std::int64_t i = segments.start[s]; i < segments.start[s + 1]; ++i)
        for (std::int64_t h = 0; h < n_heads; ++h) {
          const std::int64_t at = segments.edge[i] * n_heads + h;
          y[at] *= grad[at] - sum[h];
        }
    }
  }
}

template <typename T>
void bind(Module& m) {
  m.def("segment_softmax_forward", &forward<T>);
  m.def("segment_softmax_backward", &backward<T>);
}

}  // namespace

void bind_attention(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
