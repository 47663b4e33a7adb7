"""What the fake kernels share."""

from __future__ import annotations

from torch import Tensor


def check_one_device(*arguments: tuple[str, Tensor | None]) -> None:
    """Raise ValueError unless all tensors, given with their names, lie on the first one's device.

    One tensor on the meta device sends a call to the fake kernel wherever the others lie. Its result has no values:
    on a real device it would be memory that nobody has written.
    """
    (first_name, first), *others = ((name, tensor) for name, tensor in arguments if tensor is not None)
    for name, tensor in others:
        if tensor.device != first.device:
            raise ValueError(f"{name}: expected device {first.device} like {first_name}, got {tensor.device}")
