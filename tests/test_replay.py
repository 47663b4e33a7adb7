"""The ring keeps exactly the last transitions, and samples them uniformly and reproducibly."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sacfast import memory
from sacfast.replay import ReplayBuffer
from sacfast.types import Batch, Transition

_FIELDS = Transition._fields
_O, _A = 3, 2
_DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
        ],
    ),
]


def _transition(numbers: list[int], observation_dim: int = _O, action_dim: int = _A) -> Transition:
    """Transitions, up to 1,000, whose every entry tells the transition's number and the field and column it is in."""
    number = np.asarray(numbers, np.float32)[:, None]
    return Transition(
        number + 0.1 + np.arange(observation_dim, dtype=np.float32) / 1024,
        (number + 0.3 + np.arange(action_dim, dtype=np.float32) / 1024) / 1024,
        number[:, 0] + np.float32(0.5),
        number + 0.7 + np.arange(observation_dim, dtype=np.float32) / 1024,
        number[:, 0] % 3 == 0,
    )


def _numbers(batch: Batch) -> np.ndarray:
    return (batch.reward.cpu().numpy() - 0.5).astype(np.int64)


def _contents(replay: ReplayBuffer) -> list[int]:
    """The numbers of the transitions held, by row."""
    reward = replay.rows[: len(replay), _O + _A]
    return (reward.cpu().numpy() - 0.5).astype(np.int64).tolist()


def _with(field: np.ndarray | torch.Tensor, value: float) -> np.ndarray | torch.Tensor:
    """Return a float32 field [4, ...] whose last entry is `value`."""
    field = np.float32(field) if isinstance(field, np.ndarray) else field
    field.reshape(-1)[-1] = value
    return field


def _filled(count: int, capacity: int | None = None, **kwargs: Any) -> ReplayBuffer:
    replay = ReplayBuffer(capacity or count, _O, _A, **kwargs)
    replay.add(*_transition(list(range(count))))
    return replay


# Storing


@pytest.mark.parametrize("device", _DEVICES)
def test_what_is_sampled_is_what_was_added_field_by_field(device):
    replay = _filled(7, capacity=10, device=device)
    batch = replay.sample(64)
    expected = _transition(_numbers(batch).tolist())
    assert set(_numbers(batch)) == set(range(7))
    assert Batch._fields == _FIELDS
    for name, got, want in zip(_FIELDS, batch, expected, strict=True):
        assert (got.dtype, got.device.type) == (torch.float32, device)
        np.testing.assert_array_equal(got.cpu().numpy(), want.astype(np.float32), err_msg=name)


@pytest.mark.parametrize("device", _DEVICES)
def test_wrap_around_replaces_exactly_the_oldest(device):
    replay = ReplayBuffer(5, _O, _A, device=device)
    replay.add(*_transition([0, 1, 2]))
    assert (len(replay), replay.position, _contents(replay)) == (3, 3, [0, 1, 2])
    replay.add(*_transition([3, 4, 5, 6]))
    assert (len(replay), replay.position, _contents(replay)) == (5, 2, [5, 6, 2, 3, 4])
    replay.add(*_transition([7, 8, 9]))  # up to the very end
    assert (len(replay), replay.position, _contents(replay)) == (5, 0, [5, 6, 7, 8, 9])
    replay.add(*_transition([10, 11, 12, 13, 14]))  # the whole ring at once
    assert (len(replay), replay.position, _contents(replay)) == (5, 0, [10, 11, 12, 13, 14])
    replay.add(*_transition([15]))
    replay.add(*_transition([16, 17, 18, 19, 20]))
    assert (len(replay), replay.position, _contents(replay)) == (5, 1, [20, 16, 17, 18, 19])


@settings(deadline=None)
@given(
    capacity=st.integers(1, 12),
    counts=st.lists(st.integers(0, 12), max_size=12),
    observation_dim=st.integers(1, 5),
    action_dim=st.integers(1, 4),
)
def test_the_ring_holds_what_a_list_would_hold(capacity, counts, observation_dim, action_dim):
    replay = ReplayBuffer(capacity, observation_dim, action_dim)
    model: list[int] = []
    added = 0
    for count in counts:
        count = min(count, capacity)
        numbers = list(range(added, added + count))
        replay.add(*_transition(numbers, observation_dim, action_dim))
        model, added = (model + numbers)[-capacity:], added + count
        assert len(replay) == len(model)
        assert replay.position == added % capacity
    if model:
        oldest = replay.position if len(model) == capacity else 0
        in_order = torch.roll(replay.rows[: len(replay)], -oldest, 0).numpy()
        fields = _transition(model, observation_dim, action_dim)
        expected = np.concatenate([np.reshape(field, (len(model), -1)) for field in fields], axis=1)
        np.testing.assert_array_equal(in_order, expected.astype(np.float32))


def test_adding_nothing_changes_nothing():
    replay = _filled(3, capacity=5)
    replay.add(*_transition([]))
    assert (len(replay), replay.position) == (3, 3)


@pytest.mark.parametrize("device", _DEVICES)
def test_tensors_and_arrays_may_be_mixed_on_the_host(device):
    replay = ReplayBuffer(4, _O, _A, device=device)
    fields = list(_transition([0, 1, 2]))
    fields[0], fields[4] = torch.from_numpy(fields[0]), torch.from_numpy(fields[4])
    replay.add(*fields)
    assert _contents(replay) == [0, 1, 2]


@pytest.mark.parametrize("device", _DEVICES)
def test_tensors_on_the_device_are_stored(device):
    replay = ReplayBuffer(4, _O, _A, device=device)
    for numbers in ([0, 1, 2], [3, 4]):
        replay.add(*(torch.from_numpy(np.asarray(field)).to(device) for field in _transition(numbers)))
    assert _contents(replay) == [4, 1, 2, 3]
    assert replay.rows[:, -1].tolist() == [0, 0, 0, 1]


def test_strided_fields_and_tensors_with_gradients_are_stored():
    replay = ReplayBuffer(8, _O, _A)
    every_second = Transition(*(field[::2] for field in _transition([0, 9, 1, 9, 2])))
    replay.add(every_second.observation, torch.from_numpy(every_second.action).requires_grad_(), *every_second[2:])
    assert _contents(replay) == [0, 1, 2]
    np.testing.assert_array_equal(replay.rows[:3, _O : _O + _A], every_second.action)
    assert not replay.sample(2).action.requires_grad


def test_stored_transitions_are_copies():
    replay = ReplayBuffer(4, _O, _A)
    fields = _transition([1, 2])
    replay.add(*fields)
    before = replay.rows[:2].clone()
    for field in fields:
        field[...] = 0
    torch.testing.assert_close(replay.rows[:2], before, rtol=0, atol=0)


def test_a_sample_is_not_changed_by_later_additions():
    replay = _filled(4)
    batch = replay.sample(16)
    before = [field.clone() for field in batch]
    replay.add(*_transition([50, 51, 52, 53]))
    for field, kept in zip(batch, before, strict=True):
        torch.testing.assert_close(field, kept, rtol=0, atol=0)


# Sampling


def test_sampling_is_uniform_over_what_is_held():
    cells, draws = 50, 100_000
    replay = _filled(cells, capacity=80, seed=3)
    counts = np.bincount(_numbers(replay.sample(draws)), minlength=cells)
    assert len(counts) == cells
    statistic = ((counts - draws / cells) ** 2 / (draws / cells)).sum()
    # Quantiles 0.001 and 0.999 of chi-square with 49 degrees of freedom: too even is as wrong as too uneven.
    assert 23.98 < statistic < 85.35


def test_sampling_is_with_replacement():
    assert len(_numbers(_filled(2).sample(64))) == 64


@pytest.mark.parametrize("device", _DEVICES)
def test_the_seed_determines_the_samples(device):
    same = [_numbers(_filled(1000, device=device, seed=5).sample(256)) for _ in range(2)]
    other = _numbers(_filled(1000, device=device, seed=6).sample(256))
    np.testing.assert_array_equal(*same)
    assert (same[0] != other).any()


@pytest.mark.parametrize("device", _DEVICES)
def test_drawn_rows_are_those_that_a_sample_would_have_had(device):
    sampled, drawn = (_filled(100, device=device, seed=5) for _ in range(2))
    for count in (1, 7, 256):
        row = drawn.draw(count)
        assert (row.dtype, row.device.type, tuple(row.shape)) == (torch.int64, device, (count,))
        torch.testing.assert_close(drawn.rows[row][:, _O + _A], sampled.sample(count).reward, rtol=0, atol=0)


def test_one_draw_may_serve_several_minibatches():
    whole, parts = (_filled(100, seed=6) for _ in range(2))
    batches = torch.cat([parts.sample(16).reward for _ in range(5)])
    torch.testing.assert_close(whole.rows[whole.draw(5 * 16)][:, _O + _A], batches, rtol=0, atol=0)


def test_only_rows_that_are_held_are_drawn():
    replay = ReplayBuffer(1000, _O, _A)
    replay.add(*_transition([0, 1, 2]))
    assert set(replay.draw(200).tolist()) == {0, 1, 2}


def test_sampling_does_not_touch_the_global_generator():
    replay = _filled(10)
    before = torch.get_rng_state()
    replay.sample(4)
    replay.draw(4)
    torch.testing.assert_close(torch.get_rng_state(), before)


def test_the_fields_of_a_batch_are_views_of_one_tensor():
    batch = _filled(10).sample(4)
    assert len({field.untyped_storage().data_ptr() for field in batch}) == 1
    assert [tuple(field.shape) for field in batch] == [(4, _O), (4, _A), (4,), (4, _O), (4,)]


# Refusals


@pytest.mark.parametrize("name", ["capacity", "observation_dim", "action_dim", "seed"])
@pytest.mark.parametrize(("value", "error"), [(-1, ValueError), (1.5, TypeError), (True, TypeError)])
def test_sizes_are_checked(name, value, error):
    arguments = {"capacity": 4, "observation_dim": 3, "action_dim": 2, "seed": 0, name: value}
    with pytest.raises(error, match=f"{name}: expected an int"):
        ReplayBuffer(**arguments)


@pytest.mark.parametrize("kind", [np.int64, np.float32, float])
def test_sizes_may_be_whole_numbers_of_any_kind(kind):
    given, plain = (ReplayBuffer(each(8), each(_O), each(_A), seed=each(5)) for each in (kind, int))
    for replay in (given, plain):
        replay.add(*_transition([0, 1, 2]))
    assert torch.equal(given.draw(kind(4)), plain.draw(4))
    assert torch.equal(given.sample(kind(4)).reward, plain.sample(4).reward)
    assert type(given.capacity) is int


@pytest.mark.parametrize("name", ["capacity", "observation_dim", "action_dim"])
def test_sizes_of_zero_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: expected an int >= 1, got 0"):
        ReplayBuffer(**{"capacity": 4, "observation_dim": 3, "action_dim": 2, name: 0})


@pytest.mark.parametrize(
    ("field", "value", "error", "message"),
    [
        (
            "observation",
            np.zeros((4, _O + 1), np.float32),
            ValueError,
            r"expected shape \(4, 3\), got \(4, 4\)",
        ),
        ("observation", np.float32(0), TypeError, "expected a NumPy array or tensor, got float32"),
        ("observation", np.zeros((), np.float32), ValueError, r"expected shape \(0, 3\), got \(\)"),
        ("action", np.zeros((4, _A - 1), np.float32), ValueError, r"expected shape \(4, 2\), got \(4, 1\)"),
        ("action", np.zeros((3, _A), np.float32), ValueError, r"expected shape \(4, 2\), got \(3, 2\)"),
        ("reward", np.zeros((4, 1), np.float32), ValueError, r"expected shape \(4,\), got \(4, 1\)"),
        ("reward", np.zeros(1, np.float32), ValueError, r"expected shape \(4,\), got \(1,\)"),
        ("next_observation", np.zeros(_O, np.float32), ValueError, r"expected shape \(4, 3\), got \(3,\)"),
        ("terminated", np.zeros(5, bool), ValueError, r"expected shape \(4,\), got \(5,\)"),
        ("observation", np.zeros((4, _O)), TypeError, "expected dtype float32, got float64"),
        (
            "reward",
            torch.zeros(4, dtype=torch.float64),
            TypeError,
            "expected dtype torch.float32, got torch.float64",
        ),
        ("terminated", np.zeros(4, np.float32), TypeError, "expected dtype bool, got float32"),
        ("terminated", torch.zeros(4), TypeError, "expected dtype torch.bool, got torch.float32"),
        ("observation", _with(np.zeros((4, _O)), np.nan), ValueError, r"expected finite values, got nan in row 3$"),
        ("action", _with(np.zeros((4, _A)), np.nan), ValueError, r"expected values in \[-1, 1\], got nan in row 3$"),
        ("action", _with(np.zeros((4, _A)), -50), ValueError, r"expected values in \[-1, 1\], got -50.0 in row 3$"),
        (
            "action",
            _with(torch.zeros(4, _A), 1.001),
            ValueError,
            r"expected values in \[-1, 1\], got 1.001.* in row 3$",
        ),
        ("reward", _with(np.zeros(4), -np.inf), ValueError, r"expected finite values, got -inf in row 3$"),
        (
            "next_observation",
            _with(torch.zeros(4, _O), np.inf),
            ValueError,
            r"expected finite values, got inf in row 3$",
        ),
        ("action", [[0.0, 0.0]] * 4, TypeError, "expected a NumPy array or tensor, got list"),
        ("reward", None, TypeError, "expected a NumPy array or tensor, got NoneType"),
    ],
)
def test_bad_fields_are_refused_and_leave_the_ring_alone(field, value, error, message):
    replay = _filled(4, capacity=10)
    before = replay.rows[:4].clone()
    with pytest.raises(error, match=f"^{field}: {message}"):
        replay.add(**{**_transition([5, 6, 7, 8])._asdict(), field: value})
    assert (len(replay), replay.position) == (4, 4)
    torch.testing.assert_close(replay.rows[:4], before, rtol=0, atol=0)


@pytest.mark.parametrize("device", _DEVICES)
@pytest.mark.parametrize("field", ["observation", "action", "reward", "next_observation"])
def test_values_from_the_host_that_no_transition_has_are_refused(field, device):
    """By the native call, by the general way to the host, and on the way to a GPU."""
    for strided in (False, True):
        fields = {name: np.repeat(value, 2, 0) for name, value in _transition([5, 6])._asdict().items()}
        fields[field] = _with(fields[field], np.nan)
        replay = ReplayBuffer(10, _O, _A, device=device)
        with pytest.raises(ValueError, match=f"^{field}: expected .*, got nan in row {1 if strided else 3}$"):
            replay.add(**{name: value[1::2] if strided else value for name, value in fields.items()})
        assert len(replay) == 0


def test_an_action_that_rounding_has_put_beyond_1_is_stored():
    fields = _transition([0])._replace(action=np.full((1, _A), np.nextafter(np.float32(1), np.float32(2))))
    replay = ReplayBuffer(3, _O, _A)
    replay.add(*fields)
    replay.add(*(field[:] if field.ndim < 2 else np.asfortranarray(np.repeat(field, 2, 0))[::2] for field in fields))
    assert len(replay) == 2


def test_more_rows_than_the_capacity_are_refused():
    with pytest.raises(ValueError, match="expected at most capacity = 3 rows, got 4"):
        ReplayBuffer(3, _O, _A).add(*_transition([0, 1, 2, 3]))


def test_a_tensor_on_another_device_is_refused():
    fields = {**_transition([0])._asdict(), "action": torch.zeros(1, _A, device="meta")}
    with pytest.raises(ValueError, match="action: expected all fields on the host or on the buffer's device, got meta"):
        ReplayBuffer(3, _O, _A).add(**fields)


def test_sampling_an_empty_buffer_is_refused():
    for act in (ReplayBuffer.sample, ReplayBuffer.draw):
        with pytest.raises(RuntimeError, match="the replay buffer is empty"):
            act(ReplayBuffer(3, _O, _A), 1)


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-3, ValueError), (2.5, TypeError)])
def test_the_batch_size_is_checked(value, error):
    with pytest.raises(error, match="batch_size: expected an int"):
        _filled(3).sample(value)
    with pytest.raises(error, match="count: expected an int"):
        _filled(3).draw(value)


# Memory


def test_a_capacity_beyond_free_memory_is_refused_naming_both_sizes(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device: 3_500_000_000)
    # 10,000,000 rows of 2 * 45 + 8 + 2 = 100 float32
    message = "capacity: 10000000 transitions of 100 float32 need 4.00 GB, but cpu has 3.50 GB free"
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(10_000_000, 45, 8)


def test_a_capacity_that_just_fits_is_taken(monkeypatch):
    needed = 100 * (2 * _O + _A + 2) * 4
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)
    ReplayBuffer(100, _O, _A)
    with pytest.raises(ValueError, match="101 transitions"):
        ReplayBuffer(101, _O, _A)


# State


@pytest.mark.parametrize("device", _DEVICES)
@pytest.mark.parametrize("added", [0, 6, 10, 13])
def test_a_restored_buffer_has_the_same_future(added, device):
    replay = ReplayBuffer(10, _O, _A, device=device, seed=1)
    for number in range(added):
        replay.add(*_transition([number]))
    if added:
        replay.sample(7)
    state = {name: tensor.clone() for name, tensor in replay.state_dict().items()}
    assert len(state["rows"]) == min(added, 10)
    restored = ReplayBuffer(10, _O, _A, device=device, seed=99)
    restored.load_state_dict(state)
    for twin in (replay, restored):
        twin.add(*_transition([20, 21, 22]))
    assert (len(restored), restored.position) == (len(replay), replay.position)
    for _ in range(3):
        for got, want in zip(restored.sample(32), replay.sample(32), strict=True):
            torch.testing.assert_close(got, want, rtol=0, atol=0)


def test_the_state_is_tensors_that_hold_only_what_is_held():
    state = _filled(3, capacity=1000).state_dict()
    assert all(isinstance(tensor, torch.Tensor) for tensor in state.values())
    assert state["rows"].shape == (3, 2 * _O + _A + 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": None}, r"missing \['rows'\], unknown \[\]"),
        ({"extra": torch.zeros(1)}, r"missing \[\], unknown \['extra'\]"),
        ({"capacity": torch.tensor(9)}, "capacity: expected 8, got 9"),
        ({"rows": torch.zeros(4, 9)}, r"rows: expected at most 8 rows of 10 float32, got \(4, 9\)"),
        ({"rows": torch.zeros(9, 10)}, r"rows: expected at most 8 rows of 10 float32, got \(9, 10\)"),
        (
            {"rows": torch.zeros(4, 10).double()},
            "rows: expected at most 8 rows of 10 float32, .* torch.float64",
        ),
        ({"rows": torch.zeros(())}, r"rows: expected at most 8 rows of 10 float32, got \(\)"),
        ({"position": torch.tensor(3)}, "position: expected the end of 4 rows of 8, got 3"),
        (
            {"generator": torch.zeros(3, dtype=torch.uint8)},
            "generator: expected a generator's state on cpu",
        ),
        (
            {"position": torch.tensor(8), "rows": torch.zeros(8, 10)},
            "position: expected the end of 8 rows of 8, got 8",
        ),
        ({"position": torch.tensor(-1), "rows": torch.zeros(8, 10)}, "position: .*, got -1"),
        (
            {"generator": torch.zeros(5056, dtype=torch.uint8)},
            "generator: expected a generator's state on cpu",
        ),
        ({"generator": torch.zeros(5056)}, "generator: expected a generator's state on cpu"),
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(change, message):
    replay = _filled(6, capacity=8, seed=1)
    before = {name: tensor.clone() for name, tensor in replay.state_dict().items()}
    state = {**_filled(4, capacity=8, seed=2).state_dict(), **change}
    with pytest.raises(ValueError, match=message):
        replay.load_state_dict({name: tensor for name, tensor in state.items() if tensor is not None})
    for name, tensor in replay.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
