"""The Python of docs/ runs from top to bottom of a page, its commands have flags that exist, its defaults are true."""

import ast
import dataclasses
import importlib
import re
import subprocess
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pages import PAGES, ROOT, blocks, commands, run
from torch import Tensor, nn

import sacfast
import sacfast.benchmark.command
from sacfast import cli, ops
from sacfast.config import SACConfig, TrainConfig

RUN = {f"docs/{name}.md" for name in ("train", "ops", "own-loop", "environments", "runs")} | {
    f"docs/from-{name}.md" for name in ("stable-baselines3", "cleanrl", "torchrl")
}
"""The pages whose Python is run below."""
B, O, A = 256, 17, 6  # noqa: E741


def test_every_page_with_python_is_run() -> None:
    assert {page for page in PAGES if blocks(page, "python")} == RUN | {"README.md"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Let torch have one thread: on busy cores its threads wait for each other in every operator of a peer."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in an empty folder, with the examples to import."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return tmp_path


# ---- Pages ------------------------------------------------------------------------------------------------------


def test_train(folder: Path) -> None:
    names = run("docs/train.md")
    assert names["action"].shape == (1,)
    assert names["model"].timesteps == 300
    assert names["GoodEnough"]().on_evaluation(names["model"], SimpleNamespace(mean=6000.0)) is False


def test_ops(folder: Path) -> None:
    names = run("docs/ops.md")
    assert {name for name in ops.__all__ if f"ops.{name}" in PAGES["docs/ops.md"]} == set(ops.__all__)
    shapes = {name: tuple(names[name].shape) for name in ("action", "log_prob", "curvature", "target")}
    assert shapes == {"action": (B, A), "log_prob": (B,), "curvature": (A, A), "target": (B, 115)}
    for name in ("mean", "logits", "quantiles"):
        assert (names[name].grad != 0).any(), name
    assert names["state"].tolist() == [1, 1]


def test_own_loop(folder: Path) -> None:
    random = np.random.default_rng(0)
    rows = {"observation": (300, 17), "action": (300, 6), "reward": (300,), "next_observation": (300, 17)}
    data = {name: random.uniform(-1, 1, shape).astype(np.float32) for name, shape in rows.items()}
    np.savez("transitions.npz", terminated=random.random(300) < 0.1, **data)
    names = run("docs/own-loop.md")
    assert names["learner"].gradient_updates == 4
    assert len(names["replay"]) == 300
    assert np.isfinite(list(names["metrics"].values())).all()
    assert names["action"].shape == (8, 6)


def test_environments(folder: Path) -> None:
    assert run("docs/environments.md")["model"].timesteps == 300


def test_runs(folder: Path) -> None:
    settings = {"num_envs": 2, "progress": False, "evaluation_episodes": 1, "replay_capacity": 1_000}
    model = sacfast.SAC("Pendulum-v1", run_dir="runs/cheetah", **settings).learn(20)
    names = run("docs/runs.md", sacfast=sacfast, model=model, observation=np.zeros(3))
    assert names["action"].shape == (1,)
    assert names["model"].loaded_from.parts[:2] == ("runs", "cheetah")
    assert [each.timesteps for each in names["models"]] == [300] * 5


@pytest.mark.usefixtures("folder", "one_thread")
def test_stable_baselines3() -> None:
    pytest.importorskip("stable_baselines3", reason="not installed: pip install 'sacfast[examples]'")
    example = importlib.import_module("stable_baselines3_sac")
    names = run("docs/from-stable-baselines3.md", observation=np.zeros(3, np.float32), FusedPolicy=example.FusedPolicy)
    assert names["action"].shape == (1,)
    assert names["model"].num_timesteps == 300
    assert isinstance(names["model"].actor.action_dist, example.FusedSquashedGaussian)


@pytest.mark.usefixtures("folder", "one_thread")
def test_torchrl() -> None:
    pytest.importorskip("torchrl", reason="not installed: pip install 'sacfast[examples]'")
    example = importlib.import_module("torchrl_tanh_normal")
    torch.manual_seed(0)
    env = example.GymEnv("Pendulum-v1")
    loss = example.make_loss(env, example.TanhNormal)
    network = loss.actor_network
    names = {
        name: getattr(example, name) for name in ("ProbabilisticActor", "TanhNormal", "FusedTanhNormal", "SACLoss")
    }
    names |= {"sacfast": sacfast, "spec": None, "action": env.action_spec, "body": network.module[0]}
    names |= {"bounds": {"low": env.action_spec.space.low, "high": env.action_spec.space.high}}
    critic_net = example.MLP(in_features=4, out_features=1, num_cells=[8])
    names["critic"] = example.ValueOperator(critic_net, in_keys=["observation", "action"])
    data = env.rollout(300, network, break_when_any_done=False).detach()
    names = run("docs/from-torchrl.md", data=data, **names)
    assert names["actor"].module[-1].distribution_class is example.FusedTanhNormal
    assert all(torch.isfinite(value).all() for name, value in names["loss"](data).items() if name.startswith("loss"))
    assert names["learner"].gradient_updates == 10
    np.testing.assert_allclose(names["replay"].rows[:300, 3:4] * 2, data["action"], rtol=1e-6)


# ---- CleanRL: on both sides the same -----------------------------------------------------------------------------


@pytest.fixture
def sides() -> Callable[[str], tuple[str, str]]:
    """Return the plain and the fused code of a part."""

    def of(part: str) -> tuple[str, str]:
        found = [block for block in blocks("docs/from-cleanrl.md", "python") if f": {part}\n" in block]
        plain, fused = found
        assert plain.startswith("# plain")
        assert fused.startswith("# fused")
        return plain, fused

    return of


class Actor(nn.Module):
    """Has the names and shapes of CleanRL's actor."""

    def __init__(self, scale_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(O, A) for _ in range(2)])
        scale, bias = torch.tensor([2.0, 0.5, 1.0, 1.0, 0.4, 3.0]), torch.tensor([0.0, 1.0, 0.0, -0.5, 0.0, 0.0])
        self.register_buffer("action_scale", scale.reshape(scale_shape))
        self.register_buffer("action_bias", bias.reshape(scale_shape))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the bounded log standard deviation, [B, A] each."""
        mean, raw = (head(x) for head in self.heads)
        return mean, -5.0 + 0.5 * 7.0 * (raw.tanh() + 1.0)


def get_action(code: str, actor: Actor, x: Tensor) -> tuple[Tensor, ...]:
    body = code.replace("\n", "\n    ")
    names: dict[str, Any] = {"torch": torch, "ops": ops}
    exec(f"def get_action(self, x):\n    mean, log_std = self(x)\n    {body}", names)
    return names["get_action"](actor, x)


@pytest.mark.parametrize("scale_shape", [(A,), (1, A)])  # the latter in CleanRL's releases
def test_cleanrls_action(
    sides: Callable[[str], tuple[str, str]], monkeypatch: pytest.MonkeyPatch, scale_shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    actor, x, noise = Actor(scale_shape), torch.randn(B, O), torch.randn(B, A).clamp(-2, 2)
    fused = ops.tanh_gaussian_rsample
    monkeypatch.setattr(ops, "tanh_gaussian_rsample", lambda *a, **k: fused(*a, **k, noise=noise))
    monkeypatch.setattr(torch.distributions.Normal, "rsample", lambda self: self.loc + self.scale * noise)
    expected, found = (get_action(code, actor, x) for code in sides("sample"))
    # The plain 1e-6 weighs 1e-4 where 1 - tanh^2 is 0.01; further out its own value is off.
    squashed = (found[0] - actor.action_bias) / actor.action_scale
    inside = (1 - squashed**2).amin(1) > 0.01
    assert inside.sum() > B / 2
    for got, want, atol in zip(found, expected, (1e-5, 1e-3, 1e-6), strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got[inside], want[inside], rtol=0, atol=atol)


def test_cleanrls_target(sides: Callable[[str], tuple[str, str]]) -> None:
    torch.manual_seed(0)
    data = SimpleNamespace(rewards=torch.randn(B, 1), dones=(torch.rand(B, 1) < 0.3).float())
    names = {name: torch.randn(B, 1) for name in ("qf1_next_target", "qf2_next_target", "next_state_log_pi")}
    names |= {"torch": torch, "ops": ops, "data": data, "alpha": 0.2, "args": Namespace(gamma=0.99)}
    found = []
    for code in sides("target"):
        exec(code, names)
        found.append(names.pop("next_q_value"))
    expected, fused = found
    assert fused.shape == (B,)  # of [B, 1] the loss would take all pairs: [B, B]
    torch.testing.assert_close(fused, expected)


def test_cleanrls_average(sides: Callable[[str], tuple[str, str]]) -> None:
    found = []
    for code in sides("average"):
        torch.manual_seed(0)
        critics = {name: nn.Linear(O, 1) for name in ("qf1", "qf2", "qf1_target", "qf2_target")}
        exec(code, {"ops": ops, "args": Namespace(tau=0.005), **critics})
        found.append([*critics["qf1_target"].parameters(), *critics["qf2_target"].parameters()])
    expected, fused = found
    torch.testing.assert_close(fused, expected)


# ---- Commands and defaults ---------------------------------------------------------------------------------------


class Parsed(Exception):
    """The command line was understood; nothing was run."""


COMMANDS = [(page, words) for page in PAGES if page.startswith("docs/") for words in commands(page)]
PROGRAMS = {"sacfast", "PYTHONPATH=.", "make", "pip"}


@pytest.mark.parametrize("words", [words for _, words in COMMANDS if "sacfast" in words[:2]], ids=" ".join)
def test_flags_exist(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands are parsed, for they train for minutes and measure; README's are run (test_readme.py)."""
    parse = cli.parse

    def parse_alone(*arguments: Any) -> None:
        parse(*arguments)
        raise Parsed

    for module in (cli.train, cli.evaluate, cli.plot, cli.doctor, sacfast.benchmark.command):
        monkeypatch.setattr(module, "parse", parse_alone)
    with pytest.raises(Parsed):
        cli.main(words[words.index("sacfast") + 1 :])


def test_a_flag_that_does_not_exist_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(cli.UsageError):
        cli.parse("train", cli.TrainOptions, ["--env-id", "Pendulum-v1", "--utd", "1"])


def test_targets_and_extras_exist() -> None:
    assert {words[0] for _, words in COMMANDS} <= PROGRAMS
    for words in (words for _, words in COMMANDS if words[0] == "make"):
        done = subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
    project = (ROOT / "pyproject.toml").read_text()
    named = {extra for text in PAGES.values() for extra in re.findall(r"sacfast(?:-\*\.whl\))?\[([a-z]+)\]", text)}
    assert "envpool" in named
    for extra in named:
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE), extra


def test_defaults_of_the_settings_that_matter() -> None:
    fields = [field for config in (SACConfig, TrainConfig, cli.TrainOptions) for field in dataclasses.fields(config)]
    defaults = {field.name: field.default for field in fields}
    rows = re.findall(r"^\| `(\w+)` \| `(.+?)` \|", PAGES["docs/settings.md"], re.MULTILINE)
    assert len(rows) > 15
    for name, default in rows:
        assert ast.literal_eval(default) == defaults[name], name
