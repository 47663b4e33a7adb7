// The policy's head, a tanh-squashed Gaussian, for the rows of one thread: actions, their log_prob, and the backward
// pass. Formulas: core/tanh_gaussian.h.
#pragma once

#include <algorithm>

#include "../../core/philox.h"
#include "../../core/tile.h"
#include "schedule.h"

namespace sacfast::SACFAST_ISA {

template <class T>
class PolicyHead {
  using V = VectorOf<T>;

 public:
  PolicyHead(UpdateState<T>& state, Rows rows) : s_(state), settings_(state.settings), rows_(rows) {}

  // From the actor's head [B, 2 A]: actions into the action columns of `into`, and their log_prob [B]. The noise is
  // `given_noise` [B, A]; null: drawn, from the stream that comes `streams_before` after the next one.
  void act(Panels<T> head, const T* given_noise, std::uint64_t streams_before, Panels<T> into, T* log_prob) {
    const std::uint64_t offset = s_.counters.noise_offset + streams_before;
    with_bounding(settings_.log_std_bounding,
                  [&](auto kind) { sample<decltype(kind)::value>(head, given_noise, offset, into, log_prob); });
  }

  // From action_gradient to the gradient of the head's output, `delta` [B, 2 A].
  void backward(Panels<T> head, T alpha, Panels<T> delta) {
    with_bounding(settings_.log_std_bounding,
                  [&](auto kind) { head_backward<decltype(kind)::value>(head, alpha, delta); });
  }

 private:
  static constexpr std::int64_t kScratch = kTileElements + kLanes<T>;  // GCC 12 sees partial vectors pass the end

  template <LogStdBounding kBounding>
  void sample(Panels<T> head, const T* given_noise, std::uint64_t offset, Panels<T> into, T* log_prob) {
    const std::int64_t actions = s_.actions;
    const V low = constant<V>(settings_.log_std_low), high = constant<V>(settings_.log_std_high);
    const bool deterministic = settings_.deterministic_policy;
    alignas(64) T mean[kScratch], log_std[kScratch], action[kScratch], log_probs[kScratch];
    for_each_tile(
        rows_.begin, rows_.end, actions, [&](std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
          const std::int64_t first = row * actions + col, count = rows * cols;
          read_head(head, row, rows, col, cols, mean, log_std);
          T* noise = s_.noise + first;
          if (given_noise != nullptr) {
            std::copy_n(given_noise + first, count, noise);
          } else if (!deterministic) {
            fill_normals(first, count, s_.counters.noise_seed, offset, noise);
          }
          for_each_vector<V>(count, [&](std::int64_t i, auto vector) {
            const V bounded = bound_log_std<kBounding>(vector.load(log_std + i), low, high).value;
            const Sample<V> drawn = deterministic
                                        ? Sample<V>{squash(vector.load(mean + i)).tanh, V{}}
                                        : sample_element(vector.load(mean + i), bounded, vector.load(noise + i));
            vector.store(action + i, drawn.action);
            vector.store(log_probs + i, drawn.log_prob);
          });
          for (std::int64_t r = 0; r < rows; ++r) {
            T sum = col == 0 ? T(0) : log_prob[row + r];
            for (std::int64_t i = 0; i < cols; ++i) {
              into.at(row + r, s_.observations + col + i) = action[r * cols + i];
              sum += log_probs[r * cols + i];
            }
            log_prob[row + r] = sum;
          }
        });
  }

  template <LogStdBounding kBounding>
  void head_backward(Panels<T> head, T alpha, Panels<T> delta) {
    const std::int64_t actions = s_.actions;
    const V low = constant<V>(settings_.log_std_low), high = constant<V>(settings_.log_std_high);
    const V grad_log_prob = constant<V>(static_cast<double>(alpha) / static_cast<double>(s_.batch));
    const bool deterministic = settings_.deterministic_policy;
    alignas(64) T mean[kScratch], log_std[kScratch];
    for_each_tile(
        rows_.begin, rows_.end, actions, [&](std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
          const T* grad_action = s_.action_gradient + row * actions + col;
          const T* noise = s_.noise + row * actions + col;
          read_head(head, row, rows, col, cols, mean, log_std);
          for_each_vector<V>(rows * cols, [&](std::int64_t i, auto vector) {
            const V mu = vector.load(mean + i), grad = vector.load(grad_action + i);
            const LogStd<V> bounded = bound_log_std<kBounding>(vector.load(log_std + i), low, high);
            const MeanLogStdGrad<V> result =
                deterministic ? MeanLogStdGrad<V>{V(grad * squash(mu).slope), V{}}
                              : sample_element_backward(grad, grad_log_prob, mu, bounded.value, vector.load(noise + i));
            vector.store(mean + i, result.mean);
            vector.store(log_std + i, V(result.log_std * bounded.slope));
          });
          for (std::int64_t r = 0; r < rows; ++r) {
            for (std::int64_t i = 0; i < cols; ++i) {
              delta.at(row + r, col + i) = mean[r * cols + i];
              delta.at(row + r, actions + col + i) = log_std[r * cols + i];
            }
          }
        });
  }

  void read_head(Panels<T> head, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols, T* mean,
                 T* log_std) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < cols; ++i) {
        mean[r * cols + i] = head.at(row + r, col + i);
        log_std[r * cols + i] = head.at(row + r, s_.actions + col + i);
      }
    }
  }

  UpdateState<T>& s_;
  const UpdateSettings& settings_;
  const Rows rows_;
};

}  // namespace sacfast::SACFAST_ISA
