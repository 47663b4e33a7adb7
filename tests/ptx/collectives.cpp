// What the lanes of a warp do together: shuffles, votes, warp barriers, and products of matrices on tensor cores.
// PTX ISA, chapters 9.7.9.6, 9.7.13 and 9.7.14.5.
#include <algorithm>
#include <cmath>

#include "machine.h"
#include "numbers.h"

namespace ptx {
namespace {

// The lanes that an instruction names. mma has no mask: it takes all.
std::uint32_t mask_of(const Thread& thread, const Details& details) {
  if (details.opcode == "mma") return 0xffffffffu;
  return value<std::uint32_t>(thread.frames.back().slots.data(), details.from.back());
}

}  // namespace

// Runs a collective whose lanes have all arrived. Returns whether there was one.
bool Machine::run_collective(Block& block, std::size_t first) {
  const std::size_t count = std::min<std::size_t>(32, block.threads.size() - first);
  for (std::size_t lane = 0; lane < count; ++lane) {
    Thread& thread = block.threads[first + lane];
    if (thread.state != State::kAtCollective) continue;
    const Details& details = details_of(thread);
    const std::uint32_t mask = mask_of(thread, details);
    if ((mask >> lane & 1u) == 0) {
      found(Fault::kCollective, block, thread, "the mask does not name the lane itself");
      throw Stopped();
    }
    std::vector<Thread*> lanes(32, nullptr);
    bool is_complete = true;
    for (std::size_t k = 0; k < 32 && is_complete; ++k) {
      if ((mask >> k & 1u) == 0) continue;
      is_complete = k < count && block.threads[first + k].state == State::kAtCollective &&
                    &details_of(block.threads[first + k]) == &details &&
                    mask_of(block.threads[first + k], details) == mask;
      if (is_complete) lanes[k] = &block.threads[first + k];
    }
    if (!is_complete) continue;
    if (details.opcode == "shfl") {
      shuffle(lanes, first, details);
    } else if (details.opcode == "vote") {
      vote(lanes, details);
    } else if (details.opcode == "mma") {
      multiply(block, lanes, details);
    }
    for (Thread* each : lanes) {
      if (each == nullptr) continue;
      if (details.opcode == "bar") ++each->warp_phase;
      ++each->frame().pc;
      each->state = State::kRuns;
    }
    return true;
  }
  return false;
}

void Machine::shuffle(std::vector<Thread*>& lanes, std::size_t first_thread, const Details& details) {
  std::uint32_t given[32] = {};
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane] != nullptr) given[lane] = value<std::uint32_t>(lanes[lane]->frame().slots.data(), details.from[0]);
  }
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane] == nullptr) continue;
    Frame& frame = lanes[lane]->frame();
    const Slots slots = frame.slots.data();
    const int by = value<int>(slots, details.from[1]), bounds = value<int>(slots, details.from[2]);
    const int clamp = bounds & 31, segment = bounds >> 8 & 31;
    const int least = lane & segment, most = least | (clamp & ~segment);
    int from = lane;
    bool is_inside = false;
    if (details.has("up")) {
      from = lane - by;
      is_inside = from >= most;
    } else if (details.has("down")) {
      from = lane + by;
      is_inside = from <= most;
    } else if (details.has("bfly")) {
      from = lane ^ by;
      is_inside = from <= most;
    } else {
      from = least | (by & ~segment);
      is_inside = from <= most;
    }
    if (!is_inside) from = lane;
    if (lanes[from] == nullptr) {
      device_.report.add(Fault::kCollective,
                         "lane " + std::to_string(first_thread + static_cast<std::size_t>(lane)) +
                             " takes the value of one that the mask does not name: " + details.text);
      from = lane;
    }
    put<std::uint32_t>(slots, details.to[0], given[from]);
    if (details.to.size() > 1) put<bool>(slots, details.to[1], is_inside);
  }
}

void Machine::vote(std::vector<Thread*>& lanes, const Details& details) {
  std::uint32_t yes = 0, present = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (lanes[lane] == nullptr) continue;
    present |= 1u << lane;
    if (value<bool>(lanes[lane]->frame().slots.data(), details.from[0])) yes |= 1u << lane;
  }
  for (Thread* each : lanes) {
    if (each == nullptr) continue;
    const Slots slots = each->frame().slots.data();
    if (details.has("ballot")) {
      put<std::uint32_t>(slots, details.to[0], yes);
    } else if (details.has("any") || details.has("all")) {
      put<bool>(slots, details.to[0], details.has("any") ? yes != 0 : yes == present);
    } else {
      throw Unsupported("a vote that is not known: " + details.text);
    }
  }
}

// D = A B + C, A [16, K], B [K, 8], C and D [16, 8]: which lane has which elements is written here from the tables of
// the PTX ISA ("Matrix fragments for mma.m16n8k8" and "m16n8k16"), and not from the kernels.
void Machine::multiply(Block& block, std::vector<Thread*>& lanes, const Details& details) {
  const bool is_tf32 = details.has("m16n8k8") && details.has("tf32"),
             is_bf16 = details.has("m16n8k16") && details.has("bf16");
  if (!is_tf32 && !is_bf16) throw Unsupported("an mma that is not known: " + details.text);
  if (std::count(lanes.begin(), lanes.end(), nullptr) > 0) found(Fault::kCollective, block, *lanes[0]);
  const int depth = is_tf32 ? 8 : 16, a_registers = 4, b_registers = 2;
  double a[16][16] = {}, b[16][8] = {}, c[16][8] = {};
  // Element i of a register: of TF32 there is one, of bfloat16 two, the lower half first.
  const auto element = [&](const Thread& lane, int slot, int i) -> double {
    const auto bits = value<std::uint32_t>(lane.frames.back().slots.data(), slot);
    return is_tf32 ? from_tensor_float(bits) : from_brain_float(static_cast<std::uint16_t>(bits >> (16 * i)));
  };
  const int per_register = is_tf32 ? 1 : 2;
  for (int lane = 0; lane < 32; ++lane) {
    const Thread& thread = *lanes[lane];
    const int group = lane / 4, in_group = lane % 4;
    for (int r = 0; r < a_registers; ++r) {
      for (int i = 0; i < per_register; ++i) {
        const int row = r % 2 == 0 ? group : group + 8;
        const int col = in_group * per_register + i + (r < 2 ? 0 : depth / 2);
        a[row][col] = element(thread, details.from[static_cast<std::size_t>(r)], i);
      }
    }
    for (int r = 0; r < b_registers; ++r) {
      for (int i = 0; i < per_register; ++i) {
        const int row = in_group * per_register + i + r * depth / 2;
        b[row][group] = element(thread, details.from[static_cast<std::size_t>(a_registers + r)], i);
      }
    }
    for (int i = 0; i < 4; ++i) {
      const int slot = details.from[static_cast<std::size_t>(a_registers + b_registers + i)];
      c[i < 2 ? group : group + 8][in_group * 2 + i % 2] = value<float>(thread.frames.back().slots.data(), slot);
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const int row = i < 2 ? lane / 4 : lane / 4 + 8, col = lane % 4 * 2 + i % 2;
      double sum = c[row][col];
      for (int k = 0; k < depth; ++k) sum += a[row][k] * b[k][col];
      put<float>(lanes[lane]->frame().slots.data(), details.to[static_cast<std::size_t>(i)], static_cast<float>(sum));
    }
  }
}

}  // namespace ptx
