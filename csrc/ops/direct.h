// How autograd in C++, which is built for one minor version of torch, calls the kernels of _ops and _ops_cuda: past
// torch's dispatcher, which boxes every argument of a kernel on the stable ABI (0.3 us a call, here). The libraries are
// built from the same sources and meet in memory only (sacfast/_ext.py).
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstddef>
#include <cstdint>

namespace sacfast {

// What the caller knows of a tensor, and a kernel would have to ask torch for.
struct BorrowedTensor {
  AtenTensorHandle handle = nullptr;  // null: None
  std::int32_t dtype = -1, device_type = -1, device_index = -1;
  std::size_t dim = 0;
  const std::int64_t* sizes = nullptr;
  const std::int64_t* strides = nullptr;
};

struct BorrowedText {
  const char* data;
  std::size_t size;
};

struct BorrowedTensors {
  const BorrowedTensor* data;
  std::size_t size;
};

// Arguments, in order: a number by its bits, anything else by the address of a struct above. The caller keeps all of
// them, and gets the results' handles for its own. A refusal is thrown as std::exception.
using DirectKernel = void (*)(const std::uint64_t* arguments, AtenTensorHandle* results);

// Returns a new tensor; throws torch's exceptions, such as the one of an allocator that has no memory.
using EmptyStrided = AtenTensorHandle (*)(std::int64_t dim, const std::int64_t* sizes, const std::int64_t* strides,
                                          std::int32_t dtype, std::int32_t device_type, std::int32_t device_index);

// Returns the kernel of an op; null where the library has none.
using FindKernel = DirectKernel (*)(const char* op);

}  // namespace sacfast
