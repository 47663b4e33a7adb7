"""What a run directory says, checked field by field before a run goes on from it.

The sums of a checkpoint tell of chance. Whoever edits a file can write its sum anew, so every field is held to its
type, its range and to the other fields. A fault is a `CheckpointError` that names the field.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch import Tensor

from sacfast import checkpoint, files
from sacfast.checkpoint import CheckpointError
from sacfast.config import SACConfig, TrainConfig
from sacfast.envs import EnvSpec, ObservationLeaf
from sacfast.metrics import BEST, CHECKPOINTS, CONFIG_FILE, METRICS_FILE, SUMMARY_FILE, RunError, last_step

_Config = TypeVar("_Config", TrainConfig, SACConfig)


class Field(NamedTuple):
    """What a value must be, in words and as a test."""

    expected: str
    holds: Callable[[Any], bool]


def integer(low: int, bits: int = 63) -> Field:
    """Return the field of an int from `low` to 2**bits - 1."""
    return Field(f"an int >= {low} of {bits} bits", lambda value: type(value) is int and low <= value < 2**bits)


def number(low: float = -math.inf) -> Field:
    """Return the field of a finite number from `low` on."""
    expected = "a finite number" if low == -math.inf else f"a finite number >= {low:g}"
    return Field(expected, lambda value: _is_finite(value) and value >= low)


def optional(field: Field) -> Field:
    """Return the field of None, or of what `field` takes."""
    return Field(f"None or {field.expected}", lambda value: value is None or field.holds(value))


def list_of(field: Field, at_most: int) -> Field:
    """Return the field of a list of at most so many items."""
    return Field(
        f"a list of at most {at_most}, each {field.expected}",
        lambda value: isinstance(value, list) and len(value) <= at_most and all(map(field.holds, value)),
    )


def mapping_of(field: Field) -> Field:
    """Return the field of an object whose values are all the same."""
    return Field(
        f"an object, each value {field.expected}",
        lambda value: isinstance(value, dict) and all(map(field.holds, value.values())),
    )


def choice(*values: str) -> Field:
    """Return the field of one of some strings."""
    return Field(f"one of {', '.join(map(repr, values))}", lambda value: isinstance(value, str) and value in values)


TEXT = Field("a string", lambda value: isinstance(value, str))
OBJECT = Field("an object", lambda value: isinstance(value, dict))

_MANIFEST = {
    "train": OBJECT,
    "sac": OBJECT,
    "env": OBJECT,
    "timesteps": integer(0),
    "wall_seconds": number(0),
}
_RUN_MANIFEST = {
    **_MANIFEST,
    "versions": mapping_of(TEXT),
    "progress": OBJECT,
    "exploration": OBJECT,
    "torch_threads": integer(1),
}
_STREAM = {"bit_generator": choice("PCG64"), "state": OBJECT, "has_uint32": integer(0, 1), "uinteger": integer(0, 32)}
_ENV = {
    "env_id": TEXT,
    "source": choice("envpool", "gymnasium"),
    "observation_dim": integer(1),
    "action_dim": integer(1),
    "action_low": list_of(number(), at_most=2**20),
    "action_high": list_of(number(), at_most=2**20),
    "max_episode_steps": optional(integer(1)),
}
_LEAVES = "observation_leaves"
_LEAF = Field(
    "a path of strings and a shape of ints >= 1",
    lambda value: (
        isinstance(value, list)
        and len(value) == 2
        and list_of(TEXT, 2**10).holds(value[0])
        and list_of(integer(1), 2**10).holds(value[1])
    ),
)


def check(where: str, values: Any, fields: Mapping[str, Field]) -> None:
    """Raise CheckpointError, naming the field, unless `values` is an object that has `fields` as they must be."""
    if not isinstance(values, dict):
        raise CheckpointError(f"{where}: expected an object, got {_shown(values)}")
    for name, field in fields.items():
        if name not in values:
            raise CheckpointError(f"{where}: {name}: expected {field.expected}, found none")
        if not field.holds(values[name]):
            raise CheckpointError(f"{where}: {name}: expected {field.expected}, got {_shown(values[name])}")


class Settings(NamedTuple):
    """What a checkpoint says of the model that it is of."""

    train: TrainConfig
    sac: SACConfig
    spec: EnvSpec


def settings_of(manifest: Mapping[str, Any]) -> Settings:
    """Return the settings in the manifest of a saved model.

    Raises:
        CheckpointError: a field is missing, or not what it must be.
    """
    check(checkpoint.MANIFEST, manifest, _MANIFEST)
    train, sac = config_of("train", TrainConfig, manifest["train"]), config_of("sac", SACConfig, manifest["sac"])
    spec = _spec_from_json(manifest["env"])
    if spec.env_id != train.env_id:
        raise CheckpointError(f"env: env_id: expected that of 'train', {train.env_id!r}, got {spec.env_id!r}")
    return Settings(train, sac, spec)


def check_run_manifest(manifest: Mapping[str, Any], config: Mapping[str, Any] | None) -> None:
    """Raise CheckpointError unless a manifest is that of a checkpoint of a run: the run with this config.json."""
    if manifest["schema_version"] == 1 or "progress" not in manifest:
        raise CheckpointError("expected a checkpoint of a run (schema_version 2 or 3), got only a learner's state")
    check(checkpoint.MANIFEST, manifest, _RUN_MANIFEST)
    if config is None:
        return
    train, sac, _ = settings_of(manifest)
    differences = [
        *_differences(config["train"], manifest["train"], train.to_dict(), always=("env_id", "seed")),
        *_differences(config["sac"], manifest["sac"], sac.to_dict(), always=tuple(sac.to_dict())),
    ]
    if differences:
        raise CheckpointError(f"expected a checkpoint of this run, by its {CONFIG_FILE}: {'; '.join(differences)}")


def _differences(
    now: Mapping[str, Any], then: Mapping[str, Any], meant: Mapping[str, Any], always: tuple[str, ...]
) -> Iterator[str]:
    """Yield where a checkpoint differs from config.json, in what must `always` be the same and in what it lacks.

    `meant` is `then` with the default of every setting that it lacks, as a checkpoint does that is older than the
    setting. The other settings may have been changed since, by a resume.
    """
    for name in meant:
        if name in now and (name in always or name not in then) and now[name] != meant[name]:
            yield f"{name} is {now[name]!r}, of the checkpoint {meant[name]!r}"


def check_task_is_the_same(env_id: str, named: str | None) -> None:
    """Raise CheckpointError where a file says another task than the user has named; None: he has named none."""
    if named not in (None, env_id):
        raise CheckpointError(f"env_id: the checkpoint is of {env_id!r}, got {named!r}")


def check_task_is_known(env_id: str, named: str | None) -> None:
    """Raise CheckpointError where to open a task would import a module for no other reason than that a file says so.

    Args:
        env_id: what a file says; "module:Name-v0" imports the module, whose code then runs.
        named: the task that the user has named himself; None: none.
    """
    check_task_is_the_same(env_id, named)
    module = env_id.rpartition(":")[0]
    if module and named is None and module not in sys.modules:
        raise CheckpointError(
            f"env_id: {env_id!r} imports the module {module!r}, and no code is run because a file says so; name the "
            f"task yourself (env_id={env_id!r}, --env-id {env_id}), or import the module first"
        )


def check_is_run(run_dir: Path) -> None:
    """Raise CheckpointError unless a directory has something that only a run leaves."""
    try:
        is_run = any(os.path.lexists(run_dir / name) for name in (CONFIG_FILE, CHECKPOINTS))
    except OSError as error:
        raise CheckpointError(f"{run_dir}: expected a run directory, got an error: {error}") from error
    if not is_run:
        raise CheckpointError(f"{run_dir}: expected a run directory with {CONFIG_FILE}, found none")


def has_no_checkpoint(run_dir: Path) -> bool:
    """Tell whether a run has no checkpoint in its directory but such as a save leaves that was killed.

    Raises:
        CheckpointError: the folder of checkpoints is there, and is no folder or cannot be listed.
    """
    try:
        names = files.list_folder(run_dir / CHECKPOINTS)
    except OSError as error:
        raise CheckpointError(
            f"{run_dir / CHECKPOINTS}: expected the folder of the run's checkpoints, got an error: {error}"
        ) from error
    return not [name for name in names if name.startswith(checkpoint.STEP_PREFIX) and not name.endswith(".tmp")]


def check_nothing_is_lost(run_dir: Path, limit: float) -> None:
    """Raise CheckpointError where a run without a checkpoint has files that one past its first checkpoint leaves.

    Its checkpoints have been moved or removed then, and to start anew would remove the rest of it.

    Args:
        run_dir: of the run.
        limit: the transitions from which on what the run writes comes after its first checkpoint.
    """
    found = []
    if os.path.lexists(run_dir / SUMMARY_FILE):
        found.append(f"{SUMMARY_FILE}, which is written after the last checkpoint")
    try:
        if (step := last_step(run_dir)) >= limit:
            found.append(f"{METRICS_FILE} with a line after {step:g} transitions")
    except RunError as error:
        found.append(str(error))
    best = run_dir / CHECKPOINTS / BEST
    try:
        if os.path.lexists(best) and not (step := checkpoint.read_manifest(best)["timesteps"]) < limit:
            found.append(f"{BEST}, after {step} transitions")
    except (CheckpointError, KeyError, TypeError) as error:
        found.append(f"{BEST}: {error}")
    if found:
        raise CheckpointError(
            f"{run_dir}: expected a checkpoint, or no trace of a run past its first checkpoint (from "
            f"{limit:g} transitions on), found no checkpoint but {'; '.join(found)}; put the checkpoints back, "
            "or start anew with overwrite (--overwrite)"
        )


def check_learner(state: Mapping[str, Tensor], spec: EnvSpec, sac: SACConfig) -> None:
    """Raise CheckpointError unless a learner's tensors are finite, its counts are counts, and its actor fits `sac`.

    The actor's shapes are compared before a learner is built: a manifest with wrong sizes would otherwise take memory.
    """
    sizes = [spec.observation_dim, *sac.hidden_sizes, 2 * spec.action_dim]
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        name = f"actor.layers.{index}.weight"
        found = None if name not in state else tuple(state[name].shape)
        if found != (outputs, inputs):
            raise CheckpointError(f"{name}: expected shape {(outputs, inputs)}, by the manifest, got {found}")
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(f"{name}: expected finite numbers, got others")
        if name.endswith(("exp_avg_sq", ".step", "gradient_updates")) and (value < 0).any():
            raise CheckpointError(f"{name}: expected no number below 0, got {value.min().item()}")


def spec_to_json(spec: EnvSpec) -> dict[str, Any]:
    """Return a task as JSON holds it."""
    values = {name: getattr(spec, name) for name in (*_ENV, _LEAVES)}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def _spec_from_json(values: dict[str, Any]) -> EnvSpec:
    check("env", values, _ENV)
    if unknown := sorted(set(values) - {*_ENV, _LEAVES}):
        raise CheckpointError(f"env: expected the keys {sorted(_ENV)}, got {unknown} too")
    leaves = values.get(_LEAVES, [])  # which checkpoints of earlier versions do not hold
    check("env", {_LEAVES: leaves}, {_LEAVES: list_of(_LEAF, at_most=2**20)})
    if leaves and sum(math.prod(shape) for _, shape in leaves) != values["observation_dim"]:
        raise CheckpointError(f"env: {_LEAVES}: expected {values['observation_dim']} numbers in all, got {leaves}")
    for name in ("action_low", "action_high"):
        if len(values[name]) != values["action_dim"]:
            raise CheckpointError(f"env: {name}: expected {values['action_dim']} numbers, got {len(values[name])}")
    bounds = {name: np.asarray(values[name], np.float64) for name in ("action_low", "action_high")}
    if not (bounds["action_low"] < bounds["action_high"]).all():
        raise CheckpointError(f"env: action_low: expected less than action_high, got {values['action_low']}")
    layout = tuple(ObservationLeaf(tuple(path), tuple(shape)) for path, shape in leaves)
    return EnvSpec(**{**values, **bounds, _LEAVES: layout})


def check_spec(found: EnvSpec, expected: EnvSpec) -> None:
    """Raise CheckpointError, saying what differs, unless a task is still what it was when it was saved."""
    if not expected.observation_leaves:
        expected = dataclasses.replace(expected, observation_leaves=found.observation_leaves)
    now, then = spec_to_json(found), spec_to_json(expected)
    if differences := [f"{name} was {then[name]}, is {now[name]}" for name in now if now[name] != then[name]]:
        raise CheckpointError(f"{expected.env_id}: the task is another than was saved: {'; '.join(differences)}")


def restore_stream(stream: np.random.Generator, state: dict[str, Any]) -> None:
    """Let a stream of random numbers, as `default_rng` of its seed makes it, go on from a state that JSON has held.

    Raises:
        CheckpointError: it is not the state of this stream.
    """
    check("exploration", state, _STREAM)
    increment = stream.bit_generator.state["state"]["inc"]  # of the seed: it tells streams apart, and never changes
    fixed = Field(str(increment), lambda value: type(value) is int and value == increment)
    check("exploration: state", state["state"], {"state": integer(0, 128), "inc": fixed})
    stream.bit_generator.state = state


def config_of(section: str, kind: type[_Config], values: dict[str, Any]) -> _Config:
    """Build a configuration from what a file says. Raises CheckpointError that names the section and the field."""
    for name, value in values.items():
        if type(value) is int and not -(2**63) <= value < 2**63:
            raise CheckpointError(f"{section}: {name}: expected an int of 64 bits, got {_shown(value)}")
    try:
        return kind.from_dict(values)
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{section}: {error}") from error


def _is_finite(value: Any) -> bool:
    if type(value) is int:
        return abs(value) < 10**300  # what a float can hold
    return type(value) is float and math.isfinite(value)


def _shown(value: Any) -> str:
    return f"{value!r:.200}"
