// Adam with the Polyak averages of the parameters, over any number of tensors in one pass: parameters and launchers.
// Formula: core/adam_polyak.h.
#pragma once

#include "../../core/adam_polyak.h"
#include "../../core/cpu_level.h"
#include "../../core/qualifiers.h"

namespace sacfast {

// Tensors whose elements correspond one to one in memory order.
template <class T>
struct AdamPolyakSpan {
  T* param;
  const T* grad;
  T* exp_avg;
  T* exp_avg_sq;
  T* target;           // null: no average is kept
  std::int64_t begin;  // index of its first element in the concatenation of all parameters
};

template <class T>
struct AdamPolyakParams {
  const AdamPolyakSpan<T>* spans;  // [count], in order of `begin`; host memory
  std::int64_t count;
  std::int64_t total;  // elements in all
  std::int64_t step;   // from 1
  double lr, beta1, beta2, eps, weight_decay, tau;

  // In the type of the arithmetic.
  template <class Acc>
  AdamPolyakFactors<Acc> factors() const {
    return {AdamFactors<Acc>::of(lr, beta1, beta2, eps, step), static_cast<Acc>(1.0 - lr * weight_decay),
            static_cast<Acc>(tau)};
  }
};

// CPU: elements [begin, end) of the concatenation.
#define SACFAST_ADAM_POLYAK_CPU(T) \
  SACFAST_DECLARE_CPU(void adam_polyak(const AdamPolyakParams<T>& params, std::int64_t begin, std::int64_t end))
SACFAST_ADAM_POLYAK_CPU(float)
SACFAST_ADAM_POLYAK_CPU(double)
#undef SACFAST_ADAM_POLYAK_CPU

// CUDA: `stream` is a cudaStream_t. Returns a cudaError_t as int. T: also half and bfloat16.
// One launch for up to 540 parameters (what fits in a kernel's parameters), then one for each further 540.
namespace cuda {
template <class T>
int adam_polyak(const AdamPolyakParams<T>& params, void* stream);
}  // namespace cuda

}  // namespace sacfast
