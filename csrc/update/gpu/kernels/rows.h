// Kernels that work on some rows of the minibatch in each block, and their sums along a row.
#pragma once

#include "body.h"

namespace sacfast::SACFAST_ISA {

constexpr int kBlockRows = 8;

SACFAST_HD std::int64_t row_blocks(std::int64_t batch) { return (batch + kBlockRows - 1) / kBlockRows; }

// The rows of the minibatch that a block works on.
struct BlockRows {
  std::int64_t first, count;
};
SACFAST_HD BlockRows rows_of(const Block& block, std::int64_t batch) {
  const std::int64_t first = block.index * kBlockRows, left = batch - first;
  return {first, left < kBlockRows ? left : kBlockRows};
}

template <class T>
struct RowShared {
  T parts[kBlockThreads];
};

// For a few columns: finish(item, sum over k < depth of term(item, k)) for each item < items. As many threads share an
// item as there are to spare.
template <class T, class Term, class Finish>
SACFAST_HD void sum_items(const Block& block, T* parts, std::int64_t items, std::int64_t depth, const Term& term,
                          const Finish& finish) {
  int sharing = 32;
  while (sharing > 1 && items * sharing > kBlockThreads) sharing /= 2;
  const std::int64_t at_once = kBlockThreads / sharing;
  for (std::int64_t first = 0; first < items; first += at_once) {
    block.each_thread([&](int thread) {
      const std::int64_t item = first + thread / sharing;
      T sum = 0;
      if (item < items) {
        for (std::int64_t k = thread % sharing; k < depth; k += sharing) sum += term(item, k);
      }
      parts[thread] = sum;
    });
    block.each_thread([&](int thread) {
      if (thread >= at_once || first + thread >= items) return;
      T sum = 0;
      for (int i = 0; i < sharing; ++i) sum += parts[thread * sharing + i];
      finish(first + thread, sum);
    });
  }
}

}  // namespace sacfast::SACFAST_ISA
