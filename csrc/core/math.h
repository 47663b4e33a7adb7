// The transcendental functions that the formulas need, for a float, a double or a vector of floats.
//
// Vectors use the polynomials below: at most 2 units in the last place of float32 (log_one_plus: 1e-7 absolute), as
// measured in tests/csrc/test_core.cpp. Scalars use the C++ library on the host and CUDA's on the device.
#pragma once

#include <cmath>

#include "qualifiers.h"
#if !defined(__CUDACC__)
#include "simd.h"
#endif

namespace sacfast::SACFAST_ISA {

// exp(x) and exp(x) - 1 from one range reduction, the latter without cancellation near zero.
template <class V>
struct ExpPair {
  V exp;
  V expm1;
};

// sine and cosine of 2 pi times an angle in turns.
template <class V>
struct SinCos {
  V sin;
  V cos;
};

// A constant in the precision of V.
template <class V>
SACFAST_HD V constant(double value) {
  return static_cast<V>(value);
}

// NaN passes through.
template <class V>
SACFAST_HD V clip(V x, V low, V high) {
  return x < low ? low : (x > high ? high : x);
}

template <class T>
SACFAST_HD T absolute(T x) {
  return std::fabs(x);
}
template <class T>
SACFAST_HD T square_root(T x) {
  return std::sqrt(x);
}
template <class T>
SACFAST_HD T natural_log(T x) {
  return std::log(x);
}
template <class T>
SACFAST_HD T log_one_plus(T x) {
  return std::log1p(x);
}
template <class T>
SACFAST_HD T exponential(T x) {
  return std::exp(x);
}
// For x <= 0, such as a logit less the largest one.
template <class T>
SACFAST_HD T exponential_of_negative(T x) {
  return std::exp(x);
}
template <class T>
SACFAST_HD T with_sign_of(T magnitude, T sign) {
  return std::copysign(magnitude, sign);
}
template <class T>
SACFAST_HD ExpPair<T> exp_and_expm1(T x) {
  return {std::exp(x), std::expm1(x)};
}
template <class T>
SACFAST_HD SinCos<T> sincos_turns(T turns) {
#if defined(__CUDA_ARCH__)
  SinCos<T> out;
  ::sincospi(T(2) * turns, &out.sin, &out.cos);
  return out;
#else
  const T radians = T(6.283185307179586476925) * turns;
  return {std::sin(radians), std::cos(radians)};
#endif
}

#if !defined(__CUDACC__)

template <>
SACFAST_HD VecF constant<VecF>(double value) {
  return broadcast<VecF>(static_cast<float>(value));
}

template <>
SACFAST_HD VecF absolute(VecF x) {
  return bit_cast<VecF>(bit_cast<VecI>(x) & 0x7fffffff);
}

template <>
SACFAST_HD VecF with_sign_of(VecF magnitude, VecF sign) {
  const VecI sign_bit = VecI{} + static_cast<std::int32_t>(0x80000000u);
  return bit_cast<VecF>((bit_cast<VecI>(magnitude) & ~sign_bit) | (bit_cast<VecI>(sign) & sign_bit));
}

template <>
SACFAST_HD VecF square_root(VecF x) {
  VecF root;
  for (int lane = 0; lane < kFloats; ++lane) root[lane] = __builtin_sqrtf(x[lane]);
  return root;
}

// exp(r) - 1 for |r| <= ln 2 / 2: a Taylor-like minimax polynomial.
SACFAST_HD VecF expm1_polynomial(VecF r) {
  const VecF r2 = r * r;
  // Pairs first (Estrin's scheme): half the latency of Horner's, which is what bounds these loops.
  const VecF high = (1.9875691500e-4f * r + 1.3981999507e-3f) * r2 + (8.3334519073e-3f * r + 4.1665795894e-2f);
  return (high * r2 + (1.6666665459e-1f * r + 5.0000001201e-1f)) * r2 + r;
}

// x = n ln 2 + r, |r| <= ln 2 / 2; p = exp(r) - 1; exp(x) = 2^n (1 + p).
template <>
SACFAST_HD ExpPair<VecF> exp_and_expm1(VecF x) {
  const float lowest = -87.0f, highest = 88.37f;  // beyond: 2^n leaves the normal range; NaN passes both tests
  const VecF bounded = x < lowest ? broadcast<VecF>(lowest) : (x > highest ? broadcast<VecF>(highest) : x);
  const float round_to_integer = 12582912.0f;  // 1.5 * 2^23: adding it leaves the integer in the low mantissa bits
  const VecF shifted = bounded * 1.44269504088896341f + round_to_integer;
  const VecF n = shifted - round_to_integer;
  const VecF r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
  const VecF p = expm1_polynomial(r);
  const VecI exponent = bit_cast<VecI>(shifted) - 0x4b400000 + 127;
  const VecF two_n = bit_cast<VecF>(exponent << 23);
  return {two_n * p + two_n, two_n * p + (two_n - 1.0f)};
}

template <>
SACFAST_HD VecF exponential(VecF x) {
  const VecF value = exp_and_expm1(x).exp;
  const VecF zero{};
  return x > 88.37f ? broadcast<VecF>(__builtin_inff()) : (x < -87.0f ? zero : value);
}

// Less work than exp(x): no overflow, and with AVX-512 an instruction each to round and to multiply by 2^n.
template <>
SACFAST_HD VecF exponential_of_negative(VecF x) {
#if defined(__AVX512F__)
  const VecF bounded = larger(broadcast<VecF>(-126.0f), x);  // of minus infinity, r would be NaN
  const VecF n = bit_cast<VecF>(_mm512_maskz_roundscale_ps(
      0xffff, bit_cast<__m512>(VecF(bounded * 1.44269504088896341f)), _MM_FROUND_TO_NEAREST_INT));
  const VecF r = (bounded - n * 0.693359375f) - n * -2.12194440e-4f;
  return bit_cast<VecF>(
      _mm512_maskz_scalef_ps(0xffff, bit_cast<__m512>(VecF(expm1_polynomial(r) + 1.0f)), bit_cast<__m512>(n)));
#else
  const VecF value = exp_and_expm1(x).exp, zero{};
  return x < -87.0f ? zero : value;
#endif
}

// x = 2^k m with m in [sqrt(1/2), sqrt(2)); log m by polynomial in m - 1 (Cephes). For normal positive x.
template <>
SACFAST_HD VecF natural_log(VecF x) {
  const VecI bits = bit_cast<VecI>(x);
  const VecI k = (bits - 0x3f3504f3) >> 23;  // 0x3f3504f3 = sqrt(1/2)
  const VecF m = bit_cast<VecF>(bits - (k << 23)) - 1.0f;
  const VecF kf = __builtin_convertvector(k, VecF);
  const VecF square = m * m, fourth = square * square;
  const VecF high = (7.0376836292e-2f * m - 1.1514610310e-1f) * m + 1.1676998740e-1f;
  const VecF middle = (-1.2420140846e-1f * m + 1.4249322787e-1f) * square + (-1.6668057665e-1f * m + 2.0000714765e-1f);
  const VecF low = -2.4999993993e-1f * m + 3.3333331174e-1f;
  const VecF p = high * (fourth * square) + (middle * square + low);
  const VecF tail = p * m * square + kf * -2.12194440e-4f - 0.5f * square;
  return m + tail + kf * 0.693359375f;
}

// For 0 <= x <= 1, where the formulas need absolute accuracy only.
template <>
SACFAST_HD VecF log_one_plus(VecF x) {
  return natural_log(VecF(x + 1.0f));
}

// For turns in [-1/2, 1/2]: the nearest quarter turn is taken off, the rest is at most an eighth of a turn.
template <>
SACFAST_HD SinCos<VecF> sincos_turns(VecF turns) {
  const float round_to_integer = 12582912.0f;
  const VecF shifted = turns * 4.0f + round_to_integer;
  const VecI quarter = bit_cast<VecI>(shifted);  // its two low bits number the quadrant
  const VecF angle = (turns - (shifted - round_to_integer) * 0.25f) * 6.28318530717958648f;
  const VecF square = angle * angle;
  VecF sine = -1.9515295891e-4f * square + 8.3321608736e-3f;
  sine = sine * square - 1.6666654611e-1f;
  sine = sine * square * angle + angle;
  VecF cosine = 2.443315711809948e-5f * square - 1.388731625493765e-3f;
  cosine = cosine * square + 4.166664568298827e-2f;
  cosine = cosine * square * square - 0.5f * square + 1.0f;
  const VecI odd = (quarter & 1) == 1;
  const VecF sin_magnitude = odd ? cosine : sine;
  const VecF cos_magnitude = odd ? sine : cosine;
  const VecI sin_sign = (quarter & 2) << 30;
  const VecI cos_sign = ((quarter + 1) & 2) << 30;
  return {bit_cast<VecF>(bit_cast<VecI>(sin_magnitude) ^ sin_sign),
          bit_cast<VecF>(bit_cast<VecI>(cos_magnitude) ^ cos_sign)};
}

#endif

}  // namespace sacfast::SACFAST_ISA
