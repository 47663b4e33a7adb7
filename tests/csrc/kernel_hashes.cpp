// Prints hashes of the GPU's kernels' updates, run on the host: "case <tab> tensor <tab> hash", for
// benchmarks/golden.py to compare two builds. Checks nothing else; exits with 1 if an update fails.
#include <cstdint>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "simulated.h"

namespace sacfast::SACFAST_ISA {
namespace {

// FNV-1a, 64 bits: tells whether bytes are the same, against no attacker.
std::uint64_t hash_of(const void* data, std::size_t bytes) {
  std::uint64_t hash = 0xcbf29ce484222325u;
  for (std::size_t i = 0; i < bytes; ++i) {
    hash = (hash ^ static_cast<const unsigned char*>(data)[i]) * 0x100000001b3u;
  }
  return hash;
}

void print_hash(const std::string& name, const void* data, std::size_t bytes) {
  std::printf("%s\t%016llx\n", name.c_str(), static_cast<unsigned long long>(hash_of(data, bytes)));
}

template <class T>
void print_hashes_of(const std::string& name, const UpdateSettings& settings) {
  constexpr std::int64_t steps = 10;
  const Transitions transitions(settings, 5);
  const std::vector<std::int64_t> index = index_of(steps, settings.batch_size);
  Simulated<T> gpu(settings);
  start<T>(gpu.engine, settings, 4);
  const UpdateOutcome outcome = gpu.engine.update(work_of<T>(transitions, index, steps));
  EXPECT(outcome.fault.empty() && outcome.updates == steps);
  print_hash(name + "\tmetrics", outcome.metrics, sizeof(outcome.metrics));
  const UpdateCounters counters = gpu.engine.counters();
  print_hash(name + "\tlog_alpha", &counters.log_alpha, sizeof(double));
  print_hash(name + "\tlog_alpha_exp_avg", &counters.log_alpha_exp_avg, sizeof(double));
  print_hash(name + "\tlog_alpha_exp_avg_sq", &counters.log_alpha_exp_avg_sq, sizeof(double));
  print_hash(name + "\tadam_steps", counters.adam_steps, sizeof(counters.adam_steps));
  print_hash(name + "\talpha_steps", &counters.alpha_steps, sizeof(counters.alpha_steps));
  print_hash(name + "\tgradient_updates", &counters.gradient_updates, sizeof(counters.gradient_updates));
  print_hash(name + "\tnoise_offset", &counters.noise_offset, sizeof(counters.noise_offset));
  const char* const networks[] = {"actor", "q1", "q2", "value"};
  const char* const parts[] = {"parameters", "exp_avg", "exp_avg_sq", "target"};
  for_each_part(settings, [&](Network network, Part part) {
    std::vector<T> values(static_cast<std::size_t>(gpu.engine.parameter_count(network)));
    gpu.engine.read(network, part, values.data());
    print_hash(name + "\t" + networks[static_cast<int>(network)] + "/" + parts[static_cast<int>(part)], values.data(),
               values.size() * sizeof(T));
  });
}

std::vector<std::pair<std::string, UpdateSettings>> hashed_cases() {
  const UpdateSettings usual = settings_of({33, 70}, 37);
  std::vector<std::pair<std::string, UpdateSettings>> cases = {{"usual", usual}, {"v1", v1(usual)}};
  const auto add = [&](const char* name, UpdateSettings settings, const auto& change) {
    change(settings);
    cases.emplace_back(name, settings);
  };
  add("deterministic", usual, [](UpdateSettings& each) { each.deterministic_policy = true; });
  add("fixed alpha", usual, [](UpdateSettings& each) { each.learn_alpha = false, each.alpha = 0.2; });
  add("no alpha", usual, [](UpdateSettings& each) { each.learn_alpha = false, each.alpha = 0; });
  add("hard", usual, [](UpdateSettings& each) { each.hard_target_update = true, each.target_update_interval = 3; });
  add("v1, hard", v1(usual), [](UpdateSettings& each) { each.hard_target_update = true; });
  add("interval", usual, [](UpdateSettings& each) { each.target_update_interval = 3; });
  add("tanh bounds", usual, [](UpdateSettings& each) { each.log_std_bounding = LogStdBounding::kTanh; });
  add("no bounds", usual, [](UpdateSettings& each) { each.log_std_bounding = LogStdBounding::kNone; });
  add("betas", usual, [](UpdateSettings& each) { each.adam_beta1 = 0.5, each.adam_beta2 = 0.9, each.adam_eps = 1e-3; });
  add("gamma", usual, [](UpdateSettings& each) { each.gamma = 0.5, each.reward_scale = 5; });
  add("wide", settings_of({40, 300}, 37),
      [](UpdateSettings& each) { each.observation_dim = 67, each.action_dim = 60; });
  cases.emplace_back("linear", settings_of({}, 16));
  cases.emplace_back("one row", settings_of({9}, 1));
  cases.emplace_back("deep", settings_of({4, 5, 6, 40}, 70));
  cases.emplace_back("several blocks", settings_of({100, 20}, 130));
  cases.emplace_back("whole tiles", settings_of({64, 64}, 64));
  return cases;
}

int print_hashes() {
  for (const auto& [name, settings] : hashed_cases()) {
    print_hashes_of<float>(name + ", float32", settings);
    print_hashes_of<double>(name + ", float64", settings);
    UpdateSettings rounded = settings;
    rounded.matmul_precision = Precision::kTf32;
    print_hashes_of<float>(name + ", tf32", rounded);
    rounded.matmul_precision = Precision::kBfloat16;
    print_hashes_of<float>(name + ", bfloat16", rounded);
  }
  return failures == 0 ? 0 : 1;  // EXPECT has said which
}

}  // namespace
}  // namespace sacfast::SACFAST_ISA

int main() { return sacfast::SACFAST_ISA::print_hashes(); }
