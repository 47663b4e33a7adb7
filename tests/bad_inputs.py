"""What tests of bad input share: tensors, threads, learners, and the modes that a caller may be in."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import A, O, make_config
from torch import Tensor

from sacfast.fused import FusedLearner
from sacfast.reference import ReferenceLearner


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def in_threads(*works: Callable[[], None]) -> None:
    workers = [threading.Thread(target=work) for work in works]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)


WIDTH = 2 * O + A + 2
"""Of a row of the replay buffer: x, a, r, x', terminated."""

Learner = FusedLearner | ReferenceLearner
LEARNERS: dict[str, Callable[..., Learner]] = {
    "fused": lambda options=None: FusedLearner(O, A, make_config(options), seed=1),
    "reference": lambda options=None: ReferenceLearner(O, A, make_config(options), seed=1),
    "reference, plain ops": lambda options=None: ReferenceLearner(O, A, make_config(options, fused_ops=False), seed=1),
}
every_learner = pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS.keys())


def modes() -> dict[str, Callable[[], AbstractContextManager[Any]]]:
    return {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    }


def transitions(count: int, start: int = 0) -> list[np.ndarray]:
    """Fields whose every entry is their transition's number; of the action, a thousandth of it."""
    number = np.arange(start, start + count, dtype=np.float32)
    wide, narrow = np.repeat(number[:, None], O, 1), np.repeat(number[:, None] / 1000, A, 1)
    return [wide, narrow, number, wide.copy(), np.ones(count, np.bool_)]
