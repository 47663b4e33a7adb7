"""The files of a run: its configuration, a line of metrics an interval, and a summary.

RUN_DIR/
  config.json       {"train": TrainConfig, "sac": SACConfig}
  metrics.jsonl     one strict JSON object a line, each written whole
  summary.json      the run in one object, written at its end
  checkpoints/      step_<transitions>/ and best/, see `sacfast.checkpoint`
  tensorboard/      event files, when asked for
"""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sacfast import checkpoint

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
SUMMARY_FILE = "summary.json"
CHECKPOINTS = "checkpoints"
BEST = "best"
TENSORBOARD = "tensorboard"

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
    """Return the versions that a result depends on, without importing the packages."""
    from sacfast import __version__

    packages = {name: metadata.version(name) for name in _VERSIONED}
    return {"sacfast": __version__, "python": platform.python_version(), **packages}


class MetricsLogger:
    """Writes one run's files. Without a run directory it writes nothing and every call is allowed."""

    def __init__(
        self,
        run_dir: Path | None,
        overwrite: bool = False,
        tensorboard: bool = False,
        resume_step: int | None = None,
    ) -> None:
        """Take over `run_dir`.

        Args:
            run_dir: created where it does not exist; None: nothing is written.
            overwrite: whether a run already there is removed. Only the files of a run are.
            tensorboard: whether metrics also go to TensorBoard event files.
            resume_step: go on with the run in `run_dir` after this many transitions: later lines, of work that was
                lost, are removed; None: a new run.

        Raises:
            FileExistsError: `run_dir` already holds a run, `overwrite` is False and nothing is resumed.
            ImportError: TensorBoard was asked for and is not installed.
        """
        self.run_dir = run_dir
        self._tensorboard: SummaryWriter | None = None
        if run_dir is None:
            return
        if resume_step is None:
            check_run_dir(run_dir, overwrite)
        writer_class = import_summary_writer() if tensorboard else None
        run_dir.mkdir(parents=True, exist_ok=True)
        if resume_step is None:
            _remove_run(run_dir)
        else:
            (run_dir / SUMMARY_FILE).unlink(missing_ok=True)
            _cut_metrics(run_dir / METRICS_FILE, resume_step)
        # Unbuffered: a line goes to the system in one call, so a killed process leaves only whole lines.
        self._file = (run_dir / METRICS_FILE).open("ab", buffering=0)
        if writer_class is not None:
            purge_step = None if resume_step is None else resume_step + 1
            self._tensorboard = writer_class(log_dir=str(run_dir / TENSORBOARD), purge_step=purge_step)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write the configuration, JSON-safe; an earlier one is replaced in one step."""
        if self.run_dir is not None:
            write_json(self.run_dir / CONFIG_FILE, config)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line. `row["step"]` is the transitions so far; NaN and infinity become null.

        Raises OSError, as on a full disk; no part of the line is left then.
        """
        if self.run_dir is None:
            return
        self._append(_to_json(row, indent=None).encode() + b"\n")
        if self._tensorboard is not None:
            for name, value in row.items():
                if name != "step" and value is not None:
                    self._tensorboard.add_scalar(name, value, global_step=row["step"])
            self._tensorboard.flush()

    def _append(self, line: bytes) -> None:
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), METRICS_FILE)
        except OSError:
            self._file.truncate(end)
            raise

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write the summary, which has exactly `SUMMARY_KEYS`; an earlier one is replaced in one step.

        Raises:
            ValueError: other keys.
        """
        if set(summary) != set(SUMMARY_KEYS):
            raise ValueError(f"summary: expected the keys {sorted(SUMMARY_KEYS)}, got {sorted(summary)}")
        if self.run_dir is not None:
            write_json(self.run_dir / SUMMARY_FILE, summary)

    def checkpoint_path(self, step: int) -> Path | None:
        """Return where the checkpoint after `step` transitions goes; None without a run directory."""
        return None if self.run_dir is None else self.run_dir / CHECKPOINTS / checkpoint.step_name(step)

    def best_path(self) -> Path | None:
        """Return where the best checkpoint goes; None without a run directory."""
        return None if self.run_dir is None else self.run_dir / CHECKPOINTS / BEST

    def close(self) -> None:
        """Close the files; calling it again does nothing."""
        if self.run_dir is not None:
            self._file.close()
        if self._tensorboard is not None:
            self._tensorboard.close()


def check_run_dir(run_dir: Path, overwrite: bool) -> None:
    """Raise FileExistsError if `run_dir` already holds a run, or is a file, and must not be overwritten."""
    if run_dir.exists() and not run_dir.is_dir():
        raise FileExistsError(f"run_dir: expected a directory, got the file {run_dir}")
    held = [name for name in (CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, CHECKPOINTS) if (run_dir / name).exists()]
    if held and not overwrite:
        raise FileExistsError(
            f"run_dir: {run_dir} already holds a run ({', '.join(held)}); expected another directory, "
            "or overwrite (--overwrite) to replace it"
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file so that a reader sees the old content or the new, never a part."""
    partial = path.with_name(f"{path.name}.tmp")
    with partial.open("w") as file:
        file.write(_to_json(content, indent=2) + "\n")
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _remove_run(run_dir: Path) -> None:
    """Remove what a run writes, by name, and leave whatever else lies in the directory."""
    for name in (CONFIG_FILE, METRICS_FILE, SUMMARY_FILE):
        for path in (run_dir / name, run_dir / f"{name}.tmp"):
            path.unlink(missing_ok=True)
    for path in (run_dir / TENSORBOARD).glob("events.out.tfevents.*"):
        path.unlink()
    for pattern in (f"{checkpoint.STEP_PREFIX}*", f"{BEST}*"):
        for path in (run_dir / CHECKPOINTS).glob(pattern):
            if checkpoint.is_checkpoint(path) or path.suffix in (".tmp", ".old", ".damaged"):
                shutil.rmtree(path)
    for folder in (run_dir / TENSORBOARD, run_dir / CHECKPOINTS):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _cut_metrics(path: Path, step: int) -> None:
    """Keep the lines up to `step` transitions."""
    if path.exists():
        kept = []
        for line in path.read_text().splitlines(keepends=True):
            try:
                if json.loads(line)["step"] > step:
                    break
            except (ValueError, KeyError):  # damaged: what follows cannot be trusted either
                break
            kept.append(line)
        partial = path.with_name(f"{path.name}.tmp")
        partial.write_text("".join(kept))
        partial.replace(path)


def _to_json(content: Mapping[str, Any], indent: int | None) -> str:
    return json.dumps(_finite(content), indent=indent, allow_nan=False)


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
