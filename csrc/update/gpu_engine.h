// The engine of the GPU's update, for any Machine: the GPU itself, or the host that runs the same kernels for tests.
//
// A Machine copies memory, launches bodies on lanes, and records an update once to replay it (CUDA: as a graph). Work
// is queued behind what was queued before, and nothing waits for it until its results are asked for.
#pragma once

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
    default:
      return gradient_name(fault - kFaultOfTensor);
  }
}

template <class T, class Machine>
class GpuEngine final : public QueuedEngine<T> {
 public:
  // Bytes of GPU memory that `learners` take together.
  static std::int64_t bytes(const UpdateSettings& settings, int learners) {
    return GpuState<T>(settings, nullptr).bytes() * learners;
  }

  // `memory` holds zeros, and stays the caller's.
  GpuEngine(const UpdateSettings& settings, int learners, char* memory, Machine machine)
      : state_(settings, memory),
        learners_(learners),
        mirror_(static_cast<std::size_t>(learners)),
        machine_(std::move(machine)) {}

  void use_queue(void* queue) override { machine_.use_queue(queue); }
  void select(int learner) override { selected_ = learner; }

  void enqueue(const UpdateWork<T>& work, std::int64_t rows_apart, QueuedResults<T> results) override {
    if (changed_) push();
    BeginCall<T> start{};
    begin(start);
    start.rows = work.rows;
    start.rows_apart = rows_apart;
    start.index = work.index;
    start.index_apart = work.steps * state_.batch;
    start.next_noise = work.next_noise;
    start.noise = work.noise;
    machine_.launch(Lane::kMain, start, 1, learners_);
    for (std::int64_t step = 0; step < work.steps; ++step) {
      machine_.replay(now_, [this] {
        GpuWorker<T, Machine> worker(state_, machine_, learners_, now_);
        sac_update(worker, state_.settings);
      });
      now_ ^= 1;
    }
    EndCall<T> end{};
    begin(end);
    const GpuNetwork<T>& actor = state_.network(Network::kActor);
    for (const int buffer : {0, 1}) end.parameters[buffer] = actor.parts[0][buffer];
    end.count = actor.parameters;
    end.actors = results.actors;
    end.metrics = results.metrics;
    machine_.launch(Lane::kMain, end, EndCall<T>::blocks(end.count), learners_);
    stale_ = true;
  }

  UpdateOutcome collect() override {
    fetch();
    GpuScalars<T>* told = &mirror_[0];
    for (std::size_t i = mirror_.size(); i-- > 0;) {
      if (mirror_[i].fault != kNoFault) told = &mirror_[i];
    }
    UpdateOutcome outcome;
    outcome.updates = told->updates;
    for (int i = 0; i < kMetrics; ++i) outcome.metrics[i] = told->metrics[i];
    outcome.gradient_updates = told->counters.gradient_updates;
    outcome.fault = fault_name(told->fault);
    for (GpuScalars<T>& each : mirror_) {
      if (each.fault == kNoFault) continue;
      each.fault = kNoFault;
      changed_ = true;
    }
    return outcome;
  }

  UpdateOutcome update(const UpdateWork<T>& work) override {
    enqueue(work, 0, {});
    return collect();
  }

  std::int64_t parameter_count(Network network) const override { return state_.network(network).parameters; }

  void read(Network network, Part part, T* to) const override {
    const std::int64_t bytes = parameter_count(network) * static_cast<std::int64_t>(sizeof(T));
    machine_.copy(to, at(network, part, mirror_of_selected().now), bytes);
  }

  void write(Network network, Part part, const T* from) override {
    const std::int64_t bytes = parameter_count(network) * static_cast<std::int64_t>(sizeof(T));
    machine_.copy(at(network, part, mirror_of_selected().now), from, bytes);
  }

  // After what was queued. What is changed here counts from the next call on.
  UpdateCounters& counters() override {
    changed_ = true;
    return mirror_of_selected().counters;
  }

  std::vector<PhaseTime> profile() override { return {}; }  // what runs as a graph is not timed phase by phase

 private:
  void begin(Body<T>& body) const {
    body.scalars = state_.scalars;
    body.learner_bytes = state_.bytes();
  }

  T* at(Network network, Part part, int buffer, int learner) const {
    return Shift{learner * state_.bytes()}(state_.network(network).parts[static_cast<int>(part)][buffer]);
  }
  T* at(Network network, Part part, int buffer) const { return at(network, part, buffer, selected_); }

  GpuScalars<T>& mirror_of_selected() const {
    fetch();
    return mirror_[static_cast<std::size_t>(selected_)];
  }

  GpuScalars<T>* scalars_of(std::size_t learner) const {
    return Shift{static_cast<std::int64_t>(learner) * state_.bytes()}(state_.scalars);
  }

  void fetch() const {
    if (!stale_) return;
    for (std::size_t i = 0; i < mirror_.size(); ++i) machine_.copy(&mirror_[i], scalars_of(i), sizeof(GpuScalars<T>));
    stale_ = false;
    align();
  }

  void push() {
    for (std::size_t i = 0; i < mirror_.size(); ++i) machine_.copy(scalars_of(i), &mirror_[i], sizeof(GpuScalars<T>));
    changed_ = false;
  }

  // A learner that failed was left at its last whole update. All are to read the same buffer of each pair.
  void align() const {
    now_ = mirror_[0].now;
    for (int learner = 1; learner < learners_; ++learner) {
      GpuScalars<T>& scalars = mirror_[static_cast<std::size_t>(learner)];
      if (scalars.now == now_) continue;
      for (int index = 0; index < kNetworks; ++index) {
        for (int part = 0; part < kParts; ++part) {
          const auto network = static_cast<Network>(index);
          const std::int64_t bytes = parameter_count(network) * static_cast<std::int64_t>(sizeof(T));
          T* const from = at(network, static_cast<Part>(part), scalars.now, learner);
          if (from != nullptr) machine_.copy(at(network, static_cast<Part>(part), now_, learner), from, bytes);
        }
      }
      scalars.now = now_;
      machine_.copy(scalars_of(static_cast<std::size_t>(learner)), &scalars, sizeof scalars);
    }
  }

  GpuState<T> state_;
  const int learners_;
  int selected_ = 0;
  bool changed_ = false;                       // the mirror, since it was last pushed
  mutable bool stale_ = true;                  // the mirror
  mutable std::vector<GpuScalars<T>> mirror_;  // what the GPU had when it was last waited for
  mutable int now_ = 0;                        // which buffer of each pair the next update reads
  mutable Machine machine_;
};

}  // namespace sacfast::SACFAST_ISA
