// Exchange-correlation potentials at points: the kernel of nextham_kernels/ops/xc_potential.
//
// Parallel over points, which are the lanes. Numbers carry the derivatives that the potential needs: functions of n
// alone the first, functions of n and σ those by n, by σ, by both and twice by σ. PBE costs some 400 operations, two
// exponentials and three logarithms per point for 40 bytes of memory: bound by arithmetic.
#include <omp.h>

#include <cmath>
#include <limits>

#include "module.h"
#include "vector_math.h"

namespace NEXTHAM_ISA {
namespace {

constexpr double kPi = 3.14159265358979323846;

// A function of n with its derivative.
template <typename T>
struct OfN {
  T v, d;
};
template <typename T>
inline OfN<T> operator+(OfN<T> a, OfN<T> b) {
  return {a.v + b.v, a.d + b.d};
}
template <typename T>
inline OfN<T> operator+(T a, OfN<T> b) {
  return {a + b.v, b.d};
}
template <typename T>
inline OfN<T> operator*(OfN<T> a, OfN<T> b) {
  return {a.v * b.v, a.d * b.v + a.v * b.d};
}
template <typename T>
inline OfN<T> operator*(T a, OfN<T> b) {
  return {a * b.v, a * b.d};
}
template <typename T>
inline OfN<T> inverse(OfN<T> a) {
  const T x = 1 / a.v;
  return {x, -x * x * a.d};
}
template <typename T>
inline OfN<T> root(OfN<T> a) {
  const T x = std::sqrt(a.v);
  return {x, a.d / (2 * x)};
}
template <typename T>
inline OfN<T> logarithm(OfN<T> a) {
  return {log_of(a.v), a.d / a.v};
}

// A function of n and σ with its derivatives by n, by σ, by both, and twice by σ.
template <typename T>
struct OfBoth {
  T v, n, s, ns, ss;
};
template <typename T>
inline OfBoth<T> operator+(OfBoth<T> a, OfN<T> b) {
  return {a.v + b.v, a.n + b.d, a.s, a.ns, a.ss};
}
template <typename T>
inline OfBoth<T> operator+(OfBoth<T> a, OfBoth<T> b) {
  return {a.v + b.v, a.n + b.n, a.s + b.s, a.ns + b.ns, a.ss + b.ss};
}
template <typename T>
inline OfBoth<T> operator*(OfN<T> a, OfBoth<T> b) {
  return {a.v * b.v, a.d * b.v + a.v * b.n, a.v * b.s, a.d * b.s + a.v * b.ns, a.v * b.ss};
}
template <typename T>
inline OfBoth<T> operator*(OfBoth<T> a, OfBoth<T> b) {
  return {a.v * b.v, a.n * b.v + a.v * b.n, a.s * b.v + a.v * b.s, a.ns * b.v + a.n * b.s + a.s * b.n + a.v * b.ns,
          a.ss * b.v + 2 * a.s * b.s + a.v * b.ss};
}
// σ a(n).
template <typename T>
inline OfBoth<T> times_sigma(OfN<T> a, T sigma) {
  return {sigma * a.v, sigma * a.d, a.v, a.d, 0};
}
// g(a), of whose value and first two derivatives at a.
template <typename T>
inline OfBoth<T> chain(OfBoth<T> a, T g, T first, T second) {
  return {g, first * a.n, first * a.s, second * a.n * a.s + first * a.ns, second * a.s * a.s + first * a.ss};
}

template <typename T>
struct Basics {
  OfN<T> n, cube_root, exchange, rs;
};

template <typename T>
inline Basics<T> basics(T n) {
  const T c = exp_of(log_of(n) / 3), d = c / (3 * n);
  const OfN<T> density{n, 1}, cube_root{c, d};
  return {density, cube_root, T(-0.75 * std::cbrt(3 / kPi)) * (density * cube_root),
          T(std::cbrt(3 / (4 * kPi))) * inverse(cube_root)};
}

template <typename T>
inline OfBoth<T> pbe_energy(T n, T sigma) {
  const T beta = T(0.06672455060314922), gamma = T(0.031090690869654895), kappa = T(0.804), mu = T(0.2195149727645171);
  const Basics<T> b = basics(n);
  const OfN<T> over_fermi = inverse(T(std::cbrt(3 * kPi * kPi)) * b.cube_root), over_n = inverse(b.n);
  const OfN<T> over_fn = over_fermi * over_n;
  const OfBoth<T> s2 = times_sigma(T(0.25) * (over_fn * over_fn), sigma);
  const T x = 1 / (1 + mu / kappa * s2.v);
  const OfBoth<T> enhancement = chain(s2, 1 + kappa - kappa * x, mu * x * x, -2 * mu * mu / kappa * x * x * x);
  const OfN<T> q = root(b.rs);
  const OfN<T> series = q * (T(7.5957) + q * (T(3.5876) + q * (T(1.6382) + T(0.49294) * q)));
  const OfN<T> correlation =
      (T(-2 * 0.0310907) * (T(1) + T(0.21370) * b.rs)) * logarithm(T(1) + inverse(T(2 * 0.0310907) * series));
  const T e = exp_of(-correlation.v / gamma);
  const OfN<T> a = (beta / gamma) * inverse(OfN<T>{e - 1, -e / gamma * correlation.d});
  const OfBoth<T> t2 = times_sigma(T(kPi / 16) * (over_fn * over_n), sigma), y = a * t2;
  const T den = 1 / (1 + y.v + y.v * y.v), num = -y.v * (2 + y.v);
  const OfBoth<T> ratio =
      chain(y, (1 + y.v) * den, num * den * den, (-2 * (1 + y.v) - 2 * num * (1 + 2 * y.v) * den) * den * den);
  const OfBoth<T> w = t2 * ratio;
  const T argument = 1 + beta / gamma * w.v, slope = beta / argument;
  const OfBoth<T> gradient = chain(w, gamma * log_of(argument), slope, -slope * slope / gamma);
  return OfN<T>{2, 0} * (b.exchange * enhancement + b.n * (gradient + correlation));
}

template <typename T>
inline OfN<T> lda_energy(T n) {
  const Basics<T> b = basics(n);
  const OfN<T> log_rs = logarithm(b.rs);
  const OfN<T> dense = T(-0.048) + (T(0.0311) + T(0.0020) * b.rs) * log_rs + T(-0.0116) * b.rs;
  const OfN<T> thin = T(-0.1423) * inverse(T(1) + T(1.0529) * root(b.rs) + T(0.3334) * b.rs);
  const bool is_dense = b.rs.v < 1;
  const OfN<T> correlation{is_dense ? dense.v : thin.v, is_dense ? dense.d : thin.d};
  return T(2) * (b.exchange + b.n * correlation);
}

constexpr double kVacuum = 1e-10;

template <typename T>
void pbe(const Array<T>& fields_, Array<T>& v_) {
  const T* fields = in(fields_);
  T* v = out(v_);
  const std::int64_t n = v_.size();
#pragma omp parallel for simd schedule(static) if (parallel : n > kParallelNumbers / 16)
  for (std::int64_t p = 0; p < n; ++p) {
    const T *f = fields + 4 * p, density = f[0];
    const bool there = density > T(kVacuum);
    const T sigma = there ? f[1] : T(0);
    const OfBoth<T> e = pbe_energy(there ? density : T(1), sigma);
    const T value = e.n - 2 * e.s * f[2] - 2 * e.ns * sigma - 4 * e.ss * f[3];
    v[p] = there ? value : T(0);
  }
}

template <typename T>
void lda(const Array<T>& fields_, Array<T>& v_) {
  const T* fields = in(fields_);
  T* v = out(v_);
  const std::int64_t n = v_.size();
#pragma omp parallel for simd schedule(static) if (parallel : n > kParallelNumbers / 16)
  for (std::int64_t p = 0; p < n; ++p) {
    const T density = fields[4 * p];
    const bool there = density > T(kVacuum);
    const OfN<T> e = lda_energy(there ? density : T(1));
    v[p] = there ? e.d : T(0);
  }
}

template <typename T>
void bind(Module& m) {
  m.def("xc_potential_pbe", &pbe<T>);
  m.def("xc_potential_lda", &lda<T>);
}

}  // namespace

void bind_xc_potential(Module& m) {
  bind<float>(m);
  bind<double>(m);
}

}  // namespace NEXTHAM_ISA
