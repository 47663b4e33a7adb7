// The engine on a GPU: lanes are streams, and an update is recorded once as a CUDA graph.
#include <cuda_runtime.h>

#include <memory>
#include <stdexcept>
#include <string>

#include "gpu_engine.h"

namespace sacfast {
namespace SACFAST_ISA {
namespace {

template <class Kernel>
__global__ void __launch_bounds__(kBlockThreads) run_kernel(const __grid_constant__ Kernel body) {
  __shared__ typename Kernel::Shared shared;
  body(Block{blockIdx.x, static_cast<int>(blockIdx.y)}, shared);
}

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("learner: ") + call + " failed: " + cudaGetErrorString(status));
}
#define SACFAST_CHECK(call) check(call, #call)

struct DeleteHandle {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
template <class Handle>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, DeleteHandle>;

class CudaMachine {
 public:
  CudaMachine() {
    for (Owned<cudaStream_t>& stream : recording_) {
      cudaStream_t made = nullptr;
      SACFAST_CHECK(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
      stream.reset(made);
    }
    cudaEvent_t made = nullptr;
    SACFAST_CHECK(cudaEventCreateWithFlags(&made, cudaEventDisableTiming));
    event_.reset(made);
  }

  void use_queue(void* queue) { queue_ = static_cast<cudaStream_t>(queue); }

  template <class Kernel>
  void launch(Lane lane, const Kernel& body, std::int64_t blocks, int learners) {
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(learners));
    run_kernel<<<grid, kBlockThreads, 0, stream(lane)>>>(body);
    SACFAST_CHECK(cudaGetLastError());
  }

  void after(Lane lane, Lane other) {
    SACFAST_CHECK(cudaEventRecord(event_.get(), stream(other)));
    SACFAST_CHECK(cudaStreamWaitEvent(stream(lane), event_.get(), 0));
  }

  template <class Record>
  void replay(int which, const Record& record) {
    Owned<cudaGraphExec_t>& graph = graphs_[which];
    if (graph == nullptr) graph = recorded(record);
    SACFAST_CHECK(cudaGraphLaunch(graph.get(), queue_));
  }

  // Returns when it is done, and all that was queued before it.
  void copy(void* to, const void* from, std::int64_t bytes) {
    SACFAST_CHECK(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDefault, queue_));
    SACFAST_CHECK(cudaStreamSynchronize(queue_));
  }

 private:
  // While an update is recorded its lanes are streams of our own: the caller's may be the default one, which cannot be.
  cudaStream_t stream(Lane lane) const { return is_recording_ ? recording_[static_cast<int>(lane)].get() : queue_; }

  template <class Record>
  Owned<cudaGraphExec_t> recorded(const Record& record) {
    const cudaStream_t main = recording_[static_cast<int>(Lane::kMain)].get();
    SACFAST_CHECK(cudaStreamBeginCapture(main, cudaStreamCaptureModeThreadLocal));
    is_recording_ = true;
    cudaGraph_t graph = nullptr;
    try {
      record();
    } catch (...) {
      is_recording_ = false;
      cudaStreamEndCapture(main, &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      throw;
    }
    is_recording_ = false;
    SACFAST_CHECK(cudaStreamEndCapture(main, &graph));
    const Owned<cudaGraph_t> owned(graph);
    cudaGraphExec_t ready = nullptr;
    SACFAST_CHECK(cudaGraphInstantiate(&ready, graph, 0));
    return Owned<cudaGraphExec_t>(ready);
  }

  Owned<cudaStream_t> recording_[kLanesOfWork];
  Owned<cudaEvent_t> event_;
  Owned<cudaGraphExec_t> graphs_[2];
  cudaStream_t queue_ = nullptr;
  bool is_recording_ = false;
};

}  // namespace
}  // namespace SACFAST_ISA

template <class T>
std::int64_t cuda_engine_bytes(const UpdateSettings& settings, int learners) {
  return SACFAST_ISA::GpuEngine<T, SACFAST_ISA::CudaMachine>::bytes(settings, learners);
}

template <class T>
std::unique_ptr<QueuedEngine<T>> make_cuda_engine(const UpdateSettings& settings, int learners, void* memory) {
  using Engine = SACFAST_ISA::GpuEngine<T, SACFAST_ISA::CudaMachine>;
  return std::make_unique<Engine>(settings, learners, static_cast<char*>(memory), SACFAST_ISA::CudaMachine());
}

#define SACFAST_DEFINE(T)                                                                                     \
  template std::int64_t cuda_engine_bytes<T>(const UpdateSettings& settings, int learners);                   \
  template std::unique_ptr<QueuedEngine<T>> make_cuda_engine<T>(const UpdateSettings& settings, int learners, \
                                                                void* memory);
SACFAST_DEFINE(float)
SACFAST_DEFINE(double)
#undef SACFAST_DEFINE

}  // namespace sacfast
