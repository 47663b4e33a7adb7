// What the checks have found.
#pragma once

#include <array>
#include <cstdint>
#include <set>
#include <string>

namespace ptx {

enum class Fault {
  kBlockRace,   // two threads of a block, no barrier between them
  kGridRace,    // two blocks of a launch
  kLaunchRace,  // two launches, neither after the other
  kBarrier,     // not all threads of a block at the same barrier
  kCollective,  // a shuffle, vote or mma that not all of its lanes reach
  kMisaligned,
  kUnwritten,  // something depends on memory that nobody has written
  kOutside,    // of every region of memory, or of a block's shared memory
  kReadOnly,   // written
  kNotJoined,  // a lane of a graph at its end
  kTrap,
  kAsyncCopy,  // memory touched while a copy to or from it is under way
  kFaults
};

inline const char* name_of(Fault fault) {
  constexpr const char* names[] = {"race in a block",
                                   "race between blocks",
                                   "race between launches",
                                   "barrier",
                                   "collective",
                                   "misaligned access",
                                   "unwritten memory",
                                   "outside of memory",
                                   "write to read-only memory",
                                   "lane not joined",
                                   "trap",
                                   "asynchronous copy"};
  static_assert(sizeof names / sizeof *names == static_cast<std::size_t>(Fault::kFaults), "a name for each");
  return names[static_cast<std::size_t>(fault)];
}

class Report {
 public:
  void add(Fault fault, const std::string& where) {
    if (wants(fault)) messages_.insert(std::string(name_of(fault)) + ": " + where);
    ++counts_[static_cast<std::size_t>(fault)];
  }
  // A race shows itself thousands of times: the first few are told.
  bool wants(Fault fault) const { return count(fault) < 10; }
  std::uint64_t count(Fault fault) const { return counts_[static_cast<std::size_t>(fault)]; }
  std::uint64_t total() const {
    std::uint64_t sum = 0;
    for (const std::uint64_t each : counts_) sum += each;
    return sum;
  }
  const std::set<std::string>& messages() const { return messages_; }
  void clear() { *this = {}; }

 private:
  std::array<std::uint64_t, static_cast<std::size_t>(Fault::kFaults)> counts_{};
  std::set<std::string> messages_;
};

}  // namespace ptx
