"""Everything that needs a GPU, on a machine that has one: build, tests, measurements, a training run.

    make gpu-check            python -m benchmarks.gpu_check --output FILE

Builds in place against the torch of this Python and needs no network. Beside torch built for CUDA and nvcc it needs
the packages of `dependencies` and of the extra `benchmark` in pyproject.toml, hypothesis, CMake and ninja. A stage
that fails does not keep the later ones from running; the file has the result of each.

    python -m benchmarks.gpu_check --sanitize       the tests of the update under compute-sanitizer instead
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

ROOT = Path(__file__).parents[1]
SECONDS = 510.0  # for all stages together
TAIL = 4000  # characters kept of a stage's output


class Stage(NamedTuple):
    """A command to run, and the JSON file it leaves, if it does."""

    name: str
    command: list[str]
    environment: dict[str, str] = {}  # noqa: RUF012  (never written to)
    result: Path | None = None


def python(*arguments: str) -> list[str]:
    """Return the command of this Python."""
    return [sys.executable, *arguments]


BUILD = Stage("build", python("setup.py", "build_ext", "--inplace"), {"SACFAST_CUDA": "1"})


def sanitizer_stages() -> Iterator[Stage]:
    """Yield the stages of --sanitize: out of bounds, races within a block, reads of what was never written."""
    yield BUILD
    tests = python("-m", "pytest", "-m", "cuda", "-x", "tests/test_fused_cuda.py", "-k", "sizes or same_start")
    for tool in ("memcheck", "racecheck", "initcheck"):
        yield Stage(tool, ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", *tests])


def stages(folder: Path) -> Iterator[Stage]:
    """Yield the stages in the order of what is most worth knowing; a later one may ask what an earlier one built."""
    yield BUILD
    loaded = "from sacfast import _ext; info = _ext.info(); print(info); assert info['cuda_available'], info"
    yield Stage("library", python("-c", loaded))
    yield Stage("cuda tests", python("-m", "pytest", "-m", "cuda"))
    ops = folder / "ops_cuda.json"
    measure = python("-m", "sacfast", "benchmark", "ops", "--device", "cuda", "--output", str(ops))
    yield Stage("ops on cuda", measure, result=ops)
    update = folder / "update_cuda.json"
    measure = ["--device", "cuda", "--threads", "1", "--rounds", "8", "--seconds", "0.5", "--output", str(update)]
    yield Stage("updates on cuda", python("-m", "sacfast", "benchmark", "update", *measure), result=update)
    large = folder / "update_large_cuda.json"
    sizes = ["--hidden-sizes", "1024", "1024", "--batch-size", "8192", "--peak", "bfloat16"]
    names = ["--only", "fused_bfloat16", "fused_tf32", "reference_compiled_graph"]
    measure = [*sizes, *names, "--device", "cuda", "--threads", "1", "--rounds", "5", "--output", str(large)]
    yield Stage("large updates on cuda", python("-m", "sacfast", "benchmark", "update", *measure), result=large)
    run_dir = folder / "run"
    task = ["--env-id", "HalfCheetah-v5", "--num-envs", "64", "--total-timesteps", "100000", "--device", "cuda"]
    train = python("-m", "sacfast", "train", *task, "--no-progress", "--run-dir", str(run_dir))
    yield Stage("training on cuda", train, result=run_dir / "summary.json")
    for level in cpu_levels():
        tests = python("-m", "pytest", "tests/ops", "-m", "not cuda")
        yield Stage(f"op tests at CPU level {level}", tests, {"SACFAST_CPU_LEVEL": level})
    ops = folder / "ops_cpu.json"
    measure = python("-m", "sacfast", "benchmark", "ops", "--device", "cpu", "--output", str(ops))
    yield Stage("ops on the CPU", measure, result=ops)


def cpu_levels() -> list[str]:
    """Return the instruction sets that the library has and this processor can run; none if it does not load."""
    code = "import json; from sacfast import _ext; print(json.dumps(_ext.info()['cpu_levels_available']))"
    done = subprocess.run(python("-c", code), cwd=ROOT, capture_output=True, text=True, check=False)
    return [] if done.returncode else json.loads(done.stdout.splitlines()[-1])


def run(stage: Stage, seconds: float) -> dict[str, Any]:
    """Run a stage for at most `seconds`; return what came of it."""
    start = time.perf_counter()
    try:
        done = subprocess.run(
            stage.command,
            cwd=ROOT,
            env={**os.environ, **stage.environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=max(seconds, 1.0),
            check=False,
        )
        passed, output = done.returncode == 0, done.stdout
    except subprocess.TimeoutExpired as late:
        passed, output = False, f"{(late.stdout or b'').decode()}\nstopped: no time was left"
    outcome: dict[str, Any] = {
        "name": stage.name,
        "passed": passed,
        "seconds": round(time.perf_counter() - start, 1),
        "command": " ".join("python3" if word == sys.executable else word for word in stage.command),
        "output": output[-TAIL:],
    }
    if stage.result is not None and stage.result.exists():
        outcome["result"] = json.loads(stage.result.read_text())
    return outcome


def describe(outcomes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the file's content; JSON-safe."""
    content: dict[str, Any] = {"check": "gpu", "passed": all(outcome["passed"] for outcome in outcomes)}
    try:
        from sacfast.benchmark import report

        content |= report.provenance("make gpu-check")
    except ImportError as error:  # the library was not built: the file shall say so, and on what machine
        content |= {"error": str(error), "gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    return {**content, "stages": outcomes}


def main() -> int:
    """Run all stages, write the file, return 1 if one failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu_check.json", help="file to write")
    parser.add_argument("--sanitize", action="store_true", help="run the update's tests under compute-sanitizer")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"gpu-check: needs an NVIDIA GPU, and torch {torch.__version__} finds none", file=sys.stderr)
        return 1
    deadline = time.perf_counter() + SECONDS
    outcomes: list[dict[str, Any]] = []
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for stage in sanitizer_stages() if options.sanitize else stages(Path(folder)):
            outcome = run(stage, deadline - time.perf_counter())
            outcomes.append(outcome)
            # The file grows with every stage: it is there also if this program is stopped.
            options.output.write_text(json.dumps(describe(outcomes), indent=2) + "\n")
            print(f"{'passed' if outcome['passed'] else 'FAILED'}  {stage.name}  {outcome['seconds']} s", flush=True)
            if not outcome["passed"]:
                print(outcome["output"], flush=True)
    passed = all(outcome["passed"] for outcome in outcomes)
    print(f"gpu-check: {'passed' if passed else 'FAILED'}; written to {options.output}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
