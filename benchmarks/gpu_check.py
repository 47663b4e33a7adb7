"""Everything that needs a GPU, on a machine that has one: build, tests, measurements, a training run.

    make gpu-check            python -m benchmarks.gpu_check --output FILE

Builds in place against the torch of this Python and needs no network. Beside torch built for CUDA and nvcc it needs
the packages of `dependencies` and of the extra `benchmark` in pyproject.toml, hypothesis, CMake and ninja; what a stage
misses keeps none of the others from running. `--wheels FOLDER` takes more packages from there: EnvPool, Gymnasium.

The file has the result of each stage and is written after each. Run again, it makes those that are missing or did not
pass; what passed with the same sources stands. So a machine that is lent for minutes serves as often as it is lent.

    python -m benchmarks.gpu_check --sanitize       the tests of the update under compute-sanitizer instead
    python -m benchmarks.gpu_check --rehearse       on a machine without a GPU: every stage, up to where it asks for one
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_stages import FOLDER, ROOT, Stage, sanitizer_stages, stages

SECONDS = 840.0  # for all stages together
SLOWER = 16  # how many times longer a stage may take in a rehearsal
TAIL = 4000  # characters kept of a stage's output
NO_CARD = (
    "is a CPU build",
    "was built without CUDA",
    "no CUDA device is available",
    "finds no GPU",
    "needs an NVIDIA GPU",
)
"""What a stage says where there is no card: `_ext.cuda_reason`, `sacfast train` and `gpu_nodes`."""


def run(stage: Stage, seconds: float) -> dict[str, Any]:
    """Run a stage for at most `seconds`; return what came of it."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        passed, output = _run([word.replace(FOLDER, folder) for word in stage.command], stage.environment, seconds)
        outcome: dict[str, Any] = {
            "name": stage.name,
            "passed": passed,
            "seconds": round(time.perf_counter() - start, 1),
            "command": command_of(stage),
            "output": output[-TAIL:],
        }
        if stage.result is not None and (result := Path(folder) / stage.result).exists():
            outcome["result"] = json.loads(result.read_text())
    return outcome


def _run(command: list[str], environment: dict[str, str], seconds: float) -> tuple[bool, str]:
    """Run a command with all that it starts; return whether it ended with 0 in time, and what it said."""
    with tempfile.TemporaryFile("w+") as output:
        try:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except FileNotFoundError as missing:
            return False, str(missing)
        ending = ""
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            ending = f"\nstopped after {seconds:.0f} s"
            os.killpg(process.pid, signal.SIGKILL)  # the contenders of a benchmark are processes too
            process.wait()
        output.seek(0)
        return process.returncode == 0, output.read() + ending


def command_of(stage: Stage) -> str:
    """Return a stage's command as it is written to the file: without what differs from machine to machine."""
    return " ".join("python3" if word == sys.executable else word for word in stage.command)


def sources() -> str:
    """Return a digest of what a result depends on: the package and its native code."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "csrc").rglob("*.*"), *(ROOT / "sacfast").rglob("*.py")]):
        digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def reached_the_card(outcome: dict[str, Any]) -> bool:
    """Say whether a stage that did not pass got as far as asking for a GPU, and said so in its last line."""
    lines = outcome["output"].strip().splitlines()
    return bool(lines) and any(reason in lines[-1] for reason in NO_CARD)


class Record:
    """The file: the outcome of each stage, of this run and of earlier ones."""

    def __init__(self, output: Path, command: str) -> None:
        """Read what an earlier run left in `output`, if it was of the same sources."""
        self.output, self._command, self._sources = output, command, sources()
        self._outcomes: dict[str, dict[str, Any]] = {}
        output.parent.mkdir(parents=True, exist_ok=True)
        if output.exists():
            earlier = json.loads(output.read_text())
            if earlier.get("sources") == self._sources:
                self._outcomes = {outcome["name"]: outcome for outcome in earlier["stages"]}

    def has(self, stage: Stage) -> bool:
        """Say whether a stage has passed before."""
        outcome = self._outcomes.get(stage.name, {"passed": False})
        return bool(outcome["passed"]) and outcome["command"] == command_of(stage)

    def add(self, outcome: dict[str, Any]) -> None:
        """Add an outcome and write the file, whole: it may be the last thing that this machine does."""
        self._outcomes[outcome["name"]] = outcome
        content = describe(list(self._outcomes.values()), self._command) | {"sources": self._sources}
        beside = self.output.with_suffix(".part")
        beside.write_text(json.dumps(content, indent=2) + "\n")
        beside.replace(self.output)


def describe(outcomes: Sequence[dict[str, Any]], command: str) -> dict[str, Any]:
    """Return the file's content; JSON-safe."""
    content: dict[str, Any] = {"check": "gpu", "passed": all(outcome["passed"] for outcome in outcomes)}
    # In a process of its own: the library that is described may have been built since this one began.
    code = f"import json; from sacfast.benchmark import report; print(json.dumps(report.provenance({command!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        content |= json.loads(done.stdout.splitlines()[-1])
    else:  # the library was not built: the file shall say so, and on what machine
        error = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        content |= {"error": error, "gpu": gpu, "torch": torch.__version__}
    return {**content, "stages": list(outcomes)}


def check(todo: Iterable[Stage], record: Record, seconds: float, rehearse: bool) -> bool:
    """Run what has not passed before and for which time is left; return whether all has passed."""
    deadline = time.perf_counter() + seconds
    complete = True
    for stage in todo:
        if record.has(stage):
            print(f"passed  {stage.name}  before", flush=True)
            continue
        # A machine without a GPU is nobody's for minutes, and may be slow: the build is the same one.
        seconds_of_stage = stage.seconds * (SLOWER if rehearse else 1)
        if deadline - time.perf_counter() < seconds_of_stage:
            print(f"LEFT    {stage.name}  needs up to {seconds_of_stage:.0f} s: run again", flush=True)
            complete = False
            continue
        outcome = run(stage, seconds_of_stage)
        if rehearse and stage.needs_card and not outcome["passed"] and reached_the_card(outcome):
            outcome |= {"passed": True, "rehearsed": "up to where it asks for a GPU"}
        record.add(outcome)
        word = "passed" if outcome["passed"] else "FAILED"
        print(f"{word}  {stage.name}  {outcome['seconds']} s", flush=True)
        if not outcome["passed"]:
            print(outcome["output"], flush=True)
            complete = False
    return complete


def take_wheels(folder: Path) -> None:
    """Install wheels beside the packages of this Python, for the stages alone; EnvPool's assets may lie with them."""
    site = ROOT / "build" / "gpu-site"
    wheels = sorted(map(str, folder.glob("*.whl")))
    if not wheels:
        raise SystemExit(f"gpu-check: wheels: expected a folder with wheels, got {folder}")
    options = ["--quiet", "--no-index", "--no-deps", "--upgrade", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *wheels], check=True)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    if (folder / "assets").is_dir():
        os.environ["ENVPOOL_ASSETS_PATH"] = str((folder / "assets").resolve())


def main() -> int:
    """Run the stages, write the file, return 1 if one failed or was left."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_check", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu_check.json", help="file to write")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all stages together")
    parser.add_argument("--wheels", type=Path, help="folder with wheels of packages that are missing here")
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--sanitize", action="store_true", help="run the update's tests under compute-sanitizer")
    kind.add_argument("--rehearse", action="store_true", help="without a GPU: every stage up to where it asks for one")
    options = parser.parse_args()
    if options.rehearse == torch.cuda.is_available():
        needs = "is for a machine without a GPU" if options.rehearse else "needs an NVIDIA GPU"
        found = "one" if options.rehearse else "none"
        print(f"gpu-check: {needs}, and torch {torch.__version__} finds {found}", file=sys.stderr)
        return 1
    if options.wheels is not None:
        take_wheels(options.wheels)
    cuda = torch.version.cuda is not None
    record = Record(options.output, "make gpu-check")
    todo = sanitizer_stages() if options.sanitize else stages(quick=options.rehearse, cuda=cuda)
    passed = check(todo, record, options.seconds * (SLOWER if options.rehearse else 1), options.rehearse)
    print(f"gpu-check: {'passed' if passed else 'NOT PASSED'}; written to {options.output}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
