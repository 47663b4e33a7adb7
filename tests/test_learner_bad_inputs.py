"""What a learner does with batches, rows, noise, states and callers that do not fit; both backends."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from bad_inputs import LEARNERS, WIDTH, Learner, every_learner, modes, normal
from learner_cases import OPTIONS, A, B, O, assert_states_equal, make_config, random_batch, random_noise, random_replay
from torch import Tensor

from sacfast import ReplayBuffer
from sacfast.fused import FusedLearner
from sacfast.reference import ReferenceLearner
from sacfast.types import Batch

BAD_DATA: dict[str, tuple[Callable[[Tensor], Any], type[Exception], str]] = {
    "float16": (lambda t: t.half(), TypeError, "expected dtype .*, got torch.float16"),
    "int64": (lambda t: t.long(), TypeError, "expected dtype .*, got torch.int64"),
    "complex": (lambda t: t.to(torch.complex64), TypeError, "expected dtype .*, got torch.complex64"),
    "array": (lambda t: t.numpy(), TypeError, "expected a tensor, got ndarray"),
    "column": (lambda t: t.unsqueeze(-1), ValueError, r"expected shape \(16,.*\), got \(16,.* 1\)"),
    "one row": (lambda t: t[:1], ValueError, r"expected shape \(16,.*\), got \(1,"),
    "no rows": (lambda t: t[:0], ValueError, r"expected shape \(16,.*\), got \(0,"),
    "meta": (lambda t: t.to("meta"), ValueError, "expected a tensor on cpu like the learner, got one on meta"),
    "requires_grad": (lambda t: t.clone().requires_grad_(), ValueError, "expected a tensor without requires_grad"),
}
bad_data = pytest.mark.parametrize(("spoil", "error", "message"), BAD_DATA.values(), ids=BAD_DATA.keys())


def assert_unchanged(learner: Learner, act: Callable[[], object], error: type[Exception], message: str) -> None:
    before = learner.state_dict()
    with pytest.raises(error, match=message):
        act()
    assert_states_equal(learner.state_dict(), before)


@every_learner
@bad_data
def test_a_batch_that_does_not_fit_is_refused(
    make: Callable[..., Learner], spoil: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    """One field of it; without the check a reward [B, 1] made a target [B, B], and no rows made NaN."""
    batch = random_batch(0)
    for options in ({}, OPTIONS["v1"]):
        learner = make(options)
        for name in Batch._fields:
            bad = batch._replace(**{name: spoil(getattr(batch, name))})
            assert_unchanged(
                learner, lambda bad=bad, learner=learner: learner.update_batch(bad), error, f"^{name}: {message}"
            )
        whole = Batch(*(spoil(field) for field in batch))
        assert_unchanged(learner, lambda whole=whole, learner=learner: learner.update_batch(whole), error, message)


@every_learner
@bad_data
def test_noise_that_does_not_fit_is_refused(
    make: Callable[..., Learner], spoil: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    learner, batch = make(), random_batch(0)
    noise = random_noise(learner.config, 0, torch.float32)
    for name, good in noise.items():
        bad = {**noise, name: spoil(good)}
        assert_unchanged(learner, lambda bad=bad: learner.update_batch(batch, **bad), error, f"^{name}: {message}")


@every_learner
def test_a_batch_of_views_is_that_of_their_copies(make: Callable[..., Learner]) -> None:
    batch = random_batch(0)
    views = Batch(
        normal(O, B).t(), normal(B, 2 * A)[:, ::2].tanh(), normal(1).expand(B), normal(1, O).expand(B, O), batch[4]
    )
    states = []
    for each in (views, Batch(*(field.contiguous() for field in views))):
        learner = make()
        learner.update_batch(each)
        states.append(learner.state_dict())
    assert_states_equal(*states)


class GivenRows:
    """A buffer of 64 transitions with rows and row numbers as they are given."""

    def __init__(self, rows: Tensor, draw: Callable[[int], Tensor]) -> None:
        self.rows, self.draw = rows, draw

    def __len__(self) -> int:
        return 64

    def sample(self, batch_size: int) -> Batch:
        raise AssertionError("the fused learner draws row numbers")


@pytest.mark.parametrize("rows", [torch.zeros(64, 2 * WIDTH)[:, ::2], torch.zeros(1, WIDTH).expand(64, WIDTH)])
def test_rows_with_holes_are_refused(rows: Tensor) -> None:
    learner = LEARNERS["fused"]()
    replay = GivenRows(rows, lambda count: torch.zeros(count, dtype=torch.int64))
    assert_unchanged(
        learner, lambda: learner.update(replay), ValueError, "replay: expected contiguous rows, got strides"
    )


@pytest.mark.parametrize(
    ("draw", "got"),
    [
        (lambda count: torch.zeros(count, dtype=torch.int32), r"torch.int32 \[16\] on cpu"),
        (lambda count: torch.zeros(count - 1, dtype=torch.int64), r"torch.int64 \[15\] on cpu"),
        (lambda count: torch.zeros(count, dtype=torch.int64, device="meta"), r"torch.int64 \[16\] on meta"),
    ],
)
def test_row_numbers_that_do_not_fit_are_refused(draw: Callable[[int], Tensor], got: str) -> None:
    learner = LEARNERS["fused"]()
    replay = GivenRows(torch.zeros(64, WIDTH), draw)
    message = f"replay: expected 16 int64 row numbers on cpu, got {got}"
    assert_unchanged(learner, lambda: learner.update(replay), ValueError, message)


@every_learner
@pytest.mark.parametrize("mean", [-20.0, 20.0])
@pytest.mark.parametrize("log_std", [-1e4, 1e4])
def test_a_policy_of_extremes_is_learned_from(make: Callable[..., Learner], mean: float, log_std: float) -> None:
    learner = make()
    state = learner.state_dict()
    state["actor.layers.2.bias"] = torch.tensor([mean] * A + [log_std] * A)
    learner.load_state_dict(state)
    metrics = learner.update(random_replay(), 3).to_dict()
    assert all(math.isfinite(value) for value in metrics.values())
    assert all(value.isfinite().all() for value in learner.state_dict().values())
    assert learner.gradient_updates == 3


@every_learner
def test_targets_never_share_storage(make: Callable[..., Learner]) -> None:
    for options in ({}, OPTIONS["v1"], OPTIONS["hard-every-1"]):
        learner = make(options)
        learner.update(random_replay(), 2)
        networks = learner._networks.values()
        assert len({network.flat.untyped_storage().data_ptr() for network in networks}) == len(networks)


@every_learner
def test_a_state_whose_tensors_are_one(make: Callable[..., Learner]) -> None:
    """A state that a user has put together from one tensor twice must not tie the target to the online network."""
    state = make().state_dict()
    shared = {
        name: state[name.removeprefix("target_")] if name.startswith("target_") else state[name] for name in state
    }
    results = []
    for given in (shared, {name: value.clone() for name, value in shared.items()}):
        learner = make()
        learner.load_state_dict(given)
        learner.update(random_replay(), 3)
        results.append(learner.state_dict())
    assert_states_equal(*results)
    name = "critic.q1.layers.0.weight"
    assert not torch.equal(results[0][name], results[0][f"target_{name}"])


@every_learner
@pytest.mark.parametrize("mode", modes().values(), ids=modes().keys())
def test_the_callers_mode_does_not_reach_into_an_update(
    make: Callable[..., Learner], mode: Callable[[], AbstractContextManager[Any]]
) -> None:
    expected = make()
    expected_metrics = expected.update(random_replay(), 3).to_dict()
    with mode():
        learner = make()
        metrics = learner.update(random_replay(), 2)
    learner.update_batch(random_replay_batch(2))
    assert_states_equal(learner.state_dict(), expected.state_dict())
    assert metrics.keys() == expected_metrics.keys()
    with mode():
        learner.load_state_dict(learner.state_dict())
    learner.update(random_replay(), 1)


def random_replay_batch(earlier: int) -> Batch:
    """The minibatch that comes after so many."""
    replay = random_replay()
    for _ in range(earlier):
        replay.draw(B)
    return replay.sample(B)


@pytest.mark.cuda
def test_the_reference_on_a_side_stream() -> None:
    learners = [ReferenceLearner(O, A, make_config(), device="cuda", seed=1) for _ in range(2)]
    replays = []
    for _ in learners:
        replay = ReplayBuffer(64, O, A, device="cuda")
        batch = random_batch(0, rows=64)
        replay.add(*batch[:4], batch.terminated.bool())
        replays.append(replay)
    torch.cuda.synchronize()
    learners[0].update(replays[0], 10)
    with torch.cuda.stream(torch.cuda.Stream()):
        learners[1].update(replays[1], 10)
        torch.cuda.current_stream().synchronize()
    torch.cuda.synchronize()
    states = [{name: value.cpu() for name, value in learner.state_dict().items()} for learner in learners]
    assert_states_equal(*states)


@every_learner
def test_a_second_thread_is_refused_whatever_it_asks(make: Callable[..., Learner]) -> None:
    learner, inside, leave = make(), threading.Event(), threading.Event()
    state, batch = learner.state_dict(), random_batch(0)

    def draw(count: int) -> Tensor:
        inside.set()
        leave.wait(60)
        return torch.arange(count)

    class Slow(GivenRows):
        def sample(self, batch_size: int) -> Batch:
            draw(batch_size)
            return batch

    def first() -> None:
        learner.update(Slow(torch.cat([field.view(B, -1) for field in batch], 1), draw), 1)

    worker = threading.Thread(target=first)
    worker.start()
    assert inside.wait(60)
    acts: list[Callable[[], object]] = [
        lambda: learner.update(random_replay(), 1),
        lambda: learner.update_batch(random_batch(1)),
        learner.state_dict,
        lambda: learner.load_state_dict(state),
    ]
    if isinstance(learner, FusedLearner):
        acts += [lambda: learner.profile(random_replay(), 1), learner.wait]
    for act in acts:
        with pytest.raises(RuntimeError, match=r"^learner: in use by another thread$"):
            act()
    leave.set()
    worker.join(60)
    twin = make()
    twin.update_batch(batch)
    for each in (learner, twin):
        each.update(random_replay(), 1)
    assert_states_equal(learner.state_dict(), twin.state_dict())


BAD_STATES = [
    ({}, "reward", {}, "critic_loss"),
    ({}, "next_observation", {}, "critic_loss"),
    (OPTIONS["v1"], "reward", {}, "critic_loss"),
    ({}, None, {"actor.layers.2.bias": math.nan}, "critic_loss"),
    (OPTIONS["v1"], None, {"actor.layers.2.bias": math.nan}, "(value|actor)_loss"),
    (OPTIONS["v1"], None, {"value.layers.2.bias": math.inf}, "value_loss"),
    # Q is small and its error 1, but the head's weight times the observation overflows (see test_fused_state.py).
    (
        {"hidden_sizes": (8,)},
        None,
        {"critic.q1.layers.0.weight": 0.0, "critic.q1.layers.0.bias": 2e-38, "critic.q1.layers.1.weight": 1e38},
        "the gradient of critic",
    ),
    # The gradient is finite, at 1e24, but its square is not.
    (
        {"hidden_sizes": (8,)},
        None,
        {"critic.q1.layers.0.weight": 0.0, "critic.q1.layers.0.bias": 1e-28, "critic.q1.layers.1.weight": 1e24},
        "the optimiser state of critic",
    ),
    (
        {"hidden_sizes": (8,)},
        None,
        {"actor.layers.0.weight": 0.0, "actor.layers.0.bias": 1e-29, "actor.layers.1.weight": 1e24},
        "the optimiser state of actor",
    ),
]


@pytest.mark.parametrize("fused_ops", [True, False])
@pytest.mark.parametrize(("options", "field", "entries", "what"), BAD_STATES)
def test_the_reference_takes_on_no_bad_number(
    options: dict[str, Any], field: str | None, entries: dict[str, float], what: str, fused_ops: bool
) -> None:
    learner = ReferenceLearner(O, A, make_config(options, fused_ops=fused_ops), seed=1)
    learner.update(random_replay(), 2)
    state = learner.state_dict()
    for name, value in entries.items():
        state[name].fill_(value)
    learner.load_state_dict(state)
    batch = random_batch(0)
    batch = batch._replace(observation=1e3 * batch.observation, terminated=torch.zeros(B))
    if field is not None:
        getattr(batch, field)[3] = math.nan
    with pytest.raises(FloatingPointError, match=rf"^update 3: {what} is not finite; no parameter has taken it on$"):
        learner.update_batch(batch)
    assert learner.gradient_updates == 2
    after = learner.state_dict()
    assert all(value.isfinite().all() for name, value in after.items() if name not in entries)


@every_learner
def test_an_overflow_in_the_temperatures_optimiser_is_named(make: Callable[..., Learner]) -> None:
    learner = make({"target_entropy": 1e25})
    with pytest.raises(FloatingPointError, match=r"^update 1: the optimiser state of log_alpha is not finite;"):
        learner.update_batch(random_batch(0))
    state = learner.state_dict()
    assert state["alpha_optimizer.exp_avg_sq"] == state["alpha_optimizer.step"] == state["log_alpha"] == 0
