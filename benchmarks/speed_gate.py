"""The speed gate: whether the sources as they lie are slower than a commit.

    python -m benchmarks.speed_gate --base COMMIT          # `make speed-gate BASE=COMMIT CASES="update collect"`

The two builds work in turns, each in a process of its own, on the same cores, in short slices: a round is base, new,
new, base, or the other way round, and gives one ratio of times, new / base. Where the memory of a process lies makes
the same build faster or slower by a percent or more for as long as the process lives. So a pair of processes gives one
value, the median over its rounds, and new pairs are started until the case is decided.

The result is the median of the pairs' values. Its interval is between two order statistics: it holds the true median
with a probability of 95 % over all looks together, for a case is looked at more than once (`LOOKS`). The gate fails,
with exit code 1, where an interval lies wholly above --limit. "at most" is printed where it lies wholly below.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benchmarks.builds import Build, build_commit, build_working_tree
from benchmarks.speed_worker import CASES
from sacfast.benchmark.report import provenance

WORKER = Path(__file__).with_name("speed_worker.py")
DEFAULT = ("update-256-1", "update-256-2")
SLICE_SECONDS = 0.04
PAIR_SECONDS = 4.0  # a pair works about as long as its start takes
LEAST_ROUNDS = 6  # of a pair, however long its pieces of work take
LOOKS = (8, 12, 18, 27, 40, 60)  # pairs; the last is the end
ERROR = 0.05 / len(LOOKS)  # of each look, so that all looks together are wrong with a probability of 5 % at most


class Worker(Protocol):
    """What works for one build."""

    def seconds(self, slice_seconds: float) -> float:
        """Work for about that long; return the seconds of a unit of work."""
        ...

    def close(self) -> None:
        """End."""
        ...


class Process:
    """A worker in a process of its own: see `speed_worker`."""

    def __init__(self, build: Build, case: str) -> None:
        """Start, and do not wait until it is ready."""
        self._name = f"{case} of {build.name}"
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), case],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=build.environment(),
        )
        self._is_ready = False

    def seconds(self, slice_seconds: float) -> float:
        """Work; RuntimeError where the process has ended."""
        assert self._process.stdin is not None
        if not self._is_ready:
            self.wait()
        self._process.stdin.write(f"{slice_seconds}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def wait(self) -> None:
        """Wait until it can work; RuntimeError where it cannot."""
        if not self._is_ready and self._answer() != "ready":
            raise RuntimeError(f"{self._name}: did not say that it is ready")
        self._is_ready = True

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._name}: its process ended with {self._process.wait()}; its message is above")
        return line.strip()


@dataclass(frozen=True)
class Verdict:
    """What is known of a case: of the time of the new build / the time of the base."""

    ratio: float
    low: float
    high: float
    pairs: int

    def is_slower(self, limit: float) -> bool:
        """Whether it is proven that the ratio is above the limit."""
        return self.low > limit

    def is_within(self, limit: float) -> bool:
        """Whether it is proven that the ratio is at most the limit."""
        return self.high <= limit

    def says(self, limit: float) -> str:
        """Return it in words."""
        if self.is_slower(limit):
            return f"SLOWER than {limit:g}"
        return f"at most {limit:g}" if self.is_within(limit) else "not decided: measure longer"


def median_interval(values: Sequence[float], error: float) -> tuple[float, float]:
    """Return an interval that holds the median of what `values` are drawn from, but for a probability of `error`.

    It assumes nothing of the distribution: fewer than r of n values lie below the median with the probability of fewer
    than r heads in n throws of a coin. Infinite where the values are too few.
    """
    count, ordered = len(values), sorted(values)
    rank, below = 0, 0.0  # below: the probability that fewer than `rank` values lie below the median
    while rank <= count // 2 and below + math.comb(count, rank) / 2**count <= error / 2:
        below += math.comb(count, rank) / 2**count
        rank += 1
    return (ordered[rank - 1], ordered[count - rank]) if rank else (-math.inf, math.inf)


def pair_ratio(base: Worker, new: Worker, least_rounds: int, pair_seconds: float, slice_seconds: float) -> float:
    """Let both work in turns; return the median over the rounds of time of new / time of base."""
    ratios: list[float] = []
    end = time.monotonic() + pair_seconds
    while len(ratios) < least_rounds or time.monotonic() < end:
        order = (base, new, new, base) if len(ratios) % 2 else (new, base, base, new)  # a drift falls on both alike
        times: dict[int, float] = {id(base): 0.0, id(new): 0.0}
        for worker in order:
            times[id(worker)] += worker.seconds(slice_seconds)
        ratios.append(times[id(new)] / times[id(base)])
    return float(np.median(ratios))


def decide(next_ratio: Callable[[], float], limit: float, deadline: float) -> Verdict:
    """Take the ratios of pairs until the case is decided, or until the deadline, of `time.monotonic`.

    At least the pairs of the first look are taken: fewer have no interval.
    """
    ratios: list[float] = []
    while True:
        ratios.append(next_ratio())
        is_over = len(ratios) >= LOOKS[0] and time.monotonic() > deadline
        if len(ratios) in LOOKS or is_over:
            found = Verdict(float(np.median(ratios)), *median_interval(ratios, ERROR), len(ratios))
            if is_over or len(ratios) == LOOKS[-1] or found.is_slower(limit) or found.is_within(limit):
                return found


def measure(base: Build, new: Build, case: str, limit: float, deadline: float) -> Verdict:
    """Measure a case of two builds."""

    def next_ratio() -> float:
        workers: list[Process] = []
        try:
            for build in (base, new):
                workers.append(Process(build, case))
                workers[-1].wait()
            return pair_ratio(workers[0], workers[1], LEAST_ROUNDS, PAIR_SECONDS, SLICE_SECONDS)
        finally:
            for worker in workers:
                worker.close()

    return decide(next_ratio, limit, deadline)


def selected(names: Sequence[str]) -> list[str]:
    """Return the cases of these names; "op" stands for all that begin with "op-". ValueError where there is none."""
    found: dict[str, None] = {}
    for name in names:
        matching = [case for case in CASES if case == name or case.startswith(f"{name}-")]
        if not matching:
            raise ValueError(f"cases: expected some of {', '.join(CASES)}, or what they begin with, got {name!r}")
        found |= dict.fromkeys(matching)
    return list(found)


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 1 where a case is proven slower, or could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed_gate", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--base", metavar="COMMIT", required=True)
    parser.add_argument("--cases", nargs="*", default=[], help=f"some of {', '.join(CASES)}; default: {DEFAULT}")
    parser.add_argument("--limit", type=float, default=1.03, help="of time of new / time of base (default 1.03)")
    parser.add_argument("--minutes", type=float, default=5.0, help="at most about that long for a case (default 5)")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the results as JSON")
    options = parser.parse_args(arguments)
    results: dict[str, Any] = {}
    try:
        cases = selected(options.cases or DEFAULT)
        base, new = build_commit(options.base), build_working_tree()
        print(f"time of the working tree / time of {base.name}", flush=True)
        for case in cases:
            found = measure(base, new, case, options.limit, time.monotonic() + 60 * options.minutes)
            results[case] = {
                **asdict(found),
                "says": found.says(options.limit),
                "slower": found.is_slower(options.limit),
            }
            interval = f"[{found.low:.3f}, {found.high:.3f}]"
            print(
                f"{case:20} {found.ratio:.3f} {interval} {found.pairs:3} pairs  {found.says(options.limit)}", flush=True
            )
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    if options.output is not None:
        told = {"base": base.name, "limit": options.limit, "confidence": 0.95, "cases": results}
        options.output.write_text(json.dumps(provenance(f"speed_gate {options.base}") | told, indent=1) + "\n")
    return 1 if any(result["slower"] for result in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
