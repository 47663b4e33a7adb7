"""Does it learn? Trains named experiments by the command line and keeps their returns as data.

    python -m benchmarks.learning --only pendulum halfcheetah --jobs 2

Each experiment is a file, results/learning_NAME.json, rewritten after every seed. A seed that is there with the same
command is not trained again: the program can be killed at any time, and goes on with what is missing.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sacfast import files
from sacfast.benchmark import report

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RUNS = ROOT / "runs" / "learning"
EPISODES = 10  # of a deterministic evaluation


@dataclass(frozen=True)
class Experiment:
    """A task, how it is learned, and the return that is asked for: of the mean over the seeds, or of each of them."""

    name: str
    env_id: str
    total_timesteps: int
    seeds: tuple[int, ...]
    threshold: float
    flags: tuple[str, ...] = ()
    of_each: bool = False

    def arguments(self, seed: int, torch_threads: int) -> list[str]:
        """Return the `sacfast` arguments of one seed."""
        fixed = {
            "env-id": self.env_id,
            "total-timesteps": self.total_timesteps,
            "seed": seed,
            "device": "cpu",
            "torch-threads": torch_threads,
            "evaluate-every": self.total_timesteps // 10,
            "evaluation-episodes": EPISODES,
            "run-dir": (RUNS / self.name / f"seed{seed}").relative_to(ROOT),
        }
        flags = [part for name, value in fixed.items() for part in (f"--{name}", str(value))]
        return ["train", *flags, "--overwrite", "--no-progress", *self.flags]


THREE = (1, 2, 3)
TEN = tuple(range(1, 11))
PENDULUM = ("Pendulum-v1", 10_000, THREE, -200.0)
# v1 fixes the temperature at 1 and scales the reward instead (arXiv 1801.01290, Table 1).
V1 = ("--value-network", "--alpha", "1.0", "--reward-scale", "5.0")
# The paper's interval of 1000 leaves 9 copies in so short a run.
HARD = ("--target-update", "hard", "--target-update-interval", "200")
INVERTED_PENDULUM = Experiment("inverted_pendulum", "InvertedPendulum-v5", 20_000, THREE, 900.0)
BOTH_BACKENDS = (
    Experiment("pendulum", *PENDULUM),
    Experiment("pendulum_1_env", *PENDULUM, ("--num-envs", "1")),
    Experiment("pendulum_value_network", *PENDULUM, V1),
    Experiment("pendulum_hard_target", *PENDULUM, HARD),
    INVERTED_PENDULUM,
    Experiment("halfcheetah", "HalfCheetah-v5", 50_000, (1,), 1500.0),
)
EXPERIMENTS = (
    # One of three seeds fell before its last evaluation: ten say how often that is.
    *(replace(each, seeds=TEN) if each is INVERTED_PENDULUM else each for each in BOTH_BACKENDS),
    Experiment("halfcheetah_300k", "HalfCheetah-v5", 300_000, (1, 2), 5000.0, of_each=True),
    Experiment("inverted_double_pendulum", "InvertedDoublePendulum-v5", 60_000, THREE, 8000.0),
    Experiment("hopper", "Hopper-v5", 150_000, THREE, 1500.0),
    *(
        replace(each, name=f"reference_{each.name}", flags=("--backend", "reference", *each.flags))
        for each in BOTH_BACKENDS
    ),
)


class Results:
    """The file of one experiment."""

    def __init__(self, experiment: Experiment, torch_threads: int, folder: Path) -> None:
        """Read what is there; seeds trained by another command than this experiment's do not count."""
        self.experiment = experiment
        self.path = folder / f"learning_{experiment.name}.json"
        self._lock = threading.Lock()  # seeds of one experiment may end at the same time
        self.arguments = {str(seed): experiment.arguments(seed, torch_threads) for seed in experiment.seeds}
        found: dict[str, Any] = json.loads(self.path.read_text())["seeds"] if self.path.exists() else {}
        self._seeds = {
            seed: found[seed]
            for seed, arguments in self.arguments.items()
            if seed in found and found[seed]["command"] == as_command(arguments)
        }

    def missing(self) -> list[str]:
        """Return the seeds that are still to be trained."""
        return [seed for seed in self.arguments if seed not in self._seeds]

    def add(self, seed: str, result: dict[str, Any]) -> None:
        """Take in a trained seed and rewrite the file."""
        experiment = self.experiment
        with self._lock:
            self._seeds[seed] = result
            returns = [entry["eval_return_mean"] for entry in self._seeds.values()]
            mean = sum(returns) / len(returns)
            judged = min(returns) if experiment.of_each else mean
            content = {
                "experiment": experiment.name,
                "env_id": experiment.env_id,
                "total_timesteps": experiment.total_timesteps,
                "evaluation": f"deterministic, {EPISODES} episodes",
                "threshold": experiment.threshold,
                "threshold_of": "each seed" if experiment.of_each else "the mean over the seeds",
                "mean_return": mean,
                "passed": judged >= experiment.threshold if not self.missing() else None,  # None: seeds are missing
                "seeds": dict(sorted(self._seeds.items(), key=lambda item: int(item[0]))),
            }
            files.write_json(self.path, content)


def as_command(arguments: Sequence[str]) -> str:
    """Return the line that a user would type."""
    return shlex.join(["sacfast", *arguments])


def train(arguments: Sequence[str]) -> dict[str, Any]:
    """Train in a process of its own; return the figures of the run.

    Raises:
        RuntimeError: the command failed, or made no update at all.
    """
    run_dir = ROOT / arguments[arguments.index("--run-dir") + 1]
    shutil.rmtree(run_dir, ignore_errors=True)  # what a killed attempt left
    start = time.perf_counter()
    command = [sys.executable, "-m", "sacfast", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{as_command(arguments)}: exit code {done.returncode}: {done.stderr[-2000:]}")
    summary = json.loads((run_dir / "summary.json").read_text())
    if not summary["gradient_updates"]:
        raise RuntimeError(f"{as_command(arguments)}: no gradient update was made")
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return {
        **report.provenance(as_command(arguments)),
        "wall_seconds": time.perf_counter() - start,
        **{key: summary[key] for key in ("eval_return_mean", "eval_return_std", "eval_episodes")},
        **{key: summary[key] for key in ("gradient_updates", "env_steps_per_second", "updates_per_second")},
        "curve": [[row["step"], row["eval_return_mean"]] for row in rows if "eval_return_mean" in row],
    }


def run_one(results: Results, seed: str) -> bool:
    """Train and record one seed; report a failure and return False."""
    try:
        result = train(results.arguments[seed])
    except RuntimeError as error:
        print(error, file=sys.stderr, flush=True)
        return False
    results.add(seed, result)
    print(
        f"{results.experiment.name}, seed {seed}: return {result['eval_return_mean']:.1f} "
        f"in {result['wall_seconds']:.0f} s",
        flush=True,
    )
    return True


def main() -> int:
    """Train what is missing; return 1 if a run failed."""
    names = [experiment.name for experiment in EXPERIMENTS]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.learning", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="experiments to run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--torch-threads", type=int, default=1, help="threads of each run's torch")
    options = parser.parse_args()
    every = [Results(each, options.torch_threads, RESULTS) for each in EXPERIMENTS if each.name in options.only]
    missing = [(results, seed) for results in every for seed in results.missing()]
    print(f"{len(missing)} of {sum(len(results.arguments) for results in every)} runs are missing", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        succeeded = list(pool.map(lambda run: run_one(*run), missing))
    return 0 if all(succeeded) else 1


if __name__ == "__main__":
    sys.exit(main())
