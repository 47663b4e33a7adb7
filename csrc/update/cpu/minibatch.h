// What is done with the rows of a minibatch outside the networks: rows of the replay buffer into matrices, and the sums
// over all rows for losses and metrics.
#pragma once

#include "../../core/losses.h"
#include "../../core/row.h"
#include "schedule.h"

namespace sacfast::SACFAST_ISA {

// Prefetches a row of the replay buffer, a cache line of 64 bytes at a time.
inline void prefetch_row(const float* row, std::int64_t width) {
  for (std::int64_t col = 0; col < width; col += 16) __builtin_prefetch(row + col);
}

template <class T>
void copy_row(const float* from, std::int64_t count, Panels<T> to, std::int64_t row) {
  for (std::int64_t col = 0, panel = 0; col < count; col += kPanel<T>, ++panel) {
    const std::int64_t part = count - col < kPanel<T> ? count - col : kPanel<T>;
    T* out = to.row(panel, row);
    for (std::int64_t i = 0; i < part; ++i) out[i] = static_cast<T>(from[col + i]);
  }
}

// Rows `of` of the minibatch: (x, a), and x and x' in the matrices whose actions the policy makes. `replay`
// [capacity, width]; `index` [B]: the minibatch's rows of it.
template <class T>
void gather_rows(UpdateState<T>& state, Rows of, const float* replay, const std::int64_t* index) {
  const RowLayout layout{state.observations, state.actions};
  const std::int64_t width = layout.width();
  for (std::int64_t row = of.begin; row < of.end; ++row) {
    // Rows lie anywhere in a buffer that no cache holds.
    if (row + kRowsAhead < of.end) prefetch_row(replay + index[row + kRowsAhead] * width, width);
    const float* from = replay + index[row] * width;
    copy_row(from, layout.pair(), state.stored, row);
    copy_row(from, state.observations, state.current, row);
    copy_row(from + layout.next_observation(), state.observations, state.next, row);
    state.reward[row] = static_cast<T>(state.settings.reward_scale) * static_cast<T>(from[layout.reward()]);
    state.terminated[row] = static_cast<T>(from[layout.terminated()]);
  }
}

// The sums below run over all rows in one order, whatever the number of threads.

template <class T>
auto mean_over(const UpdateState<T>& state) {
  return [batch = static_cast<double>(state.batch)](double sum) { return sum / batch; };
}

template <class T>
CriticLosses critic_losses(const UpdateState<T>& state) {
  CriticSums sums;
  const T* q1 = state.network(Network::kQ1).activations.scalar;
  const T* q2 = state.network(Network::kQ2).activations.scalar;
  for (std::int64_t row = 0; row < state.batch; ++row) sums.add(q1[row], q2[row], state.target[row]);
  return sums.losses(critic_loss_weight(state.settings.value_network), mean_over(state));
}

template <class T>
PolicyLosses policy_losses(const UpdateState<T>& state) {
  PolicySums sums;
  const T* value = state.network(Network::kValue).activations.scalar;  // null without a value network
  for (std::int64_t row = 0; row < state.batch; ++row) {
    sums.add(state.soft_value[row], state.log_prob[row]);
    if (value != nullptr) sums.add_value(value[row], state.soft_value[row]);
  }
  return sums.losses(mean_over(state));
}

}  // namespace sacfast::SACFAST_ISA
