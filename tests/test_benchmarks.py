"""The harness computes what it claims, the files have their fields, and finished learning runs are not repeated."""

import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import gpu_check, gpu_nodes, gpu_stages, learning
from sacfast.benchmark import bench_ops, command, report
from sacfast.benchmark.harness import Rounds, Settings, Spread
from sacfast.cli import UsageError

ROOT = Path(__file__).parents[1]
QUICK = Settings(threads=1, rounds=3, warmup_rounds=1, sample_milliseconds=0.1)


def sleeper(milliseconds: float) -> Callable[[], None]:
    return lambda: time.sleep(milliseconds * 1e-3)


def test_percentiles_are_those_of_the_rounds() -> None:
    assert Spread.of([float(value) for value in range(101)]) == Spread(20.0, 50.0, 80.0)
    assert Spread.of([3.0]) == Spread(3.0, 3.0, 3.0)
    assert Spread(1.0, 2.0, 3.0).to_dict(10.0) == {"p20": 10.0, "p50": 20.0, "p80": 30.0}


def test_ratios_are_taken_inside_each_round() -> None:
    rounds = Rounds({"a": sleeper(0), "b": sleeper(0)}, QUICK)
    # The clock halves its speed from round to round; the ratio does not change.
    rounds.seconds = {"a": [1.0, 2.0, 4.0, 8.0], "b": [3.0, 6.0, 12.0, 24.0]}
    assert rounds.ratio("b", "a") == Spread(3.0, 3.0, 3.0)
    assert rounds.spread("a").p50 == 3.0


def test_a_sample_is_the_time_of_one_call() -> None:
    rounds = Rounds({"short": sleeper(2), "long": sleeper(10)}, QUICK)
    rounds.run_one()
    rounds.run_one()
    # A sleep lasts at least as long as asked for, and on a busy machine longer.
    assert min(rounds.seconds["short"]) >= 2e-3
    assert min(rounds.seconds["long"]) >= 10e-3


def test_every_round_times_every_contender_and_another_one_begins() -> None:
    calls: list[str] = []
    contenders = {name: (lambda name=name: (calls.append(name), time.sleep(1e-4))) for name in "abc"}
    rounds = Rounds(contenders, QUICK)
    orders = []
    for _ in range(3):
        calls.clear()
        rounds.run_one()
        orders.append("".join(dict.fromkeys(calls)))
    assert orders == ["abc", "bca", "cab"]
    assert all(len(values) == 3 for values in rounds.seconds.values())
    rounds.keep_last(2)
    assert all(len(values) == 2 for values in rounds.seconds.values())


@pytest.mark.parametrize(
    ("field", "value"), [("threads", 0), ("rounds", 0), ("warmup_rounds", -1), ("sample_milliseconds", 0.0)]
)
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"{field}: expected .*, got {value}"):
        Settings(**{field: value})


def test_contenders_of_a_case_do_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_ops, "LARGE", {"cpu": 4096})
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # seconds for each; one is compiled below
    for make in bench_ops.CASES.values():
        case = make("cpu")
        shapes = {name: shapes_of(call()) for name, call in case.contenders.items()}
        if "polyak" not in case.op:  # which returns nothing, or what it changed
            assert len(set(shapes.values())) == 1, (case.op, shapes)
        assert bench_ops.FUSED in case.contenders
        assert len(case.contenders) >= 2


def test_a_contender_is_the_plain_twin_as_torch_compiles_it() -> None:
    contenders = bench_ops.normalize(4, 3, "cpu").contenders
    results = [contenders[name]() for name in (bench_ops.FUSED, bench_ops.PLAIN, bench_ops.COMPILED)]
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    torch.testing.assert_close(contenders[bench_ops.COMPILED](), results[0])
    assert counters["unique_graphs"] == before + 1
    torch.testing.assert_close(results[1:], results[:2])


def shapes_of(result: object) -> tuple[tuple[int, ...], ...]:
    tensors = result if isinstance(result, tuple | list) else (result,)
    return tuple(tuple(getattr(tensor, "shape", ())) for tensor in tensors)


def test_bandwidth_is_a_share_of_a_copy_of_as_many_bytes() -> None:
    case = bench_ops.twin_q_target(1024, "cpu", memory_bound=True)
    assert case.bytes_moved == 6 * 4 * 1024  # five columns read and one written
    rounds = Rounds({**case.contenders, bench_ops.COPY: sleeper(0)}, QUICK)
    rounds.seconds = {"fused": [2.0], "plain torch": [8.0], "copy": [1.0]}
    bandwidth = bench_ops.summarize(case, rounds)["bandwidth"]
    assert bandwidth["fraction_of_copy"]["fused"]["p50"] == 0.5
    assert bandwidth["fraction_of_copy"]["plain torch"]["p50"] == 0.125
    assert bandwidth["copy_gigabytes_per_second"] == pytest.approx(case.bytes_moved * 1e-9)


def test_the_ops_benchmark_writes_a_table_and_a_file(tmp_path: Path) -> None:
    output = tmp_path / "new" / "ops.json"
    arguments = ["ops", "--rounds", "2", "--warmup-rounds", "0", "--sample-milliseconds", "0.1", "--threads", "1"]
    arguments += ["--only", "rsample_256x6", "polyak_twin_critics", "--output", str(output)]
    code = f"import sys; from sacfast.benchmark.command import run; sys.exit(run({arguments!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for text in ("tanh_gaussian_rsample forward  [256, 6]", "loop of lerp_", "_foreach_lerp_", "fused is"):
        assert text in done.stdout
    content = json.loads(output.read_text())
    assert {"command", "date", "hardware", "load_average", "versions", "source", "native"} <= set(content)
    assert content["settings"]["threads"] == 1
    assert [row["name"] for row in content["rows"]] == ["rsample_256x6", "polyak_twin_critics"]
    for row in content["rows"]:
        assert set(row["microseconds"]) == {"fused", *row["times_slower_than_fused"]}
        for spread in [*row["microseconds"].values(), *row["times_slower_than_fused"].values()]:
            assert 0 < spread["p20"] <= spread["p50"] <= spread["p80"]
    assert not [path for path in tmp_path.iterdir() if path.name != "new"], "nothing else is left behind"


def test_pytest_benchmark_runs_ops_and_updates(tmp_path: Path) -> None:
    record = tmp_path / "record.json"
    quick = ["--benchmark-only", "--benchmark-min-rounds=1", "--benchmark-max-time=0.001", f"--benchmark-json={record}"]
    chosen = ["-k", "twin_q_256 or (64-64 and fused)", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "benchmarks", *quick, *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    groups = {row["group"] for row in json.loads(record.read_text())["benchmarks"]}
    assert groups == {"twin_q_target [256]", "update 64-64, batch 64, threads 1", "update 64-64, batch 64, threads 2"}


def test_the_collection_benchmark_makes_no_updates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "collect.json"
    task = ["--env-id", "Pendulum-v1", "--num-envs", "4", "--env-threads", "1"]
    assert command.run(["collect", *task, "--rounds", "2", "--steps", "30", "--output", str(output)]) == 0
    assert "trainer" in capsys.readouterr().out
    row = json.loads(output.read_text())["rows"][0]
    assert row["steps_per_round"] == 120
    for name in ("bare_steps_per_second", "trainer_steps_per_second", "fraction_of_bare"):
        assert 0 < row[name]["p20"] <= row[name]["p80"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["adam"], "unknown benchmark 'adam'; expected one of ops, collect, update, train"),
        (["ops", "--only", "adam"], "only: expected some of rsample_256x6"),
        (["ops", "--device", "tpu"], "device: expected 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
        (["ops", "--rounds", "0"], "rounds: expected an int >= 1, got 0"),
        (["ops", "--round", "3"], "did you mean --rounds"),
        (["collect", "--env-id", "Nothing-v1"], "Nothing-v1"),
    ],
)
def test_wrong_usage_says_what_is_allowed(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("(", r"\(")):
        command.run(arguments)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git to compare with")
def test_the_tree_hash_is_gits(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    # "ops-x" sorts before the directory "ops" and "ops.h" too: git compares "ops/" there.
    for name in ("csrc/ops/a.h", "csrc/ops.h", "csrc/ops-x", "csrc/core/b.h"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    (tmp_path / "csrc/ops-x").chmod(0o755)
    git("init", "-q")
    assert report.source(tmp_path)["commit"] is None
    git("add", ".")
    git("commit", "-q", "-m", "files")
    expected = {"commit": git("rev-parse", "HEAD"), "csrc_tree": git("rev-parse", "HEAD:csrc")}
    assert report.source(tmp_path) == expected
    (tmp_path / "csrc/ops.h").write_text("changed\n")
    assert report.source(tmp_path)["csrc_tree"] != expected["csrc_tree"]


EXPERIMENT = learning.Experiment("tiny", "Pendulum-v1", 100, (1, 2), -200.0)


def result_of(seed: str, return_: float, results: learning.Results) -> dict[str, object]:
    return {"command": learning.as_command(results.arguments[seed]), "eval_return_mean": return_}


def test_trained_seeds_are_not_trained_again(tmp_path: Path) -> None:
    results = learning.Results(EXPERIMENT, 1, tmp_path)
    assert results.missing() == ["1", "2"]
    results.add("2", result_of("2", -100.0, results))
    assert json.loads(results.path.read_text())["passed"] is None
    again = learning.Results(EXPERIMENT, 1, tmp_path)
    assert again.missing() == ["1"]
    again.add("1", result_of("1", -200.0, again))
    content = json.loads(again.path.read_text())
    assert content["mean_return"] == -150.0
    assert content["passed"] is True
    assert list(content["seeds"]) == ["1", "2"]
    assert learning.Results(EXPERIMENT, 1, tmp_path).missing() == []


def test_seeds_of_another_command_count_for_nothing(tmp_path: Path) -> None:
    results = learning.Results(EXPERIMENT, 1, tmp_path)
    for seed in ("1", "2"):
        results.add(seed, result_of(seed, -1000.0, results))
    assert json.loads(results.path.read_text())["passed"] is False
    assert learning.Results(EXPERIMENT, 2, tmp_path).missing() == ["1", "2"]


def test_a_failed_run_leaves_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: object) -> dict[str, object]:
        raise RuntimeError("exit code 1")

    monkeypatch.setattr(learning, "train", fail)
    results = learning.Results(EXPERIMENT, 1, tmp_path)
    assert not learning.run_one(results, "1")
    assert "exit code 1" in capsys.readouterr().err
    assert not results.path.exists()


def test_a_learning_run_is_recorded_with_its_curve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning, "ROOT", tmp_path)
    monkeypatch.setattr(learning, "RUNS", tmp_path / "runs")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    sizes = {"num-envs": 2, "learning-starts": 40, "batch-size": 8, "hidden-sizes": 8, "replay-capacity": 500}
    flags = tuple(part for name, value in sizes.items() for part in (f"--{name}", str(value)))
    experiment = learning.Experiment("tiny", "Pendulum-v1", 60, (1,), -200.0, flags)
    results = learning.Results(experiment, 1, tmp_path)
    assert learning.run_one(results, "1")
    content = json.loads(results.path.read_text())
    entry = content["seeds"]["1"]
    assert entry["gradient_updates"] == 20
    assert entry["eval_episodes"] == learning.EPISODES
    assert entry["curve"][-1] == [60, entry["eval_return_mean"]]
    assert np.all(np.diff([step for step, _ in entry["curve"]]) > 0)
    assert {"command", "wall_seconds", "hardware", "versions", "source"} <= set(entry)


def test_the_experiments_cover_what_is_claimed() -> None:
    by_name = {experiment.name: experiment for experiment in learning.EXPERIMENTS}
    assert len(by_name) == len(learning.EXPERIMENTS)
    assert {"pendulum", "pendulum_1_env", "pendulum_value_network", "pendulum_hard_target"} <= set(by_name)
    assert by_name["inverted_pendulum"].threshold == 900.0
    assert by_name["halfcheetah"].total_timesteps == 50_000


def test_gpu_check_says_that_it_needs_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check"])
    assert gpu_check.main() == 1
    message = capsys.readouterr().err
    assert "needs an NVIDIA GPU" in message
    assert message.count("\n") == 1


def python_stage(name: str, code: str, seconds: float = 60.0, **fields: Any) -> gpu_stages.Stage:
    return gpu_stages.Stage(name, [sys.executable, "-c", code, "FOLDER"], seconds, **fields)


def run_gpu_check(
    monkeypatch: pytest.MonkeyPatch, output: Path, stages: list[gpu_stages.Stage], *options: str
) -> tuple[int, dict[str, Any]]:
    monkeypatch.setattr(gpu_check, "stages", lambda **_: iter(stages))
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: "--rehearse" not in options)
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--output", str(output), *options])
    return gpu_check.main(), json.loads(output.read_text())


def test_gpu_check_goes_on_after_a_failed_stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = "import pathlib, sys; pathlib.Path(sys.argv[1], 'left.json').write_text('[1]')"
    stages = [
        python_stage("fails", "import sys; print('why'); sys.exit(3)"),
        python_stage("slow", "import time; print('x', flush=True); time.sleep(60)", 1.0),
        gpu_stages.Stage("missing", ["no-such-program"], 60.0),
        python_stage("writes", writes, result="left.json"),
    ]
    code, content = run_gpu_check(monkeypatch, tmp_path / "new" / "gpu.json", stages)
    assert code == 1
    assert content["passed"] is False
    assert [stage["passed"] for stage in content["stages"]] == [False, False, False, True]
    assert "why" in content["stages"][0]["output"]
    assert content["stages"][1]["output"] == "x\n\nstopped after 1 s"
    assert "no-such-program" in content["stages"][2]["output"]
    assert content["stages"][3]["result"] == [1]
    assert {"hardware", "versions", "source"} <= set(content)


def test_gpu_check_stops_what_a_stage_has_started(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    child = f"import time, pathlib; time.sleep(3); pathlib.Path({str(mark)!r}).touch()"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    assert not gpu_check.run(python_stage("starts another", code), 1.0)["passed"]
    time.sleep(3)
    assert not mark.exists()


def test_gpu_check_makes_what_is_missing_and_counts_a_run_that_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, made, ready = tmp_path / "gpu.json", tmp_path / "made", tmp_path / "ready"
    note = f"open({str(made)!r}, 'a').write('{{}} ')"
    needs_ready = f"import pathlib, sys; {note.format('b')}; sys.exit(not pathlib.Path({str(ready)!r}).exists())"
    stages = [python_stage("a", note.format("a")), python_stage("b", needs_ready), python_stage("c", note.format("c"))]
    # There is time for one stage only.
    code, content = run_gpu_check(monkeypatch, output, [stages[0]._replace(seconds=40), *stages[1:]], "--seconds", "50")
    assert (code, [stage["name"] for stage in content["stages"]]) == (1, ["a"])
    code, content = run_gpu_check(monkeypatch, output, stages)
    assert (code, [stage["passed"] for stage in content["stages"]]) == (1, [True, False, True])
    ready.touch()
    code, content = run_gpu_check(monkeypatch, output, stages)
    assert code == 0
    assert content["passed"] is True
    assert made.read_text() == "a b c b "
    monkeypatch.setattr(gpu_check, "sources", lambda: "others")  # what passed before says nothing about them
    assert run_gpu_check(monkeypatch, output, stages)[0] == 0
    assert made.read_text() == "a b c b a b c "


def test_a_rehearsal_passes_where_a_stage_asks_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = [
        python_stage("asks", "import sys; sys.exit('device: no CUDA device is available')"),
        python_stage("needs none", "import sys; sys.exit('no CUDA device is available')", needs_card=False),
        python_stage("stops before", "import sys; sys.exit('unknown option --rounds')"),
    ]
    code, content = run_gpu_check(monkeypatch, tmp_path / "gpu.json", stages, "--rehearse")
    assert code == 1
    assert [stage["passed"] for stage in content["stages"]] == [True, False, False]
    assert content["stages"][0]["rehearsed"] == "up to where it asks for a GPU"


def test_the_stages_of_gpu_check_fit_in_15_minutes() -> None:
    """Their options are rehearsed where there is no GPU: python -m benchmarks.gpu_check --rehearse."""
    stages = list(gpu_stages.stages())
    assert len({stage.name for stage in stages}) == len(stages)
    assert [stage.name for stage in stages[:3]] == ["build", "library", "memcheck"]
    collections = [stage for stage in stages if stage.name.startswith("collection")]
    usual = sum(stage.seconds for stage in stages if stage not in collections)
    assert usual + len(gpu_stages.THREADS) * collections[0].seconds <= gpu_check.SECONDS < 15 * 60


def test_nodes_are_told_apart_and_set_beside_each_other() -> None:
    prefix = "void sacfast::portable::(anonymous namespace)::run_kernel<sacfast::portable::"
    product = "MatrixProducts<float, sacfast::portable::HiddenLayer<float>, sacfast::portable::ExactTile<float> > >"
    assert gpu_nodes.short_name(f"{prefix}Gather<float> >(sacfast::portable::Gather<float>)") == "Gather"
    assert gpu_nodes.short_name(prefix + product) == "MatrixProducts, HiddenLayer"
    assert gpu_nodes.short_name("void at::native::vectorized_elementwise_kernel<4>()") is None

    def update(start: float, slow: float = 0.0) -> list[gpu_nodes.Kernel]:
        times = (("Gather", 0, 2), ("Act", 3, 5), ("Act", 4, 8 + slow), ("Finish", 10 + slow, 11 + slow))
        return [gpu_nodes.Kernel(name, start + begin, start + end) for name, begin, end in times]

    others = [gpu_nodes.Kernel("EndCall", 90.0, 99.0)]
    cut = update(300.0)[:2]
    found = gpu_nodes.summarize(
        gpu_nodes.updates_of([*update(100.0), *update(120.0), *update(140.0, 5.0), *others, *cut])
    )
    assert found["updates"] == 3
    assert [node["kernel"] for node in found["nodes"]] == ["Gather", "Act", "Act", "Finish"]
    assert [node["lasts"] for node in found["nodes"]] == [2.0, 2.0, 4.0, 1.0]
    assert (found["update"], found["from update to update"]) == (11.0, 20.0)
    with pytest.raises(ValueError, match="expected the same in each update"):
        gpu_nodes.summarize([update(0.0), update(20.0)[:3]])
    with pytest.raises(ValueError, match="found none"):
        gpu_nodes.summarize([])


def test_wheels_that_travel_serve_the_stages_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_check, "ROOT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", "before")
    with pytest.raises(SystemExit, match="wheels: expected a folder with wheels"):
        gpu_check.take_wheels(tmp_path)
    info = "travelled-1.0.dist-info"
    with zipfile.ZipFile(tmp_path / "travelled-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("travelled.py", "answer = 42")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: travelled\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    gpu_check.take_wheels(tmp_path)
    site, before = os.environ["PYTHONPATH"].split(os.pathsep)
    assert before == "before"
    assert (Path(site) / "travelled.py").read_text() == "answer = 42"
