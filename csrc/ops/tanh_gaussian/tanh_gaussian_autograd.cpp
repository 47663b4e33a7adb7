// Torch checks, schemas, autograd, and registration on CPU and CUDA.
#include <ATen/CPUGeneratorImpl.h>
#include <pthread.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "../autograd.h"
#include "tanh_gaussian.h"

#if defined(SACFAST_WITH_CUDA)
#include <ATen/cuda/CUDAGeneratorImpl.h>
#endif

namespace sacfast {
namespace {

LogStdBounds parse_bounds(c10::string_view kind, double low, double high) {
  if (kind == "none") return {LogStdBounding::kNone, 0.0, 0.0};
  TORCH_CHECK_VALUE(kind == "clamp" || kind == "tanh", "log_std_bounding: expected 'none', 'clamp' or 'tanh', got '",
                    kind, "'");
  TORCH_CHECK_VALUE(low < high, "log_std_bounds: expected (low, high) with low < high, got (", low, ", ", high, ")");
  // low + (high - low) * (tanh + 1) / 2 is not a number at an infinite end.
  TORCH_CHECK_VALUE(kind == "clamp" || std::isfinite(high - low),
                    "log_std_bounds: expected finite bounds with log_std_bounding 'tanh', got (", low, ", ", high, ")");
  return {kind == "clamp" ? LogStdBounding::kClamp : LogStdBounding::kTanh, low, high};
}

struct Shape {
  at::DimVector full;  // [..., A]
  std::int64_t rows, cols;

  at::IntArrayRef leading() const { return at::IntArrayRef(full).slice(0, full.size() - 1); }  // [...]
};

Shape common_shape(std::initializer_list<Argument> arguments) {
  const Argument& first = *arguments.begin();
  check_dtype(first);
  for (const Argument& argument : arguments) {
    TORCH_CHECK_VALUE(argument.tensor.dim() >= 1, argument.name, ": expected shape [..., A], got a 0-d tensor");
    check_same_dtype_and_device(argument, first);
  }
  Shape shape;
  shape.full = broadcast_shape(arguments);
  shape.cols = shape.full.back();
  shape.rows = 1;
  for (const std::int64_t size : shape.leading()) shape.rows *= size;
  return shape;
}

MatrixView matrix_of(const Tensor& tensor, const Shape& shape) { return as_matrix(tensor, shape.full); }

template <class T>
Strided<T> optional_view(const std::optional<MatrixView>& view) {
  return view.has_value() ? view->as<T>() : Strided<T>{};
}

// [A] scale as a dense tensor.
OptionalTensor checked_scale(const OptionalTensor& scale, const Argument& like, std::int64_t cols) {
  if (!given(scale)) return std::nullopt;
  check_same_dtype_and_device({"action_scale", *scale}, like);
  TORCH_CHECK_VALUE(scale->dim() == 1 && scale->size(0) == cols, "action_scale: expected shape [", cols, "], got ",
                    scale->sizes());
  return scale->contiguous();
}

template <class T>
const T* scale_pointer(const OptionalTensor& scale) {
  return scale.has_value() ? pointer<const T>(*scale) : nullptr;
}

// Rows that make a thread's share worth its start.
std::int64_t row_grain(const Shape& shape) {
  return std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(1, shape.cols));
}

void check_philox_state(const Tensor& state, const Tensor& like) {
  TORCH_CHECK_TYPE(state.scalar_type() == at::kLong, "generator: expected a state of dtype int64, got ",
                   state.scalar_type());
  TORCH_CHECK_VALUE(state.dim() == 1 && state.size(0) == 2 && state.is_contiguous(),
                    "generator: expected a contiguous state [seed, offset] of shape [2], got ", state.sizes());
  TORCH_CHECK_VALUE(state.device() == like.device(), "generator: expected a state on ", like.device(),
                    " like the inputs, got ", state.device());
}

// Takes one stream of noise from the state and advances it: here on the CPU; on CUDA by advance_philox_state, after the
// kernel that reads it.
NoiseSource take_state_noise(const Tensor& state, const Tensor& like) {
  check_philox_state(state, like);
  NoiseSource source;
  std::int64_t* words = pointer<std::int64_t>(state);
  if (like.is_cpu()) {
    source.seed = static_cast<std::uint64_t>(words[0]);
    // Two threads may share a state: each gets a stream of its own. std::atomic_ref is C++20.
    source.offset = static_cast<std::uint64_t>(__atomic_fetch_add(&words[1], 1, __ATOMIC_RELAXED));
  } else {
    source.seed_pointer = words;
    source.offset_pointer = words + 1;
  }
  if (!state.is_inference()) state.unsafeGetTensorImpl()->bump_version();
  return source;
}

// Takes one stream of noise from the state, or from torch's generator.
NoiseSource take_noise(const std::optional<at::Generator>& generator, const OptionalTensor& state, const Tensor& mean) {
  if (given(state)) return take_state_noise(*state, mean);
  NoiseSource source;
  if (generator.has_value()) {
    TORCH_CHECK_VALUE(generator->device().type() == mean.device().type(), "generator: expected a generator on ",
                      mean.device(), " like mean, got one on ", generator->device());
  }
  if (mean.is_cpu()) {
    auto* torch_generator =
        at::get_generator_or_default<at::CPUGeneratorImpl>(generator, at::detail::getDefaultCPUGenerator());
    const std::lock_guard<std::mutex> lock(torch_generator->mutex_);
    source.seed = torch_generator->random64();
  }
#if defined(SACFAST_WITH_CUDA)
  else {
    auto* torch_generator = at::get_generator_or_default<at::CUDAGeneratorImpl>(
        generator, at::cuda::detail::getDefaultCUDAGenerator(mean.get_device()));
    const std::lock_guard<std::mutex> lock(torch_generator->mutex_);
    const at::PhiloxCudaState state_now = torch_generator->philox_cuda_state(4);
    if (state_now.captured_) {
      source.seed_pointer = reinterpret_cast<const std::int64_t*>(state_now.seed_.ptr);
      source.offset_pointer = reinterpret_cast<const std::int64_t*>(state_now.offset_.ptr);
      source.offset = state_now.offset_intragraph_;
    } else {
      source.seed = state_now.seed_.val;
      source.offset = state_now.offset_.val;
    }
  }
#endif
  return source;
}

// The noise that is drawn inside is written to `drawn` where that is given.
std::tuple<Tensor, Tensor> sample(const Tensor& mean, const Tensor& log_std, const OptionalTensor& noise,
                                  const std::optional<at::Generator>& generator, const OptionalTensor& philox_state,
                                  c10::string_view log_std_bounding, double low, double high,
                                  const OptionalTensor& action_scale, Tensor* drawn) {
  const Argument first{"mean", mean};
  const Argument second{"log_std", log_std};
  const Shape shape = given(noise) ? common_shape({first, second, {"noise", *noise}}) : common_shape({first, second});
  const LogStdBounds bounds = parse_bounds(log_std_bounding, low, high);
  const OptionalTensor scale = checked_scale(action_scale, first, shape.cols);
  const DeviceOf guard(mean);
  const MatrixView mean_view = matrix_of(mean, shape), log_std_view = matrix_of(log_std, shape);
  std::optional<MatrixView> noise_view;
  if (given(noise)) noise_view = matrix_of(*noise, shape);
  Tensor action = empty(shape.full, mean);
  Tensor log_prob = empty(shape.leading(), mean);
  if (drawn != nullptr) *drawn = empty(shape.full, mean);
  const NoiseSource source = given(noise) ? NoiseSource{} : take_noise(generator, philox_state, mean);
  if (shape.rows > 0 && shape.cols == 0) log_prob.zero_();
  if (action.numel() > 0) {
    with_kernel_type(mean, [&](auto zero) {
      using T = decltype(zero);
      const RsampleParams<T> params{shape.rows,
                                    shape.cols,
                                    mean_view.as<T>(),
                                    log_std_view.as<T>(),
                                    optional_view<T>(noise_view),
                                    source,
                                    bounds,
                                    scale_pointer<T>(scale),
                                    pointer<T>(action),
                                    pointer<T>(log_prob),
                                    drawn != nullptr ? pointer<T>(*drawn) : nullptr};
      SACFAST_RUN(tanh_gaussian_rsample, mean, T, params, shape.rows, row_grain(shape));
    });
  }
#if defined(SACFAST_WITH_CUDA)
  if (source.offset_pointer != nullptr && given(philox_state)) {
    check_launch("tanh_gaussian_rsample",
                 cuda::advance_philox_state(pointer<std::int64_t>(*philox_state), current_stream()));
  }
#endif
  return {std::move(action), std::move(log_prob)};
}

std::tuple<Tensor, Tensor> rsample(const Tensor& mean, const Tensor& log_std, const OptionalTensor& noise,
                                   std::optional<at::Generator> generator, const OptionalTensor& philox_state,
                                   c10::string_view log_std_bounding, double low, double high,
                                   const OptionalTensor& action_scale) {
  return sample(mean, log_std, noise, generator, philox_state, log_std_bounding, low, high, action_scale, nullptr);
}

// What autograd calls: the gradient needs the noise.
std::tuple<Tensor, Tensor, Tensor> rsample_with_noise(const Tensor& mean, const Tensor& log_std,
                                                      std::optional<at::Generator> generator,
                                                      const OptionalTensor& philox_state,
                                                      c10::string_view log_std_bounding, double low, double high,
                                                      const OptionalTensor& action_scale) {
  Tensor drawn;
  auto [action, log_prob] =
      sample(mean, log_std, std::nullopt, generator, philox_state, log_std_bounding, low, high, action_scale, &drawn);
  return {std::move(action), std::move(log_prob), std::move(drawn)};
}

std::tuple<Tensor, Tensor> rsample_backward(const OptionalTensor& grad_action, const OptionalTensor& grad_log_prob,
                                            const Tensor& mean, const Tensor& log_std, const Tensor& noise,
                                            c10::string_view log_std_bounding, double low, double high,
                                            const OptionalTensor& action_scale) {
  const Argument first{"mean", mean};
  const Shape shape = common_shape({first, {"log_std", log_std}, {"noise", noise}});
  const LogStdBounds bounds = parse_bounds(log_std_bounding, low, high);
  const OptionalTensor scale = checked_scale(action_scale, first, shape.cols);
  const DeviceOf guard(mean);
  std::optional<MatrixView> grad_action_view, grad_log_prob_view;
  if (given(grad_action)) {
    check_same_dtype_and_device({"grad_action", *grad_action}, first);
    TORCH_CHECK_VALUE(grad_action->sizes() == at::IntArrayRef(shape.full), "grad_action: expected shape ",
                      at::IntArrayRef(shape.full), ", got ", grad_action->sizes());
    grad_action_view = matrix_of(*grad_action, shape);
  }
  if (given(grad_log_prob)) {
    check_same_dtype_and_device({"grad_log_prob", *grad_log_prob}, first);
    TORCH_CHECK_VALUE(grad_log_prob->sizes() == shape.leading(), "grad_log_prob: expected shape ", shape.leading(),
                      ", got ", grad_log_prob->sizes());
    grad_log_prob_view = as_row_values(*grad_log_prob);
  }
  const MatrixView mean_view = matrix_of(mean, shape), log_std_view = matrix_of(log_std, shape);
  const MatrixView noise_view = matrix_of(noise, shape);
  Tensor grad_mean = empty(shape.full, mean);
  Tensor grad_log_std = empty(shape.full, mean);
  if (grad_mean.numel() > 0) {
    with_kernel_type(mean, [&](auto zero) {
      using T = decltype(zero);
      const RsampleBackwardParams<T> params{shape.rows,
                                            shape.cols,
                                            optional_view<T>(grad_action_view),
                                            optional_view<T>(grad_log_prob_view),
                                            mean_view.as<T>(),
                                            log_std_view.as<T>(),
                                            noise_view.as<T>(),
                                            bounds,
                                            scale_pointer<T>(scale),
                                            pointer<T>(grad_mean),
                                            pointer<T>(grad_log_std)};
      SACFAST_RUN(tanh_gaussian_rsample_backward, mean, T, params, shape.rows, row_grain(shape));
    });
  }
  return {std::move(grad_mean), std::move(grad_log_std)};
}

Tensor log_prob(const Tensor& pre_tanh, const Tensor& mean, const Tensor& log_std) {
  const Shape shape = common_shape({{"pre_tanh", pre_tanh}, {"mean", mean}, {"log_std", log_std}});
  const DeviceOf guard(mean);
  const MatrixView z_view = matrix_of(pre_tanh, shape), mean_view = matrix_of(mean, shape);
  const MatrixView log_std_view = matrix_of(log_std, shape);
  Tensor result = empty(shape.leading(), mean);
  if (shape.cols == 0) return result.zero_();
  if (result.numel() > 0) {
    with_kernel_type(mean, [&](auto zero) {
      using T = decltype(zero);
      const LogProbParams<T> params{shape.rows,        shape.cols,           z_view.as<T>(),
                                    mean_view.as<T>(), log_std_view.as<T>(), pointer<T>(result)};
      SACFAST_RUN(tanh_gaussian_log_prob, mean, T, params, shape.rows, row_grain(shape));
    });
  }
  return result;
}

std::tuple<Tensor, Tensor, Tensor> log_prob_backward(const Tensor& grad_log_prob, const Tensor& pre_tanh,
                                                     const Tensor& mean, const Tensor& log_std) {
  const Argument first{"pre_tanh", pre_tanh};
  const Shape shape = common_shape({first, {"mean", mean}, {"log_std", log_std}});
  check_same_dtype_and_device({"grad_log_prob", grad_log_prob}, first);
  TORCH_CHECK_VALUE(grad_log_prob.sizes() == shape.leading(), "grad_log_prob: expected shape ", shape.leading(),
                    ", got ", grad_log_prob.sizes());
  const DeviceOf guard(mean);
  const MatrixView grad_view = as_row_values(grad_log_prob), z_view = matrix_of(pre_tanh, shape);
  const MatrixView mean_view = matrix_of(mean, shape), log_std_view = matrix_of(log_std, shape);
  Tensor grad_z = empty(shape.full, mean), grad_mean = empty(shape.full, mean);
  Tensor grad_log_std = empty(shape.full, mean);
  if (grad_z.numel() > 0) {
    with_kernel_type(mean, [&](auto zero) {
      using T = decltype(zero);
      const LogProbBackwardParams<T> params{
          shape.rows,           shape.cols,         grad_view.as<T>(),     z_view.as<T>(),          mean_view.as<T>(),
          log_std_view.as<T>(), pointer<T>(grad_z), pointer<T>(grad_mean), pointer<T>(grad_log_std)};
      SACFAST_RUN(tanh_gaussian_log_prob_backward, mean, T, params, shape.rows, row_grain(shape));
    });
  }
  return {std::move(grad_z), std::move(grad_mean), std::move(grad_log_std)};
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
  static const auto op = find_op<decltype(rsample_backward)>("sacfast::_tanh_gaussian_rsample_backward_plain");
  return op;
}
const auto& log_prob_plain_op() {
  static const auto op = find_op<decltype(log_prob)>("sacfast::_tanh_gaussian_log_prob_plain");
  return op;
}
const auto& log_prob_backward_plain_op() {
  static const auto op = find_op<decltype(log_prob_backward)>("sacfast::_tanh_gaussian_log_prob_backward_plain");
  return op;
}

const auto& rsample_op() {
  static const auto op = find_op<decltype(rsample)>("sacfast::tanh_gaussian_rsample");
  return op;
}
const auto& rsample_with_noise_op() {
  static const auto op = find_op<decltype(rsample_with_noise)>("sacfast::_tanh_gaussian_rsample_with_noise");
  return op;
}
const auto& rsample_backward_op() {
  static const auto op = find_op<decltype(rsample_backward)>("sacfast::tanh_gaussian_rsample_backward");
  return op;
}
const auto& log_prob_op() {
  static const auto op = find_op<decltype(log_prob)>("sacfast::tanh_gaussian_log_prob");
  return op;
}
const auto& log_prob_backward_op() {
  static const auto op = find_op<decltype(log_prob_backward)>("sacfast::tanh_gaussian_log_prob_backward");
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
  if (any_requires_grad({grad_action, grad_log_prob, mean, log_std}) ||
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
  if (!any_requires_grad({pre_tanh, mean, log_std})) return forward();
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
  if (any_requires_grad({grad_log_prob, pre_tanh, mean, log_std}) ||
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

}  // namespace

TORCH_LIBRARY_FRAGMENT(sacfast, m) {
  pthread_atfork(nullptr, nullptr, [] { in_forked_child.store(true, std::memory_order_relaxed); });
  m.def(
      "tanh_gaussian_rsample(Tensor mean, Tensor log_std, Tensor? noise, Generator? generator, "
      "Tensor(a!)? philox_state, str log_std_bounding, float log_std_low, float log_std_high, Tensor? action_scale) "
      "-> (Tensor action, Tensor log_prob)",
      {at::Tag::nondeterministic_seeded, at::Tag::pt2_compliant_tag});
  m.def(
      "_tanh_gaussian_rsample_with_noise(Tensor mean, Tensor log_std, Generator? generator, "
      "Tensor(a!)? philox_state, str log_std_bounding, float log_std_low, float log_std_high, Tensor? action_scale) "
      "-> (Tensor action, Tensor log_prob, Tensor noise)",
      {at::Tag::nondeterministic_seeded, at::Tag::pt2_compliant_tag});
  m.def(
      "tanh_gaussian_rsample_backward(Tensor? grad_action, Tensor? grad_log_prob, Tensor mean, Tensor log_std, "
      "Tensor noise, str log_std_bounding, float log_std_low, float log_std_high, Tensor? action_scale) "
      "-> (Tensor grad_mean, Tensor grad_log_std)",
      {at::Tag::pt2_compliant_tag});
  m.def("tanh_gaussian_log_prob(Tensor pre_tanh, Tensor mean, Tensor log_std) -> Tensor", {at::Tag::pt2_compliant_tag});
  m.def(
      "tanh_gaussian_log_prob_backward(Tensor grad_log_prob, Tensor pre_tanh, Tensor mean, Tensor log_std) "
      "-> (Tensor grad_pre_tanh, Tensor grad_mean, Tensor grad_log_std)",
      {at::Tag::pt2_compliant_tag});
  m.def(
      "_tanh_gaussian_rsample_plain(Tensor mean, Tensor log_std, Tensor noise, str log_std_bounding, "
      "float log_std_low, float log_std_high, Tensor? action_scale) -> (Tensor action, Tensor log_prob)");
  m.def(
      "_tanh_gaussian_rsample_backward_plain(Tensor? grad_action, Tensor? grad_log_prob, Tensor mean, "
      "Tensor log_std, Tensor noise, str log_std_bounding, float log_std_low, float log_std_high, "
      "Tensor? action_scale) -> (Tensor grad_mean, Tensor grad_log_std)");
  m.def("_tanh_gaussian_log_prob_plain(Tensor pre_tanh, Tensor mean, Tensor log_std) -> Tensor");
  m.def(
      "_tanh_gaussian_log_prob_backward_plain(Tensor grad_log_prob, Tensor pre_tanh, Tensor mean, Tensor log_std) "
      "-> (Tensor grad_pre_tanh, Tensor grad_mean, Tensor grad_log_std)");
}

#define SACFAST_REGISTER(key)                                        \
  TORCH_LIBRARY_IMPL(sacfast, key, m) {                              \
    m.impl("tanh_gaussian_rsample", rsample);                        \
    m.impl("_tanh_gaussian_rsample_with_noise", rsample_with_noise); \
    m.impl("tanh_gaussian_rsample_backward", rsample_backward);      \
    m.impl("tanh_gaussian_log_prob", log_prob);                      \
    m.impl("tanh_gaussian_log_prob_backward", log_prob_backward);    \
  }
SACFAST_REGISTER(CPU)
#if defined(SACFAST_WITH_CUDA)
SACFAST_REGISTER(CUDA)
#endif
#undef SACFAST_REGISTER

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

}  // namespace sacfast
