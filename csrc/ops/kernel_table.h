// The kernels of a library, each a function of tensors and numbers, in the forms in which torch's dispatcher and
// autograd in C++ (direct.h) call them.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "tensor.h"

namespace sacfast {

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
