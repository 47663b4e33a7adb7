// Whether two accesses to a piece of memory can happen at the same time.
//
// Of each piece the last write and a summary of the reads since then are kept, as in FastTrack (Flanagan and Freund,
// 2009): when an access is not after them, by a barrier, by the order of launches or by being the same thread's, and
// one of the two writes, they race, in whatever order the interpreter has run them.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "order.h"
#include "report.h"

namespace ptx {

// How many threads an access stands for: after a merge the smallest group that has them all.
enum class Scope : std::uint8_t { kThread, kWarp, kBlock, kCluster, kGrid };

// Who made an access, and after how many barriers of each kind.
struct Stamp {
  LaunchId launch = 0;  // 0: nobody
  std::uint32_t block = 0, cluster = 0;
  std::uint32_t block_phase = 0, cluster_phase = 0;
  std::uint16_t thread = 0, warp_phase = 0;
  Scope scope = Scope::kThread;
  bool is_atomic = false;
};

struct Cell {
  static constexpr int kEarlier = 3;
  Stamp written, read;
  LaunchId earlier_readers[kEarlier] = {};  // of launches that may still run
  bool has_value = false;                   // somebody has written it
  bool is_copying = false;                  // an asynchronous copy to or from it is under way
};

// A cluster's barrier is two steps: phases are even before an arrival and odd between arrival and wait. What came
// before an arrival is before everything behind the wait that belongs to it.
inline bool cluster_ordered(std::uint32_t a, std::uint32_t b) { return b >= (a % 2 == 0 ? a + 2 : a + 3); }

class Races {
 public:
  explicit Races(const Order& order) : order_(order) {}

  bool ordered(const Stamp& a, const Stamp& b) const {
    if (a.launch == 0) return true;
    if (!order_.same_grid(a.launch, b.launch)) return order_.before(a.launch, b.launch);
    const bool same_block = a.block == b.block;
    if (a.scope == Scope::kThread && same_block && a.thread == b.thread) return true;
    if (a.scope <= Scope::kWarp && same_block && a.thread / 32 == b.thread / 32 && a.warp_phase < b.warp_phase)
      return true;
    if (a.scope <= Scope::kBlock && same_block && a.block_phase < b.block_phase) return true;
    return a.scope <= Scope::kCluster && a.cluster == b.cluster && cluster_ordered(a.cluster_phase, b.cluster_phase);
  }

  // Looks at an access and keeps it. Returns kFaults where there is no race. `changes_nothing`: a write of the value
  // that is there already. Several threads may write the same, and `same_value_writes` counts it.
  Fault access(Cell& cell, const Stamp& now, bool is_write, bool changes_nothing) {
    Fault found = Fault::kFaults;
    const bool both_atomic = now.is_atomic && cell.written.is_atomic;
    if (!both_atomic && !ordered(cell.written, now)) {
      if (is_write && changes_nothing) {
        ++same_value_writes;
      } else {
        found = kind_of(cell.written, now);
      }
    }
    if (!is_write) {
      keep_read(cell, now);
      return found;
    }
    if (!(now.is_atomic && cell.read.is_atomic) && !ordered(cell.read, now)) found = kind_of(cell.read, now);
    for (LaunchId& reader : cell.earlier_readers) {
      if (!order_.before(reader, now.launch)) found = Fault::kLaunchRace;
      reader = 0;
    }
    cell.written = now;
    cell.read = {};
    return found;
  }

  std::uint64_t same_value_writes = 0;

 private:
  Fault kind_of(const Stamp& a, const Stamp& b) const {
    if (!order_.same_grid(a.launch, b.launch)) return Fault::kLaunchRace;
    return a.block == b.block && a.scope <= Scope::kBlock ? Fault::kBlockRace : Fault::kGridRace;
  }

  void keep_read(Cell& cell, const Stamp& now) {
    Stamp& read = cell.read;
    if (ordered(read, now)) {
      read = now;
      return;
    }
    if (!order_.same_grid(read.launch, now.launch)) {
      keep_earlier(cell, read.launch, now.launch);
      read = now;
      return;
    }
    read.is_atomic &= now.is_atomic;
    if (read.cluster != now.cluster) {
      read.scope = Scope::kGrid;
    } else if (read.block != now.block) {
      if (read.scope < Scope::kCluster) read.scope = Scope::kCluster;
      if (now.cluster_phase > read.cluster_phase) read.cluster_phase = now.cluster_phase;
    } else {
      const Scope joint = read.thread / 32 == now.thread / 32 ? Scope::kWarp : Scope::kBlock;
      if (read.scope < joint) read.scope = joint;
      if (now.warp_phase > read.warp_phase) read.warp_phase = now.warp_phase;
      if (now.block_phase > read.block_phase) read.block_phase = now.block_phase;
    }
  }

  void keep_earlier(Cell& cell, LaunchId reader, LaunchId now) {
    for (LaunchId& place : cell.earlier_readers) {
      if (place == 0 || order_.before(place, now) || order_.same_grid(place, reader) || order_.before(place, reader)) {
        place = reader;
        return;
      }
    }
    throw std::runtime_error("more than " + std::to_string(Cell::kEarlier + 1) +
                             " launches side by side read one place");
  }

  const Order& order_;
};

}  // namespace ptx
