// What an instruction is to the interpreter: its code, its handler, and how it reaches memory.
#include <algorithm>

#include "ptx.h"

namespace ptx {
namespace {

[[noreturn]] void refuse(const Details& details) {
  throw Unsupported("an instruction that is not known: " + details.text);
}

Space space_of(const Details& details) {
  for (const std::string& each : details.modifiers) {
    if (each == "global" || each == "const") return Space::kGlobal;
    if (each == "shared" || each == "shared::cta") return Space::kShared;
    if (each == "shared::cluster") return Space::kSharedCluster;
    if (each == "local") return Space::kLocal;
    if (each.rfind("param", 0) == 0) return Space::kParam;
  }
  return Space::kGeneric;
}

// Loads and stores that order other accesses, and those that are volatile, are not known.
void decode_access(Instruction& instruction, const Details& details) {
  static const std::vector<std::string> known = {"global", "const", "shared", "shared::cta", "shared::cluster",
                                                 "local",  "param", "nc",     "v2",          "v4"};
  for (const std::string& each : details.modifiers) {
    Type type;
    const bool is_known = std::find(known.begin(), known.end(), each) != known.end();
    if (!is_known && !type_of(each, type) && each.rfind("param::", 0) != 0) refuse(details);
  }
  instruction.code = details.opcode == "ld" ? Code::kLoad : Code::kStore;
  instruction.count = details.has("v4") ? 4 : details.has("v2") ? 2 : 1;
}

void decode_barrier(Instruction& instruction, const Details& details) {
  if (details.has("cluster")) {
    if (details.has("relaxed")) refuse(details);
    instruction.code = details.has("arrive") ? Code::kClusterArrive : Code::kClusterWait;
  } else if (details.has("warp")) {
    instruction.code = Code::kCollective;
  } else if (details.has("sync") && details.from.size() == 1) {
    instruction.code = Code::kBarrier;
  } else {
    refuse(details);  // barriers of some of the threads, arrival without waiting
  }
}

void decode_copy(Instruction& instruction, const Details& details) {
  if (!details.has("async") || details.has("mbarrier")) refuse(details);
  if (details.has("commit_group")) {
    instruction.code = Code::kAsyncCommit;
  } else if (details.has("wait_group") || details.has("wait_all")) {
    instruction.code = Code::kAsyncWait;
  } else if (details.from.size() == 3 && (!details.has("bulk") || details.has("bulk_group"))) {
    instruction.code = Code::kAsyncCopy;
  } else {
    refuse(details);
  }
}

void decode_move_of_many(Instruction& instruction, const Details& details) {
  int* const slots[] = {&instruction.b, &instruction.c, &instruction.d};
  for (std::size_t i = 1; i < std::min<std::size_t>(4, details.to.size()); ++i) *slots[i - 1] = details.to[i];
}

// cvta: an address in a space, and its place in the generic space.
template <std::uint64_t kWindow, bool kToSpace>
void convert_address(Slots s, const Instruction& i) {
  s[i.to] = kToSpace ? s[i.a] - kWindow : s[i.a] + kWindow;
}
Handler address_handler(const Details& details, Space space) {
  const bool to_space = details.has("to");
  switch (space) {
    case Space::kShared:
      return to_space ? convert_address<kSharedWindow, true> : convert_address<kSharedWindow, false>;
    case Space::kLocal:
      return to_space ? convert_address<kLocalWindow, true> : convert_address<kLocalWindow, false>;
    case Space::kParam:
      return to_space ? convert_address<kParamWindow, true> : convert_address<kParamWindow, false>;
    case Space::kGlobal:
      return convert_address<0, true>;
    default:
      return nullptr;
  }
}

bool is_nothing(const Details& details) {
  // The order of memory beyond barriers is not modelled; that dependents may start is not either: see kGridWait.
  return details.opcode == "membar" || details.opcode == "fence" || details.opcode == "nop" ||
         (details.opcode == "griddepcontrol" && details.has("launch_dependents"));
}

}  // namespace

void decode(Instruction& instruction, const Details& details) {
  static const std::map<std::string, Code> codes = {
      {"atom", Code::kAtomic},    {"red", Code::kAtomic},      {"bra", Code::kBranch},      {"brx", Code::kBranchTable},
      {"call", Code::kCall},      {"ret", Code::kReturn},      {"exit", Code::kReturn},     {"trap", Code::kTrap},
      {"mma", Code::kCollective}, {"shfl", Code::kCollective}, {"vote", Code::kCollective}, {"mapa", Code::kMapToRank}};
  const std::string& op = details.opcode;
  instruction.space = space_of(details);
  const auto found = codes.find(op);
  if (found != codes.end()) {
    instruction.code = found->second;
  } else if (op == "ld" || op == "st") {
    decode_access(instruction, details);
  } else if (op == "bar" || op == "barrier") {
    decode_barrier(instruction, details);
  } else if (op == "cp") {
    decode_copy(instruction, details);
  } else if (op == "griddepcontrol" && details.has("wait")) {
    instruction.code = Code::kGridWait;
  } else if (is_nothing(details)) {
    instruction.code = Code::kNothing;
  } else {
    instruction.handler = op == "cvta"  ? address_handler(details, instruction.space)
                          : op == "cvt" ? conversion_handler(details)
                                        : arithmetic_handler(details);
    if (instruction.handler == nullptr) refuse(details);
    if (op == "mov") decode_move_of_many(instruction, details);
    return;
  }
  if (instruction.code == Code::kLoad || instruction.code == Code::kStore || instruction.code == Code::kAtomic) {
    if (details.types.empty()) refuse(details);
    instruction.bytes = details.types[0].bits / 8;
    instruction.is_signed = details.types[0].kind == Kind::kSigned;
  }
}

}  // namespace ptx
