// A critic of atoms: its Bellman target, and the cross-entropy on such a target. Formulas: core/categorical.h.
//
// T: float or double; on CUDA also half and bfloat16, which are computed in float.
#pragma once

#include "../../core/bellman_row.h"
#include "../../core/cpu_level.h"
#include "../../core/strided.h"

namespace sacfast {

template <class T>
struct CategoricalTargetParams {
  std::int64_t batch, atoms;              // B, M
  BellmanInputs<T> sample;                // [B] each
  Strided<T> next_logits1, next_logits2;  // [B, M], columns adjacent; next_logits2 absent: one critic
  double v_min, v_max;                    // v_min < v_max
  T* target;                              // [B, M]
};

template <class T>
struct CrossEntropyParams {
  std::int64_t batch, atoms;  // B, M
  Strided<T> logits, target;  // [B, M], columns adjacent
  T* loss;                    // [B]
  T* slope;                   // [B, M], d loss / d logits; null: not wanted
};

// CPU: samples [begin, end).
#define SACFAST_CATEGORICAL_CPU(T)                                                                             \
  SACFAST_DECLARE_CPU(                                                                                         \
      void categorical_target(const CategoricalTargetParams<T>& params, std::int64_t begin, std::int64_t end); \
      void categorical_cross_entropy(const CrossEntropyParams<T>& params, std::int64_t begin, std::int64_t end))
SACFAST_CATEGORICAL_CPU(float)
SACFAST_CATEGORICAL_CPU(double)
#undef SACFAST_CATEGORICAL_CPU

// CUDA: `stream` is a cudaStream_t. Each returns a cudaError_t as int.
namespace cuda {
template <class T>
int categorical_target(const CategoricalTargetParams<T>& params, void* stream);
template <class T>
int categorical_cross_entropy(const CrossEntropyParams<T>& params, void* stream);
}  // namespace cuda

}  // namespace sacfast
