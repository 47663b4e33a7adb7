"""What every command does with its arguments: flags into a dataclass, and errors in one line."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import tyro

from sacfast.config import STABLE_BASELINES3

if TYPE_CHECKING:
    pass

Options = TypeVar("Options")
FAILED = 1
BAD_USAGE = 2
INTERRUPTED = 130  # 128 + SIGINT, as shells have it
TERMINATED = 143  # 128 + SIGTERM


class UsageError(Exception):
    """What the user asked for cannot be done; the message is one line that says what is allowed."""


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


def one_line(error: BaseException) -> str:
    """Return what an error says, without line breaks."""
    return " ".join(str(error).split())


def run_dirs(path: Path) -> list[Path]:
    """Return the run directories of the seeds that `path` holds, or `path` itself."""
    seeds = {int(each.name[4:]): each for each in path.glob("seed*") if re.fullmatch(r"seed\d+", each.name)}
    return [seeds[seed] for seed in sorted(seeds)] or [path]


def over_seeds(returns: Sequence[float]) -> str:
    """Say mean and standard deviation of what each seed gave."""
    mean, deviation = statistics.mean(returns), statistics.stdev(returns)
    return f"{mean:.1f} +- {deviation:.1f} (mean and standard deviation over the seeds)"
