// Products of projections: the kernel of nextham_kernels/ops/projector_product, which holds the formula.
//
// Parallel over results. For each of its pairs D leftᵀ is made first, in place of a matrix product by the nonzeros of D
// (a tenth of its numbers or less), for all k side by side, and then multiplied with right by the product of one tile
// (matrix_product.h) into a sum that stays in the first-level cache. Two silicon atoms with 34 projectors and 4
// matrices D: 23,000 multiply-adds for 7 kB read per pair, some 6 pairs for each result of 5.4 kB.
#include <omp.h>

#include <algorithm>
#include <vector>

#include "matrix_product.h"
#include "module.h"

namespace NEXTHAM_ISA {
namespace {

template <typename T>
std::int64_t padded(std::int64_t n) {
  return (n + kLanes<T> - 1) / kLanes<T> * kLanes<T>;
}

template <typename T>
struct Strength {
  std::int64_t d;
  T value;
};

// to[i * width + j] = from[i * n + j] for j < n, the rest of the row being whatever follows, or zero at the very end.
template <typename T>
void widen(const T* from, const T* end, std::int64_t rows, std::int64_t n, std::int64_t width, T* to) {
  for (std::int64_t i = 0; i < rows; ++i, from += n, to += width) {
    if (end - from >= width) {
      for (std::int64_t j = 0; j < width; j += kLanes<T>) store(to + j, load_anywhere(from + j));
    } else {
      std::copy_n(from, n, to);
      std::fill_n(to + n, width - n, T(0));
    }
  }
}

template <typename T>
void forward(const Array<T>& left_, const Array<T>& right_, const Array<T>& strength_,
             const Array<std::int64_t>& pairs_, const Array<std::int64_t>& starts_, Array<T>& y_) {
  constexpr std::int64_t w = kLanes<T>;
  const std::int64_t c = left_.shape(1), n_a = left_.shape(2), n_b = right_.shape(2), n_k = strength_.shape(0),
                     n = y_.shape(0), rows = n_k * n_a;
  const std::int64_t width_a = padded<T>(n_a), width_b = padded<T>(n_b);
  const T *left = in(left_), *right = in(right_), *strength = in(strength_);
  const T *left_end = left + left_.size(), *right_end = right + right_.size();
  const std::int64_t *pairs = in(pairs_), *starts = in(starts_);
  T* y = out(y_);
  // The nonzeros of row c of D_k, at ends[c * n_k + k − 1] … ends[c * n_k + k].
  std::vector<Strength<T>> nonzeros;
  std::vector<std::int64_t> ends;
  for (std::int64_t i = 0; i < c; ++i)
    for (std::int64_t k = 0; k < n_k; ++k) {
      for (std::int64_t d = 0; d < c; ++d)
        if (const T value = strength[(k * c + d) * c + i]) nonzeros.push_back({d, value});
      ends.push_back(static_cast<std::int64_t>(nonzeros.size()));
    }
#pragma omp parallel if (n * rows * n_b > kParallelNumbers)
  {
    const auto wide = buffer<T>(c * width_a), product_left = buffer<T>(c * rows + width_a);
    const auto rows_b = buffer<T>(c * width_b), panels = buffer<T>(packed_size<T>(c, width_b));
    const auto sum = buffer<T>(rows * width_b);
#pragma omp for schedule(dynamic, 16)
    for (std::int64_t e = 0; e < n; ++e) {
      std::fill_n(sum.get(), rows * width_b, T(0));
      for (std::int64_t t = starts[e]; t < starts[e + 1]; ++t) {
        widen(left + pairs[2 * t] * c * n_a, left_end, c, n_a, width_a, wide.get());
        widen(right + pairs[2 * t + 1] * c * n_b, right_end, c, n_b, width_b, rows_b.get());
        // A row written too far is overwritten by the next.
        const Strength<T>* s = nonzeros.data();
        const std::int64_t* end = ends.data();
        for (T *to = product_left.get(), *last = to + c * rows; to < last; to += n_a, ++end) {
          const Strength<T>* stop = nonzeros.data() + *end;
          for (std::int64_t j = 0; j < width_a; j += w) {
            Vector<T> total{};
            for (const Strength<T>* x = s; x < stop; ++x) total += x->value * load(wide.get() + x->d * width_a + j);
            store_anywhere(to + j, total);
          }
          s = stop;
        }
        pack(rows_b.get(), width_b, 1, c, width_b, panels.get());
        product<T>({product_left.get(), 1, rows}, rows, c, width_b, panels.get(), sum.get(), width_b, true);
      }
      for (std::int64_t i = 0; i < rows; ++i) std::copy_n(sum.get() + i * width_b, n_b, y + (e * rows + i) * n_b);
    }
  }
}

}  // namespace

void bind_projector_product(Module& m) {
  m.def("projector_product_forward", &forward<float>);
  m.def("projector_product_forward", &forward<double>);
}

}  // namespace NEXTHAM_ISA
