"""What a checkpoint costs: time and memory to save, and to resume from, a million transitions of HalfCheetah.

    python -m benchmarks.checkpoint_cost --output FILE

Saving and resuming have a process each, whose peak of pages in memory is measured. The replay buffer's numbers are
random.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from sacfast import SAC, checkpoint, files
from sacfast.benchmark import report

ROOT = Path(__file__).parents[1]
ROUNDS = 5


def peak() -> int:
    """Return the most memory, in bytes, that this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def save(run_dir: Path) -> dict[str, Any]:
    """Fill a replay buffer; train 16 transitions more, which ends with a checkpoint, a few times."""
    model = SAC("HalfCheetah-v5", run_dir=run_dir, learning_starts=1000, evaluation_episodes=0, progress=False)
    generator = torch.Generator().manual_seed(0)
    while len(model.replay) < model.replay.capacity:
        shapes = ((10_000, 17), (10_000, 6), (10_000,), (10_000, 17))
        fields = [torch.randn(shape, generator=generator).tanh() for shape in shapes]  # actions lie in [-1, 1]
        model.replay.add(*fields, torch.zeros(10_000, dtype=torch.bool))
    before = peak()
    wall, cpu = [], []
    for _ in range(ROUNDS):
        start, used = time.perf_counter(), time.process_time()
        model.learn(16)
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - used)
    size = sum(path.stat().st_size for path in checkpoint.find(run_dir).iterdir())
    return {"bytes": size, "save_seconds": wall, "save_cpu_seconds": cpu, "save_extra_bytes": peak() - before}


def resume(run_dir: Path) -> dict[str, Any]:
    """Resume the run. Of the memory the buffer itself is a part, and the mapped file, which the system may drop."""
    before, start = peak(), time.perf_counter()
    model = SAC.resume(run_dir, progress=False)
    seconds = time.perf_counter() - start
    return {"resume_seconds": seconds, "resume_bytes": peak() - before, "buffer_bytes": model.replay.rows.nbytes}


def in_a_process(name: str, run_dir: Path) -> dict[str, Any]:
    """Call one of the functions above in a process of its own."""
    code = f"import json, pathlib, benchmarks.checkpoint_cost as cost; path = pathlib.Path({str(run_dir)!r}); "
    command = [sys.executable, "-c", f"{code}print(json.dumps(cost.{name}(path)))"]
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> int:
    """Measure, print two lines and write the data."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.checkpoint_cost", description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("build/checkpoint_cost.json"), help="JSON file to write")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sacfast-checkpoint-") as name:
        cost = in_a_process("save", Path(name) / "run") | in_a_process("resume", Path(name) / "run")
    wall, cpu = statistics.median(cost["save_seconds"]), statistics.median(cost["save_cpu_seconds"])
    beside = cost["resume_bytes"] - cost["buffer_bytes"]
    print(
        f"a checkpoint of 1,000,000 HalfCheetah transitions, {cost['bytes'] / 1e6:.0f} MB, saved in {wall:.1f} s "
        f"({cpu:.1f} s of processor time), with {cost['save_extra_bytes'] / 1e6:.1f} MB of extra memory;\n"
        f"resumed in {cost['resume_seconds']:.1f} s, with {beside / 1e6:.0f} MB for learner, environments and mapped "
        f"file, beside the buffer's {cost['buffer_bytes'] / 1e6:.0f} MB"
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(options.output, {**report.provenance("python -m benchmarks.checkpoint_cost"), **cost})
    return 0


if __name__ == "__main__":
    sys.exit(main())
