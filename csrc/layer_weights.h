// Weights of a layer as they come from Python: two lists, of arrays and of tables, read in the order in which
// nextham_kernels/ops/edge_layer/cpu.py fills them.
#pragma once

#include <vector>

#include "edge_linear.h"
#include "gate.h"
#include "norm.h"

namespace NEXTHAM_ISA {

// Takes the arrays of a list one after the other.
template <typename T>
class Reader {
 public:
  explicit Reader(const std::vector<Array<T>>& arrays) : arrays_(arrays) {}
  const Array<T>& take() { return arrays_.at(next_++); }
  const T* numbers() { return in(take()); }

 private:
  const std::vector<Array<T>>& arrays_;
  std::size_t next_ = 0;
};
template <typename T>
using Weighing = Reader<T>&;
using Tabling = Reader<std::int32_t>&;

template <typename T>
Mlp<T> read_mlp(Weighing<T> weights, Tabling tables, T eps, bool back) {
  const auto& widths = tables.take();
  const std::int32_t* n = in(widths);
  Mlp<T> mlp{{weights.numbers(), n[1], n[0]}, weights.numbers(), {}, eps};
  for (std::int64_t i = 1; i + 1 < widths.shape(0); ++i) {
    const T *weight = weights.numbers(), *shift = weights.numbers(), *matrix = weights.numbers(),
            *bias = weights.numbers();
    mlp.layers.push_back(
        {weight, shift, {matrix, n[i + 1], n[i]}, bias, {back ? weights.numbers() : nullptr, n[i], n[i + 1]}});
  }
  return mlp;
}

template <typename T>
TileMap<T> read_map(Weighing<T> weights, const LinearTable& table, std::int64_t n_heads) {
  const T* packed = weights.numbers();
  const auto& bias = weights.take();
  return {table, packed, in(bias), n_heads, bias.shape(0)};
}

inline LinearTable read_table(Tabling tables) {
  const auto &blocks = tables.take(), &zeros = tables.take(), &scalars = tables.take();
  return {blocks, zeros, scalars};
}

template <typename T>
struct Norm {
  NormTable<T> table;
  const T *weight, *bias;
  std::int64_t d;

  void apply(const T* x, std::int64_t lanes, T* sums, T* y) const { table.apply(x, weight, bias, lanes, sums, y); }
};

template <typename T>
Norm<T> read_norm(Weighing<T> weights, Tabling tables, double eps, double floor) {
  const auto &runs = tables.take(), &centred = tables.take();
  const auto &count = weights.take(), &share = weights.take(), &weight = weights.take(), &bias = weights.take();
  return {{in(runs), runs.shape(0), count.shape(0), in(count), in(share), in(centred), T(eps), T(floor)},
          in(weight),
          in(bias),
          weight.shape(0)};
}

}  // namespace NEXTHAM_ISA
