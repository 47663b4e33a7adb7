// Runs the GPU's kernels on the host, block after block and thread after thread.
#pragma once

#include <cstring>
#include <memory>
#include <vector>

#include "update/gpu/steps.h"

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
  void mark() {}
  bool is_done() const { return true; }
  void wait() const {}

  template <class Record>
  void prepare(int, const Record&) {}

  template <class Record>
  void replay(int, const Record& record) {
    record();
  }

  void copy(void* to, const void* from, std::int64_t bytes) { std::memcpy(to, from, static_cast<std::size_t>(bytes)); }
  void zero(void* memory, std::int64_t bytes) { std::memset(memory, 0, static_cast<std::size_t>(bytes)); }

  void* host_memory(std::int64_t bytes) {
    host_.resize(static_cast<std::size_t>(bytes));
    return host_.data();
  }

  std::int64_t launches = 0;

 private:
  std::vector<char> host_;
  bool reversed_;
};

}  // namespace sacfast::SACFAST_ISA
