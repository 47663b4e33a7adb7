"""The speed of the ops against plain torch, in rounds.

A case is an op at a size with its contenders: "fused" is ours, the others do the same in plain torch. A new op is
a function that makes a case, and a line of `CASES`.

Forward and backward together are measured twice, each time by the same call for all contenders: through
`torch.autograd.grad(outputs, inputs, grad_outputs)`, whose checks in Python cost some 20 us an output, and through the
engine that it ends in, which is what an op adds to the one backward pass of a whole loss.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sacfast import ops
from sacfast.benchmark.harness import Contender, Rounds, Settings
from sacfast.benchmark.report import FUSED_OUT
from sacfast.ops.adam_polyak import adam_polyak_reference_
from sacfast.ops.categorical import categorical_cross_entropy_reference, categorical_target_reference
from sacfast.ops.moments import normalize_reference, update_running_moments_reference_
from sacfast.ops.polyak import polyak_update_reference_
from sacfast.ops.quantile import quantile_huber_loss_reference, truncated_quantile_target_reference
from sacfast.ops.tanh_gaussian import tanh_gaussian_log_prob_reference, tanh_gaussian_rsample_reference
from sacfast.ops.twin_q import twin_q_target_reference

FUSED = "fused"
COPY = "copy"
PLAIN = "plain torch"
COMPILED = "torch.compile"

TAU = 0.005
# The twin critics of HalfCheetah (observation 17, action 6) with hidden layers 256-256: weight and bias by layer.
CRITIC_SHAPES = [(256, 23), (256,), (256, 256), (256,), (1, 256), (1,)]
# Elements of one argument at which an op is bound by memory and no cache holds its arguments.
LARGE = {"cpu": 2**22, "cuda": 2**26}


class Case(NamedTuple):
    """An op at a size."""

    op: str
    size: str
    contenders: dict[str, Contender]
    bytes_moved: int | None = None  # read and written at least by one call; None: too small for it to matter


def _with_compiled(call: Callable[[Callable[..., Any]], object], fused: Any, plain: Any) -> dict[str, Contender]:
    """Return the contenders of a case: `call` of the op, of its plain twin, and of the twin as torch compiles it."""
    compiled = torch.compile(plain, fullgraph=True)
    return {FUSED: partial(call, fused), PLAIN: partial(call, plain), COMPILED: partial(call, compiled)}


def rsample_forward(rows: int, cols: int, device: str, memory_bound: bool = False) -> Case:
    """Sample with log-probability, the noise drawn inside, without autograd."""
    mean, log_std = _normal(rows, cols, device=device), _normal(rows, cols, device=device)
    reads_and_writes = 3 * mean.nbytes + mean.nbytes // cols  # mean, log_std, action; log_prob
    contenders: dict[str, Contender] = {
        FUSED: lambda: ops.tanh_gaussian_rsample(mean, log_std),
        "plain torch": lambda: tanh_gaussian_rsample_reference(mean, log_std),
    }
    moved = reads_and_writes if memory_bound else None
    return Case("tanh_gaussian_rsample forward", f"[{rows}, {cols}]", contenders, moved)


def _engine(outputs: Sequence[Tensor], inputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> object:
    engine: Any = torch.autograd.Variable._execution_engine
    return engine.run_backward(
        tuple(outputs), tuple(gradients), False, False, tuple(inputs), allow_unreachable=False, accumulate_grad=False
    )


def rsample_forward_backward(
    rows: int, cols: int, device: str, differentiate: Callable[..., object] = torch.autograd.grad
) -> Case:
    """Sample and differentiate, with fixed gradients of action and log_prob."""
    mean = _normal(rows, cols, device=device).requires_grad_()
    log_std = _normal(rows, cols, device=device).requires_grad_()
    gradients = [_normal(rows, cols, device=device), _normal(rows, device=device)]
    inputs = [mean, log_std]
    contenders: dict[str, Contender] = {
        FUSED: lambda: differentiate(ops.tanh_gaussian_rsample(mean, log_std), inputs, gradients),
        "plain torch": lambda: differentiate(tanh_gaussian_rsample_reference(mean, log_std), inputs, gradients),
    }
    call = "engine" if differentiate is _engine else "torch.autograd.grad"
    return Case(f"tanh_gaussian_rsample forward + backward ({call})", f"[{rows}, {cols}]", contenders)


def log_prob(rows: int, cols: int, device: str) -> Case:
    """Log-probability of a known pre-tanh value, without autograd."""
    arguments = [_normal(rows, cols, device=device) for _ in range(3)]
    contenders: dict[str, Contender] = {
        FUSED: lambda: ops.tanh_gaussian_log_prob(*arguments),
        "plain torch": lambda: tanh_gaussian_log_prob_reference(*arguments),
    }
    return Case("tanh_gaussian_log_prob forward", f"[{rows}, {cols}]", contenders)


def twin_q_target(rows: int, device: str, memory_bound: bool = False) -> Case:
    """Bellman targets with a temperature that is learned, so a tensor; no autograd, as in a SAC update."""
    reward, next_q1, next_q2, next_log_prob = (_normal(rows, device=device) for _ in range(4))
    terminated = (_normal(rows, device=device) > 1).float()
    alpha = torch.tensor(0.2, device=device)
    arguments = reward, terminated, next_q1, next_q2, next_log_prob, alpha, 0.99
    contenders: dict[str, Contender] = {
        FUSED: lambda: ops.twin_q_target(*arguments),
        "plain torch": lambda: twin_q_target_reference(*arguments),
    }
    return Case("twin_q_target", f"[{rows}]", contenders, 6 * reward.nbytes if memory_bound else None)


def categorical_target(rows: int, atoms: int, device: str, memory_bound: bool = False) -> Case:
    """Bellman targets of twin critics with atoms from -5 to 5; no autograd."""
    reward, next_log_prob = _normal(rows, device=device), _normal(rows, device=device)
    logits1, logits2 = _normal(rows, atoms, device=device), _normal(rows, atoms, device=device).flip(-1).contiguous()
    arguments = reward, reward > 1, logits1, logits2, next_log_prob, 0.2, 0.99, -5.0, 5.0
    contenders = _with_compiled(lambda f: f(*arguments), ops.categorical_target, categorical_target_reference)
    moved = 3 * logits1.nbytes if memory_bound else None
    return Case("categorical_target", f"[{rows}, {atoms}]", contenders, moved)


def cross_entropy(rows: int, atoms: int, device: str, memory_bound: bool = False) -> Case:
    """Cross-entropy on soft targets, forward and backward, with the gradient of its mean."""
    logits = _normal(rows, atoms, device=device).requires_grad_()
    target = _normal(rows, atoms, device=device).softmax(-1)
    gradient = torch.full((rows,), 1 / rows, device=device)
    contenders = _with_compiled(
        lambda f: _engine([f(logits, target)], [logits], [gradient]),
        ops.categorical_cross_entropy,
        categorical_cross_entropy_reference,
    )
    contenders["torch's cross_entropy"] = lambda: _engine(
        [torch.nn.functional.cross_entropy(logits, target, reduction="none")], [logits], [gradient]
    )
    # Logits, target and slope; the slope again, and the gradient.
    moved = 5 * logits.nbytes if memory_bound else None
    return Case("categorical_cross_entropy forward + backward", f"[{rows}, {atoms}]", contenders, moved)


def quantile_huber(rows: int, critics: int, quantiles: int, device: str) -> Case:
    """Quantile Huber loss on TQC's truncated target, forward and backward: bound by arithmetic at every size."""
    predicted = _normal(rows, critics, quantiles, device=device).requires_grad_()
    target = _normal(rows, critics * (quantiles - 2), device=device)
    gradient = torch.full((rows, critics), 1 / rows, device=device)
    contenders = _with_compiled(
        lambda f: _engine([f(predicted, target)], [predicted], [gradient]),
        ops.quantile_huber_loss,
        quantile_huber_loss_reference,
    )
    return Case("quantile_huber_loss forward + backward", f"[{rows}, {critics}, {quantiles}]", contenders)


def truncated_quantile_target(rows: int, critics: int, quantiles: int, device: str, memory_bound: bool = False) -> Case:
    """TQC's target, the 2 largest quantiles for each critic dropped; no autograd."""
    reward, next_log_prob = _normal(rows, device=device), _normal(rows, device=device)
    next_quantiles = _normal(rows, critics, quantiles, device=device)
    arguments = reward, reward > 1, next_quantiles, next_log_prob, 2, 0.2, 0.99
    contenders = _with_compiled(
        lambda f: f(*arguments), ops.truncated_quantile_target, truncated_quantile_target_reference
    )
    moved = next_quantiles.nbytes * (2 * quantiles - 2) // quantiles if memory_bound else None
    return Case("truncated_quantile_target", f"[{rows}, {critics}, {quantiles}]", contenders, moved)


def polyak(shapes: Sequence[tuple[int, ...]], size: str, device: str, memory_bound: bool = False) -> Case:
    """Target parameters towards online ones, one tensor each for a weight or bias."""
    targets, onlines = ([_normal(*shape, device=device) for shape in shapes] for _ in range(2))

    def loop_of_expressions() -> None:
        for target, online in zip(targets, onlines, strict=True):
            target.copy_(TAU * online + (1 - TAU) * target)  # as CleanRL writes it

    contenders: dict[str, Contender] = {
        FUSED: lambda: ops.polyak_update_(targets, onlines, TAU),
        "loop of lerp_": lambda: polyak_update_reference_(targets, onlines, TAU),
        "loop of copy_": loop_of_expressions,
        "_foreach_lerp_": lambda: torch._foreach_lerp_(targets, onlines, TAU),
    }
    moved = 3 * sum(target.nbytes for target in targets) if memory_bound else None
    return Case("polyak_update_", size, contenders, moved)


def adam_polyak(shapes: Sequence[tuple[int, ...]], size: str, device: str, memory_bound: bool = False) -> Case:
    """A step of Adam and the averages of the parameters that it makes, one tensor each for a weight or bias."""
    params, grads, targets = ([_normal(*shape, device=device) for shape in shapes] for _ in range(3))
    exp_avgs, exp_avg_sqs = ([torch.zeros_like(param) for param in params] for _ in range(2))
    lists = params, grads, exp_avgs, exp_avg_sqs, targets
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    optimisers = {
        "Adam, _foreach_lerp_": torch.optim.Adam(params, lr=3e-4, foreach=True),
        "fused Adam, _foreach_lerp_": torch.optim.Adam(params, lr=3e-4, fused=True),
    }

    def step_and_average(optimiser: torch.optim.Optimizer) -> None:
        optimiser.step()
        torch._foreach_lerp_(targets, params, TAU)

    contenders = _with_compiled(
        lambda f: f(*lists, step=1000, lr=3e-4, tau=TAU), ops.adam_polyak_, adam_polyak_reference_
    )
    contenders |= {name: partial(step_and_average, optimiser) for name, optimiser in optimisers.items()}
    # Four tensors are read and written, the gradient is read.
    moved = 9 * sum(param.nbytes for param in params) if memory_bound else None
    return Case("adam_polyak_", size, contenders, moved)


def running_moments(rows: int, cols: int, device: str, memory_bound: bool = False) -> Case:
    """Merge a batch into running moments; the plain twin sums in float64 too."""
    batch = _normal(rows, cols, device=device)
    moments = [torch.zeros(cols, device=device, dtype=torch.float64) for _ in range(2)]
    count = torch.zeros((), device=device, dtype=torch.float64)
    contenders = _with_compiled(
        lambda f: f(*moments, count, batch), ops.update_running_moments_, update_running_moments_reference_
    )
    narrow = [torch.zeros(cols, device=device) for _ in range(2)]
    contenders["plain torch in float32"] = lambda: _merge_in_float32(narrow[0], narrow[1], count, batch)
    return Case("update_running_moments_", f"[{rows}, {cols}]", contenders, batch.nbytes if memory_bound else None)


@torch.no_grad()
def _merge_in_float32(mean: Tensor, variance: Tensor, count: Tensor, batch: Tensor) -> None:
    """Do it as the libraries do that compute in torch, with their rounding errors."""
    batch_variance, batch_mean = torch.var_mean(batch, 0, correction=0)
    delta, total = batch_mean - mean, count + len(batch)
    deviations = variance * count + batch_variance * len(batch) + delta.square() * (count * len(batch) / total)
    mean += delta * (len(batch) / total)
    variance.copy_(deviations / total)
    count.copy_(total)


def normalize(rows: int, cols: int, device: str, memory_bound: bool = False) -> Case:
    """Normalise a batch by float32 moments, which plain torch needs to stay in float32; no autograd."""
    x, mean, variance = _normal(rows, cols, device=device), _normal(cols, device=device), _normal(cols, device=device)
    arguments = x, mean, variance.exp(), 1e-8, 10.0
    contenders = _with_compiled(lambda f: f(*arguments), ops.normalize, normalize_reference)
    out = torch.empty_like(x)
    contenders[FUSED_OUT] = lambda: ops.normalize(*arguments, out=out)
    return Case("normalize", f"[{rows}, {cols}]", contenders, 2 * x.nbytes if memory_bound else None)


def _large_rsample(device: str) -> Case:
    return rsample_forward(_large(device) // 16, 17, device, memory_bound=True)


def _large_twin_q_target(device: str) -> Case:
    return twin_q_target(_large(device), device, memory_bound=True)


def _large_polyak(device: str) -> Case:
    shapes = [(_large(device) // 4,)] * 4
    return polyak(shapes, f"4 x [{_large(device) // 4}]", device, memory_bound=True)


def _large_adam_polyak(device: str) -> Case:
    shapes = [(_large(device) // 16,)] * 4
    return adam_polyak(shapes, f"4 x [{_large(device) // 16}]", device, memory_bound=True)


def _large_categorical_target(device: str) -> Case:
    return categorical_target(_large(device) // 128, 101, device, memory_bound=True)


def _large_running_moments(device: str) -> Case:
    return running_moments(_large(device) // 32, 101, device, memory_bound=True)


def _large_normalize(device: str) -> Case:
    return normalize(_large(device) // 32, 101, device, memory_bound=True)


def _large_cross_entropy(device: str) -> Case:
    return cross_entropy(_large(device) // 128, 101, device, memory_bound=True)


def _large_truncated_quantile_target(device: str) -> Case:
    return truncated_quantile_target(_large(device) // 128, 5, 25, device, memory_bound=True)


CASES: dict[str, Callable[[str], Case]] = {
    "rsample_256x6": partial(rsample_forward, 256, 6),
    "rsample_backward_256x6": partial(rsample_forward_backward, 256, 6),
    "rsample_engine_256x6": partial(rsample_forward_backward, 256, 6, differentiate=_engine),
    "rsample_65536x17": partial(rsample_forward, 65536, 17),
    "rsample_backward_65536x17": partial(rsample_forward_backward, 65536, 17),
    "log_prob_256x6": partial(log_prob, 256, 6),
    "twin_q_256": partial(twin_q_target, 256),
    "polyak_twin_critics": partial(polyak, 2 * CRITIC_SHAPES, "twin critics, 12 tensors"),
    "categorical_target_256x101": partial(categorical_target, 256, 101),
    "cross_entropy_256x101": partial(cross_entropy, 256, 101),
    "quantile_huber_256x5x25": partial(quantile_huber, 256, 5, 25),
    "truncated_target_256x5x25": partial(truncated_quantile_target, 256, 5, 25),
    "running_moments_256x101": partial(running_moments, 256, 101),
    "normalize_256x101": partial(normalize, 256, 101),
    "adam_polyak_twin_critics": partial(adam_polyak, 2 * CRITIC_SHAPES, "twin critics, 12 tensors"),
    # A million elements: on a CPU the last-level cache may hold them, so the copy beside them is a fast one.
    "categorical_target_1e6": partial(categorical_target, 9901, 101, memory_bound=True),
    "cross_entropy_1e6": partial(cross_entropy, 9901, 101, memory_bound=True),
    "truncated_target_1e6": partial(truncated_quantile_target, 8000, 5, 25, memory_bound=True),
    "adam_polyak_1e6": partial(adam_polyak, [(250_000,)] * 4, "4 x [250000]", memory_bound=True),
    "running_moments_1e6": partial(running_moments, 9901, 101, memory_bound=True),
    "normalize_1e6": partial(normalize, 9901, 101, memory_bound=True),
    "rsample_large": _large_rsample,
    "twin_q_large": _large_twin_q_target,
    "polyak_large": _large_polyak,
    "adam_polyak_large": _large_adam_polyak,
    "categorical_target_large": _large_categorical_target,
    "cross_entropy_large": _large_cross_entropy,
    "running_moments_large": _large_running_moments,
    "normalize_large": _large_normalize,
    "truncated_target_large": _large_truncated_quantile_target,
}


def measure(name: str, settings: Settings) -> dict[str, Any]:
    """Time every contender of the case `name` of `CASES`; return its name and `summarize`."""
    case = CASES[name](settings.device)
    contenders = dict(case.contenders)
    if case.bytes_moved is not None:
        contenders[COPY] = _copy_of(case.bytes_moved, settings.device)
    rounds = Rounds(contenders, settings)
    for _ in range(settings.warmup_rounds + settings.rounds):
        rounds.run_one()
    rounds.keep_last(settings.rounds)
    return {"name": name, **summarize(case, rounds)}


def summarize(case: Case, rounds: Rounds) -> dict[str, Any]:
    """Return a case's figures, JSON-safe: times in microseconds, ratios to the fused op, share of bandwidth."""
    others = [name for name in case.contenders if name != FUSED]
    return {
        "op": case.op,
        "size": case.size,
        "microseconds": {name: rounds.spread(name).to_dict(1e6) for name in case.contenders},
        "times_slower_than_fused": {name: rounds.ratio(name, FUSED).to_dict() for name in others},
        "bandwidth": None if case.bytes_moved is None else _bandwidth(case.bytes_moved, rounds),
    }


def _bandwidth(moved: int, rounds: Rounds) -> dict[str, Any]:
    copy = rounds.spread(COPY)
    return {
        "bytes_moved": moved,
        "copy_gigabytes_per_second": moved / copy.p50 * 1e-9,
        # Both move the same number of bytes, so the ratio of their times is the share of the copy's bandwidth.
        "fraction_of_copy": {name: rounds.ratio(COPY, name).to_dict() for name in rounds.seconds if name != COPY},
    }


def _copy_of(moved: int, device: str) -> Contender:
    """Return a copy that reads half of `moved` bytes and writes the other half."""
    source = torch.zeros(moved // 8, device=device)
    target = torch.ones_like(source)
    return lambda: target.copy_(source)


def _normal(*shape: int, device: str) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)


def _large(device: str) -> int:
    return LARGE[torch.device(device).type]
