// The limit that the products are measured against: fused multiply-adds on registers, with nothing to load.
#include <atomic>
#include <chrono>
#include <vector>

#include "../../core/simd.h"
#include "../../core/thread_team.h"
#include "../engine.h"

namespace sacfast::SACFAST_ISA {
namespace {

constexpr int kChains = 12;  // more than latency x throughput of any processor, fewer than the registers of any set
constexpr int kLoops = 20'000;

// Returns the sum of all chains. No caller needs it, but without a result the compiler would remove the loop.
__attribute__((noinline)) float multiply_add_many(float start) {
  const VecF factor = broadcast<VecF>(0.999f), summand = broadcast<VecF>(0.001f);
  VecF sums[kChains];
#pragma GCC unroll 12
  for (int chain = 0; chain < kChains; ++chain) sums[chain] = broadcast<VecF>(start + static_cast<float>(chain));
  for (int loop = 0; loop < kLoops; ++loop) {
#pragma GCC unroll 12
    for (int chain = 0; chain < kChains; ++chain) sums[chain] = sums[chain] * factor + summand;
  }
  VecF total{};
#pragma GCC unroll 12
  for (int chain = 0; chain < kChains; ++chain) total += sums[chain];
  return total[0];
}

}  // namespace

void fma_peak(int threads, double seconds, double& flop_per_second) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> rates(static_cast<std::size_t>(threads));
  ThreadTeam team(threads);
  Barrier barrier(threads);
  team.run([&](int thread) {
    volatile float value = multiply_add_many(1.0f);  // volatile: it is computed. This first call wakes the wide units
    barrier.meet([] {});
    const Clock::time_point start = Clock::now();
    double passed = 0;
    std::int64_t calls = 0;
    for (; passed < seconds; ++calls) {
      value = multiply_add_many(value / kChains);
      passed = std::chrono::duration<double>(Clock::now() - start).count();
    }
    const double flop = 2.0 * kFloats * kChains * kLoops * static_cast<double>(calls);
    rates[static_cast<std::size_t>(thread)] = flop / passed;
  });
  flop_per_second = 0;
  for (const double rate : rates) flop_per_second += rate;
}

}  // namespace sacfast::SACFAST_ISA
