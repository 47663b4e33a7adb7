"""A critic of atoms: Q = sum_j p_j z_j, with p = softmax(logits) and M atoms z_j from v_min to v_max, equally spaced.

Its Bellman target is a distribution too (arXiv 1707.06887, equation 7), here with SAC's entropy term.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sacfast import _ext  # noqa: F401  (loads the native library)
from sacfast.ops._fake import check_like, check_shape
from sacfast.ops._gradients import compute_in_float32_under_autocast, differentiate_loss, refuse_gradients
from sacfast.ops._library import define, refusal
from sacfast.ops._sample import SAMPLE_COEFFICIENTS, as_tensor_or_number, check_sample, flatten_sample

_TARGET = define(
    "categorical_target(Tensor reward, Tensor terminated, Tensor next_logits1, Tensor? next_logits2, "
    f"Tensor next_log_prob, {SAMPLE_COEFFICIENTS}, float v_min, float v_max) -> Tensor"
)
_CROSS_ENTROPY = define(
    "categorical_cross_entropy(Tensor logits, Tensor target, bool needs_slope) -> (Tensor loss, Tensor slope)"
)


def categorical_target(
    reward: Tensor,
    terminated: Tensor,
    next_logits1: Tensor,
    next_logits2: Tensor | None,
    next_log_prob: Tensor,
    alpha: float | Tensor,
    gamma: float | Tensor,
    v_min: float,
    v_max: float,
) -> Tensor:
    """Return the target's probabilities [B, M]: atoms moved by the Bellman equation, their masses split linearly.

    Of the two target critics the one with the smaller mean counts, in each sample (the first, if they are equal). Its
    atoms move to clip(reward + gamma (1 - terminated) (z_j - alpha next_log_prob)), and each mass is shared by the two
    atoms around its place. No gradient flows through a target.

    Args:
        reward: [B] or [B, 1], already scaled; terminated and next_log_prob have the same shape (never broadcast).
        terminated: bool, or the reward's dtype. A time limit is not a termination: it bootstraps.
        next_logits1: [B, M] of target critic 1 at (x', a').
        next_logits2: [B, M] of target critic 2; None: there is one critic.
        next_log_prob: log pi(a'|x').
        alpha: temperature: a number, a tensor of one element, or one per sample. 0: no entropy term.
        gamma: discount: a number, a tensor of one element, or one per sample (gamma^k for k-step returns).
        v_min: the first atom.
        v_max: the last atom, > v_min. A single atom (M = 1) lies at v_min.

    Returns:
        [B, M], of the reward's dtype; rows add up to 1. A NaN in a sample makes its whole row NaN.

    Raises:
        ValueError: a shape, device or number that does not fit, or an input that requires grad.
        TypeError: a dtype that does not fit.
    """
    try:
        target: Tensor = _TARGET(
            reward,
            terminated,
            next_logits1,
            next_logits2,
            next_log_prob,
            *as_tensor_or_number(alpha),
            *as_tensor_or_number(gamma),
            v_min,
            v_max,
        )
    except ValueError as error:
        raise refusal(error) from None
    return target


def categorical_target_reference(
    reward: Tensor,
    terminated: Tensor,
    next_logits1: Tensor,
    next_logits2: Tensor | None,
    next_log_prob: Tensor,
    alpha: float | Tensor,
    gamma: float | Tensor,
    v_min: float,
    v_max: float,
) -> Tensor:
    """Do what `categorical_target` does, in plain torch."""
    atoms = next_logits1.shape[-1]
    z = torch.linspace(v_min, v_max, atoms, dtype=reward.dtype, device=reward.device)
    masses = next_logits1.softmax(-1)
    if next_logits2 is not None:
        masses2 = next_logits2.softmax(-1)
        mean1, mean2 = masses @ z, masses2 @ z
        masses = torch.where(((mean1 <= mean2) | mean1.isnan()).unsqueeze(-1), masses, masses2)
    discount = (gamma * (1.0 - terminated.to(reward.dtype))).reshape(-1, 1)
    entropy = (alpha * next_log_prob).reshape(-1, 1)
    moved = (reward.reshape(-1, 1) + discount * (z - entropy)).clamp(v_min, v_max)
    positions = ((moved - v_min) * ((atoms - 1) / (v_max - v_min))).clamp(0, atoms - 1)
    lower = positions.nan_to_num().floor().clamp(max=max(atoms - 2, 0))
    upper_share = positions - lower
    index = lower.long()
    target = torch.zeros_like(masses).scatter_add(-1, index, masses * (1 - upper_share))
    target = target.scatter_add(-1, (index + 1).clamp(max=atoms - 1), masses * upper_share)
    return target + 0 * (positions + masses).sum(-1, keepdim=True)  # one NaN makes all of the row NaN


def categorical_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Return the cross-entropy of each sample, -sum_j target_j log softmax(logits)_j. Differentiable in logits.

    The slope in logits is softmax(logits) - target, where the target adds up to 1; any other target is served too.

    Args:
        logits: [B, M] of a critic.
        target: [B, M], probabilities such as `categorical_target` returns. No gradient flows to it.

    Returns:
        The loss [B]. NaN in a sample reaches its loss.

    Raises:
        ValueError: a shape or device that does not fit, or a target that requires grad.
        TypeError: a dtype that does not fit.
    """
    try:
        loss: Tensor = _CROSS_ENTROPY(logits, target, False)[0]
    except ValueError as error:
        raise refusal(error) from None
    return loss


def categorical_cross_entropy_reference(logits: Tensor, target: Tensor) -> Tensor:
    """Do what `categorical_cross_entropy` does, in plain torch."""
    return -(target * logits.log_softmax(-1)).sum(-1)


def _cross_entropy_slope(logits: Tensor, target: Tensor) -> Tensor:
    return target.sum(-1, keepdim=True) * logits.softmax(-1) - target


refuse_gradients(_TARGET)
differentiate_loss(_CROSS_ENTROPY, categorical_cross_entropy_reference, _cross_entropy_slope)
compute_in_float32_under_autocast(_TARGET)
compute_in_float32_under_autocast(_CROSS_ENTROPY)


# ---- torch.vmap: a batch of all the batches ----------------------------------------------------------------------


@torch.library.register_vmap("sacfast::categorical_target")
def _(info, in_dims, reward, terminated, logits1, logits2, log_prob, alpha, alpha_value, gamma, gamma_value, *v):  # type: ignore[no-untyped-def]
    sample = (reward, terminated, log_prob, alpha, gamma)
    sample_dims = (in_dims[0], in_dims[1], in_dims[4], in_dims[5], in_dims[7])
    reward, terminated, log_prob, alpha, gamma = flatten_sample(info.batch_size, sample, sample_dims)
    first, second = (_mapped_rows(info, *pair) for pair in ((logits1, in_dims[2]), (logits2, in_dims[3])))
    shape = (info.batch_size, -1, first.shape[-1])
    if second is not None and second.shape != first.shape:
        raise ValueError(f"next_logits2: expected shape {list(first.shape[1:])} like next_logits1")
    flat = (None if each is None else each.flatten(0, 1) for each in (first, second))
    target = torch.ops.sacfast.categorical_target(
        reward, terminated, *flat, log_prob, alpha, alpha_value, gamma, gamma_value, *v
    )
    return target.view(shape), 0


@torch.library.register_vmap("sacfast::categorical_cross_entropy")
def _(info, in_dims, logits, target, needs_slope):  # type: ignore[no-untyped-def]
    logits, target = _mapped_rows(info, logits, in_dims[0]), _mapped_rows(info, target, in_dims[1])
    if target.shape != logits.shape:
        raise ValueError(f"target: expected shape {list(logits.shape[1:])} like logits, got {list(target.shape[1:])}")
    loss, slope = torch.ops.sacfast.categorical_cross_entropy(logits.flatten(0, 1), target.flatten(0, 1), needs_slope)
    return (loss.view(logits.shape[:2]), slope.view(logits.shape) if needs_slope else slope), (
        0,
        0 if needs_slope else None,
    )


def _mapped_rows(info: Any, tensor: Tensor | None, batch_dim: int | None) -> Any:
    if tensor is None:
        return None
    return tensor.expand(info.batch_size, *tensor.shape) if batch_dim is None else tensor.movedim(batch_dim, 0)


# ---- Fake kernels: shapes for torch.compile --------------------------------------------------------------------


@torch.library.register_fake("sacfast::categorical_target")
def _(reward, terminated, logits1, logits2, log_prob, alpha, alpha_value, gamma, gamma_value, v_min, v_max):  # type: ignore[no-untyped-def]
    check_sample(reward, terminated, log_prob, alpha, gamma, next_logits1=logits1, next_logits2=logits2)
    if logits2 is not None:
        check_shape("next_logits2", logits2, "next_logits1", logits1)
    if logits1.ndim != 2 or logits1.shape[0] != reward.numel():
        raise ValueError(f"next_logits1: expected shape [B, M] with B = {reward.numel()}, got {list(logits1.shape)}")
    return logits1.new_empty(logits1.shape)


@torch.library.register_fake("sacfast::categorical_cross_entropy")
def _(logits, target, needs_slope):  # type: ignore[no-untyped-def]
    check_like(("logits", logits), ("target", target))
    check_shape("target", target, "logits", logits)
    return logits.new_empty(logits.shape[:1]), logits.new_empty(logits.shape if needs_slope else (0,))
