// The matrix product of one tile, compiled once per instruction set; matrix_product.h says what it does.
#include "matrix_product.h"

#include <type_traits>
#ifdef __AMX_BF16__
#include "amx_product.h"
#endif

namespace NEXTHAM_ISA {
namespace {

// R rows and V vectors of C, of which `columns` numbers exist.
template <int R, int V, typename T>
__attribute__((noinline)) void product_piece(Strided<T> a, std::int64_t k, const T* b, T* c, std::int64_t row_c,
                                             std::int64_t columns, bool add) {
  constexpr int w = kLanes<T>;
  Vector<T> sum[R][V];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) sum[r][v] = Vector<T>{};
  // Every fourth row has a pointer of its own; the three behind it are reached with strides.
  const T* at[(R + 3) / 4];
#pragma GCC unroll 4
  for (int g = 0; g < (R + 3) / 4; ++g) at[g] = a.a + 4 * g * a.row;
  const std::int64_t once = a.row, twice = 2 * a.row, thrice = 3 * a.row;
  for (std::int64_t i = 0; i < k; ++i, b += kPanel<T>) {
    Vector<T> b_i[V];
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) b_i[v] = load(b + v * w);
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      const T a_r = at[r / 4][r % 4 == 0 ? 0 : r % 4 == 1 ? once : r % 4 == 2 ? twice : thrice];
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sum[r][v] += a_r * b_i[v];
    }
#pragma GCC unroll 4
    for (int g = 0; g < (R + 3) / 4; ++g) at[g] += a.column;
  }
  if (columns == V * w) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) {
        T* to = c + r * row_c + v * w;
        store_anywhere(to, add ? load_anywhere(to) + sum[r][v] : sum[r][v]);
      }
    return;
  }
  alignas(kVectorBytes) T row[V * w];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) store(row + v * w, sum[r][v]);
    T* to = c + r * row_c;
    for (std::int64_t j = 0; j < columns; ++j) to[j] = add ? to[j] + row[j] : row[j];
  }
}

template <int R, typename T>
void product_rows(Strided<T> a, std::int64_t k, std::int64_t n, const T* packed, T* c, std::int64_t row_c,
                  std::int64_t panel_c, bool add) {
  for (std::int64_t first = 0; first < n; first += kPanel<T>, packed += k * kPanel<T>, c += panel_c) {
    const std::int64_t columns = std::min(kPanel<T>, n - first);
    if (columns > kLanes<T>) {
      product_piece<R, 2, T>(a, k, packed, c, row_c, columns, add);
    } else {
      product_piece<R, 1, T>(a, k, packed, c, row_c, columns, add);
    }
  }
}

template <typename T>
void product_block(Strided<T> a, std::int64_t rows, std::int64_t k, std::int64_t n, const T* packed, T* c,
                   std::int64_t row_c, std::int64_t panel_c, bool add) {
  const auto piece = [&](auto r_n, std::int64_t r) {
    product_rows<r_n(), T>({a.a + r * a.row, a.row, a.column}, k, n, packed, c + r * row_c, row_c, panel_c, add);
  };
  std::int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) piece(std::integral_constant<int, kRows>{}, r);
  if constexpr (kRows > 8) {
    if (r + 8 <= rows) piece(std::integral_constant<int, 8>{}, r), r += 8;
  }
  if (r + 4 <= rows) piece(std::integral_constant<int, 4>{}, r), r += 4;
  if (r + 2 <= rows) piece(std::integral_constant<int, 2>{}, r), r += 2;
  if (r < rows) piece(std::integral_constant<int, 1>{}, r);
}

}  // namespace

// What is larger is read once: A with all panels of B at a time, or each panel of B with all rows of A.
template <typename T>
void product(Strided<T> a, std::int64_t rows, std::int64_t k, std::int64_t n, const T* packed, T* c, std::int64_t row_c,
             bool add, std::int64_t panel_c) {
  if (rows > 2 * n) return product_block(a, rows, k, n, packed, c, row_c, panel_c, add);
  for (std::int64_t first = 0; first < n; first += kPanel<T>, packed += k * kPanel<T>, c += panel_c)
    product_block(a, rows, k, std::min(kPanel<T>, n - first), packed, c, row_c, panel_c, add);
}

// Whether weights are packed for the matrix unit: where it has the registers' depth to work on.
template <typename T>
constexpr bool on_matrix_unit([[maybe_unused]] std::int64_t rows, [[maybe_unused]] std::int64_t k) {
#ifdef __AMX_BF16__
  return std::is_same_v<T, float> && rows >= 16 && k >= 32;
#else
  return false;
#endif
}

template <typename T>
std::int64_t weights_size(std::int64_t rows, std::int64_t k) {
#ifdef __AMX_BF16__
  if (on_matrix_unit<T>(rows, k)) return matrix_unit::weights_size(rows, k) / 2;
#endif
  return rows * k;
}

template <typename T>
void pack_weights(Strided<T> a, std::int64_t rows, std::int64_t k, T* packed) {
#ifdef __AMX_BF16__
  if constexpr (std::is_same_v<T, float>) {
    if (on_matrix_unit<T>(rows, k))
      return matrix_unit::pack_weights(a.a, a.row, a.column, rows, k, reinterpret_cast<std::uint16_t*>(packed));
  }
#endif
  for (std::int64_t first = 0; first < rows; first += kRows)
    for (std::int64_t i = 0; i < k; ++i)
      for (std::int64_t r = first; r < std::min(first + kRows, rows); ++r) *packed++ = a.a[r * a.row + i * a.column];
}

// A group of rows with all panels at a time: it stays in the first-level cache.
template <typename T>
void tile_product(const Weights<T>& a, Panels<const T> b, std::int64_t n_lanes, Panels<T> c, bool add) {
#ifdef __AMX_BF16__
  if constexpr (std::is_same_v<T, float>) {
    if (on_matrix_unit<T>(a.rows, a.k))
      return matrix_unit::tile_product(reinterpret_cast<const std::uint16_t*>(a.packed), a.rows, a.k, b.base, b.panel,
                                       n_lanes, c.base, c.panel, add);
  }
#endif
  for (std::int64_t first = 0; first < a.rows; first += kRows) {
    const std::int64_t rows = std::min<std::int64_t>(kRows, a.rows - first);
    const Strided<T> group{a.packed + first * a.k, 1, rows};
    for (std::int64_t lane = 0, p = 0; lane < n_lanes; lane += kPanel<T>, ++p)
      product_block(group, rows, a.k, std::min(kPanel<T>, n_lanes - lane), b.base + p * b.panel,
                    c.base + p * c.panel + first * kPanel<T>, kPanel<T>, kPanel<T>, add);
  }
}

template <typename T>
void tile_outer(Panels<const T> a, std::int64_t rows_a, Panels<const T> b, std::int64_t rows_b, std::int64_t n_lanes,
                T* c) {
#ifdef __AMX_BF16__
  if constexpr (std::is_same_v<T, float>) {
    if (rows_a >= 16 && rows_b >= 16)
      return matrix_unit::tile_outer(a.base, a.panel, rows_a, b.base, b.panel, rows_b, n_lanes, c);
  }
#endif
  const auto packed = buffer<T>(packed_size<T>(kPanel<T>, rows_b));
  for (std::int64_t first = 0, p = 0; first < n_lanes; first += kPanel<T>, ++p) {
    const std::int64_t lanes = std::min(kPanel<T>, n_lanes - first);
    pack<T>(b.base + p * b.panel, 1, kPanel<T>, lanes, rows_b, packed.get());
    product_block(Strided<T>{a.base + p * a.panel, kPanel<T>, 1}, rows_a, lanes, rows_b, packed.get(), c, kPanel<T>,
                  rows_a * kPanel<T>, true);
  }
}

#define NEXTHAM_INSTANTIATE(T)                                                                      \
  template std::int64_t weights_size<T>(std::int64_t, std::int64_t);                                \
  template void pack_weights<T>(Strided<T>, std::int64_t, std::int64_t, T*);                        \
  template void tile_product<T>(const Weights<T>&, Panels<const T>, std::int64_t, Panels<T>, bool); \
  template void tile_outer<T>(Panels<const T>, std::int64_t, Panels<const T>, std::int64_t, std::int64_t, T*);
NEXTHAM_INSTANTIATE(float)
NEXTHAM_INSTANTIATE(double)

template void product<float>(Strided<float>, std::int64_t, std::int64_t, std::int64_t, const float*, float*,
                             std::int64_t, bool, std::int64_t);
template void product<double>(Strided<double>, std::int64_t, std::int64_t, std::int64_t, const double*, double*,
                              std::int64_t, bool, std::int64_t);

}  // namespace NEXTHAM_ISA
