"""Other implementations of SAC, each set up as its users do: only sizes are changed from its defaults.

A gradient update is the same everywhere: one step each of the critics, the actor, the temperature and the targets.
"""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from sacfast.benchmark.contenders import STEPS_PER_CALL, Work, repeat
from sacfast.benchmark.problems import TRANSITIONS, TrainProblem, UpdateProblem


class StillEnv(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Spaces for those who ask an environment for them; to step it costs a microsecond."""

    spec = EnvSpec("Still-v0", max_episode_steps=1000)  # RLtools reads the limit

    def __init__(self, problem: UpdateProblem) -> None:
        """Draw the observations that a step takes in turn."""
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (problem.observation_dim,), np.float32)
        self.action_space = gymnasium.spaces.Box(-1, 1, (problem.action_dim,), np.float32)
        self._observations = _normal((1024, problem.observation_dim))
        self._step = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Return the first observation."""
        return self._observations[0], {}

    def step(self, action: NDArray[np.float32]) -> Any:
        """Return the next observation."""
        self._step = (self._step + 1) % len(self._observations)
        return self._observations[self._step], 0.0, False, False, {}


def stable_baselines3(problem: UpdateProblem, threads: int) -> Work:
    """Stable-Baselines3 (torch): `SAC.train` on a filled replay buffer."""
    import torch
    from stable_baselines3 import SAC

    torch.set_num_threads(threads)
    return _train_calls(SAC, problem, device=problem.device)


def sbx(problem: UpdateProblem, threads: int) -> Work:
    """SBX (JAX): `SAC.train`, which samples for all updates of a call, then runs them in one compiled loop.

    XLA sizes its thread pool by the cores that this process may use.
    """
    from sbx import SAC

    return _train_calls(SAC, problem)


def _train_calls(algorithm: Any, problem: UpdateProblem, **arguments: Any) -> Work:
    """Stable-Baselines3 and SBX, which share buffer and interface. A call ends by reading its losses: it waits."""
    from stable_baselines3.common.logger import Logger

    model = algorithm(
        "MlpPolicy",
        StillEnv(problem),
        buffer_size=TRANSITIONS,
        batch_size=problem.batch_size,
        policy_kwargs={"net_arch": list(problem.hidden_sizes)},
        **arguments,
    )
    model.set_logger(Logger(None, []))
    buffer = model.replay_buffer
    for field in (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards):
        field[:] = _normal(field.shape)
    np.tanh(buffer.actions, out=buffer.actions)
    buffer.full = True

    def chunk() -> float:
        model.train(problem.updates_per_call, problem.batch_size)
        return problem.updates_per_call

    return Work(repeat(chunk))


def rltools(problem: UpdateProblem, threads: int) -> Work:
    """RLtools (C++ with MKL): the step of its training loop.

    A step is one of an environment, here one that does nothing, and one update; both are in the time and it counts as
    one update. The first use of a size compiles it. Evaluation, without which 2.2.1 does not compile, happens once,
    before the clock runs. MKL's threads follow MKL_NUM_THREADS.
    """
    from rltools import SAC

    width, layers = _uniform_width(problem), len(problem.hidden_sizes) + 1
    size = f"{problem.observation_dim}_{problem.action_dim}_{layers}_{width}_{problem.batch_size}"
    module = SAC(
        lambda: StillEnv(problem),
        interface_name=f"benchmark_{size}",  # under which the compiled module is kept
        enable_evaluation=True,
        evaluation_interval=2**30,
        num_evaluation_episodes=1,
        STEP_LIMIT=2**31 - 1,
        REPLAY_BUFFER_CAP=TRANSITIONS,
        N_WARMUP_STEPS=TRANSITIONS,
        ACTOR_BATCH_SIZE=problem.batch_size,
        CRITIC_BATCH_SIZE=problem.batch_size,
        ACTOR_HIDDEN_DIM=width,
        CRITIC_HIDDEN_DIM=width,
        ACTOR_NUM_LAYERS=layers,
        CRITIC_NUM_LAYERS=layers,
    )
    state = module.State(0)
    for _ in range(TRANSITIONS):  # until the buffer is full, a step makes no update
        state.step()

    def chunk() -> float:
        for _ in range(problem.updates_per_call):
            state.step()
        return problem.updates_per_call

    return Work(repeat(chunk))


def _uniform_width(problem: UpdateProblem) -> int:
    widths = set(problem.hidden_sizes)
    if len(widths) != 1:
        raise ValueError(f"hidden_sizes: RLtools has layers of one width only, got {problem.hidden_sizes}")
    return widths.pop()


def stable_baselines3_training(problem: TrainProblem, threads: int) -> Work:
    """Stable-Baselines3 on Gymnasium's environments in its default vector, one update per transition, no log."""
    import torch
    from stable_baselines3 import SAC
    from stable_baselines3.common.env_util import make_vec_env

    torch.set_num_threads(threads)
    env = make_vec_env(problem.env_id, n_envs=problem.num_envs)
    model = SAC("MlpPolicy", env, learning_starts=1000, train_freq=1, gradient_steps=problem.num_envs, device="cpu")
    model.learn(1000 + STEPS_PER_CALL, log_interval=None)

    def chunk() -> float:
        before = model.num_timesteps
        model.learn(STEPS_PER_CALL, log_interval=None, reset_num_timesteps=False)
        return float(model.num_timesteps - before)

    return Work(repeat(chunk))


def _normal(shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
