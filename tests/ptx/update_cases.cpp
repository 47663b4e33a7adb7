// The engine of csrc/update/gpu/engine_cuda.cu as it is, with its streams, events and graphs, in the interpreter: the
// updates of the CPU engine, the same faults, several learners side by side.
//
// tests/csrc/test_kernels.cpp asks the same of the kernels' C++ on the host. Here the compiler's work is tested too,
// and memory is the device's: one region for each piece that the engine lays out, so that a kernel which leaves its
// piece is found.
#include <algorithm>
#include <limits>

#include "../csrc/update_cases.h"
#include "cases.h"
#include "update/gpu/memory.h"

namespace sacfast::SACFAST_ISA {
namespace {

using ptx::DeviceArray;

// The memory of some learners, piece by piece as GpuState lays it out, and their engine.
template <class T>
class Learners {
 public:
  explicit Learners(const UpdateSettings& settings, int count = 1)
      : memory_(static_cast<std::size_t>(cuda_engine_bytes<T>(settings, count)), kNeverWritten) {
    for (int i = 0; i < count; ++i) {
      const GpuState<T> layout(settings, memory_.data() + i * cuda_engine_bytes<T>(settings, 1));
      add_pieces(layout);
    }
    engine_ = make_cuda_engine<T>(settings, count, memory_.data(), nullptr);
  }
  ~Learners() {
    for (const void* each : pieces_) ptx::device().memory.remove(each);
  }
  Learners(const Learners&) = delete;
  QueuedEngine<T>& operator*() { return *engine_; }
  QueuedEngine<T>* operator->() { return engine_.get(); }

 private:
  template <class P>
  void add(const char* name, P* piece, std::int64_t count) {
    ptx::device().memory.add(piece, static_cast<std::size_t>(count) * sizeof(P), name, true, ptx::Content::kNothing);
    pieces_.push_back(piece);
  }

  void add_hidden(const char* name, const Hidden<T>& hidden, const GpuState<T>& s) {
    for (std::size_t i = 0; i < hidden.size(); ++i) add(name, hidden[i], s.batch * s.settings.hidden_sizes[i]);
  }

  void add_pieces(const GpuState<T>& s) {
    add("the scalars", s.scalars, 1);
    for (const Draw<T>* draw : {&s.next_draw, &s.draw}) {
      add_hidden("the actor's hidden layers", draw->hidden, s);
      add("the actor's head", draw->head, s.batch * 2 * s.actions);
      add("noise", draw->noise, s.batch * s.actions);
      add("log_prob of the actions", draw->log_probs, s.batch * s.actions);
      add("log_prob", draw->log_prob, s.batch);
    }
    for (int index = 0; index < kNetworks; ++index) {
      const GpuNetwork<T>& network = s.networks[index];
      if (!network.exists()) continue;
      const bool is_actor = static_cast<Network>(index) == Network::kActor;
      for (const auto& buffers : network.parts) {
        for (T* buffer : buffers) add("parameters", buffer, buffer == nullptr ? 0 : network.parameters);
      }
      if (!is_actor) add_hidden("hidden layers", network.hidden, s);
      add_hidden("deltas", network.deltas, s);
      if (!is_actor) add("outputs", network.out, s.batch);
      add("gradients of outputs", network.out_gradient, s.batch * (is_actor ? 2 * s.actions : 1));
    }
    for (T* pairs : {s.stored, s.next, s.current}) add("pairs", pairs, s.batch * (s.observations + s.actions));
    for (T* rows : {s.reward, s.terminated, s.next_q1, s.next_q2, s.target, s.soft_value}) add("rows", rows, s.batch);
    add("the action's gradient", s.action_gradient, s.batch * s.actions);
    for (const Hidden<T>& each : s.target_hidden) add_hidden("the targets' hidden layers", each, s);
  }

  ptx::Allocation memory_;
  std::vector<const void*> pieces_;
  std::unique_ptr<QueuedEngine<T>> engine_;
};

struct Replay {
  std::int64_t width;
  DeviceArray<float> rows;

  explicit Replay(const UpdateSettings& settings, std::uint64_t seed = 5)
      : width(2 * settings.observation_dim + settings.action_dim + 2),
        rows("the replay buffer", static_cast<std::size_t>(kTransitions * width), ptx::Content::kValues, false) {
    Mixer mixer{seed};
    for (float& each : rows) each = static_cast<float>(mixer.uniform());
    for (std::int64_t row = 0; row < kTransitions; ++row) at(row, width - 1) = row % 3 == 0 ? 1.0f : 0.0f;
  }
  float& at(std::int64_t row, std::int64_t col) { return rows[static_cast<std::size_t>(row * width + col)]; }
};

struct Index {
  DeviceArray<std::int64_t> rows;
  Index(std::int64_t steps, std::int64_t batch, std::int64_t first = 0, std::int64_t least = 0)
      : rows("the index", static_cast<std::size_t>(steps * batch), ptx::Content::kValues, false) {
    for (std::size_t i = 0; i < rows.size(); ++i) {
      rows[i] = std::max(least, (static_cast<std::int64_t>(i) * 7 + first) % kTransitions);
    }
  }
};

template <class T>
UpdateWork<T> work_of(Replay& replay, Index& index, std::int64_t steps) {
  UpdateWork<T> work;
  work.rows = replay.rows.data();
  work.index = index.rows.data();
  work.steps = steps;
  return work;
}

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
std::vector<double> metrics_of(const UpdateOutcome& outcome) { return {outcome.metrics, outcome.metrics + kMetrics}; }

template <class T>
void check_same_updates(const char* name, const UpdateSettings& settings, bool given_noise = false) {
  // In double both round alike, but for the order of sums; in float Adam's division by a small root magnifies that.
  const double tolerance = sizeof(T) == 8 ? 1e-11 : 5e-5;
  Replay replay(settings);
  std::unique_ptr<UpdateEngine<T>> cpu;
  make_engine(settings, cpu);
  Learners<T> gpu(settings), reversed(settings);
  for (UpdateEngine<T>* engine :
       {cpu.get(), static_cast<UpdateEngine<T>*>(&*gpu), static_cast<UpdateEngine<T>*>(&*reversed)}) {
    start(*engine, settings, 4);
  }
  DeviceArray<T> noise("given noise", static_cast<std::size_t>(settings.batch_size * settings.action_dim));
  Mixer mixer{8};
  for (T& each : noise) each = static_cast<T>(2 * mixer.uniform());
  for (const std::int64_t steps : {1, 2}) {
    Index index(steps, settings.batch_size, steps);
    UpdateWork<T> work = work_of<T>(replay, index, steps);
    if (given_noise) {
      work.noise = noise.data();
      if (!settings.value_network) work.next_noise = noise.data();
    }
    const UpdateOutcome expected = cpu->update(work), got = gpu->update(work);
    ptx::device().reversed = true;
    const UpdateOutcome other = reversed->update(work);
    ptx::device().reversed = false;
    EXPECT(expected.fault.empty() && got.fault.empty() && got.updates == steps);
    const std::vector<double> state = state_of<T>(*gpu, settings);
    const double apart = difference(state_of(*cpu, settings), state);
    const double metrics_apart = difference(metrics_of(expected), metrics_of(got));
    if (!(apart <= tolerance && metrics_apart <= tolerance)) {
      std::printf("%s: parameters differ by %g, metrics by %g\n", name, apart, metrics_apart);
    }
    EXPECT(apart <= tolerance);
    EXPECT(metrics_apart <= tolerance);
    EXPECT(state == state_of<T>(*reversed, settings));  // every bit
    EXPECT(metrics_of(got) == metrics_of(other));
  }
}

// Near to exact products, and not the same.
void check_precision(Precision precision, double limit, std::vector<std::int64_t> hidden, std::int64_t batch) {
  UpdateSettings plain = settings_of(std::move(hidden), batch);
  plain.actor_lr = plain.critic_lr = plain.alpha_lr = 0;  // Adam turns any difference of a small gradient into a step
  UpdateSettings rounded = plain;
  rounded.matmul_precision = precision;
  Replay replay(plain);
  Index index(1, batch);
  Learners<float> expected(plain), found(rounded);
  start<float>(*expected, plain, 4);
  start<float>(*found, plain, 4);
  const UpdateOutcome one = expected->update(work_of<float>(replay, index, 1));
  const UpdateOutcome other = found->update(work_of<float>(replay, index, 1));
  const double metrics = difference(metrics_of(one), metrics_of(other));
  const double state = difference(state_of<float>(*expected, plain), state_of<float>(*found, plain));
  EXPECT(metrics > 0 && metrics < limit);
  EXPECT(state > 0 && state < limit);
}

// Learners side by side end as each does alone, to the last bit, also where they make different numbers of updates.
template <class T>
void check_side_by_side(const UpdateSettings& settings) {
  constexpr int learners = 2;
  constexpr std::int64_t calls[][learners] = {{2, 2}, {2, 1}, {0, 1}};
  Learners<T> together(settings, learners);
  std::vector<std::unique_ptr<Learners<T>>> alone;
  Replay replay(settings, 9);
  for (int i = 0; i < learners; ++i) {
    together->select(i);
    start<T>(*together, settings, static_cast<std::uint64_t>(i + 1));
    alone.push_back(std::make_unique<Learners<T>>(settings));
    start<T>(**alone.back(), settings, static_cast<std::uint64_t>(i + 1));
  }
  const auto actor_size = static_cast<std::size_t>(together->parameter_count(Network::kActor));
  DeviceArray<double> metrics("metrics", learners * kMetrics);
  for (const auto& steps : calls) {
    std::vector<std::unique_ptr<Index>> indices;
    std::vector<std::unique_ptr<DeviceArray<T>>> actors;
    QueuedCall<T> call;
    call.metrics = metrics.data();
    for (int i = 0; i < learners; ++i) {
      indices.push_back(std::make_unique<Index>(std::max<std::int64_t>(1, steps[i]), settings.batch_size, i));
      actors.push_back(std::make_unique<DeviceArray<T>>("the caller's actor", actor_size));
      together->select(i);
      together->read(Network::kActor, Part::kParameters, actors.back()->data());
      call.work.push_back(
          {replay.rows.data(), indices.back()->rows.data(), steps[i], actors.back()->data(), kUnknownCapacity});
    }
    together->enqueue(call);
    const std::vector<UpdateOutcome> outcomes = together->collect();
    for (int i = 0; i < learners; ++i) {
      const auto at = static_cast<std::size_t>(i);
      UpdateEngine<T>& own = **alone[at];
      const UpdateOutcome expected = own.update(work_of<T>(replay, *indices[at], steps[i]));
      EXPECT(outcomes[at].updates == steps[i] && outcomes[at].fault.empty());
      together->select(i);
      EXPECT(state_of<T>(*together, settings) == state_of<T>(own, settings));
      std::vector<T> actor(actor_size);
      own.read(Network::kActor, Part::kParameters, actor.data());
      EXPECT(std::equal(actor.begin(), actor.end(), actors[at]->begin()));
      EXPECT(std::equal(expected.metrics, expected.metrics + kMetrics, metrics.begin() + i * kMetrics));
    }
  }
}

// The same fault as on the CPU, the same updates before it, and nothing changed by it or after it.
void check_fault(const UpdateSettings& settings, std::int64_t col, float bad) {
  Replay replay(settings);
  const std::int64_t steps = 3;
  Index index(steps, settings.batch_size, 0, 1);
  index.rows[static_cast<std::size_t>(settings.batch_size) + 1] = 0;  // the second minibatch meets it
  replay.at(0, col) = bad;
  std::unique_ptr<UpdateEngine<float>> cpu;
  make_engine(settings, cpu);
  Learners<float> gpu(settings), twin(settings);
  start(*cpu, settings, 4);
  start<float>(*gpu, settings, 4);
  start<float>(*twin, settings, 4);
  const UpdateOutcome expected = cpu->update(work_of<float>(replay, index, steps));
  const UpdateOutcome got = gpu->update(work_of<float>(replay, index, steps));
  if (expected.fault != got.fault) {
    std::printf("column %d, %g: expected '%s', got '%s'\n", static_cast<int>(col), static_cast<double>(bad),
                expected.fault.c_str(), got.fault.c_str());
  }
  EXPECT(!got.fault.empty() && got.fault == expected.fault);
  EXPECT(got.updates == expected.updates);
  // The twin makes only what came before; then both go on alike.
  twin->update(work_of<float>(replay, index, got.updates));
  EXPECT(state_of<float>(*gpu, settings) == state_of<float>(*twin, settings));
  replay.at(0, col) = 0.5f;
  gpu->update(work_of<float>(replay, index, steps));
  twin->update(work_of<float>(replay, index, steps));
  EXPECT(state_of<float>(*gpu, settings) == state_of<float>(*twin, settings));
}

// A row number that the replay buffer has not: the same words as on the CPU, and nothing is read there.
void check_bad_row(const UpdateSettings& settings, std::int64_t bad) {
  Replay replay(settings);
  Index index(2, settings.batch_size);
  index.rows[static_cast<std::size_t>(settings.batch_size) + 1] = bad;
  Learners<float> gpu(settings);
  start<float>(*gpu, settings, 4);
  UpdateWork<float> work = work_of<float>(replay, index, 2);
  work.capacity = kTransitions;
  const UpdateOutcome got = gpu->update(work);
  EXPECT(got.updates == 1);
  EXPECT(got.fault.rfind(kRowFault, 0) == 0);
}

int check_options() {
  const UpdateSettings small = settings_of({9, 12}, 11);
  check_same_updates<double>("one row", settings_of({9}, 1));
  check_same_updates<float>("small, float", small);
  check_same_updates<double>("small", small);
  check_same_updates<double>("no hidden layer", settings_of({}, 16));
  check_same_updates<double>("v1, no hidden layer", v1(settings_of({}, 16)));
  check_same_updates<double>("v1", v1(small));
  check_same_updates<float>("v1, float", v1(small));
  check_same_updates<double>("v1, noise given", v1(small), true);
  check_same_updates<double>("noise given", small, true);
  UpdateSettings other = small;
  other.deterministic_policy = true;
  check_same_updates<double>("deterministic", other);
  other = small;
  other.hard_target_update = true;
  other.target_update_interval = 2;
  check_same_updates<double>("hard target", other);
  other = small;
  other.target_update_interval = 3;
  other.log_std_bounding = LogStdBounding::kTanh;
  check_same_updates<double>("interval, tanh", other);
  other = small;
  other.log_std_bounding = LogStdBounding::kNone;
  other.learn_alpha = false;
  other.alpha = 0;
  check_same_updates<double>("no bounding, no alpha", other);
  return 13;
}

int check_sizes() {
  const UpdateSettings usual = settings_of({33, 70}, 37);
  check_same_updates<double>("usual", usual);
  check_same_updates<float>("usual, float", usual);
  check_same_updates<double>("v1, usual", v1(usual));
  UpdateSettings wide = usual;
  wide.observation_dim = 67;
  wide.action_dim = 60;
  wide.hidden_sizes = {40, 100};
  check_same_updates<double>("wide", wide);
  check_same_updates<double>("deep", settings_of({4, 5, 6, 40}, 70));
  check_same_updates<float>("over tiles", settings_of({100, 20}, 130));
  return 6;
}

int check_faults(const UpdateSettings& settings) {
  const std::int64_t action = settings.observation_dim, reward = action + settings.action_dim;
  const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
  for (const std::int64_t col : {std::int64_t{0}, action, reward, reward + 1}) {
    for (const float bad : {nan, inf}) check_fault(settings, col, bad);
  }
  for (const std::int64_t bad : {std::int64_t{-1}, kTransitions}) check_bad_row(settings, bad);
  return 10;
}

// One update at a size that people train with.
int check_training_size(Precision precision) {
  UpdateSettings settings = settings_of({256, 256}, 256);
  settings.observation_dim = 17;
  settings.action_dim = 6;
  settings.matmul_precision = precision;
  Replay replay(settings);
  Index index(1, settings.batch_size);
  Learners<float> gpu(settings);
  start<float>(*gpu, settings, 4);
  const UpdateOutcome got = gpu->update(work_of<float>(replay, index, 1));
  EXPECT(got.updates == 1 && got.fault.empty());
  if (precision != Precision::kFloat32) return 1;
  std::unique_ptr<UpdateEngine<float>> cpu;
  make_engine(settings, cpu);
  start(*cpu, settings, 4);
  const UpdateOutcome expected = cpu->update(work_of<float>(replay, index, 1));
  EXPECT(difference(metrics_of(expected), metrics_of(got)) <= 5e-5);
  EXPECT(difference(state_of(*cpu, settings), state_of<float>(*gpu, settings)) <= 5e-5);
  return 1;
}

}  // namespace
}  // namespace sacfast::SACFAST_ISA

namespace ptx {

// One case of each kind, for faults that are put into the kernels.
void run_small_case(Groups& groups, const std::string& which) {
  using namespace sacfast;
  using namespace sacfast::SACFAST_ISA;
  if (which == "small") check_same_updates<float>("small", settings_of({9, 12}, 11));
  if (which == "rows") check_same_updates<float>("rows", settings_of({40}, 37));
  if (which == "tf32") check_precision(Precision::kTf32, 2e-3, {64, 64}, 64);
  if (which == "bfloat16") check_precision(Precision::kBfloat16, 2e-2, {64, 64}, 64);
  if (which == "fault") check_fault(settings_of({40}, 8), 8, INFINITY);
  groups.done(which, 1);
}

void run_update_cases(Groups& groups, bool large) {
  using namespace sacfast;
  using namespace sacfast::SACFAST_ISA;
  const UpdateSettings small = settings_of({9, 12}, 11);
  groups.done("update, options", check_options());
  check_precision(Precision::kTf32, 2e-3, {64, 64}, 64);
  groups.done("update, tf32", 1);
  check_precision(Precision::kBfloat16, 2e-2, {64, 64}, 64);
  groups.done("update, bfloat16", 1);
  check_side_by_side<float>(small);
  check_side_by_side<double>(v1(small));
  groups.done("update, side by side", 2);
  groups.done("update, faults", check_faults(settings_of({9}, 8)));
  if (!large) return;
  groups.done("update, sizes", check_sizes());
  groups.done("update, 256 x 256", check_training_size(Precision::kFloat32));
  groups.done("update, 256 x 256, tf32", check_training_size(Precision::kTf32));
  groups.done("update, 256 x 256, bfloat16", check_training_size(Precision::kBfloat16));
}

}  // namespace ptx
