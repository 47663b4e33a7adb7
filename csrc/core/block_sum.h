// Sums and maxima over the threads of a block (core/block.h), always in the same order.
#pragma once

#include "block.h"

namespace sacfast::SACFAST_ISA {

// In shared memory: several values of each thread.
template <class T, int kValues>
struct BlockValues {
  T of[kValues][kBlockThreads];

  // of[v][0] becomes combine() of the values v of all threads.
  template <class Combine>
  SACFAST_HD void fold(const Block& block, const Combine& combine) {
    for (int half = kBlockThreads / 2; half > 0; half /= 2) {
      block.each_thread([&](int thread) {
        if (thread >= half) return;
        for (int v = 0; v < kValues; ++v) of[v][thread] = combine(of[v][thread], of[v][thread + half]);
      });
    }
  }
  SACFAST_HD void sum(const Block& block) {
    fold(block, [](T a, T b) { return a + b; });
  }
  // NaN, wherever it comes from, may be lost.
  SACFAST_HD void largest(const Block& block) {
    fold(block, [](T a, T b) { return a > b ? a : b; });
  }
};

}  // namespace sacfast::SACFAST_ISA
