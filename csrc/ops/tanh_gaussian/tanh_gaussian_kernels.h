// The kernel that hands out noise on a GPU, as phases of a block (core/block.h).
#pragma once

#include "../../core/block.h"

namespace sacfast::SACFAST_ISA {

// Takes one stream of noise from a state [seed, offset] that others may take from at the same time, from streams of
// their own: one operation both reads the offset and advances it.
struct TakeNoise {
  struct Shared {};
  std::int64_t* state;
  std::int64_t* taken;  // [seed, offset]

  SACFAST_HD void operator()(const Block& block, Shared&) const {
    block.each_thread([&](int thread) {
      if (thread > 0) return;
      taken[0] = state[0];
      taken[1] = take_next(&state[1]);
    });
  }
};

}  // namespace sacfast::SACFAST_ISA
