// Which compiled copy of the CPU kernels runs: chosen once, from what the processor has.
#pragma once

#include <string>
#include <vector>

namespace sacfast {

enum class CpuLevel { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

// The level in use. SACFAST_CPU_LEVEL=baseline|avx2|avx512 overrides the choice; a level that this processor or this
// build lacks is refused with an exception (std::runtime_error), never replaced silently.
CpuLevel cpu_level();

// The level for a few microseconds of arithmetic now and then, at most kAvx2. Where scalar code ran before, the first
// 512-bit multiply-adds make Intel's processors change their clock: for some 100 us they run at a fraction of their
// speed, and for milliseconds after all code of that core runs slower.
CpuLevel cpu_level_for_short_calls();

const char* cpu_level_name(CpuLevel level);

// Every level that is compiled in and that this processor can run.
std::vector<std::string> available_cpu_levels();

// Declares a kernel in every compiled copy. Write the declaration once; the copies differ in namespace only.
#if defined(SACFAST_X86_LEVELS)
#define SACFAST_DECLARE_CPU(...) \
  namespace baseline {           \
  __VA_ARGS__;                   \
  }                              \
  namespace avx2 {               \
  __VA_ARGS__;                   \
  }                              \
  namespace avx512 {             \
  __VA_ARGS__;                   \
  }
#define SACFAST_CALL_CPU_AT(level, function, ...)   \
  do {                                              \
    switch (level) {                                \
      case ::sacfast::CpuLevel::kAvx512:            \
        ::sacfast::avx512::function(__VA_ARGS__);   \
        break;                                      \
      case ::sacfast::CpuLevel::kAvx2:              \
        ::sacfast::avx2::function(__VA_ARGS__);     \
        break;                                      \
      case ::sacfast::CpuLevel::kBaseline:          \
        ::sacfast::baseline::function(__VA_ARGS__); \
        break;                                      \
    }                                               \
  } while (false)
#else
#define SACFAST_DECLARE_CPU(...) \
  namespace baseline {           \
  __VA_ARGS__;                   \
  }
#define SACFAST_CALL_CPU_AT(level, function, ...) ::sacfast::baseline::function(__VA_ARGS__)
#endif
#define SACFAST_CALL_CPU(function, ...) SACFAST_CALL_CPU_AT(::sacfast::cpu_level(), function, __VA_ARGS__)

}  // namespace sacfast
