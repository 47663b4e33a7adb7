"""One gradient update, fused and in eager torch: python -m pytest benchmarks/ --benchmark-only.

`sacfast benchmark update` times more contenders, in turns and beside the processor's peak.
"""

from __future__ import annotations

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from sacfast import ReplayBuffer, SACConfig, make_learner

OBSERVATION_DIM, ACTION_DIM, CAPACITY = 17, 6, 10_000  # HalfCheetah's sizes

SIZES = {"64-64, batch 64": (64, 64), "256-256, batch 256": (256, 256)}
"""Hidden units of both layers, and batch size."""


@pytest.fixture(scope="module")
def replay() -> ReplayBuffer:
    buffer = ReplayBuffer(CAPACITY, OBSERVATION_DIM, ACTION_DIM)
    random = torch.Generator().manual_seed(0)
    observation, next_observation = torch.randn(2, CAPACITY, OBSERVATION_DIM, generator=random)
    action = torch.rand(CAPACITY, ACTION_DIM, generator=random) * 2 - 1
    reward, terminated = torch.randn(CAPACITY, generator=random), torch.zeros(CAPACITY, dtype=torch.bool)
    buffer.add(observation, action, reward, next_observation, terminated)
    return buffer


@pytest.mark.parametrize("backend", ["fused", "reference"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", SIZES)
def test_update(size: str, threads: int, backend: str, replay: ReplayBuffer, benchmark: BenchmarkFixture) -> None:
    benchmark.group = f"update {size}, threads {threads}"
    units, batch_size = SIZES[size]
    config = SACConfig(hidden_sizes=(units, units), batch_size=batch_size)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        learner = make_learner(OBSERVATION_DIM, ACTION_DIM, config=config, backend=backend)
        benchmark(learner.update, replay, 1)
    finally:
        torch.set_num_threads(before)
    assert learner.gradient_updates > 0
