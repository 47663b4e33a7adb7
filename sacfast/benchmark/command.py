"""The benchmarks that `sacfast benchmark` runs: their options, what they print and the file they write."""

from __future__ import annotations

import dataclasses
import math
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sacfast.benchmark.problems import UpdateProblem
from sacfast.cli import UsageError, parse


@dataclasses.dataclass(frozen=True)
class OpsOptions:
    """Time the fused ops against plain torch, side by side; print a table and write JSON."""

    device: str = "cpu"
    """Where the ops run: "cpu", "cuda" or "cuda:N"."""
    threads: int = 2
    """Threads of torch's CPU operators."""
    rounds: int = 50
    """Rounds; in each, every contender is timed once."""
    warmup_rounds: int = 3
    """Rounds before those, which do not count."""
    sample_milliseconds: float = 5.0
    """How long one contender is called in a round."""
    only: tuple[str, ...] = ()
    """Names of the cases to measure; none: all."""
    output: Path = Path("benchmark_ops.json")
    """The file to write."""


@dataclasses.dataclass(frozen=True)
class CollectOptions:
    """Time collection by the trainer, without updates, against EnvPool's bare stepping."""

    env_id: str = "HalfCheetah-v5"
    """A task of EnvPool."""
    num_envs: int = 16
    """Environments, stepped all at once."""
    env_threads: int | None = None
    """EnvPool's threads; None: the usable cores, at most `num_envs`."""
    rounds: int = 10
    """Rounds; in each, both are timed once."""
    steps: int = 1000
    """Steps of every environment in a round."""
    device: str = "cpu"
    """Where the policy and the replay buffer are: "cpu", "cuda" or "cuda:N"."""
    output: Path = Path("benchmark_collect.json")
    """The file to write."""


@dataclasses.dataclass(frozen=True)
class UpdateOptions:
    """Time one gradient update by this package and by others, in turns, and the share of the device's peak.

    Each contender works in a process of its own.
    """

    problem: UpdateProblem = dataclasses.field(default_factory=UpdateProblem)
    """The update: its sizes, by default those of HalfCheetah, and where it is made."""
    threads: tuple[int, ...] = (1, 2)
    """Numbers of threads, each measured on as many cores."""
    rounds: int | None = None
    """Rounds; in each, every contender works once. None: 10, or 5 in a sweep."""
    seconds: float | None = None
    """How long a contender works in a round. None: 1.5, or 0.5 in a sweep."""
    only: tuple[str, ...] = ()
    """Names of the contenders; none: all."""
    sweep: bool = False
    """Whether to set the fused update against eager torch at many sizes instead."""
    profile: bool = False
    """Whether to time the phases of the fused update instead."""
    output: Path = Path("benchmark_update.json")
    """The file to write."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range and for options that exclude each other."""
        for count in self.threads:
            _check_threads(count)
        for name in ("rounds", "seconds"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        for name in ("observation_dim", "action_dim", "batch_size"):
            _check_positive(name, getattr(self.problem, name))
        for units in self.problem.hidden_sizes:
            _check_positive("hidden_sizes", units)
        if self.sweep + self.profile + bool(self.only) > 1:
            raise ValueError("expected at most one of --sweep, --profile and --only")


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Time training, one update per transition, against its learner's bare updates and Stable-Baselines3."""

    env_id: str = "HalfCheetah-v5"
    """A task that EnvPool and Gymnasium have."""
    num_envs: int = 16
    """Environments."""
    backend: str = "fused"
    """How the update is carried out."""
    threads: int = 2
    """Threads of the updates and of the environments, on as many cores."""
    rounds: int = 10
    """Rounds; in each, every contender works once."""
    seconds: float = 4.0
    """How long a contender works in a round."""
    output: Path = Path("benchmark_train.json")
    """The file to write."""

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        _check_threads(self.threads)
        for name in ("num_envs", "rounds", "seconds"):
            _check_positive(name, getattr(self, name))


Options = OpsOptions | CollectOptions | UpdateOptions | TrainOptions


def run(arguments: Sequence[str]) -> int:
    """Run `sacfast benchmark ARGUMENTS`; return the exit code."""
    name, *rest = list(arguments) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: sacfast benchmark {" + ",".join(BENCHMARKS) + "} [OPTIONS]\n\n" + "\n".join(_SUMMARIES))
        return 0
    if name not in BENCHMARKS:
        raise UsageError(f"unknown benchmark {name!r}; expected one of {', '.join(BENCHMARKS)}")
    return BENCHMARKS[name](rest)


def _ops(arguments: Sequence[str]) -> int:
    options = parse("benchmark ops", OpsOptions, arguments)

    import torch

    from sacfast.benchmark import bench_ops, report
    from sacfast.benchmark.harness import Settings

    _require_device(options.device)
    if unknown := sorted(set(options.only) - set(bench_ops.CASES)):
        raise UsageError(f"only: expected some of {', '.join(bench_ops.CASES)}, got {', '.join(unknown)}")
    try:
        settings = Settings(
            options.device, options.threads, options.rounds, options.warmup_rounds, options.sample_milliseconds
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    rows = []
    print(report.SPREADS)
    for name in options.only or bench_ops.CASES:
        rows.append(bench_ops.measure(name, settings))
        print(f"\n{report.op_table(rows[-1])}", flush=True)
        _write("ops", options, arguments, rows)  # after every row: a run may be cut short
    torch.set_num_threads(before)
    print(f"\n{_where(options)}")
    return 0


def _collect(arguments: Sequence[str]) -> int:
    options = parse("benchmark collect", CollectOptions, arguments)
    threads = options.env_threads or min(len(os.sched_getaffinity(0)), options.num_envs)

    from sacfast.benchmark import bench_collect, report

    _require_device(options.device)
    try:
        row = bench_collect.measure(
            options.env_id, options.num_envs, threads, options.rounds, options.steps, options.device
        )
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    _write("collect", options, arguments, [row])
    print(f"{report.collect_table(row)}\n\n{_where(options)}")
    return 0


def _update(arguments: Sequence[str]) -> int:
    options = parse("benchmark update", UpdateOptions, arguments)

    from sacfast.benchmark import bench_update, contenders, report

    problem = options.problem
    _require_device(problem.device)
    if options.profile and problem.device != "cpu":
        raise UsageError("profile: expected --device cpu; the phases of a CUDA graph are for a profiler such as nsys")
    names = contenders.contenders_of(problem.device)
    if unknown := sorted(set(options.only) - set(names)):
        raise UsageError(f"only: expected some of {', '.join(names)}, got {', '.join(unknown)}")
    if options.sweep:
        names = [contenders.FUSED, contenders.REFERENCE]
    rounds = options.rounds or (5 if options.sweep else 10)
    seconds = options.seconds or (0.5 if options.sweep else 1.5)
    rows = []
    for threads in options.threads:
        for each in bench_update.sweep(problem.device) if options.sweep else [problem]:
            if options.profile:
                row = bench_update.measure_profile(each, threads, rounds, seconds)
                table = report.profile_table(row)
            else:
                row = bench_update.measure(each, threads, rounds, seconds, options.only or names)
                table = report.update_table(row)
            rows.append(row)
            print(f"{table}\n", flush=True)
            _write("update", options, arguments, rows)  # after every row: a sweep may be cut short
    print(_where(options))
    return 0


def _train(arguments: Sequence[str]) -> int:
    options = parse("benchmark train", TrainOptions, arguments)

    from sacfast.benchmark import bench_train, report
    from sacfast.benchmark.problems import TrainProblem

    problem = TrainProblem(options.env_id, options.num_envs, options.backend)
    try:
        row = bench_train.measure(problem, options.threads, options.rounds, options.seconds)
    except ValueError as error:
        raise UsageError(str(error)) from error
    _write("train", options, arguments, [row])
    print(f"{report.train_table(row)}\n\n{_where(options)}")
    return 0


def _check_threads(threads: int) -> None:
    cores = len(os.sched_getaffinity(0))
    if not 1 <= threads <= cores:
        raise ValueError(f"threads: expected 1 to {cores}, the usable cores, got {threads}")


def _check_positive(name: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise ValueError(f"{name}: expected a number > 0, got {value}")


def _require_device(device: str) -> None:
    import torch

    from sacfast import _ext

    try:
        kind = torch.device(device).type
    except RuntimeError:
        kind = ""
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"device: expected 'cpu', 'cuda' or 'cuda:N', got {device!r}")
    if kind == "cuda" and (reason := _ext.info()["cuda_reason"]):
        raise UsageError(f"device: {device!r} cannot be used: {reason}")


def _write(name: str, options: Options, arguments: Sequence[str], rows: list[Any]) -> None:
    from sacfast import files
    from sacfast.benchmark import report

    settings = {key: value for key, value in dataclasses.asdict(options).items() if key != "output"}
    command = shlex.join(["sacfast", "benchmark", name, *arguments])
    content = {"benchmark": name, **report.provenance(command), "settings": settings, "rows": rows}
    files.write_json(options.output, content)


def _where(options: Options) -> str:
    return f"written to {options.output}"


BENCHMARKS: dict[str, Callable[[Sequence[str]], int]] = {
    "ops": _ops,
    "collect": _collect,
    "update": _update,
    "train": _train,
}
_SUMMARIES = [
    "  ops      the fused ops against plain torch",
    "  collect  the trainer's collection against EnvPool's bare stepping",
    "  update   the fused update against plain torch, other implementations and the processor's peak",
    "  train    training against its bare updates and Stable-Baselines3",
    "\n`sacfast benchmark ops --help`, and so on, lists the options.",
]
