"""The Python code of README.md and docs/ runs as it stands there, and the lines for CleanRL are CleanRL's own."""

import re
import textwrap
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sacfast
from sacfast import ops

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    (path.relative_to(ROOT).as_posix(), block)
    for path in PAGES
    for block in re.findall(r"^```python\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)
]
TESTED = {
    "cleanrl": ("README.md", "Actor.get_action"),
    "ops": ("docs/uses.md", "tanh_gaussian_rsample"),
    "learner": ("docs/uses.md", "make_learner"),
    "train": ("README.md", "hidden_sizes=(256, 256)"),
    "train in uses": ("docs/uses.md", "hidden_sizes=(256, 256)"),
    "quickstart": ("docs/quickstart.md", "sacfast.SAC"),
    "seeds": ("README.md", "learn_together"),
    "callback": ("README.md", "class GoodEnough"),
    "resume": ("README.md", "SAC.resume"),
    "save": ("docs/runs.md", "model.save"),
}
"""The blocks that are run below: the page of each, and words that it alone has there."""
IN_TEST_DOCS = (
    "ops.categorical_target(",
    "ops.quantile_huber_loss(",
    "ops.adam_polyak_(",
    "ops.update_running_moments_(",
)
"""Words of the blocks of docs/uses.md that tests/test_docs.py runs."""
B, O, A = 256, 17, 6  # noqa: E741


def block_of(name: str) -> str:
    """Return a block of `TESTED`."""
    page, words = TESTED[name]
    (block,) = [block for path, block in BLOCKS if path == page and words in block]
    return block


def run(block: str, **names: Any) -> dict[str, Any]:
    """Run a block on `names`, with a few transitions where it has thousands, and return all names that it leaves."""
    block = re.sub(r"\b[\d_]*\d0_000\b", "300", block)
    exec(compile(block, "block", "exec"), names)
    return names


# CleanRL


class Actor(nn.Module):
    """Has the names and shapes of CleanRL's actor; `get_action` is set by the test."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(O, A) for _ in range(2)])
        self.register_buffer("action_scale", torch.tensor([2.0, 0.5, 1.0, 1.0, 0.4, 3.0]))
        self.register_buffer("action_bias", torch.tensor([0.0, 1.0, 0.0, -0.5, 0.0, 0.0]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean and the bounded log standard deviation, [B, A] each."""
        mean, raw = (head(x) for head in self.heads)
        return mean, -5.0 + 0.5 * 7.0 * (raw.tanh() + 1.0)


class Critic(nn.Linear):
    """[B, O] and [B, A] to [B, 1], as CleanRL's."""

    def __init__(self) -> None:
        super().__init__(O + A, 1)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        return super().forward(torch.cat([x, a], 1))


@pytest.fixture
def cleanrl() -> dict[str, str]:
    """README's lines for CleanRL, by what they replace."""
    block = block_of("cleanrl")
    imports, sample, target, polyak = re.split(r"^# (?:Actor.get_action|the critics|the target networks).*\n", block,
                                               flags=re.MULTILINE)  # fmt: skip
    assert imports.strip() == "from sacfast import ops"
    return {"sample": sample, "target": target, "polyak": polyak}


def get_action(lines: str, actor: Actor, x: Tensor) -> tuple[Tensor, ...]:
    names: dict[str, Any] = {"torch": torch, "ops": ops}
    exec(f"def get_action(self, x):\n    mean, log_std = self(x)\n{textwrap.indent(lines, '    ')}", names)
    return names["get_action"](actor, x)


@pytest.mark.parametrize("scale_shape", [(A,), (1, A)])  # the latter in CleanRL's releases
def test_cleanrls_get_action(
    cleanrl: dict[str, str], monkeypatch: pytest.MonkeyPatch, scale_shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    actor, x, noise = Actor(), torch.randn(B, O), torch.randn(B, A).clamp(-2, 2)
    actor.action_scale = actor.action_scale.reshape(scale_shape)
    actor.action_bias = actor.action_bias.reshape(scale_shape)
    fused = ops.tanh_gaussian_rsample
    monkeypatch.setattr(ops, "tanh_gaussian_rsample", lambda *a, **k: fused(*a, **k, noise=noise))
    found = get_action(cleanrl["sample"], actor, x)

    mean, log_std = actor(x)
    pre_tanh = mean + log_std.exp() * noise
    squashed = pre_tanh.tanh()
    log_prob = torch.distributions.Normal(mean, log_std.exp()).log_prob(pre_tanh)
    log_prob = (log_prob - torch.log(actor.action_scale * (1 - squashed**2) + 1e-6)).sum(1, keepdim=True)
    scale, bias = actor.action_scale, actor.action_bias
    expected = squashed * scale + bias, log_prob, mean.tanh() * scale + bias
    assert len(found) == 3
    # CleanRL's 1e-6 weighs 1e-4 where 1 - tanh^2 is 0.01; further out its own value is off.
    inside = (1 - squashed**2).amin(1) > 0.01
    assert inside.sum() > B / 2
    for got, want, atol in zip(found, expected, (1e-5, 1e-3, 1e-6), strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got[inside], want[inside], rtol=0, atol=atol)


def test_cleanrls_target_and_loss(cleanrl: dict[str, str]) -> None:
    torch.manual_seed(0)
    qf1, qf1_target, qf2_target = Critic(), Critic(), Critic()
    data = SimpleNamespace(
        observations=torch.randn(B, O),
        actions=torch.rand(B, A),
        next_observations=torch.randn(B, O),
        rewards=torch.randn(B, 1),
        dones=(torch.rand(B, 1) < 0.3).float(),
    )
    next_state_actions, next_state_log_pi = torch.rand(B, A), torch.randn(B, 1)
    alpha, args = 0.2, Namespace(gamma=0.99)
    with torch.no_grad():
        nexts = [critic(data.next_observations, next_state_actions) for critic in (qf1_target, qf2_target)]
    names = dict(zip(("qf1_next_target", "qf2_next_target"), nexts, strict=True))
    found = run(cleanrl["target"], ops=ops, data=data, next_state_log_pi=next_state_log_pi, alpha=alpha, args=args,
                **names)["next_q_value"]  # fmt: skip

    soft = torch.min(*nexts) - alpha * next_state_log_pi
    expected = data.rewards.flatten() + (1 - data.dones.flatten()) * args.gamma * soft.view(-1)
    assert found.shape == expected.shape  # of [B, 1] the loss would take all pairs: [B, B]
    torch.testing.assert_close(found, expected)
    qf1_a_values = qf1(data.observations, data.actions).view(-1)
    with torch.no_grad():
        torch.testing.assert_close(F.mse_loss(qf1_a_values, found), F.mse_loss(qf1_a_values, expected))


def test_cleanrls_target_networks(cleanrl: dict[str, str]) -> None:
    names = ("qf1", "qf2", "qf1_target", "qf2_target")
    critics = {name: Critic() for name in names}
    expected = [
        0.005 * new.detach() + 0.995 * old.detach()
        for name in ("qf1", "qf2")
        for new, old in zip(critics[name].parameters(), critics[f"{name}_target"].parameters(), strict=True)
    ]
    run(cleanrl["polyak"], ops=ops, args=Namespace(tau=0.005), **critics)
    found = [*critics["qf1_target"].parameters(), *critics["qf2_target"].parameters()]
    torch.testing.assert_close([value.detach() for value in found], expected)


# All other blocks


def test_the_ops_of_uses() -> None:
    normal = torch.randn
    critic, target_critic = Critic(), Critic()
    names = run(
        block_of("ops"),
        **{"mean": normal(B, A), "log_std": normal(B, A), "scale": torch.ones(A)},
        **{name: normal(B) for name in ("reward", "next_q1", "next_q2", "next_log_prob")},
        **{"terminated": torch.zeros(B, dtype=torch.bool), "alpha": 0.2, "gamma": 0.99},
        **{"critic": critic, "target_critic": target_critic},
    )
    assert (names["action"].shape, names["log_prob"].shape, names["target"].shape) == ((B, A), (B,), (B,))


def test_the_learner_of_uses() -> None:
    fields = {name: np.zeros((B, O), np.float32) for name in ("observation", "next_observation")}
    fields |= {"action": np.zeros((B, A), np.float32), "reward": np.zeros(B, np.float32)}
    names = run(block_of("learner"), sacfast=sacfast, terminated=np.zeros(B, np.bool_), **fields)
    assert names["learner"].gradient_updates == 4
    assert len(names["replay"]) == B


@pytest.mark.parametrize("name", ["train", "train in uses", "quickstart", "seeds", "callback"])
def test_training(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run(block_of(name), sacfast=sacfast, observation=np.zeros(O))
    if "action" in names:
        assert names["action"].shape in ((6,), (1,))
    for model in [names["model"]] if "model" in names else names.get("models", []):
        assert model.timesteps == 300


def test_saving_and_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"num_envs": 2, "progress": False, "evaluation_episodes": 1, "replay_capacity": 1_000}
    model = sacfast.SAC("Pendulum-v1", run_dir="runs/cheetah", **settings).learn(20)
    names = run(block_of("save"), sacfast=sacfast, model=model, observation=np.zeros(3))
    assert names["action"].shape == (1,)
    assert run(block_of("resume"), sacfast=sacfast)["model"].timesteps == 20


def test_every_block_is_tested() -> None:
    for page, block in BLOCKS:
        whole_file = block.startswith("--8<--")  # which has tests of its own
        elsewhere = page == "docs/uses.md" and any(words in block for words in IN_TEST_DOCS)
        here = any(page == path and words in block for path, words in TESTED.values())
        assert whole_file or elsewhere or here, (page, block)
