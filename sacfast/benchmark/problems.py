"""What the contenders of `update` and `train` are given to do, and how many operations one update costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

TRANSITIONS = 20_000
"""Random transitions in the replay buffer of every contender of `update`."""

MOST_UPDATES_PER_CALL = 32
"""As the trainer's: what a call of a peer costs beside its updates is spread over many."""

CALL_FLOPS = 17.4e9
"""Operations in one call of a contender: tenths of a second."""


@dataclass(frozen=True)
class UpdateProblem:
    """One gradient update: a critic, an actor, a temperature and a target step on one minibatch."""

    observation_dim: int = 17
    """Numbers in an observation; the default is HalfCheetah's."""
    action_dim: int = 6
    """Numbers in an action."""
    hidden_sizes: tuple[int, ...] = (256, 256)
    """Units of each hidden layer."""
    batch_size: int = 256
    """Transitions in a minibatch."""
    device: str = "cpu"
    """Where the updates are made: "cpu", "cuda" or "cuda:N"."""
    peak: Literal["float32", "tf32", "bfloat16"] = "float32"
    """In what a GPU's peak, that of a large product of matrices, is measured."""

    def __post_init__(self) -> None:
        """Store a list, which JSON makes of a tuple, as a tuple."""
        object.__setattr__(self, "hidden_sizes", tuple(self.hidden_sizes))

    @property
    def flops(self) -> float:
        """Operations of one update."""
        return update_flops(self.observation_dim, self.action_dim, self.hidden_sizes, self.batch_size)

    @property
    def updates_per_call(self) -> int:
        """Updates between two looks at the clock: fewer of large ones."""
        return max(1, min(MOST_UPDATES_PER_CALL, round(CALL_FLOPS / self.flops)))


@dataclass(frozen=True)
class TrainProblem:
    """Training on a task, one update per transition, with the default settings of `SACConfig`."""

    env_id: str = "HalfCheetah-v5"
    num_envs: int = 16
    backend: str = "fused"


def update_flops(observation_dim: int, action_dim: int, hidden_sizes: Sequence[int], batch_size: int) -> float:
    """Return the floating-point operations that one v2 update cannot do without; a multiply-add counts as two.

    Only matrix products count; sampling, target, Adam and Polyak are a few percent. A backward pass makes the gradients
    of all weights and of the inputs of every layer but the first. In the actor's loss the critics are differentiated
    with respect to the action, and for each sample only the critic that gave the minimum.
    """
    actor, actor_first = _multiply_adds([observation_dim, *hidden_sizes, 2 * action_dim])
    critic, critic_first = _multiply_adds([observation_dim + action_dim, *hidden_sizes, 1])
    action_columns = critic_first * action_dim // (observation_dim + action_dim)
    per_sample = (
        2 * actor  # forward, on x' and on x
        + 2 * critic  # target critics on (x', a')
        + 2 * critic  # critics on (x, a) ...
        + 2 * (critic + critic - critic_first)  # ... and backward
        + 2 * critic  # critics on (x, a~) ...
        + (critic - critic_first + action_columns)  # ... and one of them back to a~
        + (actor + actor - actor_first)  # actor backward
    )
    return 2.0 * batch_size * per_sample


def _multiply_adds(sizes: Sequence[int]) -> tuple[int, int]:
    """Return those of a network's forward pass for one sample, and those of its first layer alone."""
    layers = [inputs * outputs for inputs, outputs in pairwise(sizes)]
    return sum(layers), layers[0]
