// The soft Bellman target from twin critics: parameters and launchers. Formula: core/bellman.h.
//
// B samples, each input a column with its own stride (zero: one value for all). Outputs are dense.
// T: float or double; on CUDA also half and bfloat16, which are computed in float.
#pragma once

#include "../../core/bellman_row.h"
#include "../../core/cpu_level.h"
#include "../../core/strided.h"

namespace sacfast {

template <class T>
struct TwinQParams {
  std::int64_t batch;           // B
  BellmanInputs<T> sample;      // [B] each
  Strided<T> next_q1, next_q2;  // [B]
  T* target;                    // [B]
};

template <class T>
struct TwinQBackwardParams {
  TwinQParams<T> forward;  // its reward and target are not read
  Strided<T> grad_target;  // [B]
  T* grad_next_q1;         // [B]
  T* grad_next_q2;
  T* grad_next_log_prob;
  T* grad_alpha;  // [B], each sample's share; null: not wanted
};

// CPU: samples [begin, end).
#define SACFAST_TWIN_Q_CPU(T)                                                                 \
  SACFAST_DECLARE_CPU(                                                                        \
      void twin_q_target(const TwinQParams<T>& params, std::int64_t begin, std::int64_t end); \
      void twin_q_target_backward(const TwinQBackwardParams<T>& params, std::int64_t begin, std::int64_t end))
SACFAST_TWIN_Q_CPU(float)
SACFAST_TWIN_Q_CPU(double)
#undef SACFAST_TWIN_Q_CPU

// CUDA: `stream` is a cudaStream_t. Each returns a cudaError_t as int.
namespace cuda {
template <class T>
int twin_q_target(const TwinQParams<T>& params, void* stream);
template <class T>
int twin_q_target_backward(const TwinQBackwardParams<T>& params, void* stream);
}  // namespace cuda

}  // namespace sacfast
