"""Runs for `benchmarks.faults`: as processes of their own, which can be stopped, and what is left of them."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from sacfast import checkpoint, cli

HANGS_AFTER_SECONDS = 120.0
"""How long a run that nothing stops may take: five times what it takes on two busy cores."""

TIMES = ("wall_seconds", "env_steps_per_second", "updates_per_second")
COMMON = (
    *("train", "--env-id", "Pendulum-v1", "--num-envs", "4", "--hidden-sizes", "32", "32", "--batch-size", "32"),
    *("--learning-starts", "200", "--replay-capacity", "1500", "--evaluation-episodes", "1", "--torch-threads", "1"),
    *("--evaluate-every", "1000", "--log-interval", "250"),
)
# A checkpoint about every second on two cores that others use too.
BACKENDS = {
    "fused": ("--total-timesteps", "10000", "--checkpoint-every", "500"),
    "reference": ("--backend", "reference", "--total-timesteps", "2000", "--checkpoint-every", "100"),
}
# Forked from a process that has imported everything: a child is at work within a fraction of a second.
PROCESSES = multiprocessing.get_context("forkserver")

Redirect = Callable[[Path], None]


def to_file(output: Path) -> None:
    """Send what this process says to a file."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


class Child:
    """The command line in a process of its own; what it says goes to a file, or where `redirect` sends it."""

    def __init__(self, arguments: tuple[str, ...], output: Path, redirect: Redirect = to_file) -> None:
        self.output = output
        self.process: BaseProcess = PROCESSES.Process(target=_run_command, args=(arguments, output, redirect))
        self.process.start()

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self) -> tuple[int, str]:
        """Return the exit code (negative: the signal that killed it) and what was said."""
        self.process.join(HANGS_AFTER_SECONDS)
        if self.running:
            self.process.kill()
            self.process.join()
            return 1, "it did not end"
        assert self.process.exitcode is not None
        return self.process.exitcode, self.output.read_text() if self.output.exists() else ""

    @property
    def running(self) -> bool:
        return self.process.is_alive()


def _run_command(arguments: tuple[str, ...], output: Path, redirect: Redirect) -> None:
    redirect(output)
    sys.exit(cli.main(arguments))


def train(run_dir: Path, flags: tuple[str, ...]) -> Child:
    return Child((*COMMON, "--no-progress", *flags, "--run-dir", str(run_dir)), run_dir.with_suffix(".log"))


def resume(run_dir: Path, *flags: str) -> Child:
    return Child(("train", "--resume", str(run_dir), "--no-progress", *flags), run_dir.with_suffix(".log"))


def undisturbed(run_dir: Path, flags: tuple[str, ...]) -> float:
    """Make a run that nothing disturbs; return its seconds."""
    start = time.perf_counter()
    code, said = train(run_dir, flags).wait()
    if code:
        raise RuntimeError(f"the undisturbed run ended with {code}: {said}")
    return time.perf_counter() - start


def end_of(run_dir: Path) -> dict[str, Any]:
    """Return all that a run left but for times: sums of its tensors, counts, lines of metrics, summary, best policy."""
    manifest = checkpoint.read_manifest(checkpoint.find(run_dir, ("learner", "policy", "replay")))
    best = checkpoint.read_manifest(run_dir / "checkpoints" / "best")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        "files": manifest["files"],
        "exploration": manifest["exploration"],
        "progress": without_times(manifest["progress"]),
        "metrics": [without_times(line) for line in lines],
        "summary": without_times(json.loads((run_dir / "summary.json").read_text())),
        "best": [best["files"], best["evaluation"], best["timesteps"]],
    }


def without_times(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in TIMES}


def newest(run_dir: Path) -> int:
    """Return the transitions at the newest whole checkpoint; 0 if there is none."""
    steps = checkpoint.steps(run_dir / "checkpoints")
    return int(steps[-1].name.removeprefix(checkpoint.STEP_PREFIX)) if steps else 0


class Warnings(logging.Handler):
    """Listens to what sacfast warns of, inside a `with`."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())

    def __enter__(self) -> Warnings:
        logging.getLogger("sacfast").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("sacfast").removeHandler(self)
