// What a policy does at each step of its environments, for few rows: parameters and kernel. A multilayer perceptron
// forward, then a sample of the tanh-squashed Gaussian, or its mode. Formulas: core/tanh_gaussian.h.
#pragma once

#include "../core/cpu_level.h"
#include "../core/noise_source.h"
#include "../core/tanh_gaussian.h"

namespace sacfast {

struct LinearLayer {
  const float* weight;  // [outputs, inputs], dense, as torch has it: the policy follows every change of it
  const float* bias;    // [outputs]
  std::int64_t inputs, outputs;
};

struct ActParams {
  const LinearLayer* layers;  // [count]; relu between them. The last one's outputs: mean, then log_std, A each
  std::int64_t count;
  std::int64_t widest;  // the largest of all `inputs` and `outputs`
  std::int64_t action_dim;
  std::int64_t rows;
  const float* observation;  // [rows, inputs of the first layer], dense
  bool deterministic;        // tanh(mean), without noise
  NoiseSource source;        // of which action[row, col] takes element row * A + col
  LogStdBounding bounding;
  double low, high;  // of log_std
  float* action;     // [rows, A], dense
};

SACFAST_DECLARE_CPU(void act(const ActParams& params))

}  // namespace sacfast
