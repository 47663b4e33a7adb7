// What a sample brings to its Bellman target, whatever the critic is: one number, atoms or quantiles.
//
//     value -> reward + gamma (1 - terminated) (value - alpha next_log_prob)        (arXiv 1812.05905, equations 2 and
//     3)
#pragma once

#include "qualifiers.h"
#include "strided.h"

namespace sacfast {

// B samples, each input a column [B] with its own stride (zero: one value for all). `terminated` is a bool tensor or
// one of T; exactly one of the two views is set. alpha and gamma, where absent, are the numbers below.
template <class T>
struct BellmanInputs {
  Strided<T> reward;
  Strided<T> terminated;
  Strided<bool> terminated_mask;
  Strided<T> next_log_prob;
  Strided<T> alpha, gamma;
  double alpha_value, gamma_value;
};

namespace SACFAST_ISA {

template <class T>
struct BellmanRow {
  T reward;
  T discount;  // gamma (1 - terminated)
  T entropy;   // alpha next_log_prob
};

// `Acc` is the type of the arithmetic.
template <class Acc, class T>
SACFAST_HD BellmanRow<Acc> bellman_row(const BellmanInputs<T>& in, std::int64_t row) {
  const Acc alpha = in.alpha.data != nullptr ? Acc(element(in.alpha, row, 0)) : static_cast<Acc>(in.alpha_value);
  const Acc gamma = in.gamma.data != nullptr ? Acc(element(in.gamma, row, 0)) : static_cast<Acc>(in.gamma_value);
  const Acc terminated = in.terminated_mask.data != nullptr ? static_cast<Acc>(element(in.terminated_mask, row, 0))
                                                            : Acc(element(in.terminated, row, 0));
  return {Acc(element(in.reward, row, 0)), gamma * (Acc(1) - terminated),
          alpha * Acc(element(in.next_log_prob, row, 0))};
}

template <class V>
SACFAST_HD V bellman_value(V value, const BellmanRow<V>& row) {
  return row.reward + row.discount * (value - row.entropy);
}

}  // namespace SACFAST_ISA
}  // namespace sacfast
