#include "counters.h"

#include <cxxabi.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <regex>
#include <set>

namespace ptx {
namespace {

constexpr std::size_t kWarp = 32;

// One access of the lanes of a warp to shared memory takes a wavefront for each different word that a bank must give.
// Lanes with 4 bytes go together, those with 8 by halves of the warp, those with 16 by quarters.
std::uint64_t wavefronts(const std::vector<const Access*>& lanes) {
  const std::size_t together = lanes[0]->bytes <= 4 ? 32 : lanes[0]->bytes == 8 ? 16 : 8;
  std::uint64_t all = 0;
  for (std::size_t first = 0; first < lanes.size(); first += together) {
    std::map<std::uint64_t, std::set<std::uint64_t>> words_of_bank;
    for (std::size_t i = first; i < std::min(first + together, lanes.size()); ++i) {
      for (int byte = 0; byte < std::max<int>(lanes[i]->bytes, 1); byte += 4) {
        const std::uint64_t word = (lanes[i]->address + static_cast<std::uint64_t>(byte)) / 4;
        words_of_bank[word % 32].insert(word);
      }
    }
    std::size_t most = 0;
    for (const auto& [bank, words] : words_of_bank) most = std::max(most, words.size());
    all += most;
  }
  return all;
}

std::uint64_t sectors(const std::vector<const Access*>& lanes) {
  std::set<std::uint64_t> touched;
  for (const Access* each : lanes) {
    for (std::uint64_t byte = 0; byte < each->bytes; byte += 8) touched.insert((each->address + byte) / 32);
  }
  return touched.size();
}

void count_warp(KernelCounts& counts, const std::vector<std::vector<Access>>& accesses, std::size_t first) {
  // The lanes of one execution of an instruction: its n-th by each thread.
  std::map<const void*, std::vector<std::vector<const Access*>>> executions;
  for (std::size_t thread = first; thread < std::min(first + kWarp, accesses.size()); ++thread) {
    std::map<const void*, std::size_t> seen;
    for (const Access& each : accesses[thread]) {
      auto& of_instruction = executions[each.instruction];
      const std::size_t n = seen[each.instruction]++;
      if (of_instruction.size() <= n) of_instruction.resize(n + 1);
      of_instruction[n].push_back(&each);
    }
  }
  for (const auto& [instruction, all] : executions) {
    for (const auto& lanes : all) {
      const bool is_shared = lanes[0]->is_shared, is_write = lanes[0]->is_write;
      Traffic& traffic = is_shared ? (is_write ? counts.shared_stores : counts.shared_loads)
                                   : (is_write ? counts.global_stores : counts.global_loads);
      ++traffic.accesses;
      traffic.transfers += is_shared ? wavefronts(lanes) : sectors(lanes);
    }
  }
}

}  // namespace

std::uint64_t Counters::instructions() const {
  std::uint64_t sum = 0;
  for (const auto& [name, counts] : kernels_) sum += counts.instructions;
  return sum;
}

std::uint64_t Counters::launches() const {
  std::uint64_t sum = 0;
  for (const auto& [name, counts] : kernels_) sum += counts.launches;
  return sum;
}

void Counters::count_traffic(KernelCounts& counts, const std::vector<std::vector<Access>>& accesses) {
  for (std::size_t first = 0; first < accesses.size(); first += kWarp) count_warp(counts, accesses, first);
}

std::string readable(const std::string& mangled) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> full(abi::__cxa_demangle(mangled.c_str(), nullptr, nullptr, &status),
                                                    std::free);
  if (status != 0) return mangled;
  std::string name = full.get();
  name = std::regex_replace(
      name, std::regex("\\(anonymous namespace\\)::|sacfast::|portable::|cuda::|void |_GLOBAL__N__\\w+::"), "");
  // The parameters repeat the template arguments.
  int depth = 0;
  for (std::size_t i = 0; i < name.size(); ++i) {
    depth += name[i] == '<' ? 1 : name[i] == '>' ? -1 : 0;
    const bool is_cast = i > 0 && (name[i - 1] == '<' || name[i - 1] == ' ');  // (Precision)1
    if (name[i] == '(' && depth == 0 && !is_cast) return name.substr(0, i);
  }
  return name;
}

}  // namespace ptx
