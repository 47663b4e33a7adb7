"""The `sacfast` command: `main`, a file for each subcommand, and what they share."""

from sacfast.cli.arguments import BAD_USAGE, FAILED, INTERRUPTED, TERMINATED, UsageError, condense, parse
from sacfast.cli.doctor import DoctorOptions
from sacfast.cli.evaluate import EvaluateOptions
from sacfast.cli.main import COMMANDS, main
from sacfast.cli.plot import PlotOptions
from sacfast.cli.train import ResumeOptions, TrainOptions

__all__ = [
    "BAD_USAGE",
    "COMMANDS",
    "FAILED",
    "INTERRUPTED",
    "TERMINATED",
    "DoctorOptions",
    "EvaluateOptions",
    "PlotOptions",
    "ResumeOptions",
    "TrainOptions",
    "UsageError",
    "condense",
    "main",
    "parse",
]
