"""Act by a trained policy without the trainer, without sacfast and without torch.

A checkpoint is a folder of safetensors and JSON, so NumPy is enough: `load_policy` is five lines, `act` a few more.

    python examples/load_policy.py runs/cheetah/checkpoints/step_000000100000

Without a path it trains a small model first.
"""

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import tyro
from numpy.typing import NDArray
from safetensors.numpy import load_file

FloatArray = NDArray[np.float32]
Activation = Callable[[FloatArray], FloatArray]
ACTIVATIONS: dict[str, Activation] = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh}
Layers = list[tuple[FloatArray, FloatArray]]  # weight [in, out] and bias [out]


def load_policy(checkpoint: Path) -> Callable[[FloatArray], FloatArray]:
    """Return what `act` is with the parameters and bounds of a checkpoint."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    tensors = load_file(checkpoint / "learner.safetensors")
    names = [f"actor.layers.{index}" for index in range(len(manifest["sac"]["hidden_sizes"]) + 1)]
    layers = [(tensors[f"{name}.weight"].T, tensors[f"{name}.bias"]) for name in names]
    return partial(act, layers, ACTIVATIONS[manifest["sac"]["activation"]], manifest["env"])


def act(layers: Layers, activation: Activation, env: dict[str, list[float]], observation: FloatArray) -> FloatArray:
    """Map observations [..., O] to the policy's mean actions [..., A], in the task's own units."""
    low, high = np.float32(env["action_low"]), np.float32(env["action_high"])
    *hidden, (head_weight, head_bias) = layers
    for weight, bias in hidden:
        observation = activation(observation @ weight + bias)
    mean = (observation @ head_weight + head_bias)[..., : len(low)]  # the head's other half is the log-std
    return low + (high - low) * (np.tanh(mean) + 1) / 2


@dataclass
class Args:
    """Load a policy, act, compare with sacfast's own actions, and time both."""

    path: tyro.conf.Positional[Path | None] = None
    """A checkpoint; None: a model is trained and saved first."""
    total_timesteps: int = 2_000
    """Transitions to train for on Pendulum-v1 where there is no path."""
    rounds: int = 50
    """Rounds of the measurement; 0: none."""


TOLERANCE = 2e-6
"""Largest difference of two actions, in units of half the action's range: both add up a layer's products in float32,
in an order of their own, and some tens of roundings of 2**-24 = 6e-8 meet in an action."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Load, act, and only now import sacfast, to compare."""
    args = tyro.cli(Args, args=arguments)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = args.path or train(Path(folder) / "pendulum", args.total_timesteps)
        act = load_policy(checkpoint)
        compare(act, checkpoint, args.rounds)


def train(path: Path, total_timesteps: int) -> Path:
    """Make a checkpoint to load."""
    import sacfast

    model = sacfast.SAC("Pendulum-v1", num_envs=4, device="cpu", evaluation_episodes=0, progress=False)
    return model.learn(total_timesteps).save(path)


def compare(act: Callable[[FloatArray], FloatArray], checkpoint: Path, rounds: int) -> None:
    """Print the largest difference to `SAC.predict` over a thousand observations, and what each takes for one."""
    import torch
    from gain import print_gain

    import sacfast

    torch.set_num_threads(1)
    model = sacfast.SAC.load(checkpoint, device="cpu")
    observation = np.random.default_rng(0).standard_normal((1000, model.spec.observation_dim), np.float32)
    half_range = (model.spec.action_high - model.spec.action_low) / 2
    difference = float(np.abs((act(observation) - model.predict(observation)) / half_range).max())
    print(f"largest difference of 1000 actions: {difference:.1e} of half the range (tolerance {TOLERANCE:.0e})")
    if not difference <= TOLERANCE:
        raise ValueError(f"actions: expected a difference of at most {TOLERANCE}, got {difference}")
    one = observation[:1]
    if rounds:
        print_gain("one action", {"NumPy": lambda: act(one), "SAC.predict": lambda: model.predict(one)}, rounds)


if __name__ == "__main__":
    main()
