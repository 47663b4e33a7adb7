// Torch checks and registration on CPU and CUDA. Schemas and autograd: sacfast/ops/categorical.py.
#include "categorical.h"

#include <cmath>

#include "../sample_inputs.h"

namespace sacfast {
namespace {

Tensor categorical_target(const Tensor& reward, const Tensor& terminated, const Tensor& next_logits1,
                          const OptionalTensor& next_logits2, const Tensor& next_log_prob, const OptionalTensor& alpha,
                          double alpha_value, const OptionalTensor& gamma, double gamma_value, double v_min,
                          double v_max) {
  const SampleInputs sample{terminated, next_log_prob, alpha, alpha_value, gamma, gamma_value};
  const Argument first_argument{"reward", reward};
  check_reward(first_argument);
  sample.check(first_argument);
  check_rows({"next_logits1", next_logits1}, 2, "[B, M]", first_argument);
  if (given(next_logits2)) {
    check_like({"next_logits2", *next_logits2}, {"next_logits1", next_logits1});
  }
  SACFAST_CHECK(std::isfinite(v_min), "v_min: expected a finite number, got ", v_min);
  SACFAST_CHECK(std::isfinite(v_max) && v_max > v_min, "v_max: expected a finite number > v_min = ", v_min, ", got ",
                v_max);
  const DeviceOf guard(reward);
  Tensor target = empty(next_logits1.sizes(), next_logits1);
  if (target.numel() == 0) return target;
  const std::int64_t atoms = next_logits1.size(1);
  const MatrixView first = as_rows(next_logits1), second = given(next_logits2) ? as_rows(*next_logits2) : MatrixView{};
  with_kernel_type(reward, [&](auto zero) {
    using T = decltype(zero);
    const CategoricalTargetParams<T> params{reward.numel(),
                                            atoms,
                                            sample.view<T>(reward),
                                            first.as<T>(),
                                            given(next_logits2) ? second.as<T>() : Strided<T>{},
                                            v_min,
                                            v_max,
                                            pointer<T>(target)};
    SACFAST_RUN(categorical_target, reward, T, params, params.batch, rows_per_thread(atoms));
  });
  return target;
}

// The slope, d loss / d logits, has no elements where it is not wanted.
std::tuple<Tensor, Tensor> categorical_cross_entropy(const Tensor& logits, const Tensor& target, bool needs_slope) {
  check_dtype({"logits", logits});
  SACFAST_CHECK(logits.dim() == 2 && logits.size(1) >= 1, "logits: expected shape [B, M] with M >= 1, got ",
                logits.sizes());
  check_like({"target", target}, {"logits", logits});
  const DeviceOf guard(logits);
  const std::int64_t batch = logits.size(0), atoms = logits.size(1);
  Tensor loss = empty(IntView(&batch, 1), logits);
  Tensor slope = needs_slope ? empty(logits.sizes(), logits) : empty(IntView(&kNone, 1), logits);
  if (batch == 0) return {std::move(loss), std::move(slope)};
  const MatrixView logit_rows = as_rows(logits), target_rows = as_rows(target);
  with_kernel_type(logits, [&](auto zero) {
    using T = decltype(zero);
    const CrossEntropyParams<T> params{batch,
                                       atoms,
                                       logit_rows.as<T>(),
                                       target_rows.as<T>(),
                                       pointer<T>(loss),
                                       needs_slope ? pointer<T>(slope) : nullptr};
    SACFAST_RUN(categorical_cross_entropy, logits, T, params, batch, rows_per_thread(atoms));
  });
  return {std::move(loss), std::move(slope)};
}

SACFAST_KERNELS(m) {
  m.impl("categorical_target", SACFAST_KERNEL(categorical_target));
  m.impl("categorical_cross_entropy", SACFAST_KERNEL(categorical_cross_entropy));
}

}  // namespace
}  // namespace sacfast
