"""Times the kernels of one update on a GPU, node by node, beside what was estimated for them.

    python -m benchmarks.gpu_nodes --output FILE

The update is replayed as it is in training, as a CUDA graph; torch's profiler says when each kernel began and ended.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

ESTIMATE = {"nodes": 24, "microseconds": 110.0, "of them arithmetic": 8.0}
"""Counted from the instructions and the grids of the kernels, for HalfCheetah's sizes (2026-11-30), before any GPU had
run them: 24 nodes of which 19 follow one another."""

UPDATES = 200


class Kernel(NamedTuple):
    """A kernel that ran; times in microseconds."""

    name: str
    start: float
    end: float


def short_name(name: str) -> str | None:
    """Return the name of an update's kernel, with what a product is for; None for kernels of others."""
    found = re.search(r"run_kernel<\s*(?:\w+::)*(?:\(anonymous namespace\)::)?(\w+)<(.*)", name)
    if found is None:
        return None
    purpose = re.search(r"(?:\w+::)*(HiddenLayer|HiddenDelta|Descent)<", found[2])
    return found[1] if purpose is None else f"{found[1]}, {purpose[1]}"


def updates_of(kernels: Iterable[Kernel]) -> list[list[Kernel]]:
    """Return the kernels of each whole update: from the one that gathers the minibatch to the one that finishes it."""
    updates: list[list[Kernel]] = []
    for kernel in sorted(kernels, key=lambda each: each.start):
        if kernel.name == "Gather":
            updates.append([])
        if updates and (not updates[-1] or updates[-1][-1].name != "Finish"):
            updates[-1].append(kernel)
    return [update for update in updates if update[-1].name == "Finish"]


def summarize(updates: Sequence[Sequence[Kernel]]) -> dict[str, Any]:
    """Return medians over the updates: of each node its duration and when it began, and of the whole update.

    Raises:
        ValueError: there is no update, or they differ in their nodes.
    """
    if not updates:
        raise ValueError("kernels: expected those of an update, found none")
    begins: dict[tuple[str, int], list[float]] = {}
    lasts: dict[tuple[str, int], list[float]] = {}
    for update in updates:
        seen: Counter[str] = Counter()
        for kernel in update:
            # By name and number: lanes may overtake each other.
            key = kernel.name, seen[kernel.name]
            seen[kernel.name] += 1
            begins.setdefault(key, []).append(kernel.start - update[0].start)
            lasts.setdefault(key, []).append(kernel.end - kernel.start)
    if any(len(values) != len(updates) for values in begins.values()):
        raise ValueError(f"kernels: expected the same in each update, found {sorted({len(each) for each in updates})}")
    nodes = [
        {
            "kernel": name,
            "begins": float(np.median(begins[name, number])),
            "lasts": float(np.median(lasts[name, number])),
        }
        for name, number in begins
    ]
    nodes.sort(key=lambda node: node["begins"])
    wholes = [update[-1].end - update[0].start for update in updates]
    periods = np.diff([update[0].start for update in updates])
    return {
        "unit": "microseconds, medians",
        "updates": len(updates),
        "nodes": nodes,
        "kernels together": float(sum(node["lasts"] for node in nodes)),
        "update": float(np.median(wholes)),
        "from update to update": float(np.median(periods)) if len(periods) else None,
        "estimate": ESTIMATE,
    }


def measure() -> dict[str, Any]:
    """Make updates under the profiler and return what `summarize` says."""
    from sacfast.benchmark.contenders import FUSED, _learner
    from sacfast.benchmark.problems import UpdateProblem

    learner, replay = _learner(UpdateProblem(device="cuda"), 1, backend=FUSED)
    learner.update(replay, 20)
    learner.wait()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        learner.update(replay, UPDATES)
        learner.wait()
    kernels = [
        Kernel(name, event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type == torch.autograd.DeviceType.CUDA and (name := short_name(event.name)) is not None
    ]
    return summarize(updates_of(kernels))


def main() -> int:
    """Measure, print a table and write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_nodes", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("gpu_nodes.json"), help="file to write")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"gpu-nodes: needs an NVIDIA GPU, and torch {torch.__version__} finds none", file=sys.stderr)
        return 1
    found = measure()
    options.output.write_text(json.dumps(found, indent=2) + "\n")
    for node in found["nodes"]:
        print(f"  at {node['begins']:7.1f} us  {node['lasts']:7.1f} us  {node['kernel']}")
    print(f"{len(found['nodes'])} nodes, an update takes {found['update']:.1f} us; estimated: {ESTIMATE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
