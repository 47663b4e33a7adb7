// Values that stem from memory that nobody has written. A compiler may load such a value and then not use it, so only
// what depends on one is a fault: an address, a branch, a value that is stored or given to other threads.
#include <algorithm>

#include "machine.h"

namespace ptx {

void Machine::set_undefined(Frame& frame, int slot, bool is_undefined) {
  if (slot == kSink) return;
  if (frame.undefined.empty()) frame.undefined.assign(frame.slots.size(), 0);
  char& mine = frame.undefined[static_cast<std::size_t>(slot)];
  frame.undefined_count += static_cast<int>(is_undefined) - static_cast<int>(mine != 0);
  mine = is_undefined ? 1 : 0;
}

// Before an instruction runs, where some slot of the frame is undefined.
void Machine::follow_undefined(Block& block, Thread& thread, const Instruction& i) {
  Frame& frame = thread.frame();
  const Details& details = details_of(thread);
  const auto undefined = [&](int slot) { return frame.undefined[static_cast<std::size_t>(slot)] != 0; };
  if (i.predicate >= 0) {
    if (undefined(i.predicate)) {
      found(Fault::kUnwritten, block, thread);
      set_undefined(frame, i.predicate, false);
    }
    if (value<bool>(frame.slots.data(), i.predicate) == i.is_negated) return;
  }
  bool depends = std::any_of(details.from.begin(), details.from.end(), undefined);
  if (i.code == Code::kPlain && depends) {
    const bool is_logic =
        !details.types.empty() && details.types[0].kind == Kind::kPredicate && details.from.size() == 2;
    if (details.opcode == "selp" && !undefined(i.c)) {
      depends = undefined(value<bool>(frame.slots.data(), i.c) ? i.a : i.b);
    } else if (is_logic && (details.opcode == "and" || details.opcode == "or")) {
      // One operand alone may decide.
      const bool decides = details.opcode == "or";
      for (const int slot : details.from) {
        if (!undefined(slot) && value<bool>(frame.slots.data(), slot) == decides) depends = false;
      }
    }
  } else if (depends) {
    found(Fault::kUnwritten, block, thread);
    depends = false;
  }
  for (const int slot : details.to) set_undefined(frame, slot, depends);
}

}  // namespace ptx
