"""Callbacks: code of the user's own at every step, update and evaluation of a training run, which it can end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from sacfast.envs import EpisodeStatistics
from sacfast.evaluate import EvaluationResult
from sacfast.types import Metrics, Transition

if TYPE_CHECKING:
    from sacfast.trainer import SAC


class Callback:
    """What `SAC.learn(callbacks=[...])` calls. Override what is needed; a method that returns False ends the run,
    one that returns True or None does not, and anything else is a TypeError.

    A run ended so is whole: its last transitions are stored, its files written, and `learn` returns as usual, with
    status "stopped" in the summary. What a callback remembers is its own: a checkpoint does not hold it.
    """

    def on_step(self, model: SAC, transition: Transition, episodes: EpisodeStatistics) -> bool | None:
        """See one step of the environments: N valid transitions and the episodes that ended. Do not write to them."""

    def on_update(self, model: SAC, metrics: Metrics) -> bool | None:
        """See one gradient update. To be called at each, updates are then made one by one, with the same results."""

    def on_evaluation(self, model: SAC, result: EvaluationResult) -> bool | None:
        """See an evaluation."""


def as_callbacks(callbacks: Callback | Iterable[Callback]) -> tuple[Callback, ...]:
    """Return the callbacks that a user gave: one, or several.

    Raises:
        TypeError: something among them is no callback.
    """
    if isinstance(callbacks, Callback):
        return (callbacks,)
    if not isinstance(callbacks, Iterable):
        raise TypeError(f"callbacks: expected a sacfast.callbacks.Callback or a list of them, {_got(callbacks)}")
    found = tuple(callbacks)
    for index, each in enumerate(found):
        if not isinstance(each, Callback):
            raise TypeError(f"callbacks[{index}]: expected a sacfast.callbacks.Callback, {_got(each)}")
    return found


def overriding(callbacks: tuple[Callback, ...], method: str) -> tuple[Callback, ...]:
    """Return those that override `method`, in their class or themselves: the others cost nothing."""
    inherited = getattr(Callback, method)
    return tuple(each for each in callbacks if getattr(getattr(each, method), "__func__", None) is not inherited)


def asks_to_stop(callback: Callback, method: str, answer: object) -> bool:
    """Say whether what a callback's method has returned ends the run.

    Raises:
        TypeError: it is neither a bool, of Python or NumPy, nor None.
    """
    if answer is None:
        return False
    if not isinstance(answer, bool | np.bool_):
        raise TypeError(
            f"{type(callback).__name__}.{method}: expected it to return True, False or None, got {answer!r}"
        )
    return not answer


def _got(value: object) -> str:
    name = getattr(value, "__qualname__", "")
    if isinstance(value, type) and issubclass(value, Callback):
        return f"got the class {name}; make one of it: {name}()"
    kind = f"{type(value).__name__} {name}" if name else repr(value)
    return f"got {kind}; make a subclass of Callback that overrides on_step, on_update or on_evaluation"
