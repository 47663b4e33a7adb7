"""Checkpoints of a run, its exact resume, and what a run does when it is killed, told to stop, or cannot write."""

import json
import math
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from run_cases import SMALL, TOTAL, UPDATES, KillAt, Killed, assert_same_run, everything, killed, read_rows, small

from sacfast import SAC, checkpoint, cli
from sacfast.callbacks import Callback
from sacfast.checkpoint import CheckpointError
from sacfast.config import BACKENDS
from sacfast.lock import RunLock
from sacfast.rollout import Rollout


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> SAC:
    """A run that nothing disturbed."""
    return small(tmp_path_factory.mktemp("whole") / "run").learn(TOTAL)


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return killed(tmp_path_factory.mktemp("killed") / "run", 555)


@pytest.fixture
def cut(tmp_path: Path, killed_once: Path) -> Path:
    """A run that was killed after 555 transitions, with checkpoints at 200 and 400: a copy to work on."""
    return Path(shutil.copytree(killed_once, tmp_path / "cut"))


VARIANTS: list[dict[str, Any]] = [
    *({"backend": backend} for backend in BACKENDS),
    {"utd_ratio": 0.3, "learning_starts": 450, "replay_capacity": 5000},  # killed among random actions
    {"deterministic_policy": True, "alpha": 0.0},  # noise of torch's generator
    {"backend": "reference", "fused_ops": False},
]


@pytest.mark.parametrize("fields", VARIANTS, ids=str)
def test_a_killed_run_goes_on_bit_for_bit(tmp_path: Path, fields: dict[str, Any]) -> None:
    undisturbed = small(tmp_path / "whole", **fields).learn(TOTAL)
    killed(tmp_path / "cut", 555, **fields)
    assert read_rows(tmp_path / "cut")[-1]["step"] == 500  # more than the checkpoint at 400 holds
    resumed = SAC.resume(tmp_path / "cut")
    assert resumed.timesteps == 400
    assert resumed.learn().timesteps == TOTAL
    assert_same_run(undisturbed, resumed)


def test_a_run_killed_many_times_goes_on_bit_for_bit(tmp_path: Path, whole: SAC) -> None:
    killed(tmp_path / "cut", 290)
    for step in (350, 410, 799, 805, TOTAL):
        with pytest.raises(Killed):
            SAC.resume(tmp_path / "cut").learn(callbacks=[KillAt(step)])
    assert_same_run(whole, SAC.resume(tmp_path / "cut").learn())


def test_a_finished_run_can_be_made_longer(tmp_path: Path, whole: SAC) -> None:
    """As a run that was that long from the start, for its end was at a checkpoint of the long one."""
    small(tmp_path / "half").learn(400)
    longer = SAC.resume(tmp_path / "half").learn(TOTAL - 400)
    states = everything(whole), everything(longer)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    again = SAC.resume(tmp_path / "half")  # nothing is left to do: it ends as it had ended
    assert again.learn().timesteps == TOTAL
    assert_same_run(longer, again)


def test_a_length_that_the_run_has_is_refused_before_environments_are_stepped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(tmp_path).learn(250)  # after which a resumed run steps its environments as often as they were since 200
    with monkeypatch.context() as patch:
        patch.setattr(Rollout, "restep", lambda *_: pytest.fail("the environments were stepped"))
        for total in (249, 250):
            message = f"total_timesteps: expected more than the 250 transitions that the run has, got {total}"
            with pytest.raises(ValueError, match=message):
                SAC.resume(tmp_path, total_timesteps=total)
    assert SAC.resume(tmp_path, total_timesteps=251).learn().timesteps == 251


def test_a_checkpoint_is_read_and_the_directory_locked_once(cut: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Path] = []
    read, lock = checkpoint.read_manifest, RunLock.__init__

    def read_manifest(directory: Path) -> dict[str, Any]:
        calls.append(directory)
        return read(directory)

    def make_lock(self: RunLock, run_dir: Path) -> None:
        calls.append(run_dir)
        lock(self, run_dir)

    monkeypatch.setattr(checkpoint, "read_manifest", read_manifest)
    monkeypatch.setattr(RunLock, "__init__", make_lock)
    SAC.resume(cut)
    assert calls == [cut, cut / "checkpoints" / checkpoint.step_name(400)]


def test_a_run_without_a_checkpoint_yet_starts_anew(
    tmp_path: Path, whole: SAC, caplog: pytest.LogCaptureFixture
) -> None:
    killed(tmp_path / "cut", 150)
    assert not (tmp_path / "cut" / "checkpoints").exists()
    (tmp_path / "cut" / "checkpoints" / f"{checkpoint.step_name(200)}.tmp").mkdir(parents=True)
    resumed = SAC.resume(tmp_path / "cut").learn()
    assert "no checkpoint yet: the run starts anew" in caplog.text
    assert_same_run(whole, resumed)


def test_a_run_may_move(tmp_path: Path, whole: SAC, cut: Path) -> None:
    cut.rename(tmp_path / "moved")
    assert_same_run(whole, SAC.resume(tmp_path / "moved").learn())
    assert not cut.exists()


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    small(tmp_path, keep_checkpoints=3).learn(TOTAL)
    kept = [checkpoint.step_name(step) for step in (600, 800, 1000)]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["best", *kept]
    returns = {row["step"]: row["eval_return_mean"] for row in read_rows(tmp_path) if "eval_return_mean" in row}
    assert list(returns) == [300, 600, 900, 1000]
    manifest = checkpoint.read_manifest(tmp_path / "checkpoints" / "best")
    assert returns[manifest["timesteps"]] == max(returns.values()) == manifest["evaluation"]["eval_return_mean"]
    best = SAC.load(tmp_path / "checkpoints" / "best")
    assert best.evaluate(1).mean == max(returns.values())


def test_without_the_replay_buffer_a_run_cannot_be_resumed(tmp_path: Path) -> None:
    model = small(tmp_path, checkpoint_replay=False).learn(300)
    assert not list(tmp_path.rglob("replay*"))
    with pytest.raises(CheckpointError, match=r"expected a group 'replay', got only \['learner.*', 'policy.*'\]"):
        SAC.resume(tmp_path)
    assert SAC.load(tmp_path).timesteps == model.timesteps


def test_a_saved_model_is_no_run(tmp_path: Path) -> None:
    small(None).learn(80).save(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"expected a run directory with config\.json"):
        SAC.resume(tmp_path / "model")


def test_checkpoints_that_cut_every_episode_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small(tmp_path / "often").learn(240)
    assert "checkpoint_every: 200 transitions are 50 steps of each of 4 environments" in caplog.text
    caplog.clear()
    assert small(tmp_path / "default", checkpoint_every=None).learn(240).checkpoint_every == 100_000
    assert small(checkpoint_every=None, num_envs=64).checkpoint_every == 10 * 64 * 200
    assert caplog.text == ""


# ---- Damaged and foreign checkpoints ----------------------------------------------------------------------------


def cut_file(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def pickle_instead(path: Path) -> None:
    torch.save({"weights": torch.ones(3)}, path)


@pytest.mark.parametrize("damage", [cut_file, flip_bit, pickle_instead, Path.unlink])
@pytest.mark.parametrize("name", ["learner", "policy", "replay", "manifest"])
def test_a_damaged_checkpoint_is_passed_over(
    cut: Path, whole: SAC, damage: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    newest, older = (cut / "checkpoints" / checkpoint.step_name(step) for step in (400, 200))
    damage(newest / f"{name}.{'json' if name == 'manifest' else 'safetensors'}")
    resumed = SAC.resume(cut)
    assert resumed.timesteps == 200
    assert f"checkpoint passed over: {newest}" in caplog.text
    assert f"{name}." in caplog.text
    assert f"taken instead: {older}" in caplog.text
    resumed.learn()
    shutil.rmtree(cut / "checkpoints" / f"{newest.name}.damaged")
    assert_same_run(whole, resumed)


def test_a_flipped_bit_of_a_manifest_is_seen_or_harmless(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path / "model", {"learner": {"x": torch.ones(2)}}, {"timesteps": 5})
    before, content = checkpoint.read_manifest(path), (path / "manifest.json").read_bytes()
    seen = 0
    for position in range(len(content)):
        for bit in (position % 8, (position + 3) % 8):
            changed = bytearray(content)
            changed[position] ^= 1 << bit
            (path / "manifest.json").write_bytes(changed)
            try:
                assert checkpoint.read_manifest(path) == before  # white space, or one space for another
            except CheckpointError:
                seen += 1
    assert seen > 1.7 * len(content)


def test_when_all_are_damaged_nothing_is_done(cut: Path) -> None:
    for path in cut.glob("checkpoints/step_*/learner.safetensors"):
        flip_bit(path)
    before = sorted(path.name for path in cut.rglob("*"))
    with pytest.raises(CheckpointError, match=r"found no checkpoint that can be taken: .*0400.*sha256.*0200.*sha256"):
        SAC.resume(cut)
    assert sorted(path.name for path in cut.rglob("*")) == before


def test_a_run_whose_checkpoints_lost_their_manifests_does_not_start_anew(cut: Path) -> None:
    for path in cut.glob("checkpoints/*/manifest.json"):
        path.unlink()
    with pytest.raises(CheckpointError, match=r"found no checkpoint that can be taken: .*manifest\.json, found none"):
        SAC.resume(cut)


def test_the_checkpoint_of_another_run_is_not_taken(
    tmp_path: Path, cut: Path, caplog: pytest.LogCaptureFixture
) -> None:
    small(tmp_path / "other", seed=2, gamma=0.9).learn(600)
    name = checkpoint.step_name(600)
    shutil.copytree(tmp_path / "other" / "checkpoints" / name, cut / "checkpoints" / name)
    assert SAC.resume(cut).timesteps == 400
    assert "seed is 1, of the checkpoint 2; gamma is 0.99, of the checkpoint 0.9" in caplog.text


def test_the_checkpoint_of_another_task_is_refused(tmp_path: Path) -> None:
    small(tmp_path / "run").learn(200)
    with pytest.raises(CheckpointError, match="env_id: the checkpoint is of 'Pendulum-v1', got 'Hopper-v5'"):
        SAC.load(tmp_path / "run", env_id="Hopper-v5")
    path = checkpoint.find(tmp_path / "run")
    tensors, manifest = checkpoint.load(path)
    for key in ("format", "schema_version", "files", "sizes", "manifest_sha256"):
        del manifest[key]
    manifest["env"]["action_high"] = [3.0]
    checkpoint.save(path, tensors, manifest)
    with pytest.raises(
        CheckpointError, match=r"the task is another than was saved: action_high was \[3.0\], is \[2.0\]"
    ):
        SAC.resume(tmp_path / "run")


def test_a_checkpoint_of_the_first_schema_is_loaded_but_not_resumed(tmp_path: Path) -> None:
    model = small(tmp_path / "run").learn(200)
    path = checkpoint.find(tmp_path / "run")
    manifest = json.loads((path / "manifest.json").read_text())
    for key in ("sizes", "manifest_sha256", "progress", "exploration", "torch_threads"):
        del manifest[key]
    manifest |= {"schema_version": 1, "files": {"learner.safetensors": manifest["files"]["learner.safetensors"]}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    observation = np.ones((3, 3))
    np.testing.assert_array_equal(SAC.load(path).predict(observation), model.predict(observation))
    with pytest.raises(CheckpointError, match="schema_version 2"):
        SAC.resume(tmp_path / "run")


def test_a_changed_version_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    small(tmp_path).learn(200)
    SAC.resume(tmp_path)
    assert caplog.text == "" or "may not go on bit for bit" not in caplog.text
    monkeypatch.setattr("sacfast.trainer.versions", lambda: {"torch": "0.1"})
    SAC.resume(tmp_path, torch_threads=2)
    assert f"torch was {torch.__version__}, is 0.1: the run may not go on bit for bit" in caplog.text
    assert "torch threads was 1, is 2" in caplog.text


# ---- With and without EnvPool -----------------------------------------------------------------------------------


def test_a_run_on_envpool_does_not_go_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other environments would be another task; no checkpoint is at fault, and none is passed over."""
    run_dir = killed(tmp_path / "run", 555)
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(
        ImportError, match=r"^Pendulum-v1: .*EnvPool is not installed: pip install 'sacfast\[envpool\]'$"
    ):
        SAC.resume(run_dir)
    assert cli.main(["train", "--resume", str(run_dir)]) == cli.FAILED
    assert capsys.readouterr().err.count("\n") == 1
    model = SAC.load(run_dir)  # its policy may act on Gymnasium's environments
    assert len(model.evaluate(2).returns) == 2
    with pytest.raises(ImportError, match="EnvPool is not installed"):
        model.learn(10)
    monkeypatch.undo()
    assert SAC.resume(run_dir).timesteps == 400


@pytest.mark.parametrize("installed_later", [True, False])
def test_a_run_without_envpool_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, installed_later: bool
) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    monkeypatch.setattr("sacfast.metrics._VERSIONED", ("torch", "numpy", "gymnasium"))
    undisturbed = small(tmp_path / "whole").learn(TOTAL)
    killed(tmp_path / "cut", 555)
    caplog.clear()
    if installed_later:
        monkeypatch.undo()
    resumed = SAC.resume(tmp_path / "cut").learn()
    assert resumed.spec.source == "gymnasium"
    assert not re.search("bit for bit|EnvPool|envpool", caplog.text)
    assert resumed.summary is not None
    assert undisturbed.summary is not None
    assert ("envpool" in resumed.summary.pop("versions")) == installed_later
    del undisturbed.summary["versions"]
    assert_same_run(undisturbed, resumed)


# ---- What a killed save leaves ----------------------------------------------------------------------------------


@pytest.mark.parametrize("call", range(8))
def test_a_save_killed_at_any_call_leaves_the_last_checkpoint(
    tmp_path: Path, whole: SAC, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    """Files are synced and directories renamed in so many calls; the process dies at one of them."""
    calls = 0

    def dying(function: Any) -> Any:
        def wrapped(*arguments: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls - 1 == call:
                raise Killed
            return function(*arguments)

        return wrapped

    class Arm(Callback):
        def on_step(self, model: SAC, *_: Any) -> None:
            if model.timesteps == 596:  # the next step ends at a checkpoint, and replaces the best policy
                model._counts.best_return = -math.inf
                monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # the dead clear nothing away
                monkeypatch.setattr(os, "fsync", dying(os.fsync))
                monkeypatch.setattr(Path, "rename", dying(Path.rename))

    with monkeypatch.context() as monkeypatch, pytest.raises(Killed):
        small(tmp_path / "cut").learn(TOTAL, callbacks=[Arm()])
    best = SAC.load(tmp_path / "cut" / "checkpoints" / "best")
    assert best.timesteps in (300, 600)
    assert_same_run(whole, SAC.resume(tmp_path / "cut").learn())


# ---- Signals ----------------------------------------------------------------------------------------------------


class Send(Callback):
    def __init__(self, number: int, step: int) -> None:
        self.number, self.step = number, step

    def on_step(self, model: SAC, *_: Any) -> None:
        if model.timesteps == self.step:
            signal.raise_signal(self.number)


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)], ids=["TERM", "INT"]
)
def test_a_signal_leaves_a_checkpoint_to_resume(tmp_path: Path, number: int, error: type[BaseException]) -> None:
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    model = small(tmp_path)
    with pytest.raises(error) as leaving:
        model.learn(TOTAL, callbacks=[Send(number, 148)])
    assert error is KeyboardInterrupt or leaving.value.code == 143
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert (model.timesteps, model.summary and model.summary["status"]) == (148, "interrupted")
    resumed = SAC.resume(tmp_path)
    assert resumed.timesteps == 148
    assert [
        name for name, value in everything(model).items() if not torch.equal(value, everything(resumed)[name])
    ] == []
    resumed.learn()
    assert (resumed.timesteps, resumed.learner.gradient_updates) == (TOTAL, UPDATES)


def command(run_dir: Path, *flags: str) -> list[str]:
    names = {name: value for name, value in SMALL.items() if name not in ("hidden_sizes", "progress")}
    fixed = [word for name, value in names.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    start = [sys.executable, "-m", "sacfast", "train", "--env-id", "Pendulum-v1", "--hidden-sizes", "16"]
    return [*start, "--run-dir", str(run_dir), "--no-progress", *fixed, *flags]


@contextmanager
def process(run_dir: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """Start a run of its own that would last for hours; wait until it has a checkpoint."""
    started = subprocess.Popen(
        [*command(run_dir), "--total-timesteps", "100000000", *flags],
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not checkpoint.steps(run_dir / "checkpoints") and time.monotonic() < deadline:
            time.sleep(0.02)
        yield started
    finally:
        started.kill()
        started.wait()


@pytest.mark.parametrize("backend", BACKENDS)
def test_kill_9_and_resume_is_the_whole_run(tmp_path: Path, backend: str) -> None:
    with process(tmp_path / "cut", "--backend", backend, "--keep-checkpoints", "100000") as running:
        running.send_signal(signal.SIGKILL)
        running.wait()
    resumed = SAC.resume(tmp_path / "cut")
    total = resumed.timesteps + 400
    resumed.learn(400)
    undisturbed = small(tmp_path / "whole", backend=backend, keep_checkpoints=100000).learn(total)
    assert_same_run(undisturbed, resumed)


def test_sigterm_ends_the_command_with_143_and_it_is_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with process(tmp_path) as running:
        running.send_signal(signal.SIGTERM)
        error = running.communicate(timeout=60)[1]
    assert running.returncode == 143
    assert f"terminated; what was learned is in {tmp_path}; `sacfast train --resume {tmp_path}` goes on" in error
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    total = str(summary["total_timesteps"] + 100)
    assert cli.main(["train", "--resume", str(tmp_path), "--total-timesteps", total, "--no-progress"]) == 0
    output = capsys.readouterr().out
    assert f"resumed after {summary['total_timesteps']} transitions" in output
    assert f"{total} transitions and" in output
    assert cli.main(["train", "--resume", str(tmp_path), "--total-timesteps", "10"]) == 2
    assert "total_timesteps: expected more than the" in capsys.readouterr().err


def test_the_command_refuses_what_it_cannot_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, said in (
        (["--resume", str(tmp_path)], "expected a run directory"),
        (["--resume", str(tmp_path), "--seed", "3"], "unknown flag --seed"),
        (["--resume"], "--resume"),
    ):
        assert cli.main(["train", *arguments]) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1


# ---- Disk full, numbers that are not finite ---------------------------------------------------------------------


@contextmanager
def small_files() -> Iterator[None]:
    """Let no file grow beyond 60 kB: the system refuses the write, as it does on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class Limited(Callback):
    """Lets the checkpoints at 400 and 600 fail."""

    def __init__(self) -> None:
        self.limit = small_files()

    def on_step(self, model: SAC, *_: Any) -> None:
        if model.timesteps == 300:
            self.limit.__enter__()
        if model.timesteps == 700:
            self.limit.__exit__(None, None, None)


WIDE = {"hidden_sizes": (96, 96), "batch_size": 8, "utd_ratio": 0.05}  # the learner alone has more than 60 kB


def test_a_save_that_fails_is_a_warning_and_leaves_the_old_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = small(tmp_path / "whole", **WIDE).learn(TOTAL)
    seen = []

    class Look(Callback):
        def on_step(self, model: SAC, *_: Any) -> None:
            if model.timesteps == 696:
                seen.extend(sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()))
                assert SAC.load(tmp_path / "run").timesteps == 200

    model = small(tmp_path / "run", **WIDE).learn(TOTAL, callbacks=[Limited(), Look()])
    assert [name for name in seen if name.startswith("step")] == [checkpoint.step_name(200)]
    assert "no checkpoint at 400 transitions, training goes on" in caplog.text
    assert "no checkpoint at 600 transitions, training goes on" in caplog.text
    assert "File too large" in caplog.text
    states = everything(undisturbed), everything(model)  # the run is the same, whatever the disk did
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_last_save_that_fails_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_files():
        with pytest.raises(OSError, match="File too large"):
            small(tmp_path / "run", **WIDE).learn(100)
        flags = ["--total-timesteps", "100", "--hidden-sizes", "96", "96"]
        assert cli.main([*command(tmp_path / "again")[3:], *flags]) == 1
    error = capsys.readouterr().err
    assert "File too large" in error
    assert f"; {tmp_path / 'again'} has no checkpoint\n" in error
    assert "what was learned" not in error
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "failed"


def test_a_line_of_metrics_that_cannot_be_written_leaves_no_part(tmp_path: Path, caplog: Any) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Full(Callback):
        def on_evaluation(self, model: SAC, *_: Any) -> None:
            size = (tmp_path / "metrics.jsonl").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, hard) if model.timesteps == 300 else (soft, hard))

    try:
        model = small(tmp_path, checkpoint_every=0).learn(TOTAL, callbacks=[Full()])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert model.timesteps == TOTAL
    steps = [row["step"] for row in read_rows(tmp_path)]  # every line is whole
    assert steps[:3] == [100, 200, 300]
    assert steps[-1] == TOTAL
    assert 400 not in steps
    assert "no metrics at 400 transitions, training goes on" in caplog.text


class Spoil(Callback):
    """Makes a parameter infinite, as a fault of the memory would."""

    def __init__(self, name: str) -> None:
        self.name = name

    def on_step(self, model: SAC, *_: Any) -> None:
        if model.timesteps == 244:
            state = model.learner.state_dict()
            state[self.name].view(-1)[0] = math.inf
            model.learner.load_state_dict(state)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", ["critic.q1.layers.1.bias", "target_critic.q2.layers.1.bias"])
def test_numbers_that_are_not_finite_stop_the_run_and_never_reach_a_checkpoint(
    tmp_path: Path, backend: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FloatingPointError, match=r"critic_loss.* is not finite"):
        small(tmp_path, backend=backend).learn(TOTAL, callbacks=[Spoil(name)])
    assert json.loads((tmp_path / "summary.json").read_text())["status"] == "failed"
    assert "no checkpoint at 24" in caplog.text
    resumed = SAC.resume(tmp_path)
    assert resumed.timesteps == 200
    assert all(value.isfinite().all() for value in everything(resumed).values())


# ---- Callbacks --------------------------------------------------------------------------------------------------


class Record(Callback):
    def __init__(self) -> None:
        self.transitions = self.episodes = 0
        self.losses: list[float] = []
        self.evaluations: list[tuple[int, float]] = []

    def on_step(self, model: SAC, transition: Any, episodes: Any) -> None:
        self.transitions += len(transition.reward)
        self.episodes += len(episodes.return_)
        assert self.transitions == model.timesteps

    def on_update(self, model: SAC, metrics: Any) -> None:
        self.losses.append(metrics["critic_loss"])
        assert len(self.losses) == model.learner.gradient_updates

    def on_evaluation(self, model: SAC, result: Any) -> None:
        self.evaluations.append((model.timesteps, result.mean))


@pytest.mark.parametrize("backend", BACKENDS)
def test_callbacks_see_every_step_update_and_evaluation_and_change_nothing(tmp_path: Path, backend: str) -> None:
    seen = Record()
    model = small(tmp_path / "seen", backend=backend, checkpoint_every=0).learn(TOTAL, callbacks=[seen, Callback()])
    plain = small(tmp_path / "plain", backend=backend, checkpoint_every=0).learn(TOTAL)
    assert (seen.transitions, len(seen.losses)) == (TOTAL, UPDATES)
    rows = read_rows(tmp_path / "plain")
    assert seen.episodes == rows[-1]["episodes"] == 4
    assert seen.evaluations == [(row["step"], row["eval_return_mean"]) for row in rows if "eval_return_mean" in row]
    states = everything(model), everything(plain)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("method", "timesteps", "updates"), [("on_step", 4, 0), ("on_update", 44, 1), ("on_evaluation", 300, 65)]
)
def test_a_callback_can_end_the_run(tmp_path: Path, method: str, timesteps: int, updates: int) -> None:
    stop = type("Stop", (Callback,), {method: lambda *_: False})()
    model = small(tmp_path).learn(TOTAL, callbacks=[stop])
    assert model.timesteps == len(model.replay)
    # The step that is under way while an update is made ends too.
    assert timesteps <= model.timesteps <= timesteps + 4
    assert model.learner.gradient_updates == updates
    assert model.summary is not None
    assert model.summary["status"] == "stopped"
    assert read_rows(tmp_path)[-1]["step"] == model.timesteps == SAC.resume(tmp_path).timesteps


def test_none_and_true_do_not_end_the_run() -> None:
    go_on = type("GoOn", (Callback,), {"on_step": lambda *_: True, "on_update": lambda *_: None})()
    assert small().learn(100, callbacks=[go_on]).timesteps == 100
