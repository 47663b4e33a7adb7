"""The fused update is the reference update: same parameters, minibatches and noise give the same numbers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from learner_cases import OPTIONS, A, B, O, every_option, make_config, random_batch, random_noise, random_replay
from torch import Tensor

from sacfast import _ext
from sacfast.fused import FusedLearner
from sacfast.reference import ReferenceLearner
from sacfast.types import Batch

ROOT = Path(__file__).resolve().parents[1]
DTYPES = {"float64": torch.float64, "float32": torch.float32}
either_dtype = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only lose by sharing the work; that threads change nothing has tests of its own."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Limits(NamedTuple):
    """How far the learners may be apart."""

    parameters: float  # and log_alpha, absolute: they are about 0.1, and an update moves them by about lr = 3e-4
    moments: float  # relative to the largest of the network
    metrics: float  # relative to the value, or to 1 where that is larger
    seeds: tuple[int, ...] = (1,)  # with one of which, at least, they agree


# Both learners round every sum, in another order. Adam enlarges the difference where a gradient almost cancels: one of
# size g with the rounding error d moves its parameter by lr * d / (g + eps) too much or too little. In float64 that is
# at most lr * 1e-16 / eps = 3e-12, in float32 more than is seen here. The differences of 1 and of 100 updates are
# equally large: what is enlarged is the error of the first steps, when the second moment holds nothing else.
#
# A ReLU, a bound or a minimum of two may stand so near its edge that float32 puts it on the other side: once in some
# millions of units, or every tenth update with the largest networks here. Either learner then differs from float64 by
# as much as the other. With another seed that does not come again, but a wrong term does.
#
# Seen over the options, 900 random sizes and three instruction sets, each with room for five times as much:
#     float64: parameters 6e-15, moments 4e-15, metrics 1e-15, and ten times as much in sums of thousands
#     float32: parameters 1.2e-7 with 16 and 8 units, 5e-6 with more; moments 2.6e-6; metrics 5e-7
FLOAT64 = Limits(3e-14, 2e-14, 5e-15)
FLOAT64_WIDE = Limits(3e-13, 2e-13, 5e-14)
FLOAT32 = Limits(6e-7, 1.3e-5, 2.5e-6, seeds=(1, 2, 3, 4))
FLOAT32_WIDE = FLOAT32._replace(parameters=2.5e-5)
NARROW = {torch.float64: FLOAT64, torch.float32: FLOAT32}
WIDE = {torch.float64: FLOAT64_WIDE, torch.float32: FLOAT32_WIDE}


def both(
    options: Mapping[str, Any],
    dtype: torch.dtype,
    sizes: tuple[int, int] = (O, A),
    changed: Mapping[str, Any] | None = None,
    seed: int = 1,
) -> tuple[FusedLearner, ReferenceLearner]:
    """A learner of each kind from the same seed, the reference with `changed` options."""
    reference = make_config({**options, **(changed or {})})
    return (
        FusedLearner(*sizes, make_config(options), seed=seed, dtype=dtype),
        ReferenceLearner(*sizes, reference, seed=seed, dtype=dtype),
    )


def assert_near(name: str, actual: Tensor, expected: Tensor, atol: float, rtol: float = 0.0) -> None:
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}")


def assert_same_state(fused: FusedLearner, reference: ReferenceLearner, limits: Limits) -> None:
    state, expected = fused.state_dict(), reference.state_dict()
    assert list(state) == list(expected)
    for name, value in expected.items():
        if "exp_avg" in name:
            assert_near(name, state[name], value, limits.moments * value.abs().max().item())
        elif ".layers." in name or name == "log_alpha":
            assert_near(name, state[name], value, limits.parameters)
        else:  # counts, and the place in the stream of noise
            assert_near(name, state[name], value, 0.0)
    for name, parameter in fused.actor.named_parameters():  # what the policy acts with
        assert torch.equal(parameter, state[f"actor.{name}"]), name


def check_updates(
    options: Mapping[str, Any],
    dtype: torch.dtype,
    limits: Limits,
    *,
    counts: tuple[int, ...] = (1, 10),
    sizes: tuple[int, int] = (O, A),
    changed: Mapping[str, Any] | None = None,
) -> None:
    """Compare both learners after so many updates."""

    def compare(seed: int) -> None:
        fused, reference = both(options, dtype, sizes, changed, seed)
        length = max(64, fused.config.batch_size)
        replay, same_replay = (random_replay(length, seed, *sizes) for _ in range(2))
        for count in counts:
            steps = count - fused.gradient_updates
            metrics, expected = fused.update(replay, steps), reference.update(same_replay, steps)
            assert tuple(metrics) == tuple(expected)
            assert fused.gradient_updates == count
            for name, value in expected.to_dict().items():
                assert metrics.to_dict()[name] == pytest.approx(value, rel=limits.metrics, abs=limits.metrics), name
            assert_same_state(fused, reference, limits)

    with_one_of(limits.seeds, compare)


def with_one_of(seeds: Iterable[int], check: Callable[[int], None]) -> None:
    failure = AssertionError("no seeds")
    for seed in seeds:
        try:
            check(seed)
        except AssertionError as error:
            failure = error
        else:
            return
    raise failure


@every_option
@either_dtype
def test_updates_equal_the_reference(options: dict[str, Any], dtype: torch.dtype) -> None:
    check_updates(options, dtype, NARROW[dtype])


@pytest.mark.parametrize("name", ["v2", "v1", "deterministic", "polyak-every-3", "log-std-tanh", "optimisers"])
@either_dtype
def test_a_hundred_updates_equal_the_reference(name: str, dtype: torch.dtype) -> None:
    check_updates(OPTIONS[name], dtype, NARROW[dtype], counts=(100,))


@every_option
@either_dtype
def test_updates_on_a_given_batch_and_noise_equal_the_reference(options: dict[str, Any], dtype: torch.dtype) -> None:
    limits = NARROW[dtype]

    def compare(seed: int) -> None:
        fused, reference = both(options, dtype, seed=seed)
        for step in range(5):
            # The fused learner takes its rows as a replay buffer holds them, in float32.
            batch, noise = random_batch(100 * seed + step), random_noise(fused.config, 100 * seed + step, dtype)
            metrics, expected = (learner.update_batch(batch, **noise) for learner in (fused, reference))
            assert metrics.dtype == dtype
            assert_near(f"update {step}", metrics, expected, limits.metrics, limits.metrics)
        assert_same_state(fused, reference, limits)

    with_one_of(limits.seeds, compare)


def test_noise_is_drawn_where_none_is_given() -> None:
    """And so the place in the stream advances by what was drawn alone."""
    given_noise = random_noise(make_config(), 0, torch.float64)
    for names in ((), ("noise",), ("next_noise",), ("next_noise", "noise")):
        fused, reference = both({}, torch.float64)
        for step in range(2):
            noise = {name: given_noise[name] for name in names}
            metrics, expected = (learner.update_batch(random_batch(step), **noise) for learner in (fused, reference))
            assert_near(str(names), metrics, expected, FLOAT64.metrics, FLOAT64.metrics)
        assert_same_state(fused, reference, FLOAT64)
        assert fused.state_dict()["noise_state"][1] == 2 * (2 - len(names))


# ---- A test that can fail ------------------------------------------------------------------------------------------

V1 = {"value_network": True, "alpha": 0.2}
CHANGES = [
    ({}, "gamma"),
    ({}, "reward_scale"),
    ({"tau": 0.3}, "tau"),
    ({"target_entropy": -0.5}, "target_entropy"),
    ({"initial_alpha": 0.3}, "initial_alpha"),
    ({"alpha": 0.2}, "alpha"),
    ({}, "actor_lr"),
    ({}, "critic_lr"),
    ({}, "alpha_lr"),
    ({"adam_eps": 1e-3}, "adam_eps"),
    (V1, "alpha"),
    (V1, "gamma"),
    ({**V1, "tau": 0.3}, "tau"),
    (V1, "value_lr"),
    ({**V1, "adam_eps": 1e-3}, "adam_eps"),
    ({"alpha": 0.0, "deterministic_policy": True}, "gamma"),
]
PAIRS = [
    ({}, "adam_betas", 0),
    ({}, "adam_betas", 1),
    ({"log_std_bounds": (0.3, 0.31)}, "log_std_bounds", 0),  # with every seed it cuts some
    ({"log_std_bounds": (-0.31, -0.3)}, "log_std_bounds", 1),
    (OPTIONS["log-std-tanh"], "log_std_bounds", 0),
    (OPTIONS["log-std-tanh"], "log_std_bounds", 1),
]
# Nearer to zero, so that no value leaves its range.
NEARER = {torch.float64: 1 - 1e-6, torch.float32: 0.98}


@pytest.mark.parametrize(("options", "name"), CHANGES)
@either_dtype
def test_a_slightly_other_number_is_noticed(options: dict[str, Any], name: str, dtype: torch.dtype) -> None:
    value = getattr(make_config(options), name) * NEARER[dtype]
    with pytest.raises(AssertionError):
        check_updates(options, dtype, NARROW[dtype], counts=(5,), changed={name: value})


@pytest.mark.parametrize(("options", "name", "index"), PAIRS)
@either_dtype
def test_a_slightly_other_pair_is_noticed(options: dict[str, Any], name: str, index: int, dtype: torch.dtype) -> None:
    values = list(getattr(make_config(options), name))
    values[index] *= NEARER[dtype]
    with pytest.raises(AssertionError):
        check_updates(options, dtype, NARROW[dtype], counts=(5,), changed={name: values})


@pytest.mark.parametrize(
    ("options", "changed"),
    [
        ({"target_update_interval": 3}, {"target_update_interval": 2}),
        ({"target_update": "hard", "target_update_interval": 3}, {"target_update_interval": 4}),
        ({"tau": 0.9}, {"target_update": "hard"}),
        ({**V1, "tau": 0.9}, {"target_update": "hard"}),
        ({"log_std_bounds": (-0.1, 0.1)}, {"log_std_bounding": "none"}),
        ({"log_std_bounds": (-0.1, 0.1)}, {"log_std_bounding": "tanh"}),
    ],
)
@either_dtype
def test_another_rule_is_noticed(options: dict[str, Any], changed: dict[str, Any], dtype: torch.dtype) -> None:
    with pytest.raises(AssertionError):
        check_updates(options, dtype, NARROW[dtype], counts=(5,), changed=changed)


@pytest.mark.parametrize("field", [*Batch._fields, "next_noise", "noise"])
def test_one_other_element_of_the_data_is_noticed(field: str) -> None:
    fused, reference = both({}, torch.float32)
    batch, noise = random_batch(0), random_noise(fused.config, 0, torch.float32)
    fused.update_batch(batch, **noise)
    changed = {name: tensor.clone() for name, tensor in (batch._asdict() | noise).items()}
    element = changed[field].flatten()[-1:]
    element.copy_(1 - element)
    reference.update_batch(Batch(*(changed[name] for name in Batch._fields)), **{name: changed[name] for name in noise})
    with pytest.raises(AssertionError):
        assert_same_state(fused, reference, FLOAT32)


# ---- Ties ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hidden_sizes", [(), (2,), (5, 3)], ids=str)
@either_dtype
def test_equal_critics_share_the_gradient_of_the_actor(hidden_sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """With zeros for x, a, r and a~, both Q are zero, right, and differ in their slope with respect to a~ alone."""
    options = {"hidden_sizes": hidden_sizes, "alpha": 0.0, "gamma": 0.0}
    fused, reference = both(options, dtype)
    state = {name: torch.zeros_like(value) for name, value in fused.state_dict().items()}
    slopes = {"critic.q1": torch.tensor([1.0, 2.0, -4.0]), "critic.q2": torch.tensor([0.5, -8.0, 2.0])}
    for critic, slope in slopes.items():
        # Of each hidden layer unit 0 is in use: its bias of 1 keeps it active, and the head takes it off again.
        for layer in range(len(hidden_sizes)):
            state[f"{critic}.layers.{layer}.bias"][0] = 1.0
            state[f"{critic}.layers.{layer + 1}.weight"][0, 0] = 1.0
        state[f"{critic}.layers.0.weight"][0, O:] = slope
        state[f"{critic}.layers.{len(hidden_sizes)}.bias"][0] -= len(hidden_sizes)
    zeros = Batch(torch.zeros(B, O), torch.zeros(B, A), torch.zeros(B), torch.zeros(B, O), torch.zeros(B))
    noise = {name: torch.zeros(B, A, dtype=dtype) for name in ("next_noise", "noise")}
    for learner in (fused, reference):
        learner.load_state_dict(state)
        learner.update_batch(zeros, **noise)
    head_bias = fused.state_dict()["actor_optimizer.exp_avg"][-2 * A :]  # the last parameters: mean, log-std
    assert torch.equal(fused.state_dict()["critic.q1.layers.0.weight"], state["critic.q1.layers.0.weight"])
    half_each = -0.5 * (slopes["critic.q1"] + slopes["critic.q2"]).to(dtype)
    torch.testing.assert_close(head_bias[:A], 0.1 * half_each)  # 1 - beta1 = 0.1
    assert_same_state(fused, reference, NARROW[dtype])


# ---- Sizes ---------------------------------------------------------------------------------------------------------

options_of_any_size = st.fixed_dictionaries(
    {
        "hidden_sizes": st.lists(st.integers(1, 70), max_size=3).map(tuple),
        "batch_size": st.integers(1, 70),
        "log_std_bounding": st.sampled_from(["clamp", "tanh", "none"]),
        "log_std_bounds": st.just((-5.0, 2.0)),
    }
)
variants = st.sampled_from([{}, V1, {"alpha": 0.0, "deterministic_policy": True}])


@either_dtype
@settings(deadline=None, derandomize=True, max_examples=50)
@given(options=options_of_any_size, variant=variants, sizes=st.tuples(st.integers(1, 50), st.integers(1, 20)))
def test_any_size(dtype: torch.dtype, options: dict[str, Any], variant: dict[str, Any], sizes: tuple[int, int]) -> None:
    check_updates({**options, **variant}, dtype, WIDE[dtype], counts=(1, 3), sizes=sizes)


def network(hidden_sizes: tuple[int, ...], batch_size: int, **options: Any) -> dict[str, Any]:
    return {"hidden_sizes": hidden_sizes, "batch_size": batch_size, **options}


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((17, 6), network((256, 256), 256)),  # HalfCheetah
        ((376, 17), network((256, 256), 256)),  # Humanoid
        ((400, 60), network((100,), 300)),
        ((3, 2), network((40,), 1100)),
        ((11, 3), network((100, 100), 300, **V1)),
        ((3, 1), network((400, 300), 100)),
        ((1, 1), network((1,), 1)),
        ((5, 100), network((), 9)),
        ((3, 1024), network((8,), 3)),
        ((3, 1100), network((8,), 3)),  # more actions than a tile of core/tile.h has elements
        ((3, 2500), network((), 2, **V1)),
    ],
    ids=str,
)
@either_dtype
def test_large_and_odd_sizes(sizes: tuple[int, int], options: dict[str, Any], dtype: torch.dtype) -> None:
    check_updates(options, dtype, WIDE[dtype], counts=(1, 2), sizes=sizes)


@pytest.mark.parametrize("sizes", [(1, 1), (3, 2), (33, 5), (31, 1)], ids=str)
@either_dtype
def test_linear_networks_take_their_own_inputs_alone(sizes: tuple[int, int], dtype: torch.dtype) -> None:
    """V(x) of v1 stands beside Q(x, a): without hidden layers both read the same rows."""
    check_updates(network((), 16, **V1), dtype, NARROW[dtype], counts=(1, 20), sizes=sizes)


# ---- Instruction sets ----------------------------------------------------------------------------------------------


def check_everything() -> None:
    """Run by a process of its own for an instruction set: the options, and sizes around the widths of its vectors."""
    torch.set_num_threads(1)
    draw = random.Random(0)
    for name, dtype in DTYPES.items():
        for options in OPTIONS.values():
            check_updates(options, dtype, NARROW[dtype], counts=(4,))
        for _ in range(15):
            hidden_sizes = tuple(draw.choice((1, 4, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65)) for _ in range(2))
            sizes = (draw.randint(1, 40), draw.randint(1, 20))
            check_updates(network(hidden_sizes, draw.randint(1, 40)), dtype, WIDE[dtype], counts=(1, 3), sizes=sizes)
        print(name, _ext.info()["cpu_level"])


def test_other_instruction_sets() -> None:
    """Side by side, each in a process of its own: the one in use is what all other tests of this file run."""
    info = _ext.info()
    levels = [level for level in info["cpu_levels_available"] if level != info["cpu_level"]]
    if not levels:
        pytest.skip(f"this processor runs {info['cpu_level']} only")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", "import test_fused; test_fused.check_everything()"]
    processes = {
        level: subprocess.Popen(
            command,
            env={**environment, "SACFAST_CPU_LEVEL": level},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for level in levels
    }
    for level, process in processes.items():
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, f"{level}: {errors}"
        assert output.splitlines() == [f"{name} {level}" for name in DTYPES]
