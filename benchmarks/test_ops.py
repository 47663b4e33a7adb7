"""The ops at their small sizes beside plain torch: python -m pytest benchmarks/ --benchmark-only.

`sacfast benchmark ops` times the same contenders in turns, and is what figures come from.
"""

from __future__ import annotations

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from sacfast.benchmark.bench_ops import CASES
from sacfast.benchmark.harness import Contender


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a test each contender of each case; the group is the case."""
    small = {name: make("cpu") for name, make in CASES.items() if not name.endswith(("_large", "_1e6"))}
    contenders = [
        pytest.param(call, marks=pytest.mark.benchmark(group=f"{case.op} {case.size}"), id=f"{name}-{way}")
        for name, case in small.items()
        for way, call in case.contenders.items()
    ]
    metafunc.parametrize("contender", contenders)


def test_op(contender: Contender, benchmark: BenchmarkFixture) -> None:
    benchmark(contender)
