// The first and the last kernels of a call: what each learner has to do, and what came of it.
#pragma once

#include "body.h"

namespace sacfast::SACFAST_ISA {

// Starts a call, and takes the actor's parameters from where the caller has them: they may have been written to since
// the call before.
template <class T>
struct BeginCall : Body<T> {
  using Shared = NoShared;
  QueuedWork<T> work[kMostLearners];
  const T *next_noise, *noise;
  OfLearner<T> parameters[2];  // of the actor
  std::int64_t count;
  int now;

  std::int64_t blocks() const { return blocks_of_threads(count); }

  SACFAST_HD void operator()(const Block& block, Shared&) const {
    const Shift here = this->shift(block);
    GpuScalars<T>& scalars = *here(this->scalars);
    const QueuedWork<T>& mine = work[block.learner];
    // A learner that failed stays with the buffer of its last whole update. Nothing in this launch writes the fault.
    const bool goes_on = scalars.fault == kNoFault;
    T* const to = here(parameters[goes_on ? now : scalars.now]);
    block.each_thread([&](int thread) {
      const std::int64_t at = block.index * kBlockThreads + thread;
      if (mine.actor != nullptr && at < count) to[at] = mine.actor[at];
      if (at > 0) return;
      if (goes_on) scalars.now = now;
      scalars.rows = mine.rows;
      scalars.index = mine.index;
      scalars.steps = mine.steps;
      scalars.capacity = mine.capacity;
      scalars.bad_place = kNoPlace;
      scalars.actor = mine.actor;
      scalars.next_noise = next_noise;
      scalars.noise = noise;
      scalars.step = scalars.updates = 0;
      for (double& metric : scalars.metrics) metric = 0;
    });
  }
};

// Learners that made different numbers of updates may have their state in different buffers of each pair. Copies it, so
// that all can go on from buffer `now`.
template <class T>
struct Settle : Body<T> {
  using Shared = NoShared;
  struct Pair {
    OfLearner<T> buffers[2];
    std::int64_t count;
  };
  int count;
  Pair pairs[kNetworks * kParts];
  int now;

  std::int64_t blocks() const {
    std::int64_t most = 0;
    for (int i = 0; i < count; ++i) most = pairs[i].count > most ? pairs[i].count : most;
    return (most + kBlockThreads - 1) / kBlockThreads;
  }

  SACFAST_HD void operator()(const Block& block, Shared&) const {
    const Shift here = this->shift(block);
    const int from = here(this->scalars)->now;
    if (from == now) return;
    block.each_thread([&](int thread) {
      const std::int64_t at = block.index * kBlockThreads + thread;
      for (int i = 0; i < count; ++i) {
        if (at < pairs[i].count) here(pairs[i].buffers[now])[at] = here(pairs[i].buffers[from])[at];
      }
    });
  }
};

// Leaves what the caller reads without waiting: of each learner the actor's parameters, the sums of the metrics, and
// its scalars in the host's memory.
template <class T>
struct EndCall : Body<T> {
  using Shared = NoShared;
  OfLearner<const T> parameters[2];  // of the actor
  std::int64_t count;
  double* metrics;         // [S, kMetrics]; null: not wanted
  GpuScalars<T>* outcome;  // [S]

  std::int64_t blocks() const { return blocks_of_threads(count > kMetrics ? count : kMetrics); }

  SACFAST_HD void operator()(const Block& block, Shared&) const {
    const Shift here = this->shift(block);
    const GpuScalars<T>& scalars = *here(this->scalars);
    const T* from = here(parameters[scalars.now]);
    block.each_thread([&](int thread) {
      const std::int64_t at = block.index * kBlockThreads + thread;
      if (scalars.actor != nullptr && at < count) scalars.actor[at] = from[at];
      if (metrics != nullptr && at < kMetrics) metrics[block.learner * kMetrics + at] = scalars.metrics[at];
      if (at == 0) outcome[block.learner] = scalars;
    });
  }
};

}  // namespace sacfast::SACFAST_ISA
