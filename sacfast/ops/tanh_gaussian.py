"""The tanh-squashed Gaussian policy: sample with log-probability in one pass (arXiv 1812.05905, appendix C).

    z = mean + exp(log_std) * noise,  noise ~ N(0, I)        action = scale * tanh(z)
    log_prob = sum_A [ -noise^2/2 - log_std - log(2 pi)/2 - 2 (log 2 - z - softplus(-2z)) - log|scale| ]

The Jacobian term is exact: there is no epsilon inside a logarithm, and z is never recovered from the action.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from sacfast import _ext  # noqa: F401  (loads the native library)
from sacfast.ops._fake import check_device, check_like
from sacfast.ops._library import define, define_plain, refusal
from sacfast.ops._transforms import align, align_all, draw_under_vmap, logical_dim

LogStdBounding = Literal["none", "clamp", "tanh"]

_GIVEN = "Tensor mean, Tensor log_std, Tensor? noise"
_OPTIONS = "str log_std_bounding, float log_std_low, float log_std_high, Tensor? action_scale"
_DRAWN = f"Generator? generator, Tensor(a!)? philox_state, {_OPTIONS}"
_STREAM = f"int seed, int offset, Tensor(a!)? philox_state, {_OPTIONS}"
_BACKWARD = f"Tensor? grad_action, Tensor? grad_log_prob, Tensor mean, Tensor log_std, Tensor noise, {_OPTIONS}"
_SAMPLE = "Tensor action, Tensor log_prob"
_GRADIENTS = "(Tensor grad_mean, Tensor grad_log_std)"
_LOG_PROB_INPUTS = "Tensor pre_tanh, Tensor mean, Tensor log_std"
_LOG_PROB_GRADIENTS = "(Tensor grad_pre_tanh, Tensor grad_mean, Tensor grad_log_std)"
_RANDOM = torch.Tag.nondeterministic_seeded
_RSAMPLE = define(f"tanh_gaussian_rsample({_GIVEN}, {_DRAWN}) -> ({_SAMPLE})", _RANDOM)
_RSAMPLE_WITH_NOISE = define(
    f"_tanh_gaussian_rsample_with_noise(Tensor mean, Tensor log_std, {_DRAWN}) -> ({_SAMPLE}, Tensor noise)", _RANDOM
)
_RSAMPLE_BACKWARD = define(f"tanh_gaussian_rsample_backward({_BACKWARD}) -> {_GRADIENTS}")
_LOG_PROB = define(f"tanh_gaussian_log_prob({_LOG_PROB_INPUTS}) -> Tensor")
_LOG_PROB_BACKWARD = define(
    f"tanh_gaussian_log_prob_backward(Tensor grad_log_prob, {_LOG_PROB_INPUTS}) -> {_LOG_PROB_GRADIENTS}"
)
# What the first two call once they have drawn a stream from torch's generator.
define(f"_tanh_gaussian_sample({_GIVEN}, {_STREAM}) -> ({_SAMPLE})")
define(f"_tanh_gaussian_sample_with_noise(Tensor mean, Tensor log_std, {_STREAM}) -> ({_SAMPLE}, Tensor noise)")


def philox_state(seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Make a noise state that gives the same noise on CPU and CUDA.

    Args:
        seed: any integer; taken modulo 2^63.
        device: where the tensors lie that the state will serve.

    Returns:
        int64 [2]: (seed, offset). Each sampling call takes one offset and advances it in place, so the state can be
        saved and restored like any tensor, and advances inside a captured CUDA graph.
    """
    return torch.tensor([operator.index(seed) % 2**63, 0], dtype=torch.int64, device=device)


def tanh_gaussian_rsample(
    mean: Tensor,
    log_std: Tensor,
    noise: Tensor | None = None,
    generator: torch.Generator | Tensor | None = None,
    log_std_bounding: LogStdBounding = "none",
    log_std_bounds: tuple[float, float] = (-20.0, 2.0),
    action_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw reparameterised actions and their log-probabilities. Differentiable in `mean` and `log_std`.

    Args:
        mean: [..., A] float32 or float64; on CUDA also float16 and bfloat16 (computed in float32).
        log_std: broadcasts with `mean`; the network's raw output if it is to be bounded here.
        noise: standard normal, broadcasts with `mean`; None: drawn inside.
        generator: source of the noise drawn inside: None (torch's default), a `torch.Generator` on the tensors'
            device, or a state from `philox_state`, whose noise is the same on CPU and CUDA. Threads may share
            either: each call has noise of its own. `torch.utils.checkpoint` restores torch's default generator
            alone before it computes again: inside it leave `generator` out, or give the noise.
        log_std_bounding: "none"; "clamp" to the bounds (arXiv 1812.05905 code, Stable-Baselines3, SBX); "tanh"
            rescaled to the bounds, which are finite then (CleanRL, LeanRL, rl_games: (-5, 2); FastSAC: (-5, 0)).
        log_std_bounds: (low, high), used unless `log_std_bounding` is "none".
        action_scale: [A]; multiplies the action, and sum log|action_scale| is subtracted from the log-probability
            (the convention of CleanRL; Stable-Baselines3 and Tianshou leave it out: scale outside then).

    Returns:
        action [..., A] and log_prob [...], of the inputs' dtype.

    Raises:
        ValueError: a shape, bound or device that does not fit, or requires_grad on `noise` or `action_scale`.
        TypeError: a dtype that does not fit.
        RuntimeError: noise drawn inside `torch.vmap` with its default randomness, "error".
    """
    state = None
    if generator is not None:
        if noise is not None:
            raise ValueError("generator: expected None when noise is given, got both")
        if isinstance(generator, Tensor):
            generator, state = None, generator
    low, high = log_std_bounds
    try:
        sample: tuple[Tensor, Tensor] = _RSAMPLE(
            mean, log_std, noise, generator, state, log_std_bounding, low, high, action_scale
        )
    except ValueError as error:
        raise refusal(error) from None
    return sample


def tanh_gaussian_log_prob(pre_tanh: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Return the log-probability of a known pre-tanh value under the tanh-squashed Gaussian.

    Args:
        pre_tanh: z, [..., A]; the action is tanh(z).
        mean: broadcasts with `pre_tanh`.
        log_std: broadcasts with `pre_tanh`.

    Returns:
        log_prob [...]. Differentiable in all three.

    Raises:
        ValueError: a shape or device that does not fit.
        TypeError: a dtype that does not fit.
    """
    try:
        log_prob: Tensor = _LOG_PROB(pre_tanh, mean, log_std)
    except ValueError as error:
        raise refusal(error) from None
    return log_prob


# ---- Plain-torch twins -----------------------------------------------------------------------------------------


def bound_log_std_reference(log_std: Tensor, kind: LogStdBounding, bounds: tuple[float, float]) -> Tensor:
    """Apply a log-std convention in plain torch."""
    low, high = bounds
    if kind == "clamp":
        return log_std.clamp(low, high)
    if kind == "tanh":
        return low + 0.5 * (high - low) * (log_std.tanh() + 1.0)
    return log_std


def tanh_gaussian_rsample_reference(
    mean: Tensor,
    log_std: Tensor,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    log_std_bounding: LogStdBounding = "none",
    log_std_bounds: tuple[float, float] = (-20.0, 2.0),
    action_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Do what `tanh_gaussian_rsample` does, in plain torch (noise from torch's own normal generator)."""
    log_std = bound_log_std_reference(log_std, log_std_bounding, log_std_bounds)
    if noise is None:
        shape = torch.broadcast_shapes(mean.shape, log_std.shape)
        noise = torch.randn(shape, generator=generator, dtype=mean.dtype, device=mean.device)
    pre_tanh = mean + log_std.exp() * noise
    action = pre_tanh.tanh()
    element = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi) - _log_tanh_slope(pre_tanh)
    if action_scale is not None:
        action = action * action_scale
        element = element - action_scale.abs().log()
    return action, element.sum(-1)


def tanh_gaussian_log_prob_reference(pre_tanh: Tensor, mean: Tensor, log_std: Tensor) -> Tensor:
    """Do what `tanh_gaussian_log_prob` does, in plain torch."""
    noise = (pre_tanh - mean) * (-log_std).exp()
    element = -0.5 * noise.square() - log_std - 0.5 * math.log(2.0 * math.pi) - _log_tanh_slope(pre_tanh)
    return element.sum(-1)


def _log_tanh_slope(pre_tanh: Tensor) -> Tensor:
    """Return log(1 - tanh(z)^2) exactly."""
    return 2.0 * (math.log(2.0) - pre_tanh - F.softplus(-2.0 * pre_tanh))


# ---- Second derivatives, forward mode: see `_transforms` -------------------------------------------------------


def _rsample_plain(
    mean: Tensor, log_std: Tensor, noise: Tensor, kind: LogStdBounding, low: float, high: float, scale: Tensor | None
) -> tuple[Tensor, Tensor]:
    return tanh_gaussian_rsample_reference(mean, log_std, noise, None, kind, (low, high), scale)


def _rsample_backward_plain(
    grad_action: Tensor | None,
    grad_log_prob: Tensor | None,
    mean: Tensor,
    log_std: Tensor,
    noise: Tensor,
    kind: LogStdBounding,
    low: float,
    high: float,
    scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    std_noise = bound_log_std_reference(log_std, kind, (low, high)).exp() * noise
    pre_tanh = mean + std_noise
    g = torch.zeros_like(pre_tanh) if grad_action is None else grad_action
    h = torch.zeros_like(pre_tanh[..., 0]) if grad_log_prob is None else grad_log_prob
    h = h.unsqueeze(-1)
    if scale is not None:
        g = g * scale
    grad_mean = g * _tanh_slope(pre_tanh) + 2.0 * h * pre_tanh.tanh()
    grad_log_std = grad_mean * std_noise - h
    if kind == "clamp":
        grad_log_std = grad_log_std * ((log_std >= low) & (log_std <= high))
    if kind == "tanh":
        grad_log_std = grad_log_std * (0.5 * (high - low)) * _tanh_slope(log_std)
    return grad_mean, grad_log_std


def _log_prob_backward_plain(
    grad_log_prob: Tensor, pre_tanh: Tensor, mean: Tensor, log_std: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    h = grad_log_prob.unsqueeze(-1)
    inverse_std = (-log_std).exp()
    noise = (pre_tanh - mean) * inverse_std
    grad_mean = h * noise * inverse_std
    return 2.0 * h * pre_tanh.tanh() - grad_mean, grad_mean, h * (noise.square() - 1.0)


def _tanh_slope(x: Tensor) -> Tensor:
    """Return 1 - tanh(x)^2 without its cancellation, which leaves 0 in float32 from |x| = 9 on."""
    return 4.0 * torch.sigmoid(2.0 * x) * torch.sigmoid(-2.0 * x)


define_plain(
    f"_tanh_gaussian_rsample_plain(Tensor mean, Tensor log_std, Tensor noise, {_OPTIONS}) -> ({_SAMPLE})",
    _rsample_plain,
)
define_plain(f"_tanh_gaussian_rsample_backward_plain({_BACKWARD}) -> {_GRADIENTS}", _rsample_backward_plain)
define_plain(f"_tanh_gaussian_log_prob_plain({_LOG_PROB_INPUTS}) -> Tensor", tanh_gaussian_log_prob_reference)
define_plain(
    f"_tanh_gaussian_log_prob_backward_plain(Tensor grad_log_prob, {_LOG_PROB_INPUTS}) -> {_LOG_PROB_GRADIENTS}",
    _log_prob_backward_plain,
)


# ---- torch.vmap: the mapped dimension becomes the first of the leading ones --------------------------------------

for _name in ("tanh_gaussian_rsample", "_tanh_gaussian_rsample_with_noise"):
    draw_under_vmap(_name, lambda _mean, _log_std, noise, *_: not isinstance(noise, Tensor))


def _rsample_mapped(
    info: Any,
    in_dims: tuple[Any, ...],
    mean: Tensor,
    log_std: Tensor,
    noise: Any,
    generator: torch.Generator | None,
    state: Tensor | None,
    kind: LogStdBounding,
    low: float,
    high: float,
    scale: Any,
) -> tuple[Tensor, Tensor, Tensor, int | None]:
    """Return action and log_prob, mapped in their first dimension; the noise, and its mapped dimension."""
    mean_dim, log_std_dim, noise_dim, _, state_dim, *_, scale_dim = in_dims
    if state_dim is not None:
        raise ValueError("generator: expected one state for all calls of torch.vmap, got one for each")
    if noise is None and info.randomness == "same":  # that of the first call serves all
        ones = (x if dim is None else x.select(dim, 0) for x, dim in ((mean, mean_dim), (log_std, log_std_dim)))
        noise = _RSAMPLE_WITH_NOISE(*ones, generator, state, kind, low, high, None)[2]
    tensors, dims = [mean, log_std], [mean_dim, log_std_dim]
    if noise is not None:
        tensors.append(noise)
        dims.append(noise_dim)
    _check_not_scalar(("mean", "log_std", "noise"), tensors, dims)
    mean, log_std, *given = align_all(info.batch_size, tensors, dims)
    inside = None if scale_dim is not None else scale
    if given:
        action, log_prob = _RSAMPLE(mean, log_std, given[0], None, None, kind, low, high, inside)
    else:
        action, log_prob, noise = _RSAMPLE_WITH_NOISE(mean, log_std, generator, state, kind, low, high, inside)
        noise_dim = 0
    if scale_dim is not None:
        scale = _mapped_scale(scale, scale_dim, mean)
        action, log_prob = action * scale, log_prob - scale.abs().log().sum(-1)
    return action, log_prob, noise, noise_dim


@torch.library.register_vmap("sacfast::tanh_gaussian_rsample")
def _(info, in_dims, *arguments):  # type: ignore[no-untyped-def]
    action, log_prob, _, _ = _rsample_mapped(info, in_dims, *arguments)
    return (action, log_prob), (0, 0)


@torch.library.register_vmap("sacfast::_tanh_gaussian_rsample_with_noise")
def _(info, in_dims, mean, log_std, *rest):  # type: ignore[no-untyped-def]
    action, log_prob, noise, noise_dim = _rsample_mapped(
        info, (*in_dims[:2], None, *in_dims[2:]), mean, log_std, None, *rest
    )
    return (action, log_prob, noise), (0, 0, noise_dim)


@torch.library.register_vmap("sacfast::tanh_gaussian_rsample_backward")
def _(info, in_dims, grad_action, grad_log_prob, mean, log_std, noise, kind, low, high, scale):  # type: ignore[no-untyped-def]
    action_dim, log_prob_dim, *dims, _, _, _, scale_dim = in_dims
    mean, log_std, noise = align_all(info.batch_size, (mean, log_std, noise), dims)
    if grad_action is not None:
        grad_action = align(grad_action, action_dim, mean.ndim - 1).expand(mean.shape)
    if grad_log_prob is not None:
        grad_log_prob = align(grad_log_prob, log_prob_dim, mean.ndim - 2).expand(mean.shape[:-1])
    if scale_dim is not None:
        if grad_action is not None:
            grad_action = grad_action * _mapped_scale(scale, scale_dim, mean)
        scale = None
    grads = _RSAMPLE_BACKWARD(grad_action, grad_log_prob, mean, log_std, noise, kind, low, high, scale)
    return grads, (0, 0)


@torch.library.register_vmap("sacfast::tanh_gaussian_log_prob")
def _(info, in_dims, *tensors):  # type: ignore[no-untyped-def]
    _check_not_scalar(("pre_tanh", "mean", "log_std"), tensors, in_dims)
    return _LOG_PROB(*align_all(info.batch_size, tensors, in_dims)), 0


@torch.library.register_vmap("sacfast::tanh_gaussian_log_prob_backward")
def _(info, in_dims, grad_log_prob, *tensors):  # type: ignore[no-untyped-def]
    grad_dim, *dims = in_dims
    pre_tanh, mean, log_std = align_all(info.batch_size, tensors, dims)
    grad_log_prob = align(grad_log_prob, grad_dim, pre_tanh.ndim - 2).expand(pre_tanh.shape[:-1])
    return _LOG_PROB_BACKWARD(grad_log_prob, pre_tanh, mean, log_std), (0, 0, 0)


def _check_not_scalar(names: Sequence[str], tensors: Sequence[Tensor], dims: Sequence[int | None]) -> None:
    for name, tensor, dim in zip(names, tensors, dims, strict=False):
        if logical_dim(tensor, dim) == 0:
            raise ValueError(f"{name}: expected shape [..., A], got a 0-d tensor")


def _mapped_scale(scale: Tensor, scale_dim: int, mean: Tensor) -> Tensor:
    """Return an action scale for each call of vmap, as it broadcasts with the aligned mean."""
    scale = scale.movedim(scale_dim, 0)
    if scale.shape[1:] != mean.shape[-1:]:
        raise ValueError(f"action_scale: expected shape {list(mean.shape[-1:])}, got {list(scale.shape[1:])}")
    return align(scale, 0, mean.ndim - 1)


# ---- Fake kernels: shapes for torch.compile --------------------------------------------------------------------


@torch.library.register_fake("sacfast::tanh_gaussian_rsample")
def _(mean, log_std, noise, generator, state, kind, low, high, action_scale):  # type: ignore[no-untyped-def]
    shape = _checked_shape(mean, log_std, noise, state, kind, action_scale)
    return mean.new_empty(shape), mean.new_empty(shape[:-1])


@torch.library.register_fake("sacfast::_tanh_gaussian_rsample_with_noise")
def _(mean, log_std, generator, state, kind, low, high, action_scale):  # type: ignore[no-untyped-def]
    shape = _checked_shape(mean, log_std, None, state, kind, action_scale)
    return mean.new_empty(shape), mean.new_empty(shape[:-1]), mean.new_empty(shape)


def _checked_shape(
    mean: Tensor, log_std: Tensor, noise: Tensor | None, state: Tensor | None, kind: str, action_scale: Tensor | None
) -> torch.Size:
    """Return the action's shape."""
    check_like(("mean", mean), ("log_std", log_std), ("noise", noise), ("action_scale", action_scale))
    check_device("generator", state, "mean", mean)
    if kind not in get_args(LogStdBounding):
        raise ValueError(f"log_std_bounding: expected 'none', 'clamp' or 'tanh', got {kind!r}")
    shape: torch.Size = torch.broadcast_shapes(mean.shape, log_std.shape, *(() if noise is None else (noise.shape,)))
    if action_scale is not None and action_scale.shape != shape[-1:]:
        raise ValueError(f"action_scale: expected shape {list(shape[-1:])}, got {list(action_scale.shape)}")
    return shape


@torch.library.register_fake("sacfast::tanh_gaussian_rsample_backward")
def _(grad_action, grad_log_prob, mean, log_std, noise, kind, low, high, action_scale):  # type: ignore[no-untyped-def]
    shape = torch.broadcast_shapes(mean.shape, log_std.shape, noise.shape)
    return mean.new_empty(shape), mean.new_empty(shape)


@torch.library.register_fake("sacfast::tanh_gaussian_log_prob")
def _(pre_tanh, mean, log_std):  # type: ignore[no-untyped-def]
    check_like(("pre_tanh", pre_tanh), ("mean", mean), ("log_std", log_std))
    return mean.new_empty(torch.broadcast_shapes(pre_tanh.shape, mean.shape, log_std.shape)[:-1])


@torch.library.register_fake("sacfast::tanh_gaussian_log_prob_backward")
def _(grad_log_prob, pre_tanh, mean, log_std):  # type: ignore[no-untyped-def]
    shape = torch.broadcast_shapes(pre_tanh.shape, mean.shape, log_std.shape)
    return mean.new_empty(shape), mean.new_empty(shape), mean.new_empty(shape)
