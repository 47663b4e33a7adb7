// What the bindings of all ops share: tensors and arguments as torch hands them over, checks whose messages name the
// argument, views of tensors as the kernels' Strided matrices, and the choice of T from a tensor's dtype.
//
// Torch is reached by the C functions of LibTorch's stable ABI alone (target: torch 2.11), so that one binary serves
// every later torch. A binding is compiled twice: for the CPU, and with SACFAST_CUDA_LIBRARY for CUDA.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <optional>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/strided.h"
#include "direct.h"

#if defined(SACFAST_CUDA_LIBRARY)
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#endif

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

// ---- Kernels -----------------------------------------------------------------------------------------------------

// Calls body(T{}) with the kernel type of the tensor's dtype.
template <class Body>
void with_kernel_type(const Tensor& tensor, Body body) {
  if (tensor.dtype() == kFloat) return body(float{});
  if (tensor.dtype() == kDouble) return body(double{});
#if defined(SACFAST_CUDA_LIBRARY)
  if (tensor.dtype() == kHalf) return body(__half{});
  if (tensor.dtype() == kBFloat16) return body(__nv_bfloat16{});
#endif
  refuse("expected dtype float32 or float64, got ", tensor.dtype());
}

// Elements of work below which a second thread costs more than it saves.
constexpr std::int64_t kGrainElements = 16384;

// The same in rows, where a row has that many elements of work.
inline std::int64_t rows_per_thread(std::int64_t elements_of_row) {
  return std::max<std::int64_t>(1, kGrainElements / std::max<std::int64_t>(1, elements_of_row));
}

#if defined(SACFAST_CUDA_LIBRARY)
// Makes the tensor's device current while it lives.
class DeviceOf {
 public:
  explicit DeviceOf(const Tensor& tensor) {
    SACFAST_CHECK(tensor.is_cuda(), "expected all tensors on CUDA, got one on ", tensor.device());
    CUDAGuardHandle guard = nullptr;
    SACFAST_TORCH(aoti_torch_create_cuda_guard, tensor.device().index, &guard);
    guard_.reset(guard);
  }

 private:
  struct Delete {
    void operator()(CUDAGuardHandle guard) const { aoti_torch_delete_cuda_guard(guard); }
  };
  std::unique_ptr<CUDAGuardOpaque, Delete> guard_;
};

inline void* current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  SACFAST_TORCH(aoti_torch_get_current_cuda_stream, tensor.device().index, &stream);
  return stream;
}

inline void check_launch(const char* op, int status) {
  if (status == 0) return;
  throw std::runtime_error(std::string(op) +
                           ": CUDA launch failed: " + cudaGetErrorString(static_cast<cudaError_t>(status)));
}

// Runs the kernel `function` for `extent` units of work.
#define SACFAST_RUN(function, tensor, T, params, extent, grain) \
  (static_cast<void>(extent), static_cast<void>(grain),         \
   check_launch(#function, cuda::function<T>(params, current_stream(tensor))))

#else
class DeviceOf {
 public:
  explicit DeviceOf(const Tensor&) {}
};

// Whether this process was forked from one that had loaded the library. OpenMP's threads do not survive a fork, and a
// child that waits for them hangs: there the kernels run in the calling thread alone.
inline std::atomic<bool> in_forked_child{false};

// Shares [0, extent) among torch's threads, at least `grain` units each.
template <class Body>
void share_among_threads(std::int64_t extent, std::int64_t grain, const Body& body) {
  if (extent <= grain || in_forked_child.load(std::memory_order_relaxed)) return body(0, extent);
  const auto call = [](std::int64_t begin, std::int64_t end, void* context) {
    (*static_cast<const Body*>(context))(begin, end);
  };
  SACFAST_TORCH(torch_parallel_for, 0, extent, grain, call, const_cast<Body*>(&body));
}

#define SACFAST_RUN(function, tensor, T, params, extent, grain) \
  share_among_threads(extent, grain,                            \
                      [&](std::int64_t begin, std::int64_t end) { SACFAST_CALL_CPU(function, params, begin, end); })
#endif

// ---- Registration ------------------------------------------------------------------------------------------------

// A kernel's parameter of type T: `read` from the stack of the dispatcher, which hands over what it owns, or `borrow`ed
// from autograd in C++ (direct.h). (TORCH_BOX leaks every string argument, torch 2.13, and allocates twice for a
// tensor.)
template <class T>
struct Parameter {
  static_assert(std::is_arithmetic_v<T>);
  static T read(std::uint64_t value) {
    T result;
    std::memcpy(&result, &value, sizeof(T));
    return result;
  }
  static T borrow(std::uint64_t value) { return read(value); }
};

template <class T>
T* address_in(std::uint64_t value) {
  return reinterpret_cast<T*>(static_cast<std::uintptr_t>(value));
}

template <>
struct Parameter<Tensor> {
  static Tensor read(std::uint64_t value) { return Tensor(address_in<AtenTensorOpaque>(value)); }
  static Tensor borrow(std::uint64_t value) { return Tensor(*address_in<const BorrowedTensor>(value)); }
};

template <>
struct Parameter<OptionalTensor> {
  static OptionalTensor read(std::uint64_t value) {
    const std::unique_ptr<StableIValue> inner(address_in<StableIValue>(value));
    if (inner == nullptr) return std::nullopt;
    return Parameter<Tensor>::read(*inner);
  }
  static OptionalTensor borrow(std::uint64_t value) {
    const auto* tensor = address_in<const BorrowedTensor>(value);
    return tensor->handle == nullptr ? OptionalTensor() : OptionalTensor(*tensor);
  }
};

template <>
struct Parameter<TensorList> {
  static TensorList read(std::uint64_t value) {
    const auto list = address_in<StableListOpaque>(value);
    const std::unique_ptr<StableListOpaque, AOTITorchError (*)(StableListHandle)> owner(list, torch_delete_list);
    std::size_t size = 0;
    SACFAST_TORCH(torch_list_size, list, &size);
    TensorList tensors;
    tensors.reserve(size);
    for (std::size_t i = 0; i < size; ++i) {
      StableIValue item = 0;
      SACFAST_TORCH(torch_list_get_item, list, i, &item);
      tensors.push_back(Parameter<Tensor>::read(item));
    }
    return tensors;
  }
  static TensorList borrow(std::uint64_t value) {
    const auto* list = address_in<const BorrowedTensors>(value);
    TensorList tensors;
    tensors.reserve(list->size);
    for (std::size_t i = 0; i < list->size; ++i) tensors.emplace_back(list->data[i]);
    return tensors;
  }
};

template <>
struct Parameter<std::string> {
  static std::string read(std::uint64_t value) {
    const auto handle = address_in<StringOpaque>(value);
    const std::unique_ptr<StringOpaque, AOTITorchError (*)(StringHandle)> owner(handle, torch_delete_string);
    std::size_t length = 0;
    const char* text = nullptr;
    SACFAST_TORCH(torch_string_length, handle, &length);
    SACFAST_TORCH(torch_string_c_str, handle, &text);
    return std::string(text, length);
  }
  static std::string borrow(std::uint64_t value) {
    const auto* text = address_in<const BorrowedText>(value);
    return std::string(text->data, text->size);
  }
};

// A function of tensors and numbers in the forms in which torch's dispatcher and autograd in C++ call it.
struct Kernel {
  void (*boxed)(StableIValue* stack, std::uint64_t arguments, std::uint64_t results);
  DirectKernel direct;
};

template <auto function>
struct Forms;
template <class Result, class... Parameters, Result (*function)(Parameters...)>
struct Forms<function> {
  using Indices = std::index_sequence_for<Parameters...>;
  using Arguments = std::tuple<std::decay_t<Parameters>...>;

  static void boxed(StableIValue* stack, std::uint64_t, std::uint64_t) {
    call(read(stack, Indices()), [&](Tensor& result) {
      *stack++ = static_cast<StableIValue>(reinterpret_cast<std::uintptr_t>(result.release()));
    });
  }
  static void direct(const std::uint64_t* values, AtenTensorHandle* results) {
    call(borrow(values, Indices()), [&](Tensor& result) { *results++ = result.release(); });
  }

 private:
  // Braces: the arguments are taken from the first to the last.
  template <std::size_t... I>
  static Arguments read(const StableIValue* stack, std::index_sequence<I...>) {
    return Arguments{Parameter<std::decay_t<Parameters>>::read(stack[I])...};
  }
  template <std::size_t... I>
  static Arguments borrow(const std::uint64_t* values, std::index_sequence<I...>) {
    return Arguments{Parameter<std::decay_t<Parameters>>::borrow(values[I])...};
  }

  template <class Write>
  static void call(const Arguments& arguments, Write write) {
    if constexpr (std::is_void_v<Result>) {
      std::apply(function, arguments);
    } else if constexpr (std::is_same_v<Result, Tensor>) {
      Tensor result = std::apply(function, arguments);
      write(result);
    } else {
      Result results = std::apply(function, arguments);
      std::apply([&](auto&... result) { (write(result), ...); }, results);
    }
  }
};
#define SACFAST_KERNEL(function) (::sacfast::Kernel{&Forms<&function>::boxed, &Forms<&function>::direct})

// The kernels of this library, which are registered once it is known who calls them: library_bind.cpp.
class KernelTable {
 public:
  struct Entry {
    const char* op;
    Kernel kernel;
    bool is_registered;
  };

  void impl(const char* op, Kernel kernel) { entries.push_back({op, kernel, false}); }

  static KernelTable& of_this_library() {
    static KernelTable table;
    return table;
  }

  std::vector<Entry> entries;
};

// Begins the list of a binding's kernels: SACFAST_KERNELS(m) { m.impl("op", SACFAST_KERNEL(function)); }
#define SACFAST_KERNELS(m)                                                                             \
  void add_kernels(KernelTable& m);                                                                    \
  [[maybe_unused]] const bool kernels_are_added = (add_kernels(KernelTable::of_this_library()), true); \
  void add_kernels(KernelTable& m)

}  // namespace sacfast
