"""Output never ends a run: a full disk under the log, a pipe that nobody reads, a stream that is closed."""

import contextlib
import io
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sacfast import SAC, cli, metrics, output
from sacfast.callbacks import Callback
from sacfast.metrics import MetricsLogger

ROOT = Path(__file__).parents[1]
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
}
FLAGS = (
    *("train", "--env-id", "Pendulum-v1", "--hidden-sizes", "8", "--batch-size", "8", "--num-envs", "2"),
    *("--replay-capacity", "100", "--learning-starts", "20", "--evaluation-episodes", "0", "--torch-threads", "1"),
    *("--checkpoint-every", "20", "--total-timesteps", "60"),
)


class Broken(io.StringIO):
    """A stream that fails as those of the system do."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, _: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


BROKEN = {
    "full disk": lambda: Broken(OSError(28, "No space left on device")),
    "dead pipe": lambda: Broken(BrokenPipeError(32, "Broken pipe")),
    "closed": closed,
    "none": lambda: None,
}
broken = pytest.mark.parametrize("name", BROKEN)


class Warn(Callback):
    """Breaks the standard error after the start, and has every later step log a warning."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        self.monkeypatch, self.name = monkeypatch, name

    def on_step(self, model: SAC, *_: Any) -> None:
        self.monkeypatch.setattr(sys, "stderr", BROKEN[self.name]())
        output.logger("sacfast.test").warning("said at %d", model.timesteps)


@broken
@pytest.mark.parametrize("from_the_start", [True, False])
def test_a_stream_that_fails_does_not_end_a_run(
    tmp_path: Path, name: str, from_the_start: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sacfast.trainer.REFRESH_SECONDS", 0.0)  # the bar is drawn at every step
    monkeypatch.setattr(logging.getLogger("sacfast"), "propagate", False)
    stream = BROKEN[name]()
    handler = logging.StreamHandler(stream if stream is not None else closed())
    logging.getLogger("sacfast").addHandler(handler)
    try:
        if from_the_start:
            monkeypatch.setattr(sys, "stderr", stream)
        model = SAC("Pendulum-v1", run_dir=tmp_path, **SETTINGS).learn(60, callbacks=[Warn(monkeypatch, name)])
    finally:
        logging.getLogger("sacfast").removeHandler(handler)
    assert (model.summary or {})["status"] == "completed"
    assert SAC.load(tmp_path).timesteps == 60


def test_a_log_line_comes_from_the_line_that_logs(caplog: pytest.LogCaptureFixture) -> None:
    output.logger("sacfast.test").warning("here")
    assert [(record.filename, record.name) for record in caplog.records] == [("test_output.py", "sacfast.test")]


def run(run_dir: Path, redirection: str, *more: str) -> tuple[int, str]:
    """Run the command by a shell; return its exit code, and what reached the file "said"."""
    words = " ".join([sys.executable, "-m", "sacfast", *FLAGS, "--run-dir", str(run_dir), *more])
    script = f"{{ {words}; echo $? > {run_dir}.code; }} {redirection}"
    subprocess.run(
        ["bash", "-c", script], cwd=ROOT, check=False, timeout=120, env={**os.environ, "SAID": f"{run_dir}.said"}
    )
    said = Path(f"{run_dir}.said")
    return int(Path(f"{run_dir}.code").read_text()), said.read_text() if said.exists() else ""


@pytest.mark.parametrize(
    "redirection", ["2>/dev/full >/dev/full", "2>&1 | true", ">&- 2>&-", '2>"$SAID" >/dev/full', '2>"$SAID" | true']
)
def test_a_command_whose_output_goes_nowhere_trains_to_its_end(tmp_path: Path, redirection: str) -> None:
    code, said = run(tmp_path / "run", redirection)
    assert code == 0
    assert "Traceback" not in said
    assert "Exception" not in said
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["total_timesteps"]) == ("completed", 60)


def test_no_file_of_a_run_takes_the_place_of_a_closed_stream(tmp_path: Path) -> None:
    """What is printed, also by a library in C, must not end up in the metrics."""
    words = [*FLAGS, "--run-dir", str(tmp_path / "run")]
    script = f"""
import os, sys
from sacfast import cli
os.close(1)
os.close(2)
code = cli.main({words!r})
os.write(1, b"printed")
os.write(2, b"complained")
sys.exit(code)
"""
    subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=True, timeout=120)
    for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines():
        json.loads(line)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "completed"
    left = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and b"complained" in path.read_bytes()]
    assert left == []


@broken
def test_a_command_whose_result_could_not_be_printed_has_failed(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = SAC("Pendulum-v1", progress=False, **SETTINGS)
    model.save(tmp_path / "model")
    monkeypatch.setattr(sys, "stdout", BROKEN[name]())
    assert cli.main(["evaluate", str(tmp_path / "model"), "--episodes", "1"]) == 1
    assert "sacfast evaluate: standard output could not be written: " in capsys.readouterr().err


def test_the_streams_are_as_before_and_a_failure_is_forgotten_at_the_end(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream, contextlib.redirect_stdout(stream):
        with output.safe_standard_streams() as safe:
            print("lost")
        assert sys.stdout is stream
        assert isinstance(safe.failure, BrokenPipeError)
        stream.flush()  # to nowhere: what Python does when it ends does not fail


def test_a_tracker_that_fails_costs_its_own_copy_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Dead:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError("the service is gone")

    monkeypatch.setattr(metrics, "import_wandb", lambda: None)
    monkeypatch.setattr(metrics, "_start_wandb", lambda _: Dead())
    logger = MetricsLogger(tmp_path, wandb=True)
    logger.write_config({"train": {}, "sac": {}})
    logger.log({"step": 1})
    logger.write_summary(dict.fromkeys(metrics.SUMMARY_KEYS, 0))
    monkeypatch.setattr(logger, "_wandb", None)
    logger.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(metrics._FILES)
    assert caplog.text.count("wandb: not brought up to date: the service is gone") == 3
