"""What autograd in Python costs, where no library in C++ fits the installed torch: `python -m benchmarks.autograd`.

Which of the two a process has is settled when the ops are imported. So each has a process of its own, which also times
plain torch. They take turns, one of them at work at a time, and ratios are taken inside each round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sacfast import _ext, files
from sacfast.benchmark import report
from sacfast.benchmark.bench_ops import CASES, FUSED
from sacfast.benchmark.harness import Rounds, Settings, Spread

ROOT = Path(__file__).parents[1]
NAMES = ("rsample_256x6", "rsample_backward_256x6", "rsample_engine_256x6")
KINDS = {"C++": "", "Python": "python"}  # and SACFAST_AUTOGRAD
PLAIN = "plain torch"
SAMPLES = 7
"""In each round, of which the fastest counts: others are cut short by whatever else is at work, or begin with cold
caches, for the process has slept."""


def serve() -> None:
    """Answer each line of input by the seconds of a call, by case and contender."""
    torch.set_num_threads(1)
    settings = Settings(threads=1, sample_milliseconds=2)
    cases = {name: Rounds(CASES[name]("cpu").contenders, settings) for name in NAMES}
    print(json.dumps(_ext.info()["autograd"]), flush=True)
    for _ in sys.stdin:
        answer = {}
        for name, rounds in cases.items():
            for _ in range(SAMPLES):
                rounds.run_one()
            rounds.keep_last(SAMPLES)
            answer[name] = {contender: min(seconds) for contender, seconds in rounds.seconds.items()}
        print(json.dumps(answer), flush=True)


def measure(count: int) -> dict[str, list[dict[str, Any]]]:
    """Return what the processes answered in each of `count` rounds, by the kind of autograd."""
    answers: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    with ExitStack() as stack:
        workers = {}
        for kind, wish in KINDS.items():
            workers[kind] = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.autograd", "--serve"],
                    env={**os.environ, "SACFAST_AUTOGRAD": wish},
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            if (found := json.loads(workers[kind].stdout.readline())) != kind:
                raise SystemExit(f"expected a torch with autograd in {kind}, got {found}")
        order = list(KINDS)
        for _ in range(count + 1):
            for kind in order:
                print(file=workers[kind].stdin, flush=True)
                answers[kind].append(json.loads(workers[kind].stdout.readline()))
            order.append(order.pop(0))
        for worker in workers.values():
            worker.stdin.close()
    return {kind: found[1:] for kind, found in answers.items()}  # the first round is for warming up


def summarize(answers: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return each case's times in microseconds, and how many times longer the others take than autograd in C++."""
    rows = []
    for name in NAMES:
        seconds = {kind: np.array([each[name][FUSED] for each in answers[kind]]) for kind in KINDS}
        seconds[PLAIN] = np.array([each[name][PLAIN] for each in answers["C++"]])
        beside = np.array([each[name][PLAIN] for each in answers["Python"]])
        case = CASES[name]("cpu")
        rows.append(
            {
                "op": case.op,
                "size": case.size,
                "microseconds": {kind: Spread.of(found).to_dict(1e6) for kind, found in seconds.items()},
                "times_slower_than_cpp": {
                    kind: Spread.of(seconds[kind] / seconds["C++"]).to_dict() for kind in ("Python", PLAIN)
                },
                "plain_times_slower_than_python": Spread.of(beside / seconds["Python"]).to_dict(),
            }
        )
    return rows


def main() -> int:
    """Measure, print a table and write the data."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.autograd", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50, help="in each, every contender is timed once")
    parser.add_argument("--output", type=Path, default=Path("build/autograd.json"), help="JSON file to write")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve()
        return 0
    rows = summarize(measure(options.rounds))
    print(report.autograd_table(rows))
    command = f"python -m benchmarks.autograd --rounds {options.rounds}"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    content = {"benchmark": "autograd", **report.provenance(command), "threads": 1, "rounds": options.rounds}
    files.write_json(options.output, {**content, "rows": rows})
    return 0


if __name__ == "__main__":
    sys.exit(main())
