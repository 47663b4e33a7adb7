// A multilayer perceptron (ReLU) on panels: where its parameters lie, forward, and backward to its inputs.
//
// A layer's parameters are the transposed weight [inputs, outputs] in panels, each followed by its part of the bias. A
// scalar layer (the head of a critic) has one output: its weight [1, inputs] in panels, then its bias.
#pragma once

#include <cstdint>
#include <vector>

#include "../../core/panels.h"
#include "../../core/sizes.h"

namespace sacfast::SACFAST_ISA {

struct Layer {
  std::int64_t inputs, outputs;
  bool scalar;
  std::int64_t offset;  // where its parameters begin in the network's
};

template <class T>
struct MlpShape {
  std::vector<Layer> layers;
  std::int64_t elements = 0;    // of all layers, with the padding of the panels
  std::int64_t parameters = 0;  // without it

  MlpShape() = default;
  MlpShape(std::int64_t inputs, const std::vector<std::int64_t>& hidden_sizes, std::int64_t outputs, bool scalar_head) {
    std::vector<std::int64_t> sizes = {inputs};
    sizes.insert(sizes.end(), hidden_sizes.begin(), hidden_sizes.end());
    sizes.push_back(outputs);
    for (std::size_t i = 0; i + 1 < sizes.size(); ++i) {
      const Layer layer{sizes[i], sizes[i + 1], scalar_head && i + 2 == sizes.size(), elements};
      layers.push_back(layer);
      parameters = sum_of_sizes(parameters, product_of_sizes(layer.outputs, layer.inputs + 1));
      elements = sum_of_sizes(elements, layer.scalar ? panel_elements<T>(1, layer.inputs) + kPanel<T>
                                                     : panel_elements<T>(layer.inputs + 1, layer.outputs));
    }
  }

  std::size_t hidden() const { return layers.size() - 1; }

  // Calls visit(index in torch's order, index in panels) for every parameter.
  template <class Visit>
  void for_each_parameter(const Visit& visit) const {
    std::int64_t flat = 0;
    for (const Layer& layer : layers) {
      for (std::int64_t output = 0; output < layer.outputs; ++output) {
        for (std::int64_t input = 0; input < layer.inputs; ++input) visit(flat++, weight_at(layer, input, output));
      }
      for (std::int64_t output = 0; output < layer.outputs; ++output) {
        visit(flat++, layer.scalar ? layer.offset + panel_elements<T>(1, layer.inputs)
                                   : weight_at(layer, layer.inputs, output));
      }
    }
  }

 private:
  static std::int64_t weight_at(const Layer& layer, std::int64_t input, std::int64_t output) {
    if (layer.scalar) return layer.offset + input;  // panels of one row
    const std::int64_t panel = output / kPanel<T> * (layer.inputs + 1) + input;
    return layer.offset + panel * kPanel<T> + output % kPanel<T>;
  }
};

template <class T>
Panels<const T> weight_of(const Layer& layer, const T* parameters) {
  return {parameters + layer.offset, (layer.inputs + 1) * kPanel<T>};
}

// Columns of a matrix of `cols` columns, from panel `panel` on.
template <class T>
constexpr std::int64_t columns_from(std::int64_t cols, std::int64_t panel) {
  return cols - panel * kPanel<T>;
}

template <class T>
Panels<const T> readable(Panels<T> matrix) {
  return {matrix.data, matrix.stride};
}

// The outputs of the layers: of the hidden ones after the ReLU, and of the head in panels or as a vector.
template <class T>
struct Activations {
  std::vector<Panels<T>> hidden;
  Panels<T> head{};
  T* scalar = nullptr;
};

// In the functions below, row 0 of a matrix is the first of the `rows` rows that they work on.

// A product of `rows` rows, written to `out`, through a ReLU for a hidden layer.
template <bool kRelu, class T>
void layer_forward(const Layer& layer, const T* parameters, Panels<const T> input, std::int64_t rows, Panels<T> out) {
  using V = VectorOf<T>;
  multiply_rows<true>(input, rows, layer.inputs, weight_of(layer, parameters), layer.outputs,
                      [out](std::int64_t row, std::int64_t panel, std::int64_t col, V sum) {
                        // larger(zero, NaN) is NaN.
                        store(out.row(panel, row) + col, kRelu ? larger(V{}, sum) : sum);
                      });
}

// kRows outputs of a scalar layer: several at once hide the latency of each one's sum.
template <int kRows, class T>
void scalar_rows(const Layer& layer, const T* weight, Panels<const T> input, std::int64_t row, T* out) {
  using V = VectorOf<T>;
  V first[kRows] = {}, second[kRows] = {};
  for (std::int64_t panel = 0; panel < panel_count<T>(layer.inputs); ++panel) {
    const V weights[2] = {load<V>(weight + panel * kPanel<T>), load<V>(weight + panel * kPanel<T> + kLanes<T>)};
    const T* values = input.row(panel, row);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      first[r] += load<V>(values + r * kPanel<T>) * weights[0];
      second[r] += load<V>(values + r * kPanel<T> + kLanes<T>) * weights[1];
    }
  }
  const T bias = weight[panel_elements<T>(1, layer.inputs)];
  for (int r = 0; r < kRows; ++r) out[row + r] = sum_lanes(V(first[r] + second[r])) + bias;
}

template <class T>
void scalar_forward(const Layer& layer, const T* parameters, Panels<const T> input, std::int64_t rows, T* out) {
  const T* weight = parameters + layer.offset;
  std::int64_t row = 0;
  for (; row + 4 <= rows; row += 4) scalar_rows<4>(layer, weight, input, row, out);
  for (; row < rows; ++row) scalar_rows<1>(layer, weight, input, row, out);
}

// Hidden layer i is written to rows first_hidden_row ... of out.hidden[i], the head to rows first_head_row ...
template <class T>
void mlp_forward(const MlpShape<T>& shape, const T* parameters, Panels<const T> input, std::int64_t rows,
                 const Activations<T>& out, std::int64_t first_hidden_row, std::int64_t first_head_row) {
  for (std::size_t i = 0; i < shape.hidden(); ++i) {
    const Panels<T> hidden = out.hidden[i].from_row(first_hidden_row);
    layer_forward<true>(shape.layers[i], parameters, input, rows, hidden);
    input = readable(hidden);
  }
  const Layer& head = shape.layers.back();
  if (head.scalar) {
    scalar_forward(head, parameters, input, rows, out.scalar + first_head_row);
  } else {
    layer_forward<false>(head, parameters, input, rows, out.head.from_row(first_head_row));
  }
}

// For a backward pass over rows that do not lie side by side: row m of the deltas belongs to row rows[m] of the
// activations. A null pointer: to row m itself.
struct RowMap {
  const std::int32_t* rows = nullptr;
  std::int64_t operator[](std::int64_t row) const { return rows == nullptr ? row : rows[row]; }
};

template <class T>
SACFAST_HD VectorOf<T> where_active(VectorOf<T> gradient, const T* activation) {
  using V = VectorOf<T>;
  const V zero{};
  return load<V>(activation) > zero ? gradient : zero;
}

// From the gradient of a scalar head's output, gradient[map[row]], to the deltas of the layer before it.
template <class T>
void scalar_backward(const Layer& head, const T* parameters, Panels<const T> activation, RowMap map, const T* gradient,
                     std::int64_t rows, Panels<T> delta) {
  using V = VectorOf<T>;
  const T* weight = parameters + head.offset;
  for (std::int64_t panel = 0; panel < panel_count<T>(head.inputs); ++panel) {
    const V first = load<V>(weight + panel * kPanel<T>), second = load<V>(weight + panel * kPanel<T> + kLanes<T>);
    for (std::int64_t row = 0; row < rows; ++row) {
      const V factor = broadcast<V>(gradient[map[row]]);
      const T* active = activation.row(panel, map[row]);
      T* out = delta.row(panel, row);
      store(out, where_active<T>(first * factor, active));
      store(out + kLanes<T>, where_active<T>(second * factor, active + kLanes<T>));
    }
  }
}

// From the deltas of a layer to those of the hidden layer before it; `transposed` is the weight [outputs, inputs].
template <class T>
void layer_backward(const Layer& layer, Panels<const T> transposed, Panels<const T> delta, Panels<const T> activation,
                    RowMap map, std::int64_t rows, Panels<T> out) {
  using V = VectorOf<T>;
  multiply_rows<false>(delta, rows, layer.outputs, transposed, layer.inputs,
                       [=](std::int64_t row, std::int64_t panel, std::int64_t col, V sum) {
                         store(out.row(panel, row) + col, where_active<T>(sum, activation.row(panel, map[row]) + col));
                       });
}

}  // namespace sacfast::SACFAST_ISA
