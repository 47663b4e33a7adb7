// The scalar heads of critics and value network: targets, losses, and the deltas of the layer before.
#pragma once

#include "../../../core/losses.h"
#include "rows.h"

namespace sacfast::SACFAST_ISA {

// What becomes of the outputs of scalar heads.
enum class HeadUse : int {
  kTarget,      // of the targets: y
  kCriticLoss,  // of the critics on (x, a): the gradient of their loss
  kSoftValue,   // of the critics on (x, a~): v, and the gradient of -mean v
  kValueLoss    // of V on x: the gradient of its loss
};

// The heads of one scalar network or of two, and from the gradients of their outputs to the deltas of the layer before.
template <class T>
struct ScalarHeads : Body<T> {
  using Shared = RowShared<T>;
  struct Head {
    OfLearner<const T> input;         // [B, depth]
    OfLearner<const T> weight, bias;  // [depth], [1]
    OfLearner<T> out;                 // [B]
    OfLearner<T> gradient;            // [B]; null for targets
    OfLearner<T> delta;               // [B, depth]; null for targets, and where no hidden layer is before
  };
  HeadUse use;
  int count;
  Head heads[2];
  std::int64_t batch, depth, input_stride;
  T gamma;
  bool value_network;
  OfLearner<const T> reward, terminated, next_log_prob, log_prob;  // [B]
  OfLearner<T> target, soft_value;                                 // [B]

  SACFAST_HD void operator()(const Block& block, Shared& shared) const {
    if (this->is_off(block)) return;
    const Shift here = this->shift(block);
    const BlockRows mine = rows_of(block, batch);
    const std::int64_t first = mine.first, rows = mine.count;
    sum_items<T>(
        block, shared.parts, rows * count, depth,
        [&](std::int64_t item, std::int64_t k) {
          const Head& head = heads[item % count];
          return here(head.input)[(first + item / count) * input_stride + k] * here(head.weight)[k];
        },
        [&](std::int64_t item, T sum) {
          const Head& head = heads[item % count];
          here(head.out)[first + item / count] = sum + *here(head.bias);
        });
    block.each_thread([&](int thread) {
      if (thread < rows) use_row(first + thread, here);
    });
    block.each_thread([&](int thread) {
      for (int which = 0; which < count; ++which) {
        const Head& head = heads[which];
        if (head.delta.is_null()) continue;
        for (std::int64_t i = thread; i < rows * depth; i += kBlockThreads) {
          const std::int64_t row = first + i / depth, k = i % depth;
          const bool active = here(head.input)[row * input_stride + k] > T(0);
          here(head.delta)[row * depth + k] = active ? here(head.weight)[k] * here(head.gradient)[row] : T(0);
        }
      }
    });
  }

 private:
  SACFAST_HD T out(int which, std::int64_t row, Shift here) const { return here(heads[which].out)[row]; }

  SACFAST_HD void use_row(std::int64_t row, Shift here) const {
    const T alpha = here(this->scalars)->alpha;
    switch (use) {
      case HeadUse::kTarget: {
        const SoftTarget<T> y{alpha, gamma};
        const T q1 = out(0, row, here), q2 = out(count - 1, row, here);
        const T log_prob_of_next = value_network ? T(0) : here(next_log_prob)[row];
        here(target)[row] = y(here(reward)[row], here(terminated)[row], q1, q2, log_prob_of_next);
        break;
      }
      case HeadUse::kCriticLoss: {
        const auto loss = SquaredError<T>::of(critic_loss_weight(value_network), batch);
        for (int which = 0; which < count; ++which) {
          here(heads[which].gradient)[row] = loss(out(which, row, here), here(target)[row]);
        }
        break;
      }
      case HeadUse::kSoftValue: {
        const T q1 = out(0, row, here), q2 = out(1, row, here), log_prob_of_row = here(log_prob)[row];
        const T minus_share = static_cast<T>(-1.0 / static_cast<double>(batch)), zero = 0, one = 1;
        here(soft_value)[row] = soft_bellman_target(zero, zero, q1, q2, log_prob_of_row, alpha, one);
        const BellmanGrad<T> grad =
            soft_bellman_target_backward(minus_share, zero, q1, q2, log_prob_of_row, alpha, one);
        here(heads[0].gradient)[row] = grad.q1;
        here(heads[1].gradient)[row] = grad.q2;
        break;
      }
      case HeadUse::kValueLoss:
        here(heads[0].gradient)[row] =
            SquaredError<T>::of(kValueLossWeight, batch)(out(0, row, here), here(soft_value)[row]);
        break;
    }
  }
};

}  // namespace sacfast::SACFAST_ISA
