// A PTX file as the interpreter holds it: functions of decoded instructions.
//
// Every value that an instruction can name is a slot of 64 bits: registers, constants, addresses of variables and
// special registers alike. An instruction reads from a slot only the bits of its own type.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace ptx {

// The interpreter cannot go on: an instruction that it does not know, or text that it cannot parse. Never a finding.
struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

enum class Kind : std::uint8_t { kBits, kUnsigned, kSigned, kFloat, kBrainFloat, kTensorFloat, kPredicate };

struct Type {
  Kind kind = Kind::kBits;
  std::uint8_t bits = 32;
  bool is(Kind other, int width) const { return kind == other && bits == width; }
};

enum class Space : std::uint8_t { kGeneric, kGlobal, kShared, kSharedCluster, kLocal, kParam };

// What the interpreter does with an instruction. kPlain: its handler, on slots alone.
enum class Code : std::uint8_t {
  kPlain,
  kNothing,
  kLoad,
  kStore,
  kAtomic,
  kBranch,
  kBranchTable,
  kCall,
  kReturn,
  kTrap,
  kBarrier,
  kCollective,  // shuffles, votes, mma and warp barriers: several lanes of a warp together
  kClusterArrive,
  kClusterWait,
  kMapToRank,
  kAsyncCopy,
  kAsyncCommit,
  kAsyncWait,
  kGridWait
};

struct Instruction;
using Slots = std::uint64_t*;
using Handler = void (*)(Slots slots, const Instruction& instruction);

// What is read for every instruction that runs. The rest is in Details.
struct Instruction {
  Handler handler = nullptr;
  Code code = Code::kPlain;
  Space space = Space::kGeneric;
  std::uint8_t bytes = 0;  // of an element in memory
  std::uint8_t count = 1;  // elements of a vector access
  bool is_negated = false;
  bool is_signed = false;
  int predicate = -1;                      // slot, or none
  int to = 0, a = 0, b = 0, c = 0, d = 0;  // slots: the first written, the first four read
  int target = -1;                         // of a branch
  mutable bool has_run = false;            // in any launch
  std::int64_t offset = 0;                 // of an address
};

struct Function;

struct Details {
  std::string opcode;                  // "ld", "mma"
  std::vector<std::string> modifiers;  // "shared", "v4", "f32"
  std::vector<Type> types;             // those among the modifiers
  std::vector<int> to, from;           // slots
  std::vector<int> targets;            // of a branch table
  const Function* callee = nullptr;
  std::vector<std::int64_t> arguments;  // of a call, in the caller's call parameters; then where the result goes
  std::int64_t result = -1;
  std::string label;  // of a branch or a callee, until it is resolved
  std::string text;
  int file = 0, line = 0;  // of the source, where the PTX has line information

  bool has(const char* modifier) const {
    for (const std::string& each : modifiers) {
      if (each == modifier) return true;
    }
    return false;
  }
};

// Where a parameter lies: in the kernel's parameter block, or among the call parameters of a frame.
struct Parameter {
  std::int64_t offset, size;
};

// Slots that every function begins with. A thread fills in the special registers before it starts.
enum Special : int {
  kSink,  // what is written to `_`
  kTidX,
  kTidY,
  kTidZ,
  kBlockSizeX,
  kBlockSizeY,
  kBlockSizeZ,
  kBlockX,
  kBlockY,
  kBlockZ,
  kGridX,
  kGridY,
  kGridZ,
  kLane,
  kWarp,
  kClusterRank,
  kClusterSize,
  kClusterBlockX,
  kClusterBlocksX,
  kSpecials
};

struct Module;

struct Function {
  std::string name;
  bool is_entry = false;
  const Module* module = nullptr;
  std::vector<Instruction> code;
  std::vector<Details> details;      // one for each instruction
  std::vector<std::uint64_t> slots;  // as a frame starts: constants are set
  std::vector<Parameter> parameters, results;
  std::int64_t parameter_bytes = 0;  // of an entry
  std::int64_t call_parameter_bytes = 0;
  std::int64_t local_bytes = 0, shared_bytes = 0;
  int narrowest_shared = 4;  // bytes of the narrowest access that may be to shared memory, at most 4
};

struct Module {
  std::string path, target;  // "sm_90a"
  std::map<std::string, std::unique_ptr<Function>> functions;
  std::map<int, std::string> files;                                  // of the line information
  std::vector<std::unique_ptr<std::vector<std::uint64_t>>> storage;  // of global variables
};

// Call parameters have addresses of their own within the parameter space.
constexpr std::int64_t kCallParameters = std::int64_t{1} << 40;
// Windows of the generic address space. Everything else is global memory: addresses of the host.
constexpr std::uint64_t kSharedWindow = 0x60ull << 56, kLocalWindow = 0x61ull << 56, kParamWindow = 0x62ull << 56;
// A shared address is 32 bits: zero or the rank of a cluster's block plus one, then 24 bits of offset.
constexpr int kRankShift = 24;

std::unique_ptr<Module> parse(const std::string& text, const std::string& path);
bool type_of(const std::string& modifier, Type& type);

// Sets code, handler and the facts about memory of an instruction whose operands are known.
void decode(Instruction& instruction, const Details& details);
// The handler of an instruction on slots; null: it is not known.
Handler arithmetic_handler(const Details& details);
Handler bits_handler(const Details& details);
Handler conversion_handler(const Details& details);

template <class T>
T value(const std::uint64_t* slots, int slot) {
  T result;
  std::memcpy(&result, slots + slot, sizeof result);
  return result;
}
template <class T>
void put(std::uint64_t* slots, int slot, T result) {
  slots[slot] = 0;
  std::memcpy(slots + slot, &result, sizeof result);
}

}  // namespace ptx
