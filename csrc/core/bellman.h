// The soft Bellman target with twin critics (arXiv 1812.05905, equations 3 and 5; the minimum: section 5).
//
//     y = reward + gamma (1 - terminated) ( min(q1, q2) - alpha log_prob )
#pragma once

#include "math.h"
#include "qualifiers.h"

namespace sacfast::SACFAST_ISA {

// The smaller one; NaN wins over any number, so that a broken critic cannot hide behind its twin.
template <class V>
SACFAST_HD V propagating_min(V a, V b) {
  return a < b ? a : (b != b ? b : (a > b ? b : a));
}

template <class V>
SACFAST_HD V soft_bellman_target(V reward, V terminated, V q1, V q2, V log_prob, V alpha, V gamma) {
  return reward + gamma * (constant<V>(1.0) - terminated) * (propagating_min(q1, q2) - alpha * log_prob);
}

template <class V>
struct BellmanGrad {
  V q1;
  V q2;
  V log_prob;
  V alpha;
};

// At a tie each critic takes half of the gradient, and with a NaN both take all of it, as torch.minimum has it.
template <class V>
SACFAST_HD BellmanGrad<V> soft_bellman_target_backward(V grad, V terminated, V q1, V q2, V log_prob, V alpha, V gamma) {
  const V grad_soft_value = grad * gamma * (constant<V>(1.0) - terminated);
  const V zero = constant<V>(0.0), half = constant<V>(0.5), one = constant<V>(1.0);
  const V share1 = q1 > q2 ? zero : (q1 == q2 ? half : one);
  const V share2 = q2 > q1 ? zero : (q1 == q2 ? half : one);
  return {grad_soft_value * share1, grad_soft_value * share2, -grad_soft_value * alpha, -grad_soft_value * log_prob};
}

}  // namespace sacfast::SACFAST_ISA
