import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from sacfast import checkpoint, cli, files, metrics, ops, output, trainer
from sacfast.checkpoint import CheckpointError
from sacfast.config import BACKENDS, SACConfig, TrainConfig
from sacfast.trainer import SAC

QUICK_FLAGS = {
    "--hidden-sizes": "16",
    "--batch-size": "16",
    "--num-envs": "4",
    "--learning-starts": "40",
    "--replay-capacity": "5000",
    "--evaluation-episodes": "2",
    "--torch-threads": "1",
}
QUICK = ["--no-progress", *(word for pair in QUICK_FLAGS.items() for word in pair)]


def train(run_dir: Path, *flags: str) -> int:
    return cli.main(["train", "--env-id", "Pendulum-v1", "--run-dir", str(run_dir), *QUICK, *flags])


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as leaving:
        cli.main([command, "--help"])
    assert not leaving.value.code
    return capsys.readouterr().out


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert cli.main(arguments) == 0
        text = capsys.readouterr().out
        assert all(name in text for name in ("train", "evaluate", "plot", "doctor"))


def test_train_help_has_every_field_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of("train", capsys)
    for config in (TrainConfig, SACConfig):
        for name in config.__dataclass_fields__:
            assert f"--{name.replace('_', '-')} " in text or f"--{name.replace('_', '-')}," in text
    words = " ".join(text.replace("│", " ").split())
    assert "(default: 0.005)" in words
    assert "Gradient updates per stored transition" in words
    assert "(default: 256 256)" in words
    assert "--backend {fused,reference}" in words


def test_evaluate_and_doctor_have_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--episodes" in help_of("evaluate", capsys)
    assert "check the ops" in help_of("doctor", capsys)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("walk", ["unknown command 'walk'", "expected one of train, evaluate, plot, benchmark, doctor"]),
        ("train", ["--env-id"]),
        (
            "train --env-id Pendulum-v1 --utd-ration 1",
            ["unknown flag --utd-ration", "did you mean --utd-ratio"],
        ),
        ("train --env-id Pendulum-v1 --learning-rate 1e-3", ["here it is --actor-lr, --critic-lr and --alpha-lr;"]),
        ("train --env-id Pendulum-v1 --n_envs=4", ["unknown flag --n-envs; here it is --num-envs;"]),
        ("train --env-id Pendulum-v1 --alpha high", ["--alpha", "'high'", "expected --alpha FLOAT|{auto}"]),
        ("train --env-id Pendulum-v1 --seed x", ["--seed", "'x'", "expected --seed INT"]),
        ("train --env-id Pendulum-v1 --seed -1", ["seed: expected an int >= 0, got -1"]),
        ("train --env-id Pendulum-v1 --gamma 2", ["gamma: expected", "got 2.0"]),
        ("train --env-id Pendulum-v1 --target-update soft", ["'soft'", "polyak", "hard"]),
        ("train --env-id Pendulum-v1 --value-network", ["alpha: expected a float", "'auto'"]),
        ("train --env-id Pendulum-v1 --adam-betas 0.9", ["--adam-betas", "Expected 2 values"]),
        ("train --env-id Pendulum-v1 --backend quantum", ["--backend", "'quantum'", "one of ('fused', 'reference')"]),
        ("train --env-id Pendulum-v1 --device tpu", ["device: expected", "'tpu'"]),
        ("train --env-id Pendulum-v1 stray", ["stray", "sacfast train --help"]),
        ("train --env-id Pendulm-v1", ["env_id", "'Pendulm-v1'", "did you mean Pendulum-v1"]),
        ("train --env-id CartPole-v1", ["CartPole-v1", "action: expected a Box"]),
        ("evaluate", ["PATH"]),
        ("evaluate nowhere", ["nowhere: expected a checkpoint"]),
        ("evaluate nowhere --episode 3", ["unknown flag --episode", "did you mean --episodes"]),
        ("plot nowhere", ["nowhere: expected a run directory"]),
        ("plot", ["run_dirs: expected at least one run, got none"]),
        ("plot nowhere --out x", ["unknown flag --out", "did you mean --output"]),
        ("doctor --loud", ["unknown flag --loud"]),
    ],
)
def test_bad_usage_is_one_line_that_says_what_is_allowed(
    arguments: str,
    said: list[str],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert output.err.startswith("sacfast")
    for part in said:
        assert part in output.err
    assert not list(tmp_path.iterdir())


def test_whole_numbers_may_be_written_as_floats() -> None:
    written = "--env-id Pendulum-v1 --total-timesteps 1e6 --seed=2E1 --num_envs 3.0 --hidden-sizes 1e2 64 --alpha 1e-1"
    options = cli.parse("train", cli.TrainOptions, f"{written} --replay-capacity 200_000".split())
    assert (options.run.total_timesteps, options.run.seed, options.run.num_envs) == (1_000_000, 20, 3)
    assert (options.algorithm.hidden_sizes, options.algorithm.alpha) == ((100, 64), 0.1)
    assert options.algorithm.replay_capacity == 200_000
    large = cli.parse("train", cli.TrainOptions, ["--env-id", "x", "--seed", "9007199254740993"])
    assert large.run.seed == 9007199254740993  # which a float does not hold
    assert cli.parse("evaluate", cli.EvaluateOptions, ["--episodes", "1e1", "1e5"]).path == Path("1e5")
    with pytest.raises(cli.UsageError, match="--seed"):
        cli.parse("train", cli.TrainOptions, ["--env-id", "x", "--seed", "1.5"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_gpu_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "--device", "cuda") == 2
    error = capsys.readouterr().err
    assert "device: expected 'cpu' or 'auto'" in error
    assert error.count("\n") == 1


FRAMED = """╭─ Value error ──────────────────╮
│ Error parsing --x: no type     │
│ matching INT.                  │
│                                │
│ Got errors:                    │
│ - <class 'int'>: nonsense      │
│ ────────────────────────────── │
│ Argument helptext:             │
│     --x INT                    │
│     A number. (required)       │
│ ────────────────────────────── │
│ For full helptext, see p       │
╰────────────────────────────────╯
"""
PLAIN = """ Value error
 ------------------------------
  Error parsing --x: no type
  matching INT.

  Got errors:
  - <class 'int'>: nonsense
  ------------------------------
  Argument helptext:
      --x INT
      A number. (required)
  ------------------------------
  For full helptext, see p
"""


@pytest.mark.parametrize("report", [FRAMED, PLAIN])
def test_a_report_in_either_style_becomes_one_line(report: str) -> None:
    assert cli.condense(report) == "--x: no type matching INT; expected --x INT"


def test_a_report_of_an_unknown_style_stays_readable() -> None:
    assert cli.condense("error: no\n  such thing\n") == "error: no such thing"


def test_flags_reach_the_configuration(tmp_path: Path) -> None:
    flags = "--total-timesteps 60 --alpha 0.2 --utd-ratio 0.5 --seed 7 --hidden-sizes 8 8 --no-fused-ops"
    assert train(tmp_path / "run", *flags.split()) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert (config["train"]["total_timesteps"], config["train"]["seed"]) == (60, 7)
    assert config["sac"]["alpha"] == 0.2
    assert config["sac"]["hidden_sizes"] == [8, 8]
    assert config["sac"]["fused_ops"] is False
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["gradient_updates"]) == ("completed", 10)


NETWORK_AND_OPTIMIZERS = {
    "hidden_sizes": [8, 12],
    "activation": "tanh",
    "actor_lr": 1e-3,
    "critic_lr": 2e-3,
    "alpha_lr": 3e-3,
    "value_lr": 4e-3,
    "adam_betas": [0.8, 0.9],
    "adam_eps": 1e-5,
}


def test_network_and_optimisers_are_flags_that_a_checkpoint_keeps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [
        word
        for name, value in NETWORK_AND_OPTIMIZERS.items()
        for word in (f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value]))
    ]
    run_dir = tmp_path / "run"
    assert train(run_dir, "--total-timesteps", "80", "--backend", "reference", *flags) == 0
    configured = json.loads((run_dir / "config.json").read_text())["sac"]
    assert {name: configured[name] for name in NETWORK_AND_OPTIMIZERS} == NETWORK_AND_OPTIMIZERS

    model, same = SAC.load(run_dir), SAC("Pendulum-v1", backend="reference", **NETWORK_AND_OPTIMIZERS)
    loaded = model.config.to_dict()
    assert {name: loaded[name] for name in NETWORK_AND_OPTIMIZERS} == NETWORK_AND_OPTIMIZERS
    same.learner.load_state_dict(model.learner.state_dict())
    observation = np.ones(3, np.float32)
    np.testing.assert_array_equal(model.predict(observation), same.predict(observation))

    capsys.readouterr()
    assert train(tmp_path / "fused", "--activation", "tanh") == 2
    assert "activation: the fused backend has 'relu' alone, got 'tanh'" in capsys.readouterr().err
    assert not (tmp_path / "fused").exists()


@pytest.mark.parametrize("backend", BACKENDS)
def test_train_then_evaluate(tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: str) -> None:
    run_dir = tmp_path / "run"
    assert train(run_dir, "--total-timesteps", "80", "--backend", backend) == 0
    text = capsys.readouterr().out
    assert f"{backend} backend" in text
    assert "80 transitions and 40 gradient updates" in text
    assert "2 evaluation episodes" in text
    assert str(run_dir) in text

    for path in (run_dir, next((run_dir / "checkpoints").iterdir())):
        assert cli.main(["evaluate", str(path), "--episodes", "3", "--seed", "1"]) == 0
        line = capsys.readouterr().out
        assert line.startswith("Pendulum-v1: return -")
        assert "3 episodes" in line
        assert "length 200.0" in line


def test_evaluate_films_the_policy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    imageio_ffmpeg = pytest.importorskip("imageio_ffmpeg")
    pytest.importorskip("pygame")
    assert train(tmp_path / "run", "--total-timesteps", "20") == 0
    capsys.readouterr()
    film = tmp_path / "film.mp4"
    arguments = ["evaluate", str(tmp_path / "run"), "--episodes", "2", "--video", str(film)]
    assert cli.main(arguments) == 0
    evaluated, filmed = capsys.readouterr().out.splitlines()
    assert "2 episodes" in evaluated
    assert filmed.startswith(f"{film}: 1 episode(s), 200 steps, return -")
    frames, _ = imageio_ffmpeg.count_frames_and_secs(film)
    assert frames == 201

    assert cli.main([*arguments[:-1], str(tmp_path / "film.avi")]) == 2
    assert "video: expected a path that ends in .mp4" in capsys.readouterr().err


def test_a_task_that_cannot_be_rendered_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    assert train(tmp_path / "run", "--total-timesteps", "20") == 0
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "pygame", None)
    assert cli.main(["evaluate", str(tmp_path / "run"), "--video", str(tmp_path / "film.mp4")]) == 1
    error = capsys.readouterr().err
    assert "Pendulum-v1 cannot be rendered here" in error
    assert "pip install 'sacfast[video]'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "film.mp4").exists()


def test_a_run_is_not_overwritten_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(tmp_path / "run", "--total-timesteps", "20") == 0
    capsys.readouterr()
    assert train(tmp_path / "run", "--total-timesteps", "24") == 2
    error = capsys.readouterr().err
    assert "already holds a run" in error
    assert "--overwrite" in error
    assert error.count("\n") == 1
    assert train(tmp_path / "run", "--total-timesteps", "24", "--overwrite") == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["total_timesteps"] == 24


def test_without_a_run_directory_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--env-id", "Pendulum-v1", "--seed", "3", "--total-timesteps", "20", *QUICK]
    assert cli.main(arguments) == 0
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.startswith("Pendulum-v1-seed3-")
    assert (run_dir / "summary.json").exists()


FAULTY = """
import gymnasium, numpy as np
class Faulty(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    def reset(self, *, seed=None, options=None):
        self.count = 0
        return np.zeros(1, np.float32), {}
    def step(self, action):
        self.count += 1
        return np.zeros(1, np.float32), np.nan if self.count == 30 else 1.0, False, False, {}
gymnasium.register("Faulty-v0", entry_point=Faulty, max_episode_steps=100, disable_env_checker=True)
"""


def test_a_faulty_environment_fails_the_command_and_keeps_what_was_learned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "faulty_task.py").write_text(FAULTY)
    monkeypatch.syspath_prepend(tmp_path)
    run_dir = tmp_path / "run"
    assert cli.main(["train", "--env-id", "faulty_task:Faulty-v0", "--run-dir", str(run_dir), *QUICK]) == 1
    error = capsys.readouterr().err
    assert "environment 0 gave reward = nan at step 30" in error
    assert str(run_dir) in error
    assert error.count("\n") == 1
    assert f"; what was learned is in {run_dir}\n" in error
    assert json.loads((run_dir / "summary.json").read_text())["status"] == "environment_fault"
    assert len(list((run_dir / "checkpoints").iterdir())) == 1


def test_a_run_that_fails_says_which_checkpoint_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save, saves = checkpoint.save, []

    def fail_later(path: Path, *arguments: Any) -> Path:
        saves.append(path)
        if len(saves) > 1:
            raise OSError(28, "No space left on device")
        return save(path, *arguments)

    monkeypatch.setattr(checkpoint, "save", fail_later)
    flags = ["--total-timesteps", "60", "--checkpoint-every", "40", "--evaluation-episodes", "0"]
    assert train(tmp_path / "run", *flags) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith(f"No space left on device; {tmp_path / 'run'} has a checkpoint after 40 of 60 transitions")


OWN_TASK = """
import gymnasium, numpy as np
from pathlib import Path
Path(__file__).with_name("imported").touch()
class Own(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    metadata = {"render_modes": ["rgb_array"]}
    def __init__(self, render_mode=None):
        self.render_mode = render_mode
    def render(self):
        return np.zeros((16, 16, 3), np.uint8)
    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}
    def step(self, action):
        return np.zeros(1, np.float32), 1.0, False, False, {}
gymnasium.register("OwnTask-v0", entry_point=Own, max_episode_steps=10, disable_env_checker=True)
"""


@pytest.fixture
def own_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A run of own_task:OwnTask-v0, whose module leaves the file "imported" beside it; as if in a new process."""
    (tmp_path / "own_task.py").write_text(OWN_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--env-id", "own_task:OwnTask-v0", "--run-dir", str(tmp_path / "run"), "--total-timesteps", "40"]
    assert cli.main(["train", *flags, *QUICK]) == 0
    del sys.modules["own_task"]
    del gymnasium.registry["OwnTask-v0"]
    (tmp_path / "imported").unlink()
    yield tmp_path / "run"
    sys.modules.pop("own_task", None)
    gymnasium.registry.pop("OwnTask-v0", None)


@pytest.mark.parametrize(
    ("arguments", "checkpoints"), [("evaluate", True), ("train --resume", True), ("train --resume", False)]
)
def test_a_module_is_imported_only_where_the_user_names_it(
    own_run: Path, arguments: str, checkpoints: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    if not checkpoints:
        for path in ("checkpoints", "metrics.jsonl", "summary.json"):
            files.remove(own_run / path)
    capsys.readouterr()
    more = ["--episodes", "1"] if arguments == "evaluate" else ["--no-progress", "--total-timesteps", "60"]
    command = [*arguments.split(), str(own_run), *more]
    assert cli.main(command) == 2
    error = capsys.readouterr().err
    assert "env_id: 'own_task:OwnTask-v0' imports the module 'own_task'" in error
    assert "--env-id own_task:OwnTask-v0" in error
    assert cli.main([*command, "--env-id", "other:OwnTask-v0"]) == 2
    assert "env_id: the checkpoint is of 'own_task:OwnTask-v0', got 'other:OwnTask-v0'" in capsys.readouterr().err
    assert not own_run.with_name("imported").exists()
    assert cli.main([*command, "--env-id", "own_task:OwnTask-v0"]) == 0
    assert own_run.with_name("imported").exists()


def test_a_module_that_is_imported_already_needs_no_name(own_run: Path) -> None:
    with pytest.raises(CheckpointError, match="imports the module 'own_task'"):
        SAC.resume(own_run)
    for build in (SAC.load, SAC.resume):
        assert build(own_run, env_id="own_task:OwnTask-v0").timesteps == 40
    importlib.import_module("own_task")
    assert SAC.load(own_run).evaluate(1).mean == 10.0
    assert SAC.resume(own_run).learn(20).timesteps == 60


def test_a_model_that_was_just_loaded_is_filmed(own_run: Path, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    assert SAC.load(own_run, env_id="own_task:OwnTask-v0").record_video(tmp_path / "film.mp4").mean == 10.0
    assert (tmp_path / "film.mp4").stat().st_size > 0


def test_a_model_is_loaded_and_acts_without_its_task(own_run: Path, tmp_path: Path) -> None:
    model = SAC.load(own_run, run_dir=tmp_path / "other")
    assert model.predict([0.5]).shape == (1,)
    opens: list[Callable[[], object]] = [model.learn, model.evaluate, lambda: model.record_video(tmp_path / "a.mp4")]
    for each in opens:
        with pytest.raises(CheckpointError, match="imports the module 'own_task'"):
            each()
    assert not own_run.with_name("imported").exists()
    assert not (tmp_path / "other").exists()
    with pytest.raises(CheckpointError, match="the checkpoint is of 'own_task:OwnTask-v0', got 'Pendulum-v1'"):
        SAC.load(own_run, env_id="Pendulum-v1")
    importlib.import_module("own_task")
    assert model.evaluate(1).mean == 10.0
    assert model.learn(20).timesteps == 60


def test_an_environment_without_an_observation_fails_the_command_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    task = FAULTY.replace("Faulty-v0", "Empty-v0").replace("return np.zeros(1, np.float32), {}", "return None, {}")
    assert "return None, {}" in task
    (tmp_path / "empty_task.py").write_text(task)
    monkeypatch.syspath_prepend(tmp_path)
    run_dir = tmp_path / "run"
    assert cli.main(["train", "--env-id", "empty_task:Empty-v0", "--run-dir", str(run_dir), *QUICK]) == 1
    error = capsys.readouterr().err
    assert "empty_task:Empty-v0: environment 0 gave reset()'s observation = None at step 0 of its episode" in error
    assert error.count("\n") == 1
    assert not run_dir.exists()


def test_ctrl_c_ends_the_command_with_its_files_whole(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    flags = ["--env-id", "Pendulum-v1", "--run-dir", str(run_dir), "--total-timesteps", "10000000"]
    command = [sys.executable, "-m", "sacfast", "train", *flags, *QUICK, "--log-interval", "100"]
    process = subprocess.Popen(
        command, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 60
        metrics = run_dir / "metrics.jsonl"
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "interrupted" in error
    assert "Traceback" not in error
    summary = json.loads((run_dir / "summary.json").read_text())
    assert summary["status"] == "interrupted"
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["step"] == summary["total_timesteps"]
    assert cli.main(["evaluate", str(run_dir), "--episodes", "1"]) == 0


def test_ctrl_c_after_a_command_has_ended_is_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_stream: output.SafeStream) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(output.SafeStream, "flush", interrupted)
    assert cli.main(["--version"]) == cli.INTERRUPTED


def test_missing_tensorboard_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert train(tmp_path / "run", "--tensorboard") == 1
    error = capsys.readouterr().err
    assert "pip install 'sacfast[tensorboard]'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_missing_wandb_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    assert train(tmp_path / "run", "--wandb") == 1
    error = capsys.readouterr().err
    assert "pip install 'sacfast[wandb]'" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_refusal_of_wandb_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(_: Path) -> None:
        raise metrics.TrackingError("wandb: expected an account")

    monkeypatch.setattr(metrics, "import_wandb", object)
    monkeypatch.setattr(trainer, "import_wandb", object)
    monkeypatch.setattr(metrics, "_start_wandb", refuse)
    assert train(tmp_path / "run", "--wandb") == 1
    error = capsys.readouterr().err
    assert error == "sacfast train: wandb: expected an account\n"


def test_doctor_reports_and_checks(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for word in ("sacfast", "torch", "envpool", "cpu_level", "cuda_built", "cuda_reason", "gpu"):
        assert word in text
    assert text.count(" ok\n") == 6
    assert "all agrees" in text


@pytest.mark.parametrize("broken", [lambda target, *_: target.mul_(1.01), lambda target, *_: target.fill_(torch.nan)])
def test_doctor_fails_when_an_op_is_wrong(
    broken: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ops, "polyak_update_", broken)
    assert cli.main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert text.count("WRONG") == 1
    assert "something differs" in text


def test_the_module_is_the_command() -> None:
    environment = {**os.environ, "COLUMNS": "100"}
    command = [sys.executable, "-m", "sacfast", "--version"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[1], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("sacfast 0.")
