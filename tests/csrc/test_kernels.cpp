// The GPU's kernels and their engine (csrc/update/gpu), run on the host and
// compared with the CPU engine: the same updates, the same faults, several learners side by side, and no dependence on
// the order of blocks and threads.
//
// Compiled with csrc/update/cpu/engine.cpp, csrc/core/thread_team.cpp and csrc/core/cpu_level.cpp.
//
// Exits with 1 if a check fails.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "simulated.h"

namespace sacfast::SACFAST_ISA {
namespace {

// A kernel that forgets whose memory it works on does not compile: a pointer of a learner is no pointer by itself.
template <class P, class = void>
constexpr bool kIsRead = false;
template <class P>
constexpr bool kIsRead<P, std::void_t<decltype(*std::declval<P>())>> = true;
template <class P, class = void>
constexpr bool kIsIndexed = false;
template <class P>
constexpr bool kIsIndexed<P, std::void_t<decltype(std::declval<P>()[0])>> = true;
static_assert(kIsRead<float*> && !kIsRead<OfLearner<float>>);
static_assert(kIsIndexed<float*> && !kIsIndexed<OfLearner<float>>);
static_assert(!std::is_convertible_v<OfLearner<float>, float*> && !std::is_convertible_v<OfLearner<float>, bool>);

// The largest difference, as a share of the larger of one and the value; infinite where it is not a number.
double difference(const std::vector<double>& a, const std::vector<double>& b) {
  if (a.size() != b.size()) return std::numeric_limits<double>::infinity();
  double most = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const double gap = std::fabs(a[i] - b[i]) / std::max(1.0, std::fabs(a[i]));
    most = std::isnan(gap) ? std::numeric_limits<double>::infinity() : std::max(most, gap);
  }
  return most;
}

template <class T>
void check_same_updates(const char* name, const UpdateSettings& settings, bool given_noise = false) {
  // In double both round alike, but for the order of sums; in float Adam's division by a small root magnifies that.
  const double tolerance = sizeof(T) == 8 ? 1e-11 : 5e-5;
  const Transitions transitions(settings, 5);
  std::unique_ptr<UpdateEngine<T>> cpu;
  make_engine(settings, cpu);
  Simulated<T> gpu(settings), reversed(settings, 1, true);
  for (UpdateEngine<T>* engine :
       {cpu.get(), static_cast<UpdateEngine<T>*>(&gpu.engine), static_cast<UpdateEngine<T>*>(&reversed.engine)}) {
    start(*engine, settings, 4);
  }
  std::vector<T> noise(static_cast<std::size_t>(settings.batch_size * settings.action_dim));
  Mixer mixer{8};
  for (T& each : noise) each = static_cast<T>(2 * mixer.uniform());
  for (const std::int64_t steps : {1, 1, 3}) {
    const std::vector<std::int64_t> index = index_of(steps, settings.batch_size, steps);
    UpdateWork<T> work = work_of<T>(transitions, index, steps);
    if (given_noise) {
      work.noise = noise.data();
      if (!settings.value_network) work.next_noise = noise.data();
    }
    const UpdateOutcome expected = cpu->update(work), got = gpu.engine.update(work),
                        other = reversed.engine.update(work);
    EXPECT(expected.fault.empty() && got.fault.empty() && got.updates == steps);
    const std::vector<double> state = state_of(gpu.engine, settings);
    const double apart = difference(state_of(*cpu, settings), state);
    const double metrics_apart =
        difference({expected.metrics, expected.metrics + kMetrics}, {got.metrics, got.metrics + kMetrics});
    if (!(apart <= tolerance && metrics_apart <= tolerance)) {
      std::printf("%s: parameters differ by %g, metrics by %g\n", name, apart, metrics_apart);
    }
    EXPECT(apart <= tolerance);
    EXPECT(metrics_apart <= tolerance);
    EXPECT(state == state_of(reversed.engine, settings));  // every bit
    EXPECT(std::equal(got.metrics, got.metrics + kMetrics, other.metrics));
  }
}

// A block's product of the parts it holds: every element of the tile once, from operands rounded as they should be.
template <class T, class Tile, class Round>
void check_tile(const Round& round) {
  std::vector<T> left(kDepth * kPitch), right(left.size());
  Mixer mixer{3};
  for (T& each : left) each = static_cast<T>(mixer.uniform());
  for (T& each : right) each = static_cast<T>(mixer.uniform());
  std::vector<double> found(kTile * kTile, 0);
  std::vector<int> parts(found.size(), 0);
  for (int thread = 0; thread < kBlockThreads; ++thread) {
    typename Tile::Sums sums = {};
    Tile::add(thread, left.data(), right.data(), sums);
    Tile::for_each(thread, sums, [&](int group, int row, int col, T sum) {
      EXPECT(group >= 0 && group < Tile::kGroups);
      found[static_cast<std::size_t>(row * kTile + col)] += sum;
      ++parts[static_cast<std::size_t>(row * kTile + col)];
    });
  }
  double apart = 0;
  for (int row = 0; row < kTile; ++row) {
    for (int col = 0; col < kTile; ++col) {
      double sum = 0;
      for (int k = 0; k < kDepth; ++k) {
        sum += static_cast<double>(round(left[static_cast<std::size_t>(k * kPitch + row)])) *
               static_cast<double>(round(right[static_cast<std::size_t>(k * kPitch + col)]));
      }
      apart = std::max(apart, std::fabs(sum - found[static_cast<std::size_t>(row * kTile + col)]));
    }
  }
  EXPECT(apart < (sizeof(T) == 8 ? 1e-13 : 1e-5));
  EXPECT(std::all_of(parts.begin(), parts.end(), [](int count) { return count == Tile::kGroups; }));
}

// float with `bits` of its 24 bits of precision, by arithmetic alone.
float with_bits(float value, int bits) {
  int exponent = 0;
  const double fraction = std::frexp(static_cast<double>(value), &exponent);
  return static_cast<float>(std::ldexp(std::nearbyint(std::ldexp(fraction, bits)), exponent - bits));
}

void check_tiles() {
  check_tile<float, ExactTile<float>>([](float value) { return value; });
  check_tile<double, ExactTile<double>>([](double value) { return value; });
  check_tile<float, TensorTile<Precision::kTf32>>([](float value) { return with_bits(value, 11); });
  check_tile<float, TensorTile<Precision::kBfloat16>>([](float value) { return with_bits(value, 8); });
  for (const float value : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(), 0.0f}) {
    EXPECT(TensorTile<Precision::kTf32>::rounded(value) == value);
    EXPECT(TensorTile<Precision::kBfloat16>::rounded(value) == value);
  }
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT(std::isnan(TensorTile<Precision::kTf32>::rounded(nan)));
  EXPECT(std::isnan(TensorTile<Precision::kBfloat16>::rounded(nan)));
}

// Near to exact products, and not the same.
void check_precision(Precision precision, double limit) {
  UpdateSettings exact = settings_of({64, 64}, 64);
  exact.actor_lr = exact.critic_lr = exact.alpha_lr = 0;  // Adam turns any difference of a small gradient into a step
  UpdateSettings rounded = exact;
  rounded.matmul_precision = precision;
  const Transitions transitions(exact, 5);
  const std::vector<std::int64_t> index = index_of(1, exact.batch_size);
  Simulated<float> expected(exact), found(rounded);
  start<float>(expected.engine, exact, 4);
  start<float>(found.engine, exact, 4);
  const UpdateOutcome one = expected.engine.update(work_of<float>(transitions, index, 1));
  const UpdateOutcome other = found.engine.update(work_of<float>(transitions, index, 1));
  const double metrics = difference({one.metrics, one.metrics + kMetrics}, {other.metrics, other.metrics + kMetrics});
  const double state = difference(state_of<float>(expected.engine, exact), state_of<float>(found.engine, exact));
  EXPECT(metrics > 0 && metrics < limit);
  EXPECT(state > 0 && state < limit);
}

// Learners side by side end as each does alone, to the last bit, also where they make different numbers of updates.
void check_side_by_side(const UpdateSettings& settings) {
  constexpr int learners = 3;
  constexpr std::int64_t calls[][learners] = {{3, 3, 3}, {2, 1, 0}, {1, 4, 2}, {0, 1, 1}};
  Simulated<float> together(settings, learners);
  std::vector<std::unique_ptr<Simulated<float>>> alone;
  std::vector<Transitions> transitions;
  for (int i = 0; i < learners; ++i) {
    const auto seed = static_cast<std::uint64_t>(i + 1);
    together.engine.select(i);
    start<float>(together.engine, settings, seed);
    alone.push_back(std::make_unique<Simulated<float>>(settings));
    start<float>(alone.back()->engine, settings, seed);
    transitions.emplace_back(settings, seed + 9);
  }
  const auto actor_size = static_cast<std::size_t>(together.engine.parameter_count(Network::kActor));
  std::vector<std::vector<float>> actors(learners, std::vector<float>(actor_size));
  for (int i = 0; i < learners; ++i) {
    together.engine.select(i);
    together.engine.read(Network::kActor, Part::kParameters, actors[static_cast<std::size_t>(i)].data());
  }
  std::vector<double> metrics(static_cast<std::size_t>(learners * kMetrics));
  for (const auto& steps : calls) {
    std::vector<std::vector<std::int64_t>> indices;
    for (int i = 0; i < learners; ++i) indices.push_back(index_of(steps[i], settings.batch_size, i));
    QueuedCall<float> call;
    call.metrics = metrics.data();
    for (std::size_t i = 0; i < learners; ++i) {
      call.work.push_back(queued(transitions[i], indices[i], steps[i]));
      call.work.back().actor = actors[i].data();
    }
    together.engine.enqueue(call);
    const std::vector<UpdateOutcome> outcomes = together.engine.collect();
    for (int i = 0; i < learners; ++i) {
      const auto at = static_cast<std::size_t>(i);
      UpdateEngine<float>& own = alone[at]->engine;
      const UpdateOutcome expected = own.update(work_of<float>(transitions[at], indices[at], steps[i]));
      EXPECT(expected.updates == steps[i] && outcomes[at].updates == steps[i] && outcomes[at].fault.empty());
      together.engine.select(i);
      EXPECT(state_of<float>(together.engine, settings) == state_of<float>(own, settings));
      std::vector<float> actor(actor_size);
      own.read(Network::kActor, Part::kParameters, actor.data());
      EXPECT(actor == actors[at]);
      EXPECT(std::equal(expected.metrics, expected.metrics + kMetrics, metrics.begin() + i * kMetrics));
    }
  }
}

// So too when nobody looks between the calls.
void check_queued_side_by_side(const UpdateSettings& settings) {
  const Transitions transitions(settings, 10);
  Simulated<float> together(settings, 2), alone(settings);
  for (const int i : {0, 1}) {
    together.engine.select(i);
    start<float>(together.engine, settings, static_cast<std::uint64_t>(i + 1));
  }
  start<float>(alone.engine, settings, 2);
  std::vector<std::vector<std::int64_t>> indices;  // which stay until the work is done
  for (const std::int64_t steps : {1, 2, 0, 3}) indices.push_back(index_of(steps, settings.batch_size, steps));
  for (const std::vector<std::int64_t>& index : indices) {
    const std::int64_t steps = static_cast<std::int64_t>(index.size()) / settings.batch_size;
    QueuedCall<float> call;
    call.work = {queued(transitions, indices[1], 2), queued(transitions, index, steps)};
    together.engine.enqueue(call);
    alone.engine.update(work_of<float>(transitions, index, steps));
  }
  together.engine.select(1);
  EXPECT(state_of<float>(together.engine, settings) == state_of<float>(alone.engine, settings));
}

// The same fault as on the CPU, the same updates before it, and nothing changed by it or after it.
void check_faults(const UpdateSettings& settings) {
  const std::int64_t action = settings.observation_dim, reward = action + settings.action_dim;
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const std::int64_t col : {std::int64_t{0}, action, reward, reward + 1}) {
    for (const float bad : {nan, inf, 3e38f}) {
      Transitions transitions(settings, 5);
      // The second minibatch meets it.
      const std::int64_t steps = 4;
      std::vector<std::int64_t> index = index_of(steps, settings.batch_size);
      for (std::int64_t& each : index) each = std::max<std::int64_t>(each, 1);
      index[static_cast<std::size_t>(settings.batch_size) + 1] = 0;
      transitions.at(0, col) = bad;
      std::unique_ptr<UpdateEngine<float>> cpu;
      make_engine(settings, cpu);
      Simulated<float> gpu(settings), twin(settings);
      start(*cpu, settings, 4);
      start<float>(gpu.engine, settings, 4);
      start<float>(twin.engine, settings, 4);
      const UpdateOutcome expected = cpu->update(work_of<float>(transitions, index, steps));
      const UpdateOutcome got = gpu.engine.update(work_of<float>(transitions, index, steps));
      if (expected.fault != got.fault) {
        std::printf("column %d, %g: expected '%s', got '%s'\n", static_cast<int>(col), static_cast<double>(bad),
                    expected.fault.c_str(), got.fault.c_str());
      }
      EXPECT(got.fault == expected.fault);
      EXPECT(got.updates == expected.updates);
      // The twin makes only what came before; then both go on alike.
      twin.engine.update(work_of<float>(transitions, index, got.updates));
      EXPECT(state_of<float>(gpu.engine, settings) == state_of<float>(twin.engine, settings));
      transitions.at(0, col) = 0.5f;
      gpu.engine.update(work_of<float>(transitions, index, steps));
      twin.engine.update(work_of<float>(transitions, index, steps));
      EXPECT(state_of<float>(gpu.engine, settings) == state_of<float>(twin.engine, settings));
    }
  }
}

// Second moments that are infinite, of a critic, of the actor and of the temperature: named as on the CPU.
void check_moments_that_overflow(UpdateSettings settings) {
  for (const int which : {0, 1, 2}) {
    if (which == 2) settings.target_entropy = 1e25;
    const Transitions transitions(settings, 5);
    const std::vector<std::int64_t> index = index_of(2, settings.batch_size);
    std::unique_ptr<UpdateEngine<float>> cpu;
    make_engine(settings, cpu);
    Simulated<float> gpu(settings);
    std::vector<std::vector<double>> before;
    for (UpdateEngine<float>* engine : {cpu.get(), static_cast<UpdateEngine<float>*>(&gpu.engine)}) {
      start(*engine, settings, 4);
      if (which < 2) {
        const Network network = which == 0 ? Network::kQ2 : Network::kActor;
        std::vector<float> moment(static_cast<std::size_t>(engine->parameter_count(network)),
                                  std::numeric_limits<float>::infinity());
        engine->write(network, Part::kExpAvgSq, moment.data());
      }
      before.push_back(state_of(*engine, settings));
    }
    const UpdateOutcome expected = cpu->update(work_of<float>(transitions, index, 2));
    const UpdateOutcome got = gpu.engine.update(work_of<float>(transitions, index, 2));
    constexpr const char* kNames[] = {"critic.q2.layers.0.weight", "actor.layers.0.weight", "log_alpha"};
    EXPECT(expected.fault == std::string("the optimiser state of ") + kNames[which]);
    EXPECT(got.fault == expected.fault && got.updates == 0 && expected.updates == 0);
    EXPECT(state_of(*cpu, settings) == before[0]);
    EXPECT(state_of<float>(gpu.engine, settings) == before[1]);
  }
}

// A row number that there is no row for is named, and nothing is read there; the updates before it count.
void check_row_numbers(const UpdateSettings& settings) {
  const Transitions transitions(settings, 5);
  constexpr std::int64_t far = std::int64_t{1} << 40;  // reading there would end this program
  for (const std::int64_t bad : {std::int64_t{-1}, kTransitions, far, -far}) {
    std::vector<std::int64_t> index = index_of(4, settings.batch_size);
    index[static_cast<std::size_t>(2 * settings.batch_size)] = bad;
    index.back() = 3 * far;  // a later one, in an update that is not made
    Simulated<float> engine(settings), twin(settings);
    start<float>(engine.engine, settings, 4);
    start<float>(twin.engine, settings, 4);
    UpdateWork<float> work = work_of<float>(transitions, index, 4);
    work.capacity = kTransitions;
    const UpdateOutcome got = engine.engine.update(work);
    EXPECT(got.updates == 2);
    EXPECT(got.fault == "index: expected rows in [0, 60), got " + std::to_string(bad));
    twin.engine.update(work_of<float>(transitions, index, 2));
    EXPECT(state_of<float>(engine.engine, settings) == state_of<float>(twin.engine, settings));
    work.steps = 2;
    EXPECT(engine.engine.update(work).fault.empty());  // and it goes on
    twin.engine.update(work);
    EXPECT(state_of<float>(engine.engine, settings) == state_of<float>(twin.engine, settings));
  }
}

// One of two learners fails at its second update; both are whole, and go on. `which`: the one.
void check_one_of_two_fails(const UpdateSettings& settings, int which, std::int64_t steps_of_other) {
  const auto failing = static_cast<std::size_t>(which), other = static_cast<std::size_t>(1 - which);
  Transitions transitions(settings, 5);
  transitions.at(0, settings.observation_dim + settings.action_dim) = std::numeric_limits<float>::infinity();
  std::vector<std::int64_t> good = index_of(5, settings.batch_size);
  for (std::int64_t& each : good) each = std::max<std::int64_t>(each, 1);
  std::vector<std::int64_t> bad = good;
  bad[static_cast<std::size_t>(settings.batch_size)] = 0;
  Simulated<float> pair(settings, 2);
  std::vector<std::unique_ptr<Simulated<float>>> alone;
  for (const int i : {0, 1}) {
    const auto seed = static_cast<std::uint64_t>(i + 1);
    pair.engine.select(i);
    start<float>(pair.engine, settings, seed);
    alone.push_back(std::make_unique<Simulated<float>>(settings));
    start<float>(alone.back()->engine, settings, seed);
  }
  const auto enqueue = [&](const std::vector<std::int64_t>& index, std::int64_t steps, std::int64_t others) {
    QueuedCall<float> call;
    call.work.resize(2);
    call.work[failing] = queued(transitions, index, steps);
    call.work[other] = queued(transitions, good, others);
    pair.engine.enqueue(call);
    alone[other]->engine.update(work_of<float>(transitions, good, others));
  };
  enqueue(bad, 3, steps_of_other);
  enqueue(good, 2, 1);  // behind the fault: not made by the one that failed
  const std::vector<UpdateOutcome> outcomes = pair.engine.collect();
  EXPECT(outcomes[failing].fault == "critic_loss" && outcomes[other].fault.empty());
  EXPECT(outcomes[failing].gradient_updates == 3 + 1);
  EXPECT(outcomes[other].gradient_updates == 3 + steps_of_other + 1);
  alone[failing]->engine.update(work_of<float>(transitions, good, 1));
  enqueue(good, 2, 1);
  alone[failing]->engine.update(work_of<float>(transitions, good, 2));
  EXPECT(pair.engine.collect()[failing].fault.empty());
  for (const int i : {0, 1}) {
    pair.engine.select(i);
    UpdateEngine<float>& own = alone[static_cast<std::size_t>(i)]->engine;
    EXPECT(state_of<float>(pair.engine, settings) == state_of<float>(own, settings));
  }
}

// What the caller writes to the actor's parameters between calls counts from the next call on, also in a call that
// fails and behind one that has failed. `learners` side by side, of which the last one is written to.
void check_written_actor(const UpdateSettings& settings, int learners) {
  const int written = learners - 1;
  const auto last = static_cast<std::size_t>(written);
  Transitions good(settings, 5), bad(settings, 5);
  for (std::int64_t row = 0; row < kTransitions; ++row) {
    bad.at(row, settings.observation_dim + settings.action_dim) = std::numeric_limits<float>::infinity();
  }
  const std::vector<std::int64_t> index = index_of(3, settings.batch_size);
  Simulated<float> together(settings, learners), alone(settings);
  for (int i = 0; i < learners; ++i) {
    together.engine.select(i);
    start<float>(together.engine, settings, static_cast<std::uint64_t>(i + 4));
  }
  start<float>(alone.engine, settings, static_cast<std::uint64_t>(written + 4));
  together.engine.select(written);
  std::vector<float> actor(static_cast<std::size_t>(together.engine.parameter_count(Network::kActor)));
  together.engine.read(Network::kActor, Part::kParameters, actor.data());
  const auto enqueue = [&](const Transitions& transitions, std::int64_t steps) {
    QueuedCall<float> call;
    for (int i = 0; i < learners; ++i) call.work.push_back(queued(good, index, 2));
    call.work[last] = queued(transitions, index, steps);
    call.work[last].actor = actor.data();
    together.engine.enqueue(call);
  };
  const auto write = [&](float value) {
    std::fill(actor.begin(), actor.begin() + 7, value);
    alone.engine.write(Network::kActor, Part::kParameters, actor.data());
  };
  enqueue(good, 1);
  alone.engine.update(work_of<float>(good, index, 1));
  write(0.25f);
  enqueue(good, 2);
  alone.engine.update(work_of<float>(good, index, 2));
  write(-0.5f);
  const std::vector<float> kept = actor;
  enqueue(bad, 1);
  EXPECT(actor == kept);
  write(0.125f);
  enqueue(good, 3);  // behind the failure: not made
  EXPECT(together.engine.collect()[last].fault == "critic_loss");
  together.engine.select(written);
  EXPECT(state_of<float>(together.engine, settings) == state_of<float>(alone.engine, settings));
  enqueue(good, 3);
  alone.engine.update(work_of<float>(good, index, 3));
  EXPECT(state_of<float>(together.engine, settings) == state_of<float>(alone.engine, settings));
}

int run() {
  const UpdateSettings usual = settings_of({33, 70}, 37);
  check_same_updates<double>("usual", usual);
  check_same_updates<float>("usual, float", usual);
  check_same_updates<double>("noise given", usual, true);
  check_same_updates<double>("v1", v1(usual));
  check_same_updates<float>("v1, float", v1(usual));
  check_same_updates<double>("v1, noise given", v1(usual), true);
  for (const UpdateSettings& each :
       {settings_of({}, 16), settings_of({9}, 1), settings_of({4, 5, 6, 40}, 70), settings_of({100, 20}, 130)}) {
    check_same_updates<double>("sizes", each);
    check_same_updates<double>("sizes, v1", v1(each));
  }
  UpdateSettings other = usual;
  other.deterministic_policy = true;
  check_same_updates<double>("deterministic", other);
  other = usual;
  other.hard_target_update = true;
  other.target_update_interval = 2;
  check_same_updates<double>("hard target", other);
  other = usual;
  other.target_update_interval = 3;
  other.log_std_bounding = LogStdBounding::kTanh;
  check_same_updates<double>("interval, tanh", other);
  other = usual;
  other.log_std_bounding = LogStdBounding::kNone;
  other.learn_alpha = false;
  other.alpha = 0;
  check_same_updates<double>("no bounding, no alpha", other);
  other = usual;
  other.observation_dim = 67;
  other.action_dim = 60;
  other.hidden_sizes = {40, 300};
  check_same_updates<double>("wide", other);

  check_tiles();
  check_precision(Precision::kTf32, 2e-3);
  check_precision(Precision::kBfloat16, 2e-2);

  check_moments_that_overflow(usual);
  check_row_numbers(usual);
  check_row_numbers(v1(usual));
  for (const UpdateSettings& each : {usual, v1(usual), settings_of({}, 16)}) {
    check_side_by_side(each);
    check_queued_side_by_side(each);
    for (const int learners : {1, 2}) check_written_actor(each, learners);
    check_faults(each);
    for (const int which : {0, 1}) {
      for (const std::int64_t steps_of_other : {3, 2}) check_one_of_two_fails(each, which, steps_of_other);
    }
  }
  return report();
}

}  // namespace
}  // namespace sacfast::SACFAST_ISA

int main() { return sacfast::SACFAST_ISA::run(); }
