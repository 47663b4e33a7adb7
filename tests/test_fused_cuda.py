"""The fused update on a GPU against the CPU's: the same states, the same faults, the same bits run to run."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from learner_cases import A, B, O, assert_states_equal, every_option, make_config, random_batch, random_noise
from torch import Tensor

from sacfast.config import SACConfig
from sacfast.fused import FusedLearner
from sacfast.learner import make_learner, side_by_side
from sacfast.replay import ReplayBuffer
from sacfast.types import Metrics

pytestmark = pytest.mark.cuda
State = dict[str, Tensor]


def learners(config: SACConfig, dtype: torch.dtype) -> tuple[FusedLearner, FusedLearner]:
    """On the CPU and on the GPU, with the same parameters."""
    cpu, gpu = (FusedLearner(O, A, config, device=device, seed=3, dtype=dtype) for device in ("cpu", "cuda"))
    assert_states_equal(cpu.state_dict(), host(gpu.state_dict()))
    return cpu, gpu


def host(state: State) -> State:
    return {name: value.cpu() for name, value in state.items()}


def on_gpu(noise: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.cuda() for name, value in noise.items()}


def filled(length: int = 64) -> ReplayBuffer:
    replay = ReplayBuffer(length, O, A, device="cuda", seed=0)
    batch = random_batch(0, rows=length)
    replay.add(*batch[:4], batch.terminated.bool())
    return replay


@every_option
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 2e-4)], ids=["f64", "f32"])
def test_the_updates_are_those_of_the_cpu(options: dict[str, Any], dtype: torch.dtype, limit: float) -> None:
    """By rounding alone they differ: in the order of sums, which Adam's division by a small root magnifies."""
    cpu, gpu = learners(make_config(options), dtype)
    for step in range(10):
        batch, noise = random_batch(step, dtype), random_noise(cpu.config, step, dtype)
        expected = cpu.update_batch(batch, **noise)
        found = gpu.update_batch(type(batch)(*(field.cuda() for field in batch)), **on_gpu(noise))
        torch.testing.assert_close(found.cpu(), expected, rtol=limit, atol=limit)
    gpu.wait()
    state = host(gpu.state_dict())
    for name, value in cpu.state_dict().items():
        torch.testing.assert_close(
            state[name], value, rtol=limit, atol=limit, msg=lambda text, name=name: f"{name}: {text}"
        )
    torch.testing.assert_close(gpu.actor.flat.cpu(), cpu.actor.flat, rtol=limit, atol=limit)


@pytest.mark.parametrize(
    ("batch_size", "hidden_sizes"), [(1, (5,)), (37, (33, 70)), (256, (256, 256)), (300, (64, 17, 129))], ids=str
)
def test_sizes(batch_size: int, hidden_sizes: tuple[int, ...]) -> None:
    cpu, gpu = learners(make_config(batch_size=batch_size, hidden_sizes=hidden_sizes), torch.float64)
    for step in range(3):
        batch = random_batch(step, torch.float64, rows=batch_size)
        noise = random_noise(cpu.config, step, torch.float64, rows=batch_size)
        cpu.update_batch(batch, **noise)
        gpu.update_batch(type(batch)(*(field.cuda() for field in batch)), **on_gpu(noise))
    state = host(gpu.state_dict())
    for name, value in cpu.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("precision", "limit"), [("tf32", 2e-3), ("bfloat16", 2e-2)])
def test_tensor_cores_are_near_to_float32(precision: str, limit: float) -> None:
    """One update from the same state: TF32 has 11 bits, bfloat16 8, of each operand of sums of 64 terms."""
    sizes = {"hidden_sizes": (64, 64), "batch_size": 64}
    exact, rounded = (
        FusedLearner(O, A, make_config(sizes, matmul_precision=name), device="cuda", seed=3)
        for name in ("float32", precision)
    )
    batch = random_batch(0, rows=64)
    noise = on_gpu(random_noise(exact.config, 0, torch.float32, rows=64))
    on_device = type(batch)(*(field.cuda() for field in batch))
    expected, found = exact.update_batch(on_device, **noise), rounded.update_batch(on_device, **noise)
    torch.testing.assert_close(found, expected, rtol=limit, atol=limit)
    assert not torch.equal(found, expected)


def test_the_same_start_gives_the_same_bits() -> None:
    def run(calls: list[int]) -> State:
        learner, replay = make_learner(O, A, make_config(), device="cuda", seed=3), filled()
        for steps in calls:
            learner.update(replay, steps)
        return host(learner.state_dict())

    expected = run([12])
    assert expected["gradient_updates"] == 12
    assert_states_equal(run([12]), expected)


def test_noise_drawn_inside_is_the_cpus() -> None:
    cpu, gpu = learners(make_config(), torch.float64)
    batch = random_batch(0, torch.float64)
    for _ in range(2):
        cpu.update_batch(batch)
        gpu.update_batch(type(batch)(*(field.cuda() for field in batch)))
    state = host(gpu.state_dict())
    assert torch.equal(state["noise_state"], cpu.state_dict()["noise_state"])
    torch.testing.assert_close(
        state["actor.layers.0.weight"], cpu.state_dict()["actor.layers.0.weight"], atol=1e-9, rtol=0
    )


def test_a_state_goes_on_in_another_learner_and_on_the_cpu() -> None:
    learner, replay = make_learner(O, A, make_config(), device="cuda", seed=3), filled()
    learner.update(replay, 3)
    state = learner.state_dict()
    other = make_learner(O, A, make_config(), device="cuda", seed=9)
    other.load_state_dict(state)
    assert other.gradient_updates == 3
    on_cpu = FusedLearner(O, A, make_config())
    on_cpu.load_state_dict(host(state))
    assert_states_equal(host(other.state_dict()), on_cpu.state_dict())


def wait_by_state(learner: FusedLearner) -> None:
    learner.state_dict()
    learner.update(filled(), 1)


@pytest.mark.parametrize("meet", [FusedLearner.wait, wait_by_state])
def test_a_failed_update_is_named_later_and_changes_nothing(meet: Callable[[FusedLearner], None]) -> None:
    config = make_config()
    learner, twin = (FusedLearner(O, A, config, device="cuda", seed=3) for _ in range(2))
    good = filled()
    for each in (learner, twin):
        each.update(good, 1)
        each.wait()
    bad = filled()
    bad.rows[:, O + A] = torch.inf
    learner.update(bad, 2)
    learner.update(bad, 2)
    with pytest.raises(FloatingPointError, match=r"update 2: critic_loss is not finite.*as it was after update 1"):
        meet(learner)
    assert learner.gradient_updates == 1
    assert_states_equal(host(learner.state_dict()), host(twin.state_dict()))
    learner.update(good, 1)  # and it goes on
    learner.wait()
    assert learner.gradient_updates == 2


def test_a_row_number_without_a_row_is_named_and_the_gpu_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, twin = (FusedLearner(O, A, make_config(), device="cuda", seed=3) for _ in range(2))
    replay, same = filled(), filled()
    for each, own in ((learner, replay), (twin, same)):
        each.update(own, 1)
    with monkeypatch.context() as patch:
        numbers = torch.zeros(3 * B, dtype=torch.int64, device="cuda")
        numbers[B + 1] = 2**40
        patch.setattr(replay, "draw", lambda _: numbers)
        learner.update(replay, 3)
        patch.setattr(same, "draw", lambda _: numbers[:B])
        twin.update(same, 1)
    with pytest.raises(
        ValueError, match=rf"update 3: index: expected rows in \[0, 64\), got {2**40}; the learner is as"
    ):
        learner.wait()
    assert_states_equal(host(learner.state_dict()), host(twin.state_dict()))
    learner.update(filled(), 1)
    learner.wait()
    assert learner.gradient_updates == 3


def test_calls_on_streams_of_their_own_are_in_order() -> None:
    learner, twin = (FusedLearner(O, A, make_config(), device="cuda", seed=3) for _ in range(2))
    replay, same = filled(), filled()
    torch.cuda.synchronize()
    for steps in (1, 40, 3, 40, 2):
        with torch.cuda.stream(torch.cuda.Stream()):
            learner.update(replay, steps)
        twin.update(same, steps)
    with torch.cuda.stream(torch.cuda.Stream()):
        state = host(learner.state_dict())
    assert_states_equal(state, host(twin.state_dict()))


def test_updates_wait_for_nothing_and_allocate_nothing() -> None:
    learner, replay = make_learner(O, A, make_config(), device="cuda", seed=3), filled()
    learner.update(replay, 2)  # both graphs are recorded
    learner.update(replay, 2)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(50):
            learner.update(replay, 4)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_memory_that_does_not_suffice_is_refused_before_any_is_taken() -> None:
    with pytest.raises(ValueError, match=r"hidden_sizes: \(200000, 200000\).* need .* GB, but cuda:0 has .* GB free"):
        FusedLearner(O, A, make_config(hidden_sizes=(200_000, 200_000)), device="cuda")


def test_other_rows_are_refused() -> None:
    learner = FusedLearner(O, A, make_config(), device="cuda")
    with pytest.raises(ValueError, match=r"replay: expected rows of 13 float32 on cuda.*on cpu"):
        learner.update(ReplayBufferOnHost(), 1)


class ReplayBufferOnHost(ReplayBuffer):
    def __init__(self) -> None:
        super().__init__(B, O, A)
        batch = random_batch(0)
        self.add(*batch[:4], batch.terminated.bool())


def test_learners_side_by_side_end_as_each_does_alone() -> None:
    seeds = (3, 4, 5)
    group, alone = ([FusedLearner(O, A, make_config(), device="cuda", seed=seed) for seed in seeds] for _ in range(2))
    together = side_by_side(group)
    replays, own_replays = ([filled() for _ in seeds] for _ in range(2))
    for steps in ((2, 2, 2), (1, 0, 3), (0, 1, 0), (32, 30, 31)):
        outcomes = together.update({i: (replays[i], count) for i, count in enumerate(steps) if count})
        for number, count in enumerate(steps):
            if count:
                expected = alone[number].update(own_replays[number], count)
                outcome = outcomes[number]
                assert isinstance(outcome, Metrics)
                assert outcome.to_dict() == expected.to_dict()
    for learner, expected in zip(group, alone, strict=True):
        learner.wait()
        assert torch.equal(learner.actor.flat, expected.actor.flat)
        assert_states_equal(host(learner.state_dict()), host(expected.state_dict()))
