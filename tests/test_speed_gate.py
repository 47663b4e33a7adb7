"""The speed gate: its statistics, with workers whose speed is known."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
import pytest

from benchmarks import speed_gate
from benchmarks.builds import Build, build_commit
from benchmarks.speed_gate import DEFAULT, LOOKS, Process, Verdict, decide, median_interval, pair_ratio, selected
from benchmarks.speed_worker import CASES, OPS, _ops, seconds_of_one


class FakeWorker:
    """Takes `cost` seconds of a clock that drifts for both alike, with noise and now and then a long disturbance."""

    def __init__(self, cost: float, clock: list[float], random: np.random.Generator) -> None:
        self.cost, self._clock, self._random = cost, clock, random

    def seconds(self, slice_seconds: float) -> float:
        self._clock[0] *= 1.01
        disturbance = 5.0 if self._random.random() < 0.05 else 1.0
        return self.cost * self._clock[0] * disturbance * math.exp(0.05 * self._random.standard_normal())

    def close(self) -> None:
        pass


def pairs(slowdown: float, seed: int) -> Callable[[], float]:
    """Return what gives the ratio of a pair: of a new build that takes `slowdown` times as long."""
    random = np.random.default_rng(seed)

    def next_ratio() -> float:
        clock = [1.0]
        place = np.exp(0.01 * random.standard_normal(2))  # of each process, for as long as it lives
        base, new = FakeWorker(place[0], clock, random), FakeWorker(slowdown * place[1], clock, random)
        return pair_ratio(base, new, least_rounds=12, pair_seconds=0.0, slice_seconds=0.0)

    return next_ratio


def test_a_slowed_build_fails() -> None:
    found = decide(pairs(1.10, seed=1), limit=1.03, deadline=math.inf)
    assert found.is_slower(1.03)
    assert found.low < 1.10 < found.high
    assert found.pairs < LOOKS[-1]  # decided early


def test_a_build_beside_itself_is_at_one() -> None:
    verdicts = [decide(pairs(1.0, seed), limit=1.03, deadline=math.inf) for seed in range(40)]
    # 5 % of the intervals may lie beside the truth: more than 7 of 40 do so once in 10,000 times.
    assert sum(not found.low <= 1.0 <= found.high for found in verdicts) <= 7
    assert not any(found.is_slower(1.03) for found in verdicts)
    assert sum(found.is_within(1.03) for found in verdicts) > 20


def test_a_faster_build_passes() -> None:
    found = decide(pairs(0.9, seed=3), limit=1.03, deadline=math.inf)
    assert found.high < 1.0
    assert found.says(1.03) == "at most 1.03"


def test_at_the_deadline_nothing_is_claimed() -> None:
    ratios = iter([0.9, 1.1] * 50)
    found = decide(lambda: next(ratios), limit=1.03, deadline=time.monotonic() - 1)
    assert found == Verdict(1.0, 0.9, 1.1, LOOKS[0])
    assert not found.is_slower(1.03)
    assert "not decided" in found.says(1.03)


@pytest.mark.parametrize(
    ("count", "error", "rank"), [(6, 0.05, 1), (8, 0.05, 1), (9, 0.05, 2), (20, 0.05, 6), (60, 0.05, 22)]
)
def test_the_interval_is_the_textbook_s(count: int, error: float, rank: int) -> None:
    """Ranks from tables of the sign test, such as Conover, Practical Nonparametric Statistics."""
    values = [float(value) for value in range(1, count + 1)]
    assert median_interval(values[::-1], error) == (rank, count + 1 - rank)


def test_too_few_values_have_no_interval() -> None:
    assert median_interval([1.0] * 5, 0.05) == (-math.inf, math.inf)
    assert median_interval([1.0] * LOOKS[0], speed_gate.ERROR) == (1.0, 1.0)  # the first look has one


def test_the_interval_covers_the_median_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = [low <= 1.0 <= high for low, high in (
        median_interval(np.exp(random.standard_normal(20)).tolist(), 0.05) for _ in range(2000)
    )]  # fmt: skip
    assert 0.94 < np.mean(covered) < 0.975  # 0.959 is exact for 20 values; its standard error is 0.0045


def test_names_choose_cases() -> None:
    assert selected(DEFAULT) == list(DEFAULT)
    assert selected(["update-256"]) == ["update-256-1", "update-256-2"]
    assert selected(["op"]) == [f"op-{name}" for name in OPS]
    with pytest.raises(ValueError, match=r"cases: expected some of update-256-1.*got 'updat'"):
        selected(["updat"])


def test_a_unit_of_work_is_timed_without_the_first_piece() -> None:
    pieces = iter([0.05, *[0.002] * 1000])

    def work() -> float:
        time.sleep(next(pieces))
        return 2.0

    assert 0.001 <= seconds_of_one(work, 0.02) < 0.02  # a busy machine sleeps longer, 0.05 / 2 it does not


def test_every_op_is_measured_and_runs() -> None:
    work = _ops()
    assert set(work) == set(OPS)
    for call in work.values():
        call()


def test_a_process_works_and_one_that_fails_is_an_error() -> None:
    build = Build("these sources", speed_gate.WORKER.parents[1], speed_gate.WORKER.parent)
    worker = Process(build, "op-polyak")
    try:
        assert 0 < worker.seconds(0.001) < 1
    finally:
        worker.close()
    assert "op-no" not in CASES
    missing = Process(build, "op-no")
    try:
        with pytest.raises(RuntimeError, match="op-no of these sources: its process ended with 1"):
            missing.wait()
    finally:
        missing.close()


def test_a_base_that_is_no_commit_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="base: expected a commit of this repository, got 'no-such-commit'"):
        build_commit("no-such-commit")
    assert speed_gate.main(["--base", "HEAD", "--cases", "none"]) == 1
    assert "got 'none'" in capsys.readouterr().err


def test_too_few_cores_are_an_error() -> None:
    """On fewer cores than threads another thing would be measured."""
    code = (
        "import os, sys; os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1]);"
        "sys.path.insert(0, '.'); sys.argv = ['worker', 'update-256-2'];"
        "from benchmarks.speed_worker import main; main()"
    )
    root = speed_gate.WORKER.parents[1]
    result = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "update-256-2: expected 2 cores, this process may use 1" in result.stderr
