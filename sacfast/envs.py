"""Vectorised environments that yield only valid transitions: EnvPool's where it is installed and has the task, or else
Gymnasium's.

Both auto-reset on the *next* step: the observation that comes with an episode's end is the true final one,
and the row after it, whatever the action was, is the first observation of the next episode. Such a reset row
is no transition. `VectorEnv` drops it, so whoever stores what `recv` returns stores only what happened.

Here is also the only border where actions leave [-1, 1]: they are rescaled to each task's bounds.
"""

from __future__ import annotations

import ctypes
import difflib
import functools
import importlib
import math
import operator
import os
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import gymnasium
import numpy as np
from gymnasium.vector import SyncVectorEnv

from sacfast import collect, output
from sacfast.scalars import as_int
from sacfast.types import ACTION_LIMIT, BoolArray, FloatArray, IntArray, Transition

Float64Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
_LOG = output.logger(__name__)

_Array = np.ndarray[tuple[int, ...], np.dtype[Any]]
ImageArray = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
Purpose = Literal["training", "evaluation"]
Source = Literal["envpool", "gymnasium"]

# Seeds are a permutation of 31-bit indices, purpose | rank | environment (see `environment_seeds`).
_SEED_BITS = 31
_RANK_BITS = 12
_ENV_BITS = 16
_PURPOSES: dict[Purpose, int] = {"training": 0, "evaluation": 1}
INSTALL_ENVPOOL = "pip install 'sacfast[envpool]'"


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
                rows = _ObservationLayout(leaves).flatten(parts, count)
                if not np.isfinite(rows).all():
                    raise ValueError("observation: expected values that are finite as float32, got NaN or infinity")
                return rows, leading == ()
        expected = " or flat ".join(dict.fromkeys(map(_expected_shapes, forms)))
        raise ValueError(f"observation: expected {expected}, got {_found_shapes(observation)}")


class EpisodeStatistics(NamedTuple):
    """The E episodes that ended in one step."""

    env_id: IntArray  # [E]
    return_: Float64Array  # [E], undiscounted sum of unscaled rewards
    length: IntArray  # [E], transitions


class StepResult(NamedTuple):
    """What one `recv` yields. n is the batch size; N <= n, because reset rows are not transitions."""

    transition: Transition  # N rows
    observation: FloatArray  # [n, O], the rows that await an action, reset rows among them
    env_id: IntArray  # [n], the environment of each row of `observation`
    episodes: EpisodeStatistics


class EnvironmentFault(RuntimeError):
    """An environment raised, gave what is not finite, or gave an observation that its space does not have."""

    def __init__(
        self, env_id: str, env_index: int, step: int, quantity: str, value: object, expected: str = ""
    ) -> None:
        """Name the environment `env_index`, the `step` of its episode (0: its reset) and the `quantity`.

        A `value` that is an exception was raised by the call `quantity`.
        """
        raised = isinstance(value, Exception)
        what = f"raised {type(value).__name__} in {quantity}" if raised else f"gave {quantity} = {value}"
        message = f"{env_id}: environment {env_index} {what} at step {step} of its episode"
        if raised:
            message += f": {value}"
        super().__init__(f"{message}; expected {expected}" if expected else message)
        self.env_index = env_index
        self.step = step
        self.quantity = quantity


class _Rows(NamedTuple):
    """What a pool gave, reset rows included. The arrays are fresh: nobody writes to them later."""

    observation: FloatArray  # [n, O]
    reward: FloatArray  # [n]
    terminated: BoolArray  # [n]
    truncated: BoolArray  # [n]
    env_id: IntArray  # [n]


class _Phase(Enum):
    """Which call may come next; the value completes the sentence "not possible:"."""

    CREATED = "reset() must come first"
    ACTING = "the environments wait for send()"
    STEPPING = "a step is under way, recv() must come first"
    FAILED = "the last step failed, make a new environment"
    CLOSED = "the environment is closed"


_NO_EPISODES = EpisodeStatistics(np.empty(0, np.int64), np.empty(0, np.float64), np.empty(0, np.int64))


class VectorEnv(ABC):
    """`num_envs` environments that step `batch_size` at a time.

    Call `reset` once, then `send` and `recv` (or `step`) in turn. With `batch_size == num_envs` the rows are
    in `env_id` order. With a smaller batch stepping is asynchronous: every `recv` yields the environments
    that were ready first, `env_id` says which, and the next `send` is for exactly those, in that order.

    Returned arrays are shared between a step's results and the next one's: read them, do not write to them.
    An instance belongs to the process that made it, because the threads of a pool do not survive a fork.
    """

    def __init__(self, spec: EnvSpec, num_envs: int, batch_size: int) -> None:
        """Prepare the bookkeeping; the subclass owns the environments themselves."""
        self.spec = spec
        self.num_envs = num_envs
        self.batch_size = batch_size
        self._synchronous = batch_size == num_envs
        self._pid = os.getpid()
        self._phase = _Phase.CREATED
        low, high = spec.action_low, spec.action_high
        self._action_range = np.stack([(high - low) / 2, (high + low) / 2, low, high])  # scale, offset and bounds
        # By environment. In synchronous mode the first two are replaced at each step, never written to.
        self._last_observation: FloatArray = np.zeros((num_envs, spec.observation_dim), np.float32)
        self._last_action: FloatArray = np.zeros((num_envs, spec.action_dim), np.float32)
        self._starting = np.ones(num_envs, np.bool_)  # the next row is the first of an episode
        self._return = np.zeros(num_envs, np.float64)
        self._length = np.zeros(num_envs, np.int64)
        self._acting: IntArray = np.arange(num_envs)  # whose actions the next `send` brings

    def reset(self) -> tuple[FloatArray, IntArray]:
        """Start all environments; return the first rows that await an action: [n, O] and their `env_id` [n].

        A later call, possible in synchronous mode only, abandons the running episodes without counting them.

        Raises:
            EnvironmentFault: an environment raised, or a first observation is not finite or does not fit its space.
            RuntimeError: called out of turn, after `close`, or in a forked process.
        """
        again = self._phase is _Phase.ACTING
        self._require(_Phase.ACTING if again else _Phase.CREATED, "reset")
        if again and not self._synchronous:
            raise RuntimeError("reset(): not possible: asynchronous environments are still stepping")
        self._phase = _Phase.FAILED
        self._starting[:] = True
        self._return[:] = 0.0
        self._length[:] = 0
        rows = self._start()
        self._check_finite(rows)
        self._account(rows)
        self._phase = _Phase.ACTING
        return rows.observation, rows.env_id

    def send(self, action: FloatArray) -> None:
        """Start a step with `action` [n, A] float32 in [-1, 1], a row for each `env_id` last returned.

        Raises:
            TypeError: not a float32 NumPy array.
            ValueError: wrong number of rows or columns, or a value that is not finite or beyond [-1, 1].
            RuntimeError: called out of turn, after `close`, or in a forked process.
        """
        self._require(_Phase.ACTING, "send")
        action, native = self._rescaled(action)
        if self._synchronous:
            self._last_action = action
        else:
            self._last_action[self._acting] = action
        self._phase = _Phase.FAILED  # until the pool has accepted it
        self._submit(native)
        self._phase = _Phase.STEPPING

    def recv(self) -> StepResult:
        """Wait for `batch_size` environments and return what they did.

        Raises:
            EnvironmentFault: an environment raised, or an observation or reward is not finite or does not fit its
                space; nothing of this step is returned.
            RuntimeError: called out of turn, after `close`, or in a forked process.
        """
        self._require(_Phase.STEPPING, "recv")
        self._phase = _Phase.FAILED  # until the rows have proved sound
        rows = self._collect()
        observation, reward, terminated, truncated, env_id = rows
        follow = (self._starting, self._return, self._length)
        if collect.uneventful(observation, reward, terminated, truncated, env_id, *follow):
            transition, episodes = self._pair(rows), _NO_EPISODES
        else:
            self._check_finite(rows)
            transition, episodes = self._account(rows)
        self._phase = _Phase.ACTING
        return StepResult(transition, rows.observation, rows.env_id, episodes)

    def step(self, action: FloatArray) -> StepResult:
        """`send` and `recv`."""
        self.send(action)
        return self.recv()

    def running_episodes(self) -> tuple[Float64Array, IntArray]:
        """Return the return [num_envs] and length [num_envs] so far of each environment's episode, without a step that
        is under way.
        """
        return self._return.copy(), self._length.copy()

    def close(self) -> None:
        """Stop the threads and free the environments. A second call does nothing.

        Raises:
            RuntimeError: in a forked process, where waiting for the pool's threads would never end.
        """
        self._check_process("close")
        if self._phase is not _Phase.CLOSED:
            self._phase = _Phase.CLOSED
            self._shut_down()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    @abstractmethod
    def _start(self) -> _Rows:
        """Reset all environments; return the first rows, all of them first observations."""

    @abstractmethod
    def _submit(self, native: Float64Array) -> None:
        """Start a step of the environments `_acting` with `native` [n, A], in the task's own units."""

    @abstractmethod
    def _collect(self) -> _Rows:
        """Wait for a batch of rows."""

    @abstractmethod
    def _shut_down(self) -> None:
        """Free the environments."""

    def _check_process(self, call: str) -> None:
        if os.getpid() != self._pid:
            raise RuntimeError(
                f"{call}(): this environment was made in process {self._pid} and does not survive a fork "
                f"into {os.getpid()}; start processes with the 'spawn' method and make environments in each"
            )

    def _require(self, phase: _Phase, call: str) -> None:
        self._check_process(call)
        if self._phase is not phase:
            raise RuntimeError(f"{call}(): not possible: {self._phase.value}")

    def _rescaled(self, action: FloatArray) -> tuple[FloatArray, Float64Array]:
        """Return a copy of `action`, and what it is in the task's units: fresh, for worker threads will read it."""
        usual = collect.rescale(action, self.batch_size, self._action_range, ACTION_LIMIT)
        return self._rescaled(self._checked(action)) if usual is None else usual

    def _checked(self, action: FloatArray) -> FloatArray:
        # EnvPool itself notices a wrong width on the first step only, aborts the process on missing rows, and
        # answers NaN with a finite observation.
        if not isinstance(action, np.ndarray):
            raise TypeError(f"action: expected a float32 NumPy array, got {type(action).__name__}")
        if action.dtype != np.float32:
            raise TypeError(f"action: expected dtype float32, got {action.dtype}")
        expected = (self.batch_size, self.spec.action_dim)
        if action.shape != expected:
            raise ValueError(f"action: expected shape {expected}, got {action.shape}")
        wrong = ~(np.abs(action) <= ACTION_LIMIT)  # NaN compares false
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise ValueError(
                f"action: expected finite values in [-1, 1], got {action[row, column]} in row {row}, "
                f"column {column} (environment {self._acting[row]})"
            )
        return np.array(action, order="C")

    def _check_finite(self, rows: _Rows) -> None:
        # Of a reset row only the observation counts. EnvPool has been seen to leave its reward unwritten.
        reward = np.where(self._starting[rows.env_id], np.float32(0), rows.reward)
        fields = np.column_stack((reward, rows.observation))
        if np.isfinite(fields).all():
            return
        row, column = np.argwhere(~np.isfinite(fields))[0]
        index = int(rows.env_id[row])
        step = 0 if self._starting[index] else int(self._length[index]) + 1
        quantity = f"observation[{column - 1}]" if column else "reward"
        raise EnvironmentFault(self.spec.env_id, index, step, quantity, float(fields[row, column]))

    def _account(self, rows: _Rows) -> tuple[Transition, EpisodeStatistics]:
        """Pair the rows with what came before them, drop reset rows, and follow the episodes."""
        transition = self._pair(rows)
        truncated = rows.truncated
        # Which environments: by a slice where these are all, for that makes views and no copies.
        where: slice | IntArray = slice(None) if self._synchronous else rows.env_id
        starting = self._starting[where]
        if np.logical_or.reduce(starting):
            valid = ~starting
            self._starting[where] = False
            where, truncated = rows.env_id[valid], truncated[valid]
            transition = Transition(
                transition.observation[valid],
                transition.action[valid],
                transition.reward[valid],
                transition.next_observation[valid],
                transition.terminated[valid],
            )
        self._return[where] += transition.reward
        self._length[where] += 1
        ended = transition.terminated | truncated
        if not np.logical_or.reduce(ended):
            return transition, _NO_EPISODES
        env_id = (rows.env_id if isinstance(where, slice) else where)[ended]
        episodes = EpisodeStatistics(env_id, self._return[env_id], self._length[env_id])
        self._starting[env_id] = True
        self._return[env_id] = 0.0
        self._length[env_id] = 0
        return transition, episodes

    def _pair(self, rows: _Rows) -> Transition:
        """Put each row's environment's last observation and action before it; remember the new observation."""
        self._acting = rows.env_id
        if self._synchronous:
            observation, action = self._last_observation, self._last_action
            self._last_observation = rows.observation
        else:
            observation, action = self._last_observation[rows.env_id], self._last_action[rows.env_id]
            self._last_observation[rows.env_id] = rows.observation
        return Transition(observation, action, rows.reward, rows.observation, rows.terminated)


def find_envpool() -> Any | None:
    """Import EnvPool and return it; None where it is not installed.

    Raises:
        ImportError: it is installed, but cannot be imported or is another EnvPool than is known.
    """
    try:
        import envpool
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == "envpool":
            return None
        raise ImportError(
            f"envpool: is installed, but cannot be imported ({error}); reinstall it (pip install --force-reinstall "
            "'sacfast[envpool]'), or do without it (pip uninstall envpool)"
        ) from error
    if lacking := [name for name in ("list_all_envs", "make", "make_spec") if not hasattr(envpool, name)]:
        raise _unknown_envpool(envpool, f"one without {', '.join(lacking)}")
    return envpool


def import_envpool() -> Any:
    """Return EnvPool, or raise ImportError that says how to install it."""
    envpool = find_envpool()
    if envpool is None:
        raise ImportError(f"envpool: expected the envpool package, which is not installed; {INSTALL_ENVPOOL}")
    return envpool


_POOL_NAMES = ("async_reset", "action_space", "observation_space", "_send", "_recv", "_action_keys", "_state_keys")
_ACTION_KEYS = ["env_id", "players.env_id", "action"]


def _check_pool(envpool: Any, pool: Any) -> None:
    """Raise ImportError unless a pool takes its lists by the names and in the order that `EnvPoolVectorEnv` uses."""
    if lacking := [name for name in _POOL_NAMES if not hasattr(pool, name)]:
        raise _unknown_envpool(envpool, f"a pool without {', '.join(lacking)}")
    if list(pool._action_keys) != _ACTION_KEYS:
        raise _unknown_envpool(envpool, f"a pool that takes {list(pool._action_keys)} instead of {_ACTION_KEYS}")


def _unknown_envpool(envpool: Any, found: str) -> ImportError:
    version = getattr(envpool, "__version__", "of no version")
    return ImportError(f"envpool: expected EnvPool 1.2.5 or a later 1.2, got {version}, {found}; {INSTALL_ENVPOOL}")


_pools: weakref.WeakSet[Any] = weakref.WeakSet()


def _keep_pools() -> None:
    """Let no pool be destroyed in a forked child: its threads are not there, and its end would crash the child's."""
    for pool in _pools:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(pool))


os.register_at_fork(after_in_child=_keep_pools)


class EnvPoolVectorEnv(VectorEnv):
    """Environments that EnvPool steps on its own threads.

    They are stepped by `_send` and `_recv`, because the wrappers around these take a tenth of the time of a step. The
    lists that go in and come out are in the order of `_action_keys` and `_state_keys`. EnvPool promises none of these
    names, so each pool is checked to have them.
    """

    def __init__(self, env_id: str, seeds: list[int], batch_size: int, num_threads: int) -> None:
        """Check the task's spaces, then make the pool. Raises ImportError for another EnvPool than is known."""
        envpool = import_envpool()
        with warnings.catch_warnings():
            # Gymnasium remarks on EnvPool's float64 limits of float32 spaces; nobody here reads those limits.
            warnings.filterwarnings("ignore", message=".*precision lowered by casting", category=UserWarning)
            task = envpool.make_spec(env_id)
            self._layout = _ObservationLayout(list(_observation_leaves(env_id, task.observation_space)))
            low, high = _action_bounds(env_id, task.action_space)
            self._pool: Any = envpool.make(
                env_id,
                env_type="gymnasium",
                num_envs=len(seeds),
                batch_size=batch_size,
                num_threads=num_threads,
                seed=seeds,
            )
            _check_pool(envpool, self._pool)
            _pools.add(self._pool)
            # Makes the pool build and keep the space here, where the remark is silenced.
            self._native_dtype = self._pool.action_space.dtype
            self._pool.observation_space  # noqa: B018
        dimension, limit = self._layout.dimension, int(task.config.max_episode_steps)
        spec = EnvSpec(env_id, "envpool", dimension, len(low), low, high, limit, self._layout.leaves)
        super().__init__(spec, len(seeds), batch_size)
        self._every_env_id = np.arange(len(seeds))
        self._every_native_id = np.arange(len(seeds), dtype=np.int32)
        keys = [key.replace(":", ".") for key in self._pool._state_keys]
        leaves = [".".join(("obs", *path)) for path, _ in self._layout.leaves]
        if leaves == ["obs"]:  # which some tasks call by a name of its own
            leaves = [key for key in keys if key.partition(".")[0] == "obs"]
        fields = ["reward", "done", "trunc", "info.env_id", *leaves]
        if lacking := [field for field in fields if field not in keys]:
            raise _unknown_envpool(envpool, f"a pool that does not return {', '.join(lacking)}")
        self._fields = operator.itemgetter(*map(keys.index, fields))

    def _start(self) -> _Rows:
        self._pool.async_reset()
        return self._collect()

    def _submit(self, native: Float64Array) -> None:
        env_id = self._every_native_id if self._synchronous else self._acting.astype(np.int32)
        self._pool._send([env_id, env_id, native.astype(self._native_dtype, copy=False)])

    def _collect(self) -> _Rows:
        reward, done, truncated, env_id, *leaves = self._fields(self._pool._recv())
        return _Rows(
            self._layout.flatten(leaves, self.batch_size),
            reward.astype(np.float32, copy=False),
            np.greater(done, truncated),  # done & ~truncated
            truncated,
            self._every_env_id if self._synchronous else env_id.astype(np.int64),
        )

    def _shut_down(self) -> None:
        # The pool's own close() does nothing: its threads end when the object goes.
        self._pool = None


class GymnasiumVectorEnv(VectorEnv):
    """Registered Gymnasium environments, stepped one after the other in this thread."""

    def __init__(self, env_id: str, seeds: list[int], render_mode: str | None = None) -> None:
        """Make the environments and check their spaces. `render` needs the `render_mode` "rgb_array"."""
        # Its default auto-reset is EnvPool's: on the next step. `flatten` makes the copies of observations.
        # An environment that is not to be rendered need not know of render modes.
        options: dict[str, Any] = {} if render_mode is None else {"render_mode": render_mode}
        vector = SyncVectorEnv([lambda: gymnasium.make(env_id, **options)] * len(seeds), copy=False)
        try:
            self._layout = _ObservationLayout(list(_observation_leaves(env_id, vector.single_observation_space)))
            low, high = _action_bounds(env_id, vector.single_action_space)
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
        self._action: _Array | None = None

    def render(self) -> list[ImageArray]:
        """Return a picture [height, width, 3] of each environment as it is now."""
        return list(self._vector.render())

    @property
    def frames_per_second(self) -> float:
        """How many steps of the task make a second; 30 where it does not say."""
        return float(self._vector.envs[0].metadata.get("render_fps", 30))

    def _start(self) -> _Rows:
        observation, _ = self._vector.reset(seed=self._seeds)
        self._seeds = None
        nothing = np.zeros(self.num_envs, np.bool_)
        return _Rows(
            self._layout.flatten(self._layout.entries(observation), self.batch_size),
            np.zeros(self.num_envs, np.float32),
            nothing,
            nothing,
            self._every_env_id,
        )

    def _submit(self, native: Float64Array) -> None:
        self._action = native.astype(self._native_dtype, copy=False)

    def _collect(self) -> _Rows:
        observation, reward, terminated, truncated, _ = self._vector.step(self._action)
        return _Rows(
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


def _as_array(value: Any) -> _Array | None:
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


def make_env(
    env_id: str,
    num_envs: int,
    seed: int | Sequence[int],
    batch_size: int | None = None,
    num_threads: int | None = None,
    source: Source | None = None,
) -> VectorEnv:
    """Make `num_envs` environments: EnvPool's where it is installed and has the task, or else Gymnasium's.

    Where EnvPool is not installed and is known to have the task, a warning says so once in a process.

    Args:
        env_id: a task of `envpool.list_all_envs()` or of `gymnasium.registry`; "module:Name-v0" imports the
            module first, which then registers the task.
        num_envs: environments, >= 1.
        seed: the run's seed, from which `environment_seeds` derives those for training; or the environments'
            own seeds, all different. Equal seeds and actions give bitwise equal trajectories of each EnvPool
            environment, whatever the threads and the batch size.
        batch_size: environments that one step waits for; fewer than `num_envs` makes EnvPool step
            asynchronously. None: all.
        num_threads: EnvPool's threads. None: the cores this process may use, at most `num_envs`.
        source: the library that a run's environments have been of, so that it goes on with the same. None: as above.

    Raises:
        ImportError: EnvPool is to be the source and is not installed, or a package that the task needs is missing.
        TypeError: an argument has the wrong type.
        ValueError: an unknown task, a number out of range, or a task without float observations and bounded
            continuous actions.
    """
    if not isinstance(env_id, str):
        raise TypeError(f"env_id: expected a str, got {type(env_id).__name__}")
    num_envs = as_int("num_envs", num_envs, 1, 2**_ENV_BITS)
    if batch_size is not None:
        batch_size = as_int("batch_size", batch_size, 1, num_envs)
    if num_threads is not None:
        num_threads = as_int("num_threads", num_threads, 1, 2**_ENV_BITS)
    if isinstance(seed, Sequence | np.ndarray):
        seeds = _checked_seeds(seed, num_envs)
    else:
        seeds = environment_seeds(seed, num_envs)
    if source == "envpool" and find_envpool() is None:
        raise ImportError(
            f"{env_id}: the run has EnvPool's environments, and goes on with no others; EnvPool is not installed: "
            f"{INSTALL_ENVPOOL}"
        )
    if source != "gymnasium" and env_id in _envpool_tasks():
        threads = num_threads or min(len(os.sched_getaffinity(0)), num_envs)
        return EnvPoolVectorEnv(env_id, seeds, batch_size or num_envs, threads)
    _check_registered(env_id)
    advice = _envpool_advice(env_id)
    if batch_size not in (None, num_envs):
        hint = advice and f"; EnvPool, which is not installed, need not: {advice}"
        raise ValueError(
            f"batch_size: {env_id} is a Gymnasium task, which steps all {num_envs} environments at once, "
            f"got {batch_size}{hint}"
        )
    try:
        env = GymnasiumVectorEnv(env_id, seeds)
    except (ImportError, gymnasium.error.DependencyNotInstalled) as error:
        hint = advice and f"; or, for EnvPool's environments, {advice}"
        raise ImportError(f"{env_id}: {error}{hint}") from error
    if advice and source is None:
        _warn_of_gymnasium(advice)
    return env


def _envpool_tasks() -> Collection[str]:
    """Return the names of EnvPool's tasks; none where it is not installed."""
    envpool = find_envpool()
    return () if envpool is None else envpool.list_all_envs()


def _envpool_advice(env_id: str) -> str:
    """Return the command that brings a Gymnasium task's environments of EnvPool; "" where none does.

    EnvPool has every task with continuous actions that comes with Gymnasium.
    """
    task = gymnasium.registry.get(env_id)
    comes_with_gymnasium = task is not None and str(task.entry_point).startswith("gymnasium.envs.")
    return INSTALL_ENVPOOL if comes_with_gymnasium and find_envpool() is None else ""


@functools.cache
def _warn_of_gymnasium(advice: str) -> None:
    """Say once in a process what steps the environments: they are made again at every checkpoint and evaluation."""
    _LOG.warning(
        "EnvPool is not installed: the environments are Gymnasium's, stepped one after the other; for faster ones: %s",
        advice,
    )


def environment_seeds(
    seed: int, num_envs: int, purpose: Purpose = "training", rank: int = 0, generation: int = 0
) -> list[int]:
    """Derive one seed for each environment, in [0, 2**31).

    For one `seed` and `generation` no two environments of any purpose and rank share a seed: their indices go
    through a permutation of the 31-bit numbers that `seed` and `generation` choose.

    Args:
        seed: the run's seed, >= 0.
        num_envs: environments, 1 to 65,536.
        purpose: "training" or "evaluation".
        rank: which of several processes, 0 to 4,095.
        generation: how many times this run has made its environments anew, >= 0.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is out of range.
    """
    seed = as_int("seed", seed, 0)
    num_envs = as_int("num_envs", num_envs, 1, 2**_ENV_BITS)
    rank = as_int("rank", rank, 0, 2**_RANK_BITS - 1)
    generation = as_int("generation", generation, 0)
    if purpose not in _PURPOSES:
        raise ValueError(f"purpose: expected one of {sorted(_PURPOSES)}, got {purpose!r}")
    first = ((_PURPOSES[purpose] << _RANK_BITS) + rank) << _ENV_BITS
    state = np.random.SeedSequence([seed, generation]).generate_state(2)
    multiplier, offset = int(state[0]) | 1, int(state[1])  # an odd multiplier permutes the numbers below 2**k
    return [(multiplier * index + offset) % 2**_SEED_BITS for index in range(first, first + num_envs)]


class _ObservationLayout:
    """Where each entry of an observation lies in the flat vector: dictionaries in alphabetical order of keys.

    The alphabet, not the dictionary's own order, so that a policy outlives a change of declaration order.
    """

    def __init__(self, leaves: Sequence[ObservationLeaf]) -> None:
        """Lay out what `_observation_leaves` has found in a space."""
        self.leaves = tuple(leaves)
        self.sizes = [math.prod(leaf.shape) for leaf in self.leaves]
        self.dimension = sum(self.sizes)

    def entries(self, observation: Any) -> list[_Array]:
        """Return the arrays of observations that are nested as the space is."""
        return [functools.reduce(lambda entry, key: entry[key], leaf.path, observation) for leaf in self.leaves]

    def flatten(self, arrays: list[_Array], count: int) -> FloatArray:
        """Return a fresh float32 [count, O] of `count` observations."""
        usual = collect.flatten(arrays, count, self.dimension)
        if usual is not None:
            return usual
        columns = [
            array.astype(np.float32).reshape(count, size) for array, size in zip(arrays, self.sizes, strict=True)
        ]
        return np.concatenate(columns, axis=1)


def _observation_leaves(
    env_id: str, space: gymnasium.Space[Any], path: tuple[str, ...] = ()
) -> Iterator[ObservationLeaf]:
    """Yield every array in `space`; refuse anything but float vectors, small matrices and dictionaries of these."""
    if isinstance(space, gymnasium.spaces.Dict):
        for key in sorted(space.spaces):
            yield from _observation_leaves(env_id, space.spaces[key], (*path, key))
    elif isinstance(space, gymnasium.spaces.Box) and np.issubdtype(space.dtype, np.floating) and len(space.shape) <= 2:
        yield ObservationLeaf(path, tuple(map(int, space.shape)))
    else:
        name = ".".join(("observation", *path))
        raise ValueError(f"{env_id}: {name}: expected a Box of floats, no images or integers, got {space}")


def _entry(observation: Any, path: tuple[str, ...]) -> _Array | None:
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
        array: _Array = np.asarray(observation)
    except ValueError as error:  # lists of different lengths
        raise ValueError(f"{name}: expected an array, got {observation!r}: {error}") from error
    if array.dtype.kind not in "fiub":
        raise TypeError(f"{name}: expected real numbers, got {type(observation).__name__} of dtype {array.dtype}")
    return array


def _leading_shape(arrays: Sequence[_Array], leaves: Sequence[ObservationLeaf]) -> tuple[int, ...] | None:
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


def _action_bounds(env_id: str, space: gymnasium.Space[Any]) -> tuple[Float64Array, Float64Array]:
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


def is_registered(env_id: str) -> bool:
    """Tell whether Gymnasium has a task. "module:Name-v0" imports the module first, which then registers the task."""
    module, _, name = env_id.rpartition(":")
    if module:
        importlib.import_module(module)
    return name in gymnasium.registry


def _check_registered(env_id: str) -> None:
    """Refuse a task that no installed library knows, with the closest names there are."""
    if is_registered(env_id):
        return
    name = env_id.rpartition(":")[2]
    close = difflib.get_close_matches(name, {*_envpool_tasks(), *gymnasium.registry}, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    if find_envpool() is not None:
        raise ValueError(f"env_id: neither EnvPool nor Gymnasium knows {env_id!r}{hint}")
    raise ValueError(
        f"env_id: Gymnasium does not know {env_id!r}, and EnvPool, which has more tasks, dm_control's among them, is "
        f"not installed: {INSTALL_ENVPOOL}{hint}"
    )


def _checked_seeds(seeds: Sequence[int], num_envs: int) -> list[int]:
    checked = [as_int("seed", value, 0, 2**_SEED_BITS - 1) for value in seeds]
    if len(checked) != num_envs or len(set(checked)) != num_envs:
        raise ValueError(f"seed: expected {num_envs} different seeds, got {checked}")
    return checked
