// CUDA twin: launches the bodies of categorical_kernels.h.
#include "categorical_kernels.h"

#include "../../core/launch.cuh"

namespace sacfast::cuda {

using namespace sacfast::SACFAST_ISA;

template <class T>
int categorical_target(const CategoricalTargetParams<T>& params, void* stream) {
  return launch_blocks(CategoricalTargetKernel<T, ArithmeticOf<T>>{params}, params.batch, stream);
}

template <class T>
int categorical_cross_entropy(const CrossEntropyParams<T>& params, void* stream) {
  return launch_blocks(CrossEntropyKernel<T, ArithmeticOf<T>>{params}, params.batch, stream);
}

#define SACFAST_INSTANTIATE(T)                                               \
  template int categorical_target(const CategoricalTargetParams<T>&, void*); \
  template int categorical_cross_entropy(const CrossEntropyParams<T>&, void*);
SACFAST_INSTANTIATE(float)
SACFAST_INSTANTIATE(double)
SACFAST_INSTANTIATE(__half)
SACFAST_INSTANTIATE(__nv_bfloat16)
#undef SACFAST_INSTANTIATE

}  // namespace sacfast::cuda
