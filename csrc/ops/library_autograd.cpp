// The library itself: it registers the kernels of _ops and _ops_cuda with torch.
#include <map>
#include <string>

#include "autograd.h"

// `find` is a library's sacfast_kernel, `dispatch_key` the device that it serves: "CPU" or "CUDA".
extern "C" __attribute__((visibility("default"))) void sacfast_bind_kernels(sacfast::FindKernel find,
                                                                            const char* dispatch_key) {
  static std::map<std::string, torch::Library> libraries;  // torch forgets the kernels of one that goes
  const auto [library, is_new] =
      libraries.try_emplace(dispatch_key, torch::Library::IMPL, "sacfast", c10::parseDispatchKey(dispatch_key),
                            __FILE__, static_cast<std::uint32_t>(__LINE__));
  if (!is_new) return;
  const sacfast::KernelLibrary kernels{find, library->second};
  for (const sacfast::AddKernels add : sacfast::lists_of_kernels()) add(kernels);
}
