"""Registered Gymnasium environments, stepped one after the other in this thread."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import SyncVectorEnv

from sacfast import output
from sacfast.envs.protocol import EnvironmentFault, Rows, VectorEnv
from sacfast.envs.spaces import AnyArray, EnvSpec, Float64Array, ObservationLayout, action_bounds, observation_leaves

ImageArray = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
_LOG = output.logger(__name__)


class GymnasiumVectorEnv(VectorEnv):
    """Registered Gymnasium environments, stepped one after the other in this thread."""

    def __init__(self, env_id: str, seeds: list[int], render_mode: str | None = None) -> None:
        """Make the environments and check their spaces. `render` needs the `render_mode` "rgb_array"."""
        # Its default auto-reset is EnvPool's: on the next step. `flatten` makes the copies of observations.
        # An environment that is not to be rendered need not know of render modes.
        options: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        vector = SyncVectorEnv([lambda: gymnasium.make(env_id, **options)] * len(seeds), copy=False)
        try:
            self._layout = ObservationLayout(list(observation_leaves(env_id, vector.single_observation_space)))
            low, high = action_bounds(env_id, vector.single_action_space)
        except ValueError:
            vector.close()
            raise
        self._vector: Any = vector
        if names := _keepers_of_statistics(vector.envs[0]):
            _warn_of_statistics(env_id, names)
        vector.envs[:] = [_Watched(env, env_id, index) for index, env in enumerate(vector.envs)]
        task = vector.envs[0].spec
        limit = None if task is None else task.max_episode_steps
        spec = EnvSpec(env_id, "gymnasium", self._layout.dimension, len(low), low, high, limit, self._layout.leaves)
        super().__init__(spec, len(seeds), len(seeds))
        self._native_dtype = vector.single_action_space.dtype
        self._every_env_id = np.arange(len(seeds))
        # For the first reset alone: a later one goes on with the environments' own generators, as EnvPool's.
        self._seeds: list[int] | None = seeds
        self._action: AnyArray | None = None

    def render(self) -> list[ImageArray]:
        """Return a picture [height, width, 3] of each environment as it is now."""
        return list(self._vector.render())

    @property
    def frames_per_second(self) -> float:
        """How many steps of the task make a second; 30 where it does not say."""
        return float(self._vector.envs[0].metadata.get("render_fps", 30))

    def _start(self) -> Rows:
        observation, _ = self._vector.reset(seed=self._seeds)
        self._seeds = None
        nothing = np.zeros(self.num_envs, np.bool_)
        return Rows(
            self._layout.flatten(self._layout.entries(observation), self.batch_size),
            np.zeros(self.num_envs, np.float32),
            nothing,
            nothing,
            self._every_env_id,
        )

    def _submit(self, native: Float64Array) -> None:
        self._action = native.astype(self._native_dtype, copy=False)

    def _collect(self) -> Rows:
        observation, reward, terminated, truncated, _ = self._vector.step(self._action)
        return Rows(
            self._layout.flatten(self._layout.entries(observation), self.batch_size),
            reward.astype(np.float32),
            terminated,
            truncated,
            self._every_env_id,
        )

    def _shut_down(self) -> None:
        self._vector.close()


class _Watched(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Names an environment whose `reset` or `step` raises, or returns what does not fit its observation space.

    It is the outermost wrapper. Within the task's own wrappers it would take what they set on `self.env`, and lack what
    they look up there, for Gymnasium's wrappers forward no attributes.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], env_id: str, index: int) -> None:
        """Watch environment `index` of the task."""
        super().__init__(env)
        self._env_id, self._index = env_id, index
        self._space = env.observation_space  # a wrapper asks all wrappers in it: too slow for every step
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self._step = 0
        try:
            result = self.env.reset(seed=seed, options=options)
        except Exception as error:
            raise EnvironmentFault(self._env_id, self._index, 0, "reset()", error) from error
        self._check(result, "reset()", ("observation", "info"))
        return result

    def step(self, action: Any) -> Any:
        self._step += 1
        try:
            result = self.env.step(action)
        except Exception as error:
            raise EnvironmentFault(self._env_id, self._index, self._step, "step()", error) from error
        self._check(result, "step()", ("observation", "reward", "terminated", "truncated", "info"))
        return result

    def _check(self, result: Any, call: str, fields: tuple[str, ...]) -> None:
        where = self._env_id, self._index, self._step
        if not isinstance(result, tuple | list) or len(result) != len(fields):
            found = f"{len(result)} values" if isinstance(result, tuple | list) else _brief(result)
            raise EnvironmentFault(*where, call, found, f"({', '.join(fields)})")
        if (misfit := _misfit(self._space, result[0], "observation")) is not None:
            name, found, expected = misfit
            raise EnvironmentFault(*where, f"{call}'s {name}", found, f"{expected}, as its observation_space says")


def _misfit(space: gymnasium.Space[Any], observation: Any, name: str) -> tuple[str, str, str] | None:
    """Return name, content and expected form of an entry that `space` does not have, None where there is none."""
    if isinstance(space, gymnasium.spaces.Dict):
        if not isinstance(observation, Mapping):
            return name, _brief(observation), f"a dictionary of {', '.join(space.spaces)}"
        entries = ((each, observation.get(key), f"{name}.{key}") for key, each in space.spaces.items())
        return next((misfit for entry in entries if (misfit := _misfit(*entry)) is not None), None)
    array = observation if isinstance(observation, np.ndarray) else _as_array(observation)
    if array is not None and array.shape == space.shape and array.dtype.kind in "fiub":
        return None
    return name, _brief(observation), f"numbers of shape {space.shape}"


def _as_array(value: Any) -> AnyArray | None:
    try:
        return np.asarray(value)
    except (TypeError, ValueError):
        return None


def _brief(value: Any) -> str:
    """Describe what should have been numbers, without all of them."""
    shape = getattr(value, "shape", None)
    if shape is not None:
        return f"an array of shape {tuple(shape)} and dtype {getattr(value, 'dtype', 'unknown')}"
    return (
        f"a dictionary of {', '.join(map(str, value)) or 'nothing'}" if isinstance(value, Mapping) else f"{value!r:.80}"
    )


def _keepers_of_statistics(env: Any) -> tuple[str, ...]:
    """Return the classes of the wrappers, and of the environment in them, that adapt statistics while they step."""
    found, seen = [], set()
    while env is not None and id(env) not in seen:
        seen.add(id(env))
        adapts = getattr(env, "update_running_mean", True)  # Gymnasium's wrappers can be told not to
        if adapts and any(map(_is_running_statistics, getattr(env, "__dict__", {}).values())):
            found.append(type(env).__name__)
        env = getattr(env, "env", None)
    return tuple(found)


def _is_running_statistics(value: Any) -> bool:
    """Whether it is Gymnasium's RunningMeanStd, or one that was copied from it."""
    return {"mean", "var", "count"} <= getattr(value, "__dict__", {}).keys()


@functools.cache
def _warn_of_statistics(env_id: str, names: tuple[str, ...]) -> None:
    """Warn once in a process: environments are made again at every checkpoint and evaluation."""
    _LOG.warning(
        "%s: the running statistics of %s are of each environment alone, and start anew at every checkpoint and "
        "evaluation, so the policy gets other numbers for the same state; sacfast has no normalisation of its own yet",
        *(env_id, " and ".join(names)),
    )
