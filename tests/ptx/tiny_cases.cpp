// The interpreter's own tests: short kernels written in PTX, each right once and wrong in every way that a check is
// for.
//
// An instruction that orders memory (cp.async, clusters, griddepcontrol) is here with its rules before a kernel uses
// it.
#include <algorithm>
#include <memory>

#include "cases.h"
#include "numbers.h"

namespace ptx {
namespace {

constexpr std::uint32_t kThreads = 64;
constexpr Fault kNone = Fault::kFaults;

// %in and %out point to u32 arrays of twice as many elements as a block has threads; %mine is 4 %tid.x.
std::string kernel_text(const std::string& name, const std::string& body) {
  return ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry " + name + "(.param .u64 " + name +
         "_in, .param .u64 " + name + "_out)\n{\n" +
         R"(
    .reg .pred %p<8>; .reg .b32 %a<16>; .reg .b64 %in, %out, %d<8>; .reg .b32 %tid, %mine, %base, %rank;
    .shared .align 16 .b8 buffer[1024];
    mov.u32 %tid, %tid.x;
    mov.u32 %rank, %cluster_ctarank;
    shl.b32 %mine, %tid, 2;
    mov.u32 %base, buffer;
    add.u32 %mine, %mine, %base;
    mul.wide.u32 %d0, %tid, 4;
)" + "    ld.param.u64 %in, [" +
         name + "_in];\n    ld.param.u64 %out, [" + name +
         "_out];\n    add.u64 %in, %in, %d0;\n    add.u64 %out, %out, %d0;\n" + body + "\n    ret;\n}\n";
}

struct Arrays {
  DeviceArray<std::uint32_t> in{"in", 2 * kThreads, Content::kValues, false},
      out{"out", 2 * kThreads, Content::kNothing};
  Arrays() {
    for (std::size_t i = 0; i < in.size(); ++i) in[i] = static_cast<std::uint32_t>(1000 + i);
  }
};

// Launches of one stream. What the checks have found stays apart from what they find in the project's kernels.
struct Step {
  std::string body;
  std::uint32_t blocks = 1, cluster = 1;
  bool is_programmatic = false;
};

int tiny_cases = 0;

Report run_steps(const std::vector<Step>& steps, Arrays& arrays) {
  static int number = 0;
  const Report before = device().report;
  device().report.clear();
  const void* const in = arrays.in.data();
  const void* const out = arrays.out.data();
  for (const Step& step : steps) {
    Launch launch;
    launch.kernel = "tiny" + std::to_string(number++);
    load_text(kernel_text(launch.kernel, step.body), launch.kernel);
    launch.blocks = {step.blocks, 1, 1};
    launch.threads = {kThreads, 1, 1};
    launch.cluster = step.cluster;
    launch.is_programmatic = step.is_programmatic;
    launch.arguments = {&in, &out};
    run(launch);
  }
  ++tiny_cases;
  std::swap(device().report, const_cast<Report&>(before));
  return before;
}

// `expected`: what the checks must find, and nothing at all where it is kNone.
void expect_found(const char* name, const std::vector<Step>& steps, Fault expected) {
  Arrays arrays;
  const Report report = run_steps(steps, arrays);
  const bool is_right = expected == kNone ? report.total() == 0 : report.count(expected) > 0;
  if (!is_right) {
    std::printf("%s: expected %s\n", name, expected == kNone ? "nothing" : name_of(expected));
    for (const std::string& each : report.messages()) std::printf("  found %s\n", each.c_str());
  }
  EXPECT(is_right);
}
void expect_in_block(const char* name, const std::string& body, Fault expected) {
  expect_found(name, std::vector<Step>{{body}}, expected);
}

// The same, and out[i] of the first block's threads is what `value` says.
template <class Value>
void expect_values(const char* name, const std::vector<Step>& steps, const Value& value) {
  Arrays arrays;
  const Report report = run_steps(steps, arrays);
  for (const std::string& each : report.messages()) std::printf("%s: found %s\n", name, each.c_str());
  EXPECT(report.total() == 0);
  for (std::uint32_t i = 0; i < kThreads; ++i) EXPECT(arrays.out[i] == value(i));
}

const std::string kLoad = "ld.global.u32 %a0, [%in];\n", kStore = "st.global.u32 [%out], %a1;\n";
const std::string kPut = kLoad + "st.shared.u32 [%mine], %a0;\n", kBarrier = "bar.sync 0;\n";
// The value of the thread across the block, and of the next lane of the warp.
const std::string kTakeOpposite =
    "xor.b32 %a2, %tid, 63; shl.b32 %a2, %a2, 2; add.u32 %a2, %a2, %base; ld.shared.u32 %a1, [%a2];\n";
const std::string kTakeNeighbour =
    "xor.b32 %a2, %tid, 1; shl.b32 %a2, %a2, 2; add.u32 %a2, %a2, %base; ld.shared.u32 %a1, [%a2];\n";

void check_blocks() {
  expect_values("exchange", {{kPut + kBarrier + kTakeOpposite + kStore}}, [](auto i) { return 1000 + (63 - i); });
  expect_in_block("exchange without a barrier", kPut + kTakeOpposite + kStore, Fault::kBlockRace);
  expect_in_block("unwritten", kLoad + kTakeOpposite + kStore, Fault::kUnwritten);
  expect_in_block("unwritten but unused",
                  kLoad + kTakeOpposite + "setp.eq.u32 %p0, %a0, 0; selp.b32 %a1, %a1, %a0, %p0;" + kStore, kNone);
  expect_in_block("an unwritten output", "ld.global.u32 %a1, [%out];" + kStore, Fault::kUnwritten);
  expect_in_block("a barrier for half of the block", "setp.lt.u32 %p0, %tid, 32; @%p0 bar.sync 0;", Fault::kBarrier);
  expect_in_block(
      "two barriers for one",
      "setp.lt.u32 %p0, %tid, 32; @%p0 bra LEFT; bar.sync 0; bra END; LEFT: bar.sync 0; END:", Fault::kBarrier);
  expect_in_block("misaligned", "ld.shared.u32 %a1, [%mine+2];", Fault::kMisaligned);
  expect_in_block("beyond the shared memory", "st.shared.u32 [%mine+1024], %tid;", Fault::kOutside);
  expect_in_block("before the array", "ld.global.u32 %a1, [%in+-4];" + kStore, Fault::kOutside);
  expect_in_block("read-only", "st.global.u32 [%in], %tid;", Fault::kReadOnly);
  const std::string count = "sub.u64 %d1, %out, %d0;";
  const std::string by_one = "mov.u32 %a0, %ctaid.x; setp.eq.u32 %p0, %tid, 0; @%p0 st.global.u32 [%d1], %a0;";
  expect_found("two blocks, one place", {{count + by_one, 2}}, Fault::kGridRace);
  expect_found("the same value by all", {{count + "mov.u32 %a0, 7; st.global.u32 [%d1], %a0;", 2}}, kNone);
  const std::string clear = "mov.u32 %a0, 0; st.global.u32 [%out], %a0;";
  expect_found("atomics", {{clear}, {count + "atom.global.add.u32 %a1, [%d1], 1;", 2}}, kNone);
  expect_found("an atomic beside a store",
               {{clear}, {count + "atom.global.add.u32 %a1, [%d1], 1; st.global.u32 [%d1], %tid;", 2}},
               Fault::kGridRace);
}

void check_warps() {
  expect_values("warp barrier", {{kPut + "bar.warp.sync 0xffffffff;" + kTakeNeighbour + kStore}},
                [](auto i) { return 1000 + (i ^ 1); });
  expect_in_block("without a warp barrier", kPut + kTakeNeighbour + kStore, Fault::kBlockRace);
  expect_values("shuffle", {{kLoad + "shfl.sync.bfly.b32 %a1, %a0, 1, 31, 0xffffffff;" + kStore}},
                [](auto i) { return 1000 + (i ^ 1); });
  expect_values("shuffle down", {{kLoad + "shfl.sync.down.b32 %a1|%p0, %a0, 16, 31, -1;" + kStore}},
                [](auto i) { return 1000 + (i % 32 < 16 ? i + 16 : i); });
  expect_values("vote", {{"setp.lt.u32 %p0, %tid, 3; vote.sync.ballot.b32 %a1, %p0, 0xffffffff;" + kStore}},
                [](auto i) { return i < 32 ? 7u : 0u; });
  expect_in_block("a mask without the lane", kLoad + "shfl.sync.bfly.b32 %a1, %a0, 1, 31, 0xffff;", Fault::kCollective);
  expect_in_block("lanes that never come",
                  "setp.lt.u32 %p0, %tid, 5; @%p0 shfl.sync.bfly.b32 %a1, %tid, 1, 31, 0xffffffff;",
                  Fault::kCollective);
  expect_in_block("half of the warp",
                  "and.b32 %a3, %tid, 31; setp.lt.u32 %p0, %a3, 16; @%p0 shfl.sync.bfly.b32 %a1, %tid, 1, 31, 0xffff;",
                  kNone);
  expect_in_block("from outside of the mask",
                  "and.b32 %a3, %tid, 31; setp.lt.u32 %p0, %a3, 16; @%p0 shfl.sync.down.b32 %a1, %tid, 8, 31, 0xffff;",
                  Fault::kCollective);
}

void check_async_copies() {
  // 16 threads copy 16 bytes each.
  const std::string places =
      "setp.lt.u32 %p0, %tid, 16; mul.lo.u32 %a4, %tid, 16; add.u32 %a4, %a4, %base; mul.wide.u32 %d2, %tid, 12; "
      "add.u64 %d2, %in, %d2;\n";
  const std::string copy = places + "@%p0 cp.async.ca.shared.global [%a4], [%d2], 16; cp.async.commit_group;\n";
  const std::string later =
      "add.u64 %d3, %d2, 256; @%p0 cp.async.cg.shared.global [%a4+256], [%d3], 16; cp.async.commit_group;\n";
  const std::string wait = "cp.async.wait_group 0;\n";
  expect_values("cp.async", {{copy + wait + kBarrier + kTakeOpposite + kStore}},
                [](auto i) { return 1000 + (63 - i); });
  expect_values("cp.async, the older of two",
                {{copy + later + "cp.async.wait_group 1;" + kBarrier + kTakeOpposite + kStore}},
                [](auto i) { return 1000 + (63 - i); });
  expect_in_block("cp.async, not waited for", copy + kBarrier + kTakeOpposite + kStore, Fault::kAsyncCopy);
  expect_in_block("cp.async, another group waited for",
                  copy + later + "cp.async.wait_group 1;" + kBarrier + "ld.shared.u32 %a1, [%mine+256];" + kStore,
                  Fault::kAsyncCopy);
  expect_in_block("cp.async without a barrier", copy + wait + kTakeOpposite + kStore, Fault::kBlockRace);
  expect_in_block("cp.async, misaligned", places + "@%p0 cp.async.ca.shared.global [%a4], [%in], 16;",
                  Fault::kMisaligned);

  const std::string fill = kPut + kBarrier, is_first = "setp.eq.u32 %p1, %tid, 0;\n";
  const std::string bulk = is_first +
                           "mov.u32 %a5, 256; @%p1 cp.async.bulk.global.shared::cta.bulk_group [%out], [%base], %a5; "
                           "cp.async.bulk.commit_group;\n";
  const std::string clear = "st.shared.u32 [%mine], %rank;\n";
  expect_values("bulk copy", {{fill + bulk + "cp.async.bulk.wait_group 0;"}}, [](auto i) { return 1000 + i; });
  expect_values("bulk copy, source used again",
                {{fill + bulk + "cp.async.bulk.wait_group.read 0;" + kBarrier + clear + "cp.async.bulk.wait_group 0;"}},
                [](auto i) { return 1000 + i; });
  expect_in_block("bulk copy, source used too early",
                  fill + bulk + kBarrier + clear + kBarrier + "cp.async.bulk.wait_group 0;", Fault::kAsyncCopy);
  expect_in_block("bulk copy, result read too early",
                  fill + bulk + "ld.global.u32 %a1, [%out];" + kBarrier + "cp.async.bulk.wait_group 0;",
                  Fault::kAsyncCopy);
}

void check_clusters() {
  const std::string arrive = "barrier.cluster.arrive.aligned;\n", wait = "barrier.cluster.wait.aligned;\n",
                    sync = arrive + wait;
  const std::string take =
      "xor.b32 %a6, %rank, 1; mapa.shared::cluster.u32 %a7, %mine, %a6; ld.shared::cluster.u32 %a1, [%a7];\n";
  const std::string mark = "mad.lo.u32 %a0, %rank, 100, %tid; st.shared.u32 [%mine], %a0;\n";
  const std::string store = "setp.eq.u32 %p2, %rank, 0; @%p2 st.global.u32 [%out], %a1;\n";
  const auto cluster = [](const std::string& body) { return std::vector<Step>{{body, 2, 2}}; };
  expect_values("the other block's memory", cluster(mark + sync + take + sync + store), [](auto i) { return 100 + i; });
  const std::string generic = "cvta.shared.u64 %d4, %d5;";
  expect_values("by a generic address",
                cluster(mark + sync + "cvt.u64.u32 %d5, %mine;" + generic +
                        "xor.b32 %a6, %rank, 1; mapa.u64 %d6, %d4, %a6; ld.u32 %a1, [%d6];" + sync + store),
                [](auto i) { return 100 + i; });
  expect_found("without the first barrier", cluster(mark + take + sync + store), Fault::kGridRace);
  expect_found("a block's barrier alone", cluster(mark + kBarrier + take + sync + store), Fault::kGridRace);
  expect_found("without the last barrier", cluster(mark + sync + take + store), Fault::kOutside);
  expect_found("read before the wait", cluster(mark + arrive + take + wait + sync + store), Fault::kGridRace);
  expect_found("written after the arrival", cluster(arrive + mark + wait + take + sync + store), Fault::kGridRace);
  // The cluster's barrier does not wait for threads that have ended, but for all others.
  const std::string skip = "setp.eq.u32 %p3, %rank, 0; @%p3 bra END; " + sync + "END:";
  expect_found("one block ends", cluster(skip), kNone);
  const std::string half = "mad.lo.u32 %a8, %rank, 64, %tid; setp.lt.u32 %p3, %a8, 32; @%p3 bra END; ";
  expect_found("one warp does not arrive", cluster(half + sync + "END:" + kBarrier), Fault::kBarrier);
}

void check_grid_dependencies() {
  const std::string write = "st.global.u32 [%out], %tid;\n", wait = "griddepcontrol.wait;\n",
                    go = "griddepcontrol.launch_dependents;\n";
  const std::string increment = "ld.global.u32 %a1, [%out]; add.u32 %a1, %a1, 1;" + kStore;
  const auto early = [](const std::string& body) { return Step{body, 1, 1, true}; };
  expect_values("waits", {{write + go}, early(wait + increment)}, [](auto i) { return i + 1; });
  expect_found("does not wait", {{write + go}, early(increment)}, Fault::kLaunchRace);
  expect_found("reads, then waits", {{write + go}, early("ld.global.u32 %a1, [%out];" + wait)}, Fault::kLaunchRace);
  expect_found("two before, both wait", {{write + go}, early(wait + go), early(wait + increment)}, kNone);
  expect_found("two before, one does not wait", {{write + go}, early(go), early(wait + increment)}, Fault::kLaunchRace);
  expect_found("writes what the one before the last reads",
               {{write}, {"ld.global.u32 %a1, [%out];" + go}, early(go), early(wait + write)}, Fault::kLaunchRace);
  expect_found("an ordinary launch", {{write + go}, {increment}}, kNone);
}

void check_refusals() {
  for (const char* body : {"bar.sync 1, 32;", "ld.volatile.global.u32 %a1, [%in];", "add.sat.s32 %a1, %a0, 1;",
                           "redux.sync.add.s32 %a1, %a0, -1;"}) {
    bool is_refused = false;
    try {
      Arrays arrays;
      run_steps({{body}}, arrays);
    } catch (const Unsupported&) {
      is_refused = true;
    }
    EXPECT(is_refused);
  }
}

// Against CUDA's own conversions for the host.
void check_numbers() {
  const auto same = [](std::uint16_t a, std::uint16_t b) { return a == b; };
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<std::uint16_t>(bits);
    const float value = from_half_float(half), other = __half2float(__ushort_as_half(half));
    EXPECT(std::isnan(value) ? std::isnan(other) : value == other);
    if (!std::isnan(value)) EXPECT(same(half_float(value), half));
    if (!std::isnan(from_brain_float(half))) EXPECT(same(brain_float(from_brain_float(half)), half));
  }
  Mixer mixer{11};
  for (int i = 0; i < 200000; ++i) {
    // Any bits; and ties between two halves, or two bfloat16.
    const auto any = static_cast<std::uint32_t>(mixer());
    for (const std::uint32_t bits : {any, (any & 0xffffe000u) | 0x1000u, (any & 0xffff0000u) | 0x8000u}) {
      const auto value = same_bits<float>(bits);
      if (std::isnan(value)) continue;
      EXPECT(same(half_float(value), __half_as_ushort(__float2half(value))));
      EXPECT(same(brain_float(value), __bfloat16_as_ushort(__float2bfloat16(value))));
    }
  }
}

}  // namespace

void run_tiny_cases(Groups& groups) {
  for (const bool reversed : {false, true}) {
    device().reversed = reversed;
    tiny_cases = 0;
    check_blocks();
    check_warps();
    check_async_copies();
    check_clusters();
    check_grid_dependencies();
    groups.done(reversed ? "tiny kernels, reversed" : "tiny kernels", tiny_cases);
  }
  device().reversed = false;
  check_refusals();
  check_numbers();
}

}  // namespace ptx
