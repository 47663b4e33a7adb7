// Loads, stores and atomics, and what is checked of each: region, alignment, races, whether the memory has a value.
#include <algorithm>

#include "machine.h"

namespace ptx {

Stamp Machine::stamp_of(const Block& block, const Thread& thread, bool is_atomic) const {
  Stamp stamp;
  stamp.launch = thread.has_waited ? grid_.launch : grid_.early;
  stamp.block = block.number;
  stamp.cluster = cluster_;
  stamp.block_phase = block.phase;
  stamp.cluster_phase = thread.cluster_phase;
  stamp.thread = thread.index;
  stamp.warp_phase = thread.warp_phase;
  stamp.is_atomic = is_atomic;
  return stamp;
}

// Returns whether all of the cells have values.
bool Machine::check_cells(Block& block, Thread& thread, const Reach& wanted, Cell* const* cells, std::size_t count,
                          bool changes_nothing) {
  const Stamp now = stamp_of(block, thread, wanted.is_atomic);
  bool has_values = true;
  for (std::size_t i = 0; i < count; ++i) {
    Cell& cell = *cells[i];
    if (cell.is_copying) found(Fault::kAsyncCopy, block, thread);
    const Fault race = device_.races.access(cell, now, wanted.is_write, changes_nothing);
    if (race != Fault::kFaults) found(race, block, thread, wanted.is_write ? "writes" : "reads");
    has_values &= cell.has_value;
    cell.has_value |= wanted.is_write;
  }
  return has_values;
}

Machine::Place Machine::reach_global(Block& block, Thread& thread, const Reach& wanted) {
  Region* const region = device_.memory.find(wanted.address, wanted.bytes);
  if (region == nullptr) {
    for (const auto& each : grid_.function->module->storage) {  // the module's own tables, which no kernel writes
      const auto base = reinterpret_cast<std::uint64_t>(each->data());
      if (!wanted.is_write && wanted.address >= base && wanted.address + wanted.bytes <= base + 8 * each->size()) {
        return {reinterpret_cast<char*>(wanted.address), true};
      }
    }
    found(Fault::kOutside, block, thread, wanted.is_write ? "writes" : "reads");
    return {};
  }
  if (wanted.is_write && !region->is_writable) {
    found(Fault::kReadOnly, block, thread, region->name);
    return {};
  }
  auto* const bytes = reinterpret_cast<char*>(wanted.address);
  const bool changes_nothing = wanted.written != nullptr && std::memcmp(bytes, wanted.written, wanted.bytes) == 0;
  const auto granule = static_cast<std::size_t>(region->granule);
  const std::size_t offset = wanted.address - region->base;
  Cell* cells[64];
  std::size_t count = 0;
  for (std::size_t at = offset / granule; at * granule < offset + wanted.bytes; ++at)
    cells[count++] = &region->cell(at);
  const bool has_values = check_cells(block, thread, wanted, cells, count, changes_nothing);
  return {bytes, has_values || region->content == Content::kValues};
}

Machine::Place Machine::reach_shared(Block& block, Thread& thread, const Reach& wanted) {
  const auto rank = static_cast<std::uint32_t>(wanted.address >> kRankShift & 0xffu);
  if (rank > blocks_.size()) {
    found(Fault::kOutside, block, thread, "a block that the cluster lacks");
    return {};
  }
  Block& owner = rank == 0 ? block : blocks_[rank - 1];
  const std::size_t offset = wanted.address & ((1u << kRankShift) - 1);
  if (offset + wanted.bytes > owner.shared.size()) {
    found(Fault::kOutside, block, thread, "of the block's shared memory");
    return {};
  }
  if (&owner != &block && std::all_of(owner.threads.begin(), owner.threads.end(),
                                      [](const Thread& each) { return each.state == State::kEnded; })) {
    found(Fault::kOutside, block, thread, "shared memory of a block that has ended");
  }
  char* const bytes = owner.shared.data() + offset;
  const bool changes_nothing = wanted.written != nullptr && std::memcmp(bytes, wanted.written, wanted.bytes) == 0;
  const auto granule = static_cast<std::size_t>(owner.granule);
  Cell* cells[64];
  std::size_t count = 0;
  for (std::size_t at = offset / granule; at * granule < offset + wanted.bytes; ++at) cells[count++] = &owner.cells[at];
  return {bytes, check_cells(block, thread, wanted, cells, count, changes_nothing)};
}

Machine::Place Machine::reach_parameters(Thread& thread, const Reach& wanted) {
  const auto address = static_cast<std::int64_t>(wanted.address);
  const bool is_call = address >= kCallParameters;
  const std::int64_t offset = is_call ? address - kCallParameters : address;
  Frame& frame = thread.frame();
  const std::size_t size = is_call ? frame.parameters.size() : grid_.parameters.size();
  if (offset < 0 || static_cast<std::size_t>(offset) + wanted.bytes > size || (wanted.is_write && !is_call)) return {};
  return {is_call ? frame.parameters.data() + offset : const_cast<char*>(grid_.parameters.data()) + offset, true};
}

Machine::Place Machine::reach(Block& block, Thread& thread, const Reach& asked) {
  Reach wanted = asked;
  if (wanted.space == Space::kGeneric) {
    const std::uint64_t window = wanted.address & (0xffull << 56);
    wanted.space = window == kSharedWindow  ? Space::kSharedCluster
                   : window == kLocalWindow ? Space::kLocal
                   : window == kParamWindow ? Space::kParam
                                            : Space::kGlobal;
    if (wanted.space != Space::kGlobal) wanted.address -= window;
  }
  const bool is_shared = wanted.space == Space::kShared || wanted.space == Space::kSharedCluster;
  if (is_shared) wanted.address &= 0xffffffffu;  // 32 bits, which wrap around
  if (wanted.address % wanted.bytes != 0) found(Fault::kMisaligned, block, thread);
  if (keeps_accesses_ && (is_shared || wanted.space == Space::kGlobal)) {
    const Frame& frame = thread.frame();
    thread.accesses.push_back({&frame.function->code[static_cast<std::size_t>(frame.pc)], wanted.address,
                               static_cast<std::uint8_t>(wanted.bytes), is_shared, wanted.is_write});
  }
  if (wanted.space == Space::kGlobal) return reach_global(block, thread, wanted);
  if (is_shared) return reach_shared(block, thread, wanted);
  Place place;
  if (wanted.space == Space::kParam) {
    place = reach_parameters(thread, wanted);
  } else if (wanted.address + wanted.bytes <= thread.local.size()) {
    place.bytes = thread.local.data() + wanted.address;
  }
  if (place.bytes == nullptr) found(Fault::kOutside, block, thread, "of parameters or local memory");
  return place;
}

void Machine::load(Block& block, Thread& thread, const Instruction& i) {
  Frame& frame = thread.frame();
  const std::size_t bytes = i.bytes;
  const std::uint64_t address = frame.slots[static_cast<std::size_t>(i.a)] + static_cast<std::uint64_t>(i.offset);
  const Place place = reach(block, thread, {address, i.space, bytes * i.count, false, false, nullptr});
  const Details& details = details_of(thread);
  for (std::size_t k = 0; k < i.count; ++k) {
    std::uint64_t bits = 0;
    if (place.bytes != nullptr) std::memcpy(&bits, place.bytes + k * bytes, bytes);
    if (i.is_signed && bytes < 8) {
      const std::size_t unused = 64 - 8 * bytes;
      bits = static_cast<std::uint64_t>(static_cast<std::int64_t>(bits << unused) >> unused);
    }
    const int slot = i.count == 1 ? i.to : details.to[k];
    frame.slots[static_cast<std::size_t>(slot)] = bits;
    if (!place.has_values || place.bytes == nullptr) set_undefined(frame, slot, true);
  }
}

void Machine::store(Block& block, Thread& thread, const Instruction& i) {
  Frame& frame = thread.frame();
  const std::size_t bytes = i.bytes;
  const Details& details = details_of(thread);
  char values[32];
  for (std::size_t k = 0; k < i.count; ++k) {
    std::memcpy(values + k * bytes, &frame.slots[static_cast<std::size_t>(details.from[k + 1])], bytes);
  }
  const std::uint64_t address = frame.slots[static_cast<std::size_t>(i.a)] + static_cast<std::uint64_t>(i.offset);
  const Place place = reach(block, thread, {address, i.space, bytes * i.count, true, false, values});
  if (place.bytes != nullptr) std::memcpy(place.bytes, values, bytes * i.count);
}

namespace {

template <class T>
T combined(const Details& details, T old, T given) {
  if (details.has("add")) return static_cast<T>(old + given);
  if (details.has("min")) return std::min(old, given);
  if (details.has("max")) return std::max(old, given);
  if (details.has("exch")) return given;
  throw Unsupported("an atomic that is not known: " + details.text);
}

template <class T>
void combine(const Details& details, char* place, const std::uint64_t* slots, int given) {
  T old;
  std::memcpy(&old, place, sizeof old);
  const T result = combined(details, old, value<T>(slots, given));
  std::memcpy(place, &result, sizeof result);
}

}  // namespace

void Machine::atomic(Block& block, Thread& thread, const Instruction& i) {
  Frame& frame = thread.frame();
  const std::uint64_t address = frame.slots[static_cast<std::size_t>(i.a)] + static_cast<std::uint64_t>(i.offset);
  const Place place = reach(block, thread, {address, i.space, i.bytes, true, true, nullptr});
  if (place.bytes == nullptr) return;
  const Details& details = details_of(thread);
  std::uint64_t old = 0;
  std::memcpy(&old, place.bytes, i.bytes);
  const Type type = details.types[0];
  const std::uint64_t* const slots = frame.slots.data();
  if (type.is(Kind::kFloat, 32)) {
    combine<float>(details, place.bytes, slots, i.b);
  } else if (type.is(Kind::kFloat, 64)) {
    combine<double>(details, place.bytes, slots, i.b);
  } else if (type.bits == 32) {
    type.kind == Kind::kSigned ? combine<std::int32_t>(details, place.bytes, slots, i.b)
                               : combine<std::uint32_t>(details, place.bytes, slots, i.b);
  } else if (type.bits == 64) {
    type.kind == Kind::kSigned ? combine<std::int64_t>(details, place.bytes, slots, i.b)
                               : combine<std::uint64_t>(details, place.bytes, slots, i.b);
  } else {
    throw Unsupported("an atomic that is not known: " + details.text);
  }
  if (details.opcode == "atom") frame.slots[static_cast<std::size_t>(i.to)] = old;
  if (!place.has_values) found(Fault::kUnwritten, block, thread);
}

}  // namespace ptx
