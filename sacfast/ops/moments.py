"""Running mean and variance of batches, and normalisation by them, as of observations and rewards.

Moments are merged by the formula of Chan, Golub and LeVeque (1979): after any number of batches they are those of all
their samples together.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sacfast import _ext  # noqa: F401  (loads the native library)
from sacfast.ops._fake import check_device, check_like, check_shape
from sacfast.ops._gradients import (
    compute_in_float32_under_autocast,
    count_versions,
    differentiate_elementwise,
    record_nothing,
    refuse_gradients,
)
from sacfast.ops._library import define, refusal

_UPDATE = define("update_running_moments_(Tensor(a!) mean, Tensor(b!) variance, Tensor(c!) count, Tensor batch) -> ()")
_NORMALIZE = define("normalize(Tensor x, Tensor mean, Tensor variance, float eps, float clip) -> Tensor")
_NORMALIZE_OUT = define(
    "normalize_out(Tensor x, Tensor mean, Tensor variance, float eps, float clip, Tensor(a!) out) -> ()"
)
_NORMALIZE_BACKWARD = define(
    "normalize_backward(Tensor grad, Tensor x, Tensor mean, Tensor variance, float eps, float clip) -> Tensor"
)


def update_running_moments_(mean: Tensor, variance: Tensor, count: Tensor, batch: Tensor) -> None:
    """Merge the samples of a batch into their running mean and variance, in place, in one pass over the batch.

    Like an optimiser's step it records no gradient. Sums are taken in float64 and in one order whatever the number of
    threads, of differences from a sample, so that numbers far from zero lose nothing. An empty batch changes nothing.

    The formula is that of `RunningMeanStd` of Gymnasium and Stable-Baselines3, which begin with the count 1e-4 and the
    variance 1, as if a ten-thousandth of a sample had been seen. From a count of 0, before which mean and variance do
    not matter, the moments are those of the samples alone. A mean that is infinite stays so; theirs becomes NaN.

    Example:
        mean, variance = (torch.zeros(17, dtype=torch.float64) for _ in range(2))
        count = torch.zeros((), dtype=torch.float64)
        ops.update_running_moments_(mean, variance, count, observations)  # [B, 17]
        policy_input = ops.normalize(observations, mean, variance, clip=10.0)

    Args:
        mean: [*S], one for each element of a sample: [D] for vectors, [] for numbers such as returns. The batch's dtype
            (float32 for halves) or float64: a float32 mean can no longer follow once a batch is less than some 1e-7 of
            the count.
        variance: like mean: the population's, which divides by the count and not by one less.
        count: one element, float64 or int64, in [0, 2^53]: float32 would stop at 2^24. On CUDA, where no value is
            waited for, a count out of range makes NaN.
        batch: [..., *S], float32 or float64; on CUDA also float16 and bfloat16.

    Raises:
        ValueError: a shape, device or count that does not fit; mean, variance or count that share memory with another
            argument, or that are results of operations that autograd records.
        TypeError: a dtype that does not fit.
    """
    try:
        _UPDATE(mean, variance, count, batch)
    except ValueError as error:
        raise refusal(error) from None


@torch.no_grad()
def update_running_moments_reference_(mean: Tensor, variance: Tensor, count: Tensor, batch: Tensor) -> None:
    """Do what `update_running_moments_` does, in plain torch."""
    rows = batch.double().reshape(-1, *mean.shape)
    if len(rows) == 0:
        return
    before = count.double().reshape(())
    total = before + len(rows)
    batch_mean, batch_variance = rows.mean(0), rows.var(0, correction=0)  # the mean of torch.var_mean loses infinity
    share = len(rows) / total
    delta = batch_mean - mean
    merged_mean = torch.where(delta.isfinite(), mean + delta * share, mean * (before / total) + batch_mean * share)
    merged_variance = (variance * before + batch_variance * len(rows) + delta.square() * before * share) / total
    mean.copy_(torch.where(before == 0, batch_mean, merged_mean))
    variance.copy_(torch.where(before == 0, batch_variance, merged_variance))
    count.add_(len(rows))


def normalize(
    x: Tensor,
    mean: Tensor,
    variance: Tensor,
    eps: float = 1e-8,
    clip: float | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Return (x - mean) / sqrt(variance + eps), clipped to [-clip, clip]. Differentiable in x.

    With the moments of `update_running_moments_` this is what Gymnasium's `NormalizeObservation` (without a clip) and
    Stable-Baselines3's `VecNormalize` (clip 10) do after their update. The difference is taken in twice the precision
    of x where the moments are float64.

    Args:
        x: [..., *S], float32 or float64; on CUDA also float16 and bfloat16.
        mean: [*S], of the dtype of x (float32 for halves) or float64. No gradient flows to it.
        variance: likewise, >= 0.
        eps: added to the variance, >= 0.
        clip: > 0; None: nothing is clipped. No gradient flows through what is clipped, as `torch.clamp` has it.
        out: takes the result, like x, contiguous, apart from all inputs; nothing is differentiated then. Of use from
            some 10,000,000 elements on, where the pages of a new tensor take most of the time.

    Returns:
        A tensor of the shape and dtype of x; `out`, if that is given. NaN passes through.

    Raises:
        ValueError: a shape, device or number that does not fit, moments that require grad, and with `out` any tensor
            that does; an `out` that shares memory with an input.
        TypeError: a dtype that does not fit.
    """
    inputs = x, mean, variance, eps, math.inf if clip is None else clip
    try:
        if out is not None:
            _NORMALIZE_OUT(*inputs, out)
            return out
        result: Tensor = _NORMALIZE(*inputs)
    except ValueError as error:
        raise refusal(error) from None
    return result


def normalize_reference(
    x: Tensor, mean: Tensor, variance: Tensor, eps: float = 1e-8, clip: float | None = None
) -> Tensor:
    """Do what `normalize` does, in plain torch."""
    result = (x.to(mean.dtype) - mean) / (variance + eps).sqrt()
    if clip is not None and clip != math.inf:
        result = result.clamp(-clip, clip)
    return result.to(x.dtype)


def _normalize_backward(grad: Tensor, x: Tensor, mean: Tensor, variance: Tensor, eps: float, clip: float) -> Tensor:
    root = (variance + eps).sqrt()
    passed = grad.to(mean.dtype) / root
    if clip != math.inf:
        passed = torch.where(((x.to(mean.dtype) - mean) / root).abs() <= clip, passed, 0.0)
    return passed.to(x.dtype)


record_nothing(_UPDATE)
count_versions(_UPDATE)
refuse_gradients(_NORMALIZE_OUT)
count_versions(_NORMALIZE_OUT)
differentiate_elementwise(_NORMALIZE, _NORMALIZE_BACKWARD, normalize_reference, _normalize_backward)
compute_in_float32_under_autocast(_NORMALIZE)


# ---- torch.vmap --------------------------------------------------------------------------------------------------


@torch.library.register_vmap("sacfast::update_running_moments_")
def _(info, in_dims, *arguments):  # type: ignore[no-untyped-def]
    for name, dim in zip(("mean", "variance", "count"), in_dims, strict=False):
        if dim is None:
            raise ValueError(
                f"{name}: expected a tensor that torch.vmap maps, because the calls of vmap would write different "
                "values to one place"
            )
    for i in range(info.batch_size):
        _UPDATE(*(each if dim is None else each.select(dim, i) for each, dim in zip(arguments, in_dims, strict=True)))
    return None, None


@torch.library.register_vmap("sacfast::normalize")
def _(info, in_dims, x, mean, variance, eps, clip):  # type: ignore[no-untyped-def]
    (x,), moments, out_dim = _mapped(info, in_dims, (x,), mean, variance)
    return torch.ops.sacfast.normalize(x, *moments, eps, clip), out_dim


@torch.library.register_vmap("sacfast::normalize_backward")
def _(info, in_dims, grad, x, mean, variance, eps, clip):  # type: ignore[no-untyped-def]
    data, moments, out_dim = _mapped(info, in_dims, (grad, x), mean, variance)
    return torch.ops.sacfast.normalize_backward(*data, *moments, eps, clip), out_dim


def _mapped(info: Any, in_dims: tuple[Any, ...], data: tuple[Tensor, ...], *moments: Tensor) -> Any:
    """Return data and moments whose mapped dimension is one of the batch, or where moments are mapped one of S.

    Also where the result has it.
    """
    data_dims, moment_dims = in_dims[: len(data)], in_dims[len(data) : len(data) + 2]
    if all(dim is None for dim in moment_dims):
        return _with_mapped(info, data, data_dims, 0), moments, 0
    moments = _with_mapped(info, moments, moment_dims, 0)
    out_dim = data[-1].ndim - (data_dims[-1] is not None) - (moments[0].ndim - 1)
    if out_dim < 0:
        raise ValueError(
            f"x: expected a shape that ends with {list(moments[0].shape[1:])} like mean, got one of fewer dimensions"
        )
    return _with_mapped(info, data, data_dims, out_dim), moments, out_dim


def _with_mapped(info: Any, tensors: tuple[Tensor, ...], dims: tuple[int | None, ...], to: int) -> tuple[Tensor, ...]:
    return tuple(
        (each.expand(info.batch_size, *each.shape) if dim is None else each.movedim(dim, 0)).movedim(0, to)
        for each, dim in zip(tensors, dims, strict=True)
    )


# ---- Fake kernels: shapes for torch.compile --------------------------------------------------------------------


def _check_moments(name: str, data: Tensor, mean: Tensor, variance: Tensor) -> None:
    own = torch.float64 if data.dtype == torch.float64 else torch.float32
    for moment_name, moment in (("mean", mean), ("variance", variance)):
        check_device(moment_name, moment, name, data)
        if moment.dtype not in (own, torch.float64):
            raise TypeError(f"{moment_name}: expected dtype {own} or torch.float64, got {moment.dtype}")
    if variance.dtype != mean.dtype:
        raise TypeError(f"variance: expected dtype {mean.dtype} like mean, got {variance.dtype}")
    if variance.shape != mean.shape:
        raise ValueError(f"variance: expected shape {list(mean.shape)} like mean, got {list(variance.shape)}")
    if data.ndim < mean.ndim or data.shape[data.ndim - mean.ndim :] != mean.shape:
        raise ValueError(f"{name}: expected a shape that ends with {list(mean.shape)}, got {list(data.shape)}")


@torch.library.register_fake("sacfast::update_running_moments_")
def _(mean, variance, count, batch):  # type: ignore[no-untyped-def]
    _check_moments("batch", batch, mean, variance)
    check_device("count", count, "batch", batch)
    if count.dtype not in (torch.float64, torch.int64):
        raise TypeError(f"count: expected dtype float64 or int64, got {count.dtype}")
    if count.numel() != 1:
        raise ValueError(f"count: expected one element, got shape {list(count.shape)}")


@torch.library.register_fake("sacfast::normalize")
def _(x, mean, variance, eps, clip):  # type: ignore[no-untyped-def]
    _check_moments("x", x, mean, variance)
    return x.new_empty(x.shape)


@torch.library.register_fake("sacfast::normalize_out")
def _(x, mean, variance, eps, clip, out):  # type: ignore[no-untyped-def]
    _check_moments("x", x, mean, variance)
    check_like(("x", x), ("out", out))
    check_shape("out", out, "x", x)


@torch.library.register_fake("sacfast::normalize_backward")
def _(grad, x, mean, variance, eps, clip):  # type: ignore[no-untyped-def]
    return x.new_empty(x.shape)
