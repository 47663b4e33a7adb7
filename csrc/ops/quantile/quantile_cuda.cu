// CUDA twin: launches the bodies of quantile_kernels.h.
#include "quantile_kernels.h"

#include "../../core/launch.cuh"

namespace sacfast::cuda {

using namespace sacfast::SACFAST_ISA;

template <class T>
int truncated_quantile_target(const TruncatedTargetParams<T>& params, void* stream) {
  return launch_blocks(TruncatedTargetKernel<T, ArithmeticOf<T>>{params}, params.batch, stream);
}

template <class T>
int quantile_huber_loss(const QuantileHuberParams<T>& params, void* stream) {
  return launch_blocks(QuantileHuberKernel<T, ArithmeticOf<T>>{params}, params.rows, stream);
}

#define SACFAST_INSTANTIATE(T)                                                    \
  template int truncated_quantile_target(const TruncatedTargetParams<T>&, void*); \
  template int quantile_huber_loss(const QuantileHuberParams<T>&, void*);
SACFAST_INSTANTIATE(float)
SACFAST_INSTANTIATE(double)
SACFAST_INSTANTIATE(__half)
SACFAST_INSTANTIATE(__nv_bfloat16)
#undef SACFAST_INSTANTIATE

}  // namespace sacfast::cuda
