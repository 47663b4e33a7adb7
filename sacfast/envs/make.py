"""Makes the environments of a task: EnvPool's where it is installed and has the task, or else Gymnasium's."""

from __future__ import annotations

import difflib
import functools
import importlib
import os
from collections.abc import Collection, Sequence

import gymnasium
import numpy as np

from sacfast import output
from sacfast.envs.envpool import INSTALL_ENVPOOL, EnvPoolVectorEnv, find_envpool
from sacfast.envs.gymnasium import GymnasiumVectorEnv
from sacfast.envs.protocol import VectorEnv
from sacfast.envs.seeds import ENV_BITS, checked_seeds, environment_seeds
from sacfast.envs.spaces import Source
from sacfast.scalars import as_int

_LOG = output.logger(__name__)


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
    num_envs = as_int("num_envs", num_envs, 1, 2**ENV_BITS)
    if batch_size is not None:
        batch_size = as_int("batch_size", batch_size, 1, num_envs)
    if num_threads is not None:
        num_threads = as_int("num_threads", num_threads, 1, 2**ENV_BITS)
    if isinstance(seed, Sequence | np.ndarray):
        seeds = checked_seeds(seed, num_envs)
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
