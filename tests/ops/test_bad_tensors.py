"""What the ops do with tensors that they cannot take, and with those at the edge of what they can."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bad_inputs import in_threads, normal
from torch import Tensor

from sacfast import ops
from sacfast.ops.tanh_gaussian import tanh_gaussian_log_prob_reference

# Each op as a function of tensors [4, 3], or of some of their columns.
OPS: dict[str, tuple[int, Callable[..., Any]]] = {
    "rsample": (3, ops.tanh_gaussian_rsample),
    "rsample, noise drawn inside": (2, ops.tanh_gaussian_rsample),
    "log_prob": (3, ops.tanh_gaussian_log_prob),
    "twin_q_target": (7, lambda *tensors: ops.twin_q_target(*(tensor[:, 0] for tensor in tensors))),
    "polyak_update_": (2, lambda target, online: ops.polyak_update_(target, online, 0.5)),
    "adam_polyak_": (5, lambda *tensors: ops.adam_polyak_(*([tensor] for tensor in tensors), step=1, lr=0.1)),
    "categorical_target": (
        7,
        lambda reward, done, logits1, logits2, *columns: ops.categorical_target(
            reward[:, 0], done[:, 0], logits1, logits2, *(column[:, 0] for column in columns), -1.0, 1.0
        ),
    ),
    "categorical_cross_entropy": (2, ops.categorical_cross_entropy),
    "quantile_huber_loss": (2, ops.quantile_huber_loss),
    "truncated_quantile_target": (
        4,
        lambda reward, done, quantiles, log_prob: ops.truncated_quantile_target(
            reward[:, 0], done[:, 0], quantiles[:, None], log_prob[:, 0], 1, 0.2, 0.9
        ),
    ),
    "update_running_moments_": (
        3,
        lambda batch, mean, variance: ops.update_running_moments_(
            mean[0], variance[0], torch.zeros((), dtype=torch.float64), batch
        ),
    ),
    "normalize": (3, lambda x, mean, variance: ops.normalize(x, mean[0], variance[0])),
}
TAKES_A_MASK = [OPS[name][1] for name in ("twin_q_target", "categorical_target", "truncated_quantile_target")]
every_op = pytest.mark.parametrize(("count", "op"), OPS.values(), ids=OPS.keys())


@every_op
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.complex64], ids=str)
def test_ops_refuse_a_dtype(count: int, op: Callable[..., Any], dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="expected dtype float32 or float64 on the CPU, got"):
        op(*(torch.zeros(4, 3, dtype=dtype) for _ in range(count)))
    for position in range(1, count):
        tensors = [torch.zeros(4, 3) for _ in range(count)]
        tensors[position] = tensors[position].to(dtype)
        if op in TAKES_A_MASK and position == 1 and dtype == torch.bool:
            op(*tensors)  # `terminated` may be a mask
            continue
        with pytest.raises(TypeError, match=r"expected dtype .*like"):
            op(*tensors)


@every_op
def test_ops_refuse_mixed_devices(count: int, op: Callable[..., Any]) -> None:
    """The meta device sends a call to the fake kernel, whose result on a real device would be unwritten memory."""
    for position in range(count):
        tensors = [torch.zeros(4, 3) for _ in range(count)]
        tensors[position] = tensors[position].to("meta")
        with pytest.raises(ValueError, match=r"expected device (cpu|meta) like \w+(\[0\])?, got (cpu|meta)"):
            op(*tensors)
    state = ops.philox_state(1, "meta")
    with pytest.raises(ValueError, match="generator: expected device cpu like mean, got meta"):
        ops.tanh_gaussian_rsample(torch.zeros(4, 3), torch.zeros(4, 3), generator=state)


def test_log_prob_takes_any_view() -> None:
    base = normal(7, 12)
    views = [base[:, 6:], base[:, ::2], normal(6, 7).t(), normal(50)[1:43].view(7, 6), normal(6).expand(7, 6)]
    views.append(normal(7, 1).expand(7, 6))
    for view in views:
        for position in range(3):
            tensors = [0.5 * normal(7, 6, seed=seed) for seed in range(3)]
            tensors[position] = view
            leaves = [[t.detach().requires_grad_() for t in ts] for ts in (tensors, [t.contiguous() for t in tensors])]
            results = [ops.tanh_gaussian_log_prob(*each) for each in leaves]
            assert torch.equal(*results)
            gradients = [torch.autograd.grad(r.sum(), each) for r, each in zip(results, leaves, strict=True)]
            for actual, expected in zip(*gradients, strict=True):
                assert torch.equal(actual, expected)


def test_log_prob_of_nothing() -> None:
    for shape in ((0, 3), (4, 0), (0,)):
        z = torch.zeros(shape, requires_grad=True)
        log_prob = ops.tanh_gaussian_log_prob(z, z.detach(), z.detach())
        assert torch.equal(log_prob, torch.zeros(shape[:-1]))
        log_prob.sum().backward()
        assert z.grad is not None
        assert z.grad.shape == shape


@pytest.mark.parametrize("position", range(3))
def test_log_prob_passes_nan_on(position: int) -> None:
    for rows in (3, 20, 1030):
        tensors = [normal(rows, 2, seed=seed) for seed in range(3)]
        tensors[position][1, 0] = math.nan
        assert ops.tanh_gaussian_log_prob(*tensors).isnan().nonzero().tolist() == [[1]]


def test_bounds_that_make_nan_are_refused() -> None:
    zero = torch.zeros(2, 3)
    for bounds in ((-math.inf, 2.0), (-5.0, math.inf)):
        with pytest.raises(ValueError, match=r"log_std_bounds: expected finite bounds with log_std_bounding 'tanh'"):
            ops.tanh_gaussian_rsample(zero, zero, zero, log_std_bounding="tanh", log_std_bounds=bounds)
        clamped = ops.tanh_gaussian_rsample(zero, zero, zero, log_std_bounding="clamp", log_std_bounds=bounds)
        assert torch.equal(clamped[1], ops.tanh_gaussian_rsample(zero, zero, zero)[1])


@pytest.mark.parametrize("log_std", [-20.0, -5.0, 0.0, 5.0])
def test_log_prob_of_extremes(log_std: float) -> None:
    z = torch.tensor([[-20.0, -9.0, -1e-4, 0.0, 9.0, 15.0, 20.0]])
    tensors = [z, z.clone(), torch.full_like(z, log_std)]  # the mean itself: the quadratic term would hide the rest
    leaves = [each.requires_grad_() for each in tensors]
    doubles = [each.detach().double().requires_grad_() for each in tensors]
    actual, expected = ops.tanh_gaussian_log_prob(*leaves), tanh_gaussian_log_prob_reference(*doubles)
    # Seven terms of up to 40 and 20, each rounded a few times.
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-4)
    for a, e in zip(
        torch.autograd.grad(actual.sum(), leaves), torch.autograd.grad(expected.sum(), doubles), strict=True
    ):
        torch.testing.assert_close(a.double(), e, rtol=1e-5, atol=1e-6)


def test_results_share_memory_with_nothing() -> None:
    for rows in (0, 1, 5):
        mean, log_std, noise = (normal(rows, 1, seed=seed).requires_grad_(seed < 2) for seed in range(3))
        columns = [normal(rows, seed=10 + seed).requires_grad_(seed > 1) for seed in range(5)]
        inputs = [mean, log_std, noise, *columns]
        action, log_prob = ops.tanh_gaussian_rsample(mean, log_std, noise, action_scale=torch.ones(1))
        results = [action, log_prob, ops.tanh_gaussian_log_prob(mean, log_std, noise)]
        results.append(ops.twin_q_target(*columns, alpha=0.2, gamma=0.9))
        results += torch.autograd.grad(sum(each.sum() for each in results), [mean, log_std, *columns[2:]])
        if rows:
            assert len({each.untyped_storage().data_ptr() for each in (*inputs, *results)}) == len(inputs + results)
            with torch.no_grad(), pytest.raises(ValueError, match="out: expected memory that no input shares"):
                ops.twin_q_target(*columns, alpha=0.2, gamma=0.9, out=columns[0])


def rsample_for_edits(mean: Tensor, log_std: Tensor, noise: Tensor, scale: Tensor) -> Tensor:
    action, log_prob = ops.tanh_gaussian_rsample(mean, log_std, noise, action_scale=scale[0])
    return action.sum() + log_prob.sum()


EDITS: dict[str, tuple[int, Callable[..., Tensor], range]] = {  # inputs, of which these take a gradient
    "rsample": (4, rsample_for_edits, range(2)),
    "log_prob": (3, lambda *tensors: ops.tanh_gaussian_log_prob(*tensors).sum(), range(3)),
    # Without the reward, which the gradient does not need: terminated, q1, q2, log_prob, alpha, gamma.
    "twin_q_target": (
        6,
        lambda *tensors: ops.twin_q_target(torch.zeros(4), *(tensor[:, 0] for tensor in tensors)).sum(),
        range(1, 5),
    ),
}


@pytest.mark.parametrize(("count", "function", "differentiable"), EDITS.values(), ids=EDITS.keys())
def test_any_edit_of_what_a_gradient_needs_is_noticed(
    count: int, function: Callable[..., Tensor], differentiable: range
) -> None:
    for edited in range(count):
        tensors = [normal(4, 3, seed=seed) for seed in range(count)]
        for position in differentiable:
            if position != edited:  # torch itself refuses to edit a leaf that requires grad
                tensors[position].requires_grad_()
        result = function(*tensors)
        tensors[edited].add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.backward()


def test_an_edit_of_what_no_gradient_needs_changes_nothing() -> None:
    mean, log_std = normal(4, 3), normal(4, 3, seed=1)
    gradients = []
    for edit in (False, True):
        state, leaf, q1 = ops.philox_state(3), mean.clone().requires_grad_(), normal(4).requires_grad_()
        action, log_prob = ops.tanh_gaussian_rsample(leaf, log_std, generator=state)
        reward, done = torch.zeros(4), torch.zeros(4).bool()
        target = ops.twin_q_target(reward, done, q1, normal(4, seed=2), normal(4, seed=3), 0.2, 0.9)
        action_sum, other = action.sum(), log_prob.sum() + target.sum()
        if edit:
            state.zero_()
            reward.fill_(math.nan)
            for result in (action, log_prob, target):
                result.detach().fill_(math.nan)
        gradients.append(torch.autograd.grad(action_sum + other, (leaf, q1)))
    for plain, edited in zip(*gradients, strict=True):
        assert torch.equal(plain, edited)
        assert plain.isfinite().all()


def test_ops_reach_beyond_2_31_elements(sparse: Tensor) -> None:
    """Three rows, each 2^30 elements after the other: an index of 32 bits would fold them into one another."""
    far = [sparse.as_strided((3, 4), (2**30, 1), 8 * seed) for seed in range(5)]
    near = [normal(3, 4, seed=seed) for seed in range(5)]
    for view, values in zip(far, near, strict=True):
        view.copy_(values)
    assert torch.equal(sparse[2**31 : 2**31 + 4], near[0][2])

    def results(tensors: list[Tensor]) -> list[Tensor]:
        leaves = [each.detach().requires_grad_() for each in tensors]
        made = [*ops.tanh_gaussian_rsample(*leaves[:2], tensors[2]), ops.tanh_gaussian_log_prob(*leaves[:3])]
        columns = [each[:, 1] for each in (*tensors[:2], *leaves[2:])]
        made.append(ops.twin_q_target(*columns, alpha=0.2, gamma=0.9))
        return [*made, *torch.autograd.grad(sum(each.sum() for each in made), leaves)]

    for actual, expected in zip(results(far), results(near), strict=True):
        assert torch.equal(actual, expected)
    for target, online in ((far[0], near[1]), (near[2], far[3]), (far[3], far[4])):
        expected = target.lerp(online, 0.25)
        ops.polyak_update_(target, online, 0.25)
        torch.testing.assert_close(target, expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="expected memory that no other argument shares"):
        ops.polyak_update_(far[0], sparse.as_strided((3, 4), (2**30, 1), 3), 0.25)


@pytest.mark.cuda
def test_ops_count_beyond_2_31_elements() -> None:
    """Inputs of one element; what is written takes 8 to 17 GB, too much for the machines that test the CPU."""
    count = 2**31 + 5
    if torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("needs 40 GB of GPU memory")
    values = torch.arange(1.0, 6.0, device="cuda")
    target = ops.twin_q_target(*(value.expand(count) for value in values), alpha=0.5, gamma=0.5)
    expected = ops.twin_q_target(*(value.expand(1) for value in values), alpha=0.5, gamma=0.5)
    assert bool((target == expected).all())
    del target
    action, log_prob = ops.tanh_gaussian_rsample(*(value.expand(count, 1) for value in values[:3]))
    one_action, one_log_prob = ops.tanh_gaussian_rsample(*(value.expand(1, 1) for value in values[:3]))
    assert bool((action == one_action).all())
    assert bool((log_prob == one_log_prob).all())


def test_threads_that_share_a_state_draw_different_noise() -> None:
    state, zero, drawn = ops.philox_state(1), torch.zeros(1, 4), []

    def draw() -> None:
        for _ in range(2000):
            drawn.append(ops.tanh_gaussian_rsample(zero, zero, generator=state)[0])

    in_threads(draw, draw)
    assert state.tolist() == [1, 4000]
    assert len({tuple(each.flatten().tolist()) for each in drawn}) == 4000


def test_an_op_without_memory_changes_nothing() -> None:
    state, one = ops.philox_state(1), torch.ones(1, 4)
    huge = one.expand(2**42, 4)
    with pytest.raises(RuntimeError, match="can't allocate memory: you tried to allocate 70368744177664 bytes"):
        ops.tanh_gaussian_rsample(huge, one, generator=state)
    assert state.tolist() == [1, 0]
    with pytest.raises(RuntimeError, match="can't allocate memory: you tried to allocate 17592186044416 bytes"):
        ops.twin_q_target(*(huge[:, 0] for _ in range(5)), alpha=0.2, gamma=0.9)
    with pytest.raises(RuntimeError, match="overflow"):
        ops.tanh_gaussian_log_prob(torch.ones(1, 1, 1).expand(2**40, 2**40, 1), one, one)


@pytest.mark.cuda
def test_ops_on_a_side_stream() -> None:
    """The default stream is kept busy meanwhile: work that went there would come too late or too early."""
    mean, log_std, noise = (normal(65_536, 6, seed=seed).cuda() for seed in range(3))
    columns = [mean[:, i].contiguous() for i in range(5)]
    average = log_std.clone()
    expected = [*ops.tanh_gaussian_rsample(mean, log_std, noise), ops.twin_q_target(*columns, alpha=0.2, gamma=0.9)]
    ops.polyak_update_(average, mean, 0.3)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    torch.cuda._sleep(200_000_000)  # about 0.1 s
    with torch.cuda.stream(side):
        actual = [*ops.tanh_gaussian_rsample(mean, log_std, noise), ops.twin_q_target(*columns, alpha=0.2, gamma=0.9)]
        ops.polyak_update_(log_std, mean, 0.3)
        after = [each.clone() for each in (*actual, log_std)]
    side.synchronize()
    assert not torch.cuda.default_stream().query()
    for a, e in zip(after, [*expected, average], strict=True):
        assert torch.equal(a.cpu(), e.cpu())


@pytest.mark.cuda
def test_twin_q_target_in_a_cuda_graph() -> None:
    columns = [normal(300, seed=seed).cuda() for seed in range(5)]
    ops.twin_q_target(*columns, alpha=0.2, gamma=0.9)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        target = ops.twin_q_target(*columns, alpha=0.2, gamma=0.9)
    columns[0].add_(1.0)
    graph.replay()
    assert torch.equal(target, ops.twin_q_target(*columns, alpha=0.2, gamma=0.9))
