"""One model at a time writes in a run directory."""

import errno
import fcntl
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from sacfast import SAC, cli
from sacfast.callbacks import Callback
from sacfast.checkpoint import CheckpointError
from sacfast.lock import LOCK_FILE, RunInUseError, RunLock
from sacfast.metrics import read_run

HOLD = """
import sys, time
from pathlib import Path
from sacfast.lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire()
{then}
print("held", flush=True)
time.sleep(600)
"""
SETTINGS: dict[str, Any] = {
    "hidden_sizes": (8,),
    "batch_size": 8,
    "replay_capacity": 100,
    "num_envs": 2,
    "learning_starts": 20,
    "utd_ratio": 0.1,
    "evaluation_episodes": 0,
    "log_interval": 20,
    "torch_threads": 1,
    "progress": False,
}


def small(run_dir: Path, **fields: Any) -> SAC:
    return SAC("Pendulum-v1", **{**SETTINGS, "run_dir": run_dir, **fields})


@contextmanager
def holder(run_dir: Path, then: str = "") -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    command = [sys.executable, "-c", HOLD.format(then=then), str(run_dir)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def test_a_second_process_is_refused_and_told_of_the_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small(tmp_path / "run").learn(40)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    resumed = SAC.resume(tmp_path / "run")
    with holder(tmp_path / "run") as process:
        said = f"run_dir: {tmp_path / 'run'} is in use by process {process.pid}; wait for it"
        with pytest.raises(RunInUseError, match=said):
            SAC.resume(tmp_path / "run")
        with pytest.raises(RunInUseError, match=said):
            resumed.learn(20)
        with pytest.raises(RunInUseError, match=said):
            small(tmp_path / "run", overwrite=True).learn(20)
        assert cli.main(["train", "--resume", str(tmp_path / "run")]) == 2
        assert said in capsys.readouterr().err
        flags = ["--env-id", "Pendulum-v1", "--run-dir", str(tmp_path / "run"), "--overwrite"]
        assert cli.main(["train", *flags, "--no-progress"]) == 1
        error = capsys.readouterr().err
        assert said in error
        assert "what was learned" not in error
        assert error.count("\n") == 1
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    with pytest.raises(RunInUseError, match=f"was taken up by process {process.pid} since this model had it; resume"):
        resumed.learn(20)
    assert SAC.resume(tmp_path / "run").learn(20).timesteps == 60


def test_a_process_that_is_killed_holds_nothing(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        RunLock(tmp_path).acquire()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    then = "import os\nchild = os.fork()\nif child == 0:\n    time.sleep(600)\nprint(child, flush=True)"
    command = [sys.executable, "-c", HOLD.format(then=then), str(tmp_path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        os.kill(child, 0)  # is alive
        deadline = time.monotonic() + 30  # it may be killed before its child has let go
        while True:
            try:
                RunLock(tmp_path).acquire()
                break
            except RunInUseError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_forked_child_does_not_let_the_lock_go(tmp_path: Path) -> None:
    lock = RunLock(tmp_path)
    lock.acquire()
    child = multiprocessing.get_context("fork").Process(target=lock.release)
    child.start()
    child.join()
    with pytest.raises(RunInUseError, match="another model of this process"):
        RunLock(tmp_path).acquire()
    lock.release()


def test_two_models_of_one_process_are_kept_apart(tmp_path: Path) -> None:
    class TakeUp(Callback):
        refused = 0

        def on_step(self, model: SAC, *_: Any) -> None:
            if model.timesteps == 20:
                for other in (lambda: SAC.resume(tmp_path), lambda: small(tmp_path, overwrite=True).learn(20)):
                    with pytest.raises(RunInUseError, match="is in use by another model of this process"):
                        other()
                    self.refused += 1

    seen = TakeUp()
    small(tmp_path).learn(40, callbacks=[seen])
    assert seen.refused == 2
    assert [row["step"] for row in read_run(tmp_path).rows] == [20, 40]


def test_between_two_calls_the_run_may_be_taken_up_and_the_first_model_is_then_refused(tmp_path: Path) -> None:
    first = small(tmp_path).learn(40)
    assert first.learn(20).timesteps == 60  # nobody has been there
    second = SAC.resume(tmp_path)
    assert first.learn(20).timesteps == 80
    with pytest.raises(RunInUseError, match="was taken up by another model of this process since this model had it"):
        second.learn(20)
    third = SAC.resume(tmp_path).learn(20)
    assert third.timesteps == 100
    with pytest.raises(RunInUseError, match="taken up"):
        first.learn(20)
    assert [row["step"] for row in read_run(tmp_path).rows] == [20, 40, 60, 80, 100]


def test_a_run_that_fails_lets_its_lock_go(tmp_path: Path) -> None:
    class Fail(Callback):
        def on_step(self, *_: Any) -> None:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        small(tmp_path).learn(40, callbacks=[Fail()])
    RunLock(tmp_path).acquire()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_where_nothing_can_be_locked_it_is_said_once(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    first = small(tmp_path).learn(40)
    first.learn(20)
    assert caplog.text.count("cannot be locked") == 1
    SAC.resume(tmp_path).learn(20)
    with pytest.raises(RunInUseError, match="taken up"):  # what the file says is seen nevertheless
        first.learn(20)


def test_an_error_of_the_lock_is_none_of_its_absence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(OSError, match="I/O error"):
        RunLock(tmp_path).acquire()


def test_a_link_in_the_place_of_the_lock_is_refused(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / LOCK_FILE).symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match=r"expected a regular file, got a link to .*victim"):
        small(tmp_path / "run").learn(20)
    assert (tmp_path / "victim").read_text() == "precious"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK_FILE]


def test_a_lock_file_of_any_size_keeps_no_run_from_going_on(tmp_path: Path) -> None:
    model = small(tmp_path).learn(20)
    (tmp_path / LOCK_FILE).write_bytes(b"x" * 1_000_000)
    with pytest.raises(RunInUseError, match="was taken up by another process since this model had it"):
        model.learn(20)
    model = SAC.resume(tmp_path).learn(20)
    assert model.timesteps == 40
    assert (tmp_path / LOCK_FILE).stat().st_size < 200


def test_what_is_no_run_is_not_locked(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(CheckpointError, match="expected a run directory"):
            SAC.resume(path)
    assert not list(tmp_path.iterdir())
