import csv
import io
import json
import math
import os
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sacfast import checkpoint, metrics
from sacfast.metrics import MetricsLogger, RunError, TrackingError, read_run


def summary(**changes: Any) -> dict[str, Any]:
    return {**dict.fromkeys(metrics.SUMMARY_KEYS, 0), **changes}


def rows(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_each_line_is_whole_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path / "run")
    for step in range(1, 4):
        logger.log({"step": step, "episode_return_mean": -1.5})
        text = (tmp_path / "run" / "metrics.jsonl").read_text()
        assert text.endswith("\n")
        assert rows(tmp_path / "run")[-1] == {"step": step, "episode_return_mean": -1.5}
    logger.close()


def test_what_json_cannot_say_becomes_null(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path)
    logger.log({"step": 1, "a": math.nan, "b": math.inf, "c": None, "d": 0.5})
    logger.close()
    assert rows(tmp_path) == [{"step": 1, "a": None, "b": None, "c": None, "d": 0.5}]


def table(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file, strict=True))


def as_text(row: dict[str, Any], columns: list[str]) -> dict[str, str]:
    return {name: "" if row.get(name) is None else str(row[name]) for name in columns}


def test_the_table_has_the_same_lines_whichever_names_come_when(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path)
    steps: list[tuple[dict[str, Any], list[str]]] = [
        ({"step": 1, "episodes": 0, "return": None}, ["step", "episodes", "return"]),
        ({"step": 2, "episodes": 3, "return": -0.1}, ["step", "episodes", "return"]),
        ({"step": 3, "loss": math.nan, "return": 1e-7}, ["step", "episodes", "return", "loss"]),
        ({"step": 4}, ["step", "episodes", "return", "loss"]),
        ({"step": 5, "eval": 1.5, "loss": 2.5}, ["step", "episodes", "return", "loss", "eval"]),
    ]
    for row, columns in steps:
        logger.log(row)
        assert table(tmp_path) == [as_text(row, columns) for row in rows(tmp_path)]
        assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == ",".join(columns)
    logger.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.csv", "metrics.jsonl"]


def test_a_resumed_run_has_its_lines_in_the_table_and_no_lost_ones(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path)
    for step in (1, 2, 3):
        logger.log({"step": step, "loss": 0.5})
    logger.close()
    logger = MetricsLogger(tmp_path, resume_step=2)
    logger.log({"step": 3, "loss": 0.25})
    logger.close()
    assert [(line["step"], line["loss"]) for line in table(tmp_path)] == [("1", "0.5"), ("2", "0.5"), ("3", "0.25")]


def test_a_line_that_the_table_could_not_take_is_there_after_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = MetricsLogger(tmp_path)
    logger.log({"step": 1})
    append = metrics._append

    def fail_for_the_table(file: io.FileIO, line: bytes) -> None:
        if str(file.name).endswith("metrics.csv"):
            raise OSError("disk full")
        append(file, line)

    monkeypatch.setattr(metrics, "_append", fail_for_the_table)
    with pytest.raises(OSError, match="disk full"):
        logger.log({"step": 2})
    monkeypatch.undo()
    logger.log({"step": 3})
    logger.close()
    assert [line["step"] for line in table(tmp_path)] == ["1", "2", "3"]


LOG_WITHOUT_END = """
import pathlib, sys
from sacfast.metrics import MetricsLogger
logger = MetricsLogger(pathlib.Path(sys.argv[1]))
for step in range(1, 10**9):
    logger.log({"step": step, "x": step * 1e-3, **({f"new{step}": 1.0} if step % 7 == 0 and step < 2000 else {})})
"""


def test_a_killed_run_leaves_whole_lines(tmp_path: Path) -> None:
    command = [sys.executable, "-c", LOG_WITHOUT_END, str(tmp_path)]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "metrics.csv").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.2)
    finally:
        process.kill()
        process.wait()
    written, lines = rows(tmp_path), table(tmp_path)
    assert len(written) > 10
    assert (tmp_path / "metrics.jsonl").read_bytes().endswith(b"\n")
    assert (tmp_path / "metrics.csv").read_bytes().endswith(b"\n")
    assert len(lines) in (len(written), len(written) - 1)
    assert lines == [as_text(row, list(lines[0])) for row in written[: len(lines)]]


def test_a_run_is_read_as_it_was_written(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path)
    logger.write_config({"train": {"seed": 1}, "sac": {"gamma": 0.9}})
    logger.log({"step": 1, "alpha": math.nan})
    logger.log({"step": 2, "alpha": 0.5})
    logger.close()
    run = read_run(tmp_path)
    assert (run.path, run.train, run.sac) == (tmp_path, {"seed": 1}, {"gamma": 0.9})
    assert run.rows == [{"step": 1, "alpha": None}, {"step": 2, "alpha": 0.5}]


def test_a_run_from_before_versions_were_recorded_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"train": {"seed": 1}, "sac": {}}')
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert read_run(tmp_path).rows == [{"step": 1}]


def test_config_and_summary_are_json_files_that_replace_earlier_ones(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path)
    for value in (1, 2):
        logger.write_config({"train": {"seed": value}})
        logger.write_summary(summary(status="completed", seed=value))
    logger.close()
    assert json.loads((tmp_path / "config.json").read_text()) == {"schema_version": 1, "train": {"seed": 2}}
    assert json.loads((tmp_path / "summary.json").read_text())["seed"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "metrics.jsonl",
        "summary.json",
    ]


def test_a_summary_has_exactly_its_keys(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path)
    with pytest.raises(ValueError, match="summary: expected the keys"):
        logger.write_summary(summary(surprise=1))
    with pytest.raises(ValueError, match="summary: expected the keys"):
        logger.write_summary({"status": "completed"})
    logger.close()
    assert not (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "metrics.csv", "summary.json", "checkpoints"])
def test_a_directory_that_holds_a_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir() if name == "checkpoints" else (tmp_path / name).write_text("kept")
    with pytest.raises(FileExistsError, match=f"already holds a run .*{name}.*overwrite"):
        MetricsLogger(tmp_path)
    assert (tmp_path / name).exists()


def test_a_file_is_no_run_directory(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("kept")
    with pytest.raises(FileExistsError, match="expected a directory"):
        MetricsLogger(tmp_path / "run", overwrite=True)


def test_a_directory_with_other_files_is_taken(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("kept")
    MetricsLogger(tmp_path).close()
    assert (tmp_path / "notes.txt").read_text() == "kept"


def test_overwriting_removes_only_what_a_run_writes(tmp_path: Path) -> None:
    kept = [
        "notes.txt",
        "checkpoints/mine/weights.bin",
        "checkpoints/step_notes/plan.txt",
        "tensorboard/mine",
    ]
    for name in [
        *kept,
        "config.json",
        "metrics.jsonl",
        "metrics.csv",
        "summary.json",
        "tensorboard/events.out.tfevents.1",
    ]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("old")
    folder = tmp_path / "checkpoints"
    checkpoint.save(folder / checkpoint.step_name(5), {"learner": {"x": torch.ones(1)}}, {})
    (folder / "step_000000000006.tmp").mkdir()

    MetricsLogger(tmp_path, overwrite=True).close()
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {*kept, "metrics.jsonl"}
    assert rows(tmp_path) == []
    assert sorted(path.name for path in folder.iterdir()) == ["mine", "step_notes"]


def test_without_a_directory_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    logger = MetricsLogger(None)
    logger.write_config({})
    logger.log({"step": 1})
    logger.write_summary(summary())
    assert logger.checkpoint_path(3) is None
    logger.close()
    assert not list(tmp_path.iterdir())


def test_checkpoints_are_named_by_step_in_order(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path)
    paths = [logger.checkpoint_path(step) for step in (5, 1_000, 20_000)]
    logger.close()
    assert paths == sorted(path for path in paths if path is not None)
    assert {path.parent for path in paths if path is not None} == {tmp_path / "checkpoints"}


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    accumulator_module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = MetricsLogger(tmp_path, tensorboard=True)
    logger.log({"step": 10, "critic_loss": 0.5, "episode_return_mean": None})
    logger.log({"step": 20, "critic_loss": 0.25})
    logger.close()
    events = accumulator_module.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("critic_loss")] == [(10, 0.5), (20, 0.25)]
    assert events.Tags()["scalars"] == ["critic_loss"]


def test_a_resumed_run_goes_on_after_the_lines_that_it_keeps(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path)
    for step in (10, 20, 30):
        logger.log({"step": step, "alpha": 0.5})
    logger.write_summary(summary())
    logger.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 15')  # torn
    logger = MetricsLogger(tmp_path, resume_step=20)
    logger.log({"step": 31, "alpha": 0.25})
    logger.close()
    assert rows(tmp_path) == [{"step": 10, "alpha": 0.5}, {"step": 20, "alpha": 0.5}, {"step": 31, "alpha": 0.25}]
    assert not (tmp_path / "summary.json").exists()


def test_tensorboard_forgets_what_a_resumed_run_does_again(tmp_path: Path) -> None:
    accumulator_module = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    for resume_step, steps, value in ((None, (10, 20, 30), 0.5), (20, (30, 40), 0.25)):
        logger = MetricsLogger(tmp_path, tensorboard=True, resume_step=resume_step)
        for step in steps:
            logger.log({"step": step, "alpha": value})
        logger.close()
    events = accumulator_module.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("alpha")]
    assert found == [(10, 0.5), (20, 0.5), (30, 0.25), (40, 0.25)]


def test_missing_tensorboard_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ImportError, match=r"pip install 'sacfast\[tensorboard\]'"):
        MetricsLogger(tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()


class WandbStub(types.ModuleType):
    """Keeps what Weights & Biases is given."""

    def __init__(self, refusal: str = "") -> None:
        super().__init__("wandb")
        self.errors = types.SimpleNamespace(Error=type("Error", (Exception,), {}))
        self.refusal, self.begun, self.config, self.logged, self.summary = refusal, {}, {}, [], {}
        self.finished = 0

    def init(self, **options: Any) -> Any:
        if self.refusal:
            raise self.errors.Error(self.refusal)
        self.begun = options
        return types.SimpleNamespace(
            config=types.SimpleNamespace(update=lambda values, allow_val_change: self.config.update(values)),
            log=lambda values, step: self.logged.append((step, values)),
            summary=self.summary,
            finish=lambda: setattr(self, "finished", self.finished + 1),
        )


def test_wandb_gets_configuration_metrics_and_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = WandbStub()
    monkeypatch.setitem(sys.modules, "wandb", stub)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    logger = MetricsLogger(tmp_path / "run", wandb=True)
    logger.write_config({"train": {"seed": 2}, "sac": {"gamma": 0.9}})
    logger.log({"step": 10, "critic_loss": 0.5, "episode_return_mean": None, "alpha": math.inf})
    logger.log({"step": 20, "critic_loss": 0.25})
    logger.write_summary(summary(status="completed"))
    logger.close()
    assert {name: stub.begun[name] for name in ("project", "name", "dir")} == {
        "project": "sacfast",
        "name": "run",
        "dir": str(tmp_path / "run"),
    }
    assert stub.config == {"train": {"seed": 2}, "sac": {"gamma": 0.9}}
    assert stub.logged == [(10, {"critic_loss": 0.5}), (20, {"critic_loss": 0.25})]
    assert stub.summary["status"] == "completed"
    assert stub.finished == 1


def test_wandb_is_left_alone_unless_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", WandbStub("never asked"))
    logger = MetricsLogger(tmp_path)
    logger.log({"step": 1})
    logger.close()


def test_a_refusal_of_wandb_leaves_an_earlier_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", WandbStub("api_key not configured"))
    (tmp_path / "metrics.jsonl").write_text("kept")
    with pytest.raises(TrackingError, match=r"wandb: .*WANDB_MODE=offline.*api_key not configured"):
        MetricsLogger(tmp_path, overwrite=True, wandb=True)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept"]


def test_missing_wandb_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'sacfast\[wandb\]'"):
        MetricsLogger(tmp_path, wandb=True)
    assert not list(tmp_path.iterdir())


def test_wandb_itself_writes_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed: pip install 'sacfast[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    logger = MetricsLogger(tmp_path, wandb=True)
    logger.write_config({"train": {"seed": 2}, "sac": {}})
    logger.log({"step": 10, "critic_loss": 0.5})
    logger.write_summary(summary(status="completed"))
    logger.close()
    (record,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    # Its own process may write the last of it after `finish` has returned.
    deadline = time.monotonic() + 60
    while b"completed" not in record.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert all(written in record.read_bytes() for written in (b"critic_loss", b"train", b"completed"))


def test_versions_name_what_a_result_depends_on() -> None:
    assert set(metrics.versions()) == {"sacfast", "python", "torch", "numpy", "gymnasium", "envpool"}
    assert metrics.versions()["torch"] == torch.__version__


# ---- Files that others have written ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json.tmp", "summary.json.tmp", "metrics.csv.tmp", "metrics.jsonl.tmp"])
@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: path.symlink_to(path.parents[1] / "victim"), Path.mkdir])
@pytest.mark.parametrize("resume_step", [None, 10])
def test_what_was_planted_at_a_temporary_name_is_not_written_through(
    tmp_path: Path, name: str, plant: Callable[[Path], None], resume_step: int | None
) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 10}\n')
    plant(tmp_path / "run" / name)
    logger = MetricsLogger(tmp_path / "run", overwrite=True, resume_step=resume_step)
    logger.write_config({"train": {}, "sac": {}})
    logger.log({"step": 20})
    logger.write_summary(summary())
    logger.close()
    assert (tmp_path / "victim").read_text() == "precious"
    assert rows(tmp_path / "run")[-1] == {"step": 20}
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(metrics._FILES)


@pytest.mark.parametrize("name", metrics._FILES)
def test_a_link_in_the_place_of_a_file_is_not_written_through(tmp_path: Path, name: str) -> None:
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "victim")
    logger = MetricsLogger(tmp_path / "run", resume_step=10)
    logger.write_config({"train": {}, "sac": {}})
    logger.log({"step": 20})
    logger.write_summary(summary())
    logger.close()
    assert (tmp_path / "victim").read_text() == "precious"
    assert not (tmp_path / "run" / name).is_symlink()


@pytest.mark.parametrize("name", ["checkpoints", "tensorboard", "wandb"])
@pytest.mark.parametrize("resume_step", [None, 10])
def test_a_link_in_the_place_of_a_folder_is_refused(tmp_path: Path, name: str, resume_step: int | None) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError, match=f"expected a folder, got a link to .*elsewhere.*{name}"):
        MetricsLogger(tmp_path / "run", overwrite=True, resume_step=resume_step)
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


def test_a_folder_that_becomes_a_link_is_refused_while_the_run_goes_on(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path / "run")
    assert logger.best_path() == tmp_path / "run" / "checkpoints" / "best"
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path)
    for path in (logger.best_path, lambda: logger.checkpoint_path(3)):
        with pytest.raises(NotADirectoryError, match="expected a folder, got a link"):
            path()
    logger.close()


def test_a_run_directory_reached_by_a_link_is_as_good_as_any(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    for _ in range(2):
        logger = MetricsLogger(tmp_path / "link", overwrite=True)
        logger.log({"step": 1})
        logger.close()
    assert rows(tmp_path / "run") == [{"step": 1}]


DAMAGES = {
    "one bad byte": b'{"step": 20, "x": \xff}\n',
    "deep": b"[" * 100_000 + b"\n",
    "deep value": b'{"step": 20, "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "huge line": b'{"step": 20, "x": 1' + b"0" * metrics.LINE_BYTES + b"}\n",
    "huge number": b'{"step": 20, "x": 1' + b"0" * 400 + b"}\n",
    "torn": b'{"step": 20',
    "not a number": b'{"step": 20, "x": NaN}\n',
    "no step": b'{"x": 1}\n',
    "an earlier step": b'{"step": 5}\n',
    "an empty line": b"\n",
    "NULs": b"\0" * 100,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_line_of_metrics_keeps_no_run_from_going_on(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    sound = b'{"step": 10, "x": 0.5}\n{"step": 15, "x": 0.25}\n'
    (tmp_path / "config.json").write_text('{"train": {}, "sac": {}}')
    for number in (1, 2):
        written = sound + damage + b'{"step": 30, "x": 0.125}\n'
        (tmp_path / "metrics.jsonl").write_bytes(written)
        with pytest.raises(RunError, match=r"metrics\.jsonl: line 3: expected"):
            read_run(tmp_path)
        logger = MetricsLogger(tmp_path, resume_step=25)
        logger.log({"step": 26})
        logger.close()
        assert (
            [row["step"] for row in rows(tmp_path)] == [10, 15, 26] == [row["step"] for row in read_run(tmp_path).rows]
        )
        aside = tmp_path / ("metrics.jsonl.damaged" if number == 1 else "metrics.jsonl.damaged.1")
        assert aside.read_bytes() == written
        assert "line 3: expected" in caplog.text
        assert f"the 2 sound lines up to 25 transitions are kept, the whole file is now {aside}" in caplog.text
    MetricsLogger(tmp_path, overwrite=True).close()
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


WHOLE_LINES = {name: damage for name, damage in DAMAGES.items() if damage.endswith(b"\n")}


@pytest.mark.parametrize(
    "damage", [*WHOLE_LINES.values(), b'{"step": 95}\n'], ids=[*WHOLE_LINES, "a step beyond those that follow"]
)
def test_the_sound_lines_after_a_damaged_one_are_kept(
    tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    written = b'{"step": 10}\n' + damage + b'{"step": 20}\n{"step": 25}\n' + damage + b'{"step": 25}\n{"step": 30}\n'
    (tmp_path / "metrics.jsonl").write_bytes(written)
    logger = MetricsLogger(tmp_path, resume_step=25)
    logger.log({"step": 40})
    logger.close()
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 25, 25, 40]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == written
    assert "line 2: expected" in caplog.text
    assert "(the first of 2 damaged lines); the 4 sound lines up to 25 transitions are kept" in caplog.text


def test_a_last_line_without_its_end_is_kept_and_given_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 10}\n{"step": 20}')
    logger = MetricsLogger(tmp_path, resume_step=20)
    logger.log({"step": 30})
    logger.close()
    assert [row["step"] for row in rows(tmp_path)] == [10, 20, 30]
    assert caplog.text == ""


def test_metrics_that_are_missing_are_said_to_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    MetricsLogger(tmp_path, resume_step=20).close()
    assert "metrics.jsonl: expected the metrics of the run, found none" in caplog.text


def test_a_line_that_is_damaged_meanwhile_costs_the_table_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = MetricsLogger(tmp_path)
    logger.log({"step": 1})
    (tmp_path / "metrics.jsonl").write_bytes(b"\xff\n")
    logger.log({"step": 2, "new": 0.5})
    logger.log({"step": 3, "new": 0.25})
    logger.close()
    assert (tmp_path / "metrics.jsonl").read_bytes() == b'\xff\n{"step": 2, "new": 0.5}\n{"step": 3, "new": 0.25}\n'
    assert "metrics.csv: not brought up to date" in caplog.text


@pytest.mark.parametrize("damage", [b"\xff", b"[" * 100_000, b"[]", b'{"train": 1}', b" " * (metrics.CONFIG_BYTES + 1)])
def test_a_configuration_that_cannot_be_read_is_named(tmp_path: Path, damage: bytes) -> None:
    (tmp_path / "config.json").write_bytes(damage)
    with pytest.raises(RunError, match=r"config\.json: expected"):
        read_run(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl"])
@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir])
def test_what_is_no_file_is_not_read(tmp_path: Path, name: str, plant: Callable[[Path], None]) -> None:
    (tmp_path / "config.json").write_text('{"train": {}, "sac": {}}')
    (tmp_path / name).unlink(missing_ok=True)
    plant(tmp_path / name)
    with pytest.raises(RunError, match=f"{name}: expected a file that can be read"):
        read_run(tmp_path)
