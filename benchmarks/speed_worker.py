"""One build at work for `speed_gate`: a process that works when it is told to, and else sleeps.

    PYTHONPATH=ROOT python -P benchmarks/speed_worker.py CASE

It runs as a file, with the sacfast of any checkout, through its public functions. It keeps to the first cores that it
may use, as many as the case has threads, prints "ready", and answers each line, a number of seconds, by the seconds
that one unit of work took.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Work = Callable[[], float]
"""Does a piece of work, and returns how many units it was."""


@dataclass(frozen=True)
class Case:
    """How the work is made, and the cores that it gets."""

    make: Callable[[int], Work]
    threads: int = 1


def main() -> int:
    """Serve until the input ends."""
    case = CASES[sys.argv[1]]
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < case.threads:
        sys.exit(f"{sys.argv[1]}: expected {case.threads} cores, this process may use {len(cores)}")
    os.sched_setaffinity(0, cores[: case.threads])
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what libraries print goes to standard error
    work = case.make(case.threads)
    seconds_of_one(work, 0.1)
    print("ready", file=channel)
    for line in sys.stdin:
        print(seconds_of_one(work, float(line)), file=channel)
    return 0


def seconds_of_one(work: Work, seconds: float) -> float:
    """Work for about that long; return the seconds of a unit."""
    units, start = work(), time.perf_counter()
    units = 0.0  # the first piece warms the caches that the other build has filled
    while (elapsed := time.perf_counter() - start) < seconds or not units:
        units += work()
    return elapsed / units


def _update(hidden_sizes: tuple[int, ...], batch_size: int) -> Callable[[int], Work]:
    def make(threads: int) -> Work:
        import torch

        from sacfast import ReplayBuffer, SACConfig, make_learner

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        replay = ReplayBuffer(20_000, 17, 6)
        x, x2 = torch.randn(20_000, 17), torch.randn(20_000, 17)
        replay.add(x, torch.randn(20_000, 6).tanh(), torch.randn(20_000), x2, torch.randn(20_000) > 2)
        learner = make_learner(17, 6, SACConfig(hidden_sizes=hidden_sizes, batch_size=batch_size))
        steps = max(1, round(2e6 / batch_size / sum(hidden_sizes) ** 2 * 64))  # a few milliseconds

        def chunk() -> float:
            learner.update(replay, steps)
            return steps

        return chunk

    return make


def _train(steps: int, **fields: Any) -> Callable[[int], Work]:
    def make(threads: int) -> Work:
        from sacfast import SAC

        fixed = {"device": "cpu", "evaluation_episodes": 0, "progress": False}
        model = SAC("HalfCheetah-v5", num_envs=16, env_threads=threads, torch_threads=threads, **fixed, **fields)
        model.learn(1024 + steps)

        def chunk() -> float:
            model.learn(steps)
            return steps

        return chunk

    return make


def _op(name: str) -> Callable[[int], Work]:
    def make(threads: int) -> Work:
        import torch

        torch.set_num_threads(threads)
        torch.manual_seed(0)
        call = _ops()[name]

        def chunk() -> float:
            for _ in range(50):
                call()
            return 50

        return chunk

    return make


def _ops() -> dict[str, Callable[[], object]]:
    import torch

    from sacfast import ops

    mean, log_std = torch.randn(256, 6, requires_grad=True), torch.randn(256, 6, requires_grad=True)
    rows = [torch.randn(256) for _ in range(4)]
    done = (rows[0] > 1).float()
    shapes = ((256, 23), (256,), (256, 256), (256,), (1, 256), (1,))
    state = [[torch.rand(shape) for shape in shapes] for _ in range(5)]
    logits, soft = torch.randn(256, 51, requires_grad=True), torch.randn(256, 51).softmax(-1)
    quantiles, target = torch.randn(256, 2, 25, requires_grad=True), torch.randn(256, 46)

    def differentiate(outputs: tuple[torch.Tensor, ...], *inputs: torch.Tensor) -> object:
        return torch.autograd.grad([each.sum() for each in outputs], inputs)

    return {
        "rsample": lambda: differentiate(ops.tanh_gaussian_rsample(mean, log_std), mean, log_std),
        "twin-q-target": lambda: ops.twin_q_target(rows[0], done, rows[1], rows[2], rows[3], 0.2, 0.99),
        "polyak": lambda: ops.polyak_update_(state[0], state[1], 0.005),
        "adam-polyak": lambda: ops.adam_polyak_(*state, step=5, lr=3e-4),
        "cross-entropy": lambda: differentiate((ops.categorical_cross_entropy(logits, soft),), logits),
        "quantile": lambda: differentiate((ops.quantile_huber_loss(quantiles, target),), quantiles),
    }


OPS = ("rsample", "twin-q-target", "polyak", "adam-polyak", "cross-entropy", "quantile")
CASES: dict[str, Case] = {
    "update-256-1": Case(_update((256, 256), 256)),
    "update-256-2": Case(_update((256, 256), 256), threads=2),
    "update-64": Case(_update((64, 64), 64)),
    "update-1024": Case(_update((1024, 1024), 1024), threads=2),
    "train": Case(_train(128), threads=2),
    "collect": Case(_train(1024, learning_starts=0, utd_ratio=0.0), threads=2),
    **{f"op-{name}": Case(_op(name)) for name in OPS},
}

if __name__ == "__main__":
    sys.exit(main())
