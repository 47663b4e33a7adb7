"""Runs to resume: small ones, ways to cut them short, and what makes two of them the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from sacfast import SAC, checkpoint
from sacfast.callbacks import Callback

SMALL: dict[str, Any] = {
    "hidden_sizes": (16,),
    "batch_size": 16,
    "replay_capacity": 700,  # the ring is full before the run ends
    "num_envs": 4,
    "learning_starts": 40,
    "utd_ratio": 0.25,
    "evaluation_episodes": 1,
    "evaluate_every": 300,
    "log_interval": 100,
    "checkpoint_every": 200,
    "torch_threads": 1,
    "progress": False,
}
TOTAL = 1000
UPDATES = (TOTAL - 40) // 4
TIMES = ("wall_seconds", "env_steps_per_second", "updates_per_second")


class Killed(BaseException):
    """Ends a run as kill -9 does: nothing more is written."""


class KillAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, model: SAC, *_: Any) -> None:
        if model.timesteps >= self.step:
            raise Killed


def small(run_dir: Path | None = None, env_id: str = "Pendulum-v1", **fields: Any) -> SAC:
    return SAC(env_id, **{**SMALL, "run_dir": run_dir, **fields})


def killed(run_dir: Path, step: int, total: int = TOTAL, **fields: Any) -> Path:
    with pytest.raises(Killed):
        small(run_dir, **fields).learn(total, callbacks=[KillAt(step)])
    return run_dir


def without_times(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in TIMES}


def read_rows(run_dir: Path) -> list[dict[str, Any]]:
    return [without_times(json.loads(line)) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def everything(model: SAC) -> dict[str, torch.Tensor]:
    state = {f"learner.{name}": value for name, value in model.learner.state_dict().items()}
    state |= {f"policy.{name}": value for name, value in model.policy.state_dict().items()}
    return state | {f"replay.{name}": value.clone() for name, value in model.replay.state_dict().items()}


def assert_same_run(first: SAC, second: SAC) -> None:
    """Bit for bit the same state, streams, replay, metrics and summary; and what either would do next."""
    one, other = everything(first), everything(second)
    assert set(one) == set(other)
    assert [name for name in one if not torch.equal(one[name], other[name])] == []
    assert first._exploration.bit_generator.state == second._exploration.bit_generator.state
    directories = first.train_config.run_dir, second.train_config.run_dir
    assert read_rows(directories[0]) == read_rows(directories[1])
    assert without_times(first.summary or {}) == without_times(second.summary or {})
    names = [sorted(path.name for path in (each / "checkpoints").iterdir()) for each in directories]
    assert names[0] == names[1]
    for name in names[0]:
        (tensors, manifest), (other_tensors, other_manifest) = (
            checkpoint.load(each / "checkpoints" / name) for each in directories
        )
        assert manifest.get("evaluation") == other_manifest.get("evaluation")
        assert without_times(manifest.get("progress", {})) == without_times(other_manifest.get("progress", {}))
        assert set(tensors) == set(other_tensors)
        for group in tensors:
            assert [
                key for key in tensors[group] if not torch.equal(tensors[group][key], other_tensors[group][key])
            ] == []
