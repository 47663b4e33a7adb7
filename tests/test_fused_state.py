"""The fused learner's state, and what it leaves as it was when it refuses or fails."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from learner_cases import (
    OPTIONS,
    A,
    B,
    O,
    assert_states_equal,
    every_option,
    make_config,
    random_batch,
    random_noise,
    random_replay,
)
from safetensors.torch import load_file, save_file
from torch import Tensor

from sacfast import _ext
from sacfast.fused import FusedLearner
from sacfast.networks import ACTIVATIONS
from sacfast.reference import ReferenceLearner
from sacfast.types import Batch, Metrics

State = dict[str, Tensor]
V1 = {"value_network": True, "alpha": 0.2}
either_dtype = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])


def fused(options: Mapping[str, Any] | None = None, seed: int = 3, dtype: torch.dtype = torch.float32) -> FusedLearner:
    return FusedLearner(O, A, make_config(options), seed=seed, dtype=dtype)


# ---- State ---------------------------------------------------------------------------------------------------------


@every_option
@either_dtype
def test_the_state_is_named_and_shaped_as_the_references(options: dict[str, Any], dtype: torch.dtype) -> None:
    state = fused(options, dtype=dtype).state_dict()
    expected = ReferenceLearner(O, A, make_config(options), seed=3, dtype=dtype).state_dict()
    assert_states_equal(state, expected)
    for name, value in expected.items():
        assert state[name].shape == value.shape, name


@every_option
@pytest.mark.parametrize("first", ["fused", "reference"])
def test_one_backend_continues_what_the_other_began(options: dict[str, Any], first: str) -> None:
    """In float64, where they differ in rounding alone: see test_fused.py for the limit."""
    backends: dict[str, type[FusedLearner | ReferenceLearner]] = {"fused": FusedLearner, "reference": ReferenceLearner}
    second = next(name for name in backends if name != first)
    begun = backends[first](O, A, make_config(options), seed=3, dtype=torch.float64)
    begun.update(random_replay(seed=0), 4)  # 4 of 3: in the middle of a target interval
    continued = backends[second](O, A, make_config(options), seed=4, dtype=torch.float64)
    continued.load_state_dict(begun.state_dict())
    assert_states_equal(continued.state_dict(), begun.state_dict())
    for learner in (begun, continued):
        learner.update(random_replay(seed=1), 5)
    state, expected = continued.state_dict(), begun.state_dict()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=1e-12)
    assert continued.gradient_updates == 9


@every_option
@either_dtype
def test_a_loaded_learner_continues_bit_for_bit(options: dict[str, Any], dtype: torch.dtype) -> None:
    learner = fused(options, dtype=dtype)
    learner.update(random_replay(seed=0), 4)
    saved = learner.state_dict()
    learner.update(random_replay(seed=1), 5)

    resumed = fused(options, seed=4, dtype=dtype)
    resumed.update(random_replay(seed=2), 2)  # what it did before must not matter
    resumed.load_state_dict(saved)
    assert_states_equal(resumed.state_dict(), saved)
    assert torch.equal(resumed.actor.flat, torch.cat([saved[f"actor.{n}"].flatten() for n in actor_names(resumed)]))
    resumed.update(random_replay(seed=1), 5)
    assert_states_equal(resumed.state_dict(), learner.state_dict())
    assert resumed.gradient_updates == 9


def actor_names(learner: FusedLearner) -> list[str]:
    return [name for name, _ in learner.actor.named_parameters()]


def test_a_state_is_a_copy() -> None:
    learner = fused()
    learner.update(random_replay(), 1)
    saved = learner.state_dict()
    before = {name: tensor.clone() for name, tensor in saved.items()}
    learner.update(random_replay(), 1)
    assert_states_equal(saved, before)
    assert len({tensor.untyped_storage().data_ptr() for tensor in saved.values()}) == len(saved)  # safetensors' wish


def test_loading_leaves_the_given_state_alone() -> None:
    saved = fused(seed=4).state_dict()
    before = {name: tensor.clone() for name, tensor in saved.items()}
    learner = fused()
    learner.load_state_dict(saved)
    learner.update(random_replay(), 2)
    assert_states_equal(saved, before)


def test_the_actor_stays_where_the_policy_looks() -> None:
    learner = fused()
    actor, address = learner.actor, learner.actor.flat.data_ptr()
    before = actor.flat.clone()
    learner.update(random_replay(), 2)
    assert not torch.equal(actor.flat, before)
    learner.load_state_dict(fused(seed=4).state_dict())
    assert learner.actor is actor
    assert actor.flat.data_ptr() == address
    assert torch.equal(actor.flat, fused(seed=4).actor.flat)


@pytest.mark.parametrize(
    ("options", "streams"),
    [({}, 2), ({"alpha": 0.2}, 2), (V1, 1), ({"alpha": 0.0, "deterministic_policy": True}, 0)],
    ids=["v2", "fixed", "v1", "deterministic"],
)
def test_updates_and_noise_are_counted(options: dict[str, Any], streams: int) -> None:
    learner = fused(options)
    seed, offset = learner.state_dict()["noise_state"].tolist()
    assert (offset, learner.gradient_updates) == (0, 0)
    for updates, total in ((1, 1), (0, 1), (6, 7)):
        learner.update(random_replay(), updates)
        state = learner.state_dict()
        assert state["noise_state"].tolist() == [seed, streams * total]
        assert learner.gradient_updates == state["gradient_updates"] == total
        steps = [state[name] for name in state if name.endswith(".step")]
        assert steps == [total] * len(steps)
    learner.update_batch(random_batch(0), **random_noise(learner.config, 0, torch.float32))
    assert learner.state_dict()["noise_state"].tolist() == [seed, streams * 7]
    assert learner.gradient_updates == 8


def test_runs_depend_on_the_seed_alone() -> None:
    def run(seed: int) -> State:
        learner = fused(seed=seed)
        learner.update(random_replay(), 5)
        return learner.state_dict()

    first = run(7)
    torch.manual_seed(99)  # torch's own generator has no part in it
    assert_states_equal(run(7), first)
    assert not torch.equal(run(8)["actor.layers.0.weight"], first["actor.layers.0.weight"])


def test_many_updates_in_one_call_equal_one_by_one() -> None:
    together, alone = fused(), fused()
    metrics = together.update(random_replay(), 20).to_dict()
    replay = random_replay()
    single = [alone.update(replay).to_dict() for _ in range(20)]
    assert_states_equal(together.state_dict(), alone.state_dict())
    for name, value in metrics.items():
        # The mean of float32 numbers, summed in two orders.
        assert value == pytest.approx(sum(each[name] for each in single) / 20, rel=1e-6, abs=1e-6), name


def test_a_call_may_be_cut_into_several_native_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bit depends on how: neither of the state nor of the metrics."""

    def updated(steps_per_call: int) -> tuple[FusedLearner, Metrics]:
        learner = fused()
        monkeypatch.setattr(learner, "_pace", lambda steps, seconds: None)
        monkeypatch.setattr(learner, "_steps_per_call", steps_per_call)
        return learner, learner.update(random_replay(), 20)

    whole, metrics = updated(20)
    for steps_per_call in (1, 7):
        cut, cut_metrics = updated(steps_per_call)
        assert_states_equal(cut.state_dict(), whole.state_dict())
        assert cut_metrics.to_dict() == metrics.to_dict()


def test_a_call_takes_about_as_long_as_it_should(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = fused()
    for steps, seconds, expected in ((1, 1e-3, 50), (50, 0.025, 100), (100, 10.0, 1), (1, 0.0, 50_000)):
        learner._pace(steps, seconds)
        assert learner._steps_per_call == expected
    monkeypatch.setattr("sacfast.fused.INDEX_WORDS_PER_CALL", 7 * B + 1)
    learner._pace(1, 1e-3)
    assert learner._steps_per_call == 7


def test_profiling_changes_nothing_but_the_time() -> None:
    learner, twin = fused(), fused()
    phases = learner.profile(random_replay(), 5)
    twin.update(random_replay(), 5)
    assert_states_equal(learner.state_dict(), twin.state_dict())
    assert len({phase["phase"] for phase in phases}) == len(phases)
    assert all(phase["milliseconds"] >= 0 for phase in phases)
    assert sum(phase["milliseconds"] for phase in phases) > 0
    # At least the actor and both critics, forward, on two minibatches: a multiply-add is two operations.
    actor, critic = O * 16 + 16 * 8 + 8 * 2 * A, (O + A) * 16 + 16 * 8 + 8
    assert sum(phase["megaflop"] for phase in phases) * 1e6 > 2 * B * 2 * (actor + 2 * critic)


def set_entry(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update({name: value})


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda state: state.pop("critic.q2.layers.0.bias"), ValueError, "critic.q2.layers.0.bias is missing"),
        (lambda state: state.pop("noise_state"), ValueError, "noise_state is missing"),
        (set_entry("surplus", torch.zeros(1)), ValueError, "surplus is not expected"),
        (
            set_entry("critic_optimizer.exp_avg", torch.zeros(2)),
            ValueError,
            r"critic_optimizer.exp_avg is torch.float32 \[2\], expected torch.float32 \[",
        ),
        (
            set_entry("log_alpha", torch.zeros((), dtype=torch.float64)),
            ValueError,
            r"log_alpha is torch.float64 \[\], expected torch.float32 \[\]",
        ),
        (set_entry("gradient_updates", 3), TypeError, "expected a tensor for gradient_updates, got int"),
        (
            set_entry("noise_state", torch.zeros(3, dtype=torch.int64)),
            ValueError,
            r"noise_state is torch.int64 \[3\], expected torch.int64 \[2\]",
        ),
    ],
    ids=["missing", "missing-noise", "surplus", "shape", "dtype", "no-tensor", "noise-shape"],
)
def test_a_refused_state_changes_nothing(
    damage: Callable[[dict[str, Any]], None], error: type[Exception], message: str
) -> None:
    learner, other = fused(), fused(seed=4)
    learner.update(random_replay(), 1)
    other.update(random_replay(), 2)
    state = other.state_dict()
    damage(state)
    before = learner.state_dict()
    with pytest.raises(error, match=message):
        learner.load_state_dict(state)
    assert_states_equal(learner.state_dict(), before)
    assert learner.gradient_updates == 1


@pytest.mark.parametrize("name", ["critic_optimizer.step", "alpha_optimizer.step"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0, 0.5])
def test_a_state_with_a_count_that_is_none_changes_nothing(name: str, value: float) -> None:
    learner, other = fused(), fused(seed=4)
    learner.update(random_replay(), 1)
    state, before = other.state_dict(), learner.state_dict()
    state[name].fill_(value)
    with pytest.raises(ValueError, match=f"state: expected a count >= 0 for {name}, got"):
        learner.load_state_dict(state)
    assert_states_equal(learner.state_dict(), before)


def test_a_state_of_another_configuration_is_refused() -> None:
    with pytest.raises(ValueError, match=r"target_critic\..* is missing.*target_value\..* is not expected"):
        fused().load_state_dict(fused(V1).state_dict())


def test_a_file_keeps_every_bit_of_a_state(tmp_path: Path) -> None:
    learner = fused()
    learner.update(random_replay(), 3)
    state = learner.state_dict()
    save_file(state, tmp_path / "state.safetensors")
    loaded = load_file(tmp_path / "state.safetensors")
    assert_states_equal({name: loaded[name] for name in state}, state)


# ---- What is refused before anything is changed --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gradient_steps", "length", "error", "message"),
    [
        (-1, 64, ValueError, "gradient_steps: expected an int >= 0, got -1"),
        (1.5, 64, TypeError, "gradient_steps: expected an int >= 0, got 1.5"),
        (True, 64, TypeError, "gradient_steps: expected an int >= 0, got True"),
        (1, 15, ValueError, r"replay: expected at least batch_size \(16\) transitions, got 15"),
    ],
)
def test_update_refuses(gradient_steps: Any, length: int, error: type[Exception], message: str) -> None:
    learner = fused()
    before = learner.state_dict()
    with pytest.raises(error, match=message):
        learner.update(random_replay(length), gradient_steps)
    assert_states_equal(learner.state_dict(), before)


def test_no_updates_change_nothing() -> None:
    learner = fused()
    before = learner.state_dict()
    metrics = learner.update(random_replay(), 0)
    assert_states_equal(learner.state_dict(), before)
    assert all(value != value for value in metrics.to_dict().values())  # NaN


class FullReplay:
    """What a learner asks of a buffer of 64 transitions, but for the rows and how they are drawn."""

    def __len__(self) -> int:
        return 64

    def sample(self, batch_size: int) -> Batch:
        raise AssertionError("the fused learner draws row numbers")


class OtherRows(FullReplay):
    rows: Any = None

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def draw(self, count: int) -> Tensor:
        raise AssertionError("nothing is drawn from rows that do not fit")


WIDTH = 2 * O + A + 2


@pytest.mark.parametrize(
    "rows",
    [
        torch.zeros(64, WIDTH + 1),
        torch.zeros(64, WIDTH, dtype=torch.float64),
        torch.zeros(64, WIDTH, dtype=torch.float16),
        torch.zeros(64 * WIDTH),
        torch.zeros(64, WIDTH, device="meta"),
    ],
    ids=["width", "float64", "float16", "flat", "device"],
)
def test_other_rows_are_refused(rows: Tensor) -> None:
    learner = fused()
    before = learner.state_dict()
    expected = f"replay: expected rows of {WIDTH} float32 on cpu (observation_dim {O}, action_dim {A}), got "
    found = f"{rows.dtype} {list(rows.shape)} on {rows.device}"
    with pytest.raises(ValueError, match=re.escape(expected + found)):
        learner.update(OtherRows(rows), 1)
    assert_states_equal(learner.state_dict(), before)


def test_a_buffer_of_other_sizes_is_refused() -> None:
    with pytest.raises(ValueError, match=rf"replay: expected rows of {WIDTH} float32 .*got .*\[64, {WIDTH + 2}\]"):
        fused().update(random_replay(observation_dim=O + 1), 1)


def test_rows_that_were_never_stored_are_refused() -> None:
    """A row number beyond the rows must not read beyond them."""

    class Beyond(FullReplay):
        rows = random_replay().rows

        def draw(self, count: int) -> Tensor:
            return torch.full((count,), 64)

    learner = fused()
    before = learner.state_dict()
    with pytest.raises(ValueError, match=r"index: expected rows in \[0, 64\), got 64"):
        learner.update(Beyond(), 2)
    assert_states_equal(learner.state_dict(), before)


@pytest.mark.parametrize("name", ["next_noise", "noise"])
@pytest.mark.parametrize("shape", [(B, A + 1), (B + 1, A), (A, B), (B * A,), ()], ids=str)
def test_noise_of_another_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    learner = fused()
    before = learner.state_dict()
    expected = re.escape(f"{name}: expected shape ({B}, {A}), got {shape}")
    with pytest.raises(ValueError, match=expected):
        learner.update_batch(random_batch(0), **{name: torch.zeros(shape)})
    assert_states_equal(learner.state_dict(), before)


@pytest.mark.parametrize(
    ("options", "refused"),
    [(V1, ["next_noise"]), ({"deterministic_policy": True, "alpha": 0.0}, ["next_noise", "noise"])],
    ids=["v1", "deterministic"],
)
def test_noise_without_a_use_is_refused(options: dict[str, Any], refused: list[str]) -> None:
    learner = fused(options)
    for name in refused:
        with pytest.raises(ValueError, match=f"^{name}: expected None"):
            learner.update_batch(random_batch(0), **{name: torch.zeros(B, A)})
    assert learner.gradient_updates == 0


def test_noise_may_be_any_view() -> None:
    learner, twin = fused(), fused()
    noise = torch.randn(A, B, generator=torch.Generator().manual_seed(0))
    learner.update_batch(random_batch(0), noise.T, noise.T)
    twin.update_batch(random_batch(0), noise.T.contiguous(), noise.T.contiguous())
    assert_states_equal(learner.state_dict(), twin.state_dict())


@pytest.mark.parametrize("rows", [B - 1, B + 1])
def test_a_batch_of_another_size_is_refused(rows: int) -> None:
    learner = fused()
    before = learner.state_dict()
    with pytest.raises(ValueError, match=rf"expected .*{B}.*got .*{rows}"):
        learner.update_batch(random_batch(0, rows=rows))
    assert_states_equal(learner.state_dict(), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "meta"}, "device: the fused backend runs on 'cpu' and 'cuda', got 'meta'"),
        ({"dtype": torch.float16}, "dtype: expected torch.float32 or torch.float64, got torch.float16"),
        ({"seed": -1}, "seed: expected an int >= 0, got -1"),
    ],
    ids=str,
)
def test_what_the_backend_does_not_have_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FusedLearner(O, A, make_config(), **arguments)


@pytest.mark.skipif(_ext.cuda_reason() == "", reason="a GPU can be used here")
def test_a_gpu_that_cannot_be_used_is_refused_with_the_reason() -> None:
    expected = f"device: expected one that this machine has, got 'cuda': {_ext.cuda_reason()}"
    with pytest.raises(ValueError, match=re.escape(expected)):
        FusedLearner(O, A, make_config(), device="cuda")


@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "relu"])
def test_another_activation_is_refused_by_name(activation: str) -> None:
    message = f"activation: the fused backend has 'relu' alone, got '{activation}'; .* backend 'reference'"
    with pytest.raises(ValueError, match=message):
        FusedLearner(O, A, make_config(activation=activation))


# ---- Numbers that are not finite -----------------------------------------------------------------------------------


def assert_nothing_changes(learner: FusedLearner, fail: Callable[[], object], message: str) -> None:
    before = learner.state_dict()
    with pytest.raises(FloatingPointError, match=message):
        fail()
    assert_states_equal(learner.state_dict(), before)
    actor = torch.cat([before[f"actor.{name}"].flatten() for name in actor_names(learner)])
    assert learner.actor.flat.numpy().tobytes() == actor.numpy().tobytes()


def assert_goes_on_from(state: State, learner: FusedLearner) -> None:
    """As a learner does that never met a number that is not finite."""
    twin = fused_like(learner)
    twin.load_state_dict(state)
    for each in (learner, twin):
        each.update(random_replay(seed=5), 3)
    assert_states_equal(learner.state_dict(), twin.state_dict())
    assert learner.gradient_updates == int(state["gradient_updates"]) + 3


def fused_like(learner: FusedLearner) -> FusedLearner:
    return FusedLearner(O, A, learner.config, seed=9, dtype=learner.actor.flat.dtype)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["observation", "action", "reward", "next_observation"])
@pytest.mark.parametrize("options", [{}, V1, OPTIONS["deterministic"]], ids=["v2", "v1", "deterministic"])
def test_a_batch_that_is_not_finite(options: dict[str, Any], field: str, value: float) -> None:
    learner = fused(options)
    learner.update(random_replay(), 2)
    batch = random_batch(0)
    batch.terminated.zero_()
    getattr(batch, field)[3] = value
    message = (
        rf"^update 3: critic_loss is not finite \(the minibatch holds NaN or infinity in: {field}\); "
        "the learner is as it was after update 2$"
    )
    before = learner.state_dict()
    assert_nothing_changes(learner, lambda: learner.update_batch(batch), message)
    assert_goes_on_from(before, learner)


def assert_two_updates_stay(
    options: Mapping[str, Any],
    spoil: Callable[[FusedLearner, Tensor], object],
    message: str,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of ten updates in one call, after one in a call before: the third draws a transition that `spoil` has spoilt."""
    first, second, third = random_replay().draw(3 * B).chunk(3)
    earlier = {*first.tolist(), *second.tolist()}
    bad = next(row for row in third.tolist() if row not in earlier)
    learner, twin = fused(options), fused(options)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for each in (learner, twin):
        monkeypatch.setattr(each._engine, "_limit", 8)
        each.update(random_replay(seed=7), 1)
    replay = random_replay()
    spoil(learner, replay.rows[bad])
    with pytest.raises(FloatingPointError, match=message):
        learner.update(replay, 10)
    twin.update(random_replay(), 2)
    assert_states_equal(learner.state_dict(), twin.state_dict())
    assert torch.equal(learner.actor.flat, twin.actor.flat)
    for each in (learner, twin):
        each.update(random_replay(seed=6), 5)
    assert_states_equal(learner.state_dict(), twin.state_dict())


@pytest.mark.parametrize("name", ["v2", "v1", "tau", "polyak-every-3", "hard-every-3", "v1-hard-every-3"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_bad_transition_among_good_ones(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(learner: FusedLearner, row: Tensor) -> None:
        row[O + A] = float("nan")

    message = r"^update 4: .*NaN or infinity in: reward\); the learner is as it was after update 3$"
    assert_two_updates_stay(OPTIONS[name], spoil, message, threads, monkeypatch)


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_a_transition_that_is_too_much_for_the_policy_alone(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its log-std overflows at x, after the critics' step was made; at x' = 0 the policy is harmless."""

    def spoil(learner: FusedLearner, row: Tensor) -> None:
        row[:O] = 1e4 * learner.state_dict()["actor.layers.0.weight"][A].sign()
        row[O + A + 1 : -1] = 0

    options = {"hidden_sizes": (), "log_std_bounding": "none"}
    message = "^update 4: actor_loss is not finite; the learner is as it was after update 3$"
    assert_two_updates_stay(options, spoil, message, threads, monkeypatch)


def filled(state: State, entries: Mapping[str, float]) -> State:
    """The state with whole tensors set to one number each."""
    return {n: torch.full_like(v, entries[n]) if n in entries else v.clone() for n, v in state.items()}


BIG, TINY = 1e38, 2e-38


@pytest.mark.parametrize(
    ("options", "entries", "observation", "what"),
    [
        # A network that is broken already.
        ({}, {"actor.layers.1.weight": float("nan")}, 1.0, "critic_loss"),
        ({}, {"critic.q2.layers.2.bias": float("nan")}, 1.0, "critic_loss"),
        ({}, {"critic.q1.layers.0.weight": BIG, "critic.q1.layers.1.weight": BIG}, 1.0, "critic_loss"),
        ({}, {"target_critic.q1.layers.2.bias": -float("inf")}, 1.0, "critic_loss"),
        ({}, {"log_alpha": 200.0}, 1.0, "critic_loss"),
        (V1, {"target_value.layers.2.bias": float("nan")}, 1.0, "critic_loss"),
        # Q is small and its error 1, but the head's weight times the observation overflows.
        (
            {"hidden_sizes": (8,)},
            {"critic.q1.layers.0.weight": 0.0, "critic.q1.layers.0.bias": TINY, "critic.q1.layers.1.weight": BIG},
            1e3,
            "the gradient of critic.q1.layers.0.weight",
        ),
        (
            {"hidden_sizes": (8,), **V1},
            {"critic.q2.layers.0.weight": 0.0, "critic.q2.layers.0.bias": TINY, "critic.q2.layers.1.weight": BIG},
            1e3,
            "the gradient of critic.q2.layers.0.weight",
        ),
        # The gradient is finite, at 1e24, but its square is not.
        (
            {"hidden_sizes": (8,)},
            {"critic.q1.layers.0.weight": 0.0, "critic.q1.layers.0.bias": 1e-25, "critic.q1.layers.1.weight": 1e24},
            1.0,
            "the optimiser state of critic.q1.layers.0.weight",
        ),
        # A moment that is infinite already: the parameter would never move again.
        ({}, {"critic_optimizer.exp_avg_sq": float("inf")}, 1.0, "the optimiser state of critic.q1.layers.0.weight"),
        # From here on the critics' step was made. The log-std at x overflows; at x' = 0 the policy is harmless.
        (
            {"hidden_sizes": (), "log_std_bounding": "none"},
            {"actor.layers.0.weight": BIG},
            1.0,
            "actor_loss",
        ),
        ({"hidden_sizes": (), **V1, "log_std_bounding": "none"}, {"actor.layers.0.weight": BIG}, 1.0, "actor_loss"),
        (V1, {"value.layers.2.bias": 1e30}, 1.0, "value_loss"),
        ({"hidden_sizes": (), **V1}, {"value.layers.0.bias": float("nan")}, 1.0, "value_loss"),
        # The action is moderate, but the head's weight times the observation overflows.
        (
            {"hidden_sizes": (8,)},
            {"actor.layers.0.weight": 0.0, "actor.layers.0.bias": TINY / 20, "actor.layers.1.weight": BIG},
            1e5,
            "the gradient of actor.layers.0.weight",
        ),
        (
            {"hidden_sizes": (8,)},
            {"actor.layers.0.weight": 0.0, "actor.layers.0.bias": 1e-26, "actor.layers.1.weight": 1e24},
            1.0,
            "the optimiser state of actor.layers.0.weight",
        ),
        ({}, {"alpha_optimizer.exp_avg_sq": float("inf")}, 1.0, "the optimiser state of log_alpha"),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_a_state_that_leads_to_numbers_that_are_not_finite(
    options: dict[str, Any],
    entries: dict[str, float],
    observation: float,
    what: str,
    threads: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    learner = fused(options)
    monkeypatch.setattr(learner._engine, "_limit", 8)
    learner.update(random_replay(), 2)
    good = learner.state_dict()
    learner.load_state_dict(filled(good, entries))
    batch = random_batch(0)
    batch = batch._replace(
        observation=observation * batch.observation.sign(), next_observation=0 * batch.next_observation
    )
    message = rf"^update 3: {re.escape(what)} is not finite; the learner is as it was after update 2$"
    assert_nothing_changes(learner, lambda: learner.update_batch(batch), message)
    learner.load_state_dict(good)
    assert_goes_on_from(good, learner)
