// Tensors of torch, by the C functions of LibTorch's stable ABI alone (target: torch 2.11), so that one binary serves
// every later torch; and errors that Python gets.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "direct.h"

// The number is hexadecimal: 0x0210... would be torch 2.16, and would compile.
static_assert(TORCH_FEATURE_VERSION == TORCH_VERSION_2_11_0, "the oldest torch that the library loads into");

namespace sacfast {

// ---- Errors ------------------------------------------------------------------------------------------------------

template <class... Parts>
[[noreturn]] __attribute__((noinline, cold)) void refuse(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::invalid_argument(message.str());  // arrives in Python as ValueError
}

// The ABI has no TypeError: sacfast/ops/_library.py makes one of a ValueError that says "expected dtype" or "got None".
#define SACFAST_CHECK(condition, ...)                                      \
  do {                                                                     \
    if (__builtin_expect(!(condition), 0)) ::sacfast::refuse(__VA_ARGS__); \
  } while (false)

// Throws with what torch said, which it tells since 2.13 (before, it prints it).
[[noreturn]] __attribute__((noinline, cold)) inline void torch_failed(const char* function) {
  const void* what = dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace");
  throw std::runtime_error(what != nullptr ? reinterpret_cast<const char* (*)()>(const_cast<void*>(what))()
                                           : std::string("torch failed in ") + function);
}

#define SACFAST_TORCH(function, ...)                                                                          \
  do {                                                                                                        \
    if (__builtin_expect(function(__VA_ARGS__) != AOTI_TORCH_SUCCESS, 0)) ::sacfast::torch_failed(#function); \
  } while (false)

// ---- Tensors -----------------------------------------------------------------------------------------------------

// Borrowed numbers: sizes or strides.
struct IntView {
  const std::int64_t* data = nullptr;
  std::size_t count = 0;

  IntView() = default;
  IntView(const std::int64_t* first, std::size_t size) : data(first), count(size) {}

  std::size_t size() const { return count; }
  const std::int64_t* begin() const { return data; }
  const std::int64_t* end() const { return data + count; }
  std::int64_t operator[](std::size_t i) const { return data[i]; }
};
inline bool operator==(IntView a, IntView b) { return std::equal(a.begin(), a.end(), b.begin(), b.end()); }
inline bool operator!=(IntView a, IntView b) { return !(a == b); }
inline std::ostream& operator<<(std::ostream& out, IntView values) {
  out << '[';
  for (std::size_t i = 0; i < values.size(); ++i) out << (i == 0 ? "" : ", ") << values[i];
  return out << ']';
}

// Numbers of a kernel's own, a few of them without a request for memory.
class Dims {
 public:
  explicit Dims(IntView values) : Dims(values.size()) { std::copy(values.begin(), values.end(), data()); }
  explicit Dims(std::size_t size) : size_(size) {
    if (size > few_.size()) many_.resize(size);
  }

  operator IntView() const { return {many_.empty() ? few_.data() : many_.data(), size_}; }
  std::int64_t* data() { return many_.empty() ? few_.data() : many_.data(); }
  std::int64_t& operator[](std::size_t i) { return data()[i]; }
  std::size_t size() const { return size_; }

 private:
  std::size_t size_;
  std::array<std::int64_t, 6> few_{};
  std::vector<std::int64_t> many_;
};

// Torch's own number of a dtype, printed by its name.
struct Dtype {
  std::int32_t code = -1;
};
inline bool operator==(Dtype a, Dtype b) { return a.code == b.code; }
inline bool operator!=(Dtype a, Dtype b) { return a.code != b.code; }
inline std::ostream& operator<<(std::ostream& out, Dtype dtype) {
  using torch::headeronly::ScalarType;
  return out << torch::headeronly::toString(torch::stable::detail::ToImpl<ScalarType>::call(
             static_cast<StableIValue>(dtype.code), TORCH_ABI_VERSION, /*is_internal=*/false));
}
inline const Dtype kFloat{aoti_torch_dtype_float32()};
inline const Dtype kDouble{aoti_torch_dtype_float64()};
inline const Dtype kHalf{aoti_torch_dtype_float16()};
inline const Dtype kBFloat16{aoti_torch_dtype_bfloat16()};
inline const Dtype kBool{aoti_torch_dtype_bool()};
inline const Dtype kLong{aoti_torch_dtype_int64()};

inline const std::int32_t kCpu = aoti_torch_device_type_cpu();
inline const std::int32_t kCuda = aoti_torch_device_type_cuda();

struct Device {
  std::int32_t type = -1;
  std::int32_t index = -1;  // of the CPU: always -1

  bool is_cpu() const { return type == kCpu; }
  bool is_cuda() const { return type == kCuda; }
};
inline bool operator==(Device a, Device b) { return a.type == b.type && a.index == b.index; }
inline bool operator!=(Device a, Device b) { return !(a == b); }
inline std::ostream& operator<<(std::ostream& out, Device device) {
  if (device.is_cpu()) return out << "cpu";
  return device.is_cuda() ? out << "cuda:" << device.index : out << "device type " << device.type;
}

// A tensor of torch: owned, or borrowed from a caller that keeps it. What torch says of it is asked once.
class Tensor {
 public:
  explicit Tensor(AtenTensorHandle handle) : handle_(handle, Delete{true}) {
    SACFAST_TORCH(aoti_torch_is_defined, handle, &defined_);
    if (!defined_) return;
    SACFAST_TORCH(aoti_torch_get_dtype, handle, &dtype_.code);
    SACFAST_TORCH(aoti_torch_get_device_type, handle, &device_.type);
    // The index of another device matters only beside the type.
    if (!device_.is_cpu()) SACFAST_TORCH(aoti_torch_get_device_index, handle, &device_.index);
  }

  explicit Tensor(const BorrowedTensor& tensor)
      : handle_(tensor.handle, Delete{false}),
        defined_(tensor.handle != nullptr),
        dtype_{tensor.dtype},
        device_{tensor.device_type, tensor.device_type == kCpu ? -1 : tensor.device_index},
        layout_{{tensor.sizes, tensor.dim}, {tensor.strides, tensor.dim}, true} {}

  // A new tensor of which dtype and device are known.
  Tensor(AtenTensorHandle handle, Dtype dtype, Device device)
      : handle_(handle, Delete{true}), defined_(true), dtype_(dtype), device_(device) {}

  bool defined() const { return defined_; }
  Dtype dtype() const { return dtype_; }
  Device device() const { return device_; }
  bool is_cpu() const { return device_.is_cpu(); }
  bool is_cuda() const { return device_.is_cuda(); }
  IntView sizes() const { return layout().sizes; }
  IntView strides() const { return layout().strides; }
  std::size_t dim() const { return sizes().size(); }
  std::int64_t size(std::size_t d) const { return sizes()[d]; }
  std::int64_t stride(std::size_t d) const { return strides()[d]; }
  std::int64_t numel() const {
    std::int64_t product = 1;
    for (const std::int64_t size : sizes()) product *= size;
    return product;
  }
  std::int64_t element_size() const { return static_cast<std::int64_t>(aoti_torch_dtype_element_size(dtype_.code)); }

  AtenTensorHandle get() const { return handle_.get(); }
  AtenTensorHandle release() { return handle_.release(); }

 private:
  struct Delete {
    bool owned = true;
    void operator()(AtenTensorHandle handle) const {
      if (owned) aoti_torch_delete_tensor_object(handle);
    }
  };
  struct Layout {
    IntView sizes, strides;
    bool known = false;
  };

  const Layout& layout() const {
    if (!layout_.known) {
      std::int64_t dim = 0;
      std::int64_t *sizes = nullptr, *strides = nullptr;
      SACFAST_TORCH(aoti_torch_get_dim, get(), &dim);
      SACFAST_TORCH(aoti_torch_get_sizes, get(), &sizes);
      SACFAST_TORCH(aoti_torch_get_strides, get(), &strides);
      layout_ = {{sizes, static_cast<std::size_t>(dim)}, {strides, static_cast<std::size_t>(dim)}, true};
    }
    return layout_;
  }

  std::unique_ptr<AtenTensorOpaque, Delete> handle_;
  bool defined_ = false;
  Dtype dtype_;
  Device device_;
  mutable Layout layout_;
};

using OptionalTensor = std::optional<Tensor>;
using TensorList = std::vector<Tensor>;

inline bool given(const OptionalTensor& tensor) { return tensor.has_value() && tensor->defined(); }

// The address of the first element; `const T` for what is only read.
template <class T>
T* pointer(const Tensor& tensor) {
  if constexpr (std::is_const_v<T>) {
    const void* data = nullptr;
    SACFAST_TORCH(torch_get_const_data_ptr, tensor.get(), &data);
    return static_cast<T*>(data);
  } else {
    void* data = nullptr;
    SACFAST_TORCH(torch_get_mutable_data_ptr, tensor.get(), &data);
    return static_cast<T*>(data);
  }
}

// Set by autograd in C++, to which the exceptions of torch's allocators are not lost.
inline EmptyStrided empty_strided_of_torch = nullptr;

// An uninitialised tensor.
inline Tensor empty_strided(IntView sizes, IntView strides, Dtype dtype, Device device) {
  AtenTensorHandle handle = nullptr;
  const auto dim = static_cast<std::int64_t>(sizes.size());
  if (empty_strided_of_torch != nullptr) {
    handle = empty_strided_of_torch(dim, sizes.data, strides.data, dtype.code, device.type, device.index);
  } else {
    SACFAST_TORCH(aoti_torch_empty_strided, dim, sizes.data, strides.data, dtype.code, device.type, device.index,
                  &handle);
  }
  return Tensor(handle, dtype, device);
}
inline Tensor empty_strided(IntView sizes, IntView strides, const Tensor& like) {
  return empty_strided(sizes, strides, like.dtype(), like.device());
}

// The same, dense in row-major order.
inline Tensor empty(IntView sizes, Dtype dtype, Device device) {
  Dims strides(sizes.size());
  std::int64_t stride = 1;
  for (std::size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    if (__builtin_mul_overflow(stride, std::max<std::int64_t>(sizes[d], 1), &stride)) {
      std::ostringstream message;
      message << "overflow: no tensor can have the shape " << sizes;
      throw std::runtime_error(message.str());
    }
  }
  return empty_strided(sizes, strides, dtype, device);
}
inline Tensor empty(IntView sizes, const Tensor& like) { return empty(sizes, like.dtype(), like.device()); }

constexpr std::int64_t kNone = 0;  // the size of a tensor that is not wanted

// target <- source, broadcast to the target's shape.
inline void copy(const Tensor& target, const Tensor& source) {
  SACFAST_TORCH(aoti_torch_copy_, target.get(), source.get(), /*non_blocking=*/0);
}

inline void fill_with_zeros(const Tensor& tensor) { SACFAST_TORCH(aoti_torch_zero_, tensor.get()); }

// Whether each element has a place of its own and the places are without holes.
inline bool is_dense(const Tensor& tensor) {
  bool is_contiguous = false;
  SACFAST_TORCH(aoti_torch_is_contiguous, tensor.get(), &is_contiguous);
  if (is_contiguous) return true;
  std::vector<std::pair<std::int64_t, std::int64_t>> dimensions;  // stride, size
  for (std::size_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.size(d) != 1) dimensions.emplace_back(tensor.stride(d), tensor.size(d));
  }
  std::sort(dimensions.begin(), dimensions.end());
  std::int64_t expected = 1;
  for (const auto& [stride, size] : dimensions) {
    if (stride != expected) return false;
    expected *= size;
  }
  return true;
}

}  // namespace sacfast
