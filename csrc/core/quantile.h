// A critic of M quantiles q_i at the fractions tau_i = (i + 1/2) / M (TQC, arXiv 2005.04269).
#pragma once

#include "math.h"
#include "qualifiers.h"

namespace sacfast::SACFAST_ISA {

// The fraction of quantile i of `quantiles`.
template <class T>
SACFAST_HD T quantile_fraction(std::int64_t i, std::int64_t quantiles) {
  return (static_cast<T>(i) + T(0.5)) / static_cast<T>(quantiles);
}

template <class V>
struct QuantileHuber {
  V loss;
  V slope;  // d loss / d quantile
};

// One pair of the quantile Huber loss (arXiv 1806.06923, equation 3): |tau - 1{u < 0}| L_kappa(u) / kappa, with
// u = target - quantile.
template <class V>
SACFAST_HD QuantileHuber<V> quantile_huber(V quantile, V target, V fraction, V kappa, V inverse_kappa) {
  const V u = target - quantile, size = absolute(u);
  const V half = constant<V>(0.5), zero = constant<V>(0.0), one = constant<V>(1.0);
  const V weight = (u < zero ? one - fraction : fraction) * inverse_kappa;
  const V linear = kappa * (size - half * kappa);
  const V bounded = size > kappa ? with_sign_of(kappa, u) : u;  // NaN stays
  return {weight * (size > kappa ? linear : half * u * u), V(-weight * bounded)};
}

}  // namespace sacfast::SACFAST_ISA
