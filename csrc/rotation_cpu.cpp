// Rotation of node features into the frames of edges and back: the kernels of nextham_kernels/ops/rotation, which holds
// the formulas. Parallel over edges (to the edges) or nodes (back), every sum in a fixed order.
// A row is 392 numbers (1.6 kB); an edge reads two nodes and 165 numbers of D, writes one row and needs 2,152
// multiply-adds. On one core with AVX-512 (EPYC, 512 edges in the second-level cache) that takes 110 ns either way, a
// copy of the row 29 ns. Channels are contiguous in rows, so a vector is a run of channels of one component; each irrep
// is cut into runs of 16, 8, 4, 2 and 1 (as the registers allow), so no multiplicity needs padding or masks. On e3nn's
// flat axis components are contiguous instead: such features are permuted, number by number, before or after.
#include <omp.h>

#include <array>
#include <cstring>
#include <utility>
#include <vector>

#include "module.h"
#include "rotation.h"

namespace NEXTHAM_ISA {
namespace {

// ∂L/∂D_ki += Σ_u s_k g_ku x_ui of one irrep, g in a row with its signs s, x [mul, n] on e3nn's flat axis. A vector is
// a run of components i, the last of which may reach beyond the irrep: x needs kLanes numbers more, of any
// value.
template <typename T, int L>
void outer_irrep(const T* g, const T* sign, const T* x, const std::int32_t* at, std::int32_t mul, T* grad) {
  constexpr int n = 2 * L + 1, w = kLanes<T>, padded = (n + w - 1) / w * w;
  using V = typename Run<T, w>::type;
  for (int first = 0; first < padded; first += w) {
    V sum[n] = {};
    for (std::int32_t u = 0; u < mul; ++u) {
      const V v = load_run<V>(x + u * n + first);
#pragma GCC unroll 21
      for (int k = 0; k < n; ++k) sum[k] += g[at[k] + u] * v;
    }
    for (int k = 0; k < n; ++k)
      for (int i = first; i < n && i < first + w; ++i) grad[k * n + i] += sign[at[k]] * sum[k][i - first];
  }
}

template <typename T>
using OuterIrrep = void (*)(const T*, const T*, const T*, const std::int32_t*, std::int32_t, T*);
template <typename T, std::size_t... L>
constexpr std::array<OuterIrrep<T>, sizeof...(L)> outers(std::index_sequence<L...>) {
  return {outer_irrep<T, int(L)>...};
}
template <typename T>
constexpr auto kOuterIrrep = outers<T>(Degrees());

// Edges grouped by node: those of node n are order[first[n]] ... order[first[n + 1] - 1], ascending; an empty `order`
// means 0, 1, 2 ... A counting sort, and only a count where the index is sorted already.
struct Groups {
  std::vector<std::int64_t> first, order;

  Groups(const std::int64_t* index, std::int64_t n_edges, std::int64_t n_nodes) : first(n_nodes + 1, 0) {
    bool sorted = true;
    for (std::int64_t e = 0; e < n_edges; ++e) {
      ++first[index[e] + 1];
      sorted &= e == 0 || index[e - 1] <= index[e];
    }
    for (std::int64_t n = 0; n < n_nodes; ++n) first[n + 1] += first[n];
    if (sorted) return;
    order.resize(n_edges);
    std::vector<std::int64_t> next(first.begin(), first.end() - 1);
    for (std::int64_t e = 0; e < n_edges; ++e) order[next[index[e]]++] = e;
  }
};

// A target without nodes is left out.
template <typename T>
void to_edges(const Array<T>& source_, const Array<T>& target_, const Array<T>& wigner_,
              const Array<std::int64_t>& src_, const Array<std::int64_t>& dst_, const Array<std::int32_t>& irreps_,
              const Array<std::int32_t>& at_, const Array<std::int32_t>& index_, const Array<T>& sign_,
              const Array<T>& pair_sign_, bool flat, Array<T>& rows_) {
  const std::int64_t n_source = source_.shape(0), n_target = target_.shape(0);
  const std::int64_t n_edges = rows_.shape(0), d = rows_.shape(1), w = wigner_.shape(1);
  const RotationLayout<T> layout(irreps_, at_, index_, sign_, pair_sign_);
  const T *source = in(source_), *target = n_target ? in(target_) : nullptr, *wigner = in(wigner_);
  const std::int64_t *src = in(src_), *dst = in(dst_);
  T* rows = out(rows_);
  // Nodes that serve several edges are permuted once, all of them.
  const bool each = flat && n_source + n_target >= n_edges;
  std::vector<T> source_rows, target_rows;
  if (flat && !each) {
    source_rows = layout.all_to_rows(source, n_source);
    source = source_rows.data();
    target_rows = layout.all_to_rows(target, n_target);
    if (target) target = target_rows.data();
  }
#pragma omp parallel if (n_edges * d > kParallelNumbers)
  {
    std::vector<T> flipped(layout.n_pairs), own_source(each ? d : 0), own_target(each ? d : 0);
#pragma omp for schedule(static)
    for (std::int64_t e = 0; e < n_edges; ++e) {
      const T *a = source + src[e] * d, *b = target ? target + dst[e] * d : nullptr;
      if (each) {
        layout.to_row(a, own_source.data());
        a = own_source.data();
        if (b) layout.to_row(b, own_target.data());
        if (b) b = own_target.data();
      }
      layout.template rotate<false>(a, b, wigner + e * w, flipped.data(), rows + e * d);
    }
  }
}

template <typename T>
void to_nodes(const Array<T>& rows_, const Array<T>& wigner_, const Array<std::int64_t>& dst_,
              const Array<std::int32_t>& irreps_, const Array<std::int32_t>& at_, const Array<std::int32_t>& index_,
              const Array<T>& sign_, const Array<T>& pair_sign_, bool flat, Array<T>& nodes_) {
  const std::int64_t n_edges = rows_.shape(0), d = rows_.shape(1), w = wigner_.shape(1), n_nodes = nodes_.shape(0);
  const RotationLayout<T> layout(irreps_, at_, index_, sign_, pair_sign_);
  const T *rows = in(rows_), *wigner = in(wigner_);
  const std::int64_t* dst = in(dst_);
  T* nodes = out(nodes_);
  const Groups groups(dst, n_edges, n_nodes);
#pragma omp parallel if (n_edges * d > kParallelNumbers)
  {
    std::vector<T> flipped(layout.n_pairs), own(flat ? d : 0);
    // Guided: nodes have different numbers of edges. Which thread sums a node does not change its sum.
#pragma omp for schedule(guided)
    for (std::int64_t n = 0; n < n_nodes; ++n) {
      T* sum = flat ? own.data() : nodes + n * d;
      std::memset(sum, 0, d * sizeof(T));
      for (std::int64_t i = groups.first[n]; i < groups.first[n + 1]; ++i) {
        const std::int64_t e = groups.order.empty() ? i : groups.order[i];
        if (!groups.order.empty() && i + 1 < n_edges) {  // 570 → 190 ns per edge where rows come from memory
          fetch(rows + groups.order[i + 1] * d, d);
          fetch(wigner + groups.order[i + 1] * w, layout.n_pairs);
        }
        layout.template rotate<true>(rows + e * d, nullptr, wigner + e * w, flipped.data(), sum);
      }
      if (flat) layout.from_row(sum, nodes + n * d);
    }
  }
}

// ∂L/∂D of both: the outer product of an edge's row (or its gradient) and its nodes' features (or theirs).
template <typename T>
void grad_wigner(const Array<T>& rows_, const Array<T>& source_, const Array<T>& target_,
                 const Array<std::int64_t>& src_, const Array<std::int64_t>& dst_, const Array<std::int32_t>& irreps_,
                 const Array<std::int32_t>& at_, const Array<std::int32_t>& index_, const Array<T>& sign_,
                 const Array<T>& pair_sign_, bool flat, Array<T>& grad_) {
  const std::int64_t n_edges = rows_.shape(0), d = rows_.shape(1), w = grad_.shape(1);
  const RotationLayout<T> layout(irreps_, at_, index_, sign_, pair_sign_);
  const T *rows = in(rows_), *source = in(source_), *target = target_.shape(0) ? in(target_) : nullptr;
  const std::int64_t *src = in(src_), *dst = in(dst_);
  T* grad = out(grad_);
#pragma omp parallel if (n_edges * d > kParallelNumbers)
  {
    std::vector<T> row(d), x(d + kLanes<T>, 0);
#pragma omp for schedule(static)
    for (std::int64_t e = 0; e < n_edges; ++e) {
      const T *a = source + src[e] * d, *b = target ? target + dst[e] * d : nullptr;
      T* sum = flat ? x.data() : row.data();
      for (std::int64_t i = 0; i < d; ++i) sum[i] = b ? a[i] + b[i] : a[i];
      if (!flat) layout.from_row(sum, x.data());
      std::memset(grad + e * w, 0, w * sizeof(T));
      const T* block = x.data();
      for (std::int64_t r = 0; r < layout.n_irreps; ++r) {
        const std::int32_t* irrep = layout.irreps + 4 * r;
        T* grad_l = grad + e * w + degree_start(irrep[0]);
        kOuterIrrep<T>[irrep[0]](rows + e* d, layout.sign, block, layout.at + irrep[3], irrep[1], grad_l);
        block += irrep[1] * (2 * irrep[0] + 1);
      }
    }
  }
}

template <typename T>
void bind(Module& m) {
  m.def("rotate_to_edges", &to_edges<T>);
  m.def("rotate_to_nodes", &to_nodes<T>);
  m.def("rotation_grad_wigner", &grad_wigner<T>);
}

}  // namespace

void bind_rotation(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
