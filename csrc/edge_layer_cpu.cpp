// One layer of edges without a step through memory: the kernel of nextham_kernels/ops/edge_layer, which holds the
// formulas and says what the weights are.
//
// Edges are lanes of tiles [number][lane] from the first norm to the update, up to kPanels panels of two vectors at a
// time, so that every product is packed weights times tile and nothing is transposed between steps. Parallel over such
// blocks of edges; then, after the last block, over groups of whole atoms for the attention sums, each of which one
// thread adds up in the order of its edges: the same bits for any number of threads.
// NextHAM, per edge: 1.1 million multiply-adds; 6.4 kB read (two nodes, the edge, its gated value again) and 3.2 kB
// written; the weights, 3.5 MB, are read from the third-level cache once per block.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "edge_tensor_product.h"
#include "layer_weights.h"
#include "module.h"
#include "rotation.h"
#include "softmax.h"
#include "tracegrad.h"

namespace NEXTHAM_ISA {
namespace {

constexpr std::int64_t kPanels = 4;

// From edge features to gated values and logits.
template <typename T>
struct Values {
  Norm<T> norm;
  RotationLayout<T> rotation;
  TileMap<T> merge;
  Mlp<T> radial;
  ProductTable product;
  const T *product_weight, *product_bias;
  const std::int32_t* bias_column;
  std::int64_t n_bias, d, d_product, n_alpha;
  Mlp<T> logits;
  Gate<T> gate;
};

struct Numbers {
  double norm_eps, floor, radial_eps, logits_eps, trace_eps, residual, silu, sigmoid;
};

template <typename T>
Values<T> read_values(Weighing<T> weights, Tabling tables, const Numbers& numbers) {
  const Norm<T> norm = read_norm<T>(weights, tables, numbers.norm_eps, numbers.floor);
  const auto &irreps = tables.take(), &at = tables.take(), &index = tables.take();
  const auto &sign = weights.take(), &pair_sign = weights.take();
  const LinearTable merge = read_table(tables);
  const TileMap<T> merge_map = read_map<T>(weights, merge, 0);
  const Mlp<T> radial = read_mlp<T>(weights, tables, numbers.radial_eps, false);
  const auto &parts = tables.take(), &terms = tables.take(), &directed = tables.take(), &columns = tables.take();
  const T *product_weight = weights.numbers(), *product_bias = weights.numbers();
  const Mlp<T> logits = read_mlp<T>(weights, tables, numbers.logits_eps, false);
  const auto& gate_of = tables.take();
  const std::int32_t* size = tables.numbers();  // of a product row, alpha scalars, gate scalars, gates
  return {norm,
          RotationLayout<T>(irreps, at, index, sign, pair_sign),
          merge_map,
          radial,
          ProductTable(parts, terms, directed),
          product_weight,
          product_bias,
          in(columns),
          columns.shape(0),
          norm.d,
          size[0],
          size[1],
          logits,
          {in(gate_of), size[2], size[3], gate_of.shape(0), T(numbers.silu), T(numbers.sigmoid)}};
}

// The edges of a call.
template <typename T>
struct Edges {
  const T *source, *target, *wigner, *radial, *edge;
  const std::int64_t *src, *dst;
  const bool* onsite;
  std::int64_t n, n_wigner, n_radial;
};

template <typename T>
struct ValuesWork {
  static constexpr std::int64_t w = kWidth<T>;
  const Values<T>& q;
  Tiles<T> edge, message, radial, product, alpha, value;
  MlpWork<T> radial_mlp, logits_mlp;
  Buffer<T> rows, flipped, sums, gates, zeros;

  ValuesWork(const Values<T>& q_, std::int64_t n_radial, std::int64_t n_panels)
      : q(q_),
        edge(q.d, n_panels),
        message(q.d, n_panels),
        radial(n_radial, n_panels),
        product(q.d_product, 1),
        alpha(n_radial + q.n_alpha, n_panels),
        value(q.d, n_panels),
        radial_mlp(q.radial, n_panels),
        logits_mlp(q.logits, n_panels),
        rows(buffer<T>(q.d * w)),
        flipped(buffer<T>(q.rotation.n_pairs)),
        sums(buffer<T>(2 * q.norm.table.n_groups * kLanes<T>)),
        gates(buffer<T>((q.gate.n_gates + 1) * w)),
        zeros(buffer<T>(std::max(q.d, n_radial))) {
    std::fill_n(rows.get(), q.d * w, T(0));
    std::fill_n(zeros.get(), std::max(q.d, n_radial), T(0));
  }

  // `value`, and the tile of logits, which is returned, of the edges from `first` on.
  const Tiles<T>& run(const Edges<T>& e, std::int64_t first, std::int64_t n_lanes) {
    each_panel<T>(n_lanes, [&](std::int64_t p, std::int64_t lanes) {
      const std::int64_t start = first + p * w, there = std::min(lanes, e.n - start);
      read_tile<T>({e.edge, q.d, e.n, zeros.get()}, start, message.panel(p));
      q.norm.apply(message.panel(p), lanes, sums.get(), edge.panel(p));
      for (std::int64_t lane = 0; lane < there; ++lane)
        q.rotation.template rotate<false>(e.source + e.src[start + lane] * q.d, e.target + e.dst[start + lane] * q.d,
                                          e.wigner + (start + lane) * e.n_wigner, flipped.get(),
                                          rows.get() + lane * q.d);
      read_tile<T>({rows.get(), q.d, w, zeros.get()}, 0, message.panel(p));
      read_tile<T>({e.radial, e.n_radial, e.n, zeros.get()}, start, radial.panel(p));
    });
    q.merge.apply(edge, nullptr, n_lanes, nullptr, message, true);
    const Tiles<T>& r = radial_mlp.forward(radial.read(), n_lanes);
    each_panel<T>(n_lanes, [&](std::int64_t p, std::int64_t lanes) {
      q.product.shut_onsite(e.onsite + first + p * w, e.n - first - p * w, r.panel(p));
      T* y = product.panel(0);
      q.product.multiply(q.product_weight, message.panel(p), r.panel(p), lanes, y);
      for (std::int64_t j = 0; j < q.n_bias; ++j)
        for (std::int64_t lane = 0; lane < lanes; ++lane) y[q.bias_column[j] * w + lane] += q.product_bias[j];
      std::copy_n(radial.panel(p), radial.d * w, alpha.panel(p));
      std::copy_n(y, q.n_alpha * w, alpha.panel(p) + radial.d * w);
      q.gate.apply(y + q.n_alpha * w, lanes, gates.get(), value.panel(p));
    });
    return logits_mlp.forward(alpha.read(), n_lanes);
  }
};

// A map through heads, and the one of on-site edges, whose harmonics vanish beyond degree 0.
template <typename T>
struct HeadMaps {
  TileMap<T> directed, onsite;
};
template <typename T>
HeadMaps<T> read_heads(Weighing<T> weights, const LinearTable& table, std::int64_t n_heads) {
  const TileMap<T> directed = read_map<T>(weights, table, n_heads);
  return {directed, {table, weights.numbers(), directed.bias, n_heads, directed.n_bias}};
}

template <typename T>
struct HeadWork {
  Tiles<T> outer, x, heads, y;

  // From rows of d numbers to rows of d_out.
  HeadWork(const HeadMaps<T>& q, std::int64_t d, std::int64_t n_panels, std::int64_t d_out)
      : outer(q.directed.deepest(), n_panels), x(d, 1), heads(q.directed.n_heads, 1), y(d_out, 1) {
    for (const Tiles<T>* t : {&x, &heads}) std::fill_n(t->panel(0), t->d * kWidth<T>, T(0));
  }

  // onsite: of the n edges that are there. On-site edges are mapped again, together.
  void run(const HeadMaps<T>& q, const Tiles<T>& value, const Tiles<T>& a, const bool* onsite, std::int64_t n,
           std::int64_t n_lanes, const Tiles<T>& to) {
    q.directed.apply(value, &a, n_lanes, &outer, to);
    std::int64_t found[kWidth<T>], n_found = 0;
    for (std::int64_t e = 0; e <= n; ++e) {
      if (n_found == kWidth<T> || (e == n && n_found)) {
        q.onsite.apply(x, &heads, whole_vectors<T>(n_found), &outer, y);
        while (n_found--) copy_lane(y, n_found, to, found[n_found]);
        n_found = 0;
      }
      if (e == n || !onsite[e]) continue;
      copy_lane(value, e, x, n_found);
      copy_lane(a, e, heads, n_found);
      found[n_found++] = e;
    }
  }
};

// Edges of a block: whole vectors, and shares of the threads that differ by less than one block.
template <typename T>
std::int64_t block_size(std::int64_t n) {
  const std::int64_t n_threads = omp_get_max_threads(), share = (n + n_threads - 1) / n_threads;
  const std::int64_t most = kPanels * kWidth<T>, blocks = std::max<std::int64_t>(1, (share + most - 1) / most);
  return whole_vectors<T>(std::max<std::int64_t>(1, (share + blocks - 1) / blocks));
}

template <typename T>
Edges<T> edges_of(const Array<T>& source, const Array<T>& target, const Array<T>& edge, const Array<T>& wigner,
                  const Array<T>& radial, const Array<std::int64_t>& src, const Array<std::int64_t>& dst,
                  const Array<bool>& onsite) {
  return {in(source), in(target), in(wigner),   in(radial),      in(edge),       in(src),
          in(dst),    in(onsite), src.shape(0), wigner.shape(1), radial.shape(1)};
}

template <typename T>
void values(const Array<T>& source, const Array<T>& target, const Array<T>& edge, const Array<T>& wigner,
            const Array<T>& radial, const Array<std::int64_t>& src, const Array<std::int64_t>& dst,
            const Array<bool>& onsite, const std::vector<Array<T>>& weights,
            const std::vector<Array<std::int32_t>>& tables, const Array<double>& numbers, Array<T>& value_,
            Array<T>& logits_) {
  Reader<T> weighing(weights);
  Reader<std::int32_t> tabling(tables);
  const Values<T> q = read_values<T>(weighing, tabling, *reinterpret_cast<const Numbers*>(in(numbers)));
  const Edges<T> e = edges_of(source, target, edge, wigner, radial, src, dst, onsite);
  const std::int64_t size = block_size<T>(e.n), n_panels = (size + kWidth<T> - 1) / kWidth<T>,
                     n_heads = logits_.shape(1);
  T *value = out(value_), *logits = out(logits_);
#pragma omp parallel if (e.n > size)
  {
    ValuesWork<T> work(q, e.n_radial, n_panels);
    const auto nowhere = buffer<T>(std::max(q.d, n_heads));
#pragma omp for schedule(static)
    for (std::int64_t first = 0; first < e.n; first += size) {
      const std::int64_t end = std::min(first + size, e.n), n_lanes = whole_vectors<T>(end - first);
      const Tiles<T>& a = work.run(e, first, n_lanes);
      each_panel<T>(n_lanes, [&](std::int64_t p, std::int64_t) {
        write_tile<T>(work.value.panel(p), first + p * kWidth<T>, {value, q.d, end, nowhere.get()});
        write_tile<T>(a.panel(p), first + p * kWidth<T>, {logits, n_heads, end, nowhere.get()});
      });
    }
  }
}

// dst ascends; edge is written over; nodes [n, d] are the sums, the first being that of node first_node.
template <typename T>
void layer(const Array<T>& source, const Array<T>& target, const Array<T>& wigner, const Array<T>& radial,
           const Array<std::int64_t>& src, const Array<std::int64_t>& dst, const Array<bool>& onsite,
           std::int64_t first_node, const std::vector<Array<T>>& weights,
           const std::vector<Array<std::int32_t>>& tables, const Array<double>& numbers_, Array<T>& edge_,
           Array<T>& value_, Array<T>& logits_, Array<T>& nodes_) {
  const Numbers& numbers = *reinterpret_cast<const Numbers*>(in(numbers_));
  Reader<T> weighing(weights);
  Reader<std::int32_t> tabling(tables);
  const Values<T> q = read_values<T>(weighing, tabling, numbers);
  const std::int64_t n_heads = logits_.shape(1), n_nodes = nodes_.shape(0), d = q.d, w = kWidth<T>;
  const LinearTable table = read_table(tabling);
  const HeadMaps<T> to_edge = read_heads<T>(weighing, table, n_heads),
                    to_node = read_heads<T>(weighing, table, n_heads);
  const auto &blocks = tabling.take(), &places = tabling.take();
  const GramLayout gram(blocks, places);
  const bool traced = numbers.residual != 0;
  TraceGrad<T> trace{gram, gram.pairs(), d, {}, {}, nullptr, T(numbers.residual)};
  if (traced) {
    trace.mlp = read_mlp<T>(weighing, tabling, numbers.trace_eps, true);
    trace.forms = {weighing.numbers(), trace.n_pairs, trace.mlp.first.rows};
    trace.last = weighing.numbers();
  }
  const Edges<T> e = edges_of(source, target, edge_, wigner, radial, src, dst, onsite);
  const std::int64_t size = block_size<T>(e.n), n_panels = (size + w - 1) / w;
  T *edge = out(edge_), *value = out(value_), *logits = out(logits_), *nodes = out(nodes_);

  // Groups of whole atoms, of `size` edges where atoms have no more.
  std::vector<std::int64_t> start(n_nodes + 1, 0), group{0};
  for (std::int64_t i = 0; i < e.n; ++i) ++start[e.dst[i] - first_node + 1];
  for (std::int64_t n = 0; n < n_nodes; ++n) {
    start[n + 1] += start[n];
    if (n > group.back() && start[n + 1] - start[group.back()] > size) group.push_back(n);
  }
  group.push_back(n_nodes);
  const std::int64_t n_groups = group.size() - 1;

#pragma omp parallel if (e.n > size)
  {
    const auto nowhere = buffer<T>(std::max(d, n_heads));
    HeadWork<T> head(to_edge, d, n_panels, d);
    const auto write = [&](const Tiles<T>& from, std::int64_t first, std::int64_t end, T* to) {
      each_panel<T>(end - first, [&](std::int64_t p, std::int64_t) {
        write_tile<T>(from.panel(p), first + p * w, {to, from.d, end, nowhere.get()});
      });
    };
    {
      ValuesWork<T> work(q, e.n_radial, n_panels);
      TraceGradWork<T> update(trace, n_panels);
      const auto steps = buffer<T>(n_panels * w);
#pragma omp for schedule(static)
      for (std::int64_t first = 0; first < e.n; first += size) {
        const std::int64_t end = std::min(first + size, e.n), there = end - first, n_lanes = whole_vectors<T>(there);
        const Tiles<T>& a = work.run(e, first, n_lanes);
        write(work.value, first, end, value);
        write(a, first, end, logits);
        head.run(to_edge, work.value, a, e.onsite + first, there, n_lanes, update.x);
        update.n_lanes = n_lanes;
        if (traced) update.update(steps.get());
        write(traced ? update.y : update.x, first, end, edge);
      }
    }
    Tiles<T> tile(d, n_panels), mixed(d, n_panels), heads(n_heads, n_panels);
    const auto rows = buffer<T>(d * w), flipped = buffer<T>(q.rotation.n_pairs),
               zeros = buffer<T>(std::max(d, n_heads));
    std::fill_n(zeros.get(), std::max(d, n_heads), T(0));
#pragma omp for schedule(dynamic)
    for (std::int64_t g = 0; g < n_groups; ++g) {
      for (std::int64_t n = group[g]; n < group[g + 1]; ++n)
        softmax_rows(logits + start[n] * n_heads, start[n + 1] - start[n], n_heads);
      std::fill(nodes + group[g] * d, nodes + group[g + 1] * d, T(0));
      const std::int64_t last = start[group[g + 1]];
      for (std::int64_t first = start[group[g]]; first < last; first += size) {
        const std::int64_t end = std::min(first + size, last), n_lanes = whole_vectors<T>(end - first);
        each_panel<T>(n_lanes, [&](std::int64_t p, std::int64_t) {
          read_tile<T>({value, d, end, zeros.get()}, first + p * w, tile.panel(p));
          read_tile<T>({logits, n_heads, end, zeros.get()}, first + p * w, heads.panel(p));
        });
        head.run(to_node, tile, heads, e.onsite + first, end - first, n_lanes, mixed);
        each_panel<T>(end - first, [&](std::int64_t p, std::int64_t there) {
          write_tile<T>(mixed.panel(p), 0, {rows.get(), d, w, nowhere.get()});
          for (std::int64_t lane = 0, i = first + p * w; lane < there; ++lane, ++i)
            q.rotation.template rotate<true>(rows.get() + lane * d, nullptr, e.wigner + i * e.n_wigner, flipped.get(),
                                             nodes + (e.dst[i] - first_node) * d);
        });
      }
    }
  }
}

// The last layer: what the values of an edge make through the heads, rotated back and times a factor, goes to the
// columns `place` of row to[e] of `result`.
template <typename T>
void outputs(const Array<T>& source, const Array<T>& target, const Array<T>& edge, const Array<T>& wigner,
             const Array<T>& radial, const Array<std::int64_t>& src, const Array<std::int64_t>& dst,
             const Array<bool>& onsite, const std::vector<Array<T>>& weights,
             const std::vector<Array<std::int32_t>>& tables, const Array<double>& numbers, const Array<T>& factor_,
             const Array<std::int64_t>& place_, const Array<std::int64_t>& to_, Array<T>& result_) {
  Reader<T> weighing(weights);
  Reader<std::int32_t> tabling(tables);
  const Values<T> q = read_values<T>(weighing, tabling, *reinterpret_cast<const Numbers*>(in(numbers)));
  const LinearTable table = read_table(tabling);
  const HeadMaps<T> heads = read_heads<T>(weighing, table, q.logits.layers.back().matrix.rows);
  const auto &irreps = tabling.take(), &at = tabling.take(), &index = tabling.take();
  const auto &sign = weighing.take(), &pair_sign = weighing.take();
  const RotationLayout<T> rotation(irreps, at, index, sign, pair_sign);
  const Edges<T> e = edges_of(source, target, edge, wigner, radial, src, dst, onsite);
  const std::int64_t size = block_size<T>(e.n), w = kWidth<T>, n_panels = (size + w - 1) / w, d = rotation.d;
  const T* factor = in(factor_);
  const std::int64_t *place = in(place_), *to = in(to_), width = result_.shape(1);
  T* result = out(result_);
#pragma omp parallel if (e.n > size)
  {
    ValuesWork<T> work(q, e.n_radial, n_panels);
    HeadWork<T> head(heads, q.d, n_panels, d);
    const Tiles<T> tile(d, n_panels);
    const auto rows = buffer<T>(d * w), turned = buffer<T>(d), flipped = buffer<T>(rotation.n_pairs);
#pragma omp for schedule(static)
    for (std::int64_t first = 0; first < e.n; first += size) {
      const std::int64_t there = std::min(size, e.n - first), n_lanes = whole_vectors<T>(there);
      const Tiles<T>& a = work.run(e, first, n_lanes);
      head.run(heads, work.value, a, e.onsite + first, there, n_lanes, tile);
      each_panel<T>(there, [&](std::int64_t p, std::int64_t lanes) {
        write_tile<T>(tile.panel(p), 0, {rows.get(), d, w, nullptr});
        for (std::int64_t lane = 0, i = first + p * w; lane < lanes; ++lane, ++i) {
          std::fill_n(turned.get(), d, T(0));
          rotation.template rotate<true>(rows.get() + lane * d, nullptr, e.wigner + i * e.n_wigner, flipped.get(),
                                         turned.get());
          T* row = result + to[i] * width;
          for (std::int64_t j = 0; j < d; ++j) row[place[rotation.index[j]]] = factor[i] * rotation.sign[j] * turned[j];
        }
      });
    }
  }
}

template <typename T>
void pack(const Array<T>& matrix, Array<T>& packed) {
  pack_weights<T>({in(matrix), matrix.shape(1), 1}, matrix.shape(0), matrix.shape(1), out(packed));
}

void packed_size(std::int64_t rows, std::int64_t k, bool single, Array<std::int64_t>& size) {
  *out(size) = single ? weights_size<float>(rows, k) : weights_size<double>(rows, k);
}

template <typename T>
void bind(Module& m) {
  m.def("edge_values", &values<T>);
  m.def("edge_layer", &layer<T>);
  m.def("edge_outputs", &outputs<T>);
  m.def("pack_weights", &pack<T>);
}

}  // namespace

void bind_edge_layer(Module& m) {
  bind<float>(m);
  bind<double>(m);
  m.def("packed_size", &packed_size);
}

}  // namespace NEXTHAM_ISA
