// Mean and variance of a growing set of numbers, and the normalisation by them.
//
// Two sets are merged by the formula of Chan, Golub and LeVeque (Updating Formulae and a Pairwise Algorithm for
// Computing Sample Variances, 1979, equation 2.1). All of it is in double: an update of a large count is a small part
// of a float's last place, and would be lost.
#pragma once

#include "math.h"
#include "qualifiers.h"

namespace sacfast::SACFAST_ISA {

struct Moments {
  double count;
  double mean;
  double deviations;  // the sum of (x - mean)^2
};

// An empty set's mean and deviations do not matter.
SACFAST_HD Moments merged(const Moments& a, const Moments& b) {
  if (a.count == 0.0) return b;
  if (b.count == 0.0) return a;
  const double total = a.count + b.count, delta = b.mean - a.mean, share = b.count / total;
  // Infinity stays what it is, as in one sum over all numbers; infinity - infinity is NaN.
  const double mean = std::isfinite(delta) ? a.mean + delta * share : a.mean * (a.count / total) + b.mean * share;
  return {total, mean, a.deviations + b.deviations + delta * delta * (a.count * share)};
}

// What is taken off each number of a set before the sums: one of the set. With n numbers, rounding errors in the
// deviations are at most some n times that of double, however far the numbers lie from zero.
SACFAST_HD double shift_of(double first) { return std::isfinite(first) ? first : 0.0; }

// Of n numbers x, given the sums of x - shift and (x - shift)^2.
SACFAST_HD Moments moments_of(double count, double shift, double sum, double squares) {
  const double offset = sum / count;
  return {count, shift + offset, squares - sum * offset};
}

// The factors of a column: y = ((x - high) - low) scale. high + low is the mean in twice the precision of T: so a float
// near a mean of 1e6 keeps its digits.
template <class T>
struct NormalFactors {
  T high, low, scale;
};

template <class T>
SACFAST_HD NormalFactors<T> normal_factors(double mean, double variance, double eps) {
  const T high = static_cast<T>(mean);
  const T low = std::isfinite(high) ? static_cast<T>(mean - static_cast<double>(high)) : T(0);
  // Beyond the range of a float, where the variance is below 1e-77, this is infinity, and so is the result, or NaN.
  return {high, low, static_cast<T>(1.0 / std::sqrt(variance + eps))};
}

// Not yet clipped.
template <class V>
SACFAST_HD V normalized(V x, V high, V low, V scale) {
  return ((x - high) - low) * scale;
}

}  // namespace sacfast::SACFAST_ISA
