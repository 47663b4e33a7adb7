// The engine of the GPU's update, for any Machine: the GPU itself, or the host that runs the same kernels for tests.
//
// A Machine copies memory, launches bodies on lanes, and records an update once to replay it: cuda_machine.h says what
// each of its functions does. Work is queued behind what was queued before, and nothing waits for it until its results
// are asked for: the scalars of all learners, which every call leaves in memory of the host.
#pragma once

#include <algorithm>
#include <stdexcept>

#include "steps.h"
#include "../sac_update.h"

namespace sacfast::SACFAST_ISA {

template <class T>
std::string fault_name(const GpuScalars<T>& scalars) {
  switch (scalars.fault) {
    case kNoFault:
      return "";
    case kFaultOfCriticLoss:
      return "critic_loss";
    case kFaultOfActorLoss:
      return "actor_loss";
    case kFaultOfValueLoss:
      return "value_loss";
    case kFaultOfTemperature:
      return kTemperatureMoment;
    case kFaultOfRow:
      return kRowFault + std::to_string(scalars.capacity) + "), got " + std::to_string(scalars.bad_row);
    default:
      return tensor_name(scalars.fault - kFaultOfTensor);
  }
}

template <class T, class Machine>
class GpuEngine final : public QueuedEngine<T> {
 public:
  // Bytes of GPU memory that `learners` take together.
  static std::int64_t bytes(const UpdateSettings& settings, int learners) {
    return product_of_sizes(GpuState<T>(settings, nullptr).bytes(), learners);
  }

  // `memory` stays the caller's. It is set up behind what `queue` has to do.
  GpuEngine(const UpdateSettings& settings, int learners, char* memory, void* queue, Machine machine)
      : state_(settings, memory),
        learners_(learners),
        mirror_(static_cast<std::size_t>(learners)),
        machine_(std::move(machine)),
        outcome_(static_cast<GpuScalars<T>*>(machine_.host_memory(learners * kScalarBytes))) {
    machine_.use_queue(queue);
    for (int i = 0; i < learners_; ++i) machine_.zero(memory + i * state_.bytes(), state_.state_bytes());
    machine_.mark();
  }

  void use_queue(void* queue) override { machine_.use_queue(queue); }
  void select(int learner) override { selected_ = learner; }
  bool is_done() override { return machine_.is_done(); }

  void enqueue(const QueuedCall<T>& call) override {
    check_whole();
    std::int64_t most = 0;
    for (const QueuedWork<T>& each : call.work) most = std::max(most, each.steps);
    // Before anything of the call is queued: recording may find no memory.
    for (int i = 0; i < std::min<std::int64_t>(most, 2); ++i) machine_.prepare(now_ ^ i, recipe(now_ ^ i));
    if (changed_) push();
    begin_call(call);
    std::int64_t made = 0;
    try {
      for (; made < most; ++made) {
        machine_.replay(now_, recipe(now_));
        now_ ^= 1;
      }
    } catch (...) {
      // The updates queued so far count, and the caller finds their actors and metrics.
      end_call(call, made);
      throw;
    }
    end_call(call, made);
  }

  std::vector<UpdateOutcome> collect() override {
    fetch();
    std::vector<UpdateOutcome> outcomes;
    for (GpuScalars<T>& each : mirror_) {
      UpdateOutcome outcome;
      outcome.updates = each.updates;
      std::copy(each.metrics, each.metrics + kMetrics, outcome.metrics);
      outcome.gradient_updates = each.counters.gradient_updates;
      outcome.fault = fault_name(each);
      outcomes.push_back(std::move(outcome));
      if (each.fault == kNoFault) continue;
      each.fault = kNoFault;
      changed_ = true;
    }
    return outcomes;
  }

  // By the selected learner alone.
  UpdateOutcome update(const UpdateWork<T>& work) override {
    QueuedCall<T> call;
    call.work.resize(mirror_.size());
    call.work[static_cast<std::size_t>(selected_)] = {work.rows, work.index, work.steps, nullptr, work.capacity};
    call.next_noise = work.next_noise;
    call.noise = work.noise;
    enqueue(call);
    UpdateOutcome outcome = collect()[static_cast<std::size_t>(selected_)];
    for (int i = 0; i < kMetrics; ++i) outcome.metrics[i] += work.metrics[i];
    return outcome;
  }

  std::int64_t parameter_count(Network network) const override { return state_.network(network).parameters; }

  void read(Network network, Part part, T* to) const override {
    const std::int64_t bytes = parameter_count(network) * static_cast<std::int64_t>(sizeof(T));
    fetch();
    machine_.copy(to, at(network, part), bytes);
  }

  void write(Network network, Part part, const T* from) override {
    const std::int64_t bytes = parameter_count(network) * static_cast<std::int64_t>(sizeof(T));
    fetch();
    machine_.copy(at(network, part), from, bytes);
  }

  // After what was queued. What is changed here counts from the next call on.
  UpdateCounters& counters() override {
    fetch();
    changed_ = true;
    return mirror_[static_cast<std::size_t>(selected_)].counters;
  }

  std::vector<PhaseTime> profile() override { return {}; }  // what runs as a graph is not timed phase by phase

 private:
  void begin(Body<T>& body) const {
    body.scalars = state_.scalars;
    body.learner_bytes = state_.bytes();
  }

  // Of the selected learner.
  T* at(Network network, Part part) const {
    const OfLearner<T> of_first = state_.network(network).parts[static_cast<int>(part)][now_];
    return Shift{selected_ * state_.bytes()}(of_first);
  }

  GpuScalars<T>* scalars_of(std::size_t learner) const {
    return Shift{static_cast<std::int64_t>(learner) * state_.bytes()}(OfLearner<GpuScalars<T>>(state_.scalars));
  }

  // What an update queues that reads buffer `now`.
  auto recipe(int now) {
    return [this, now] {
      GpuSteps<T, Machine> steps(state_, machine_, learners_, now);
      sac_update(steps, state_.settings);
    };
  }

  void begin_call(const QueuedCall<T>& call) {
    BeginCall<T> body{};
    begin(body);
    std::copy(call.work.begin(), call.work.end(), body.work);
    body.next_noise = call.next_noise;
    body.noise = call.noise;
    const GpuNetwork<T>& actor = state_.network(Network::kActor);
    for (const int buffer : {0, 1}) body.parameters[buffer] = actor.parts[0][buffer];
    body.count = actor.parameters;
    body.now = now_;
    machine_.launch(Lane::kMain, body, body.blocks(), learners_);
  }

  // `made`: the updates that were queued, for the learners that were to make so many.
  void end_call(const QueuedCall<T>& call, std::int64_t made) {
    // Until all of it is queued the host cannot know what the GPU holds.
    broken_ = true;
    const auto is_apart = [made](const QueuedWork<T>& each) {
      return each.steps < made && (made - each.steps) % 2 != 0;
    };
    if (std::any_of(call.work.begin(), call.work.end(), is_apart)) settle();
    EndCall<T> body{};
    begin(body);
    const GpuNetwork<T>& actor = state_.network(Network::kActor);
    for (const int buffer : {0, 1}) body.parameters[buffer] = actor.parts[0][buffer];
    body.count = actor.parameters;
    body.metrics = call.metrics;
    body.outcome = outcome_;
    machine_.launch(Lane::kMain, body, body.blocks(), learners_);
    machine_.mark();
    stale_ = true;
    broken_ = false;
  }

  void check_whole() const {
    if (broken_) throw std::runtime_error("learner: the GPU refused a part of an earlier call; make a new learner");
  }

  void fetch() const {
    check_whole();
    if (!stale_) return;
    machine_.wait();
    std::copy_n(outcome_, mirror_.size(), mirror_.begin());
    stale_ = false;
    // Those that failed were left at their last whole update.
    if (std::any_of(mirror_.begin(), mirror_.end(), [this](const auto& each) { return each.now != now_; })) {
      settle();
      machine_.mark();
    }
    for (GpuScalars<T>& each : mirror_) each.now = now_;
  }

  void push() {
    for (std::size_t i = 0; i < mirror_.size(); ++i) machine_.copy(scalars_of(i), &mirror_[i], kScalarBytes);
    changed_ = false;
  }

  // From here on the next update of every learner reads buffer now_.
  void settle() const {
    Settle<T> body{};
    begin(body);
    body.now = now_;
    for (const GpuNetwork<T>& network : state_.networks) {
      for (const auto& buffers : network.parts) {
        if (buffers[0] != nullptr) body.pairs[body.count++] = {{buffers[0], buffers[1]}, network.parameters};
      }
    }
    machine_.launch(Lane::kMain, body, body.blocks(), learners_);
  }

  static constexpr std::int64_t kScalarBytes = sizeof(GpuScalars<T>);

  GpuState<T> state_;
  const int learners_;
  int selected_ = 0;
  bool changed_ = false;                       // the mirror, since it was last pushed
  bool broken_ = false;                        // a call began and did not end
  mutable bool stale_ = false;                 // the mirror
  mutable std::vector<GpuScalars<T>> mirror_;  // what the GPU had when it was last waited for
  int now_ = 0;                                // which buffer of each pair the next update reads
  mutable Machine machine_;
  GpuScalars<T>* outcome_;  // [S], the host's memory, which the end of every call writes
};

}  // namespace sacfast::SACFAST_ISA
