// An engine of the GPU's kernels that runs on the host, with settings, a start and transitions for it.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "expect.h"
#include "host_machine.h"
#include "update/gpu_engine.h"

namespace sacfast::SACFAST_ISA {
namespace {

constexpr std::int64_t kTransitions = 60;

UpdateSettings settings_of(std::vector<std::int64_t> hidden_sizes, std::int64_t batch_size) {
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

UpdateSettings v1(UpdateSettings settings) {
  settings.value_network = true;
  settings.learn_alpha = false;
  settings.alpha = 0.3;
  return settings;
}

template <class T>
using HostEngine = GpuEngine<T, HostMachine>;

// Memory of learners, and their engine.
template <class T>
struct Simulated {
  std::vector<char> memory;
  HostEngine<T> engine;

  explicit Simulated(const UpdateSettings& settings, int learners = 1, bool reversed = false)
      : memory(static_cast<std::size_t>(HostEngine<T>::bytes(settings, learners))),
        engine(settings, learners, memory.data(), HostMachine(reversed)) {}
};

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

std::vector<std::int64_t> index_of(std::int64_t steps, std::int64_t batch, std::int64_t first = 0) {
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

}  // namespace
}  // namespace sacfast::SACFAST_ISA
