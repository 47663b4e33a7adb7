// The engine on a GPU: its kernels, and the launch that cuda_machine.h is given.
#include <cuda_runtime.h>

#include <memory>

#include "cuda_machine.h"
#include "engine.h"

namespace sacfast {
namespace SACFAST_ISA {
namespace {

template <class Kernel>
__global__ void __launch_bounds__(kBlockThreads) run_kernel(const __grid_constant__ Kernel body) {
  __shared__ typename Kernel::Shared shared;
  body(Block{blockIdx.x, static_cast<int>(blockIdx.y)}, shared);
}

struct Launch {
  template <class Kernel>
  static cudaError_t run(const Kernel& body, dim3 grid, cudaStream_t stream) {
    run_kernel<<<grid, kBlockThreads, 0, stream>>>(body);
    return cudaGetLastError();
  }
};

template <class T>
using CudaEngine = GpuEngine<T, CudaMachine<Launch>>;

}  // namespace
}  // namespace SACFAST_ISA

template <class T>
std::int64_t cuda_engine_bytes(const UpdateSettings& settings, int learners) {
  return SACFAST_ISA::CudaEngine<T>::bytes(settings, learners);
}

template <class T>
std::unique_ptr<QueuedEngine<T>> make_cuda_engine(const UpdateSettings& settings, int learners, void* memory,
                                                  void* queue) {
  return std::make_unique<SACFAST_ISA::CudaEngine<T>>(settings, learners, static_cast<char*>(memory), queue,
                                                      SACFAST_ISA::CudaMachine<SACFAST_ISA::Launch>());
}

#define SACFAST_DEFINE(T)                                                                                     \
  template std::int64_t cuda_engine_bytes<T>(const UpdateSettings& settings, int learners);                   \
  template std::unique_ptr<QueuedEngine<T>> make_cuda_engine<T>(const UpdateSettings& settings, int learners, \
                                                                void* memory, void* queue);
SACFAST_DEFINE(float)
SACFAST_DEFINE(double)
#undef SACFAST_DEFINE

}  // namespace sacfast
