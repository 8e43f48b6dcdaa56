// The first rows of edges: the kernel of nextham_kernels/ops/edge_embedding, which holds the formula.
//
// Linear maps commute with rotations, so they come first: what is rotated then is the result, 1,568 numbers for four
// networks instead of the 4,460 that they read. Edges are lanes of tiles [column][lane], in which the channels of one
// component of an irrep are gathered line by line; one product for each serves all maps. Parallel over tiles of two
// vectors of edges.
// NextHAM, four networks, per edge: 0.5 million multiply-adds, 23 kB read and 6 kB written, nothing between.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "matrix_product.h"
#include "module.h"
#include "rotation.h"
#include "tile_mlp.h"

namespace NEXTHAM_ISA {
namespace {

// Row order[e] of x becomes row e of each of the maps' results [map, e, d]. Of each irrep of the result: in columns,
// one after the other, the column of x where each channel that leads there begins, n_channels of them; where there are
// any, weights has the matrix [(map, channel), n_channels], packed.
template <typename T>
void embedding(const Array<T>& x_, const Array<T>& wigner_, const Array<std::int64_t>& order_,
               const Array<std::int32_t>& columns_, const Array<std::int32_t>& n_channels_,
               const std::vector<Array<T>>& weights, const Array<std::int32_t>& irreps, const Array<std::int32_t>& at,
               const Array<std::int32_t>& index, const Array<T>& sign, const Array<T>& pair_sign, Array<T>& rows_) {
  constexpr std::int64_t w = kWidth<T>;
  const RotationLayout<T> rotation(irreps, at, index, sign, pair_sign);
  const std::int64_t n = order_.shape(0), width = x_.shape(1), n_wigner = wigner_.shape(1), n_maps = rows_.shape(0),
                     d = rotation.d;
  const T *x = in(x_), *wigner = in(wigner_);
  const std::int64_t* order = in(order_);
  const std::int32_t* n_channels = in(n_channels_);
  T* rows = out(rows_);
  std::int64_t deepest = 0, widest = 0;
  for (std::int64_t r = 0; r < rotation.n_irreps; ++r) {
    deepest = std::max<std::int64_t>(deepest, n_channels[r]);
    widest = std::max<std::int64_t>(widest, n_maps * rotation.irreps[4 * r + 1]);
  }
#pragma omp parallel if (n > w)
  {
    const Tiles<T> given(width, 1), channels(deepest, 1), made(widest, 1), tile(n_maps * d, 1);
    const auto zeros = buffer<T>(width), lines = buffer<T>(w * d), flipped = buffer<T>(rotation.n_pairs);
    std::fill_n(zeros.get(), width, T(0));
    std::fill_n(tile.panel(0), n_maps * d * w, T(0));  // of irreps that nothing leads to
#pragma omp for schedule(static)
    for (std::int64_t first = 0; first < n; first += w) {
      const std::int64_t there = std::min(w, n - first), lanes = whole_vectors<T>(there);
      for (std::int64_t half = 0; half < lanes; half += kLanes<T>) {
        const T* row[kLanes<T>];
        for (std::int64_t lane = 0, e = first + half; lane < kLanes<T>; ++lane, ++e)
          row[lane] = e < n ? x + order[e] * width : zeros.get();
        rows_to_tile<T>(row, width, given.panel(0) + half, w);
      }
      const std::int32_t* column = in(columns_);
      auto packed = weights.begin();
      for (std::int64_t r = 0; r < rotation.n_irreps; column += n_channels[r++]) {
        if (!n_channels[r]) continue;
        const std::int32_t *irrep = rotation.irreps + 4 * r, mul = irrep[1];
        const Weights<T> matrix{in(*packed++), n_maps * mul, n_channels[r]};
        for (std::int32_t i = 0; i < 2 * irrep[0] + 1; ++i) {
          for (std::int64_t u = 0; u < matrix.k; ++u)
            std::copy_n(given.panel(0) + (column[u] + i) * w, w, channels.panel(0) + u * w);
          tile_product<T>(matrix, channels.read(), lanes, made.from());
          const std::int32_t place = rotation.at[irrep[3] + i];
          for (std::int64_t k = 0; k < n_maps; ++k) {
            const T* from = made.panel(0) + k * mul * w;
            T* to = tile.panel(0) + (k * d + place) * w;
            for (std::int64_t j = 0; j < mul * w; ++j) to[j] = rotation.sign[place] * from[j];
          }
        }
      }
      for (std::int64_t k = 0; k < n_maps; ++k) {
        write_tile<T>(tile.panel(0) + k * d * w, 0, {lines.get(), d, w, nullptr});
        for (std::int64_t lane = 0, e = first; lane < there; ++lane, ++e)
          rotation.template rotate<false>(lines.get() + lane * d, nullptr, wigner + e * n_wigner, flipped.get(),
                                          rows + (k * n + e) * d);
      }
    }
  }
}

template <typename T>
void bind(Module& m) {
  m.def("edge_embedding", &embedding<T>);
}

}  // namespace

void bind_edge_embedding(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
