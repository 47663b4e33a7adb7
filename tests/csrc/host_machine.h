// Runs the GPU's kernels on the host, block after block and thread after thread.
#pragma once

#include <cstring>
#include <memory>

#include "update/gpu_worker.h"

namespace sacfast::SACFAST_ISA {

class HostMachine {
 public:
  // Blocks and threads in the opposite order: nothing may depend on it.
  explicit HostMachine(bool reversed = false) : reversed_(reversed) {}

  template <class Kernel>
  void launch(Lane, const Kernel& body, std::int64_t blocks, int learners) {
    ++launches;
    const auto shared = std::make_unique<typename Kernel::Shared>();
    for (std::int64_t i = 0; i < blocks * learners; ++i) {
      const std::int64_t at = reversed_ ? blocks * learners - 1 - i : i;
      body(Block{at % blocks, static_cast<int>(at / blocks), reversed_}, *shared);
    }
  }

  void use_queue(void*) {}
  void after(Lane, Lane) {}

  template <class Record>
  void replay(int, const Record& record) {
    record();
  }

  void copy(void* to, const void* from, std::int64_t bytes) { std::memcpy(to, from, static_cast<std::size_t>(bytes)); }

  std::int64_t launches = 0;

 private:
  bool reversed_;
};

}  // namespace sacfast::SACFAST_ISA
