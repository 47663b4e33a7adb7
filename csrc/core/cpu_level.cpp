#include "cpu_level.h"

#include <cstdlib>
#include <stdexcept>

namespace sacfast {
namespace {

bool processor_has(CpuLevel level) {
  if (level == CpuLevel::kBaseline) return true;
#if defined(SACFAST_X86_LEVELS)
  if (level == CpuLevel::kAvx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

constexpr CpuLevel kLevels[] = {CpuLevel::kBaseline, CpuLevel::kAvx2, CpuLevel::kAvx512};

CpuLevel choose() {
  const char* wish = std::getenv("SACFAST_CPU_LEVEL");
  if (wish != nullptr && *wish != '\0') {
    for (const CpuLevel level : kLevels) {
      if (std::string(wish) == cpu_level_name(level) && processor_has(level)) return level;
    }
    std::string allowed;
    for (const std::string& name : available_cpu_levels()) allowed += (allowed.empty() ? "" : ", ") + name;
    throw std::runtime_error("SACFAST_CPU_LEVEL: expected one of " + allowed + " on this processor, got '" + wish +
                             "'");
  }
  for (int i = 2; i > 0; --i) {
    if (processor_has(kLevels[i])) return kLevels[i];
  }
  return CpuLevel::kBaseline;
}

}  // namespace

CpuLevel cpu_level() {
  static const CpuLevel level = choose();
  return level;
}

CpuLevel cpu_level_for_short_calls() { return cpu_level() == CpuLevel::kAvx512 ? CpuLevel::kAvx2 : cpu_level(); }

const char* cpu_level_name(CpuLevel level) {
  switch (level) {
    case CpuLevel::kAvx512:
      return "avx512";
    case CpuLevel::kAvx2:
      return "avx2";
    case CpuLevel::kBaseline:
      return "baseline";
  }
  return "baseline";
}

std::vector<std::string> available_cpu_levels() {
  std::vector<std::string> names;
  for (const CpuLevel level : kLevels) {
    if (processor_has(level)) names.emplace_back(cpu_level_name(level));
  }
  return names;
}

}  // namespace sacfast
