// Compiled once for each instruction set.
//
// The lanes of the matrix products are rows: so the weights are read once for kBlock rows, as torch has them.
#include "act.h"

#include <memory>
#include <utility>

#include "../core/panels.h"
#include "../core/philox.h"
#include "../core/simd.h"

namespace sacfast::SACFAST_ISA {
namespace {

constexpr int kBlock = 16;  // rows at once, at most: a multiple of every vector's lanes
constexpr int kSums = 12;   // vectors of sums in registers: enough to hide a multiply-add's latency, and they fit

// out[o, :] = relu or not (bias[o] + sum over i of weight[o, i] * x[i, :]) for kOutputs outputs; x and out have
// kVectors vectors of rows in a line.
template <int kVectors, int kOutputs>
void forward_outputs(const float* weight, const float* bias, std::int64_t inputs, const float* x, bool relu,
                     float* out) {
  VecF sum[kOutputs][kVectors];
#pragma GCC unroll 16
  for (int o = 0; o < kOutputs; ++o) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[o][v] = broadcast<VecF>(bias[o]);
  }
  for (std::int64_t i = 0; i < inputs; ++i, x += kVectors * kFloats) {
    VecF rows[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) rows[v] = load<VecF>(x + v * kFloats);
#pragma GCC unroll 16
    for (int o = 0; o < kOutputs; ++o) {
      const VecF factor = broadcast<VecF>(weight[o * inputs + i]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[o][v] += factor * rows[v];
    }
  }
#pragma GCC unroll 16
  for (int o = 0; o < kOutputs; ++o) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      store(out + (o * kVectors + v) * kFloats, relu ? larger(VecF{}, sum[o][v]) : sum[o][v]);
    }
  }
}

// Rows [begin, begin + rows) through all layers; rows <= kVectors * kFloats. `a` and `b` hold a layer's activations,
// transposed: [widest, kVectors * kFloats]. Returns the last layer's.
template <int kVectors>
const float* forward(const ActParams& p, std::int64_t begin, std::int64_t rows, float* a, float* b) {
  constexpr std::int64_t lanes = kVectors * kFloats;
  const std::int64_t inputs = p.layers[0].inputs;
  for (std::int64_t i = 0; i < inputs; ++i) {
    for (std::int64_t row = 0; row < lanes; ++row) {
      a[i * lanes + row] = row < rows ? p.observation[(begin + row) * inputs + i] : 0;
    }
  }
  for (std::int64_t l = 0; l < p.count; ++l, std::swap(a, b)) {
    const LinearLayer& layer = p.layers[l];
    const bool is_head = l + 1 == p.count;
    const std::int64_t outputs = is_head && p.deterministic ? p.action_dim : layer.outputs;
    for_each_piece(0, outputs, kSums / kVectors, [&](std::int64_t first, std::int64_t count) {
      with_constant<kSums / kVectors>(count, [&](auto constant) {
        forward_outputs<kVectors, decltype(constant)::value>(layer.weight + first * layer.inputs, layer.bias + first,
                                                             layer.inputs, a, !is_head, b + first * lanes);
      });
    });
  }
  return a;
}

// dense[row, col] = transposed[col, row], for the columns of an action.
void transpose_actions(const float* transposed, std::int64_t lanes, std::int64_t rows, std::int64_t cols,
                       float* dense) {
  for (std::int64_t row = 0; row < rows; ++row) {
    for (std::int64_t col = 0; col < cols; ++col) dense[row * cols + col] = transposed[col * lanes + row];
  }
}

// Elements [first, first + count) of the action.
template <LogStdBounding kBounding>
void sample(const ActParams& p, std::int64_t first, std::int64_t count, const float* mean, const float* log_std,
            float* noise) {
  const VecF low = constant<VecF>(p.low), high = constant<VecF>(p.high);
  fill_normals(first, count, p.source.seed, p.source.offset, noise);
  for_each_vector<VecF>(count, [&](std::int64_t i, auto vector) {
    const VecF bounded = bound_log_std<kBounding>(vector.load(log_std + i), low, high).value;
    const Sample<VecF> drawn = sample_element(vector.load(mean + i), bounded, vector.load(noise + i));
    vector.store(p.action + first + i, drawn.action);
  });
}

}  // namespace

void act(const ActParams& p) {
  const std::int64_t layer = p.widest * kBlock, head = p.action_dim * kBlock;
  const std::unique_ptr<float[]> memory(new float[static_cast<std::size_t>(2 * layer + 3 * head)]);  // not set to zero
  float *a = memory.get(), *b = a + layer, *mean = b + layer, *log_std = mean + head, *noise = log_std + head;
  for (std::int64_t row = 0; row < p.rows; row += kBlock) {
    const std::int64_t rows = p.rows - row < kBlock ? p.rows - row : kBlock;
    const bool few = rows <= kFloats;
    const std::int64_t lanes = few ? kFloats : kBlock;
    const float* output = few ? forward<1>(p, row, rows, a, b) : forward<kBlock / kFloats>(p, row, rows, a, b);
    const std::int64_t first = row * p.action_dim, count = rows * p.action_dim;
    transpose_actions(output, lanes, rows, p.action_dim, mean);
    if (p.deterministic) {
      for_each_vector<VecF>(count, [&](std::int64_t i, auto vector) {
        vector.store(p.action + first + i, squash(vector.load(mean + i)).tanh);
      });
    } else {
      transpose_actions(output + p.action_dim * lanes, lanes, rows, p.action_dim, log_std);
      with_bounding(p.bounding,
                    [&](auto kind) { sample<decltype(kind)::value>(p, first, count, mean, log_std, noise); });
    }
  }
}

}  // namespace sacfast::SACFAST_ISA
