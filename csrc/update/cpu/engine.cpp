// The CPU engine, compiled once for each instruction set.
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <deque>
#include <memory>
#include <stdexcept>

#include "../sac_update.h"
#include "steps.h"

namespace sacfast::SACFAST_ISA {
namespace {

// After a fork the threads are gone, and their team must not be taken down: it would wait for them.
struct DeleteInOwnProcess {
  pid_t process = getpid();
  void operator()(ThreadTeam* team) const {
    if (getpid() == process) delete team;
  }
};

template <class T>
class CpuEngine final : public UpdateEngine<T> {
 public:
  explicit CpuEngine(const UpdateSettings& settings) : state_(settings) {}

  static EngineBytes<T> bytes(const UpdateSettings& settings, int threads) {
    const UpdateState<T> counted(settings, false);
    const std::int64_t steps = product_of_sizes(CpuSteps<T>::bytes(), threads);
    return {sum_of_sizes(counted.bytes(), sum_of_sizes(Job<T>::bytes(counted, threads), steps)),
            product_of_sizes(counted.network(Network::kActor).shape.parameters, sizeof(T))};
  }

  UpdateOutcome update(const UpdateWork<T>& work) override {
    check_process();
    const Claim claim(*this);
    use_threads(work.threads);
    state_.keep();
    UpdateOutcome outcome = run(work);
    if (!outcome.fault
             .empty()) {  // memory.h: back to the state before the call, then the updates before the failed one
      state_.go_back();
      UpdateWork<T> good = work;
      good.steps = outcome.updates;
      if (run(good).updates != good.steps) throw std::runtime_error("replay: changed while the learner read it");
    }
    outcome.gradient_updates = state_.counters.gradient_updates;
    return outcome;
  }

  std::int64_t parameter_count(Network network) const override { return state_.network(network).shape.parameters; }

  void read(Network network, Part part, T* to) const override {
    const Claim claim(*this);
    const T* from = state_.part(network, part);
    state_.network(network).shape.for_each_parameter(
        [to, from](std::int64_t flat, std::int64_t packed) { to[flat] = from[packed]; });
  }

  void write(Network network, Part part, const T* from) override {
    check_process();
    const Claim claim(*this);
    T* to = state_.part(network, part);
    state_.network(network).shape.for_each_parameter(
        [to, from](std::int64_t flat, std::int64_t packed) { to[packed] = from[flat]; });
    if (part == Part::kParameters) state_.transpose_all();
  }

  UpdateCounters& counters() override { return state_.counters; }

  std::vector<PhaseTime> profile() override {
    const Claim claim(*this);
    std::vector<PhaseTime> times;
    for (int phase = 0; phase < kPhases; ++phase) {
      times.push_back({kPhaseNames[phase], 0, 0});
      for (CpuSteps<T>& steps : steps_) {
        times.back().seconds += steps.profile().seconds(phase);
        times.back().flop += steps.profile().flop(phase);
      }
    }
    profiling_ = true;
    for (CpuSteps<T>& steps : steps_) steps.profile().is_on = true;
    return times;
  }

 private:
  // One thread at a time.
  struct Claim {
    explicit Claim(const CpuEngine& of) : engine(of) {
      if (engine.busy_.exchange(true)) throw std::runtime_error("learner: in use by another thread");
    }
    ~Claim() { engine.busy_ = false; }
    const CpuEngine& engine;
  };

  // Only the process that made the engine has its threads.
  void check_process() const {
    if (getpid() == process_) return;
    throw std::runtime_error(
        "learner: made before this process was forked, and its threads were not; build it in this process, or "
        "start the process by spawn");
  }

  UpdateOutcome run(const UpdateWork<T>& work) {
    UpdateOutcome outcome;
    std::copy(work.metrics, work.metrics + kMetrics, outcome.metrics);
    job_->begin(work, outcome);
    team_->run([this, &work](int thread) {
      CpuSteps<T>& steps = steps_[static_cast<std::size_t>(thread)];
      for (std::int64_t step = 0; step < work.steps; ++step) {
        if (!sac_update(steps, state_.settings)) break;
      }
    });
    return outcome;
  }

  void use_threads(int threads) {
    if (job_ != nullptr && job_->threads == threads) return;
    // An exception leaves the threads that there were before.
    auto job = std::make_unique<Job<T>>(state_, threads);
    std::deque<CpuSteps<T>> steps;
    for (int thread = 0; thread < threads; ++thread) {
      steps.emplace_back(*job, thread);
      steps.back().profile().is_on = profiling_;
    }
    team_.reset(new ThreadTeam(threads));
    job_ = std::move(job);
    steps_ = std::move(steps);
  }

  UpdateState<T> state_;
  std::unique_ptr<Job<T>> job_;
  std::deque<CpuSteps<T>> steps_;  // of each thread; the parts of one refer to each other, so it must not move
  std::unique_ptr<ThreadTeam, DeleteInOwnProcess> team_;
  const pid_t process_ = getpid();
  mutable std::atomic<bool> busy_{false};
  bool profiling_ = false;
};

}  // namespace

#define SACFAST_DEFINE(T)                                                                      \
  void make_engine(const UpdateSettings& settings, std::unique_ptr<UpdateEngine<T>>& engine) { \
    engine = std::make_unique<CpuEngine<T>>(settings);                                         \
  }                                                                                            \
  void count_bytes(const UpdateSettings& settings, int threads, EngineBytes<T>& bytes) {       \
    bytes = CpuEngine<T>::bytes(settings, threads);                                            \
  }
SACFAST_DEFINE(float)
SACFAST_DEFINE(double)
#undef SACFAST_DEFINE

}  // namespace sacfast::SACFAST_ISA
