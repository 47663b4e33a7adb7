import os
import signal
import threading
import time
from types import FrameType

import numpy as np
import pytest
import torch
from learner_cases import assert_states_equal, make_config, random_replay

from sacfast.config import BACKENDS, SACConfig
from sacfast.fused import FusedLearner
from sacfast.learner import Turn, check_state, check_update_arguments, make_learner, metric_names, side_by_side
from sacfast.reference import ReferenceLearner
from sacfast.types import Batch, Metrics


class OneTransition:
    rows = torch.cat((torch.ones(1, 3), torch.zeros(1, 2), torch.ones(1, 5)), 1)

    def __len__(self):
        return 1

    def sample(self, batch_size):
        rows = self.rows.expand(batch_size, -1)
        return Batch(rows[:, :3], rows[:, 3:5], rows[:, 5], rows[:, 6:9], rows[:, 9])

    def draw(self, count):
        return torch.zeros(count, dtype=torch.int64)


every_backend = pytest.mark.parametrize("backend", BACKENDS)


@pytest.mark.parametrize(("backend", "expected"), [("fused", FusedLearner), ("reference", ReferenceLearner)])
def test_make_learner_builds_what_it_is_told(backend, expected):
    config = SACConfig(hidden_sizes=(8,), batch_size=1)
    learner = make_learner(3, 2, config, backend=backend, device="cpu", seed=4)
    assert isinstance(learner, expected)
    assert learner.config is config
    assert (learner.observation_dim, learner.action_dim) == (3, 2)
    assert learner.device == torch.device("cpu")
    assert learner.gradient_updates == 0
    assert learner.metric_names == metric_names(config)
    assert torch.equal(learner.actor.flat, ReferenceLearner(3, 2, config, seed=4).actor.flat)
    mean, log_std = learner.actor(torch.zeros(5, 3))
    assert mean.shape == log_std.shape == (5, 2)


def test_make_learner_defaults():
    learner = make_learner(3, 2)
    assert isinstance(learner, FusedLearner)
    assert learner.config == SACConfig()
    assert torch.equal(learner.actor.flat, make_learner(3, 2, SACConfig(), seed=0).actor.flat)


@every_backend
def test_a_made_learner_learns(backend):
    learner = make_learner(3, 2, SACConfig(hidden_sizes=(8,), batch_size=1), backend=backend)
    before = learner.actor.flat.clone()
    learner.update(OneTransition(), gradient_steps=2)
    assert learner.gradient_updates == 2
    assert not torch.equal(learner.actor.flat, before)


def test_a_backend_that_does_not_exist_is_refused_by_name():
    with pytest.raises(ValueError, match="backend: expected one of 'fused', 'reference', got 'jax'"):
        make_learner(3, 2, backend="jax")


@every_backend
@pytest.mark.parametrize(("sizes", "name"), [((0, 2), "observation_dim"), ((3, 0), "action_dim")])
def test_sizes_below_one_are_refused(sizes, name, backend):
    with pytest.raises(ValueError, match=f"{name}: expected an int >= 1, got 0"):
        make_learner(*sizes, backend=backend)


@pytest.mark.parametrize(
    ("gradient_steps", "batch_size", "error", "message"),
    [
        (-1, 1, ValueError, "gradient_steps: expected an int >= 0, got -1"),
        (0.5, 1, TypeError, "gradient_steps: expected an int >= 0, got 0.5"),
        (True, 1, TypeError, "gradient_steps: expected an int >= 0, got True"),
        ("1", 1, TypeError, "gradient_steps: expected an int >= 0, got '1'"),
        (1, 2, ValueError, r"replay: expected at least batch_size \(2\) transitions, got 1"),
    ],
)
def test_update_arguments_are_checked(gradient_steps, batch_size, error, message):
    check_update_arguments(OneTransition(), 0, batch_size=1)
    with pytest.raises(error, match=message):
        check_update_arguments(OneTransition(), gradient_steps, batch_size)


@every_backend
@pytest.mark.parametrize("one", [np.int64(1), np.int32(1), 1.0])
def test_gradient_steps_may_be_a_whole_number_of_any_kind(backend, one):
    learner = make_learner(3, 2, SACConfig(hidden_sizes=(8,), batch_size=1), backend=backend)
    learner.update(OneTransition(), one)
    assert learner.gradient_updates == 1


@every_backend
def test_reads_of_another_thread_do_not_disturb_updates(backend):
    learner = make_learner(3, 2, SACConfig(hidden_sizes=(8,), batch_size=1), backend=backend)
    outcomes = []
    done = threading.Event()

    def read():
        while not done.is_set():
            try:
                outcomes.append(int(learner.state_dict()["gradient_updates"]))
            except RuntimeError as error:
                outcomes.append(str(error))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(200):
            learner.update(OneTransition())
            learner.wait()
            learner.state_dict()
    finally:
        done.set()
        reader.join()
    assert learner.gradient_updates == 200
    counts = [outcome for outcome in outcomes if isinstance(outcome, int)]
    assert counts == sorted(counts)
    assert counts
    assert {outcome for outcome in outcomes if isinstance(outcome, str)} <= {"learner: in use by another thread"}


def test_an_update_waits_for_a_read_and_keeps_others_out():
    turn, updated = Turn(), threading.Event()

    def update():
        with turn:
            updated.set()

    updater = threading.Thread(target=update)
    with turn.reading():
        updater.start()
        while not turn._updating.locked():
            assert updater.is_alive()
            time.sleep(1e-3)
        assert not updated.wait(0.05)
        for begin in (turn, turn.reading()):
            with pytest.raises(RuntimeError, match="learner: in use by another thread"), begin:
                pass
    assert updated.wait(60)
    updater.join()
    with turn, pytest.raises(RuntimeError, match="learner: in use by another thread"), turn.reading():
        pass


def test_who_would_wait_for_ever_is_refused():
    """A signal's handler comes in the middle of its own thread's read; a forked process lacks the reading thread."""
    turn = Turn()
    with turn.reading():
        for begin in (turn, turn.reading()):
            with pytest.raises(RuntimeError, match="learner: in use by another thread"), begin:
                pass
    reading, leave = threading.Event(), threading.Event()

    def read():
        with turn.reading():
            reading.set()
            leave.wait(60)

    reader = threading.Thread(target=read)
    reader.start()
    assert reading.wait(60)
    turn._process = os.getppid()  # as a child finds it
    with pytest.raises(RuntimeError, match="learner: in use by another thread"), turn.reading():
        pass
    leave.set()
    reader.join()


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


@pytest.mark.parametrize(("backend", "where"), [("fused", "with torch.float32 on cpu"), ("reference", "in the ref")])
def test_products_in_less_than_float32_are_refused_where_they_are_not(backend: str, where: str) -> None:
    config = SACConfig(matmul_precision="tf32")
    with pytest.raises(ValueError, match=f"matmul_precision: expected 'float32' {where}.*got 'tf32'"):
        make_learner(4, 3, config, backend=backend)


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_on_the_cpu_there_is_nothing_to_wait_for(backend: str) -> None:
    make_learner(4, 3, SACConfig(), backend=backend).wait()


@every_backend
def test_a_mean_over_many_updates_has_the_precision_of_one(backend: str) -> None:
    """The temperature is fixed, so its mean is the value itself; a float32 sum of 693 of them is 1e-5 off."""
    learner = make_learner(3, 2, SACConfig(hidden_sizes=(8,), batch_size=1, alpha=0.43), backend=backend)
    assert learner.update(OneTransition(), 693)["alpha"] == torch.tensor(0.43).item()


class Alarm(Exception):
    pass


@every_backend
def test_a_signal_is_heeded_between_updates(backend: str) -> None:
    """Ten thousand of these updates take ten seconds and more; the learner is whole, and goes on."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise Alarm

    large = SACConfig(hidden_sizes=(256, 256), batch_size=256)
    learner, replay = make_learner(4, 3, large, backend=backend), random_replay(256)
    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        with pytest.raises(Alarm):
            learner.update(replay, 10_000)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    made = learner.gradient_updates
    assert made < 5_000
    state = learner.state_dict()
    assert state["gradient_updates"] == made
    assert torch.equal(
        torch.cat([state[name].flatten() for name in state if name.startswith("actor.")]), learner.actor.flat
    )
    learner.update(replay, 2)
    assert learner.gradient_updates == made + 2


@every_backend
def test_updates_end_when_they_should_and_not_half_way(backend: str) -> None:
    """What follows is what would have followed: parameters, noise, minibatches."""
    learner, twin = (make_learner(4, 3, make_config(), backend=backend, seed=3) for _ in range(2))
    replay, same_replay = random_replay(), random_replay()
    metrics = learner.update(replay, 100_000, should_stop=lambda: learner.gradient_updates >= 4)
    made = learner.gradient_updates
    assert 4 <= made < 100_000
    assert metrics.to_dict() == twin.update(same_replay, made).to_dict()
    for each, its_replay in ((learner, replay), (twin, same_replay)):
        each.update(its_replay, 3, should_stop=lambda: False)
    assert_states_equal(learner.state_dict(), twin.state_dict())
    assert learner.gradient_updates == made + 3
    learner.update(replay, 1, should_stop=lambda: True)  # at least one
    assert learner.gradient_updates == made + 4


@every_backend
def test_a_group_ends_its_updates_when_it_should(backend: str) -> None:
    learners = [make_learner(4, 3, make_config(), backend=backend, seed=seed) for seed in (1, 2)]
    outcomes = side_by_side(learners).update(
        {0: (random_replay(), 100_000), 1: (random_replay(), 100_000)}, should_stop=lambda: True
    )
    assert [type(outcome) for outcome in outcomes.values()] == [Metrics, Metrics]
    assert all(1 <= learner.gradient_updates < 100_000 for learner in learners)
