"""What the targets of critics with atoms or quantiles share: what a sample brings, however the critic is made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sacfast.ops._fake import check_device, check_like, check_shape

SAMPLE_COEFFICIENTS = "Tensor? alpha, float alpha_value, Tensor? gamma, float gamma_value"
"""In the schema of an op: each a tensor, or a number where there is none."""


def as_tensor_or_number(value: float | Tensor) -> tuple[Tensor | None, float]:
    """Return a coefficient as the ops take it: a tensor, or None and a number."""
    return (value, 0.0) if isinstance(value, Tensor) else (None, value)


def check_sample(
    reward: Tensor, terminated: Tensor, log_prob: Tensor, alpha: Tensor | None, gamma: Tensor | None, **outputs: Any
) -> None:
    """Raise in a fake kernel what the kernels raise for a sample's inputs, and for a critic's outputs by their names.

    Raises:
        ValueError: another device or shape.
        TypeError: another dtype.
    """
    check_like(("reward", reward), ("next_log_prob", log_prob), *outputs.items(), ("alpha", alpha), ("gamma", gamma))
    check_device("terminated", terminated, "reward", reward)
    for name, tensor in (("terminated", terminated), ("next_log_prob", log_prob)):
        check_shape(name, tensor, "reward", reward)
    for name, coefficient in (("alpha", alpha), ("gamma", gamma)):
        if coefficient is not None and coefficient.numel() != 1:
            check_shape(name, coefficient, "reward", reward)


def flatten_sample(batch_size: int, tensors: Sequence[Any], batch_dims: Sequence[int | None]) -> list[Any]:
    """Return reward, terminated, next_log_prob, alpha and gamma of all the batches of torch.vmap as one batch [V * B].

    Raises:
        ValueError: a shape unlike the reward's, which is never broadcast. alpha and gamma may have one element.
    """
    names = ("reward", "terminated", "next_log_prob", "alpha", "gamma")
    mapped: list[Any] = [
        each if each is None else each.expand(batch_size, *each.shape) if dim is None else each.movedim(dim, 0)
        for each, dim in zip(tensors, batch_dims, strict=True)
    ]
    shape, flat = mapped[0].shape, []
    for name, each in zip(names, mapped, strict=True):
        if each is not None:
            if name in ("alpha", "gamma") and each[0].numel() == 1:
                each = each.reshape(batch_size, *[1] * (len(shape) - 1)).expand(shape)
            if each.shape != shape:
                raise ValueError(f"{name}: expected shape {list(shape[1:])} like reward, got {list(each.shape[1:])}")
            each = each.reshape(-1)
        flat.append(each)
    return flat
