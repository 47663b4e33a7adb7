"""What may be given as a callback, and what it may answer. What callbacks see is in test_resume.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sacfast import SAC
from sacfast.callbacks import Callback

SMALL: dict[str, Any] = {
    "hidden_sizes": (16,),
    "batch_size": 16,
    "replay_capacity": 500,
    "num_envs": 4,
    "learning_starts": 20,
    "evaluation_episodes": 1,
    "torch_threads": 1,
    "progress": False,
}


def small(run_dir: Path | None = None) -> SAC:
    return SAC("Pendulum-v1", run_dir=run_dir, **SMALL)


class Silent(Callback):
    """Answers nothing."""


def test_one_callback_need_not_be_in_a_list_and_may_answer_by_numpy() -> None:
    stop = type("Stop", (Callback,), {"on_step": lambda _, model, *__: np.bool_(model.timesteps < 60)})()
    assert 60 <= small().learn(100, callbacks=stop).timesteps < 70


def test_a_method_set_on_the_callback_itself_is_called() -> None:
    stop = Callback()
    stop.on_step = lambda *_: False  # type: ignore[method-assign]
    assert small().learn(100, callbacks=[stop]).timesteps < 20


def stop_at_once(*_: object) -> bool:
    return False


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([stop_at_once], r"callbacks\[0\]: .*, got function stop_at_once; make a subclass of Callback"),
        (stop_at_once, "callbacks: expected a sacfast.callbacks.Callback or a list of them, got function stop_at_once"),
        ([Callback(), None], r"callbacks\[1\]: .*, got None"),
        (Silent, r"got the class Silent; make one of it: Silent\(\)"),
        ([Silent], r"callbacks\[0\]: .* Silent\(\)"),
        (7, "callbacks: expected .* got 7"),
    ],
)
def test_what_is_no_callback_is_refused_before_the_first_step(callbacks: Any, message: str) -> None:
    model = small()
    with pytest.raises(TypeError, match=message):
        model.learn(100, callbacks=callbacks)
    assert model.timesteps == 0


@pytest.mark.parametrize("answer", [0, "stop", np.zeros(2)])
@pytest.mark.parametrize("method", ["on_step", "on_update", "on_evaluation"])
def test_an_answer_that_is_neither_yes_nor_no_ends_the_run_by_name(method: str, answer: Any, tmp_path: Path) -> None:
    unclear = type("Unclear", (Callback,), {method: lambda *_: answer})()
    with pytest.raises(TypeError, match=f"Unclear.{method}: expected it to return True, False or None, got "):
        small(tmp_path).learn(100, callbacks=[unclear])
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"
