// How an update advances the state outside the networks: temperature, counts, streams of noise. Host and device.
#pragma once

#include "../core/adam.h"
#include "engine.h"

namespace sacfast::SACFAST_ISA {

// One Adam step of log_alpha down -log_alpha mean(log_prob + target_entropy); returns that loss.
template <class T>
SACFAST_HD T step_temperature(UpdateCounters& counters, T mean_log_prob, T target_entropy,
                              const AdamFactors<T>& factors) {
  const T gap = mean_log_prob + target_entropy, log_alpha = static_cast<T>(counters.log_alpha);
  const AdamState<T> before = {log_alpha, static_cast<T>(counters.log_alpha_exp_avg),
                               static_cast<T>(counters.log_alpha_exp_avg_sq)};
  const AdamState<T> after = adam_element(T(-gap), before, factors);
  counters.log_alpha = after.parameter;
  counters.log_alpha_exp_avg = after.exp_avg;
  counters.log_alpha_exp_avg_sq = after.exp_avg_sq;
  ++counters.alpha_steps;
  return -log_alpha * gap;
}

// Streams of noise that an update draws before that of a~: one for a', if there is one and it is not given.
SACFAST_HD std::uint64_t streams_of_next_action(bool value_network, bool noise_is_given) {
  return value_network || noise_is_given ? 0 : 1;
}

// After a whole update.
SACFAST_HD void count_update(UpdateCounters& counters, bool value_network, bool deterministic_policy,
                             bool next_noise_is_given, bool noise_is_given) {
  for (std::int64_t& steps : counters.adam_steps) ++steps;
  if (!deterministic_policy) {
    counters.noise_offset += streams_of_next_action(value_network, next_noise_is_given);
    if (!noise_is_given) ++counters.noise_offset;
  }
  ++counters.gradient_updates;
}

// Whether the target moves with the next update.
SACFAST_HD bool target_is_due(const UpdateCounters& counters, std::int64_t interval) {
  return (counters.gradient_updates + 1) % interval == 0;
}

// What an optimiser's step met that is not finite, as a number, in the order of networks and layers, so that the first
// can be named: the gradient of a tensor of parameters, or, where that is finite, the optimiser's second moment, which
// a large gradient's square overflows. Such a parameter would never move again.
constexpr std::int64_t kMostLayers = std::int64_t{1} << 32;
constexpr std::int64_t kNoTensor = std::int64_t{1} << 62;

SACFAST_HD std::int64_t tensor_number(Network network, std::int64_t layer, bool is_bias, bool is_moment) {
  return ((static_cast<std::int64_t>(network) * kMostLayers + layer) * 2 + (is_bias ? 1 : 0)) * 2 + (is_moment ? 1 : 0);
}

inline std::string tensor_name(std::int64_t number) {
  constexpr const char* kPrefixes[kNetworks] = {"actor", "critic.q1", "critic.q2", "value"};
  const std::int64_t tensor = number / 2, layer = tensor / 2;
  return std::string(number % 2 == 0 ? "the gradient of " : "the optimiser state of ") +
         kPrefixes[layer / kMostLayers] + ".layers." + std::to_string(layer % kMostLayers) +
         (tensor % 2 == 0 ? ".weight" : ".bias");
}

// The same of the temperature.
constexpr const char* kTemperatureMoment = "the optimiser state of log_alpha";

}  // namespace sacfast::SACFAST_ISA
