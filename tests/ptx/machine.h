// The machine that runs a grid: threads, blocks, clusters.
//
// Every thread runs by itself until it reaches something that others take part in: a barrier, or a collective of its
// warp. Blocks run one after the other, those of a cluster together. Nothing may depend on that order: the checks see
// which accesses a GPU could have made at the same time, and `reversed` runs all of it from the last thread to the
// first.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include "counters.h"
#include "memory.h"
#include "ptx.h"

namespace ptx {

struct Size3 {
  std::uint32_t x = 1, y = 1, z = 1;
  std::uint64_t count() const { return std::uint64_t{x} * y * z; }
};

struct Grid {
  const Function* function = nullptr;
  std::vector<char> parameters;
  Size3 blocks, threads;
  std::uint32_t cluster = 1;  // blocks of a cluster, along x
  std::size_t dynamic_shared = 0;
  // Where the grid may start before the one before it has ended, accesses until griddepcontrol.wait are those of
  // `early`.
  LaunchId early = 0, launch = 0;
};

// Everything that launches share.
struct Device {
  Memory memory;
  Order order;
  Races races{order};
  Report report;
  Counters counters;
  bool reversed = false;
};

// The launch ends here: what was found makes it impossible to go on. The report has it.
struct Stopped {};

// A copy that a thread has begun and not yet waited for.
struct AsyncCopy {
  std::uint64_t to = 0, from = 0;
  Space to_space = Space::kShared;
  std::vector<char> bytes;       // of the source as the copy began
  bool has_read_source = false;  // somebody has waited for that
};
// Bulk copies have groups of their own.
struct AsyncCopies {
  std::vector<AsyncCopy> begun;  // not yet in a group
  std::deque<std::vector<AsyncCopy>> groups;
};

struct Frame {
  const Function* function = nullptr;
  int pc = 0;
  std::vector<std::uint64_t> slots;
  std::vector<char> undefined;  // of each slot: whether it stems from memory that nobody has written
  int undefined_count = 0;
  std::vector<char> parameters;  // of calls
};

enum class State : std::uint8_t { kRuns, kAtBarrier, kAtCollective, kAtClusterWait, kEnded };

struct Thread {
  std::vector<Frame> frames;
  std::vector<char> local;
  State state = State::kRuns;
  std::uint16_t index = 0, warp_phase = 0;
  std::uint32_t cluster_phase = 0;
  bool has_waited = true;  // for the grid before
  AsyncCopies copies, bulk_copies;
  std::vector<Access> accesses;  // kept where the counters want them

  Frame& frame() { return frames.back(); }
};

struct Block {
  std::uint32_t number = 0, rank = 0;  // in the grid, in the cluster
  std::uint32_t phase = 1;             // barriers so far
  std::vector<char> shared;
  std::vector<Cell> cells;  // of the shared memory
  int granule = 4;
  std::vector<Thread> threads;
};

class Machine {
 public:
  Machine(Device& device, const Grid& grid);
  // Throws Stopped.
  void run();
  bool has_waited() const { return has_waited_; }  // for the grid before, in any thread

 private:
  // execute.cpp: threads, and what they do together
  void prepare(Block& block, std::uint32_t number, std::uint32_t rank);
  void run_cluster();
  bool run_block(Block& block);
  bool run_warp(Block& block, std::size_t first);
  void run_thread(Block& block, Thread& thread);
  void run_rare(Block& block, Thread& thread, const Instruction& instruction);
  void call(Thread& thread);
  void leave(Thread& thread);
  void release_barrier(Block& block);
  void release_cluster();
  [[noreturn]] void stop_at_deadlock();

  // collectives.cpp
  bool run_collective(Block& block, std::size_t first);
  void shuffle(std::vector<Thread*>& lanes, std::size_t first_thread, const Details& details);
  void vote(std::vector<Thread*>& lanes, const Details& details);
  void multiply(Block& block, std::vector<Thread*>& lanes, const Details& details);

  // access.cpp: loads, stores, atomics, and the checks of each
  void load(Block& block, Thread& thread, const Instruction& instruction);
  void store(Block& block, Thread& thread, const Instruction& instruction);
  void atomic(Block& block, Thread& thread, const Instruction& instruction);
  struct Place {
    char* bytes = nullptr;  // null: there is no such memory
    bool has_values = true;
  };
  struct Reach {
    std::uint64_t address;
    Space space;
    std::size_t bytes;
    bool is_write, is_atomic;
    const void* written;  // null: not known beforehand
  };
  Place reach(Block& block, Thread& thread, const Reach& wanted);
  Place reach_global(Block& block, Thread& thread, const Reach& wanted);
  Place reach_shared(Block& block, Thread& thread, const Reach& wanted);
  Place reach_parameters(Thread& thread, const Reach& wanted);
  bool check_cells(Block& block, Thread& thread, const Reach& wanted, Cell* const* cells, std::size_t count,
                   bool changes_nothing);
  Stamp stamp_of(const Block& block, const Thread& thread, bool is_atomic) const;

  // async.cpp
  void begin_copy(Block& block, Thread& thread, const Instruction& instruction);
  void commit_copies(Thread& thread);
  void finish_copies(Block& block, Thread& thread, const Instruction& instruction);
  void finish_copy(Block& block, Thread& thread, const AsyncCopy& copy);
  void check_source(Block& block, Thread& thread, const AsyncCopy& copy);
  void mark_copying(Block& block, const AsyncCopy& copy, bool is_copying);

  // undefined.cpp
  void follow_undefined(Block& block, Thread& thread, const Instruction& instruction);
  void set_undefined(Frame& frame, int slot, bool is_undefined);

  std::string where(const Block& block, const Thread& thread) const;
  void found(Fault fault, const Block& block, const Thread& thread, const std::string& more = "");
  const Details& details_of(const Thread& thread) const {
    const Frame& frame = thread.frames.back();
    return frame.function->details[static_cast<std::size_t>(frame.pc)];
  }

  Device& device_;
  const Grid& grid_;
  std::vector<Block> blocks_;  // of the cluster in hand
  std::uint32_t cluster_ = 0;
  std::uint64_t instructions_ = 0;
  bool keeps_accesses_ = false, has_waited_ = false;
};

}  // namespace ptx
