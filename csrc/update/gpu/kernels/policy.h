// The policy's head: actions with their log_prob, and the gradient back through them.
#pragma once

#include "../../../core/philox.h"
#include "../../../core/tanh_gaussian.h"
#include "rows.h"

namespace sacfast::SACFAST_ISA {

template <class T>
SACFAST_HD LogStd<T> bounded_log_std(LogStdBounding kind, T raw, T low, T high) {
  switch (kind) {
    case LogStdBounding::kClamp:
      return bound_log_std<LogStdBounding::kClamp>(raw, low, high);
    case LogStdBounding::kTanh:
      return bound_log_std<LogStdBounding::kTanh>(raw, low, high);
    case LogStdBounding::kNone:
      break;
  }
  return bound_log_std<LogStdBounding::kNone>(raw, low, high);
}

// What the policy's two kernels share.
template <class T>
struct PolicyRows : Body<T> {
  std::int64_t batch, observations, actions;
  LogStdBounding bounding;
  T low, high;
  bool deterministic;
  OfLearner<T> head;   // [B, 2 A]: mean, then raw log_std
  OfLearner<T> noise;  // [B, A]

  // Calls visit(row, action, where both stand in [B, A]) for the block's rows.
  template <class Visit>
  SACFAST_HD void for_each_action(int thread, const BlockRows& rows, const Visit& visit) const {
    for (std::int64_t i = thread; i < rows.count * actions; i += kBlockThreads) {
      const std::int64_t row = rows.first + i / actions, action = i % actions;
      visit(row, action, row * actions + action);
    }
  }
};

// The actor's head, and actions with their log_prob from it.
template <class T>
struct Act : PolicyRows<T> {
  using Shared = RowShared<T>;
  std::int64_t depth;        // units of the last hidden layer
  OfLearner<const T> input;  // [B, depth], rows `input_stride` apart
  std::int64_t input_stride;
  OfLearner<const T> weight, bias;  // [2 A, depth], [2 A]
  bool of_next;                     // a' of x', not a~ of x
  bool value_network;
  OfLearner<T> pairs;      // [B, O + A]: the action columns are written
  OfLearner<T> log_probs;  // [B, A]
  OfLearner<T> log_prob;   // [B]

  SACFAST_HD void operator()(const Block& block, Shared& shared) const {
    if (this->is_off(block)) return;
    const Shift here = this->shift(block);
    const GpuScalars<T>& scalars = *here(this->scalars);
    const BlockRows rows = rows_of(block, this->batch);
    const std::int64_t outputs = 2 * this->actions;
    T* const head = here(this->head) + rows.first * outputs;
    const T *const in = here(input) + rows.first * input_stride, *const w = here(weight), *const b = here(bias);
    sum_items<T>(
        block, shared.parts, rows.count * outputs, depth,
        [&](std::int64_t item, std::int64_t k) {
          return in[item / outputs * input_stride + k] * w[item % outputs * depth + k];
        },
        [&](std::int64_t item, T sum) { head[item] = sum + b[item % outputs]; });

    const T* const given = of_next ? scalars.next_noise : scalars.noise;
    const UpdateCounters& counters = scalars.counters;
    const std::uint64_t before = of_next ? 0 : streams_of_next_action(value_network, scalars.next_noise != nullptr);
    block.each_thread([&](int thread) {
      this->for_each_action(thread, rows, [&](std::int64_t row, std::int64_t action, std::int64_t at) {
        const T mean = here(this->head)[row * outputs + action];
        const T raw = here(this->head)[row * outputs + this->actions + action];
        Sample<T> sample{squash(mean).tanh, T(0)};
        if (!this->deterministic) {
          const T noise = given != nullptr
                              ? given[at]
                              : normal_of_element<T>(at, counters.noise_seed, counters.noise_offset + before);
          here(this->noise)[at] = noise;
          sample = sample_element(mean, bounded_log_std(this->bounding, raw, this->low, this->high).value, noise);
        }
        here(pairs)[row * (this->observations + this->actions) + this->observations + action] = sample.action;
        here(log_probs)[at] = sample.log_prob;
      });
    });
    block.each_thread([&](int thread) {
      if (thread >= rows.count) return;
      const T* const of_row = here(log_probs) + (rows.first + thread) * this->actions;
      T sum = 0;
      for (std::int64_t action = 0; action < this->actions; ++action) sum += of_row[action];
      here(log_prob)[rows.first + thread] = sum;
    });
  }
};

// From the first layers' deltas of the critics to the gradient of the action, and through the policy to that of its
// head.
template <class T>
struct ActBackward : PolicyRows<T> {
  using Shared = RowShared<T>;
  struct Critic {
    OfLearner<const T> delta;   // [B, depth]; without hidden layers the gradient of Q itself, [B, 1]
    OfLearner<const T> weight;  // [depth, O + A]
  };
  Critic critics[2];
  std::int64_t depth;
  OfLearner<T> action_gradient;  // [B, A]
  OfLearner<T> head_delta;       // [B, 2 A]

  SACFAST_HD void operator()(const Block& block, Shared& shared) const {
    if (this->is_off(block)) return;
    const Shift here = this->shift(block);
    const BlockRows rows = rows_of(block, this->batch);
    const std::int64_t actions = this->actions, pair = this->observations + actions;
    const T* const deltas[2] = {here(critics[0].delta) + rows.first * depth,
                                here(critics[1].delta) + rows.first * depth};
    const T* const weights[2] = {here(critics[0].weight) + this->observations,
                                 here(critics[1].weight) + this->observations};
    T* const gradients = here(action_gradient) + rows.first * actions;
    sum_items<T>(
        block, shared.parts, rows.count * actions, depth,
        [&](std::int64_t item, std::int64_t k) {
          const std::int64_t row = item / actions, action = item % actions;
          return deltas[0][row * depth + k] * weights[0][k * pair + action] +
                 deltas[1][row * depth + k] * weights[1][k * pair + action];
        },
        [&](std::int64_t item, T sum) { gradients[item] = sum; });

    const T grad_log_prob =
        static_cast<T>(static_cast<double>(here(this->scalars)->alpha) / static_cast<double>(this->batch));
    block.each_thread([&](int thread) {
      this->for_each_action(thread, rows, [&](std::int64_t row, std::int64_t action, std::int64_t at) {
        const T mean = here(this->head)[row * 2 * actions + action];
        const LogStd<T> log_std = bounded_log_std(
            this->bounding, here(this->head)[row * 2 * actions + actions + action], this->low, this->high);
        const T gradient = here(action_gradient)[at];
        MeanLogStdGrad<T> result{gradient * squash(mean).slope, T(0)};
        if (!this->deterministic) {
          result = sample_element_backward(gradient, grad_log_prob, mean, log_std.value, here(this->noise)[at]);
        }
        here(head_delta)[row * 2 * actions + action] = result.mean;
        here(head_delta)[row * 2 * actions + actions + action] = result.log_std * log_std.slope;
      });
    });
  }
};

}  // namespace sacfast::SACFAST_ISA
