// Two-center integrals: the kernel of nextham_kernels/ops/two_center, which holds the formula.
//
// Parallel over tiles of pairs of atoms, whose lanes they become. Two silicon atoms, S and T: 70 columns are
// interpolated (six rows of 560 bytes, vectors along the columns), 16 to 25 harmonics become 170 angular factors
// Σ_M G Y_LM, and the 338 numbers of the result are sums of 1 to 3 products of a factor and a column: 1,100
// multiply-adds per pair, the 2.7 kB of the result bound it. What is zero by symmetry is not visited.
#include <omp.h>

#include <algorithm>
#include <cmath>

#include "lanes.h"
#include "module.h"
#include "rows.h"

namespace NEXTHAM_ISA {
namespace {

// Σ_i w_i row_i[c] of six rows that follow each other, one vector of columns at a time.
template <typename T>
void interpolate(const T* row, std::int64_t n_columns, T t, T* values) {
  constexpr std::int64_t w = kLanes<T>;
  T weight[6];
  for (int i = 0; i < 6; ++i) {
    weight[i] = 1;
    for (int j = 0; j < 6; ++j)
      if (j != i) weight[i] *= (t + T(2 - j)) / T(i - j);
  }
  std::int64_t c = 0;
  for (; c + w <= n_columns; c += w) {
    Vector<T> sum{};
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) sum += weight[i] * load_anywhere(row + i * n_columns + c);
    store_anywhere(values + c, sum);
  }
  for (; c < n_columns; ++c) {
    values[c] = 0;
    for (int i = 0; i < 6; ++i) values[c] += weight[i] * row[i * n_columns + c];
  }
}

template <typename T>
void forward(const Array<T>& distance_, const Array<T>& harmonics_, const Array<T>& table_,
             const Array<std::int32_t>& angular_ends_, const Array<std::int32_t>& places_, const Array<T>& factors_,
             const Array<std::int32_t>& ends_, const Array<std::int32_t>& terms_, double spacing, double cutoff,
             Array<T>& y_) {
  constexpr std::int64_t w = kLanes<T>;
  const std::int64_t n = distance_.shape(0), d = harmonics_.shape(1), n_columns = table_.shape(1),
                     n_angular = angular_ends_.shape(0), parts = y_.shape(0), size = y_.shape(2) * y_.shape(3);
  const T *distance = in(distance_), *harmonics = in(harmonics_), *table = in(table_), *factors = in(factors_);
  const std::int32_t *angular_ends = in(angular_ends_), *places = in(places_), *ends = in(ends_), *terms = in(terms_);
  T* y = out(y_);
#pragma omp parallel if (n * parts * size > kParallelNumbers)
  {
    const auto rows = buffer<T>(w * n_columns), zeros = buffer<T>(d), nowhere = buffer<T>(size);
    const auto columns = buffer<T>(n_columns * w), tile = buffer<T>(std::max(d, size) * w);
    const auto angular = buffer<T>(n_angular * w);
    std::fill_n(zeros.get(), d, T(0));
#pragma omp for schedule(static)
    for (std::int64_t first = 0; first < n; first += w) {
      const T *from[w], *row[w];
      for (std::int64_t lane = 0, e = first; lane < w; ++lane, ++e) {
        T* values = rows.get() + lane * n_columns;
        row[lane] = values;
        from[lane] = e < n ? harmonics + e * d : zeros.get();
        if (e < n && distance[e] < T(cutoff)) {
          const T x = distance[e] / T(spacing), whole = std::floor(x);
          interpolate(table + static_cast<std::int64_t>(whole) * n_columns, n_columns, x - whole, values);
        } else {
          std::fill_n(values, n_columns, T(0));
        }
      }
      rows_to_tile<T>(row, n_columns, columns.get(), w);
      rows_to_tile<T>(from, d, tile.get(), w);
      for (std::int64_t q = 0, k = 0; q < n_angular; ++q) {
        Vector<T> sum{};
        for (; k < angular_ends[q]; ++k) sum += factors[k] * load(tile.get() + places[k] * w);
        store(angular.get() + q * w, sum);
      }
      for (std::int64_t p = 0; p < parts; ++p) {
        const std::int32_t* end = ends + p * size;
        std::int64_t k = p ? end[-1] : 0;
        for (std::int64_t i = 0; i < size; ++i) {
          Vector<T> sum{};
          for (; k < end[i]; ++k)
            sum += load(angular.get() + terms[2 * k] * w) * load(columns.get() + terms[2 * k + 1] * w);
          store(tile.get() + i * w, sum);
        }
        T* to[w];
        for (std::int64_t lane = 0, e = first; lane < w; ++lane, ++e)
          to[lane] = e < n ? y + (p * n + e) * size : nowhere.get();
        tile_to_rows<T>(tile.get(), w, size, to);
      }
    }
  }
}

}  // namespace

void bind_two_center(Module& m) {
  m.def("two_center_forward", &forward<float>);
  m.def("two_center_forward", &forward<double>);
}

}  // namespace NEXTHAM_ISA
