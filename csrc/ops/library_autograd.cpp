// The library itself: it registers the kernels of _ops and _ops_cuda with torch.
#include <ATen/EmptyTensor.h>

#include <map>
#include <memory>
#include <string>

#include "autograd.h"

namespace sacfast {
namespace {

AtenTensorHandle empty_strided(std::int64_t dim, const std::int64_t* sizes, const std::int64_t* strides,
                               std::int32_t dtype, std::int32_t device_type, std::int32_t device_index) {
  const at::IntArrayRef all_sizes(sizes, static_cast<std::size_t>(dim)), all_strides(strides, all_sizes.size());
  const auto type = static_cast<at::ScalarType>(dtype);
  const c10::Device device(static_cast<c10::DeviceType>(device_type), static_cast<c10::DeviceIndex>(device_index));
  auto tensor =
      device.is_cpu()
          ? std::make_unique<Tensor>(at::detail::empty_strided_cpu(all_sizes, all_strides, type))
          : std::make_unique<Tensor>(at::empty_strided(all_sizes, all_strides, at::device(device).dtype(type)));
  return reinterpret_cast<AtenTensorHandle>(tensor.release());
}

}  // namespace
}  // namespace sacfast

// `find` is a library's sacfast_kernel, `make_tensors_by` its sacfast_make_tensors_by, `dispatch_key` the device that
// it serves: "CPU" or "CUDA".
extern "C" __attribute__((visibility("default"))) void sacfast_bind_kernels(
    sacfast::FindKernel find, void (*make_tensors_by)(sacfast::EmptyStrided), const char* dispatch_key) {
  make_tensors_by(&sacfast::empty_strided);
  static std::map<std::string, torch::Library> libraries;  // torch forgets the kernels of one that goes
  const auto [library, is_new] =
      libraries.try_emplace(dispatch_key, torch::Library::IMPL, "sacfast", c10::parseDispatchKey(dispatch_key),
                            __FILE__, static_cast<std::uint32_t>(__LINE__));
  if (!is_new) return;
  const sacfast::KernelLibrary kernels{find, library->second};
  for (const sacfast::AddKernels add : sacfast::lists_of_kernels()) add(kernels);
}
