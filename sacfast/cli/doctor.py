"""`sacfast doctor`: what is installed and in use, and whether ops and update agree with their references."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from sacfast.cli.arguments import FAILED, parse
from sacfast.config import SACConfig

if TYPE_CHECKING:
    import torch


@dataclasses.dataclass(frozen=True)
class DoctorOptions:
    """Print versions, the processor's level, the GPU and the kernels in use; check the ops."""


def doctor(arguments: Sequence[str]) -> int:
    """Print what is in use and how far it is from its references; return the exit code."""
    parse("doctor", DoctorOptions, arguments)
    import torch

    from sacfast import _ext
    from sacfast.metrics import versions

    found = versions()
    found.setdefault("envpool", "not installed; pip install 'sacfast[envpool]'")
    for name, version in found.items():
        print(f"{name:22} {version}")
    for name, value in _ext.info().items():
        print(f"{name:22} {value}")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"{'gpu':22} {', '.join(gpus) or 'none'}")
    sound = True
    for device in ["cpu", "cuda"] if _ext.info()["cuda_available"] else ["cpu"]:
        for name, error in _op_errors(device):
            passed = error <= OP_TOLERANCE  # NaN does not pass
            sound &= passed
            print(f"{name + ' on ' + device:38} error {error:.1e}  {'ok' if passed else 'WRONG'}")
    difference = _update_difference()
    passed = difference <= UPDATE_TOLERANCE
    sound &= passed
    print(f"{'fused update on cpu':38} difference {difference:.1e}  {'ok' if passed else 'WRONG'}")
    print("all agrees with the references" if sound else "something differs from its reference")
    return 0 if sound else FAILED


OP_TOLERANCE = 2e-5
"""Largest error of a float32 op against its float64 reference, relative to max(1, |value|): about a hundred
roundings of 2**-24, for sums over 17 action dimensions of terms up to some tens."""
UPDATE_TOLERANCE = 2e-5
"""Largest difference of a parameter after one float32 update, fused and reference: a fifteenth of the step that Adam
takes (3e-4), which is also what rounding can make of a gradient that is nearly zero."""


def _update_difference() -> float:
    """Return the largest difference of any parameter between the fused update and plain torch, after one update."""
    import torch

    from sacfast.fused import FusedLearner
    from sacfast.reference import ReferenceLearner
    from sacfast.types import Batch

    config = SACConfig(hidden_sizes=(65, 33), batch_size=64, fused_ops=False)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    batch = Batch(normal(64, 17), normal(64, 6).tanh(), normal(64), normal(64, 17), (normal(64) > 1).float())
    noise = normal(64, 6), normal(64, 6)
    states = []
    for learner in (FusedLearner(17, 6, config), ReferenceLearner(17, 6, config)):
        learner.update_batch(batch, *noise)
        states.append(learner.state_dict())
    fused, reference = states
    names = [name for name in reference if "optimizer" not in name and name != "noise_state"]
    return max(float((fused[name] - reference[name]).abs().max()) for name in names)


def _op_errors(device: str) -> Iterator[tuple[str, float]]:
    """Yield each native op, forward and backward, with its largest error against the float64 reference."""
    import torch

    from sacfast import ops
    from sacfast.ops.polyak import polyak_update_reference_
    from sacfast.ops.tanh_gaussian import (
        tanh_gaussian_log_prob_reference,
        tanh_gaussian_rsample_reference,
    )
    from sacfast.ops.twin_q import twin_q_target_reference

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    mean, log_std, noise = normal(257, 17).requires_grad_(), normal(257, 17).requires_grad_(), normal(257, 17)
    exact_mean, exact_log_std = (tensor.detach().double().requires_grad_() for tensor in (mean, log_std))
    found = ops.tanh_gaussian_rsample(mean, log_std, noise=noise)
    exact = tanh_gaussian_rsample_reference(exact_mean, exact_log_std, noise=noise.double())
    yield "tanh_gaussian_rsample", _error(found, exact)
    gradient = torch.autograd.grad(found[0].sum() + found[1].sum(), (mean, log_std))
    exact_gradient = torch.autograd.grad(exact[0].sum() + exact[1].sum(), (exact_mean, exact_log_std))
    yield "tanh_gaussian_rsample backward", _error(gradient, exact_gradient)
    arguments = noise, mean.detach(), 0.1 * log_std.detach()
    exact_log_prob = tanh_gaussian_log_prob_reference(*(tensor.double() for tensor in arguments))
    yield "tanh_gaussian_log_prob", _error([ops.tanh_gaussian_log_prob(*arguments)], [exact_log_prob])
    columns = {name: normal(257) for name in ("reward", "next_q1", "next_q2", "next_log_prob")}
    columns["terminated"] = (normal(257) > 1).float()
    exact_columns = {name: column.double() for name, column in columns.items()}
    exact_target = twin_q_target_reference(**exact_columns, alpha=0.2, gamma=0.99)
    yield "twin_q_target", _error([ops.twin_q_target(**columns, alpha=0.2, gamma=0.99)], [exact_target])
    target, online = normal(1001), normal(1001)
    exact_polyak = target.double()
    polyak_update_reference_(exact_polyak, online.double(), 0.005)
    ops.polyak_update_(target, online, 0.005)
    yield "polyak_update_", _error([target], [exact_polyak])


def _error(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """Return the largest error relative to max(1, |exact|)."""
    pairs = [(value.detach().double(), truth.detach()) for value, truth in zip(found, exact, strict=True)]
    return max(float(((value - truth).abs() / truth.abs().clamp(min=1.0)).max()) for value, truth in pairs)
