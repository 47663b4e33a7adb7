// What the GPU does, as phases of a block (core/block.h), so that tests run them on the host.
#pragma once

#include "../../core/block.h"
#include "../../core/moments.h"
#include "moments.h"

namespace sacfast::SACFAST_ISA {

// How blocks share a matrix: a block has `width` columns, and `slots` threads for each.
struct BlockGrid {
  int width = 1, slots = kBlockThreads;
  std::int64_t col_blocks;

  SACFAST_HD explicit BlockGrid(std::int64_t columns) {
    for (; width < columns && slots > 1; slots /= 2) width *= 2;
    col_blocks = (columns + width - 1) / width;
  }
  SACFAST_HD std::int64_t row_block(const Block& block) const { return block.index / col_blocks; }
  SACFAST_HD std::int64_t column(const Block& block, int thread) const {
    return block.index % col_blocks * width + thread % width;
  }
  SACFAST_HD int slot(int thread) const { return thread / width; }
};

// T: of the tensors. Acc: half and bfloat16 become double by way of it. A block takes one part of the rows.
template <class T, class Acc>
struct PartialMomentsKernel {
  RunningMomentsParams<T> p;

  struct Shared {
    Moments of[kBlockThreads];
  };

  SACFAST_HD std::int64_t blocks() const { return p.parts * BlockGrid(p.columns).col_blocks; }

  SACFAST_HD void operator()(const Block& block, Shared& shared) const {
    const BlockGrid grid(p.columns);
    const std::int64_t part = grid.row_block(block), end = part_begin(p, part + 1);
    block.each_thread([&](int thread) {
      if (block.index == 0 && thread == 0) advance_count(p);
      const std::int64_t column = grid.column(block, thread), first = part_begin(p, part) + grid.slot(thread);
      shared.of[thread] = column < p.columns && first < end ? of_rows(first, end, grid.slots, column) : Moments{};
    });
    for (int half = grid.slots / 2; half > 0; half /= 2) {
      block.each_thread([&](int thread) {
        if (grid.slot(thread) >= half) return;
        shared.of[thread] = merged(shared.of[thread], shared.of[thread + half * grid.width]);
      });
    }
    block.each_thread([&](int thread) {
      const std::int64_t column = grid.column(block, thread);
      if (grid.slot(thread) > 0 || column >= p.columns) return;
      double* partial = p.partial + part * 2 * p.columns + column;
      partial[0] = shared.of[thread].mean;
      partial[p.columns] = shared.of[thread].deviations;
    });
  }

  SACFAST_HD Moments of_rows(std::int64_t first, std::int64_t end, std::int64_t step, std::int64_t column) const {
    const double shift = shift_of(at(first, column));
    double count = 0.0, sum = 0.0, squares = 0.0;
    for (std::int64_t row = first; row < end; row += step) {
      const double d = at(row, column) - shift;
      count += 1.0;
      sum += d;
      squares += d * d;
    }
    return moments_of(count, shift, sum, squares);
  }

  SACFAST_HD double at(std::int64_t row, std::int64_t column) const {
    return static_cast<double>(static_cast<Acc>(element(p.batch, row, column)));
  }
};

// A block takes one column, each of its threads a part.
template <class T>
struct MergeMomentsKernel {
  RunningMomentsParams<T> p;

  struct Shared {
    Moments of[kBlockThreads];
  };
  static_assert(kMostParts <= kBlockThreads, "a thread has one part at most");

  SACFAST_HD void operator()(const Block& block, Shared& shared) const {
    const std::int64_t column = block.index;
    block.each_thread([&](int thread) {
      Moments part{};
      if (thread < p.parts) {
        const double* partial = p.partial + thread * 2 * p.columns + column;
        const std::int64_t rows = part_begin(p, thread + 1) - part_begin(p, thread);
        part = Moments{static_cast<double>(rows), partial[0], partial[p.columns]};
      }
      shared.of[thread] = part;
    });
    for (int half = kBlockThreads / 2; half > 0; half /= 2) {
      block.each_thread([&](int thread) {
        if (thread < half) shared.of[thread] = merged(shared.of[thread], shared.of[thread + half]);
      });
    }
    block.each_thread([&](int thread) {
      if (thread > 0) return;
      const double count = *p.count_before;
      const Moments before{count, moment_at(p.mean, column), count * moment_at(p.variance, column)};
      const Moments all = merged(before, shared.of[0]);
      set_moment(p.mean, column, all.mean);
      set_moment(p.variance, column, all.deviations / all.count);
    });
  }
};

// Forward, or backward where there is a gradient. A thread makes the factors of its column once, for several rows.
template <class T, class Acc>
struct NormalizeKernel {
  NormalizeParams<T> p;

  struct Shared {};
  static constexpr int kRowsOfThread = 16;

  SACFAST_HD std::int64_t blocks() const {
    const BlockGrid grid(p.columns);
    const std::int64_t rows_of_block = static_cast<std::int64_t>(grid.slots) * kRowsOfThread;
    return (p.rows + rows_of_block - 1) / rows_of_block * grid.col_blocks;
  }

  SACFAST_HD void operator()(const Block& block, Shared&) const {
    const BlockGrid grid(p.columns);
    const Acc clip_at = static_cast<Acc>(p.clip);
    const bool is_clipped = std::isfinite(p.clip);
    block.each_thread([&](int thread) {
      const std::int64_t column = grid.column(block, thread);
      if (column >= p.columns) return;
      const NormalFactors<Acc> factors =
          normal_factors<Acc>(moment_at(p.mean, column), moment_at(p.variance, column), p.eps);
      const std::int64_t first = grid.row_block(block) * grid.slots * kRowsOfThread + grid.slot(thread);
      for (int i = 0; i < kRowsOfThread; ++i) {
        const std::int64_t row = first + static_cast<std::int64_t>(i) * grid.slots;
        if (row >= p.rows) return;
        T& out = p.out[row * p.columns + column];
        const auto y = [&] {
          const Acc x = static_cast<Acc>(element(p.x, row, column));
          return normalized(x, factors.high, factors.low, factors.scale);
        };
        if (p.grad.data == nullptr) {
          out = static_cast<T>(clip(y(), -clip_at, clip_at));
        } else {
          const Acc passed = static_cast<Acc>(element(p.grad, row, column)) * factors.scale;
          out = static_cast<T>(!is_clipped || absolute(y()) <= clip_at ? passed : Acc(0));
        }
      }
    });
  }
};

}  // namespace sacfast::SACFAST_ISA
