// One element of an Adam step (arXiv 1412.6980, algorithm 1), with the arithmetic of torch.optim.Adam.
#pragma once

#include <cmath>

#include "math.h"
#include "qualifiers.h"

namespace sacfast {

// What is the same for all elements of one step.
template <class T>
struct AdamFactors {
  T one_minus_beta1, beta2, one_minus_beta2;
  T step_size;                // lr / (1 - beta1^step)
  T inverse_root_correction;  // 1 / sqrt(1 - beta2^step)
  T eps;

  // `step` counts from 1.
  SACFAST_HD static AdamFactors of(double lr, double beta1, double beta2, double eps, std::int64_t step) {
    return {static_cast<T>(1 - beta1),
            static_cast<T>(beta2),
            static_cast<T>(1 - beta2),
            static_cast<T>(lr / (1 - std::pow(beta1, static_cast<double>(step)))),
            static_cast<T>(1 / std::sqrt(1 - std::pow(beta2, static_cast<double>(step)))),
            static_cast<T>(eps)};
  }
};

namespace SACFAST_ISA {

template <class V>
struct AdamState {
  V parameter, exp_avg, exp_avg_sq;
};

template <class V, class T>
SACFAST_HD AdamState<V> adam_element(V gradient, AdamState<V> now, const AdamFactors<T>& factors) {
  const V exp_avg = now.exp_avg + factors.one_minus_beta1 * (gradient - now.exp_avg);
  const V exp_avg_sq = factors.beta2 * now.exp_avg_sq + factors.one_minus_beta2 * gradient * gradient;
  const V root = square_root(exp_avg_sq) * factors.inverse_root_correction + factors.eps;
  return {V(now.parameter - factors.step_size * exp_avg / root), exp_avg, exp_avg_sq};
}

}  // namespace SACFAST_ISA
}  // namespace sacfast
