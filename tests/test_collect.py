"""The native calls of collection against NumPy and torch; each leaves to its caller what is not as usual."""

import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sacfast import _ext, collect
from sacfast.networks import Actor
from sacfast.ops import philox_state, tanh_gaussian_rsample

BOUNDINGS = [("none", (-20.0, 2.0)), ("clamp", (-0.1, 0.1)), ("tanh", (-5.0, 2.0))]


def floats(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ---- Acting ----------------------------------------------------------------------------------------------------------


def make_actor(sizes: tuple[int, ...], seed: int = 0) -> Actor:
    observation_dim, *hidden, outputs = sizes
    return Actor(observation_dim, outputs // 2, hidden, generator=torch.Generator().manual_seed(seed))


def native(actor: Actor, state: torch.Tensor | None, bounding: str = "none", bounds: Any = (-20.0, 2.0)) -> Any:
    parameters = [parameter.detach().numpy() for parameter in actor.parameters()]
    return collect.Actor(parameters, None if state is None else state.numpy(), bounding, *bounds, 1000)


@torch.no_grad()
def twin(
    actor: Actor,
    observation: np.ndarray,
    state: torch.Tensor | None,
    bounding: Any = "none",
    bounds: Any = (-20.0, 2.0),
) -> np.ndarray:
    mean, log_std = actor(torch.from_numpy(observation))
    if state is None:
        return mean.tanh().numpy()
    options = {"generator": state, "log_std_bounding": bounding, "log_std_bounds": bounds}
    return tanh_gaussian_rsample(mean, log_std, **options)[0].numpy()


SIZES = [(5, 2), (1, 1, 2), (17, 13, 5, 6), (17, 256, 256, 12), (70, 24, 34)]
ROWS = [0, 1, 3, 4, 5, 8, 9, 16, 17, 33, 100]


def check_acting() -> None:
    for sizes in SIZES:
        actor = make_actor(sizes)
        for rows in ROWS:
            observation = floats(rows, sizes[0])
            for start in (None, philox_state(7)):
                states = [None if start is None else start.clone() for _ in range(2)]
                action = native(actor, states[0]).act(observation)
                assert (action.shape, action.dtype) == ((rows, sizes[-1] // 2), np.float32)
                # The same noise, so only rounding differs: of float32 sums over at most 256 terms below one.
                np.testing.assert_allclose(action, twin(actor, observation, states[1]), rtol=1e-5, atol=2e-6)
                if states[0] is not None:
                    assert states[0].tolist() == [7, 1]  # one stream of noise a call


def test_acting_is_that_of_the_plain_twin() -> None:
    check_acting()


def test_acting_is_the_same_on_every_instruction_set() -> None:
    levels = [level for level in _ext.info()["cpu_levels_available"] if level != _ext.info()["cpu_level"]]
    if not levels:
        pytest.skip(f"this processor runs {_ext.info()['cpu_level']} only")
    root = Path(__file__).parents[1]
    for level in levels:
        environment = {**os.environ, "SACFAST_CPU_LEVEL": level, "PYTHONPATH": f"{root}{os.pathsep}{root / 'tests'}"}
        command = [sys.executable, "-c", "import test_collect; test_collect.check_acting()"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, f"{level}: {done.stderr}"


@pytest.mark.parametrize(("bounding", "bounds"), BOUNDINGS)
def test_every_convention_of_log_std(bounding: str, bounds: tuple[float, float]) -> None:
    actor, observation = make_actor((6, 16, 8)), floats(100, 6)
    list(actor.parameters())[-1].data[4:] = torch.tensor([-8.0, -0.05, 1.0, 4.0])
    action = native(actor, philox_state(3), bounding, bounds).act(observation)
    expected = twin(actor, observation, philox_state(3), bounding, bounds)
    np.testing.assert_allclose(action, expected, rtol=1e-5, atol=2e-6)


def test_a_row_does_not_depend_on_the_others() -> None:
    actor, observation = native(make_actor((17, 32, 12)), None), floats(40, 17)
    whole = actor.act(observation)
    for row in (0, 7, 15, 16, 39):
        np.testing.assert_array_equal(actor.act(observation[row : row + 1])[0], whole[row])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_stays_in_its_row(value: float) -> None:
    actor, observation = make_actor((5, 8, 4)), floats(9, 5)
    clean = native(actor, None).act(observation)
    observation[3, 2] = value
    spoilt = native(actor, None).act(observation)
    np.testing.assert_allclose(spoilt, twin(actor, observation, None), rtol=1e-5, atol=2e-6, equal_nan=True)
    np.testing.assert_array_equal(np.delete(spoilt, 3, axis=0), np.delete(clean, 3, axis=0))


def test_parameters_are_read_where_they_lie_and_kept_alive() -> None:
    parameters = [floats(4, 3), floats(4)]
    actor = collect.Actor(parameters, None, "none", 0.0, 0.0, 1000)
    parameters[0][:] = 0
    parameters[1][:] = 0
    del parameters
    np.testing.assert_array_equal(actor.act(floats(2, 3)), np.zeros((2, 2)))


UNUSUAL = {
    "list": [[0.0] * 5] * 3,
    "tensor": torch.zeros(3, 5),
    "dtype": floats(3, 5, dtype=np.float64),
    "byte order": floats(3, 5).astype(">f4"),
    "columns": np.asfortranarray(floats(3, 5)),
    "strided": np.repeat(floats(3, 5), 2, axis=0)[::2],
    "misaligned": np.frombuffer(bytes(61), np.uint8)[1:].view(np.float32).reshape(3, 5),
    "width": floats(3, 4),
    "one": floats(5),
}


@pytest.mark.parametrize("observation", UNUSUAL.values(), ids=UNUSUAL)
def test_acting_leaves_what_is_unusual_to_its_caller(observation: Any) -> None:
    state = philox_state(1)
    assert native(make_actor((5, 8, 4)), state).act(observation) is None
    assert state.tolist() == [1, 0]


def read_only(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def dense(*sizes: int) -> list[np.ndarray]:
    return [array for i, o in pairwise(sizes) for array in (floats(o, i), floats(o))]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parameters": []}, "parameters: expected a weight and a bias for each layer, got 0 arrays"),
        ({"parameters": dense(5, 8, 4)[:3]}, "parameters: expected a weight and a bias for each layer, got 3 arrays"),
        ({"parameters": dense(5, 8) + dense(7, 4)}, "parameters: expected dense float32 .*, got others in layer 1"),
        ({"parameters": [floats(5, 8).T, floats(8)]}, "parameters: expected dense float32 .*, got others in layer 0"),
        ({"parameters": [floats(8, 5), floats(7)]}, "parameters: expected dense float32 .*, got others in layer 0"),
        ({"parameters": dense(5, 3)}, "parameters: expected a mean and a log_std for each action, got 3 outputs"),
        ({"noise_state": np.zeros(3, np.int64)}, r"noise_state: expected a writable int64 array \[seed, offset\]"),
        ({"noise_state": np.zeros(2)}, r"noise_state: expected a writable int64 array \[seed, offset\]"),
        ({"noise_state": read_only(np.zeros(2, np.int64))}, "noise_state: expected a writable int64 array"),
        ({"bounding": "some"}, "log_std_bounding: expected 'none', 'clamp' or 'tanh', got 'some'"),
        ({"bounding": "clamp", "bounds": (2.0, 1.0)}, r"log_std_bounds: expected \(low, high\) .*, got \(2.0"),
        ({"bounding": "tanh", "bounds": (-np.inf, 1.0)}, r"log_std_bounds: expected .* finite for 'tanh', got \(-inf"),
    ],
)
def test_what_cannot_act_is_refused(options: dict[str, Any], message: str) -> None:
    usual: dict[str, Any] = {
        "parameters": dense(5, 8, 4),
        "noise_state": None,
        "bounding": "none",
        "bounds": (0.0, 1.0),
    }
    given = {**usual, **options}
    with pytest.raises(ValueError, match=message):
        collect.Actor(given["parameters"], given["noise_state"], given["bounding"], *given["bounds"], 1000)


# ---- Rows of the environments ----------------------------------------------------------------------------------------


def test_leaves_are_cast_into_columns() -> None:
    leaves = [floats(5, 3, dtype=np.float64), floats(5), floats(5, 2, 2, dtype=np.float64), np.full(5, 1e300)]
    expected = np.column_stack([leaf.reshape(5, -1) for leaf in leaves[:3]]).astype(np.float32)
    flat = collect.flatten(leaves, 5, 9)
    assert flat is not None
    assert (flat.shape, flat.dtype) == ((5, 9), np.float32)
    np.testing.assert_array_equal(flat[:, :8], expected)
    assert np.isposinf(flat[:, 8]).all()


@pytest.mark.parametrize(
    ("leaf", "dimension"),
    [
        (floats(4, 3, dtype=np.float16), 3),
        (np.asfortranarray(floats(4, 3)), 3),
        (floats(3, 3), 3),
        (floats(4, 3), 2),
        (floats(4, 3), 4),
        (np.float32(1), 1),
        ([[1.0]] * 4, 1),
    ],
    ids=["dtype", "columns", "rows", "too wide", "too narrow", "scalar", "list"],
)
def test_leaves_that_are_unusual_are_left_to_the_caller(leaf: Any, dimension: int) -> None:
    assert collect.flatten([leaf], 4, dimension) is None


def make_step() -> dict[str, np.ndarray]:
    """A step of environments 4, 0 and 2 of 5, in which nothing happens."""
    return {
        "observation": floats(3, 2),
        "reward": np.array([0.5, -1.0, 2.0], np.float32),
        "terminated": np.zeros(3, np.bool_),
        "truncated": np.zeros(3, np.bool_),
        "env_id": np.array([4, 0, 2]),
        "starting": np.array([False, True, False, True, False]),
        "returns": np.arange(5.0),
        "lengths": np.arange(5),
    }


def test_an_uneventful_step_advances_returns_and_lengths() -> None:
    step = make_step()
    assert collect.uneventful(**step)
    np.testing.assert_array_equal(step["returns"], [-1.0, 1.0, 4.0, 3.0, 4.5])
    np.testing.assert_array_equal(step["lengths"], [1, 1, 3, 3, 5])


def changed(field: str, place: Any, value: Any) -> Any:
    def change(step: dict[str, np.ndarray]) -> None:
        step[field][place] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        *(changed("observation", (2, 1), value) for value in (np.nan, np.inf, -np.inf)),
        *(changed("reward", 2, value) for value in (np.nan, np.inf, -np.inf)),
        changed("terminated", 2, True),
        changed("truncated", 0, True),
        changed("starting", 4, True),
        changed("env_id", 0, 5),
        changed("env_id", 0, -1),
        lambda step: step.update(reward=step["reward"][:2]),
        lambda step: step.update(reward=step["reward"].astype(np.float64)),
        lambda step: step.update(terminated=step["terminated"].astype(np.uint8)),
        lambda step: step.update(returns=step["returns"][:4]),
        lambda step: step.update(lengths=step["lengths"][::-1]),
        lambda step: step["returns"].setflags(write=False),
        lambda step: step["lengths"].setflags(write=False),
    ],
)
def test_an_eventful_step_is_left_to_the_caller(change: Any) -> None:
    step = make_step()
    change(step)
    before = {name: value.copy() for name, value in step.items()}
    assert not collect.uneventful(**step)
    for name, value in step.items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (-0.4, 0.4), (-1.0, 3.0), (-0.2, 0.1)])
def test_actions_are_copied_clipped_and_rescaled(low: float, high: float) -> None:
    action = np.random.default_rng(0).uniform(-1, 1, (7, 3)).astype(np.float32)
    action[0] = 1.0, -1.0, np.nextafter(np.float32(1), np.float32(2))
    scale, offset = np.full(3, (high - low) / 2), np.full(3, (high + low) / 2)
    clipped = action.clip(-1, 1)
    expected = (clipped * scale + offset).clip(low, high)
    result = collect.rescale(action, 7, np.stack([scale, offset, np.full(3, low), np.full(3, high)]), 1.000001)
    assert result is not None
    np.testing.assert_array_equal(result[0], clipped)
    np.testing.assert_allclose(result[1], expected, rtol=1e-15)  # one rounding or two
    assert (result[1].min(), result[1].max()) == (low, high)
    assert (result[0].dtype, result[1].dtype) == (np.float32, np.float64)
    assert not np.shares_memory(result[0], action)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.00001, -1.00001])
def test_actions_beyond_the_limit_are_left_to_the_caller(value: float) -> None:
    action = np.zeros((4, 5), np.float32)
    action[2, 3] = value
    assert collect.rescale(action, 4, np.ones((4, 5)), 1.000001) is None


@pytest.mark.parametrize("action", UNUSUAL.values(), ids=UNUSUAL)
def test_actions_that_are_unusual_are_left_to_the_caller(action: Any) -> None:
    assert collect.rescale(action, 3, np.ones((4, 5)), 1.0) is None


# ---- Replay ----------------------------------------------------------------------------------------------------------

CAPACITY, WIDTH = 6, 2 * 2 + 3 + 2


def make_transitions(rows: int) -> dict[str, np.ndarray]:
    return {
        "observation": floats(rows, 2, seed=1),
        "action": np.tanh(floats(rows, 3, seed=2)),
        "reward": floats(rows, seed=3),
        "next_observation": floats(rows, 2, seed=4),
        "terminated": np.arange(rows) % 2 == 0,
    }


def test_the_fields_of_a_row_have_their_widths() -> None:
    assert collect.row_widths(17, 6) == (17, 6, 1, 17, 1)
    assert sum(collect.row_widths(2, 3)) == WIDTH


@pytest.mark.parametrize("rows", [0, 1, 4, CAPACITY])
@pytest.mark.parametrize("position", range(CAPACITY))
def test_rows_go_around_the_ring(rows: int, position: int) -> None:
    ring, fields = np.full((CAPACITY, WIDTH), -7, np.float32), make_transitions(rows)
    expected = ring.copy()
    expected[(position + np.arange(rows)) % CAPACITY] = np.column_stack(list(fields.values()))
    assert collect.write_rows(ring, position, **fields, action_limit=1.0) == rows
    np.testing.assert_array_equal(ring, expected)


@pytest.mark.parametrize(
    "change",
    [
        *(
            lambda fields, ring, name=name: fields.update({name: fields[name][:2]})  # too few rows
            for name in ("observation", "action", "reward", "next_observation", "terminated")
        ),
        *(
            lambda fields, ring, name=name: fields.update({name: fields[name].astype(np.float64)})
            for name in ("observation", "action", "reward", "next_observation", "terminated")
        ),
        lambda fields, ring: fields.update(observation=floats(3, 3)),
        lambda fields, ring: fields.update(action=fields["action"][::-1]),
        lambda fields, ring: fields.update(reward=torch.from_numpy(fields["reward"])),
        lambda fields, ring: fields.update(reward=[0.0, 0.0, 0.0]),
        lambda fields, ring: fields.update(reward=ring.reshape(-1)[-3:]),  # would be read after it was overwritten
        lambda fields, ring: fields.update(make_transitions(CAPACITY + 1)),
        *(
            lambda fields, ring, name=name, value=value: fields[name].reshape(-1).__setitem__(-1, value)
            for name in ("observation", "action", "reward", "next_observation")
            for value in (np.nan, np.inf, -np.inf)
        ),
        lambda fields, ring: fields["action"].reshape(-1).__setitem__(-1, 1.01),
        lambda fields, ring: ring.setflags(write=False),
    ],
)
def test_rows_that_are_unusual_are_left_to_the_caller(change: Any) -> None:
    ring, fields = np.full((CAPACITY, WIDTH), -7, np.float32), make_transitions(3)
    change(fields, ring)
    assert collect.write_rows(ring, 1, **fields, action_limit=1.0) == -1
    assert (ring == -7).all()


@pytest.mark.parametrize("position", [-1, CAPACITY])
def test_a_position_beyond_the_ring_is_left_to_the_caller(position: int) -> None:
    ring, fields = np.zeros((CAPACITY, WIDTH), np.float32), make_transitions(1)
    assert collect.write_rows(ring, position, **fields, action_limit=1.0) == -1
