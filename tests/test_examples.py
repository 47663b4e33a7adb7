"""Every example runs from its command line with tiny sizes, updates, and prints what it is meant to show."""

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import sacfast
from sacfast.ops.tanh_gaussian import tanh_gaussian_log_prob_reference

EXAMPLES = Path(__file__).parents[1] / "examples"
GAIN = re.compile(r"takes \d+ us and is \d+\.\d\d \(\d+\.\d\d to \d+\.\d\d\) times faster than .* of 1 rounds")


@pytest.fixture
def example(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import the example that the test names, as running it as a program would; skip where its peer is absent."""
    name, *packages = request.param
    for package in packages:
        pytest.importorskip(package, reason=f"{package} is not installed: pip install 'sacfast[examples]'")
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads = torch.get_num_threads()
    yield importlib.import_module(name)
    torch.set_num_threads(threads)


def takes(name: str, *packages: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("example", [(name, *packages)], indirect=True, ids=[name])


def output_of(example: ModuleType, capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    example.main([*arguments, "--rounds", "1"])
    output = capsys.readouterr().out
    assert GAIN.search(output), output
    return output


@takes("cleanrl_style_sac")
@pytest.mark.parametrize("flag", ["--fused", "--no-fused"])
def test_cleanrl_style(example: ModuleType, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    sizes = ("--total-timesteps", "220", "--learning-starts", "200", "--batch-size", "16")
    output = output_of(example, capsys, *sizes, flag)
    assert "220 transitions, 20 gradient updates, mean return of the last 1 episodes" in output


@takes("cleanrl_style_sac")
def test_the_exchanged_lines_mean_the_same(example: ModuleType) -> None:
    """Their noise differs, so the samples are compared by the density that each claims for its own action."""
    mean, log_std, scale = torch.randn(64, 3), torch.randn(64, 3), torch.tensor([2.0, 0.5, 1.0])
    low, high = example.LOG_STD_BOUNDS
    bounded = (low + (high - low) / 2 * (log_std.double().tanh() + 1)).double()
    for kit in (example.FusedOps, example.PlainOps):
        action, log_prob = kit.sample(mean.clamp(-1, 1), log_std - 1, scale, torch.tensor([0.0, 1.0, 0.0]))
        bounded = low + (high - low) / 2 * ((log_std.double() - 1).tanh() + 1)
        squashed = (action.double() - torch.tensor([0.0, 1.0, 0.0])) / scale
        inside = squashed.abs().amax(1) < 0.99  # nearer to 1 the float32 action no longer tells its pre-tanh value
        assert inside.sum() > 10
        expected = tanh_gaussian_log_prob_reference(squashed.atanh(), mean.clamp(-1, 1).double(), bounded)
        expected = expected - scale.double().log().sum()
        # 1 - a^2 is 0.02 at the edge, where the plain form's 1e-6 and a float32 action's rounding weigh 1e-4.
        torch.testing.assert_close(log_prob[inside].double(), expected[inside], rtol=0, atol=1e-3)
    targets = [torch.nn.Linear(2, 2) for _ in range(2)]
    targets[1].load_state_dict(targets[0].state_dict())
    online = torch.nn.Linear(2, 2)
    for kit, target in zip((example.FusedOps, example.PlainOps), targets, strict=True):
        kit.polyak(target, online, 0.25)
    torch.testing.assert_close(targets[0].weight, targets[1].weight)  # one rounding of the same average


@takes("stable_baselines3_sac", "stable_baselines3")
@pytest.mark.parametrize("flag", ["--whole", "--no-whole"])
def test_stable_baselines3(example: ModuleType, capsys: pytest.CaptureFixture[str], flag: str) -> None:
    sizes = ("--total-timesteps", "60", "--learning-starts", "50", "--episodes", "1")
    assert "60 transitions, 10 gradient updates, return" in output_of(example, capsys, *sizes, flag)


@takes("stable_baselines3_sac", "stable_baselines3")
def test_fused_updates_of_stable_baselines3_are_its_own(example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same noise, the parameters after three updates are those of Stable-Baselines3's own `train`."""
    from stable_baselines3 import SAC
    from stable_baselines3.common.logger import Logger

    states = []
    for algorithm, policy in ((SAC, "MlpPolicy"), (example.FusedSAC, example.FusedPolicy)):
        # Plain gradient descent: Adam would make a whole step of the rounding of a gradient near zero.
        descent = {"policy_kwargs": {"optimizer_class": torch.optim.SGD}, "learning_rate": 0.01, "tau": 0.1}
        model = algorithm(policy, "Pendulum-v1", seed=0, device="cpu", buffer_size=64, batch_size=32, **descent)
        model.set_logger(Logger(None, []))
        start = parts_of(model)
        rng = np.random.default_rng(0)
        buffer = model.replay_buffer
        for field in (buffer.observations, buffer.next_observations, buffer.actions, buffer.rewards, buffer.dones):
            field[:] = rng.uniform(-1, 1, field.shape)
        buffer.full = True
        np.random.seed(0)  # noqa: NPY002  (what the buffer draws from)
        generator = torch.Generator().manual_seed(0)
        noise = [torch.randn(32, 1, generator=generator) for _ in range(6)]
        give(noise, example, monkeypatch)
        model.train(3, 32)
        monkeypatch.undo()
        assert not noise
        assert model._n_updates == 3
        states.append((start, parts_of(model)))
    (start, own), (fused_start, fused) = states
    for name in start:
        assert torch.equal(fused_start[name], start[name])
        # What Stable-Baselines3 has inside its logarithm, 1e-6, weighs 1e-4 where 1 - a^2 is 0.01.
        largest_step = (own[name] - start[name]).abs().max()
        assert (fused[name] - own[name]).abs().max() < 1e-3 * largest_step, name


def parts_of(model: Any) -> dict[str, torch.Tensor]:
    """Copies of the parameters, each part's in one vector."""
    parts = {name: getattr(model, name).parameters() for name in ("actor", "critic", "critic_target")}
    parts["log_ent_coef"] = [model.log_ent_coef]
    return {name: torch.cat([value.detach().flatten() for value in values]).clone() for name, values in parts.items()}


def give(noise: list[torch.Tensor], example: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make both ways of sampling draw from the list."""
    fused = sacfast.ops.tanh_gaussian_rsample
    monkeypatch.setattr(example.ops, "tanh_gaussian_rsample", lambda *a: fused(*a, noise=noise.pop(0)))
    monkeypatch.setattr(torch.distributions.normal, "_standard_normal", lambda *_, **__: noise.pop(0))


@takes("stable_baselines3_sac", "stable_baselines3")
def test_the_fused_policy_refuses_state_dependent_noise(example: ModuleType) -> None:
    with pytest.raises(ValueError, match="use_sde: expected False"):
        example.SAC(example.FusedPolicy, "Pendulum-v1", use_sde=True, device="cpu", buffer_size=10)


@takes("torchrl_tanh_normal", "torchrl")
def test_torchrl(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    output = output_of(example, capsys, "--total-timesteps", "40", "--updates", "3", "--batch-size", "8")
    assert "40 transitions, 3 gradient updates, alpha 0." in output  # from 1, down: alpha has learned


@takes("torchrl_tanh_normal", "torchrl")
@pytest.mark.parametrize("bounds", [{}, {"low": torch.tensor([-2.0, 0.0]), "high": torch.tensor([2.0, 1.0])}])
def test_the_fused_distribution_is_torchrls(example: ModuleType, bounds: dict[str, torch.Tensor]) -> None:
    """Its own `log_prob`, which is TorchRL's, agrees with what the fused op says of the same action."""
    generator = torch.Generator().manual_seed(0)
    loc, scale = (torch.rand(100, 2, generator=generator) - 0.5 for _ in range(2))
    distribution = example.FusedTanhNormal(loc, scale.abs() + 0.1, **bounds)
    action, log_prob = distribution.rsample_and_log_prob()
    for bound, inside in (("low", torch.greater), ("high", torch.less)):
        assert inside(action, bounds.get(bound, torch.tensor({"low": -1.0, "high": 1.0}[bound]))).all()
    # `log_prob` must recover the pre-tanh value from the action: some 1e-4 where |tanh| reaches 0.95.
    torch.testing.assert_close(log_prob, distribution.log_prob(action), rtol=0, atol=1e-3)


@takes("own_environment")
def test_own_environment(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    output = output_of(example, capsys, "--total-timesteps", "600", "--learning-starts", "500")
    assert re.search(r"600 transitions, 100 gradient updates, mean return -\d+\.\d before, -\d+\.\d after", output)


@takes("own_environment")
def test_own_environment_is_a_sound_gymnasium_one(example: ModuleType) -> None:
    from gymnasium.utils.env_checker import check_env

    check_env(example.PointMass(), skip_render_check=True)


@takes("export_onnx", "onnxruntime", "onnxscript")
def test_export_onnx(example: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "policy.onnx"
    settings = {"num_envs": 1, "device": "cpu", "progress": False, "replay_capacity": 256}
    model, other = (sacfast.SAC("HalfCheetah-v5", seed=seed, **settings) for seed in (1, 2))
    model.save(tmp_path / "checkpoint")
    output = output_of(example, capsys, "--path", str(tmp_path / "checkpoint"), "--output", str(path))
    assert "largest difference of 1000 actions" in output
    assert path.stat().st_size > 4 * model.learner.actor.flat.numel() * 0.9  # the weights are in the file
    with pytest.raises(ValueError, match="actions: expected a difference of at most"):
        example.compare(other, example.open_session(path, threads=1))


@takes("load_policy")
def test_load_policy(example: ModuleType, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = sacfast.SAC("Pusher-v5", num_envs=1, device="cpu", progress=False, replay_capacity=256)
    model.save(tmp_path / "checkpoint")  # Pusher's actions reach from -2 to 2
    assert "largest difference of 1000 actions" in output_of(example, capsys, str(tmp_path / "checkpoint"))
    with pytest.raises(ValueError, match="actions: expected a difference of at most"):
        example.compare(lambda observation: np.zeros((len(observation), 7)), tmp_path / "checkpoint", rounds=0)


@takes("load_policy")
def test_load_policy_trains_one_where_there_is_none(example: ModuleType, tmp_path: Path) -> None:
    act = example.load_policy(example.train(tmp_path / "pendulum", total_timesteps=8))
    assert act(np.zeros(3, np.float32)).shape == (1,)


def test_every_example_is_tested() -> None:
    tested = set(re.findall(r'@takes\("(\w+)"', Path(__file__).read_text()))
    assert tested == {path.stem for path in EXAMPLES.glob("*.py")} - {"gain"}
