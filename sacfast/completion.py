"""What completes `sacfast` in a shell: tyro's script for all subcommands, from the options that they parse."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import operator
import re
from pathlib import Path
from typing import Annotated, Any

import tyro

from sacfast import cli
from sacfast.benchmark import command as benchmark

SHELLS = ("bash", "zsh")


@dataclasses.dataclass(frozen=True)
class _Train(cli.TrainOptions):
    resume: Path | None = None
    """A run directory to take up."""


_BENCHMARKS = {
    "ops": benchmark.OpsOptions,
    "collect": benchmark.CollectOptions,
    "update": benchmark.UpdateOptions,
    "train": benchmark.TrainOptions,
}


def _one_of(options: dict[str, type[Any]]) -> Any:
    """Return the type of which tyro makes a subcommand for each of the options."""
    subcommands = (Annotated[each, tyro.conf.subcommand(name)] for name, each in options.items())
    return functools.reduce(operator.or_, subcommands)


_Benchmark = dataclasses.make_dataclass("_Benchmark", [("benchmark", _one_of(_BENCHMARKS))])
_COMMANDS = {
    "train": _Train,
    "evaluate": cli.EvaluateOptions,
    "plot": cli.PlotOptions,
    "benchmark": _Benchmark,
    "doctor": cli.DoctorOptions,
}

# tyro completes no positional paths, and those are what `evaluate` and `plot` take.
_FILES_IN_BASH = """
_sacfast_or_file() {{
  {function}
  if [[ -z "${{COMPREPLY[*]}}" ]]; then
    compopt -o filenames 2> /dev/null
    local IFS=$'\\n'
    COMPREPLY=($(compgen -f -- "${{COMP_WORDS[COMP_CWORD]}}"))
  fi
}}
complete -F _sacfast_or_file sacfast
"""


def script(shell: str) -> str:
    """Return what a shell runs to complete `sacfast`.

    Args:
        shell: "bash", for `source`, or "zsh", for a file `_sacfast` in its `fpath`.

    Raises:
        ValueError: `shell` is none of these.
    """
    if shell not in SHELLS:
        raise ValueError(f"--print-completion: expected {' or '.join(SHELLS)}, got {shell!r}")
    options = tyro.conf.configure(tyro.conf.OmitArgPrefixes, tyro.conf.OmitSubcommandPrefixes)(_one_of(_COMMANDS))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.cli(options, prog="sacfast", args=["--tyro-print-completion", shell])
    text = printed.getvalue()
    function = re.search(r"^complete -F (\w+) sacfast$", text, flags=re.MULTILINE)
    return text + _FILES_IN_BASH.format(function=function[1]) if function else text
