// Torch checks and registration on CPU and CUDA. Schemas and autograd: sacfast/ops/twin_q.py, twin_q_autograd.cpp.
#include "twin_q.h"

#include "../sample_inputs.h"
#include "../tensor_lists.h"

namespace sacfast {
namespace {

// The inputs that the forward and the backward op share. `reward` is the forward's first argument, or in the
// backward the target's gradient, which has the same shape.
struct Inputs {
  const Tensor &next_q1, &next_q2;
  SampleInputs sample;

  void check(const Argument& reward) const {
    check_reward(reward);
    check_like({"next_q1", next_q1}, reward);
    check_like({"next_q2", next_q2}, reward);
    sample.check(reward);
  }

  template <class T>
  TwinQParams<T> params(std::int64_t batch) const {
    return {batch, sample.view<T>(), column<T>(next_q1), column<T>(next_q2), nullptr};
  }
};

void check_apart(const Tensor& out, const Tensor& input) {
  SACFAST_CHECK(out.numel() == 0 || !share_memory(out, input),
                "out: expected memory that no input shares, got an overlap");
}

void run(const Tensor& reward, const Inputs& inputs, const Tensor& result) {
  if (result.numel() == 0) return;
  with_kernel_type(reward, [&](auto zero) {
    using T = decltype(zero);
    TwinQParams<T> params = inputs.params<T>(reward.numel());
    params.sample.reward = column<T>(reward);
    params.target = pointer<T>(result);
    SACFAST_RUN(twin_q_target, reward, T, params, params.batch, kGrainElements);
  });
}

Tensor target(const Tensor& reward, const Tensor& terminated, const Tensor& next_q1, const Tensor& next_q2,
              const Tensor& next_log_prob, const OptionalTensor& alpha, double alpha_value, const OptionalTensor& gamma,
              double gamma_value) {
  const Inputs inputs{next_q1, next_q2, {terminated, next_log_prob, alpha, alpha_value, gamma, gamma_value}};
  inputs.check({"reward", reward});
  const DeviceOf guard(reward);
  Tensor result = empty(reward.sizes(), reward);
  run(reward, inputs, result);
  return result;
}

// Its values go to memory that the caller keeps: at 10,000,000 elements the pages of a new tensor cost more than the
// arithmetic.
void target_out(const Tensor& reward, const Tensor& terminated, const Tensor& next_q1, const Tensor& next_q2,
                const Tensor& next_log_prob, const OptionalTensor& alpha, double alpha_value,
                const OptionalTensor& gamma, double gamma_value, const Tensor& out) {
  const Inputs inputs{next_q1, next_q2, {terminated, next_log_prob, alpha, alpha_value, gamma, gamma_value}};
  inputs.check({"reward", reward});
  check_like({"out", out}, {"reward", reward});
  SACFAST_CHECK(out.numel() <= 1 || out.stride(0) == 1, "out: expected a contiguous tensor, got strides ",
                out.strides());
  for (const Tensor* input : {&reward, &terminated, &next_q1, &next_q2, &next_log_prob}) check_apart(out, *input);
  if (given(alpha)) check_apart(out, *alpha);
  if (given(gamma)) check_apart(out, *gamma);
  const DeviceOf guard(reward);
  run(reward, inputs, out);
}

// grad_alpha has each sample's share, or no elements when alpha needs no gradient.
std::tuple<Tensor, Tensor, Tensor, Tensor> target_backward(const Tensor& grad_target, const Tensor& terminated,
                                                           const Tensor& next_q1, const Tensor& next_q2,
                                                           const Tensor& next_log_prob, const OptionalTensor& alpha,
                                                           double alpha_value, const OptionalTensor& gamma,
                                                           double gamma_value, bool needs_grad_alpha) {
  const Inputs inputs{next_q1, next_q2, {terminated, next_log_prob, alpha, alpha_value, gamma, gamma_value}};
  inputs.check({"grad_target", grad_target});
  const DeviceOf guard(grad_target);
  const auto like_grad = [&] { return empty(grad_target.sizes(), grad_target); };
  Tensor grad_q1 = like_grad(), grad_q2 = like_grad(), grad_log_prob = like_grad();
  Tensor grad_alpha = needs_grad_alpha ? like_grad() : empty(IntView(&kNone, 1), grad_target);
  if (grad_target.numel() > 0) {
    with_kernel_type(grad_target, [&](auto zero) {
      using T = decltype(zero);
      const TwinQBackwardParams<T> params{inputs.params<T>(grad_target.numel()),
                                          column<T>(grad_target),
                                          pointer<T>(grad_q1),
                                          pointer<T>(grad_q2),
                                          pointer<T>(grad_log_prob),
                                          needs_grad_alpha ? pointer<T>(grad_alpha) : nullptr};
      SACFAST_RUN(twin_q_target_backward, grad_target, T, params, params.forward.batch, kGrainElements);
    });
  }
  return {std::move(grad_q1), std::move(grad_q2), std::move(grad_log_prob), std::move(grad_alpha)};
}

SACFAST_KERNELS(m) {
  m.impl("twin_q_target", SACFAST_KERNEL(target));
  m.impl("twin_q_target_out", SACFAST_KERNEL(target_out));
  m.impl("twin_q_target_backward", SACFAST_KERNEL(target_backward));
}

}  // namespace
}  // namespace sacfast
