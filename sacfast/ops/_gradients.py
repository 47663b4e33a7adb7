"""Autograd of losses whose kernel makes the slope too, of maps of each element, of targets and of steps in place.

The kernels are registered for the dispatcher's Autograd key, so that torch.compile and torch.func see one op. They are
in C++ where a library was built for this torch and lists the op (csrc/ops/gradients_autograd.cpp); else they are here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._functorch import autograd_function
from torch._ops import OpOverload
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from sacfast import _ext  # noqa: F401  (loads the native library)
from sacfast.ops._library import LIBRARY, define_plain

Op = OpOverload[..., Any]


def _is_in_cpp(op: Op, key: str) -> bool:
    return torch._C._dispatch_has_kernel_for_dispatch_key(op._schema.name, key)


def _define_plain(name: str, function: Callable[..., Any], arguments: list[Any]) -> None:
    """Define the plain op that C++ calls in `function`'s place."""
    declared = ", ".join(f"{argument.type} {argument.name}" for argument in arguments)
    define_plain(f"{name}({declared}) -> Tensor", function)


def differentiate_loss(op: Op, loss_plain: Callable[..., Tensor], slope_plain: Callable[..., Tensor]) -> None:
    """Make an op, (input, target, *numbers, needs_slope) -> (loss, slope), differentiable in its input.

    The target takes no gradient. The backward pass multiplies with the slope that the kernel has made. Where it is to
    be differentiated again, and where a tensor has a tangent, torch's own operations take the kernel's place.

    Args:
        op: with kernels for each device.
        loss_plain: (input, target, *numbers) -> loss, in torch's own operations.
        slope_plain: (input, target, *numbers) -> d loss / d input, of the input's shape, likewise.
    """
    *arguments, _needs_slope = op._schema.arguments
    _define_plain(f"_{op._opname}_plain", loss_plain, arguments)
    _define_plain(f"_{op._opname}_slope_plain", slope_plain, arguments)
    if not _is_in_cpp(op, "Autograd"):
        _differentiate_loss(op, loss_plain, slope_plain)


def _differentiate_loss(op: Op, loss_plain: Callable[..., Tensor], slope_plain: Callable[..., Tensor]) -> None:
    single_level: Any = autograd_function.enable_single_level_autograd_function  # type: ignore[attr-defined]

    class Loss(_SingleLevelFunction):  # of the level that the dispatcher has reached: torch.func nests them
        @staticmethod
        def forward(ctx: Any, keyset: Any, first: Tensor, target: Tensor, *numbers: Any) -> Any:
            # forward runs without gradients, but an outer level of torch.func is to record what it does.
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
                loss, slope = op.redispatch(keyset & torch._C._after_autograd_keyset, first, target, *numbers, True)
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

    def kernel(keyset: Any, first: Tensor, target: Tensor, *rest: Any) -> Any:
        *numbers, needs_slope = rest
        if torch.is_grad_enabled():
            _check_no_grad("target", target)
        if _has_tangent(first, target):
            with torch.no_grad():
                op(first.detach(), target.detach(), *numbers, False)  # for its checks
            return loss_plain(first, target, *numbers), first.new_empty(0)
        if torch.is_grad_enabled() and first.requires_grad:
            with single_level():
                return Loss.apply(keyset, first, target, *numbers)  # type: ignore[attr-defined]
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, first, target, *numbers, needs_slope)

    LIBRARY.impl(op._opname, kernel, "Autograd", with_keyset=True)


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
    _define_plain(f"_{op._opname}_plain", plain, op._schema.arguments)
    _define_plain(f"_{backward_op._opname}_plain", backward_plain, backward_op._schema.arguments)
    if not _is_in_cpp(op, "Autograd"):
        _differentiate_elementwise(op, backward_op, plain, backward_plain)


def _differentiate_elementwise(
    op: Op, backward_op: Op, plain: Callable[..., Tensor], backward_plain: Callable[..., Tensor]
) -> None:
    single_level: Any = autograd_function.enable_single_level_autograd_function  # type: ignore[attr-defined]
    names = [argument.name for argument in op._schema.arguments]

    class Elementwise(_SingleLevelFunction):
        @staticmethod
        def forward(ctx: Any, keyset: Any, *arguments: Any) -> Any:
            with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), torch._C._AutoDispatchBelowAutograd():
                result = op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)
            ctx.save_for_backward(*(each for each in arguments if isinstance(each, Tensor)))
            ctx.numbers = [each for each in arguments if not isinstance(each, Tensor)]
            return result

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:
            arguments = (*ctx.saved_tensors, *ctx.numbers)
            function = backward_plain if torch.is_grad_enabled() or _has_tangent(grad) else backward_op
            return None, function(grad, *arguments), *(None for _ in arguments[1:])

    def kernel(keyset: Any, *arguments: Any) -> Any:
        tensors = [each for each in arguments if isinstance(each, Tensor)]
        if torch.is_grad_enabled():
            for name, each in zip(names[1:], tensors[1:], strict=False):
                _check_no_grad(name, each)
        if _has_tangent(*tensors):
            with torch.no_grad():
                op(*(each.detach() if isinstance(each, Tensor) else each for each in arguments))  # for its checks
            return plain(*arguments)
        if torch.is_grad_enabled() and arguments[0].requires_grad:
            with single_level():
                return Elementwise.apply(keyset, *arguments)  # type: ignore[attr-defined]
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    LIBRARY.impl(op._opname, kernel, "Autograd", with_keyset=True)


def refuse_gradients(op: Op) -> None:
    """Make an op refuse tensors that autograd would differentiate: no gradient flows through the op."""
    names = [argument.name for argument in op._schema.arguments]

    def kernel(keyset: Any, *arguments: Any) -> Any:
        for argument_name, argument in zip(names, arguments, strict=True):
            if isinstance(argument, Tensor):
                if torch.is_grad_enabled():
                    _check_no_grad(argument_name, argument)
                _check_no_tangent(argument_name, argument)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    if not _is_in_cpp(op, "Autograd"):
        LIBRARY.impl(op._opname, kernel, "Autograd", with_keyset=True)


def record_nothing(op: Op) -> None:
    """Make an op in place work as an optimiser's step does: leaves may require grad, nothing is recorded."""

    def check(name: str, is_written: bool, tensor: Tensor) -> None:
        if is_written and torch.is_grad_enabled() and tensor.requires_grad and not tensor.is_leaf:
            raise ValueError(
                f"{name}: expected a leaf tensor, because no gradient flows through the step, got the result of an "
                "operation that autograd records"
            )
        _check_no_tangent(name, tensor)

    written = {
        argument.name: argument.alias_info is not None and argument.alias_info.is_write
        for argument in op._schema.arguments
    }

    def kernel(keyset: Any, *arguments: Any) -> Any:
        for (name, is_written), argument in zip(written.items(), arguments, strict=True):
            if isinstance(argument, Tensor):
                check(name, is_written, argument)
            elif isinstance(argument, list | tuple):
                for i, tensor in enumerate(argument):
                    check(f"{name}[{i}]", is_written, tensor)
        with torch._C._AutoDispatchBelowAutograd():
            return op.redispatch(keyset & torch._C._after_autograd_keyset, *arguments)

    if not _is_in_cpp(op, "Autograd"):
        LIBRARY.impl(op._opname, kernel, "Autograd", with_keyset=True)


def count_versions(op: Op) -> None:
    """Make an op tell autograd that it has changed the tensors that its schema says it writes to."""
    written = [argument.alias_info is not None and argument.alias_info.is_write for argument in op._schema.arguments]

    def kernel(keyset: Any, *arguments: Any) -> Any:
        result = op.redispatch(keyset & torch._C._after_ADInplaceOrView_keyset, *arguments)
        for argument, is_written in zip(arguments, written, strict=True):
            for tensor in (argument if isinstance(argument, list | tuple) else [argument]) if is_written else []:
                if not tensor.is_inference():
                    torch.autograd.graph.increment_version(tensor)
        return result

    if not _is_in_cpp(op, "ADInplaceOrView"):
        LIBRARY.impl(op._opname, kernel, "ADInplaceOrView", with_keyset=True)


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
    if _has_tangent(tensor):
        raise ValueError(
            f"{name}: expected a tensor without a tangent, because no gradient flows through it (detach it), got one "
            "with a tangent"
        )


def _has_tangent(*tensors: Tensor) -> bool:
    if forward_ad._current_level < 0:
        return False
    return any(torch._VF._unpack_dual(tensor, level=0)[1] is not None for tensor in tensors)
