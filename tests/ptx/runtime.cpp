// PTX's kernels by name, streams, events and graphs. What a stream is told runs at once; the order that CUDA promises,
// and no more, goes to Order. The functions of the CUDA runtime stand in cuda_api.cpp.
#include "runtime.h"

#include <algorithm>
#include <fstream>
#include <sstream>

#include "graphs.h"

namespace ptx {
namespace {

std::vector<std::unique_ptr<Module>>& modules() {
  static std::vector<std::unique_ptr<Module>> all;
  return all;
}

std::uint32_t next_grid() {
  static std::uint32_t number = 0;
  return ++number;
}

// A copy or a fill is a launch of one thread. Memory of the host that is no region is not looked at.
void touch(const void* place, std::size_t bytes, LaunchId launch, bool is_write, bool gives_values) {
  Stamp now;
  now.launch = launch;
  device().memory.for_each_cell(reinterpret_cast<std::uint64_t>(place), bytes, [&](Region& region, Cell& cell) {
    const Fault race = device().races.access(cell, now, is_write, false);
    if (race != Fault::kFaults) device().report.add(race, "a copy or fill of " + region.name);
    cell.has_value |= gives_values;
  });
}

void run_copy(const Work& work, LaunchId launch) {
  const bool is_fill = work.from == nullptr;
  if (!is_fill) touch(work.from, work.bytes, launch, false, false);
  // What memory is cleared to is no value: a kernel that reads it before somebody has written is found.
  touch(work.to, work.bytes, launch, true, !is_fill);
  if (is_fill) {
    std::memset(work.to, work.fill, work.bytes);
  } else {
    std::memmove(work.to, work.from, work.bytes);
  }
}

}  // namespace

Device& device() {
  static Device one;
  return one;
}

void load_text(const std::string& text, const std::string& path) { modules().push_back(parse(text, path)); }

void load(const std::string& path) {
  std::ifstream file(path);
  if (!file) throw Unsupported("no file " + path);
  std::stringstream text;
  text << file.rdbuf();
  load_text(text.str(), path);
}

Coverage coverage() {
  Coverage all;
  for (const auto& module : modules()) {
    for (const auto& [name, function] : module->functions) {
      std::size_t run = 0;
      for (const Instruction& each : function->code) run += each.has_run;
      all.instructions += function->code.size();
      all.instructions_run += run;
      if (!function->is_entry) continue;
      ++all.kernels;
      if (run == 0) all.never_launched.push_back(readable(name));
    }
  }
  return all;
}

const std::string& target() { return modules().at(0)->target; }

const Function* function_named(const std::string& name) {
  for (const auto& module : modules()) {
    const auto found = module->functions.find(name);
    if (found != module->functions.end()) return found->second.get();
  }
  throw Unsupported("no kernel " + name + " in the PTX that was loaded");
}

Work kernel_work(const Function& function, Size3 blocks, Size3 threads, const void* const* arguments) {
  Work work;
  work.grid.function = &function;
  work.grid.blocks = blocks;
  work.grid.threads = threads;
  work.grid.parameters.resize(static_cast<std::size_t>(function.parameter_bytes));
  for (std::size_t i = 0; i < function.parameters.size(); ++i) {
    const Parameter& parameter = function.parameters[i];
    std::memcpy(work.grid.parameters.data() + parameter.offset, arguments[i], static_cast<std::size_t>(parameter.size));
  }
  return work;
}

// Runs work behind what it must wait for. `after` becomes what stands for it.
bool carry_out(const Work& work, int chain, std::vector<LaunchId>& after) {
  Device& d = device();
  const std::uint32_t number = next_grid();
  Grid grid = work.grid;
  if (work.is_programmatic) {
    // It starts when those before it say so, and may then be beside them and beside what they do not wait for.
    std::vector<LaunchId> known;
    for (const LaunchId id : after) {
      const std::vector<LaunchId>& of_that = starts_after()[id];
      known.insert(known.end(), of_that.begin(), of_that.end());
    }
    grid.early = d.order.add(d.order.new_chain(), known, number);
    starts_after()[grid.early] = known;
    after.push_back(grid.early);
  }
  grid.launch = d.order.add(chain, after, number);
  starts_after()[grid.launch] = work.is_programmatic ? starts_after()[grid.early] : after;
  after = {grid.launch};
  if (grid.function == nullptr) {
    run_copy(work, grid.launch);
    return true;
  }
  Machine machine(d, grid);
  try {
    machine.run();
  } catch (const Stopped&) {
    return false;
  }
  // A grid that never waits may end before the one before it does, and says nothing about that one.
  if (work.is_programmatic && !machine.has_waited()) after = {grid.early};
  return true;
}

std::map<LaunchId, std::vector<LaunchId>>& starts_after() {
  static std::map<LaunchId, std::vector<LaunchId>> all;
  return all;
}

std::set<Stream*>& all_streams() {
  static std::set<Stream*> all;
  return all;
}

Stream& default_stream() {
  static Stream stream(device().order.new_chain());
  return stream;
}

bool run(const Launch& launch) {
  Work work = kernel_work(*function_named(launch.kernel), launch.blocks, launch.threads, launch.arguments.data());
  work.grid.cluster = launch.cluster;
  work.is_programmatic = launch.is_programmatic;
  Stream& stream = default_stream();
  return carry_out(work, stream.chain, stream.heads);
}

// ---- Graphs -------------------------------------------------------------------------------------------------------

void Capture::add(Stream& stream, const Work& work) {
  nodes.push_back({work, stream.nodes});
  stream.nodes = {nodes.size() - 1};
}

// Every node must be before what the first stream has come to.
bool Capture::is_joined(const Stream& origin) const {
  std::vector<bool> reached(nodes.size(), false);
  for (const std::size_t head : origin.nodes) reached[head] = true;
  for (std::size_t i = nodes.size(); i-- > 0;) {
    if (!reached[i]) return false;
    for (const std::size_t before : nodes[i].after) reached[before] = true;
  }
  return true;
}

Graph::Graph(std::vector<Node> captured) : nodes(std::move(captured)) {
  // A node goes on with the chain of one that nobody else goes on with, or begins a new one.
  std::vector<bool> is_continued(nodes.size(), false);
  std::vector<std::uint64_t> depth(nodes.size(), 1);
  GraphCounts counts;
  counts.nodes = nodes.size();
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    int chain = -1;
    for (const std::size_t before : nodes[i].after) {
      depth[i] = std::max(depth[i], depth[before] + 1);
      if (chain >= 0 || is_continued[before]) continue;
      is_continued[before] = true;
      chain = chains[before];
    }
    chains.push_back(chain >= 0 ? chain : device().order.new_chain());
    counts.depth = std::max(counts.depth, depth[i]);
    counts.blocks += nodes[i].work.grid.function != nullptr ? nodes[i].work.grid.blocks.count() : 0;
  }
  device().counters.add_graph(counts);
}

// Nodes run in the order in which they were captured or, reversed, the last of those that are ready first.
bool Graph::launch(Stream& stream) const {
  std::vector<std::vector<LaunchId>> done(nodes.size());
  std::vector<LaunchId> leaves;
  std::vector<bool> has_run(nodes.size(), false);
  for (std::size_t n = 0; n < nodes.size(); ++n) {
    std::size_t next = nodes.size();
    for (std::size_t i = 0; i < nodes.size() && (next == nodes.size() || device().reversed); ++i) {
      const auto& after = nodes[i].after;
      if (!has_run[i] && std::all_of(after.begin(), after.end(), [&](std::size_t k) { return has_run[k]; })) next = i;
    }
    std::vector<LaunchId> after;
    for (const std::size_t before : nodes[next].after)
      after.insert(after.end(), done[before].begin(), done[before].end());
    if (nodes[next].after.empty()) after = stream.heads;
    has_run[next] = true;
    if (!carry_out(nodes[next].work, chains[next], after)) return false;
    done[next] = after;
    leaves.insert(leaves.end(), after.begin(), after.end());
  }
  if (!leaves.empty()) stream.heads = leaves;
  return true;
}

}  // namespace ptx
