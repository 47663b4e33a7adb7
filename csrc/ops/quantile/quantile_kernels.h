// What the GPU does: a block takes one row. Bodies as phases of a block (core/block.h), so that tests run them on the
// host.
#pragma once

#include "../../core/block_sum.h"
#include "../../core/quantile.h"
#include "../../core/sorting_network.h"
#include "quantile.h"

namespace sacfast::SACFAST_ISA {

constexpr int kWarpThreads = 32;

// T: of the tensors. Acc: of the arithmetic. Each quantile has its warp, each thread of it its part of the targets.
template <class T, class Acc>
struct QuantileHuberKernel {
  QuantileHuberParams<T> p;

  struct Shared {
    QuantileHuber<Acc> part[kBlockThreads];
    Acc loss[kBlockThreads / kWarpThreads];
  };

  SACFAST_HD void operator()(const Block& block, Shared& shared) const {
    constexpr int warps = kBlockThreads / kWarpThreads;
    const std::int64_t row = block.index;
    const Acc kappa = static_cast<Acc>(p.kappa), inverse_kappa = static_cast<Acc>(1.0 / p.kappa);
    const Acc scale = Acc(1) / static_cast<Acc>(p.targets);
    block.each_thread([&](int thread) {
      if (thread < warps) shared.loss[thread] = Acc(0);
    });
    for (std::int64_t first = 0; first < p.quantiles; first += warps) {
      block.each_thread([&](int thread) {
        const std::int64_t i = first + thread / kWarpThreads;
        QuantileHuber<Acc> sum{};
        if (i < p.quantiles) {
          const Acc quantile = static_cast<Acc>(element(p.predicted, row, i));
          const Acc fraction = quantile_fraction<Acc>(i, p.quantiles);
          for (std::int64_t j = thread % kWarpThreads; j < p.targets; j += kWarpThreads) {
            const Acc target = static_cast<Acc>(element(p.target, row / p.critics, j));
            const QuantileHuber<Acc> pair = quantile_huber(quantile, target, fraction, kappa, inverse_kappa);
            sum.loss += pair.loss;
            sum.slope += pair.slope;
          }
        }
        shared.part[thread] = sum;
      });
      block.each_thread([&](int thread) {
        const std::int64_t i = first + thread / kWarpThreads;
        if (thread % kWarpThreads != 0 || i >= p.quantiles) return;
        QuantileHuber<Acc> sum{};
        for (int t = 0; t < kWarpThreads; ++t) {
          sum.loss += shared.part[thread + t].loss;
          sum.slope += shared.part[thread + t].slope;
        }
        shared.loss[thread / kWarpThreads] += sum.loss * scale;
        if (p.slope != nullptr) {
          p.slope[row * p.quantiles + i] = static_cast<T>(sum.slope * scale / static_cast<Acc>(p.quantiles));
        }
      });
    }
    block.each_thread([&](int thread) {
      if (thread != 0) return;
      Acc loss = Acc(0);
      for (int w = 0; w < warps; ++w) loss += shared.loss[w];
      p.loss[row] = static_cast<T>(loss / static_cast<Acc>(p.quantiles));
    });
  }
};

template <class T, class Acc>
struct TruncatedTargetKernel {
  TruncatedTargetParams<T> p;

  struct Shared {
    Acc values[kMostPooledOnCuda];
    bool has_nan;
  };

  SACFAST_HD void operator()(const Block& block, Shared& shared) const {
    const std::int64_t row = block.index;
    block.each_thread([&](int thread) {
      if (thread == 0) shared.has_nan = false;
    });
    block.each_thread([&](int thread) {
      for (std::int64_t i = thread; i < p.pooled; i += kBlockThreads) {
        const Acc value = static_cast<Acc>(element(p.next_quantiles, row, i));
        shared.values[i] = value;
        if (value != value) shared.has_nan = true;  // every writer writes the same
      }
    });
    for_each_sorting_pass(p.pooled, [&](const SortingPass& pass) {
      block.each_thread([&](int thread) {
        for (std::int64_t i = thread; i + pass.distance < p.pooled; i += kBlockThreads) {
          if (!pass.begins_at(i)) continue;
          const Acc a = shared.values[i], b = shared.values[i + pass.distance];
          shared.values[i] = a < b ? a : b;
          shared.values[i + pass.distance] = a < b ? b : a;
        }
      });
    });
    const BellmanRow<Acc> sample = bellman_row<Acc>(p.sample, row);
    block.each_thread([&](int thread) {
      for (std::int64_t i = thread; i < p.kept; i += kBlockThreads) {
        // One NaN makes all of the row NaN: sorted last, it would be dropped, and a broken critic with it.
        const Acc value = bellman_value(shared.values[i], sample);
        p.target[row * p.kept + i] = static_cast<T>(shared.has_nan ? Acc(NAN) : value);
      }
    });
  }
};

}  // namespace sacfast::SACFAST_ISA
