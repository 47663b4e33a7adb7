"""What the fake kernels check: the result of a call that would fail must not look as if it had a shape.

A fake kernel serves torch.compile, torch.export and tensors on the meta device. One tensor on the meta device sends a
call there wherever the others lie.
"""

from __future__ import annotations

from torch import Tensor


def check_like(*arguments: tuple[str, Tensor | None]) -> None:
    """Raise unless all tensors, given with their names, have the first one's device and dtype.

    Raises:
        ValueError: another device.
        TypeError: another dtype.
    """
    (first_name, first), *others = ((name, tensor) for name, tensor in arguments if tensor is not None)
    for name, tensor in others:
        check_device(name, tensor, first_name, first)
        if tensor.dtype != first.dtype:
            raise TypeError(f"{name}: expected dtype {first.dtype} like {first_name}, got {tensor.dtype}")


def check_device(name: str, tensor: Tensor | None, first_name: str, first: Tensor) -> None:
    """Raise ValueError unless a tensor, if there is one, lies where the first argument does."""
    if tensor is not None and tensor.device != first.device:
        raise ValueError(f"{name}: expected device {first.device} like {first_name}, got {tensor.device}")


def check_shape(name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    """Raise ValueError unless a tensor has the first argument's shape."""
    if tensor.shape != first.shape:
        raise ValueError(f"{name}: expected shape {list(first.shape)} like {first_name}, got {list(tensor.shape)}")
