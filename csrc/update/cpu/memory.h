// The memory of an update: parameters with their optimiser state, activations and gradients, allocated once.
//
// A failed update leaves the state before it. A call of the engine makes several updates. Every tensor of a network has
// two buffers. The first update of a call reads one of the two and writes the other; later updates read and write that
// other one in place, so that only half as much memory passes through the caches. The buffer with which the call began
// stays as it was (`keep`). Where an update fails, the engine returns to that buffer (`go_back`) and makes the updates
// before the failed one again: they give the same bits.
#pragma once

#include <sys/mman.h>

#include <array>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

#include "../../core/sizes.h"
#include "../engine.h"
#include "mlp.h"

namespace sacfast::SACFAST_ISA {

// One block of zeroed memory that is handed out piece by piece. A layout runs twice: the first time only counts the
// bytes, then `reserve` allocates them, and the second time hands out the memory.
class Arena {
 public:
  template <class T>
  T* take(std::int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    const std::int64_t bytes = product_of_sizes(count, sizeof(T));
    used_ = sum_of_sizes(used_, sum_of_sizes(bytes, kLine - 1) / kLine * kLine);
    return piece;
  }

  template <class T>
  Panels<T> take_panels(std::int64_t rows, std::int64_t cols) {
    // The distance between panels must not be a multiple of 4 KiB: then the same rows of all panels would share a few
    // sets of the first-level cache, and evict each other.
    const std::int64_t period = 4096 / (kPanel<T> * static_cast<std::int64_t>(sizeof(T)));
    const std::int64_t spread = rows / period * period + kTileRows<T> + (rows % period > kTileRows<T> ? period : 0);
    const std::int64_t padded = rows < period ? rows : spread;
    return panels(take<T>(panel_elements<T>(padded, cols)), padded);
  }

  // The bytes that `reserve` allocates.
  std::int64_t bytes() const { return sum_of_sizes(used_, kHugePage - 1) / kHugePage * kHugePage; }

  // Allocates what was taken so far; the next pieces are taken from the beginning.
  void reserve() {
    const auto bytes = static_cast<std::size_t>(this->bytes());
    base_ = static_cast<char*>(std::aligned_alloc(kHugePage, bytes));
    if (base_ == nullptr) throw std::bad_alloc();
    madvise(base_, bytes, MADV_HUGEPAGE);  // a product reads many pages; a refusal costs speed only
    __builtin_memset(base_, 0, bytes);
    used_ = 0;
  }

  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { std::free(base_); }

 private:
  static constexpr std::int64_t kLine = 64, kHugePage = std::int64_t{2} << 20;
  char* base_ = nullptr;
  std::int64_t used_ = 0;
};

// A network that is learned.
template <class T>
struct LearnedNetwork {
  MlpShape<T> shape;
  std::array<T*, 2> parts[kParts] = {};  // two buffers of each Part, [shape.elements]; kTarget: null without a target

  // For the backward pass: the weights that the next gradient needs, transposed to [outputs, inputs], of the layers
  // that a gradient passes through. The first layer has only those of its inputs from `first_gradient_input` on.
  std::vector<Panels<T>> transposed;
  std::int64_t first_gradient_input = 0;

  Activations<T> activations;
  std::vector<Panels<T>> deltas;  // of the hidden layers, [B, units]
  Panels<T> head_delta{};         // actor: [B, 2 A]
  T* scalar_delta = nullptr;      // critics, value: [B]

  bool exists() const { return !shape.layers.empty(); }
  std::int64_t transposed_first(std::size_t layer) const { return layer == 0 ? first_gradient_input : 0; }
  bool is_transposed(std::size_t layer) const { return transposed[layer].data != nullptr; }

  // Where the transposed weights of panel `panel` of `layer` begin, for its inputs from `input` on.
  const T* transposed_place(std::size_t layer, std::int64_t panel, std::int64_t input) const {
    const std::int64_t none = transposed_first(layer);
    return &transposed[layer].at(panel * kPanel<T>, input < none ? 0 : input - none);
  }

  // Updates the transposed weights of inputs [begin, end) of panel `panel` of `layer` after the weights changed.
  void transpose(const T* parameters, std::size_t layer, std::int64_t panel, std::int64_t begin, std::int64_t end) {
    const Layer& of = shape.layers[layer];
    const std::int64_t none = transposed_first(layer), from = begin < none ? none : begin, col = panel * kPanel<T>;
    if (from >= end) return;
    const std::int64_t cols = of.outputs - col < kPanel<T> ? of.outputs - col : kPanel<T>;
    transpose_panel(weight_of(of, parameters).panel(panel), from, end - from, cols, transposed[layer], col,
                    from - none);
  }
};

template <class T>
struct UpdateState {
  UpdateSettings settings;
  UpdateCounters counters;
  std::int64_t batch, observations, actions;
  LearnedNetwork<T> networks[kNetworks];
  int now = 0;         // which of each two buffers holds the current values
  int now_target = 0;  // the same for targets, which do not move in every update
  struct {
    int now = 0, now_target = 0;
    UpdateCounters counters;
  } kept;  // as the call in progress began

  Panels<T> stored, next, current;       // the critics' inputs [B, O + A]: (x, a), (x', a'), (x, a~)
  T *reward, *terminated;                // [B]
  T *next_log_prob, *log_prob;           // [B]
  T *next_q1, *next_q2;                  // [B]; v1: next_q1 is V'(x')
  T *target, *soft_value;                // [B]: y and v
  T* noise;                              // [B, A]; of a', then of a~
  T* action_gradient;                    // [B, A]
  std::int32_t* row_list;                // [B]: each thread's rows of one critic's backward pass
  Activations<T> next_activations;       // of the actor on x'
  Activations<T> target_activations[2];  // of the targets; the heads are next_q1 and next_q2

  // Without memory it only counts the bytes that it would need: see `bytes`.
  explicit UpdateState(const UpdateSettings& wanted, bool has_memory = true)
      : settings(wanted), batch(wanted.batch_size), observations(wanted.observation_dim), actions(wanted.action_dim) {
    const std::int64_t pair = observations + actions;
    network(Network::kActor).shape = {observations, settings.hidden_sizes, 2 * actions, false};
    for (const Network critic : {Network::kQ1, Network::kQ2}) {
      network(critic).shape = {pair, settings.hidden_sizes, 1, true};
      network(critic).first_gradient_input = observations;
    }
    if (settings.value_network) network(Network::kValue).shape = {observations, settings.hidden_sizes, 1, true};
    lay_out();
    bytes_ = arena_.bytes();
    if (!has_memory) return;
    arena_.reserve();
    lay_out();
  }

  std::int64_t bytes() const { return bytes_; }

  LearnedNetwork<T>& network(Network name) { return networks[static_cast<int>(name)]; }
  const LearnedNetwork<T>& network(Network name) const { return networks[static_cast<int>(name)]; }

  // The current values, and where an update writes the new ones.
  T* part(Network name, Part part) const {
    return network(name).parts[static_cast<int>(part)][part == Part::kTarget ? now_target : now];
  }
  T* next_part(Network name, Part part) const {
    return network(name).parts[static_cast<int>(part)][1 - (part == Part::kTarget ? kept.now_target : kept.now)];
  }
  bool has(Network name, Part part) const { return network(name).parts[static_cast<int>(part)][0] != nullptr; }

  // Begins a call: its updates leave the current buffers as they are.
  void keep() { kept = {now, now_target, counters}; }

  // Makes the values that an update has written the current ones.
  void commit(bool target_moved) {
    now = 1 - kept.now;
    if (target_moved) now_target = 1 - kept.now_target;
  }

  // Returns to the state with which the call began.
  void go_back() {
    now = kept.now;
    now_target = kept.now_target;
    counters = kept.counters;
    transpose_all();
  }

  // Makes all transposed weights from the current parameters.
  void transpose_all() {
    for (int index = 0; index < kNetworks; ++index) {
      LearnedNetwork<T>& each = networks[index];
      for (std::size_t layer = 0; layer < each.shape.layers.size(); ++layer) {
        if (!each.is_transposed(layer)) continue;
        for (std::int64_t panel = 0; panel < panel_count<T>(each.shape.layers[layer].outputs); ++panel) {
          each.transpose(part(static_cast<Network>(index), Part::kParameters), layer, panel, 0,
                         each.shape.layers[layer].inputs);
        }
      }
    }
  }

 private:
  void lay_out() {
    const std::int64_t pair = observations + actions;
    for (int index = 0; index < kNetworks; ++index) {
      if (networks[index].exists()) lay_out_network(static_cast<Network>(index));
    }
    stored = arena_.take_panels<T>(batch, pair);
    next = arena_.take_panels<T>(batch, pair);
    current = arena_.take_panels<T>(batch, pair);
    for (T** rows : {&reward, &terminated, &next_log_prob, &log_prob, &next_q1, &next_q2, &target, &soft_value}) {
      *rows = arena_.take<T>(batch);
    }
    for (T** matrix : {&noise, &action_gradient}) *matrix = arena_.take<T>(batch * actions);
    row_list = arena_.take<std::int32_t>(batch);
    // Matrices that are not needed at the same time share memory, and so stay in the caches. A row is written anew only
    // after its last reader, by the same thread or behind a gate. The targets' hidden layers share with the critics'
    // deltas. They cannot share with the critics' activations: a thread may write those before another one has run its
    // targets.
    LearnedNetwork<T>&actor = network(Network::kActor), &first = network(Network::kQ1), &second = network(Network::kQ2);
    next_activations = {actor.activations.hidden, arena_.take_panels<T>(batch, 2 * actions), nullptr};
    target_activations[0] = {first.deltas, {}, next_q1};
    target_activations[1] = {second.deltas, {}, next_q2};
    actor.deltas = first.deltas;
  }

  void lay_out_network(Network name) {
    LearnedNetwork<T>& each = network(name);
    const bool is_actor = name == Network::kActor;
    const bool has_target = settings.value_network ? name == Network::kValue : !is_actor;
    for (int part = 0; part < kParts; ++part) {
      if (static_cast<Part>(part) == Part::kTarget && !has_target) continue;
      for (T*& buffer : each.parts[part]) buffer = arena_.take<T>(each.shape.elements);
    }
    each.transposed.assign(each.shape.layers.size(), Panels<T>{});
    const bool reaches_inputs = name == Network::kQ1 || name == Network::kQ2;
    for (std::size_t layer = reaches_inputs ? 0 : 1; layer < each.shape.layers.size(); ++layer) {
      const Layer& shape = each.shape.layers[layer];
      if (shape.scalar) continue;
      each.transposed[layer] = arena_.take_panels<T>(shape.outputs, shape.inputs - each.transposed_first(layer));
    }
    each.activations = lay_out_activations();
    each.deltas.clear();
    if (is_actor) {
      each.head_delta = arena_.take_panels<T>(batch, 2 * actions);
    } else {
      for (const std::int64_t units : settings.hidden_sizes) each.deltas.push_back(arena_.take_panels<T>(batch, units));
    }
    each.scalar_delta = arena_.take<T>(batch);
  }

  Activations<T> lay_out_activations() {
    Activations<T> fresh;
    for (const std::int64_t units : settings.hidden_sizes) fresh.hidden.push_back(arena_.take_panels<T>(batch, units));
    fresh.head = arena_.take_panels<T>(batch, 2 * actions);
    fresh.scalar = arena_.take<T>(batch);
    return fresh;
  }

  Arena arena_;
  std::int64_t bytes_ = 0;
};

}  // namespace sacfast::SACFAST_ISA
