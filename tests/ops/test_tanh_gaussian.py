"""The tanh-Gaussian ops against float64 plain torch, and as citizens of PyTorch."""

import math

import pytest
import torch
from torch import Tensor

from sacfast import ops
from sacfast.ops.tanh_gaussian import (
    bound_log_std_reference,
    tanh_gaussian_log_prob_reference,
    tanh_gaussian_rsample_reference,
)

EPS = torch.finfo(torch.float32).eps
BOUNDINGS = [("none", (-20.0, 2.0)), ("clamp", (-1.0, 0.5)), ("tanh", (-5.0, 2.0))]
# Sizes around the edges of vectors (4, 8, 16), noise groups (64), tiles (1,024), and rows longer than a tile.
SHAPES = [
    (1, 1),
    (5, 3),
    (7, 17),
    (64, 6),
    (33, 31),
    (257, 6),
    (1025, 1),
    (3, 1024),
    (2, 1025),
    (1, 4099),
    (9,),
    (2, 3, 5),
]


def normal(*shape: int, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def arguments(shape: tuple[int, ...], device: str, spread: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    return (
        spread * normal(*shape, seed=1, device=device),
        normal(*shape, seed=2, device=device),
        normal(*shape, seed=3, device=device),
    )


def forward_and_gradients(function, tensors, grad_action, grad_log_prob, **options):
    """Run in float64 if the tensors are: returns action, log_prob, and the gradients of mean and log_std."""
    mean, log_std, noise = tensors
    mean, log_std = mean.detach().clone().requires_grad_(), log_std.detach().clone().requires_grad_()
    action, log_prob = function(mean, log_std, noise, **options)
    grads = torch.autograd.grad([action, log_prob], [mean, log_std], [grad_action, grad_log_prob])
    return action.detach(), log_prob.detach(), *grads


def error_bounds(mean, log_std, noise, grad_action, grad_log_prob):
    """What float32 rounding allows, from float64 values.

    A few units in the last place of every term that is added, and the rounding of z carried through each
    function's slope. The primitives are within 2 ulp, 1 - tanh^2 within 6 (tests/csrc/test_core.cpp measures them).
    """
    std_noise = log_std.exp() * noise
    z = mean + std_noise
    slope = z.cosh().reciprocal().square()
    z_error = 8 * EPS * (mean.abs() + std_noise.abs())
    action = 8 * EPS * z.tanh().abs() + slope * z_error
    terms = 0.5 * noise.square() + log_std.abs() + 1 + 2 * z.abs()
    row_terms = terms.sum(-1) * math.log2(terms.shape[-1] + 1)  # summation
    log_prob = 8 * EPS * row_terms + 2 * z_error.sum(-1)
    g, h = grad_action.abs(), grad_log_prob.abs().unsqueeze(-1)
    grad_mean = 16 * EPS * (g * slope + 2 * h * z.tanh().abs()) + 2 * slope * (g + h) * z_error
    grad_log_std = std_noise.abs() * grad_mean + 16 * EPS * (std_noise.abs() * (g * slope + 2 * h) + h)
    return action, log_prob, grad_mean, grad_log_std


def assert_within(actual: Tensor, expected: Tensor, bound: Tensor, name: str) -> None:
    excess = (actual.double().cpu() - expected).abs() - bound - 1e-37  # subnormal results may be flushed
    assert bool((excess <= 0).all()), (
        f"{name}: off by {float((actual.double().cpu() - expected).abs().max()):.3g}, "
        f"worst excess over rounding {float(excess.max()):.3g}"
    )


class TestAgainstFloat64:
    def test_ten_thousand_random_cases(self, device):
        mean, log_std, noise = arguments((10_000, 6), device, spread=3.0)
        log_std = log_std.clamp(-20, 2)
        grads = normal(10_000, 6, seed=4, device=device), normal(10_000, seed=5, device=device)
        actual = forward_and_gradients(ops.tanh_gaussian_rsample, (mean, log_std, noise), *grads)
        doubles = [t.double().cpu() for t in (mean, log_std, noise, *grads)]
        expected = forward_and_gradients(tanh_gaussian_rsample_reference, doubles[:3], *doubles[3:])
        names = ("action", "log_prob", "grad_mean", "grad_log_std")
        for name, a, e, bound in zip(names, actual, expected, error_bounds(*doubles), strict=True):
            assert_within(a, e, bound, name)

    @pytest.mark.parametrize("pre_tanh", [-20.0, -9.0, -1e-4, 0.0, 1e-4, 9.0, 15.0, 20.0])
    @pytest.mark.parametrize("log_std", [-20.0, -5.0, 0.0, 5.0])
    def test_saturated_and_extreme(self, pre_tanh, log_std, device):
        noise = torch.tensor([[-2.0, -0.5, 0.0, 0.7, 3.0]], device=device)
        log_std = torch.full_like(noise, log_std)
        mean = pre_tanh - log_std.exp() * noise
        grads = torch.ones_like(noise), torch.ones(1, device=device)
        actual = forward_and_gradients(ops.tanh_gaussian_rsample, (mean, log_std, noise), *grads)
        doubles = [t.double().cpu() for t in (mean, log_std, noise, *grads)]
        expected = forward_and_gradients(tanh_gaussian_rsample_reference, doubles[:3], *doubles[3:])
        names = ("action", "log_prob", "grad_mean", "grad_log_std")
        for name, a, e, bound in zip(names, actual, expected, error_bounds(*doubles), strict=True):
            assert bool(a.isfinite().all()), name
            assert_within(a, e, bound, name)

    def test_gradient_where_the_usual_epsilon_vanishes(self, device):
        # d log_prob / d z is 2 tanh(z); with log(1 - tanh^2 + 1e-6) it would be 0 at z = 15.
        mean = torch.tensor([[15.0], [-15.0]], device=device, requires_grad=True)
        _, log_prob = ops.tanh_gaussian_rsample(mean, torch.zeros_like(mean), torch.zeros_like(mean))
        (grad,) = torch.autograd.grad(log_prob.sum(), mean)
        torch.testing.assert_close(grad.cpu(), torch.tensor([[2.0], [-2.0]]))

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize(("bounding", "bounds"), BOUNDINGS)
    def test_all_shapes_and_boundings(self, shape, bounding, bounds, device):
        tensors = arguments(shape, device)
        scale = torch.linspace(0.3, 2.0, shape[-1], device=device)
        grads = normal(*shape, seed=4, device=device), normal(*shape[:-1], seed=5, device=device)
        options = {"log_std_bounding": bounding, "log_std_bounds": bounds}
        actual = forward_and_gradients(ops.tanh_gaussian_rsample, tensors, *grads, **options, action_scale=scale)
        doubles = [t.double().cpu() for t in (*tensors, *grads)]
        expected = forward_and_gradients(
            tanh_gaussian_rsample_reference,
            doubles[:3],
            *doubles[3:],
            **options,
            action_scale=scale.double().cpu(),
        )
        # Sums of up to 4,099 float32 terms of order one: relative to the sum of their magnitudes.
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.double().cpu(), e, rtol=2e-5, atol=2e-6 * shape[-1] + 4e-6)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_log_prob(self, shape, device):
        z, log_std, noise = arguments(shape, device)
        mean = z - log_std.exp() * noise
        tensors = [t.requires_grad_() for t in (z, mean.detach(), log_std)]
        doubles = [t.detach().double().cpu().requires_grad_() for t in tensors]
        grad = normal(*shape[:-1], seed=5, device=device)
        actual, expected = ops.tanh_gaussian_log_prob(*tensors), tanh_gaussian_log_prob_reference(*doubles)
        # (z - mean) / std is ill-conditioned for a small std: eps * |z| / std enters squared.
        tolerance = {"rtol": 2e-4, "atol": 2e-4}
        torch.testing.assert_close(actual.double().cpu(), expected, rtol=2e-5, atol=4e-5 + 1e-5 * shape[-1])
        for a, e in zip(
            torch.autograd.grad(actual, tensors, grad),
            torch.autograd.grad(expected, doubles, grad.double().cpu()),
            strict=True,
        ):
            torch.testing.assert_close(a.double().cpu(), e, **tolerance)

    def test_log_prob_agrees_with_rsample(self, device):
        mean, log_std, noise = arguments((100, 6), device)
        _, log_prob = ops.tanh_gaussian_rsample(mean, log_std, noise)
        known = ops.tanh_gaussian_log_prob(mean + log_std.exp() * noise, mean, log_std)
        torch.testing.assert_close(known, log_prob, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize(("bounding", "bounds"), BOUNDINGS)
    def test_bounding_formulas(self, bounding, bounds, device):
        raw = torch.linspace(-30.0, 10.0, 81, device=device).unsqueeze(-1)
        zero = torch.zeros_like(raw)
        # With zero noise and mean, log_prob = -log_std - log(2 pi)/2.
        _, log_prob = ops.tanh_gaussian_rsample(zero, raw, zero, log_std_bounding=bounding, log_std_bounds=bounds)
        expected = bound_log_std_reference(raw.double(), bounding, bounds).squeeze(-1)
        torch.testing.assert_close(-log_prob.double() - 0.5 * math.log(2 * math.pi), expected, rtol=1e-6, atol=2e-6)


class TestGradients:
    @pytest.mark.parametrize(("bounding", "bounds"), BOUNDINGS)
    @pytest.mark.parametrize("scaled", [False, True])
    def test_gradcheck_rsample(self, bounding, bounds, scaled, device):
        mean = normal(4, 3, seed=1, device=device, dtype=torch.float64).requires_grad_()
        log_std = (0.7 * normal(4, 3, seed=2, device=device, dtype=torch.float64)).requires_grad_()
        noise = normal(4, 3, seed=3, device=device, dtype=torch.float64)
        scale = torch.tensor([0.4, 1.0, 2.0], dtype=torch.float64, device=device) if scaled else None
        assert torch.autograd.gradcheck(
            lambda m, s: ops.tanh_gaussian_rsample(
                m, s, noise, log_std_bounding=bounding, log_std_bounds=bounds, action_scale=scale
            ),
            (mean, log_std),
        )

    def test_gradcheck_broadcast(self, device):
        mean = normal(2, 4, 3, seed=1, device=device, dtype=torch.float64).requires_grad_()
        log_std = normal(3, seed=2, device=device, dtype=torch.float64).requires_grad_()
        noise = normal(4, 1, seed=3, device=device, dtype=torch.float64)
        assert torch.autograd.gradcheck(lambda m, s: ops.tanh_gaussian_rsample(m, s, noise), (mean, log_std))
        z = normal(4, 1, seed=4, device=device, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(ops.tanh_gaussian_log_prob, (z, mean, log_std))

    @pytest.mark.parametrize("output", [0, 1])
    def test_one_output_used(self, output, device):
        tensors = arguments((5, 3), device)
        doubles = [t.double() for t in tensors]
        for t in (*tensors[:2], *doubles[:2]):
            t.requires_grad_()
        actual = torch.autograd.grad(ops.tanh_gaussian_rsample(*tensors)[output].sum(), tensors[:2], allow_unused=True)
        expected = torch.autograd.grad(tanh_gaussian_rsample_reference(*doubles)[output].sum(), doubles[:2])
        for a, e in zip(actual, expected, strict=True):
            torch.testing.assert_close(a.double(), e, rtol=1e-5, atol=1e-5)

    def test_noise_drawn_inside_is_the_noise_of_the_gradient(self, device):
        mean, log_std, _ = arguments((50, 3), device)
        mean.requires_grad_()
        state = ops.philox_state(7, device)
        action, _ = ops.tanh_gaussian_rsample(mean, log_std, generator=state)
        (grad,) = torch.autograd.grad(action.sum(), mean)
        torch.testing.assert_close(grad, 1 - action.detach().square(), rtol=1e-4, atol=1e-6)

    def test_edit_between_forward_and_backward_is_noticed(self, device):
        mean, log_std, noise = arguments((5, 3), device)
        mean.requires_grad_()
        _, log_prob = ops.tanh_gaussian_rsample(mean, log_std, noise)
        noise.add_(1.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            log_prob.sum().backward()


class TestLayouts:
    def views(self, device):
        base = normal(7, 12, seed=8, device=device)
        yield "chunk of a wider row", base.chunk(2, -1)[1]
        yield "transposed", normal(6, 7, seed=8, device=device).t()
        yield "every second column", base[:, ::2]
        yield "every second row", normal(14, 6, seed=8, device=device)[::2]
        yield "offset", normal(50, seed=8, device=device)[1:43].view(7, 6)
        yield "one row for all", normal(6, seed=8, device=device).expand(7, 6)
        yield "one column for all", normal(7, 1, seed=8, device=device).expand(7, 6)
        yield (
            "permuted leading dimensions",
            normal(7, 2, 6, seed=8, device=device).transpose(0, 1)[:1].expand(1, 7, 6),
        )

    def test_views_equal_their_copies(self, device):
        for name, view in self.views(device):
            mean, log_std = view, view.flip(0)[..., :] * 0.5
            noise = view.roll(1, -1)
            for order in ((view, log_std, noise), (mean, view, noise), (mean, log_std, view)):
                actual = ops.tanh_gaussian_rsample(*order)
                expected = ops.tanh_gaussian_rsample(*(t.contiguous() for t in order))
                for a, e in zip(actual, expected, strict=True):
                    assert torch.equal(a, e), name

    def test_permuted_leading_dimensions(self, device):
        mean = normal(3, 4, 5, seed=1, device=device).transpose(0, 1)
        actual = ops.tanh_gaussian_rsample(mean, mean, mean)
        expected = ops.tanh_gaussian_rsample(*([mean.contiguous()] * 3))
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[1], expected[1])

    def test_noncontiguous_gradients(self, device):
        tensors = arguments((6, 4), device)
        grads = normal(4, 6, seed=4, device=device).t(), normal(12, seed=5, device=device)[::2]
        actual = forward_and_gradients(ops.tanh_gaussian_rsample, tensors, *grads)
        expected = forward_and_gradients(ops.tanh_gaussian_rsample, tensors, *(g.contiguous() for g in grads))
        for a, e in zip(actual, expected, strict=True):
            assert torch.equal(a, e)

    @pytest.mark.parametrize("shape", [(0, 3), (4, 0), (0,), (2, 0, 3)])
    def test_empty(self, shape, device):
        mean = torch.zeros(shape, device=device, requires_grad=True)
        action, log_prob = ops.tanh_gaussian_rsample(mean, mean.detach())
        assert action.shape == shape
        assert torch.equal(log_prob, torch.zeros(shape[:-1], device=device))
        action.sum().backward()
        assert mean.grad.shape == shape

    def test_rows_do_not_depend_on_the_thread_count(self):
        mean, log_std, noise = arguments((5_000, 17), "cpu")
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(
                (
                    *ops.tanh_gaussian_rsample(mean, log_std, noise),
                    *ops.tanh_gaussian_rsample(mean, log_std, generator=ops.philox_state(1)),
                )
            )
        for one, two in zip(*results, strict=True):
            assert torch.equal(one, two)


class TestCitizen:
    """Behaves as PyTorch's own operations do."""

    OPS = torch.ops.sacfast

    def test_opcheck(self, device):
        mean, log_std, noise = arguments((5, 3), device)
        scale = torch.full((3,), 0.5, device=device)
        for requires_grad in (False, True):
            m, s = mean.clone().requires_grad_(requires_grad), log_std.clone().requires_grad_(requires_grad)
            for kind in ("none", "clamp", "tanh"):
                torch.library.opcheck(
                    self.OPS.tanh_gaussian_rsample.default,
                    (m, s, noise, None, None, kind, -5.0, 2.0, scale),
                )
            torch.library.opcheck(self.OPS.tanh_gaussian_log_prob.default, (m, s, noise.clone().requires_grad_()))
        backward = (mean, mean[:, 0].contiguous(), mean, log_std, noise, "tanh", -5.0, 2.0, scale)
        torch.library.opcheck(self.OPS.tanh_gaussian_rsample_backward.default, backward)
        torch.library.opcheck(
            self.OPS.tanh_gaussian_log_prob_backward.default, (mean[:, 0].contiguous(), mean, log_std, noise)
        )

    def test_opcheck_with_noise_drawn_inside(self, device):
        # What compares values is left out: each call draws new noise.
        mean, log_std, _ = arguments((5, 3), device)
        torch.library.opcheck(
            self.OPS._tanh_gaussian_rsample_with_noise.default,
            (mean, log_std, None, ops.philox_state(1, device), "none", 0.0, 0.0, None),
            test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
        )

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compile_fullgraph(self, backend, device):
        def loss(mean, log_std, noise):
            action, log_prob = ops.tanh_gaussian_rsample(mean, log_std, noise, log_std_bounding="tanh")
            return (action.square().sum(-1) - 0.2 * log_prob).mean()

        mean, log_std, noise = arguments((6, 3), device)
        results = []
        for function in (loss, torch.compile(loss, fullgraph=True, backend=backend)):
            m, s = mean.clone().requires_grad_(), log_std.clone().requires_grad_()
            value = function(m, s, noise)
            value.backward()
            results.append((value.detach(), m.grad, s.grad))
        for eager, compiled in zip(*results, strict=True):
            torch.testing.assert_close(eager, compiled)

    def test_compile_draws_new_noise_and_advances_the_state(self, device):
        mean, log_std, _ = arguments((6, 3), device)
        compiled = torch.compile(
            lambda m, s, state: ops.tanh_gaussian_rsample(m, s, generator=state),
            fullgraph=True,
            backend="aot_eager",
        )
        state, eager_state = ops.philox_state(5, device), ops.philox_state(5, device)
        for _ in range(3):
            action, _ = compiled(mean, log_std, state)
            assert torch.equal(action, ops.tanh_gaussian_rsample(mean, log_std, generator=eager_state)[0])
        assert state.tolist() == [5, 3]

    def test_compile_without_generator(self, device):
        mean, log_std, _ = arguments((6, 3), device)
        compiled = torch.compile(lambda m, s: ops.tanh_gaussian_rsample(m, s), fullgraph=True, backend="aot_eager")
        first, second = compiled(mean, log_std)[0], compiled(mean, log_std)[0]
        assert not torch.equal(first, second)

    def test_inference_mode(self, device):
        mean, log_std, noise = arguments((6, 3), device)
        expected = ops.tanh_gaussian_rsample(mean, log_std, noise)
        with torch.inference_mode():
            inside = mean * 1.0
            actual = ops.tanh_gaussian_rsample(inside, log_std, noise)
            ops.tanh_gaussian_rsample(inside, log_std, generator=ops.philox_state(1, device))
        assert torch.equal(actual[0], expected[0])
        assert torch.equal(actual[1], expected[1])

    def test_autocast_computes_in_float32(self, device):
        mean, log_std, noise = arguments((6, 3), device)
        layer = torch.nn.Linear(3, 3, device=device)
        with torch.autocast(device, dtype=torch.bfloat16):
            hidden = layer(mean)
            assert hidden.dtype == torch.bfloat16
            action, log_prob = ops.tanh_gaussian_rsample(hidden, log_std, noise)
            assert ops.tanh_gaussian_log_prob(hidden, mean, log_std).dtype == torch.float32
        assert action.dtype == log_prob.dtype == torch.float32
        assert torch.equal(action, ops.tanh_gaussian_rsample(hidden.float(), log_std, noise)[0])
        action.sum().backward()
        assert layer.weight.grad is not None

    @pytest.mark.cuda
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types_on_cuda(self, dtype):
        tensors = [t.to(dtype) for t in arguments((65, 6), "cuda")]
        action, log_prob = ops.tanh_gaussian_rsample(*tensors)
        exact_action, exact_log_prob = ops.tanh_gaussian_rsample(*(t.float() for t in tensors))
        assert action.dtype == log_prob.dtype == dtype
        assert torch.equal(action, exact_action.to(dtype))
        assert torch.equal(log_prob, exact_log_prob.to(dtype))

    @pytest.mark.cuda
    def test_cuda_graph_draws_new_noise_at_each_replay(self):
        mean, log_std, _ = arguments((64, 6), "cuda")
        for generator in (None, ops.philox_state(3, "cuda")):
            graph = torch.cuda.CUDAGraph()
            ops.tanh_gaussian_rsample(mean, log_std, generator=generator)
            with torch.cuda.graph(graph):
                action, _ = ops.tanh_gaussian_rsample(mean, log_std, generator=generator)
            graph.replay()
            first = action.clone()
            graph.replay()
            assert not torch.equal(first, action)

    def test_nan_and_infinity_propagate(self, device):
        for position in range(3):
            tensors = list(arguments((4, 3), device))
            tensors[position][1, 2] = math.nan
            action, log_prob = ops.tanh_gaussian_rsample(*tensors)
            assert log_prob.isnan().tolist() == [False, True, False, False]
            assert action.isnan().any() == (position != 3)
        mean, log_std, noise = arguments((1, 2), device)
        mean[0, 0] = math.inf
        action, log_prob = ops.tanh_gaussian_rsample(mean, log_std, noise)
        assert float(action[0, 0]) == 1.0
        assert float(log_prob[0]) == math.inf

    def test_huge_log_std_overflows_as_in_torch(self, device):
        mean = torch.zeros(1, 1, device=device)
        log_std = torch.full((1, 1), 200.0, device=device)
        action, _ = ops.tanh_gaussian_rsample(mean, log_std, torch.ones(1, 1, device=device))
        assert float(action) == 1.0


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            (
                {"log_std": torch.zeros(4, 2)},
                ValueError,
                r"log_std: expected a shape that broadcasts with mean \[4, 3\], got \[4, 2\]",
            ),
            (
                {"log_std": torch.zeros(4, 3, dtype=torch.float64)},
                TypeError,
                "log_std: expected dtype Float like mean, got Double",
            ),
            ({"log_std": torch.tensor(0.0)}, ValueError, r"log_std: expected shape \[..., A\]"),
            (
                {"mean": torch.zeros(4, 3, dtype=torch.int64)},
                TypeError,
                "mean: expected dtype float32 or float64 on the CPU, got Long",
            ),
            (
                {"mean": torch.zeros(4, 3, dtype=torch.bfloat16)},
                TypeError,
                "mean: expected dtype float32 or float64 on the CPU, got BFloat16",
            ),
            (
                {"mean": torch.zeros(4, 3, dtype=torch.complex64)},
                TypeError,
                "mean: expected dtype float32 or float64",
            ),
            ({"noise": torch.zeros(5, 3)}, ValueError, "noise: expected a shape that broadcasts"),
            (
                {"noise": torch.zeros(4, 3, requires_grad=True)},
                ValueError,
                "noise: expected a tensor without requires_grad",
            ),
            (
                {"noise": torch.zeros(4, 3), "generator": torch.Generator()},
                ValueError,
                "generator: expected None when noise is given",
            ),
            (
                {"generator": torch.zeros(2)},
                TypeError,
                "generator: expected dtype int64 of a state, got Float",
            ),
            (
                {"generator": torch.zeros(3, dtype=torch.int64)},
                ValueError,
                r"generator: expected a contiguous state",
            ),
            (
                {"log_std_bounding": "clip"},
                ValueError,
                "log_std_bounding: expected 'none', 'clamp' or 'tanh', got 'clip'",
            ),
            (
                {"log_std_bounding": "clamp", "log_std_bounds": (2.0, -20.0)},
                ValueError,
                "log_std_bounds: expected .low, high.",
            ),
            ({"action_scale": torch.ones(2)}, ValueError, r"action_scale: expected shape \[3\], got \[2\]"),
            (
                {"action_scale": torch.ones(3, requires_grad=True)},
                ValueError,
                "action_scale: expected a tensor without requires_grad",
            ),
            ({"mean": [[0.0]]}, RuntimeError, "argument 'mean'"),
        ],
    )
    def test_message_names_the_argument(self, change, error, message):
        good = {"mean": torch.zeros(4, 3), "log_std": torch.zeros(4, 3)}
        with pytest.raises(error, match=message):
            ops.tanh_gaussian_rsample(**{**good, **change})

    def test_log_prob(self):
        with pytest.raises(ValueError, match="log_std: expected a shape that broadcasts"):
            ops.tanh_gaussian_log_prob(torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(4, 4))
        with pytest.raises(TypeError, match="mean: expected dtype Float like pre_tanh, got Double"):
            ops.tanh_gaussian_log_prob(torch.zeros(4, 3), torch.zeros(4, 3).double(), torch.zeros(4, 3))

    @pytest.mark.cuda
    def test_mixed_devices(self):
        with pytest.raises(ValueError, match="log_std: expected device cuda:0 like mean, got cpu"):
            ops.tanh_gaussian_rsample(torch.zeros(4, 3, device="cuda"), torch.zeros(4, 3))
        zero = torch.zeros(4, 3, device="cuda")
        with pytest.raises(ValueError, match="generator: expected a generator on cuda"):
            ops.tanh_gaussian_rsample(zero, zero, generator=torch.Generator())
