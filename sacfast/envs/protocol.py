"""Vectorised environments that yield only valid transitions: what all kinds of them have.

They auto-reset on the *next* step: the observation that comes with an episode's end is the true final one, and the row
after it, whatever the action was, is the first observation of the next episode. Such a reset row is no transition.
`VectorEnv` drops it, so whoever stores what `recv` returns stores only what happened.

Here actions leave [-1, 1]: they are rescaled to each task's bounds, by `collect.rescale`.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from enum import Enum
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from sacfast import collect
from sacfast.envs.spaces import EnvSpec, Float64Array
from sacfast.types import ACTION_LIMIT, BoolArray, FloatArray, IntArray, Transition


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


class Rows(NamedTuple):
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
    def _start(self) -> Rows:
        """Reset all environments; return the first rows, all of them first observations."""

    @abstractmethod
    def _submit(self, native: Float64Array) -> None:
        """Start a step of the environments `_acting` with `native` [n, A], in the task's own units."""

    @abstractmethod
    def _collect(self) -> Rows:
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

    def _check_finite(self, rows: Rows) -> None:
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

    def _account(self, rows: Rows) -> tuple[Transition, EpisodeStatistics]:
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

    def _pair(self, rows: Rows) -> Transition:
        """Put each row's environment's last observation and action before it; remember the new observation."""
        self._acting = rows.env_id
        if self._synchronous:
            observation, action = self._last_observation, self._last_action
            self._last_observation = rows.observation
        else:
            observation, action = self._last_observation[rows.env_id], self._last_action[rows.env_id]
            self._last_observation[rows.env_id] = rows.observation
        return Transition(observation, action, rows.reward, rows.observation, rows.terminated)
