// Which thread does what in an update: rows of the minibatch, parts of the parameters, and where threads wait.
//
// A thread has rows of its own for the actor, other rows of each critic (CriticRows), and takes the optimisers' work
// from queues. Gates and a barrier in Job say where it needs what other threads have made.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "../../core/thread_team.h"
#include "../counters.h"
#include "memory.h"

namespace sacfast::SACFAST_ISA {

constexpr Network kCritics[2] = {Network::kQ1, Network::kQ2};
constexpr int index_of(Network critic) { return critic == Network::kQ1 ? 0 : 1; }

// ---- Rows of the minibatch --------------------------------------------------------------------------------------

// Rows that a network works on at a time: their activations stay in the second-level cache, beside its weights.
constexpr std::int64_t kRowBlock = 70;

// Rows [begin, end).
struct Rows {
  std::int64_t begin, end;

  std::int64_t count() const { return end - begin; }

  // The rows that also lie in [from, to), counted from `from`.
  Rows within(std::int64_t from, std::int64_t to) const {
    return {std::clamp(begin, from, to) - from, std::clamp(end, from, to) - from};
  }
};

// Calls body(first row, rows) for blocks of at most kRowBlock rows.
template <class Body>
void for_each_block(Rows of, const Body& body) {
  for_each_piece(of.begin, of.end, kRowBlock, body);
}

// The rows of `count` that belong to one of `threads` threads.
inline Rows share_of(std::int64_t count, int thread, int threads) {
  return {count * thread / threads, count * (thread + 1) / threads};
}

// The rows for which one thread runs a critic forward and backward. The rows of Q_1 and those of Q_2 are shared out as
// one list, so each of two threads runs one critic alone: neither its weights nor its activations pass between the
// cores.
class CriticRows {
 public:
  // `own`: the thread's rows of the actor.
  CriticRows(std::int64_t batch, Rows own, int thread, int threads)
      : own_(own), both_(share_of(2 * batch, thread, threads)), batch_(batch) {}

  Rows all(Network critic) const {
    const std::int64_t first = index_of(critic) * batch_;
    return both_.within(first, first + batch_);
  }

  // Of these, the rows that are the thread's own: it needs no other thread's actions or targets for them.
  Rows own(Network critic) const {
    const Rows all = this->all(critic);
    return {std::clamp(own_.begin, all.begin, all.end), std::clamp(own_.end, all.begin, all.end)};
  }

  // And the rows before and after its own, whose results other threads wait for.
  std::array<Rows, 2> others(Network critic) const {
    const Rows all = this->all(critic), own = this->own(critic);
    return {{{all.begin, own.begin}, {own.end, all.end}}};
  }

 private:
  const Rows own_, both_;
  const std::int64_t batch_;
};

// ---- Work that any thread may take ------------------------------------------------------------------------------

// A list of work. Each item goes to the first thread that asks.
template <class Item>
class Queue {
 public:
  explicit Queue(std::vector<Item> items) : items_(std::move(items)) {}

  // The next item, or null if all are taken.
  const Item* take() {
    const std::size_t next = taken_.fetch_add(1, std::memory_order_relaxed);
    return next < items_.size() ? &items_[next] : nullptr;
  }

  // Offers all items again, for the next update. No thread may be taking.
  void refill() { taken_.store(0, std::memory_order_relaxed); }

 private:
  const std::vector<Item> items_;
  alignas(64) std::atomic<std::size_t> taken_{0};
};

// Parameters for which one thread makes the gradient and the optimiser's step: neighbouring panels of a layer, or a
// whole scalar layer.
struct Unit {
  Network network;
  std::size_t layer;
  std::int64_t panel, panels;
};

// The largest number of panels in a unit of a layer. Where the layer's inputs stay in the cache, a unit has one panel.
// Larger inputs are read once for several panels, but every thread gets some panels.
template <class T>
std::int64_t panels_in_unit(std::int64_t panels, std::int64_t input_elements, int threads) {
  if (input_elements * static_cast<std::int64_t>(sizeof(T)) <= kStaysInCache) return 1;
  return std::clamp<std::int64_t>(panels / threads, 1, kMostTogether);
}

// Calls visit(network, layer, panels of the layer, at most so many in a unit) for every layer of these networks.
template <class T, class Visit>
void for_each_layer(const UpdateState<T>& state, std::initializer_list<Network> networks, int threads,
                    const Visit& visit) {
  for (const Network network : networks) {
    const std::vector<Layer>& layers = state.network(network).shape.layers;
    for (std::size_t i = 0; i < layers.size(); ++i) {
      const std::int64_t panels = layers[i].scalar ? 1 : panel_count<T>(layers[i].outputs);
      visit(network, i, panels, panels_in_unit<T>(panels, product_of_sizes(state.batch, layers[i].inputs), threads));
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

// A part of a matrix product's result: some rows, and some panels of its columns.
struct Block {
  std::int64_t row, rows, panel, panels;
};
constexpr std::int64_t kBlockPanels = 2;  // at most

inline std::int64_t block_count(Rows of, std::int64_t panels_of_all) {
  return product_of_sizes(cut(of.count(), kRowBlock).pieces, cut(panels_of_all, kBlockPanels).pieces);
}

// The blocks of a product. They are small, so that threads which share them finish at nearly the same time.
inline std::vector<Block> blocks_of(Rows of, std::int64_t panels_of_all) {
  std::vector<Block> blocks;
  blocks.reserve(static_cast<std::size_t>(block_count(of, panels_of_all)));
  for_each_block(of, [&](std::int64_t row, std::int64_t rows) {
    for_each_piece(0, panels_of_all, kBlockPanels,
                   [&](std::int64_t panel, std::int64_t panels) { blocks.push_back({row, rows, panel, panels}); });
  });
  return blocks;
}

// The second half of a thread's rows, whose last product of the actor's backward pass other threads may help with. All
// threads have the same amount of work between the critics' step and the actor's step, but cores differ in speed from
// moment to moment: an early thread helps a late one.
inline Rows shared_part(Rows of, int threads) { return {threads == 1 ? of.end : of.begin + of.count() / 2, of.end}; }

// That product, for the rows of one thread.
struct SharedProduct {
  Queue<Block> blocks;
  Gate has_operands{1};

  explicit SharedProduct(std::vector<Block> of) : blocks(std::move(of)) {}
};

// ---- What all threads share -------------------------------------------------------------------------------------

// The first tensor in which a thread found a gradient or a second moment that is not finite.
struct alignas(64) BadTensor {
  std::int64_t number = kNoTensor;
};

// What the threads of an update share beside the state.
template <class T>
struct Job {
  UpdateState<T>& state;
  const int threads;
  Barrier barrier;
  Gate has_inputs;                                // x and a, x' and a', of all rows
  Gate has_next_values;                           // Q'_i(x', a'), of the rows that a thread does for others
  Gate has_targets;                               // y, of all rows
  Gate has_critic_deltas[2];                      // each critic has been run forward and backward, on all rows
  Gate has_values;                                // Q_i(x, a~), of the rows that a thread does for others
  std::deque<SharedProduct> first_hidden_deltas;  // the actor's, of each thread's rows
  Queue<Unit> critic_units[2], actor_units;
  std::vector<BadTensor> bad_tensors;  // of each thread

  const UpdateWork<T>* work = nullptr;
  UpdateOutcome* outcome = nullptr;
  std::int64_t step = 0;  // updates of this work made so far
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
        has_critic_deltas{Gate(count), Gate(count)},
        has_values(count),
        critic_units{Queue(units_of(of, {Network::kQ1}, count)), Queue(units_of(of, {Network::kQ2}, count))},
        actor_units(units_of(of, {Network::kActor, Network::kValue}, count)),
        bad_tensors(static_cast<std::size_t>(count)) {
    for (int thread = 0; thread < count; ++thread) {
      first_hidden_deltas.emplace_back(blocks_of(shared_rows(of, thread, count), shared_panels(of)));
    }
  }

  // The part of a job's memory that grows with the sizes.
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
    for (Gate* gate :
         {&has_inputs, &has_next_values, &has_targets, &has_critic_deltas[0], &has_critic_deltas[1], &has_values}) {
      gate->reset();
    }
    for (SharedProduct& each : first_hidden_deltas) each.has_operands.reset();
    refill();
  }

  // After an update: the next one has the same work to share out.
  void refill() {
    for (Queue<Unit>& units : critic_units) units.refill();
    actor_units.refill();
    for (SharedProduct& each : first_hidden_deltas) each.blocks.refill();
  }

  // Makes what an update has written the state, and gets ready for the next update.
  void finish_update() {
    const UpdateSettings& settings = state.settings;
    state.commit(target_is_due(state.counters, settings.target_update_interval));
    count_update(state.counters, settings.value_network, settings.deterministic_policy, work->next_noise != nullptr,
                 work->noise != nullptr);
    ++outcome->updates;
    ++step;
    refill();
    for (int i = 0; i < kMetrics; ++i) outcome->metrics[i] += metrics[i];
  }

  double& metric(Metric name) { return metrics[static_cast<int>(name)]; }

  // The name of the first tensor that is not finite, of those that all threads found; empty if there is none.
  std::string bad_tensor_of_all() const {
    std::int64_t first = kNoTensor;
    for (const BadTensor& each : bad_tensors) first = std::min(first, each.number);
    return first == kNoTensor ? "" : tensor_name(first);
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

}  // namespace sacfast::SACFAST_ISA
