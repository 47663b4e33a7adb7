// The library itself: what it was built with and which CPU kernels it runs.
#include <pthread.h>
#include <torch/library.h>

#include <string>
#include <vector>

#include "../core/cpu_level.h"
#include "binding.h"

namespace sacfast {
namespace {

std::string level_in_use() { return cpu_level_name(cpu_level()); }

bool has_cuda() {
#if defined(SACFAST_WITH_CUDA)
  return true;
#else
  return false;
#endif
}

// The major and minor version of the torch that this was compiled against: its binary interface holds no longer.
std::string torch_version() { return SACFAST_TORCH_VERSION; }

}  // namespace

TORCH_LIBRARY(sacfast, m) {
  pthread_atfork(nullptr, nullptr, [] { in_forked_child.store(true, std::memory_order_relaxed); });
  m.def("cpu_level() -> str", &level_in_use);
  m.def("available_cpu_levels() -> str[]", &available_cpu_levels);
  m.def("has_cuda() -> bool", &has_cuda);
  m.def("torch_version() -> str", &torch_version);
}

}  // namespace sacfast
