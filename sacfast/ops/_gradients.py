"""Autograd in Python: losses whose kernel makes the slope too, targets without gradients, and steps in place.

The kernels are registered for the dispatcher's Autograd key, so that torch.compile and torch.func see one op.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sacfast.ops import _private
from sacfast.ops._library import LIBRARY, Op


def differentiate_loss(op: Op, loss_plain: Callable[..., Tensor], slope_plain: Callable[..., Tensor]) -> None:
    """Make an op, (input, target, *numbers, needs_slope) -> (loss, slope), differentiable in its input.

    The target takes no gradient. The backward pass multiplies with the slope that the kernel has made. Where it is to
    be differentiated again, and where a tensor has a tangent, torch's own operations take the kernel's place.

    Args:
        op: with kernels for each device.
        loss_plain: (input, target, *numbers) -> loss, in torch's own operations.
        slope_plain: (input, target, *numbers) -> d loss / d input, of the input's shape, likewise.
    """

    @cache
    def function() -> Any:
        return _loss_function(op, slope_plain)

    def kernel(keyset: Any, first: Tensor, target: Tensor, *rest: Any) -> Any:
        *numbers, needs_slope = rest
        if torch.is_grad_enabled():
            _check_no_grad("target", target)
        if has_tangent(first, target):
            with torch.no_grad():
                op(first.detach(), target.detach(), *numbers, False)  # for its checks
            return loss_plain(first, target, *numbers), first.new_empty(0)
        if torch.is_grad_enabled() and first.requires_grad:
            with _private.enable_single_level_autograd_function():
                return function().apply(keyset, first, target, *numbers)
        with _private.AutoDispatchBelowAutograd():
            return op.redispatch(keyset & _private.after_autograd_keyset, first, target, *numbers, needs_slope)

    LIBRARY.impl(op, kernel, "Autograd", with_keyset=True)


def _loss_function(op: Op, slope_plain: Callable[..., Tensor]) -> Any:
    """Return the autograd.Function of `differentiate_loss`."""

    class Loss(_private.SingleLevelFunction):  # type: ignore[misc]  # of one level: torch.func nests them
        @staticmethod
        def forward(ctx: Any, keyset: Any, first: Tensor, target: Tensor, *numbers: Any) -> Any:
            # forward runs without gradients, but an outer level of torch.func is to record what it does.
            with torch.enable_grad(), _private.set_fwd_grad_enabled(True), _private.AutoDispatchBelowAutograd():
                loss, slope = op.redispatch(keyset & _private.after_autograd_keyset, first, target, *numbers, True)
            ctx.save_for_backward(first, target, slope)
            ctx.numbers = numbers
            ctx.mark_non_differentiable(slope)
            return loss, slope

        @staticmethod
        def backward(ctx: Any, grad: Tensor, _: Any) -> Any:
            first, target, slope = ctx.saved_tensors
            if torch.is_grad_enabled():  # create_graph: the slope is differentiated in turn
                slope = slope_plain(first, target, *ctx.numbers)
            return None, grad.unsqueeze(-1) * slope, None, *(None for _ in ctx.numbers)

    return Loss


def refuse_gradients(op: Op) -> None:
    """Make an op refuse tensors that autograd would differentiate: no gradient flows through the op."""

    def kernel(keyset: Any, *arguments: Any) -> Any:
        for declared, argument in zip(_private.arguments_of(op), arguments, strict=True):
            if isinstance(argument, Tensor):
                if torch.is_grad_enabled():
                    _check_no_grad(declared.name, argument)
                _check_no_tangent(declared.name, argument)
        with _private.AutoDispatchBelowAutograd():
            return op.redispatch(keyset & _private.after_autograd_keyset, *arguments)

    LIBRARY.impl(op, kernel, "Autograd", with_keyset=True)


def record_nothing(op: Op) -> None:
    """Make an op on lists of tensors work as an optimiser's step does: leaves may require grad, nothing is recorded."""

    def kernel(keyset: Any, *arguments: Any) -> Any:
        for (name, is_written), argument in zip(_written(op), arguments, strict=True):
            for i, tensor in enumerate(argument if isinstance(argument, list | tuple) else []):
                if is_written and torch.is_grad_enabled() and tensor.requires_grad and not tensor.is_leaf:
                    raise ValueError(
                        f"{name}[{i}]: expected a leaf tensor, because no gradient flows through the step, got the "
                        "result of an operation that autograd records"
                    )
                _check_no_tangent(f"{name}[{i}]", tensor)
        with _private.AutoDispatchBelowAutograd():
            return op.redispatch(keyset & _private.after_autograd_keyset, *arguments)

    LIBRARY.impl(op, kernel, "Autograd", with_keyset=True)


def count_versions(op: Op) -> None:
    """Make an op tell autograd that it has changed the tensors that its schema says it writes to."""

    def kernel(keyset: Any, *arguments: Any) -> Any:
        result = op.redispatch(keyset & _private.after_ADInplaceOrView_keyset, *arguments)
        for (_, is_written), argument in zip(_written(op), arguments, strict=True):
            for tensor in (argument if isinstance(argument, list | tuple) else [argument]) if is_written else []:
                if not tensor.is_inference():
                    torch.autograd.graph.increment_version(tensor)
        return result

    LIBRARY.impl(op, kernel, "ADInplaceOrView", with_keyset=True)


def compute_in_float32_under_autocast(op: Op) -> None:
    """Make torch.autocast cast the floating-point tensors of an op to float32, as for torch's own losses."""
    for device_type in ("cpu", "cuda"):
        torch.library.register_autocast(op, device_type, torch.float32, lib=LIBRARY)


def _check_no_grad(name: str, tensor: Tensor) -> None:
    if tensor.requires_grad:
        raise ValueError(
            f"{name}: expected a tensor without requires_grad, because no gradient flows through it (detach it), got "
            "one that requires grad"
        )


def _check_no_tangent(name: str, tensor: Tensor) -> None:
    if has_tangent(tensor):
        raise ValueError(
            f"{name}: expected a tensor without a tangent, because no gradient flows through it (detach it), got one "
            "with a tangent"
        )


@cache
def _written(op: Op) -> tuple[tuple[str, bool], ...]:
    """Return the name of each of an op's arguments, and whether the op writes to it."""
    arguments = _private.arguments_of(op)
    return tuple((each.name, each.alias_info is not None and each.alias_info.is_write) for each in arguments)


def has_tangent(*tensors: Tensor) -> bool:
    """Whether forward mode differentiates one of the tensors."""
    if getattr(forward_ad, "_current_level", 0) < 0:  # private: a shortcut, where torch has it
        return False
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)
