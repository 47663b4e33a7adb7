// What the bindings of all ops share: argument checks whose messages name the argument, views of tensors as the
// kernels' Strided matrices, and the choice of T from a tensor's dtype.
#pragma once

#include <ATen/ATen.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/DimVector.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "../core/strided.h"

#if defined(SACFAST_WITH_CUDA)
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#endif

namespace sacfast {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// An argument with the name that errors give it.
struct Argument {
  const char* name;
  const Tensor& tensor;
};

inline bool given(const OptionalTensor& tensor) { return tensor.has_value() && tensor->defined(); }

// CPU: float32 and float64. CUDA: float16 and bfloat16 too.
inline void check_dtype(const Argument& argument) {
  const at::ScalarType dtype = argument.tensor.scalar_type();
  if (dtype == at::kFloat || dtype == at::kDouble) return;
  TORCH_CHECK_TYPE(argument.tensor.defined(), argument.name, ": expected a tensor, got None");
  const bool is_half = dtype == at::kHalf || dtype == at::kBFloat16;
  TORCH_CHECK_TYPE(is_half && argument.tensor.is_cuda(), argument.name,
                   argument.tensor.is_cuda() ? ": expected dtype float32, float64, float16 or bfloat16, got "
                                             : ": expected dtype float32 or float64 on the CPU, got ",
                   dtype);
}

inline void check_same_dtype_and_device(const Argument& argument, const Argument& like) {
  TORCH_CHECK_TYPE(argument.tensor.scalar_type() == like.tensor.scalar_type(), argument.name, ": expected dtype ",
                   like.tensor.scalar_type(), " like ", like.name, ", got ", argument.tensor.scalar_type());
  TORCH_CHECK_VALUE(argument.tensor.device() == like.tensor.device(), argument.name, ": expected device ",
                    like.tensor.device(), " like ", like.name, ", got ", argument.tensor.device());
}

// For inputs through which no gradient is defined: an error instead of a gradient that silently is zero.
inline void check_no_grad(const char* name, const OptionalTensor& tensor) {
  TORCH_CHECK_VALUE(!given(tensor) || !tensor->requires_grad(), name,
                    ": expected a tensor without requires_grad, because no gradient flows through it (detach it), got "
                    "one that requires grad");
}

// The common shape of the arguments by PyTorch's broadcasting rules.
inline at::DimVector broadcast_shape(std::initializer_list<Argument> arguments) {
  const Argument& first = *arguments.begin();
  at::DimVector shape(first.tensor.sizes());
  for (const Argument& argument : arguments) {
    const at::IntArrayRef sizes = argument.tensor.sizes();
    if (sizes.size() > shape.size()) shape.insert(shape.begin(), sizes.size() - shape.size(), 1);
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      std::int64_t& size = shape[shape.size() - sizes.size() + i];
      TORCH_CHECK_VALUE(sizes[i] == size || sizes[i] == 1 || size == 1, argument.name,
                        ": expected a shape that broadcasts with ", first.name, " ", first.tensor.sizes(), ", got ",
                        sizes);
      if (size == 1) size = sizes[i];
    }
  }
  return shape;
}

// An uninitialised tensor of the dtype and device of `like`. On the CPU without a round through the dispatcher.
inline Tensor empty(at::IntArrayRef sizes, const Tensor& like) {
  return like.is_cpu() ? Tensor(at::detail::empty_cpu(sizes, like.options())) : at::empty(sizes, like.options());
}

template <class T>
T* pointer(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// A tensor whose last dimension gives the columns and whose leading dimensions are merged into rows. Where their
// strides cannot be merged, it is copied; `owner` keeps the tensor or its copy alive.
struct MatrixView {
  Tensor owner;
  std::int64_t row_stride = 0;
  std::int64_t col_stride = 0;

  template <class T>
  Strided<T> as() const {
    return {pointer<T>(owner), row_stride, col_stride};
  }
};

// Whether the first `dims` dimensions step through memory as one, and by which stride.
inline bool merge_dimensions(const Tensor& tensor, std::int64_t dims, std::int64_t& stride) {
  stride = 0;
  std::int64_t expected = -1;  // the stride that the next outer dimension must have; -1: any
  for (std::int64_t d = dims - 1; d >= 0; --d) {
    if (tensor.size(d) == 1) continue;
    if (expected == -1) {
      stride = tensor.stride(d);
    } else if (tensor.stride(d) != expected) {
      return false;
    }
    expected = tensor.stride(d) * tensor.size(d);  // zero where it is broadcast: merges with broadcast ones only
  }
  return true;
}

// `tensor` as a matrix [rows, cols] of the shape `full` = [..., cols]. Made without intermediate views of torch: one
// costs as much as the kernel does on a small batch.
inline MatrixView as_matrix(Tensor tensor, at::IntArrayRef full) {
  if (tensor.sizes() != full) tensor = tensor.expand(full);
  std::int64_t row_stride = 0;
  if (!merge_dimensions(tensor, tensor.dim() - 1, row_stride)) {
    tensor = tensor.contiguous();
    merge_dimensions(tensor, tensor.dim() - 1, row_stride);
  }
  const std::int64_t col_stride = tensor.stride(-1);
  return {std::move(tensor), row_stride, col_stride};
}

// One value for a whole row: a tensor [...] as a matrix [rows, cols] with equal columns.
inline MatrixView as_row_values(Tensor tensor) {
  std::int64_t row_stride = 0;
  if (!merge_dimensions(tensor, tensor.dim(), row_stride)) {
    tensor = tensor.contiguous();
    merge_dimensions(tensor, tensor.dim(), row_stride);
  }
  return {std::move(tensor), row_stride, 0};
}

// Calls body(T{}) with the kernel type of the tensor's dtype.
template <class Body>
void with_kernel_type(const Tensor& tensor, Body body) {
  switch (tensor.scalar_type()) {
    case at::kFloat:
      return body(float{});
    case at::kDouble:
      return body(double{});
#if defined(SACFAST_WITH_CUDA)
    case at::kHalf:
      return body(__half{});
    case at::kBFloat16:
      return body(__nv_bfloat16{});
#endif
    default:
      TORCH_CHECK_TYPE(false, "no kernel for dtype ", tensor.scalar_type());
  }
}

template <class T>
constexpr bool kOnCpu = std::is_same_v<T, float> || std::is_same_v<T, double>;

// Elements of work below which a second thread costs more than it saves.
constexpr std::int64_t kGrainElements = 16384;

// Whether this process was forked from one that had loaded the library. OpenMP's threads do not survive a fork, and a
// child that waits for them hangs: there the kernels run in the calling thread alone.
inline std::atomic<bool> in_forked_child{false};

// Makes the tensor's device current while it lives.
#if defined(SACFAST_WITH_CUDA)
class DeviceOf {
 public:
  explicit DeviceOf(const Tensor& tensor) : guard_(tensor.is_cuda() ? std::optional(tensor.device()) : std::nullopt) {}

 private:
  c10::cuda::OptionalCUDAGuard guard_;
};

inline void* current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }

inline void check_launch(const char* op, int status) {
  TORCH_CHECK(status == 0, op, ": CUDA launch failed: ", cudaGetErrorString(static_cast<cudaError_t>(status)));
}
#else
class DeviceOf {
 public:
  explicit DeviceOf(const Tensor&) {}
};
#endif

// Shares [0, extent) among torch's threads, at least `grain` units each.
template <class Body>
void share_among_threads(std::int64_t extent, std::int64_t grain, const Body& body) {
  if (in_forked_child.load(std::memory_order_relaxed)) return body(0, extent);
  at::parallel_for(0, extent, grain, body);
}

// Runs the kernel `function` for `extent` units of work on the tensor's device.
#define SACFAST_RUN_CPU(function, T, params, extent, grain)                                                            \
  if constexpr (kOnCpu<T>) {                                                                                           \
    share_among_threads(                                                                                               \
        extent, grain, [&](std::int64_t begin, std::int64_t end) { SACFAST_CALL_CPU(function, params, begin, end); }); \
  }
#if defined(SACFAST_WITH_CUDA)
#define SACFAST_RUN(function, tensor, T, params, extent, grain)             \
  do {                                                                      \
    if ((tensor).is_cuda()) {                                               \
      check_launch(#function, cuda::function<T>(params, current_stream())); \
    } else {                                                                \
      SACFAST_RUN_CPU(function, T, params, extent, grain)                   \
    }                                                                       \
  } while (false)
#else
#define SACFAST_RUN(function, tensor, T, params, extent, grain) \
  do {                                                          \
    SACFAST_RUN_CPU(function, T, params, extent, grain)         \
  } while (false)
#endif

// ---- Autograd ----

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline bool any_requires_grad(std::initializer_list<OptionalTensor> tensors) {
  if (!at::GradMode::is_enabled()) return false;
  return std::any_of(tensors.begin(), tensors.end(),
                     [](const OptionalTensor& tensor) { return given(tensor) && tensor->requires_grad(); });
}

inline OptionalTensor as_optional(const Tensor& tensor) {
  return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
}

using torch::autograd::SavedVariable;
using torch::autograd::variable_list;

// Backward passes are nodes of torch's graph as its own code generator writes them: saved variables as members,
// 10 us less a call than torch::autograd::Function, which keeps them in a dictionary.
using BackwardNode = torch::autograd::Node;

// torch counts a node's owners by std::shared_ptr up to 2.11 or 2.12, and by c10::intrusive_ptr since.
template <class Node>
auto new_node(const std::shared_ptr<BackwardNode>*) {
  // torch's deleter frees a long chain of nodes in a loop; a plain delete would recurse once for each.
  return std::shared_ptr<Node>(new Node(), [](Node* node) { deleteNode(node); });
}
template <class Node>
auto new_node(const c10::intrusive_ptr<BackwardNode>*) {
  return c10::make_intrusive<Node>();
}
using NodePointer = std::decay_t<decltype(std::declval<Tensor>().grad_fn())>;

// A node whose gradients go to `inputs`, in this order; undefined ones take none.
template <class Node>
auto backward_node(const variable_list& inputs) {
  auto node = new_node<Node>(static_cast<const NodePointer*>(nullptr));
  node->set_next_edges(torch::autograd::collect_next_edges(inputs));
  return node;
}

// The gradient of a broadcast argument is summed back to the argument's own shape.
inline Tensor sum_to(const Tensor& gradient, const Tensor& argument) {
  return at::sum_to(gradient, argument.sym_sizes());
}

inline bool has_tangent(const Tensor& tensor) { return tensor.defined() && tensor._fw_grad(/*level=*/0).defined(); }
inline bool has_tangent(const OptionalTensor& tensor) { return tensor.has_value() && has_tangent(*tensor); }

// Whether forward-mode differentiation goes through one of the tensors. Kernels would drop the tangents.
template <class... Tensors>
bool any_has_tangent(const Tensors&... tensors) {
  return (has_tangent(tensors) || ...);
}

// ---- Autocast ----

// Switches autocast off for a device while it lives, so that an op that has cast its inputs can call itself.
class NoAutocast {
 public:
  explicit NoAutocast(c10::DeviceType device)
      : guard_(at::autocast::get_autocast_dispatch_key_from_device_type(device)) {}

 private:
  c10::impl::ExcludeDispatchKeyGuard guard_;
};

}  // namespace sacfast
