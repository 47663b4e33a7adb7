// Streams, events, captures and graphs of the stand-in for the CUDA runtime.
#pragma once

#include <map>
#include <memory>
#include <set>
#include <vector>

#include "machine.h"

namespace ptx {

// A launch; without a function a copy; without a source a fill.
struct Work {
  Grid grid;
  bool is_programmatic = false;
  void* to = nullptr;
  const void* from = nullptr;
  std::size_t bytes = 0;
  int fill = 0;
};

struct Node {
  Work work;
  std::vector<std::size_t> after;  // nodes before this one in the list
};

struct Stream;

struct Capture {
  std::vector<Node> nodes;
  Stream* origin = nullptr;
  void add(Stream& stream, const Work& work);
  bool is_joined(const Stream& origin) const;
};

std::set<Stream*>& all_streams();

struct Stream {
  explicit Stream(int number) : chain(number) { all_streams().insert(this); }
  ~Stream() { all_streams().erase(this); }
  Stream(const Stream&) = delete;
  int chain;
  std::vector<LaunchId> heads;  // what the next launch comes after
  std::shared_ptr<Capture> capture;
  std::vector<std::size_t> nodes;  // while it is captured: the same
};

struct Event {
  std::vector<LaunchId> heads;
  std::shared_ptr<Capture> capture;
  std::vector<std::size_t> nodes;
};

struct Graph {
  explicit Graph(std::vector<Node> captured);
  bool launch(Stream& stream) const;
  std::vector<Node> nodes;
  std::vector<int> chains;  // of each node
};

const Function* function_named(const std::string& name);
Work kernel_work(const Function& function, Size3 blocks, Size3 threads, const void* const* arguments);
bool carry_out(const Work& work, int chain, std::vector<LaunchId>& after);
std::map<LaunchId, std::vector<LaunchId>>& starts_after();  // what each launch was put behind
Stream& default_stream();

}  // namespace ptx
