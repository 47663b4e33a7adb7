"""`sacfast evaluate`: episodes with a trained policy, and a film of them."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from sacfast.cli.arguments import FAILED, UsageError, one_line, over_seeds, parse, run_dirs

if TYPE_CHECKING:
    pass


@dataclasses.dataclass(frozen=True)
class EvaluateOptions:
    """Run whole episodes with a trained policy; print the mean and standard deviation of the return."""

    path: tyro.conf.Positional[Path]
    """A checkpoint, or a run directory, whose newest checkpoint is taken; or one of several seeds, each by itself."""
    episodes: int = 100
    """Episodes, spread evenly over environments."""
    seed: int | None = None
    """Seed of the environments; None: the run's. Training never uses the same ones."""
    deterministic: bool = True
    """Whether to act by the mean action, or by samples."""
    env_id: str | None = None
    """The policy's task; needed where it is module:Name-v0, which imports a module: no code is run because a file says
    so."""
    device: str = "auto"
    """Where the policy works: "cpu", "cuda", "cuda:N", or "auto" (CUDA where the kernels can use it)."""
    video: Path | None = None
    """An .mp4 file to film episodes to, on Gymnasium's own environment; None: none."""
    video_episodes: int = 1
    """Episodes to film; they are none of those that the mean is over."""


def evaluate(arguments: Sequence[str]) -> int:
    """Run episodes with the policies of a run or of several seeds; return the exit code."""
    options = parse("evaluate", EvaluateOptions, arguments)

    from sacfast.envs import EnvironmentFault
    from sacfast.evaluate import RenderingError
    from sacfast.trainer import SAC

    filmed = None
    returns = []
    try:
        named = {} if options.env_id is None else {"env_id": options.env_id}
        models = [SAC.load(run_dir, device=options.device, **named) for run_dir in run_dirs(options.path)]
        if options.video is not None and len(models) > 1:
            raise ValueError(f"video: expected one run to film, got the {len(models)} seeds of {options.path}")
        if options.video is not None:  # first: what is missing is said before the episodes are waited for
            filmed = models[0].record_video(options.video, options.video_episodes, options.deterministic, options.seed)
        for model in models:
            result = model.evaluate(options.episodes, options.deterministic, options.seed)
            returns.append(result.mean)
            print(
                f"{model.train_config.env_id}: return {result.mean:.1f} +- {result.std:.1f} "
                f"(mean and standard deviation of {len(result.returns)} episodes), "
                f"length {result.lengths.mean():.1f}; {model.loaded_from}",
                flush=True,
            )
    except (TypeError, ValueError, OSError) as error:
        raise UsageError(one_line(error)) from error
    except (EnvironmentFault, RenderingError) as fault:
        print(f"sacfast evaluate: {one_line(fault)}", file=sys.stderr)
        return FAILED
    if len(returns) > 1:
        print(f"{len(returns)} seeds: return {over_seeds(returns)}")
    if filmed is not None:
        each = ", ".join(f"{return_:.1f}" for return_ in filmed.returns)
        print(f"{options.video}: {len(filmed.returns)} episode(s), {filmed.lengths.sum()} steps, return {each}")
    return 0
