// The first kernel of an update: its minibatch, and the numbers that its other kernels need.
#pragma once

#include "../../../core/row.h"
#include "body.h"

namespace sacfast::SACFAST_ISA {

// A minibatch row by row: (x, a), and x and x' where actions are still to come. Also what is the same for all of the
// update: the temperature and the factors of the optimisers' steps.
template <class T>
struct Gather : Body<T> {
  using Shared = NoShared;
  std::int64_t batch, observations, actions;
  OfLearner<T> stored, next, current;  // [B, O + A]
  OfLearner<T> reward, terminated;     // [B]
  T reward_scale;
  bool learn_alpha;
  double alpha;
  double lr[kSteps], beta1, beta2, eps;
  std::int64_t target_update_interval;

  SACFAST_HD static std::int64_t blocks(std::int64_t batch, std::int64_t width) {
    return (batch * width + kBlockThreads - 1) / kBlockThreads;
  }

  SACFAST_HD void operator()(const Block& block, Shared&) const {
    if (this->is_off(block)) return;
    const Shift here = this->shift(block);
    GpuScalars<T>& scalars = *here(this->scalars);
    const RowLayout layout{observations, actions};
    const std::int64_t pair = layout.pair(), width = layout.width();
    block.each_thread([&](int thread) {
      if (block.index == 0 && thread < kSteps) prepare(scalars, thread);
      const std::int64_t element = block.index * kBlockThreads + thread;
      if (element >= batch * width) return;
      const std::int64_t row = element / width, col = element % width;
      const std::int64_t place = scalars.step * batch + row, number = scalars.index[place];
      const bool exists = number >= 0 && number < scalars.capacity;
      // Nothing is read where there is no row: that would end the process's work on the GPU.
      if (!exists && col == 0) keep_smallest(&scalars.bad_place, place);
      const T exact = static_cast<T>(exists ? scalars.rows[number * width + col] : 0.0f);
      if (col < pair) here(stored)[row * pair + col] = exact;
      if (col < observations) here(current)[row * pair + col] = exact;
      if (col == layout.reward()) here(reward)[row] = reward_scale * exact;
      if (col >= layout.next_observation() && col < layout.terminated()) {
        here(next)[row * pair + col - layout.next_observation()] = exact;
      }
      if (col == layout.terminated()) here(terminated)[row] = exact;
    });
  }

 private:
  SACFAST_HD void prepare(GpuScalars<T>& scalars, int which) const {
    const UpdateCounters& counters = scalars.counters;
    const std::int64_t steps = which == kOfTemperature ? counters.alpha_steps : counters.adam_steps[which];
    scalars.factors[which] = AdamFactors<T>::of(lr[which], beta1, beta2, eps, steps + 1);
    if (which > 0) return;
    scalars.alpha = static_cast<T>(learn_alpha ? exponential(counters.log_alpha) : alpha);
    scalars.target_is_due = target_is_due(counters, target_update_interval);
    scalars.bad_critic = scalars.bad_policy = kNoTensor;
  }
};

}  // namespace sacfast::SACFAST_ISA
