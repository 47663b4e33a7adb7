"""How the GPU's engine is driven, with a native engine that works on the host's memory in its place."""

import ctypes
import gc
import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import A, B, O, assert_states_equal, make_config, random_batch, random_noise, random_replay

from sacfast import _C, SAC, engines, fused, learn_together, trainer
from sacfast.fused import FusedGroup, FusedLearner
from sacfast.types import Metrics

ROWS = 64  # of a replay buffer
TYPES: dict[Any, Any] = {np.float32: ctypes.c_float, np.float64: ctypes.c_double, np.int64: ctypes.c_int64}


def array_at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((TYPES[dtype] * count).from_address(address)).reshape(shape)


class QueueOnTheHost:
    """What `_C.GpuEngine32` offers, by the CPU's: done at once, but what came of it is told by `collect` alone."""

    calls = 0
    done = False

    def __init__(self, settings: _C.UpdateSettings, learners: int, memory: int, stream: int) -> None:
        self.streams = [stream]
        self.settings, self.engines = settings, [_C.Engine32(settings) for _ in range(learners)]
        self.is_pending, self.faults = False, [""] * learners
        self.selected = 0
        self.width = 2 * settings.observation_dim + settings.action_dim + 2

    @staticmethod
    def bytes(settings: _C.UpdateSettings, learners: int) -> int:
        return 64 * learners

    @property
    def counters(self) -> _C.UpdateCounters:
        assert not self.is_pending, "not waited for"
        return self.engines[self.selected].counters

    def use_stream(self, stream: int) -> None:
        self.streams.append(stream)

    def is_done(self) -> bool:
        return QueueOnTheHost.done

    def enqueue(self, work: list[tuple[int, int, int, int, int]], next_noise: int, noise: int, metrics: int) -> None:
        QueueOnTheHost.calls += 1
        self.is_pending = True
        sums = array_at(metrics, (len(work), len(engines.METRICS)), np.float64)
        sums[:] = 0
        shape = (self.settings.batch_size, self.settings.action_dim)
        given = [array_at(each, shape, np.float32) if each else None for each in (next_noise, noise)]
        for learner, (rows, count, index, steps, actor) in enumerate(work):
            self.select(learner)
            if actor:
                self.write("actor", "parameters", actor)
            if steps and not self.faults[learner]:
                result = self.engines[learner].update(
                    array_at(rows, (count, self.width), np.float32),
                    array_at(index, (steps, self.settings.batch_size), np.int64),
                    1,
                    array_at(actor, (self.size("actor"),), np.float32),
                    sums[learner],
                    *given,
                )
                self.faults[learner] = result["fault"]
            if actor:
                self.read("actor", "parameters", actor)

    def collect(self) -> list[dict[str, Any]]:
        self.is_pending, faults, self.faults = False, self.faults, [""] * len(self.faults)
        return [
            {"fault": fault, "gradient_updates": engine.counters.gradient_updates}
            for fault, engine in zip(faults, self.engines, strict=True)
        ]

    def select(self, learner: int) -> None:
        self.selected = learner

    def size(self, network: str) -> int:
        pair = self.settings.observation_dim + self.settings.action_dim
        inputs, outputs = (
            (self.settings.observation_dim, 2 * self.settings.action_dim) if network == "actor" else (pair, 1)
        )
        sizes = [inputs, *self.settings.hidden_sizes, outputs]
        return sum((before + 1) * after for before, after in pairwise(sizes))

    def read(self, network: str, part: str, into: int) -> None:
        self.engines[self.selected].read(network, part, array_at(into, (self.size(network),), np.float32))

    def write(self, network: str, part: str, values: int) -> None:
        self.engines[self.selected].write(network, part, array_at(values, (self.size(network),), np.float32))


class Stream:
    def __init__(self, number: int = 77) -> None:
        self.cuda_stream = number


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something that passes for a GPU: the host."""

    @contextmanager
    def device(_: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(_C, "GpuEngine32", QueueOnTheHost, raising=False)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: Stream())
    monkeypatch.setattr(QueueOnTheHost, "done", False)


@pytest.fixture
def queued(gpu: None) -> FusedLearner:
    """A learner with the GPU's engine, of the same start as `twin()`."""
    learner = twin()
    FusedGroup([learner])
    return learner


def twin(seed: int = 3) -> FusedLearner:
    return FusedLearner(O, A, make_config(), seed=seed)


def test_queued_updates_are_those_made_at_once(queued: FusedLearner) -> None:
    expected, replay, same_replay = twin(), random_replay(), random_replay()
    for steps in (1, 3, 2):
        queued.update(replay, steps)
        expected.update(same_replay, steps)
    assert queued.gradient_updates == 6
    queued.wait()
    assert torch.equal(queued.actor.flat, expected.actor.flat)
    assert_states_equal(queued.state_dict(), expected.state_dict())


def test_metrics_are_those_of_updates_made_at_once(queued: FusedLearner) -> None:
    expected = twin().update(random_replay(), 4)
    assert queued.update(random_replay(), 4).to_dict() == expected.to_dict()


def test_given_noise_reaches_the_engine(queued: FusedLearner) -> None:
    noise = random_noise(queued.config, 1, torch.float32)
    small = random_batch(1)
    rows = torch.zeros(ROWS, 2 * O + A + 2)
    rows[:B] = torch.cat([column.reshape(B, -1) for column in small], 1)
    index = torch.arange(B)[None]
    sums = torch.zeros(len(engines.METRICS), dtype=torch.float64)
    queued._engine.run(rows, index, noise["next_noise"], noise["noise"], queued.actor.flat.detach(), sums)
    expected = twin()
    expected.update_batch(small, **noise)
    assert_states_equal(queued.state_dict(), expected.state_dict())


def test_a_fault_is_raised_by_the_next_call_that_finds_the_work_done(queued: FusedLearner) -> None:
    good, bad = random_replay(), random_replay()
    bad.rows[:, O + A] = torch.inf
    queued.update(good, 1)
    queued.update(bad, 2)
    queued.update(good, 2)  # behind it: not made
    assert queued.gradient_updates == 5  # as far as is known
    QueueOnTheHost.done = True
    with pytest.raises(FloatingPointError, match="update 2: critic_loss is not finite; the learner is as it was after"):
        queued.update(good, 1)
    assert queued.gradient_updates == 1
    expected = twin()
    expected.update(random_replay(), 1)
    after, before = queued.state_dict(), expected.state_dict()
    assert_states_equal(after, before)
    queued.update(good, 1)
    queued.wait()
    assert queued.gradient_updates == 2


def test_a_row_number_that_the_buffer_has_no_row_for_is_named(
    queued: FusedLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernels find it: tests/csrc/test_kernels.cpp."""
    queued.update(random_replay(), 1)
    (outcome,) = queued._engine.engines._native.collect()
    fault = {**outcome, "fault": "index: expected rows in [0, 64), got 99"}
    monkeypatch.setattr(QueueOnTheHost, "collect", lambda _: [fault])
    with pytest.raises(
        ValueError, match=r"^update 2: index: expected rows in \[0, 64\), got 99; the learner is as it w"
    ):
        queued.wait()


def test_work_that_the_gpu_refuses_is_an_error_and_what_was_queued_before_counts(
    queued: FusedLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    enqueue = QueueOnTheHost.enqueue

    def one_alone(self: QueueOnTheHost, work: list[tuple[int, int, int, int, int]], *rest: int, **call: int) -> None:
        enqueue(self, [(*each[:3], 1, each[4]) for each in work], *rest, **call)
        raise RuntimeError("learner: cudaGraphLaunch failed: out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(QueueOnTheHost, "enqueue", one_alone)
        with pytest.raises(RuntimeError, match="out of memory"):
            queued.update(random_replay(), 3)
    queued.wait()
    assert queued.gradient_updates == 1
    queued.update(random_replay(), 1)
    assert queued.gradient_updates == 2


def test_what_is_asked_for_on_another_stream_is_queued_there(
    queued: FusedLearner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine orders it behind its work elsewhere, and torch keeps the memory for that stream's work."""
    kept: list[tuple[torch.Tensor, int]] = []
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda memory, stream: kept.append((memory, stream.cuda_stream)), raising=False
    )
    learner_engines = queued._engine.engines
    into = torch.empty_like(queued.actor.flat.detach())
    asked = (
        lambda: queued.update(random_replay(), 1),
        lambda: queued._engine.read("actor", "parameters", into),
        lambda: queued._engine.write("actor", "parameters", into),
        lambda: queued._engine.counters,
        queued.wait,
    )
    expected = [77]
    for number, ask in enumerate(asked):
        queued.update(random_replay(), 1)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None, number=number: Stream(100 + number))
        ask()
        expected.append(100 + number)
        assert learner_engines._native.streams == expected
    assert [number for _, number in kept] == expected[1:]
    assert all(memory is learner_engines._memory for memory, _ in kept)


def test_a_learner_that_is_let_go_gives_its_memory_back_at_once(queued: FusedLearner) -> None:
    gc.collect()
    gc.disable()
    try:
        engines_alive = weakref.ref(queued._engine.engines)
        queued._engine = twin()._engine
        assert engines_alive() is None
    finally:
        gc.enable()


def test_a_state_can_be_saved_while_a_fault_is_pending(queued: FusedLearner) -> None:
    bad = random_replay()
    bad.rows[:, O + A] = torch.inf
    queued.update(bad, 1)
    assert_states_equal(queued.state_dict(), twin().state_dict())
    with pytest.raises(FloatingPointError, match="update 1: critic_loss"):
        queued.wait()
    queued.wait()  # it is told once


def test_a_loaded_state_counts(queued: FusedLearner) -> None:
    other = FusedLearner(O, A, make_config(), seed=8)
    other.update(random_replay(), 5)
    queued.load_state_dict(other.state_dict())
    assert queued.gradient_updates == 5
    assert torch.equal(queued.actor.flat, other.actor.flat)


def test_a_written_actor_counts_from_the_next_call_on(queued: FusedLearner) -> None:
    expected, replay, same_replay = twin(), random_replay(), random_replay()
    for value in (0.25, -0.5):
        for learner in (queued, expected):
            learner.actor.flat[:5] = value
        queued.update(replay, 2)
        expected.update(same_replay, 2)
    bad = random_replay()
    bad.rows[:, O + A] = torch.inf
    for learner in (queued, expected):
        learner.actor.flat[:5] = 0.125
    queued.update(bad, 1)
    assert_states_equal(queued.state_dict(), expected.state_dict())
    for learner in (queued, expected):
        learner.actor.flat[:5] = 0.0625
    assert_states_equal(queued.state_dict(), expected.state_dict())


def test_actors_of_a_group_may_be_written_to_and_not_replaced(gpu: None) -> None:
    learners, expected = [twin(3), twin(4)], twin(4)
    for learner in (learners[1], expected):
        learner.actor.flat[:5] = 0.25
    group = FusedGroup(learners)  # which takes it on
    for value in (-0.5, 0.125):
        for learner in (learners[1], expected):
            learner.actor.flat[:5] = value
        group.update({0: (random_replay(), 2), 1: (random_replay(), 1)})
        expected.update(random_replay(), 1)
    group.update({0: (random_replay(), 1)})  # without the one that is written to
    assert_states_equal(learners[1].state_dict(), expected.state_dict())
    learners[0].actor.layers[0].weight.data = torch.zeros(16, O)
    outcomes = group.update({0: (random_replay(), 1), 1: (random_replay(), 1)})
    assert isinstance(outcomes[0], RuntimeError)
    assert str(outcomes[0]).startswith("learner.actor: expected parameters in the memory")
    assert isinstance(outcomes[1], Metrics)


def test_phases_are_timed_on_the_cpu_only(queued: FusedLearner) -> None:
    with pytest.raises(RuntimeError, match="profile: phases are timed on the CPU"):
        queued.profile(random_replay(), 1)


def test_two_threads_and_forked_children_are_refused(queued: FusedLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    replay, process = random_replay(), os.getpid()
    with queued._turn, pytest.raises(RuntimeError, match="learner: in use by another thread"):
        queued.update(replay, 1)
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    with pytest.raises(RuntimeError, match="learner: made before this process was forked"):
        queued.update(replay, 1)


def test_learners_of_a_group_are_served_by_one_launch_and_are_each_as_if_alone(gpu: None) -> None:
    seeds, calls = (3, 4, 5), QueueOnTheHost.calls
    group, alone = FusedGroup([twin(seed) for seed in seeds]), [twin(seed) for seed in seeds]
    replays, own_replays = ([random_replay() for _ in seeds] for _ in range(2))
    for steps in ((2, 2, 2), (1, 0, 3), (0, 1, 0)):
        outcomes = group.update({i: (replays[i], count) for i, count in enumerate(steps)})
        for outcome, learner, replay, count in zip(outcomes.values(), alone, own_replays, steps, strict=True):
            assert isinstance(outcome, Metrics)
            expected = learner.update(replay, count)
            assert not count or outcome.to_dict() == expected.to_dict()
    assert QueueOnTheHost.calls == calls + 3
    assert [learner.gradient_updates for learner in group.learners] == [3, 3, 5]
    for learner, expected in zip(group.learners, alone, strict=True):
        learner.wait()
        assert torch.equal(learner.actor.flat, expected.actor.flat)
        assert_states_equal(learner.state_dict(), expected.state_dict())


def test_gradient_steps_of_a_group_may_be_whole_numbers_of_any_kind(gpu: None) -> None:
    group: Any = FusedGroup([twin(3), twin(4)])
    outcomes = group.update({0: (random_replay(), np.int64(2)), 1: (random_replay(), 1.0)})
    assert all(isinstance(outcome, Metrics) for outcome in outcomes.values())
    assert [learner.gradient_updates for learner in group.learners] == [2, 1]
    (outcome,) = group.update({0: (random_replay(), 0.5)}).values()
    assert str(outcome) == "gradient_steps: expected an int >= 0, got 0.5"


def test_a_learner_of_a_group_can_be_used_alone(gpu: None) -> None:
    group, expected = FusedGroup([twin(3), twin(4)]), twin(4)
    group.learners[1].update(random_replay(), 2)
    expected.update(random_replay(), 2)
    assert [learner.gradient_updates for learner in group.learners] == [0, 2]
    assert_states_equal(group.learners[1].state_dict(), expected.state_dict())
    assert_states_equal(group.learners[0].state_dict(), twin(3).state_dict())


def test_more_updates_than_a_call_makes_are_split(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "QUEUED_PER_CALL", 2)
    group, expected = FusedGroup([twin(3), twin(4)]), [twin(3), twin(4)]
    outcomes = group.update({0: (random_replay(), 5), 1: (random_replay(), 2)})
    for outcome, learner, count in zip(outcomes.values(), expected, (5, 2), strict=True):
        assert isinstance(outcome, Metrics)
        # Summed in two roundings more or less.
        assert outcome.to_dict() == pytest.approx(learner.update(random_replay(), count).to_dict(), rel=1e-5)
    for one, other in zip(group.learners, expected, strict=True):
        assert_states_equal(one.state_dict(), other.state_dict())


def test_one_of_a_group_that_fails_stops_none_of_the_others(gpu: None) -> None:
    bad = random_replay()
    bad.rows[:, O + A] = torch.inf
    group, work = FusedGroup([twin(3), twin(4)]), {0: (bad, 1), 1: (random_replay(), 1)}
    group.update(work)
    group.update(work)
    QueueOnTheHost.done = True
    failure, metrics = group.update(work).values()
    assert isinstance(failure, FloatingPointError)
    assert "update 1: critic_loss is not finite" in str(failure)
    assert isinstance(metrics, Metrics)
    assert [learner.gradient_updates for learner in group.learners] == [0, 3]
    refusal, metrics = group.update({0: (random_replay(B - 1), 1), 1: (random_replay(), 1)}).values()
    assert isinstance(refusal, ValueError)
    assert isinstance(metrics, Metrics)
    assert list(group.update({1: (random_replay(), 1)})) == [1]
    assert group.learners[1].gradient_updates == 5


def test_queued_updates_end_when_they_should(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "QUEUED_PER_CALL", 2)
    group, alone = FusedGroup([twin(3), twin(4)]), [twin(3), twin(4)]
    outcomes = group.update({0: (random_replay(), 7), 1: (random_replay(), 1)}, should_stop=lambda: True)
    for outcome, learner, made in zip(outcomes.values(), alone, (2, 1), strict=True):
        assert isinstance(outcome, Metrics)
        assert outcome.to_dict() == learner.update(random_replay(), made).to_dict()
    assert [learner.gradient_updates for learner in group.learners] == [2, 1]


def test_models_that_learn_together_are_as_if_alone(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def models() -> list[SAC]:
        # Hopper falls: its seeds do not store equally many transitions a step.
        fields: dict[str, Any] = {"num_envs": 4, "learning_starts": 40, "evaluation_episodes": 0, "progress": False}
        fields |= {"hidden_sizes": (16,), "batch_size": 16, "replay_capacity": ROWS, "utd_ratio": 0.5}
        return [SAC("Hopper-v5", seed=seed, **fields) for seed in (1, 2, 3)]

    monkeypatch.setattr(trainer, "side_by_side", FusedGroup)
    together, alone = models(), models()
    calls = QueueOnTheHost.calls
    learn_together(together, 400)
    assert 90 <= QueueOnTheHost.calls - calls < 2 * 90, "a call serves several models, which alone make 90 each"
    for one, other in zip(together, alone, strict=True):
        other.learn(400)
        assert one.learner.gradient_updates == other.learner.gradient_updates == 180
        assert_states_equal(one.learner.state_dict(), other.learner.state_dict())
