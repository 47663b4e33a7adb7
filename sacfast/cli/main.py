"""The `sacfast` command. A subcommand is one entry of `COMMANDS`.

torch and the environments take seconds to import: only the subcommands that need them do so, when they run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sacfast import __version__, output
from sacfast.cli.arguments import BAD_USAGE, FAILED, INTERRUPTED, UsageError, one_line
from sacfast.cli.doctor import doctor
from sacfast.cli.evaluate import evaluate
from sacfast.cli.plot import plot
from sacfast.cli.train import train

if TYPE_CHECKING:
    pass


class Command(NamedTuple):
    """A subcommand."""

    summary: str
    run: Callable[[Sequence[str]], int]  # takes the arguments after the command's name, returns the exit code


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
        print(f"sacfast {name}: {one_line(error)}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


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


def _benchmark(arguments: Sequence[str]) -> int:
    from sacfast.benchmark.command import run

    return run(arguments)


COMMANDS: dict[str, Command] = {
    "train": Command("train SAC on a task", train),
    "evaluate": Command("run episodes with a trained policy", evaluate),
    "plot": Command("draw learning curves and what happened meanwhile, over seeds", plot),
    "benchmark": Command("measure ops, updates, collection or training beside other implementations", _benchmark),
    "doctor": Command("print versions, hardware and kernels in use, and check the ops", doctor),
}
