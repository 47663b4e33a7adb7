import pytest
import torch

from sacfast.config import SACConfig
from sacfast.learner import check_state, check_update_arguments, make_learner
from sacfast.reference import ReferenceLearner
from sacfast.types import Batch


class OneTransition:
    def __len__(self):
        return 1

    def sample(self, batch_size):
        ones = torch.ones(batch_size)
        return Batch(torch.ones(batch_size, 3), torch.zeros(batch_size, 2), ones, torch.ones(batch_size, 3), ones)


def test_make_learner_builds_what_it_is_told():
    config = SACConfig(hidden_sizes=(8,), batch_size=1)
    learner = make_learner(3, 2, config, backend="reference", device="cpu", seed=4)
    assert isinstance(learner, ReferenceLearner)
    assert learner.config is config
    assert (learner.observation_dim, learner.action_dim) == (3, 2)
    assert learner.device == torch.device("cpu")
    assert learner.gradient_updates == 0
    assert torch.equal(learner.actor.flat, ReferenceLearner(3, 2, config, seed=4).actor.flat)
    mean, log_std = learner.actor(torch.zeros(5, 3))
    assert mean.shape == log_std.shape == (5, 2)


def test_make_learner_defaults():
    learner = make_learner(3, 2)
    assert learner.config == SACConfig()
    assert torch.equal(learner.actor.flat, make_learner(3, 2, SACConfig(), seed=0).actor.flat)


def test_a_made_learner_learns():
    learner = make_learner(3, 2, SACConfig(hidden_sizes=(8,), batch_size=1))
    before = learner.actor.flat.clone()
    learner.update(OneTransition(), gradient_steps=2)
    assert learner.gradient_updates == 2
    assert not torch.equal(learner.actor.flat, before)


@pytest.mark.parametrize("backend", ["fused", "jax"])
def test_a_backend_that_does_not_exist_is_refused_by_name(backend):
    with pytest.raises(ValueError, match=f"backend: expected one of 'reference', got '{backend}'"):
        make_learner(3, 2, backend=backend)


@pytest.mark.parametrize(("sizes", "name"), [((0, 2), "observation_dim"), ((3, 0), "action_dim")])
def test_sizes_below_one_are_refused(sizes, name):
    with pytest.raises(ValueError, match=f"{name}: expected an int >= 1, got 0"):
        make_learner(*sizes)


@pytest.mark.parametrize(
    ("gradient_steps", "batch_size", "error", "message"),
    [
        (-1, 1, ValueError, "gradient_steps: expected an int >= 0, got -1"),
        (0.5, 1, TypeError, "gradient_steps: expected an int >= 0, got 0.5"),
        (True, 1, TypeError, "gradient_steps: expected an int >= 0, got True"),
        (1, 2, ValueError, r"replay: expected at least batch_size \(2\) transitions, got 1"),
    ],
)
def test_update_arguments_are_checked(gradient_steps, batch_size, error, message):
    check_update_arguments(OneTransition(), 0, batch_size=1)
    with pytest.raises(error, match=message):
        check_update_arguments(OneTransition(), gradient_steps, batch_size)


def test_check_state_lists_every_fault():
    expected = {"a": torch.zeros(2), "b": torch.zeros(3), "c": torch.zeros(()), "d": torch.zeros(1)}
    check_state({name: tensor + 1 for name, tensor in expected.items()}, expected)
    state = {
        "b": torch.zeros(4),
        "c": torch.zeros((), dtype=torch.int64),
        "d": torch.zeros(1),
        "e": torch.zeros(1),
    }
    with pytest.raises(ValueError, match=r"^state: ") as caught:
        check_state(state, expected)
    assert str(caught.value).removeprefix("state: ").split("; ") == [
        "a is missing",
        "b is torch.float32 [4], expected torch.float32 [3]",
        "c is torch.int64 [], expected torch.float32 []",
        "e is not expected",
    ]


def test_check_state_refuses_what_is_no_tensor():
    with pytest.raises(TypeError, match="state: expected a tensor for a, got list"):
        check_state({"a": [0.0]}, {"a": torch.zeros(1)})
