// The engine of the GPU's update, for any Machine: the GPU itself, or the host that runs the same kernels for tests.
//
// A Machine copies memory, launches bodies on lanes, and records an update once to replay it (CUDA: as a graph). Work
// is queued behind what was queued before, and nothing waits for it until its results are asked for.
#pragma once

#include <algorithm>

#include "gpu_worker.h"
#include "sac_update.h"

namespace sacfast::SACFAST_ISA {

inline std::string fault_name(std::int64_t fault) {
  switch (fault) {
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
    default:
      return tensor_name(fault - kFaultOfTensor);
  }
}

template <class T, class Machine>
class GpuEngine final : public QueuedEngine<T> {
 public:
  // Bytes of GPU memory that `learners` take together.
  static std::int64_t bytes(const UpdateSettings& settings, int learners) {
    return product_of_sizes(GpuState<T>(settings, nullptr).bytes(), learners);
  }

  // `memory` holds zeros, and stays the caller's.
  GpuEngine(const UpdateSettings& settings, int learners, char* memory, Machine machine)
      : state_(settings, memory),
        learners_(learners),
        mirror_(static_cast<std::size_t>(learners)),
        machine_(std::move(machine)) {}

  void use_queue(void* queue) override { machine_.use_queue(queue); }
  void select(int learner) override { selected_ = learner; }

  void enqueue(const QueuedCall<T>& call) override {
    if (changed_) push();
    BeginCall<T> start{};
    begin(start);
    std::copy(call.work.begin(), call.work.end(), start.work);
    start.next_noise = call.next_noise;
    start.noise = call.noise;
    const GpuNetwork<T>& actor = state_.network(Network::kActor);
    for (const int buffer : {0, 1}) start.parameters[buffer] = actor.parts[0][buffer];
    start.count = actor.parameters;
    start.now = now_;
    machine_.launch(Lane::kMain, start, start.blocks(), learners_);
    std::int64_t most = 0;
    for (const QueuedWork<T>& each : call.work) most = std::max(most, each.steps);
    for (std::int64_t step = 0; step < most; ++step) {
      machine_.replay(now_, [this] {
        GpuWorker<T, Machine> worker(state_, machine_, learners_, now_);
        sac_update(worker, state_.settings);
      });
      now_ ^= 1;
    }
    const auto is_apart = [most](const QueuedWork<T>& each) { return (most - each.steps) % 2 != 0; };
    if (std::any_of(call.work.begin(), call.work.end(), is_apart)) settle();
    EndCall<T> end{};
    begin(end);
    for (const int buffer : {0, 1}) end.parameters[buffer] = actor.parts[0][buffer];
    end.count = actor.parameters;
    end.metrics = call.metrics;
    machine_.launch(Lane::kMain, end, end.blocks(), learners_);
    stale_ = true;
  }

  std::vector<UpdateOutcome> collect() override {
    fetch();
    std::vector<UpdateOutcome> outcomes;
    for (GpuScalars<T>& each : mirror_) {
      UpdateOutcome outcome;
      outcome.updates = each.updates;
      std::copy(each.metrics, each.metrics + kMetrics, outcome.metrics);
      outcome.gradient_updates = each.counters.gradient_updates;
      outcome.fault = fault_name(each.fault);
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
    call.work[static_cast<std::size_t>(selected_)] = {work.rows, work.index, work.steps, nullptr};
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
    return Shift{selected_ * state_.bytes()}(state_.network(network).parts[static_cast<int>(part)][now_]);
  }

  GpuScalars<T>* scalars_of(std::size_t learner) const {
    return Shift{static_cast<std::int64_t>(learner) * state_.bytes()}(state_.scalars);
  }

  void fetch() const {
    if (!stale_) return;
    for (std::size_t i = 0; i < mirror_.size(); ++i) machine_.copy(&mirror_[i], scalars_of(i), sizeof(GpuScalars<T>));
    stale_ = false;
    // Those that failed were left at their last whole update.
    if (std::any_of(mirror_.begin(), mirror_.end(), [this](const auto& each) { return each.now != now_; })) settle();
    for (GpuScalars<T>& each : mirror_) each.now = now_;
  }

  void push() {
    for (std::size_t i = 0; i < mirror_.size(); ++i) machine_.copy(scalars_of(i), &mirror_[i], sizeof(GpuScalars<T>));
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

  GpuState<T> state_;
  const int learners_;
  int selected_ = 0;
  bool changed_ = false;                       // the mirror, since it was last pushed
  mutable bool stale_ = true;                  // the mirror
  mutable std::vector<GpuScalars<T>> mirror_;  // what the GPU had when it was last waited for
  int now_ = 0;                                // which buffer of each pair the next update reads
  mutable Machine machine_;
};

}  // namespace sacfast::SACFAST_ISA
