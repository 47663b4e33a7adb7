// What the GPU does: a block takes one sample. Bodies as phases of a block (core/block.h), so that tests run them on
// the host.
#pragma once

#include "../../core/block_sum.h"
#include "../../core/categorical.h"
#include "categorical.h"

namespace sacfast::SACFAST_ISA {

// T: of the tensors. Acc: of the arithmetic.
template <class T, class Acc>
struct CategoricalTargetKernel {
  CategoricalTargetParams<T> p;

  struct Shared {
    BlockValues<Acc, 2> largest;                       // of each critic's logits
    BlockValues<Acc, 4> sums;                          // exp and exp times atom, of each critic
    Acc mass[kBlockThreads], position[kBlockThreads];  // of a tile of atoms
  };

  SACFAST_HD void operator()(const Block& block, Shared& shared) const {
    const std::int64_t row = block.index;
    const bool has_second = p.next_logits2.data != nullptr;
    const Support<Acc> support = Support<Acc>::of(p.v_min, p.v_max, p.atoms);
    const BellmanRow<Acc> sample = bellman_row<Acc>(p.sample, row);
    block.each_thread([&](int thread) {
      for (int c = 0; c < (has_second ? 2 : 1); ++c) {
        Acc largest = logit(c, row, 0);
        for (std::int64_t j = thread; j < p.atoms; j += kBlockThreads) {
          const Acc value = logit(c, row, j);
          largest = value > largest ? value : largest;
        }
        shared.largest.of[c][thread] = largest;
      }
      if (!has_second) shared.largest.of[1][thread] = Acc(0);
    });
    shared.largest.largest(block);
    block.each_thread([&](int thread) {
      for (int c = 0; c < 2; ++c) {
        Acc sum = Acc(0), weighted = Acc(0);
        for (std::int64_t j = thread; j < p.atoms && (c == 0 || has_second); j += kBlockThreads) {
          const Acc value = exponential(Acc(logit(c, row, j) - shared.largest.of[c][0]));
          sum += value;
          weighted += value * support.atom(j);
        }
        shared.sums.of[2 * c][thread] = sum;
        shared.sums.of[2 * c + 1][thread] = weighted;
      }
    });
    shared.sums.sum(block);
    const auto mean = [&](int c) { return shared.sums.of[2 * c + 1][0] / shared.sums.of[2 * c][0]; };
    const int chosen = !has_second || takes_first(mean(0), mean(1)) ? 0 : 1;
    const Acc largest = shared.largest.of[chosen][0], scale = Acc(1) / shared.sums.of[2 * chosen][0];

    for (std::int64_t first_bin = 0; first_bin < p.atoms; first_bin += kBlockThreads) {
      PerThread<Acc> sum;
      for (std::int64_t first = 0; first < p.atoms; first += kBlockThreads) {
        block.each_thread([&](int thread) {
          const std::int64_t j = first + thread;
          if (first == 0) sum[thread] = Acc(0);
          if (j >= p.atoms) return;
          shared.mass[thread] = exponential(Acc(logit(chosen, row, j) - largest)) * scale;
          shared.position[thread] = atom_position(bellman_value(support.atom(j), sample), support.v_min, support.v_max,
                                                  support.inverse_spacing, support.last);
        });
        block.each_thread([&](int thread) {
          const Acc bin = static_cast<Acc>(first_bin + thread);
          for (std::int64_t j = 0; j < kBlockThreads && first + j < p.atoms; ++j) {
            sum[thread] += shared.mass[j] * share_of_atom(shared.position[j], bin);
          }
        });
      }
      block.each_thread([&](int thread) {
        const std::int64_t bin = first_bin + thread;
        if (bin < p.atoms) p.target[row * p.atoms + bin] = static_cast<T>(sum[thread]);
      });
    }
  }

  SACFAST_HD Acc logit(int critic, std::int64_t row, std::int64_t j) const {
    return static_cast<Acc>(element(critic == 0 ? p.next_logits1 : p.next_logits2, row, j));
  }
};

template <class T, class Acc>
struct CrossEntropyKernel {
  CrossEntropyParams<T> p;

  struct Shared {
    BlockValues<Acc, 1> largest;
    BlockValues<Acc, 3> sums;  // exp; target; target times (logit - largest)
  };

  SACFAST_HD void operator()(const Block& block, Shared& shared) const {
    const std::int64_t row = block.index;
    const auto logit = [&](std::int64_t j) { return static_cast<Acc>(element(p.logits, row, j)); };
    const auto target = [&](std::int64_t j) { return static_cast<Acc>(element(p.target, row, j)); };
    block.each_thread([&](int thread) {
      Acc largest = logit(0);
      for (std::int64_t j = thread; j < p.atoms; j += kBlockThreads) {
        const Acc value = logit(j);
        largest = value > largest ? value : largest;
      }
      shared.largest.of[0][thread] = largest;
    });
    shared.largest.largest(block);
    const Acc largest = shared.largest.of[0][0];
    block.each_thread([&](int thread) {
      Acc sums[3] = {};
      for (std::int64_t j = thread; j < p.atoms; j += kBlockThreads) {
        const Acc below = logit(j) - largest, t = target(j);
        sums[0] += exponential(below);
        sums[1] += t;
        sums[2] += t * below;
      }
      for (int v = 0; v < 3; ++v) shared.sums.of[v][thread] = sums[v];
    });
    shared.sums.sum(block);
    const Acc sum = shared.sums.of[0][0], target_sum = shared.sums.of[1][0];
    block.each_thread([&](int thread) {
      if (thread == 0) p.loss[row] = static_cast<T>(target_sum * natural_log(sum) - shared.sums.of[2][0]);
      for (std::int64_t j = thread; j < p.atoms && p.slope != nullptr; j += kBlockThreads) {
        const Acc probability = exponential(Acc(logit(j) - largest)) / sum;
        p.slope[row * p.atoms + j] = static_cast<T>(cross_entropy_slope(probability, target(j), target_sum));
      }
    });
  }
};

}  // namespace sacfast::SACFAST_ISA
