// exp, sigmoid and SiLU without branches, so that loops over them vectorise; within 2 units in the last place of exp.
#pragma once

#include <cstdint>
#include <cstring>

#include "lanes.h"

namespace NEXTHAM_ISA {

template <typename To, typename From>
inline To same_bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

// e^x = 2^n e^r with n the integer next to x/ln 2 and |r| ≤ ln 2 / 2; adding 1.5·2^23 (2^52) leaves n in the low bits.
// Below −87 (−708) the result is e^−87 instead of a denormal number, above 88 (709) it is e^88.
inline float exp_of(float x) {
  x = x < -87.0f ? -87.0f : (x > 88.0f ? 88.0f : x);
  const float shifted = x * 1.44269504f + 12582912.0f, n = shifted - 12582912.0f;
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float p = 1.38888889e-3f;  // 1/6!
  p = p * r + 8.33333333e-3f;
  p = p * r + 4.16666667e-2f;
  p = p * r + 1.66666667e-1f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * same_bits<float>((same_bits<std::int32_t>(shifted) << 23) + 0x3f800000);
}

inline double exp_of(double x) {
  x = x < -708.0 ? -708.0 : (x > 709.0 ? 709.0 : x);
  const double shifted = x * 1.4426950408889634 + 6755399441055744.0, n = shifted - 6755399441055744.0;
  const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
  double p = 1.6059043836821613e-10;  // 1/13!
  p = p * r + 2.0876756987868100e-09;
  p = p * r + 2.5052108385441720e-08;
  p = p * r + 2.7557319223985893e-07;
  p = p * r + 2.7557319223985888e-06;
  p = p * r + 2.4801587301587302e-05;
  p = p * r + 1.9841269841269841e-04;
  p = p * r + 1.3888888888888889e-03;
  p = p * r + 8.3333333333333332e-03;
  p = p * r + 4.1666666666666664e-02;
  p = p * r + 1.6666666666666666e-01;
  p = p * r + 0.5;
  p = p * r + 1.0;
  p = p * r + 1.0;
  return p * same_bits<double>((same_bits<std::int64_t>(shifted) << 52) + 0x3ff0000000000000);
}

// Beyond ±60 (±600) it is what it is there, 1e-26 (1e-261) off: the compiler computes the clamped branch for every
// lane, and with e^−88, whose product with anything is denormal, that made SiLU five times as slow.
template <typename T>
inline T sigmoid_of(T x) {
  constexpr T most = sizeof(T) == 4 ? 60 : 600;
  x = x < -most ? -most : (x > most ? most : x);
  return 1 / (1 + exp_of(-x));
}

// Of a vector of lanes.
template <typename T>
inline Vector<T> sigmoid_of_lanes(Vector<T> x) {
  Vector<T> y;
#pragma omp simd
  for (int lane = 0; lane < kLanes<T>; ++lane) y[lane] = sigmoid_of(x[lane]);
  return y;
}

// log x of a positive normal number: x = 2^e m with √½ ≤ m < √2 and log m = 2 artanh((m − 1)/(m + 1)), whose series
// ends below the last place; absolute error of an epsilon around 1.
inline float log_of(float x) {
  const std::int32_t bits = same_bits<std::int32_t>(x) - 0x3f3504f3, e = bits >> 23;
  const float m = same_bits<float>((bits & 0x7fffff) + 0x3f3504f3);
  const float z = (m - 1.0f) / (m + 1.0f), z2 = z * z;
  float p = 1.0f / 9;
  p = p * z2 + 1.0f / 7;
  p = p * z2 + 1.0f / 5;
  p = p * z2 + 1.0f / 3;
  p = p * z2 + 1.0f;
  return static_cast<float>(e) * 0.693147181f + 2 * z * p;
}

inline double log_of(double x) {
  const std::int64_t bits = same_bits<std::int64_t>(x) - 0x3fe6a09e667f3bcd, e = bits >> 52;
  const double m = same_bits<double>((bits & 0xfffffffffffff) + 0x3fe6a09e667f3bcd);
  const double z = (m - 1.0) / (m + 1.0), z2 = z * z;
  double p = 1.0 / 23;
  p = p * z2 + 1.0 / 21;
  p = p * z2 + 1.0 / 19;
  p = p * z2 + 1.0 / 17;
  p = p * z2 + 1.0 / 15;
  p = p * z2 + 1.0 / 13;
  p = p * z2 + 1.0 / 11;
  p = p * z2 + 1.0 / 9;
  p = p * z2 + 1.0 / 7;
  p = p * z2 + 1.0 / 5;
  p = p * z2 + 1.0 / 3;
  p = p * z2 + 1.0;
  return static_cast<double>(e) * 0.693147180559945309 + 2 * z * p;
}

}  // namespace NEXTHAM_ISA
