"""Times contenders side by side, in rounds.

A machine's clock and load drift by more than what is to be measured. So every contender is timed once a round, within
milliseconds of the others, and a comparison is the spread over the rounds of a ratio taken inside each round.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

Contender = Callable[[], object]


@dataclass(frozen=True)
class Settings:
    """How to measure."""

    device: str = "cpu"
    threads: int = 2  # of torch's CPU operators
    rounds: int = 50
    warmup_rounds: int = 3
    sample_milliseconds: float = 5.0  # a sample is as many calls as take about this long

    def __post_init__(self) -> None:
        """Raise ValueError for a value out of range."""
        for name, lowest in (("threads", 1), ("rounds", 1), ("warmup_rounds", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name}: expected an int >= {lowest}, got {getattr(self, name)}")
        if not 0 < self.sample_milliseconds < math.inf:
            raise ValueError(f"sample_milliseconds: expected a float > 0, got {self.sample_milliseconds}")


@dataclass(frozen=True)
class Spread:
    """The 20th, 50th and 80th percentile over the rounds."""

    p20: float
    p50: float
    p80: float

    @classmethod
    def of(cls, values: np.ndarray[Any, Any] | list[float]) -> Spread:
        """Take one value a round; percentiles between two values are interpolated linearly."""
        return cls(*(float(value) for value in np.percentile(values, (20, 50, 80))))

    def to_dict(self, scale: float = 1.0) -> dict[str, float]:
        """Return the three numbers by name, multiplied by `scale`."""
        return {name: value * scale for name, value in asdict(self).items()}


class Rounds:
    """Contenders and the seconds that a call of each took, round by round."""

    def __init__(self, contenders: Mapping[str, Contender], settings: Settings) -> None:
        """Find out how many calls of each contender make a sample."""
        self._contenders = dict(contenders)
        self._synchronize = torch.cuda.synchronize if settings.device.startswith("cuda") else _nothing
        sample = settings.sample_milliseconds * 1e-3
        self._calls = {name: self._calls_for(call, sample) for name, call in self._contenders.items()}
        self._order = list(self._contenders)
        self.seconds: dict[str, list[float]] = {name: [] for name in self._contenders}

    def run_one(self) -> None:
        """Time every contender once. Who begins changes each round, so that nobody always follows the same one."""
        collecting = gc.isenabled()
        gc.disable()
        try:
            for name in self._order:
                calls = self._calls[name]
                self.seconds[name].append(self._time(self._contenders[name], calls) / calls)
        finally:
            if collecting:
                gc.enable()
        self._order.append(self._order.pop(0))

    def keep_last(self, rounds: int) -> None:
        """Forget all but the last rounds: those before were for warming up."""
        self.seconds = {name: values[-rounds:] for name, values in self.seconds.items()}

    def spread(self, name: str) -> Spread:
        """Return the seconds of one call."""
        return Spread.of(self.seconds[name])

    def ratio(self, slow: str, fast: str) -> Spread:
        """Return how many times longer `slow` took than `fast`, taken in each round."""
        return Spread.of(np.divide(self.seconds[slow], self.seconds[fast]))

    def _calls_for(self, call: Contender, sample_seconds: float) -> int:
        calls = 1
        while (seconds := self._time(call, calls)) < sample_seconds / 4:
            calls *= 2
        return max(1, round(calls * sample_seconds / seconds))

    def _time(self, call: Contender, calls: int) -> float:
        self._synchronize()
        start = time.perf_counter()
        for _ in range(calls):
            call()
        self._synchronize()
        return time.perf_counter() - start


def _nothing() -> None:
    """Wait for nothing: operators on the CPU are done when they return."""
