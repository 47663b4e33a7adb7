// Batcher's merge exchange (Knuth, The Art of Computer Programming 3, section 5.2.2, algorithm M), for any count.
//
// The order of comparisons does not depend on the values. So the lanes of a vector sort one row each, and the threads
// of a GPU's block share a row.
#pragma once

#include "qualifiers.h"

namespace sacfast::SACFAST_ISA {

// The comparisons of a pass are of disjoint elements: at i and i + distance, for every i with (i & mask) == residue.
struct SortingPass {
  std::int64_t mask, residue, distance;

  SACFAST_HD bool begins_at(std::int64_t i) const { return (i & mask) == residue; }
};

// Calls pass(SortingPass) for the passes that sort `count` elements, in order.
template <class Pass>
SACFAST_HD void for_each_sorting_pass(std::int64_t count, const Pass& pass) {
  std::int64_t top = 1;  // the largest power of two below count
  while (2 * top < count) top *= 2;
  for (std::int64_t p = top; p > 0 && count > 1; p /= 2) {
    std::int64_t q = top, residue = 0, distance = p;
    while (true) {
      pass(SortingPass{p, residue, distance});
      if (q == p) break;
      distance = q - p;
      q /= 2;
      residue = p;
    }
  }
}

}  // namespace sacfast::SACFAST_ISA
