"""What a user does to a model beside `learn` loses no run: rows and updates of his own, a written policy, a length."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from run_cases import Killed

from sacfast import SAC, checkpoint
from sacfast.callbacks import Callback

BACKENDS = ("fused", "reference")


def small(run_dir: Path | None, env_id: str = "Pendulum-v1", **fields: Any) -> SAC:
    settings = {
        **{"num_envs": 2, "hidden_sizes": (8,), "batch_size": 8, "learning_starts": 20, "replay_capacity": 500},
        **{"evaluation_episodes": 0, "checkpoint_every": 0, "progress": False, "torch_threads": 1},
    }
    return SAC(env_id, run_dir=run_dir, **{**settings, **fields})


def demonstrations(count: int) -> tuple[Any, ...]:
    rng = np.random.default_rng(0)
    rows = lambda *shape: rng.uniform(-1, 1, shape).astype(np.float32)  # noqa: E731
    return rows(count, 3), rows(count, 1), rows(count), rows(count, 3), np.zeros(count, np.bool_)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_and_updates_of_the_users_own(tmp_path: Path, backend: str) -> None:
    model = small(tmp_path, backend=backend)
    model.replay.add(*demonstrations(100))
    model.learner.update(model.replay, 50)
    model.learn(60)
    assert model.learner.gradient_updates == 50 + 40  # one for each transition after learning_starts, as ever
    resumed = SAC.resume(tmp_path)
    assert (resumed.timesteps, len(resumed.replay)) == (60, 160)
    resumed.learner.update(resumed.replay, 5)
    resumed.learn(20)
    assert resumed.learner.gradient_updates == 90 + 5 + 20
    assert SAC.resume(tmp_path).learner.gradient_updates == 115


def test_a_state_of_another_learner(tmp_path: Path) -> None:
    other = small(None).learn(60)
    model = small(tmp_path)
    model.learner.load_state_dict(other.learner.state_dict())
    model.learn(60)
    assert model.learner.gradient_updates == 40 + 40
    assert SAC.resume(tmp_path).timesteps == 60


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_run_that_failed_in_its_second_update(tmp_path: Path, backend: str) -> None:
    model = small(tmp_path, backend=backend, actor_lr=1e20, critic_lr=1e20)
    with pytest.raises(FloatingPointError):
        model.learn(60)
    if checkpoint.steps(tmp_path / "checkpoints"):  # what was finite could be saved
        assert SAC.resume(tmp_path).timesteps == model.timesteps


def test_a_policy_that_is_written_before_a_stop_is_saved(tmp_path: Path) -> None:
    class Stop(Callback):
        def on_step(self, *_: Any) -> bool:
            return False

    model = small(tmp_path, learning_starts=200).learn(40)
    with torch.no_grad():
        model.learner.actor.flat.mul_(0.5)
    model.learn(2, callbacks=[Stop()])
    assert torch.equal(SAC.resume(tmp_path).learner.actor.flat, model.learner.actor.flat)


def test_a_longer_run_that_is_killed_keeps_its_length(tmp_path: Path) -> None:
    class Kill(Callback):
        def on_step(self, model: SAC, *_: Any) -> None:
            if model.timesteps == 100:
                raise Killed

    small(tmp_path).learn(60)
    with pytest.raises(Killed):
        SAC.resume(tmp_path, total_timesteps=200).learn(callbacks=[Kill()])
    assert SAC.resume(tmp_path).learn().timesteps == 200


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    small(tmp_path).learn(40)
    with pytest.raises(ValueError, match="seed: expected none, for another seed is another run, got 5"):
        SAC.resume(tmp_path, seed=5)


def test_a_loaded_model_is_there_when_its_run_is_killed_at_once(tmp_path: Path) -> None:
    class Kill(Callback):
        def on_step(self, *_: Any) -> None:
            raise Killed

    saved = small(None).learn(60).save(tmp_path / "saved")
    loaded = SAC.load(saved, run_dir=tmp_path / "run")
    with pytest.raises(Killed):
        loaded.learn(60, callbacks=[Kill()])
    resumed = SAC.resume(tmp_path / "run")
    assert torch.equal(resumed.learner.actor.flat, SAC.load(saved).learner.actor.flat)
    assert resumed.learn().timesteps == 120


class Flaky(gymnasium.Env[np.ndarray, np.ndarray]):
    """An environment that needs a service, which may be gone."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    is_gone = False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        if Flaky.is_gone:
            raise ConnectionError("no answer")
        return np.zeros(1, np.float32), 1.0, False, False, {}


def test_an_environment_that_fails_on_the_way_costs_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(gymnasium.registry, "Flaky-v0", gymnasium.envs.registration.EnvSpec("Flaky-v0", Flaky))
    small(tmp_path, "Flaky-v0", checkpoint_every=40, learning_starts=100).learn(60)
    monkeypatch.setattr(Flaky, "is_gone", True)
    with caplog.at_level(logging.WARNING, "sacfast"):
        resumed = SAC.resume(tmp_path)
    assert resumed.timesteps == 60
    assert "an environment failed: Flaky-v0: environment 0 raised ConnectionError in step()" in caplog.text
    assert "of its episode: no answer" in caplog.text
    monkeypatch.setattr(Flaky, "is_gone", False)
    assert resumed.learn(20).timesteps == 80
    assert not list((tmp_path / "checkpoints").glob("*.damaged"))


def test_what_failed_first_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fail(Callback):
        def on_step(self, *_: Any) -> None:
            raise KeyError("mine")

    model = small(tmp_path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save", full)
    monkeypatch.setattr("sacfast.metrics.MetricsLogger.write_summary", full)
    with pytest.raises(KeyError, match="mine"):
        model.learn(60, callbacks=[Fail()])
