"""twin_q_target against float64 plain torch, and as a citizen of PyTorch."""

import math

import pytest
import torch
from torch import Tensor

from sacfast import ops
from sacfast.ops.twin_q import twin_q_target_reference

EPS = torch.finfo(torch.float32).eps
# Around the edges of vectors (4, 8, 16), tiles (1,024) and the work of one thread (16,384).
SIZES = [0, 1, 5, 255, 1025, 20_000]
NAMES = ("reward", "terminated", "next_q1", "next_q2", "next_log_prob")


def normal(*shape: int, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def arguments(*shape: int, device: str = "cpu", mask: bool = True) -> list[Tensor]:
    """Return reward, terminated, next_q1, next_q2, next_log_prob; a fifth of the samples terminate."""
    terminated = normal(*shape, seed=2, device=device) > 0.84
    return [
        normal(*shape, seed=1, device=device),
        terminated if mask else terminated.float(),
        10 * normal(*shape, seed=3, device=device),
        10 * normal(*shape, seed=4, device=device),
        3 * normal(*shape, seed=5, device=device),
    ]


def to_double(value):
    if not isinstance(value, Tensor):
        return value
    return value.detach().cpu() if value.dtype == torch.bool else value.detach().double().cpu()


def forward_and_gradients(function, tensors, alpha, gamma, grad):
    """Return the target and the gradients of next_q1, next_q2, next_log_prob and, if it is a tensor, alpha."""
    tensors = list(tensors)
    wanted = [t.detach().requires_grad_() for t in tensors[2:]]  # detach keeps the strides
    if isinstance(alpha, Tensor):
        alpha = alpha.detach().requires_grad_()
        wanted.append(alpha)
    target = function(*tensors[:2], *wanted[:3], alpha, gamma)
    return target.detach(), *torch.autograd.grad(target, wanted, grad)


def error_bounds(tensors, alpha, gamma, grad):
    """What float32 allows, from float64 values: half an EPS of each term for every rounding it passes through,
    which are at most 6 in the target and 5 in a gradient (a number for alpha or gamma is itself rounded once)."""
    reward, terminated, q1, q2, log_prob = tensors
    factor = (gamma * (1.0 - terminated.double())) * torch.ones_like(reward)
    target = 3 * EPS * (reward.abs() + factor * (torch.minimum(q1, q2).abs() + (alpha * log_prob).abs()))
    scale = 2.5 * EPS * (grad * factor).abs()
    grad_alpha = scale * log_prob.abs()
    if isinstance(alpha, Tensor) and alpha.shape != reward.shape:
        depth = math.log2(reward.numel() + 1)  # torch sums in a tree
        grad_alpha = (grad_alpha.sum() * (1 + depth)).reshape(alpha.shape)
    return target, scale, scale, scale * (alpha * torch.ones_like(reward)).abs(), grad_alpha


def assert_matches_float64(tensors, alpha, gamma, grad):
    actual = forward_and_gradients(ops.twin_q_target, tensors, alpha, gamma, grad)
    doubles = [to_double(t) for t in tensors], to_double(alpha), to_double(gamma), to_double(grad)
    expected = forward_and_gradients(twin_q_target_reference, *doubles)
    bounds = error_bounds(*doubles)[: len(actual)]
    names = ("target", "grad_next_q1", "grad_next_q2", "grad_next_log_prob", "grad_alpha")
    for name, a, e, bound in zip(names, actual, expected, bounds, strict=False):
        assert a.shape == e.shape, name
        error = (a.double().cpu() - e).abs()
        assert bool((error <= bound).all()), f"{name}: off by {float(error.max()):.3g}, beyond rounding"


def coefficients(shape: tuple[int, ...], device: str):
    yield "numbers", 0.2, 0.99
    yield "zero temperature", 0.0, 1.0
    yield "0-d", torch.tensor(0.2, device=device), torch.tensor(0.99, device=device)
    yield "one element", torch.tensor([0.2], device=device), torch.tensor([0.99], device=device)
    per_sample = normal(*shape, seed=6, device=device).sigmoid()
    yield "per sample", per_sample, 1 - 0.1 * per_sample
    yield "number and tensor", 0.2, 1 - 0.1 * per_sample
    yield "tensor and number", torch.tensor(0.7, device=device), 0.5


class TestAgainstFloat64:
    @pytest.mark.parametrize("mask", [True, False])
    def test_ten_thousand_random_cases(self, mask, device):
        tensors = arguments(10_000, device=device, mask=mask)
        grad = normal(10_000, seed=7, device=device)
        for _, alpha, gamma in coefficients((10_000,), device):
            assert_matches_float64(tensors, alpha, gamma, grad)

    @pytest.mark.parametrize("size", SIZES)
    @pytest.mark.parametrize("column", [False, True])
    @pytest.mark.parametrize("mask", [True, False])
    def test_all_sizes_and_coefficients(self, size, column, mask, device):
        shape = (size, 1) if column else (size,)
        grad = normal(*shape, seed=7, device=device)
        for _, alpha, gamma in coefficients(shape, device):
            assert_matches_float64(arguments(*shape, device=device, mask=mask), alpha, gamma, grad)

    def test_by_hand(self, device):
        one = torch.ones(2, device=device)
        done = torch.tensor([False, True], device=device)
        target = ops.twin_q_target(0.5 * one, done, 3 * one, 2 * one, -4 * one, 0.25, 0.5)
        assert target.tolist() == [0.5 + 0.5 * (2 + 1), 0.5]

    def test_bool_and_number_masks_are_the_same(self, device):
        tensors = arguments(300, device=device)
        expected = ops.twin_q_target(*tensors, 0.2, 0.99)
        tensors[1] = tensors[1].float()
        assert torch.equal(ops.twin_q_target(*tensors, 0.2, 0.99), expected)

    def test_a_fraction_of_a_termination_counts_as_such(self, device):
        tensors = arguments(50, device=device, mask=False)
        tensors[1] = normal(50, seed=8, device=device).sigmoid()
        assert_matches_float64(tensors, 0.2, 0.99, torch.ones(50, device=device))

    def test_one_element_of_any_rank_never_changes_the_shape(self, device):
        tensors = arguments(4, device=device)
        alpha, gamma = (torch.full((1, 1, 1), x, device=device) for x in (0.2, 0.99))
        alpha.requires_grad_()
        target = ops.twin_q_target(*tensors, alpha, gamma)
        assert torch.equal(target, ops.twin_q_target(*tensors, 0.2, 0.99))
        (grad,) = torch.autograd.grad(target.sum(), alpha)
        assert grad.shape == (1, 1, 1)

    def test_float64(self, device):
        tensors = [t if t.dtype == torch.bool else t.double() for t in arguments(1025, device=device)]
        actual = ops.twin_q_target(*tensors, 0.2, 0.99)
        assert actual.dtype == torch.float64
        torch.testing.assert_close(actual, twin_q_target_reference(*tensors, 0.2, 0.99), rtol=1e-14, atol=1e-13)


class TestGradients:
    @pytest.mark.parametrize("alpha_shape", [(), (1,), (7,)])
    def test_gradcheck(self, alpha_shape, device):
        tensors = [t if t.dtype == torch.bool else t.double() for t in arguments(7, device=device)]
        wanted = [t.requires_grad_() for t in tensors[2:]]
        alpha = normal(*alpha_shape, seed=6, device=device, dtype=torch.float64).requires_grad_()
        gamma = torch.linspace(0.9, 1.0, 7, dtype=torch.float64, device=device)
        assert torch.autograd.gradcheck(
            lambda q1, q2, log_prob, a: ops.twin_q_target(*tensors[:2], q1, q2, log_prob, a, gamma), (*wanted, alpha)
        )

    def test_ties_are_shared_as_torch_minimum_shares_them(self, device):
        zero = torch.zeros(4, device=device)
        q1 = torch.tensor([1.0, 2.0, 3.0, 0.0], device=device, requires_grad=True)
        q2 = torch.tensor([1.0, 3.0, 2.0, -0.0], device=device, requires_grad=True)
        target = ops.twin_q_target(zero, zero.bool(), q1, q2, zero, 0.0, 1.0)
        actual = torch.autograd.grad(target.sum(), (q1, q2))
        assert actual[0].tolist() == [0.5, 1.0, 0.0, 0.5]
        for a, e in zip(actual, torch.autograd.grad(torch.minimum(q1, q2).sum(), (q1, q2)), strict=True):
            assert torch.equal(a, e)

    @pytest.mark.parametrize("position", [2, 3, 4, 5])
    def test_one_input_wanted(self, position, device):
        tensors = [*arguments(9, device=device), torch.tensor(0.2, device=device)]
        doubles = [to_double(t) for t in tensors]
        tensors[position].requires_grad_()
        doubles[position].requires_grad_()
        (actual,) = torch.autograd.grad(ops.twin_q_target(*tensors, 0.9).sum(), tensors[position])
        (expected,) = torch.autograd.grad(twin_q_target_reference(*doubles, 0.9).sum(), doubles[position])
        torch.testing.assert_close(actual.double().cpu(), expected, rtol=4 * EPS, atol=40 * EPS)

    def test_alpha_of_the_learned_temperature(self, device):
        # alpha is not a leaf: the gradient reaches log_alpha through exp.
        tensors = arguments(64, device=device)
        log_alpha = torch.tensor([-1.0], device=device, requires_grad=True)
        ops.twin_q_target(*tensors, log_alpha.exp(), 0.99).sum().backward()
        double = torch.tensor([-1.0], dtype=torch.float64, requires_grad=True)
        twin_q_target_reference(*(to_double(t) for t in tensors), double.exp(), 0.99).sum().backward()
        torch.testing.assert_close(log_alpha.grad.double().cpu(), double.grad, rtol=1e-5, atol=0)

    def test_nothing_recorded_without_a_differentiable_input(self, device):
        assert not ops.twin_q_target(*arguments(5, device=device), torch.tensor(0.2, device=device), 0.99).requires_grad
        with torch.no_grad():
            tensors = arguments(5, device=device)
            tensors[2].requires_grad_()
            assert not ops.twin_q_target(*tensors, 0.2, 0.99).requires_grad

    def test_edit_between_forward_and_backward_is_noticed(self, device):
        tensors = arguments(5, device=device)
        tensors[2].requires_grad_()
        target = ops.twin_q_target(*tensors, 0.2, 0.99)
        tensors[1].logical_not_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            target.sum().backward()


class TestLayouts:
    def views(self, device):
        yield "one value for all", normal(1, seed=8, device=device).expand(1030)
        yield "every second", normal(2060, seed=8, device=device)[::2]
        yield "a column of rows", normal(1030, 7, seed=8, device=device)[:, 3]
        yield "a row of the transpose", normal(1030, 2, seed=8, device=device).t()[1]
        yield "offset", normal(1031, seed=8, device=device)[1:]

    def test_views_equal_their_copies(self, device):
        base = arguments(1030, device=device, mask=False)
        grad = normal(1030, seed=9, device=device)
        for name, view in self.views(device):
            for position in range(8):
                # Positions 5 to 7: alpha, gamma and the target's gradient.
                every = [*base, base[2], base[3], grad]
                every[position] = view
                copies = [t.contiguous() for t in every]
                actual = forward_and_gradients(ops.twin_q_target, every[:5], *every[5:])
                expected = forward_and_gradients(ops.twin_q_target, copies[:5], *copies[5:])
                for a, e in zip(actual, expected, strict=True):
                    assert torch.equal(a, e), (name, position)

    def test_columns_of_a_matrix(self, device):
        base = arguments(300, device=device, mask=False)
        wide = torch.stack(base, -1)
        actual = ops.twin_q_target(*(wide[:, i : i + 1] for i in range(5)), 0.2, 0.99)
        assert torch.equal(actual, ops.twin_q_target(*base, 0.2, 0.99).unsqueeze(-1))
        transposed = [t.unsqueeze(0).t() for t in base]  # [B, 1] with strides (1, B)
        assert torch.equal(ops.twin_q_target(*transposed, 0.2, 0.99), actual)

    def test_strided_mask(self, device):
        tensors = arguments(300, device=device)
        expected = ops.twin_q_target(*tensors, 0.2, 0.99)
        tensors[1] = torch.stack([tensors[1], ~tensors[1]], -1)[:, 0]
        assert torch.equal(ops.twin_q_target(*tensors, 0.2, 0.99), expected)
        tensors[1] = torch.ones(1, dtype=torch.bool, device=device).expand(300)
        assert torch.equal(ops.twin_q_target(*tensors, 0.2, 0.99), tensors[0])

    def test_result_is_new_and_dense(self, device):
        tensors = arguments(5, device=device)
        tensors[0] = normal(10, device=device)[::2]
        before = [t.clone() for t in tensors]
        target = ops.twin_q_target(*tensors, 0.2, 0.99)
        assert target.is_contiguous()
        assert all(torch.equal(t, b) for t, b in zip(tensors, before, strict=True))

    def test_thread_count_does_not_matter(self):
        tensors, alpha = arguments(40_001), torch.tensor(0.2)
        grad = normal(40_001, seed=7)
        results = []
        threads = torch.get_num_threads()
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                # The sum of alpha's gradient is torch's own and may be ordered by threads: left out.
                results.append(forward_and_gradients(ops.twin_q_target, tensors, alpha, 0.99, grad)[:4])
        finally:
            torch.set_num_threads(threads)
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)


class TestNotFinite:
    @pytest.mark.parametrize("position", range(5))
    def test_nan_in_any_input_reaches_its_sample_only(self, position, device):
        for size in (3, 20, 1030):  # a partial vector, whole ones, more than a tile
            for at in (0, size - 1):
                tensors = arguments(size, device=device, mask=False)
                tensors[1].zero_()
                tensors[position][at] = math.nan
                target = ops.twin_q_target(*tensors, 0.2, 0.99)
                assert target.isnan().nonzero().flatten().tolist() == [at]

    def test_nan_is_not_hidden_by_the_other_critic(self, device):
        nan, one = torch.full((20,), math.nan, device=device), torch.ones(20, device=device)
        for other in (-math.inf, -1.0, 0.0, 1.0, math.inf):
            for q1, q2 in ((nan, other * one), (other * one, nan), (nan, nan)):
                assert ops.twin_q_target(one, one.bool().logical_not(), q1, q2, one, 0.2, 0.99).isnan().all()

    def test_nan_coefficients(self, device):
        tensors = arguments(5, device=device, mask=False)
        assert ops.twin_q_target(*tensors, math.nan, 0.99).isnan().all()
        assert ops.twin_q_target(*tensors, 0.2, torch.tensor(math.nan, device=device)).isnan().all()

    def test_infinities_are_those_of_float64(self, device):
        values = [-math.inf, -1.0, 0.0, 1.0, math.inf]
        grid = torch.cartesian_prod(*[torch.tensor(values, device=device)] * 4)
        for terminated in (False, True):
            done = torch.full((len(grid),), terminated, device=device)
            actual = ops.twin_q_target(grid[:, 0], done, grid[:, 1], grid[:, 2], grid[:, 3], 0.5, 1.0)
            doubles = grid.double().cpu()
            expected = twin_q_target_reference(
                doubles[:, 0], done.cpu(), doubles[:, 1], doubles[:, 2], doubles[:, 3], 0.5, 1.0
            )
            torch.testing.assert_close(actual.double().cpu(), expected, rtol=0, atol=0, equal_nan=True)


class TestOut:
    def test_is_the_target(self, device):
        for shape in ((0,), (1,), (1025,), (300, 1)):
            tensors = arguments(*shape, device=device)
            for alpha in (0.2, torch.tensor(0.2, device=device)):
                out = torch.full_like(tensors[0], 99)
                assert ops.twin_q_target(*tensors, alpha, 0.9, out=out) is out
                assert torch.equal(out, ops.twin_q_target(*tensors, alpha, 0.9))

    def test_a_slice_of_a_buffer(self, device):
        buffer, tensors = torch.full((30,), 99.0, device=device), arguments(10, device=device)
        ops.twin_q_target(*tensors, 0.2, 0.9, out=buffer[10:20])
        assert torch.equal(buffer[10:20], ops.twin_q_target(*tensors, 0.2, 0.9))
        assert bool((buffer[:10] == 99).all())
        assert bool((buffer[20:] == 99).all())

    @pytest.mark.parametrize("position", [0, 2, 3, 4])
    def test_memory_shared_with_an_input_is_refused(self, position, device):
        tensors, buffer = arguments(10, device=device), normal(19, device=device)
        tensors[position] = buffer[9:]
        before = buffer.clone()
        with pytest.raises(ValueError, match="out: expected memory that no input shares"):
            ops.twin_q_target(*tensors, 0.2, 0.9, out=buffer[:10])
        with pytest.raises(ValueError, match="out: expected memory that no input shares"):
            ops.twin_q_target(*tensors, 0.2, 0.9, out=tensors[position])
        assert torch.equal(buffer, before)
        with pytest.raises(ValueError, match="out: expected memory that no input shares"):
            ops.twin_q_target(*arguments(10, device=device), buffer[3], 0.9, out=buffer[:10])

    @pytest.mark.parametrize(
        ("out", "error", "message"),
        [
            (torch.zeros(5), ValueError, r"out: expected shape \[4\] like reward, got \[5\]"),
            (torch.zeros(4, 1), ValueError, r"out: expected shape \[4\] like reward, got \[4, 1\]"),
            (torch.zeros(4).double(), TypeError, "out: expected dtype Float like reward, got Double"),
            (torch.zeros(8)[::2], ValueError, r"out: expected a contiguous tensor, got strides \[2\]"),
            (torch.zeros(1).expand(4), ValueError, r"out: expected a contiguous tensor, got strides \[0\]"),
            (torch.zeros(4).to("meta"), ValueError, "out: expected device cpu like reward, got meta"),
            (torch.zeros(4, requires_grad=True), ValueError, "out: expected a tensor without requires_grad"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, out, error, message):
        with pytest.raises(error, match=message):
            ops.twin_q_target(*arguments(4), 0.2, 0.9, out=out)

    @pytest.mark.parametrize("position", range(2, 5))
    def test_gradients_and_tangents_are_refused(self, position, device):
        tensors, out = arguments(4, device=device), torch.zeros(4, device=device)
        tensors[position].requires_grad_()
        with pytest.raises(ValueError, match=f"{NAMES[position]}: expected a tensor without requires_grad"):
            ops.twin_q_target(*tensors, 0.2, 0.9, out=out)
        with torch.no_grad():
            ops.twin_q_target(*tensors, 0.2, 0.9, out=out)
        tensors[position].requires_grad_(False)
        with pytest.raises(ValueError, match=f"{NAMES[position]}: expected a tensor without a tangent"):
            torch.func.jvp(
                lambda x: ops.twin_q_target(*tensors[:position], x, *tensors[position + 1 :], 0.2, 0.9, out=out),
                (tensors[position],),
                (tensors[position],),
            )

    def test_autograd_notices_the_edit(self, device):
        out, factor = normal(4, device=device), torch.ones(4, device=device, requires_grad=True)
        loss, version = (factor * out).sum(), out._version
        ops.twin_q_target(*arguments(4, device=device), 0.2, 0.9, out=out)
        assert out._version > version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()
        version = out._version
        with torch.inference_mode():
            ops.twin_q_target(*arguments(4, device=device), 0.2, 0.9, out=out)
            inside = torch.zeros(4, device=device)
            ops.twin_q_target(*arguments(4, device=device), 0.2, 0.9, out=inside)
        assert out._version > version
        assert torch.equal(inside, out)

    def test_opcheck_and_compile(self, device):
        tensors, out = arguments(6, device=device), torch.zeros(6, device=device)
        torch.library.opcheck(torch.ops.sacfast.twin_q_target_out.default, (*tensors, None, 0.2, None, 0.9, out))

        def step(tensors):
            out = torch.empty_like(tensors[0])
            ops.twin_q_target(*tensors, 0.2, 0.9, out=out)
            return out * 2

        torch._dynamo.reset()
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(tensors), step(tensors))


class TestPyTorchCitizen:
    @pytest.mark.parametrize("column", [False, True])
    def test_opcheck(self, column, device):
        shape = (6, 1) if column else (6,)
        for mask in (True, False):
            tensors = arguments(*shape, device=device, mask=mask)
            for t in tensors[2:]:
                t.requires_grad_()
            alpha = torch.tensor(0.2, device=device, requires_grad=True)
            gamma = normal(*shape, seed=6, device=device).sigmoid()
            forward = torch.ops.sacfast.twin_q_target.default
            torch.library.opcheck(forward, (*tensors, alpha, 0.0, None, 0.99))
            torch.library.opcheck(forward, (*tensors, None, 0.2, gamma, 0.0))
            backward = torch.ops.sacfast.twin_q_target_backward.default
            plain = [t.detach() for t in tensors[1:]]
            grad = normal(*shape, seed=7, device=device)
            for wants_alpha in (False, True):
                torch.library.opcheck(backward, (grad, *plain, alpha.detach(), 0.0, gamma, 0.0, wants_alpha))

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, backend, device):
        def loss(tensors, alpha):
            q1 = tensors[2] * 2.0
            return (ops.twin_q_target(*tensors[:2], q1, *tensors[3:], alpha, 0.99) * tensors[0]).sum()

        def gradients(function):
            tensors = arguments(70, device=device)
            alpha = torch.tensor(0.2, device=device, requires_grad=True)
            wanted = [t.requires_grad_() for t in tensors[2:]]
            value = function(tensors, alpha)
            return value, *torch.autograd.grad(value, (*wanted, alpha))

        torch._dynamo.reset()
        for a, e in zip(gradients(torch.compile(loss, fullgraph=True, backend=backend)), gradients(loss), strict=True):
            # The compiler may order the sum over 70 samples differently.
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-4)

    def test_compile_with_dynamic_batch(self, device):
        compiled = torch.compile(ops.twin_q_target, fullgraph=True, backend="aot_eager", dynamic=True)
        torch._dynamo.reset()
        for size in (5, 6, 300):
            tensors = arguments(size, device=device)
            assert torch.equal(compiled(*tensors, 0.2, 0.99), ops.twin_q_target(*tensors, 0.2, 0.99))

    def test_inference_mode(self, device):
        tensors = arguments(9, device=device)
        expected = ops.twin_q_target(*tensors, 0.2, 0.99)
        with torch.inference_mode():
            inside = [t.clone() for t in tensors]
            assert torch.equal(ops.twin_q_target(*inside, 0.2, 0.99), expected)
            assert torch.equal(ops.twin_q_target(*tensors, torch.tensor(0.2, device=device), 0.99), expected)
        assert torch.equal(ops.twin_q_target(*inside, 0.2, 0.99), expected)

    def test_autocast_computes_in_float32(self, device):
        reward, terminated, q1, q2, log_prob = arguments(9, device=device)
        half = q1.bfloat16().requires_grad_()
        alpha = torch.tensor(0.2, device=device).bfloat16().requires_grad_()
        with torch.autocast(device, dtype=torch.bfloat16):
            target = ops.twin_q_target(reward, terminated, half, q2, log_prob.bfloat16(), alpha, 0.99)
        assert target.dtype == torch.float32
        expected = ops.twin_q_target(
            reward, terminated, half.detach().float(), q2, log_prob.bfloat16().float(), alpha.detach().float(), 0.99
        )
        assert torch.equal(target, expected)
        target.sum().backward()
        assert half.grad.dtype == alpha.grad.dtype == torch.bfloat16
        assert bool((half.grad != 0).any())

    @pytest.mark.cuda
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types_on_cuda(self, dtype):
        tensors = [t if t.dtype == torch.bool else t.to(dtype) for t in arguments(300, device="cuda")]
        wide = [t if t.dtype == torch.bool else t.float() for t in tensors]
        grad = normal(300, seed=7, device="cuda").to(dtype)
        actual = forward_and_gradients(ops.twin_q_target, tensors, 0.2, 0.99, grad)
        expected = forward_and_gradients(ops.twin_q_target, wide, 0.2, 0.99, grad.float())
        for a, e in zip(actual, expected, strict=True):
            assert a.dtype == dtype
            assert torch.equal(a, e.to(dtype))

    @pytest.mark.cuda
    def test_cuda_equals_cpu(self):
        tensors = arguments(20_000)
        actual = ops.twin_q_target(*(t.cuda() for t in tensors), 0.2, 0.99)
        # Fused multiply-adds may differ between the two: a few roundings of the largest term, about 50.
        torch.testing.assert_close(actual.cpu(), ops.twin_q_target(*tensors, 0.2, 0.99), rtol=0, atol=50 * 3 * EPS)


class TestBadInput:
    @pytest.mark.parametrize("name", ["reward", "terminated", "gamma"])
    def test_requires_grad_where_no_gradient_is_defined(self, name):
        good = dict(zip(NAMES, arguments(4, mask=False), strict=True)) | {"alpha": 0.2, "gamma": torch.tensor(0.99)}
        good[name].requires_grad_()
        with pytest.raises(ValueError, match=f"{name}: expected a tensor without requires_grad"):
            ops.twin_q_target(**good)
        with torch.no_grad():
            assert ops.twin_q_target(**good).shape == (4,)

    @pytest.mark.parametrize("name", NAMES[1:])
    @pytest.mark.parametrize("mask", [True, False])
    def test_mixing_b_and_b_1(self, name, mask):
        good = dict(zip(NAMES, arguments(4, mask=mask), strict=True)) | {"alpha": 0.2, "gamma": 0.99}
        good[name] = good[name].unsqueeze(-1)
        with pytest.raises(ValueError, match=rf"{name}: expected shape \[4\].*like reward, got \[4, 1\]"):
            ops.twin_q_target(**good)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"reward": torch.zeros(4, 1)}, ValueError, r"next_q1: expected shape \[4, 1\] like reward, got \[4\]"),
            ({"reward": torch.zeros(4, 2)}, ValueError, r"reward: expected shape \[B\] or \[B, 1\], got \[4, 2\]"),
            ({"reward": torch.tensor(0.0)}, ValueError, r"reward: expected shape \[B\] or \[B, 1\], got \[\]"),
            ({"reward": torch.zeros(4, dtype=torch.int64)}, TypeError, "reward: expected dtype float32 or float64"),
            ({"reward": torch.zeros(4).half()}, TypeError, "reward: expected dtype .* on the CPU, got Half"),
            ({"reward": torch.zeros(4).double()}, TypeError, "next_q1: expected dtype Double like reward, got Float"),
            ({"terminated": torch.zeros(4).int()}, TypeError, "terminated: expected dtype bool or Float like reward"),
            ({"terminated": torch.zeros(4).double()}, TypeError, "terminated: expected dtype bool or Float"),
            ({"terminated": torch.zeros(5).bool()}, ValueError, r"terminated: expected shape \[4\].*got \[5\]"),
            ({"terminated": torch.zeros(1).bool()}, ValueError, r"terminated: expected shape \[4\].*got \[1\]"),
            ({"next_q1": torch.zeros(5)}, ValueError, r"next_q1: expected shape \[4\] like reward, got \[5\]"),
            ({"next_q2": torch.zeros(1)}, ValueError, r"next_q2: expected shape \[4\] like reward, got \[1\]"),
            ({"next_q2": torch.zeros(4).double()}, TypeError, "next_q2: expected dtype Float like reward, got Double"),
            ({"next_log_prob": torch.zeros(4, 6)}, ValueError, "next_log_prob: expected shape"),
            ({"alpha": torch.zeros(3)}, ValueError, r"alpha: expected one element, or shape \[4\].*got \[3\]"),
            ({"alpha": torch.zeros(4, 1)}, ValueError, r"alpha: expected one element, or shape \[4\].*got \[4, 1\]"),
            ({"alpha": torch.tensor(0.2).double()}, TypeError, "alpha: expected dtype Float like reward, got Double"),
            ({"gamma": torch.zeros(0)}, ValueError, r"gamma: expected one element, or shape \[4\].*got \[0\]"),
            ({"gamma": torch.tensor(1)}, TypeError, "gamma: expected dtype Float like reward, got Long"),
            ({"alpha": "auto"}, RuntimeError, "argument 'alpha_value'"),
            ({"reward": [0.0] * 4}, RuntimeError, "argument 'reward'"),
        ],
    )
    def test_message_names_the_argument(self, change, error, message):
        good = dict(zip(NAMES, arguments(4), strict=True)) | {"alpha": 0.2, "gamma": 0.99}
        with pytest.raises(error, match=message):
            ops.twin_q_target(**{**good, **change})

    @pytest.mark.cuda
    def test_mixed_devices(self):
        tensors = arguments(4, device="cuda")
        with pytest.raises(ValueError, match="alpha: expected device cuda:0 like reward, got cpu"):
            ops.twin_q_target(*tensors, torch.tensor(0.2), 0.99)
        tensors[1] = tensors[1].cpu()
        with pytest.raises(ValueError, match=r"terminated: expected shape .* on cuda:0"):
            ops.twin_q_target(*tensors, 0.2, 0.99)
