// What a layer does with nodes, in two kernels of nextham_kernels/ops/edge_layer, which holds the formulas: before the
// edges, and after them.
// Nodes are lanes of tiles, as edges are in edge_layer_cpu.cpp; parallel over panels. 42k multiply-adds per node
// before, 48k after: a hundredth of the work of its edges, but ten calls where these are two.
#include <omp.h>

#include <vector>

#include "layer_weights.h"
#include "module.h"

namespace NEXTHAM_ISA {
namespace {

// f(first node, lanes, reading function, writing function) for each panel of n nodes with rows of d numbers.
template <typename T, typename F>
void each_node_panel(std::int64_t n, std::int64_t d, const F& f) {
  const std::int64_t w = kWidth<T>;
#pragma omp parallel if (n > w)
  {
    const auto zeros = buffer<T>(d), nowhere = buffer<T>(d);
    std::fill_n(zeros.get(), d, T(0));
    const auto work = f();
#pragma omp for schedule(static)
    for (std::int64_t first = 0; first < n; first += w) {
      const std::int64_t lanes = whole_vectors<T>(std::min(w, n - first));
      work(
          lanes,
          [&](const T* from, const Tiles<T>& to) { read_tile<T>({from, d, n, zeros.get()}, first, to.panel(0)); },
          [&](const Tiles<T>& from, T* to) { write_tile<T>(from.panel(0), first, {to, d, n, nowhere.get()}); });
    }
  }
}

// Normalised rows of nodes, and what they send along the edges that begin and end there.
template <typename T>
void ends(const Array<T>& node_, const std::vector<Array<T>>& weights, const std::vector<Array<std::int32_t>>& tables,
          const Array<double>& numbers, Array<T>& normed_, Array<T>& source_, Array<T>& target_) {
  Reader<T> weighing(weights);
  Reader<std::int32_t> tabling(tables);
  const Norm<T> norm = read_norm<T>(weighing, tabling, in(numbers)[0], in(numbers)[1]);
  const LinearTable table = read_table(tabling);
  const TileMap<T> to_source = read_map<T>(weighing, table, 0), to_target = read_map<T>(weighing, table, 0);
  const T* node = in(node_);
  T *normed = out(normed_), *source = out(source_), *target = out(target_);
  each_node_panel<T>(node_.shape(0), norm.d, [&] {
    return [&, x = Tiles<T>(norm.d, 1), y = Tiles<T>(norm.d, 1), sums = buffer<T>(2 * norm.table.n_groups * kLanes<T>)](
               std::int64_t lanes, auto read, auto write) {
      read(node, x);
      norm.apply(x.panel(0), lanes, sums.get(), y.panel(0));
      write(y, normed);
      to_source.apply(y, nullptr, lanes, nullptr, x);
      write(x, source);
      to_target.apply(y, nullptr, lanes, nullptr, x);
      write(x, target);
    };
  });
}

// The next rows of nodes.
template <typename T>
void update(const Array<T>& sum_, const Array<T>& normed_, const std::vector<Array<T>>& weights,
            const std::vector<Array<std::int32_t>>& tables, const Array<double>& numbers_, Array<T>& node_) {
  Reader<T> weighing(weights);
  Reader<std::int32_t> tabling(tables);
  const double* numbers = in(numbers_);
  const T* bias = weighing.numbers();
  const Norm<T> norm = read_norm<T>(weighing, tabling, numbers[0], numbers[1]);
  const LinearTable up = read_table(tabling), down = read_table(tabling);
  const TileMap<T> rise = read_map<T>(weighing, up, 0), fall = read_map<T>(weighing, down, 0);
  const auto& gate_of = tabling.take();
  const std::int32_t* size = tabling.numbers();  // of a risen row, gate scalars, gates
  const Gate<T> gate{in(gate_of), size[1], size[2], gate_of.shape(0), T(numbers[2]), T(numbers[3])};
  const T *sum = in(sum_), *normed = in(normed_);
  T* node = out(node_);
  const std::int64_t d = norm.d, w = kWidth<T>;
  each_node_panel<T>(sum_.shape(0), d, [&] {
    return [&, x = Tiles<T>(d, 1), y = Tiles<T>(d, 1), risen = Tiles<T>(size[0], 1),
            sums = buffer<T>(2 * norm.table.n_groups * kLanes<T>),
            gates = buffer<T>((gate.n_gates + 1) * w)](std::int64_t lanes, auto read, auto write) {
      read(sum, x);
      read(normed, y);
      for (std::int64_t i = 0; i < d; ++i)
        for (std::int64_t lane = 0; lane < lanes; ++lane)
          x.panel(0)[i * w + lane] += y.panel(0)[i * w + lane] + bias[i];
      norm.apply(x.panel(0), lanes, sums.get(), y.panel(0));
      rise.apply(y, nullptr, lanes, nullptr, risen);
      gate.apply(risen.panel(0), lanes, gates.get(), x.panel(0));
      fall.apply(x, nullptr, lanes, nullptr, y, true);
      write(y, node);
    };
  });
}

template <typename T>
void bind(Module& m) {
  m.def("node_ends", &ends<T>);
  m.def("node_update", &update<T>);
}

}  // namespace

void bind_node_layer(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
