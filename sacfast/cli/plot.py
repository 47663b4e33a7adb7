"""`sacfast plot`: learning curves over runs and seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from sacfast.cli.arguments import UsageError, one_line, parse, run_dirs

if TYPE_CHECKING:
    pass


@dataclasses.dataclass(frozen=True)
class PlotOptions:
    """Draw one picture a task: returns, losses, Q-values, entropy, temperature and throughput of its runs. Runs whose
    settings differ by the seed alone are drawn as one curve: interquartile mean and its 95 % bootstrap interval."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run directories, of one run each or of several seeds."""
    output: Path = Path("plots")
    """A file that ends in .png, or a directory for ENV_ID.png."""


def plot(arguments: Sequence[str]) -> int:
    """Draw the runs; return the exit code."""
    options = parse("plot", PlotOptions, arguments)

    from sacfast.plotting import plot

    try:
        pictures = plot([run for path in options.runs for run in run_dirs(path)], options.output)
    except (TypeError, ValueError, OSError) as error:
        raise UsageError(one_line(error)) from error
    for picture in pictures:
        print(picture)
    return 0
