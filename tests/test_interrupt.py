"""A run that a signal or a callback stops at any moment, and that goes on, is the run that nothing disturbed."""

import json
import logging
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from run_cases import TOTAL, KillAt, Killed, assert_same_run, everything, read_rows, small, without_times

from sacfast import SAC, checkpoint, learn_together
from sacfast.callbacks import Callback
from sacfast.config import BACKENDS
from sacfast.rollout import Rollout

Press = Callable[[], bool | None]


def ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def answer_false() -> bool:
    return False


class Drift(gymnasium.Env):
    """A point that drifts with noise of its own; on request it also drifts with what all instances have done."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    repeats: ClassVar[bool] = True
    steps: ClassVar[int] = 0
    press_at: ClassVar[int] = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = self.np_random.standard_normal(2).astype(np.float32)
        return self.state, {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        Drift.steps += 1
        if Drift.steps == Drift.press_at:
            ctrl_c()
        noise = self.np_random.standard_normal(2) + (0 if Drift.repeats else 1e-6 * Drift.steps)
        self.state = (0.9 * self.state + 0.1 * action + 0.1 * noise).astype(np.float32)
        return self.state, -float(np.abs(self.state).sum()), bool(self.state[0] > 1.5), False, {}


gymnasium.register("sacfast_test/Drift-v0", entry_point=Drift, max_episode_steps=37, disable_env_checker=True)


@pytest.fixture
def drift() -> Iterator[type[Drift]]:
    Drift.repeats, Drift.steps, Drift.press_at = True, 0, -1
    yield Drift
    Drift.repeats, Drift.press_at = True, -1


class At(Callback):
    """Stops the run at some steps, by a signal or an answer."""

    def __init__(self, steps: set[int], press: Press = ctrl_c) -> None:
        self.steps, self.press = steps, press

    def on_step(self, model: SAC, *_: Any) -> bool | None:
        return self.press() if model.timesteps in self.steps else None


class AtUpdates(Callback):
    """Stops the run behind some updates."""

    def __init__(self, updates: set[int], press: Press = ctrl_c) -> None:
        self.updates, self.press = updates, press

    def on_update(self, model: SAC, *_: Any) -> bool | None:
        return self.press() if model.learner.gradient_updates in self.updates else None


class AtEvaluation(Callback):
    def __init__(self, press: Press) -> None:
        self.press = press

    def on_evaluation(self, *_: Any) -> bool | None:
        return self.press()


class OneByOne(Callback):
    """Has updates made one by one, as any callback that sees them does."""

    def on_update(self, *_: Any) -> None:
        pass


def left(model: SAC, total: int) -> int | None:
    """What to give `learn` so that the run ends after `total` transitions; it may lack the end's evaluation alone."""
    return total - model.timesteps or None


def finish(model: SAC, *callbacks: Callback, total: int = TOTAL, again: Callable[[SAC], SAC] | None = None) -> SAC:
    """Take a run up again and again, by `again`, until it has its length and nothing stops it."""
    again = again or (lambda model: SAC.resume(model.train_config.run_dir))
    stops = 0
    while True:
        try:
            model.learn(left(model, total), callbacks=callbacks)
        except KeyboardInterrupt:
            assert (model.summary or {})["status"] == "interrupted"
        if (model.summary or {})["status"] == "completed":
            assert stops
            return model
        stops += 1
        model = again(model)


ENVIRONMENTS: list[dict[str, Any]] = [{"env_id": "Pendulum-v1"}, {"env_id": "sacfast_test/Drift-v0"}]
VARIANTS: list[dict[str, Any]] = [
    *({"backend": backend, **env} for backend in BACKENDS for env in ENVIRONMENTS),
    {"utd_ratio": 0.3, "learning_starts": 450, "checkpoint_every": 0},
    {"deterministic_policy": True, "alpha": 0.0, "num_envs": 3},  # noise of torch's generator
    {"evaluate_every": 0, "log_interval": 250, "checkpoint_every": 333},
    {
        "env_id": "Hopper-v5",
        "checkpoint_every": 330,
    },  # falls: steps store fewer transitions than there are environments
]
# Of the first step, of one before learning starts, of lines of metrics, evaluations and regular checkpoints.
SPECIAL = {4, 36, 40, 44, 100, 200, 204, 300, 400, 600, TOTAL - 4, TOTAL}


def run(run_dir: Path | None, **fields: Any) -> SAC:
    return small(run_dir, **{"keep_checkpoints": 1, **fields})


@pytest.mark.usefixtures("drift")
@pytest.mark.parametrize("fields", VARIANTS, ids=str)
@pytest.mark.parametrize("press", [ctrl_c, answer_false])
def test_stopped_at_any_step_and_resumed_it_is_the_whole_run(
    tmp_path: Path, fields: dict[str, Any], press: Press
) -> None:
    # A total that the steps do not meet exactly cuts the last one, where both end.
    undisturbed = run(tmp_path / "whole", **fields).learn(TOTAL)
    steps = SPECIAL | set(random.Random(str(fields)).sample(range(TOTAL), 60))
    at = At(steps, press)

    def again(model: SAC) -> SAC:
        at.steps -= {model.timesteps}  # the next `learn` gets past it
        return SAC.resume(tmp_path / "cut")

    assert_same_run(undisturbed, finish(run(tmp_path / "cut", **fields), at, again=again))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("press", [ctrl_c, answer_false])
def test_stopped_between_the_updates_of_a_step(tmp_path: Path, backend: str, press: Press) -> None:
    """Several stops at one step, and the step's action was chosen before all of its updates."""
    fields = {"backend": backend, "utd_ratio": 1.0, "checkpoint_every": 100, "evaluate_every": 150}
    undisturbed = run(tmp_path / "whole", **fields).learn(304, callbacks=[OneByOne()])
    stops = set(range(1, 14)) | {56, 57, 60, 61, 111, 160, 161, 162, 163, 258, 262, 264}
    resumed = finish(run(tmp_path / "cut", **fields), AtUpdates(stops, press), total=304)
    assert_same_run(undisturbed, resumed)


def end_early(model: SAC, calls: set[int]) -> SAC:
    """Let a signal come during some calls of the learner, which then make only some of their updates, or none."""
    update, count = model.learner.update, 0

    def shorter(replay: Any, gradient_steps: int, *rest: Any) -> Any:
        nonlocal count
        count += 1
        if count in calls:
            ctrl_c()
            gradient_steps = gradient_steps * (count % 3) // 3
        return update(replay, gradient_steps, *rest)

    model.learner.update = shorter  # type: ignore[method-assign]
    return model


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_call_of_the_learner_that_a_signal_cuts_short(tmp_path: Path, backend: str) -> None:
    """Means over the updates of a call that was cut, and of its rest, are those of the whole call."""
    fields = {"backend": backend, "utd_ratio": 10.0, "log_interval": 4, "checkpoint_every": 60, "evaluate_every": 50}
    undisturbed = run(tmp_path / "whole", **fields).learn(120)
    calls = {1, 2, 3}
    resumed = finish(
        end_early(run(tmp_path / "cut", **fields), calls),
        total=120,
        again=lambda _: end_early(SAC.resume(tmp_path / "cut"), {number + 1 for number in calls}),
    )
    assert_same_run(undisturbed, resumed)


@pytest.mark.parametrize("press", [ctrl_c, answer_false])
def test_stopped_at_every_evaluation(tmp_path: Path, press: Press) -> None:
    fields = {"checkpoint_every": 300}  # due behind the evaluation at which the run is stopped
    undisturbed = run(tmp_path / "whole", **fields).learn(TOTAL)
    assert_same_run(undisturbed, finish(run(tmp_path / "cut", **fields), AtEvaluation(press)))


def test_the_line_and_the_evaluation_of_a_stop_are_not_left_in_the_metrics(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path).learn(TOTAL, callbacks=[At({300})])
    assert [row["step"] for row in read_rows(tmp_path)] == [100, 200, 300]
    assert "eval_return_mean" not in read_rows(tmp_path)[-1]
    resumed = SAC.resume(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        resumed.learn(callbacks=[At({348})])
    rows = read_rows(tmp_path)
    assert [row["step"] for row in rows] == [100, 200, 300, 348]
    assert "eval_return_mean" in rows[2]


@pytest.mark.parametrize("run_dir", [True, False])
def test_learning_again_after_ctrl_c_in_one_process(tmp_path: Path, run_dir: bool) -> None:
    one, other = (tmp_path / name if run_dir else None for name in ("whole", "cut"))
    undisturbed = run(one).learn(TOTAL)
    stops = SPECIAL - {TOTAL}
    at = At(set(stops))

    def again(model: SAC) -> SAC:
        at.steps -= {model.timesteps}
        return model

    learned = finish(run(other), at, again=again)
    if run_dir:
        assert_same_run(undisturbed, learned)
    states = everything(undisturbed), everything(learned)
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []


def test_killed_behind_a_stop(tmp_path: Path) -> None:
    undisturbed = run(tmp_path / "whole").learn(TOTAL)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut").learn(TOTAL, callbacks=[At({348})])
    for _ in range(2):
        with pytest.raises(Killed):
            SAC.resume(tmp_path / "cut").learn(callbacks=[KillAt(390)])
    assert_same_run(undisturbed, SAC.resume(tmp_path / "cut").learn())


def test_seeds_stopped_together_are_the_whole_runs(tmp_path: Path) -> None:
    seeds = (3, 4)
    at = At({36, 148, 300, 556})

    def folders(name: str) -> list[Path]:
        return [tmp_path / f"{name}{seed}" for seed in seeds]

    models = [run(folder, seed=seed) for folder, seed in zip(folders("cut"), seeds, strict=True)]
    total: int | None = TOTAL
    while not all((model.summary or {}).get("status") == "completed" for model in models):
        try:
            learn_together(models, total, callbacks=[at])
        except KeyboardInterrupt:
            at.steps -= {model.timesteps for model in models}
            models, total = [SAC.resume(folder) for folder in folders("cut")], None
    for folder, seed, model in zip(folders("whole"), seeds, models, strict=True):
        assert_same_run(run(folder, seed=seed).learn(TOTAL), model)


@pytest.mark.parametrize("first", [4, 40, 148, 200, 300, 500, 996])
@pytest.mark.parametrize("in_process", [True, False])
def test_a_run_made_longer_is_the_long_run(tmp_path: Path, first: int, in_process: bool) -> None:
    undisturbed = run(tmp_path / "whole").learn(TOTAL)
    model = run(tmp_path / "longer").learn(first)
    longer = (model if in_process else SAC.resume(tmp_path / "longer")).learn(TOTAL - first)
    states = everything(undisturbed), everything(longer)
    assert [name for name in states[0] if not torch.equal(states[0][name], states[1][name])] == []
    # Its lines are those of the long run, and one for its first end.
    expected = {row["step"]: row for row in read_rows(tmp_path / "whole")}
    found = {row["step"]: row for row in read_rows(tmp_path / "longer")}
    assert set(found) - set(expected) <= {first}
    del found[first]
    assert all(found[step] == row for step, row in expected.items() if step != first)


def test_a_run_that_ended_in_the_middle_of_a_step_goes_on_with_fresh_environments(tmp_path: Path) -> None:
    """Environments have then made transitions that the run does not have."""
    in_process = run(tmp_path / "one").learn(250).learn(TOTAL - 250)
    run(tmp_path / "other").learn(250)
    assert not (checkpoint.find(tmp_path / "other") / "environments.safetensors").exists()
    resumed = SAC.resume(tmp_path / "other")
    assert resumed.environment_steps == 0
    assert_same_run(in_process, resumed.learn(TOTAL - 250))


# ---- Environments that do not come back -------------------------------------------------------------------------


def stopped(run_dir: Path, step: int = 348, **fields: Any) -> Path:
    with pytest.raises(KeyboardInterrupt):
        run(run_dir, **fields).learn(TOTAL, callbacks=[At({step})])
    return run_dir


def test_how_many_steps_are_made_again_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stopped(tmp_path)
    with caplog.at_level(logging.INFO, "sacfast"):
        assert SAC.resume(tmp_path).environment_steps == (348 - 200) // 4
    assert "Pendulum-v1: stepping the environments to where they were: 37 steps" in caplog.text


def test_an_environment_that_does_not_repeat_itself_is_named(
    tmp_path: Path, drift: type[Drift], caplog: pytest.LogCaptureFixture
) -> None:
    drift.repeats = False
    stopped(tmp_path, env_id="sacfast_test/Drift-v0")
    resumed = SAC.resume(tmp_path)
    assert "sacfast_test/Drift-v0: the environments do not repeat themselves" in caplog.text
    assert "fresh environments, not bit for bit" in caplog.text
    assert (resumed.timesteps, resumed.environment_steps) == (348, 0)
    assert resumed.learn().timesteps == TOTAL


def test_an_interrupt_while_the_environments_are_stepped_again_changes_nothing(
    tmp_path: Path, drift: type[Drift]
) -> None:
    fields = {"env_id": "sacfast_test/Drift-v0"}
    undisturbed = run(tmp_path / "whole", **fields).learn(TOTAL)
    stopped(tmp_path / "cut", **fields)
    before = {path: path.read_bytes() for path in (tmp_path / "cut").rglob("*") if path.is_file()}
    drift.press_at = drift.steps + 50
    with pytest.raises(KeyboardInterrupt):
        SAC.resume(tmp_path / "cut")
    assert {path: path.read_bytes() for path in (tmp_path / "cut").rglob("*") if path.is_file()} == before
    assert_same_run(undisturbed, SAC.resume(tmp_path / "cut").learn())


def test_asynchronous_environments_are_opened_anew_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(tmp_path, env_batch_size=2)
    resumed = SAC.resume(tmp_path)
    assert "env_batch_size: which of the environments answer first is chance" in caplog.text
    assert resumed.learn().timesteps == TOTAL


def test_other_settings_of_the_environments_are_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stopped(tmp_path)
    resumed = SAC.resume(tmp_path, num_envs=2)
    assert "num_envs was 4, is 2: the run goes on with fresh environments, not bit for bit" in caplog.text
    assert resumed.learn().timesteps == TOTAL


def test_a_checkpoint_of_the_second_schema_is_resumed_with_fresh_environments(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stopped(tmp_path)
    path = checkpoint.find(tmp_path)
    manifest = json.loads((path / "manifest.json").read_text()) | {"schema_version": 2}
    for part in (manifest["files"], manifest["sizes"]):
        del part["environments.safetensors"]
    (path / "environments.safetensors").unlink()
    for name in ("reported", "checkpointed", "updates_met", "updates_cut"):
        del manifest["progress"][name]
    manifest["progress"]["env_generation"] += 1
    manifest["manifest_sha256"] = checkpoint._manifest_sha256(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))
    resumed = SAC.resume(tmp_path)
    assert (resumed.timesteps, resumed.environment_steps) == (348, 0)
    assert resumed.learn().timesteps == TOTAL
    steps = [row["step"] for row in read_rows(tmp_path)]
    assert steps == [100, 200, 300, 348, *range(400, TOTAL + 1, 100)]


def test_a_damaged_log_of_actions_is_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    stopped(tmp_path, keep_checkpoints=2)
    path = checkpoint.find(tmp_path) / "environments.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    assert SAC.resume(tmp_path).timesteps == 200
    assert f"checkpoint passed over: {path}" in caplog.text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"actions": torch.zeros(3, 4, 2)}, r"expected .*\[3, 4, 1\].* got .*\[3, 4, 2\]"),
        ({"actions": torch.zeros(())}, "expected .* got"),
        ({"observation": torch.zeros(4, 3, dtype=torch.float64)}, r"got .*torch.float64 \[4, 3\]"),
        ({"steps": torch.tensor(7)}, "expected 0 actions to be of as many steps, or one fewer, got 7"),
        ({"steps": torch.tensor(-1)}, "got -1"),
        ({"more": torch.tensor(7)}, "got .*'more'"),
    ],
)
def test_a_log_of_actions_of_another_form_is_refused(change: dict[str, torch.Tensor], message: str) -> None:
    from sacfast.envs import make_env

    rollout = Rollout(make_env("Pendulum-v1", 4, 1), keeps_actions=True)
    with pytest.raises(ValueError, match=f"environments: .*{message}"):
        rollout.restep(rollout.state_dict() | change)
    assert rollout.restep(rollout.state_dict())


def test_a_step_that_a_callback_saw_before_it_failed_is_stored(tmp_path: Path) -> None:
    class Fail(Callback):
        def on_step(self, model: SAC, *_: Any) -> None:
            if model.timesteps == 148:
                raise RuntimeError("of the user's own")

    model = run(tmp_path)
    with pytest.raises(RuntimeError, match="of the user's own"):
        model.learn(TOTAL, callbacks=[Fail()])
    assert model.timesteps == len(model.replay) == 148


def test_a_run_whose_only_checkpoint_was_being_replaced_is_found(tmp_path: Path) -> None:
    stopped(tmp_path / "cut", 148)
    path = checkpoint.find(tmp_path / "cut")
    path.rename(path.with_name(f"{path.name}.old"))  # killed between the two renames of a second save at this step
    shutil.copytree(path.with_name(f"{path.name}.old"), path.with_name(f"{path.name}.tmp"))
    resumed = SAC.resume(tmp_path / "cut")
    assert resumed.timesteps == 148
    assert_same_run(run(tmp_path / "whole").learn(TOTAL), resumed.learn())


def test_the_summary_of_a_stop_and_of_the_end(tmp_path: Path) -> None:
    stopped(tmp_path, 300)
    assert json.loads((tmp_path / "summary.json").read_text())["eval_episodes"] == 0
    resumed = SAC.resume(tmp_path).learn()
    assert without_times(json.loads((tmp_path / "summary.json").read_text())) == without_times(resumed.summary or {})
