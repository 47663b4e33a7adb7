// Torch checks and registration on CPU and CUDA. The schema is in sacfast/ops/polyak.py.
#include "polyak.h"

#include "../tensor_lists.h"

namespace sacfast {
namespace {

void check_pair(const Tensor& target, const Tensor& online, const Tensor& first, std::size_t i) {
  // The names are made only when there is something to say: this runs for every parameter at every update.
  if (target.dtype() == kFloat && first.dtype() == kFloat && online.dtype() == kFloat &&
      target.device() == first.device() && online.device() == first.device() && online.sizes() == target.sizes() &&
      !is_expanded(target)) {
    return;
  }
  const std::string target_name = element_name("target_params", i), online_name = element_name("online_params", i);
  check_dtype({target_name.c_str(), target});
  check_same_dtype_and_device({target_name.c_str(), target}, {"target_params[0]", first});
  check_same_dtype_and_device({online_name.c_str(), online}, {target_name.c_str(), target});
  SACFAST_CHECK(online.sizes() == target.sizes(), online_name, ": expected shape ", target.sizes(), " like ",
                target_name, ", got ", online.sizes());
  SACFAST_CHECK(!is_expanded(target), target_name,
                ": expected memory of its own for each element, got an expanded tensor (clone it)");
}

void check_arguments(const TensorList& targets, const TensorList& onlines, double tau) {
  SACFAST_CHECK(targets.size() == onlines.size(), "online_params: expected ", targets.size(),
                " tensors like target_params, got ", onlines.size());
  SACFAST_CHECK(tau >= 0.0 && tau <= 1.0, "tau: expected a number in [0, 1], got ", tau);
  for (std::size_t i = 0; i < targets.size(); ++i) check_pair(targets[i], onlines[i], targets[0], i);
}

void polyak_update_(const TensorList& targets, const TensorList& onlines, double tau) {
  check_arguments(targets, onlines, tau);
  if (targets.empty()) return;
  check_overlap({{"target_params", targets, true}, {"online_params", onlines, false}});
  const DeviceOf guard(targets[0]);
  SameLayout layouts(2 * targets.size());
  with_kernel_type(targets[0], [&](auto zero) {
    using T = decltype(zero);
    std::vector<PolyakSpan<T>> spans;
    spans.reserve(targets.size());
    std::int64_t total = 0;
    for (std::size_t i = 0; i < targets.size(); ++i) {
      const Tensor& target = layouts.dense(targets[i]);
      const Tensor& online = layouts.like(target, onlines[i], /*is_written=*/false);
      spans.push_back({pointer<T>(target), pointer<const T>(online), total});
      total += target.numel();
    }
    const PolyakParams<T> params{spans.data(), static_cast<std::int64_t>(spans.size()), total, tau};
    if (total > 0) SACFAST_RUN(polyak_update, targets[0], T, params, total, 2 * kGrainElements);
  });
  layouts.write_back();
}

SACFAST_KERNELS(m) { m.impl("polyak_update_", SACFAST_KERNEL(polyak_update_)); }

}  // namespace
}  // namespace sacfast
