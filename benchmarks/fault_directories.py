"""Faults of a run directory and of the output, for `benchmarks.faults`. Each case returns whether nothing was lost."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.fault_runs import COMMON, Child, end_of, newest, resume, train
from sacfast import SAC

LONGER = ("--total-timesteps", "10300")
"""How much longer a finished run is made to see whether it goes on."""


def contents(folder: Path) -> dict[str, bytes | str]:
    """Return every file's bytes and every link's target, by path."""
    return {
        str(path.relative_to(folder)): os.readlink(path) if path.is_symlink() else path.read_bytes()  # noqa: PTH115
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


# ---- A checkpoints folder that cannot be read --------------------------------------------------------------------


def move_away(checkpoints: Path) -> None:
    """Leave a link to a file system that is not mounted."""
    checkpoints.rename(checkpoints.with_name("elsewhere"))
    checkpoints.symlink_to("/nowhere/checkpoints")


def turn_in_circles(checkpoints: Path) -> None:
    checkpoints.rename(checkpoints.with_name("elsewhere"))
    checkpoints.symlink_to(checkpoints)


def put_a_file_there(checkpoints: Path) -> None:
    checkpoints.rename(checkpoints.with_name("elsewhere"))
    checkpoints.write_text("lost+found")


def lose(checkpoints: Path) -> None:
    """Leave a run that has metrics and no checkpoint: it has not just begun."""
    checkpoints.rename(checkpoints.with_name("elsewhere"))
    checkpoints.mkdir()


HIDINGS = (move_away, turn_in_circles, put_a_file_there, lose)


def is_refused_and_kept(hide: Callable[[Path], None], run_dir: Path, copy: Path) -> bool:
    """Return whether a run whose checkpoints cannot be found is not begun anew over what is left of it."""
    shutil.copytree(run_dir, copy)
    hide(copy / "checkpoints")
    before = contents(copy)
    try:
        SAC.resume(copy, progress=False).learn(100)
    except (ValueError, OSError):
        return contents(copy) == before
    finally:
        shutil.rmtree(copy)
    return False


# ---- Two processes -----------------------------------------------------------------------------------------------


def resume_too(run_dir: Path) -> Child:
    return Child(("train", "--resume", str(run_dir), "--no-progress"), run_dir.with_suffix(".second"))


def overwrite_too(run_dir: Path) -> Child:
    arguments = (*COMMON, "--no-progress", "--overwrite", "--run-dir", str(run_dir))
    return Child((*arguments, "--total-timesteps", "500"), run_dir.with_suffix(".second"))


SECONDS = (resume_too, overwrite_too)


def first_is_unharmed(
    second: Callable[[Path], Child], run_dir: Path, flags: tuple[str, ...], expected: dict[str, Any]
) -> bool:
    """Return whether a second process in a run directory is refused, and the first one's run as if alone."""
    first = train(run_dir, flags)
    while first.running and not newest(run_dir):
        time.sleep(0.02)
    refused = second(run_dir).wait()[0] != 0
    met = first.running
    code, said = first.wait()
    if not met and not refused:
        raise RuntimeError("the first run had ended before the second one began")
    unharmed = code == 0 and end_of(run_dir) == expected
    if not (refused and unharmed):
        print(f"{second.__name__}: refused {refused}, first unharmed {unharmed}: {said}", flush=True)
    shutil.rmtree(run_dir)
    return refused and unharmed


# ---- metrics.jsonl -----------------------------------------------------------------------------------------------


def spoil_a_byte(lines: list[bytes]) -> list[bytes]:
    return [*lines[:20], lines[20].replace(b":", b"\xff", 1), *lines[21:]]


def lose_the_final_newline(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], lines[-1].rstrip(b"\n")]


def cut_the_last_line(lines: list[bytes]) -> list[bytes]:
    return [*lines[:-1], lines[-1][:25]]


def nest_deeply(lines: list[bytes]) -> list[bytes]:
    return [*lines[:20], b"[" * 200_000 + b"\n", *lines[20:]]


def fill_with_zeros(lines: list[bytes]) -> list[bytes]:
    return [*lines[:20], bytes(4096), *lines[20:]]


LINE_DAMAGES = (spoil_a_byte, lose_the_final_newline, cut_the_last_line, nest_deeply, fill_with_zeros)


def metrics_are_kept(damage: Callable[[list[bytes]], list[bytes]], run_dir: Path, copy: Path) -> bool:
    """Return whether a run whose metrics are damaged goes on, with the lines that were sound before the damage."""
    shutil.copytree(run_dir, copy)
    path = copy / "metrics.jsonl"
    before = path.read_bytes().splitlines(keepends=True)
    after = damage(before)
    path.write_bytes(b"".join(after))
    sound = [old for old, new in zip(before, after, strict=False) if old == new]
    sound = sound[: next((index for index, line in enumerate(after) if line not in before), len(sound))]
    code, said = resume(copy, *LONGER).wait()
    lines = path.read_bytes().splitlines(keepends=True)
    steps = [json.loads(line)["step"] for line in lines] if code == 0 else []
    kept = code == 0 and lines[: len(sound)] == sound and steps == sorted(steps) and steps[-1] == int(LONGER[1])
    if not kept:
        print(f"{damage.__name__}: exit code {code}, {len(lines)} lines: {said[-500:]}", flush=True)
    shutil.rmtree(copy)
    return kept


# ---- Output that cannot be written -------------------------------------------------------------------------------


def to_a_dead_pipe(_output: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    os.dup2(writing, 2)


def to_a_full_disk(_output: Path) -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)


def nowhere(_output: Path) -> None:
    os.close(1)
    os.close(2)


DEAD_OUTPUTS = (to_a_dead_pipe, to_a_full_disk, nowhere)


def ends_unheard(
    redirect: Callable[[Path], None], run_dir: Path, flags: tuple[str, ...], expected: dict[str, Any]
) -> bool:
    """Return whether a run whose output cannot be written, its progress bar included, ends as any other."""
    child = Child((*COMMON, "--progress", *flags, "--run-dir", str(run_dir)), run_dir.with_suffix(".log"), redirect)
    code, _ = child.wait()
    kept = (run_dir / "summary.json").exists() and end_of(run_dir) == expected
    if not kept:
        print(f"{redirect.__name__}: exit code {code}, {newest(run_dir)} transitions kept", flush=True)
    shutil.rmtree(run_dir, ignore_errors=True)
    return kept


# ---- Traps under the names of temporary files --------------------------------------------------------------------

TEMPORARY = (
    *("config.json.tmp", "metrics.jsonl.tmp", "metrics.csv.tmp", "summary.json.tmp"),
    *("checkpoints/step_000000010300.tmp", "checkpoints/best.tmp"),
)
TRAPS = tuple((name, is_link) for name in TEMPORARY for is_link in (True, False))


def victim_is_untouched(trap: tuple[str, bool], run_dir: Path, copy: Path) -> bool:
    """Return whether a run goes on past a link to another's file, or a FIFO, where it would write a temporary file."""
    name, is_link = trap
    shutil.copytree(run_dir, copy)
    victim = copy.with_name("victim")
    if name.startswith("checkpoints"):
        victim.mkdir()
        (victim / "thesis.txt").write_text("words")
    else:
        victim.write_text("words")
    if is_link:
        (copy / name).symlink_to(victim)
    else:
        os.mkfifo(copy / name)
    code, said = resume(copy, *LONGER).wait()
    words = victim / "thesis.txt" if victim.is_dir() else victim
    kept = code == 0 and newest(copy) == int(LONGER[1]) and words.is_file() and words.read_text() == "words"
    if not kept:
        print(f"{name}, {'link' if is_link else 'FIFO'}: exit code {code}: {said[-500:]}", flush=True)
    shutil.rmtree(copy)
    shutil.rmtree(victim) if victim.is_dir() else victim.unlink()
    return kept
