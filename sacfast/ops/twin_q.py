"""The soft Bellman target from twin critics (arXiv 1812.05905, equations 3 and 5; the minimum: section 5).

y = reward + gamma (1 - terminated) ( min(next_q1, next_q2) - alpha next_log_prob )
"""

from __future__ import annotations

import torch
from torch import Tensor

from sacfast import _ext  # noqa: F401  (loads the native library)
from sacfast.ops._fake import check_one_device


def twin_q_target(
    reward: Tensor,
    terminated: Tensor,
    next_q1: Tensor,
    next_q2: Tensor,
    next_log_prob: Tensor,
    alpha: float | Tensor,
    gamma: float | Tensor,
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

    Returns:
        The target, of the reward's shape and dtype. NaN in any input reaches the output.

    Raises:
        ValueError: a shape or device that does not fit, or requires_grad on reward, terminated or gamma.
        TypeError: a dtype that does not fit.
    """
    alpha_tensor, alpha_value = (alpha, 0.0) if isinstance(alpha, Tensor) else (None, alpha)
    gamma_tensor, gamma_value = (gamma, 0.0) if isinstance(gamma, Tensor) else (None, gamma)
    target: Tensor = torch.ops.sacfast.twin_q_target.default(
        reward,
        terminated,
        next_q1,
        next_q2,
        next_log_prob,
        alpha_tensor,
        alpha_value,
        gamma_tensor,
        gamma_value,
    )
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


@torch.library.register_fake("sacfast::twin_q_target")
def _(reward, terminated, next_q1, next_q2, next_log_prob, alpha, alpha_value, gamma, gamma_value):  # type: ignore[no-untyped-def]
    check_one_device(
        ("reward", reward),
        ("terminated", terminated),
        ("next_q1", next_q1),
        ("next_q2", next_q2),
        ("next_log_prob", next_log_prob),
        ("alpha", alpha),
        ("gamma", gamma),
    )
    return reward.new_empty(reward.shape)


@torch.library.register_fake("sacfast::twin_q_target_backward")
def _(grad, terminated, next_q1, next_q2, log_prob, alpha, alpha_value, gamma, gamma_value, needs_grad_alpha):  # type: ignore[no-untyped-def]
    return (
        *(grad.new_empty(grad.shape) for _ in range(3)),
        grad.new_empty(grad.shape if needs_grad_alpha else (0,)),
    )
