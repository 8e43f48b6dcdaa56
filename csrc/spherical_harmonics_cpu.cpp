// Real spherical harmonics as polynomials: the kernel of nextham_kernels/ops/spherical_harmonics.
//
// Parallel over tiles of vectors, whose lanes they become. With z the polar axis and X + iY the other two,
// Y_l,±m = N_lm Q_lm {Re, Im}(X + iY)^m, where (l − m) Q_lm = (2l − 1) z Q_l−1,m − (l + m − 1) r² Q_l−2,m and Q_mm is a
// constant that N holds: some four multiply-adds per number; bound by writing (l_max + 1)² numbers per vector.
#include <omp.h>

#include <cmath>
#include <vector>

#include "lanes.h"
#include "module.h"
#include "rows.h"

namespace NEXTHAM_ISA {
namespace {

template <typename T>
void forward(const Array<T>& vector_, const Array<T>& norms_, Array<T>& y_) {
  constexpr std::int64_t w = kLanes<T>;
  const std::int64_t n = vector_.shape(0), d = y_.shape(1), l_max = norms_.shape(0) - 1;
  const T *vector = in(vector_), *norms = in(norms_);  // N_lm at [l][m], with Q_mm = 1
  T* y = out(y_);
#pragma omp parallel if (n * d > kParallelNumbers)
  {
    const auto tile = buffer<T>(d * w), nowhere = buffer<T>(d);
    const T zeros[3] = {};
#pragma omp for schedule(static)
    for (std::int64_t first = 0; first < n; first += w) {
      const T* from[w];
      T* to[w];
      for (std::int64_t lane = 0, e = first; lane < w; ++lane, ++e) {
        from[lane] = e < n ? vector + 3 * e : zeros;
        to[lane] = e < n ? y + e * d : nowhere.get();
      }
      alignas(kVectorBytes) T r[3 * w];
      rows_to_tile<T>(from, 3, r, w);
      // e3nn's axes: y is the polar one, z and x span the plane of the angle.
      const Vector<T> a = load(r + 2 * w), b = load(r), z = load(r + w), square = a * a + b * b + z * z;
      Vector<T> re = T(1) - Vector<T>{}, im{};
      for (std::int64_t m = 0; m <= l_max; ++m) {
        Vector<T> q = T(1) - Vector<T>{}, before{};
        for (std::int64_t l = m; l <= l_max; ++l) {
          if (l > m) {
            const Vector<T> next =
                (T(2 * l - 1) * z * q - T(l + m - 1) * square * before) * (T(1) / static_cast<T>(l - m));
            before = q;
            q = next;
          }
          const Vector<T> scaled = norms[l * (l_max + 1) + m] * q;
          T* centre = tile.get() + (l * l + l) * w;
          store(centre + m * w, scaled * re);
          if (m) store(centre - m * w, scaled * im);
        }
        const Vector<T> turned = re * a - im * b;
        im = re * b + im * a;
        re = turned;
      }
      tile_to_rows<T>(tile.get(), w, d, to);
    }
  }
}

}  // namespace

void bind_spherical_harmonics(Module& m) {
  m.def("spherical_harmonics_forward", &forward<float>);
  m.def("spherical_harmonics_forward", &forward<double>);
}

}  // namespace NEXTHAM_ISA
