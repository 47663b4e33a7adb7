"""Several seeds that learn side by side in one process."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_cases import Killed

from sacfast import SAC, cli, learn_together
from sacfast.callbacks import Callback
from sacfast.config import BACKENDS

SEEDS = (3, 4, 5)
TOTAL = 600
# Hopper falls within some twenty steps: its seeds do not store equally many transitions a step.
ENV_ID = "Hopper-v5"
SMALL: dict[str, Any] = {
    "hidden_sizes": (16,),
    "batch_size": 16,
    "replay_capacity": 500,
    "num_envs": 4,
    "learning_starts": 40,
    "utd_ratio": 0.5,
    "evaluation_episodes": 1,
    "evaluate_every": 200,
    "log_interval": 100,
    "checkpoint_every": 250,
    "torch_threads": 1,
    "progress": False,
}
TIMES = ("wall_seconds", "env_steps_per_second", "updates_per_second")


def small(seed: int, run_dir: Path | None = None, **fields: Any) -> SAC:
    return SAC(ENV_ID, **{**SMALL, "seed": seed, "run_dir": run_dir, **fields})


def rows_of(run_dir: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


def assert_same(model: SAC, other: SAC) -> None:
    """Bit for bit the same state and transitions, and the same lines of metrics."""
    states = [
        each.learner.state_dict() | each.policy.state_dict() | each.replay.state_dict() for each in (model, other)
    ]
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    first, second = model.train_config.run_dir, other.train_config.run_dir
    assert first is not None
    assert second is not None
    assert rows_of(first) == rows_of(second)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_seed_learns_as_if_alone(tmp_path: Path, backend: str) -> None:
    models = [small(seed, tmp_path / f"seed{seed}", backend=backend) for seed in SEEDS]
    learn_together(models, TOTAL)
    for seed, model in zip(SEEDS, models, strict=True):
        alone = small(seed, tmp_path / f"alone{seed}", backend=backend).learn(TOTAL)
        assert model.timesteps == TOTAL
        assert model.learner.gradient_updates == (TOTAL - 40) // 2
        assert model.summary is not None
        assert (model.summary["status"], model.summary["seed"]) == ("completed", seed)
        assert_same(model, alone)


class Fail(Callback):
    """Ends the run of one seed at a step: by an error, or by an answer."""

    def __init__(self, seed: int, step: int, error: BaseException | None = None) -> None:
        self.seed, self.step, self.error = seed, step, error

    def on_step(self, model: SAC, *_: Any) -> bool | None:
        if model.train_config.seed != self.seed or model.timesteps < self.step:
            return None
        if self.error is not None:
            raise self.error
        return False


def test_a_seed_that_fails_stops_none_of_the_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    models = [small(seed, tmp_path / f"seed{seed}") for seed in SEEDS]
    with pytest.raises(FloatingPointError, match="what went wrong"):
        learn_together(models, TOTAL, callbacks=[Fail(4, 150, FloatingPointError("what went wrong"))])
    summaries = [model.summary or {} for model in models]
    assert [summary["status"] for summary in summaries] == ["completed", "failed", "completed"]
    assert summaries[1]["total_timesteps"] < TOTAL
    assert "seed 4: what went wrong; the others go on" in caplog.text
    assert_same(models[0], small(3, tmp_path / "alone").learn(TOTAL))


def test_an_update_that_fails_ends_its_seed_alone(tmp_path: Path) -> None:
    models = [small(seed, tmp_path / f"seed{seed}") for seed in SEEDS[:2]]

    class Spoil(Callback):
        def on_step(self, model: SAC, *_: Any) -> None:
            if model is models[0] and model.timesteps > 100:
                model.replay.rows[:, -2] = torch.nan

    with pytest.raises(FloatingPointError, match="the minibatch holds NaN or infinity in: next_observation"):
        learn_together(models, TOTAL, callbacks=[Spoil()])
    assert [(model.summary or {})["status"] for model in models] == ["failed", "completed"]


def test_a_callback_ends_its_own_run_alone(tmp_path: Path) -> None:
    models = [small(seed, tmp_path / f"seed{seed}") for seed in SEEDS[:2]]
    learn_together(models, TOTAL, callbacks=[Fail(3, 150)])
    assert [(model.summary or {})["status"] for model in models] == ["stopped", "completed"]


def test_seeds_killed_together_go_on_bit_for_bit(tmp_path: Path) -> None:
    models = [small(seed, tmp_path / f"seed{seed}") for seed in SEEDS[:2]]
    with pytest.raises(Killed):
        learn_together(models, TOTAL, callbacks=[Fail(4, 333, Killed())])
    resumed = [SAC.resume(tmp_path / f"seed{seed}") for seed in SEEDS[:2]]
    assert [250 <= model.timesteps < 333 for model in resumed] == [True, True]
    learn_together(resumed)
    for seed, model in zip(SEEDS[:2], resumed, strict=True):
        assert_same(model, small(seed, tmp_path / f"whole{seed}").learn(TOTAL))


def test_ctrl_c_ends_all_of_them_and_they_go_on(tmp_path: Path) -> None:
    class Interrupt(Callback):
        def on_step(self, model: SAC, *_: Any) -> None:
            if model is models[1] and model.timesteps >= 300:
                signal.raise_signal(signal.SIGINT)

    models = [small(seed, tmp_path / f"seed{seed}") for seed in SEEDS[:2]]
    with pytest.raises(KeyboardInterrupt):
        learn_together(models, TOTAL, callbacks=[Interrupt()])
    assert [(model.summary or {})["status"] for model in models] == ["interrupted", "interrupted"]
    resumed = [SAC.resume(tmp_path / f"seed{seed}") for seed in SEEDS[:2]]
    assert [model.timesteps for model in resumed] == [model.timesteps for model in models]
    learn_together(resumed)
    assert [(model.summary or {})["status"] for model in resumed] == ["completed", "completed"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env_id": "Pendulum-v1"}, "models: expected one task, got 'Hopper-v5' and 'Pendulum-v1'"),
        ({"gamma": 0.5}, "learners: expected a group that differs in seeds alone"),
        ({"backend": "reference"}, "learners: expected a group that differs in seeds alone"),
    ],
)
def test_models_that_differ_in_more_than_seeds_are_refused(change: dict[str, Any], message: str) -> None:
    fields = {**SMALL, "env_id": ENV_ID, **change}
    models = [small(3), SAC(fields.pop("env_id"), **fields)]
    with pytest.raises(ValueError, match=message):
        learn_together(models, TOTAL)
    assert [model.timesteps for model in models] == [0, 0]


def test_no_model_and_the_same_one_twice_are_refused() -> None:
    model = small(3)
    for models in ([], [model, model]):
        with pytest.raises(ValueError, match="models: expected one or more, each once"):
            learn_together(models, TOTAL)


def test_replay_buffers_that_fit_one_by_one_but_not_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    models = [small(3), small(4)]
    monkeypatch.setattr("sacfast.memory.free_memory", lambda _: int(1.5 * models[0].replay.rows.nbytes))
    with pytest.raises(ValueError, match=r"num_seeds: 2 replay buffers need 0\.00 GB, but cpu has 0\.00 GB free"):
        learn_together(models, TOTAL)


def test_the_actions_that_a_run_keeps_must_fit_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint at the end alone holds all actions, 4 bytes each, and is written from a copy."""
    steps = 10_000_000
    models = [small(3, run_dir=tmp_path / str(every), checkpoint_every=every) for every in (0, 1000)]
    actions = 8 * steps * models[0].spec.action_dim
    free = models[0].replay.rows.nbytes + actions - 1
    monkeypatch.setattr("sacfast.memory.free_memory", lambda _: free)
    message = (
        r"replay_capacity: the replay buffer and the actions between checkpoints \(checkpoint_every\) need 0\.24 GB"
    )
    with pytest.raises(ValueError, match=message):
        models[0].learn(steps)
    monkeypatch.setattr("sacfast.trainer._Run", lambda *_: pytest.fail("it fits"))
    with pytest.raises(pytest.fail.Exception, match="it fits"):
        models[1].learn(steps)


def flags(**changes: Any) -> list[str]:
    settings = {**SMALL, "env_id": ENV_ID, "total_timesteps": TOTAL, "seed": 3, "hidden_sizes": 16, **changes}
    settings.pop("progress")
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in settings.items())
    return ["train", *(part for pair in pairs for part in pair), "--no-progress"]


def test_the_command_trains_seeds_resumes_them_and_plots_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    assert cli.main(flags(num_seeds=2, run_dir=run_dir)) == 0
    text = capsys.readouterr().out
    assert f"{ENV_ID} on cpu, fused backend, 2 seeds from 3, run directory {run_dir}" in text
    assert f"run directory: {run_dir / 'seed4'}" in text
    assert "2 seeds: return " in text
    assert sorted(path.name for path in run_dir.iterdir()) == ["seed3", "seed4"]
    alone = small(4, tmp_path / "alone").learn(TOTAL)
    assert rows_of(run_dir / "seed4") == rows_of(tmp_path / "alone")
    assert cli.main(["train", "--resume", str(run_dir), "--total-timesteps", str(TOTAL + 200), "--no-progress"]) == 0
    assert f"{run_dir / 'seed3'}: resumed after {TOTAL} transitions" in capsys.readouterr().out
    alone.learn(200)
    assert rows_of(run_dir / "seed4") == rows_of(tmp_path / "alone")
    assert cli.main(["plot", str(run_dir / "seed3"), str(run_dir / "seed4"), "--output", str(tmp_path)]) == 0
    picture = tmp_path / f"{ENV_ID}.png"
    assert cli.main(["plot", str(run_dir), "--output", str(tmp_path / "folder.png")]) == 0
    assert (tmp_path / "folder.png").read_bytes() == picture.read_bytes()


def test_the_command_evaluates_each_seed_and_their_mean(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = [small(seed, tmp_path / "run" / f"seed{seed}").learn(60) for seed in (3, 4, 11)]
    capsys.readouterr()
    assert cli.main(["evaluate", str(tmp_path / "run"), "--episodes", "2"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    means = [model.evaluate(2).mean for model in models]
    for line, model, mean in zip(lines, models, means, strict=True):
        assert line.startswith(f"{ENV_ID}: return {mean:.1f} +- ")
        assert f"; {tmp_path / 'run' / f'seed{model.train_config.seed}'}{os.sep}" in line
    assert last.startswith(f"3 seeds: return {np.mean(means):.1f} +- {np.std(means, ddof=1):.1f} (mean and standard")
    assert cli.main(["evaluate", str(tmp_path / "run"), "--video", str(tmp_path / "film.mp4")]) == cli.BAD_USAGE
    assert "video: expected one run to film, got the 3 seeds of" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "run" / "seed4" / "checkpoints")
    assert cli.main(["evaluate", str(tmp_path / "run")]) == cli.BAD_USAGE
    output = capsys.readouterr()
    assert output.out == ""
    assert "seed4: expected a checkpoint" in output.err


def test_the_command_refuses_no_seeds_and_runs_that_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(flags(num_seeds=0)) == cli.BAD_USAGE
    assert "num_seeds: expected an int >= 1, got 0" in capsys.readouterr().err
    (tmp_path / "seed4").mkdir()
    (tmp_path / "seed4" / "metrics.jsonl").write_text("{}\n")
    assert cli.main(flags(num_seeds=2, run_dir=tmp_path)) == cli.BAD_USAGE
    assert "already holds a run" in capsys.readouterr().err
