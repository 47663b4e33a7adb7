// From the deltas of a layer to its new parameters: the gradient goes straight into Adam and into the target's move.
//
// A gradient is never stored as a whole. While a tile of it is in the cache, Adam reads parameters and moments and
// writes the new ones; a target that is due moves with them. What is not finite is noted as the number of its tensor.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "../../core/adam.h"
#include "../../core/polyak.h"
#include "profile.h"
#include "schedule.h"

namespace sacfast::SACFAST_ISA {

// Adam's step of one network, and the target's move beside it.
template <class T>
struct AdamAndTarget {
  using V = VectorOf<T>;

  const T *parameter, *exp_avg, *exp_avg_sq, *target;
  T *next_parameter, *next_exp_avg, *next_exp_avg_sq, *next_target;
  AdamFactors<T> factors;
  bool moves_target;
  T tau;

  // For `rows` rows of a panel's gradient, parameters from `at` on. Returns zero, or NaN if a second moment became
  // infinite or NaN, which it does when the gradient is.
  V operator()(std::int64_t at, const T* gradients, std::int64_t rows, std::int64_t vectors) const {
    const AdamAndTarget self = *this;  // stores cannot change a copy, so it stays in registers
    V bad{};
    // One loop for panels of one vector and of two: a loop over vectors inside one over rows takes 1.5 times as long.
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

  // Whether the gradients of `count` parameters from `at` on were finite: the first moments are finite only then.
  bool had_finite_gradients(std::int64_t at, std::int64_t count) const {
    return std::all_of(next_exp_avg + at, next_exp_avg + at + count, [](T each) { return std::isfinite(each); });
  }

  static constexpr std::size_t kArrays = 8;

  // Adds the memory of the parameters from `at` on that is worth a prefetch. Where products prefetch: all of the state,
  // before and after the step. Elsewhere: only what other threads have read since it was written.
  void list_memory(std::int64_t at, std::vector<const T*>& list) const {
    const auto add = [at, &list](const T* before, const T* after, bool others_read) {
      if (kPrefetches) list.push_back(before + at);
      if (kPrefetches ? after != before : others_read) list.push_back(after + at);
    };
    add(parameter, next_parameter, true);
    add(exp_avg, next_exp_avg, false);
    add(exp_avg_sq, next_exp_avg_sq, false);
    if (moves_target) add(target, next_target, true);
  }
};

// The factors of Adam's step number `step`, counted from 1.
template <class T>
AdamFactors<T> adam_factors(const UpdateSettings& settings, double lr, std::int64_t step) {
  return AdamFactors<T>::of(lr, settings.adam_beta1, settings.adam_beta2, settings.adam_eps, step);
}

// The temperature's step, whose loss goes to `loss`. Returns what is not finite, or nothing.
template <class T>
std::string step_alpha(UpdateState<T>& state, double mean_log_prob, double& loss) {
  const UpdateSettings& settings = state.settings;
  UpdateCounters& counters = state.counters;
  loss = step_temperature(counters, static_cast<T>(mean_log_prob), static_cast<T>(settings.target_entropy),
                          adam_factors<T>(settings, settings.alpha_lr, counters.alpha_steps + 1));
  return std::isfinite(counters.log_alpha_exp_avg_sq) ? "" : kTemperatureMoment;
}

// One thread's share of the optimisers' steps.
template <class T>
class Descent {
  using V = VectorOf<T>;

 public:
  // `bad_tensor` takes the smallest number of a tensor in which this thread finds something that is not finite.
  Descent(UpdateState<T>& state, Profile& profile, std::int64_t& bad_tensor)
      : s_(state), settings_(state.settings), profile_(profile), bad_tensor_(bad_tensor), scratch_(kScratchElements) {
    pieces_.reserve(kMostPieces);
  }

  // The memory that an object has outside of itself.
  static std::int64_t bytes() {
    return static_cast<std::int64_t>(kScratchElements * sizeof(T) + kMostPieces * sizeof(const T*));
  }

  // Steps the units that this thread takes. `network_input` [B, inputs] is what their networks read.
  void step_all(Queue<Unit>& units, Panels<const T> network_input) {
    while (const Unit* unit = units.take()) step(*unit, network_input);
  }

 private:
  AdamAndTarget<T> descent_of(Network network) {
    const bool is_critic = network == Network::kQ1 || network == Network::kQ2;
    const Network optimizer = is_critic ? Network::kQ1 : network;
    const double lr = is_critic                    ? settings_.critic_lr
                      : network == Network::kActor ? settings_.actor_lr
                                                   : settings_.value_lr;
    const std::int64_t step = s_.counters.adam_steps[static_cast<int>(optimizer)] + 1;
    const bool moves_target =
        s_.has(network, Part::kTarget) && target_is_due(s_.counters, settings_.target_update_interval);
    return {s_.part(network, Part::kParameters),
            s_.part(network, Part::kExpAvg),
            s_.part(network, Part::kExpAvgSq),
            s_.part(network, Part::kTarget),
            s_.next_part(network, Part::kParameters),
            s_.next_part(network, Part::kExpAvg),
            s_.next_part(network, Part::kExpAvgSq),
            s_.next_part(network, Part::kTarget),
            adam_factors<T>(settings_, lr, step),
            moves_target,
            static_cast<T>(settings_.hard_target_update ? 1.0 : settings_.tau)};
  }

  void step(const Unit& unit, Panels<const T> network_input) {
    LearnedNetwork<T>& each = s_.network(unit.network);
    const Layer& layer = each.shape.layers[unit.layer];
    const Panels<const T> input = unit.layer == 0 ? network_input : readable(each.activations.hidden[unit.layer - 1]);
    const AdamAndTarget<T> descend = descent_of(unit.network);
    if (layer.scalar) {
      step_scalar_layer(layer, input, each.scalar_delta, descend, unit);
    } else {
      const Panels<T> delta = unit.layer == each.shape.hidden() ? each.head_delta : each.deltas[unit.layer];
      const Panels<const T> mine = {delta.panel(unit.panel), delta.stride};
      step_weights(each, input, mine, descend, unit);
      for (std::int64_t panel = 0; panel < unit.panels; ++panel) step_bias(layer, mine, panel, descend, unit);
    }
  }

  // Where panel `panel` of a layer begins in the parameters.
  static std::int64_t panel_begin(const Layer& layer, std::int64_t panel) {
    return layer.offset + panel * (layer.inputs + 1) * kPanel<T>;
  }

  void step_weights(LearnedNetwork<T>& each, Panels<const T> input, Panels<const T> delta,
                    const AdamAndTarget<T>& descend, const Unit& unit) {
    const Layer& layer = each.shape.layers[unit.layer];
    const std::int64_t cols = columns_from<T>(layer.outputs, unit.panel);
    const bool is_transposed = each.is_transposed(unit.layer);
    V bad{};
    multiply_columns(
        input, layer.inputs, s_.batch, delta, cols, unit.panels, scratch_.data(),
        [&](std::int64_t first, std::int64_t rows, std::int64_t panel, const T* sums) {
          const std::int64_t in_layer = unit.panel + panel, vectors = vectors_of_panel<T>(cols - panel * kPanel<T>);
          bad += descend(panel_begin(layer, in_layer) + first * kPanel<T>, sums, rows, vectors);
          if (is_transposed) each.transpose(descend.next_parameter, unit.layer, in_layer, first, first + rows);
        },
        [&](std::int64_t first, std::int64_t end) { return memory_of(each, descend, unit, first, end); });
    check(bad, unit, false, [&] {
      for (std::int64_t panel = unit.panel; panel < unit.panel + unit.panels; ++panel) {
        if (!descend.had_finite_gradients(panel_begin(layer, panel), layer.inputs * kPanel<T>)) return false;
      }
      return true;
    });
    profile_.count_flop(s_.batch, layer.inputs * std::min(cols, unit.panels * kPanel<T>));
  }

  // The memory to prefetch for the step of the weights of inputs [first, end).
  Pieces<T> memory_of(const LearnedNetwork<T>& each, const AdamAndTarget<T>& descend, const Unit& unit,
                      std::int64_t first, std::int64_t end) {
    pieces_.clear();
    if (unit.panels > 1) return {};  // they would not find room in the cache
    const Layer& layer = each.shape.layers[unit.layer];
    for (; first < end; first += kPanel<T>) {
      descend.list_memory(panel_begin(layer, unit.panel) + first * kPanel<T>, pieces_);
      if (each.is_transposed(unit.layer)) pieces_.push_back(each.transposed_place(unit.layer, unit.panel, first));
    }
    return {pieces_.data(), pieces_.data() + pieces_.size()};
  }

  // The bias of panel `panel` of the unit.
  void step_bias(const Layer& layer, Panels<const T> delta, std::int64_t panel, const AdamAndTarget<T>& descend,
                 const Unit& unit) {
    const std::int64_t in_layer = unit.panel + panel,
                       vectors = vectors_of_panel<T>(columns_from<T>(layer.outputs, in_layer));
    alignas(64) T bias[kPanel<T>];
    for (std::int64_t col = 0; col < vectors * kLanes<T>; col += kLanes<T>) {
      store(bias + col, sum_rows(delta.panel(panel) + col, s_.batch));
    }
    const std::int64_t at = panel_begin(layer, in_layer) + layer.inputs * kPanel<T>;
    check(descend(at, bias, 1, vectors), unit, true,
          [&] { return descend.had_finite_gradients(at, vectors * kLanes<T>); });
  }

  void step_scalar_layer(const Layer& layer, Panels<const T> input, const T* delta, const AdamAndTarget<T>& descend,
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
    profile_.count_flop(s_.batch, layer.inputs);
  }

  // Notes the unit's tensor where `bad`, the result of its steps, is not zero.
  template <class Gradients>
  void check(V bad, const Unit& unit, bool is_bias, const Gradients& had_finite_gradients) {
    if (sum_lanes(bad) == 0) return;  // a NaN does not equal zero
    const bool is_moment = had_finite_gradients();
    bad_tensor_ =
        std::min(bad_tensor_, tensor_number(unit.network, static_cast<std::int64_t>(unit.layer), is_bias, is_moment));
  }

  static constexpr std::size_t kScratchElements = kMostSquares * kPanel<T> * kPanel<T>;
  static constexpr std::size_t kMostPieces = kMostSquares * (AdamAndTarget<T>::kArrays + 1);

  UpdateState<T>& s_;
  const UpdateSettings& settings_;
  Profile& profile_;
  std::int64_t& bad_tensor_;
  std::vector<T> scratch_;        // for a unit's gradient
  std::vector<const T*> pieces_;  // of memory to prefetch
};

}  // namespace sacfast::SACFAST_ISA
