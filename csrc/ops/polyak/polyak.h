// Polyak averaging of any number of tensors in one launch: parameters and launchers. Formula: core/polyak.h.
#pragma once

#include "../../core/cpu_level.h"
#include "../../core/qualifiers.h"

namespace sacfast {

// A pair of tensors whose elements correspond one to one in memory order.
template <class T>
struct PolyakSpan {
  T* target;
  const T* online;
  std::int64_t begin;  // index of its first element in the concatenation of all pairs
};

template <class T>
struct PolyakParams {
  const PolyakSpan<T>* spans;  // [count], in order of `begin`; host memory
  std::int64_t count;
  std::int64_t total;  // elements in all
  double tau;
};

// CPU: elements [begin, end) of the concatenation.
#define SACFAST_POLYAK_CPU(T) \
  SACFAST_DECLARE_CPU(void polyak_update(const PolyakParams<T>& params, std::int64_t begin, std::int64_t end))
SACFAST_POLYAK_CPU(float)
SACFAST_POLYAK_CPU(double)
#undef SACFAST_POLYAK_CPU

// CUDA: `stream` is a cudaStream_t. Returns a cudaError_t as int. T: also half and bfloat16.
// One launch for up to 1,160 pairs (what fits in a kernel's parameters), then one for each further 1,160.
namespace cuda {
template <class T>
int polyak_update(const PolyakParams<T>& params, void* stream);
}  // namespace cuda

}  // namespace sacfast
