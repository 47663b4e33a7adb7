"""polyak_update_ against float64 and torch.lerp, and as a citizen of PyTorch."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sacfast import ops
from sacfast.ops.polyak import polyak_update_reference_

EPS = torch.finfo(torch.float32).eps
TAUS = [0.0, 0.005, 0.3, 0.49999, 0.5, 0.7, 1.0]


def normal(*shape: int, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def pair(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return normal(*shape, seed=1, device=device, dtype=dtype), normal(*shape, seed=2, device=device, dtype=dtype)


def pairs(count: int, device: str = "cpu") -> tuple[list[Tensor], list[Tensor]]:
    """Return tensors of odd sizes, empty and 0-d ones among them."""
    shapes = [(), (0,), (1,), (7,), (3, 5), (17,), (0, 4), (64,), (2, 3, 5), (33,), (129,)]
    both = ([], [])
    for i in range(count):
        for which, tensors in enumerate(both):
            tensors.append(normal(*shapes[i % len(shapes)], seed=2 * i + which, device=device))
    return both


def largest(target: Tensor, online: Tensor) -> Tensor:
    return torch.maximum(target.abs(), online.abs())


def assert_moved(targets: list[Tensor], before: list[Tensor], onlines: list[Tensor], tau: float) -> None:
    """The result against float64: for tau < 1/2 (the other end is alike) the roundings of the difference, of tau
    and of their product weigh tau |online - target| <= the larger magnitude, and the last one the result: together
    4 half units of it."""
    for target, old, online in zip(targets, before, onlines, strict=True):
        exact = torch.lerp(old.double(), online.double(), tau)
        assert bool(((target.double() - exact).abs() <= 2 * EPS * largest(old, online).double()).all())


class TestFormula:
    @pytest.mark.parametrize("tau", TAUS)
    def test_against_float64_and_lerp(self, tau, device):
        target, online = pair(10_007, device=device)
        before = target.clone()
        ops.polyak_update_(target, online, tau)
        assert_moved([target], [before], [online], tau)
        # Either may fuse the multiplication and the addition: one unit of the larger operand.
        difference = (target - torch.lerp(before, online, tau)).abs()
        assert bool((difference <= EPS * largest(before, online)).all())

    @pytest.mark.parametrize("tau", TAUS)
    def test_float64(self, tau, device):
        target, online = pair(1_003, device=device, dtype=torch.float64)
        expected = torch.lerp(target, online, tau)
        ops.polyak_update_(target, online, tau)
        torch.testing.assert_close(target, expected, rtol=0, atol=1e-14)

    def test_tau_is_not_rounded_to_float32_for_float64(self, device):
        target = torch.zeros(3, dtype=torch.float64, device=device)
        ops.polyak_update_(target, torch.ones_like(target), 0.1)
        assert target.tolist() == [0.1] * 3

    def test_tau_one_is_an_exact_copy(self, device):
        # Also of magnitudes that target + (online - target) would lose.
        online = torch.tensor([1.0, 1e-30, -3e38, 1e-45, 0.0] * 5, device=device)
        target = torch.tensor([-1e8, 1e8, 1.0, 5.0, 3e38] * 5, device=device)
        ops.polyak_update_(target, online, 1.0)
        assert torch.equal(target, online)

    def test_tau_zero_changes_nothing(self, device):
        target, online = pair(77, device=device)
        before = target.clone()
        ops.polyak_update_(target, online, 0)
        assert torch.equal(target, before)

    def test_equal_values_stay_exactly(self, device):
        online = normal(1_003, device=device)
        for tau in TAUS:
            target = online.clone()
            ops.polyak_update_(target, online, tau)
            assert torch.equal(target, online)

    def test_online_is_left_alone(self, device):
        target, online = pair(77, device=device)
        before = online.clone()
        ops.polyak_update_(target, online, 0.3)
        assert torch.equal(online, before)

    def test_many_small_steps(self, device):
        # 1 - (1 - tau)^n, with half a unit lost at each of the 1,000 steps at most.
        target, online = torch.zeros(5, device=device), torch.ones(5, device=device)
        for _ in range(1_000):
            ops.polyak_update_(target, online, 0.005)
        torch.testing.assert_close(target.double().cpu(), torch.full((5,), 1 - 0.995**1000).double(), rtol=0, atol=1e-4)

    def test_nan_and_infinity_propagate(self, device):
        values = [math.nan, math.inf, -math.inf, 1.0]
        grid = torch.cartesian_prod(torch.tensor(values), torch.tensor(values)).to(device)
        for tau in (0.005, 0.5, 0.9):
            target, online = grid[:, 0].clone(), grid[:, 1].clone()
            expected = torch.lerp(target, online, tau)
            ops.polyak_update_(target, online, tau)
            torch.testing.assert_close(target, expected, equal_nan=True)
            assert bool(target.isfinite().logical_not()[:-1].all())  # the last pair is (1, 1)


class TestLists:
    @pytest.mark.parametrize("count", [0, 1, 3, 100, 1500])
    def test_lists(self, count, device):
        targets, onlines = pairs(count, device)
        before = [t.clone() for t in targets]
        ops.polyak_update_(targets, onlines, 0.3)
        assert_moved(targets, before, onlines, 0.3)

    def test_equals_one_tensor_at_a_time(self, device):
        targets, onlines = pairs(100, device)
        alone = [t.clone() for t in targets]
        ops.polyak_update_(tuple(targets), iter(onlines), 0.3)
        for target, online in zip(alone, onlines, strict=True):
            ops.polyak_update_(target, online, 0.3)
        assert all(torch.equal(t, a) for t, a in zip(targets, alone, strict=True))

    def test_all_empty(self, device):
        ops.polyak_update_(torch.zeros(0, device=device), torch.ones(0, device=device), 0.5)
        ops.polyak_update_([torch.zeros(0, 3, device=device)] * 2, [torch.ones(0, 3, device=device)] * 2, 0.5)

    def test_parameters_of_modules(self, device):
        torch.manual_seed(0)
        online = nn.Sequential(nn.Linear(7, 33), nn.LayerNorm(33), nn.ReLU(), nn.Linear(33, 2)).to(device)
        target = copy.deepcopy(online)
        with torch.no_grad():
            for parameter in online.parameters():
                parameter.add_(torch.randn_like(parameter))
        twin = copy.deepcopy(target)
        ops.polyak_update_(target.parameters(), online.parameters(), 0.005)
        polyak_update_reference_(twin.parameters(), online.parameters(), 0.005)
        for a, e, o in zip(target.parameters(), twin.parameters(), online.parameters(), strict=True):
            assert bool(((a - e).abs() <= EPS * largest(e, o)).all())

    @pytest.mark.parametrize("lengths", [(300_001,), (100_003, 1, 65_537, 32_768, 99_999)])
    def test_thread_count_does_not_matter(self, lengths):
        onlines = [normal(n, seed=i) for i, n in enumerate(lengths)]
        results = []
        threads = torch.get_num_threads()
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                targets = [normal(n, seed=100 + i) for i, n in enumerate(lengths)]
                before = [t.clone() for t in targets]
                ops.polyak_update_(targets, onlines, 0.005)
                assert_moved(targets, before, onlines, 0.005)
                results.append(torch.cat(targets))
        finally:
            torch.set_num_threads(threads)
        # Where a thread's share ends decides between whole and partial vectors, which compute the same.
        assert torch.equal(*results)


class TestLayouts:
    def layouts(self, device):
        def fresh(seed, *shape):
            return normal(*shape, seed=seed, device=device)

        yield "transposed", fresh(1, 9, 5).t(), fresh(2, 9, 5).t()
        yield "transposed target", fresh(1, 9, 5).t(), fresh(2, 5, 9)
        yield "transposed online", fresh(1, 5, 9), fresh(2, 9, 5).t()
        yield "target with holes", fresh(1, 5, 18)[:, ::2], fresh(2, 5, 9)
        yield "online with holes", fresh(1, 5, 9), fresh(2, 5, 18)[:, ::2]
        yield "equal holes", fresh(1, 5, 18)[:, ::2], fresh(2, 5, 18)[:, ::2]
        yield "expanded online", fresh(1, 5, 9), fresh(2, 9).expand(5, 9)
        channels_last = [fresh(s, 2, 3, 5, 7).contiguous(memory_format=torch.channels_last) for s in (1, 2)]
        yield "channels last", *channels_last
        yield "one channels last", fresh(3, 2, 3, 5, 7), channels_last[1]
        yield "size-one dimension with another stride", fresh(1, 1, 9), fresh(2, 9, 1).t()
        yield "offset in a buffer", fresh(1, 100)[3:48].view(5, 9), fresh(2, 100)[50:95].view(5, 9)

    def test_layouts(self, device):
        for name, target, online in self.layouts(device):
            for tau in (0.3, 1.0):
                before = target.clone()
                around = target._base.clone() if target._base is not None else None
                ops.polyak_update_(target, online, tau)
                assert_moved([target], [before], [online], tau)
                if tau == 1.0:
                    assert torch.equal(target, online), name
                if around is not None:
                    # What lies between and around the view's elements is as it was.
                    inside = torch.zeros_like(around, dtype=torch.bool)
                    inside.as_strided(target.size(), target.stride(), target.storage_offset()).fill_(True)
                    assert torch.equal(target._base[~inside], around[~inside]), name

    def test_all_layouts_in_one_call(self, device):
        _, targets, onlines = zip(*self.layouts(device), strict=True)
        before = [t.clone() for t in targets]
        # The two that share an online tensor, and targets that are views of different buffers, are welcome.
        ops.polyak_update_(targets, onlines, 0.3)
        assert_moved(targets, before, onlines, 0.3)


class TestSharedMemory:
    def test_interleaved_views_that_do_not_overlap(self, device):
        buffer = normal(6, 10, device=device)
        before = buffer.clone()
        ops.polyak_update_(buffer[:, :5], buffer[:, 5:], 0.3)
        assert_moved([buffer[:, :5]], [before[:, :5]], [before[:, 5:]], 0.3)
        assert torch.equal(buffer[:, 5:], before[:, 5:])

    def test_neighbouring_slices(self, device):
        flat, online = pair(100, device=device)
        before = flat.clone()
        ops.polyak_update_(flat.split(7), online.split(7), 0.3)
        assert_moved([flat], [before], [online], 0.3)

    def test_halves_of_one_buffer(self, device):
        buffer = normal(100, device=device)
        before = buffer.clone()
        ops.polyak_update_(buffer[:50], buffer[50:], 0.3)
        assert_moved([buffer[:50]], [before[:50]], [before[50:]], 0.3)

    def test_online_shared_by_two_targets(self, device):
        online = normal(50, seed=3, device=device)
        targets = list(pair(50, device=device))
        before = [t.clone() for t in targets]
        ops.polyak_update_(targets, [online, online], 0.3)
        assert_moved(targets, before, [online, online], 0.3)
        overlapping = [normal(60, seed=4, device=device)[i : i + 50] for i in (0, 10)]
        ops.polyak_update_(targets, overlapping, 0.3)

    def overlaps(self, device):
        buffer, other = pair(40, device=device)
        twin = nn.Linear(4, 4, device=device)
        same_storage = nn.Linear(4, 4, device=device)
        same_storage.weight.data = twin.weight.data
        yield "target is online", [buffer], [buffer]
        yield "a view of it", [buffer], [buffer.view(40)]
        yield "columns of the same rows", [buffer.view(5, 8)], [buffer.view(8, 5).t()]
        yield "slices of one buffer", [buffer[:20]], [buffer[19:39]]
        yield "two targets overlap", [buffer[:20], buffer[10:30]], [other[:20], other[20:]]
        yield "a target twice", [buffer, buffer], [other, other]
        yield "another pair's online", [buffer[:10], other[:10]], [other[10:20], buffer[5:15]]
        yield "an inner slice, far in the list", [buffer, *other.split(4), buffer[13:14]], [
            normal(40, device=device), *normal(40, device=device).split(4), torch.ones(1, device=device)
        ]  # fmt: skip
        yield "networks that share a weight", list(twin.parameters()), list(same_storage.parameters())

    def test_overlaps_are_refused_before_anything_changes(self, device):
        for name, targets, onlines in self.overlaps(device):
            before = [t.detach().clone() for t in targets]
            with pytest.raises(ValueError, match=r"(target|online)_params\[\d+\]: expected memory that no other"):
                ops.polyak_update_(targets, onlines, 0.5)
            assert all(torch.equal(t, b) for t, b in zip(targets, before, strict=True)), name

    def test_expanded_target(self, device):
        with pytest.raises(ValueError, match=r"target_params\[0\]: expected memory of its own for each element"):
            ops.polyak_update_(torch.zeros(1, device=device).expand(5), torch.ones(5, device=device), 0.5)

    @pytest.mark.parametrize(
        "views",
        [
            pytest.param(lambda b: ([b[:, :5]], [b[:, :5]]), id="the same columns"),
            pytest.param(lambda b: ([b[:, :6]], [b[:, 4:]]), id="columns in common"),
            pytest.param(
                lambda b: ([b.view(-1), b[:, :5]], [b.new_ones(40), b.new_ones(4, 5)]), id="whole and columns"
            ),
        ],
    )
    def test_overlaps_of_tensors_with_holes(self, views, device):
        with pytest.raises(ValueError, match="expected memory that no other argument shares"):
            ops.polyak_update_(*views(normal(4, 10, device=device)), 0.5)

    def test_one_array_wrapped_twice(self):
        array = np.zeros(8, dtype=np.float32)
        with pytest.raises(ValueError, match="expected memory that no other argument shares"):
            ops.polyak_update_(torch.from_numpy(array[:6]), torch.from_numpy(array[2:]), 0.5)


class TestAutograd:
    def test_leaves_that_require_grad(self, device):
        target, online = (t.requires_grad_() for t in pair(9, device=device))
        before = target.detach().clone()
        ops.polyak_update_(target, online, 0.3)
        assert target.is_leaf
        assert target.requires_grad
        assert target.grad_fn is None
        assert online.grad_fn is None
        assert_moved([target.detach()], [before], [online.detach()], 0.3)
        target.sum().backward()
        assert online.grad is None

    def test_online_that_autograd_records(self, device):
        target, online = pair(9, device=device)
        recorded = online.requires_grad_() * 2
        ops.polyak_update_(target, recorded, 0.3)
        assert not target.requires_grad

    def test_target_that_autograd_records_is_refused(self, device):
        target, online = pair(9, device=device)
        recorded = target.requires_grad_() * 2
        with pytest.raises(ValueError, match=r"target_params\[1\]: expected a leaf tensor"):
            ops.polyak_update_([torch.zeros(9, device=device), recorded], [online, online], 0.3)
        with torch.no_grad():
            ops.polyak_update_(recorded, online, 0.3)

    @pytest.mark.parametrize("dense", [True, False])
    def test_edit_between_forward_and_backward_is_noticed(self, dense, device):
        target = normal(9, device=device) if dense else normal(18, device=device)[::2]
        factor = torch.ones(9, device=device, requires_grad=True)
        version = target._version
        loss = (factor * target).sum()
        ops.polyak_update_(target, normal(9, seed=2, device=device), 0.3)
        assert target._version > version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()

    def test_version_of_online_does_not_move(self, device):
        target, online = pair(9, device=device)
        version = online._version
        ops.polyak_update_(target, online, 0.3)
        assert online._version == version


class TestPyTorchCitizen:
    def test_inference_mode(self, device):
        target, online = pair(9, device=device)
        expected = target.clone()
        ops.polyak_update_(expected, online, 0.3)
        with torch.inference_mode():
            inside = target.clone()
            ops.polyak_update_(inside, online, 0.3)
            ops.polyak_update_(target, online, 0.3)
        assert torch.equal(inside, expected)
        assert torch.equal(target, expected)
        ops.polyak_update_(target, inside, 0.3)

    def test_opcheck(self, device):
        op = torch.ops.sacfast.polyak_update_.default
        torch.library.opcheck(op, (*pairs(5, device), 0.3))
        targets, onlines = ([t.requires_grad_() for t in tensors] for tensors in pairs(3, device))
        # Leaves that require grad are written without a record; the autograd tests of opcheck want none written.
        checks = ("test_schema", "test_faketensor")
        torch.library.opcheck(op, (targets, onlines, 0.3), test_utils=checks)

    @pytest.mark.parametrize("requires_grad", [False, True])
    def test_compile_without_graph_breaks(self, requires_grad, device):
        def step(targets, onlines):
            with torch.no_grad():
                ops.polyak_update_(targets, onlines, 0.3)
                return targets[0] * 2.0

        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        results = []
        for function in (compiled, step):
            targets, onlines = ([t.requires_grad_(requires_grad) for t in tensors] for tensors in pairs(4, device))
            results.append([function(targets, onlines), *targets])
        for a, e in zip(*results, strict=True):
            assert torch.equal(a, e)

    @pytest.mark.cuda
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types_on_cuda(self, dtype):
        target, online = pair(1_003, device="cuda", dtype=dtype)
        exact = target.float()
        ops.polyak_update_(exact, online.float(), 0.3)
        ops.polyak_update_(target, online, 0.3)
        assert target.dtype == dtype
        assert torch.equal(target, exact.to(dtype))

    @pytest.mark.cuda
    def test_cuda_graph(self):
        target, online = pair(1_003, device="cuda")
        expected = target.clone()
        ops.polyak_update_(target, online, 0.0)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ops.polyak_update_(target, online, 0.3)
        for _ in range(3):
            graph.replay()
            ops.polyak_update_(expected, online, 0.3)
        assert torch.equal(target, expected)


class TestBadInput:
    @pytest.mark.parametrize(
        ("targets", "onlines", "tau", "error", "message"),
        [
            ([torch.zeros(3)], [], 0.5, ValueError, "online_params: expected 1 tensors like target_params, got 0"),
            ([], [torch.zeros(3)], 0.5, ValueError, "online_params: expected 0 tensors like target_params, got 1"),
            (
                [torch.zeros(3)],
                [torch.ones(4)],
                0.5,
                ValueError,
                r"online_params\[0\]: expected shape \[3\] like target_params\[0\], got \[4\]",
            ),
            ([torch.zeros(3, 1)], [torch.ones(3)], 0.5, ValueError, r"online_params\[0\]: expected shape \[3, 1\]"),
            (
                [torch.zeros(2), torch.zeros(3)],
                [torch.ones(2), torch.ones(1)],
                0.5,
                ValueError,
                r"online_params\[1\]: expected shape \[3\]",
            ),
            ([torch.zeros(0)], [torch.ones(1)], 0.5, ValueError, r"online_params\[0\]: expected shape \[0\]"),
            (
                [torch.zeros(3)],
                [torch.ones(3).double()],
                0.5,
                TypeError,
                r"online_params\[0\]: expected dtype Float like target_params\[0\], got Double",
            ),
            (
                [torch.zeros(3), torch.zeros(3).double()],
                [torch.ones(3), torch.ones(3).double()],
                0.5,
                TypeError,
                r"target_params\[1\]: expected dtype Float like target_params",
            ),
            (
                [torch.zeros(3).int()],
                [torch.ones(3).int()],
                0.5,
                TypeError,
                r"target_params\[0\]: expected dtype float32 or float64 on the CPU, got Int",
            ),
            (
                [torch.zeros(3).half()],
                [torch.ones(3).half()],
                0.5,
                TypeError,
                r"target_params\[0\]: expected dtype .* on the CPU, got Half",
            ),
            ([torch.zeros(3)], [torch.ones(3)], -0.1, ValueError, r"tau: expected a number in \[0, 1\], got -0.1"),
            ([torch.zeros(3)], [torch.ones(3)], 1.0001, ValueError, r"tau: expected a number in \[0, 1\], got 1.0001"),
            ([torch.zeros(3)], [torch.ones(3)], math.nan, ValueError, r"tau: expected a number in \[0, 1\], got nan"),
            ([torch.zeros(3)], [torch.ones(3)], "soft", RuntimeError, "argument 'tau'"),
            ([0.0], [torch.ones(3)], 0.5, RuntimeError, "argument 'target_params'"),
        ],
    )
    def test_message_names_the_argument(self, targets, onlines, tau, error, message):
        with pytest.raises(error, match=message):
            ops.polyak_update_(targets, onlines, tau)
        assert all(bool((t == 0).all()) for t in targets if isinstance(t, Tensor))  # nothing was changed

    @pytest.mark.cuda
    def test_mixed_devices(self):
        with pytest.raises(ValueError, match=r"online_params\[0\]: expected device cuda:0 like target_params\[0\]"):
            ops.polyak_update_(torch.zeros(3, device="cuda"), torch.ones(3), 0.5)
