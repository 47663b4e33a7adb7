// Torch checks and registration on CPU and CUDA. The schema is in sacfast/ops/polyak.py.
#include "polyak.h"

#include <iterator>

#include "../binding.h"

namespace sacfast {
namespace {

std::string element_name(const char* list, std::size_t i) { return std::string(list) + "[" + std::to_string(i) + "]"; }

bool is_expanded(const Tensor& tensor) {
  for (std::size_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.stride(d) == 0 && tensor.size(d) > 1 && tensor.numel() > 0) return true;
  }
  return false;
}

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

// The bytes that a tensor spans, to find tensors that share memory by sorting instead of comparing all pairs.
struct Span {
  const char* begin;
  const char* end;
  const Tensor* tensor;
  bool written;
};

Span span_of(const Tensor& tensor, bool written) {
  std::int64_t last = 0;
  for (std::size_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  const char* begin = pointer<const char>(tensor);
  return {begin, begin + (last + 1) * tensor.element_size(), &tensor, written};
}

std::vector<const char*> element_addresses(const Tensor& tensor) {
  std::vector<const char*> addresses{pointer<const char>(tensor)};
  for (std::size_t d = 0; d < tensor.dim(); ++d) {
    const std::int64_t bytes = tensor.stride(d) * tensor.element_size();
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
  if (is_dense(a) && is_dense(b)) return true;
  const auto of_a = element_addresses(a), of_b = element_addresses(b);
  std::vector<const char*> common;
  std::set_intersection(of_a.begin(), of_a.end(), of_b.begin(), of_b.end(), std::back_inserter(common));
  return !common.empty();
}

// No target may share memory with any other tensor of the call: the result would depend on the order of the work.
void check_overlap(const TensorList& targets, const TensorList& onlines) {
  std::vector<Span> spans;
  spans.reserve(2 * targets.size());
  for (std::size_t i = 0; i < targets.size(); ++i) {
    if (targets[i].numel() == 0) continue;
    spans.push_back(span_of(targets[i], true));
    spans.push_back(span_of(onlines[i], false));
  }
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  const auto name_of = [&](const Span& span) {
    const TensorList& list = span.written ? targets : onlines;
    return element_name(span.written ? "target_params" : "online_params",
                        static_cast<std::size_t>(span.tensor - list.data()));
  };
  const Span* furthest = nullptr;          // among the spans so far, the one that reaches furthest
  const Span* furthest_written = nullptr;  // the same among the targets
  for (const Span& span : spans) {
    const Span* before = span.written ? furthest : furthest_written;
    if (before != nullptr && before->end > span.begin) {
      SACFAST_CHECK(!share_an_element(*before->tensor, *span.tensor), name_of(span.written ? span : *before),
                    ": expected memory that no other argument shares, got an overlap with ",
                    name_of(span.written ? *before : span));
    }
    if (furthest == nullptr || span.end > furthest->end) furthest = &span;
    if (span.written && (furthest_written == nullptr || span.end > furthest_written->end)) furthest_written = &span;
  }
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
  check_overlap(targets, onlines);
  const DeviceOf guard(targets[0]);
  // The kernel wants elements that correspond one to one in memory order: of other layouts it gets copies.
  TensorList copies;
  copies.reserve(2 * targets.size());
  std::vector<std::pair<const Tensor*, const Tensor*>> written_back;
  with_kernel_type(targets[0], [&](auto zero) {
    using T = decltype(zero);
    std::vector<PolyakSpan<T>> spans;
    spans.reserve(targets.size());
    std::int64_t total = 0;
    for (std::size_t i = 0; i < targets.size(); ++i) {
      const Tensor *target = &targets[i], *online = &onlines[i];
      if (!is_dense(*target)) {
        copies.push_back(empty(target->sizes(), *target));
        copy(copies.back(), *target);
        written_back.emplace_back(target, &copies.back());
        target = &copies.back();
      }
      if (online->strides() != target->strides()) {
        copies.push_back(empty_strided(target->sizes(), target->strides(), *target));
        copy(copies.back(), *online);
        online = &copies.back();
      }
      spans.push_back({pointer<T>(*target), pointer<const T>(*online), total});
      total += target->numel();
    }
    const PolyakParams<T> params{spans.data(), static_cast<std::int64_t>(spans.size()), total, tau};
    if (total > 0) SACFAST_RUN(polyak_update, targets[0], T, params, total, 2 * kGrainElements);
  });
  for (const auto& [target, moved] : written_back) copy(*target, *moved);
}

SACFAST_KERNELS(m) { m.impl("polyak_update_", SACFAST_KERNEL(polyak_update_)); }

}  // namespace
}  // namespace sacfast
