// The GPU's kernels of the ops, run on the host block after block and thread after thread, against the CPU's kernels.
#include <cmath>
#include <cstdint>
#include <limits>
#include <memory>
#include <vector>

#include "expect.h"
#include "ops/categorical/categorical_kernels.h"
#include "ops/moments/moments_kernels.h"
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

struct RunningState {
  Values mean, variance, work;
  double count;
  std::int64_t whole_count;

  RunningMomentsParams<double> params(const Values& batch, std::int64_t columns, std::int64_t parts, bool whole) {
    const std::int64_t count_rows = static_cast<std::int64_t>(batch.size()) / columns, sums = 2 * parts * columns;
    work.assign(static_cast<std::size_t>(sums + 1), 99.0);
    return {count_rows,
            columns,
            rows(batch, columns),
            {nullptr, mean.data(), 1},
            {nullptr, variance.data(), 1},
            whole ? nullptr : &count,
            whole ? &whole_count : nullptr,
            parts,
            work.data(),
            work.data() + sums};
  }
};

void check_moments(Mixer& mixer, std::int64_t row_count, std::int64_t columns, std::int64_t parts, bool whole) {
  const Values batch = random_values(mixer, row_count * columns, 3.0), mean = random_values(mixer, columns, 1.0);
  const Values variance(static_cast<std::size_t>(columns), 2.0);
  RunningState expected{mean, variance, {}, 7.0, 7};
  const auto on_cpu = expected.params(batch, columns, parts, whole);
  partial_moments(on_cpu, 0, parts * ((columns + kMomentColumns - 1) / kMomentColumns));
  merge_moments(on_cpu, 0, columns);
  for (const bool reversed : {false, true}) {
    RunningState state{mean, variance, {}, 7.0, 7};
    const auto p = state.params(batch, columns, parts, whole);
    const PartialMomentsKernel<double, double> partial{p};
    run_on_host(partial, partial.blocks(), reversed);
    run_on_host(MergeMomentsKernel<double>{p}, columns, reversed);
    EXPECT(close(state.mean, expected.mean));
    EXPECT(close(state.variance, expected.variance));
    EXPECT(whole ? state.whole_count == 7 + row_count : state.count == 7.0 + static_cast<double>(row_count));
    EXPECT(state.count == expected.count && state.whole_count == expected.whole_count);
  }
}

void check_normalize(Mixer& mixer, std::int64_t row_count, std::int64_t columns, double clip) {
  const Values x = random_values(mixer, row_count * columns, 3.0),
               grad = random_values(mixer, row_count * columns, 1.0);
  Values mean = random_values(mixer, columns, 1.0), variance(static_cast<std::size_t>(columns), 2.0);
  for (const bool backward : {false, true}) {
    Values expected(x.size()), out(x.size());
    NormalizeParams<double> p{row_count,
                              columns,
                              rows(x, columns),
                              {nullptr, mean.data(), 1},
                              {nullptr, variance.data(), 1},
                              1e-3,
                              clip,
                              backward ? rows(grad, columns) : Strided<double>{},
                              expected.data()};
    normalize(p, 0, row_count);
    p.out = out.data();
    const NormalizeKernel<double, double> body{p};
    for (const bool reversed : {false, true}) {
      out.assign(out.size(), 99.0);
      run_on_host(body, body.blocks(), reversed);
      EXPECT(close(out, expected));
    }
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
  for (const std::int64_t columns : {1, 3, 17, 128, 255, 256, 257, 1030}) {
    for (const std::int64_t row_count : {1, 5, 300, 900}) {
      check_moments(mixer, row_count, columns, row_count < 4 ? 1 : row_count / 4, row_count == 5);
      check_normalize(mixer, row_count, columns, row_count == 5 ? INFINITY : 0.5);
    }
  }
  return report();
}

}  // namespace
}  // namespace sacfast::SACFAST_ISA

int main() { return sacfast::SACFAST_ISA::run(); }
