// Copies that go on while their thread does: cp.async, and cp.async.bulk with groups. PTX ISA, chapter 9.7.9.25.
//
// A copy's bytes arrive when its thread waits for it, which is as late as a GPU may be. Until then the destination has
// no value and nobody may touch it, and the source must stay as it is. At the wait the bytes are written by the waiting
// thread: others see them behind a barrier.
#include <algorithm>

#include "machine.h"

namespace ptx {

void Machine::mark_copying(Block& block, const AsyncCopy& copy, bool is_copying) {
  const auto mark = [&](Cell& cell) {
    cell.is_copying = is_copying;
    if (is_copying) cell.has_value = false;
  };
  Region* const region = copy.to_space == Space::kShared ? nullptr : device_.memory.find(copy.to, copy.bytes.size());
  const auto granule = static_cast<std::size_t>(region != nullptr ? region->granule : block.granule);
  const std::size_t offset = copy.to - (region != nullptr ? region->base : 0);
  for (std::size_t at = offset / granule; at * granule < offset + copy.bytes.size(); ++at) {
    mark(region != nullptr ? region->cell(at) : block.cells[at]);
  }
}

void Machine::begin_copy(Block& block, Thread& thread, const Instruction& i) {
  const Details& details = details_of(thread);
  const std::uint64_t* const slots = thread.frame().slots.data();
  const bool is_bulk = details.has("bulk"), to_shared = details.modifiers[2].rfind("shared", 0) == 0;
  AsyncCopy copy;
  copy.to_space = to_shared ? Space::kShared : Space::kGlobal;
  copy.to = slots[i.a] + static_cast<std::uint64_t>(i.offset);
  copy.from = slots[i.b];
  copy.bytes.resize(value<std::uint32_t>(slots, i.c));
  const std::size_t unit = is_bulk ? 16 : copy.bytes.size();
  if (copy.bytes.empty() || copy.bytes.size() % unit != 0 || copy.to % unit != 0 || copy.from % unit != 0) {
    found(Fault::kMisaligned, block, thread);
    throw Stopped();
  }
  const Space from_space = to_shared ? Space::kGlobal : Space::kShared;
  for (std::size_t at = 0; at < copy.bytes.size(); at += unit) {
    const Place from = reach(block, thread, {copy.from + at, from_space, unit, false, false, nullptr});
    const Place to = reach(block, thread, {copy.to + at, copy.to_space, unit, true, false, nullptr});
    if (from.bytes == nullptr || to.bytes == nullptr) throw Stopped();
    if (!from.has_values) found(Fault::kUnwritten, block, thread);
    std::memcpy(copy.bytes.data() + at, from.bytes, unit);
  }
  mark_copying(block, copy, true);
  (is_bulk ? thread.bulk_copies : thread.copies).begun.push_back(std::move(copy));
}

void Machine::commit_copies(Thread& thread) {
  AsyncCopies& copies = details_of(thread).has("bulk") ? thread.bulk_copies : thread.copies;
  copies.groups.push_back(std::move(copies.begun));
  copies.begun.clear();
}

// Waits until at most N of the thread's latest groups are under way; with `.read`, still reading their sources.
void Machine::finish_copies(Block& block, Thread& thread, const Instruction& i) {
  const Details& details = details_of(thread);
  AsyncCopies& copies = details.has("bulk") ? thread.bulk_copies : thread.copies;
  std::size_t left = 0;
  if (!details.has("wait_all")) {
    left = value<std::uint32_t>(thread.frame().slots.data(), i.a);
  } else if (!copies.begun.empty()) {
    copies.groups.push_back(std::move(copies.begun));
    copies.begun.clear();
  }
  if (details.has("read")) {
    for (std::size_t g = 0; g + left < copies.groups.size(); ++g) {
      for (AsyncCopy& copy : copies.groups[g]) {
        check_source(block, thread, copy);
        copy.has_read_source = true;
      }
    }
    return;
  }
  while (copies.groups.size() > left) {
    const std::vector<AsyncCopy> group = std::move(copies.groups.front());
    copies.groups.pop_front();
    for (const AsyncCopy& copy : group) finish_copy(block, thread, copy);
  }
}

void Machine::check_source(Block& block, Thread& thread, const AsyncCopy& copy) {
  if (copy.has_read_source) return;
  const Space from_space = copy.to_space == Space::kShared ? Space::kGlobal : Space::kShared;
  const std::size_t step = std::min<std::size_t>(copy.bytes.size(), 16);
  for (std::size_t at = 0; at < copy.bytes.size(); at += step) {
    const Place from = reach(block, thread, {copy.from + at, from_space, step, false, false, nullptr});
    if (from.bytes == nullptr || std::memcmp(from.bytes, copy.bytes.data() + at, step) != 0) {
      found(Fault::kAsyncCopy, block, thread, "the source has changed");
    }
  }
}

void Machine::finish_copy(Block& block, Thread& thread, const AsyncCopy& copy) {
  check_source(block, thread, copy);
  mark_copying(block, copy, false);
  const std::size_t step = std::min<std::size_t>(copy.bytes.size(), 16);
  for (std::size_t at = 0; at < copy.bytes.size(); at += step) {
    const Place to = reach(block, thread, {copy.to + at, copy.to_space, step, true, false, nullptr});
    if (to.bytes != nullptr) std::memcpy(to.bytes, copy.bytes.data() + at, step);
  }
}

}  // namespace ptx
