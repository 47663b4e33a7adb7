// The GPU's kernels of the ops, run on the host block after block and thread after thread, against the CPU's kernels.
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "expect.h"
#include "ops/categorical/categorical_kernels.h"
#include "ops/quantile/quantile_kernels.h"

namespace sacfast::SACFAST_ISA {
namespace {

template <class Body>
void run_on_host(const Body& body, std::int64_t blocks, bool reversed) {
  const auto shared = std::make_unique<typename Body::Shared>();
  for (std::int64_t i = 0; i < blocks; ++i) body(Block{reversed ? blocks - 1 - i : i, 0, reversed}, *shared);
}

using Values = std::vector<double>;

Values random_values(Mixer& mixer, std::int64_t count, double size) {
  Values values(static_cast<std::size_t>(count));
  for (double& value : values) value = size * mixer.uniform();
  return values;
}

// Sums in another order: some units of the largest term, which is about 10.
bool close(const Values& a, const Values& b) {
  for (std::size_t i = 0; i < a.size(); ++i) {
    const bool both_nan = std::isnan(a[i]) && std::isnan(b[i]);
    if (!both_nan && !(std::fabs(a[i] - b[i]) <= 1e-12)) return false;
  }
  return a.size() == b.size();
}

Strided<double> rows(const Values& values, std::int64_t cols) { return {values.data(), cols, 1}; }

constexpr std::int64_t kBatch = 5;

struct Sample {
  Values reward, terminated, log_prob;

  explicit Sample(Mixer& mixer)
      : reward(random_values(mixer, kBatch, 3.0)),
        terminated{0, 1, 0, 0, 0},
        log_prob(random_values(mixer, kBatch, 2.0)) {}
  BellmanInputs<double> view() const {
    return {rows(reward, 1), rows(terminated, 1), {}, rows(log_prob, 1), {}, {}, 0.2, 0.97};
  }
};

// Around a block of 256 threads and its tiles.
void check_categorical(Mixer& mixer, std::int64_t atoms, bool two_critics, bool with_nan) {
  const Sample sample(mixer);
  Values logits1 = random_values(mixer, kBatch * atoms, 5.0), logits2 = random_values(mixer, kBatch * atoms, 5.0);
  if (with_nan) logits1[static_cast<std::size_t>(2 * atoms)] = std::numeric_limits<double>::quiet_NaN();
  Values expected(logits1.size()), target(logits1.size());
  CategoricalTargetParams<double> p{kBatch, atoms, sample.view(), rows(logits1, atoms), {}, -4.0, 6.0, expected.data()};
  if (two_critics) p.next_logits2 = rows(logits2, atoms);
  categorical_target(p, 0, kBatch);
  p.target = target.data();
  for (const bool reversed : {false, true}) {
    target.assign(target.size(), 99.0);
    run_on_host(CategoricalTargetKernel<double, double>{p}, kBatch, reversed);
    EXPECT(close(target, expected));
  }
}

void check_cross_entropy(Mixer& mixer, std::int64_t atoms) {
  const Values logits = random_values(mixer, kBatch * atoms, 5.0), target = random_values(mixer, kBatch * atoms, 1.0);
  Values loss(kBatch), slope(logits.size()), expected_loss(kBatch), expected_slope(logits.size());
  CrossEntropyParams<double> p{
      kBatch, atoms, rows(logits, atoms), rows(target, atoms), expected_loss.data(), expected_slope.data()};
  categorical_cross_entropy(p, 0, kBatch);
  p.loss = loss.data();
  p.slope = slope.data();
  for (const bool reversed : {false, true}) {
    run_on_host(CrossEntropyKernel<double, double>{p}, kBatch, reversed);
    EXPECT(close(loss, expected_loss));
    EXPECT(close(slope, expected_slope));
  }
}

void check_huber(Mixer& mixer, std::int64_t critics, std::int64_t quantiles, std::int64_t targets) {
  const Values predicted = random_values(mixer, kBatch * critics * quantiles, 3.0);
  const Values target = random_values(mixer, kBatch * targets, 3.0);
  Values loss(static_cast<std::size_t>(kBatch * critics)), slope(predicted.size());
  Values expected_loss = loss, expected_slope = slope;
  QuantileHuberParams<double> p{kBatch * critics,
                                critics,
                                quantiles,
                                targets,
                                rows(predicted, quantiles),
                                rows(target, targets),
                                0.7,
                                expected_loss.data(),
                                expected_slope.data()};
  quantile_huber_loss(p, 0, p.rows);
  p.loss = loss.data();
  p.slope = slope.data();
  for (const bool reversed : {false, true}) {
    run_on_host(QuantileHuberKernel<double, double>{p}, p.rows, reversed);
    EXPECT(close(loss, expected_loss));
    EXPECT(close(slope, expected_slope));
  }
}

void check_truncated(Mixer& mixer, std::int64_t pooled, std::int64_t kept, bool with_nan) {
  const Sample sample(mixer);
  Values quantiles = random_values(mixer, kBatch * pooled, 3.0);
  if (with_nan) quantiles[static_cast<std::size_t>(3 * pooled)] = std::numeric_limits<double>::quiet_NaN();
  Values expected(static_cast<std::size_t>(kBatch * kept)), target(expected.size());
  TruncatedTargetParams<double> p{kBatch, pooled, kept, sample.view(), rows(quantiles, pooled), expected.data()};
  truncated_quantile_target(p, 0, kBatch);
  p.target = target.data();
  for (const bool reversed : {false, true}) {
    run_on_host(TruncatedTargetKernel<double, double>{p}, kBatch, reversed);
    EXPECT(close(target, expected));
  }
}

// A network sorts every input if it sorts every one of zeros and ones (Knuth, 5.3.4, theorem Z).
void check_sorting_network() {
  for (int count = 0; count <= 14; ++count) {
    for (unsigned bits = 0; bits < (1u << count); ++bits) {
      unsigned sorted = bits;
      for_each_sorting_pass(count, [&](const SortingPass& pass) {
        for (std::int64_t i = 0; i + pass.distance < count; ++i) {
          const unsigned low = 1u << i, high = 1u << (i + pass.distance);
          if (pass.begins_at(i) && (sorted & low) != 0 && (sorted & high) == 0) sorted ^= low | high;
        }
      });
      for (int i = 0; i + 1 < count; ++i) EXPECT(!((sorted >> i & 1u) == 1u && (sorted >> (i + 1) & 1u) == 0u));
      EXPECT(__builtin_popcount(sorted) == __builtin_popcount(bits));
    }
  }
}

int run() {
  Mixer mixer{7};
  for (const std::int64_t atoms : {1, 2, 17, 101, 255, 256, 257, 600}) {
    for (const bool two_critics : {false, true}) {
      check_categorical(mixer, atoms, two_critics, false);
      check_categorical(mixer, atoms, two_critics, true);
    }
    check_cross_entropy(mixer, atoms);
  }
  check_huber(mixer, 1, 1, 1);
  check_huber(mixer, 5, 25, 115);
  check_huber(mixer, 2, 8, 33);
  check_huber(mixer, 3, 9, 32);
  for (const std::int64_t pooled : {1, 2, 3, 125, 256, 257, 1000}) {
    check_truncated(mixer, pooled, pooled, false);
    check_truncated(mixer, pooled, (pooled + 1) / 2, true);
  }
  check_sorting_network();
  return report();
}

}  // namespace
}  // namespace sacfast::SACFAST_ISA

int main() { return sacfast::SACFAST_ISA::run(); }
