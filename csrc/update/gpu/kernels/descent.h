// From the gradient of a weight straight to the optimiser: Adam, and the target beside it.
#pragma once

#include "../../../core/polyak.h"
#include "body.h"

namespace sacfast::SACFAST_ISA {

// The gradient of a weight [outputs, inputs] with its bias as one more column: Adam, and the target's move beside it.
template <class T>
struct Descent {
  std::int64_t inputs, bias;  // where the bias begins, from the weight
  OfLearner<const T> parameter, exp_avg, exp_avg_sq, target;
  OfLearner<T> next_parameter, next_exp_avg, next_exp_avg_sq, next_target;  // next_target is null where there is none
  Network network, optimizer;
  std::int64_t layer;
  T tau;

  SACFAST_HD void operator()(std::int64_t row, std::int64_t col, T gradient, Shift here, GpuScalars<T>& scalars) const {
    const std::int64_t at = col < inputs ? row * inputs + col : bias + row;
    const AdamState<T> before = {here(parameter)[at], here(exp_avg)[at], here(exp_avg_sq)[at]};
    const AdamState<T> after = adam_element(gradient, before, scalars.factors[static_cast<int>(optimizer)]);
    here(next_parameter)[at] = after.parameter;
    here(next_exp_avg)[at] = after.exp_avg;
    here(next_exp_avg_sq)[at] = after.exp_avg_sq;
    if (!next_target.is_null()) {
      const T now = here(target)[at];
      here(next_target)[at] = scalars.target_is_due ? polyak_element(now, after.parameter, tau) : now;
    }
    if (after.exp_avg_sq - after.exp_avg_sq == T(0)) return;
    const bool is_critic = network == Network::kQ1 || network == Network::kQ2, is_moment = gradient - gradient == T(0);
    keep_smallest(is_critic ? &scalars.bad_critic : &scalars.bad_policy,
                  tensor_number(network, layer, col == inputs, is_moment));
  }
};

}  // namespace sacfast::SACFAST_ISA
