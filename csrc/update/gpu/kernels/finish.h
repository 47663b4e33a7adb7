// The last kernel of an update: metrics, what was not finite, the temperature, and the commit.
#pragma once

#include "../../../core/losses.h"
#include "../../../core/philox.h"
#include "body.h"

namespace sacfast::SACFAST_ISA {

// The losses of the update; whether it is taken over; the temperature and the counts. One block a learner.
template <class T>
struct Finish : Body<T> {
  std::int64_t batch;
  OfLearner<const T> q1, q2, target, soft_value, log_prob;  // [B]
  OfLearner<const T> value;                                 // [B]; null without a value network
  bool learn_alpha, deterministic_policy;
  T target_entropy;

  enum Sum { kSquaredErrors, kQ, kTarget, kSoftValue, kLogProb, kSquaredValueErrors, kSums };
  struct Shared {
    double sums[kSums][kBlockThreads];
  };

  SACFAST_HD void operator()(const Block& block, Shared& shared) const {
    if (this->is_off(block)) return;
    const Shift here = this->shift(block);
    block.each_thread([&](int thread) {
      CriticSums critics;
      PolicySums policy;
      for (std::int64_t row = thread; row < batch; row += kBlockThreads) {
        critics.add(here(q1)[row], here(q2)[row], here(target)[row]);
        policy.add(here(soft_value)[row], here(log_prob)[row]);
        if (!value.is_null()) policy.add_value(here(value)[row], here(soft_value)[row]);
      }
      const double sums[kSums] = {critics.squared_errors, critics.q,       critics.target,
                                  policy.soft_value,      policy.log_prob, policy.squared_value_errors};
      for (int i = 0; i < kSums; ++i) shared.sums[i][thread] = sums[i];
    });
    for (int half = kBlockThreads / 2; half > 0; half /= 2) {
      block.each_thread([&](int thread) {
        if (thread >= half) return;
        for (int i = 0; i < kSums; ++i) shared.sums[i][thread] += shared.sums[i][thread + half];
      });
    }
    block.each_thread([&](int thread) {
      if (thread == 0) finish(*here(this->scalars), shared);
    });
  }

 private:
  SACFAST_HD void finish(GpuScalars<T>& scalars, const Shared& shared) const {
    const double inverse = 1.0 / static_cast<double>(batch);
    double metrics[kMetrics] = {};
    const auto metric = [&metrics](Metric name) -> double& { return metrics[static_cast<int>(name)]; };
    const auto sum = [&shared](Sum name) { return shared.sums[name][0]; };
    const auto mean = [inverse](double of) { return of * inverse; };
    const CriticLosses critics =
        CriticSums{sum(kSquaredErrors), sum(kQ), sum(kTarget)}.losses(critic_loss_weight(!value.is_null()), mean);
    const PolicyLosses policy = PolicySums{sum(kSoftValue), sum(kLogProb), sum(kSquaredValueErrors)}.losses(mean);
    metric(Metric::kCriticLoss) = critics.loss;
    metric(Metric::kQMean) = critics.q_mean;
    metric(Metric::kTargetMean) = critics.target_mean;
    metric(Metric::kAlpha) = scalars.alpha;
    metric(Metric::kActorLoss) = policy.actor_loss;
    metric(Metric::kEntropy) = -policy.log_prob_mean;
    metric(Metric::kValueLoss) = policy.value_loss;

    // In the order in which a step by step update would have met it.
    if (scalars.bad_place != kNoPlace) {
      scalars.bad_row = scalars.index[scalars.bad_place];
      scalars.fault = kFaultOfRow;
    } else if (!is_finite(metric(Metric::kCriticLoss))) {
      scalars.fault = kFaultOfCriticLoss;
    } else if (scalars.bad_critic != kNoTensor) {
      scalars.fault = kFaultOfTensor + scalars.bad_critic;
    } else if (!is_finite(metric(Metric::kActorLoss))) {
      scalars.fault = kFaultOfActorLoss;
    } else if (!is_finite(metric(Metric::kValueLoss))) {
      scalars.fault = kFaultOfValueLoss;
    } else if (scalars.bad_policy != kNoTensor) {
      scalars.fault = kFaultOfTensor + scalars.bad_policy;
    }
    if (scalars.fault != kNoFault) return;

    UpdateCounters counters = scalars.counters;
    if (learn_alpha) {
      metric(Metric::kAlphaLoss) = step_temperature(counters, static_cast<T>(policy.log_prob_mean), target_entropy,
                                                    scalars.factors[kOfTemperature]);
      if (!is_finite(counters.log_alpha_exp_avg_sq)) {
        scalars.fault = kFaultOfTemperature;
        return;
      }
    }
    count_update(counters, !value.is_null(), deterministic_policy, scalars.next_noise != nullptr,
                 scalars.noise != nullptr);
    scalars.counters = counters;
    scalars.now ^= 1;
    ++scalars.step;
    ++scalars.updates;
    for (int i = 0; i < kMetrics; ++i) scalars.metrics[i] += metrics[i];
  }

  // As the number is reported, in T.
  SACFAST_HD static bool is_finite(double metric) {
    const T value = static_cast<T>(metric);
    return value - value == T(0);
  }
};

}  // namespace sacfast::SACFAST_ISA
