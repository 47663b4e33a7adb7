"""What the ops share to be ops of torch: schemas, plain kernels, and the errors that LibTorch's stable ABI lacks."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from sacfast import _ext

if TYPE_CHECKING:
    from torch._ops import OpOverload  # whose place is private

    Op: TypeAlias = OpOverload[..., Any]
else:
    Op = Any

LIBRARY = torch.library.Library("sacfast", "FRAGMENT")
"""The ops' schemas and the kernels that are written in Python."""

_LACKS_CUDA = torch.version.cuda is not None and _ext.cuda_library() is None
DEVICES = ("CPU",) if _LACKS_CUDA else ("CPU", "CUDA")
"""Dispatch keys of the devices that have kernels, or can have no tensors."""

_SCHEMAS: dict[Op, str] = {}
_DTYPE = re.compile(r": expected dtype |: expected a tensor, got None")


def define(schema: str, *tags: torch.Tag) -> Op:
    """Define an op, whose kernels are in the native libraries, and return it."""
    LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag, *tags))
    op: Op = getattr(torch.ops.sacfast, schema.partition("(")[0]).default
    _SCHEMAS[op] = schema
    if _LACKS_CUDA:
        LIBRARY.impl(op, _refuse_cuda, "CUDA")
    return op


def declaration_of(op: Op) -> tuple[str, str]:
    """Return an op's name, and its arguments as its schema declares them."""
    name, _, rest = _SCHEMAS[op].partition("(")
    return name, rest.rpartition(") ->")[0]


def _refuse_cuda(*_: Any) -> Any:
    raise NotImplementedError(f"expected tensors on the CPU, got tensors on CUDA: {_ext.cuda_reason()}")


def define_plain(schema: str, function: Callable[..., Any]) -> None:
    """Define an op that `function`, of torch's own operations, carries out on any device and under any transform."""
    LIBRARY.define(schema)
    LIBRARY.impl(schema.partition("(")[0], function, "CompositeImplicitAutograd")


def refusal(error: ValueError) -> Exception:
    """Return the error that a call raises for one of a native op: TypeError for a dtype.

    What a kernel on the stable ABI throws can become a ValueError in Python, and no TypeError.
    """
    return TypeError(str(error)) if _DTYPE.search(str(error)) else error
