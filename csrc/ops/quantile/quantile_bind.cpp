// Torch checks and registration on CPU and CUDA. Schemas and autograd: sacfast/ops/quantile.py.
#include "quantile.h"

#include <cmath>

#include "../sample_inputs.h"

namespace sacfast {
namespace {

// The slope, d loss / d quantiles, has no elements where it is not wanted.
std::tuple<Tensor, Tensor> quantile_huber_loss(const Tensor& quantiles, const Tensor& target, double kappa,
                                               bool needs_slope) {
  check_dtype({"quantiles", quantiles});
  const std::size_t dims = quantiles.dim();
  SACFAST_CHECK((dims == 2 || (dims == 3 && quantiles.size(1) >= 1)) && quantiles.size(dims - 1) >= 1,
                "quantiles: expected shape [B, M] or [B, N, M] with N and M >= 1, got ", quantiles.sizes());
  check_same_dtype_and_device({"target", target}, {"quantiles", quantiles});
  const std::int64_t batch = quantiles.size(0);
  SACFAST_CHECK(target.dim() == 2 && target.size(0) == batch && target.size(1) >= 1,
                "target: expected shape [B, K] with B = ", batch, " like quantiles and K >= 1, got ", target.sizes());
  SACFAST_CHECK(std::isfinite(kappa) && kappa > 0.0, "kappa: expected a finite number > 0, got ", kappa);
  const DeviceOf guard(quantiles);
  const std::int64_t critics = dims == 3 ? quantiles.size(1) : 1, count = quantiles.size(dims - 1);
  Tensor loss = empty(IntView(quantiles.sizes().data, dims - 1), quantiles);
  Tensor slope = needs_slope ? empty(quantiles.sizes(), quantiles) : empty(IntView(&kNone, 1), quantiles);
  if (batch == 0) return {std::move(loss), std::move(slope)};
  const MatrixView predicted = as_matrix(quantiles, quantiles.sizes()), target_rows = as_rows(target);
  with_kernel_type(quantiles, [&](auto zero) {
    using T = decltype(zero);
    const QuantileHuberParams<T> params{batch * critics, critics,           count,
                                        target.size(1),  predicted.as<T>(), target_rows.as<T>(),
                                        kappa,           pointer<T>(loss),  needs_slope ? pointer<T>(slope) : nullptr};
    SACFAST_RUN(quantile_huber_loss, quantiles, T, params, params.rows, rows_per_thread(count * target.size(1)));
  });
  return {std::move(loss), std::move(slope)};
}

// The quantiles of all critics as one row a sample: [B, N, M], or a copy of it.
MatrixView as_pool(const Tensor& quantiles) {
  const bool is_row = quantiles.stride(2) == 1 && quantiles.stride(1) == quantiles.size(2);
  if (is_row) return {pointer<const void>(quantiles), quantiles.stride(0), 1, std::nullopt};
  MatrixView view;
  view.copied = empty(quantiles.sizes(), quantiles);
  copy(*view.copied, quantiles);
  view.data = pointer<const void>(*view.copied);
  view.row_stride = quantiles.size(1) * quantiles.size(2);
  view.col_stride = 1;
  return view;
}

Tensor truncated_quantile_target(const Tensor& reward, const Tensor& terminated, const Tensor& next_quantiles,
                                 const Tensor& next_log_prob, std::int64_t drop_per_critic, const OptionalTensor& alpha,
                                 double alpha_value, const OptionalTensor& gamma, double gamma_value) {
  const SampleInputs sample{terminated, next_log_prob, alpha, alpha_value, gamma, gamma_value};
  const Argument first_argument{"reward", reward};
  check_reward(first_argument);
  sample.check(first_argument);
  check_rows({"next_quantiles", next_quantiles}, 3, "[B, N, M]", first_argument);
  const std::int64_t critics = next_quantiles.size(1), count = next_quantiles.size(2), pooled = critics * count;
  SACFAST_CHECK(drop_per_critic >= 0 && drop_per_critic < count, "drop_per_critic: expected an int in [0, ", count,
                ") for M = ", count, " quantiles a critic, got ", drop_per_critic);
  SACFAST_CHECK(next_quantiles.is_cpu() || pooled <= kMostPooledOnCuda, "next_quantiles: expected at most ",
                kMostPooledOnCuda, " quantiles a sample on CUDA, got ", pooled);
  const DeviceOf guard(reward);
  const std::int64_t kept = pooled - drop_per_critic * critics;
  const std::int64_t sizes[] = {reward.numel(), kept};
  Tensor target = empty(IntView(sizes, 2), next_quantiles);
  if (target.numel() == 0) return target;
  const MatrixView pool = as_pool(next_quantiles);
  with_kernel_type(reward, [&](auto zero) {
    using T = decltype(zero);
    const TruncatedTargetParams<T> params{reward.numel(),         pooled,       kept,
                                          sample.view<T>(reward), pool.as<T>(), pointer<T>(target)};
    SACFAST_RUN(truncated_quantile_target, reward, T, params, params.batch, rows_per_thread(4 * pooled));
  });
  return target;
}

SACFAST_KERNELS(m) {
  m.impl("quantile_huber_loss", SACFAST_KERNEL(quantile_huber_loss));
  m.impl("truncated_quantile_target", SACFAST_KERNEL(truncated_quantile_target));
}

}  // namespace
}  // namespace sacfast
