"""Export a trained policy to ONNX and run it by onnxruntime, with the actions that sacfast takes.

    pip install 'sacfast[examples]'
    python examples/export_onnx.py --output policy.onnx

The file maps observation [n, O] float32 to action [n, A] float32 in the task's own units; n is free.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from gain import print_gain
from torch import Tensor, nn

import sacfast

try:
    import onnxruntime
    import onnxscript  # noqa: F401  (torch exports by it)
except ImportError as error:
    raise SystemExit(f"{error}: pip install 'sacfast[examples]'") from error

TOLERANCE = 2e-6
"""Largest difference of two actions, in units of half the action's range. Both programs compute in float32 and add up
a layer's products in an order of their own: roundings of 2**-24 = 6e-8, some tens of which meet in an action."""


@dataclass
class Args:
    """Train or load a policy, export it, compare the actions and time both programs."""

    path: Path | None = None
    """A checkpoint or run directory; None: a model is trained first."""
    env_id: str = "Pendulum-v1"
    """The task to train on where there is no path."""
    total_timesteps: int = 5_000
    """Transitions to train for where there is no path."""
    output: Path | None = None
    """The file to write; None: a temporary one."""
    threads: int = 1
    """Threads of onnxruntime and torch."""
    rounds: int = 50
    """Rounds of the measurement; 0: none."""


class MeanPolicy(nn.Module):
    """The deterministic policy as one module: the actor, tanh, and the task's bounds."""

    def __init__(self, model: sacfast.SAC) -> None:
        """Take the parameters of the model's actor, shared and not copied."""
        super().__init__()
        self.actor = model.learner.actor
        bounds = model.spec.action_low, model.spec.action_high
        low, high = (torch.as_tensor(bound, dtype=torch.float32) for bound in bounds)
        self.register_buffer("half_range", (high - low) / 2)
        self.register_buffer("centre", (high + low) / 2)

    def forward(self, observation: Tensor) -> Tensor:
        """Map [n, O] to actions [n, A]."""
        mean, _ = self.actor(observation)
        return self.centre + self.half_range * mean.tanh()


def export(model: sacfast.SAC, path: Path) -> None:
    """Write the policy of `model` to one file, `path`."""
    torch.onnx.export(
        MeanPolicy(model).eval(),
        (torch.zeros(2, model.spec.observation_dim),),
        path,
        input_names=["observation"],
        output_names=["action"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def open_session(path: Path, threads: int) -> onnxruntime.InferenceSession:
    """Load the file into onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options)


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, compare and measure."""
    args = tyro.cli(Args, args=arguments)
    torch.set_num_threads(args.threads)
    if args.path is None:
        model = sacfast.SAC(args.env_id, num_envs=4, device="cpu", evaluation_episodes=0, progress=False)
        model.learn(args.total_timesteps)
    else:
        model = sacfast.SAC.load(args.path, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        output = args.output or Path(folder) / "policy.onnx"
        export(model, output)
        session = open_session(output, args.threads)
        print(f"{output.name}: {output.stat().st_size} bytes")
    compare(model, session)
    if args.rounds:
        observation = np.random.default_rng(1).standard_normal((1, model.spec.observation_dim), np.float32)
        module, tensor = MeanPolicy(model), torch.from_numpy(observation)
        plain = torch.inference_mode()(lambda: module(tensor).numpy())
        contenders = {
            "SAC.predict": lambda: model.predict(observation),
            "onnxruntime": lambda: session.run(None, {"observation": observation}),
        }
        for name, act in contenders.items():
            print_gain("one action", {name: act, "the torch module": plain}, args.rounds)


def compare(model: sacfast.SAC, session: onnxruntime.InferenceSession) -> None:
    """Print the largest difference over a thousand observations; raise ValueError beyond the tolerance."""
    observation = np.random.default_rng(0).standard_normal((1000, model.spec.observation_dim), np.float32)
    (found,) = session.run(None, {"observation": observation})
    half_range = (model.spec.action_high - model.spec.action_low) / 2
    difference = float(np.abs((found - model.predict(observation)) / half_range).max())
    print(f"largest difference of 1000 actions: {difference:.1e} of half the range (tolerance {TOLERANCE:.0e})")
    if not difference <= TOLERANCE:
        raise ValueError(f"actions: expected a difference of at most {TOLERANCE}, got {difference}")


if __name__ == "__main__":
    main()
