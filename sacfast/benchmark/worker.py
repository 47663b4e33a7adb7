"""A contender in a process of its own: the other end of `workers`.

    python -m sacfast.benchmark.worker {update,train} CONTENDER THREADS PROBLEM

PROBLEM is a JSON object, the fields of `UpdateProblem` or `TrainProblem`. The process keeps to the first THREADS cores
that it may use, builds the contender, and says so, or why not, in a line of JSON: {"ready": {distribution: version}}
or {"absent": reason}. Then it answers each line of standard input by one line, and in between it waits:

    run SECONDS        {"amount": of work done, "seconds": that it took, "others": share of the cores that others had}
    profile UPDATES    {"phases": [...]}, or null for a contender that has no profile

What libraries print goes to standard error. The process ends when its input does.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

from sacfast.benchmark.contenders import TRAINING, UPDATE, Contender, Work
from sacfast.benchmark.problems import TrainProblem, UpdateProblem

WARM_UP_SECONDS = 0.2


def main(arguments: Sequence[str]) -> int:
    """Build the contender and serve until the input ends; 1 if it cannot take part."""
    benchmark, name, threads, problem = arguments
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: int(threads)])
    channel = _claim_output()
    contender: Contender[Any] = UPDATE[name] if benchmark == "update" else TRAINING[name]
    try:
        versions = {distribution: metadata.version(distribution) for distribution in contender.distributions}
        problem_type = UpdateProblem if benchmark == "update" else TrainProblem
        work = contender.build(problem_type(**json.loads(problem)), int(threads))
        work.measure(WARM_UP_SECONDS)
    except metadata.PackageNotFoundError as error:
        _say(channel, {"absent": f"{error.name} is not installed; `make bench-peers` installs it"})
        return 1
    except Exception as error:  # whatever a peer may raise: its absence is reported, by name
        traceback.print_exc()
        _say(channel, {"absent": " ".join(f"{type(error).__name__}: {error}".split())})
        return 1
    _say(channel, {"ready": versions})
    for answer in _answers(work):
        _say(channel, answer)
    return 0


def _answers(work: Work) -> Iterator[dict[str, Any]]:
    for line in sys.stdin:
        command, argument = line.split()
        if command == "run":
            yield _run(work, float(argument))
        elif command == "profile":
            yield {"phases": None if work.profile is None else work.profile(int(argument))}
        else:
            raise ValueError(f"expected run or profile, got {command!r}")


def _run(work: Work, seconds: float) -> dict[str, float]:
    busy, own = _busy_seconds(), time.process_time()
    sample = work.measure(seconds)
    others = _busy_seconds() - busy - (time.process_time() - own)
    # The kernel counts busy time in ticks, so that a little below zero may come out.
    share = max(0.0, others / sample.seconds / len(os.sched_getaffinity(0)))
    return {**sample._asdict(), "others": share}


def _busy_seconds() -> float:
    """Return for how long the cores of this process have been at work, for whomever, or were taken by a hypervisor."""
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *counts = line.split()
        if name in cores:
            user, nice, system, _idle, _iowait, irq, softirq, steal, *_guests = map(int, counts)
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")


def _claim_output() -> TextIO:
    """Return standard output, and let everybody else who writes there write to standard error."""
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return channel


def _say(channel: TextIO, message: dict[str, Any]) -> None:
    channel.write(json.dumps(message) + "\n")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
