// How a binding runs a kernel on CPU or CUDA: the choice of T from a tensor's dtype, threads, device and stream. It is
// compiled twice: for the CPU, and with SACFAST_CUDA_LIBRARY for CUDA.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>

#include "../core/cpu_level.h"
#include "tensor.h"

#if defined(SACFAST_CUDA_LIBRARY)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#endif

namespace sacfast {

// Calls body(T{}) with the kernel type of the tensor's dtype.
template <class Body>
void with_kernel_type(const Tensor& tensor, Body body) {
  if (tensor.dtype() == kFloat) return body(float{});
  if (tensor.dtype() == kDouble) return body(double{});
#if defined(SACFAST_CUDA_LIBRARY)
  if (tensor.dtype() == kHalf) return body(__half{});
  if (tensor.dtype() == kBFloat16) return body(__nv_bfloat16{});
#endif
  refuse("expected dtype float32 or float64, got ", tensor.dtype());
}

// Elements of work below which a second thread costs more than it saves.
constexpr std::int64_t kGrainElements = 16384;

// The same in rows, where a row has that many elements of work.
inline std::int64_t rows_per_thread(std::int64_t elements_of_row) {
  return std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(1, elements_of_row));
}

#if defined(SACFAST_CUDA_LIBRARY)
// Makes the tensor's device current while it lives.
class DeviceOf {
 public:
  explicit DeviceOf(const Tensor& tensor) {
    SACFAST_CHECK(tensor.is_cuda(), "expected all tensors on CUDA, got one on ", tensor.device());
    CUDAGuardHandle guard = nullptr;
    SACFAST_TORCH(aoti_torch_create_cuda_guard, tensor.device().index, &guard);
    guard_.reset(guard);
  }

 private:
  struct Delete {
    void operator()(CUDAGuardHandle guard) const { aoti_torch_delete_cuda_guard(guard); }
  };
  std::unique_ptr<CUDAGuardOpaque, Delete> guard_;
};

inline void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  SACFAST_TORCH(aoti_torch_get_current_cuda_stream, tensor.device().index, &stream);
  return stream;
}

inline void check_launch(const char* op, int status) {
  if (status == 0) return;
  throw std::runtime_error(std::string(op) +
                           ": CUDA launch failed: " + cudaGetErrorString(static_cast<cudaError_t>(status)));
}

// Runs the kernel `function` for `extent` units of work.
#define SACFAST_RUN(function, tensor, T, params, extent, grain) \
  (static_cast<void>(extent), static_cast<void>(grain),         \
   check_launch(#function, cuda::function<T>(params, current_stream(tensor))))

#else
class DeviceOf {
 public:
  explicit DeviceOf(const Tensor&) {}
};

// Whether this process was forked from one that had loaded the library. OpenMP's threads do not survive a fork, and a
// child that waits for them hangs: there the kernels run in the calling thread alone.
inline std::atomic<bool> in_forked_child{false};

// Shares [0, extent) among torch's threads, at least `grain` units each.
template <class Body>
void share_among_threads(std::int64_t extent, std::int64_t grain, const Body& body) {
  if (extent <= grain || in_forked_child.load(std::memory_order_relaxed)) return body(0, extent);
  const auto call = [](std::int64_t begin, std::int64_t end, void* context) {
    (*static_cast<const Body*>(context))(begin, end);
  };
  SACFAST_TORCH(torch_parallel_for, 0, extent, grain, call, const_cast<Body*>(&body));
}

#define SACFAST_RUN(function, tensor, T, params, extent, grain) \
  share_among_threads(extent, grain,                            \
                      [&](std::int64_t begin, std::int64_t end) { SACFAST_CALL_CPU(function, params, begin, end); })
#endif

}  // namespace sacfast
