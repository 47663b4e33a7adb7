// The Machine of engine.h on a GPU: lanes are streams, and an update is recorded once as a CUDA graph.
//
// Only the host's side of CUDA: `Launch`, a template parameter, starts the kernels. So tests/csrc/test_cuda_engine.cpp
// runs all of this on a stand-in for the CUDA runtime.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "steps.h"

namespace sacfast::SACFAST_ISA {

inline void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // forgets it: the next launch would be blamed for it
  throw std::runtime_error(std::string("learner: ") + call + " failed: " + cudaGetErrorString(status));
}
#define SACFAST_CUDA(call) check_cuda(call, #call)

struct DeleteHandle {
  void operator()(cudaStream_t stream) const { cudaStreamDestroy(stream); }
  void operator()(cudaEvent_t event) const { cudaEventDestroy(event); }
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
  void operator()(cudaGraphExec_t graph) const { cudaGraphExecDestroy(graph); }
};
template <class Handle>
using Owned = std::unique_ptr<std::remove_pointer_t<Handle>, DeleteHandle>;

struct DeleteHostMemory {
  void operator()(void* memory) const { cudaFreeHost(memory); }
};

// `Launch::run(body, blocks, learners, stream)` starts a kernel and returns a cudaError_t.
template <class Launch>
class CudaMachine {
 public:
  CudaMachine() {
    for (Owned<cudaStream_t>& stream : recording_) {
      cudaStream_t made = nullptr;
      SACFAST_CUDA(cudaStreamCreateWithFlags(&made, cudaStreamNonBlocking));
      stream.reset(made);
    }
    for (Owned<cudaEvent_t>* event : {&fork_, &last_, &pace_[0], &pace_[1]}) {
      cudaEvent_t made = nullptr;
      SACFAST_CUDA(cudaEventCreateWithFlags(&made, cudaEventDisableTiming));
      event->reset(made);
    }
  }
  CudaMachine(CudaMachine&&) = default;

  // The graphs and the host's memory outlive the work that uses them.
  ~CudaMachine() {
    if (last_ == nullptr) return;
    if (!is_marked_) cudaEventRecord(last_.get(), queue_);
    cudaEventSynchronize(last_.get());
  }

  // What follows is queued there, behind all that was marked before. The stream of earlier work is not touched again:
  // its owner may have destroyed it.
  void use_queue(void* queue) {
    const auto stream = static_cast<cudaStream_t>(queue);
    if (stream == queue_) return;
    SACFAST_CUDA(cudaStreamWaitEvent(stream, last_.get(), 0));
    queue_ = stream;
  }

  // Work queued so far is what `use_queue`, `is_done` and `wait` speak of.
  void mark() {
    SACFAST_CUDA(cudaEventRecord(last_.get(), queue_));
    is_marked_ = true;
  }

  bool is_done() const {
    const cudaError_t status = cudaEventQuery(last_.get());
    check_cuda(status == cudaErrorNotReady ? cudaSuccess : status, "cudaEventQuery");
    if (status == cudaErrorNotReady) cudaGetLastError();  // it is kept like an error
    return status == cudaSuccess;
  }

  void wait() const { SACFAST_CUDA(cudaEventSynchronize(last_.get())); }

  template <class Kernel>
  void launch(Lane lane, const Kernel& body, std::int64_t blocks, int learners) {
    if (!is_recording_) pace();
    const dim3 grid(static_cast<unsigned>(blocks), static_cast<unsigned>(learners));
    SACFAST_CUDA(Launch::run(body, grid, stream(lane)));
  }

  void after(Lane lane, Lane other) {
    SACFAST_CUDA(cudaEventRecord(fork_.get(), stream(other)));
    SACFAST_CUDA(cudaStreamWaitEvent(stream(lane), fork_.get(), 0));
  }

  // Records update number `which` if that was not done before. It takes memory: better now than between two updates.
  template <class Record>
  void prepare(int which, const Record& record) {
    if (graphs_[which] == nullptr) graphs_[which] = recorded(record);
  }

  template <class Record>
  void replay(int which, const Record&) {
    pace();
    SACFAST_CUDA(cudaGraphLaunch(graphs_[which].get(), queue_));
  }

  // Returns when it is done, and all that was queued before it.
  void copy(void* to, const void* from, std::int64_t bytes) {
    SACFAST_CUDA(cudaMemcpyAsync(to, from, size(bytes), cudaMemcpyDefault, queue_));
    SACFAST_CUDA(cudaStreamSynchronize(queue_));
  }

  // Queues zeros.
  void zero(void* memory, std::int64_t bytes) { SACFAST_CUDA(cudaMemsetAsync(memory, 0, size(bytes), queue_)); }

  // Memory of the host that kernels reach by the same address. It is the machine's, and can be asked for once.
  void* host_memory(std::int64_t bytes) {
    void* made = nullptr;
    SACFAST_CUDA(cudaHostAlloc(&made, size(bytes), cudaHostAllocDefault));
    host_.reset(made);
    return made;
  }

 private:
  static std::size_t size(std::int64_t value) { return static_cast<std::size_t>(value); }

  // While an update is recorded its lanes are streams of our own: the caller's may be the default one, which cannot be.
  cudaStream_t stream(Lane lane) const { return is_recording_ ? recording_[static_cast<int>(lane)].get() : queue_; }

  // Before every launch. The driver's queue holds about 1,024 launches. A launch beyond them would wait inside the
  // driver, and with it every other thread that uses the GPU. So at most twice kPace launches are ahead of the GPU, and
  // who waits does it here.
  void pace() {
    is_marked_ = false;
    if (++launches_ % kPace != 0) return;
    SACFAST_CUDA(cudaEventRecord(pace_[0].get(), queue_));
    pace_[0].swap(pace_[1]);
    SACFAST_CUDA(cudaEventSynchronize(pace_[0].get()));
  }

  template <class Record>
  Owned<cudaGraphExec_t> recorded(const Record& record) {
    const cudaStream_t main = recording_[static_cast<int>(Lane::kMain)].get();
    SACFAST_CUDA(cudaStreamBeginCapture(main, cudaStreamCaptureModeThreadLocal));
    is_recording_ = true;
    cudaGraph_t graph = nullptr;
    try {
      record();
    } catch (...) {
      is_recording_ = false;
      cudaStreamEndCapture(main, &graph);
      if (graph != nullptr) cudaGraphDestroy(graph);
      cudaGetLastError();
      throw;
    }
    is_recording_ = false;
    SACFAST_CUDA(cudaStreamEndCapture(main, &graph));
    const Owned<cudaGraph_t> owned(graph);
    cudaGraphExec_t made = nullptr;
    SACFAST_CUDA(cudaGraphInstantiate(&made, graph, 0));
    Owned<cudaGraphExec_t> ready(made);
    SACFAST_CUDA(cudaGraphUpload(made, queue_));
    return ready;
  }

  static constexpr int kPace = 256;

  Owned<cudaStream_t> recording_[kLanesOfWork];
  Owned<cudaEvent_t> fork_, last_, pace_[2];
  std::unique_ptr<void, DeleteHostMemory> host_;
  Owned<cudaGraphExec_t> graphs_[2];
  cudaStream_t queue_ = nullptr;
  std::int64_t launches_ = 0;
  bool is_recording_ = false;
  bool is_marked_ = true;
};

#undef SACFAST_CUDA

}  // namespace sacfast::SACFAST_ISA
