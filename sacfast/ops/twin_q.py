"""The soft Bellman target from twin critics (arXiv 1812.05905, equations 3 and 5; the minimum: section 5).

y = reward + gamma (1 - terminated) ( min(next_q1, next_q2) - alpha next_log_prob )
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sacfast import _ext  # noqa: F401  (loads the native library)
from sacfast.ops._fake import check_device, check_like, check_shape
from sacfast.ops._gradients import count_versions, refuse_gradients
from sacfast.ops._library import define, define_plain, refusal

_INPUTS = (
    "Tensor terminated, Tensor next_q1, Tensor next_q2, Tensor next_log_prob, "
    "Tensor? alpha, float alpha_value, Tensor? gamma, float gamma_value"
)
_GRADIENTS = "(Tensor grad_next_q1, Tensor grad_next_q2, Tensor grad_next_log_prob, Tensor grad_alpha)"
_TARGET = define(f"twin_q_target(Tensor reward, {_INPUTS}) -> Tensor")
_TARGET_OUT = define(f"twin_q_target_out(Tensor reward, {_INPUTS}, Tensor(a!) out) -> ()")
_TARGET_BACKWARD = define(
    f"twin_q_target_backward(Tensor grad_target, {_INPUTS}, bool needs_grad_alpha) -> {_GRADIENTS}"
)


def twin_q_target(
    reward: Tensor,
    terminated: Tensor,
    next_q1: Tensor,
    next_q2: Tensor,
    next_log_prob: Tensor,
    alpha: float | Tensor,
    gamma: float | Tensor,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Return the target y. Differentiable in next_q1, next_q2, next_log_prob and a tensor alpha.

    Args:
        reward: [B] or [B, 1], already scaled; all other [B] inputs have the same shape (never broadcast).
        terminated: bool, or the reward's dtype. A time limit is not a termination: it bootstraps.
        next_q1: target critic 1 at (x', a').
        next_q2: target critic 2 at (x', a').
        next_log_prob: log pi(a'|x').
        alpha: temperature: a number, a tensor of one element, or one per sample.
        gamma: discount: a number, a tensor of one element, or one per sample (gamma^k for k-step returns).
        out: takes the target, like reward, contiguous, apart from all inputs; nothing is differentiated then. Of use
            from some 10,000,000 samples on, where the pages of a new tensor take most of the time.

    Returns:
        The target, of the reward's shape and dtype; `out`, if that is given. NaN in any input reaches the output.

    Raises:
        ValueError: a shape or device that does not fit, requires_grad on reward, terminated or gamma, and with `out`
            on any tensor; an `out` that shares memory with an input.
        TypeError: a dtype that does not fit.
    """
    alpha_tensor, alpha_value = (alpha, 0.0) if isinstance(alpha, Tensor) else (None, alpha)
    gamma_tensor, gamma_value = (gamma, 0.0) if isinstance(gamma, Tensor) else (None, gamma)
    coefficients = alpha_tensor, alpha_value, gamma_tensor, gamma_value
    inputs = reward, terminated, next_q1, next_q2, next_log_prob, *coefficients
    try:
        if out is not None:
            _TARGET_OUT(*inputs, out)
            return out
        target: Tensor = _TARGET(*inputs)
    except ValueError as error:
        raise refusal(error) from None
    return target


def twin_q_target_reference(
    reward: Tensor,
    terminated: Tensor,
    next_q1: Tensor,
    next_q2: Tensor,
    next_log_prob: Tensor,
    alpha: float | Tensor,
    gamma: float | Tensor,
) -> Tensor:
    """Do what `twin_q_target` does, in plain torch."""
    soft_value = torch.minimum(next_q1, next_q2) - alpha * next_log_prob
    return reward + gamma * (1.0 - terminated.to(reward.dtype)) * soft_value


refuse_gradients(_TARGET_OUT)
count_versions(_TARGET_OUT)


# ---- Second derivatives, forward mode: see `_transforms` -------------------------------------------------------


def _target_plain(  # type: ignore[no-untyped-def]
    reward, terminated, next_q1, next_q2, next_log_prob, alpha, alpha_value, gamma, gamma_value
):
    return twin_q_target_reference(
        reward,
        terminated,
        next_q1,
        next_q2,
        next_log_prob,
        alpha_value if alpha is None else alpha,
        gamma_value if gamma is None else gamma,
    )


def _target_backward_plain(  # type: ignore[no-untyped-def]
    grad, terminated, next_q1, next_q2, next_log_prob, alpha, alpha_value, gamma, gamma_value, needs_grad_alpha
):
    slope = grad * (gamma_value if gamma is None else gamma) * (1.0 - terminated.to(grad.dtype))
    share_1 = torch.where(next_q1 == next_q2, 0.5, (next_q1 < next_q2).to(grad.dtype))  # as torch.minimum has it
    return (
        slope * share_1,
        slope * (1.0 - share_1),
        -slope * (alpha_value if alpha is None else alpha),
        -slope * next_log_prob if needs_grad_alpha else grad.new_empty(0),
    )


define_plain(f"_twin_q_target_plain(Tensor reward, {_INPUTS}) -> Tensor", _target_plain)
define_plain(
    f"_twin_q_target_backward_plain(Tensor grad_target, {_INPUTS}, bool needs_grad_alpha) -> {_GRADIENTS}",
    _target_backward_plain,
)


# ---- torch.vmap: a batch of all the batches ----------------------------------------------------------------------


@torch.library.register_vmap("sacfast::twin_q_target")
def _(info, in_dims, reward, *rest):  # type: ignore[no-untyped-def]
    shape, flat = _flatten_mapped(info, in_dims, "reward", reward, *rest)
    return _TARGET(*flat).view(shape), 0


@torch.library.register_vmap("sacfast::twin_q_target_backward")
def _(info, in_dims, grad, *rest):  # type: ignore[no-untyped-def]
    *inputs, needs_grad_alpha = rest
    shape, flat = _flatten_mapped(info, in_dims[:-1], "grad_target", grad, *inputs)
    *grads, grad_alpha = _TARGET_BACKWARD(*flat, needs_grad_alpha)
    if needs_grad_alpha:
        return (*(each.view(shape) for each in (*grads, grad_alpha)),), (0, 0, 0, 0)
    return (*(each.view(shape) for each in grads), grad_alpha), (0, 0, 0, None)


def _flatten_mapped(
    info: Any, in_dims: tuple[Any, ...], first_name: str, *arguments: Any
) -> tuple[tuple[int, ...], list[Any]]:
    """Return the mapped shape [V, B] or [V, B, 1], and the arguments with each tensor as one batch [V * B].

    alpha and gamma may have one element: it serves its whole batch.
    """
    names = (first_name, "terminated", "next_q1", "next_q2", "next_log_prob", "alpha", "", "gamma", "")
    first, first_dim = arguments[0], in_dims[0]
    shape = (info.batch_size, *(first.shape if first_dim is None else first.movedim(first_dim, 0).shape[1:]))
    flat = []
    for name, each, dim in zip(names, arguments, in_dims, strict=True):
        if isinstance(each, Tensor):
            each = each.expand(info.batch_size, *each.shape) if dim is None else each.movedim(dim, 0)
            if name in ("alpha", "gamma") and each[0].numel() == 1:
                each = each.reshape(info.batch_size, *[1] * len(shape[1:]))
            elif each.shape != shape:
                raise ValueError(
                    f"{name}: expected shape {list(shape[1:])} like {first_name}, got {list(each.shape[1:])}"
                )
            each = each.expand(shape).reshape(-1)
        flat.append(each)
    return shape, flat


# ---- Fake kernels: shapes for torch.compile --------------------------------------------------------------------


def _check_inputs(*inputs: Any) -> None:
    reward, terminated, next_q1, next_q2, next_log_prob, alpha, _, gamma, _ = inputs
    values = ("next_q1", next_q1), ("next_q2", next_q2), ("next_log_prob", next_log_prob)
    check_like(("reward", reward), *values, ("alpha", alpha), ("gamma", gamma))
    check_device("terminated", terminated, "reward", reward)
    for name, tensor in (("terminated", terminated), *values):
        check_shape(name, tensor, "reward", reward)
    for name, tensor in (("alpha", alpha), ("gamma", gamma)):
        if tensor is not None and tensor.numel() != 1:
            check_shape(name, tensor, "reward", reward)


@torch.library.register_fake("sacfast::twin_q_target")
def _(reward, *rest):  # type: ignore[no-untyped-def]
    _check_inputs(reward, *rest)
    return reward.new_empty(reward.shape)


@torch.library.register_fake("sacfast::twin_q_target_out")
def _(reward, *rest):  # type: ignore[no-untyped-def]
    *inputs, out = rest
    _check_inputs(reward, *inputs)
    check_like(("reward", reward), ("out", out))
    check_shape("out", out, "reward", reward)


@torch.library.register_fake("sacfast::twin_q_target_backward")
def _(grad, terminated, next_q1, next_q2, log_prob, alpha, alpha_value, gamma, gamma_value, needs_grad_alpha):  # type: ignore[no-untyped-def]
    return (
        *(grad.new_empty(grad.shape) for _ in range(3)),
        grad.new_empty(grad.shape if needs_grad_alpha else (0,)),
    )
