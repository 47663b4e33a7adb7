// What each step of sac_update.h does for one CPU thread's rows and parameters.
//
// How: networks forward and backward (passes.h), the policy's head (policy.h), optimisers (descent.h). Which rows and
// parameters, and where a thread waits for others: schedule.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>

#include "../../core/losses.h"
#include "descent.h"
#include "minibatch.h"
#include "passes.h"
#include "policy.h"
#include "profile.h"
#include "schedule.h"

namespace sacfast::SACFAST_ISA {

template <class T>
class CpuSteps {
 public:
  CpuSteps(Job<T>& job, int thread)
      : job_(job),
        s_(job.state),
        settings_(job.state.settings),
        thread_(thread),
        rows_(share_of(s_.batch, thread, job.threads)),
        critic_rows_(s_.batch, rows_, thread, job.threads),
        passes_(s_, profile_),
        policy_(s_, rows_),
        bad_tensor_(job.bad_tensors[static_cast<std::size_t>(thread)].number),
        descent_(s_, profile_, bad_tensor_) {}
  CpuSteps(const CpuSteps&) = delete;
  CpuSteps& operator=(const CpuSteps&) = delete;

  // The memory of one thread's steps.
  static std::int64_t bytes() { return static_cast<std::int64_t>(sizeof(CpuSteps)) + Descent<T>::bytes(); }

  Profile& profile() { return profile_; }

  // ---- 0 and 1: minibatch, actions, target ------------------------------------------------------------------------

  void gather() {
    profile_.start(Phase::kGather);
    gather_rows(s_, rows_, job_.work->rows, job_.work->index + job_.step * s_.batch);
    alpha_ = static_cast<T>(settings_.learn_alpha ? std::exp(s_.counters.log_alpha) : settings_.alpha);
    bad_tensor_ = kNoTensor;
    if (settings_.value_network) job_.has_inputs.pass();  // there is no a'
  }

  void next_action() {
    profile_.start(Phase::kNextAction);
    LearnedNetwork<T>& actor = s_.network(Network::kActor);
    for_each_block(rows_, [&](std::int64_t row, std::int64_t rows) {
      passes_.forward(actor.shape, now(Network::kActor), s_.next, row, rows, s_.next_activations, rows_.begin);
    });
    policy_.act(s_.next_activations.head, job_.work->next_noise, 0, s_.next, s_.next_log_prob);
    job_.has_inputs.pass();
  }

  void action() {
    profile_.start(Phase::kAction);
    LearnedNetwork<T>& actor = s_.network(Network::kActor);
    for_each_block(rows_, [&](std::int64_t row, std::int64_t rows) {
      passes_.forward(actor.shape, now(Network::kActor), s_.current, row, rows, actor.activations, row);
    });
    const std::uint64_t before = streams_of_next_action(settings_.value_network, job_.work->next_noise != nullptr);
    policy_.act(actor.activations.head, job_.work->noise, before, s_.current, s_.log_prob);
  }

  void target_critics() {
    wait(job_.has_inputs);
    for_each_critic(job_.has_next_values, [&](Network critic, Rows of) {
      profile_.start(Phase::kTarget);
      passes_.target_forward(critic, of, critic_rows_.all(critic).begin);
    });
  }

  void target_value() {
    profile_.start(Phase::kTarget);
    passes_.target_forward(Network::kValue, rows_, rows_.begin);
  }

  void bellman_target() {
    const SoftTarget<T> target{alpha_, static_cast<T>(settings_.gamma)};
    for (std::int64_t row = rows_.begin; row < rows_.end; ++row) {
      s_.target[row] = settings_.value_network ? target(s_.reward[row], s_.terminated[row], s_.next_q1[row])
                                               : target(s_.reward[row], s_.terminated[row], s_.next_q1[row],
                                                        s_.next_q2[row], s_.next_log_prob[row]);
    }
  }

  // ---- 2: critics -------------------------------------------------------------------------------------------------

  // Forward and backward for one block of rows after the other, while its activations are in the cache. The rows whose
  // y this thread has made come first. The forward pass of the others needs no y, so a thread seldom waits for one.
  void critics() {
    job_.has_targets.pass();
    for (const Network critic : kCritics) {  // nobody waits for a thread that has no rows of a critic
      if (critic_rows_.all(critic).count() == 0) job_.has_critic_deltas[index_of(critic)].pass();
    }
    for (const Network critic : kCritics) critic_forward_backward(critic, critic_rows_.own(critic));
    wait(job_.has_inputs);
    for (const Network critic : kCritics) {
      for (const Rows rest : critic_rows_.others(critic)) critic_forward_backward(critic, rest, &job_.has_targets);
      if (critic_rows_.all(critic).count() > 0) job_.has_critic_deltas[index_of(critic)].pass();
    }
  }

  // A thread begins with the critic that it has run, and helps with the other one when it is early.
  void step_critics() {
    const int first = 2 * thread_ < job_.threads ? 0 : 1;
    for (const Network critic : {kCritics[first], kCritics[1 - first]}) {
      wait(job_.has_critic_deltas[index_of(critic)]);
      profile_.start(Phase::kCriticStep);
      descent_.step_all(job_.critic_units[index_of(critic)], readable(s_.stored));
    }
  }

  bool critics_are_finite() {
    return meet([this]() -> std::string {
      const CriticLosses losses = critic_losses(s_);
      job_.metric(Metric::kCriticLoss) = losses.loss;
      job_.metric(Metric::kQMean) = losses.q_mean;
      job_.metric(Metric::kTargetMean) = losses.target_mean;
      job_.metric(Metric::kAlpha) = alpha_;
      return is_finite(Metric::kCriticLoss) ? job_.bad_tensor_of_all() : "critic_loss";
    });
  }

  // ---- 3 to 5: soft value, value network, actor -------------------------------------------------------------------

  void critics_of_action() {
    for_each_critic(job_.has_values, [&](Network critic, Rows of) {
      profile_.start(Phase::kCriticOfAction);
      LearnedNetwork<T>& each = s_.network(critic);
      for_each_block(of, [&](std::int64_t row, std::int64_t rows) {
        passes_.forward(each.shape, s_.next_part(critic, Part::kParameters), s_.current, row, rows, each.activations,
                        row);
      });
    });
  }

  // v, and the gradient of -mean v with respect to each Q_i: all of it to the smaller one, half to each at a tie.
  void soft_value() {
    LearnedNetwork<T>& first = s_.network(Network::kQ1);
    LearnedNetwork<T>& second = s_.network(Network::kQ2);
    const T minus_share = static_cast<T>(-1.0 / static_cast<double>(s_.batch));
    const T zero = 0, one = 1;
    for (std::int64_t row = rows_.begin; row < rows_.end; ++row) {
      const T q1 = first.activations.scalar[row], q2 = second.activations.scalar[row];
      s_.soft_value[row] = soft_bellman_target(zero, zero, q1, q2, s_.log_prob[row], alpha_, one);
      const BellmanGrad<T> grad =
          soft_bellman_target_backward(minus_share, zero, q1, q2, s_.log_prob[row], alpha_, one);
      first.scalar_delta[row] = grad.q1;
      second.scalar_delta[row] = grad.q2;
    }
  }

  void value_backward() {
    profile_.start(Phase::kValue);
    LearnedNetwork<T>& value = s_.network(Network::kValue);
    const auto loss = SquaredError<T>::of(kValueLossWeight, s_.batch);
    for_each_block(rows_, [&](std::int64_t row, std::int64_t rows) {
      passes_.forward(value.shape, now(Network::kValue), s_.current, row, rows, value.activations, row);
      for (std::int64_t i = row; i < row + rows; ++i) {
        value.scalar_delta[i] = loss(value.activations.scalar[i], s_.soft_value[i]);
      }
      passes_.scalar_network_backward(value, now(Network::kValue), row, rows);
    });
  }

  // Each critic makes a backward pass for those rows alone to which it gave the minimum: the others get no gradient.
  void action_gradient() {
    profile_.start(Phase::kActionGradient);
    for (std::int64_t i = rows_.begin * s_.actions; i < rows_.end * s_.actions; ++i) s_.action_gradient[i] = 0;
    for (const Network critic : kCritics) {
      LearnedNetwork<T>& each = s_.network(critic);
      std::int64_t count = 0;
      for (std::int64_t row = rows_.begin; row < rows_.end; ++row) {
        if (each.scalar_delta[row] != 0) s_.row_list[rows_.begin + count++] = static_cast<std::int32_t>(row);
      }
      const T* parameters = s_.next_part(critic, Part::kParameters);
      for_each_block({0, count}, [&](std::int64_t first, std::int64_t rows) {
        const RowMap map{s_.row_list + rows_.begin + first};
        passes_.scalar_network_backward(each, parameters, rows_.begin + first, rows, map);
        passes_.add_action_gradient(each, parameters, map, rows_.begin + first, rows);
      });
    }
  }

  void actor_backward() {
    profile_.start(Phase::kActorBackward);
    LearnedNetwork<T>& actor = s_.network(Network::kActor);
    policy_.backward(actor.activations.head, alpha_, actor.head_delta);
    const Rows shared = shared_part(rows_, job_.threads);
    passes_.actor_backward(actor, {rows_.begin, shared.begin}, 0);
    passes_.actor_backward(actor, shared, 1);
    if (actor.shape.hidden() > 0) share_first_hidden_backward(actor);
  }

  bool policy_losses_are_finite() {
    return meet([this] {
      const PolicyLosses losses = policy_losses(s_);
      job_.mean_log_prob = losses.log_prob_mean;
      job_.metric(Metric::kActorLoss) = losses.actor_loss;
      job_.metric(Metric::kEntropy) = -losses.log_prob_mean;
      job_.metric(Metric::kValueLoss) = losses.value_loss;
      if (!is_finite(Metric::kActorLoss)) return "actor_loss";
      return is_finite(Metric::kValueLoss) ? "" : "value_loss";
    });
  }

  void step_actor() {
    profile_.start(Phase::kActorStep);
    descent_.step_all(job_.actor_units, readable(s_.current));
  }

  // ---- 6 and 7: temperature, targets ------------------------------------------------------------------------------

  bool commit() {
    const bool done = meet([this] {
      std::string fault = job_.bad_tensor_of_all();
      if (fault.empty() && settings_.learn_alpha) {
        fault = step_alpha(s_, job_.mean_log_prob, job_.metric(Metric::kAlphaLoss));
      }
      if (fault.empty()) job_.finish_update();
      return fault;
    });
    profile_.stop();
    return done;
  }

 private:
  T* now(Network network) { return s_.part(network, Part::kParameters); }

  // Calls forward(critic, rows) for this thread's rows of each critic. The rows that others wait for come first, so
  // that there is seldom a wait at the gate.
  template <class Forward>
  void for_each_critic(Gate& has_others, const Forward& forward) {
    for (const Network critic : kCritics) {
      for (const Rows rest : critic_rows_.others(critic)) forward(critic, rest);
    }
    has_others.pass();
    for (const Network critic : kCritics) forward(critic, critic_rows_.own(critic));
    wait(has_others);
  }

  // The backward pass waits for `has_targets`, if given.
  void critic_forward_backward(Network critic, Rows of, const Gate* has_targets = nullptr) {
    profile_.start(Phase::kCritics);
    LearnedNetwork<T>& each = s_.network(critic);
    const auto loss = SquaredError<T>::of(critic_loss_weight(settings_.value_network), s_.batch);
    for_each_block(of, [&](std::int64_t row, std::int64_t rows) {
      passes_.forward(each.shape, now(critic), s_.stored, row, rows, each.activations, row);
      if (has_targets != nullptr) {
        wait(*has_targets);
        profile_.start(Phase::kCritics);
      }
      for (std::int64_t i = row; i < row + rows; ++i) {
        each.scalar_delta[i] = loss(each.activations.scalar[i], s_.target[i]);
      }
      passes_.scalar_network_backward(each, now(critic), row, rows);
    });
  }

  // To the deltas of the actor's first hidden layer, for the rows that are shared: first this thread's, then the
  // others'.
  void share_first_hidden_backward(LearnedNetwork<T>& actor) {
    for (int i = 0; i < job_.threads; ++i) {
      SharedProduct& product = job_.first_hidden_deltas[static_cast<std::size_t>((thread_ + i) % job_.threads)];
      if (i == 0) product.has_operands.pass();
      wait(product.has_operands);
      profile_.start(Phase::kActorBackward);
      while (const Block* block = product.blocks.take()) passes_.first_hidden_backward(actor, *block);
    }
  }

  // Waits for all threads. The last one decides whether the update goes on: `last` returns what is wrong, or nothing.
  template <class Last>
  bool meet(const Last& last) {
    profile_.start(Phase::kWaiting);
    job_.barrier.meet([&] {
      std::string fault = last();
      if (fault.empty()) return;
      job_.outcome->fault = std::move(fault);
      job_.failed = true;
    });
    return !job_.failed;
  }

  // Waits until all threads have passed in this update.
  void wait(const Gate& gate) {
    profile_.start(Phase::kWaiting);
    gate.wait(job_.step + 1);
    profile_.stop();
  }

  // As the number is reported, in T.
  bool is_finite(Metric name) { return std::isfinite(static_cast<T>(job_.metric(name))); }

  Job<T>& job_;
  UpdateState<T>& s_;
  const UpdateSettings& settings_;
  const int thread_;
  const Rows rows_;  // this thread's
  const CriticRows critic_rows_;
  Profile profile_;
  NetworkPasses<T> passes_;
  PolicyHead<T> policy_;
  std::int64_t& bad_tensor_;
  Descent<T> descent_;
  T alpha_ = 0;  // before the update
};

}  // namespace sacfast::SACFAST_ISA
