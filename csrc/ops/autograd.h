// What the ops' autograd, autocast and use of torch's generators share. LibTorch's stable ABI has none of the three, so
// this is compiled for each minor version of torch against its headers; the kernels are in _ops and _ops_cuda.
#pragma once

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/library.h>
#include <torch/version.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <type_traits>
#include <tuple>
#include <utility>
#include <vector>

#include "direct.h"

namespace sacfast {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline bool given(const OptionalTensor& tensor) { return tensor.has_value() && tensor->defined(); }

// For inputs through which no gradient is defined: an error instead of a gradient that silently is zero.
inline void check_no_grad(const char* name, const OptionalTensor& tensor) {
  TORCH_CHECK_VALUE(!given(tensor) || !tensor->requires_grad(), name,
                    ": expected a tensor without requires_grad, because no gradient flows through it (detach it), got "
                    "one that requires grad");
}

// ---- Kernels of _ops and _ops_cuda ----

// An argument as direct.h has it.
template <class T>
struct Lowered {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= sizeof(std::uint64_t));
  std::uint64_t value = 0;

  explicit Lowered(T number) { std::memcpy(&value, &number, sizeof(T)); }
};

inline std::uint64_t address_of(const void* object) {
  return static_cast<std::uint64_t>(reinterpret_cast<std::uintptr_t>(object));
}

// Torch's handle of a tensor is the address of an at::Tensor, and its codes are the enumerations' numbers.
inline BorrowedTensor borrow(const Tensor& tensor) {
  if (!tensor.defined()) return {};
  const c10::Device device = tensor.device();
  return {reinterpret_cast<AtenTensorHandle>(const_cast<Tensor*>(&tensor)),
          static_cast<std::int32_t>(tensor.scalar_type()),
          static_cast<std::int32_t>(device.type()),
          static_cast<std::int32_t>(device.index()),
          static_cast<std::size_t>(tensor.dim()),
          tensor.sizes().data(),
          tensor.strides().data()};
}

template <>
struct Lowered<Tensor> {
  BorrowedTensor tensor;
  std::uint64_t value;
  explicit Lowered(const Tensor& argument) : tensor(borrow(argument)), value(address_of(&tensor)) {}
  Lowered(const Lowered&) = delete;
};
template <>
struct Lowered<OptionalTensor> {
  BorrowedTensor tensor;
  std::uint64_t value;
  explicit Lowered(const OptionalTensor& argument)
      : tensor(argument.has_value() ? borrow(*argument) : BorrowedTensor{}), value(address_of(&tensor)) {}
  Lowered(const Lowered&) = delete;
};
template <>
struct Lowered<at::TensorList> {
  std::vector<BorrowedTensor> tensors;
  BorrowedTensors list;
  std::uint64_t value;
  explicit Lowered(at::TensorList arguments) {
    tensors.reserve(arguments.size());
    for (const Tensor& argument : arguments) tensors.push_back(borrow(argument));
    list = {tensors.data(), tensors.size()};
    value = address_of(&list);
  }
  Lowered(const Lowered&) = delete;
};
template <>
struct Lowered<c10::string_view> {
  BorrowedText text;
  std::uint64_t value;
  explicit Lowered(c10::string_view view) : text{view.data(), view.size()}, value(address_of(&text)) {}
  Lowered(const Lowered&) = delete;
};

inline Tensor take(AtenTensorHandle handle) {
  const std::unique_ptr<Tensor> owner(reinterpret_cast<Tensor*>(handle));
  return std::move(*owner);
}

// A kernel as a function of torch's types.
template <class Signature>
class Kernel;
template <class Result, class... Parameters>
class Kernel<Result(Parameters...)> {
 public:
  explicit Kernel(DirectKernel kernel) : kernel_(kernel) {}

  Result operator()(Parameters... parameters) const { return call(Lowered<std::decay_t<Parameters>>(parameters)...); }

 private:
  template <class... Arguments>
  Result call(const Arguments&... arguments) const {
    const std::uint64_t values[] = {arguments.value...};
    if constexpr (std::is_void_v<Result>) {
      kernel_(values, nullptr);
    } else if constexpr (std::is_same_v<Result, Tensor>) {
      AtenTensorHandle result = nullptr;
      kernel_(values, &result);
      return take(result);
    } else {
      AtenTensorHandle results[std::tuple_size_v<Result>];
      kernel_(values, results);
      return std::apply([](auto... result) { return Result(take(result)...); }, as_tuple(results, Indices<Result>()));
    }
  }

  template <class Tuple>
  using Indices = std::make_index_sequence<std::tuple_size_v<Tuple>>;
  template <std::size_t... I>
  static auto as_tuple(const AtenTensorHandle* results, std::index_sequence<I...>) {
    return std::make_tuple(results[I]...);
  }

  DirectKernel kernel_;
};

// The kernels of one library, _ops or _ops_cuda, to be registered with torch for one dispatch key.
struct KernelLibrary {
  FindKernel find;
  torch::Library& torch;

  template <class Signature>
  Kernel<Signature> get(const char* op) const {
    const DirectKernel kernel = find(op);
    TORCH_CHECK(kernel != nullptr, "sacfast: the libraries are of different builds: one lacks ", op);
    return Kernel<Signature>(kernel);
  }
  template <class Signature>
  void impl(const char* op) const {
    torch.impl(op, get<Signature>(op));
  }
};

using AddKernels = void (*)(const KernelLibrary&);
inline std::vector<AddKernels>& lists_of_kernels() {
  static std::vector<AddKernels> lists;
  return lists;
}

// Begins the list of the kernels that an op registers: SACFAST_KERNELS(m) { m.impl<Signature>("op"); }
#define SACFAST_KERNELS(m)                                                                             \
  void add_kernels(const KernelLibrary& m);                                                            \
  [[maybe_unused]] const bool kernels_are_listed = (lists_of_kernels().push_back(&add_kernels), true); \
  void add_kernels(const KernelLibrary& m)

// ---- Autograd ----

template <class Signature>
c10::TypedOperatorHandle<Signature> find_op(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

inline bool requires_grad(const Tensor& tensor) { return tensor.defined() && tensor.requires_grad(); }
inline bool requires_grad(const OptionalTensor& tensor) { return tensor.has_value() && requires_grad(*tensor); }

template <class... Tensors>
bool any_requires_grad(const Tensors&... tensors) {
  return at::GradMode::is_enabled() && (requires_grad(tensors) || ...);
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
