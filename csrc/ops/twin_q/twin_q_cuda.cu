// CUDA twin: a thread a sample.
#include "twin_q.h"

#include "../../core/bellman.h"
#include "../../core/launch.cuh"

namespace sacfast::cuda {
namespace {

using namespace sacfast::SACFAST_ISA;

template <class Acc>
struct Inputs {
  Acc terminated, q1, q2, log_prob, alpha, gamma;
};

template <class Acc, class T>
__device__ Acc read_or(const Strided<T>& view, double value, std::int64_t i) {
  return view.data != nullptr ? static_cast<Acc>(element(view, i, 0)) : static_cast<Acc>(value);
}

template <class Acc, class T>
__device__ Inputs<Acc> read_inputs(const TwinQParams<T>& p, std::int64_t i) {
  return {p.sample.terminated_mask.data != nullptr ? static_cast<Acc>(element(p.sample.terminated_mask, i, 0))
                                                   : static_cast<Acc>(element(p.sample.terminated, i, 0)),
          static_cast<Acc>(element(p.next_q1, i, 0)),
          static_cast<Acc>(element(p.next_q2, i, 0)),
          static_cast<Acc>(element(p.sample.next_log_prob, i, 0)),
          read_or<Acc>(p.sample.alpha, p.sample.alpha_value, i),
          read_or<Acc>(p.sample.gamma, p.sample.gamma_value, i)};
}

template <class T>
__global__ void __launch_bounds__(kThreads) target_kernel(TwinQParams<T> p) {
  using Acc = ArithmeticOf<T>;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.batch; i += stride) {
    const Inputs<Acc> in = read_inputs<Acc>(p, i);
    const Acc reward = static_cast<Acc>(element(p.sample.reward, i, 0));
    p.target[i] =
        static_cast<T>(soft_bellman_target(reward, in.terminated, in.q1, in.q2, in.log_prob, in.alpha, in.gamma));
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) target_backward_kernel(TwinQBackwardParams<T> p) {
  using Acc = ArithmeticOf<T>;
  const std::int64_t stride = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.forward.batch;
       i += stride) {
    const Inputs<Acc> in = read_inputs<Acc>(p.forward, i);
    const BellmanGrad<Acc> grad = soft_bellman_target_backward(
        static_cast<Acc>(element(p.grad_target, i, 0)), in.terminated, in.q1, in.q2, in.log_prob, in.alpha, in.gamma);
    p.grad_next_q1[i] = static_cast<T>(grad.q1);
    p.grad_next_q2[i] = static_cast<T>(grad.q2);
    p.grad_next_log_prob[i] = static_cast<T>(grad.log_prob);
    if (p.grad_alpha != nullptr) p.grad_alpha[i] = static_cast<T>(grad.alpha);
  }
}

}  // namespace

template <class T>
int twin_q_target(const TwinQParams<T>& params, void* stream) {
  const std::int64_t blocks = (params.batch + kThreads - 1) / kThreads;
  target_kernel<<<grid_size(blocks), kThreads, 0, as_stream(stream)>>>(params);
  return launch_status();
}

template <class T>
int twin_q_target_backward(const TwinQBackwardParams<T>& params, void* stream) {
  const std::int64_t blocks = (params.forward.batch + kThreads - 1) / kThreads;
  target_backward_kernel<<<grid_size(blocks), kThreads, 0, as_stream(stream)>>>(params);
  return launch_status();
}

#define SACFAST_INSTANTIATE(T)                              \
  template int twin_q_target(const TwinQParams<T>&, void*); \
  template int twin_q_target_backward(const TwinQBackwardParams<T>&, void*);
SACFAST_INSTANTIATE(float)
SACFAST_INSTANTIATE(double)
SACFAST_INSTANTIATE(__half)
SACFAST_INSTANTIATE(__nv_bfloat16)
#undef SACFAST_INSTANTIATE

}  // namespace sacfast::cuda
