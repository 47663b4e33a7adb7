"""The reference update against the same algorithm written a second time, and what a learner promises."""

import math
from contextlib import contextmanager
from unittest.mock import Mock

import pytest
import torch
from learner_cases import OPTIONS, A, B, O, assert_states_equal, every_option, make_config, random_batch, random_noise
from torch import nn
from torch.distributions import Normal

from sacfast import reference
from sacfast.config import SACConfig
from sacfast.networks import ACTIVATIONS
from sacfast.reference import ReferenceLearner
from sacfast.types import Batch

either_ops = pytest.mark.parametrize("fused_ops", [False, True], ids=["plain-ops", "fused-ops"])


@pytest.fixture(autouse=True)
def _one_thread():
    """Tensors this small only lose by sharing the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class FixedReplay:
    """Draws from a few transitions with a generator of its own, so that it can be started again."""

    def __init__(self, length=64, seed=0):
        self.data = random_batch(seed, rows=length)
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self):
        return len(self.data.reward)

    def sample(self, batch_size):
        rows = torch.randint(len(self), (batch_size,), generator=self.generator)
        return Batch(*(field[rows] for field in self.data))


class BanditReplay(FixedReplay):
    """Uniformly random actions in episodes of one step, whose reward is highest at `best_action`."""

    def __init__(self):
        super().__init__(length=1024)
        observation, action = self.data.observation[:, :1], self.data.action[:, :1]
        self.best_action = 0.8 * torch.tanh(observation)
        reward = -(action - self.best_action).square().sum(1)
        self.data = Batch(observation, action, reward, observation, torch.ones_like(reward))


class OracleAdam:
    """Algorithm 1 of arXiv 1412.6980."""

    def __init__(self, parameters, lr, config):
        self.parameters, self.lr = list(parameters), lr
        (self.beta1, self.beta2), self.eps = config.adam_betas, config.adam_eps
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]
        self.t = 0

    def minimise(self, loss):
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        self.t += 1
        for i, (parameter, gradient) in enumerate(zip(self.parameters, gradients, strict=True)):
            self.m[i] = self.beta1 * self.m[i] + (1 - self.beta1) * gradient
            self.v[i] = self.beta2 * self.v[i] + (1 - self.beta2) * gradient**2
            m_hat = self.m[i] / (1 - self.beta1**self.t)
            v_hat = self.v[i] / (1 - self.beta2**self.t)
            with torch.no_grad():
                parameter -= self.lr * m_hat / (v_hat.sqrt() + self.eps)


class OracleMLP(nn.Module):
    def __init__(self, state, prefix, activation):
        super().__init__()
        self.activation = getattr(nn.functional, activation)
        self.layers = nn.ModuleList()
        while (name := f"{prefix}.layers.{len(self.layers)}") + ".weight" in state:
            weight, bias = state[name + ".weight"], state[name + ".bias"]
            layer = nn.Linear(weight.shape[1], weight.shape[0], dtype=weight.dtype)
            layer.load_state_dict({"weight": weight, "bias": bias})
            self.layers.append(layer)

    def forward(self, *inputs):
        x = torch.cat(inputs, dim=1)
        for i, layer in enumerate(self.layers):
            x = layer(x) if i == 0 else layer(self.activation(x))
        return x


class Oracle:
    """SAC written from the papers' formulas, a second time and for clarity alone."""

    def __init__(self, learner):
        state, self.config = learner.state_dict(), learner.config
        self.mlps = {"actor": OracleMLP(state, "actor", self.config.activation)}
        for twin in ("q1", "q2"):
            self.mlps[f"critic.{twin}"] = OracleMLP(state, f"critic.{twin}", self.config.activation)
        if self.config.value_network:
            self.mlps["value"] = OracleMLP(state, "value", self.config.activation)
            self.followers = {"target_value": "value"}
        else:
            self.followers = {"target_critic.q1": "critic.q1", "target_critic.q2": "critic.q2"}
        for follower in self.followers:
            self.mlps[follower] = OracleMLP(state, follower, self.config.activation)
        if self.config.alpha == "auto":
            start = torch.tensor(math.log(self.config.initial_alpha), dtype=torch.float64)
            self.log_alpha = start.requires_grad_()
            self.alpha_adam = OracleAdam([self.log_alpha], self.config.alpha_lr, self.config)
        critics = [*self.mlps["critic.q1"].parameters(), *self.mlps["critic.q2"].parameters()]
        self.critic_adam = OracleAdam(critics, self.config.critic_lr, self.config)
        self.actor_adam = OracleAdam(self.mlps["actor"].parameters(), self.config.actor_lr, self.config)
        if self.config.value_network:
            self.value_adam = OracleAdam(self.mlps["value"].parameters(), self.config.value_lr, self.config)
        self.updates = 0

    def policy(self, observation, noise):
        head = self.mlps["actor"](observation)
        mean, log_std = head[:, :A], head[:, A:]
        if self.config.deterministic_policy:
            return torch.tanh(mean), torch.zeros(B, dtype=mean.dtype)
        low, high = self.config.log_std_bounds
        if self.config.log_std_bounding == "clamp":
            log_std = torch.clamp(log_std, low, high)
        elif self.config.log_std_bounding == "tanh":
            log_std = low + 0.5 * (high - low) * (torch.tanh(log_std) + 1)
        std = torch.exp(log_std)
        pre_tanh = mean + std * noise
        action = torch.tanh(pre_tanh)
        # 1 - tanh^2 = 1 / cosh^2, which is exact until cosh overflows at 710.
        log_prob = (Normal(mean, std).log_prob(pre_tanh) + 2 * torch.log(torch.cosh(pre_tanh))).sum(1)
        return action, log_prob

    def q(self, prefix, observation, action):
        return [self.mlps[f"{prefix}.{twin}"](observation, action).squeeze(1) for twin in ("q1", "q2")]

    def update(self, batch, next_noise=None, noise=None):
        config, metrics = self.config, {}
        alpha = self.log_alpha.exp().item() if config.alpha == "auto" else config.alpha
        metrics["alpha"] = alpha

        with torch.no_grad():
            if config.value_network:
                next_value = self.mlps["target_value"](batch.next_observation).squeeze(1)
            else:
                next_action, next_log_prob = self.policy(batch.next_observation, next_noise)
                q1, q2 = self.q("target_critic", batch.next_observation, next_action)
                next_value = torch.where(q1 < q2, q1, q2) - alpha * next_log_prob
            y = config.reward_scale * batch.reward + config.gamma * (1 - batch.terminated) * next_value
        metrics["target_mean"] = y.mean()

        q1, q2 = self.q("critic", batch.observation, batch.action)
        factor = 0.5 if config.value_network else 1.0
        critic_loss = factor * ((q1 - y) ** 2).mean() + factor * ((q2 - y) ** 2).mean()
        metrics["critic_loss"], metrics["q_mean"] = critic_loss, torch.cat((q1, q2)).mean()
        self.critic_adam.minimise(critic_loss)

        action, log_prob = self.policy(batch.observation, noise)
        q1, q2 = self.q("critic", batch.observation, action)
        min_q = torch.where(q1 < q2, q1, q2)
        metrics["entropy"] = -log_prob.mean()
        if config.value_network:
            soft_value = (min_q - alpha * log_prob).detach()
            value_loss = (0.5 * (self.mlps["value"](batch.observation).squeeze(1) - soft_value) ** 2).mean()
            self.value_adam.minimise(value_loss)
            metrics["value_loss"] = value_loss
        actor_loss = (alpha * log_prob - min_q).mean()
        self.actor_adam.minimise(actor_loss)
        metrics["actor_loss"] = actor_loss

        if config.alpha == "auto":
            target_entropy = -A if config.target_entropy == "auto" else config.target_entropy
            alpha_loss = -(self.log_alpha * (log_prob.detach() + target_entropy)).mean()
            self.alpha_adam.minimise(alpha_loss)
            metrics["alpha_loss"] = alpha_loss

        self.updates += 1
        if self.updates % config.target_update_interval == 0:
            tau = config.tau if config.target_update == "polyak" else 1.0
            for follower, leader in self.followers.items():
                pairs = zip(self.mlps[follower].parameters(), self.mlps[leader].parameters(), strict=True)
                for slow, fast in pairs:
                    slow.data = (1 - tau) * slow.data + tau * fast.data
        return {name: value.item() if isinstance(value, torch.Tensor) else value for name, value in metrics.items()}

    def parameters(self):
        state = {f"{prefix}.{name}": p.detach() for prefix, m in self.mlps.items() for name, p in m.named_parameters()}
        return state | ({"log_alpha": self.log_alpha.detach()} if self.config.alpha == "auto" else {})


def assert_parameters_equal(learner, oracle):
    state, expected = learner.state_dict(), oracle.parameters()
    parameters = {name: state[name] for name in state if ".layers." in name or name == "log_alpha"}
    assert parameters.keys() == expected.keys()
    for name, value in parameters.items():
        # Float64 rounds at 1e-16; a hundred updates of this size leave it below 1e-11.
        torch.testing.assert_close(
            value, expected[name], rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("options", [{}, OPTIONS["v1"]], ids=["v2", "v1"])
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "relu"])
def test_updates_with_another_activation_equal_the_oracle(options, activation):
    check_updates(make_config(options, activation=activation, fused_ops=False), updates=10)


@every_option
@pytest.mark.parametrize(("fused_ops", "updates"), [(False, 100), (True, 20)], ids=["plain-ops", "fused-ops"])
def test_updates_equal_the_oracle(options, fused_ops, updates):
    check_updates(make_config(options, fused_ops=fused_ops), updates)


def check_updates(config, updates):
    learner = ReferenceLearner(O, A, config, seed=1, dtype=torch.float64)
    oracle = Oracle(learner)
    start = learner.state_dict()
    for step in range(updates):
        batch, noise = random_batch(step, torch.float64), random_noise(config, step, torch.float64)
        metrics = dict(zip(learner.metric_names, learner.update_batch(batch, **noise).tolist(), strict=True))
        expected_metrics = oracle.update(batch, **noise)
        for name, value in metrics.items():
            assert value == pytest.approx(expected_metrics[name], rel=1e-9, abs=1e-11), (step, name)
        if step == 0:
            assert_parameters_equal(learner, oracle)
    assert_parameters_equal(learner, oracle)
    assert learner.gradient_updates == updates
    end = learner.state_dict()
    still = [name for name in start if torch.equal(start[name], end[name])]
    assert still == ["noise_state"]  # the noise was given; all else has moved


@pytest.mark.parametrize("options", [{}, OPTIONS["v1"], OPTIONS["log-std-tanh"]], ids=["v2", "v1", "tanh"])
def test_float32_rounds_and_nothing_more(options):
    """Kernels, twins and float64 make the same hundred updates from the same noise."""
    kernels, twins, exact = (
        ReferenceLearner(O, A, make_config(options, fused_ops=fused_ops), seed=1, dtype=dtype)
        for fused_ops, dtype in ((True, torch.float32), (False, torch.float32), (True, torch.float64))
    )
    for step in range(100):
        noise = random_noise(kernels.config, step, torch.float64)
        by_kernels, by_twins, expected = (
            learner.update_batch(
                random_batch(step), **{name: e.to(learner.actor.flat.dtype) for name, e in noise.items()}
            )
            for learner in (kernels, twins, exact)
        )
        # The metrics are means of B = 16 terms of order 1: some roundings of 6e-8 each.
        torch.testing.assert_close(by_kernels, by_twins, rtol=2e-6, atol=2e-6)
        torch.testing.assert_close(by_kernels.double(), expected, rtol=1e-5, atol=1e-5)
    for name, network in kernels._networks.items():
        # Parameters below 1 are rounded at 3e-8 in each update. Ten such roundings in a hundred are seen
        # against float64, one or two between the two float32 learners.
        torch.testing.assert_close(network.flat, twins._networks[name].flat, rtol=0, atol=3e-7)
        torch.testing.assert_close(network.flat.double(), exact._networks[name].flat, rtol=0, atol=1.5e-6)


def assert_flat(learner):
    for name, network in learner._networks.items():
        offset = 0
        for parameter in network.parameters():
            step = offset * parameter.element_size()
            assert parameter.data_ptr() == network.flat.data_ptr() + step, name
            assert parameter.grad.data_ptr() == network.flat_grad.data_ptr() + step, name
            offset += parameter.numel()
        assert offset == len(network.flat), name


@every_option
def test_an_update_keeps_parameters_in_their_buffers(options):
    learner = ReferenceLearner(O, A, make_config(options))
    before = {name: tensor.data_ptr() for name, tensor in learner._tensors().items()}
    learner.update(FixedReplay(), 3)
    learner.load_state_dict(learner.state_dict())
    assert_flat(learner)
    assert {name: tensor.data_ptr() for name, tensor in learner._tensors().items()} == before


def test_the_actor_step_spares_the_critics():
    learner = ReferenceLearner(O, A, make_config(alpha=0.2))
    learner.critic_step(random_batch(0), torch.zeros(B))
    critic, gradient = learner.critic.flat.clone(), learner.critic.flat_grad.clone()
    action, _ = learner.sample_action(random_batch(0).observation)
    learner.actor_step(torch.minimum(*learner.critic(random_batch(0).observation, action)))
    assert torch.equal(learner.critic.flat, critic)
    assert torch.equal(learner.critic.flat_grad, gradient)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_update_returns_the_mean_metrics_of_its_updates(dtype):
    learner, twin = (ReferenceLearner(O, A, make_config(), seed=5, dtype=dtype) for _ in range(2))
    metrics = learner.update(FixedReplay(), 4)
    replay = FixedReplay()
    expected = torch.stack([twin.update_batch(replay.sample(B)) for _ in range(4)]).mean(0)
    assert tuple(metrics) == learner.metric_names
    assert list(metrics.to_dict().values()) == pytest.approx(expected.tolist(), rel=1e-6)
    assert learner.gradient_updates == twin.gradient_updates == 4
    learner.update(replay, 1)
    assert list(metrics.to_dict().values()) == pytest.approx(expected.tolist(), rel=1e-6)  # not overwritten


@pytest.mark.parametrize(
    ("options", "absent"),
    [
        ({}, {"value_loss"}),
        ({"alpha": 0.2}, {"value_loss", "alpha_loss"}),
        ({"alpha": 0.2, "value_network": True}, {"alpha_loss"}),
        ({"alpha": 0.0, "deterministic_policy": True}, {"value_loss", "alpha_loss", "entropy"}),
    ],
    ids=["v2", "fixed", "v1", "deterministic"],
)
def test_metrics_are_those_that_have_a_meaning(options, absent):
    learner = ReferenceLearner(O, A, make_config(options))
    every = {
        "critic_loss",
        "actor_loss",
        "q_mean",
        "target_mean",
        "alpha",
        "alpha_loss",
        "entropy",
        "value_loss",
    }
    metrics = learner.update(FixedReplay(), 2).to_dict()
    assert set(metrics) == every - absent
    assert all(math.isfinite(value) for value in metrics.values())


def test_no_updates_change_nothing():
    learner = ReferenceLearner(O, A, make_config())
    before = learner.state_dict()
    metrics = learner.update(FixedReplay(), 0)
    assert_states_equal(learner.state_dict(), before)
    assert all(math.isnan(value) for value in metrics.to_dict().values())


@pytest.mark.parametrize(
    ("gradient_steps", "length", "error", "message"),
    [
        (-1, 64, ValueError, "gradient_steps: expected an int >= 0, got -1"),
        (1.5, 64, TypeError, "gradient_steps: expected an int >= 0, got 1.5"),
        (True, 64, TypeError, "gradient_steps: expected an int >= 0, got True"),
        (1, 15, ValueError, r"replay: expected at least batch_size \(16\) transitions, got 15"),
    ],
)
def test_update_refuses(gradient_steps, length, error, message):
    learner = ReferenceLearner(O, A, make_config())
    before = learner.state_dict()
    with pytest.raises(error, match=message):
        learner.update(FixedReplay(length), gradient_steps)
    assert_states_equal(learner.state_dict(), before)


@pytest.mark.parametrize(
    ("options", "refused"),
    [
        ({"value_network": True, "alpha": 0.2}, ["next_noise"]),
        ({"deterministic_policy": True, "alpha": 0.0}, ["next_noise", "noise"]),
    ],
    ids=["v1", "deterministic"],
)
def test_noise_without_a_use_is_refused(options, refused):
    learner = ReferenceLearner(O, A, make_config(options))
    for name in refused:
        with pytest.raises(ValueError, match=f"^{name}: expected None"):
            learner.update_batch(random_batch(0), **{name: torch.zeros(B, A)})
    assert learner.gradient_updates == 0


def test_a_negative_seed_is_refused():
    with pytest.raises(ValueError, match="seed: expected an int >= 0, got -1"):
        ReferenceLearner(O, A, make_config(), seed=-1)


@every_option
@either_ops
def test_a_loaded_learner_continues_bitwise(options, fused_ops):
    config = make_config(options, fused_ops=fused_ops)
    learner = ReferenceLearner(O, A, config, seed=3)
    learner.update(FixedReplay(seed=0), 4)  # 4 of 3: in the middle of a target interval
    saved = learner.state_dict()
    learner.update(FixedReplay(seed=1), 5)

    resumed = ReferenceLearner(O, A, config, seed=4)
    resumed.load_state_dict(saved)
    assert_states_equal(resumed.state_dict(), saved)
    resumed.update(FixedReplay(seed=1), 5)
    assert_states_equal(resumed.state_dict(), learner.state_dict())
    assert resumed.gradient_updates == 9


def test_a_state_is_a_copy():
    learner = ReferenceLearner(O, A, make_config())
    saved = learner.state_dict()
    before = {name: tensor.clone() for name, tensor in saved.items()}
    learner.update(FixedReplay(), 1)
    assert_states_equal(saved, before)
    storages = {tensor.untyped_storage().data_ptr() for tensor in saved.values()}
    assert len(storages) == len(saved)  # as safetensors demands


@pytest.mark.parametrize("fused_ops", [True, False])
@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda state: state.pop("critic.q2.layers.0.bias"),
            ValueError,
            "critic.q2.layers.0.bias is missing",
        ),
        (lambda state: state.pop("noise_state"), ValueError, "noise_state is missing"),
        (lambda state: state.update(surplus=torch.zeros(1)), ValueError, "surplus is not expected"),
        (
            lambda state: state.update(log_alpha=torch.zeros(2)),
            ValueError,
            r"log_alpha is torch.float32 \[2\], expected torch.float32 \[\]",
        ),
        (
            lambda state: state.update(log_alpha=torch.zeros((), dtype=torch.float64)),
            ValueError,
            r"log_alpha is torch.float64 \[\], expected torch.float32 \[\]",
        ),
        (
            lambda state: state.update(gradient_updates=3),
            TypeError,
            "expected a tensor for gradient_updates, got int",
        ),
    ],
    ids=["missing", "missing-noise", "surplus", "shape", "dtype", "no-tensor"],
)
def test_a_refused_state_changes_nothing(damage, error, message, fused_ops):
    learner = ReferenceLearner(O, A, make_config(fused_ops=fused_ops), seed=3)
    other = ReferenceLearner(O, A, make_config(fused_ops=fused_ops), seed=4)
    other.update(FixedReplay(), 2)
    state = other.state_dict()
    damage(state)
    before = learner.state_dict()
    with pytest.raises(error, match=message):
        learner.load_state_dict(state)
    assert_states_equal(learner.state_dict(), before)
    assert learner.gradient_updates == 0


def test_a_state_of_another_configuration_is_refused():
    learner = ReferenceLearner(O, A, make_config())
    with pytest.raises(ValueError, match=r"target_critic\..* is missing.*target_value\..* is not expected"):
        learner.load_state_dict(ReferenceLearner(O, A, make_config(OPTIONS["v1"])).state_dict())


@either_ops
def test_runs_depend_on_the_seed_only(fused_ops):
    def run(seed):
        learner = ReferenceLearner(O, A, make_config(fused_ops=fused_ops), seed=seed)
        start = learner.actor.flat.clone()
        learner.update(FixedReplay(), 5)
        return start, learner.state_dict()

    first_start, first = run(7)
    torch.manual_seed(99)  # torch's own generator has no part in it
    _, again = run(7)
    other_start, other = run(8)
    assert_states_equal(first, again)
    assert not torch.equal(first_start, other_start)
    assert not torch.equal(first["actor.layers.0.weight"], other["actor.layers.0.weight"])


@either_ops
def test_noise_follows_the_seed_when_parameters_are_equal(fused_ops):
    learners = [ReferenceLearner(O, A, make_config(fused_ops=fused_ops), seed=seed) for seed in (1, 2)]
    state = learners[0].state_dict()
    learners[1].load_state_dict(state | {"noise_state": learners[1].state_dict()["noise_state"]})
    left, right = (learner.update_batch(random_batch(0)) for learner in learners)
    assert not torch.equal(left, right)


def test_the_temperature_moves_towards_the_target_entropy():
    # A fresh policy of 3 dimensions has an entropy of about 1.4 nats.
    for target_entropy, sign in ((-20.0, -1), (20.0, 1)):
        learner = ReferenceLearner(O, A, make_config(target_entropy=target_entropy))
        learner.update(FixedReplay(), 10)
        assert sign * learner.log_alpha.item() > 0
        assert learner.alpha.item() == pytest.approx(math.exp(learner.log_alpha.item()))


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.01},
        {"alpha": "auto", "initial_alpha": 0.1, "target_entropy": -3.0},
        {"alpha": 0.01, "value_network": True},
        {"alpha": 0.0, "deterministic_policy": True},
    ],
    ids=["fixed", "auto", "v1", "deterministic"],
)
def test_a_contextual_bandit_is_learned(options):
    """Reward -(a - f(x))^2 in episodes of one step: the best policy's mean is f(x)."""
    replay = BanditReplay()
    rates = dict.fromkeys(("actor_lr", "critic_lr", "value_lr", "alpha_lr"), 3e-3)
    learner = ReferenceLearner(1, 1, SACConfig(hidden_sizes=(32, 32), batch_size=128, **rates, **options))

    def mean_error():
        with torch.no_grad():
            mean, _ = learner.actor(replay.data.observation)
        return (mean.tanh() - replay.best_action).abs().mean().item()

    assert mean_error() > 0.3
    learner.update(replay, 500)
    assert learner.gradient_updates == 500
    assert mean_error() < 0.1


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@either_ops
def test_captured_updates_equal_eager_ones(fused_ops):
    config = make_config(OPTIONS["polyak-every-3"], fused_ops=fused_ops)

    class DeviceReplay(FixedReplay):
        def sample(self, batch_size):
            return Batch(*(field.cuda() for field in super().sample(batch_size)))

    captured, eager = (ReferenceLearner(O, A, config, device="cuda", seed=3) for _ in range(2))
    metrics = captured.update(DeviceReplay(), 30)
    replay = DeviceReplay()
    expected = torch.stack([eager.update_batch(replay.sample(B)) for _ in range(30)]).mean(0)
    assert set(captured._captured._graphs) == {True, False}
    assert captured.gradient_updates == eager.gradient_updates == 30
    # The same kernels in the same order on the same noise; only libraries' workspaces may differ.
    assert list(metrics.to_dict().values()) == pytest.approx(expected.tolist(), rel=1e-4, abs=1e-5)
    torch.testing.assert_close(captured.actor.flat, eager.actor.flat, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(captured._target.flat, eager._target.flat, rtol=1e-4, atol=1e-5)


def test_recording_forbids_nothing_to_other_threads(monkeypatch):
    """Where there is no GPU: with what a graph is recorded."""
    options = []

    @contextmanager
    def record(graph, **given):
        options.append(given)
        yield

    for name in ("Stream", "CUDAGraph", "graph_pool_handle"):
        monkeypatch.setattr(torch.cuda, name, Mock())
    monkeypatch.setattr(torch.cuda, "graph", record)
    learner = ReferenceLearner(O, A, make_config())
    captured = reference._CapturedUpdate(learner)
    monkeypatch.setattr(captured, "_work", lambda _: None)
    captured._capture(True)
    assert [each["capture_error_mode"] for each in options] == ["thread_local"]
