// The memory of an update on the GPU: one piece a learner, S of them side by side, all of the same layout.
#pragma once

#include <vector>

#include "../../core/sizes.h"
#include "kernels/body.h"

namespace sacfast::SACFAST_ISA {

// A layer within the flat parameters of its network, in torch's order.
struct DenseLayer {
  std::int64_t inputs, outputs;
  std::int64_t weight, bias;  // offsets
};

// Hands out a piece of memory; with no base it only counts.
class Carver {
 public:
  explicit Carver(char* base) : base_(base) {}

  template <class T>
  T* take(std::int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    const std::int64_t bytes = product_of_sizes(count, sizeof(T));
    used_ = sum_of_sizes(used_, sum_of_sizes(bytes, kLine - 1) / kLine * kLine);
    return piece;
  }
  std::int64_t used() const { return used_; }

 private:
  static constexpr std::int64_t kLine = 256;
  char* base_;
  std::int64_t used_ = 0;
};

// Outputs of the hidden layers [B, units], after the ReLU.
template <class T>
using Hidden = std::vector<T*>;

// What the actor makes of a minibatch's observations.
template <class T>
struct Draw {
  Hidden<T> hidden;
  T* head;               // [B, 2 A]
  T *noise, *log_probs;  // [B, A]
  T* log_prob;           // [B]
};

template <class T>
struct GpuNetwork {
  std::vector<DenseLayer> layers;
  std::int64_t parameters = 0;
  T* parts[kParts][2] = {};  // by Part, [parameters]; an update reads one of each pair and writes the other

  Hidden<T> hidden, deltas;  // of x, or (x, a)
  T* out = nullptr;          // actor: [B, 2 A]; others: [B]
  T* out_gradient = nullptr;

  bool exists() const { return !layers.empty(); }
  std::size_t hidden_layers() const { return layers.size() - 1; }
};

template <class T>
struct GpuState {
  UpdateSettings settings;
  std::int64_t batch, observations, actions;
  GpuNetwork<T> networks[kNetworks];

  GpuScalars<T>* scalars = nullptr;
  T *stored, *next, *current;  // [B, O + A]: (x, a), (x', a'), (x, a~)
  T *reward, *terminated;      // [B]
  T *next_q1, *next_q2;        // [B]
  T *target, *soft_value;      // [B]: y and v
  T* action_gradient;          // [B, A]
  Draw<T> next_draw, draw;     // of x', and of x
  Hidden<T> target_hidden[2];

  // `memory` of one learner; null: only `bytes` counts.
  GpuState(const UpdateSettings& wanted, char* memory)
      : settings(wanted), batch(wanted.batch_size), observations(wanted.observation_dim), actions(wanted.action_dim) {
    const std::int64_t pair = observations + actions;
    network(Network::kActor).layers = layers_of(observations, 2 * actions);
    for (const Network critic : {Network::kQ1, Network::kQ2}) network(critic).layers = layers_of(pair, 1);
    if (settings.value_network) network(Network::kValue).layers = layers_of(observations, 1);
    Carver carver(memory);
    lay_out(carver);
    bytes_ = carver.used();
  }

  std::int64_t bytes() const { return bytes_; }
  std::int64_t state_bytes() const { return state_bytes_; }  // what outlives an update: it comes first
  GpuNetwork<T>& network(Network name) { return networks[static_cast<int>(name)]; }
  const GpuNetwork<T>& network(Network name) const { return networks[static_cast<int>(name)]; }
  bool has_target(Network name) const {
    return settings.value_network ? name == Network::kValue : name == Network::kQ1 || name == Network::kQ2;
  }

 private:
  std::vector<DenseLayer> layers_of(std::int64_t inputs, std::int64_t outputs) const {
    std::vector<std::int64_t> sizes = {inputs};
    sizes.insert(sizes.end(), settings.hidden_sizes.begin(), settings.hidden_sizes.end());
    sizes.push_back(outputs);
    std::vector<DenseLayer> layers;
    std::int64_t offset = 0;
    for (std::size_t i = 0; i + 1 < sizes.size(); ++i) {
      const std::int64_t bias = sum_of_sizes(offset, product_of_sizes(sizes[i], sizes[i + 1]));
      layers.push_back({sizes[i], sizes[i + 1], offset, bias});
      offset = sum_of_sizes(bias, sizes[i + 1]);
    }
    return layers;
  }

  Hidden<T> hidden_of(Carver& carver) const {
    Hidden<T> hidden;
    for (const std::int64_t units : settings.hidden_sizes) hidden.push_back(carver.take<T>(batch * units));
    return hidden;
  }

  void lay_out_parameters(Carver& carver) {
    for (int index = 0; index < kNetworks; ++index) {
      GpuNetwork<T>& each = networks[index];
      if (!each.exists()) continue;
      each.parameters = each.layers.back().bias + each.layers.back().outputs;
      for (int part = 0; part < kParts; ++part) {
        if (static_cast<Part>(part) == Part::kTarget && !has_target(static_cast<Network>(index))) continue;
        for (T*& buffer : each.parts[part]) buffer = carver.take<T>(each.parameters);
      }
    }
  }

  void lay_out(Carver& carver) {
    const std::int64_t pair = observations + actions;
    scalars = carver.take<GpuScalars<T>>(1);
    lay_out_parameters(carver);
    state_bytes_ = carver.used();
    for (Draw<T>* each : {&next_draw, &draw}) {
      each->hidden = hidden_of(carver);
      each->head = carver.take<T>(batch * 2 * actions);
      each->noise = carver.take<T>(batch * actions);
      each->log_probs = carver.take<T>(batch * actions);
      each->log_prob = carver.take<T>(batch);
    }
    for (int index = 0; index < kNetworks; ++index) {
      GpuNetwork<T>& each = networks[index];
      if (!each.exists()) continue;
      const bool is_actor = static_cast<Network>(index) == Network::kActor;
      each.hidden = is_actor ? draw.hidden : hidden_of(carver);
      each.deltas = hidden_of(carver);
      each.out = is_actor ? draw.head : carver.take<T>(batch);
      each.out_gradient = carver.take<T>(batch * (is_actor ? 2 * actions : 1));
    }
    for (T** pairs : {&stored, &next, &current}) *pairs = carver.take<T>(batch * pair);
    for (T** rows : {&reward, &terminated, &next_q1, &next_q2, &target, &soft_value}) {
      *rows = carver.take<T>(batch);
    }
    action_gradient = carver.take<T>(batch * actions);
    for (Hidden<T>& each : target_hidden) each = hidden_of(carver);
  }

  std::int64_t bytes_ = 0, state_bytes_ = 0;
};

}  // namespace sacfast::SACFAST_ISA
