// Superposition of atomic functions on a grid: the kernel of nextham_kernels/ops/superposition.
//
// Parallel over bricks. For each atom and point of a tile one row of 16 coefficients is read (two cache lines, which
// the tile's points share) and 50 multiply-adds follow; the eleven sums of a tile stay in the first-level cache.
#include <omp.h>

#include "grid.h"
#include "module.h"

namespace NEXTHAM_ISA {
namespace {

constexpr int kSums = 11;  // V, n, three of ∇n, six of ∇∇n

template <typename T>
void add_atom(const Tile<T>& tile, const T* atom, T per_length, const T* table, std::int64_t first, std::int64_t last,
              std::int64_t beyond, T (*sum)[kPoints]) {
  alignas(kVectorBytes) T d[3][kPoints], square[kPoints], t[kPoints], f[4][kPoints];
  alignas(kVectorBytes) std::int32_t row[kPoints];
  if (!distances(tile, atom, per_length, first, last, beyond, d, square, row, t)) return;
  for (std::int64_t p = 0; p < kPoints; ++p) {
    const T *c = table + 16 * row[p], x = t[p];
    T value[4];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) value[k] = ((c[12 + k] * x + c[8 + k]) * x + c[4 + k]) * x + c[k];
#pragma GCC unroll 4
    for (int k = 0; k < 4; ++k) f[k][p] = value[k];
  }
#pragma omp simd
  for (std::int64_t p = 0; p < kPoints; ++p) {
    const T x = d[0][p], y = d[1][p], z = d[2][p], slope = f[2][p];
    const T along = (f[3][p] - slope) / (square[p] > 0 ? square[p] : T(1));
    sum[0][p] += f[0][p];
    sum[1][p] += f[1][p];
    sum[2][p] += slope * x;
    sum[3][p] += slope * y;
    sum[4][p] += slope * z;
    sum[5][p] += slope + along * x * x;
    sum[6][p] += slope + along * y * y;
    sum[7][p] += slope + along * z * z;
    sum[8][p] += along * x * y;
    sum[9][p] += along * x * z;
    sum[10][p] += along * y * z;
  }
}

template <typename T>
void forward(const Array<T>& centres_, const Array<T>& table_, const Array<T>& step_, const Array<std::int64_t>& rows_,
             const Array<std::int64_t>& bricks_, const Array<std::int64_t>& offsets_,
             const Array<std::int64_t>& starts_, const Array<std::int64_t>& species_, T per_length, Array<T>& y_) {
  const T *centres = in(centres_), *table = in(table_), *step = in(step_);
  const std::int64_t *rows = in(rows_), *bricks = in(bricks_), *offsets = in(offsets_), *starts = in(starts_),
                     *species = in(species_), beyond = table_.shape(0) - 1;
  T* y = out(y_);
#pragma omp parallel for schedule(dynamic)
  for (std::int64_t c = 0; c < bricks_.shape(0); ++c) {
    T* result = y + 5 * offsets[c];
    each_tile(step, bricks + 6 * c, [&](const Tile<T>& tile) {
      alignas(kVectorBytes) T sum[kSums][kPoints] = {};
      for (std::int64_t i = starts[c]; i < starts[c + 1]; ++i) {
        const std::int64_t first = rows[species[i]], last = rows[species[i] + 1];
        if (tile.reached(centres + 3 * i, (last - first) / per_length))
          add_atom(tile, centres + 3 * i, per_length, table, first, last, beyond, sum);
      }
      for (std::int64_t p = 0; p < tile.n; ++p) {
        const T x = sum[2][p], y = sum[3][p], z = sum[4][p];
        T* to = result + 5 * tile.place[p];
        to[0] = sum[0][p];
        to[1] = sum[1][p];
        to[2] = x * x + y * y + z * z;
        to[3] = sum[5][p] + sum[6][p] + sum[7][p];
        to[4] = x * x * sum[5][p] + y * y * sum[6][p] + z * z * sum[7][p] +
                2 * (x * y * sum[8][p] + x * z * sum[9][p] + y * z * sum[10][p]);
      }
    });
  }
}

}  // namespace

void bind_superposition(Module& m) {
  m.def("superposition_forward", &forward<float>);
  m.def("superposition_forward", &forward<double>);
}

}  // namespace NEXTHAM_ISA
