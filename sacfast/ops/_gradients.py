"""Autograd of losses whose kernel makes the slope too, of maps of each element, of targets and of steps in place.

The kernels are registered for the dispatcher's Autograd key, so that torch.compile and torch.func see one op. They are
in C++ where a library was built for this torch and lists the op (csrc/ops/gradients_autograd.cpp); else they are here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from sacfast import _ext
from sacfast.ops import _private
from sacfast.ops._library import LIBRARY, Op, declaration_of, define_plain


def _is_in_cpp(op: Op) -> bool:
    return _ext.has_autograd(declaration_of(op)[0])


def _define_plain(op: Op, suffix: str, function: Callable[..., Any], without: str = "") -> None:
    """Define the plain op that C++ calls in `function`'s place: with the op's arguments but for the one declared so."""
    name, arguments = declaration_of(op)
    define_plain(f"_{name}_{suffix}({arguments.removesuffix(without)}) -> Tensor", function)


def differentiate_loss(op: Op, loss_plain: Callable[..., Tensor], slope_plain: Callable[..., Tensor]) -> None:
    """Make an op, (input, target, *numbers, needs_slope) -> (loss, slope), differentiable in its input.

    The target takes no gradient. The backward pass multiplies with the slope that the kernel has made. Where it is to
    be differentiated again, and where a tensor has a tangent, torch's own operations take the kernel's place.

    Args:
        op: with kernels for each device.
        loss_plain: (input, target, *numbers) -> loss, in torch's own operations.
        slope_plain: (input, target, *numbers) -> d loss / d input, of the input's shape, likewise.
    """
    if _is_in_cpp(op):
        _define_plain(op, "plain", loss_plain, without=", bool needs_slope")
        _define_plain(op, "slope_plain", slope_plain, without=", bool needs_slope")
    else:
        _differentiate_loss(op, loss_plain, slope_plain)


def _differentiate_loss(op: Op, loss_plain: Callable[..., Tensor], slope_plain: Callable[..., Tensor]) -> None:

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


def differentiate_elementwise(
    op: Op, backward_op: Op, plain: Callable[..., Tensor], backward_plain: Callable[..., Tensor]
) -> None:
    """Make an op, (input, *others, *numbers) -> result, differentiable in its input.

    The other tensors take no gradient. A gradient that is to be differentiated again, and tensors with a tangent, go to
    torch's own operations.

    Args:
        op: with kernels for each device.
        backward_op: (grad, input, *others, *numbers) -> d loss / d input, likewise.
        plain: what op does, in torch's own operations.
        backward_plain: what backward_op does, likewise.
    """
    if _is_in_cpp(op):
        _define_plain(op, "plain", plain)
        _define_plain(backward_op, "plain", backward_plain)
    else:
        _differentiate_elementwise(op, backward_op, plain, backward_plain)


def _differentiate_elementwise(
    op: Op, backward_op: Op, plain: Callable[..., Tensor], backward_plain: Callable[..., Tensor]
) -> None:
    @cache
    def function() -> Any:
        return _elementwise_function(op, backward_op, backward_plain)

    def kernel(keyset: Any, *arguments: Any) -> Any:
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        if torch.is_grad_enabled():
            for declared, each in zip(_private.arguments_of(op)[1:], tensors[1:], strict=False):
                _check_no_grad(declared.name, each)
        if has_tangent(*tensors):
            with torch.no_grad():
                op(*(each.detach() if isinstance(each, Tensor) else each for each in arguments))  # for its checks
            return plain(*arguments)
        if torch.is_grad_enabled() and arguments[0].requires_grad:
            with _private.enable_single_level_autograd_function():
                return function().apply(keyset, *arguments)
        with _private.AutoDispatchBelowAutograd():
            return op.redispatch(keyset & _private.after_autograd_keyset, *arguments)

    LIBRARY.impl(op, kernel, "Autograd", with_keyset=True)


def _elementwise_function(op: Op, backward_op: Op, backward_plain: Callable[..., Tensor]) -> Any:
    """Return the autograd.Function of `differentiate_elementwise`."""

    class Elementwise(_private.SingleLevelFunction):  # type: ignore[misc]  # of one level: torch.func nests them
        @staticmethod
        def forward(ctx: Any, keyset: Any, *arguments: Any) -> Any:
            with torch.enable_grad(), _private.set_fwd_grad_enabled(True), _private.AutoDispatchBelowAutograd():
                result = op.redispatch(keyset & _private.after_autograd_keyset, *arguments)
            ctx.save_for_backward(*(each for each in arguments if isinstance(each, Tensor)))
            ctx.numbers = [each for each in arguments if not isinstance(each, Tensor)]
            return result

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            arguments = (*ctx.saved_tensors, *ctx.numbers)
            function = backward_plain if torch.is_grad_enabled() or has_tangent(grad) else backward_op
            return None, function(grad, *arguments), *(None for _ in arguments[1:])

    return Elementwise


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

    if not _is_in_cpp(op):
        LIBRARY.impl(op, kernel, "Autograd", with_keyset=True)


def record_nothing(op: Op) -> None:
    """Make an op in place work as an optimiser's step does: leaves may require grad, nothing is recorded."""

    def check(name: str, is_written: bool, tensor: Tensor) -> None:
        if is_written and torch.is_grad_enabled() and tensor.requires_grad and not tensor.is_leaf:
            raise ValueError(
                f"{name}: expected a leaf tensor, because no gradient flows through the step, got the result of an "
                "operation that autograd records"
            )
        _check_no_tangent(name, tensor)

    def kernel(keyset: Any, *arguments: Any) -> Any:
        for (name, is_written), argument in zip(_written(op), arguments, strict=True):
            if isinstance(argument, Tensor):
                check(name, is_written, argument)
            elif isinstance(argument, list | tuple):
                for i, tensor in enumerate(argument):
                    check(f"{name}[{i}]", is_written, tensor)
        with _private.AutoDispatchBelowAutograd():
            return op.redispatch(keyset & _private.after_autograd_keyset, *arguments)

    if not _is_in_cpp(op):
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

    if not _is_in_cpp(op):
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
