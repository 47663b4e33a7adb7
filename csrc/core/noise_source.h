// Where a kernel takes the seed and offset of its noise from.
#pragma once

#include "qualifiers.h"

namespace sacfast {

struct NoiseSource {
  std::uint64_t seed = 0;
  std::uint64_t offset = 0;  // added to *offset_pointer where that is given
  // Device memory, for CUDA graphs: values that change between replays are read when the kernel runs.
  const std::int64_t* seed_pointer = nullptr;
  const std::int64_t* offset_pointer = nullptr;
};

namespace SACFAST_ISA {

SACFAST_HD NoiseSource resolve(NoiseSource source) {
  if (source.seed_pointer != nullptr) source.seed = static_cast<std::uint64_t>(*source.seed_pointer);
  if (source.offset_pointer != nullptr) source.offset += static_cast<std::uint64_t>(*source.offset_pointer);
  return source;
}

}  // namespace SACFAST_ISA
}  // namespace sacfast
