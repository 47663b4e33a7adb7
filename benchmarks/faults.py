"""Is a run ever lost? Makes each fault for real, takes the run up again, and prints a table: fault, tries, lost.

    make faults            python -m benchmarks.faults --kills 50 --output FILE

Runs are processes of their own, and the signals those of the system. A full disk is a small file system in memory. A
try is lost if the run could not be taken up from its newest whole checkpoint, or did not end, bit for bit, as a run
that nothing disturbed: with the same learner, random streams, replay buffer, lines of metrics, summary and best policy.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import fault_cases as cases
from benchmarks import fault_directories as directories
from benchmarks.fault_runs import BACKENDS, PROCESSES, Child, end_of, newest, resume, train, undisturbed
from sacfast import checkpoint, files
from sacfast.benchmark import report


class Row(NamedTuple):
    """A line of the table."""

    fault: str
    tries: int
    lost: int


class Stop(NamedTuple):
    """A way to stop a process: the signals that it is sent, and the exit codes that it may then have."""

    name: str
    signals: tuple[int, ...]
    codes: tuple[int, ...]  # a negative one: the signal came before the run took note of signals


KILL = Stop("kill -9", (signal.SIGKILL,), (-signal.SIGKILL,))
ASKING = (
    Stop("SIGTERM", (signal.SIGTERM,), (143, -signal.SIGTERM)),
    Stop("Ctrl-C", (signal.SIGINT,), (130, -signal.SIGINT)),
    Stop("Ctrl-C twice", (signal.SIGINT, signal.SIGINT), (130, -signal.SIGINT)),
)
Wait = Callable[[Child, Path], bool]


def at_random(child: Child, _run_dir: Path) -> bool:
    child.process.join(random.uniform(0.2, 3.0))
    return child.running


def while_saving(child: Child, run_dir: Path) -> bool:
    """Wait for a save that is half done, some of them further than others."""
    child.process.join(random.uniform(0.2, 1.0))
    while child.running and not list(run_dir.glob("checkpoints/*.tmp")):
        time.sleep(0.0005)
    time.sleep(random.uniform(0.0, 0.03))
    return child.running


def stop_and_resume(
    folder: Path, stop: Stop, count: int, flags: tuple[str, ...], wait: Wait, expected: dict[str, Any]
) -> tuple[int, int]:
    """Stop runs, each again and again until it ends; return how often, and how many tries were lost."""
    folder.mkdir()
    done = lost = half_saved = number = 0
    while done < count:
        number += 1
        run_dir = folder / f"run{number}"
        tries, ended = 0, False
        had = 0
        while not ended:
            begun = (run_dir / "config.json").exists()
            child = resume(run_dir) if begun else train(run_dir, (*flags, "--overwrite"))
            if done + tries < count and wait(child, run_dir):
                send(child, stop)
            code, said = child.wait()
            if begun and had and "resumed after" in said and f"resumed after {had} transitions" not in said:
                print(f"resumed from another checkpoint than the newest whole one, at {had}: {said}", flush=True)
                lost += 1
            had = newest(run_dir)
            if code in stop.codes:
                tries += 1
                half_saved += bool(list(run_dir.glob("checkpoints/*.tmp")))
                if code > 0 and len(stop.signals) == 1 and not has_kept_all(run_dir, had):
                    print(f"{stop.name}: what was learned last was not kept: {said}", flush=True)
                    lost += 1
            elif code:
                print(f"exit code {code}: {said}", flush=True)
                lost += tries + 1
                done += 1
                break
            ended = code == 0
        if ended and end_of(run_dir) != expected:
            print(f"{run_dir.name} ended otherwise than the undisturbed run, after {tries} stops", flush=True)
            lost += tries
        done += tries
        shutil.rmtree(run_dir)
    if wait is while_saving:
        print(f"  {half_saved} of {done} kills left a save half done", flush=True)
    return done, lost


def send(child: Child, stop: Stop) -> None:
    for number in stop.signals:
        if child.running:
            child.signal(number)
        time.sleep(random.uniform(0.0, 0.02))


def has_kept_all(run_dir: Path, had: int) -> bool:
    """Return whether a run that was asked to stop says so, and has a checkpoint of all that it did."""
    path = run_dir / "summary.json"
    if not path.exists():  # asked before it had begun
        return True
    summary = json.loads(path.read_text())
    return summary["status"] in ("interrupted", "completed") and summary["total_timesteps"] == had


# ---- All of it ---------------------------------------------------------------------------------------------------


def count_lost(fault: str, attempts: list[Callable[[], bool]]) -> Row:
    """Make every attempt; one that raises is lost too, and says why."""
    lost = 0
    for attempt in attempts:
        try:
            kept = attempt()
        except Exception as error:
            print(f"{fault}: {type(error).__name__}: {error}", flush=True)
            kept = False
        lost += not kept
    return announce(Row(fault, len(attempts), lost))


def announce(row: Row) -> Row:
    print(row, flush=True)
    return row


def stopped_runs(folder: Path, kills: int, tries: int) -> list[Row]:
    """Stop runs of either backend at any time, and during saves."""
    rows = []
    for backend, flags in BACKENDS.items():
        seconds = undisturbed(folder / backend, flags)
        expected = end_of(folder / backend)
        saves = int(flags[flags.index("--total-timesteps") + 1]) / int(flags[flags.index("--checkpoint-every") + 1])
        print(f"{backend}: {seconds:.0f} s undisturbed, a checkpoint every {seconds / saves:.1f} s", flush=True)
        plan: list[tuple[str, Stop, int, Wait]] = [
            ("kill -9", KILL, kills // 2, at_random),
            ("kill -9 during a save", KILL, max(1, kills // 4), while_saving),
            *((stop.name, stop, tries, at_random) for stop in ASKING),
        ]
        for number, (name, stop, count, wait) in enumerate(plan):
            counts = stop_and_resume(folder / f"{backend}-{number}", stop, count, flags, wait, expected)
            rows.append(announce(Row(f"{name}, {backend}", *counts)))
    return rows


def other_faults(folder: Path, tries: int) -> list[Row]:
    """Make all faults but stops; `folder` has the runs "fused" and "reference" that nothing disturbed."""
    sound, copy = folder / "fused", folder / "copy"
    flags, expected = BACKENDS["fused"], end_of(folder / "fused")
    slow = BACKENDS["reference"]  # still at work when a second process has started
    names = [f"{group}.safetensors" for group in ("learner", "policy", "replay")] + [checkpoint.MANIFEST]
    damages = {
        "truncated": cases.cut,
        "flipped bit": cases.flip_a_bit,
        "pickle instead": cases.pickle_instead,
        "file missing": Path.unlink,
    }
    small_disk = folder / "disk"
    small_disk.mkdir()

    def damaged(damage: Callable[[Path], None]) -> list[Callable[[], bool]]:
        chosen = names[:3] if damage is Path.unlink else names * 2  # without a manifest it is no checkpoint at all
        return [lambda name=name: cases.is_passed_over(sound, copy, name, damage) for name in chosen]

    def spoiled(name: str, env_id: str, named: str, *callbacks: Any) -> list[Callable[[], bool]]:
        return [
            lambda backend=backend: cases.stops_and_keeps(
                folder / f"{name}-{backend}", env_id, backend, named, *callbacks
            )
            for backend in BACKENDS
        ]

    def each(case: Callable[..., bool], kinds: Any, *arguments: Any) -> list[Callable[[], bool]]:
        return [lambda kind=kind: case(kind, *arguments) for kind in kinds]

    faults: dict[str, list[Callable[[], bool]]] = {
        "disk full": [lambda: cases.full_disk(small_disk)],
        **{f"checkpoint: {name}": damaged(damage) for name, damage in damages.items()},
        "checkpoint of another task": [lambda: cases.another_task_is_refused(sound, folder)],
        "manifest changed, its sum too": [lambda: cases.resealed_is_taken(sound, copy, cases.change_manifest)]
        * (4 * tries),
        "tensor's header changed, its sum too": [lambda: cases.resealed_is_taken(sound, copy, cases.change_header)]
        * (4 * tries),
        "reward not finite": spoiled("reward", "sacfast_faults/Broken-v0", "reward = nan"),
        "loss not finite": spoiled("loss", "Pendulum-v1", "critic_loss", cases.Spoil()),
        "environment not repeatable": [lambda: cases.restlessness_is_said(folder / "restless")] * 2,
        "checkpoints folder unreadable": each(directories.is_refused_and_kept, directories.HIDINGS, sound, copy),
        "two runs in one directory": each(
            directories.first_is_unharmed, directories.SECONDS, folder / "shared", slow, end_of(folder / "reference")
        ),
        "metrics.jsonl damaged": each(directories.metrics_are_kept, directories.LINE_DAMAGES, sound, copy),
        "output dead": each(directories.ends_unheard, directories.DEAD_OUTPUTS, folder / "dead", flags, expected),
        "link or FIFO under a temporary name": each(directories.victim_is_untouched, directories.TRAPS, sound, copy),
    }
    return [count_lost(fault, attempts) for fault, attempts in faults.items()]


def table(rows: list[Row]) -> str:
    """Format the rows."""
    lines = [f"{'fault':40} {'tries':>5} {'lost':>5}"]
    return "\n".join(lines + [f"{row.fault:40} {row.tries:5} {row.lost:5}" for row in rows])


def main() -> int:
    """Make the faults; return 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="kill -9 at random times; half as many more during saves")
    parser.add_argument("--tries", type=int, default=10, help="of each signal that asks to stop, with each backend")
    parser.add_argument("--seed", type=int, default=0, help="of the times and places of the faults")
    parser.add_argument("--output", type=Path, default=Path("build/faults.json"), help="JSON file to write")
    options = parser.parse_args()
    random.seed(options.seed)
    logging.getLogger("sacfast").propagate = False
    logging.getLogger("sacfast").addHandler(logging.NullHandler())  # what is meant to be said is checked, not printed
    PROCESSES.set_forkserver_preload(["sacfast.cli", "sacfast.trainer"])
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="sacfast-faults-") as name:
        folder = Path(name)
        rows = stopped_runs(folder, options.kills, options.tries) + other_faults(folder, options.tries)
    print(table(rows))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    command = f"python -m benchmarks.faults --kills {options.kills} --tries {options.tries} --seed {options.seed}"
    content = {
        **report.provenance(command),
        "wall_seconds": time.perf_counter() - start,
        "rows": [row._asdict() for row in rows],
    }
    files.write_json(options.output, content)
    return int(any(row.lost for row in rows))


if __name__ == "__main__":
    sys.exit(main())
