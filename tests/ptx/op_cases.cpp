// The kernels of every op, forward and backward, in every type, against the CPU's kernels in float64 on the same
// inputs.
//
// To add an op: a function that fills the op's struct of parameters twice, for the device and for the CPU, and calls
// both; then a line in check_all.
#include <algorithm>
#include <cstdint>
#include <utility>

#include "op_inputs.h"
#include "ops/adam_polyak/adam_polyak.h"
#include "ops/categorical/categorical.h"
#include "ops/moments/moments.h"
#include "ops/polyak/polyak.h"
#include "ops/quantile/quantile.h"
#include "ops/tanh_gaussian/tanh_gaussian.h"
#include "ops/twin_q/twin_q.h"

namespace sacfast::SACFAST_ISA {
namespace {

// ---- tanh_gaussian ------------------------------------------------------------------------------------------------

template <class T>
void check_rsample(Mixer& mixer, std::int64_t rows, std::int64_t cols, LogStdBounding kind, bool given_noise) {
  Input<T> mean(mixer, rows, cols, 1, 3), log_std(mixer, rows, cols, 2), noise(mixer, rows, cols, 2),
      scale(mixer, 1, cols, 1);
  for (std::size_t i = 0; i < scale.cpu.size(); ++i) scale.set(i, 1.5 + scale.cpu[i]);
  Output<T> action(rows * cols), log_prob(rows), noise_out(rows * cols);
  DeviceArray<std::int64_t> state("the generator", 2);
  state[0] = 77;
  state[1] = 5;
  const auto fill = [&](auto& p, const auto& m, const auto& l, const auto& n) {
    p.rows = rows;
    p.cols = cols;
    p.mean = m;
    p.log_std = l;
    if (given_noise) p.noise = n;
    p.bounds = {kind, -1.5, 0.5};
  };
  RsampleParams<T> p{};
  fill(p, mean.on_device(), log_std.on_device(), noise.on_device());
  RsampleParams<double> q{};
  fill(q, mean.on_cpu(), log_std.on_cpu(), noise.on_cpu());
  p.source.seed_pointer = state.data();
  p.source.offset_pointer = state.data() + 1;
  q.source = resolve(p.source);
  p.action = action.device.data();
  p.log_prob = log_prob.device.data();
  q.action = action.cpu.data();
  q.log_prob = log_prob.cpu.data();
  if (given_noise) {
    p.action_scale = scale.device.data();
    q.action_scale = scale.cpu.data();
  } else {
    p.noise_out = noise_out.device.data();
    q.noise_out = noise_out.cpu.data();
  }
  EXPECT(cuda::tanh_gaussian_rsample(p, nullptr) == 0);
  tanh_gaussian_rsample(q, 0, rows);
  const std::string name = name_of<T>("rsample", rows, cols);
  expect_close(name + ", action", action.device, action.cpu, 2.5);
  expect_close(name + ", log_prob", log_prob.device, log_prob.cpu, static_cast<double>(cols));
  if (!given_noise) expect_close(name + ", noise", noise_out.device, noise_out.cpu, 4);

  DeviceArray<std::int64_t> taken("the noise that was taken", 2, Content::kNothing);
  EXPECT(cuda::take_noise(state.data(), taken.data(), nullptr) == 0);
  EXPECT(state[1] == 6 && taken[0] == 77 && taken[1] == 5);
}

template <class T>
void check_rsample_backward(Mixer& mixer, std::int64_t rows, std::int64_t cols, LogStdBounding kind, bool has_both) {
  Input<T> grad_action(mixer, rows, cols, 1), grad_log_prob(mixer, rows, 1, 1), mean(mixer, rows, cols, 1, 1);
  Input<T> log_std(mixer, rows, cols, 2), noise(mixer, rows, cols, 2);
  Output<T> grad_mean(rows * cols), grad_log_std(rows * cols);
  RsampleBackwardParams<T> p{};
  RsampleBackwardParams<double> q{};
  p.rows = q.rows = rows;
  p.cols = q.cols = cols;
  p.bounds = q.bounds = {kind, -1.5, 0.5};
  if (has_both) {
    p.grad_action = grad_action.on_device();
    q.grad_action = grad_action.on_cpu();
  }
  p.grad_log_prob = {grad_log_prob.device.data(), 1, 0};
  q.grad_log_prob = {grad_log_prob.cpu.data(), 1, 0};
  p.mean = mean.on_device();
  q.mean = mean.on_cpu();
  p.log_std = log_std.on_device();
  q.log_std = log_std.on_cpu();
  p.noise = noise.on_device();
  q.noise = noise.on_cpu();
  p.grad_mean = grad_mean.device.data();
  q.grad_mean = grad_mean.cpu.data();
  p.grad_log_std = grad_log_std.device.data();
  q.grad_log_std = grad_log_std.cpu.data();
  EXPECT(cuda::tanh_gaussian_rsample_backward(p, nullptr) == 0);
  tanh_gaussian_rsample_backward(q, 0, rows);
  const std::string name = name_of<T>("rsample backward", rows, cols);
  expect_close(name + ", mean", grad_mean.device, grad_mean.cpu, 3);
  expect_close(name + ", log_std", grad_log_std.device, grad_log_std.cpu, 8);
}

template <class T>
void check_log_prob(Mixer& mixer, std::int64_t rows, std::int64_t cols) {
  Input<T> pre_tanh(mixer, rows, cols, 2, 2), mean(mixer, rows, cols, 1), log_std(mixer, rows, cols, 1),
      grad(mixer, rows, 1, 1);
  Output<T> log_prob(rows), of_pre_tanh(rows * cols), of_mean(rows * cols), of_log_std(rows * cols);
  LogProbParams<T> p{rows, cols, pre_tanh.on_device(), mean.on_device(), log_std.on_device(), log_prob.device.data()};
  LogProbParams<double> q{rows, cols, pre_tanh.on_cpu(), mean.on_cpu(), log_std.on_cpu(), log_prob.cpu.data()};
  EXPECT(cuda::tanh_gaussian_log_prob(p, nullptr) == 0);
  tanh_gaussian_log_prob(q, 0, rows);
  const std::string name = name_of<T>("log_prob", rows, cols);
  // Of one action up to 40: ((z - mean) / std)^2 / 2.
  expect_close(name, log_prob.device, log_prob.cpu, 40.0 * static_cast<double>(cols));

  LogProbBackwardParams<T> back{rows,
                                cols,
                                {grad.device.data(), 1, 0},
                                p.pre_tanh,
                                p.mean,
                                p.log_std,
                                of_pre_tanh.device.data(),
                                of_mean.device.data(),
                                of_log_std.device.data()};
  LogProbBackwardParams<double> back_cpu{rows,
                                         cols,
                                         {grad.cpu.data(), 1, 0},
                                         q.pre_tanh,
                                         q.mean,
                                         q.log_std,
                                         of_pre_tanh.cpu.data(),
                                         of_mean.cpu.data(),
                                         of_log_std.cpu.data()};
  EXPECT(cuda::tanh_gaussian_log_prob_backward(back, nullptr) == 0);
  tanh_gaussian_log_prob_backward(back_cpu, 0, rows);
  expect_close(name + " backward, pre_tanh", of_pre_tanh.device, of_pre_tanh.cpu, 20);
  expect_close(name + " backward, mean", of_mean.device, of_mean.cpu, 20);
  expect_close(name + " backward, log_std", of_log_std.device, of_log_std.cpu, 60);
}

// ---- Bellman targets ----------------------------------------------------------------------------------------------

template <class T>
void check_twin_q(Mixer& mixer, std::int64_t batch, int form) {
  Samples<T> samples(mixer, batch, form);
  Input<T> q1(mixer, batch, 1, 5), q2(mixer, batch, 1, 5), grad(mixer, batch, 1, 1);
  q2.set(0, q1.cpu[0]);  // a tie
  Output<T> target(batch), of_q1(batch), of_q2(batch), of_log_prob(batch), of_alpha(batch);
  TwinQParams<T> p{batch, samples.on_device(), q1.on_device(), q2.on_device(), target.device.data()};
  TwinQParams<double> q{batch, samples.on_cpu(), q1.on_cpu(), q2.on_cpu(), target.cpu.data()};
  EXPECT(cuda::twin_q_target(p, nullptr) == 0);
  twin_q_target(q, 0, batch);
  const std::string name = name_of<T>("twin_q_target", batch, 1);
  expect_close(name, target.device, target.cpu, 10);

  TwinQBackwardParams<T> back{
      p, grad.on_device(), of_q1.device.data(), of_q2.device.data(), of_log_prob.device.data(), of_alpha.device.data()};
  TwinQBackwardParams<double> back_cpu{
      q, grad.on_cpu(), of_q1.cpu.data(), of_q2.cpu.data(), of_log_prob.cpu.data(), of_alpha.cpu.data()};
  EXPECT(cuda::twin_q_target_backward(back, nullptr) == 0);
  twin_q_target_backward(back_cpu, 0, batch);
  expect_close(name + " backward, q1", of_q1.device, of_q1.cpu);
  expect_close(name + " backward, q2", of_q2.device, of_q2.cpu);
  expect_close(name + " backward, log_prob", of_log_prob.device, of_log_prob.cpu);
  expect_close(name + " backward, alpha", of_alpha.device, of_alpha.cpu, 2);
}

template <class T>
void check_categorical(Mixer& mixer, std::int64_t batch, std::int64_t atoms, bool has_second) {
  Samples<T> samples(mixer, batch, has_second ? kMask : kAlpha);
  Input<T> logits1(mixer, batch, atoms, 5), logits2(mixer, batch, atoms, 5, 2), weights(mixer, batch, atoms, 1);
  Output<T> target(batch * atoms), loss(batch), slope(batch * atoms);
  CategoricalTargetParams<T> p{batch, atoms, samples.on_device(), logits1.on_device(), {},
                               -4.0,  6.0,   target.device.data()};
  CategoricalTargetParams<double> q{batch, atoms, samples.on_cpu(), logits1.on_cpu(), {}, -4.0, 6.0, target.cpu.data()};
  if (has_second) {
    p.next_logits2 = logits2.on_device();
    q.next_logits2 = logits2.on_cpu();
  }
  EXPECT(cuda::categorical_target(p, nullptr) == 0);
  categorical_target(q, 0, batch);
  const std::string name = name_of<T>("categorical", batch, atoms);
  // An atom's place is found to within float32 of the 10 that the support is long, in units of its spacing.
  expect_close(name + " target", target.device, target.cpu, std::max(1.0, 0.1 * static_cast<double>(atoms)));

  CrossEntropyParams<T> entropy{
      batch, atoms, logits1.on_device(), weights.on_device(), loss.device.data(), slope.device.data()};
  CrossEntropyParams<double> entropy_cpu{batch,           atoms,           logits1.on_cpu(), weights.on_cpu(),
                                         loss.cpu.data(), slope.cpu.data()};
  EXPECT(cuda::categorical_cross_entropy(entropy, nullptr) == 0);
  categorical_cross_entropy(entropy_cpu, 0, batch);
  expect_close(name + " loss", loss.device, loss.cpu, 10.0 * static_cast<double>(atoms));
  expect_close(name + " slope", slope.device, slope.cpu, 2);
}

template <class T>
void check_quantile(Mixer& mixer, std::int64_t batch, std::int64_t critics, std::int64_t quantiles,
                    std::int64_t targets) {
  Samples<T> samples(mixer, batch, kMask | kAlpha | kGamma);
  Input<T> predicted(mixer, batch * critics, quantiles, 3), target(mixer, batch, targets, 3);
  Output<T> loss(batch * critics), slope(batch * critics * quantiles);
  QuantileHuberParams<T> p{batch * critics,
                           critics,
                           quantiles,
                           targets,
                           predicted.on_device(),
                           target.on_device(),
                           0.7,
                           loss.device.data(),
                           slope.device.data()};
  QuantileHuberParams<double> q{batch * critics, critics, quantiles,       targets,         predicted.on_cpu(),
                                target.on_cpu(), 0.7,     loss.cpu.data(), slope.cpu.data()};
  EXPECT(cuda::quantile_huber_loss(p, nullptr) == 0);
  quantile_huber_loss(q, 0, q.rows);
  const std::string name = name_of<T>("quantile", batch * critics, quantiles);
  expect_close(name + " loss", loss.device, loss.cpu, 4);
  expect_close(name + " slope", slope.device, slope.cpu);

  const std::int64_t pooled = critics * quantiles, kept = (pooled + 1) / 2;
  Input<T> pool(mixer, batch, pooled, 3);
  if (batch > 1) {  // found by two threads, where there are two elements
    pool.set(static_cast<std::size_t>(pooled), NAN);
    pool.set(static_cast<std::size_t>(2 * pooled - 1), NAN);
  }
  Output<T> truncated(batch * kept);
  TruncatedTargetParams<T> cut{batch, pooled, kept, samples.on_device(), pool.on_device(), truncated.device.data()};
  TruncatedTargetParams<double> cut_cpu{batch, pooled, kept, samples.on_cpu(), pool.on_cpu(), truncated.cpu.data()};
  EXPECT(cuda::truncated_quantile_target(cut, nullptr) == 0);
  truncated_quantile_target(cut_cpu, 0, batch);
  expect_close(name + " truncated target", truncated.device, truncated.cpu, 8);
}

// ---- Lists of tensors ---------------------------------------------------------------------------------------------

template <class T>
void check_polyak(Mixer& mixer, const std::vector<std::int64_t>& sizes) {
  Tensors<T> target(mixer, sizes, -1, 1), online(mixer, sizes, -1, 1);
  std::int64_t total = 0;
  const std::vector<std::int64_t> begins = begins_of(sizes, total);
  std::vector<PolyakSpan<T>> spans;
  std::vector<PolyakSpan<double>> spans_cpu;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    spans.push_back({target.each[i]->device.data(), online.each[i]->device.data(), begins[i]});
    spans_cpu.push_back({target.each[i]->cpu.data(), online.each[i]->cpu.data(), begins[i]});
  }
  const auto count = static_cast<std::int64_t>(sizes.size());
  EXPECT(cuda::polyak_update(PolyakParams<T>{spans.data(), count, total, 0.05}, nullptr) == 0);
  polyak_update(PolyakParams<double>{spans_cpu.data(), count, total, 0.05}, 0, total);
  for (const auto& each : target.each) expect_close(name_of<T>("polyak", count, total), each->device, each->cpu);
}

template <class T>
void check_adam_polyak(Mixer& mixer, const std::vector<std::int64_t>& sizes) {
  Tensors<T> param(mixer, sizes, -1, 1), grad(mixer, sizes, -1, 1), exp_avg(mixer, sizes, -1, 1);
  Tensors<T> exp_avg_sq(mixer, sizes, 0.5, 1), target(mixer, sizes, -1, 1);
  std::int64_t total = 0;
  const std::vector<std::int64_t> begins = begins_of(sizes, total);
  std::vector<AdamPolyakSpan<T>> spans;
  std::vector<AdamPolyakSpan<double>> spans_cpu;
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    const bool is_followed = i % 3 != 2;
    spans.push_back({param.each[i]->device.data(), grad.each[i]->device.data(), exp_avg.each[i]->device.data(),
                     exp_avg_sq.each[i]->device.data(), is_followed ? target.each[i]->device.data() : nullptr,
                     begins[i]});
    spans_cpu.push_back({param.each[i]->cpu.data(), grad.each[i]->cpu.data(), exp_avg.each[i]->cpu.data(),
                         exp_avg_sq.each[i]->cpu.data(), is_followed ? target.each[i]->cpu.data() : nullptr,
                         begins[i]});
  }
  const auto count = static_cast<std::int64_t>(sizes.size());
  EXPECT(cuda::adam_polyak(AdamPolyakParams<T>{spans.data(), count, total, 4, 3e-3, 0.9, 0.999, 1e-8, 0.01, 0.05},
                           nullptr) == 0);
  adam_polyak(AdamPolyakParams<double>{spans_cpu.data(), count, total, 4, 3e-3, 0.9, 0.999, 1e-8, 0.01, 0.05}, 0,
              total);
  const std::string name = name_of<T>("adam_polyak", count, total);
  for (const Tensors<T>* list : {&param, &exp_avg, &exp_avg_sq, &target}) {
    for (const auto& each : list->each) expect_close(name, each->device, each->cpu);
  }
}

// ---- Moments ------------------------------------------------------------------------------------------------------

template <class T>
void check_moments(Mixer& mixer, std::int64_t rows, std::int64_t columns, bool is_wide) {
  const std::int64_t parts = (rows + 3) / 4;
  Input<T> batch(mixer, rows, columns, 3, 1), grad(mixer, rows, columns, 1);
  Tensors<double> mean(mixer, {columns}, -1, 1), variance(mixer, {columns}, 0.5, 1), count(mixer, {1}, 40, 40);
  Tensors<float> mean_single(mixer, {columns}, -1, 1), variance_single(mixer, {columns}, 0.5, 1);
  Output<double> partial(parts * 2 * columns), before(1);
  Doubles single_mean = mean_single.each[0]->cpu, single_variance = variance_single.each[0]->cpu;
  RunningMomentsParams<T> p{rows,
                            columns,
                            batch.on_device(),
                            {},
                            {},
                            count.each[0]->device.data(),
                            nullptr,
                            parts,
                            partial.device.data(),
                            before.device.data()};
  RunningMomentsParams<double> q{rows,
                                 columns,
                                 batch.on_cpu(),
                                 {},
                                 {},
                                 count.each[0]->cpu.data(),
                                 nullptr,
                                 parts,
                                 partial.cpu.data(),
                                 before.cpu.data()};
  if (is_wide) {
    p.mean.wide = mean.each[0]->device.data();
    p.variance.wide = variance.each[0]->device.data();
    q.mean.wide = mean.each[0]->cpu.data();
    q.variance.wide = variance.each[0]->cpu.data();
  } else {
    p.mean.single = mean_single.each[0]->device.data();
    p.variance.single = variance_single.each[0]->device.data();
    q.mean.wide = single_mean.data();
    q.variance.wide = single_variance.data();
  }
  EXPECT(cuda::partial_moments(p, nullptr) == 0);
  EXPECT(cuda::merge_moments(p, nullptr) == 0);
  partial_moments(q, 0, parts * ((columns + kMomentColumns - 1) / kMomentColumns));
  merge_moments(q, 0, columns);
  const std::string name = name_of<T>("moments", rows, columns);
  expect_close(name + ", count", count.each[0]->device, count.each[0]->cpu);
  if (is_wide) {
    expect_close(name + ", mean", mean.each[0]->device, mean.each[0]->cpu);
    expect_close(name + ", variance", variance.each[0]->device, variance.each[0]->cpu, 10);
  } else {
    expect_close(name + ", mean", mean_single.each[0]->device, single_mean);
    expect_close(name + ", variance", variance_single.each[0]->device, single_variance, 10);
    // Both normalise by what was stored.
    std::copy_n(mean_single.each[0]->device.begin(), columns, single_mean.begin());
    std::copy_n(variance_single.each[0]->device.begin(), columns, single_variance.begin());
  }

  for (const bool backward : {false, true}) {
    Output<T> out(rows * columns);
    NormalizeParams<T> n{rows, columns,          batch.on_device(), p.mean, p.variance, 1e-5, backward ? 1.0 : INFINITY,
                         {},   out.device.data()};
    NormalizeParams<double> m{rows, columns,       batch.on_cpu(), q.mean, q.variance, 1e-5, backward ? 1.0 : INFINITY,
                              {},   out.cpu.data()};
    if (backward) {
      n.grad = grad.on_device();
      m.grad = grad.on_cpu();
    }
    EXPECT(cuda::normalize(n, nullptr) == 0);
    normalize(m, 0, rows);
    expect_close(name + (backward ? " normalize backward" : " normalize"), out.device, out.cpu, 4);
  }
}

// ---- All of them --------------------------------------------------------------------------------------------------

template <class T>
int check_all(bool large) {
  Mixer mixer{7};
  int cases = 0;
  using Shape = std::pair<std::int64_t, std::int64_t>;
  // Around a tile's 1,024 elements, a warp's 32 columns and 64 rows.
  std::vector<Shape> shapes = {{1, 1}, {5, 3}, {70, 6}, {3, 33}, {2, 1025}};
  if (large)
    shapes.insert(shapes.end(), {{400, 6}, {4096, 6}, {3, 32}, {30, 40}, {3, 1000}, {3, 1024}, {2, 1030}, {3, 2500}});
  for (const auto& [rows, cols] : shapes) {
    for (const LogStdBounding kind : {LogStdBounding::kNone, LogStdBounding::kClamp, LogStdBounding::kTanh}) {
      if (!large && rows * cols > 1000 && kind != LogStdBounding::kClamp) continue;
      for (const bool flag : {false, true}) {
        check_rsample<T>(mixer, rows, cols, kind, flag);
        check_rsample_backward<T>(mixer, rows, cols, kind, flag);
        cases += 2;
      }
    }
    check_log_prob<T>(mixer, rows, cols);
    cases += 2;
  }
  for (const std::int64_t batch : {1, 33, large ? 5000 : 300}) {
    for (int form = 0; form < kForms; ++form) check_twin_q<T>(mixer, batch, form);
    cases += 2 * kForms;
  }
  const std::vector<std::int64_t> atoms =
      large ? std::vector<std::int64_t>{1, 2, 101, 255, 256, 257, 600} : std::vector<std::int64_t>{1, 51, 257};
  for (const std::int64_t each : atoms) {
    for (const bool flag : {false, true}) check_categorical<T>(mixer, 3, each, flag);
    cases += 4;
  }
  check_quantile<T>(mixer, 1, 1, 1, 1);
  check_quantile<T>(mixer, 2, 2, 8, 33);
  check_quantile<T>(mixer, 2, 5, 25, 115);
  if (large) check_quantile<T>(mixer, 2, 4, 256, 92);
  cases += large ? 8 : 6;
  // More tensors than the short tables hold (64 and 32); empty ones; around a chunk's 1,024 elements.
  std::vector<std::int64_t> many(70, 3);
  many[5] = 0;
  many[69] = 1025;
  for (const std::vector<std::int64_t>& sizes : {std::vector<std::int64_t>{1}, {1023, 1024, 1025, 7}, many}) {
    check_polyak<T>(mixer, sizes);
    check_adam_polyak<T>(mixer, sizes);
    cases += 2;
  }
  for (const auto& [rows, columns] : {Shape{1, 1}, {5, 3}, {70, 17}, {33, 300}}) {
    for (const bool is_wide : {false, true}) check_moments<T>(mixer, rows, columns, is_wide);
    cases += 8;
  }
  return cases;
}

}  // namespace
}  // namespace sacfast::SACFAST_ISA

namespace ptx {

void run_float_op_cases(Groups& groups) { groups.done("ops, float32", sacfast::SACFAST_ISA::check_all<float>(false)); }

void run_op_cases(Groups& groups, bool large) {
  for (const bool reversed : {false, true}) {
    device().reversed = reversed;
    const std::string order = reversed ? ", reversed" : "";
    groups.done("ops, float32" + order, sacfast::SACFAST_ISA::check_all<float>(large));
    groups.done("ops, float64" + order, sacfast::SACFAST_ISA::check_all<double>(large));
    groups.done("ops, float16" + order, sacfast::SACFAST_ISA::check_all<__half>(large));
    groups.done("ops, bfloat16" + order, sacfast::SACFAST_ISA::check_all<__nv_bfloat16>(large));
  }
  device().reversed = false;
}

}  // namespace ptx
