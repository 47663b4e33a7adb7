"""Keeps how fast each commit was: one row of benchmarks/results/history.jsonl a commit and machine.

    python -m benchmarks.history             # measures for some three minutes, and appends a row
    python -m benchmarks.history FILE ...    # appends the row of files that `sacfast benchmark` wrote

A row has ratios and shares alone, each taken inside the rounds of one run: rates of different runs compare nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sacfast.benchmark.report import BUSY, fastest_plain

ROOT = Path(__file__).parents[1]
HISTORY = ROOT / "benchmarks" / "results" / "history.jsonl"

MEASUREMENTS = (
    "update --only fused reference --threads 2 1 --rounds 10 --seconds 0.5",
    "ops --rounds 30",
    "collect --rounds 5",
)
"""What is run, as arguments of `sacfast benchmark`."""

SIZES: dict[str, dict[str, Any]] = {
    "update": {"observation_dim": 17, "action_dim": 6, "hidden_sizes": [256, 256], "batch_size": 256, "device": "cpu"},
    "collect": {"env_id": "HalfCheetah-v5", "num_envs": 16},
    "train": {"env_id": "HalfCheetah-v5", "num_envs": 16, "backend": "fused", "threads": 2},
}
"""What every row is of, so that one can be set beside another."""

Percentiles = dict[str, float]


def row_of(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the row of results of one commit and machine.

    Args:
        results: the content of files of `sacfast benchmark update`, `ops`, `collect` and `train`.

    Raises:
        ValueError: the results are of different commits or machines, are without a commit, or have a figure twice or
            none at all, are of other sizes than `SIZES`, or were measured on a busy machine.
    """
    same = [json.dumps(_place(result), sort_keys=True) for result in results]
    if len(set(same)) != 1:
        raise ValueError(f"results: expected one commit and machine, got {' and '.join(sorted(set(same)))}")
    if results[0]["source"]["commit"] is None:
        raise ValueError("results: expected those of a commit, got some that were measured outside git")
    others = [share for result in results if (share := others_share(result)) is not None]
    figures: dict[str, Percentiles] = {}
    for name, values in (figure for result in results for figure in figures_of(result)):
        if name in figures:
            raise ValueError(f"results: expected each figure once, got {name} twice")
        figures[name] = values
    if not figures:
        raise ValueError("results: expected ratios or shares, got none")
    return {
        "date": max(result["date"] for result in results),
        **_place(results[0]),
        "load_average": max(result["load_average"] for result in results),  # of the last minute before a file
        "others_share_of_cores": max(others, default=None),
        "commands": [result["command"] for result in results],
        "figures": figures,
    }


def _place(result: Mapping[str, Any]) -> dict[str, Any]:
    hardware = result["hardware"]
    return {
        "commit": result["source"]["commit"],
        "csrc_tree": result["source"]["csrc_tree"],
        "processor": hardware["processor"],
        "usable_cores": hardware["usable_cores"],
        "cpu_level": result["native"]["cpu_level"],
        "torch": result["versions"]["torch"],
    }


def others_share(result: Mapping[str, Any]) -> float | None:
    """Return the share of the cores that other processes had in the median round; None where it was not measured.

    Raises:
        ValueError: it is so large that the figures mean nothing.
    """
    shares = [row["others_share_of_cores"]["p50"] for row in result["rows"] if "others_share_of_cores" in row]
    if shares and max(shares) > BUSY:
        raise ValueError(
            f"{result['command']}: other processes had {max(shares):.0%} of the cores; expected an idle machine"
        )
    return max(shares, default=None)


def figures_of(result: Mapping[str, Any]) -> Iterator[tuple[str, Percentiles]]:
    """Yield the ratios and shares of a result by name; of ops, beside the fastest plain way.

    Raises:
        ValueError: the result is of other sizes than `SIZES`.
    """
    for row in result["rows"]:
        for name, size in SIZES.get(result["benchmark"], {}).items():
            # Results of before 2026-11-23 name no device; all are of a CPU.
            if (found := row.get(name, size)) != size:
                raise ValueError(f"results: expected {result['benchmark']} with {name} {size}, got {found}")
        if "phases" in row:
            continue  # a profile: its figures are in no round beside another's
        match result["benchmark"]:
            case "update":
                threads = row["threads"]
                if (ratio := row["fused_is_times_faster"].get("reference")) is not None:
                    yield f"update_{threads}_times_eager", ratio
                if (share := row["fraction_of_peak"].get("fused")) is not None:
                    yield f"update_{threads}_of_peak", share
            case "ops":
                ratios = row["times_slower_than_fused"]
                yield f"op_{row['name']}_times_plain", ratios[fastest_plain(ratios)]
            case "collect":
                yield "collect_of_bare", row["fraction_of_bare"]
            case "train":
                yield "train_of_updates", row["fraction_of_bare_updates"]


def measure() -> list[dict[str, Any]]:
    """Run the measurements; return what they wrote.

    Raises:
        RuntimeError: sources differ from the commit, so that the row would name the wrong one; or a command failed.
        ValueError: the machine is busy.
    """
    status = ["git", "status", "--porcelain", "--", "csrc", "sacfast", "CMakeLists.txt"]
    changed = subprocess.run(status, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    if changed:
        raise RuntimeError(f"expected committed sources, got changes:\n{changed}")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for arguments in MEASUREMENTS:
            name, *rest = arguments.split()
            file = Path(folder) / f"{name}.json"
            command = [sys.executable, "-m", "sacfast", "benchmark", name, *rest, "--output", str(file)]
            if subprocess.run(command, cwd=ROOT, check=False).returncode:
                raise RuntimeError(f"sacfast benchmark {arguments}: failed")
            results.append({**json.loads(file.read_text()), "command": f"sacfast benchmark {arguments}"})
            others_share(results[-1])  # before the rest is measured
    return results


def append(row: Mapping[str, Any], path: Path) -> None:
    """Append a row; ValueError where one of the same measurement is there."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    if any((each["commit"], each["date"]) == (row["commit"], row["date"]) for each in rows):
        raise ValueError(f"{path.name}: commit {row['commit'][:10]} of {row['date']} is there already")
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def main() -> int:
    """Append a row; return 1 if it could not be made."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.history", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path, help="results of one commit and machine; none: measure")
    parser.add_argument("--output", type=Path, default=HISTORY)
    options = parser.parse_args()
    try:
        row = row_of([json.loads(path.read_text()) for path in options.files] or measure())
        append(row, options.output)
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(row, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
