"""`sacfast benchmark update` and `train`: figures follow from the rates of each round, nobody is left out unsaid."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import sacfast
from sacfast.benchmark import bench_train, bench_update, command, contenders, peers, report, worker, workers
from sacfast.benchmark.problems import TRANSITIONS, TrainProblem, UpdateProblem, update_flops
from sacfast.benchmark.workers import Absent, Team, Worker, take_turns
from sacfast.cli import UsageError

ROOT = Path(__file__).parents[1]
TINY = UpdateProblem(observation_dim=3, action_dim=1, hidden_sizes=(8, 8), batch_size=4)


def test_the_operations_of_an_update_at_the_size_of_halfcheetah() -> None:
    flops = update_flops(observation_dim=17, action_dim=6, hidden_sizes=(256, 256), batch_size=256)
    assert flops == pytest.approx(543e6, rel=1e-3)  # 543 is itself rounded
    # Each part in multiply-adds for one sample, written out.
    hidden = 256 * 256
    actor, critic = 17 * 256 + hidden + 256 * 12, 23 * 256 + hidden + 256
    critic_backward = critic + hidden + 256
    to_the_action = 6 * 256 + hidden + 256
    actor_backward = actor + hidden + 256 * 12
    parts = 2 * actor + 2 * critic + 2 * critic + 2 * critic_backward + 2 * critic + to_the_action + actor_backward
    assert flops == 2 * 256 * parts


def test_operations_grow_with_the_batch_and_need_no_hidden_layer() -> None:
    assert update_flops(17, 6, (64,), 512) == 2 * update_flops(17, 6, (64,), 256)
    # Linear networks: no layer has an input gradient but that of the action, whose column is 1 of 3.
    assert update_flops(2, 1, (), 1) == 2 * (2 * 4 + 2 * 3 + 2 * 3 + 2 * 3 + 2 * 3 + 1 + 4)


def test_a_call_makes_fewer_updates_of_large_ones() -> None:
    assert UpdateProblem().updates_per_call == TINY.updates_per_call == 32
    assert UpdateProblem(batch_size=1024).updates_per_call == 8
    assert UpdateProblem(348, 17, (1024, 1024), 4096).updates_per_call == 1


def test_a_problem_survives_json() -> None:
    problem = UpdateProblem(hidden_sizes=(64, 32))
    assert UpdateProblem(**json.loads(json.dumps(dataclasses.asdict(problem)))) == problem


def test_the_sweep_covers_what_is_claimed() -> None:
    problems = list(bench_update.sweep())
    assert len(set(problems)) == len(problems)
    for observation_dim, widths in ((17, {64, 128, 256, 512, 1024}), (348, {64, 256, 1024})):
        at = [problem for problem in problems if problem.observation_dim == observation_dim]
        assert {width for problem in at for width in problem.hidden_sizes} == widths
        assert {problem.batch_size for problem in at} == {64, 256, 1024, 4096}


class FakeWorker:
    """Has a rate for each round, and a profile."""

    def __init__(self, name: str, rates: Iterable[float], log: list[str] | None = None) -> None:
        self.versions = {name: "1.0"}
        self.others = [0.0, 0.25]
        self._name, self._rates, self._log = name, iter(rates), log

    def rate(self, seconds: float) -> float:
        if self._log is not None:
            self._log.append(f"{self._name} {seconds}")
        return next(self._rates)

    def profile(self, updates: int) -> list[dict[str, Any]]:
        assert updates == bench_update.PROFILED_UPDATES
        scale = next(self._rates)
        return [
            {"phase": "products", "milliseconds": 3.0 * scale, "megaflop": 300.0},
            {"phase": "waiting", "milliseconds": 1.0 * scale, "megaflop": 0.0},
        ]


@pytest.fixture(autouse=True)
def _no_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "SETTLE_SECONDS", 0.0)


def give_team(monkeypatch: pytest.MonkeyPatch, module: Any, rates: dict[str, list[float]]) -> None:
    """Let `module` find those workers; whoever else it asks for is absent."""

    @contextmanager
    def open_team(names: Iterable[str], _problem: object, _threads: int) -> Iterator[Team]:
        ready = {name: FakeWorker(name, rates[name]) for name in names if name in rates}
        yield Team(ready, {name: f"{name} is not installed" for name in names if name not in rates})

    monkeypatch.setattr(module, "open_team", open_team)


def test_one_works_at_a_time_and_another_one_begins() -> None:
    log: list[str] = []
    rates = take_turns({name: FakeWorker(name, range(3), log) for name in "abc"}, rounds=3, seconds=0.5)
    assert "".join(line[0] for line in log) == "abcbcacab"
    assert log[0] == "a 0.5"
    assert rates == {name: [0, 1, 2] for name in "abc"}


def test_ratios_and_shares_are_taken_inside_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    flops = TINY.flops
    # The clock halves its speed from round to round; neither ratio nor share changes.
    rates = {
        "fused": [800.0, 400.0],
        "reference": [200.0, 100.0],
        "peak": [1600.0 * flops, 800.0 * flops],
        "product": [1200.0 * flops, 600.0 * flops],
    }
    give_team(monkeypatch, bench_update, rates)
    row = bench_update.measure(TINY, 1, 2, 0.1, ["fused", "reference", "sbx"])
    assert row["fused_is_times_faster"] == {"reference": {"p20": 4.0, "p50": 4.0, "p80": 4.0}}
    assert row["fraction_of_peak"]["fused"]["p50"] == 0.5
    assert row["fraction_of_peak"]["reference"]["p20"] == 0.125
    assert row["updates_per_second"]["fused"] == {"p20": 480.0, "p50": 600.0, "p80": 720.0}
    assert row["peak_gigaflops"]["p50"] == pytest.approx(1200 * flops * 1e-9)
    assert row["product_fraction_of_peak"]["p80"] == 0.75
    assert set(row["updates_per_second"]) == {"fused", "reference"}
    assert row["absent"] == {"sbx": "sbx is not installed"}
    json.dumps(row, allow_nan=False)
    table = report.update_table(row)
    for text in (
        "1 thread",
        "hidden 8-8",
        "50% of the peak",
        "75% (75% - 75%) of the peak",
        "fused is 4.0x",
        "not measured: sbx",
        "other processes had 12% (0% - 25%)",
    ):
        assert text in table


def test_without_fused_update_or_peak_the_rest_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    give_team(monkeypatch, bench_update, {"reference": [200.0, 100.0]})
    row = bench_update.measure(TINY, 2, 2, 0.1, ["fused", "reference"])
    assert (row["peak_gigaflops"], row["fraction_of_peak"], row["fused_is_times_faster"]) == (None, {}, {})
    assert row["product_fraction_of_peak"] is None
    assert set(row["absent"]) == {"fused", "peak", "product"}
    assert "not measured: fused" in report.update_table(row)


def test_phases_have_shares_of_the_update_and_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    give_team(monkeypatch, bench_update, {"fused": [1.0, 2.0], "peak": [200e9, 100e9]})
    row = bench_update.measure_profile(TINY, 1, 2, 0.1)
    products, waiting = row["phases"]
    assert products["milliseconds"]["p50"] == 4.5
    assert products["share"] == {"p20": 0.75, "p50": 0.75, "p80": 0.75}
    assert products["fraction_of_peak"]["p20"] == pytest.approx(0.5)  # 300 MFLOP in 3 ms are 100 GFLOP/s
    assert waiting["fraction_of_peak"] is None
    assert "products" in report.profile_table(row)
    give_team(monkeypatch, bench_update, {"peak": [200e9, 100e9]})
    row = bench_update.measure_profile(TINY, 1, 2, 0.1)
    assert row["phases"] == []
    assert "not measured: fused" in report.profile_table(row)


def test_training_is_a_share_of_its_bare_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"train": [90.0, 45.0], "bare_updates": [100.0, 50.0], "stable_baselines3": [30.0, 15.0]}
    give_team(monkeypatch, bench_train, rates)
    row = bench_train.measure(TrainProblem(), 2, 2, 0.1)
    assert row["fraction_of_bare_updates"]["p20"] == pytest.approx(0.9)
    assert row["times_faster_than_peer"]["p80"] == pytest.approx(3.0)
    assert "sacfast is          3.0x" in report.train_table(row)
    del rates["stable_baselines3"]
    give_team(monkeypatch, bench_train, rates)
    row = bench_train.measure(TrainProblem(), 2, 2, 0.1)
    assert row["peer_steps_per_second"] is None
    assert "not measured: stable_baselines3 is not installed" in report.train_table(row)
    give_team(monkeypatch, bench_train, {})
    with pytest.raises(ValueError, match="train is not installed"):
        bench_train.measure(TrainProblem(), 2, 2, 0.1)


def test_a_worker_is_pinned_works_when_told_and_ends() -> None:
    with Worker("reference", TINY, threads=1) as worker:
        process = worker._process
        assert len(os.sched_getaffinity(process.pid)) == 1
        environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        assert {b"OMP_NUM_THREADS=1", b"MKL_NUM_THREADS=1"} <= set(environment)
        assert worker.versions == {}
        assert worker.rate(0.01) > 0
        assert worker.profile(1) is None
        assert len(worker.others) == 1
        process.kill()
        with pytest.raises(RuntimeError, match="reference: its process ended"):
            worker.rate(0.01)
    assert process.poll() is not None


@pytest.mark.skipif(importlib.util.find_spec("sbx") is not None, reason="needs an environment without SBX")
def test_a_peer_that_is_not_installed_says_how_to_get_it() -> None:
    with pytest.raises(Absent, match="sbx-rl is not installed; `make bench-peers` installs it"):
        Worker("sbx", TINY, threads=1)


def test_a_contender_that_fails_says_why() -> None:
    with workers.open_team(["reference"], dataclasses.replace(TINY, observation_dim=0), 1) as team:
        assert team.workers == {}
        assert "ValueError: observation_dim: expected" in team.absent["reference"]


def test_what_libraries_print_does_not_mix_with_the_answers() -> None:
    code = (
        "import os, sys; from sacfast.benchmark import worker, peers; assert 'torch' not in sys.modules\n"
        "channel = worker._claim_output(); print('noise', flush=True); os.system('echo noise')\n"
        "worker._say(channel, {'amount': 1})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == '{"amount": 1}\n'
    assert done.stderr == "noise\nnoise\n"


def test_the_environment_of_the_peers_has_the_problems_sizes() -> None:
    env = peers.StillEnv(TINY)
    observation, _ = env.reset()
    after, *_ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observation)
    assert env.observation_space.contains(after)
    assert env.spec.max_episode_steps < TRANSITIONS
    with pytest.raises(ValueError, match="layers of one width"):
        peers._uniform_width(UpdateProblem(hidden_sizes=(8, 16)))


def test_the_update_benchmark_writes_a_table_and_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "update.json"
    quick = ["--threads", "1", "--rounds", "1", "--seconds", "0.01"]
    assert command.run(["update", *quick, "--only", "reference", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "one SAC update, observation 17, action 6, hidden 256-256, batch 256: 543 MFLOP; 1 thread" in printed
    content = json.loads(output.read_text())
    assert {"command", "date", "hardware", "load_average", "versions", "source", "native"} <= set(content)
    row = content["rows"][0]
    assert set(row["updates_per_second"]) == {"reference"}
    assert row["updates_per_second"]["reference"]["p50"] > 0
    assert str(ROOT) not in json.dumps(row)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["update", "--only", "adam"],
            f"only: expected some of {', '.join(contenders.contenders_of('cpu'))}, got adam",
        ),
        (["update", "--only", "peak"], "got peak"),
        (["update", "--threads", "0"], "threads: expected 1 to "),
        (["update", "--threads", "10000"], "threads: expected 1 to "),
        (["update", "--rounds", "0"], "rounds: expected a number > 0, got 0"),
        (["update", "--seconds", "nan"], "seconds: expected a number > 0, got nan"),
        (["update", "--batch-size", "0"], "batch_size: expected a number > 0, got 0"),
        (["update", "--hidden-sizes", "8", "-1"], "hidden_sizes: expected a number > 0, got -1"),
        (["update", "--sweep", "--profile"], "expected at most one of --sweep, --profile and --only"),
        (["train", "--rounds", "0"], "rounds: expected a number > 0, got 0"),
        (["train", "--threads", "0"], "threads: expected 1 to "),
    ],
)
def test_wrong_usage_says_what_is_allowed(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError) as error:
        command.run(arguments)
    assert said in str(error.value)


def test_a_busy_machine_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    cores = len(os.sched_getaffinity(0))
    clock = iter([100.0, 100.0 + 0.75 * 2 * cores])  # cores busy for 3 quarters of 2 seconds ...
    own = iter([10.0, 10.0 + 0.5 * 2 * cores])  # ... half of them by this process
    monkeypatch.setattr(worker, "_busy_seconds", lambda: next(clock))
    monkeypatch.setattr(worker.time, "process_time", lambda: next(own))
    answer = worker._run(contenders.Work(lambda seconds: contenders.Sample(10.0, seconds)), 2.0)
    assert answer == {"amount": 10.0, "seconds": 2.0, "others": 0.25}


def test_busy_time_passes_while_this_process_works() -> None:
    before, own = worker._busy_seconds(), time.process_time()
    while time.process_time() - own < 0.1:
        pass
    assert worker._busy_seconds() - before >= 0.05  # counted in ticks of 0.01 s


@pytest.fixture
def _threads_restored() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_threads_restored")
@pytest.mark.parametrize("name", ["fused", "reference", "reference_compiled"])
def test_our_own_contenders_make_the_updates_that_they_count(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_calls: list[None] = []
    learners: list[Any] = []
    make_learner = sacfast.make_learner

    def do_not_compile(function: Any) -> Any:
        return lambda *arguments: (compiled_calls.append(None), function(*arguments))

    def remember(*arguments: Any, **fields: Any) -> Any:
        learners.append(make_learner(*arguments, **fields))
        return learners[-1]

    monkeypatch.setattr(torch, "compile", do_not_compile)
    monkeypatch.setattr(sacfast, "make_learner", remember)
    work = contenders.UPDATE[name].build(TINY, 1)
    assert work.measure(0.0).amount == TINY.updates_per_call
    assert len(compiled_calls) + learners[0].gradient_updates == TINY.updates_per_call
    assert (work.profile is not None) == (name == "fused")


@pytest.mark.usefixtures("_threads_restored")
def test_updates_of_several_seeds_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    work = contenders.UPDATE["fused_10_seeds"].build(TINY, 1)
    assert work.measure(0.0).amount == 10 * TINY.updates_per_call


@pytest.mark.usefixtures("_threads_restored")
def test_training_contenders_count_transitions_and_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contenders, "STEPS_PER_CALL", 8)
    problem = TrainProblem("Pendulum-v1", num_envs=4, backend="reference")
    train, bare_updates = (contenders.TRAINING[name].build(problem, 1) for name in ("train", "bare_updates"))
    assert train.measure(0.0).amount == 8
    assert bare_updates.measure(0.0).amount == UpdateProblem(3, 1).updates_per_call


def test_every_device_has_its_contenders() -> None:
    assert contenders.contenders_of("cpu") == [
        *("fused", "reference", "reference_compiled", "stable_baselines3", "sbx", "rltools"),
    ]
    assert contenders.contenders_of("cuda:1") == [
        *(
            "fused",
            "fused_tf32",
            "fused_bfloat16",
            "fused_10_seeds",
            "reference",
            "reference_graph",
            "reference_compiled_graph",
            "stable_baselines3",
            "sbx",
        ),
    ]
    assert (contenders.peak_of("cpu"), contenders.peak_of("cuda")) == ("peak", "peak_gpu")


def test_phases_are_timed_on_the_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_require_device", lambda _: None)
    with pytest.raises(UsageError, match="profile: expected --device cpu"):
        command.run(["update", "--profile", "--device", "cuda"])
