// One SAC gradient update, in the order that sacfast/reference.py documents and algorithm.md derives.
//
// This is the only place where the order stands. Steps carries it out: on the CPU each of several threads has its own,
// and they do each step for their own rows of the minibatch, of one critic or of both, or for their own share of the
// parameters, and meet where a step needs what the others have done. x, a, r, x', terminated: the minibatch of B
// transitions; Q_i: the twin critics.
#pragma once

#include "engine.h"

namespace sacfast {

// Returns false when a loss, a gradient or an optimiser's second moment is not finite; the engine then sees to it that
// every parameter is as it was.
template <class Steps>
bool sac_update(Steps& steps, const UpdateSettings& settings) {
  // 0. The minibatch, and alpha = exp(log_alpha) as it is before the update.
  steps.gather();

  // 1. Actions: a', log_prob' ~ pi(.|x'), which v1 does without. Also a~, log_prob ~ pi(.|x) of step 3: until step 5
  //    the policy is the same.
  //    Target. v2: y = reward_scale r + gamma (1 - terminated) (min_i Q'_i(x', a') - alpha log_prob').
  //            v1: V'(x') stands for the soft value.
  if (!settings.value_network) steps.next_action();
  steps.action();
  if (settings.value_network) {
    steps.target_value();
  } else {
    steps.target_critics();
  }
  steps.bellman_target();

  // 2. Critics: one Adam step down sum_i mean (Q_i(x, a) - y)^2 (v1: half of it).
  steps.critics();
  steps.step_critics();
  if (!steps.critics_are_finite()) return false;

  // 3. Policy: soft value v = min_i Q_i(x, a~) - alpha log_prob, with the new critics.
  steps.critics_of_action();
  steps.soft_value();

  // 4. Value, v1 only: the gradient of mean 1/2 (V(x) - v)^2.
  if (settings.value_network) steps.value_backward();

  // 5. Actor: the gradient of mean (alpha log_prob - min_i Q_i(x, a~)), through the critics' action.
  steps.action_gradient();
  steps.actor_backward();
  if (!steps.policy_losses_are_finite()) return false;
  steps.step_actor();  // and V, by one Adam step each

  // 6. Alpha: one Adam step down -log_alpha mean (log_prob + target_entropy).
  // 7. Target: Q' (v1: V') moves to Q (V), by Polyak or by a copy, where it is due. It was written beside Q, which
  //    steps 3 to 6 leave alone, and like every new parameter it counts from here on.
  return steps.commit();
}

}  // namespace sacfast
