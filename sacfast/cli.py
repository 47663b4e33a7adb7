"""The `sacfast` command. A subcommand is one entry of `COMMANDS`.

torch and the environments take seconds to import: only the subcommands that need them do so, when they run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

import tyro

from sacfast import __version__, output
from sacfast.config import STABLE_BASELINES3, SACConfig, TrainConfig

if TYPE_CHECKING:
    import torch

    from sacfast.trainer import SAC

Options = TypeVar("Options")

FAILED = 1
BAD_USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
TERMINATED = 143  # 128 + SIGTERM


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one line that says what is allowed."""


class Command(NamedTuple):
    """A subcommand."""

    summary: str
    run: Callable[[Sequence[str]], int]  # takes the arguments after the command's name, returns the exit code


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


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Draw one picture a task: returns, losses, Q-values, entropy, temperature and throughput of its runs. Runs whose
    settings differ by the seed alone are drawn as one curve: interquartile mean and its 95 % bootstrap interval."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, of one run each or of several seeds."""
    output: Path = Path("plots")
    """A file that ends in .png, or a directory for ENV_ID.png."""


@dataclasses.dataclass(frozen=True)
class DoctorOptions:
    """Print versions, the processor's level, the GPU and the kernels in use; check the ops."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line (None: this process's) and return the exit code.

    0: done. 1: the command failed. 2: it was asked for in a wrong way. 130: it was interrupted (Ctrl-C). 143: it was
    terminated (SIGTERM).

    Where standard output cannot be written to, a training goes on, for its files are what it is for; any other command
    has failed then.
    """
    name, *rest = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    output.occupy_standard_descriptors()
    try:
        with output.safe_standard_streams() as stdout:
            code = _run(name, rest)
            stdout.flush()
            if code == 0 and stdout.failure is not None and name != "train":
                print(f"sacfast {name}: standard output could not be written: {stdout.failure}", file=sys.stderr)
                return FAILED
            return code
    except KeyboardInterrupt:  # a second Ctrl-C, after the command had ended
        return INTERRUPTED


def _run(name: str, rest: Sequence[str]) -> int:
    if name in ("-h", "--help"):
        print(_usage())
        return 0
    if name == "--version":
        print(f"sacfast {__version__}")
        return 0
    if name == "--print-completion":
        return _print_completion(rest)
    if name not in COMMANDS:
        print(f"sacfast: unknown command {name!r}; expected one of {', '.join(COMMANDS)}", file=sys.stderr)
        return BAD_USAGE
    try:
        return COMMANDS[name].run(rest)
    except UsageError as error:
        print(f"sacfast {name}: {error}", file=sys.stderr)
        return BAD_USAGE
    except ImportError as error:  # the native library is not built, or an optional package is not installed
        print(f"sacfast {name}: {_one_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def parse(command: str, options: type[Options], arguments: Sequence[str]) -> Options:
    """Build a dataclass from command-line flags; `--help` prints them and leaves the program.

    Args:
        command: the subcommand's name, for messages.
        options: a dataclass; fields of nested dataclasses are flags without a prefix.
        arguments: after the command's name.

    Raises:
        UsageError: a flag that does not exist, or a value that is not allowed.
    """
    _check_flags(command, options, arguments)
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                tyro.conf.configure(tyro.conf.OmitArgPrefixes)(options),
                prog=f"sacfast {command}",
                args=list(_spell_out(options, arguments)),
            )
    except (TypeError, ValueError) as error:
        raise UsageError(str(error)) from error
    except SystemExit as leaving:
        if not leaving.code:
            raise
        message = condense(box.getvalue())
        if "expected" not in message.lower():
            message += f"; `sacfast {command} --help` lists what is allowed"
        raise UsageError(message) from None


def condense(report: str) -> str:
    """Make one line of what tyro reports: what is wrong, and what is expected.

    The report is a box with a title in its frame, or where the terminal's encoding has no frames, a title
    above a rule. Rules cut it into the message, the flag's own help, and where to find all of it.
    """
    framed = "│" in report
    sections: list[list[str]] = [[]]
    for line in report.splitlines():
        text = line.strip("│ ")
        if text and not text.strip("─-"):
            sections.append([])
        elif text and not text.startswith(("╭", "╰")):
            sections[-1].append(text)
    sections = [section for section in (sections if framed else sections[1:]) if section]
    if not sections:
        return " ".join(report.split())
    message = " ".join(sections[0]).partition(" Got errors:")[0].rstrip(".")
    message = re.sub(r"^Error parsing (?!-)[^:]*: ", "", message).removeprefix("Error parsing ")
    helps = [section for section in sections if section[0] == "Argument helptext:"]
    return f"{message}; expected {helps[0][1]}" if helps else message


def _check_flags(command: str, options: type[Any], arguments: Sequence[str]) -> None:
    """Refuse a flag that does not exist, with the closest one that does."""
    known = {"--help", *dict(_flags(options))}
    for argument in arguments:
        flag = argument.partition("=")[0].replace("_", "-")
        if flag.startswith("--") and flag not in known:
            raise UsageError(f"unknown flag {flag}; {_hint(flag, known)}`sacfast {command} --help` lists them")


def _hint(flag: str, known: set[str]) -> str:
    """Say what a flag that does not exist may be here."""
    name = flag.removeprefix("--").replace("-", "_")
    if name in STABLE_BASELINES3 and "--env-id" in known:
        return f"{re.sub('`(.*?)`', lambda found: _flag(found[1]), STABLE_BASELINES3[name])}; "
    close = difflib.get_close_matches(flag, known, n=1)
    return f"did you mean {close[0]}? " if close else ""


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _spell_out(options: type[Any], arguments: Sequence[str]) -> Iterator[str]:
    """Yield the arguments, whole numbers such as 1e6 as digits where a flag takes ints."""
    kinds = dict(_flags(options))
    kind: Any = None  # of what the next word is
    for argument in arguments:
        flag, separator, value = argument.partition("=")
        if argument.startswith("--"):
            kind = kinds.get(flag.replace("_", "-"))
            yield f"{flag}={_digits(value)}" if separator and _takes_ints(kind) else argument
        elif _takes_ints(kind):
            yield _digits(argument)
            kind = kind if get_origin(kind) is tuple else None
        else:
            yield argument


def _takes_ints(kind: Any) -> bool:
    return int in (kind, *get_args(kind))


def _digits(word: str) -> str:
    """Return a whole number that is written as a float as digits, and any other word as it is."""
    if re.fullmatch(r"\d[\d_]*", word):
        return word
    try:
        number = float(word)
    except ValueError:
        return word
    return str(int(number)) if number.is_integer() else word


def _flags(options: type[Any]) -> Iterator[tuple[str, Any]]:
    """Yield the flags of a dataclass and of those in it, with the type of what each takes."""
    hints = get_type_hints(options)
    for field in dataclasses.fields(options):
        hint: type[Any] = hints[field.name]
        if dataclasses.is_dataclass(hint):
            yield from _flags(hint)
        else:
            yield _flag(field.name), hint
            if hint is bool:
                yield _flag(f"no_{field.name}"), hint


def _usage() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items())
    return (
        "usage: sacfast COMMAND [OPTIONS]\n\n"
        "Soft Actor-Critic at the speed of the machine.\n\n"
        f"commands:\n{commands}\n\n"
        "`sacfast COMMAND --help` lists a command's options, `sacfast --version` prints the version,\n"
        "`sacfast --print-completion bash|zsh` what completes commands and flags in a shell."
    )


def _print_completion(arguments: Sequence[str]) -> int:
    from sacfast import completion

    try:
        print(completion.script(" ".join(arguments)), end="")
    except ValueError as error:
        print(f"sacfast: {error}", file=sys.stderr)
        return BAD_USAGE
    return 0


def _train(arguments: Sequence[str]) -> int:
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
        raise UsageError(_one_line(error)) from error
    except EnvironmentFault as fault:
        print(f"sacfast train: {_one_line(fault)}", file=sys.stderr)
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
        models = [SAC.resume(run_dir, **changes) for run_dir in _run_dirs(options.resume)]
    except (TypeError, ValueError, OSError, MemoryError, RunInUseError) as error:
        raise UsageError(_one_line(error)) from error
    for model in models:
        steps = f", {model.environment_steps} steps of the environments made again" if model.environment_steps else ""
        print(f"{model.train_config.run_dir}: resumed after {model.timesteps} transitions{steps}")
    return _learn(models)


def _run_dirs(path: Path) -> list[Path]:
    """Return the run directories of the seeds that `path` holds, or `path` itself."""
    seeds = {int(each.name[4:]): each for each in path.glob("seed*") if re.fullmatch(r"seed\d+", each.name)}
    return [seeds[seed] for seed in sorted(seeds)] or [path]


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
        print(f"sacfast train: {_one_line(refusal)}", file=sys.stderr)
        return FAILED
    except (EnvironmentFault, FloatingPointError, OSError, MemoryError, OutOfMemoryError) as fault:
        print(f"sacfast train: {_one_line(fault)}; {_what_is_there(models)}", file=sys.stderr)
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
    return f"{len(models)} seeds: return {_over_seeds(returns)}, {updates / seconds:.0f} updates/s in all"


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


def _evaluate(arguments: Sequence[str]) -> int:
    options = parse("evaluate", EvaluateOptions, arguments)

    from sacfast.envs import EnvironmentFault
    from sacfast.evaluate import RenderingError
    from sacfast.trainer import SAC

    filmed = None
    returns = []
    try:
        named = {} if options.env_id is None else {"env_id": options.env_id}
        models = [SAC.load(run_dir, device=options.device, **named) for run_dir in _run_dirs(options.path)]
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
        raise UsageError(_one_line(error)) from error
    except (EnvironmentFault, RenderingError) as fault:
        print(f"sacfast evaluate: {_one_line(fault)}", file=sys.stderr)
        return FAILED
    if len(returns) > 1:
        print(f"{len(returns)} seeds: return {_over_seeds(returns)}")
    if filmed is not None:
        each = ", ".join(f"{return_:.1f}" for return_ in filmed.returns)
        print(f"{options.video}: {len(filmed.returns)} episode(s), {filmed.lengths.sum()} steps, return {each}")
    return 0


def _over_seeds(returns: Sequence[float]) -> str:
    mean, deviation = statistics.mean(returns), statistics.stdev(returns)
    return f"{mean:.1f} +- {deviation:.1f} (mean and standard deviation over the seeds)"


def _plot(arguments: Sequence[str]) -> int:
    options = parse("plot", PlotOptions, arguments)

    from sacfast.plotting import plot

    try:
        pictures = plot([run for path in options.runs for run in _run_dirs(path)], options.output)
    except (TypeError, ValueError, OSError) as error:
        raise UsageError(_one_line(error)) from error
    for picture in pictures:
        print(picture)
    return 0


def _doctor(arguments: Sequence[str]) -> int:
    parse("doctor", DoctorOptions, arguments)
    import torch

    from sacfast import _ext
    from sacfast.metrics import versions

    found = versions()
    found.setdefault("envpool", "not installed; pip install 'sacfast[envpool]'")
    for name, version in found.items():
        print(f"{name:22} {version}")
    for name, value in _ext.info().items():
        print(f"{name:22} {value}")
    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    print(f"{'gpu':22} {', '.join(gpus) or 'none'}")
    sound = True
    for device in ["cpu", "cuda"] if _ext.info()["cuda_available"] else ["cpu"]:
        for name, error in _op_errors(device):
            passed = error <= OP_TOLERANCE  # NaN does not pass
            sound &= passed
            print(f"{name + ' on ' + device:38} error {error:.1e}  {'ok' if passed else 'WRONG'}")
    difference = _update_difference()
    passed = difference <= UPDATE_TOLERANCE
    sound &= passed
    print(f"{'fused update on cpu':38} difference {difference:.1e}  {'ok' if passed else 'WRONG'}")
    print("all agrees with the references" if sound else "something differs from its reference")
    return 0 if sound else FAILED


OP_TOLERANCE = 2e-5
"""Largest error of a float32 op against its float64 reference, relative to max(1, |value|): about a hundred
roundings of 2**-24, for sums over 17 action dimensions of terms up to some tens."""


UPDATE_TOLERANCE = 2e-5
"""Largest difference of a parameter after one float32 update, fused and reference: a fifteenth of the step that Adam
takes (3e-4), which is also what rounding can make of a gradient that is nearly zero."""


def _update_difference() -> float:
    """Return the largest difference of any parameter between the fused update and plain torch, after one update."""
    import torch

    from sacfast.config import SACConfig
    from sacfast.fused import FusedLearner
    from sacfast.reference import ReferenceLearner
    from sacfast.types import Batch

    config = SACConfig(hidden_sizes=(65, 33), batch_size=64, fused_ops=False)
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    batch = Batch(normal(64, 17), normal(64, 6).tanh(), normal(64), normal(64, 17), (normal(64) > 1).float())
    noise = normal(64, 6), normal(64, 6)
    states = []
    for learner in (FusedLearner(17, 6, config), ReferenceLearner(17, 6, config)):
        learner.update_batch(batch, *noise)
        states.append(learner.state_dict())
    fused, reference = states
    names = [name for name in reference if "optimizer" not in name and name != "noise_state"]
    return max(float((fused[name] - reference[name]).abs().max()) for name in names)


def _op_errors(device: str) -> Iterator[tuple[str, float]]:
    """Yield each native op, forward and backward, with its largest error against the float64 reference."""
    import torch

    from sacfast import ops
    from sacfast.ops.polyak import polyak_update_reference_
    from sacfast.ops.tanh_gaussian import (
        tanh_gaussian_log_prob_reference,
        tanh_gaussian_rsample_reference,
    )
    from sacfast.ops.twin_q import twin_q_target_reference

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(device)

    mean, log_std, noise = normal(257, 17).requires_grad_(), normal(257, 17).requires_grad_(), normal(257, 17)
    exact_mean, exact_log_std = (tensor.detach().double().requires_grad_() for tensor in (mean, log_std))
    found = ops.tanh_gaussian_rsample(mean, log_std, noise=noise)
    exact = tanh_gaussian_rsample_reference(exact_mean, exact_log_std, noise=noise.double())
    yield "tanh_gaussian_rsample", _error(found, exact)
    gradient = torch.autograd.grad(found[0].sum() + found[1].sum(), (mean, log_std))
    exact_gradient = torch.autograd.grad(exact[0].sum() + exact[1].sum(), (exact_mean, exact_log_std))
    yield "tanh_gaussian_rsample backward", _error(gradient, exact_gradient)
    arguments = noise, mean.detach(), 0.1 * log_std.detach()
    exact_log_prob = tanh_gaussian_log_prob_reference(*(tensor.double() for tensor in arguments))
    yield "tanh_gaussian_log_prob", _error([ops.tanh_gaussian_log_prob(*arguments)], [exact_log_prob])
    columns = {name: normal(257) for name in ("reward", "next_q1", "next_q2", "next_log_prob")}
    columns["terminated"] = (normal(257) > 1).float()
    exact_columns = {name: column.double() for name, column in columns.items()}
    exact_target = twin_q_target_reference(**exact_columns, alpha=0.2, gamma=0.99)
    yield "twin_q_target", _error([ops.twin_q_target(**columns, alpha=0.2, gamma=0.99)], [exact_target])
    target, online = normal(1001), normal(1001)
    exact_polyak = target.double()
    polyak_update_reference_(exact_polyak, online.double(), 0.005)
    ops.polyak_update_(target, online, 0.005)
    yield "polyak_update_", _error([target], [exact_polyak])


def _error(found: Sequence[torch.Tensor], exact: Sequence[torch.Tensor]) -> float:
    """Return the largest error relative to max(1, |exact|)."""
    pairs = [(value.detach().double(), truth.detach()) for value, truth in zip(found, exact, strict=True)]
    return max(float(((value - truth).abs() / truth.abs().clamp(min=1.0)).max()) for value, truth in pairs)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _benchmark(arguments: Sequence[str]) -> int:
    from sacfast.benchmark.command import run

    return run(arguments)


COMMANDS: dict[str, Command] = {
    "train": Command("train SAC on a task", _train),
    "evaluate": Command("run episodes with a trained policy", _evaluate),
    "plot": Command("draw learning curves and what happened meanwhile, over seeds", _plot),
    "benchmark": Command("measure ops, updates, collection or training beside other implementations", _benchmark),
    "doctor": Command("print versions, hardware and kernels in use, and check the ops", _doctor),
}
