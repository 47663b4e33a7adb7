"""A step of Adam (arXiv 1412.6980) or AdamW (arXiv 1711.05101) with the Polyak averages of what it makes, in one pass.

parameter <- (1 - lr weight_decay) parameter, then Adam's step; target <- target + tau (parameter - target)
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from sacfast import _ext  # noqa: F401  (loads the native library)
from sacfast.ops._fake import check_like, check_shape
from sacfast.ops._gradients import count_versions, record_nothing
from sacfast.ops._library import define, refusal

_STEP = define(
    "adam_polyak_(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] target_params, int step, float lr, float beta1, float beta2, float eps, float weight_decay, "
    "float tau) -> ()"
)


def adam_polyak_(
    params: Iterable[Tensor],
    grads: Iterable[Tensor],
    exp_avgs: Iterable[Tensor],
    exp_avg_sqs: Iterable[Tensor],
    target_params: Iterable[Tensor] | None,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    tau: float = 0.005,
) -> None:
    """Make one step of torch.optim.Adam or AdamW and move the targets towards its result, in place, in one pass.

    Like an optimiser's step it records no gradient, so leaves that require grad are welcome.

    Args:
        params: tensors in order (`module.parameters()` will do); any layout that does not overlap itself. float32 or
            float64; on CUDA also float16 and bfloat16, which are computed in float32.
        grads: as many tensors of the same shapes, dtype and device. A None is refused: leave its parameter out.
        exp_avgs: first moments, likewise; zeros before the first step.
        exp_avg_sqs: second moments, likewise; zeros before the first step.
        target_params: averages of the parameters, likewise; None: none are kept.
        step: the number of this step, from 1.
        lr: learning rate, >= 0.
        betas: decay of the two moments, each in [0, 1).
        eps: added to the root of the second moment, >= 0.
        weight_decay: decoupled, as AdamW has it, >= 0. With 0 this is Adam.
        tau: of the average, in [0, 1].

    Raises:
        ValueError: lengths, shapes, devices or numbers that do not fit; written tensors that share memory with another
            argument, or that are results of operations that autograd records.
        TypeError: a dtype that does not fit, or a gradient that is None.
    """
    gradients = list(grads)
    for i, grad in enumerate(gradients):
        if grad is None:
            raise TypeError(f"grads[{i}]: expected a tensor, got None (leave out parameters without a gradient)")
    lists = (list(params), gradients, list(exp_avgs), list(exp_avg_sqs))
    targets = [] if target_params is None else list(target_params)
    if target_params is not None and len(targets) != len(lists[0]):
        raise ValueError(f"target_params: expected {len(lists[0])} tensors like params, got {len(targets)}")
    if not any(lists) and not targets:  # without a tensor, torch has nothing to choose the device by
        return
    try:
        _STEP(*lists, targets, step, lr, *betas, eps, weight_decay, tau)
    except ValueError as error:
        raise refusal(error) from None


@torch.no_grad()
def adam_polyak_reference_(
    params: Iterable[Tensor],
    grads: Iterable[Tensor],
    exp_avgs: Iterable[Tensor],
    exp_avg_sqs: Iterable[Tensor],
    target_params: Iterable[Tensor] | None,
    *,
    step: int,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    tau: float = 0.005,
) -> None:
    """Do what `adam_polyak_` does, in plain torch, a loop over the tensors."""
    params = list(params)
    for param, grad, exp_avg, exp_avg_sq in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True):
        param.mul_(1 - lr * weight_decay)
        exp_avg.lerp_(grad, 1 - betas[0])
        exp_avg_sq.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
        root = exp_avg_sq.sqrt().div_(math.sqrt(1 - betas[1] ** step)).add_(eps)
        param.addcdiv_(exp_avg, root, value=-lr / (1 - betas[0] ** step))
    for target, param in zip(target_params or (), params, strict=target_params is not None):
        target.lerp_(param, tau)


record_nothing(_STEP)
count_versions(_STEP)


@torch.library.register_vmap("sacfast::adam_polyak_")
def _(info, in_dims, *arguments):  # type: ignore[no-untyped-def]
    lists, numbers = arguments[:5], arguments[5:]
    names = ("params", "grads", "exp_avgs", "exp_avg_sqs", "target_params")
    mapped: dict[str, list[Tensor]] = {name: [] for name in names}
    for i in range(len(lists[0])):
        dims = {name: in_dims[k][i] for k, name in enumerate(names) if lists[k]}
        for k, (name, dim) in enumerate(dims.items()):
            tensor = lists[k][i]
            if dim is not None:
                tensor = tensor.movedim(dim, 0)
            elif any(each is not None for each in dims.values()):
                if name != "grads":
                    raise ValueError(
                        f"{name}[{i}]: expected a tensor that torch.vmap maps, like the others of this parameter: the "
                        "calls of vmap would write different values to one place"
                    )
                tensor = tensor.expand(info.batch_size, *tensor.shape)
            mapped[name].append(tensor)
    return torch.ops.sacfast.adam_polyak_(*mapped.values(), *numbers), None


@torch.library.register_fake("sacfast::adam_polyak_")
def _(params, grads, exp_avgs, exp_avg_sqs, target_params, *numbers):  # type: ignore[no-untyped-def]
    lists = {"grads": grads, "exp_avgs": exp_avgs, "exp_avg_sqs": exp_avg_sqs}
    lists |= {"target_params": target_params} if target_params else {}
    for name, tensors in lists.items():
        if len(tensors) != len(params):
            raise ValueError(f"{name}: expected {len(params)} tensors like params, got {len(tensors)}")
        for i, (param, tensor) in enumerate(zip(params, tensors, strict=True)):
            check_like(("params[0]", params[0]), (f"params[{i}]", param), (f"{name}[{i}]", tensor))
            check_shape(f"{name}[{i}]", tensor, f"params[{i}]", param)
