"""Polyak (exponential moving) averaging of target networks (arXiv 1801.01290, algorithm 1; 1812.05905, algorithm 1).

target <- target + tau (online - target)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from sacfast import _ext  # noqa: F401  (loads the native library)
from sacfast.ops._fake import check_like, check_shape
from sacfast.ops._library import define, define_plain, refusal

_UPDATE = define("polyak_update_(Tensor(a!)[] target_params, Tensor[] online_params, float tau) -> ()")


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
    if not targets and not onlines:  # without a tensor, torch has nothing to choose the device by
        return
    try:
        _UPDATE(targets, onlines, tau)
    except ValueError as error:
        raise refusal(error) from None


@torch.no_grad()
def polyak_update_reference_(
    target_params: Tensor | Iterable[Tensor], online_params: Tensor | Iterable[Tensor], tau: float
) -> None:
    """Do what `polyak_update_` does, in plain torch, a loop over the tensors."""
    targets = [target_params] if isinstance(target_params, Tensor) else list(target_params)
    onlines = [online_params] if isinstance(online_params, Tensor) else list(online_params)
    for target, online in zip(targets, onlines, strict=True):
        target.lerp_(online, tau)


# ---- Forward mode: see `_transforms` ------------------------------------------------------------------------------


def _polyak_update_plain_(target_params: list[Tensor], online_params: list[Tensor], tau: float) -> None:
    _check_pairs(target_params, online_params, tau)
    polyak_update_reference_(target_params, online_params, tau)


define_plain(
    "_polyak_update_plain_(Tensor(a!)[] target_params, Tensor[] online_params, float tau) -> ()", _polyak_update_plain_
)


def _check_pairs(target_params: list[Tensor], online_params: list[Tensor], tau: float) -> None:
    """Raise where the native kernel would, but for shared memory: not every tensor has an address."""
    if len(target_params) != len(online_params):
        raise ValueError(
            f"online_params: expected {len(target_params)} tensors like target_params, got {len(online_params)}"
        )
    if not 0.0 <= tau <= 1.0:
        raise ValueError(f"tau: expected a number in [0, 1], got {tau}")
    named = [
        ((f"target_params[{i}]", target), (f"online_params[{i}]", online))
        for i, (target, online) in enumerate(zip(target_params, online_params, strict=True))
    ]
    check_like(*(each for pair in named for each in pair))
    for (target_name, target), (online_name, online) in named:
        check_shape(online_name, online, target_name, target)


@torch.library.register_vmap("sacfast::polyak_update_")
def _(info, in_dims, target_params, online_params, tau):  # type: ignore[no-untyped-def]
    targets, onlines = [], []
    for i, (target, target_dim, online, online_dim) in enumerate(
        zip(target_params, in_dims[0], online_params, in_dims[1], strict=True)
    ):
        if target_dim is None and online_dim is not None:
            raise ValueError(
                f"target_params[{i}]: expected a tensor that torch.vmap maps, like online_params[{i}]: "
                "the calls of vmap would write different values to one place"
            )
        targets.append(target if target_dim is None else target.movedim(target_dim, 0))
        if online_dim is not None:
            online = online.movedim(online_dim, 0)
        elif target_dim is not None:
            online = online.expand(info.batch_size, *online.shape)
        onlines.append(online)
    return _UPDATE(targets, onlines, tau), None


@torch.library.register_fake("sacfast::polyak_update_")
def _(target_params, online_params, tau):  # type: ignore[no-untyped-def]
    _check_pairs(target_params, online_params, tau)
