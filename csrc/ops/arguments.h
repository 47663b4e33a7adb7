// Arguments of an op: checks whose messages name the argument, and views of tensors as the kernels' Strided matrices.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>

#include "../core/strided.h"
#include "tensor.h"

namespace sacfast {

// ---- Checks ------------------------------------------------------------------------------------------------------

// An argument with the name that errors give it.
struct Argument {
  const char* name;
  const Tensor& tensor;
};

// CPU: float32 and float64. CUDA: float16 and bfloat16 too.
inline void check_dtype(const Argument& argument) {
  SACFAST_CHECK(argument.tensor.defined(), argument.name, ": expected a tensor, got None");
  const Dtype dtype = argument.tensor.dtype();
  if (dtype == kFloat || dtype == kDouble) return;
  const bool is_half = dtype == kHalf || dtype == kBFloat16;
  SACFAST_CHECK(is_half && argument.tensor.is_cuda(), argument.name,
                argument.tensor.is_cuda() ? ": expected dtype float32, float64, float16 or bfloat16, got "
                                          : ": expected dtype float32 or float64 on the CPU, got ",
                dtype);
}

inline void check_same_dtype_and_device(const Argument& argument, const Argument& like) {
  SACFAST_CHECK(argument.tensor.defined(), argument.name, ": expected a tensor, got None");
  SACFAST_CHECK(argument.tensor.dtype() == like.tensor.dtype(), argument.name, ": expected dtype ", like.tensor.dtype(),
                " like ", like.name, ", got ", argument.tensor.dtype());
  SACFAST_CHECK(argument.tensor.device() == like.tensor.device(), argument.name, ": expected device ",
                like.tensor.device(), " like ", like.name, ", got ", argument.tensor.device());
}

// The common shape of the arguments by PyTorch's broadcasting rules.
inline Dims broadcast_shape(std::initializer_list<Argument> arguments) {
  const Argument& first = *arguments.begin();
  const auto longest = [](const Argument& a, const Argument& b) { return a.tensor.dim() < b.tensor.dim(); };
  Dims shape(std::max_element(arguments.begin(), arguments.end(), longest)->tensor.dim());
  std::fill_n(shape.data(), shape.size(), 1);
  for (const Argument& argument : arguments) {
    const IntView sizes = argument.tensor.sizes();
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      std::int64_t& size = shape[shape.size() - sizes.size() + i];
      SACFAST_CHECK(sizes[i] == size || sizes[i] == 1 || size == 1, argument.name,
                    ": expected a shape that broadcasts with ", first.name, " ", first.tensor.sizes(), ", got ", sizes);
      if (size == 1) size = sizes[i];
    }
  }
  return shape;
}

// ---- Views -------------------------------------------------------------------------------------------------------

// A tensor whose last dimension gives the columns and whose leading dimensions are merged into rows. It reads the
// tensor that it was made of, or a copy where the strides cannot be merged.
struct MatrixView {
  const void* data = nullptr;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 0;
  OptionalTensor copied;

  template <class T>
  Strided<T> as() const {
    return {static_cast<const T*>(data), row_stride, col_stride};
  }
};

// Whether the first `dims` dimensions step through memory as one, and by which stride.
inline bool merge_dimensions(IntView sizes, IntView strides, std::size_t dims, std::int64_t& stride) {
  stride = 0;
  std::int64_t expected = -1;  // the stride that the next outer dimension must have; -1: any
  for (std::size_t d = dims; d-- > 0;) {
    if (sizes[d] == 1) continue;
    if (expected == -1) {
      stride = strides[d];
    } else if (strides[d] != expected) {
      return false;
    }
    expected = strides[d] * sizes[d];  // zero where it is broadcast: merges with broadcast ones only
  }
  return true;
}

// `tensor` as a matrix [rows, cols] of the shape `full` = [..., cols]. Made without intermediate views of torch: one
// costs as much as the kernel does on a small batch.
inline MatrixView as_matrix(const Tensor& tensor, IntView full) {
  const std::size_t last = full.size() - 1, added = full.size() - tensor.dim();
  Dims strides(full.size());  // of the tensor as it broadcasts: zero where it does
  for (std::size_t d = added; d < full.size(); ++d) {
    if (tensor.size(d - added) == full[d]) strides[d] = tensor.stride(d - added);
  }
  MatrixView view;
  if (merge_dimensions(full, strides, last, view.row_stride)) {
    view.data = pointer<const void>(tensor);
    view.col_stride = strides[last];
    return view;
  }
  view.copied = empty(full, tensor);
  copy(*view.copied, tensor);
  view.data = pointer<const void>(*view.copied);
  view.row_stride = full[last];
  view.col_stride = 1;
  return view;
}

// A tensor [..., cols] as rows of adjacent columns.
inline MatrixView as_rows(const Tensor& tensor) {
  const std::size_t last = tensor.dim() - 1;
  MatrixView view;
  if ((tensor.stride(last) == 1 || tensor.size(last) == 1) &&
      merge_dimensions(tensor.sizes(), tensor.strides(), last, view.row_stride)) {
    view.data = pointer<const void>(tensor);
    view.col_stride = 1;
    return view;
  }
  view.copied = empty(tensor.sizes(), tensor);
  copy(*view.copied, tensor);
  view.data = pointer<const void>(*view.copied);
  view.row_stride = tensor.size(last);
  view.col_stride = 1;
  return view;
}

// One value for a whole row: a tensor [...] as a matrix [rows, cols] with equal columns.
inline MatrixView as_row_values(const Tensor& tensor) {
  MatrixView view;
  if (merge_dimensions(tensor.sizes(), tensor.strides(), tensor.dim(), view.row_stride)) {
    view.data = pointer<const void>(tensor);
    return view;
  }
  view.copied = empty(tensor.sizes(), tensor);
  copy(*view.copied, tensor);
  view.data = pointer<const void>(*view.copied);
  view.row_stride = 1;
  return view;
}

}  // namespace sacfast
