// The losses and targets of the update, each written once, for one row of a minibatch of B rows. V is a float, a double
// or a vector of floats.
//
//     y  = reward + gamma (1 - terminated) (min_i Q'_i(x', a') - alpha log_prob')           SoftTarget
//     critics: weight mean_B (Q_i(x, a) - y)^2, summed over i                               SquaredError, CriticSums
//     value:   1/2 mean_B (V(x) - v)^2                                                      SquaredError, PolicySums
//     actor:   -mean_B v                                                                    PolicySums
//
// v = min_i Q_i(x, a~) - alpha log_prob is soft_bellman_target with gamma 1 and no reward, and its gradient is
// soft_bellman_target_backward (bellman.h). A functor around the two changes where compilers place a multiply-add, and
// so the bits of the CPU's update. (arXiv 1812.05905, equations 3 to 7; the value network: arXiv 1801.01290, equations
// 5 and 7.)
#pragma once

#include "bellman.h"

namespace sacfast::SACFAST_ISA {

// The target of the critics.
template <class V>
struct SoftTarget {
  V alpha, gamma;

  SACFAST_HD V operator()(V reward, V terminated, V q1, V q2, V next_log_prob) const {
    return soft_bellman_target(reward, terminated, q1, q2, next_log_prob, alpha, gamma);
  }

  // With a value network: V'(x') stands for the soft value, so there is no entropy to add.
  SACFAST_HD V operator()(V reward, V terminated, V next_value) const {
    return (*this)(reward, terminated, next_value, next_value, constant<V>(0.0));
  }
};

// The weight of the squared errors in the critics' loss: 1/2 beside a value network, as the first paper has it, else 1.
SACFAST_HD double critic_loss_weight(bool value_network) { return value_network ? 0.5 : 1.0; }

// The same for the loss of a value network.
constexpr double kValueLossWeight = 0.5;

// weight mean_B (prediction - target)^2, as the gradient that one row's prediction gets.
template <class V>
struct SquaredError {
  V factor;  // 2 weight / B

  SACFAST_HD static SquaredError of(double weight, std::int64_t batch) {
    return {constant<V>(2.0 * weight / static_cast<double>(batch))};
  }

  SACFAST_HD V operator()(V prediction, V target) const { return factor * (prediction - target); }
};

// ---- Losses and metrics: sums over rows in double -----------------------------------------------------------------
//
// `mean` makes a mean over the minibatch of such a sum: a CPU divides by B, a GPU multiplies by 1 / B.

struct CriticLosses {
  double loss, q_mean, target_mean;
};

struct CriticSums {
  double squared_errors = 0, q = 0, target = 0;

  SACFAST_HD void add(double q1, double q2, double y) {
    squared_errors += (q1 - y) * (q1 - y) + (q2 - y) * (q2 - y);
    q += q1 + q2;
    target += y;
  }

  template <class Mean>
  SACFAST_HD CriticLosses losses(double weight, const Mean& mean) const {
    return {weight * mean(squared_errors), 0.5 * mean(q), mean(target)};
  }
};

struct PolicyLosses {
  double actor_loss, log_prob_mean, value_loss;
};

struct PolicySums {
  double soft_value = 0, log_prob = 0, squared_value_errors = 0;

  SACFAST_HD void add(double soft_value_of_row, double log_prob_of_row) {
    soft_value += soft_value_of_row;
    log_prob += log_prob_of_row;
  }

  SACFAST_HD void add_value(double value, double soft_value_of_row) {
    const double error = value - soft_value_of_row;
    squared_value_errors += error * error;
  }

  template <class Mean>
  SACFAST_HD PolicyLosses losses(const Mean& mean) const {
    return {-mean(soft_value), mean(log_prob), kValueLossWeight * mean(squared_value_errors)};
  }
};

}  // namespace sacfast::SACFAST_ISA
