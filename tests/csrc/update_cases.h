// What the tests of the GPU's engine share: settings, starts, states and replay buffers.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "expect.h"
#include "update/engine.h"

namespace sacfast::SACFAST_ISA {

constexpr std::int64_t kTransitions = 60;
// What the memory holds at first: as a number it is NaN, so that a kernel which reads what none has written is found.
constexpr char kNeverWritten = '\xff';

inline UpdateSettings settings_of(std::vector<std::int64_t> hidden_sizes, std::int64_t batch_size) {
  UpdateSettings settings;
  settings.observation_dim = 5;
  settings.action_dim = 3;
  settings.batch_size = batch_size;
  settings.hidden_sizes = std::move(hidden_sizes);
  settings.gamma = 0.99;
  settings.reward_scale = 1.5;
  settings.target_entropy = -3;
  settings.actor_lr = 3e-3;
  settings.critic_lr = 2e-3;
  settings.alpha_lr = 1e-3;
  settings.value_lr = 4e-3;
  settings.adam_beta1 = 0.9;
  settings.adam_beta2 = 0.999;
  settings.adam_eps = 1e-8;
  settings.tau = 0.05;
  settings.log_std_low = -20;
  settings.log_std_high = 2;
  return settings;
}

inline UpdateSettings v1(UpdateSettings settings) {
  settings.value_network = true;
  settings.learn_alpha = false;
  settings.alpha = 0.3;
  return settings;
}

template <class Visit>
void for_each_part(const UpdateSettings& settings, const Visit& visit) {
  for (int index = 0; index < kNetworks; ++index) {
    const auto network = static_cast<Network>(index);
    if (network == Network::kValue && !settings.value_network) continue;
    const bool followed =
        settings.value_network ? network == Network::kValue : network == Network::kQ1 || network == Network::kQ2;
    for (int part = 0; part < kParts; ++part) {
      if (static_cast<Part>(part) != Part::kTarget || followed) visit(network, static_cast<Part>(part));
    }
  }
}

// Gives any engine the start that belongs to `seed`.
template <class T>
void start(UpdateEngine<T>& engine, const UpdateSettings& settings, std::uint64_t seed) {
  Mixer mixer{seed};
  for_each_part(settings, [&](Network network, Part part) {
    std::vector<T> values(static_cast<std::size_t>(engine.parameter_count(network)));
    // Some of the optimisers' past, with a positive second moment.
    for (T& each : values) each = static_cast<T>(0.3 * mixer.uniform());
    if (part == Part::kExpAvg || part == Part::kExpAvgSq) {
      for (T& each : values) each = each * each;
    }
    engine.write(network, part, values.data());
  });
  UpdateCounters& counters = engine.counters();
  counters.noise_seed = seed;
  counters.noise_offset = 7;
  counters.log_alpha = -0.4;
  counters.gradient_updates = 3;
  counters.alpha_steps = 3;
  for (std::int64_t& steps : counters.adam_steps) steps = 3;
}

template <class T>
std::vector<double> state_of(UpdateEngine<T>& engine, const UpdateSettings& settings) {
  const UpdateCounters counters = engine.counters();
  std::vector<double> all = {counters.log_alpha,
                             counters.log_alpha_exp_avg,
                             counters.log_alpha_exp_avg_sq,
                             static_cast<double>(counters.alpha_steps),
                             static_cast<double>(counters.gradient_updates),
                             static_cast<double>(counters.noise_offset)};
  for (const std::int64_t steps : counters.adam_steps) all.push_back(static_cast<double>(steps));
  for_each_part(settings, [&](Network network, Part part) {
    std::vector<T> values(static_cast<std::size_t>(engine.parameter_count(network)));
    engine.read(network, part, values.data());
    all.insert(all.end(), values.begin(), values.end());
  });
  return all;
}

struct Transitions {
  std::int64_t width;
  std::vector<float> rows;

  Transitions(const UpdateSettings& settings, std::uint64_t seed)
      : width(2 * settings.observation_dim + settings.action_dim + 2),
        rows(static_cast<std::size_t>(kTransitions * width)) {
    Mixer mixer{seed};
    for (float& each : rows) each = static_cast<float>(mixer.uniform());
    for (std::int64_t row = 0; row < kTransitions; ++row) at(row, width - 1) = row % 3 == 0 ? 1.0f : 0.0f;
  }
  float& at(std::int64_t row, std::int64_t col) { return rows[static_cast<std::size_t>(row * width + col)]; }
};

inline std::vector<std::int64_t> index_of(std::int64_t steps, std::int64_t batch, std::int64_t first = 0) {
  std::vector<std::int64_t> index(static_cast<std::size_t>(steps * batch));
  for (std::size_t i = 0; i < index.size(); ++i) index[i] = (static_cast<std::int64_t>(i) * 7 + first) % kTransitions;
  return index;
}

template <class T>
UpdateWork<T> work_of(const Transitions& transitions, const std::vector<std::int64_t>& index, std::int64_t steps) {
  UpdateWork<T> work;
  work.rows = transitions.rows.data();
  work.index = index.data();
  work.steps = steps;
  return work;
}

inline QueuedWork<float> queued(const Transitions& transitions, const std::vector<std::int64_t>& index,
                                std::int64_t steps) {
  return {transitions.rows.data(), index.data(), steps, nullptr};
}

}  // namespace sacfast::SACFAST_ISA
