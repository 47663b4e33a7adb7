// What every kernel's body has: the scalars of its learner, and where its learner's memory lies.
//
// Every matrix is row-major and every weight lies as torch has it, [outputs, inputs]. A launch serves S learners side
// by side, each with its own copy of all memory at a fixed distance: pointers are those of the first. No sum depends on
// the order in which blocks run, so the same update gives the same bits.
//
// A learner that has made its updates of a call, or whose update has failed (GpuScalars::fault), sits out the others':
// its kernels do nothing.
#pragma once
#pragma once

#include "../../../core/block.h"
#include "../../counters.h"

namespace sacfast::SACFAST_ISA {

// What was not finite, or a row number that there is no row for; further values are kFaultOfTensor + tensor_number.
constexpr std::int64_t kNoFault = 0, kFaultOfCriticLoss = 1, kFaultOfActorLoss = 2, kFaultOfValueLoss = 3;
constexpr std::int64_t kFaultOfTemperature = 4, kFaultOfRow = 5, kFaultOfTensor = 6;
constexpr std::int64_t kNoPlace = std::int64_t{1} << 62;

// Adam steps of an update: of each network, and of the temperature.
constexpr int kOfTemperature = kNetworks, kSteps = kNetworks + 1;

// The state of one learner that is not a tensor, in the GPU's memory.
template <class T>
struct GpuScalars {
  UpdateCounters counters;
  int now;  // which buffer of each pair counts

  // The call in progress.
  const float* rows;          // of the replay buffer
  const std::int64_t* index;  // [steps, B]
  std::int64_t steps;
  std::int64_t capacity;   // rows that there are
  std::int64_t bad_place;  // the first in `index`, of those met so far, whose row there is not
  std::int64_t bad_row;    // what stands there
  T* actor;                // takes its parameters
  const T *next_noise, *noise;
  std::int64_t step;
  std::int64_t updates;
  double metrics[kMetrics];  // sums
  std::int64_t fault;        // stays until the host has seen it

  // The update in progress: set when its minibatch is gathered.
  T alpha;
  AdamFactors<T> factors[kSteps];
  bool target_is_due;
  std::int64_t bad_critic, bad_policy;  // tensor_number of the first that is not finite
};

// A pointer into the first learner's memory. Nothing can be read through it: only Shift makes a pointer of it, into the
// memory of the learner that a block works for. A kernel that forgets to ask does not compile.
template <class P>
class OfLearner {
 public:
  OfLearner() = default;
  SACFAST_HD OfLearner(P* of_first) : of_first_(of_first) {}  // what the host lays out is the first learner's

  SACFAST_HD bool is_null() const { return of_first_ == nullptr; }

 private:
  friend struct Shift;
  P* of_first_ = nullptr;
};

// From the first learner's memory to that of the one a block works for.
struct Shift {
  std::int64_t bytes;
  template <class P>
  SACFAST_HD P* operator()(OfLearner<P> pointer) const {
    return pointer.is_null() ? nullptr
                             : reinterpret_cast<P*>(reinterpret_cast<std::uintptr_t>(pointer.of_first_) +
                                                    static_cast<std::uintptr_t>(bytes));
  }
};

// What all bodies have.
template <class T>
struct Body {
  OfLearner<GpuScalars<T>> scalars;
  std::int64_t learner_bytes;

  SACFAST_HD Shift shift(const Block& block) const { return {block.learner * learner_bytes}; }
  SACFAST_HD bool is_off(const Block& block) const {
    const GpuScalars<T>& mine = *shift(block)(scalars);
    return mine.fault != kNoFault || mine.step >= mine.steps;
  }
};

struct NoShared {};

// Blocks that have a thread for each of `count` elements.
SACFAST_HD std::int64_t blocks_of_threads(std::int64_t count) { return (count + kBlockThreads - 1) / kBlockThreads; }

}  // namespace sacfast::SACFAST_ISA
