// An engine of the GPU's kernels that runs on the host.
#pragma once

#include <cstddef>
#include <vector>

#include "host_machine.h"
#include "update/gpu/engine.h"
#include "update_cases.h"

namespace sacfast::SACFAST_ISA {

template <class T>
using HostEngine = GpuEngine<T, HostMachine>;

// Memory of learners, and their engine.
template <class T>
struct Simulated {
  std::vector<char> memory;
  HostEngine<T> engine;

  explicit Simulated(const UpdateSettings& settings, int learners = 1, bool reversed = false)
      : memory(static_cast<std::size_t>(HostEngine<T>::bytes(settings, learners)), kNeverWritten),
        engine(settings, learners, memory.data(), nullptr, HostMachine(reversed)) {}
};

}  // namespace sacfast::SACFAST_ISA
