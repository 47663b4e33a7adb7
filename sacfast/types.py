"""The data that flows between the parts: what an environment yields, what a learner consumes and reports.

Shape letters, used everywhere: N environments' rows, B batch rows, O observation size, A action size.
Actions are in [-1, 1]^A everywhere except at the environment's own border (see `envs`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch

FloatArray = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
BoolArray = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
IntArray = np.ndarray[tuple[int, ...], np.dtype[np.int64]]

ACTION_LIMIT = 1.0 + 1e-6
"""Largest |action| that is accepted. tanh of a float32 may round a few units in the last place beyond 1; what lies
beyond this is a fault of the caller."""


class Transition(NamedTuple):
    """N valid transitions on the host. A reset row of an auto-resetting environment is never among them."""

    observation: FloatArray  # [N, O]
    action: FloatArray  # [N, A], in [-1, 1]
    reward: FloatArray  # [N], unscaled
    next_observation: FloatArray  # [N, O]; at an episode's end the true final observation
    terminated: BoolArray  # [N]; a time limit is not a termination: it bootstraps


class Batch(NamedTuple):
    """A minibatch of transitions on the learner's device."""

    observation: torch.Tensor  # [B, O] float32
    action: torch.Tensor  # [B, A] float32, in [-1, 1]
    reward: torch.Tensor  # [B] float32, unscaled
    next_observation: torch.Tensor  # [B, O] float32
    terminated: torch.Tensor  # [B] float32, 0 or 1


class Metrics(Mapping[str, float]):
    """Named means over the gradient updates of one `learner.update` call, or of several.

    The values stay on the learner's device until one is read, so that a loop that does not look does not
    wait for the device.
    """

    def __init__(self, names: tuple[str, ...], values: torch.Tensor) -> None:
        """Take `values` [len(names)], in the order of `names`."""
        if values.shape != (len(names),):
            raise ValueError(f"values: expected shape ({len(names)},) for {names}, got {tuple(values.shape)}")
        self._names = names
        self._values = values

    def __getitem__(self, name: str) -> float:
        """Return one mean; waits for the device."""
        try:
            index = self._names.index(name)
        except ValueError:
            raise KeyError(name) from None
        return float(self._values[index])

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of metrics."""
        return len(self._names)

    def rounded(self) -> Metrics:
        """Return the same means in float32."""
        return Metrics(self._names, self._values.float())

    def joined(self, count: int, other: Metrics, other_count: int) -> Metrics:
        """Return the means over the `count` updates of this one and the `other_count` of another together."""
        values = (count * self._values.to(other._values.device) + other_count * other._values) / (count + other_count)
        return Metrics(self._names, values)

    def to_dict(self) -> dict[str, float]:
        """Return all means as Python floats with one wait for the device."""
        return dict(zip(self._names, self._values.tolist(), strict=True))
