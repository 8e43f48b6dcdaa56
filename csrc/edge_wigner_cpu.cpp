// Wigner D matrices of edges: the kernel of edge_wigner in nextham_kernels/ops/rotation.
// Parallel over tiles of 8 edges, one per lane. In double, whatever the result's type: it is made once per geometry,
// and so float32 is rounded only once. Degree l follows from l - 1 and 1,
//   D^l_kc = Σ_ijab C_kij C_cab D^{l-1}_ia R_jb,   C = √(2l+1) wigner_3j(l, l − 1, 1),
// C having at most five entries per k. That is 2,600 multiply-adds per edge for l ≤ 4.
#include <omp.h>

#include <cmath>
#include <vector>

#include "module.h"
#include "rows.h"

namespace NEXTHAM_ISA {
namespace {

constexpr int kTile = 8;
typedef double Tile __attribute__((vector_size(kTile * sizeof(double))));

// C of all degrees from 2 on, sorted by l, then k.
struct Entries {
  const std::int32_t* lkij;  // [n, 4]
  const double* value;       // [n]
  std::int64_t n;
};

// The rotation of edge_rotation in the order (y, z, x); the unit matrix for a zero-length edge.
template <typename T>
void rotation(const T* r, double* q) {
  const double length =
      std::sqrt(double(r[0]) * double(r[0]) + double(r[1]) * double(r[1]) + double(r[2]) * double(r[2]));
  const double scale = length > 0 ? 1 / length : 0, flip = r[2] < 0 ? -1 : 1;
  const double x = r[0] * scale, y = flip * r[1] * scale, z = length > 0 ? flip * r[2] * scale : 1, k = 1 / (1 + z);
  // Rows and columns x, y, z: [1 − k x², −k x y, −x; −k x y, 1 − k y², −y; x, y, z], columns y and z times flip.
  q[0] = (1 - k * y * y) * flip, q[1] = -y * flip, q[2] = -k * x * y;
  q[3] = y * flip, q[4] = z * flip, q[5] = x;
  q[6] = -k * x * y * flip, q[7] = -x * flip, q[8] = 1 - k * x * x;
}

// D^l after D^{l−1} (`below`); `at` is the first entry of degree l and becomes that of l + 1.
void raise(const Entries& c, std::int64_t& at, int l, const Tile* below, const Tile* one, Tile* d) {
  const int n = 2 * l + 1, m = 2 * l - 1;
  std::int64_t end = at;
  while (end < c.n && c.lkij[4 * end] == l) ++end;
  for (int i = 0; i < n * n; ++i) d[i] = Tile{};
  std::int64_t p = at;
  for (int k = 0; k < n; ++k) {
    Tile mixed[3 * 19] = {};  // [j, a], 19 = 2·10 − 1
    for (; p < end && c.lkij[4 * p + 1] == k; ++p) {
      const Tile* row = below + c.lkij[4 * p + 2] * m;
      Tile* sum = mixed + c.lkij[4 * p + 3] * m;
      for (int a = 0; a < m; ++a) sum[a] += c.value[p] * row[a];
    }
    Tile turned[3 * 19];  // [b, a]
    for (int b = 0; b < 3; ++b)
      for (int a = 0; a < m; ++a)
        turned[b * m + a] = mixed[a] * one[b] + mixed[m + a] * one[3 + b] + mixed[2 * m + a] * one[6 + b];
    for (std::int64_t q = at; q < end; ++q)
      d[k * n + c.lkij[4 * q + 1]] += c.value[q] * turned[c.lkij[4 * q + 3] * m + c.lkij[4 * q + 2]];
  }
  at = end;
}

template <typename T>
void forward(const Array<T>& vector_, const Array<std::int32_t>& lkij_, const Array<double>& value_, int l_max,
             Array<T>& wigner_) {
  const std::int64_t n = vector_.shape(0), w = wigner_.shape(1);
  const T* vector = in(vector_);
  const Entries entries{in(lkij_), in(value_), value_.shape(0)};
  T* wigner = out(wigner_);
#pragma omp parallel if (n * w > kParallelNumbers)
  {
    std::vector<Tile> all(w);
    Tile* d = all.data();
#pragma omp for schedule(static)
    for (std::int64_t first = 0; first < n; first += kTile) {
      const int count = n - first < kTile ? int(n - first) : kTile;
      Tile one[9];
      for (int lane = 0; lane < kTile; ++lane) {
        double q[9];
        rotation(vector + 3 * (first + (lane < count ? lane : 0)), q);
        for (int i = 0; i < 9; ++i) one[i][lane] = q[i];
      }
      d[0] = Tile{} + 1;
      std::int64_t at = 0, start = 1;
      if (l_max > 0)
        for (int i = 0; i < 9; ++i) d[1 + i] = one[i];
      for (int l = 2; l <= l_max; ++l) {
        const std::int64_t below = start;
        start += (2 * l - 1) * (2 * l - 1);
        raise(entries, at, l, d + below, one, d + start);
      }
      for (int lane = 0; lane < count; ++lane) {
        T* row = wigner + (first + lane) * w;
        for (std::int64_t i = 0; i < w; ++i) row[i] = T(d[i][lane]);
      }
    }
  }
}

}  // namespace

void bind_edge_wigner(Module& m) {
  m.def("edge_wigner", &forward<float>);
  m.def("edge_wigner", &forward<double>);
}

}  // namespace NEXTHAM_ISA
