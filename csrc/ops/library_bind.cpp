// The library itself: which CPU kernels it runs.
#include <pthread.h>

#include <string>
#include <vector>

#include "../core/cpu_level.h"
#include "binding.h"

#if !defined(SACFAST_CUDA_LIBRARY)
namespace sacfast {
namespace {

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

}  // namespace
}  // namespace sacfast
#endif
