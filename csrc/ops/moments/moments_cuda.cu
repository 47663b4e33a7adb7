// CUDA twin: launches the bodies of moments_kernels.h.
#include "moments_kernels.h"

#include "../../core/launch.cuh"

namespace sacfast::cuda {

using namespace sacfast::SACFAST_ISA;

template <class T>
int partial_moments(const RunningMomentsParams<T>& params, void* stream) {
  const PartialMomentsKernel<T, ArithmeticOf<T>> body{params};
  return launch_blocks(body, body.blocks(), stream);
}

template <class T>
int merge_moments(const RunningMomentsParams<T>& params, void* stream) {
  return launch_blocks(MergeMomentsKernel<T>{params}, params.columns, stream);
}

template <class T>
int normalize(const NormalizeParams<T>& params, void* stream) {
  const NormalizeKernel<T, ArithmeticOf<T>> body{params};
  return launch_blocks(body, body.blocks(), stream);
}

#define SACFAST_INSTANTIATE(T)                                         \
  template int partial_moments(const RunningMomentsParams<T>&, void*); \
  template int merge_moments(const RunningMomentsParams<T>&, void*);   \
  template int normalize(const NormalizeParams<T>&, void*);
SACFAST_INSTANTIATE(float)
SACFAST_INSTANTIATE(double)
SACFAST_INSTANTIATE(__half)
SACFAST_INSTANTIATE(__nv_bfloat16)
#undef SACFAST_INSTANTIATE

}  // namespace sacfast::cuda
