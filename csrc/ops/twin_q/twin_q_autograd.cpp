// Autograd and autocast: for one minor version of torch.
#include "../autograd.h"

namespace sacfast {
namespace {

using Target = Tensor(const Tensor& reward, const Tensor& terminated, const Tensor& next_q1, const Tensor& next_q2,
                      const Tensor& next_log_prob, const OptionalTensor& alpha, double alpha_value,
                      const OptionalTensor& gamma, double gamma_value);
using TargetBackwardSignature = std::tuple<Tensor, Tensor, Tensor, Tensor>(
    const Tensor& grad_target, const Tensor& terminated, const Tensor& next_q1, const Tensor& next_q2,
    const Tensor& next_log_prob, const OptionalTensor& alpha, double alpha_value, const OptionalTensor& gamma,
    double gamma_value, bool needs_grad_alpha);

const auto& target_op() {
  static const auto op = find_op<Target>("sacfast::twin_q_target");
  return op;
}
const auto& target_backward_op() {
  static const auto op = find_op<TargetBackwardSignature>("sacfast::twin_q_target_backward");
  return op;
}

// What tangents, and gradients that are to be differentiated again, go to: torch's own ops, in sacfast/ops/twin_q.py.
const auto& target_plain_op() {
  static const auto op = find_op<Target>("sacfast::_twin_q_target_plain");
  return op;
}
const auto& target_backward_plain_op() {
  static const auto op = find_op<TargetBackwardSignature>("sacfast::_twin_q_target_backward_plain");
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
  if (!any_requires_grad(next_q1, next_q2, next_log_prob, alpha)) return forward();
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
  if (any_requires_grad(grad_target, next_log_prob, alpha) ||
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

SACFAST_KERNELS(m) {
  m.impl<Target>("twin_q_target");
  m.impl<TargetBackwardSignature>("twin_q_target_backward");
}
TORCH_LIBRARY_IMPL(sacfast, Autograd, m) {
  m.impl("twin_q_target", target_autograd);
  m.impl("twin_q_target_backward", target_backward_autograd);
}
TORCH_LIBRARY_IMPL(sacfast, AutocastCPU, m) { m.impl("twin_q_target", target_autocast<c10::DeviceType::CPU>); }
TORCH_LIBRARY_IMPL(sacfast, Autocast, m) { m.impl("twin_q_target", target_autocast<c10::DeviceType::CUDA>); }

}  // namespace
}  // namespace sacfast
