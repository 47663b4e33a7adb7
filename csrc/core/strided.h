// A matrix [rows, cols] as a tensor gives it: any strides, zero where it was broadcast.
#pragma once

#include "qualifiers.h"

namespace sacfast {

// Shared by the bindings and every instruction set, so it is plain data outside the per-set namespace.
template <class T>
struct Strided {
  const T* data = nullptr;  // null: absent
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 0;
};

namespace SACFAST_ISA {

template <class T>
SACFAST_HD const T& element(const Strided<T>& view, std::int64_t row, std::int64_t col) {
  return view.data[row * view.row_stride + col * view.col_stride];
}

// Rows [row, row + rows) and columns [col, col + cols) as one dense array: in place if they lie so, else copied
// into `scratch`. `Scalar` may differ from T (a bool mask read as float).
template <class Scalar, class T>
inline const Scalar* dense_tile(const Strided<T>& view, std::int64_t row, std::int64_t rows, std::int64_t col,
                                std::int64_t cols, Scalar* scratch) {
  const T* from = &element(view, row, col);
  if constexpr (sizeof(T) == sizeof(Scalar)) {
    if (view.col_stride == 1 && (rows == 1 || view.row_stride == cols)) return from;
  }
  // One column: the inner loop runs along it.
  if (cols == 1 && rows > 1) return dense_tile(Strided<T>{from, 0, view.row_stride}, 0, 1, 0, rows, scratch);
  Scalar* to = scratch;
  for (std::int64_t r = 0; r < rows; ++r, from += view.row_stride) {
    for (std::int64_t c = 0; c < cols; ++c) *to++ = static_cast<Scalar>(from[c * view.col_stride]);
  }
  return scratch;
}

}  // namespace SACFAST_ISA
}  // namespace sacfast
