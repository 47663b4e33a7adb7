// A block of threads, written so that one kernel body runs on a GPU and, thread after thread, on the host.
//
// A body is a sequence of phases: what every thread does between two barriers. On the GPU a phase is the thread's own
// part and a __syncthreads; on the host it is a loop over the threads. Everything outside of phases is the same for all
// threads of a block. So the index arithmetic of every kernel is tested where there is no GPU.
#pragma once

#include "qualifiers.h"

namespace sacfast::SACFAST_ISA {

constexpr int kBlockThreads = 256;

// What a thread keeps from one phase to the next: registers on the GPU.
#if defined(__CUDA_ARCH__)
template <class Registers>
struct PerThread {
  Registers mine;
  SACFAST_HD Registers& operator[](int) { return mine; }
};
#else
template <class Registers>
struct PerThread {
  Registers all[kBlockThreads];
  SACFAST_HD Registers& operator[](int thread) { return all[thread]; }
};
#endif

struct Block {
  std::int64_t index;     // of the grid's blocks
  int learner;            // of those that a launch serves side by side
  bool reversed = false;  // on the host: the last thread first. Nothing may depend on it.

  template <class Phase>
  SACFAST_HD void each_thread(const Phase& phase) const {
#if defined(__CUDA_ARCH__)
    phase(static_cast<int>(threadIdx.x));
    __syncthreads();
#else
    for (int i = 0; i < kBlockThreads; ++i) phase(reversed ? kBlockThreads - 1 - i : i);
#endif
  }
};

// Keeps the smallest value that any thread of the grid brought.
SACFAST_HD void keep_smallest(std::int64_t* smallest, std::int64_t value) {
#if defined(__CUDA_ARCH__)
  atomicMin(reinterpret_cast<long long*>(smallest), static_cast<long long>(value));
#else
  if (value < *smallest) *smallest = value;
#endif
}

// Adds one to what others may add to at the same time; returns what was there.
SACFAST_HD std::int64_t take_next(std::int64_t* counter) {
#if defined(__CUDA_ARCH__)
  return static_cast<std::int64_t>(atomicAdd(reinterpret_cast<unsigned long long*>(counter), 1ull));
#else
  return (*counter)++;
#endif
}

}  // namespace sacfast::SACFAST_ISA
