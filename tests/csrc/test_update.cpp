// csrc/core/thread_team.h and the update engine, without Python: whole jobs, equal bits for any number of threads,
// nothing changed by an update that fails, and no allocation while updates run.
//
// Compiled with csrc/update/cpu/engine.cpp, csrc/core/thread_team.cpp and csrc/core/cpu_level.cpp. Whether an update
// computes the right numbers is tested against the reference learner, in tests/test_fused.py.
//
// Exits with 1 if a check fails.
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "core/thread_team.h"
#include "expect.h"
#include "update/engine.h"

// ---- Allocations, counted ----------------------------------------------------------------------------------------

namespace {

std::atomic<std::int64_t> allocations{0};

// The sanitizers have operators of their own, which find more.
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kCounts = false;
#else
constexpr bool kCounts = true;
#endif

}  // namespace

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Not inlined: a compiler that sees through them takes free for the partner of some other new.
__attribute__((noinline)) void* operator new(std::size_t size) {
  ++allocations;
  void* memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
#endif

namespace sacfast {
namespace {

// ---- Threads ------------------------------------------------------------------------------------------------------

void check_jobs(int threads) {
  ThreadTeam team(threads);
  EXPECT(team.size() == threads);
  std::vector<int> calls(static_cast<std::size_t>(threads), 0);  // plain ints: `run` must order them
  constexpr int jobs = 2000;
  int whole = 0;
  for (int job = 0; job < jobs; ++job) {
    team.run([&](int thread) { ++calls[static_cast<std::size_t>(thread)]; });
    whole += std::all_of(calls.begin(), calls.end(), [job](int count) { return count == job + 1; });
  }
  EXPECT(whole == jobs);
}

void check_barrier(int threads) {
  ThreadTeam team(threads);
  Barrier barrier(threads);
  constexpr int rounds = 1000;
  std::vector<int> arrived(static_cast<std::size_t>(threads), 0);
  int meetings = 0;  // written by the last to arrive, read by all
  std::atomic<int> wrong{0};
  for (int job = 0; job < 2; ++job) {
    const int before = meetings;
    team.run([&](int thread) {
      for (int round = 1; round <= rounds; ++round) {
        ++arrived[static_cast<std::size_t>(thread)];
        barrier.meet([&] {
          const int expected = before + round;
          wrong += !std::all_of(arrived.begin(), arrived.end(), [expected](int count) { return count == expected; });
          ++meetings;
        });
        wrong += meetings != before + round;  // until all have met again, nobody writes it
        barrier.meet([] {});
      }
    });
  }
  EXPECT(wrong == 0);
  EXPECT(meetings == 2 * rounds);
}

// What a thread wrote before it passed a gate is there for all that waited.
void check_gate(int threads) {
  ThreadTeam team(threads);
  Gate gate(threads);
  constexpr int rounds = 1000;
  std::vector<std::vector<int>> written(rounds, std::vector<int>(static_cast<std::size_t>(threads), 0));
  std::atomic<int> wrong{0};
  for (int job = 1; job <= 2; ++job) {
    gate.reset();
    team.run([&](int thread) {
      for (int round = 0; round < rounds; ++round) {
        std::vector<int>& all = written[static_cast<std::size_t>(round)];
        all[static_cast<std::size_t>(thread)] = job;
        gate.pass();
        gate.wait(round + 1);
        wrong += !std::all_of(all.begin(), all.end(), [job](int value) { return value == job; });
      }
    });
  }
  EXPECT(wrong == 0);
}

void check_teams_come_and_go() {
  for (int i = 0; i < 200; ++i) {
    const ThreadTeam idle(1 + i % 4);  // taken down without a job
    ThreadTeam used(1 + i % 4);
    std::atomic<int> calls{0};
    used.run([&](int) { ++calls; });
    EXPECT(calls == used.size());
  }
}

// Two teams at work at once know nothing of each other.
void check_two_teams() {
  std::atomic<int> calls{0};
  const auto work = [&calls] {
    ThreadTeam team(2);
    for (int job = 0; job < 500; ++job) team.run([&](int) { ++calls; });
  };
  std::thread other(work);
  work();
  other.join();
  EXPECT(calls == 2 * 2 * 500);
}

}  // namespace

namespace SACFAST_ISA {
namespace {

// ---- Engine -------------------------------------------------------------------------------------------------------

constexpr std::int64_t kTransitions = 50;

UpdateSettings settings_of(bool value_network, std::vector<std::int64_t> hidden_sizes, std::int64_t batch_size) {
  UpdateSettings settings;
  settings.observation_dim = 5;
  settings.action_dim = 3;
  settings.batch_size = batch_size;
  settings.hidden_sizes = std::move(hidden_sizes);
  settings.gamma = 0.99;
  settings.learn_alpha = !value_network;
  settings.alpha = 0.2;
  settings.target_entropy = -3;
  settings.actor_lr = settings.critic_lr = settings.alpha_lr = settings.value_lr = 3e-3;
  settings.adam_beta1 = 0.9;
  settings.adam_beta2 = 0.999;
  settings.adam_eps = 1e-8;
  settings.tau = 0.005;
  settings.target_update_interval = 2;
  settings.value_network = value_network;
  settings.log_std_low = -20;
  settings.log_std_high = 2;
  return settings;
}

// A learner with its transitions and everything that it holds.
template <class T>
class Learner {
 public:
  explicit Learner(const UpdateSettings& settings) : settings_(settings) {
    make_engine(settings, engine_);
    Mixer mixer{1};
    width_ = 2 * settings.observation_dim + settings.action_dim + 2;
    rows.resize(static_cast<std::size_t>(kTransitions * width_));
    for (float& each : rows) each = static_cast<float>(mixer.uniform());
    for (std::int64_t row = 0; row < kTransitions; ++row) at(row, width_ - 1) = row % 3 == 0 ? 1.0f : 0.0f;
    for_each_part([&](Network network, Part part, std::int64_t count) {
      if (part == Part::kExpAvg || part == Part::kExpAvgSq) return;
      std::vector<T> values(static_cast<std::size_t>(count));
      for (T& each : values) each = static_cast<T>(0.3 * mixer.uniform());
      engine_->write(network, part, values.data());
    });
    engine_->counters().noise_seed = 4;
  }

  float& at(std::int64_t row, std::int64_t col) { return rows[static_cast<std::size_t>(row * width_ + col)]; }
  float& reward(std::int64_t row) { return at(row, settings_.observation_dim + settings_.action_dim); }

  UpdateOutcome update(std::int64_t steps, int threads) {
    std::vector<std::int64_t> index(static_cast<std::size_t>(steps * settings_.batch_size));
    for (std::size_t i = 0; i < index.size(); ++i) index[i] = static_cast<std::int64_t>(i * 7 % kTransitions);
    UpdateWork<T> work;
    work.rows = rows.data();
    work.index = index.data();
    work.steps = steps;
    work.threads = threads;
    const std::int64_t before = allocations;
    UpdateOutcome outcome = engine_->update(work);
    allocated = allocations - before;
    return outcome;
  }

  std::vector<double> state() {
    const UpdateCounters& counters = engine_->counters();
    std::vector<double> all = {counters.log_alpha,
                               counters.log_alpha_exp_avg,
                               counters.log_alpha_exp_avg_sq,
                               static_cast<double>(counters.alpha_steps),
                               static_cast<double>(counters.gradient_updates),
                               static_cast<double>(counters.noise_offset)};
    for (const std::int64_t steps : counters.adam_steps) all.push_back(static_cast<double>(steps));
    for_each_part([&](Network network, Part part, std::int64_t count) {
      std::vector<T> values(static_cast<std::size_t>(count));
      engine_->read(network, part, values.data());
      all.insert(all.end(), values.begin(), values.end());
    });
    return all;
  }

  UpdateEngine<T>& engine() { return *engine_; }

  std::vector<float> rows;
  std::int64_t allocated = 0;  // by the last update

 private:
  template <class Visit>
  void for_each_part(const Visit& visit) {
    for (int index = 0; index < kNetworks; ++index) {
      const auto network = static_cast<Network>(index);
      const std::int64_t count = engine_->parameter_count(network);
      if (count == 0) continue;
      const bool followed =
          settings_.value_network ? network == Network::kValue : network == Network::kQ1 || network == Network::kQ2;
      for (int part = 0; part < kParts; ++part) {
        if (static_cast<Part>(part) != Part::kTarget || followed) visit(network, static_cast<Part>(part), count);
      }
    }
  }

  UpdateSettings settings_;
  std::int64_t width_ = 0;
  std::unique_ptr<UpdateEngine<T>> engine_;
};

bool all_finite(const std::vector<double>& values) {
  return std::all_of(values.begin(), values.end(), [](double value) { return std::isfinite(value); });
}

template <class T>
void check_updates(const UpdateSettings& settings) {
  std::vector<double> expected;
  double expected_metrics[kMetrics];
  for (const int threads : {1, 2, 3, 5}) {
    Learner<T> learner(settings);
    const std::vector<double> start = learner.state();
    const UpdateOutcome outcome = learner.update(6, threads);
    EXPECT(outcome.fault.empty() && outcome.updates == 6);
    const std::vector<double> end = learner.state();
    EXPECT(all_finite(end) && end != start);
    EXPECT(learner.engine().counters().gradient_updates == 6);
    EXPECT(std::all_of(outcome.metrics, outcome.metrics + kMetrics, [](double value) { return std::isfinite(value); }));
    if (threads == 1) {
      expected = end;
      std::copy(outcome.metrics, outcome.metrics + kMetrics, expected_metrics);
    }
    EXPECT(end == expected);  // every bit: none is a NaN
    EXPECT(std::equal(outcome.metrics, outcome.metrics + kMetrics, expected_metrics));
  }

  // The number of threads may change from call to call.
  Learner<T> changing(settings), steady(settings);
  for (const int threads : {2, 1, 3, 3, 2}) {
    EXPECT(changing.update(1, threads).updates == 1);
    EXPECT(steady.update(1, 1).updates == 1);
  }
  EXPECT(changing.state() == steady.state());
}

template <class T>
void check_round_trip(const UpdateSettings& settings) {
  Learner<T> learner(settings);
  for (int index = 0; index < kNetworks; ++index) {
    const auto network = static_cast<Network>(index);
    const std::int64_t count = learner.engine().parameter_count(network);
    if (count == 0) continue;
    std::vector<T> values(static_cast<std::size_t>(count)), back(values.size());
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<T>(i + 1);
    learner.engine().write(network, Part::kExpAvg, values.data());
    learner.engine().read(network, Part::kExpAvg, back.data());
    EXPECT(back == values);
  }
}

template <class T>
void check_failure(const UpdateSettings& settings) {
  for (const int threads : {1, 2, 3}) {
    Learner<T> learner(settings);
    learner.update(2, threads);
    const std::vector<double> before = learner.state();
    learner.reward(0) = std::numeric_limits<float>::quiet_NaN();
    const UpdateOutcome outcome = learner.update(3, threads);
    EXPECT(outcome.fault == "critic_loss" && outcome.updates == 0);
    EXPECT(learner.state() == before);
  }
}

// At x' = 0 the policy is harmless, at x its standard deviation overflows: the critics' step is made, and not kept.
template <class T>
void check_failure_after_the_critics_step(bool value_network) {
  UpdateSettings settings = settings_of(value_network, {}, 16);
  settings.log_std_bounding = LogStdBounding::kNone;
  for (const int threads : {1, 2, 3}) {
    Learner<T> learner(settings);
    for (std::int64_t row = 0; row < kTransitions; ++row) {
      for (std::int64_t i = 0; i < settings.observation_dim; ++i) {
        learner.at(row, i) = 1.0f;
        learner.at(row, settings.observation_dim + settings.action_dim + 1 + i) = 0.0f;
      }
    }
    std::vector<T> actor(static_cast<std::size_t>(learner.engine().parameter_count(Network::kActor)), T(1e37));
    std::fill(actor.end() - 2 * settings.action_dim, actor.end(), T(0));  // the biases
    learner.engine().write(Network::kActor, Part::kParameters, actor.data());
    const std::vector<double> before = learner.state();
    const UpdateOutcome outcome = learner.update(1, threads);
    EXPECT(outcome.fault == "actor_loss" && outcome.updates == 0);
    EXPECT(learner.state() == before);
  }
}

// A failed update leaves nothing behind, not in what no state shows either: transposed weights, gradients, threads.
template <class T>
void check_nothing_is_left_of_a_failure(const UpdateSettings& settings) {
  Learner<T> failing(settings), twin(settings);
  failing.update(2, 2);
  twin.update(2, 2);
  const std::vector<float> good = failing.rows;
  for (const float bad : {std::numeric_limits<float>::infinity(), 3e38f, std::numeric_limits<float>::quiet_NaN()}) {
    for (const std::int64_t col : {std::int64_t{0}, settings.observation_dim, settings.observation_dim + 4}) {
      failing.rows = good;
      for (std::int64_t row = 0; row < kTransitions; ++row) failing.at(row, col) = bad;
      EXPECT(!failing.update(1, 2).fault.empty());
    }
  }
  failing.rows = good;
  EXPECT(failing.state() == twin.state());
  failing.update(4, 2);
  twin.update(4, 2);
  EXPECT(failing.state() == twin.state());
}

template <class T>
void check_no_allocation(const UpdateSettings& settings) {
  for (const int threads : {1, 2}) {
    Learner<T> learner(settings);
    learner.update(1, threads);  // starts the threads
    EXPECT(learner.allocated > 0 || !kCounts);
    EXPECT(learner.update(1000, threads).updates == 1000);
    if (learner.allocated != 0) std::printf("%ld allocations\n", static_cast<long>(learner.allocated));
    EXPECT(learner.allocated == 0);
  }
}

#if defined(__GLIBC__)
// While it lives, no thread can start: none has so much room for its stack.
class NoMoreThreads {
 public:
  NoMoreThreads() {
    pthread_getattr_default_np(&before_);
    pthread_attr_t huge;
    pthread_attr_init(&huge);
    pthread_attr_setstacksize(&huge, std::size_t{1} << 47);
    EXPECT(pthread_setattr_default_np(&huge) == 0);
    pthread_attr_destroy(&huge);
  }
  ~NoMoreThreads() {
    pthread_setattr_default_np(&before_);
    pthread_attr_destroy(&before_);
  }

 private:
  pthread_attr_t before_;
};

// Then the update is refused with an exception, and all is as it was.
void check_threads_that_do_not_start() {
  const UpdateSettings settings = settings_of(false, {16, 8}, 16);
  for (const int threads_before : {1, 2}) {
    Learner<float> learner(settings), twin(settings);
    learner.update(1, threads_before);
    twin.update(1, 1);
    int refused = 0;
    {
      const NoMoreThreads none;
      for (int i = 0; i < 2; ++i) {
        try {
          learner.update(1, 3);
        } catch (const std::runtime_error&) {
          ++refused;
        }
      }
      EXPECT(refused == 2);
      EXPECT(learner.state() == twin.state());
      EXPECT(learner.update(1, 1).updates == 1);  // which needs no further thread
    }
    EXPECT(learner.update(1, 3).updates == 1);
    twin.update(1, 1);
    twin.update(1, 1);
    EXPECT(learner.state() == twin.state());
  }
}
#endif

void check_claims() {
  const UpdateSettings settings = settings_of(false, {64, 64}, 48);
  Learner<float> learner(settings), twin(settings);
  std::atomic<int> refused{0}, made{0};
  std::vector<std::int64_t> index(static_cast<std::size_t>(settings.batch_size) * 50, 1);
  const auto work = [&] {
    UpdateWork<float> each;
    each.rows = learner.rows.data();
    each.index = index.data();
    each.steps = 50;
    each.threads = 2;
    for (int i = 0; i < 5; ++i) {
      try {
        made += static_cast<int>(learner.engine().update(each).updates);
      } catch (const std::runtime_error& error) {
        refused += std::string(error.what()) == "learner: in use by another thread";
      }
    }
  };
  std::thread other(work);
  work();
  other.join();
  EXPECT(made + 50 * refused == 10 * 50);

  // Nothing is read while an update is under way: it would be torn.
  std::vector<float> actor(static_cast<std::size_t>(learner.engine().parameter_count(Network::kActor)));
  std::atomic<int> reads_refused{0}, profiles_refused{0}, rounds{0};
  const auto go_on = [&] { return (reads_refused == 0 || profiles_refused == 0) && rounds < 1000; };
  std::thread updates([&] {
    for (; go_on(); ++rounds) work();
  });
  while (go_on()) {
    std::this_thread::sleep_for(std::chrono::microseconds(200));  // most of the time the updates find it free
    try {
      learner.engine().read(Network::kActor, Part::kParameters, actor.data());
    } catch (const std::runtime_error& error) {
      reads_refused += std::string(error.what()) == "learner: in use by another thread";
    }
    try {
      learner.engine().profile();
    } catch (const std::runtime_error& error) {
      profiles_refused += std::string(error.what()) == "learner: in use by another thread";
    }
  }
  updates.join();
  EXPECT(reads_refused > 0);
  EXPECT(profiles_refused > 0);
  EXPECT(learner.engine().counters().gradient_updates == made);
}

int run() {
  for (const int threads : {1, 2, 3, 5}) {
    check_jobs(threads);
    check_barrier(threads);
    check_gate(threads);
  }
  check_teams_come_and_go();
  check_two_teams();
  for (const bool value_network : {false, true}) {
    check_updates<float>(settings_of(value_network, {33, 17}, 37));
    check_updates<float>(settings_of(value_network, {}, 16));
    check_updates<float>(settings_of(value_network, {8}, 2));  // more threads than rows
    check_updates<float>(settings_of(value_network, {20, 20}, 150));
    check_updates<double>(settings_of(value_network, {9, 4, 5}, 10));
    check_round_trip<float>(settings_of(value_network, {33, 17}, 3));
    check_failure<float>(settings_of(value_network, {33, 17}, 37));
    check_failure_after_the_critics_step<float>(value_network);
    check_nothing_is_left_of_a_failure<float>(settings_of(value_network, {33, 17}, 37));
    check_nothing_is_left_of_a_failure<float>(settings_of(value_network, {}, 16));
    check_no_allocation<float>(settings_of(value_network, {16, 8}, 16));
  }
  check_claims();
#if defined(__GLIBC__)
  if (kCounts) check_threads_that_do_not_start();  // the sanitizers end the process
#endif
  return report();
}

}  // namespace
}  // namespace SACFAST_ISA
}  // namespace sacfast

int main() { return sacfast::SACFAST_ISA::run(); }
