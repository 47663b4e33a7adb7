// The library itself: the registration of its kernels, and which CPU kernels it runs.
#include <pthread.h>

#include <cstring>
#include <string>
#include <vector>

#include "../core/cpu_level.h"
#include "binding.h"

#define SACFAST_EXPORT extern "C" __attribute__((visibility("default")))

namespace sacfast {
namespace {

using torch::stable::detail::StableLibrary;

#if defined(SACFAST_CUDA_LIBRARY)
constexpr const char* kDispatchKey = "CUDA";
#else
constexpr const char* kDispatchKey = "CPU";

std::string level_in_use() { return cpu_level_name(cpu_level()); }

STABLE_TORCH_LIBRARY_FRAGMENT(sacfast, m) {
  pthread_atfork(nullptr, nullptr, [] { in_forked_child.store(true, std::memory_order_relaxed); });
  m.def("cpu_level() -> str");
  m.def("available_cpu_levels() -> str[]");
}
STABLE_TORCH_LIBRARY_IMPL(sacfast, CompositeImplicitAutograd, m) {
  m.impl("cpu_level", TORCH_BOX(&level_in_use));
  m.impl("available_cpu_levels", TORCH_BOX(&available_cpu_levels));
}
#endif

}  // namespace
}  // namespace sacfast

// Returns the kernel of an op for autograd in C++, which then registers it with torch; null: there is none.
SACFAST_EXPORT sacfast::DirectKernel sacfast_kernel(const char* op) {
  for (auto& entry : sacfast::KernelTable::of_this_library().entries) {
    if (std::strcmp(entry.op, op) != 0) continue;
    entry.is_registered = true;
    return entry.kernel.direct;
  }
  return nullptr;
}

// Lets autograd in C++ make the kernels' tensors.
SACFAST_EXPORT void sacfast_make_tensors_by(sacfast::EmptyStrided empty_strided) {
  sacfast::empty_strided_of_torch = empty_strided;
}

// Registers with torch, by the stable ABI, every kernel that is not registered yet.
SACFAST_EXPORT void sacfast_register_kernels() {
  using sacfast::StableLibrary;
  static StableLibrary library(StableLibrary::Kind::IMPL, "sacfast", sacfast::kDispatchKey, __FILE__, __LINE__);
  for (auto& entry : sacfast::KernelTable::of_this_library().entries) {
    if (entry.is_registered) continue;
    library.impl(entry.op, entry.kernel.boxed);
    entry.is_registered = true;
  }
}
