"""Contenders in processes of their own, of which one works at a time.

Torch, JAX and MKL each bring thread pools and an OpenMP that are sized once and disturb each other in one process. So
each contender has a process, with the number of threads in its environment and its cores fixed from the start. How
long idle threads spin is left to each library's default: to forbid it costs eager torch a third of its speed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, Self

from sacfast.benchmark.problems import TrainProblem, UpdateProblem
from sacfast.benchmark.report import ROOT

SETTLE_SECONDS = 0.25
"""Between two turns: Intel's OpenMP lets its threads spin for 0.2 s after the work, others for less."""

TAIL = 2000  # characters of a failed worker's messages


class Absent(Exception):
    """A contender that cannot take part; the message says why."""


class Worker:
    """A process with one contender that works when it is told to, and else sleeps."""

    def __init__(self, name: str, problem: UpdateProblem | TrainProblem, threads: int) -> None:
        """Start the process and wait until the contender is ready, which may take minutes of compiling.

        Raises Absent.
        """
        benchmark = "update" if isinstance(problem, UpdateProblem) else "train"
        module = [sys.executable, "-P", "-m", "sacfast.benchmark.worker"]
        device = problem.device if isinstance(problem, UpdateProblem) else "cpu"
        environment = {"JAX_PLATFORMS": device.partition(":")[0]}
        if (ROOT / "csrc").is_dir():  # a source tree, which need not be installed
            environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment |= {f"{library}_NUM_THREADS": str(threads) for library in ("OMP", "MKL", "OPENBLAS")}
        self._name = name
        self._folder = tempfile.TemporaryDirectory()  # for what it says, and what its libraries leave behind
        self._log = Path(self._folder.name) / "messages"
        with self._log.open("w") as messages:
            self._process = subprocess.Popen(
                [*module, benchmark, name, str(threads), json.dumps(asdict(problem))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=messages,
                text=True,
                env={**os.environ, **environment},
                cwd=self._folder.name,
            )
        try:
            answer = self._read()
            if "absent" in answer:
                raise Absent(answer["absent"])
            self.versions: dict[str, str] = answer["ready"]
            self.others: list[float] = []  # for each turn the share of the cores that other processes had
        except BaseException:
            self.close()
            raise

    def rate(self, seconds: float) -> float:
        """Let the contender work for about that long; return how much it did per second."""
        answer = self._ask(f"run {seconds}")
        self.others.append(float(answer["others"]))
        return float(answer["amount"]) / float(answer["seconds"])

    def profile(self, updates: int) -> list[dict[str, Any]] | None:
        """Return the phases of so many updates, None for a contender without a profile."""
        phases: list[dict[str, Any]] | None = self._ask(f"profile {updates}")["phases"]
        return phases

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        """Return the worker."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        self.close()

    def _ask(self, line: str) -> dict[str, Any]:
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # of a process that has ended: `_read` says why
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name}: its process ended: {self._log.read_text()[-TAIL:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


class Team(NamedTuple):
    """The contenders that are ready, and why others are not."""

    workers: dict[str, Worker]
    absent: dict[str, str]

    def versions(self) -> dict[str, str]:
        """Return the versions of what the contenders have installed beside this package's dependencies."""
        return {name: version for worker in self.workers.values() for name, version in worker.versions.items()}

    def others(self) -> list[float]:
        """Return for each turn the share of the contender's cores that other processes had: what disturbed."""
        return [share for worker in self.workers.values() for share in worker.others]


@contextmanager
def open_team(names: Iterable[str], problem: UpdateProblem | TrainProblem, threads: int) -> Iterator[Team]:
    """Start the contenders one after the other; end them all on leaving."""
    with ExitStack() as stack:
        team = Team({}, {})
        for name in names:
            try:
                team.workers[name] = stack.enter_context(Worker(name, problem, threads))
            except Absent as reason:
                team.absent[name] = str(reason)
        yield team


def take_turns(workers: Mapping[str, Worker], rounds: int, seconds: float) -> dict[str, list[float]]:
    """Let every worker work once a round, alone; return their rates, one a round. Who begins changes each round."""
    order = list(workers)
    rates: dict[str, list[float]] = {name: [] for name in order}
    for _ in range(rounds):
        for name in order:
            time.sleep(SETTLE_SECONDS)
            rates[name].append(workers[name].rate(seconds))
        order.append(order.pop(0))
    return rates
