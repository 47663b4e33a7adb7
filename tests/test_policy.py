import contextlib
from typing import ClassVar
from unittest.mock import Mock

import numpy as np
import pytest
import torch

from sacfast import ops
from sacfast import policy as policy_module
from sacfast.networks import ACTIVATIONS, Actor
from sacfast.policy import Policy

O, A = 5, 3  # noqa: E741 # the project's shape letters


def make_actor(hidden_sizes=(16, 8), seed=0, **options):
    return Actor(O, A, hidden_sizes, generator=torch.Generator().manual_seed(seed), **options)


def observations(rows=16, seed=0):
    return np.random.default_rng(seed).standard_normal((rows, O)).astype(np.float32)


def outputs(actor, observation):
    with torch.no_grad():
        mean, log_std = actor(torch.from_numpy(observation))
    return mean.numpy().astype(np.float64), log_std.numpy().astype(np.float64)


@pytest.mark.parametrize("rows", [0, 1, 2, 16, 65])
@pytest.mark.parametrize("hidden_sizes", [(), (8,), (16, 8)], ids=str)
def test_the_deterministic_action_is_the_squashed_mean(rows, hidden_sizes):
    actor, observation = make_actor(hidden_sizes), observations(rows)
    action = Policy(actor, deterministic=True).act(observation)
    mean, _ = outputs(actor, observation)
    assert action.shape == (rows, A)
    assert action.dtype == np.float32
    np.testing.assert_allclose(action, np.tanh(mean), rtol=1e-5, atol=1e-6)  # sums of at most 16 float32 terms


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_policy_has_the_actors_activation(activation):
    actor, observation = make_actor(activation=activation), observations()
    actor.flat.mul_(3)  # far enough from zero, where some of them look alike
    mean, _ = outputs(actor, observation)
    action = Policy(actor, deterministic=True).act(observation)
    np.testing.assert_allclose(action, np.tanh(mean), rtol=1e-5, atol=1e-6)  # sums of at most 16 float32 terms
    others = [make_actor(activation=other) for other in ACTIVATIONS if other != activation]
    for other in others:
        other.flat.copy_(actor.flat)
        assert np.abs(Policy(other, deterministic=True).act(observation) - action).max() > 1e-3


@pytest.mark.parametrize(
    ("bounding", "bounds"), [("none", (-20.0, 2.0)), ("clamp", (-0.1, 0.1)), ("tanh", (-5.0, 2.0))]
)
def test_stochastic_actions_have_the_actors_distribution(bounding, bounds):
    actor, rows = make_actor(), 20_000
    observation = np.repeat(observations(1), rows, axis=0)
    policy = Policy(actor, seed=1, log_std_bounding=bounding, log_std_bounds=bounds)
    mean, log_std = (values[0] for values in outputs(actor, observation[:1]))
    low, high = bounds
    if bounding == "clamp":
        log_std = np.clip(log_std, low, high)
    elif bounding == "tanh":
        log_std = low + (high - low) / 2 * (np.tanh(log_std) + 1)
    pre_tanh = np.arctanh(policy.act(observation).astype(np.float64).clip(-1 + 1e-7, 1 - 1e-7))
    # Quantiles, since atanh is not exact in the tails. 20,000 draws: the standard error of a median is 0.009
    # standard deviations, of the quartiles' distance 0.011 of them; the margins are five.
    lower, median, upper = np.quantile(pre_tanh, [0.25, 0.5, 0.75], axis=0)
    std = np.exp(log_std)
    np.testing.assert_allclose((median - mean) / std, 0, atol=0.045)
    np.testing.assert_allclose((upper - lower) / (2 * 0.67449 * std), 1, atol=0.045)


def test_stochastic_noise_is_independent_across_rows_and_calls():
    policy, observation = Policy(make_actor()), np.repeat(observations(1), 4, axis=0)
    actions = np.concatenate([policy.act(observation), policy.act(observation)])
    assert len(np.unique(actions, axis=0)) == 8
    assert len(np.unique(actions)) == 8 * A


@pytest.mark.parametrize("options", [{}, {"deterministic": True, "exploration_noise": 0.3}], ids=["sac", "ablation"])
def test_actions_depend_on_the_seed_only(options):
    def run(seed):
        policy = Policy(make_actor(), seed=seed, **options)
        return np.stack([policy.act(observations(seed=step)) for step in range(3)])

    first = run(1)
    torch.manual_seed(99)  # torch's own generator has no part in it
    np.testing.assert_array_equal(run(1), first)
    assert not np.array_equal(run(2), first)


@pytest.mark.parametrize(
    "options",
    [{}, {"deterministic": True}, {"deterministic": True, "exploration_noise": 5.0}],
    ids=["stochastic", "deterministic", "exploring"],
)
def test_actions_stay_within_bounds(options):
    actor = make_actor()
    actor.flat.mul_(50)  # means and log-stds far out
    action = Policy(actor, **options).act(observations(500))
    assert np.isfinite(action).all()
    assert (action.min(), action.max()) == (-1.0, 1.0)


def test_exploration_noise_is_added_to_the_action():
    actor, observation = make_actor(), np.repeat(observations(1), 20_000, axis=0)
    mean_action = Policy(actor, deterministic=True).act(observation)
    noise = Policy(actor, deterministic=True, exploration_noise=0.1).act(observation) - mean_action
    # The fresh actor's means are near 0, so that nothing is clipped. Five standard errors of 60,000 draws.
    assert abs(noise.mean()) < 5 * 0.1 / 60_000**0.5
    assert noise.std() == pytest.approx(0.1, rel=5 / (2 * 60_000) ** 0.5)


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_policy_follows_the_actors_parameters(deterministic):
    actor = make_actor()
    policy, observation = Policy(actor, deterministic), observations()
    before = policy.act(observation)
    kept = before.copy()
    actor.flat.zero_()
    action = policy.act(observation)
    np.testing.assert_array_equal(before, kept)  # an earlier answer is the caller's own
    if deterministic:
        assert (action == 0).all()
    else:
        fresh = Policy(make_actor(), deterministic)
        fresh.act(observation)
        assert not np.array_equal(action, fresh.act(observation))


@pytest.mark.parametrize("options", [{}, {"deterministic": True, "exploration_noise": 0.3}], ids=["sac", "ablation"])
def test_a_restored_policy_continues_its_noise(options):
    policy = Policy(make_actor(), seed=1, **options)
    policy.act(observations())
    saved = policy.state_dict()
    expected = policy.act(observations())
    restored = Policy(make_actor(), seed=2, **options)
    restored.load_state_dict(saved)
    np.testing.assert_array_equal(restored.act(observations()), expected)


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: state.pop("noise_state"),
        lambda state: state.update(surplus=torch.zeros(2)),
        lambda state: state.update(noise_state=torch.zeros(3, dtype=torch.int64)),
        lambda state: state.update(noise_state=torch.zeros(2)),
    ],
    ids=["missing", "surplus", "shape", "dtype"],
)
def test_a_state_of_another_layout_is_refused(damage):
    policy, twin = Policy(make_actor(), seed=1), Policy(make_actor(), seed=1)
    state = Policy(make_actor(), seed=2).state_dict()
    damage(state)
    with pytest.raises(ValueError, match=r"state: expected .*'noise_state': 'torch.int64 .2.'.*, got "):
        policy.load_state_dict(state)
    np.testing.assert_array_equal(policy.act(observations()), twin.act(observations()))


@pytest.mark.parametrize("layout", ["columns", "strided", "read"])
def test_any_layout_of_observations_is_accepted(layout):
    observation = observations(8)
    policy = Policy(make_actor(), deterministic=True)
    other = {
        "columns": np.asfortranarray(observation),
        "strided": np.repeat(observation, 2, axis=0)[::2],
        "read": np.hstack([observation, observation])[:, :O],
    }[layout]
    np.testing.assert_allclose(policy.act(other), policy.act(observation), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("observation", "error", "message"),
    [
        (observations().astype(np.float64), TypeError, "observation: expected a float32 array, got float64"),
        (observations().tolist(), TypeError, "observation: expected a float32 array, got list"),
        (observations()[0], ValueError, r"observation: expected shape \(n, 5\), got \(5,\)"),
        (observations()[:, :4], ValueError, r"observation: expected shape \(n, 5\), got \(16, 4\)"),
    ],
    ids=["dtype", "list", "one", "width"],
)
def test_act_refuses(observation, error, message):
    with pytest.raises(error, match=message):
        Policy(make_actor()).act(observation)


def test_an_actor_in_another_dtype_is_refused():
    with pytest.raises(TypeError, match=r"actor: expected parameters in torch.float32, got torch.float64"):
        Policy(make_actor(dtype=torch.float64))


@pytest.mark.parametrize(
    ("deterministic", "noise", "message"),
    [
        (True, -0.1, r"expected a float in \[0, inf\), got -0.1"),
        (True, float("nan"), r"expected a float in \[0, inf\), got nan"),
        (False, 0.1, "expected 0.0 for a stochastic policy, got 0.1"),
    ],
)
def test_exploration_noise_is_checked(deterministic, noise, message):
    with pytest.raises(ValueError, match=f"exploration_noise: {message}"):
        Policy(make_actor(), deterministic, exploration_noise=noise)


@pytest.mark.cuda
@pytest.mark.parametrize("fields", [{}, {"deterministic": True}, {"deterministic": True, "exploration_noise": 0.3}])
def test_the_graph_acts_as_eager_calls_do(fields):
    actor = Actor(O, A, (16, 8), device=torch.device("cuda"), generator=torch.Generator().manual_seed(0))
    graph, eager = (Policy(actor, seed=4, **fields) for _ in range(2))
    eager._eager_calls.update(dict.fromkeys((16, 3), -(10**6)))
    for call in range(10):
        for rows in (16, 3):
            np.testing.assert_array_equal(graph.act(observations(rows, call)), eager.act(observations(rows, call)))
        actor.flat.mul_(1.01)  # as an update changes it: in place
    assert set(graph._graphs) == {16, 3}
    assert not eager._graphs
    assert graph.act(observations(0)).shape == (0, A)


class Recorded:
    """Stands in for a CUDA graph: says what was asked of it."""

    made: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self, act, observation, generator, recorder):
        Recorded.made.append(tuple(observation.shape))
        self._act = act

    def act(self, observation):
        return self._act(torch.from_numpy(observation)).numpy()


def test_a_graph_is_recorded_for_numbers_of_rows_that_come_back(monkeypatch):
    monkeypatch.setattr(policy_module, "_ActingGraph", Recorded)
    monkeypatch.setattr(policy_module, "_Recorder", Mock())
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(Recorded, "made", [])
    policy, expected = (Policy(make_actor(activation="tanh"), seed=4) for _ in range(2))  # by torch on the CPU too
    for rows in [16] * 4 + [0] * 9 + [3, 2, 1, 16, 3]:
        observation = observations(rows)
        np.testing.assert_array_equal(policy._act_on_gpu(observation), expected.act(observation))
    assert Recorded.made == [(16, O)]


class FakeGraph:
    """Stands in for torch.cuda.CUDAGraph: registers generators, and replays nothing."""

    generators: ClassVar[list[torch.Generator]] = []

    def register_generator_state(self, generator):
        FakeGraph.generators.append(generator)

    def replay(self):
        pass


@pytest.fixture
def recordings(monkeypatch):
    """What graphs are recorded with, where there is no GPU: acting is done once, on the host."""
    made = []

    @contextlib.contextmanager
    def record(graph, **options):
        made.append(options)
        yield

    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", record)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: object())
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: Mock())
    monkeypatch.setattr(policy_module, "_pinned", torch.empty_like)
    monkeypatch.setattr(FakeGraph, "generators", [])
    return made


def test_graphs_share_their_stream_and_memory_and_are_few(recordings):
    policy = Policy(make_actor(activation="tanh"), seed=4)
    for rows in range(1, policy_module.MOST_GRAPHS + 4):
        for _ in range(5):
            assert policy._act_on_gpu(observations(rows)).shape == (rows, A)
    assert len(recordings) == len(policy._graphs) == policy_module.MOST_GRAPHS
    assert {id(each["stream"]) for each in recordings} == {id(policy._recorder.stream)}
    assert {id(each["pool"]) for each in recordings} == {id(policy._recorder.pool)}
    assert {each["capture_error_mode"] for each in recordings} == {"thread_local"}


@pytest.mark.parametrize(
    ("fields", "count"), [({}, 0), ({"deterministic": True}, 0), ({"deterministic": True, "exploration_noise": 0.3}, 1)]
)
def test_a_generator_is_registered_where_it_is_drawn_from(recordings, fields, count):
    policy = Policy(make_actor(activation="tanh"), seed=4, **fields)
    for _ in range(4):
        policy._act_on_gpu(observations(3))
    assert len(recordings) == 1
    assert len(FakeGraph.generators) == count


@pytest.mark.parametrize("rows", [policy_module.NATIVE_ROWS, policy_module.NATIVE_ROWS + 1, 300])
def test_many_rows_are_sampled_as_few_are(rows):
    actor, observation = make_actor(), observations(rows)
    action = Policy(actor, seed=4).act(observation)
    policy = Policy(actor, seed=4)
    noise_state = policy._noise_state.clone()
    mean, log_std = actor(torch.from_numpy(observation))
    expected, _ = ops.tanh_gaussian_rsample(mean, log_std, generator=noise_state, log_std_bounding="clamp")
    np.testing.assert_allclose(action, expected.detach().numpy(), rtol=1e-5, atol=1e-6)  # sums of 16 float32 terms
    assert policy._native.act(observations(policy_module.NATIVE_ROWS + 1)) is None
