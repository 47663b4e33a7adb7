"""Faults of disks, checkpoints, numbers and environments, for `benchmarks.faults`.

Each case returns whether nothing was lost.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from benchmarks.fault_runs import Warnings, newest, resume
from sacfast import SAC, checkpoint
from sacfast.callbacks import Callback

ROOT = Path(__file__).parents[1]


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


def train_on_a_full_disk(folder: Path) -> bool:
    """Return whether a run outlives a disk that is full for a while, on the file system of `folder`, a small one."""
    settings: dict[str, Any] = {
        **{"num_envs": 4, "hidden_sizes": (32, 32), "batch_size": 32, "learning_starts": 200, "torch_threads": 1},
        **{"evaluation_episodes": 0, "checkpoint_every": 500, "replay_capacity": 10_000, "progress": False},
    }
    callbacks = [FillDisk(folder, fill=1200, empty=2800)]
    with Warnings() as heard:
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
        "import sys; from pathlib import Path; from benchmarks import fault_cases; "
        f"sys.exit(not fault_cases.train_on_a_full_disk(Path({str(folder)!r})))"
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
    newest_path, older = reversed(checkpoint.steps(copy / "checkpoints")[-2:])
    before = checkpoint.read_manifest(newest_path)
    damage(newest_path / name)
    harmless = False
    with contextlib.suppress(checkpoint.CheckpointError):
        harmless = checkpoint.read_manifest(newest_path) == before and name == checkpoint.MANIFEST  # white space
    with Warnings() as heard:
        model = SAC.resume(copy, progress=False)
    expected = newest_path if harmless else older
    taken = model.timesteps == int(expected.name.removeprefix(checkpoint.STEP_PREFIX))
    said = harmless or any("passed over" in message and str(older) in message for message in heard.messages)
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


# ---- Checkpoints that were changed, and whose sums were taken anew -----------------------------------------------

Change = Callable[[Path], str]
_WRONG: tuple[Any, ...] = (None, "words", -1, 0.5, 10**30, math.inf, [], {}, [[[]]], True)


def places_of(values: Any) -> list[tuple[Any, Any]]:
    """Return every place in a JSON value that something can stand at: a container and a key or index."""
    pairs = values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    return [place for key, value in pairs for place in ((values, key), *places_of(value))]


def spoil_one(values: Any) -> str:
    """Remove a value, or put another one in its place; return what was done."""
    container, key = random.choice(places_of(values))
    if random.random() < 0.2:
        container.pop(key)
        return f"{key} removed"
    container[key] = random.choice(_WRONG)
    return f"{key} = {container[key]!r}"


def reseal(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with a sum that fits it."""
    manifest["manifest_sha256"] = checkpoint._manifest_sha256(manifest)
    (path / checkpoint.MANIFEST).write_text(json.dumps(manifest))


def change_manifest(path: Path) -> str:
    """Spoil a value that the rest of the run depends on. A setting that is possible, if another, is nothing wrong."""
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    part = random.choice(("progress", "exploration", "env", "files", "sizes", "timesteps", "wall_seconds"))
    done = spoil_one({part: manifest[part]} if not isinstance(manifest[part], dict) else manifest[part])
    reseal(path, manifest)
    return f"{part}: {done}"


def change_header(path: Path) -> str:
    """Spoil what a safetensors file says of a tensor: its dtype, shape or place."""
    name = f"{random.choice(('learner', 'policy', 'replay'))}.safetensors"
    content = (path / name).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    done = spoil_one(header)
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + content[8 + size :]
    (path / name).write_bytes(content)
    manifest = json.loads((path / checkpoint.MANIFEST).read_text())
    manifest["files"][name], manifest["sizes"][name] = hashlib.sha256(content).hexdigest(), len(content)
    reseal(path, manifest)
    return f"{name}: {done}"


def resealed_is_taken(run_dir: Path, copy: Path, change: Change) -> bool:
    """Return whether a run goes on, from the changed checkpoint or from the one before it, without a traceback."""
    shutil.copytree(run_dir, copy)
    done = change(checkpoint.steps(copy / "checkpoints")[-1])
    code, said = resume(copy, "--total-timesteps", "10300").wait()
    kept = code == 0 and "Traceback" not in said and newest(copy) == 10_300
    if not kept:
        print(f"{done}: exit code {code}: {said[-300:]}", flush=True)
    shutil.rmtree(copy)
    return kept


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


def register(env_id: str, entry_point: type[gymnasium.Env]) -> None:
    if env_id not in gymnasium.registry:
        gymnasium.register(env_id, entry_point, max_episode_steps=100, disable_env_checker=True)


class Spoil(Callback):
    """Makes one weight infinite: the next loss is not finite."""

    def on_step(self, model: SAC, *_: Any) -> None:
        if model.timesteps == 1202:
            state = model.learner.state_dict()
            state["critic.q1.layers.0.bias"][0] = math.inf
            model.learner.load_state_dict(state)


def stops_and_keeps(run_dir: Path, env_id: str, backend: str, named: str, *callbacks: Callback) -> bool:
    """Return whether a number that is not finite ends the run, is named, and is in no checkpoint."""
    register("sacfast_faults/Broken-v0", Broken)
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


# ---- An environment that does not repeat itself ------------------------------------------------------------------


class Restless(gymnasium.Env):
    """Draws its noise from a stream that no seed sets."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation = np.array([random.uniform(-1, 1), action[0]], np.float32)
        return observation, float(observation.sum()), False, False, {}


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, model: SAC, *_: Any) -> bool:
        return model.timesteps < self.step


def restlessness_is_said(run_dir: Path) -> bool:
    """Return whether a run that cannot go on bit for bit says so, and goes on."""
    register("sacfast_faults/Restless-v0", Restless)
    settings = {"hidden_sizes": (32,), "evaluation_episodes": 0, "num_envs": 2, "progress": False}
    model = SAC("sacfast_faults/Restless-v0", run_dir=run_dir, checkpoint_every=500, **settings)
    model.learn(2000, callbacks=[StopAt(random.randrange(600, 950, 2))])
    with Warnings() as heard:
        resumed = SAC.resume(run_dir, progress=False).learn()
    shutil.rmtree(run_dir)
    return resumed.timesteps == 2000 and any("do not repeat themselves" in message for message in heard.messages)
