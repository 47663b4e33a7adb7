"""How the GPU's engine is driven, with a native engine that works on the host's memory in its place."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from learner_cases import A, B, O, assert_states_equal, make_config, random_batch, random_noise, random_replay

from sacfast import _C, engines
from sacfast.fused import FusedLearner, _settings

ROWS = 64  # of a replay buffer
TYPES: dict[Any, Any] = {np.float32: ctypes.c_float, np.float64: ctypes.c_double, np.int64: ctypes.c_int64}


def array_at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((TYPES[dtype] * count).from_address(address)).reshape(shape)


class QueueOnTheHost:
    """What `_C.GpuEngine32` offers, by the CPU's: done at once, but what came of it is told by `collect` alone."""

    def __init__(self, settings: _C.UpdateSettings, learners: int, memory: int, stream: int) -> None:
        assert (learners, stream) == (1, 77)
        assert not array_at(memory, (2,), np.int64).any()
        self.settings, self.engine = settings, _C.Engine32(settings)
        self.is_pending, self.fault = False, ""
        self.width = 2 * settings.observation_dim + settings.action_dim + 2

    @staticmethod
    def bytes(settings: _C.UpdateSettings, learners: int) -> int:
        return 64 * learners

    @property
    def counters(self) -> _C.UpdateCounters:
        assert not self.is_pending, "not waited for"
        return self.engine.counters

    def enqueue(self, **call: Any) -> None:
        assert (call["stream"], call["rows_apart"]) == (77, 0)
        self.is_pending = True
        if not self.fault:
            rows = array_at(call["rows"], (ROWS, self.width), np.float32)
            index = array_at(call["index"], (call["steps"], self.settings.batch_size), np.int64)
            shape = (self.settings.batch_size, self.settings.action_dim)
            noise = (array_at(call[key], shape, np.float32) if call[key] else None for key in ("next_noise", "noise"))
            result = self.engine.update(rows, index, 1, *noise)
            self.fault = result["fault"]
            array_at(call["metrics"], (len(engines.METRICS),), np.float64)[:] = list(result["metrics"].values())
        self.read("actor", "parameters", call["actors"])

    def collect(self) -> dict[str, Any]:
        self.is_pending, fault, self.fault = False, self.fault, ""
        return {"fault": fault, "gradient_updates": self.engine.counters.gradient_updates}

    def size(self, network: str) -> int:
        pair = self.settings.observation_dim + self.settings.action_dim
        inputs, outputs = (
            (self.settings.observation_dim, 2 * self.settings.action_dim) if network == "actor" else (pair, 1)
        )
        sizes = [inputs, *self.settings.hidden_sizes, outputs]
        return sum((before + 1) * after for before, after in pairwise(sizes))

    def read(self, network: str, part: str, into: int) -> None:
        self.engine.read(network, part, array_at(into, (self.size(network),), np.float32))

    def write(self, network: str, part: str, values: int) -> None:
        self.engine.write(network, part, array_at(values, (self.size(network),), np.float32))


class Stream:
    cuda_stream = 77

    def synchronize(self) -> None:
        pass

    def wait_event(self, event: "Event") -> None:
        assert isinstance(event, Event)


class Event:
    done = False

    def record(self) -> None:
        pass

    def query(self) -> bool:
        return Event.done


@pytest.fixture
def queued(monkeypatch: pytest.MonkeyPatch) -> FusedLearner:
    """A learner with the GPU's engine, of the same start as `FusedLearner(O, A, make_config(), seed=3)`."""

    @contextmanager
    def device(_: object) -> Iterator[None]:
        yield

    monkeypatch.setattr(_C, "GpuEngine32", QueueOnTheHost, raising=False)
    monkeypatch.setattr(torch.cuda, "device", device)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _=None: Stream())
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(Event, "done", False)
    learner = FusedLearner(O, A, make_config(), seed=3)
    state = learner.state_dict()
    learner._engine = engines.GpuEngine(_settings(O, A, learner.config), torch.device("cpu"), torch.float32)
    learner.load_state_dict(state)
    return learner


def twin() -> FusedLearner:
    return FusedLearner(O, A, make_config(), seed=3)


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
    queued._engine.run(rows, index, noise["next_noise"], noise["noise"], queued.actor.flat.detach())
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
    Event.done = True
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


def test_phases_are_timed_on_the_cpu_only(queued: FusedLearner) -> None:
    with pytest.raises(RuntimeError, match="profile: phases are timed on the CPU"):
        queued.profile(random_replay(), 1)


def test_two_threads_and_forked_children_are_refused(queued: FusedLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    replay, process = random_replay(), os.getpid()
    with queued._engine._turn, pytest.raises(RuntimeError, match="learner: in use by another thread"):
        queued.update(replay, 1)
    monkeypatch.setattr(os, "getpid", lambda: process + 1)
    with pytest.raises(RuntimeError, match="learner: made before this process was forked"):
        queued.update(replay, 1)
