"""How fast the trainer collects, against EnvPool's bare stepping, in turns in one process.

The trainer does everything but gradient updates: the policy acts, transitions go into the replay buffer, episodes
are counted, metrics are gathered. The bare pool is stepped with actions drawn beforehand.
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import numpy as np

from sacfast.benchmark.harness import Spread
from sacfast.envs import EnvSpec, import_envpool
from sacfast.trainer import SAC


class BarePool:
    """EnvPool with nothing around it, stepped the fastest way that it offers to its users: `send` and `recv`."""

    def __init__(self, spec: EnvSpec, num_envs: int, threads: int, steps: int) -> None:
        """Make the task, and actions for `steps` steps, distributed as an untrained policy's."""
        with warnings.catch_warnings():
            # Gymnasium remarks on limits that nobody reads here; see EnvPoolVectorEnv.
            warnings.filterwarnings("ignore", message=".*precision lowered by casting", category=UserWarning)
            self._pool: Any = import_envpool().make(
                spec.env_id, env_type="gymnasium", num_envs=num_envs, num_threads=threads, seed=0
            )
            dtype = self._pool.action_space.dtype
            self._pool.async_reset()
            self._pool.recv()
        squashed = np.tanh(np.random.default_rng(0).standard_normal((steps, num_envs, spec.action_dim)))
        actions = spec.action_low + (squashed + 1) * 0.5 * (spec.action_high - spec.action_low)
        self._actions = actions.astype(dtype)
        self._env_id = np.arange(num_envs, dtype=np.int32)

    def run(self) -> float:
        """Take all steps once; return the seconds."""
        env_id = self._env_id
        start = time.perf_counter()
        for action in self._actions:
            # With all three keys given, EnvPool need not infer any: half the cost of a bare array.
            self._pool.send({"action": action, "env_id": env_id, "players.env_id": env_id})
            self._pool.recv()
        return time.perf_counter() - start


def measure(env_id: str, num_envs: int, env_threads: int, rounds: int, steps: int, device: str) -> dict[str, Any]:
    """Time `steps` steps of all environments, `rounds` times, by the bare pool and by the trainer in turn.

    Returns:
        Environment steps per second of both, and their ratio in each round, as percentiles.

    Raises:
        ImportError: EnvPool is not installed.
    """
    import_envpool()  # before anything is built
    model = SAC(
        env_id,
        num_envs=num_envs,
        env_threads=env_threads,
        device=device,
        backend="fused" if device == "cpu" else "reference",
        learning_starts=0,
        utd_ratio=0.0,
        evaluation_episodes=0,
        progress=False,
    )
    bare = BarePool(model.spec, num_envs, env_threads, steps)
    transitions = steps * num_envs
    bare_seconds, trainer_seconds = [], []
    for _ in range(rounds + 1):
        bare_seconds.append(bare.run())
        start = time.perf_counter()
        model.learn(transitions)
        trainer_seconds.append(time.perf_counter() - start)
    if model.learner.gradient_updates:
        raise RuntimeError(f"expected no gradient updates, got {model.learner.gradient_updates}")
    bare_rate = transitions / np.array(bare_seconds[1:])  # the first round warms up
    trainer_rate = transitions / np.array(trainer_seconds[1:])
    return {
        "env_id": env_id,
        "num_envs": num_envs,
        "env_threads": env_threads,
        "steps_per_round": transitions,
        "bare_steps_per_second": Spread.of(bare_rate).to_dict(),
        "trainer_steps_per_second": Spread.of(trainer_rate).to_dict(),
        "fraction_of_bare": Spread.of(trainer_rate / bare_rate).to_dict(),
    }
