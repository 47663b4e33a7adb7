// Torch checks, schema, and registration on CPU and CUDA.
#include <ATen/MemoryOverlap.h>
#include <torch/library.h>

#include <iterator>

#include "../binding.h"
#include "polyak.h"

namespace sacfast {
namespace {

std::string element_name(const char* list, std::size_t i) { return std::string(list) + "[" + std::to_string(i) + "]"; }

void check_pair(const Tensor& target, const Tensor& online, const Tensor& first, std::size_t i) {
  // The names are made only when there is something to say: this runs for every parameter at every update.
  if (target.scalar_type() == first.scalar_type() && online.scalar_type() == first.scalar_type() &&
      target.device() == first.device() && online.device() == first.device() && online.sizes() == target.sizes() &&
      target.is_non_overlapping_and_dense() && target.scalar_type() == at::kFloat) {
    return;
  }
  const std::string target_name = element_name("target_params", i), online_name = element_name("online_params", i);
  check_dtype({target_name.c_str(), target});
  check_same_dtype_and_device({target_name.c_str(), target}, {"target_params[0]", first});
  check_same_dtype_and_device({online_name.c_str(), online}, {target_name.c_str(), target});
  TORCH_CHECK_VALUE(online.sizes() == target.sizes(), online_name, ": expected shape ", target.sizes(), " like ",
                    target_name, ", got ", online.sizes());
  TORCH_CHECK_VALUE(at::has_internal_overlap(target) != at::MemOverlap::Yes, target_name,
                    ": expected memory of its own for each element, got an expanded tensor (clone it)");
}

// The bytes that a tensor spans, to find tensors that share memory by sorting instead of comparing all pairs.
struct Span {
  const char* begin;
  const char* end;
  const Tensor* tensor;
  bool written;
};

Span span_of(const Tensor& tensor, bool written) {
  std::int64_t last = 0;
  for (std::int64_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  const char* begin = static_cast<const char*>(tensor.const_data_ptr());
  return {begin, begin + (last + 1) * static_cast<std::int64_t>(tensor.element_size()), &tensor, written};
}

std::vector<const char*> element_addresses(const Tensor& tensor) {
  std::vector<const char*> addresses{static_cast<const char*>(tensor.const_data_ptr())};
  for (std::int64_t d = 0; d < tensor.dim(); ++d) {
    const std::int64_t bytes = tensor.stride(d) * static_cast<std::int64_t>(tensor.element_size());
    const std::size_t count = addresses.size();
    for (std::int64_t i = 1; i < tensor.size(d); ++i) {
      for (std::size_t a = 0; a < count; ++a) addresses.push_back(addresses[a] + i * bytes);
    }
  }
  std::sort(addresses.begin(), addresses.end());
  return addresses;
}

// For two tensors whose spans meet. Only views with holes, such as two blocks of columns of one matrix, can then
// still be apart; they are rare enough to be compared element by element.
bool share_an_element(const Tensor& a, const Tensor& b) {
  if (a.is_non_overlapping_and_dense() && b.is_non_overlapping_and_dense()) return true;
  const auto of_a = element_addresses(a), of_b = element_addresses(b);
  std::vector<const char*> common;
  std::set_intersection(of_a.begin(), of_a.end(), of_b.begin(), of_b.end(), std::back_inserter(common));
  return !common.empty();
}

// No target may share memory with any other tensor of the call: the result would depend on the order of the work.
void check_overlap(at::TensorList targets, at::TensorList onlines) {
  std::vector<Span> spans;
  spans.reserve(2 * targets.size());
  for (std::size_t i = 0; i < targets.size(); ++i) {
    if (targets[i].numel() == 0) continue;
    spans.push_back(span_of(targets[i], true));
    spans.push_back(span_of(onlines[i], false));
  }
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  const auto name_of = [&](const Span& span) {
    const at::TensorList& list = span.written ? targets : onlines;
    return element_name(span.written ? "target_params" : "online_params",
                        static_cast<std::size_t>(span.tensor - list.data()));
  };
  const Span* furthest = nullptr;          // among the spans so far, the one that reaches furthest
  const Span* furthest_written = nullptr;  // the same among the targets
  for (const Span& span : spans) {
    const Span* before = span.written ? furthest : furthest_written;
    if (before != nullptr && before->end > span.begin) {
      TORCH_CHECK_VALUE(!share_an_element(*before->tensor, *span.tensor), name_of(span.written ? span : *before),
                        ": expected memory that no other argument shares, got an overlap with ",
                        name_of(span.written ? *before : span));
    }
    if (furthest == nullptr || span.end > furthest->end) furthest = &span;
    if (span.written && (furthest_written == nullptr || span.end > furthest_written->end)) furthest_written = &span;
  }
}

// Elements correspond one to one in memory order: equal strides and no holes.
bool same_dense_layout(const Tensor& target, const Tensor& online) {
  return target.is_non_overlapping_and_dense() && target.strides() == online.strides();
}

// All that is checked without looking at addresses, which a tensor of torch.func does not have.
void check_arguments(at::TensorList targets, at::TensorList onlines, double tau) {
  TORCH_CHECK_VALUE(targets.size() == onlines.size(), "online_params: expected ", targets.size(),
                    " tensors like target_params, got ", onlines.size());
  TORCH_CHECK_VALUE(tau >= 0.0 && tau <= 1.0, "tau: expected a number in [0, 1], got ", tau);
  for (std::size_t i = 0; i < targets.size(); ++i) check_pair(targets[i], onlines[i], targets[0], i);
}

void polyak_update_(at::TensorList targets, at::TensorList onlines, double tau) {
  check_arguments(targets, onlines, tau);
  if (targets.empty()) return;
  check_overlap(targets, onlines);
  const DeviceOf guard(targets[0]);
  with_kernel_type(targets[0], [&](auto zero) {
    using T = decltype(zero);
    std::vector<PolyakSpan<T>> spans;
    spans.reserve(targets.size());
    std::int64_t total = 0;
    for (std::size_t i = 0; i < targets.size(); ++i) {
      if (!same_dense_layout(targets[i], onlines[i])) {
        at::Tensor(targets[i]).lerp_(onlines[i], tau);
        continue;
      }
      spans.push_back({pointer<T>(targets[i]), pointer<const T>(onlines[i]), total});
      total += targets[i].numel();
    }
    const PolyakParams<T> params{spans.data(), static_cast<std::int64_t>(spans.size()), total, tau};
    if (total > 0) SACFAST_RUN(polyak_update, targets[0], T, params, total, 2 * kGrainElements);
  });
  // Autograd must notice that a tensor saved for backward has changed.
  for (const Tensor& target : targets) {
    if (!target.is_inference()) target.unsafeGetTensorImpl()->bump_version();
  }
}

// Like an optimiser's step: leaves may require grad, and nothing is recorded.
void polyak_update_autograd_(at::TensorList targets, at::TensorList onlines, double tau) {
  static const auto op = find_op<decltype(polyak_update_)>("sacfast::polyak_update_");
  if (at::GradMode::is_enabled()) {
    for (std::size_t i = 0; i < targets.size(); ++i) {
      TORCH_CHECK_VALUE(targets[i].is_leaf() || !targets[i].requires_grad(), "target_params[", i,
                        "]: expected a leaf tensor, because no gradient flows through the average, got the result of "
                        "an operation that autograd records");
    }
  }
  const auto tangent = [](const Tensor& tensor) { return has_tangent(tensor); };
  if (std::any_of(targets.begin(), targets.end(), tangent) || std::any_of(onlines.begin(), onlines.end(), tangent)) {
    check_arguments(targets, onlines, tau);
    static const auto plain = find_op<decltype(polyak_update_)>("sacfast::_polyak_update_plain_");
    return plain.call(targets, onlines, tau);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  op.call(targets, onlines, tau);
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(sacfast, m) {
  m.def("polyak_update_(Tensor(a!)[] target_params, Tensor[] online_params, float tau) -> ()",
        {at::Tag::pt2_compliant_tag});
  // What tangents go to: torch's own ops, in sacfast/ops/polyak.py.
  m.def("_polyak_update_plain_(Tensor(a!)[] target_params, Tensor[] online_params, float tau) -> ()");
}
TORCH_LIBRARY_IMPL(sacfast, CPU, m) { m.impl("polyak_update_", polyak_update_); }
#if defined(SACFAST_WITH_CUDA)
TORCH_LIBRARY_IMPL(sacfast, CUDA, m) { m.impl("polyak_update_", polyak_update_); }
#endif
TORCH_LIBRARY_IMPL(sacfast, Autograd, m) { m.impl("polyak_update_", polyak_update_autograd_); }

}  // namespace sacfast
