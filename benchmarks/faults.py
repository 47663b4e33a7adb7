"""Is a run ever lost? Makes each fault for real, takes the run up again, and prints a table: fault, tries, lost.

    make faults            python -m benchmarks.faults --kills 50 --output FILE

Runs are processes of their own, and the signals those of the system. A full disk is a small file system in memory. A
try is lost if the run could not be taken up from its newest whole checkpoint, or did not end, bit for bit, as a run
that nothing disturbed: with the same learner, random streams, replay buffer and lines of metrics.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch

from sacfast import SAC, checkpoint, cli, files
from sacfast.benchmark import report
from sacfast.callbacks import Callback

ROOT = Path(__file__).parents[1]
TIMES = ("wall_seconds", "env_steps_per_second", "updates_per_second")
COMMON = (
    *("train", "--env-id", "Pendulum-v1", "--num-envs", "4", "--hidden-sizes", "32", "32", "--batch-size", "32"),
    *("--learning-starts", "200", "--replay-capacity", "1500", "--evaluation-episodes", "1", "--torch-threads", "1"),
    *("--evaluate-every", "1000", "--log-interval", "250", "--no-progress"),
)
# A checkpoint about every second on two cores that others use too.
BACKENDS = {
    "fused": ("--total-timesteps", "10000", "--checkpoint-every", "500"),
    "reference": ("--backend", "reference", "--total-timesteps", "2000", "--checkpoint-every", "100"),
}
# Forked from a process that has imported everything: a child is at work within a fraction of a second.
PROCESSES = multiprocessing.get_context("forkserver")


class Row(NamedTuple):
    """A line of the table."""

    fault: str
    tries: int
    lost: int


class Child:
    """The command line in a process of its own; what it says goes to a file."""

    def __init__(self, arguments: tuple[str, ...], output: Path) -> None:
        self.output = output
        self.process: BaseProcess = PROCESSES.Process(target=_run_command, args=(arguments, output))
        self.process.start()

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self) -> tuple[int, str]:
        """Return the exit code (negative: the signal that killed it) and what was said."""
        self.process.join()
        assert self.process.exitcode is not None
        return self.process.exitcode, self.output.read_text() if self.output.exists() else ""

    @property
    def running(self) -> bool:
        return self.process.is_alive()


def _run_command(arguments: tuple[str, ...], output: Path) -> None:
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.exit(cli.main(arguments))


def train(run_dir: Path, flags: tuple[str, ...]) -> Child:
    return Child((*COMMON, *flags, "--run-dir", str(run_dir)), run_dir.with_suffix(".log"))


def resume(run_dir: Path) -> Child:
    return Child(("train", "--resume", str(run_dir), "--no-progress"), run_dir.with_suffix(".log"))


def undisturbed(run_dir: Path, flags: tuple[str, ...]) -> float:
    """Make a run that nothing disturbs; return its seconds."""
    start = time.perf_counter()
    code, said = train(run_dir, flags).wait()
    if code:
        raise RuntimeError(f"the undisturbed run ended with {code}: {said}")
    return time.perf_counter() - start


def end_of(run_dir: Path) -> dict[str, Any]:
    """Return all that a run left, but for times: sums of its tensors, its counts, its lines of metrics."""
    manifest = checkpoint.read_manifest(checkpoint.find(run_dir, ("learner", "policy", "replay")))
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        "files": manifest["files"],
        "exploration": manifest["exploration"],
        "progress": without_times(manifest["progress"]),
        "metrics": [without_times(line) for line in lines],
    }


def without_times(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in TIMES}


def newest(run_dir: Path) -> int:
    steps = checkpoint.steps(run_dir / "checkpoints")
    return int(steps[-1].name.removeprefix(checkpoint.STEP_PREFIX)) if steps else 0


# ---- kill -9 -----------------------------------------------------------------------------------------------------


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


def kill_and_resume(
    folder: Path, kills: int, flags: tuple[str, ...], wait: Callable[[Child, Path], bool], expected: dict[str, Any]
) -> tuple[int, int]:
    """Kill runs, each again and again until it ends; return how often, and how many tries were lost."""
    folder.mkdir()
    done = lost = half_saved = number = 0
    while done < kills:
        number += 1
        run_dir = folder / f"run{number}"
        tries, ended = 0, False
        had = 0
        while not ended:
            begun = (run_dir / "config.json").exists()
            child = resume(run_dir) if begun else train(run_dir, (*flags, "--overwrite"))
            killed = done + tries < kills and wait(child, run_dir)
            if killed:
                child.signal(signal.SIGKILL)
            code, said = child.wait()
            if begun and had and "resumed after" in said and f"resumed after {had} transitions" not in said:
                print(f"resumed from another checkpoint than the newest whole one, at {had}: {said}", flush=True)
                lost += 1
            if code == -signal.SIGKILL:
                tries += 1
                half_saved += bool(list(run_dir.glob("checkpoints/*.tmp")))
                had = newest(run_dir)
            elif code:
                print(f"exit code {code}: {said}", flush=True)
                lost += tries + 1
                done += 1
                break
            ended = code == 0
        if ended and end_of(run_dir) != expected:
            print(f"{run_dir.name} ended otherwise than the undisturbed run, after {tries} kills", flush=True)
            lost += tries
        done += tries
        shutil.rmtree(run_dir)
    if wait is while_saving:
        print(f"  {half_saved} of {done} kills left a save half done", flush=True)
    return done, lost


# ---- Signals that ask to stop ------------------------------------------------------------------------------------


def stop_and_resume(folder: Path, number: int, code: int, signals: int = 1) -> bool:
    """Return whether a run that is told to stop keeps everything, says so by its exit code, and can be taken up."""
    run_dir = folder / f"stop{number}x{signals}"
    child = train(run_dir, ("--total-timesteps", "1000000", "--checkpoint-every", "500"))
    while child.running and not newest(run_dir):
        time.sleep(0.02)
    time.sleep(random.uniform(0.0, 1.0))
    had = newest(run_dir)
    for index in range(signals):
        time.sleep(0.01 * index)
        if child.running:
            child.signal(number)
    found, said = child.wait()
    kept = found == code or (signals > 1 and found == -number)
    model = SAC.resume(run_dir, progress=False)
    if signals == 1:
        summary = json.loads((run_dir / "summary.json").read_text())
        kept &= summary["status"] == "interrupted" and summary["total_timesteps"] == model.timesteps
    kept &= model.timesteps >= had
    model.learn(100)
    if not kept:
        print(
            f"signal {number}: exit code {found}, {model.timesteps} of at least {had} transitions kept: {said}",
            flush=True,
        )
    shutil.rmtree(run_dir)
    return kept


# ---- Disk full ---------------------------------------------------------------------------------------------------


class FillDisk(Callback):
    """Fills the disk after some transitions, and empties it after some more."""

    def __init__(self, folder: Path, fill: int, empty: int) -> None:
        self.filler, self.fill, self.empty = folder / "filler", fill, empty
        self.kept = 0

    def on_step(self, model: SAC, *_: Any) -> None:
        if model.timesteps == self.fill:
            self.kept = newest_of(model)
            with self.filler.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(4096)):
                        pass
                except OSError:
                    pass
        if model.timesteps == self.empty:
            assert newest_of(model) == self.kept == SAC.load(self.filler.parent / "run").timesteps
            self.filler.unlink()


def newest_of(model: SAC) -> int:
    assert model.train_config.run_dir is not None
    return newest(model.train_config.run_dir)


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


def train_on_a_full_disk(folder: Path) -> bool:
    """Return whether a run outlives a disk that is full for a while, on the file system of `folder`, a small one."""
    settings: dict[str, Any] = {
        **{"num_envs": 4, "hidden_sizes": (32, 32), "batch_size": 32, "learning_starts": 200, "torch_threads": 1},
        **{"evaluation_episodes": 0, "checkpoint_every": 500, "replay_capacity": 10_000, "progress": False},
    }
    heard = Warnings()
    logging.getLogger("sacfast").addHandler(heard)
    callbacks = [FillDisk(folder, fill=1200, empty=2800)]
    disturbed = SAC("Pendulum-v1", run_dir=folder / "run", **settings).learn(4000, callbacks=callbacks)
    with tempfile.TemporaryDirectory() as elsewhere:
        plain = SAC("Pendulum-v1", run_dir=Path(elsewhere) / "run", **settings).learn(4000)
    failed = [message for message in heard.messages if "No space left on device" in message]
    one, other = disturbed.learner.state_dict(), plain.learner.state_dict()
    same = all(torch.equal(one[name], other[name]) for name in one)
    resumed = SAC.resume(folder / "run", progress=False).timesteps
    saves = sum("no checkpoint at" in message for message in failed)
    print(f"  {saves} saves and {len(failed) - saves} lines of metrics failed for want of space", flush=True)
    return same and saves == 3 and resumed == 4000


def full_disk(folder: Path) -> bool:
    """Mount a small file system in memory, in a name space of its own, and train on it."""
    inner = (
        "import sys; from pathlib import Path; from benchmarks import faults; "
        f"sys.exit(not faults.train_on_a_full_disk(Path({str(folder)!r})))"
    )
    script = f'mount -t tmpfs -o size=2m none "{folder}" && exec "{sys.executable}" -c "$0"'
    done = subprocess.run(["unshare", "--map-root-user", "--mount", "sh", "-c", script, inner], cwd=ROOT, check=False)
    return done.returncode == 0


# ---- Damaged checkpoints -----------------------------------------------------------------------------------------


def cut(path: Path) -> None:
    os.truncate(path, random.randrange(path.stat().st_size))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[random.randrange(len(content))] ^= 1 << random.randrange(8)
    path.write_bytes(content)


def pickle_instead(path: Path) -> None:
    torch.save({"weights": torch.ones(3)}, path)


def is_passed_over(run_dir: Path, copy: Path, name: str, damage: Callable[[Path], None]) -> bool:
    """Return whether a damaged checkpoint is refused, and the one before it taken and said to be."""
    shutil.copytree(run_dir, copy)
    heard = Warnings()
    logging.getLogger("sacfast").addHandler(heard)
    newest_path, older = reversed(checkpoint.steps(copy / "checkpoints")[-2:])
    before = checkpoint.read_manifest(newest_path)
    damage(newest_path / name)
    harmless = False
    with contextlib.suppress(checkpoint.CheckpointError):
        harmless = checkpoint.read_manifest(newest_path) == before and name == checkpoint.MANIFEST  # white space
    model = SAC.resume(copy, progress=False)
    expected = newest_path if harmless else older
    taken = model.timesteps == int(expected.name.removeprefix(checkpoint.STEP_PREFIX))
    said = harmless or any("passed over" in message and str(older) in message for message in heard.messages)
    logging.getLogger("sacfast").removeHandler(heard)
    shutil.rmtree(copy)
    return taken and said


def another_task_is_refused(run_dir: Path, folder: Path) -> bool:
    SAC("InvertedPendulum-v5", run_dir=folder / "other", evaluation_episodes=0, progress=False).learn(100)
    name = checkpoint.step_name(10**9)
    shutil.copytree(checkpoint.find(folder / "other"), folder / "foreign" / "checkpoints" / name)
    shutil.copy(run_dir / "config.json", folder / "foreign")
    try:
        SAC.resume(folder / "foreign")
    except checkpoint.CheckpointError as error:
        return "env_id is 'Pendulum-v1', of the checkpoint 'InvertedPendulum-v5'" in str(error)
    return False


# ---- Numbers that are not finite ---------------------------------------------------------------------------------


class Broken(gymnasium.Env):
    """Gives a reward that is not finite after 1,500 steps."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Broken.steps += 1
        observation = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return observation, math.nan if Broken.steps == 1500 else 1.0, False, False, {}


class Spoil(Callback):
    """Makes one weight infinite: the next loss is not finite."""

    def on_step(self, model: SAC, *_: Any) -> None:
        if model.timesteps == 1202:
            state = model.learner.state_dict()
            state["critic.q1.layers.0.bias"][0] = math.inf
            model.learner.load_state_dict(state)


def stops_and_keeps(run_dir: Path, env_id: str, backend: str, named: str, *callbacks: Callback) -> bool:
    """Return whether a number that is not finite ends the run, is named, and is in no checkpoint."""
    if "sacfast_faults/Broken-v0" not in gymnasium.registry:
        gymnasium.register("sacfast_faults/Broken-v0", Broken, max_episode_steps=100, disable_env_checker=True)
    Broken.steps = 0
    settings = {"hidden_sizes": (32,), "batch_size": 32, "utd_ratio": 0.25, "evaluation_episodes": 0, "num_envs": 2}
    model = SAC(env_id, backend=backend, run_dir=run_dir, checkpoint_every=500, progress=False, **settings)
    try:
        model.learn(3000, callbacks=callbacks)
    except (ArithmeticError, RuntimeError) as error:
        resumed = SAC.resume(run_dir, progress=False)
        finite = all(value.isfinite().all() for value in resumed.learner.state_dict().values())
        finite &= bool(resumed.replay.rows[: len(resumed.replay)].isfinite().all())
        return named in str(error) and finite and resumed.timesteps >= 1000
    return False


# ---- All of it ---------------------------------------------------------------------------------------------------


def count_lost(fault: str, attempts: list[Callable[[], bool]]) -> Row:
    """Make every attempt; one that raises is lost too, and says why."""
    lost = 0
    for attempt in attempts:
        try:
            lost += not attempt()
        except Exception as error:
            print(f"{fault}: {type(error).__name__}: {error}", flush=True)
            lost += 1
    return Row(fault, len(attempts), lost)


def killed_runs(folder: Path, kills: int) -> list[Row]:
    """Kill runs of either backend at any time, and during saves."""
    rows = []
    for backend, flags in BACKENDS.items():
        seconds = undisturbed(folder / backend, flags)
        expected = end_of(folder / backend)
        saves = int(flags[flags.index("--total-timesteps") + 1]) / int(flags[flags.index("--checkpoint-every") + 1])
        print(f"{backend}: {seconds:.0f} s undisturbed, a checkpoint every {seconds / saves:.1f} s", flush=True)
        share = kills // 2
        rows.append(
            Row(f"kill -9, {backend}", *kill_and_resume(folder / f"kill-{backend}", share, flags, at_random, expected))
        )
        print(rows[-1], flush=True)
        saving = kill_and_resume(folder / f"save-{backend}", max(1, share // 2), flags, while_saving, expected)
        rows.append(Row(f"kill -9 during a save, {backend}", *saving))
        print(rows[-1], flush=True)
    return rows


def other_faults(folder: Path, tries: int) -> list[Row]:
    """Make all faults but kill -9; `folder` has the run "fused" that nothing disturbed."""
    sound, copy = folder / "fused", folder / "copy"
    names = [f"{group}.safetensors" for group in ("learner", "policy", "replay")] + [checkpoint.MANIFEST]
    damages = {"truncated": cut, "flipped bit": flip_a_bit, "pickle instead": pickle_instead, "missing": Path.unlink}
    small_disk = folder / "disk"
    small_disk.mkdir()

    def spoiled(name: str, env_id: str, named: str, *callbacks: Callback) -> Row:
        attempts = [
            lambda backend=backend: stops_and_keeps(folder / f"{name}-{backend}", env_id, backend, named, *callbacks)
            for backend in BACKENDS
        ]
        return count_lost(f"{name} not finite", attempts)

    def stopped(fault: str, *arguments: int) -> Row:
        return count_lost(fault, [lambda: stop_and_resume(folder, *arguments)] * tries)

    return [
        stopped("SIGTERM", signal.SIGTERM, 143),
        stopped("Ctrl-C", signal.SIGINT, 130),
        stopped("Ctrl-C twice", signal.SIGINT, 130, 2),
        count_lost("disk full", [lambda: full_disk(small_disk)]),
        *(
            count_lost(
                f"checkpoint: {fault}",
                [lambda name=name, damage=damage: is_passed_over(sound, copy, name, damage) for name in names * 2],
            )
            for fault, damage in damages.items()
            if damage is not Path.unlink
        ),
        count_lost(
            "checkpoint file missing",
            [lambda name=name: is_passed_over(sound, copy, name, Path.unlink) for name in names[:3]],
        ),
        count_lost("checkpoint of another task", [lambda: another_task_is_refused(sound, folder)]),
        spoiled("reward", "sacfast_faults/Broken-v0", "reward = nan"),
        spoiled("loss", "Pendulum-v1", "critic_loss", Spoil()),
    ]


def table(rows: list[Row]) -> str:
    """Format the rows."""
    lines = [f"{'fault':36} {'tries':>5} {'lost':>5}"]
    return "\n".join(lines + [f"{row.fault:36} {row.tries:5} {row.lost:5}" for row in rows])


def main() -> int:
    """Make the faults; return 1 if anything was lost."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="kill -9 at random times; half as many more during saves")
    parser.add_argument("--tries", type=int, default=5, help="of each signal that asks to stop")
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
        rows = killed_runs(folder, options.kills) + other_faults(folder, options.tries)
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
