"""Observations and actions of a task as flat float32 vectors: which spaces there may be, and how they are laid out."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import gymnasium
import numpy as np

from sacfast import collect
from sacfast.types import FloatArray

Float64Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
AnyArray = np.ndarray[tuple[int, ...], np.dtype[Any]]
Source = Literal["envpool", "gymnasium"]


class ObservationLeaf(NamedTuple):
    """One array of a task's observation."""

    path: tuple[str, ...]  # the keys that lead to it through dictionaries; () where the observation is the array
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class EnvSpec:
    """What is fixed about a task."""

    env_id: str
    source: Source
    observation_dim: int  # O, of the flattened observation
    action_dim: int  # A
    action_low: Float64Array  # [A], in the task's own units: what an action of -1 becomes
    action_high: Float64Array  # [A], what an action of +1 becomes
    max_episode_steps: int | None  # the time limit; None: the task has none
    observation_leaves: tuple[ObservationLeaf, ...] = ()  # in the flat order; () in checkpoints that do not hold them

    def flatten(self, observation: Any) -> tuple[FloatArray, bool]:
        """Lay an observation, or a batch of them, out as training does.

        Args:
            observation: what the task's `reset` and `step` return, or a batch of such, in which every array has a
                leading n; or flat, [O] or [n, O]. Arrays, lists or tensors on the host, of any real dtype. Where
                several of these fit, it is taken for the first of them: one, a batch, one that is flat, a flat batch.

        Returns:
            Rows [n, O] float32, and whether it was one observation (then n is 1).

        Raises:
            TypeError: anything but real numbers.
            ValueError: a shape or a dictionary that does not fit, or a value that is not finite as a float32.
        """
        flat = (ObservationLeaf((), (self.observation_dim,)),)
        forms = [self.observation_leaves or flat, flat]
        for leaves in forms:
            arrays = [array for leaf in leaves if (array := _entry(observation, leaf.path)) is not None]
            leading = _leading_shape(arrays, leaves)
            if leading is not None:
                count = math.prod(leading)
                parts = [array.reshape(count, *leaf.shape) for array, leaf in zip(arrays, leaves, strict=True)]
                rows = ObservationLayout(leaves).flatten(parts, count)
                if not np.isfinite(rows).all():
                    raise ValueError("observation: expected values that are finite as float32, got NaN or infinity")
                return rows, leading == ()
        expected = " or flat ".join(dict.fromkeys(map(_expected_shapes, forms)))
        raise ValueError(f"observation: expected {expected}, got {_found_shapes(observation)}")


class ObservationLayout:
    """Where each entry of an observation lies in the flat vector: dictionaries in alphabetical order of keys.

    The alphabet, not the dictionary's own order, so that a policy outlives a change of declaration order.
    """

    def __init__(self, leaves: Sequence[ObservationLeaf]) -> None:
        """Lay out what `observation_leaves` has found in a space."""
        self.leaves = tuple(leaves)
        self.sizes = [math.prod(leaf.shape) for leaf in self.leaves]
        self.dimension = sum(self.sizes)

    def entries(self, observation: Any) -> list[AnyArray]:
        """Return the arrays of observations that are nested as the space is."""
        return [functools.reduce(lambda entry, key: entry[key], leaf.path, observation) for leaf in self.leaves]

    def flatten(self, arrays: list[AnyArray], count: int) -> FloatArray:
        """Return a fresh float32 [count, O] of `count` observations."""
        usual = collect.flatten(arrays, count, self.dimension)
        if usual is not None:
            return usual
        columns = [
            array.astype(np.float32).reshape(count, size) for array, size in zip(arrays, self.sizes, strict=True)
        ]
        return np.concatenate(columns, axis=1)


def observation_leaves(
    env_id: str, space: gymnasium.Space[Any], path: tuple[str, ...] = ()
) -> Iterator[ObservationLeaf]:
    """Yield every array in `space`; refuse anything but float vectors, small matrices and dictionaries of these."""
    if isinstance(space, gymnasium.spaces.Dict):
        for key in sorted(space.spaces):
            yield from observation_leaves(env_id, space.spaces[key], (*path, key))
    elif isinstance(space, gymnasium.spaces.Box) and np.issubdtype(space.dtype, np.floating) and len(space.shape) <= 2:
        yield ObservationLeaf(path, tuple(map(int, space.shape)))
    else:
        name = ".".join(("observation", *path))
        raise ValueError(f"{env_id}: {name}: expected a Box of floats, no images or integers, got {space}")


def _entry(observation: Any, path: tuple[str, ...]) -> AnyArray | None:
    """Return the array that `path` leads to, or None where there is none."""
    for key in path:
        if not isinstance(observation, Mapping) or key not in observation:
            return None
        observation = observation[key]
    if isinstance(observation, Mapping):
        return None
    if hasattr(observation, "detach"):  # a tensor that a gradient is asked of is no array
        observation = observation.detach()
    name = ".".join(("observation", *path))
    try:
        array: AnyArray = np.asarray(observation)
    except ValueError as error:  # lists of different lengths
        raise ValueError(f"{name}: expected an array, got {observation!r}: {error}") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, got {type(observation).__name__} of dtype {array.dtype}")
    return array


def _leading_shape(arrays: Sequence[AnyArray], leaves: Sequence[ObservationLeaf]) -> tuple[int, ...] | None:
    """Return () where the arrays are one observation, (n,) where they are n of them, otherwise None."""
    if len(arrays) < len(leaves):
        return None
    found = set()
    for array, leaf in zip(arrays, leaves, strict=True):
        extra = array.ndim - len(leaf.shape)
        if extra not in (0, 1) or array.shape[extra:] != leaf.shape:
            return None
        found.add(array.shape[:extra])
    return found.pop() if len(found) == 1 else None


def _expected_shapes(leaves: Sequence[ObservationLeaf]) -> str:
    one, many = ([_shape_text((*first, *leaf.shape)) for leaf in leaves] for first in ((), ("n",)))
    if leaves[0].path == ():
        return f"shape {one[0]} or {many[0]}"
    names = [".".join(leaf.path) for leaf in leaves]
    entries = ", ".join(f"{name} {shape} or {batch}" for name, shape, batch in zip(names, one, many, strict=True))
    return f"a dictionary of {entries}"


def _found_shapes(observation: Any) -> str:
    if isinstance(observation, Mapping):
        return f"a dictionary of {', '.join(f'{key} {_found_shapes(entry)}' for key, entry in observation.items())}"
    return _shape_text(np.shape(observation))


def _shape_text(shape: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"


def action_bounds(env_id: str, space: gymnasium.Space[Any]) -> tuple[Float64Array, Float64Array]:
    """Return the bounds [A] of a continuous, bounded action space."""
    if (
        not isinstance(space, gymnasium.spaces.Box)
        or not np.issubdtype(space.dtype, np.floating)
        or len(space.shape) != 1
    ):
        raise ValueError(f"{env_id}: action: expected a Box of floats with one dimension, got {space}")
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    # The largest float32 or float64 is how some tasks write "unbounded".
    bounded = np.maximum(np.abs(low), np.abs(high)) < np.finfo(np.float32).max
    if not (bounded & (low < high)).all():
        raise ValueError(f"{env_id}: action: expected finite bounds with low < high, got {low} and {high}")
    return low, high
