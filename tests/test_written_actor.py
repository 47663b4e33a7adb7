"""The actor's parameters may be written to between calls, in place; replaced ones are refused, by every path."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import A, O, assert_states_equal, make_config, random_batch, random_replay
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from sacfast import SAC, learn_together
from sacfast.fused import FusedLearner
from sacfast.learner import side_by_side
from sacfast.networks import Actor
from sacfast.reference import ReferenceLearner

Learner = FusedLearner | ReferenceLearner
either_learner = pytest.mark.parametrize("kind", [FusedLearner, ReferenceLearner])
either_backend = pytest.mark.parametrize("backend", ["fused", "reference"])


def load(actor: Actor) -> None:
    actor.load_state_dict(Actor(O, A, (16, 8), generator=torch.Generator().manual_seed(99)).state_dict())


def copy_into_data(actor: Actor) -> None:
    actor.layers[0].weight.data.copy_(torch.full((16, O), 0.25))


def write_by_numpy(actor: Actor) -> None:
    values: np.ndarray[Any, Any] = actor.layers[1].bias.detach().numpy()
    values[:] = -0.5


def change_a_sign_of_zero(actor: Actor) -> None:
    with torch.no_grad():
        actor.layers[0].bias[0] = -0.0


def step_an_optimizer(actor: Actor) -> None:
    """One step of behaviour cloning."""
    optimizer = torch.optim.Adam(actor.parameters(), 1e-2)
    mean, _ = actor(random_batch(5).observation)
    mean.square().mean().backward()
    optimizer.step()


WRITES = [load, copy_into_data, write_by_numpy, change_a_sign_of_zero, step_an_optimizer]
every_write = pytest.mark.parametrize("write", WRITES)


def make(kind: type[Learner], **options: Any) -> Learner:
    return kind(O, A, make_config(**options), seed=3)


def written(state: dict[str, Tensor], actor: Actor) -> dict[str, Tensor]:
    """The state with the parameters that torch shows."""
    return state | {f"actor.{name}": value.detach().clone() for name, value in actor.named_parameters()}


@either_learner
@every_write
@pytest.mark.parametrize("call", ["update", "update_batch", "state_dict", "profile"])
def test_a_write_counts_from_the_next_call_on(kind: type[Learner], write: Callable[[Actor], None], call: str) -> None:
    """As if the learner had loaded a state with the parameters that torch shows."""
    learner, twin = make(kind), make(kind)
    if call == "profile" and kind is ReferenceLearner:
        pytest.skip("has none")
    for each in (learner, twin):
        each.update(random_replay(), 3)
    write(learner.actor)
    twin.load_state_dict(written(twin.state_dict(), learner.actor))
    for each in (learner, twin):
        if call == "update":
            each.update(random_replay(seed=1), 2)
        elif call == "update_batch":
            each.update_batch(random_batch(2))
        elif call == "profile":
            assert isinstance(each, FusedLearner)
            each.profile(random_replay(seed=1), 2)
    assert_states_equal(learner.state_dict(), twin.state_dict())
    assert torch.equal(learner.actor.flat.view(torch.int32), twin.actor.flat.view(torch.int32))


@either_learner
def test_a_write_outlives_an_update_that_fails(kind: type[Learner]) -> None:
    learner = make(kind)
    learner.update(random_replay(), 2)
    load(learner.actor)
    expected = learner.actor.flat.clone()
    bad = random_replay()
    bad.rows[:, O + A] = torch.nan
    with pytest.raises(FloatingPointError, match="update 3: critic_loss is not finite"):
        learner.update(bad, 2)
    assert torch.equal(learner.actor.flat, expected)
    state = learner.state_dict()
    assert torch.equal(torch.cat([state[name].flatten() for name in state if name.startswith("actor.")]), expected)


@either_learner
def test_nan_that_was_written_is_named_by_the_update(kind: type[Learner]) -> None:
    learner = make(kind)
    with torch.no_grad():
        learner.actor.layers[0].bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match="update 1: critic_loss is not finite"):
        learner.update(random_replay(), 1)
    assert learner.actor.layers[0].bias[0].isnan()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_without_a_write_nothing_is_taken(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is shown is what the engine has, byte for byte."""
    learner = FusedLearner(O, A, make_config(), seed=3, dtype=dtype)
    learner.update(random_replay(), 2)
    before = learner.actor.flat.clone()
    learner.state_dict()
    assert torch.equal(learner.actor.flat, before)
    learner._engine.read("actor", "parameters", into := torch.empty_like(before))
    assert torch.equal(into, before)


def load_by_assignment(actor: Actor) -> None:
    actor.load_state_dict({name: value.clone() for name, value in actor.state_dict().items()}, assign=True)


def replace_data(actor: Actor) -> None:
    actor.layers[0].weight.data = actor.layers[0].weight.data.clone()


def transpose_data(actor: Actor) -> None:
    actor.layers[1].weight.data = actor.layers[1].weight.data.view(16, 8).t()


def replace_a_parameter(actor: Actor) -> None:
    actor.layers[1].bias = nn.Parameter(torch.zeros(8))


def replace_a_layer(actor: Actor) -> None:
    actor.layers[2] = nn.Linear(8, 2 * A)


def convert_a_layer(actor: Actor) -> None:
    actor.layers[0].double()


def write_a_vector(actor: Actor) -> None:
    vector_to_parameters(torch.zeros(actor.flat.shape), actor.parameters())


def replace_flat(actor: Actor) -> None:
    actor.flat = actor.flat.clone()


REPLACEMENTS = [
    load_by_assignment,
    replace_data,
    transpose_data,
    replace_a_parameter,
    replace_a_layer,
    convert_a_layer,
    write_a_vector,
    replace_flat,
]
every_replacement = pytest.mark.parametrize("replace", REPLACEMENTS)
REFUSED = r"^learner\.actor: expected parameters in the memory that policy, optimiser and engine read, got others"


@either_learner
@every_replacement
def test_a_replaced_parameter_is_refused(kind: type[Learner], replace: Callable[[Actor], None]) -> None:
    learner = make(kind)
    state = learner.state_dict()
    replace(learner.actor)
    acts: list[Callable[[], object]] = [
        lambda: learner.update(random_replay(), 1),
        lambda: learner.update_batch(random_batch(1)),
        learner.state_dict,
        lambda: learner.load_state_dict(state),
    ]
    for act in acts:
        with pytest.raises(RuntimeError, match=REFUSED):
            act()
    outcome = side_by_side([learner]).update({0: (random_replay(), 1)})[0]
    assert isinstance(outcome, RuntimeError)
    assert learner.gradient_updates == 0


@either_learner
def test_a_network_cannot_be_moved_or_exchanged(kind: type[Learner]) -> None:
    learner = make(kind)
    for move in (lambda: learner.actor.to("cpu"), learner.actor.double, learner.actor.share_memory):
        with pytest.raises(RuntimeError, match="Actor: its parameters are views of one buffer and cannot be moved"):
            move()
    with pytest.raises(AttributeError, match="actor"):
        learner.actor = Actor(O, A)  # type: ignore[misc]


def test_the_critics_of_the_reference_may_not_be_replaced_either() -> None:
    learner = make(ReferenceLearner)
    assert isinstance(learner, ReferenceLearner)
    learner.target_critic.q1.layers[0].weight.data = torch.zeros(16, O + A)
    with pytest.raises(RuntimeError, match=r"^learner\.target_critic: expected parameters in the memory"):
        learner.update(random_replay(), 1)


# ---- A whole model -------------------------------------------------------------------------------------------------


def model(backend: str, **fields: Any) -> SAC:
    small: dict[str, Any] = {"hidden_sizes": (16,), "batch_size": 16, "replay_capacity": 1000, "progress": False}
    small |= {"num_envs": 2, "learning_starts": 40, "evaluation_episodes": 0, "torch_threads": 1, "backend": backend}
    return SAC("Pendulum-v1", **{**small, **fields})


def act_always(agent: SAC) -> None:
    """Write parameters with which the mean action is that of 0.5, whatever is observed."""
    actor = agent.learner.actor
    with torch.no_grad():
        actor.flat.zero_()
        actor.layers[-1].bias[0] = 0.5


@either_backend
def test_a_written_policy_acts_is_saved_and_is_learned_from(backend: str, tmp_path: Path) -> None:
    agent, observation = model(backend, run_dir=tmp_path / "run", actor_lr=1e-30), np.ones(3)
    agent.learn(100)
    act_always(agent)
    expected = agent.learner.actor.flat.clone()
    action = 2 * np.tanh(np.float32(0.5))
    assert agent.predict(observation) == pytest.approx(action, rel=1e-6)
    evaluated = agent.evaluate(1)
    loaded = SAC.load(agent.save(tmp_path / "saved"))
    assert torch.equal(loaded.learner.actor.flat, expected)
    assert loaded.predict(observation) == pytest.approx(action, rel=1e-6)
    assert loaded.evaluate(1).mean == evaluated.mean
    agent.learn(60)  # with a step of 1e-30
    assert torch.allclose(agent.learner.actor.flat, expected, atol=1e-20)
    resumed = SAC.resume(tmp_path / "run")
    assert torch.equal(resumed.learner.actor.flat, agent.learner.actor.flat)


@either_backend
def test_models_that_learn_together_go_on_from_written_policies(backend: str) -> None:
    models = [model(backend, seed=seed, actor_lr=1e-30) for seed in (1, 2)]
    for each in models:
        act_always(each)
    expected = models[0].learner.actor.flat.clone()
    learn_together(models, 80)
    for each in models:
        assert each.learner.gradient_updates == 40
        assert torch.allclose(each.learner.actor.flat, expected, atol=1e-20)


@either_backend
def test_a_replaced_policy_is_refused_by_a_model(backend: str, tmp_path: Path) -> None:
    agent = model(backend)
    agent.learn(60)
    load_by_assignment(agent.learner.actor)
    acts: list[Callable[[], object]] = [
        lambda: agent.predict(np.ones(3)),
        lambda: agent.predict(np.ones(3), deterministic=False),
        lambda: agent.evaluate(1),
        lambda: agent.save(tmp_path / "saved"),
        lambda: agent.learn(60),
    ]
    for act in acts:
        with pytest.raises(RuntimeError, match=REFUSED):
            act()
    assert not (tmp_path / "saved").exists()


@either_backend
def test_a_policy_with_nan_is_not_saved(backend: str, tmp_path: Path) -> None:
    agent = model(backend)
    with torch.no_grad():
        agent.learner.actor.layers[0].bias[0] = torch.nan
    with pytest.raises(FloatingPointError, match=r"the learner's actor.layers.0.bias is not finite"):
        agent.save(tmp_path / "saved")


@either_learner
def test_what_torch_does_to_the_actor_in_passing_is_no_replacement(kind: type[Learner]) -> None:
    """An export, a functional call and hooks leave the parameters where they were."""
    learner, replay = kind(O, A, make_config()), random_replay()
    actor, x = learner.actor, torch.zeros(3, O)
    torch.export.export(actor, (x,))
    torch.func.functional_call(actor, {name: 2 * value for name, value in actor.named_parameters()}, (x,))
    actor.register_forward_hook(lambda *_: None)
    actor.eval().train()
    actor.requires_grad_(False).requires_grad_(True)
    learner.update(replay, 2)
