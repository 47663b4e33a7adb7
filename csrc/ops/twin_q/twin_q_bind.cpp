// Torch checks and registration on CPU and CUDA. Schemas and autograd: sacfast/ops/twin_q.py, twin_q_autograd.cpp.
#include "twin_q.h"

#include "../binding.h"

namespace sacfast {
namespace {

// All samples' inputs have one shape: [B] or [B, 1]. Mixing the two would broadcast to [B, B] in plain torch.
void check_like_reward(const Argument& argument, const Argument& reward) {
  check_same_dtype_and_device(argument, reward);
  SACFAST_CHECK(argument.tensor.sizes() == reward.tensor.sizes(), argument.name, ": expected shape ",
                reward.tensor.sizes(), " like reward, got ", argument.tensor.sizes());
}

template <class T>
Strided<T> column(const Tensor& tensor) {
  return {pointer<const T>(tensor), tensor.dim() > 0 && tensor.numel() > 1 ? tensor.stride(0) : 0, 1};
}

template <class T>
Strided<T> optional_column(const OptionalTensor& tensor) {
  return given(tensor) ? column<T>(*tensor) : Strided<T>{};
}

// alpha or gamma: one number for all samples, or one a sample.
void check_coefficient(const char* name, const OptionalTensor& tensor, const Argument& reward) {
  if (!given(tensor)) return;
  check_same_dtype_and_device({name, *tensor}, reward);
  SACFAST_CHECK(tensor->numel() == 1 || tensor->sizes() == reward.tensor.sizes(), name,
                ": expected one element, or shape ", reward.tensor.sizes(), " like reward, got ", tensor->sizes());
}

// The inputs that the forward and the backward op share. `reward` is the forward's first argument, or in the
// backward the target's gradient, which has the same shape.
struct Inputs {
  const Tensor &terminated, &next_q1, &next_q2, &next_log_prob;
  const OptionalTensor& alpha;
  double alpha_value;
  const OptionalTensor& gamma;
  double gamma_value;

  void check(const Argument& reward) const {
    check_dtype(reward);
    const IntView sizes = reward.tensor.sizes();
    SACFAST_CHECK(sizes.size() == 1 || (sizes.size() == 2 && sizes[1] == 1), reward.name,
                  ": expected shape [B] or [B, 1], got ", sizes);
    check_like_reward({"next_q1", next_q1}, reward);
    check_like_reward({"next_q2", next_q2}, reward);
    check_like_reward({"next_log_prob", next_log_prob}, reward);
    SACFAST_CHECK(terminated.defined(), "terminated: expected a tensor, got None");
    if (terminated.dtype() == kBool) {
      SACFAST_CHECK(terminated.device() == reward.tensor.device() && terminated.sizes() == sizes,
                    "terminated: expected shape ", sizes, " on ", reward.tensor.device(), " like ", reward.name,
                    ", got ", terminated.sizes(), " on ", terminated.device());
    } else {
      SACFAST_CHECK(terminated.dtype() == reward.tensor.dtype(), "terminated: expected dtype bool or ",
                    reward.tensor.dtype(), " like ", reward.name, ", got ", terminated.dtype());
      check_like_reward({"terminated", terminated}, reward);
    }
    check_coefficient("alpha", alpha, reward);
    check_coefficient("gamma", gamma, reward);
  }

  template <class T>
  TwinQParams<T> params(std::int64_t batch) const {
    const bool is_mask = terminated.dtype() == kBool;
    TwinQParams<T> p{};
    p.batch = batch;
    if (is_mask) {
      p.terminated_mask = column<bool>(terminated);
    } else {
      p.terminated = column<T>(terminated);
    }
    p.next_q1 = column<T>(next_q1);
    p.next_q2 = column<T>(next_q2);
    p.next_log_prob = column<T>(next_log_prob);
    p.alpha = optional_column<T>(alpha);
    p.gamma = optional_column<T>(gamma);
    p.alpha_value = alpha_value;
    p.gamma_value = gamma_value;
    return p;
  }
};

Tensor target(const Tensor& reward, const Tensor& terminated, const Tensor& next_q1, const Tensor& next_q2,
              const Tensor& next_log_prob, const OptionalTensor& alpha, double alpha_value, const OptionalTensor& gamma,
              double gamma_value) {
  const Inputs inputs{terminated, next_q1, next_q2, next_log_prob, alpha, alpha_value, gamma, gamma_value};
  inputs.check({"reward", reward});
  const DeviceOf guard(reward);
  Tensor result = empty(reward.sizes(), reward);
  if (result.numel() > 0) {
    with_kernel_type(reward, [&](auto zero) {
      using T = decltype(zero);
      TwinQParams<T> params = inputs.params<T>(reward.numel());
      params.reward = column<T>(reward);
      params.target = pointer<T>(result);
      SACFAST_RUN(twin_q_target, reward, T, params, params.batch, kGrainElements);
    });
  }
  return result;
}

constexpr std::int64_t kNone = 0;

// grad_alpha has each sample's share, or no elements when alpha needs no gradient.
std::tuple<Tensor, Tensor, Tensor, Tensor> target_backward(const Tensor& grad_target, const Tensor& terminated,
                                                           const Tensor& next_q1, const Tensor& next_q2,
                                                           const Tensor& next_log_prob, const OptionalTensor& alpha,
                                                           double alpha_value, const OptionalTensor& gamma,
                                                           double gamma_value, bool needs_grad_alpha) {
  const Inputs inputs{terminated, next_q1, next_q2, next_log_prob, alpha, alpha_value, gamma, gamma_value};
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
  m.impl("twin_q_target_backward", SACFAST_KERNEL(target_backward));
}

}  // namespace
}  // namespace sacfast
