"""The tanh-squashed Gaussian policy: sample with log-probability in one pass (arXiv 1812.05905, appendix C).

    z = mean + exp(log_std) * noise,  noise ~ N(0, I)        action = scale * tanh(z)
    log_prob = sum_A [ -noise^2/2 - log_std - log(2 pi)/2 - 2 (log 2 - z - softplus(-2z)) - log|scale| ]

The Jacobian term is exact: there is no epsilon inside a logarithm, and z is never recovered from the action.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sacfast import _ext  # noqa: F401  (loads the native library)
from sacfast.ops._fake import check_one_device

LogStdBounding = Literal["none", "clamp", "tanh"]


def philox_state(seed: int, device: torch.device | str = "cpu") -> Tensor:
    """Make a noise state that gives the same noise on CPU and CUDA.

    Args:
        seed: any integer; taken modulo 2^63.
        device: where the tensors lie that the state will serve.

    Returns:
        int64 [2]: (seed, offset). Each sampling call takes one offset and advances it in place, so the state can be
        saved and restored like any tensor, and advances inside a captured CUDA graph.
    """
    return torch.tensor([seed % 2**63, 0], dtype=torch.int64, device=device)


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
            either: each call has noise of its own.
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
    """
    state = None
    if generator is not None:
        if noise is not None:
            raise ValueError("generator: expected None when noise is given, got both")
        if isinstance(generator, Tensor):
            generator, state = None, generator
    low, high = log_std_bounds
    sample: tuple[Tensor, Tensor] = torch.ops.sacfast.tanh_gaussian_rsample.default(
        mean, log_std, noise, generator, state, log_std_bounding, low, high, action_scale
    )
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
    log_prob: Tensor = torch.ops.sacfast.tanh_gaussian_log_prob.default(pre_tanh, mean, log_std)
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


# ---- Fake kernels: shapes for torch.compile --------------------------------------------------------------------


@torch.library.register_fake("sacfast::tanh_gaussian_rsample")
def _(mean, log_std, noise, generator, state, kind, low, high, action_scale):  # type: ignore[no-untyped-def]
    check_one_device(
        ("mean", mean), ("log_std", log_std), ("noise", noise), ("generator", state), ("action_scale", action_scale)
    )
    shapes = [mean.shape, log_std.shape] + ([] if noise is None else [noise.shape])
    shape = torch.broadcast_shapes(*shapes)
    return mean.new_empty(shape), mean.new_empty(shape[:-1])


@torch.library.register_fake("sacfast::_tanh_gaussian_rsample_with_noise")
def _(mean, log_std, generator, state, kind, low, high, action_scale):  # type: ignore[no-untyped-def]
    check_one_device(("mean", mean), ("log_std", log_std), ("generator", state), ("action_scale", action_scale))
    shape = torch.broadcast_shapes(mean.shape, log_std.shape)
    return mean.new_empty(shape), mean.new_empty(shape[:-1]), mean.new_empty(shape)


@torch.library.register_fake("sacfast::tanh_gaussian_rsample_backward")
def _(grad_action, grad_log_prob, mean, log_std, noise, kind, low, high, action_scale):  # type: ignore[no-untyped-def]
    shape = torch.broadcast_shapes(mean.shape, log_std.shape, noise.shape)
    return mean.new_empty(shape), mean.new_empty(shape)


@torch.library.register_fake("sacfast::tanh_gaussian_log_prob")
def _(pre_tanh, mean, log_std):  # type: ignore[no-untyped-def]
    check_one_device(("pre_tanh", pre_tanh), ("mean", mean), ("log_std", log_std))
    return mean.new_empty(torch.broadcast_shapes(pre_tanh.shape, mean.shape, log_std.shape)[:-1])


@torch.library.register_fake("sacfast::tanh_gaussian_log_prob_backward")
def _(grad_log_prob, pre_tanh, mean, log_std):  # type: ignore[no-untyped-def]
    shape = torch.broadcast_shapes(pre_tanh.shape, mean.shape, log_std.shape)
    return mean.new_empty(shape), mean.new_empty(shape), mean.new_empty(shape)
