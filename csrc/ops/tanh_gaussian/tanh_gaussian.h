// Reparameterised tanh-Gaussian sampling with log-probability: parameters and launchers.
//
// R rows (the product of all leading dimensions), A actions. T: float or double; on CUDA also half and bfloat16,
// which are computed in float. Outputs are dense. formulas: core/tanh_gaussian.h.
#pragma once

#include "../../core/cpu_level.h"
#include "../../core/noise_source.h"
#include "../../core/strided.h"
#include "../../core/tanh_gaussian.h"

namespace sacfast {

struct LogStdBounds {
  LogStdBounding kind = LogStdBounding::kNone;
  double low = 0;
  double high = 0;
};

template <class T>
struct RsampleParams {
  std::int64_t rows, cols;   // R, A
  Strided<T> mean, log_std;  // [R, A]; log_std before bounding
  Strided<T> noise;          // [R, A] standard normal; absent: drawn from `source`
  NoiseSource source;
  LogStdBounds bounds;
  const T* action_scale;  // [A] or null
  T* action;              // [R, A]
  T* log_prob;            // [R]
  T* noise_out;           // [R, A] or null; only where the noise is drawn
};

template <class T>
struct RsampleBackwardParams {
  std::int64_t rows, cols;
  Strided<T> grad_action;    // [R, A], absent: zero
  Strided<T> grad_log_prob;  // [R, A] with col_stride 0, absent: zero
  Strided<T> mean, log_std, noise;
  LogStdBounds bounds;
  const T* action_scale;
  T* grad_mean;     // [R, A]
  T* grad_log_std;  // [R, A], with respect to the unbounded log_std
};

template <class T>
struct LogProbParams {
  std::int64_t rows, cols;
  Strided<T> pre_tanh, mean, log_std;
  T* log_prob;  // [R]
};

template <class T>
struct LogProbBackwardParams {
  std::int64_t rows, cols;
  Strided<T> grad_log_prob;  // [R, A] with col_stride 0
  Strided<T> pre_tanh, mean, log_std;
  T* grad_pre_tanh;  // [R, A]
  T* grad_mean;
  T* grad_log_std;
};

// CPU: rows [begin, end), so that a caller may share the rows among threads.
#define SACFAST_TANH_GAUSSIAN_CPU(T)                                                                     \
  SACFAST_DECLARE_CPU(                                                                                   \
      void tanh_gaussian_rsample(const RsampleParams<T>& params, std::int64_t begin, std::int64_t end);  \
      void tanh_gaussian_rsample_backward(const RsampleBackwardParams<T>& params, std::int64_t begin,    \
                                          std::int64_t end);                                             \
      void tanh_gaussian_log_prob(const LogProbParams<T>& params, std::int64_t begin, std::int64_t end); \
      void tanh_gaussian_log_prob_backward(const LogProbBackwardParams<T>& params, std::int64_t begin,   \
                                           std::int64_t end))
SACFAST_TANH_GAUSSIAN_CPU(float)
SACFAST_TANH_GAUSSIAN_CPU(double)
#undef SACFAST_TANH_GAUSSIAN_CPU

// CUDA: `stream` is a cudaStream_t. Each returns a cudaError_t as int. T: float, double, __half, __nv_bfloat16.
namespace cuda {
template <class T>
int tanh_gaussian_rsample(const RsampleParams<T>& params, void* stream);
template <class T>
int tanh_gaussian_rsample_backward(const RsampleBackwardParams<T>& params, void* stream);
template <class T>
int tanh_gaussian_log_prob(const LogProbParams<T>& params, void* stream);
template <class T>
int tanh_gaussian_log_prob_backward(const LogProbBackwardParams<T>& params, void* stream);

// Takes one stream of noise from a state [seed, offset] on the device, into `taken` [seed, offset] there.
int take_noise(std::int64_t* state, std::int64_t* taken, void* stream);
}  // namespace cuda

}  // namespace sacfast
