// Autograd: for one minor version of torch.
#include "../autograd.h"

namespace sacfast {
namespace {

using Update = void(at::TensorList targets, at::TensorList onlines, double tau);

// Autograd must notice that a tensor saved for backward has changed.
void polyak_update_counted_(at::TensorList targets, at::TensorList onlines, double tau) {
  static const auto op = find_op<Update>("sacfast::polyak_update_");
  {
    const at::AutoDispatchBelowADInplaceOrView below;
    op.call(targets, onlines, tau);
  }
  for (const Tensor& target : targets) {
    if (!target.is_inference()) target.unsafeGetTensorImpl()->bump_version();
  }
}

// Like an optimiser's step: leaves may require grad, and nothing is recorded.
void polyak_update_autograd_(at::TensorList targets, at::TensorList onlines, double tau) {
  if (at::GradMode::is_enabled()) {
    for (std::size_t i = 0; i < targets.size(); ++i) {
      TORCH_CHECK_VALUE(targets[i].is_leaf() || !targets[i].requires_grad(), "target_params[", i,
                        "]: expected a leaf tensor, because no gradient flows through the average, got the result of "
                        "an operation that autograd records");
    }
  }
  const auto tangent = [](const Tensor& tensor) { return has_tangent(tensor); };
  if (std::any_of(targets.begin(), targets.end(), tangent) || std::any_of(onlines.begin(), onlines.end(), tangent)) {
    static const auto plain = find_op<Update>("sacfast::_polyak_update_plain_");
    return plain.call(targets, onlines, tau);
  }
  polyak_update_counted_(targets, onlines, tau);
}

SACFAST_KERNELS(m) { m.impl<Update>("polyak_update_"); }
TORCH_LIBRARY_IMPL(sacfast, Autograd, m) { m.impl("polyak_update_", polyak_update_autograd_); }
TORCH_LIBRARY_IMPL(sacfast, ADInplaceOrView, m) { m.impl("polyak_update_", polyak_update_counted_); }

}  // namespace
}  // namespace sacfast
