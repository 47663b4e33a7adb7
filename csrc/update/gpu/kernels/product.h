// Products of matrices, and what is done with each element of a result: hidden layers, and their deltas.
#pragma once

#include "../tile_product.h"
#include "body.h"

namespace sacfast::SACFAST_ISA {

// A matrix as a product reads it: along the sum ("depth") and across it.
template <class T>
struct Operand {
  OfLearner<const T> data;
  std::int64_t depth_stride, cross_stride;
};

// out(row, col) = sum over k of left(row, k) right(k, col), handed to an epilogue element by element.
template <class T, class Epilogue>
struct MatrixProduct {
  std::int64_t rows, cols, depth;
  Operand<T> left, right;
  std::int64_t ones_from;  // columns of `right` from here on are ones: they sum `left`, for the gradient of a bias
  Epilogue epilogue;
};

template <class T, class Epilogue>
struct ProductList {
  static constexpr int kMost = 8;
  int count;
  MatrixProduct<T, Epilogue> items[kMost];
};

// Several products in one launch. A block makes one tile of one of them.
template <class T, class Epilogue, class Tile>
struct MatrixProducts : Body<T> {
  static constexpr int kFetched = kDepth * kTile / kBlockThreads;
  static_assert(Tile::kGroups * kTile * (kTile + 1) <= 2 * kDepth * kPitch, "the sums take the operands' place");

  ProductList<T, Epilogue> list;

  struct Shared {
    alignas(32) T memory[2 * kDepth * kPitch];
  };
  struct Registers {
    typename Tile::Sums sums;
    T left[kFetched], right[kFetched];  // fetched ahead
  };

  SACFAST_HD static std::int64_t tiles(std::int64_t size) { return (size + kTile - 1) / kTile; }
  SACFAST_HD static std::int64_t blocks(const MatrixProduct<T, Epilogue>& item) {
    return tiles(item.rows) * tiles(item.cols);
  }
  std::int64_t blocks() const {
    std::int64_t all = 0;
    for (int i = 0; i < list.count; ++i) all += blocks(list.items[i]);
    return all;
  }

  SACFAST_HD void operator()(const Block& block, Shared& shared) const {
    if (this->is_off(block)) return;
    const Shift here = this->shift(block);
    std::int64_t tile = block.index;
    int number = 0;
    while (tile >= blocks(list.items[number])) tile -= blocks(list.items[number++]);
    const MatrixProduct<T, Epilogue>& item = list.items[number];
    const std::int64_t first_row = tile / tiles(item.cols) * kTile, first_col = tile % tiles(item.cols) * kTile;
    T* const left = shared.memory;
    T* const right = shared.memory + kDepth * kPitch;

    const auto fetch = [&](int thread, std::int64_t depth, Registers& mine) {
      fetch_part(here(item.left.data), item.left, first_row, item.rows, item.rows, depth, item.depth, thread,
                 mine.left);
      fetch_part(here(item.right.data), item.right, first_col, item.cols, item.ones_from, depth, item.depth, thread,
                 mine.right);
    };
    PerThread<Registers> kept;
    block.each_thread([&](int thread) {
      kept[thread].sums = {};
      fetch(thread, 0, kept[thread]);
    });
    for (std::int64_t depth = 0; depth < item.depth; depth += kDepth) {
      block.each_thread([&](int thread) {
        put_part(kept[thread].left, item.left, thread, left);
        put_part(kept[thread].right, item.right, thread, right);
      });
      block.each_thread([&](int thread) {
        if (depth + kDepth < item.depth) fetch(thread, depth + kDepth, kept[thread]);
        Tile::add(thread, left, right, kept[thread].sums);
      });
    }

    block.each_thread([&](int thread) {
      Tile::for_each(thread, kept[thread].sums, [&](int group, int row, int col, T sum) {
        shared.memory[(group * kTile + row) * (kTile + 1) + col] = sum;
      });
    });
    block.each_thread([&](int thread) {
      for (int i = thread; i < kTile * kTile; i += kBlockThreads) {
        const std::int64_t row = first_row + i / kTile, col = first_col + i % kTile;
        if (row >= item.rows || col >= item.cols) continue;
        T sum = 0;
        for (int group = 0; group < Tile::kGroups; ++group) {
          sum += shared.memory[(group * kTile + i / kTile) * (kTile + 1) + i % kTile];
        }
        item.epilogue(row, col, sum, here, *here(this->scalars));
      }
    });
  }

 private:
  // Where element i of a thread's share lies in a part [kDepth, kTile]: neighbours in memory go to neighbouring
  // threads.
  SACFAST_HD static void place(const Operand<T>& operand, int thread, int i, int& depth, int& cross) {
    const int element = i * kBlockThreads + thread;
    const bool along_depth = operand.depth_stride == 1;
    depth = along_depth ? element % kDepth : element / kTile;
    cross = along_depth ? element / kDepth : element % kTile;
  }

  SACFAST_HD static void fetch_part(const T* data, const Operand<T>& operand, std::int64_t first, std::int64_t end,
                                    std::int64_t ones_from, std::int64_t first_depth, std::int64_t end_depth,
                                    int thread, T (&fetched)[kFetched]) {
    for (int i = 0; i < kFetched; ++i) {
      int depth, cross;
      place(operand, thread, i, depth, cross);
      const std::int64_t k = first_depth + depth, at = first + cross;
      T value = 0;
      if (k < end_depth && at < end) {
        value = at < ones_from ? data[k * operand.depth_stride + at * operand.cross_stride] : T(1);
      }
      fetched[i] = value;
    }
  }

  SACFAST_HD static void put_part(const T (&fetched)[kFetched], const Operand<T>& operand, int thread, T* part) {
    for (int i = 0; i < kFetched; ++i) {
      int depth, cross;
      place(operand, thread, i, depth, cross);
      part[depth * kPitch + cross] = fetched[i];
    }
  }
};

// A hidden layer: bias and ReLU. A NaN stays one.
template <class T>
struct HiddenLayer {
  OfLearner<const T> bias;
  OfLearner<T> out;
  std::int64_t stride;

  SACFAST_HD void operator()(std::int64_t row, std::int64_t col, T sum, Shift here, GpuScalars<T>&) const {
    const T value = sum + here(bias)[col];
    here(out)[row * stride + col] = value < T(0) ? T(0) : value;
  }
};

// The gradient with respect to a hidden layer's sums: nothing passes where its ReLU gave zero.
template <class T>
struct HiddenDelta {
  OfLearner<const T> active;
  OfLearner<T> out;
  std::int64_t stride;

  SACFAST_HD void operator()(std::int64_t row, std::int64_t col, T sum, Shift here, GpuScalars<T>&) const {
    const std::int64_t at = row * stride + col;
    here(out)[at] = here(active)[at] > T(0) ? sum : T(0);
  }
};

}  // namespace sacfast::SACFAST_ISA
