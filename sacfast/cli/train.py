"""`sacfast train`: one run, several seeds side by side, or a run that is taken up again."""

from __future__ import annotations

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sacfast.cli.arguments import FAILED, TERMINATED, UsageError, one_line, over_seeds, parse, run_dirs
from sacfast.config import SACConfig, TrainConfig

if TYPE_CHECKING:
    from sacfast.trainer import SAC


@dataclasses.dataclass(frozen=True)
class TrainOptions:
    """Train SAC on a task. Without --run-dir the run goes to runs/ENV_ID-seedSEED-DATE-TIME.

    `sacfast train --resume RUN_DIR` takes up a run that was cut short; with --help after it, it says what may change.
    """

    run: TrainConfig
    """The run: its task, length, seed, machine and files."""
    num_seeds: int = 1
    """Seeds that learn side by side in this process, from --seed upwards, each with environments, replay buffer and
    random streams of its own. On a GPU they share launches. The run directory then holds theirs: seed1, ..."""
    algorithm: SACConfig = dataclasses.field(default_factory=SACConfig)
    """The algorithm. v1 is arXiv 1801.01290, v2 is arXiv 1812.05905."""


@dataclasses.dataclass(frozen=True)
class ResumeOptions:
    """Take up a run from its newest sound checkpoint and go on in its directory, bit for bit as if never stopped.

    After Ctrl-C or SIGTERM the environments first make again the steps since they were opened. All other settings are
    the run's own.
    """

    resume: Path
    """The run directory, or one of several seeds, which are all taken up."""
    total_timesteps: int | None = None
    """Transitions that the run, or that of each seed, is to have in all; None: as it was started."""
    env_id: str | None = None
    """The run's task; needed where it is module:Name-v0, which imports a module: no code is run because a file says
    so."""
    device: str | None = None
    """Where the learner works; None: as the run was started. Another device does not go on bit for bit."""
    progress: bool = True
    """Whether to show a progress bar."""


def train(arguments: Sequence[str]) -> int:
    """Train, or go on with a run that was cut short; return the exit code."""
    if any(word.partition("=")[0] == "--resume" for word in arguments):
        return _resume(arguments)
    options = parse("train", TrainOptions, arguments)
    if options.num_seeds < 1:
        raise UsageError(f"num_seeds: expected an int >= 1, got {options.num_seeds}")

    from sacfast.envs import EnvironmentFault
    from sacfast.trainer import SAC

    runs = _runs_of_seeds(options.run, options.num_seeds)
    try:
        models = [SAC.from_config(run, options.algorithm) for run in runs]
    except (TypeError, ValueError, OSError, MemoryError) as error:
        raise UsageError(one_line(error)) from error
    except EnvironmentFault as fault:
        print(f"sacfast train: {one_line(fault)}", file=sys.stderr)
        return FAILED
    return _learn(models)


def _runs_of_seeds(train: TrainConfig, count: int) -> list[TrainConfig]:
    """Return the configurations of the runs with `count` seeds, and their directories."""
    run_dir = train.run_dir
    if run_dir is None:
        seeds = f"seed{train.seed}" if count == 1 else f"seeds{train.seed}-{train.seed + count - 1}"
        run_dir = Path("runs") / f"{train.env_id.replace('/', '-')}-{seeds}-{time.strftime('%Y%m%d-%H%M%S')}"
    if count == 1:
        return [dataclasses.replace(train, run_dir=run_dir)]
    # The environments of all step at the same time.
    threads = train.env_threads or max(1, len(os.sched_getaffinity(0)) // count)
    return [
        dataclasses.replace(train, seed=seed, run_dir=run_dir / f"seed{seed}", env_threads=threads)
        for seed in range(train.seed, train.seed + count)
    ]


def _resume(arguments: Sequence[str]) -> int:
    options = parse("train", ResumeOptions, arguments)

    from sacfast.lock import RunInUseError
    from sacfast.trainer import SAC

    given = {"device": options.device, "env_id": options.env_id, "total_timesteps": options.total_timesteps}
    changes = {"progress": options.progress} | {name: value for name, value in given.items() if value is not None}
    try:
        models = [SAC.resume(run_dir, **changes) for run_dir in run_dirs(options.resume)]
    except (TypeError, ValueError, OSError, MemoryError, RunInUseError) as error:
        raise UsageError(one_line(error)) from error
    for model in models:
        steps = f", {model.environment_steps} steps of the environments made again" if model.environment_steps else ""
        print(f"{model.train_config.run_dir}: resumed after {model.timesteps} transitions{steps}")
    return _learn(models)


def _learn(models: Sequence[SAC]) -> int:
    """Train, and say in words and by the exit code how it ended."""
    from torch import OutOfMemoryError  # of a GPU

    from sacfast.envs import EnvironmentFault
    from sacfast.lock import RunInUseError
    from sacfast.metrics import TrackingError
    from sacfast.trainer import learn_together

    train, run_dir = models[0].train_config, _whole(models)
    seeds = f", {len(models)} seeds from {train.seed}" if len(models) > 1 else ""
    print(f"{train.env_id} on {models[0].device}, {train.backend} backend{seeds}, run directory {run_dir}")
    print(_describe_checkpoints(models[0]), flush=True)
    try:
        learn_together(models)
    except (TrackingError, RunInUseError) as refusal:
        print(f"sacfast train: {one_line(refusal)}", file=sys.stderr)
        return FAILED
    except (EnvironmentFault, FloatingPointError, OSError, MemoryError, OutOfMemoryError) as fault:
        print(f"sacfast train: {one_line(fault)}; {_what_is_there(models)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        # Without a summary it was the second Ctrl-C, which does not wait for one.
        if all(model.summary is not None for model in models):
            print(f"sacfast train: interrupted; {_how_to_go_on(models)}", file=sys.stderr)
        raise
    except SystemExit:
        print(f"sacfast train: terminated; {_how_to_go_on(models)}", file=sys.stderr)
        return TERMINATED
    for model in models:
        print(_describe(model))
    if len(models) > 1 and train.evaluation_episodes:
        print(_describe_seeds(models))
    return 0


def _whole(models: Sequence[SAC]) -> Path | None:
    """Return the directory of all the seeds' runs."""
    run_dir = models[0].train_config.run_dir
    return run_dir.parent if len(models) > 1 and run_dir is not None else run_dir


def _describe_seeds(models: Sequence[SAC]) -> str:
    """Say in a line what several seeds gave."""
    summaries = [model.summary or {} for model in models]
    returns = [summary["eval_return_mean"] for summary in summaries]
    seconds = max(summary["wall_seconds"] for summary in summaries)
    updates = sum(summary["gradient_updates"] for summary in summaries)
    return f"{len(models)} seeds: return {over_seeds(returns)}, {updates / seconds:.0f} updates/s in all"


def _how_to_go_on(models: Sequence[SAC]) -> str:
    run_dir = _whole(models)
    resumable = models[0].train_config.checkpoint_replay
    way = f"`sacfast train --resume {run_dir}` goes on" if resumable else "it cannot be resumed without a replay buffer"
    return f"{_what_is_there(models)}; {way}"


def _what_is_there(models: Sequence[SAC]) -> str:
    """Say whether all that was learned is in a checkpoint, or else which checkpoint there is of each run."""
    newest = {model: _newest_checkpoint(model.train_config.run_dir) for model in models}
    if all(model.timesteps == step for model, step in newest.items()):
        return f"what was learned is in {_whole(models)}"
    return "; ".join(
        f"{model.train_config.run_dir} has no checkpoint"
        if step is None
        else f"{model.train_config.run_dir} has a checkpoint after {step} of {model.timesteps} transitions"
        for model, step in newest.items()
    )


def _newest_checkpoint(run_dir: Path | None) -> int | None:
    """Return the transitions of the newest whole checkpoint; None where there is none that can be seen."""
    from sacfast import checkpoint
    from sacfast.metrics import CHECKPOINTS

    if run_dir is None:
        return None
    try:
        found = checkpoint.steps(run_dir / CHECKPOINTS)
    except OSError:
        return None
    return checkpoint.step_of(found[-1]) if found else None


def _describe_checkpoints(model: SAC) -> str:
    train, every = model.train_config, model.checkpoint_every
    when = f"every {every} transitions and at the end" if every else "at the end"
    size = model.config.replay_capacity * model.replay.rows[0].nbytes / 1e6
    replay = (
        f"each with the replay buffer, up to {size:.0f} MB" if train.checkpoint_replay else "without the replay buffer"
    )
    return f"checkpoints {when}, {replay}; the newest {train.keep_checkpoints} and the best policy are kept"


def _describe(model: SAC) -> str:
    """Say in three lines what a run gave."""
    summary = model.summary or {}
    evaluation = "no evaluation"
    if summary["eval_episodes"]:
        evaluation = (
            f"return {summary['eval_return_mean']:.1f} +- {summary['eval_return_std']:.1f} "
            f"(mean and standard deviation of {summary['eval_episodes']} evaluation episodes)"
        )
    return (
        f"{evaluation}\n"
        f"{summary['total_timesteps']} transitions and {summary['gradient_updates']} gradient updates in "
        f"{summary['wall_seconds']:.1f} s: {summary['env_steps_per_second']:.0f} steps/s, "
        f"{summary['updates_per_second']:.0f} updates/s\n"
        f"run directory: {model.train_config.run_dir}"
    )
