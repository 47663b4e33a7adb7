"""Callbacks: code of the user's own at every step, update and evaluation of a training run, which it can end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sacfast.envs import EpisodeStatistics
from sacfast.evaluate import EvaluationResult
from sacfast.types import Metrics, Transition

if TYPE_CHECKING:
    from sacfast.trainer import SAC


class Callback:
    """What `SAC.learn(callbacks=[...])` calls. Override what is needed; a method that returns False ends the run.

    A run ended so is whole: its last transitions are stored, its files written, and `learn` returns as usual, with
    status "stopped" in the summary. What a callback remembers is its own: a checkpoint does not hold it.
    """

    def on_step(self, model: SAC, transition: Transition, episodes: EpisodeStatistics) -> bool | None:
        """See one step of the environments: N valid transitions and the episodes that ended. Do not write to them."""

    def on_update(self, model: SAC, metrics: Metrics) -> bool | None:
        """See one gradient update. To be called at each, updates are then made one by one, with the same results."""

    def on_evaluation(self, model: SAC, result: EvaluationResult) -> bool | None:
        """See an evaluation."""


def overriding(callbacks: tuple[Callback, ...], method: str) -> tuple[Callback, ...]:
    """Return those that override `method`: the others cost nothing."""
    return tuple(each for each in callbacks if getattr(type(each), method) is not getattr(Callback, method))
