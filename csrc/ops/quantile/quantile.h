// A critic of quantiles: the quantile Huber loss, and TQC's truncated target. Formulas: core/quantile.h.
//
// T: float or double; on CUDA also half and bfloat16, which are computed in float.
#pragma once

#include "../../core/bellman_row.h"
#include "../../core/cpu_level.h"
#include "../../core/strided.h"

namespace sacfast {

template <class T>
struct QuantileHuberParams {
  std::int64_t rows;       // B N: samples times critics, a sample's critics side by side
  std::int64_t critics;    // N
  std::int64_t quantiles;  // M
  std::int64_t targets;    // K
  Strided<T> predicted;    // [B N, M]
  Strided<T> target;       // [B, K], columns adjacent
  double kappa;            // > 0
  T* loss;                 // [B N], mean over the M K pairs
  T* slope;                // [B N, M], d loss / d predicted; null: not wanted
};

template <class T>
struct TruncatedTargetParams {
  std::int64_t batch;         // B
  std::int64_t pooled;        // N M: the quantiles of all critics
  std::int64_t kept;          // the smallest of them
  BellmanInputs<T> sample;    // [B] each
  Strided<T> next_quantiles;  // [B, N M]
  T* target;                  // [B, kept], rising
};

// Quantiles of all critics that the CUDA twin sorts: a row lies in shared memory.
constexpr std::int64_t kMostPooledOnCuda = 4096;

// CPU: rows [begin, end) of B N, and samples [begin, end).
#define SACFAST_QUANTILE_CPU(T)                                                                             \
  SACFAST_DECLARE_CPU(                                                                                      \
      void quantile_huber_loss(const QuantileHuberParams<T>& params, std::int64_t begin, std::int64_t end); \
      void truncated_quantile_target(const TruncatedTargetParams<T>& params, std::int64_t begin, std::int64_t end))
SACFAST_QUANTILE_CPU(float)
SACFAST_QUANTILE_CPU(double)
#undef SACFAST_QUANTILE_CPU

// CUDA: `stream` is a cudaStream_t. Each returns a cudaError_t as int.
namespace cuda {
template <class T>
int quantile_huber_loss(const QuantileHuberParams<T>& params, void* stream);
template <class T>
int truncated_quantile_target(const TruncatedTargetParams<T>& params, void* stream);
}  // namespace cuda

}  // namespace sacfast
