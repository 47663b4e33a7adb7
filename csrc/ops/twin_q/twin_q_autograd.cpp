// Torch checks, schemas, autograd, and registration on CPU and CUDA.
#include <pthread.h>
#include <torch/library.h>

#include "../autograd.h"
#include "twin_q.h"

namespace sacfast {
namespace {

// All samples' inputs have one shape: [B] or [B, 1]. Mixing the two would broadcast to [B, B] in plain torch.
void check_like_reward(const Argument& argument, const Argument& reward) {
  check_same_dtype_and_device(argument, reward);
  TORCH_CHECK_VALUE(argument.tensor.sizes() == reward.tensor.sizes(), argument.name, ": expected shape ",
                    reward.tensor.sizes(), " like reward, got ", argument.tensor.sizes());
}

template <class T>
Strided<T> column(const Tensor& tensor) {
  return {pointer<T>(tensor), tensor.dim() > 0 && tensor.numel() > 1 ? tensor.stride(0) : 0, 1};
}

template <class T>
Strided<T> optional_column(const OptionalTensor& tensor) {
  return given(tensor) ? column<T>(*tensor) : Strided<T>{};
}

// alpha or gamma: one number for all samples, or one a sample.
void check_coefficient(const char* name, const OptionalTensor& tensor, const Argument& reward) {
  if (!given(tensor)) return;
  check_same_dtype_and_device({name, *tensor}, reward);
  TORCH_CHECK_VALUE(tensor->numel() == 1 || tensor->sizes() == reward.tensor.sizes(), name,
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
    const at::IntArrayRef sizes = reward.tensor.sizes();
    TORCH_CHECK_VALUE(sizes.size() == 1 || (sizes.size() == 2 && sizes[1] == 1), reward.name,
                      ": expected shape [B] or [B, 1], got ", sizes);
    check_like_reward({"next_q1", next_q1}, reward);
    check_like_reward({"next_q2", next_q2}, reward);
    check_like_reward({"next_log_prob", next_log_prob}, reward);
    if (terminated.scalar_type() == at::kBool) {
      TORCH_CHECK_VALUE(terminated.device() == reward.tensor.device() && terminated.sizes() == sizes,
                        "terminated: expected shape ", sizes, " on ", reward.tensor.device(), " like ", reward.name,
                        ", got ", terminated.sizes(), " on ", terminated.device());
    } else {
      TORCH_CHECK_TYPE(terminated.scalar_type() == reward.tensor.scalar_type(), "terminated: expected dtype bool or ",
                       reward.tensor.scalar_type(), " like ", reward.name, ", got ", terminated.scalar_type());
      check_like_reward({"terminated", terminated}, reward);
    }
    check_coefficient("alpha", alpha, reward);
    check_coefficient("gamma", gamma, reward);
  }

  template <class T>
  TwinQParams<T> params(std::int64_t batch) const {
    const bool is_mask = terminated.scalar_type() == at::kBool;
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
  Tensor grad_alpha = needs_grad_alpha ? like_grad() : empty({0}, grad_target);
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

const auto& target_op() {
  static const auto op = find_op<decltype(target)>("sacfast::twin_q_target");
  return op;
}
const auto& target_backward_op() {
  static const auto op = find_op<decltype(target_backward)>("sacfast::twin_q_target_backward");
  return op;
}

// What tangents, and gradients that are to be differentiated again, go to: torch's own ops, in sacfast/ops/twin_q.py.
const auto& target_plain_op() {
  static const auto op = find_op<decltype(target)>("sacfast::_twin_q_target_plain");
  return op;
}
const auto& target_backward_plain_op() {
  static const auto op = find_op<decltype(target_backward)>("sacfast::_twin_q_target_backward_plain");
  return op;
}

struct TargetBackward : BackwardNode {
  SavedVariable terminated, next_q1, next_q2, next_log_prob, alpha, gamma;
  double alpha_value = 0, gamma_value = 0;

  // Edges: next_q1, next_q2, next_log_prob, alpha.
  variable_list apply(variable_list&& grads) override {
    variable_list result(4);
    if (!grads[0].defined()) return result;
    const auto self = getptr();
    const Tensor alpha_tensor = alpha.unpack(self);
    const bool needs_grad_alpha = task_should_compute_output(3);
    auto [grad_q1, grad_q2, grad_log_prob, grad_alpha] = target_backward_op().call(
        grads[0], terminated.unpack(self), next_q1.unpack(self), next_q2.unpack(self), next_log_prob.unpack(self),
        as_optional(alpha_tensor), alpha_value, as_optional(gamma.unpack(self)), gamma_value, needs_grad_alpha);
    result[0] = grad_q1;
    result[1] = grad_q2;
    result[2] = grad_log_prob;
    if (needs_grad_alpha) {
      result[3] = alpha_tensor.sym_sizes() == grad_alpha.sym_sizes()
                      ? grad_alpha
                      : grad_alpha.sum().view_symint(alpha_tensor.sym_sizes());
    }
    return result;
  }

  void release_variables() override {
    for (SavedVariable* saved : {&terminated, &next_q1, &next_q2, &next_log_prob, &alpha, &gamma}) saved->reset_data();
  }

  std::string name() const override { return "TwinQTargetBackward"; }
};

Tensor target_autograd(const Tensor& reward, const Tensor& terminated, const Tensor& next_q1, const Tensor& next_q2,
                       const Tensor& next_log_prob, const OptionalTensor& alpha, double alpha_value,
                       const OptionalTensor& gamma, double gamma_value) {
  const auto forward = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return target_op().call(reward, terminated, next_q1, next_q2, next_log_prob, alpha, alpha_value, gamma,
                            gamma_value);
  };
  if (any_has_tangent(reward, terminated, next_q1, next_q2, next_log_prob, alpha, gamma)) {
    forward();  // for its checks
    return target_plain_op().call(reward, terminated, next_q1, next_q2, next_log_prob, alpha, alpha_value, gamma,
                                  gamma_value);
  }
  if (!at::GradMode::is_enabled()) return forward();
  check_no_grad("reward", reward);
  check_no_grad("terminated", terminated);
  check_no_grad("gamma", gamma);
  if (!any_requires_grad({next_q1, next_q2, next_log_prob, alpha})) return forward();
  auto node = backward_node<TargetBackward>({next_q1, next_q2, next_log_prob, given(alpha) ? *alpha : Tensor()});
  Tensor result = forward();
  node->terminated = SavedVariable(terminated, /*is_output=*/false);
  node->next_q1 = SavedVariable(next_q1, false);
  node->next_q2 = SavedVariable(next_q2, false);
  node->next_log_prob = SavedVariable(next_log_prob, false);
  if (given(alpha)) node->alpha = SavedVariable(*alpha, false);
  if (given(gamma)) node->gamma = SavedVariable(*gamma, false);
  node->alpha_value = alpha_value;
  node->gamma_value = gamma_value;
  torch::autograd::set_history(result, node);
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> target_backward_autograd(const Tensor& grad_target, const Tensor& terminated,
                                                                    const Tensor& next_q1, const Tensor& next_q2,
                                                                    const Tensor& next_log_prob,
                                                                    const OptionalTensor& alpha, double alpha_value,
                                                                    const OptionalTensor& gamma, double gamma_value,
                                                                    bool needs_grad_alpha) {
  if (any_requires_grad({grad_target, next_log_prob, alpha}) ||
      any_has_tangent(grad_target, terminated, next_q1, next_q2, next_log_prob, alpha, gamma)) {
    return target_backward_plain_op().call(grad_target, terminated, next_q1, next_q2, next_log_prob, alpha, alpha_value,
                                           gamma, gamma_value, needs_grad_alpha);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return target_backward_op().call(grad_target, terminated, next_q1, next_q2, next_log_prob, alpha, alpha_value, gamma,
                                   gamma_value, needs_grad_alpha);
}

template <c10::DeviceType kDevice>
Tensor target_autocast(const Tensor& reward, const Tensor& terminated, const Tensor& next_q1, const Tensor& next_q2,
                       const Tensor& next_log_prob, const OptionalTensor& alpha, double alpha_value,
                       const OptionalTensor& gamma, double gamma_value) {
  const NoAutocast no_autocast(kDevice);
  const auto cast = [](const auto& tensor) { return at::autocast::cached_cast(at::kFloat, tensor, kDevice); };
  return target_op().call(cast(reward), cast(terminated), cast(next_q1), cast(next_q2), cast(next_log_prob),
                          cast(alpha), alpha_value, cast(gamma), gamma_value);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(sacfast, m) {
  pthread_atfork(nullptr, nullptr, [] { in_forked_child.store(true, std::memory_order_relaxed); });
  m.def(
      "twin_q_target(Tensor reward, Tensor terminated, Tensor next_q1, Tensor next_q2, Tensor next_log_prob, "
      "Tensor? alpha, float alpha_value, Tensor? gamma, float gamma_value) -> Tensor",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "twin_q_target_backward(Tensor grad_target, Tensor terminated, Tensor next_q1, Tensor next_q2, "
      "Tensor next_log_prob, Tensor? alpha, float alpha_value, Tensor? gamma, float gamma_value, "
      "bool needs_grad_alpha) -> (Tensor grad_next_q1, Tensor grad_next_q2, Tensor grad_next_log_prob, "
      "Tensor grad_alpha)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_twin_q_target_plain(Tensor reward, Tensor terminated, Tensor next_q1, Tensor next_q2, Tensor next_log_prob, "
      "Tensor? alpha, float alpha_value, Tensor? gamma, float gamma_value) -> Tensor");
  m.def(
      "_twin_q_target_backward_plain(Tensor grad_target, Tensor terminated, Tensor next_q1, Tensor next_q2, "
      "Tensor next_log_prob, Tensor? alpha, float alpha_value, Tensor? gamma, float gamma_value, "
      "bool needs_grad_alpha) -> (Tensor grad_next_q1, Tensor grad_next_q2, Tensor grad_next_log_prob, "
      "Tensor grad_alpha)");
}

#define SACFAST_REGISTER(key)                          \
  TORCH_LIBRARY_IMPL(sacfast, key, m) {                \
    m.impl("twin_q_target", target);                   \
    m.impl("twin_q_target_backward", target_backward); \
  }
SACFAST_REGISTER(CPU)
#if defined(SACFAST_WITH_CUDA)
SACFAST_REGISTER(CUDA)
#endif
#undef SACFAST_REGISTER

TORCH_LIBRARY_IMPL(sacfast, Autograd, m) {
  m.impl("twin_q_target", target_autograd);
  m.impl("twin_q_target_backward", target_backward_autograd);
}
TORCH_LIBRARY_IMPL(sacfast, AutocastCPU, m) { m.impl("twin_q_target", target_autocast<c10::DeviceType::CPU>); }
TORCH_LIBRARY_IMPL(sacfast, Autocast, m) { m.impl("twin_q_target", target_autocast<c10::DeviceType::CUDA>); }

}  // namespace sacfast
