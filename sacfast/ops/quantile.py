"""A critic of quantiles: M values q_i, at the fractions (i + 1/2) / M of the return's distribution.

The quantile Huber loss (arXiv 1710.10044, 1806.06923) and the truncated target of TQC (arXiv 2005.04269).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sacfast import _ext  # noqa: F401  (loads the native library)
from sacfast.ops._fake import check_like
from sacfast.ops._gradients import compute_in_float32_under_autocast, differentiate_loss, refuse_gradients
from sacfast.ops._library import define, refusal
from sacfast.ops._sample import SAMPLE_COEFFICIENTS, as_tensor_or_number, check_sample, flatten_sample

_HUBER = define(
    "quantile_huber_loss(Tensor quantiles, Tensor target, float kappa, bool needs_slope) -> (Tensor loss, Tensor slope)"
)
_TARGET = define(
    "truncated_quantile_target(Tensor reward, Tensor terminated, Tensor next_quantiles, Tensor next_log_prob, "
    f"int drop_per_critic, {SAMPLE_COEFFICIENTS}) -> Tensor"
)


def quantile_huber_loss(quantiles: Tensor, target: Tensor, kappa: float = 1.0) -> Tensor:
    """Return the quantile Huber loss of each critic in each sample. Differentiable in quantiles.

    It is the mean over the M K pairs of |tau_i - 1{u < 0}| L(u) / kappa, with u = target_j - q_i and L the Huber loss:
    u^2 / 2 up to |u| = kappa, kappa (|u| - kappa / 2) beyond (arXiv 1806.06923, equation 3; 2005.04269, equations 13
    to 15). With kappa = 1, as TQC has it, dividing by kappa changes nothing.

    Args:
        quantiles: [B, N, M] of N critics, or [B, M] of one.
        target: [B, K], samples of the target's distribution; the critics share it. No gradient flows to it.
        kappa: > 0, where the square ends.

    Returns:
        The loss, [B, N] or [B]. NaN in a sample reaches its loss.

    Raises:
        ValueError: a shape, device or kappa that does not fit, or a target that requires grad.
        TypeError: a dtype that does not fit.
    """
    try:
        loss: Tensor = _HUBER(quantiles, target, kappa, False)[0]
    except ValueError as error:
        raise refusal(error) from None
    return loss


def quantile_huber_loss_reference(quantiles: Tensor, target: Tensor, kappa: float = 1.0) -> Tensor:
    """Do what `quantile_huber_loss` does, in plain torch."""
    u, fractions = _differences(quantiles, target)
    size = u.abs()
    is_linear = size > kappa
    square = 0.5 * u.masked_fill(is_linear, 0.0).square()
    linear = (kappa * (size - 0.5 * kappa)).masked_fill(~is_linear, 0.0)
    weights = (fractions - (u < 0).to(u.dtype)).abs()
    return (weights * (square + linear)).mean((-1, -2)) / kappa


def _huber_slope(quantiles: Tensor, target: Tensor, kappa: float) -> Tensor:
    u, fractions = _differences(quantiles, target)
    weights = (fractions - (u < 0).to(u.dtype)).abs()
    return (weights * u.clamp(-kappa, kappa)).mean(-1) * (-1 / (kappa * quantiles.shape[-1]))


def _differences(quantiles: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return target_j - q_i, [B, (N,) M, K], and the fractions of the quantiles, [M, 1]."""
    if quantiles.ndim == 3:
        target = target.unsqueeze(-2)
    count = quantiles.shape[-1]
    fractions = (torch.arange(count, dtype=quantiles.dtype, device=quantiles.device) + 0.5) / count
    return target.unsqueeze(-2) - quantiles.unsqueeze(-1), fractions.unsqueeze(-1)


def truncated_quantile_target(
    reward: Tensor,
    terminated: Tensor,
    next_quantiles: Tensor,
    next_log_prob: Tensor,
    drop_per_critic: int,
    alpha: float | Tensor,
    gamma: float | Tensor,
) -> Tensor:
    """Return TQC's target [B, N M - N drop_per_critic], rising (arXiv 2005.04269, equations 11 and 12).

    The quantiles of all N target critics are pooled and sorted, and the N drop_per_critic largest dropped. The others
    move to reward + gamma (1 - terminated) (q - alpha next_log_prob). No gradient flows through a target.

    Args:
        reward: [B] or [B, 1], already scaled; terminated and next_log_prob have the same shape (never broadcast).
        terminated: bool, or the reward's dtype. A time limit is not a termination: it bootstraps.
        next_quantiles: [B, N, M] of the target critics at (x', a'). On CUDA N M is at most 4,096.
        next_log_prob: log pi(a'|x').
        drop_per_critic: quantiles that are dropped for each critic, in [0, M). TQC: 2 of 25.
        alpha: temperature: a number, a tensor of one element, or one per sample. 0: no entropy term.
        gamma: discount: a number, a tensor of one element, or one per sample (gamma^k for k-step returns).

    Returns:
        The target, of the reward's dtype. A NaN in a sample makes its whole row NaN: sorted last and dropped, it would
        hide a broken critic.

    Raises:
        ValueError: a shape, device or number that does not fit, or an input that requires grad.
        TypeError: a dtype that does not fit.
    """
    try:
        target: Tensor = _TARGET(
            reward,
            terminated,
            next_quantiles,
            next_log_prob,
            drop_per_critic,
            *as_tensor_or_number(alpha),
            *as_tensor_or_number(gamma),
        )
    except ValueError as error:
        raise refusal(error) from None
    return target


def truncated_quantile_target_reference(
    reward: Tensor,
    terminated: Tensor,
    next_quantiles: Tensor,
    next_log_prob: Tensor,
    drop_per_critic: int,
    alpha: float | Tensor,
    gamma: float | Tensor,
) -> Tensor:
    """Do what `truncated_quantile_target` does, in plain torch."""
    pool = next_quantiles.flatten(1)
    kept = pool.sort(-1).values[:, : pool.shape[1] - drop_per_critic * next_quantiles.shape[1]]
    kept = kept.masked_fill(pool.isnan().any(-1, keepdim=True), torch.nan)
    discount = (gamma * (1.0 - terminated.to(reward.dtype))).reshape(-1, 1)
    return reward.reshape(-1, 1) + discount * (kept - (alpha * next_log_prob).reshape(-1, 1))


differentiate_loss(_HUBER, quantile_huber_loss_reference, _huber_slope)
refuse_gradients(_TARGET)
compute_in_float32_under_autocast(_HUBER)
compute_in_float32_under_autocast(_TARGET)


# ---- torch.vmap: a batch of all the batches ----------------------------------------------------------------------


@torch.library.register_vmap("sacfast::quantile_huber_loss")
def _(info, in_dims, quantiles, target, kappa, needs_slope):  # type: ignore[no-untyped-def]
    quantiles, target = (
        each.expand(info.batch_size, *each.shape) if dim is None else each.movedim(dim, 0)
        for each, dim in ((quantiles, in_dims[0]), (target, in_dims[1]))
    )
    if target.ndim != 3 or target.shape[1] != quantiles.shape[1]:
        raise ValueError(f"target: expected shape [B, K] with B = {quantiles.shape[1]}, got {list(target.shape[1:])}")
    loss, slope = torch.ops.sacfast.quantile_huber_loss(
        quantiles.flatten(0, 1), target.flatten(0, 1), kappa, needs_slope
    )
    loss = loss.view(quantiles.shape[:-1])
    return ((loss, slope.view(quantiles.shape)), (0, 0)) if needs_slope else ((loss, slope), (0, None))


@torch.library.register_vmap("sacfast::truncated_quantile_target")
def _(info, in_dims, reward, terminated, quantiles, log_prob, drop, alpha, alpha_value, gamma, gamma_value):  # type: ignore[no-untyped-def]
    sample = (reward, terminated, log_prob, alpha, gamma)
    sample_dims = (in_dims[0], in_dims[1], in_dims[3], in_dims[5], in_dims[7])
    reward, terminated, log_prob, alpha, gamma = flatten_sample(info.batch_size, sample, sample_dims)
    dim = in_dims[2]
    quantiles = quantiles.expand(info.batch_size, *quantiles.shape) if dim is None else quantiles.movedim(dim, 0)
    target = torch.ops.sacfast.truncated_quantile_target(
        reward, terminated, quantiles.flatten(0, 1), log_prob, drop, alpha, alpha_value, gamma, gamma_value
    )
    return target.view(*quantiles.shape[:2], -1), 0


# ---- Fake kernels: shapes for torch.compile --------------------------------------------------------------------


@torch.library.register_fake("sacfast::quantile_huber_loss")
def _(quantiles, target, kappa, needs_slope):  # type: ignore[no-untyped-def]
    check_like(("quantiles", quantiles), ("target", target))
    if quantiles.ndim not in (2, 3):
        raise ValueError(f"quantiles: expected shape [B, M] or [B, N, M], got {list(quantiles.shape)}")
    if target.ndim != 2 or target.shape[0] != quantiles.shape[0]:
        raise ValueError(f"target: expected shape [B, K] with B = {quantiles.shape[0]}, got {list(target.shape)}")
    return quantiles.new_empty(quantiles.shape[:-1]), quantiles.new_empty(quantiles.shape if needs_slope else (0,))


@torch.library.register_fake("sacfast::truncated_quantile_target")
def _(reward, terminated, quantiles, log_prob, drop, alpha, alpha_value, gamma, gamma_value):  # type: ignore[no-untyped-def]
    check_sample(reward, terminated, log_prob, alpha, gamma, next_quantiles=quantiles)
    if quantiles.ndim != 3 or quantiles.shape[0] != reward.numel():
        raise ValueError(
            f"next_quantiles: expected shape [B, N, M] with B = {reward.numel()}, got {list(quantiles.shape)}"
        )
    if not 0 <= drop < quantiles.shape[2]:
        raise ValueError(f"drop_per_critic: expected an int in [0, {quantiles.shape[2]}), got {drop}")
    return quantiles.new_empty(reward.numel(), quantiles.shape[1] * (quantiles.shape[2] - drop))
