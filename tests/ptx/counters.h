// What kernels cost, counted: instructions, accesses to memory and how many wavefronts or sectors each takes.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ptx {

// One access of one thread.
struct Access {
  const void* instruction;
  std::uint64_t address;
  std::uint8_t bytes;
  bool is_shared, is_write;
};

// Accesses of warps, and what the memory does for them: wavefronts of shared memory, sectors of 32 bytes of global.
struct Traffic {
  std::uint64_t accesses = 0, transfers = 0;
};

struct KernelCounts {
  std::uint64_t launches = 0, blocks = 0, instructions = 0;
  // Of the first block of the first launch.
  std::uint64_t threads = 0, instructions_of_block = 0;
  Traffic shared_loads, shared_stores, global_loads, global_stores;
};

struct GraphCounts {
  std::uint64_t nodes = 0, depth = 0, blocks = 0;  // depth: nodes of the longest path
};

class Counters {
 public:
  KernelCounts& of(const std::string& kernel) { return kernels_[kernel]; }
  const std::map<std::string, KernelCounts>& kernels() const { return kernels_; }
  std::uint64_t instructions() const;
  std::uint64_t launches() const;
  void add_graph(const GraphCounts& graph) { graphs_.push_back(graph); }
  const std::vector<GraphCounts>& graphs() const { return graphs_; }
  // Takes in what the threads of a block have accessed: [threads] lists, in order.
  static void count_traffic(KernelCounts& counts, const std::vector<std::vector<Access>>& accesses);
  void clear() { *this = {}; }

 private:
  std::map<std::string, KernelCounts> kernels_;
  std::vector<GraphCounts> graphs_;
};

// A kernel's mangled name as a person reads it, without namespaces and template arguments that say nothing.
std::string readable(const std::string& mangled);

}  // namespace ptx
