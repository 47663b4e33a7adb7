// Torch checks and registration on CPU and CUDA. Schemas, torch's generators and autograd:
// sacfast/ops/tanh_gaussian.py, tanh_gaussian_autograd.cpp.
#include "tanh_gaussian.h"

#include <cmath>

#include "../binding.h"

namespace sacfast {
namespace {

LogStdBounds parse_bounds(const std::string& kind, double low, double high) {
  if (kind == "none") return {LogStdBounding::kNone, 0.0, 0.0};
  SACFAST_CHECK(kind == "clamp" || kind == "tanh", "log_std_bounding: expected 'none', 'clamp' or 'tanh', got '", kind,
                "'");
  SACFAST_CHECK(low < high, "log_std_bounds: expected (low, high) with low < high, got (", low, ", ", high, ")");
  // low + (high - low) * (tanh + 1) / 2 is not a number at an infinite end.
  SACFAST_CHECK(kind == "clamp" || std::isfinite(high - low),
                "log_std_bounds: expected finite bounds with log_std_bounding 'tanh', got (", low, ", ", high, ")");
  return {kind == "clamp" ? LogStdBounding::kClamp : LogStdBounding::kTanh, low, high};
}

struct Shape {
  Dims full;  // [..., A]
  std::int64_t rows = 1, cols = 0;

  explicit Shape(Dims sizes) : full(std::move(sizes)) {
    for (const std::int64_t size : leading()) rows *= size;
    cols = full[full.size() - 1];
  }

  IntView leading() const { return {IntView(full).data, full.size() - 1}; }  // [...]
};

Shape common_shape(std::initializer_list<Argument> arguments) {
  const Argument& first = *arguments.begin();
  check_dtype(first);
  for (const Argument& argument : arguments) {
    check_same_dtype_and_device(argument, first);
    SACFAST_CHECK(argument.tensor.dim() >= 1, argument.name, ": expected shape [..., A], got a 0-d tensor");
  }
  return Shape(broadcast_shape(arguments));
}

MatrixView matrix_of(const Tensor& tensor, const Shape& shape) { return as_matrix(tensor, shape.full); }

template <class T>
Strided<T> optional_view(const std::optional<MatrixView>& view) {
  return view.has_value() ? view->as<T>() : Strided<T>{};
}

// [A] scale, dense: in place, or copied.
struct DenseScale {
  const void* data;  // null: absent
  OptionalTensor copied;

  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
};

DenseScale checked_scale(const OptionalTensor& scale, const Argument& like, std::int64_t cols) {
  if (!given(scale)) return {nullptr, std::nullopt};
  check_same_dtype_and_device({"action_scale", *scale}, like);
  SACFAST_CHECK(scale->dim() == 1 && scale->size(0) == cols, "action_scale: expected shape [", cols, "], got ",
                scale->sizes());
  if (cols <= 1 || scale->stride(0) == 1) return DenseScale{pointer<const void>(*scale), std::nullopt};
  DenseScale dense{nullptr, empty(scale->sizes(), *scale)};
  copy(*dense.copied, *scale);
  dense.data = pointer<const void>(*dense.copied);
  return dense;
}

// Rows that make a thread's share worth its start.
std::int64_t row_grain(const Shape& shape) {
  return std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(1, shape.cols));
}

void check_philox_state(const Tensor& state, const Tensor& like) {
  SACFAST_CHECK(state.dtype() == kLong, "generator: expected dtype int64 of a state, got ", state.dtype());
  SACFAST_CHECK(state.dim() == 1 && state.size(0) == 2 && state.stride(0) == 1,
                "generator: expected a contiguous state [seed, offset] of shape [2], got ", state.sizes());
  SACFAST_CHECK(state.device() == like.device(), "generator: expected a state on ", like.device(),
                " like the inputs, got ", state.device());
}

// Takes one stream of noise from the state and advances it. Two threads may share a state: each gets a stream of its
// own. `taken`: memory that the source needs until the kernel that reads it is queued (CUDA).
NoiseSource take_noise(const Tensor& state, const Tensor& like, OptionalTensor& taken) {
  check_philox_state(state, like);
  NoiseSource source;
  std::int64_t* words = pointer<std::int64_t>(state);
#if defined(SACFAST_CUDA_LIBRARY)
  taken = empty(state.sizes(), state);
  check_launch("tanh_gaussian_rsample", cuda::take_noise(words, pointer<std::int64_t>(*taken), current_stream(like)));
  source.seed_pointer = pointer<std::int64_t>(*taken);
  source.offset_pointer = source.seed_pointer + 1;
#else
  static_cast<void>(taken);
  source.seed = static_cast<std::uint64_t>(words[0]);
  // std::atomic_ref is C++20.
  source.offset = static_cast<std::uint64_t>(__atomic_fetch_add(&words[1], 1, __ATOMIC_RELAXED));
#endif
  return source;
}

// Noise that is not given comes from the state, or else from the stream (seed, offset). It is written to `drawn` where
// that is given.
std::tuple<Tensor, Tensor> sample_into(const Tensor& mean, const Tensor& log_std, const OptionalTensor& noise,
                                       std::int64_t seed, std::int64_t offset, const OptionalTensor& philox_state,
                                       const std::string& log_std_bounding, double low, double high,
                                       const OptionalTensor& action_scale, OptionalTensor* drawn) {
  const Argument first{"mean", mean};
  const Argument second{"log_std", log_std};
  const Shape shape = given(noise) ? common_shape({first, second, {"noise", *noise}}) : common_shape({first, second});
  const LogStdBounds bounds = parse_bounds(log_std_bounding, low, high);
  const DeviceOf guard(mean);
  const DenseScale scale = checked_scale(action_scale, first, shape.cols);
  const MatrixView mean_view = matrix_of(mean, shape), log_std_view = matrix_of(log_std, shape);
  std::optional<MatrixView> noise_view;
  if (given(noise)) noise_view = matrix_of(*noise, shape);
  Tensor action = empty(shape.full, mean);
  Tensor log_prob = empty(shape.leading(), mean);
  if (drawn != nullptr) *drawn = empty(shape.full, mean);
  NoiseSource source{static_cast<std::uint64_t>(seed), static_cast<std::uint64_t>(offset)};
  OptionalTensor taken;
  if (!given(noise) && given(philox_state)) source = take_noise(*philox_state, mean, taken);
  if (shape.rows > 0 && shape.cols == 0) fill_with_zeros(log_prob);
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
                                    scale.as<T>(),
                                    pointer<T>(action),
                                    pointer<T>(log_prob),
                                    drawn != nullptr ? pointer<T>(**drawn) : nullptr};
      SACFAST_RUN(tanh_gaussian_rsample, mean, T, params, shape.rows, row_grain(shape));
    });
  }
  return {std::move(action), std::move(log_prob)};
}

std::tuple<Tensor, Tensor> sample(const Tensor& mean, const Tensor& log_std, const OptionalTensor& noise,
                                  std::int64_t seed, std::int64_t offset, const OptionalTensor& philox_state,
                                  const std::string& log_std_bounding, double low, double high,
                                  const OptionalTensor& action_scale) {
  return sample_into(mean, log_std, noise, seed, offset, philox_state, log_std_bounding, low, high, action_scale,
                     nullptr);
}

// What autograd calls: the gradient needs the noise.
std::tuple<Tensor, Tensor, Tensor> sample_with_noise(const Tensor& mean, const Tensor& log_std, std::int64_t seed,
                                                     std::int64_t offset, const OptionalTensor& philox_state,
                                                     const std::string& log_std_bounding, double low, double high,
                                                     const OptionalTensor& action_scale) {
  OptionalTensor drawn;
  auto [action, log_prob] = sample_into(mean, log_std, std::nullopt, seed, offset, philox_state, log_std_bounding, low,
                                        high, action_scale, &drawn);
  return {std::move(action), std::move(log_prob), std::move(*drawn)};
}

std::tuple<Tensor, Tensor> rsample_backward(const OptionalTensor& grad_action, const OptionalTensor& grad_log_prob,
                                            const Tensor& mean, const Tensor& log_std, const Tensor& noise,
                                            const std::string& log_std_bounding, double low, double high,
                                            const OptionalTensor& action_scale) {
  const Argument first{"mean", mean};
  const Shape shape = common_shape({first, {"log_std", log_std}, {"noise", noise}});
  const LogStdBounds bounds = parse_bounds(log_std_bounding, low, high);
  const DeviceOf guard(mean);
  const DenseScale scale = checked_scale(action_scale, first, shape.cols);
  std::optional<MatrixView> grad_action_view, grad_log_prob_view;
  if (given(grad_action)) {
    check_same_dtype_and_device({"grad_action", *grad_action}, first);
    SACFAST_CHECK(grad_action->sizes() == IntView(shape.full), "grad_action: expected shape ", IntView(shape.full),
                  ", got ", grad_action->sizes());
    grad_action_view = matrix_of(*grad_action, shape);
  }
  if (given(grad_log_prob)) {
    check_same_dtype_and_device({"grad_log_prob", *grad_log_prob}, first);
    SACFAST_CHECK(grad_log_prob->sizes() == shape.leading(), "grad_log_prob: expected shape ", shape.leading(),
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
                                            scale.as<T>(),
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
  if (shape.cols == 0) fill_with_zeros(result);
  if (result.numel() > 0 && shape.cols > 0) {
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
  SACFAST_CHECK(grad_log_prob.sizes() == shape.leading(), "grad_log_prob: expected shape ", shape.leading(), ", got ",
                grad_log_prob.sizes());
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

SACFAST_KERNELS(m) {
  m.impl("_tanh_gaussian_sample", SACFAST_KERNEL(sample));
  m.impl("_tanh_gaussian_sample_with_noise", SACFAST_KERNEL(sample_with_noise));
  m.impl("tanh_gaussian_rsample_backward", SACFAST_KERNEL(rsample_backward));
  m.impl("tanh_gaussian_log_prob", SACFAST_KERNEL(log_prob));
  m.impl("tanh_gaussian_log_prob_backward", SACFAST_KERNEL(log_prob_backward));
}

}  // namespace
}  // namespace sacfast
