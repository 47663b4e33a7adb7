"""Autograd, autocast and torch's generators in Python, for a torch that no library of them in C++ was built for.

LibTorch's stable ABI, on which the ops' kernels stand, has none of the three. What csrc/ops/*_autograd.cpp does for one
minor version of torch, this does for every version, with the same results and some 25 us a call slower. Importing it
registers it with torch. The `torch.autograd.Function`s have no `setup_context`: with one, torch inspects the signature
of `forward` at each call, for 15 us.

First derivatives in reverse mode are those of the native backward ops. All others, and everything under `torch.func`,
are those of the plain ops (`_transforms`).
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from sacfast.ops import _private
from sacfast.ops._gradients import has_tangent
from sacfast.ops._library import DEVICES, LIBRARY, Op

_OPS = torch.ops.sacfast


def _below(op: Op, *arguments: Any) -> Any:
    """Call the op's kernel, past autograd."""
    with _private.AutoDispatchBelowAutograd():
        return op(*arguments)


def _is_transformed(arguments: tuple[Any, ...]) -> bool:
    """Whether `torch.func` or forward mode goes through the call. `torch.autograd.Function` serves neither here."""
    if _private.are_functorch_transforms_active():
        return True
    return has_tangent(*(each for each in arguments if isinstance(each, Tensor)))


def _requires_grad(arguments: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(each, Tensor) and each.requires_grad for each in arguments)


def _check_no_grad(name: str, tensor: Tensor | None) -> None:
    """Raise instead of returning a gradient that silently is zero."""
    if tensor is not None and tensor.requires_grad:
        raise ValueError(
            f"{name}: expected a tensor without requires_grad, because no gradient flows through it (detach it), got "
            "one that requires grad"
        )


def _sum_to(gradient: Tensor, argument: Tensor) -> Tensor:
    """Return the gradient of a broadcast argument, in the argument's own shape."""
    return gradient.sum_to_size(argument.shape)


def _register_backward(name: str) -> None:
    """Let the native backward op serve gradients, and the plain one gradients that are to be differentiated again."""
    op, plain = getattr(_OPS, name).default, getattr(_OPS, f"_{name}_plain").default

    def kernel(*arguments: Any) -> Any:
        if _is_transformed(arguments) or _requires_grad(arguments):
            return plain(*arguments)
        return _below(op, *arguments)

    LIBRARY.impl(name, kernel, "Autograd")


# ---- twin_q_target -----------------------------------------------------------------------------------------------


class _Target(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        _, terminated, next_q1, next_q2, next_log_prob, alpha, alpha_value, gamma, gamma_value = inputs
        ctx.save_for_backward(terminated, next_q1, next_q2, next_log_prob, alpha, gamma)
        ctx.numbers = alpha_value, gamma_value
        return _below(_OPS.twin_q_target.default, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        *tensors, alpha, gamma = ctx.saved_tensors
        alpha_value, gamma_value = ctx.numbers
        needs_grad_alpha = ctx.needs_input_grad[5]
        grad_q1, grad_q2, grad_log_prob, grad_alpha = _OPS.twin_q_target_backward.default(
            grad, *tensors, alpha, alpha_value, gamma, gamma_value, needs_grad_alpha
        )
        if not needs_grad_alpha:
            grad_alpha = None
        elif grad_alpha.shape != alpha.shape:
            grad_alpha = grad_alpha.sum().view(alpha.shape)
        return None, None, grad_q1, grad_q2, grad_log_prob, grad_alpha, None, None, None


def _target(*inputs: Any) -> Any:
    op = _OPS.twin_q_target.default
    if _is_transformed(inputs):
        _below(op, *inputs)  # for its checks
        return _OPS._twin_q_target_plain.default(*inputs)
    if not _requires_grad(inputs):
        return _below(op, *inputs)
    _check_no_grad("reward", inputs[0])
    _check_no_grad("terminated", inputs[1])
    _check_no_grad("gamma", inputs[7])
    return _Target.apply(*inputs)  # type: ignore[no-untyped-call]


# ---- tanh_gaussian_log_prob --------------------------------------------------------------------------------------


class _LogProb(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Any:
        ctx.save_for_backward(*inputs)
        return _below(_OPS.tanh_gaussian_log_prob.default, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        inputs = ctx.saved_tensors
        return tuple(map(_sum_to, _OPS.tanh_gaussian_log_prob_backward.default(grad, *inputs), inputs))


def _log_prob(*inputs: Any) -> Any:
    op = _OPS.tanh_gaussian_log_prob.default
    if _is_transformed(inputs):
        _below(op, *inputs)  # for its checks
        return _OPS._tanh_gaussian_log_prob_plain.default(*inputs)
    if not _requires_grad(inputs):
        return _below(op, *inputs)
    return _LogProb.apply(*inputs)  # type: ignore[no-untyped-call]


# ---- tanh_gaussian_rsample ---------------------------------------------------------------------------------------


class _Rsample(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, noise: Tensor | None, *drawn: Any) -> Any:
        _generator, _state, *options, scale = drawn
        ctx.set_materialize_grads(False)
        ctx.options = options
        if noise is None:
            *sample, noise = _below(_OPS._tanh_gaussian_rsample_with_noise.default, mean, log_std, *drawn)
        else:
            sample = _below(_OPS.tanh_gaussian_rsample.default, mean, log_std, noise, *drawn)
        ctx.save_for_backward(mean, log_std, noise, scale)
        return tuple(sample)

    @staticmethod
    def backward(ctx: Any, grad_action: Tensor | None, grad_log_prob: Tensor | None) -> Any:
        others = (None,) * 7
        if grad_action is None and grad_log_prob is None:
            return None, None, *others
        mean, log_std, noise, scale = ctx.saved_tensors
        grad_mean, grad_log_std = _OPS.tanh_gaussian_rsample_backward.default(
            grad_action, grad_log_prob, mean, log_std, noise, *ctx.options, scale
        )
        return _sum_to(grad_mean, mean), _sum_to(grad_log_std, log_std), *others


def _rsample(mean: Tensor, log_std: Tensor, noise: Tensor | None, *drawn: Any) -> Any:
    op = _OPS.tanh_gaussian_rsample.default
    *_, scale = drawn
    if _is_transformed((mean, log_std, noise, scale)):
        if noise is None:
            noise = _below(_OPS._tanh_gaussian_rsample_with_noise.default, mean, log_std, *drawn)[2]
        else:
            _below(op, mean, log_std, noise, *drawn)  # for its checks
        return _OPS._tanh_gaussian_rsample_plain.default(mean, log_std, noise, *drawn[2:])
    if torch.is_grad_enabled():
        _check_no_grad("noise", noise)
        _check_no_grad("action_scale", scale)
    if not _requires_grad((mean, log_std)):
        return _below(op, mean, log_std, noise, *drawn)
    return _Rsample.apply(mean, log_std, noise, *drawn)  # type: ignore[no-untyped-call]


# ---- torch's generators: a stream of noise is drawn here, for ops that know no generator -------------------------

_OFFSETS = threading.Lock()


def _stream(generator: torch.Generator | None, mean: Tensor) -> tuple[int, int, Tensor | None]:
    """Draw seed and offset of a stream of noise, or a state in their place.

    Raises:
        ValueError: a generator of another device.
    """
    device = mean.device
    if generator is not None and generator.device.type != device.type:
        raise ValueError(f"generator: expected a generator on {device} like mean, got one on {generator.device}")
    if device.type == "cpu":
        word = torch.empty((), dtype=torch.int64, device=device).random_(-(2**63), None, generator=generator)
        return int(word), 0, None
    with torch.cuda.device(device):
        if torch.cuda.is_current_stream_capturing():
            # A replay of the graph draws anew: into memory that the kernel reads when it runs.
            state = torch.empty(2, dtype=torch.int64, device=device)
            return 0, 0, state.random_(-(2**63), None, generator=generator)
    if generator is None:
        generator = torch.cuda.default_generators[device.index]
    with _OFFSETS:
        offset = generator.get_offset()
        generator.set_offset(offset + 4)  # torch's own kernels take multiples of four
    seed = generator.initial_seed()
    return seed - 2**64 if seed >= 2**63 else seed, offset, None


def _noise(
    noise: Tensor | None, generator: torch.Generator | None, state: Tensor | None, mean: Tensor | None
) -> tuple[int, int, Tensor | None]:
    """Return where a call takes its noise from; `mean` is None in a call that its op refuses."""
    if state is not None or noise is not None or mean is None:
        return 0, 0, state
    return _stream(generator, mean)


def _count_version(state: Tensor | None) -> None:
    if state is not None:
        torch.autograd.graph.increment_version(state)


def _sample(mean: Tensor, log_std: Tensor, noise: Any, generator: Any, state: Tensor | None, *options: Any) -> Any:
    stream = _noise(noise, generator, state, mean)
    out = _OPS._tanh_gaussian_sample.default(mean, log_std, noise, *stream, *options)
    if noise is None:
        _count_version(state)
    return out


def _sample_with_noise(mean: Tensor, log_std: Tensor, generator: Any, state: Tensor | None, *options: Any) -> Any:
    stream = _noise(None, generator, state, mean)
    out = _OPS._tanh_gaussian_sample_with_noise.default(mean, log_std, *stream, *options)
    _count_version(state)
    return out


# ---- polyak_update_ ----------------------------------------------------------------------------------------------


def _polyak_update_counted_(targets: list[Tensor], onlines: list[Tensor], tau: float) -> None:
    """Let autograd notice that a tensor saved for backward has changed."""
    with _private.ExcludeDispatchKeyGuard(_private.DispatchKeySet(_private.DispatchKey.ADInplaceOrView)):
        _OPS.polyak_update_.default(targets, onlines, tau)
    torch.autograd.graph.increment_version(targets)


def _polyak_update_(targets: list[Tensor], onlines: list[Tensor], tau: float) -> None:
    """Update like an optimiser's step: leaves may require grad, and nothing is recorded."""
    if torch.is_grad_enabled():
        for i, target in enumerate(targets):
            if target.requires_grad and not target.is_leaf:
                raise ValueError(
                    f"target_params[{i}]: expected a leaf tensor, because no gradient flows through the average, got "
                    "the result of an operation that autograd records"
                )
    if _is_transformed((*targets, *onlines)):
        _OPS._polyak_update_plain_.default(targets, onlines, tau)
    else:
        _below(_OPS.polyak_update_.default, targets, onlines, tau)


# ---- Registration ------------------------------------------------------------------------------------------------

LIBRARY.impl("twin_q_target", _target, "Autograd")
LIBRARY.impl("tanh_gaussian_log_prob", _log_prob, "Autograd")
LIBRARY.impl("tanh_gaussian_rsample", _rsample, "Autograd")
LIBRARY.impl("polyak_update_", _polyak_update_, "Autograd")
LIBRARY.impl("polyak_update_", _polyak_update_counted_, "ADInplaceOrView")
for _name in ("twin_q_target_backward", "tanh_gaussian_log_prob_backward", "tanh_gaussian_rsample_backward"):
    _register_backward(_name)
for _device in DEVICES:
    LIBRARY.impl("tanh_gaussian_rsample", _sample, _device)
    LIBRARY.impl("_tanh_gaussian_rsample_with_noise", _sample_with_noise, _device)
for _device in ("CPU", "CUDA"):
    for _name in ("twin_q_target", "tanh_gaussian_rsample", "tanh_gaussian_log_prob"):
        # The density needs float32, as torch's own log-probabilities do.
        torch.library.register_autocast(f"sacfast::{_name}", _device.lower(), torch.float32)
