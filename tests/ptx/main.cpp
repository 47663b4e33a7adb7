// Runs groups of cases on the PTX of some files: main [--large] [--counters] GROUP... -- FILE.ptx...
//
// Exits with 1 where a result is wrong or a check has found something. One line a group, and one a finding.
#include <algorithm>
#include <cstdio>

#include "cases.h"

namespace ptx {
namespace {

void print_counters() {
  std::printf("%-72s %8s %9s %12s %10s %8s %8s %8s %8s\n", "kernel", "launches", "blocks", "instructions", "a thread",
              "LDS wf", "STS wf", "LDG sec", "STG sec");
  const auto each = [](const Traffic& t) {
    return t.accesses == 0 ? 0.0 : static_cast<double>(t.transfers) / static_cast<double>(t.accesses);
  };
  for (const auto& [name, c] : device().counters.kernels()) {
    const double a_thread =
        c.threads == 0 ? 0 : static_cast<double>(c.instructions_of_block) / static_cast<double>(c.threads);
    std::printf("%-72s %8llu %9llu %12llu %10.1f %8.2f %8.2f %8.2f %8.2f\n", readable(name).substr(0, 72).c_str(),
                static_cast<unsigned long long>(c.launches), static_cast<unsigned long long>(c.blocks),
                static_cast<unsigned long long>(c.instructions), a_thread, each(c.shared_loads), each(c.shared_stores),
                each(c.global_loads), each(c.global_stores));
  }
  for (const GraphCounts& g : device().counters.graphs()) {
    std::printf("graph: %llu nodes, depth %llu, %llu blocks\n", static_cast<unsigned long long>(g.nodes),
                static_cast<unsigned long long>(g.depth), static_cast<unsigned long long>(g.blocks));
  }
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
  for (const std::string& each : device().report.messages()) std::printf("FOUND %s\n", each.c_str());
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
    for (const std::string& each : ptx::device().report.messages()) std::printf("FOUND %s\n", each.c_str());
    std::printf("STOPPED %s\n", error.what());
    return 1;
  }
}
