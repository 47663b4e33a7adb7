// One CPU thread's part of an update: what each step of sac_update.h does for this thread's rows and parameters.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <deque>
#include <initializer_list>
#include <utility>
#include <vector>

#include "../core/bellman.h"
#include "../core/philox.h"
#include "../core/polyak.h"
#include "../core/thread_team.h"
#include "../core/tile.h"
#include "counters.h"
#include "state.h"

namespace sacfast::SACFAST_ISA {

enum class Phase : int {
  kGather,
  kNextAction,
  kAction,
  kTarget,
  kCritics,
  kCriticStep,
  kCriticOfAction,
  kValue,
  kActionGradient,
  kActorBackward,
  kActorStep,
  kWaiting
};
constexpr int kPhases = 12;
constexpr const char* kPhaseNames[kPhases] = {
    "gather the minibatch",      "actor on x', a'",          "actor on x, a~",          "target critics, y",
    "critics forward, backward", "critics' gradients, Adam", "critics on (x, a~)",      "value network",
    "critics' gradients of a~",  "actor backward",           "actor's gradients, Adam", "waiting for other threads"};

// Rows worked on together: what a network makes of them stays in the second-level cache, beside its weights.
constexpr std::int64_t kRowBlock = 70;

// Panels of a block, at most.
constexpr std::int64_t kBlockPanels = 2;

// Panels of a layer (or a whole scalar layer), whose gradient and optimiser step one thread does.
struct Unit {
  Network network;
  std::size_t layer;
  std::int64_t panel, panels;
};

// Most panels of a unit, of so many in a layer. One where the layer's inputs stay in the cache; else several share the
// way of the inputs through it, but every thread finds some.
template <class T>
std::int64_t most_together(std::int64_t panels, std::int64_t input_elements, int threads) {
  if (input_elements * static_cast<std::int64_t>(sizeof(T)) <= kStaysInCache) return 1;
  return std::clamp<std::int64_t>(panels / threads, 1, kMostTogether);
}

// Calls visit(network, layer, its panels, the most of them in a unit) for every layer of some networks.
template <class T, class Visit>
void for_each_layer(const UpdateState<T>& state, std::initializer_list<Network> networks, int threads,
                    const Visit& visit) {
  for (const Network network : networks) {
    const std::vector<Layer>& layers = state.network(network).shape.layers;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const std::int64_t panels = layers[i].scalar ? 1 : panel_count<T>(layers[i].outputs);
      visit(network, i, panels, most_together<T>(panels, product_of_sizes(state.batch, layers[i].inputs), threads));
    }
  }
}

template <class T>
std::int64_t unit_count(const UpdateState<T>& state, std::initializer_list<Network> networks, int threads) {
  std::int64_t count = 0;
  for_each_layer(state, networks, threads, [&](Network, std::size_t, std::int64_t panels, std::int64_t most) {
    count = sum_of_sizes(count, cut(panels, most).pieces);
  });
  return count;
}

// The units of some networks, the largest first.
template <class T>
std::vector<Unit> units_of(const UpdateState<T>& state, std::initializer_list<Network> networks, int threads) {
  std::vector<Unit> units;
  units.reserve(static_cast<std::size_t>(unit_count(state, networks, threads)));
  for_each_layer(state, networks, threads,
                 [&](Network network, std::size_t layer, std::int64_t panels, std::int64_t most) {
                   for_each_piece(0, panels, most, [&](std::int64_t panel, std::int64_t count) {
                     units.push_back({network, layer, panel, count});
                   });
                 });
  const auto products = [&state](const Unit& unit) {
    const Layer& layer = state.network(unit.network).shape.layers[unit.layer];
    return layer.inputs *
           (layer.scalar ? 1 : std::min(layer.outputs - unit.panel * kPanel<T>, unit.panels * kPanel<T>));
  };
  std::stable_sort(units.begin(), units.end(), [&](const Unit& a, const Unit& b) { return products(a) > products(b); });
  return units;
}

// Rows [begin, end).
struct Rows {
  std::int64_t begin, end;

  std::int64_t count() const { return end - begin; }

  // Those of [from, to), counted from `from`.
  Rows within(std::int64_t from, std::int64_t to) const {
    return {std::clamp(begin, from, to) - from, std::clamp(end, from, to) - from};
  }
};

// The part of `count` rows that a thread of so many has.
inline Rows share_of(std::int64_t count, int thread, int threads) {
  return {count * thread / threads, count * (thread + 1) / threads};
}

// Rows of a product, and panels of its columns.
struct Block {
  std::int64_t row, rows, panel, panels;
};

inline std::int64_t block_count(Rows of, std::int64_t panels_of_all) {
  return product_of_sizes(cut(of.count(), kRowBlock).pieces, cut(panels_of_all, kBlockPanels).pieces);
}

// The blocks of a product of some rows. They are many, so that the last one done keeps nobody waiting for long.
inline std::vector<Block> blocks_of(Rows of, std::int64_t panels_of_all) {
  std::vector<Block> blocks;
  blocks.reserve(static_cast<std::size_t>(block_count(of, panels_of_all)));
  for_each_piece(of.begin, of.end, kRowBlock, [&](std::int64_t row, std::int64_t rows) {
    for_each_piece(0, panels_of_all, kBlockPanels,
                   [&](std::int64_t panel, std::int64_t panels) { blocks.push_back({row, rows, panel, panels}); });
  });
  return blocks;
}

// Work that is done by the first thread that comes for it, item by item.
template <class Item>
class Queue {
 public:
  explicit Queue(std::vector<Item> items) : items_(std::move(items)) {}

  // The next item, or none if all are taken.
  const Item* take() {
    const std::size_t next = taken_.fetch_add(1, std::memory_order_relaxed);
    return next < items_.size() ? &items_[next] : nullptr;
  }

  // For the next update; no thread may be taking.
  void put_back() { taken_.store(0, std::memory_order_relaxed); }

 private:
  const std::vector<Item> items_;
  alignas(64) std::atomic<std::size_t> taken_{0};
};

// Of a thread's rows in the actor's way back, those with whose last product other threads may help. Between the
// critics' step and the actor's every thread has as much to do as the others, but cores differ from moment to moment:
// one that is early helps those that are late.
inline Rows shared_part(Rows of, int threads) { return {threads == 1 ? of.end : of.begin + of.count() / 2, of.end}; }

// That product, for the rows of one thread.
struct SharedProduct {
  Queue<Block> blocks;
  Gate has_operands{1};

  explicit SharedProduct(std::vector<Block> of) : blocks(std::move(of)) {}
};

// The first tensor whose gradient or second moment a thread found not to be finite.
struct alignas(64) BadTensor {
  std::int64_t number = kNoTensor;
};

// What all threads of an update share beside the state.
template <class T>
struct Job {
  UpdateState<T>& state;
  const int threads;
  Barrier barrier;
  Gate has_inputs;                                // x and a, x' and a', of all rows
  Gate has_next_values;                           // Q'_i(x', a'), of the rows that a thread walks for others
  Gate has_targets;                               // y, of all rows
  Gate walked[2];                                 // the critics, forward and backward
  Gate has_values;                                // Q_i(x, a~), of the rows that a thread walks for others
  std::deque<SharedProduct> first_hidden_deltas;  // the actor's, of each thread's rows
  Queue<Unit> critic_units[2], actor_units;
  std::vector<BadTensor> bad_tensors;  // of each thread

  const UpdateWork<T>* work = nullptr;
  UpdateOutcome* outcome = nullptr;
  std::int64_t step = 0;  // of the work's
  bool failed = false;
  double mean_log_prob = 0;  // of the update in progress
  double metrics[kMetrics] = {};

  Job(UpdateState<T>& of, int count)
      : state(of),
        threads(count),
        barrier(count),
        has_inputs(count),
        has_next_values(count),
        has_targets(count),
        walked{Gate(count), Gate(count)},
        has_values(count),
        critic_units{Queue(units_of(of, {Network::kQ1}, count)), Queue(units_of(of, {Network::kQ2}, count))},
        actor_units(units_of(of, {Network::kActor, Network::kValue}, count)),
        bad_tensors(static_cast<std::size_t>(count)) {
    for (int thread = 0; thread < count; ++thread) {
      first_hidden_deltas.emplace_back(blocks_of(shared_rows(of, thread, count), shared_panels(of)));
    }
  }

  // Of the memory that `threads` threads have beside the state: what grows with the sizes.
  static std::int64_t bytes(const UpdateState<T>& state, int threads) {
    std::int64_t units = unit_count(state, {Network::kQ1, Network::kQ2, Network::kActor, Network::kValue}, threads);
    units = product_of_sizes(2 * units, sizeof(Unit));  // stable_sort takes as much again
    std::int64_t blocks = 0;
    for (int thread = 0; thread < threads; ++thread) {
      blocks = sum_of_sizes(blocks, block_count(shared_rows(state, thread, threads), shared_panels(state)));
    }
    return sum_of_sizes(units, product_of_sizes(blocks, sizeof(Block)));
  }

  void begin(const UpdateWork<T>& on, UpdateOutcome& into) {
    work = &on;
    outcome = &into;
    step = 0;
    failed = false;
    for (Gate* gate : {&has_inputs, &has_next_values, &has_targets, &walked[0], &walked[1], &has_values}) gate->reset();
    for (SharedProduct& each : first_hidden_deltas) each.has_operands.reset();
    put_back();
  }

  void put_back() {
    for (Queue<Unit>& units : critic_units) units.put_back();
    actor_units.put_back();
    for (SharedProduct& each : first_hidden_deltas) each.blocks.put_back();
  }

 private:
  static Rows shared_rows(const UpdateState<T>& state, int thread, int threads) {
    return shared_part(share_of(state.batch, thread, threads), threads);
  }
  static std::int64_t shared_panels(const UpdateState<T>& state) {
    const MlpShape<T>& actor = state.network(Network::kActor).shape;
    return actor.hidden() == 0 ? 0 : panel_count<T>(actor.layers[0].outputs);
  }
};

template <class T>
class Worker {
  using V = VectorOf<T>;

 public:
  Worker(Job<T>& job, int thread)
      : job_(job),
        s_(job.state),
        settings_(job.state.settings),
        thread_(thread),
        begin_(my_share_of(s_.batch).begin),
        end_(my_share_of(s_.batch).end),
        scratch_(kScratchElements) {
    pieces_.reserve(kMostPieces);
  }

  // Of a worker's own memory.
  static std::int64_t bytes() {
    return static_cast<std::int64_t>(sizeof(Worker) + kScratchElements * sizeof(T) + kMostPieces * sizeof(const T*));
  }

  bool profiling = false;
  double seconds[kPhases] = {};
  double flop[kPhases] = {};

  // ---- 0 and 1 --------------------------------------------------------------------------------------------------

  void gather() {
    start(Phase::kGather);
    const std::int64_t width = 2 * s_.observations + s_.actions + 2, pair = s_.observations + s_.actions;
    const std::int64_t* index = job_.work->index + job_.step * s_.batch;
    for (std::int64_t row = begin_; row < end_; ++row) {
      // Rows lie anywhere in a buffer that no cache holds.
      if (row + kRowsAhead < end_) prefetch(job_.work->rows + index[row + kRowsAhead] * width, width);
      const float* from = job_.work->rows + index[row] * width;
      copy_row(from, pair, s_.stored, row);
      copy_row(from, s_.observations, s_.current, row);
      copy_row(from + pair + 1, s_.observations, s_.next, row);
      s_.reward[row] = static_cast<T>(settings_.reward_scale) * static_cast<T>(from[pair]);
      s_.terminated[row] = static_cast<T>(from[width - 1]);
    }
    alpha_ = static_cast<T>(settings_.learn_alpha ? std::exp(s_.counters.log_alpha) : settings_.alpha);
    bad_tensor() = kNoTensor;
    if (settings_.value_network) job_.has_inputs.pass();  // there is no a'
  }

  void next_action() {
    start(Phase::kNextAction);
    LearnedNetwork<T>& actor = s_.network(Network::kActor);
    for_each_block([&](std::int64_t row, std::int64_t rows) {
      forward(actor.shape, now(Network::kActor), s_.next, row, rows, s_.next_activations, begin_);
    });
    act(s_.next_activations.head, job_.work->next_noise, 0, s_.next, s_.next_log_prob);
    job_.has_inputs.pass();
  }

  void action() {
    start(Phase::kAction);
    LearnedNetwork<T>& actor = s_.network(Network::kActor);
    for_each_block([&](std::int64_t row, std::int64_t rows) {
      forward(actor.shape, now(Network::kActor), s_.current, row, rows, actor.activations, row);
    });
    const std::uint64_t after = streams_of_next_action(settings_.value_network, job_.work->next_noise != nullptr);
    act(actor.activations.head, job_.work->noise, after, s_.current, s_.log_prob);
  }

  void target_critics() {
    wait(job_.has_inputs);
    for_each_critic(job_.has_next_values, [&](Network critic, Rows of) {
      start(Phase::kTarget);
      target_forward(critic, of, walked_by_me(critic).begin);
    });
  }

  void target_value() {
    start(Phase::kTarget);
    target_forward(Network::kValue, {begin_, end_}, begin_);
    for (std::int64_t row = begin_; row < end_; ++row) {
      s_.next_q2[row] = s_.next_q1[row];
      s_.next_log_prob[row] = 0;
    }
  }

  void bellman_target() {
    const T gamma = static_cast<T>(settings_.gamma);
    for (std::int64_t row = begin_; row < end_; ++row) {
      s_.target[row] = soft_bellman_target(s_.reward[row], s_.terminated[row], s_.next_q1[row], s_.next_q2[row],
                                           s_.next_log_prob[row], alpha_, gamma);
    }
  }

  // ---- 2 --------------------------------------------------------------------------------------------------------

  // Forward and backward for one block of rows after the other, while its activations are in the cache. The rows whose
  // y this thread has made come first, and forward needs no y, so that there is seldom a wait for the others'.
  void critics() {
    job_.has_targets.pass();
    for (const Network critic : kCritics) {  // nobody need wait for a thread that has no rows of a critic
      if (walked_by_me(critic).count() == 0) job_.walked[index_of(critic)].pass();
    }
    for (const Network critic : kCritics) walk_critic(critic, own_of(critic));
    wait(job_.has_inputs);
    for (const Network critic : kCritics) {
      for (const Rows rest : others_of(critic)) walk_critic(critic, rest, &job_.has_targets);
      if (walked_by_me(critic).count() > 0) job_.walked[index_of(critic)].pass();
    }
  }

  // A thread begins with the critic that it has walked, and helps with the other one when it is early.
  void step_critics() {
    const int first = 2 * thread_ < job_.threads ? 0 : 1;
    for (const Network critic : {kCritics[first], kCritics[1 - first]}) {
      wait(job_.walked[index_of(critic)]);
      start(Phase::kCriticStep);
      step_all(job_.critic_units[index_of(critic)], readable(s_.stored));
    }
  }

  bool critics_are_finite() {
    return meet([this]() -> std::string {
      double loss = 0, q_sum = 0, target_sum = 0;
      const T* q1 = s_.network(Network::kQ1).activations.scalar;
      const T* q2 = s_.network(Network::kQ2).activations.scalar;
      for (std::int64_t row = 0; row < s_.batch; ++row) {
        const double y = s_.target[row], first = q1[row], second = q2[row];
        loss += (first - y) * (first - y) + (second - y) * (second - y);
        q_sum += first + second;
        target_sum += y;
      }
      metric(Metric::kCriticLoss) = mean(settings_.value_network ? 0.5 * loss : loss);
      metric(Metric::kQMean) = 0.5 * mean(q_sum);
      metric(Metric::kTargetMean) = mean(target_sum);
      metric(Metric::kAlpha) = alpha_;
      return std::isfinite(static_cast<T>(metric(Metric::kCriticLoss))) ? bad_tensor_of_all() : "critic_loss";
    });
  }

  // ---- 3 to 5 ---------------------------------------------------------------------------------------------------

  void critics_of_action() {
    for_each_critic(job_.has_values, [&](Network critic, Rows of) {
      start(Phase::kCriticOfAction);
      LearnedNetwork<T>& each = s_.network(critic);
      for_each_block(of, [&](std::int64_t row, std::int64_t rows) {
        forward(each.shape, s_.next_part(critic, Part::kParameters), s_.current, row, rows, each.activations, row);
      });
    });
  }

  // v, and the gradient of -mean v with respect to each Q_i: all of it to the smaller one, half to each at a tie.
  void soft_value() {
    LearnedNetwork<T>& first = s_.network(Network::kQ1);
    LearnedNetwork<T>& second = s_.network(Network::kQ2);
    const T minus_share = static_cast<T>(-1.0 / static_cast<double>(s_.batch));
    const T zero = 0, one = 1;
    for (std::int64_t row = begin_; row < end_; ++row) {
      const T q1 = first.activations.scalar[row], q2 = second.activations.scalar[row];
      s_.soft_value[row] = soft_bellman_target(zero, zero, q1, q2, s_.log_prob[row], alpha_, one);
      const BellmanGrad<T> grad =
          soft_bellman_target_backward(minus_share, zero, q1, q2, s_.log_prob[row], alpha_, one);
      first.scalar_delta[row] = grad.q1;
      second.scalar_delta[row] = grad.q2;
    }
  }

  void value_backward() {
    start(Phase::kValue);
    LearnedNetwork<T>& value = s_.network(Network::kValue);
    const T factor = static_cast<T>(1.0 / static_cast<double>(s_.batch));
    for_each_block([&](std::int64_t row, std::int64_t rows) {
      forward(value.shape, now(Network::kValue), s_.current, row, rows, value.activations, row);
      for (std::int64_t i = row; i < row + rows; ++i) {
        value.scalar_delta[i] = factor * (value.activations.scalar[i] - s_.soft_value[i]);
      }
      scalar_network_backward(value, now(Network::kValue), row, rows);
    });
  }

  // Only the critic that gave the minimum passes a gradient on, so each is walked back for its own rows alone.
  void action_gradient() {
    start(Phase::kActionGradient);
    for (std::int64_t i = begin_ * s_.actions; i < end_ * s_.actions; ++i) s_.action_gradient[i] = 0;
    for (const Network critic : kCritics) {
      LearnedNetwork<T>& each = s_.network(critic);
      std::int64_t count = 0;
      for (std::int64_t row = begin_; row < end_; ++row) {
        if (each.scalar_delta[row] != 0) s_.row_list[begin_ + count++] = static_cast<std::int32_t>(row);
      }
      const T* parameters = s_.next_part(critic, Part::kParameters);
      for_each_piece(0, count, kRowBlock, [&](std::int64_t first, std::int64_t rows) {
        const RowMap map{s_.row_list + begin_ + first};
        scalar_network_backward(each, parameters, begin_ + first, rows, map);
        input_gradient(each, parameters, map, begin_ + first, rows);
      });
    }
  }

  void actor_backward() {
    start(Phase::kActorBackward);
    LearnedNetwork<T>& actor = s_.network(Network::kActor);
    with_bounding(settings_.log_std_bounding,
                  [&](auto kind) { head_backward<decltype(kind)::value>(actor.activations.head, actor.head_delta); });
    const Rows shared = shared_part({begin_, end_}, job_.threads);
    actor_backward(actor, {begin_, shared.begin}, 0);
    actor_backward(actor, shared, 1);
    if (actor.shape.hidden() > 0) shared_backward(actor);
  }

  bool policy_losses_are_finite() {
    return meet([this] {
      double soft_value = 0, log_prob = 0, value_loss = 0;
      for (std::int64_t row = 0; row < s_.batch; ++row) {
        soft_value += s_.soft_value[row];
        log_prob += s_.log_prob[row];
        if (settings_.value_network) {
          const double value = s_.network(Network::kValue).activations.scalar[row], error = value - s_.soft_value[row];
          value_loss += 0.5 * error * error;
        }
      }
      job_.mean_log_prob = mean(log_prob);
      metric(Metric::kActorLoss) = -mean(soft_value);
      metric(Metric::kEntropy) = -job_.mean_log_prob;
      metric(Metric::kValueLoss) = mean(value_loss);
      if (!std::isfinite(static_cast<T>(metric(Metric::kActorLoss)))) return "actor_loss";
      return std::isfinite(static_cast<T>(metric(Metric::kValueLoss))) ? "" : "value_loss";
    });
  }

  void step_actor() {
    start(Phase::kActorStep);
    step_all(job_.actor_units, readable(s_.current));
  }

  // ---- 6 and 7 --------------------------------------------------------------------------------------------------

  bool commit() {
    const bool done = meet([this] {
      std::string fault = bad_tensor_of_all();
      if (!fault.empty()) return fault;
      UpdateCounters& counters = s_.counters;
      if (settings_.learn_alpha) {
        metric(Metric::kAlphaLoss) =
            step_temperature(counters, static_cast<T>(job_.mean_log_prob), static_cast<T>(settings_.target_entropy),
                             factors(settings_.alpha_lr, counters.alpha_steps + 1));
        if (!std::isfinite(counters.log_alpha_exp_avg_sq)) return std::string(kTemperatureMoment);
      }
      s_.commit(moves_target());
      count_update(counters, settings_.value_network, settings_.deterministic_policy, job_.work->next_noise != nullptr,
                   job_.work->noise != nullptr);
      ++job_.outcome->updates;
      ++job_.step;
      job_.put_back();
      for (int i = 0; i < kMetrics; ++i) job_.outcome->metrics[i] += job_.metrics[i];
      return fault;
    });
    stop();
    return done;
  }

 private:
  static constexpr std::int64_t kScratch = kTileElements + kLanes<T>;  // GCC 12 sees partial vectors pass the end
  static constexpr Network kCritics[2] = {Network::kQ1, Network::kQ2};

  // ---- Networks -------------------------------------------------------------------------------------------------

  static int index_of(Network critic) { return critic == Network::kQ1 ? 0 : 1; }

  T* now(Network network) { return s_.part(network, Part::kParameters); }

  Rows my_share_of(std::int64_t count) const { return share_of(count, thread_, job_.threads); }

  // The rows for which this thread walks a critic: its part of those of both critics, one critic after the other. So a
  // thread of two walks one critic alone, and neither its weights nor its activations pass between the cores.
  Rows walked_by_me(Network critic) const {
    const std::int64_t first = index_of(critic) * s_.batch;
    return my_share_of(2 * s_.batch).within(first, first + s_.batch);
  }

  // Of these the ones between begin_ and end_, and those before and after them.
  Rows own_of(Network critic) const {
    const Rows all = walked_by_me(critic);
    return {std::clamp(begin_, all.begin, all.end), std::clamp(end_, all.begin, all.end)};
  }
  std::array<Rows, 2> others_of(Network critic) const {
    const Rows all = walked_by_me(critic), own = own_of(critic);
    return {{{all.begin, own.begin}, {own.end, all.end}}};
  }

  // Calls body(first row, rows) for blocks whose activations stay in the second-level cache.
  template <class Body>
  static void for_each_block(Rows of, const Body& body) {
    for_each_piece(of.begin, of.end, kRowBlock, body);
  }
  template <class Body>
  void for_each_block(const Body& body) {
    for_each_block({begin_, end_}, body);
  }

  // Rows [row, row + rows) of the input; the hidden layers go to rows from `hidden_row` on, the head to `row`.
  void forward(const MlpShape<T>& shape, const T* parameters, Panels<T> input, std::int64_t row, std::int64_t rows,
               const Activations<T>& out, std::int64_t hidden_row) {
    mlp_forward(shape, parameters, readable(input.from_row(row)), rows, out, hidden_row, row);
    for (const Layer& layer : shape.layers) count_flop(rows, layer.inputs * layer.outputs);
  }

  // Forward with each critic for the rows for which this thread walks it. Those that others wait for come first, so
  // that there is seldom a wait at the gate.
  template <class Walk>
  void for_each_critic(Gate& has_walked, const Walk& walk) {
    for (const Network critic : kCritics) {
      for (const Rows rest : others_of(critic)) walk(critic, rest);
    }
    has_walked.pass();
    for (const Network critic : kCritics) walk(critic, own_of(critic));
    wait(has_walked);
  }

  // The hidden layers of one block after the other take the same rows, from `hidden_row` on.
  void target_forward(Network network, Rows of, std::int64_t hidden_row) {
    const Activations<T>& out = s_.target_activations[network == Network::kQ2 ? 1 : 0];
    for_each_block(of, [&](std::int64_t row, std::int64_t rows) {
      forward(s_.network(network).shape, s_.part(network, Part::kTarget), s_.next, row, rows, out, hidden_row);
    });
  }

  // Backward once `has_targets` is open, if given.
  void walk_critic(Network critic, Rows of, const Gate* has_targets = nullptr) {
    start(Phase::kCritics);
    LearnedNetwork<T>& each = s_.network(critic);
    const T factor = static_cast<T>((settings_.value_network ? 1.0 : 2.0) / static_cast<double>(s_.batch));
    for_each_block(of, [&](std::int64_t row, std::int64_t rows) {
      forward(each.shape, now(critic), s_.stored, row, rows, each.activations, row);
      if (has_targets != nullptr) {
        wait(*has_targets);
        start(Phase::kCritics);
      }
      for (std::int64_t i = row; i < row + rows; ++i) {
        each.scalar_delta[i] = factor * (each.activations.scalar[i] - s_.target[i]);
      }
      scalar_network_backward(each, now(critic), row, rows);
    });
  }

  // From scalar_delta to the deltas of all hidden layers, for rows [row, row + rows); with a map for delta rows from
  // there on that belong to the rows map[...].
  void scalar_network_backward(LearnedNetwork<T>& each, const T* parameters, std::int64_t row, std::int64_t rows,
                               RowMap map = {}) {
    const std::size_t hidden = each.shape.hidden();
    if (hidden == 0) return;
    const std::int64_t first = map.rows == nullptr ? row : 0;  // of the activations
    const Panels<T> last = each.deltas[hidden - 1].from_row(row);
    scalar_backward(each.shape.layers[hidden], parameters,
                    readable(each.activations.hidden[hidden - 1].from_row(first)), map, each.scalar_delta + first, rows,
                    last);
    Panels<const T> delta = readable(last);
    for (std::size_t layer = hidden - 1; layer > 0; --layer) {
      delta = hidden_backward(each, layer, delta, each.activations.hidden[layer - 1].from_row(first), map, row, rows);
    }
  }

  // Through `layer` to the deltas of the hidden layer before it, which are returned.
  Panels<const T> hidden_backward(LearnedNetwork<T>& each, std::size_t layer, Panels<const T> delta,
                                  Panels<T> activation, RowMap map, std::int64_t row, std::int64_t rows) {
    const Layer& shape = each.shape.layers[layer];
    const Panels<T> out = each.deltas[layer - 1].from_row(row);
    layer_backward(shape, readable(each.transposed[layer]), delta, readable(activation), map, rows, out);
    count_flop(rows, shape.inputs * shape.outputs);
    return readable(out);
  }

  // From the deltas of the head to those of the hidden layer `last`.
  void actor_backward(LearnedNetwork<T>& actor, Rows of, std::size_t last) {
    for_each_block(of, [&](std::int64_t row, std::int64_t rows) {
      Panels<const T> delta = readable(actor.head_delta.from_row(row));
      for (std::size_t layer = actor.shape.hidden(); layer > last; --layer) {
        delta = hidden_backward(actor, layer, delta, actor.activations.hidden[layer - 1].from_row(row), RowMap{}, row,
                                rows);
      }
    });
  }

  // To the deltas of the actor's first hidden layer, for the rows that are shared.
  void shared_backward(LearnedNetwork<T>& actor) {
    const Layer& second = actor.shape.layers[1];
    const Panels<T> delta = actor.shape.hidden() == 1 ? actor.head_delta : actor.deltas[1];
    for (int i = 0; i < job_.threads; ++i) {
      SharedProduct& product = job_.first_hidden_deltas[static_cast<std::size_t>((thread_ + i) % job_.threads)];
      if (i == 0) product.has_operands.pass();
      wait(product.has_operands);
      start(Phase::kActorBackward);
      while (const Block* block = product.blocks.take()) {
        const auto rows_of = [block](Panels<T> matrix) { return matrix.from_row(block->row); };
        const auto part_of = [block](Panels<T> matrix) { return matrix.from_panel(block->panel); };
        const std::int64_t inputs = std::min(columns_from(second.inputs, block->panel), block->panels * kPanel<T>);
        layer_backward({inputs, second.outputs, false, 0}, readable(part_of(actor.transposed[1])),
                       readable(rows_of(delta)), readable(part_of(rows_of(actor.activations.hidden[0]))), RowMap{},
                       block->rows, part_of(rows_of(actor.deltas[0])));
        count_flop(block->rows, inputs * second.outputs);
      }
    }
  }

  // Adds a critic's gradient with respect to its action inputs to action_gradient.
  void input_gradient(LearnedNetwork<T>& each, const T* parameters, RowMap map, std::int64_t delta_row,
                      std::int64_t rows) {
    const Layer& first = each.shape.layers[0];
    T* out = s_.action_gradient;
    const std::int64_t actions = s_.actions;
    if (first.scalar) {
      const T* weight = parameters + first.offset + s_.observations;
      for (std::int64_t row = 0; row < rows; ++row) {
        for (std::int64_t col = 0; col < actions; ++col) {
          out[map[row] * actions + col] += each.scalar_delta[map[row]] * weight[col];
        }
      }
      return;
    }
    multiply_rows<false>(readable(each.deltas[0].from_row(delta_row)), rows, first.outputs,
                         readable(each.transposed[0]), actions,
                         [=](std::int64_t row, std::int64_t panel, std::int64_t col, V sum) {
                           T lanes[kLanes<T>];
                           store(lanes, sum);
                           const std::int64_t at = panel * kPanel<T> + col;
                           for (std::int64_t i = 0; i < kLanes<T> && at + i < actions; ++i) {
                             out[map[row] * actions + at + i] += lanes[i];
                           }
                         });
    count_flop(rows, first.outputs * actions);
  }

  // ---- Policy ---------------------------------------------------------------------------------------------------

  // Actions of my rows, from the actor's head [B, 2 A] into the action columns of `into`, and their log_prob.
  void act(Panels<T> head, const T* given_noise, std::uint64_t streams_before, Panels<T> into, T* log_prob) {
    const std::uint64_t offset = s_.counters.noise_offset + streams_before;
    with_bounding(settings_.log_std_bounding,
                  [&](auto kind) { sample<decltype(kind)::value>(head, given_noise, offset, into, log_prob); });
  }

  template <LogStdBounding kBounding>
  void sample(Panels<T> head, const T* given_noise, std::uint64_t offset, Panels<T> into, T* log_prob) {
    const std::int64_t actions = s_.actions;
    const V low = constant<V>(settings_.log_std_low), high = constant<V>(settings_.log_std_high);
    const bool deterministic = settings_.deterministic_policy;
    alignas(64) T mean[kScratch], log_std[kScratch], action[kScratch], log_probs[kScratch];
    for_each_tile(begin_, end_, actions, [&](std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
      const std::int64_t first = row * actions + col, count = rows * cols;
      read_head(head, row, rows, col, cols, mean, log_std);
      T* noise = s_.noise + first;
      if (given_noise != nullptr) {
        std::copy_n(given_noise + first, count, noise);
      } else if (!deterministic) {
        fill_normals(first, count, s_.counters.noise_seed, offset, noise);
      }
      for_each_vector<V>(count, [&](std::int64_t i, auto vector) {
        const V bounded = bound_log_std<kBounding>(vector.load(log_std + i), low, high).value;
        const Sample<V> drawn = deterministic ? Sample<V>{squash(vector.load(mean + i)).tanh, V{}}
                                              : sample_element(vector.load(mean + i), bounded, vector.load(noise + i));
        vector.store(action + i, drawn.action);
        vector.store(log_probs + i, drawn.log_prob);
      });
      for (std::int64_t r = 0; r < rows; ++r) {
        T sum = col == 0 ? T(0) : log_prob[row + r];
        for (std::int64_t i = 0; i < cols; ++i) {
          into.at(row + r, s_.observations + col + i) = action[r * cols + i];
          sum += log_probs[r * cols + i];
        }
        log_prob[row + r] = sum;
      }
    });
  }

  template <LogStdBounding kBounding>
  void head_backward(Panels<T> head, Panels<T> delta) {
    const std::int64_t actions = s_.actions;
    const V low = constant<V>(settings_.log_std_low), high = constant<V>(settings_.log_std_high);
    const V grad_log_prob = constant<V>(static_cast<double>(alpha_) / static_cast<double>(s_.batch));
    const bool deterministic = settings_.deterministic_policy;
    alignas(64) T mean[kScratch], log_std[kScratch];
    for_each_tile(begin_, end_, actions, [&](std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols) {
      const T* grad_action = s_.action_gradient + row * actions + col;
      const T* noise = s_.noise + row * actions + col;
      read_head(head, row, rows, col, cols, mean, log_std);
      for_each_vector<V>(rows * cols, [&](std::int64_t i, auto vector) {
        const V mu = vector.load(mean + i), grad = vector.load(grad_action + i);
        const LogStd<V> bounded = bound_log_std<kBounding>(vector.load(log_std + i), low, high);
        const MeanLogStdGrad<V> result =
            deterministic ? MeanLogStdGrad<V>{V(grad * squash(mu).slope), V{}}
                          : sample_element_backward(grad, grad_log_prob, mu, bounded.value, vector.load(noise + i));
        vector.store(mean + i, result.mean);
        vector.store(log_std + i, V(result.log_std * bounded.slope));
      });
      for (std::int64_t r = 0; r < rows; ++r) {
        for (std::int64_t i = 0; i < cols; ++i) {
          delta.at(row + r, col + i) = mean[r * cols + i];
          delta.at(row + r, actions + col + i) = log_std[r * cols + i];
        }
      }
    });
  }

  void read_head(Panels<T> head, std::int64_t row, std::int64_t rows, std::int64_t col, std::int64_t cols, T* mean,
                 T* log_std) {
    for (std::int64_t r = 0; r < rows; ++r) {
      for (std::int64_t i = 0; i < cols; ++i) {
        mean[r * cols + i] = head.at(row + r, col + i);
        log_std[r * cols + i] = head.at(row + r, s_.actions + col + i);
      }
    }
  }

  static void prefetch(const float* row, std::int64_t width) {
    for (std::int64_t col = 0; col < width; col += 16) __builtin_prefetch(row + col);  // 64 bytes a line
  }

  static void copy_row(const float* from, std::int64_t count, Panels<T> to, std::int64_t row) {
    for (std::int64_t col = 0, panel = 0; col < count; col += kPanel<T>, ++panel) {
      const std::int64_t part = count - col < kPanel<T> ? count - col : kPanel<T>;
      T* out = to.row(panel, row);
      for (std::int64_t i = 0; i < part; ++i) out[i] = static_cast<T>(from[col + i]);
    }
  }

  // ---- Gradient and optimiser -----------------------------------------------------------------------------------

  // Adam, and the target's move beside it.
  struct Descent {
    const T *parameter, *exp_avg, *exp_avg_sq, *target;
    T *next_parameter, *next_exp_avg, *next_exp_avg_sq, *next_target;
    AdamFactors<T> factors;
    bool moves_target;
    T tau;

    // For `rows` rows of a panel's gradient, parameters from `at` on. Returns zero, or NaN if a second moment became
    // infinite or NaN, as it does with a gradient that is.
    V operator()(std::int64_t at, const T* gradients, std::int64_t rows, std::int64_t vectors) const {
      const Descent self = *this;  // stores cannot change a copy, so it stays in registers
      V bad{};
      // One loop for both kinds of panels: two, one in the other, take half as long again.
      const std::int64_t stride = kPanel<T> / vectors;
      for (std::int64_t i = 0; i < rows * kPanel<T>; i += stride) {
        const V gradient = load<V>(gradients + i);
        const AdamState<V> before = {load<V>(self.parameter + at + i), load<V>(self.exp_avg + at + i),
                                     load<V>(self.exp_avg_sq + at + i)};
        const AdamState<V> after = adam_element(gradient, before, self.factors);
        bad += after.exp_avg_sq - after.exp_avg_sq;
        store(self.next_parameter + at + i, after.parameter);
        store(self.next_exp_avg + at + i, after.exp_avg);
        store(self.next_exp_avg_sq + at + i, after.exp_avg_sq);
        if (self.moves_target) {
          store(self.next_target + at + i, polyak_element(load<V>(self.target + at + i), after.parameter, self.tau));
        }
      }
      return bad;
    }

    // Whether the gradients of `count` parameters from `at` on were finite: then the first moments are.
    bool had_finite_gradients(std::int64_t at, std::int64_t count) const {
      return std::all_of(next_exp_avg + at, next_exp_avg + at + count, [](T each) { return std::isfinite(each); });
    }

    static constexpr std::size_t kArrays = 8;

    // Adds what of the parameters from `at` on to call in: all of their state, before and after, where memory is called
    // ahead; elsewhere what other threads have read since it was written.
    void list_memory(std::int64_t at, std::vector<const T*>& list) const {
      const auto add = [at, &list](const T* before, const T* after, bool others_read) {
        if (kCallsAhead) list.push_back(before + at);
        if (kCallsAhead ? after != before : others_read) list.push_back(after + at);
      };
      add(parameter, next_parameter, true);
      add(exp_avg, next_exp_avg, false);
      add(exp_avg_sq, next_exp_avg_sq, false);
      if (moves_target) add(target, next_target, true);
    }
  };

  AdamFactors<T> factors(double lr, std::int64_t step) const {
    return AdamFactors<T>::of(lr, settings_.adam_beta1, settings_.adam_beta2, settings_.adam_eps, step);
  }

  Descent descent(Network network) {
    const bool is_critic = network == Network::kQ1 || network == Network::kQ2;
    const Network optimizer = is_critic ? Network::kQ1 : network;
    const double lr = is_critic                    ? settings_.critic_lr
                      : network == Network::kActor ? settings_.actor_lr
                                                   : settings_.value_lr;
    const std::int64_t step = s_.counters.adam_steps[static_cast<int>(optimizer)] + 1;
    const bool moves_target = s_.has(network, Part::kTarget) && this->moves_target();
    return {s_.part(network, Part::kParameters),
            s_.part(network, Part::kExpAvg),
            s_.part(network, Part::kExpAvgSq),
            s_.part(network, Part::kTarget),
            s_.next_part(network, Part::kParameters),
            s_.next_part(network, Part::kExpAvg),
            s_.next_part(network, Part::kExpAvgSq),
            s_.next_part(network, Part::kTarget),
            factors(lr, step),
            moves_target,
            static_cast<T>(settings_.hard_target_update ? 1.0 : settings_.tau)};
  }

  void step_all(Queue<Unit>& units, Panels<const T> network_input) {
    while (const Unit* unit = units.take()) step(*unit, network_input);
  }

  void step(const Unit& unit, Panels<const T> network_input) {
    LearnedNetwork<T>& each = s_.network(unit.network);
    const Layer& layer = each.shape.layers[unit.layer];
    const Panels<const T> input = unit.layer == 0 ? network_input : readable(each.activations.hidden[unit.layer - 1]);
    const Descent descend = descent(unit.network);
    if (layer.scalar) {
      step_scalar_layer(layer, input, each.scalar_delta, descend, unit);
    } else {
      const Panels<T> delta = unit.layer == each.shape.hidden() ? each.head_delta : each.deltas[unit.layer];
      const Panels<const T> mine = {delta.panel(unit.panel), delta.stride};
      step_weights(each, input, mine, descend, unit);
      for (std::int64_t panel = 0; panel < unit.panels; ++panel) step_bias(layer, mine, panel, descend, unit);
    }
  }

  static std::int64_t columns_from(std::int64_t cols, std::int64_t panel) { return cols - panel * kPanel<T>; }

  // Where panel `panel` of a layer begins in the parameters.
  static std::int64_t panel_begin(const Layer& layer, std::int64_t panel) {
    return layer.offset + panel * (layer.inputs + 1) * kPanel<T>;
  }

  void step_weights(LearnedNetwork<T>& each, Panels<const T> input, Panels<const T> delta, const Descent& descend,
                    const Unit& unit) {
    const Layer& layer = each.shape.layers[unit.layer];
    const std::int64_t cols = columns_from(layer.outputs, unit.panel);
    const bool is_transposed = each.is_transposed(unit.layer);
    V bad{};
    multiply_columns(
        input, layer.inputs, s_.batch, delta, cols, unit.panels, scratch_.data(),
        [&](std::int64_t first, std::int64_t rows, std::int64_t panel, const T* sums) {
          const std::int64_t in_layer = unit.panel + panel, vectors = vectors_of_panel<T>(cols - panel * kPanel<T>);
          bad += descend(panel_begin(layer, in_layer) + first * kPanel<T>, sums, rows, vectors);
          if (is_transposed) each.transpose(descend.next_parameter, unit.layer, in_layer, first, first + rows);
        },
        [&](std::int64_t first, std::int64_t end) {
          pieces_.clear();
          if (unit.panels > 1) return Pieces<T>{};  // they would not find room in the cache
          for (; first < end; first += kPanel<T>) {
            descend.list_memory(panel_begin(layer, unit.panel) + first * kPanel<T>, pieces_);
            if (is_transposed) pieces_.push_back(each.transposed_place(unit.layer, unit.panel, first));
          }
          return Pieces<T>{pieces_.data(), pieces_.data() + pieces_.size()};
        });
    check(bad, unit, false, [&] {
      for (std::int64_t panel = unit.panel; panel < unit.panel + unit.panels; ++panel) {
        if (!descend.had_finite_gradients(panel_begin(layer, panel), layer.inputs * kPanel<T>)) return false;
      }
      return true;
    });
    count_flop(s_.batch, layer.inputs * std::min(cols, unit.panels * kPanel<T>));
  }

  // Of panel `panel` of the unit.
  void step_bias(const Layer& layer, Panels<const T> delta, std::int64_t panel, const Descent& descend,
                 const Unit& unit) {
    const std::int64_t in_layer = unit.panel + panel,
                       vectors = vectors_of_panel<T>(columns_from(layer.outputs, in_layer));
    alignas(64) T bias[kPanel<T>];
    for (std::int64_t col = 0; col < vectors * kLanes<T>; col += kLanes<T>) {
      store(bias + col, sum_rows(delta.panel(panel) + col, s_.batch));
    }
    const std::int64_t at = panel_begin(layer, in_layer) + layer.inputs * kPanel<T>;
    check(descend(at, bias, 1, vectors), unit, true,
          [&] { return descend.had_finite_gradients(at, vectors * kLanes<T>); });
  }

  void step_scalar_layer(const Layer& layer, Panels<const T> input, const T* delta, const Descent& descend,
                         const Unit& unit) {
    alignas(64) T gradient[kPanel<T>];
    V bad{};
    for (std::int64_t panel = 0; panel < panel_count<T>(layer.inputs); ++panel) {
      for (std::int64_t col = 0; col < kPanel<T>; col += kLanes<T>) {
        store(gradient + col, sum_rows(input.panel(panel) + col, s_.batch, delta));
      }
      // The input may have further columns, which are not this network's.
      for (std::int64_t col = std::min(layer.inputs - panel * kPanel<T>, kPanel<T>); col < kPanel<T>; ++col) {
        gradient[col] = 0;
      }
      bad += descend(layer.offset + panel * kPanel<T>, gradient, 1, 2);
    }
    const std::int64_t weights = panel_elements<T>(1, layer.inputs), bias = layer.offset + weights;
    check(bad, unit, false, [&] { return descend.had_finite_gradients(layer.offset, weights); });
    for (T& each : gradient) each = 0;
    for (std::int64_t row = 0; row < s_.batch; ++row) gradient[0] += delta[row];
    check(descend(bias, gradient, 1, 1), unit, true, [&] { return descend.had_finite_gradients(bias, kLanes<T>); });
    count_flop(s_.batch, layer.inputs);
  }

  std::int64_t& bad_tensor() { return job_.bad_tensors[static_cast<std::size_t>(thread_)].number; }

  template <class Gradients>
  void check(V bad, const Unit& unit, bool is_bias, const Gradients& had_finite_gradients) {
    if (sum_lanes(bad) == 0) return;  // a NaN does not equal zero
    const bool is_moment = had_finite_gradients();
    bad_tensor() =
        std::min(bad_tensor(), tensor_number(unit.network, static_cast<std::int64_t>(unit.layer), is_bias, is_moment));
  }

  std::string bad_tensor_of_all() {
    std::int64_t first = kNoTensor;
    for (const BadTensor& each : job_.bad_tensors) first = std::min(first, each.number);
    return first == kNoTensor ? "" : tensor_name(first);
  }

  bool moves_target() const { return target_is_due(s_.counters, settings_.target_update_interval); }

  // ---- Threads --------------------------------------------------------------------------------------------------

  // Waits for all threads; the last one decides whether the update goes on: `last` returns what is wrong, or nothing.
  template <class Last>
  bool meet(const Last& last) {
    start(Phase::kWaiting);
    job_.barrier.meet([&] {
      std::string fault = last();
      if (fault.empty()) return;
      job_.outcome->fault = std::move(fault);
      job_.failed = true;
    });
    return !job_.failed;
  }

  // Waits until all threads have passed in this update.
  void wait(const Gate& gate) {
    start(Phase::kWaiting);
    gate.wait(job_.step + 1);
    stop();
  }

  double mean(double sum) const { return sum / static_cast<double>(s_.batch); }
  double& metric(Metric name) { return job_.metrics[static_cast<int>(name)]; }

  void start(Phase phase) {
    if (!profiling) return;
    stop();
    phase_ = static_cast<int>(phase);
    since_ = Clock::now();
  }

  void stop() {
    if (!profiling || phase_ < 0) return;
    seconds[phase_] += std::chrono::duration<double>(Clock::now() - since_).count();
    phase_ = -1;
  }

  void count_flop(std::int64_t rows, std::int64_t products_a_row) {
    if (profiling) flop[phase_] += 2.0 * static_cast<double>(rows) * static_cast<double>(products_a_row);
  }

  using Clock = std::chrono::steady_clock;

  Job<T>& job_;
  UpdateState<T>& s_;
  const UpdateSettings& settings_;
  const int thread_;
  const std::int64_t begin_, end_;  // my rows
  static constexpr std::size_t kScratchElements = kMostSquares * kPanel<T> * kPanel<T>;
  static constexpr std::size_t kMostPieces = kMostSquares * (Descent::kArrays + 1);
  std::vector<T> scratch_;        // for a unit's gradient
  std::vector<const T*> pieces_;  // of memory that it will need
  T alpha_ = 0;
  int phase_ = -1;
  Clock::time_point since_;
};

}  // namespace sacfast::SACFAST_ISA
