"""What the replay buffer does with views, with rows beyond 2^31 elements, and between threads."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
import torch
from bad_inputs import LEARNERS, WIDTH, in_threads, normal, transitions
from learner_cases import A, O, assert_states_equal, random_batch
from torch import Tensor

from sacfast import ReplayBuffer
from sacfast.types import Batch


def test_replay_stores_any_view() -> None:
    fields = [
        np.asfortranarray(normal(5, O).numpy()),
        normal(5, 3 * A).tanh().numpy()[:, ::-3],
        np.broadcast_to(np.float32(2), (5,)),
        normal(O).expand(5, O),
        np.ones(10, np.bool_)[::2],
    ]
    replay, copies = ReplayBuffer(8, O, A), ReplayBuffer(8, O, A)
    replay.add(*fields)
    copies.add(*(np.array(np.asarray(field)) for field in fields))
    assert torch.equal(replay.rows[:5], copies.rows[:5])


def test_replay_stores_views_of_its_own_rows() -> None:
    """Around the end of the ring, where rows would be overwritten before they are read; and with fields exchanged."""
    replay = ReplayBuffer(5, O, A)
    replay.add(*transitions(5))
    replay.add(*transitions(3, 10))
    assert replay.rows[:, 0].tolist() == [10, 11, 12, 3, 4]
    observation, action, reward, next_observation, _ = replay.rows[2:].split((O, A, 1, O, 1), 1)
    replay.add(observation, action, reward.squeeze(1), next_observation, np.ones(3, np.bool_))
    assert replay.rows[:, 0].tolist() == [4, 11, 12, 12, 3]
    replay = ReplayBuffer(4, 1, 1)
    fields = normal(4, 1, seed=1), normal(4, 1, seed=2), normal(4), normal(4, 1, seed=3)
    replay.add(*(field.tanh() for field in fields), torch.ones(4).bool())
    rows = replay.rows.clone()
    replay.add(replay.rows[:, 3:4], replay.rows[:, 0:1], replay.rows[:, 1], replay.rows[:, 0:1], torch.ones(4).bool())
    assert torch.equal(replay.rows, rows[:, [3, 0, 1, 0, 4]])


def test_a_replay_buffer_that_cannot_fit_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"capacity: 1000000000000 transitions of 13 float32 need 52000\.00 GB, but cpu"
    ):
        ReplayBuffer(10**12, O, A)
    with pytest.raises(ValueError, match=r"observation_dim: expected an int <= 4611686018427387904, got 9"):
        ReplayBuffer(1, 2**63, A)
    with pytest.raises(ValueError, match=r"capacity: 1 transitions of .* float32 need"):
        ReplayBuffer(1, O, 2**61)


def test_threads_may_share_a_replay_buffer(monkeypatch: pytest.MonkeyPatch) -> None:
    replay = ReplayBuffer(14, O, A)
    replay.add(*transitions(14))
    pieces, write = replay._pieces, replay._write_host

    def slow_pieces(count: int) -> Any:
        chosen = pieces(count)
        time.sleep(0.05)  # for another thread to choose the same rows
        return chosen

    def slow_write(columns: Any, fields: Any, count: int) -> None:
        for column, field in zip(columns, fields, strict=True):
            write((column,), (field,), count)  # and for one to sample rows that are half written

    monkeypatch.setattr(replay, "_pieces", slow_pieces)
    monkeypatch.setattr(replay, "_write_host", slow_write)
    samples: list[Batch] = []

    def sample() -> None:
        for _ in range(20):
            samples.append(replay.sample(64))
            time.sleep(0.02)

    in_threads(lambda: replay.add(*transitions(7, 100)), lambda: replay.add(*transitions(7, 200)), sample)
    assert sorted(replay.rows[:, 0].tolist()) == [*range(100, 107), *range(200, 207)]
    for batch in samples:
        assert torch.equal(batch.observation[:, 0], batch.reward)
        assert torch.equal(batch.next_observation[:, -1], batch.reward)


def test_rows_beyond_2_31_elements_are_stored_sampled_and_learned_from(sparse: Tensor) -> None:
    """The rows before and behind the ring's end, where a 32-bit index would have lost its way long before."""
    capacity = len(sparse) // WIDTH
    assert (capacity - 4) * WIDTH > 2**31
    far, near = ReplayBuffer(8, O, A), ReplayBuffer(8, O, A)
    far.rows = sparse[: capacity * WIDTH].view(capacity, WIDTH)  # the memory of a buffer of that capacity
    far._columns = far._split(far.rows)
    far._host_rows, far._host_columns = far.rows.numpy(), tuple(column.numpy() for column in far._columns)
    far.capacity = far._size = capacity
    far._position, near._position = capacity - 4, 4
    near._size = 8
    batch = random_batch(0, rows=8)
    for replay in (far, near):
        replay.add(*batch[:4], batch.terminated.bool())
    assert torch.equal(far.rows[-4:], near.rows[-4:])
    assert torch.equal(far.rows[:4], near.rows[:4])

    def draw_as_far(count: int) -> Tensor:
        numbers = near_draw(count)
        return torch.where(numbers < 4, numbers, capacity - 8 + numbers)

    near_draw = ReplayBuffer.draw.__get__(near)
    samples = []
    for replay, draw in ((far, draw_as_far), (near, near_draw)):
        near._generator.manual_seed(3)
        replay.draw = draw  # type: ignore[method-assign]
        samples.append(replay.sample(64))
    for actual, expected in zip(*samples, strict=True):
        assert torch.equal(actual, expected)
    for make in (LEARNERS["fused"], LEARNERS["reference"]):
        states = []
        for replay in (far, near):
            near._generator.manual_seed(4)
            learner = make({"batch_size": 8})
            learner.update(replay, 3)
            states.append(learner.state_dict())
        assert_states_equal(*states)
