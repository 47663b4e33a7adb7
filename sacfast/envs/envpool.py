"""Environments that EnvPool steps on its own threads."""

from __future__ import annotations

import ctypes
import operator
import os
import warnings
import weakref
from typing import Any

import numpy as np

from sacfast.envs.protocol import Rows, VectorEnv
from sacfast.envs.spaces import EnvSpec, Float64Array, ObservationLayout, action_bounds, observation_leaves

INSTALL_ENVPOOL = "pip install 'sacfast[envpool]'"


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
            self._layout = ObservationLayout(list(observation_leaves(env_id, task.observation_space)))
            low, high = action_bounds(env_id, task.action_space)
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

    def _start(self) -> Rows:
        self._pool.async_reset()
        return self._collect()

    def _submit(self, native: Float64Array) -> None:
        env_id = self._every_native_id if self._synchronous else self._acting.astype(np.int32)
        self._pool._send([env_id, env_id, native.astype(self._native_dtype, copy=False)])

    def _collect(self) -> Rows:
        reward, done, truncated, env_id, *leaves = self._fields(self._pool._recv())
        return Rows(
            self._layout.flatten(leaves, self.batch_size),
            reward.astype(np.float32, copy=False),
            np.greater(done, truncated),  # done & ~truncated
            truncated,
            self._every_env_id if self._synchronous else env_id.astype(np.int64),
        )

    def _shut_down(self) -> None:
        # The pool's own close() does nothing: its threads end when the object goes.
        self._pool = None
