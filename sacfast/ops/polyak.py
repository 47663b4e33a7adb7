"""Polyak (exponential moving) averaging of target networks (arXiv 1801.01290, algorithm 1; 1812.05905, algorithm 1).

target <- target + tau (online - target)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sacfast import _ext  # noqa: F401  (loads the native library)
from sacfast.ops._fake import check_one_device


def polyak_update_(
    target_params: Tensor | Iterable[Tensor], online_params: Tensor | Iterable[Tensor], tau: float
) -> None:
    """Move the targets towards the online parameters, in place, in one pass over any number of tensors.

    Like an optimiser's step it records no gradient, so leaves that require grad are welcome.

    Args:
        target_params: a tensor, or tensors in order (`module.parameters()` will do); any layout that does not
            overlap itself. float32 or float64; on CUDA also float16 and bfloat16.
        online_params: as many tensors of the same shapes, dtype and device.
        tau: in [0, 1]; 1 is an exact copy, the hard update.

    Raises:
        ValueError: lengths, shapes, devices or tau that do not fit; targets that share memory with another argument.
        TypeError: a dtype that does not fit.
    """
    targets = [target_params] if isinstance(target_params, Tensor) else list(target_params)
    onlines = [online_params] if isinstance(online_params, Tensor) else list(online_params)
    if targets or onlines:  # without a tensor, torch has nothing to choose the device by
        torch.ops.sacfast.polyak_update_.default(targets, onlines, tau)


@torch.no_grad()
def polyak_update_reference_(
    target_params: Tensor | Iterable[Tensor], online_params: Tensor | Iterable[Tensor], tau: float
) -> None:
    """Do what `polyak_update_` does, in plain torch, a loop over the tensors."""
    targets = [target_params] if isinstance(target_params, Tensor) else list(target_params)
    onlines = [online_params] if isinstance(online_params, Tensor) else list(online_params)
    for target, online in zip(targets, onlines, strict=True):
        target.lerp_(online, tau)


@torch.library.register_fake("sacfast::polyak_update_")
def _(target_params, online_params, tau):  # type: ignore[no-untyped-def]
    check_one_device(
        *((f"target_params[{i}]", each) for i, each in enumerate(target_params)),
        *((f"online_params[{i}]", each) for i, each in enumerate(online_params)),
    )
