// Matrix elements between orbitals on a grid: the kernel of nextham_kernels/ops/grid_integrals.
//
// Parallel over bricks, each with sums of its own for its pairs, which are added to the result brick after brick: the
// same for any number of threads. A tile of 64 points makes Φ [orbital][point] of the orbitals alive there and w Φᵀ in
// panels, and of the product of both what lies on or above the diagonal: for silicon some 200 orbitals, 64 · 200²
// multiply-adds, while making the orbitals costs 40 operations for each of their 64 · 200 numbers and adding the
// product to the pairs 200² / 2 additions.
#include <omp.h>

#include "grid.h"
#include "matrix_product.h"
#include "module.h"

namespace NEXTHAM_ISA {
namespace {

constexpr int kMostDegree = 6;
// A multiple of kRows and of kPanel.
template <typename T>
constexpr std::int64_t kRowsAtOnce = kPanel<T> == 32 ? 96 : 48;

// r^l Y_lm at the points of a tile, [lm][point], with ∫ Y² = 1.
template <typename T>
void harmonics(const T (*d)[kPoints], const T* square, int l_max, T (*y)[kPoints]) {
  for (std::int64_t p = 0; p < kPoints; p += kLanes<T>) {
    const Vector<T> a = load(d[0] + p), b = load(d[1] + p), z = load(d[2] + p), r2 = load(square + p);
    Vector<T> re = T(1) - Vector<T>{}, im{};
    double odd = 1;  // (2m − 1)!!
    for (int m = 0; m <= l_max; ++m) {
      Vector<T> q = T(1) - Vector<T>{}, before{};
      double ratio = 1;  // (l − m)! / (l + m)!
      for (int k = 1; k <= 2 * m; ++k) ratio /= k;
      for (int l = m; l <= l_max; ++l) {
        if (l > m) {
          const Vector<T> next = (T(2 * l - 1) * z * q - T(l + m - 1) * r2 * before) * (T(1) / static_cast<T>(l - m));
          before = q;
          q = next;
          ratio *= static_cast<double>(l - m) / (l + m);
        }
        const Vector<T> scaled =
            static_cast<T>(odd * std::sqrt((2 * l + 1) * (m ? 2 : 1) * ratio / (4 * 3.14159265358979323846))) * q;
        store(y[l * l + l + m] + p, scaled * re);
        if (m) store(y[l * l + l - m] + p, scaled * im);
      }
      const Vector<T> turned = re * a - im * b;
      im = re * b + im * a;
      re = turned;
      odd *= 2 * m + 1;
    }
  }
}

// The orbitals of one species.
struct Shells {
  std::vector<int> l;
  int l_max = 0;
  std::int64_t orbitals = 0;
};

template <typename T>
struct Scratch {
  Buffer<T> radial, by_shell;  // [point][shell] and [shell][point]
  std::vector<T> sums;
  std::vector<std::int64_t> slot, alive, start;
  std::vector<char> first;  // whether an atom is the first of a pair
};

// Writes the orbitals of an atom at the points of a tile, [orbital][point]; returns whether it reaches one.
template <typename T>
bool orbitals_of(const Tile<T>& tile, const T* atom, T per_length, const T* table, std::int64_t width,
                 std::int64_t first, std::int64_t last, std::int64_t beyond, const Shells& shells, Scratch<T>& own,
                 T* phi) {
  alignas(kVectorBytes) T d[3][kPoints], square[kPoints], t[kPoints];
  alignas(kVectorBytes) T y[(kMostDegree + 1) * (kMostDegree + 1)][kPoints];
  alignas(kVectorBytes) std::int32_t row[kPoints];
  if (!distances(tile, atom, per_length, first, last, beyond, d, square, row, t)) return false;
  harmonics(d, square, shells.l_max, y);
  T *radial = own.radial.get(), *by_shell = own.by_shell.get();
  constexpr int w = kLanes<T>;
  for (std::int64_t p = 0; p < kPoints; ++p) {
    const T* c = table + 4 * width * row[p];
    for (std::int64_t s = 0; s < width; s += w) {
      const Vector<T> c0 = load_anywhere(c + s), c1 = load_anywhere(c + width + s),
                      c2 = load_anywhere(c + 2 * width + s), c3 = load_anywhere(c + 3 * width + s);
      store_anywhere(radial + p * width + s, ((c3 * t[p] + c2) * t[p] + c1) * t[p] + c0);
    }
  }
  for (std::int64_t p = 0; p < kPoints; p += w) {
    const T* from[w];
    for (int lane = 0; lane < w; ++lane) from[lane] = radial + (p + lane) * width;
    rows_to_tile<T>(from, width, by_shell + p, kPoints);
  }
  for (std::size_t s = 0; s < shells.l.size(); ++s) {
    const T* f = by_shell + s * kPoints;
    const int l = shells.l[s];
    for (int lm = l * l; lm < (l + 1) * (l + 1); ++lm, phi += kPoints) {
#pragma omp simd
      for (std::int64_t p = 0; p < kPoints; ++p) phi[p] = f[p] * y[lm][p];
    }
  }
  return true;
}

// w Φᵀ in panels, from Φ [n][kPoints].
template <typename T>
void pack_weighted(const T* phi, const T* weight, std::int64_t n, T* packed) {
  constexpr int w = kLanes<T>;
  alignas(kVectorBytes) T rows[w * kPoints];
  for (std::int64_t j = 0; j < (n + kPanel<T> - 1) / kPanel<T> * kPanel<T>; j += w) {
    const T* from[w];
    for (int lane = 0; lane < w; ++lane) {
      T* to = rows + lane * kPoints;
      from[lane] = to;
      if (j + lane < n) {
        const T* x = phi + (j + lane) * kPoints;
#pragma omp simd
        for (std::int64_t p = 0; p < kPoints; ++p) to[p] = x[p] * weight[p];
      } else {
        std::fill_n(to, kPoints, T(0));
      }
    }
    T* panel = packed + j / kPanel<T> * kPanel<T> * kPoints + j % kPanel<T>;
    rows_to_tile<T>(from, kPoints, panel, kPanel<T>);
  }
}

template <typename T>
void forward(const Array<T>& weight_, const Array<T>& centres_, const Array<T>& table_, const Array<T>& step_,
             const Array<std::int64_t>& rows_, const Array<std::int64_t>& degrees_, const Array<std::int64_t>& bricks_,
             const Array<std::int64_t>& offsets_, const Array<std::int64_t>& starts_,
             const Array<std::int64_t>& species_, const Array<std::int64_t>& pairs_,
             const Array<std::int64_t>& pair_starts_, T per_length, Array<T>& y_) {
  const T *weight = in(weight_), *centres = in(centres_), *table = in(table_), *step = in(step_);
  const std::int64_t *rows = in(rows_), *bricks = in(bricks_), *offsets = in(offsets_), *starts = in(starts_),
                     *species = in(species_), *pairs = in(pairs_), *pair_starts = in(pair_starts_);
  const std::int64_t beyond = table_.shape(0) - 1, width = table_.shape(2);
  T* y = out(y_);
  std::vector<Shells> shells(degrees_.shape(0));
  for (std::size_t z = 0; z < shells.size(); ++z)
    for (std::int64_t s = 0; s < degrees_.shape(1); ++s) {
      const int l = static_cast<int>(in(degrees_)[z * degrees_.shape(1) + s]);
      if (l < 0) continue;
      shells[z].l.push_back(l);
      shells[z].l_max = std::max(shells[z].l_max, l);
      shells[z].orbitals += 2 * l + 1;
    }
#pragma omp parallel
  {
    Scratch<T> own;
    own.radial = buffer<T>(kPoints * width);
    own.by_shell = buffer<T>(kPoints * width);
#pragma omp for schedule(static, 1) ordered
    for (std::int64_t c = 0; c < bricks_.shape(0); ++c) {
      const std::int64_t first_atom = starts[c], n_atoms = starts[c + 1] - first_atom;
      const auto size_of = [&](std::int64_t i) { return shells[species[first_atom + i]].orbitals; };
      own.slot.assign(n_atoms * n_atoms, -1);
      own.first.assign(n_atoms, 0);
      std::int64_t total = 0, most = 0;
      for (std::int64_t q = pair_starts[c]; q < pair_starts[c + 1]; ++q) {
        own.slot[pairs[3 * q] * n_atoms + pairs[3 * q + 1]] = total;
        own.first[pairs[3 * q]] = 1;
        total += size_of(pairs[3 * q]) * size_of(pairs[3 * q + 1]);
      }
      own.sums.assign(total, T(0));
      for (std::int64_t i = 0; i < n_atoms; ++i) most += size_of(i);
      const std::int64_t stride = (most + kPanel<T> - 1) / kPanel<T> * kPanel<T>;
      const auto phi = buffer<T>(stride * kPoints), weighted = buffer<T>(stride * kPoints);
      const auto product_ = buffer<T>(stride * (stride + kRowsAtOnce<T>));
      each_tile(step, bricks + 6 * c, [&](const Tile<T>& tile) {
        own.alive.clear();
        own.start.clear();
        std::int64_t n = 0, n_rows = 0;  // rows behind the last atom that is the first of a pair are not needed
        for (std::int64_t i = 0; i < n_atoms; ++i) {
          const std::int64_t z = species[first_atom + i], first = rows[z], last = rows[z + 1];
          const T* atom = centres + 3 * (first_atom + i);
          if (!tile.reached(atom, (last - first) / per_length)) continue;
          if (!orbitals_of(tile, atom, per_length, table, width, first, last, beyond, shells[z], own,
                           phi.get() + n * kPoints))
            continue;
          own.alive.push_back(i);
          own.start.push_back(n);
          n += shells[z].orbitals;
          if (own.first[i]) n_rows = n;
        }
        if (n_rows == 0) return;
        alignas(kVectorBytes) T w[kPoints] = {};
        for (std::int64_t p = 0; p < tile.n; ++p) w[p] = weight[offsets[c] + tile.place[p]];
        pack_weighted(phi.get(), w, n, weighted.get());
        T* m = product_.get();
        for (std::int64_t i = 0; i < n_rows; i += kRowsAtOnce<T>)
          product<T>({phi.get() + i * kPoints, kPoints, 1}, std::min(kRowsAtOnce<T>, n_rows - i), kPoints, n - i,
                     weighted.get() + i * kPoints, m + i * stride + i, stride);
        for (std::size_t a = 0; a < own.alive.size(); ++a) {
          if (!own.first[own.alive[a]]) continue;
          const std::int64_t rows_a = size_of(own.alive[a]), at_a = own.start[a];
          for (std::size_t b = a; b < own.alive.size(); ++b) {
            const std::int64_t slot = own.slot[own.alive[a] * n_atoms + own.alive[b]];
            if (slot < 0) continue;
            const std::int64_t rows_b = size_of(own.alive[b]), at_b = own.start[b];
            for (std::int64_t i = 0; i < rows_a; ++i) {
              T* to = own.sums.data() + slot + i * rows_b;
              const T* from = m + (at_a + i) * stride + at_b;
              for (std::int64_t j = a == b ? i : 0; j < rows_b; ++j) to[j] += from[j];
            }
          }
        }
      });
#pragma omp ordered
      for (std::int64_t q = pair_starts[c]; q < pair_starts[c + 1]; ++q) {
        const std::int64_t i = pairs[3 * q], j = pairs[3 * q + 1], n_a = size_of(i), n_b = size_of(j);
        const T* from = own.sums.data() + own.slot[i * n_atoms + j];
        T* to = y + pairs[3 * q + 2];
        for (std::int64_t a = 0; a < n_a; ++a)
          for (std::int64_t b = 0; b < n_b; ++b)
            to[a * n_b + b] += i == j && b < a ? from[b * n_b + a] : from[a * n_b + b];
      }
    }
  }
}

}  // namespace

void bind_grid_integrals(Module& m) {
  m.def("grid_integrals_forward", &forward<float>);
  m.def("grid_integrals_forward", &forward<double>);
}

}  // namespace NEXTHAM_ISA
