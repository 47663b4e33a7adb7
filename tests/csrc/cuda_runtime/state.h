// What the stand-in for the CUDA runtime knows: clocks, operations, streams, captures, memory.
#pragma once

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <set>
#include <utility>

#include "runtime.h"

namespace standin {

// Of each agent (the host, and every stream), how many of its operations came before.
class Clock {
 public:
  std::uint64_t at(std::size_t agent) const { return agent < ticks_.size() ? ticks_[agent] : 0; }
  void tick(std::size_t agent) {
    ticks_.resize(std::max(ticks_.size(), agent + 1));
    ++ticks_[agent];
  }
  void join(const Clock& other) {
    ticks_.resize(std::max(ticks_.size(), other.ticks_.size()));
    for (std::size_t i = 0; i < other.ticks_.size(); ++i) ticks_[i] = std::max(ticks_[i], other.ticks_[i]);
  }

 private:
  std::vector<std::uint64_t> ticks_;
};

struct Use {
  const char *begin, *end;
  bool writes;
};

struct Operation {
  std::string name;
  std::size_t agent = 0;
  Clock clock;
  std::vector<std::shared_ptr<Operation>> before;
  std::function<void()> work;
  bool is_done = false;
};
using Pointer = std::shared_ptr<Operation>;

struct Node {
  std::string name;
  std::vector<Use> uses;
  std::function<void()> work;
  std::vector<std::size_t> before;
};

struct Capture {
  cudaStream_t origin = nullptr;
  bool is_active = true, is_valid = true;
  std::vector<Node> nodes;
};

// A use of memory by an operation, or (`agent` 0) by the host.
struct Access {
  Use use;
  std::string name;
  std::size_t agent;
  std::uint64_t tick;
};

struct Allocation {
  std::int64_t bytes;
  bool read_only, is_host;
  std::unique_ptr<char[]> memory;
  std::vector<Access> accesses;
};

struct State {
  Order order = Order::kAtOnce;
  std::vector<std::string> reports;
  std::map<std::string, std::pair<int, cudaError_t>> failures;
  cudaError_t last_error = cudaSuccess;
  Clock host;
  std::size_t agents = 1;
  std::set<cudaStream_t> streams;
  std::vector<std::weak_ptr<Capture>> captures;
  std::map<const char*, Allocation> memory;
  std::vector<std::unique_ptr<char[]>> released;
  int alive = 0;
};
State& state();

void report(const std::string& text);
// Keeps an error as cudaGetLastError has it.
cudaError_t kept(cudaError_t error);
// Every function of the runtime begins with it: a failure that a test has asked for.
cudaError_t enter(const char* function);
// The same for what no thread may call while it records a graph.
cudaError_t enter_unsafe(const char* function);

cudaStream_t stream_of(cudaStream_t stream);  // the legacy default stream for null
std::vector<Use> uses_of(const void* parameters, std::size_t bytes);
// Queues work on a stream, or records it there.
cudaError_t queue(cudaStream_t stream, const std::string& name, std::vector<Use> uses, std::function<void()> work,
                  const std::vector<Pointer>& behind = {});
void run(const Pointer& operation);
void host_waits_for(const Pointer& operation);

}  // namespace standin

struct CUstream_st {
  std::size_t agent = 0;
  standin::Pointer last;
  std::deque<standin::Pointer> pending;
  std::shared_ptr<standin::Capture> capture;
  std::vector<std::size_t> captured;  // the nodes that the next one waits for
};

struct CUevent_st {
  standin::Pointer recorded;
  std::shared_ptr<standin::Capture> capture;  // or: recorded in it
  std::vector<std::size_t> captured;
};

struct CUgraph_st {
  std::vector<standin::Node> nodes;
};

struct CUgraphExec_st {
  std::vector<standin::Node> nodes;
  standin::Pointer last;
};
