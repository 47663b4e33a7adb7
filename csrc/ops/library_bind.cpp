// The library itself: what it was built with and which CPU kernels it runs.
#include <torch/library.h>

#include <string>
#include <vector>

#include "../core/cpu_level.h"

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

}  // namespace

TORCH_LIBRARY(sacfast, m) {
  m.def("cpu_level() -> str", &level_in_use);
  m.def("available_cpu_levels() -> str[]", &available_cpu_levels);
  m.def("has_cuda() -> bool", &has_cuda);
}

}  // namespace sacfast
