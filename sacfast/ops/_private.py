"""The names of torch that the ops need and torch keeps private, each looked up when it is first used.

A torch that has moved one of them costs what needs it, with an error that says so, and not `import sacfast.ops`.
"""

from __future__ import annotations

import pkgutil
from functools import cache
from typing import Any

import torch

KNOWN_TORCH = "torch>=2.11,<2.15"
"""The versions that are known to have all of the names."""

PLACES = {
    place.rpartition(":")[2].lstrip("_"): place
    for place in (
        "torch._C:DispatchKey",
        "torch._C:DispatchKeySet",
        "torch._C:_AutoDispatchBelowAutograd",
        "torch._C:_ExcludeDispatchKeyGuard",
        "torch._C:_after_ADInplaceOrView_keyset",
        "torch._C:_after_autograd_keyset",
        "torch._C:_are_functorch_transforms_active",
        "torch._C._functorch:_add_batch_dim",
        "torch._C._functorch:is_batchedtensor",
        "torch._C._functorch:maybe_get_level",
        "torch._functorch.autograd_function:enable_single_level_autograd_function",
        "torch._functorch.pyfunctorch:retrieve_current_functorch_interpreter",
        "torch.autograd.forward_ad:_set_fwd_grad_enabled",
        "torch.autograd.function:_SingleLevelFunction",
    )
}
"""Where each is: by its name without a leading underscore, which is its name in this module."""


def __getattr__(name: str) -> Any:
    """Return one of `PLACES`, which from then on is an attribute of this module.

    Raises:
        ImportError: this torch does not have it.
    """
    if name not in PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        found = pkgutil.resolve_name(PLACES[name])
    except (ImportError, AttributeError) as error:
        raise _moved(PLACES[name]) from error
    globals()[name] = found
    return found


@cache
def arguments_of(op: Any) -> tuple[Any, ...]:
    """Return the arguments in an op's schema, each with `name` and `alias_info`. Raises ImportError as above."""
    try:
        return tuple(op._schema.arguments)
    except AttributeError as error:
        raise _moved("torch._ops.OpOverload._schema") from error


def _moved(place: str) -> ImportError:
    return ImportError(
        f"sacfast: torch {torch.__version__} has no {place.replace(':', '.')}, which this call needs: "
        f"run `pip install '{KNOWN_TORCH}'`, or upgrade sacfast"
    )
