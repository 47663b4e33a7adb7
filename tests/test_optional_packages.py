"""What works without optional packages, and the one line that says what to install where one is needed."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]

TORCH_ALONE = """
import importlib.abc, sys

ALLOWED = {
    *sys.stdlib_module_names,
    *("sacfast", "torch", "torchgen", "functorch", "triton", "nvidia", "cuda"),
    # What torch itself requires.
    *("filelock", "typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "setuptools"),
}

class Block(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ALLOWED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Block())
for name in ("numpy", "gymnasium", "envpool", "tyro", "tqdm", "safetensors"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f"{name} was not blocked")

import torch
import sacfast.ops
from sacfast import ops

mean = torch.zeros(4, 2, requires_grad=True)
action, log_prob = ops.tanh_gaussian_rsample(mean, torch.zeros(4, 2), noise=torch.ones(4, 2))
(action.sum() + log_prob.sum()).backward()
# By hand: d tanh(z) = 1 - tanh(z)^2 and d log_prob = 2 tanh(z), at z = 1.
tanh = torch.tensor(1.0).tanh()
torch.testing.assert_close(mean.grad, (1 - tanh**2 + 2 * tanh).expand(4, 2))
ops.tanh_gaussian_rsample(mean, mean)[0].sum().backward()
ops.tanh_gaussian_log_prob(torch.zeros(4, 2), mean, mean).sum().backward()
one = torch.ones(4)
assert ops.twin_q_target(one, one, one, one, one, alpha=0.2, gamma=0.9).tolist() == [1.0] * 4
target = torch.zeros(3)
ops.polyak_update_(target, torch.ones(3), tau=0.5)
assert target.tolist() == [0.5] * 3
"""

# Calls the command several times in one process: torch takes seconds to import.
COMMANDS = """
import contextlib, importlib.metadata, io, json, sys

blocked, commands = json.loads(sys.argv[1])
for name in blocked:
    sys.modules[name] = None  # Python's own way to let an import fail as if there were no such module
version = importlib.metadata.version

def version_of_the_installed(name):
    if name in blocked:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)

importlib.metadata.version = version_of_the_installed
from sacfast import cli

answers = {}
for name, command in commands.items():
    streams = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        code = cli.main(command)
    answers[name] = code, *(stream.getvalue() for stream in streams)
print(json.dumps(answers))
"""

BLOCKED = (
    *("envpool", "mujoco", "jax", "Box2D"),
    *("tensorboard", "wandb", "matplotlib", "imageio_ffmpeg", "pytest_benchmark"),
)
TRAIN = "train --no-progress --total-timesteps 60 --evaluation-episodes 1 --num-envs 2 --learning-starts 20"
TRAIN = f"{TRAIN} --batch-size 16 --replay-capacity 1000 --hidden-sizes 16 --device cpu --env-id"
ADVICE = "pip install 'sacfast[envpool]'"
# By name: the command, its exit code, and words of the one line that it prints to standard error.
REFUSED = {
    "a task of EnvPool's alone": (
        f"{TRAIN} CheetahRun-v1 --run-dir RUN2",
        2,
        ("'CheetahRun-v1', ", "dm_control", ADVICE),
    ),
    "MuJoCo": (
        f"{TRAIN} HalfCheetah-v5 --run-dir RUN2",
        1,
        ("HalfCheetah-v5: ", 'pip install "gymnasium[mujoco]"', ADVICE),
    ),
    "Box2D": (
        f"{TRAIN} BipedalWalker-v3 --run-dir RUN2",
        1,
        ("BipedalWalker-v3: ", 'pip install "gymnasium[box2d]"', ADVICE),
    ),
    "JAX": (f"{TRAIN} phys2d/Pendulum-v0 --run-dir RUN2", 1, ("phys2d/Pendulum-v0: ", "jax", ADVICE)),
    "asynchronous": (f"{TRAIN} Pendulum-v1 --env-batch-size 1 --run-dir RUN2", 2, ("all 2 environments", ADVICE)),
    "TensorBoard": (f"{TRAIN} Pendulum-v1 --tensorboard --run-dir RUN2", 1, ("pip install 'sacfast[tensorboard]'",)),
    "W&B": (f"{TRAIN} Pendulum-v1 --wandb --run-dir RUN2", 1, ("pip install 'sacfast[wandb]'",)),
    "plot": ("plot RUN", 1, ("pip install 'sacfast[plot]'",)),
    "video": ("evaluate RUN --video RUN/film.mp4", 1, ("pip install 'sacfast[video]'",)),
    "collect": ("benchmark collect --rounds 1", 1, (ADVICE,)),
}


def python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_ops_need_torch_alone() -> None:
    python(TORCH_ALONE)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Exit code, standard output and standard error of every command, by name, without any optional package."""
    folder = tmp_path_factory.mktemp("optional")
    commands = {
        "doctor": "doctor",
        "train": f"{TRAIN} Pendulum-v1 --run-dir RUN",
        "evaluate": "evaluate RUN --episodes 2",
        **{name: command for name, (command, _, _) in REFUSED.items()},
    }
    words = {
        name: [word.replace("RUN", str(folder / "run")) for word in command.split()]
        for name, command in commands.items()
    }
    found: dict[str, Any] = json.loads(python(COMMANDS, json.dumps([BLOCKED, words])))
    assert not (folder / "run2").exists()
    return {**found, "summary": json.loads((folder / "run" / "summary.json").read_text())}


def test_a_task_of_gymnasium_trains_without_envpool_and_says_so_once(answers: dict[str, Any]) -> None:
    code, output, errors = answers["train"]
    assert (code, errors.count("\n")) == (0, 1)
    assert errors.startswith("EnvPool is not installed: the environments are Gymnasium's, stepped one after the other")
    assert errors.endswith(f"{ADVICE}\n")
    assert "60 transitions and 40 gradient updates" in output
    code, output, errors = answers["evaluate"]
    assert (code, errors) == (0, "")
    assert "2 episodes" in output


def test_versions_are_of_what_is_installed(answers: dict[str, Any]) -> None:
    assert set(answers["summary"]["versions"]) == {"sacfast", "python", "torch", "numpy", "gymnasium"}
    code, output, errors = answers["doctor"]
    assert (code, errors) == (0, "")
    assert f"envpool                not installed; {ADVICE}\n" in output
    assert "all agrees" in output


@pytest.mark.parametrize("name", REFUSED)
def test_a_missing_package_is_one_line_that_says_what_to_install(answers: dict[str, Any], name: str) -> None:
    command, expected, words = REFUSED[name]
    code, output, errors = answers[name]
    assert (code, output, errors.count("\n")) == (expected, "", 1), errors
    assert errors.startswith(f"sacfast {command.partition(' ')[0]}: ")
    assert [each for each in words if each not in errors] == []


@pytest.mark.parametrize(
    ("example", "package"),
    [
        ("export_onnx", "onnxruntime"),
        ("stable_baselines3_sac", "stable_baselines3"),
        ("torchrl_tanh_normal", "torchrl"),
    ],
)
def test_an_example_without_its_package_says_what_to_install(example: str, package: str) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; sys.path.insert(0, 'examples'); import {example}"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"{package}" in done.stderr
    assert done.stderr.endswith("pip install 'sacfast[examples]'\n")
