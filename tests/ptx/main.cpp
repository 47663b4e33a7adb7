// Runs groups of cases on the PTX of some files: main [--large] [--counters] GROUP... -- FILE.ptx...
//
// Exits with 1 where a result is wrong or a check has found something. One line a group, and one a finding.
#include <algorithm>
#include <cstdio>
#include <map>
#include <set>

#include "cases.h"

namespace ptx {
namespace {

void print_findings() {
  for (const std::string& each : device().report.messages()) std::printf("FOUND %s\n", each.c_str());
}

std::string pair_of(const Traffic& traffic) {
  return std::to_string(traffic.accesses) + "/" + std::to_string(traffic.transfers);
}

// Of the first block of a kernel's first launch: instructions a thread; accesses of warps, and the wavefronts of shared
// memory or the sectors of global memory that they take. Of a graph: nodes, how many depend on each other, blocks.
void print_counters() {
  std::printf("%8s %8s %8s %12s %12s %12s %12s  kernel\n", "launches", "blocks", "a thread", "shared ld", "shared st",
              "global ld", "global st");
  std::map<std::string, KernelCounts> by_name;
  for (const auto& [name, counts] : device().counters.kernels()) {
    if (name.rfind("tiny", 0) != 0) by_name[readable(name)] = counts;
  }
  for (const auto& [name, c] : by_name) {
    const double a_thread =
        c.threads == 0 ? 0 : static_cast<double>(c.instructions_of_block) / static_cast<double>(c.threads);
    std::printf("%8llu %8llu %8.1f %12s %12s %12s %12s  %s\n", static_cast<unsigned long long>(c.launches),
                static_cast<unsigned long long>(c.blocks), a_thread, pair_of(c.shared_loads).c_str(),
                pair_of(c.shared_stores).c_str(), pair_of(c.global_loads).c_str(), pair_of(c.global_stores).c_str(),
                name.c_str());
  }
  std::set<std::string> graphs;  // an engine has two, of the same form
  for (const GraphCounts& g : device().counters.graphs()) {
    graphs.insert("graph: " + std::to_string(g.nodes) + " nodes, " + std::to_string(g.depth) +
                  " one after the other, " + std::to_string(g.blocks) + " blocks");
  }
  for (const std::string& each : graphs) std::printf("%s\n", each.c_str());
}

int run_groups(int count, char** arguments) {
  const auto has = [&](const char* wanted) {
    return std::any_of(arguments + 1, arguments + count, [&](const char* each) { return std::string(each) == wanted; });
  };
  bool is_file = false;
  for (int i = 1; i < count; ++i) {
    if (is_file) load(arguments[i]);
    is_file |= std::string(arguments[i]) == "--";
  }
  Groups groups;
  if (has("tiny")) run_tiny_cases(groups);
  if (has("ops")) run_op_cases(groups, has("--large"));
  if (has("update")) run_update_cases(groups, has("--large"));
  if (has("ops-float32")) run_float_op_cases(groups);
  for (const char* each : {"small", "rows", "tf32", "bfloat16", "fault"}) {
    if (has(each)) run_small_case(groups, each);
  }
  if (has("--counters")) print_counters();
  print_findings();
  const Coverage covered = coverage();
  for (const std::string& each : covered.never_launched) std::printf("never launched: %s\n", each.c_str());
  std::printf("%zu of %zu kernels launched, %zu of %zu instructions of their PTX run\n",
              covered.kernels - covered.never_launched.size(), covered.kernels, covered.instructions_run,
              covered.instructions);
  std::printf("%s: %llu instructions, %llu launches, %llu findings, %llu writes of the same value by several threads\n",
              target().c_str(), static_cast<unsigned long long>(device().counters.instructions()),
              static_cast<unsigned long long>(device().counters.launches()),
              static_cast<unsigned long long>(device().report.total()),
              static_cast<unsigned long long>(device().races.same_value_writes));
  const int status = report();
  return device().report.total() > 0 ? 1 : status;
}

}  // namespace

void Groups::done(const std::string& name, int cases) {
  const std::uint64_t instructions = device().counters.instructions(), launches = device().counters.launches();
  const std::uint64_t faults = device().report.total();
  std::printf("%-32s %4d cases %8.1f M instructions %6llu launches %6llu findings\n", name.c_str(), cases,
              1e-6 * static_cast<double>(instructions - instructions_),
              static_cast<unsigned long long>(launches - launches_), static_cast<unsigned long long>(faults - faults_));
  std::fflush(stdout);
  instructions_ = instructions;
  launches_ = launches;
  faults_ = faults;
}

}  // namespace ptx

int main(int count, char** arguments) {
  try {
    return ptx::run_groups(count, arguments);
  } catch (const std::exception& error) {
    ptx::print_findings();
    std::printf("STOPPED %s\n", error.what());
    return 1;
  }
}
