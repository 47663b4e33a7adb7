// Torch's generators, autograd and autocast: for one minor version of torch.
#include <limits>

#include "../autograd.h"

namespace sacfast {
namespace {

using Rsample = std::tuple<Tensor, Tensor>(const Tensor& mean, const Tensor& log_std, const OptionalTensor& noise,
                                           std::optional<at::Generator> generator, const OptionalTensor& philox_state,
                                           c10::string_view log_std_bounding, double low, double high,
                                           const OptionalTensor& action_scale);
using RsampleWithNoise = std::tuple<Tensor, Tensor, Tensor>(const Tensor& mean, const Tensor& log_std,
                                                            std::optional<at::Generator> generator,
                                                            const OptionalTensor& philox_state,
                                                            c10::string_view log_std_bounding, double low, double high,
                                                            const OptionalTensor& action_scale);
using RsampleBackwardSignature = std::tuple<Tensor, Tensor>(const OptionalTensor& grad_action,
                                                            const OptionalTensor& grad_log_prob, const Tensor& mean,
                                                            const Tensor& log_std, const Tensor& noise,
                                                            c10::string_view log_std_bounding, double low, double high,
                                                            const OptionalTensor& action_scale);
using LogProb = Tensor(const Tensor& pre_tanh, const Tensor& mean, const Tensor& log_std);
using LogProbBackwardSignature = std::tuple<Tensor, Tensor, Tensor>(const Tensor& grad_log_prob, const Tensor& pre_tanh,
                                                                    const Tensor& mean, const Tensor& log_std);

// ---- Torch's generators: a stream of noise is drawn here, for the ops that know no generator ---------------------

using Sample = std::tuple<Tensor, Tensor>(const Tensor& mean, const Tensor& log_std, const OptionalTensor& noise,
                                          std::int64_t seed, std::int64_t offset, const OptionalTensor& philox_state,
                                          c10::string_view log_std_bounding, double low, double high,
                                          const OptionalTensor& action_scale);
using SampleWithNoise = std::tuple<Tensor, Tensor, Tensor>(const Tensor& mean, const Tensor& log_std, std::int64_t seed,
                                                           std::int64_t offset, const OptionalTensor& philox_state,
                                                           c10::string_view log_std_bounding, double low, double high,
                                                           const OptionalTensor& action_scale);

struct Stream {
  std::int64_t seed = 0, offset = 0;
  OptionalTensor state;  // in place of the numbers
};

// Whether the work of the current stream is recorded in a CUDA graph.
bool is_capturing([[maybe_unused]] c10::Device device) {
#if TORCH_VERSION_MINOR >= 12
  const c10::impl::VirtualGuardImpl guard(device.type());
  return guard.isStreamCapturing(guard.getStream(device));
#else
  return true;  // torch 2.11 does not tell; what is right in a graph is right elsewhere, one launch slower
#endif
}

Stream draw_stream(const std::optional<at::Generator>& given_generator, const Tensor& mean) {
  TORCH_CHECK_VALUE(!given_generator.has_value() || given_generator->device().type() == mean.device().type(),
                    "generator: expected a generator on ", mean.device(), " like mean, got one on ",
                    given_generator->device());
  at::Generator generator =
      given_generator.has_value() ? *given_generator : at::globalContext().defaultGenerator(mean.device());
  Stream stream;
  if (mean.is_cpu()) {
    const std::lock_guard<std::mutex> lock(generator.mutex());
    stream.seed = static_cast<std::int64_t>(at::check_generator<at::CPUGeneratorImpl>(generator)->random64());
  } else if (is_capturing(mean.device())) {
    // A replay of the graph draws anew: into memory that the kernel reads when it runs.
    stream.state = at::empty({2}, mean.options().dtype(at::kLong))
                       .random_(std::numeric_limits<std::int64_t>::lowest(), std::nullopt, generator);
  } else {
    const std::lock_guard<std::mutex> lock(generator.mutex());
    stream.seed = static_cast<std::int64_t>(generator.current_seed());
    const std::uint64_t offset = generator.get_offset();
    stream.offset = static_cast<std::int64_t>(offset);
    generator.set_offset(offset + 4);  // torch's own kernels take multiples of four
  }
  return stream;
}

// Where a call takes its noise from.
Stream noise_stream(const OptionalTensor& noise, const std::optional<at::Generator>& generator,
                    const OptionalTensor& philox_state, const Tensor& mean) {
  Stream stream;
  if (given(philox_state)) {
    stream.state = philox_state;
  } else if (!given(noise) && mean.defined()) {
    stream = draw_stream(generator, mean);
  }
  return stream;
}

void count_version(const OptionalTensor& state) {
  if (given(state) && !state->is_inference()) state->unsafeGetTensorImpl()->bump_version();
}

auto rsample(Kernel<Sample> sample) {
  return [sample](const Tensor& mean, const Tensor& log_std, const OptionalTensor& noise,
                  std::optional<at::Generator> generator, const OptionalTensor& philox_state,
                  c10::string_view log_std_bounding, double low, double high, const OptionalTensor& action_scale) {
    const Stream stream = noise_stream(noise, generator, philox_state, mean);
    auto out = sample(mean, log_std, noise, stream.seed, stream.offset, stream.state, log_std_bounding, low, high,
                      action_scale);
    if (!given(noise)) count_version(philox_state);
    return out;
  };
}

auto rsample_with_noise(Kernel<SampleWithNoise> sample) {
  return [sample](const Tensor& mean, const Tensor& log_std, std::optional<at::Generator> generator,
                  const OptionalTensor& philox_state, c10::string_view log_std_bounding, double low, double high,
                  const OptionalTensor& action_scale) {
    const Stream stream = noise_stream(std::nullopt, generator, philox_state, mean);
    auto out =
        sample(mean, log_std, stream.seed, stream.offset, stream.state, log_std_bounding, low, high, action_scale);
    count_version(philox_state);
    return out;
  };
}

SACFAST_KERNELS(m) {
  m.torch.impl("tanh_gaussian_rsample", rsample(m.get<Sample>("_tanh_gaussian_sample")));
  m.torch.impl("_tanh_gaussian_rsample_with_noise",
               rsample_with_noise(m.get<SampleWithNoise>("_tanh_gaussian_sample_with_noise")));
  m.impl<RsampleBackwardSignature>("tanh_gaussian_rsample_backward");
  m.impl<LogProb>("tanh_gaussian_log_prob");
  m.impl<LogProbBackwardSignature>("tanh_gaussian_log_prob_backward");
}

// ---- Autograd -------------------------------------------------------------------------------------------------
//
// The nodes below serve first derivatives in reverse mode. Tangents, and gradients that are to be differentiated
// again, go to the plain ops, which sacfast/ops/tanh_gaussian.py makes of torch's own.

using RsamplePlain = std::tuple<Tensor, Tensor>(const Tensor& mean, const Tensor& log_std, const Tensor& noise,
                                                c10::string_view log_std_bounding, double low, double high,
                                                const OptionalTensor& action_scale);
const auto& rsample_plain_op() {
  static const auto op = find_op<RsamplePlain>("sacfast::_tanh_gaussian_rsample_plain");
  return op;
}
const auto& rsample_backward_plain_op() {
  static const auto op = find_op<RsampleBackwardSignature>("sacfast::_tanh_gaussian_rsample_backward_plain");
  return op;
}
const auto& log_prob_plain_op() {
  static const auto op = find_op<LogProb>("sacfast::_tanh_gaussian_log_prob_plain");
  return op;
}
const auto& log_prob_backward_plain_op() {
  static const auto op = find_op<LogProbBackwardSignature>("sacfast::_tanh_gaussian_log_prob_backward_plain");
  return op;
}

const auto& rsample_op() {
  static const auto op = find_op<Rsample>("sacfast::tanh_gaussian_rsample");
  return op;
}
const auto& rsample_with_noise_op() {
  static const auto op = find_op<RsampleWithNoise>("sacfast::_tanh_gaussian_rsample_with_noise");
  return op;
}
const auto& rsample_backward_op() {
  static const auto op = find_op<RsampleBackwardSignature>("sacfast::tanh_gaussian_rsample_backward");
  return op;
}
const auto& log_prob_op() {
  static const auto op = find_op<LogProb>("sacfast::tanh_gaussian_log_prob");
  return op;
}
const auto& log_prob_backward_op() {
  static const auto op = find_op<LogProbBackwardSignature>("sacfast::tanh_gaussian_log_prob_backward");
  return op;
}

struct RsampleBackward : BackwardNode {
  SavedVariable mean, log_std, noise, action_scale;
  std::string bounding;
  double low = 0, high = 0;

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined() && !grads[1].defined()) return variable_list(2);
    const auto self = getptr();
    const Tensor mean_value = mean.unpack(self), log_std_value = log_std.unpack(self);
    auto [grad_mean, grad_log_std] =
        rsample_backward_op().call(as_optional(grads[0]), as_optional(grads[1]), mean_value, log_std_value,
                                   noise.unpack(self), bounding, low, high, as_optional(action_scale.unpack(self)));
    return {sum_to(grad_mean, mean_value), sum_to(grad_log_std, log_std_value)};
  }

  void release_variables() override {
    for (SavedVariable* saved : {&mean, &log_std, &noise, &action_scale}) saved->reset_data();
  }

  std::string name() const override { return "TanhGaussianRsampleBackward"; }
};

std::tuple<Tensor, Tensor> rsample_autograd(const Tensor& mean, const Tensor& log_std, const OptionalTensor& noise,
                                            std::optional<at::Generator> generator, const OptionalTensor& philox_state,
                                            c10::string_view log_std_bounding, double low, double high,
                                            const OptionalTensor& action_scale) {
  const auto forward = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return rsample_op().call(mean, log_std, noise, generator, philox_state, log_std_bounding, low, high, action_scale);
  };
  const auto forward_with_noise = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return rsample_with_noise_op().call(mean, log_std, generator, philox_state, log_std_bounding, low, high,
                                        action_scale);
  };
  if (any_has_tangent(mean, log_std, noise, action_scale)) {
    if (given(noise)) forward();  // for its checks
    const Tensor used = given(noise) ? *noise : std::get<2>(forward_with_noise());
    return rsample_plain_op().call(mean, log_std, used, log_std_bounding, low, high, action_scale);
  }
  if (!at::GradMode::is_enabled()) return forward();
  check_no_grad("noise", noise);
  check_no_grad("action_scale", action_scale);
  if (!mean.requires_grad() && !log_std.requires_grad()) return forward();
  auto node = backward_node<RsampleBackward>({mean, log_std});
  std::tuple<Tensor, Tensor> out;
  if (given(noise)) {
    out = forward();
    node->noise = SavedVariable(*noise, /*is_output=*/false);
  } else {
    auto [action, log_prob, drawn] = forward_with_noise();
    out = {std::move(action), std::move(log_prob)};
    node->noise = SavedVariable(drawn, false);
  }
  node->mean = SavedVariable(mean, false);
  node->log_std = SavedVariable(log_std, false);
  if (given(action_scale)) node->action_scale = SavedVariable(*action_scale, false);
  node->bounding = std::string(log_std_bounding);
  node->low = low;
  node->high = high;
  torch::autograd::set_history({std::get<0>(out), std::get<1>(out)}, node);
  return out;
}

std::tuple<Tensor, Tensor> rsample_backward_autograd(const OptionalTensor& grad_action,
                                                     const OptionalTensor& grad_log_prob, const Tensor& mean,
                                                     const Tensor& log_std, const Tensor& noise,
                                                     c10::string_view log_std_bounding, double low, double high,
                                                     const OptionalTensor& action_scale) {
  if (any_requires_grad(grad_action, grad_log_prob, mean, log_std) ||
      any_has_tangent(grad_action, grad_log_prob, mean, log_std, noise, action_scale)) {
    return rsample_backward_plain_op().call(grad_action, grad_log_prob, mean, log_std, noise, log_std_bounding, low,
                                            high, action_scale);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return rsample_backward_op().call(grad_action, grad_log_prob, mean, log_std, noise, log_std_bounding, low, high,
                                    action_scale);
}

struct LogProbBackward : BackwardNode {
  SavedVariable pre_tanh, mean, log_std;

  variable_list apply(variable_list&& grads) override {
    if (!grads[0].defined()) return variable_list(3);
    const auto self = getptr();
    const Tensor z = pre_tanh.unpack(self), mean_value = mean.unpack(self), log_std_value = log_std.unpack(self);
    auto [grad_z, grad_mean, grad_log_std] = log_prob_backward_op().call(grads[0], z, mean_value, log_std_value);
    return {sum_to(grad_z, z), sum_to(grad_mean, mean_value), sum_to(grad_log_std, log_std_value)};
  }

  void release_variables() override {
    for (SavedVariable* saved : {&pre_tanh, &mean, &log_std}) saved->reset_data();
  }

  std::string name() const override { return "TanhGaussianLogProbBackward"; }
};

Tensor log_prob_autograd(const Tensor& pre_tanh, const Tensor& mean, const Tensor& log_std) {
  const auto forward = [&] {
    const at::AutoDispatchBelowADInplaceOrView below;
    return log_prob_op().call(pre_tanh, mean, log_std);
  };
  if (any_has_tangent(pre_tanh, mean, log_std)) {
    forward();  // for its checks
    return log_prob_plain_op().call(pre_tanh, mean, log_std);
  }
  if (!any_requires_grad(pre_tanh, mean, log_std)) return forward();
  auto node = backward_node<LogProbBackward>({pre_tanh, mean, log_std});
  Tensor result = forward();
  node->pre_tanh = SavedVariable(pre_tanh, /*is_output=*/false);
  node->mean = SavedVariable(mean, false);
  node->log_std = SavedVariable(log_std, false);
  torch::autograd::set_history(result, node);
  return result;
}

std::tuple<Tensor, Tensor, Tensor> log_prob_backward_autograd(const Tensor& grad_log_prob, const Tensor& pre_tanh,
                                                              const Tensor& mean, const Tensor& log_std) {
  if (any_requires_grad(grad_log_prob, pre_tanh, mean, log_std) ||
      any_has_tangent(grad_log_prob, pre_tanh, mean, log_std)) {
    return log_prob_backward_plain_op().call(grad_log_prob, pre_tanh, mean, log_std);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return log_prob_backward_op().call(grad_log_prob, pre_tanh, mean, log_std);
}

// ---- Autocast: the density needs float32, as torch's own log-probabilities do ----------------------------------

template <c10::DeviceType kDevice>
std::tuple<Tensor, Tensor> rsample_autocast(const Tensor& mean, const Tensor& log_std, const OptionalTensor& noise,
                                            std::optional<at::Generator> generator, const OptionalTensor& philox_state,
                                            c10::string_view log_std_bounding, double low, double high,
                                            const OptionalTensor& action_scale) {
  const NoAutocast no_autocast(kDevice);
  const auto cast = [](const auto& tensor) { return at::autocast::cached_cast(at::kFloat, tensor, kDevice); };
  return rsample_op().call(cast(mean), cast(log_std), cast(noise), generator, philox_state, log_std_bounding, low, high,
                           cast(action_scale));
}

template <c10::DeviceType kDevice>
Tensor log_prob_autocast(const Tensor& pre_tanh, const Tensor& mean, const Tensor& log_std) {
  const NoAutocast no_autocast(kDevice);
  const auto cast = [](const Tensor& tensor) { return at::autocast::cached_cast(at::kFloat, tensor, kDevice); };
  return log_prob_op().call(cast(pre_tanh), cast(mean), cast(log_std));
}

TORCH_LIBRARY_IMPL(sacfast, Autograd, m) {
  m.impl("tanh_gaussian_rsample", rsample_autograd);
  m.impl("tanh_gaussian_rsample_backward", rsample_backward_autograd);
  m.impl("tanh_gaussian_log_prob", log_prob_autograd);
  m.impl("tanh_gaussian_log_prob_backward", log_prob_backward_autograd);
}

TORCH_LIBRARY_IMPL(sacfast, AutocastCPU, m) {
  m.impl("tanh_gaussian_rsample", rsample_autocast<c10::DeviceType::CPU>);
  m.impl("tanh_gaussian_log_prob", log_prob_autocast<c10::DeviceType::CPU>);
}

TORCH_LIBRARY_IMPL(sacfast, Autocast, m) {
  m.impl("tanh_gaussian_rsample", rsample_autocast<c10::DeviceType::CUDA>);
  m.impl("tanh_gaussian_log_prob", log_prob_autocast<c10::DeviceType::CUDA>);
}

}  // namespace
}  // namespace sacfast
