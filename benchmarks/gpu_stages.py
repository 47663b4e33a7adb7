"""The stages of `make gpu-check`, in the order of what is most worth knowing, and how long each may take.

Together the limits are under 15 minutes, the start of the machine and the transfers left out.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TESTS = "tests/test_fused_cuda.py"
SMALLEST = (
    f"{TESTS}::test_sizes[1-(5,)]",
    f"{TESTS}::test_sizes[37-(33, 70)]",
    f"{TESTS}::test_the_same_start_gives_the_same_bits",
)
THREADS = (1, 2, 4, 8, 16)


FOLDER = "FOLDER"
"""Stands in a command for the folder in which a stage leaves files."""


class Stage(NamedTuple):
    """A command to run, for how long at most, and the JSON file in FOLDER that it leaves, if it does."""

    name: str
    command: list[str]
    seconds: float
    environment: dict[str, str] = {}  # noqa: RUF012  (never written to)
    result: str | None = None
    needs_card: bool = True


def python(*arguments: str) -> list[str]:
    """Return the command of this Python."""
    return [sys.executable, *arguments]


def build(cuda: bool) -> Iterator[Stage]:
    """Yield the build in place, and a look at what it built."""
    yield Stage(
        "build",
        python("setup.py", "build_ext", "--inplace"),
        150,
        {"SACFAST_CUDA": str(int(cuda))},
        needs_card=False,
    )
    # The last line says why, where there is no card.
    loaded = "from sacfast import _ext; info = _ext.info(); print(info); exit(info['cuda_reason'] or 0)"
    yield Stage("library", python("-c", loaded), 15)


def sanitizer_stages(cuda: bool = True) -> Iterator[Stage]:
    """Yield the stages of --sanitize: out of bounds, races within a block, reads of what was never written."""
    yield from build(cuda)
    for tool in ("memcheck", "racecheck", "initcheck"):
        yield _sanitizer(tool, 200)


def _sanitizer(tool: str, seconds: float, quick: bool = False) -> Stage:
    # It lies beside nvcc, which may be a link elsewhere.
    folders = [
        os.environ.get("PATH", ""),
        str(Path(shutil.which("nvcc") or "").resolve().parent),
        "/usr/local/cuda/bin",
    ]
    program = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    command = [program or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    if program is None and quick:
        command = []  # the tests alone are rehearsed
    tests = python("-m", "pytest", "-m", "cuda", "-x", "-p", "no:cacheprovider", *SMALLEST)
    # Torch's cache would hand out memory that was written for somebody else: initcheck would see nothing.
    return Stage(tool, [*command, *tests], seconds, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"})


def stages(quick: bool = False, cuda: bool = True) -> Iterator[Stage]:
    """Yield all stages. `quick`: as little as shows that they run."""
    yield from build(cuda)
    yield _sanitizer("memcheck", 45, quick)
    yield Stage("cuda tests", python("-m", "pytest", "-m", "cuda", "-q"), 90)
    nodes = "nodes.json"
    yield Stage("nodes", python("-m", "benchmarks.gpu_nodes", *_output(nodes)), 25, result=nodes)
    yield from _updates(quick)
    yield from _ops(quick)
    yield from _training()
    yield from _cpu(quick)


def _output(result: str) -> tuple[str, str]:
    return "--output", f"{FOLDER}/{result}"


def _updates(quick: bool) -> Iterator[Stage]:
    length = ("--rounds", "1", "--seconds", "0.05") if quick else ("--rounds", "8", "--seconds", "0.4")
    large = ("--hidden-sizes", "1024", "1024", "--batch-size", "8192", "--peak", "bfloat16")
    for name, arguments, seconds in (
        ("updates", ("--only", "fused", "fused_tf32", "reference", "reference_graph"), 40),
        ("updates, SBX", ("--only", "fused", "sbx"), 40),
        ("updates, 10 seeds", ("--only", "fused", "fused_10_seeds"), 30),
        ("updates, compiled", ("--only", "fused", "reference_compiled_graph"), 60),
        ("large updates", (*large, "--only", "fused_bfloat16", "fused_tf32", "reference_graph"), 35),
    ):
        result = f"{name}.json"
        command = ("benchmark", "update", *arguments, "--device", "cuda", "--threads", "1", *length)
        # JAX would take three quarters of the GPU's memory for itself.
        environment = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
        yield Stage(name, python("-m", "sacfast", *command, *_output(result)), seconds, environment, result)


def _ops(quick: bool) -> Iterator[Stage]:
    result = "ops.json"
    length = ("--rounds", "1", "--sample-milliseconds", "0.1") if quick else ("--rounds", "20")
    command = ("benchmark", "ops", "--device", "cuda", *length, *_output(result))
    yield Stage("ops", python("-m", "sacfast", *command), 45, result=result)


def _training() -> Iterator[Stage]:
    task = ("train", "--env-id", "HalfCheetah-v5", "--device", "cuda", "--no-progress")
    one = ("--num-envs", "64", "--total-timesteps", "50000", "--run-dir", f"{FOLDER}/run")
    yield Stage("training", python("-m", "sacfast", *task, *one), 45, result="run/summary.json")
    seeds = ("--num-seeds", "10", "--num-envs", "16", "--total-timesteps", "5000", "--run-dir", f"{FOLDER}/seeds")
    yield Stage("training, 10 seeds", python("-m", "sacfast", *task, *seeds), 45)


def _cpu(quick: bool) -> Iterator[Stage]:
    """Yield the update and the collection on so many threads as users have, and this machine."""
    threads = [count for count in THREADS if count <= len(os.sched_getaffinity(0))]
    result = "update_cpu.json"
    length = ("--rounds", "1", "--seconds", "0.05") if quick else ("--rounds", "4", "--seconds", "0.5")
    command = ("benchmark", "update", "--threads", *map(str, threads), "--only", "fused", "reference", *length)
    update = python("-m", "sacfast", *command, *_output(result))
    yield Stage("updates, CPU", update, 60, result=result, needs_card=False)
    length = ("--rounds", "1", "--steps", "20") if quick else ("--rounds", "3", "--steps", "400")
    for count in threads:
        result = f"collect_{count}.json"
        command = ("benchmark", "collect", "--num-envs", "64", "--env-threads", str(count), *length)
        collect = python("-m", "sacfast", *command, *_output(result))
        yield Stage(f"collection, {count} threads", collect, 12, result=result, needs_card=False)
