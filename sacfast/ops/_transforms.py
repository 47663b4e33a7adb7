"""What the ops share for torch.func: plain kernels for derivatives that the native ones do not have, and vmap.

A native op has a first derivative in reverse mode. Where a tensor has a tangent (forward mode), or a gradient is to be
differentiated again, its autograd kernel calls a plain op instead: the op's formula in torch's own operations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sacfast.ops import _private
from sacfast.ops._library import LIBRARY


def logical_dim(tensor: Tensor, batch_dim: int | None) -> int:
    """Return the dimensions that a function under `torch.vmap` sees."""
    return tensor.ndim if batch_dim is None else tensor.ndim - 1


def align(tensor: Tensor, batch_dim: int | None, dim: int) -> Tensor:
    """Return a view whose mapped dimension, if it has one, comes first, before `dim` others.

    Dimensions of size 1 fill the gap, so that views of one `dim` broadcast as the tensors do for a function under vmap.
    """
    if batch_dim is None:
        return tensor
    tensor = tensor.movedim(batch_dim, 0)
    return tensor[(slice(None), *[None] * (dim + 1 - tensor.ndim))]


def align_all(batch_size: int, tensors: Sequence[Tensor], batch_dims: Sequence[int | None]) -> list[Tensor]:
    """Return views that broadcast with the mapped dimension first; the first view has the whole common shape."""
    dim = max(map(logical_dim, tensors, batch_dims))
    views = [align(tensor, batch_dim, dim) for tensor, batch_dim in zip(tensors, batch_dims, strict=True)]
    shape = torch.broadcast_shapes((batch_size, *[1] * dim), *(view.shape for view in views))
    return [views[0].expand(shape), *views[1:]]


def draw_under_vmap(name: str, draws: Callable[..., bool]) -> None:
    """Make a random op heed the randomness of `torch.vmap` where none of its tensors is mapped.

    Args:
        name: of the op, whose first argument is a tensor of the noise's shape.
        draws: whether a call with these arguments draws noise.
    """
    op = getattr(torch.ops.sacfast, name).default

    def kernel(first: Tensor, *rest: Any) -> Any:
        interpreter = _private.retrieve_current_functorch_interpreter()
        with _private.ExcludeDispatchKeyGuard(_private.DispatchKeySet(_private.DispatchKey.FuncTorchVmapMode)):
            if draws(first, *rest):
                if interpreter.randomness() == "error":
                    raise RuntimeError(
                        f"{name}: expected randomness='same' or 'different' of torch.vmap, because noise is drawn "
                        "inside, got randomness='error'"
                    )
                if interpreter.randomness() == "different":
                    first = _mapped(first, interpreter)
            return op(first, *rest)

    LIBRARY.impl(name, kernel, "FuncTorchVmapMode")


def _mapped(tensor: Tensor, interpreter: Any) -> Tensor:
    """Return the tensor, mapped by the current vmap: a view of the same values for each of its calls."""
    level = interpreter.level()
    if _private.is_batchedtensor(tensor) and _private.maybe_get_level(tensor) == level:
        return tensor
    mapped: Tensor = _private.add_batch_dim(tensor.expand(interpreter.batch_size(), *tensor.shape), 0, level)
    return mapped
