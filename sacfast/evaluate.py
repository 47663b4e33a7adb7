"""Evaluation: whole episodes of a policy that does not learn meanwhile, on environments of its own."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from sacfast.envs import environment_seeds, make_env
from sacfast.types import FloatArray, IntArray

MAX_ENVS = 16
"""Environments that evaluate side by side unless told otherwise."""


class ActingPolicy(Protocol):
    """What evaluation needs of a policy."""

    def act(self, observation: FloatArray) -> FloatArray:
        """Return actions [n, A] in [-1, 1] for observations [n, O]."""
        ...


class EvaluationResult(NamedTuple):
    """Undiscounted, unscaled returns and lengths of the evaluated episodes, ordered by environment."""

    returns: np.ndarray[tuple[int, ...], np.dtype[np.float64]]  # [episodes]
    lengths: IntArray  # [episodes], in steps

    @property
    def mean(self) -> float:
        """The mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """The standard deviation of the returns over the episodes (not of the mean; no Bessel correction)."""
        return float(self.returns.std())


def evaluate(
    policy: ActingPolicy, env_id: str, episodes: int = 10, seed: int = 0, num_envs: int | None = None
) -> EvaluationResult:
    """Run `episodes` whole episodes on fresh environments.

    How many episodes an environment contributes is settled before the first step (as even a share as there
    is). Taking the first `episodes` to end, whichever environment they come from, would favour short ones.

    Args:
        policy: acts on observations [num_envs, O].
        env_id: the task.
        episodes: at least 1.
        seed: of the environments. They never share a seed with training environments, even for equal seeds.
        num_envs: environments side by side; None: one per episode, at most `MAX_ENVS`.

    Raises:
        ValueError: `episodes` or `num_envs` below 1.
        EnvironmentFault: an environment yields a reward or observation that is not finite.
    """
    for name, value in (("episodes", episodes), ("num_envs", num_envs)):
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected an int >= 1, got {value}")
    num_envs = min(episodes, MAX_ENVS if num_envs is None else num_envs)
    share = [episodes // num_envs + (index < episodes % num_envs) for index in range(num_envs)]
    returns: list[list[float]] = [[] for _ in range(num_envs)]
    lengths: list[list[int]] = [[] for _ in range(num_envs)]
    with make_env(env_id, num_envs, environment_seeds(seed, num_envs, "evaluation")) as env:
        observation, _ = env.reset()
        missing = episodes
        while missing:
            result = env.step(policy.act(observation))
            observation = result.observation
            for index, return_, length in zip(*result.episodes, strict=True):
                if len(returns[index]) < share[index]:
                    returns[index].append(float(return_))
                    lengths[index].append(int(length))
                    missing -= 1
    return EvaluationResult(np.concatenate(returns), np.concatenate(lengths).astype(np.int64))
