// Forward and backward passes of the networks, on the rows that a step asks for.
#pragma once

#include <algorithm>

#include "profile.h"
#include "schedule.h"

namespace sacfast::SACFAST_ISA {

template <class T>
class NetworkPasses {
  using V = VectorOf<T>;

 public:
  NetworkPasses(UpdateState<T>& state, Profile& profile) : s_(state), profile_(profile) {}

  // Rows [row, row + rows) of the input. The hidden layers are written to rows from `hidden_row` on, the head to `row`.
  void forward(const MlpShape<T>& shape, const T* parameters, Panels<T> input, std::int64_t row, std::int64_t rows,
               const Activations<T>& out, std::int64_t hidden_row) {
    mlp_forward(shape, parameters, readable(input.from_row(row)), rows, out, hidden_row, row);
    for (const Layer& layer : shape.layers) profile_.count_flop(rows, layer.inputs * layer.outputs);
  }

  // A target on x'. All blocks write their hidden layers to the same rows, from `hidden_row` on: nobody reads them
  // later.
  void target_forward(Network network, Rows of, std::int64_t hidden_row) {
    const Activations<T>& out = s_.target_activations[network == Network::kQ2 ? 1 : 0];
    for_each_block(of, [&](std::int64_t row, std::int64_t rows) {
      forward(s_.network(network).shape, s_.part(network, Part::kTarget), s_.next, row, rows, out, hidden_row);
    });
  }

  // From scalar_delta to the deltas of all hidden layers, for rows [row, row + rows). With a map, delta row row + m
  // belongs to row map[m] of the minibatch.
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

  // From the deltas of the actor's head to those of its hidden layer `last`.
  void actor_backward(LearnedNetwork<T>& actor, Rows of, std::size_t last) {
    for_each_block(of, [&](std::int64_t row, std::int64_t rows) {
      Panels<const T> delta = readable(actor.head_delta.from_row(row));
      for (std::size_t layer = actor.shape.hidden(); layer > last; --layer) {
        delta = hidden_backward(actor, layer, delta, actor.activations.hidden[layer - 1].from_row(row), RowMap{}, row,
                                rows);
      }
    });
  }

  // One block of the actor's last product of the backward pass: to the deltas of its first hidden layer.
  void first_hidden_backward(LearnedNetwork<T>& actor, const Block& block) {
    const Layer& second = actor.shape.layers[1];
    const Panels<T> delta = actor.shape.hidden() == 1 ? actor.head_delta : actor.deltas[1];
    const auto rows_of = [&block](Panels<T> matrix) { return matrix.from_row(block.row); };
    const auto part_of = [&block](Panels<T> matrix) { return matrix.from_panel(block.panel); };
    const std::int64_t inputs = std::min(columns_from<T>(second.inputs, block.panel), block.panels * kPanel<T>);
    layer_backward({inputs, second.outputs, false, 0}, readable(part_of(actor.transposed[1])), readable(rows_of(delta)),
                   readable(part_of(rows_of(actor.activations.hidden[0]))), RowMap{}, block.rows,
                   part_of(rows_of(actor.deltas[0])));
    profile_.count_flop(block.rows, inputs * second.outputs);
  }

  // Adds a critic's gradient with respect to its action inputs to action_gradient. Delta row delta_row + m belongs to
  // row map[m] of the minibatch.
  void add_action_gradient(LearnedNetwork<T>& each, const T* parameters, RowMap map, std::int64_t delta_row,
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
    profile_.count_flop(rows, first.outputs * actions);
  }

 private:
  // Through `layer` to the deltas of the hidden layer before it, which are returned.
  Panels<const T> hidden_backward(LearnedNetwork<T>& each, std::size_t layer, Panels<const T> delta,
                                  Panels<T> activation, RowMap map, std::int64_t row, std::int64_t rows) {
    const Layer& shape = each.shape.layers[layer];
    const Panels<T> out = each.deltas[layer - 1].from_row(row);
    layer_backward(shape, readable(each.transposed[layer]), delta, readable(activation), map, rows, out);
    profile_.count_flop(rows, shape.inputs * shape.outputs);
    return readable(out);
  }

  UpdateState<T>& s_;
  Profile& profile_;
};

}  // namespace sacfast::SACFAST_ISA
