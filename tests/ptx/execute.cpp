// How threads run, and how the threads of a block and the blocks of a cluster wait for each other.
#include <algorithm>

#include "machine.h"

namespace ptx {

Machine::Machine(Device& device, const Grid& grid) : device_(device), grid_(grid) { blocks_.resize(grid.cluster); }

void Machine::run() {
  const std::uint64_t blocks = grid_.blocks.count();
  if (grid_.parameters.size() != static_cast<std::size_t>(grid_.function->parameter_bytes)) {
    throw Unsupported(grid_.function->name + ": the parameters have another size than in PTX");
  }
  KernelCounts& counts = device_.counters.of(grid_.function->name);
  const std::uint64_t clusters = blocks / grid_.cluster;
  for (std::uint64_t i = 0; i < clusters; ++i) {
    cluster_ = static_cast<std::uint32_t>(device_.reversed ? clusters - 1 - i : i);
    keeps_accesses_ = counts.launches == 0 && cluster_ == 0;
    const std::uint64_t before = instructions_;
    for (std::uint32_t rank = 0; rank < grid_.cluster; ++rank)
      prepare(blocks_[rank], cluster_ * grid_.cluster + rank, rank);
    run_cluster();
    if (!keeps_accesses_) continue;
    counts.threads = grid_.threads.count() * grid_.cluster;
    counts.instructions_of_block = instructions_ - before;
    std::vector<std::vector<Access>> accesses;
    for (Block& block : blocks_) {
      for (Thread& thread : block.threads) accesses.push_back(std::move(thread.accesses));
    }
    Counters::count_traffic(counts, accesses);
  }
  ++counts.launches;
  counts.blocks += blocks;
  counts.instructions += instructions_;
}

void Machine::prepare(Block& block, std::uint32_t number, std::uint32_t rank) {
  const Function& f = *grid_.function;
  block.number = number;
  block.rank = rank;
  block.phase = 1;
  block.granule = f.narrowest_shared;
  block.shared.assign(static_cast<std::size_t>(f.shared_bytes) + grid_.dynamic_shared, '\xff');
  block.cells.assign(block.shared.size() / static_cast<std::size_t>(block.granule) + 1, {});
  block.threads.resize(grid_.threads.count());
  const Size3 &t = grid_.threads, &g = grid_.blocks;
  for (std::uint32_t i = 0; i < block.threads.size(); ++i) {
    Thread& thread = block.threads[i];
    thread.frames.resize(1);
    thread.state = State::kRuns;
    thread.index = static_cast<std::uint16_t>(i);
    thread.warp_phase = 0;
    thread.cluster_phase = 0;
    thread.has_waited = grid_.early == 0;
    thread.copies = {};
    thread.bulk_copies = {};
    thread.accesses.clear();
    thread.local.assign(static_cast<std::size_t>(f.local_bytes), '\xff');
    Frame& frame = thread.frames[0];
    frame.function = &f;
    frame.pc = 0;
    frame.slots = f.slots;
    frame.undefined.clear();
    frame.undefined_count = 0;
    frame.parameters.assign(static_cast<std::size_t>(f.call_parameter_bytes), 0);
    const std::uint32_t special[kSpecials] = {0,
                                              i % t.x,
                                              i / t.x % t.y,
                                              i / t.x / t.y,
                                              t.x,
                                              t.y,
                                              t.z,
                                              number % g.x,
                                              number / g.x % g.y,
                                              number / g.x / g.y,
                                              g.x,
                                              g.y,
                                              g.z,
                                              i % 32,
                                              i / 32,
                                              rank,
                                              grid_.cluster,
                                              rank,
                                              grid_.cluster};
    std::copy(special, special + kSpecials, frame.slots.begin());
  }
}

// ---- Waiting for each other ---------------------------------------------------------------------------------------

void Machine::run_cluster() {
  for (;;) {
    bool progress = false;
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      progress |= run_block(blocks_[device_.reversed ? blocks_.size() - 1 - i : i]);
    }
    bool has_ended = true, waits_for_cluster = true;
    for (const Block& block : blocks_) {
      for (const Thread& thread : block.threads) {
        has_ended &= thread.state == State::kEnded;
        waits_for_cluster &= thread.state == State::kAtClusterWait || thread.state == State::kEnded;
      }
    }
    if (has_ended) return;
    if (waits_for_cluster) {
      release_cluster();
    } else if (!progress) {
      stop_at_deadlock();
    }
  }
}

// Until every thread has ended or waits for another block. Returns whether anything ran.
bool Machine::run_block(Block& block) {
  bool progress = false;
  for (;;) {
    bool ran = false;
    const std::size_t warps = (block.threads.size() + 31) / 32;
    for (std::size_t i = 0; i < warps; ++i) ran |= run_warp(block, 32 * (device_.reversed ? warps - 1 - i : i));
    std::size_t waiting = 0, ended = 0;
    for (const Thread& thread : block.threads) {
      waiting += thread.state == State::kAtBarrier;
      ended += thread.state == State::kEnded;
    }
    if (waiting > 0 && waiting + ended == block.threads.size()) {
      release_barrier(block);
      ran = true;
    }
    if (!ran) return progress;
    progress = true;
  }
}

bool Machine::run_warp(Block& block, std::size_t first) {
  const std::size_t count = std::min<std::size_t>(32, block.threads.size() - first);
  bool progress = false;
  for (;;) {
    bool ran = false;
    for (std::size_t i = 0; i < count; ++i) {
      Thread& thread = block.threads[first + (device_.reversed ? count - 1 - i : i)];
      if (thread.state != State::kRuns) continue;
      run_thread(block, thread);
      ran = true;
    }
    ran |= run_collective(block, first);
    if (!ran) return progress;
    progress = true;
  }
}

void Machine::release_barrier(Block& block) {
  const Details* first = nullptr;
  for (Thread& thread : block.threads) {
    if (thread.state == State::kEnded) {
      found(Fault::kBarrier, block, thread, "has ended, others wait at a barrier");
      continue;
    }
    const Details* const at = &details_of(thread);
    if (first == nullptr) first = at;
    if (at != first) found(Fault::kBarrier, block, thread, "others wait at another barrier");
  }
  for (Thread& thread : block.threads) {
    if (thread.state != State::kAtBarrier) continue;
    ++thread.frame().pc;
    thread.state = State::kRuns;
  }
  ++block.phase;
}

void Machine::release_cluster() {
  for (Block& block : blocks_) {
    for (Thread& thread : block.threads) {
      if (thread.state == State::kEnded) continue;
      ++thread.cluster_phase;
      ++thread.frame().pc;
      thread.state = State::kRuns;
    }
  }
}

void Machine::stop_at_deadlock() {
  for (const Block& block : blocks_) {
    for (const Thread& thread : block.threads) {
      if (thread.state == State::kAtBarrier) found(Fault::kBarrier, block, thread, "waits for ever");
      if (thread.state == State::kAtClusterWait)
        found(Fault::kBarrier, block, thread, "waits for ever for its cluster");
      if (thread.state == State::kAtCollective) found(Fault::kCollective, block, thread, "waits for ever");
    }
  }
  throw Stopped();
}

// ---- A thread -----------------------------------------------------------------------------------------------------

// Until it ends or waits.
void Machine::run_thread(Block& block, Thread& thread) {
  while (thread.state == State::kRuns) {
    Frame& frame = thread.frame();
    const Instruction& i = frame.function->code[static_cast<std::size_t>(frame.pc)];
    const Slots slots = frame.slots.data();
    ++instructions_;
    i.has_run = true;
    if (frame.undefined_count > 0) follow_undefined(block, thread, i);
    if (i.predicate >= 0 && value<bool>(slots, i.predicate) == i.is_negated) {
      ++frame.pc;
      continue;
    }
    switch (i.code) {
      case Code::kPlain:
        i.handler(slots, i);
        ++frame.pc;
        break;
      case Code::kLoad:
        load(block, thread, i);
        ++frame.pc;
        break;
      case Code::kStore:
        store(block, thread, i);
        ++frame.pc;
        break;
      case Code::kBranch:
        frame.pc = i.target;
        break;
      case Code::kBranchTable:
        frame.pc = details_of(thread).targets.at(value<std::uint32_t>(slots, i.a));
        break;
      case Code::kCall:
        call(thread);
        break;
      case Code::kReturn:
        leave(thread);
        break;
      // Those that wait go on behind the instruction when they are released.
      case Code::kBarrier:
        thread.state = State::kAtBarrier;
        break;
      case Code::kCollective:
        thread.state = State::kAtCollective;
        break;
      case Code::kClusterWait:
        if (thread.cluster_phase % 2 == 0) found(Fault::kBarrier, block, thread, "waits without having arrived");
        thread.state = State::kAtClusterWait;
        break;
      default:
        run_rare(block, thread, i);
        ++frame.pc;
    }
  }
}

void Machine::run_rare(Block& block, Thread& thread, const Instruction& i) {
  const Slots slots = thread.frame().slots.data();
  switch (i.code) {
    case Code::kAtomic:
      return atomic(block, thread, i);
    case Code::kClusterArrive:
      if (thread.cluster_phase % 2 != 0) found(Fault::kBarrier, block, thread, "arrives twice");
      ++thread.cluster_phase;
      return;
    case Code::kMapToRank: {
      const std::uint64_t window = details_of(thread).has("shared::cluster") ? 0 : kSharedWindow;
      const std::uint64_t offset = (slots[i.a] - window) & ((1u << kRankShift) - 1);
      slots[i.to] = window + (std::uint64_t{value<std::uint32_t>(slots, i.b) + 1} << kRankShift | offset);
      return;
    }
    case Code::kAsyncCopy:
      return begin_copy(block, thread, i);
    case Code::kAsyncCommit:
      return commit_copies(thread);
    case Code::kAsyncWait:
      return finish_copies(block, thread, i);
    case Code::kGridWait:
      thread.has_waited = has_waited_ = true;
      return;
    case Code::kTrap:
      found(Fault::kTrap, block, thread);
      throw Stopped();
    default:  // kNothing: the others have run
      return;
  }
}

void Machine::call(Thread& thread) {
  Frame& caller = thread.frame();
  const Details& details = details_of(thread);
  const Function& callee = *details.callee;
  if (callee.local_bytes > 0) throw Unsupported(callee.name + ": a called function with local memory");
  Frame frame;
  frame.function = &callee;
  frame.slots = callee.slots;
  std::copy(caller.slots.begin(), caller.slots.begin() + kSpecials, frame.slots.begin());
  frame.parameters.assign(static_cast<std::size_t>(callee.call_parameter_bytes), 0);
  for (std::size_t k = 0; k < details.arguments.size(); ++k) {
    const Parameter& to = callee.parameters[k];
    std::memcpy(frame.parameters.data() + to.offset, caller.parameters.data() + details.arguments[k],
                static_cast<std::size_t>(to.size));
  }
  thread.frames.push_back(std::move(frame));
}

void Machine::leave(Thread& thread) {
  if (thread.frames.size() == 1) {
    thread.state = State::kEnded;
    return;
  }
  const Frame done = std::move(thread.frames.back());
  thread.frames.pop_back();
  const Details& call = details_of(thread);
  if (call.result >= 0) {
    const Parameter& from = done.function->results[0];
    std::memcpy(thread.frame().parameters.data() + call.result, done.parameters.data() + from.offset,
                static_cast<std::size_t>(from.size));
  }
  ++thread.frame().pc;
}

// ---- What the report says -----------------------------------------------------------------------------------------

std::string Machine::where(const Block& block, const Thread& thread) const {
  const Details& details = details_of(thread);
  const auto& files = grid_.function->module->files;
  const auto file = files.find(details.file);
  std::string source;
  if (file != files.end()) {
    source = file->second.substr(file->second.rfind('/') + 1) + ":" + std::to_string(details.line) + ": ";
  }
  return readable(grid_.function->name) + ", block " + std::to_string(block.number) + ", thread " +
         std::to_string(thread.index) + ": " + source + details.text;
}

void Machine::found(Fault fault, const Block& block, const Thread& thread, const std::string& more) {
  const bool is_told = device_.report.wants(fault);
  device_.report.add(fault, is_told ? where(block, thread) + (more.empty() ? "" : " (" + more + ")") : "");
}

}  // namespace ptx
