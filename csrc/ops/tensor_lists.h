// What ops on lists of tensors share: checks of memory that tensors share, and one memory layout for all tensors of an
// index.
#pragma once

#include <iterator>

#include "binding.h"

namespace sacfast {

inline std::string element_name(const char* list, std::size_t i) {
  return std::string(list) + "[" + std::to_string(i) + "]";
}

inline bool is_expanded(const Tensor& tensor) {
  for (std::size_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.stride(d) == 0 && tensor.size(d) > 1 && tensor.numel() > 0) return true;
  }
  return false;
}

// A list with the name that errors give it.
struct NamedList {
  const char* name;
  const TensorList& tensors;
  bool is_written;
};

// The bytes that a tensor spans, to find tensors that share memory by sorting instead of comparing all pairs.
struct Span {
  const char* begin;
  const char* end;
  const Tensor* tensor;
  const NamedList* list;

  std::string name() const { return element_name(list->name, static_cast<std::size_t>(tensor - list->tensors.data())); }
};

inline Span span_of(const Tensor& tensor, const NamedList* list) {
  std::int64_t last = 0;
  for (std::size_t d = 0; d < tensor.dim(); ++d) last += (tensor.size(d) - 1) * tensor.stride(d);
  const char* begin = pointer<const char>(tensor);
  return {begin, begin + (last + 1) * tensor.element_size(), &tensor, list};
}

inline std::vector<const char*> element_addresses(const Tensor& tensor) {
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
inline bool share_an_element(const Tensor& a, const Tensor& b) {
  if (is_dense(a) && is_dense(b)) return true;
  const auto of_a = element_addresses(a), of_b = element_addresses(b);
  std::vector<const char*> common;
  std::set_intersection(of_a.begin(), of_a.end(), of_b.begin(), of_b.end(), std::back_inserter(common));
  return !common.empty();
}

// Whether two tensors that are not empty share an element.
inline bool share_memory(const Tensor& a, const Tensor& b) {
  const Span of_a = span_of(a, nullptr), of_b = span_of(b, nullptr);
  return of_a.begin < of_b.end && of_b.begin < of_a.end && share_an_element(a, b);
}

// No written tensor may share memory with any other tensor of the call: the result would depend on the order of the
// work.
inline void check_overlap(std::initializer_list<NamedList> lists) {
  std::vector<Span> spans;
  for (const NamedList& list : lists) {
    for (const Tensor& tensor : list.tensors) {
      if (tensor.numel() > 0) spans.push_back(span_of(tensor, &list));
    }
  }
  std::sort(spans.begin(), spans.end(), [](const Span& a, const Span& b) { return a.begin < b.begin; });
  const Span* furthest = nullptr;          // among the spans so far, the one that reaches furthest
  const Span* furthest_written = nullptr;  // the same among the written ones
  for (const Span& span : spans) {
    const bool is_written = span.list->is_written;
    const Span* before = is_written ? furthest : furthest_written;
    if (before != nullptr && before->end > span.begin) {
      const Span &named = is_written ? span : *before, &other = is_written ? *before : span;
      SACFAST_CHECK(!share_an_element(*before->tensor, *span.tensor), named.name(),
                    ": expected memory that no other argument shares, got an overlap with ", other.name());
    }
    if (furthest == nullptr || span.end > furthest->end) furthest = &span;
    if (is_written && (furthest_written == nullptr || span.end > furthest_written->end)) furthest_written = &span;
  }
}

// Gives kernels tensors whose elements correspond one to one in memory order: of other layouts, copies.
class SameLayout {
 public:
  // At most `tensors` are laid out: references to copies stay valid.
  explicit SameLayout(std::size_t tensors) { copies_.reserve(tensors); }

  // A written tensor, without holes.
  const Tensor& dense(const Tensor& tensor) {
    return is_dense(tensor) ? tensor : copy_of(tensor, empty(tensor.sizes(), tensor), /*is_written=*/true);
  }

  // A tensor of the shape of `first`, which is dense, with its strides.
  const Tensor& like(const Tensor& first, const Tensor& tensor, bool is_written) {
    if (tensor.strides() == first.strides()) return tensor;
    return copy_of(tensor, empty_strided(first.sizes(), first.strides(), first), is_written);
  }

  // After the kernel: the written copies' values go to their tensors.
  void write_back() const {
    for (const auto& [tensor, copied] : written_) copy(*tensor, *copied);
  }

 private:
  const Tensor& copy_of(const Tensor& tensor, Tensor&& place, bool is_written) {
    copies_.push_back(std::move(place));
    copy(copies_.back(), tensor);
    if (is_written) written_.emplace_back(&tensor, &copies_.back());
    return copies_.back();
  }

  TensorList copies_;
  std::vector<std::pair<const Tensor*, const Tensor*>> written_;
};

}  // namespace sacfast
