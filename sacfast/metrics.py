"""The files of a run: its configuration, a line of metrics an interval, and a summary.

RUN_DIR/
  config.json       {"schema_version": 1, "train": TrainConfig, "sac": SACConfig}
  metrics.jsonl     one strict JSON object a line, each written whole
  metrics.csv       the same as a table
  summary.json      the run in one object, written at its end
  checkpoints/      step_<transitions>/ and best/, see `sacfast.checkpoint`
  lock              who writes here, see `sacfast.lock`
  tensorboard/      event files, when asked for
  wandb/            what Weights & Biases keeps on this machine, when asked for
"""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import os
import platform
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from sacfast import checkpoint, files, output

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
CSV_FILE = "metrics.csv"
SUMMARY_FILE = "summary.json"
CHECKPOINTS = "checkpoints"
BEST = "best"
TENSORBOARD = "tensorboard"
WANDB = "wandb"
DAMAGED = ".damaged"
"""What a name ends in that a damaged file was given when a run went on."""

CONFIG_BYTES = 16 * 2**20
"""Most bytes of a configuration or summary that is read; they have about two thousand."""

LINE_BYTES = 2**20
"""Most bytes of a line of metrics that is read; they have about a thousand."""

SCHEMA_VERSION = 1
"""Of the files of a run."""

WANDB_PROJECT = "sacfast"
"""Where runs go on Weights & Biases unless the environment variable WANDB_PROJECT says otherwise."""

_FILES = (CONFIG_FILE, METRICS_FILE, CSV_FILE, SUMMARY_FILE)
_FOLDERS = (CHECKPOINTS, TENSORBOARD, WANDB)
_CHECKPOINT = re.compile(rf"(?:{checkpoint.STEP_PREFIX}\d+|{BEST})(?:\.(?:tmp|old|damaged)(?:\.\d+)?)?", re.ASCII)
_LOG = output.logger(__name__)

SUMMARY_KEYS = (
    "status",  # "completed", "stopped" by a callback, "interrupted", "environment_fault" or "failed"
    "env_id",
    "seed",
    "total_timesteps",  # stored transitions
    "gradient_updates",
    "wall_seconds",  # from the first step to the last, evaluations included
    "env_steps_per_second",  # total_timesteps / wall_seconds
    "updates_per_second",  # gradient_updates / wall_seconds
    "eval_return_mean",  # of the last evaluation, undiscounted and unscaled; null without one
    "eval_return_std",
    "eval_episodes",
    "device",
    "backend",
    "versions",
)

_VERSIONED = ("torch", "numpy", "gymnasium", "envpool")


def versions() -> dict[str, str]:
    """Return the versions that a result depends on, without importing the packages: of those that are installed."""
    from sacfast import __version__

    found = {"sacfast": __version__, "python": platform.python_version()}
    for name in _VERSIONED:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


class RunError(ValueError):
    """A run directory that cannot be read; the message names the file and what was expected."""


class TrackingError(RuntimeError):
    """Weights & Biases has refused to begin a run."""


class Run(NamedTuple):
    """What a run directory holds, as far as it is shown."""

    path: Path
    train: dict[str, Any]  # TrainConfig.to_dict()
    sac: dict[str, Any]  # SACConfig.to_dict()
    rows: list[dict[str, float | None]]  # the lines of metrics; their "step" never falls


class MetricsLogger:
    """Writes one run's files. Without a run directory it writes nothing and every call is allowed."""

    def __init__(
        self,
        run_dir: Path | None,
        overwrite: bool = False,
        tensorboard: bool = False,
        wandb: bool = False,
        resume_step: int | None = None,
    ) -> None:
        """Take over `run_dir`.

        Args:
            run_dir: created where it does not exist; None: nothing is written.
            overwrite: whether a run already there is removed. Only the files of a run are.
            tensorboard: whether metrics also go to TensorBoard event files.
            wandb: whether they also go to Weights & Biases, as its environment variables say.
            resume_step: go on with the run in `run_dir` after this many transitions: later lines, of work that was
                lost, are removed; None: a new run. On W&B what follows is a run of its own. A file of metrics with a
                damaged line is set aside as metrics.jsonl.damaged, and its sound lines are kept.

        Raises:
            FileExistsError: `run_dir` already holds a run, `overwrite` is False and nothing is resumed.
            NotADirectoryError: `run_dir` has a link or a file in the place of a folder that a run writes to.
            ImportError: TensorBoard or W&B was asked for and is not installed.
            TrackingError: W&B was asked for and has refused, for want of an account for example.
        """
        self.run_dir = run_dir
        self._tensorboard: SummaryWriter | None = None
        self._wandb: Any = None
        if run_dir is None:
            return
        if resume_step is None:
            check_run_dir(run_dir, overwrite)
        else:
            _check_folders(run_dir)
        writer_class = import_summary_writer() if tensorboard else None
        run_dir.mkdir(parents=True, exist_ok=True)
        if wandb:
            self._wandb = _start_wandb(run_dir)  # first: its refusal leaves an earlier run as it was
        if resume_step is None:
            _remove_run(run_dir)
        else:
            for name in (SUMMARY_FILE, CSV_FILE):  # the table is made anew with the next line
                files.remove(run_dir / name)
            _cut_metrics(run_dir / METRICS_FILE, resume_step)
        self._latest_step = 0
        self._open_metrics(run_dir)
        self._table = _Table(run_dir / CSV_FILE)
        if writer_class is not None:
            purge_step = None if resume_step is None else resume_step + 1
            self._tensorboard = writer_class(log_dir=str(run_dir / TENSORBOARD), purge_step=purge_step)

    def _open_metrics(self, run_dir: Path) -> None:
        # Unbuffered: a line goes to the system in one call, so a killed process leaves only whole lines.
        self._file = files.open_regular(run_dir / METRICS_FILE, "ab")

    def take_back(self, step: int) -> None:
        """Remove the lines after `step` transitions, which were written because the run was cut short there.

        TensorBoard and Weights & Biases keep them.
        """
        if self.run_dir is None or self._latest_step <= step:
            return
        self._file.close()
        _cut_metrics(self.run_dir / METRICS_FILE, step)
        self._open_metrics(self.run_dir)
        self._table.close()  # it is written anew with the next line

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the configuration, JSON-safe; an earlier one is replaced in one step."""
        if self.run_dir is not None:
            files.write_json(self.run_dir / CONFIG_FILE, _finite({"schema_version": SCHEMA_VERSION, **config}))
        if self._wandb is not None:
            _mirror("wandb", lambda: self._wandb.config.update(dict(config), allow_val_change=True))

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line. `row["step"]` is the transitions so far; NaN and infinity become null.

        Raises OSError, as on a full disk; no part of the line is left then.
        """
        if self.run_dir is None:
            return
        row = _finite(row)
        _append(self._file, json.dumps(row, allow_nan=False).encode() + b"\n")
        self._latest_step = row["step"]
        if not self._table.append(row):
            try:
                self._table.rewrite(_read_rows(self.run_dir / METRICS_FILE))
            except RunError as error:  # another program has written to the file meanwhile
                _LOG.warning("%s: not brought up to date: %s", self.run_dir / CSV_FILE, error)
        values = {name: value for name, value in row.items() if name != "step" and value is not None}
        if (tensorboard := self._tensorboard) is not None:
            for name, value in values.items():
                _mirror("tensorboard", partial(tensorboard.add_scalar, name, value, global_step=row["step"]))
            _mirror("tensorboard", tensorboard.flush)
        if self._wandb is not None:
            _mirror("wandb", lambda: self._wandb.log(values, step=row["step"]))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which has exactly `SUMMARY_KEYS`; an earlier one is replaced in one step.

        Raises:
            ValueError: other keys.
        """
        if set(summary) != set(SUMMARY_KEYS):
            raise ValueError(f"summary: expected the keys {sorted(SUMMARY_KEYS)}, got {sorted(summary)}")
        if self.run_dir is not None:
            files.write_json(self.run_dir / SUMMARY_FILE, _finite(summary))
        if self._wandb is not None:
            _mirror("wandb", lambda: self._wandb.summary.update(dict(summary)))

    def checkpoint_path(self, step: int) -> Path | None:
        """Return where the checkpoint after `step` transitions goes; None without a run directory.

        Raises OSError where a link or a file has taken the folder's place.
        """
        return self._in_checkpoints(checkpoint.step_name(step))

    def best_path(self) -> Path | None:
        """Return where the best checkpoint goes; None without a run directory. Raises as `checkpoint_path`."""
        return self._in_checkpoints(BEST)

    def _in_checkpoints(self, name: str) -> Path | None:
        if self.run_dir is None:
            return None
        files.check_folder(self.run_dir / CHECKPOINTS)
        return self.run_dir / CHECKPOINTS / name

    def close(self) -> None:
        """Close the files; calling it again does nothing."""
        if self.run_dir is not None:
            self._file.close()
            self._table.close()
        if self._tensorboard is not None:
            _mirror("tensorboard", self._tensorboard.close)
        if self._wandb is not None:
            _mirror("wandb", self._wandb.finish)


class _Table:
    """`metrics.csv`: a column for every name that a line of metrics has, empty where a line lacks it.

    Which names come is not known when the first line does. So when a line brings a new one, the table is written
    anew beside the old one and takes its place; all other lines are appended, each in one call.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._columns: list[str] = []
        self._file: io.FileIO | None = None

    def append(self, row: Mapping[str, Any]) -> bool:
        """Append one line; False, and nothing is written, if it has a name that the table lacks."""
        if self._file is None or not set(row) <= set(self._columns):
            return False
        try:
            _append(self._file, self._lines([row]))
        except OSError:
            self.close()  # a line is missing: the next one has the table written anew
            raise
        return True

    def rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write the table anew, of all lines so far."""
        rows = list(rows)
        self._columns = list(dict.fromkeys(name for row in rows for name in row))
        files.write_bytes(self._path, self._lines([{name: name for name in self._columns}, *rows]))
        self.close()
        self._file = files.open_regular(self._path, "ab")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _lines(self, rows: Iterable[Mapping[str, Any]]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(rows)
        return text.getvalue().encode()


def read_run(run_dir: Path | str) -> Run:
    """Read the configuration and the metrics of a run, finished or not.

    Raises:
        RunError: no run directory, one of another schema version, one without metrics, or one with a file or a line
            that cannot be read.
    """
    run_dir = Path(run_dir)
    config = read_config(run_dir)
    path = run_dir / METRICS_FILE
    if not os.path.lexists(path):
        raise RunError(f"{path}: expected the metrics of a run, found none")
    rows = _read_rows(path)
    if not rows:
        raise RunError(f"{path}: expected at least one line of metrics, found none")
    return Run(run_dir, config["train"], config["sac"], rows)


def read_config(run_dir: Path) -> dict[str, Any]:
    """Read the configuration of a run: an object whose "train" and "sac" are objects.

    Raises:
        RunError: no run directory, one of another schema version, or a configuration that cannot be read.
    """
    path = run_dir / CONFIG_FILE
    if not os.path.lexists(path):
        raise RunError(f"{run_dir}: expected a run directory, which has a {CONFIG_FILE}, found none")
    try:
        config = json.loads(files.read_bytes(path, CONFIG_BYTES).decode(), parse_constant=_refuse_constant)
    except OSError as error:
        raise RunError(f"{path}: expected a file that can be read, got an error: {error}") from error
    except (ValueError, RecursionError) as error:  # of UTF-8 or of JSON; nested too deep
        raise RunError(f"{path}: expected JSON, got an error: {error}") from error
    # Before the version was recorded, the files had the form of version 1.
    found = config.get("schema_version", 1) if isinstance(config, dict) else None
    if found != SCHEMA_VERSION:
        raise RunError(f"{path}: expected a run of schema_version {SCHEMA_VERSION}, got {found}")
    if not all(isinstance(config.get(key), dict) for key in ("train", "sac")):
        raise RunError(f"{path}: expected the objects 'train' and 'sac', got {sorted(config)}")
    return dict(config)


def last_step(run_dir: Path) -> float:
    """Return the transitions at the last line of a run's metrics; -inf where there is none.

    Raises:
        RunError: a file or a line that cannot be read.
    """
    if not os.path.lexists(run_dir / METRICS_FILE):
        return -math.inf
    step = -math.inf
    for row, _ in _rows(run_dir / METRICS_FILE):
        step = row["step"]
    return step


def _read_rows(path: Path) -> list[dict[str, float | None]]:
    return [row for row, _ in _rows(path)]


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Yield every line of metrics, read and as it is written. Raises RunError that names the first damaged line."""
    step = -math.inf
    for number, line in _lines(path):
        try:
            row = _parse_line(line, step)
        except ValueError as error:
            raise RunError(f"{path}: line {number}: {error}") from error
        step = row["step"]
        yield row, line


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the content of every line; of one that is too long LINE_BYTES + 1 bytes. Raises RunError."""
    try:
        with io.BufferedReader(files.open_regular(path, "rb")) as file:
            for number, line in enumerate(iter(lambda: file.readline(LINE_BYTES + 1), b""), start=1):
                rest = line
                while len(rest) > LINE_BYTES and not rest.endswith(b"\n"):
                    rest = file.readline(LINE_BYTES + 1)
                yield number, line
    except OSError as error:
        raise RunError(f"{path}: expected a file that can be read, got an error: {error}") from error


def _parse_line(line: bytes, least_step: float) -> dict[str, Any]:
    """Read a line of metrics. Raises ValueError that says what was expected."""
    if len(line) > LINE_BYTES:
        raise ValueError(f"expected at most {LINE_BYTES} bytes, got more")
    try:
        row = json.loads(line.decode(), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        row = None
    if not (isinstance(row, dict) and all(map(_is_value, row.values()))):
        raise ValueError(f"expected a JSON object of numbers, got {line[:40].decode(errors='replace')!r}")
    if row.get("step") is None or row["step"] < least_step:
        least = f" of at least {least_step}" if math.isfinite(least_step) else ""
        raise ValueError(f"expected a 'step'{least}, got {row.get('step')}")
    return row


def _is_value(value: object) -> bool:
    """Tell whether a float64 can hold what a line of metrics has under a name."""
    if isinstance(value, int):
        return abs(value) < 2**63
    return value is None or isinstance(value, float)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"expected strict JSON, got {name}")


def _append(file: io.FileIO, line: bytes) -> None:
    """Append a whole line, or raise OSError and leave no part of it."""
    end = file.seek(0, os.SEEK_END)
    try:
        if file.write(line) != len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), file.name)
    except OSError:
        file.truncate(end)
        raise


def _mirror(tracker: str, write: Callable[[], object]) -> None:
    """Hand a tracker what the files already have: one that fails, by whatever exception, costs its own copy alone."""
    try:
        write()
    except Exception as error:
        _LOG.warning("%s: not brought up to date: %s", tracker, error)


def check_run_dir(run_dir: Path, overwrite: bool) -> None:
    """Raise FileExistsError if `run_dir` already holds a run, or is a file, and must not be overwritten.

    Raises NotADirectoryError for a link or a file in the place of a folder that a run writes to.
    """
    if run_dir.exists() and not run_dir.is_dir():
        raise FileExistsError(f"run_dir: expected a directory, got the file {run_dir}")
    _check_folders(run_dir)
    held = [name for name in (*_FILES, CHECKPOINTS) if (run_dir / name).exists()]
    if held and not overwrite:
        raise FileExistsError(
            f"run_dir: {run_dir} already holds a run ({', '.join(held)}); expected another directory, "
            "or overwrite (--overwrite) to replace it"
        )


def _check_folders(run_dir: Path) -> None:
    """Raise NotADirectoryError for a link or a file in the place of a folder that a run writes to."""
    for name in _FOLDERS:
        files.check_folder(run_dir / name)


def _remove_run(run_dir: Path) -> None:
    """Remove what a run writes, by name, and leave whatever else lies in the directory."""
    written = re.compile("|".join(rf"{re.escape(name)}(?:\.tmp|{DAMAGED}(?:\.\d+)?)?" for name in _FILES), re.ASCII)
    for name in files.list_folder(run_dir.resolve()):
        if written.fullmatch(name):
            files.remove(run_dir / name)
    for name in files.list_folder(run_dir / TENSORBOARD):
        if name.startswith("events.out.tfevents."):
            files.remove(run_dir / TENSORBOARD / name)
    for name in files.list_folder(run_dir / CHECKPOINTS):
        path = run_dir / CHECKPOINTS / name
        if _CHECKPOINT.fullmatch(name) and (checkpoint.is_checkpoint(path) or "." in name):
            files.remove(path)
    for folder in (run_dir / TENSORBOARD, run_dir / CHECKPOINTS):
        if folder.is_dir() and not files.list_folder(folder):
            folder.rmdir()


def _cut_metrics(path: Path, step: int) -> None:
    """Keep the sound lines up to `step` transitions. A file that also has damaged ones is set aside as it is."""
    kept: list[bytes] = []
    faults: list[str] = []
    try:
        for row in _sound_lines(path, step, faults):
            kept.append(row.removesuffix(b"\n") + b"\n")
    except RunError as error:
        faults.append(str(error))
    if faults and os.path.lexists(path):
        aside = files.free_name(path.with_name(path.name + DAMAGED))
        path.rename(aside)
        more = f" (the first of {len(faults)} damaged lines)" if len(faults) > 1 else ""
        _LOG.warning(
            "%s%s; the %d sound lines up to %d transitions are kept, the whole file is now %s",
            *(faults[0], more, len(kept), step, aside),
        )
    elif faults:
        _LOG.warning("%s: expected the metrics of the run, found none: a new file is begun", path)
    files.write_bytes(path, b"".join(kept))


def _sound_lines(path: Path, at_most: int, faults: list[str]) -> Iterator[bytes]:
    """Yield the lines of at most `at_most` transitions that can be read and never go back; add the others' `faults`."""
    least = -math.inf
    beyond = None  # a line, and its step, of more transitions: those may only come at the end
    for number, line in _lines(path):
        try:
            step = _parse_line(line, least)["step"]
        except ValueError as error:
            faults.append(f"{path}: line {number}: {error}")
            continue
        if step > at_most:
            beyond = number, step
            continue
        if beyond is not None:
            faults.append(f"{path}: line {beyond[0]}: expected a 'step' of at most {step}, got {beyond[1]}")
            beyond = None
        least = step
        yield line


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON has no words for, by None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def import_summary_writer() -> type[SummaryWriter]:
    """Return TensorBoard's writer, or raise ImportError that says how to install it."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError(
            "tensorboard: expected the tensorboard package, which is not installed; pip install 'sacfast[tensorboard]'"
        ) from error
    return SummaryWriter


def import_wandb() -> Any:
    """Return the wandb package, or raise ImportError that says how to install it."""
    try:
        import wandb
    except ImportError as error:
        raise ImportError(
            "wandb: expected the wandb package, which is not installed; pip install 'sacfast[wandb]'"
        ) from error
    return wandb


def _start_wandb(run_dir: Path) -> Any:
    """Begin a run of Weights & Biases, online or as WANDB_MODE says."""
    wandb = import_wandb()
    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", WANDB_PROJECT),
            name=run_dir.name,
            dir=str(run_dir),
            reinit="create_new",  # each model of this process has a run of its own
        )
    except wandb.errors.Error as error:
        raise TrackingError(
            f"wandb: expected an account (`wandb login`) or WANDB_MODE=offline, got an error: {error}"
        ) from error
