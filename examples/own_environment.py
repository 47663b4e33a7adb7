"""A Gymnasium environment of one's own, trained by sacfast.

Registering it is all that sacfast asks. The command line finds it too, by the module that registers it:

    python examples/own_environment.py
    PYTHONPATH=examples sacfast train --env-id own_environment:PointMass-v0 --total-timesteps 5000 --run-dir runs/mass
    PYTHONPATH=examples sacfast evaluate runs/mass --env-id own_environment:PointMass-v0
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
import torch
import tyro
from gain import print_gain
from numpy.typing import NDArray

import sacfast
from sacfast import SACConfig

FloatArray = NDArray[np.float32]


class PointMass(gymnasium.Env[FloatArray, FloatArray]):
    """A mass of 1 kg on a rail, pushed by at most 2 N: bring it to rest at the origin.

    Observation: position (m) and velocity (m/s). Action: force (N). Reward: minus the squared distance and a little
    of the squared velocity and force. An episode is terminated where the mass leaves the rail, at 3 m; the time
    limit of `register` truncates it.
    """

    SECONDS = 0.1
    LIMIT = 3.0

    def __init__(self) -> None:
        """Declare the spaces: floats, the action bounded."""
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = gymnasium.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[FloatArray, dict]:
        """Start at rest, at most 2 m away."""
        super().reset(seed=seed)
        self._state = np.array([self.np_random.uniform(-2, 2), 0.0], np.float32)
        return self._state.copy(), {}

    def step(self, action: FloatArray) -> tuple[FloatArray, float, bool, bool, dict]:
        """Push for a tenth of a second."""
        force = float(np.clip(action[0], -2.0, 2.0))
        position, velocity = self._state
        velocity += force * self.SECONDS
        position += velocity * self.SECONDS
        self._state = np.array([position, velocity], np.float32)
        left = bool(abs(position) > self.LIMIT)
        reward = -(position**2 + 0.1 * velocity**2 + 0.01 * force**2) - 100.0 * left
        return self._state.copy(), float(reward), left, False, {}


gymnasium.register("PointMass-v0", entry_point=PointMass, max_episode_steps=100)


@dataclass
class Args:
    """Train on PointMass-v0, show the return before and after, and measure the update beside plain PyTorch."""

    total_timesteps: int = 5_000
    """Transitions to collect."""
    learning_starts: int = 500
    """Transitions of random actions before the first update."""
    seed: int = 1
    """Seed of everything random."""
    threads: int = 1
    """Threads of the update."""
    rounds: int = 50
    """Rounds of the measurement after the training; 0: none."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, evaluate and measure."""
    args = tyro.cli(Args, args=arguments)
    torch.set_num_threads(args.threads)
    config = SACConfig(hidden_sizes=(64, 64), learning_starts=args.learning_starts)
    model = sacfast.SAC(
        "PointMass-v0",
        num_envs=4,
        seed=args.seed,
        device="cpu",
        hidden_sizes=config.hidden_sizes,
        learning_starts=config.learning_starts,
        evaluation_episodes=0,
        progress=False,
    )
    before = model.evaluate(episodes=10).mean
    model.learn(args.total_timesteps)
    print(
        f"PointMass-v0: {model.timesteps} transitions, {model.learner.gradient_updates} gradient updates, "
        f"mean return {before:.1f} before, {model.evaluate(episodes=10).mean:.1f} after"
    )
    if args.rounds:
        plain_config = SACConfig(hidden_sizes=config.hidden_sizes, fused_ops=False)
        plain = sacfast.make_learner(2, 1, plain_config, backend="reference")
        contenders = {
            "fused": lambda: model.learner.update(model.replay),
            "plain PyTorch": lambda: plain.update(model.replay),
        }
        print_gain("one whole gradient update, hidden 64-64", contenders, args.rounds)


if __name__ == "__main__":
    main()
