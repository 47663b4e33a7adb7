// What the GPU does in one launch: the bodies of the kernels of an update, as phases of a block (core/block.h).
//
// Every matrix is row-major and every weight lies as torch has it, [outputs, inputs]. A launch serves S learners side
// by side, each with its own copy of all memory at a fixed distance: pointers are those of the first. No sum depends on
// the order in which blocks run, so the same update gives the same bits.
//
// A learner that has made its updates of a call, or whose update has failed (GpuScalars::fault), sits out the others':
// its kernels do nothing.
#pragma once

#include "../core/bellman.h"
#include "../core/block.h"
#include "../core/philox.h"
#include "../core/polyak.h"
#include "../core/tanh_gaussian.h"
#include "counters.h"
#include "tile_product.h"

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

// From the first learner's memory to that of the one a block works for.
struct Shift {
  std::int64_t bytes;
  template <class P>
  SACFAST_HD P* operator()(P* pointer) const {
    return pointer == nullptr
               ? nullptr
               : reinterpret_cast<P*>(reinterpret_cast<std::uintptr_t>(pointer) + static_cast<std::uintptr_t>(bytes));
  }
};

// What all bodies have.
template <class T>
struct Body {
  GpuScalars<T>* scalars;
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

// ---- Begin and end of a call, begin and end of an update ----------------------------------------------------------

// Starts a call, and takes the actor's parameters from where the caller has them: they may have been written to since
// the call before.
template <class T>
struct BeginCall : Body<T> {
  using Shared = NoShared;
  QueuedWork<T> work[kMostLearners];
  const T *next_noise, *noise;
  T* parameters[2];  // of the actor
  std::int64_t count;
  int now;

  std::int64_t blocks() const { return blocks_of_threads(count); }

  SACFAST_HD void operator()(const Block& block, Shared&) const {
    const Shift here = this->shift(block);
    GpuScalars<T>& scalars = *here(this->scalars);
    const QueuedWork<T>& mine = work[block.learner];
    // A learner that failed stays with the buffer of its last whole update. Nothing in this launch writes the fault.
    const bool goes_on = scalars.fault == kNoFault;
    T* const to = here(parameters[goes_on ? now : scalars.now]);
    block.each_thread([&](int thread) {
      const std::int64_t at = block.index * kBlockThreads + thread;
      if (mine.actor != nullptr && at < count) to[at] = mine.actor[at];
      if (at > 0) return;
      if (goes_on) scalars.now = now;
      scalars.rows = mine.rows;
      scalars.index = mine.index;
      scalars.steps = mine.steps;
      scalars.capacity = mine.capacity;
      scalars.bad_place = kNoPlace;
      scalars.actor = mine.actor;
      scalars.next_noise = next_noise;
      scalars.noise = noise;
      scalars.step = scalars.updates = 0;
      for (double& metric : scalars.metrics) metric = 0;
    });
  }
};

// Learners that made different numbers of updates may have their state in different buffers of each pair. Copies it, so
// that all can go on from buffer `now`.
template <class T>
struct Settle : Body<T> {
  using Shared = NoShared;
  struct Pair {
    T* buffers[2];
    std::int64_t count;
  };
  int count;
  Pair pairs[kNetworks * kParts];
  int now;

  std::int64_t blocks() const {
    std::int64_t most = 0;
    for (int i = 0; i < count; ++i) most = pairs[i].count > most ? pairs[i].count : most;
    return (most + kBlockThreads - 1) / kBlockThreads;
  }

  SACFAST_HD void operator()(const Block& block, Shared&) const {
    const Shift here = this->shift(block);
    const int from = here(this->scalars)->now;
    if (from == now) return;
    block.each_thread([&](int thread) {
      const std::int64_t at = block.index * kBlockThreads + thread;
      for (int i = 0; i < count; ++i) {
        if (at < pairs[i].count) here(pairs[i].buffers[now])[at] = here(pairs[i].buffers[from])[at];
      }
    });
  }
};

// Leaves what the caller reads without waiting: of each learner the actor's parameters, the sums of the metrics, and
// its scalars in the host's memory.
template <class T>
struct EndCall : Body<T> {
  using Shared = NoShared;
  const T* parameters[2];  // of the actor
  std::int64_t count;
  double* metrics;         // [S, kMetrics]; null: not wanted
  GpuScalars<T>* outcome;  // [S]

  std::int64_t blocks() const { return blocks_of_threads(count > kMetrics ? count : kMetrics); }

  SACFAST_HD void operator()(const Block& block, Shared&) const {
    const Shift here = this->shift(block);
    const GpuScalars<T>& scalars = *here(this->scalars);
    const T* from = here(parameters[scalars.now]);
    block.each_thread([&](int thread) {
      const std::int64_t at = block.index * kBlockThreads + thread;
      if (scalars.actor != nullptr && at < count) scalars.actor[at] = from[at];
      if (metrics != nullptr && at < kMetrics) metrics[block.learner * kMetrics + at] = scalars.metrics[at];
      if (at == 0) outcome[block.learner] = scalars;
    });
  }
};

// A minibatch row by row: (x, a), and x and x' where actions are still to come. Also what is the same for all of the
// update: the temperature and the factors of the optimisers' steps.
template <class T>
struct Gather : Body<T> {
  using Shared = NoShared;
  std::int64_t batch, observations, actions;
  T *stored, *next, *current;  // [B, O + A]
  T *reward, *terminated;      // [B]
  T reward_scale;
  bool learn_alpha;
  double alpha;
  double lr[kSteps], beta1, beta2, eps;
  std::int64_t target_update_interval;

  SACFAST_HD static std::int64_t blocks(std::int64_t batch, std::int64_t width) {
    return (batch * width + kBlockThreads - 1) / kBlockThreads;
  }

  SACFAST_HD void operator()(const Block& block, Shared&) const {
    if (this->is_off(block)) return;
    const Shift here = this->shift(block);
    GpuScalars<T>& scalars = *here(this->scalars);
    const std::int64_t pair = observations + actions, width = pair + observations + 2;
    block.each_thread([&](int thread) {
      if (block.index == 0 && thread < kSteps) prepare(scalars, thread);
      const std::int64_t element = block.index * kBlockThreads + thread;
      if (element >= batch * width) return;
      const std::int64_t row = element / width, col = element % width;
      const std::int64_t place = scalars.step * batch + row, number = scalars.index[place];
      const bool exists = number >= 0 && number < scalars.capacity;
      // Nothing is read where there is no row: that would end the process's work on the GPU.
      if (!exists && col == 0) keep_smallest(&scalars.bad_place, place);
      const T exact = static_cast<T>(exists ? scalars.rows[number * width + col] : 0.0f);
      if (col < pair) here(stored)[row * pair + col] = exact;
      if (col < observations) here(current)[row * pair + col] = exact;
      if (col == pair) here(reward)[row] = reward_scale * exact;
      if (col > pair && col < width - 1) here(next)[row * pair + col - pair - 1] = exact;
      if (col == width - 1) here(terminated)[row] = exact;
    });
  }

 private:
  SACFAST_HD void prepare(GpuScalars<T>& scalars, int which) const {
    const UpdateCounters& counters = scalars.counters;
    const std::int64_t steps = which == kOfTemperature ? counters.alpha_steps : counters.adam_steps[which];
    scalars.factors[which] = AdamFactors<T>::of(lr[which], beta1, beta2, eps, steps + 1);
    if (which > 0) return;
    scalars.alpha = static_cast<T>(learn_alpha ? exponential(counters.log_alpha) : alpha);
    scalars.target_is_due = target_is_due(counters, target_update_interval);
    scalars.bad_critic = scalars.bad_policy = kNoTensor;
  }
};

// The losses of the update; whether it is taken over; the temperature and the counts. One block a learner.
template <class T>
struct Finish : Body<T> {
  std::int64_t batch;
  const T *q1, *q2, *target, *soft_value, *log_prob;  // [B]
  const T* value;                                     // [B]; null without a value network
  bool learn_alpha, deterministic_policy;
  T target_entropy;

  enum Sum { kSquaredErrors, kQ, kTarget, kSoftValue, kLogProb, kSquaredValueErrors, kSums };
  struct Shared {
    double sums[kSums][kBlockThreads];
  };

  SACFAST_HD void operator()(const Block& block, Shared& shared) const {
    if (this->is_off(block)) return;
    const Shift here = this->shift(block);
    block.each_thread([&](int thread) {
      double sums[kSums] = {};
      for (std::int64_t row = thread; row < batch; row += kBlockThreads) {
        const double y = here(target)[row], first = here(q1)[row], second = here(q2)[row];
        sums[kSquaredErrors] += (first - y) * (first - y) + (second - y) * (second - y);
        sums[kQ] += first + second;
        sums[kTarget] += y;
        sums[kSoftValue] += here(soft_value)[row];
        sums[kLogProb] += here(log_prob)[row];
        if (value != nullptr) {
          const double error = static_cast<double>(here(value)[row]) - here(soft_value)[row];
          sums[kSquaredValueErrors] += error * error;
        }
      }
      for (int i = 0; i < kSums; ++i) shared.sums[i][thread] = sums[i];
    });
    for (int half = kBlockThreads / 2; half > 0; half /= 2) {
      block.each_thread([&](int thread) {
        if (thread >= half) return;
        for (int i = 0; i < kSums; ++i) shared.sums[i][thread] += shared.sums[i][thread + half];
      });
    }
    block.each_thread([&](int thread) {
      if (thread == 0) finish(*here(this->scalars), shared);
    });
  }

 private:
  SACFAST_HD void finish(GpuScalars<T>& scalars, const Shared& shared) const {
    const double inverse = 1.0 / static_cast<double>(batch);
    double metrics[kMetrics] = {};
    const auto metric = [&metrics](Metric name) -> double& { return metrics[static_cast<int>(name)]; };
    const double critic_loss = shared.sums[kSquaredErrors][0] * inverse;
    const double log_prob_mean = shared.sums[kLogProb][0] * inverse;
    metric(Metric::kCriticLoss) = value != nullptr ? 0.5 * critic_loss : critic_loss;
    metric(Metric::kQMean) = 0.5 * shared.sums[kQ][0] * inverse;
    metric(Metric::kTargetMean) = shared.sums[kTarget][0] * inverse;
    metric(Metric::kAlpha) = scalars.alpha;
    metric(Metric::kActorLoss) = -shared.sums[kSoftValue][0] * inverse;
    metric(Metric::kEntropy) = -log_prob_mean;
    metric(Metric::kValueLoss) = 0.5 * shared.sums[kSquaredValueErrors][0] * inverse;

    // In the order in which a step by step update would have met it.
    if (scalars.bad_place != kNoPlace) {
      scalars.bad_row = scalars.index[scalars.bad_place];
      scalars.fault = kFaultOfRow;
    } else if (!is_finite(metric(Metric::kCriticLoss))) {
      scalars.fault = kFaultOfCriticLoss;
    } else if (scalars.bad_critic != kNoTensor) {
      scalars.fault = kFaultOfTensor + scalars.bad_critic;
    } else if (!is_finite(metric(Metric::kActorLoss))) {
      scalars.fault = kFaultOfActorLoss;
    } else if (!is_finite(metric(Metric::kValueLoss))) {
      scalars.fault = kFaultOfValueLoss;
    } else if (scalars.bad_policy != kNoTensor) {
      scalars.fault = kFaultOfTensor + scalars.bad_policy;
    }
    if (scalars.fault != kNoFault) return;

    UpdateCounters counters = scalars.counters;
    if (learn_alpha) {
      metric(Metric::kAlphaLoss) =
          step_temperature(counters, static_cast<T>(log_prob_mean), target_entropy, scalars.factors[kOfTemperature]);
      if (!is_finite(counters.log_alpha_exp_avg_sq)) {
        scalars.fault = kFaultOfTemperature;
        return;
      }
    }
    count_update(counters, value != nullptr, deterministic_policy, scalars.next_noise != nullptr,
                 scalars.noise != nullptr);
    scalars.counters = counters;
    scalars.now ^= 1;
    ++scalars.step;
    ++scalars.updates;
    for (int i = 0; i < kMetrics; ++i) scalars.metrics[i] += metrics[i];
  }

  // As the number is reported, in T.
  SACFAST_HD static bool is_finite(double metric) {
    const T value = static_cast<T>(metric);
    return value - value == T(0);
  }
};

// ---- Products -----------------------------------------------------------------------------------------------------

// A matrix as a product reads it: along the sum ("depth") and across it.
template <class T>
struct Operand {
  const T* data;
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
  const T* bias;
  T* out;
  std::int64_t stride;

  SACFAST_HD void operator()(std::int64_t row, std::int64_t col, T sum, Shift here, GpuScalars<T>&) const {
    const T value = sum + here(bias)[col];
    here(out)[row * stride + col] = value < T(0) ? T(0) : value;
  }
};

// The gradient with respect to a hidden layer's sums: nothing passes where its ReLU gave zero.
template <class T>
struct HiddenDelta {
  const T* active;
  T* out;
  std::int64_t stride;

  SACFAST_HD void operator()(std::int64_t row, std::int64_t col, T sum, Shift here, GpuScalars<T>&) const {
    const std::int64_t at = row * stride + col;
    here(out)[at] = here(active)[at] > T(0) ? sum : T(0);
  }
};

// The gradient of a weight [outputs, inputs] with its bias as one more column: Adam, and the target's move beside it.
template <class T>
struct Descent {
  std::int64_t inputs, bias;  // where the bias begins, from the weight
  const T *parameter, *exp_avg, *exp_avg_sq, *target;
  T *next_parameter, *next_exp_avg, *next_exp_avg_sq, *next_target;  // next_target is null where there is none
  Network network, optimizer;
  std::int64_t layer;
  T tau;

  SACFAST_HD void operator()(std::int64_t row, std::int64_t col, T gradient, Shift here, GpuScalars<T>& scalars) const {
    const std::int64_t at = col < inputs ? row * inputs + col : bias + row;
    const AdamState<T> before = {here(parameter)[at], here(exp_avg)[at], here(exp_avg_sq)[at]};
    const AdamState<T> after = adam_element(gradient, before, scalars.factors[static_cast<int>(optimizer)]);
    here(next_parameter)[at] = after.parameter;
    here(next_exp_avg)[at] = after.exp_avg;
    here(next_exp_avg_sq)[at] = after.exp_avg_sq;
    if (next_target != nullptr) {
      const T now = here(target)[at];
      here(next_target)[at] = scalars.target_is_due ? polyak_element(now, after.parameter, tau) : now;
    }
    if (after.exp_avg_sq - after.exp_avg_sq == T(0)) return;
    const bool is_critic = network == Network::kQ1 || network == Network::kQ2, is_moment = gradient - gradient == T(0);
    keep_smallest(is_critic ? &scalars.bad_critic : &scalars.bad_policy,
                  tensor_number(network, layer, col == inputs, is_moment));
  }
};

// ---- Rows: heads, sampling, losses --------------------------------------------------------------------------------

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

template <class T>
SACFAST_HD LogStd<T> bounded_log_std(LogStdBounding kind, T raw, T low, T high) {
  switch (kind) {
    case LogStdBounding::kClamp:
      return bound_log_std<LogStdBounding::kClamp>(raw, low, high);
    case LogStdBounding::kTanh:
      return bound_log_std<LogStdBounding::kTanh>(raw, low, high);
    case LogStdBounding::kNone:
      break;
  }
  return bound_log_std<LogStdBounding::kNone>(raw, low, high);
}

// What the policy's two kernels share.
template <class T>
struct PolicyRows : Body<T> {
  std::int64_t batch, observations, actions;
  LogStdBounding bounding;
  T low, high;
  bool deterministic;
  T* head;   // [B, 2 A]: mean, then raw log_std
  T* noise;  // [B, A]

  // Calls visit(row, action, where both stand in [B, A]) for the block's rows.
  template <class Visit>
  SACFAST_HD void for_each_action(int thread, const BlockRows& rows, const Visit& visit) const {
    for (std::int64_t i = thread; i < rows.count * actions; i += kBlockThreads) {
      const std::int64_t row = rows.first + i / actions, action = i % actions;
      visit(row, action, row * actions + action);
    }
  }
};

// The actor's head, and actions with their log_prob from it.
template <class T>
struct Act : PolicyRows<T> {
  using Shared = RowShared<T>;
  std::int64_t depth;  // units of the last hidden layer
  const T* input;      // [B, depth], rows `input_stride` apart
  std::int64_t input_stride;
  const T *weight, *bias;  // [2 A, depth], [2 A]
  bool of_next;            // a' of x', not a~ of x
  bool value_network;
  T* pairs;      // [B, O + A]: the action columns are written
  T* log_probs;  // [B, A]
  T* log_prob;   // [B]

  SACFAST_HD void operator()(const Block& block, Shared& shared) const {
    if (this->is_off(block)) return;
    const Shift here = this->shift(block);
    const GpuScalars<T>& scalars = *here(this->scalars);
    const BlockRows rows = rows_of(block, this->batch);
    const std::int64_t outputs = 2 * this->actions;
    T* const head = here(this->head) + rows.first * outputs;
    const T *const in = here(input) + rows.first * input_stride, *const w = here(weight), *const b = here(bias);
    sum_items<T>(
        block, shared.parts, rows.count * outputs, depth,
        [&](std::int64_t item, std::int64_t k) {
          return in[item / outputs * input_stride + k] * w[item % outputs * depth + k];
        },
        [&](std::int64_t item, T sum) { head[item] = sum + b[item % outputs]; });

    const T* const given = of_next ? scalars.next_noise : scalars.noise;
    const UpdateCounters& counters = scalars.counters;
    const std::uint64_t before = of_next ? 0 : streams_of_next_action(value_network, scalars.next_noise != nullptr);
    block.each_thread([&](int thread) {
      this->for_each_action(thread, rows, [&](std::int64_t row, std::int64_t action, std::int64_t at) {
        const T mean = here(this->head)[row * outputs + action];
        const T raw = here(this->head)[row * outputs + this->actions + action];
        Sample<T> sample{squash(mean).tanh, T(0)};
        if (!this->deterministic) {
          const T noise = given != nullptr
                              ? given[at]
                              : normal_of_element<T>(at, counters.noise_seed, counters.noise_offset + before);
          here(this->noise)[at] = noise;
          sample = sample_element(mean, bounded_log_std(this->bounding, raw, this->low, this->high).value, noise);
        }
        here(pairs)[row * (this->observations + this->actions) + this->observations + action] = sample.action;
        here(log_probs)[at] = sample.log_prob;
      });
    });
    block.each_thread([&](int thread) {
      if (thread >= rows.count) return;
      const T* const of_row = here(log_probs) + (rows.first + thread) * this->actions;
      T sum = 0;
      for (std::int64_t action = 0; action < this->actions; ++action) sum += of_row[action];
      here(log_prob)[rows.first + thread] = sum;
    });
  }
};

// From the first layers' deltas of the critics to the gradient of the action, and through the policy to that of its
// head.
template <class T>
struct ActBackward : PolicyRows<T> {
  using Shared = RowShared<T>;
  struct Critic {
    const T* delta;   // [B, depth]; without hidden layers the gradient of Q itself, [B, 1]
    const T* weight;  // [depth, O + A]
  };
  Critic critics[2];
  std::int64_t depth;
  T* action_gradient;  // [B, A]
  T* head_delta;       // [B, 2 A]

  SACFAST_HD void operator()(const Block& block, Shared& shared) const {
    if (this->is_off(block)) return;
    const Shift here = this->shift(block);
    const BlockRows rows = rows_of(block, this->batch);
    const std::int64_t actions = this->actions, pair = this->observations + actions;
    const T* const deltas[2] = {here(critics[0].delta) + rows.first * depth,
                                here(critics[1].delta) + rows.first * depth};
    const T* const weights[2] = {here(critics[0].weight) + this->observations,
                                 here(critics[1].weight) + this->observations};
    T* const gradients = here(action_gradient) + rows.first * actions;
    sum_items<T>(
        block, shared.parts, rows.count * actions, depth,
        [&](std::int64_t item, std::int64_t k) {
          const std::int64_t row = item / actions, action = item % actions;
          return deltas[0][row * depth + k] * weights[0][k * pair + action] +
                 deltas[1][row * depth + k] * weights[1][k * pair + action];
        },
        [&](std::int64_t item, T sum) { gradients[item] = sum; });

    const T grad_log_prob =
        static_cast<T>(static_cast<double>(here(this->scalars)->alpha) / static_cast<double>(this->batch));
    block.each_thread([&](int thread) {
      this->for_each_action(thread, rows, [&](std::int64_t row, std::int64_t action, std::int64_t at) {
        const T mean = here(this->head)[row * 2 * actions + action];
        const LogStd<T> log_std = bounded_log_std(
            this->bounding, here(this->head)[row * 2 * actions + actions + action], this->low, this->high);
        const T gradient = here(action_gradient)[at];
        MeanLogStdGrad<T> result{gradient * squash(mean).slope, T(0)};
        if (!this->deterministic) {
          result = sample_element_backward(gradient, grad_log_prob, mean, log_std.value, here(this->noise)[at]);
        }
        here(head_delta)[row * 2 * actions + action] = result.mean;
        here(head_delta)[row * 2 * actions + actions + action] = result.log_std * log_std.slope;
      });
    });
  }
};

// What becomes of the outputs of scalar heads.
enum class HeadUse : int {
  kTarget,      // of the targets: y
  kCriticLoss,  // of the critics on (x, a): the gradient of their loss
  kSoftValue,   // of the critics on (x, a~): v, and the gradient of -mean v
  kValueLoss    // of V on x: the gradient of its loss
};

// The heads of one scalar network or of two, and from the gradients of their outputs to the deltas of the layer before.
template <class T>
struct ScalarHeads : Body<T> {
  using Shared = RowShared<T>;
  struct Head {
    const T* input;          // [B, depth]
    const T *weight, *bias;  // [depth], [1]
    T* out;                  // [B]
    T* gradient;             // [B]; null for targets
    T* delta;                // [B, depth]; null for targets, and where no hidden layer is before
  };
  HeadUse use;
  int count;
  Head heads[2];
  std::int64_t batch, depth, input_stride;
  T gamma;
  bool value_network;
  const T *reward, *terminated, *next_log_prob, *log_prob;  // [B]
  T *target, *soft_value;                                   // [B]

  SACFAST_HD void operator()(const Block& block, Shared& shared) const {
    if (this->is_off(block)) return;
    const Shift here = this->shift(block);
    const BlockRows mine = rows_of(block, batch);
    const std::int64_t first = mine.first, rows = mine.count;
    sum_items<T>(
        block, shared.parts, rows * count, depth,
        [&](std::int64_t item, std::int64_t k) {
          const Head& head = heads[item % count];
          return here(head.input)[(first + item / count) * input_stride + k] * here(head.weight)[k];
        },
        [&](std::int64_t item, T sum) {
          const Head& head = heads[item % count];
          here(head.out)[first + item / count] = sum + *here(head.bias);
        });
    block.each_thread([&](int thread) {
      if (thread < rows) use_row(first + thread, here);
    });
    block.each_thread([&](int thread) {
      for (int which = 0; which < count; ++which) {
        const Head& head = heads[which];
        if (head.delta == nullptr) continue;
        for (std::int64_t i = thread; i < rows * depth; i += kBlockThreads) {
          const std::int64_t row = first + i / depth, k = i % depth;
          const bool active = here(head.input)[row * input_stride + k] > T(0);
          here(head.delta)[row * depth + k] = active ? here(head.weight)[k] * here(head.gradient)[row] : T(0);
        }
      }
    });
  }

 private:
  SACFAST_HD T out(int which, std::int64_t row, Shift here) const { return here(heads[which].out)[row]; }

  SACFAST_HD void use_row(std::int64_t row, Shift here) const {
    const T one_share = static_cast<T>(1.0 / static_cast<double>(batch));
    const T alpha = here(this->scalars)->alpha, zero = 0, one = 1;
    switch (use) {
      case HeadUse::kTarget: {
        const T q1 = out(0, row, here), q2 = out(count - 1, row, here);
        const T log_prob_of_next = value_network ? zero : here(next_log_prob)[row];
        here(target)[row] =
            soft_bellman_target(here(reward)[row], here(terminated)[row], q1, q2, log_prob_of_next, alpha, gamma);
        break;
      }
      case HeadUse::kCriticLoss: {
        const T factor = static_cast<T>((value_network ? 1.0 : 2.0) / static_cast<double>(batch));
        for (int which = 0; which < count; ++which) {
          here(heads[which].gradient)[row] = factor * (out(which, row, here) - here(target)[row]);
        }
        break;
      }
      case HeadUse::kSoftValue: {
        const T q1 = out(0, row, here), q2 = out(1, row, here), log_prob_of_row = here(log_prob)[row];
        here(soft_value)[row] = soft_bellman_target(zero, zero, q1, q2, log_prob_of_row, alpha, one);
        const BellmanGrad<T> grad =
            soft_bellman_target_backward(T(-one_share), zero, q1, q2, log_prob_of_row, alpha, one);
        here(heads[0].gradient)[row] = grad.q1;
        here(heads[1].gradient)[row] = grad.q2;
        break;
      }
      case HeadUse::kValueLoss:
        here(heads[0].gradient)[row] = one_share * (out(0, row, here) - here(soft_value)[row]);
        break;
    }
  }
};

}  // namespace sacfast::SACFAST_ISA
