"""quantile_huber_loss and truncated_quantile_target against float64, and as citizens of PyTorch."""

import math

import pytest
import torch
from torch import Tensor

from sacfast import ops
from sacfast.ops.quantile import quantile_huber_loss_reference, truncated_quantile_target_reference

EPS = torch.finfo(torch.float32).eps
NAMES = ("reward", "terminated", "next_quantiles", "next_log_prob", "drop_per_critic")


def normal(*shape: int, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def arguments(batch: int, critics: int, quantiles: int, device: str = "cpu") -> list[Tensor]:
    """Return reward, terminated, next_quantiles, next_log_prob; a fifth of the samples terminate."""
    return [
        3 * normal(batch, seed=1, device=device),
        normal(batch, seed=2, device=device) > 0.84,
        5 * normal(batch, critics, quantiles, seed=3, device=device),
        3 * normal(batch, seed=4, device=device),
    ]


def to_double(value):
    if not isinstance(value, Tensor):
        return value
    return value.detach().cpu() if value.dtype == torch.bool else value.detach().double().cpu()


def by_pairs(quantiles: Tensor, target: Tensor, kappa: float) -> float:
    """The loss of one critic in one sample, pair after pair."""
    total = 0.0
    for i, q in enumerate(quantiles.tolist()):
        fraction = (i + 0.5) / len(quantiles)
        for y in target.tolist():
            u = y - q
            huber = 0.5 * u * u if abs(u) <= kappa else kappa * (abs(u) - 0.5 * kappa)
            total += abs(fraction - (u < 0)) * huber / kappa
    return total / (len(quantiles) * len(target))


class TestHuber:
    @pytest.mark.parametrize("shape", [(4, 1), (4, 25), (4, 1, 1), (4, 5, 25), (300, 2, 17), (0, 5, 25), (1, 3, 2)])
    @pytest.mark.parametrize("targets", [1, 16, 46, 115])
    @pytest.mark.parametrize("kappa", [0.3, 1.0])
    def test_loss_and_gradient(self, shape, targets, kappa, device):
        self.assert_matches_float64(2 * normal(*shape, device=device), normal(shape[0], targets, device=device), kappa)

    def test_ten_thousand_random_cases(self, device):
        self.assert_matches_float64(2 * normal(10_000, 2, 7, device=device), normal(10_000, 11, device=device), 1.0)

    def assert_matches_float64(self, quantiles: Tensor, target: Tensor, kappa: float) -> None:
        grad = normal(*quantiles.shape[:-1], seed=3).to(quantiles.device)
        results = []
        for function, *each in (
            (ops.quantile_huber_loss, quantiles, target, grad),
            (quantile_huber_loss_reference, *map(to_double, (quantiles, target, grad))),
        ):
            leaf = each[0].clone().requires_grad_()
            loss = function(leaf, each[1], kappa)
            assert loss.shape == quantiles.shape[:-1]
            results.append((loss.detach().double().cpu(), torch.autograd.grad(loss, leaf, each[2])[0].double().cpu()))
        # A mean of terms below 10 / kappa, summed in vectors: some 20 roundings.
        torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=20 * EPS * 10 / kappa)
        torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=20 * EPS / kappa)

    @pytest.mark.parametrize("kappa", [0.5, 1.0, 2.0])
    def test_pair_after_pair(self, kappa, device):
        quantiles, target = 2 * normal(3, 2, 5, device=device), normal(3, 7, seed=1, device=device)
        loss = ops.quantile_huber_loss(quantiles, target, kappa)
        for b in range(3):
            for n in range(2):
                expected = by_pairs(quantiles[b, n].double(), target[b].double(), kappa)
                assert float(loss[b, n]) == pytest.approx(expected, rel=1e-5)

    def test_by_hand(self, device):
        # Fractions 1/4 and 3/4. u = 2 for both pairs: 1.5 above; u = -0.5: 0.125 below.
        quantiles = torch.tensor([[1.0, 1.0]], device=device, requires_grad=True)
        loss = ops.quantile_huber_loss(quantiles, torch.tensor([[3.0, 0.5]], device=device))
        assert loss.tolist() == [(0.25 * 1.5 + 0.75 * 0.125 + 0.75 * 1.5 + 0.25 * 0.125) / 4]
        (grad,) = torch.autograd.grad(loss.sum(), quantiles)
        assert grad.tolist() == [[-(0.25 * 1 - 0.75 * 0.5) / 4, -(0.75 * 1 - 0.25 * 0.5) / 4]]

    def test_ties_and_the_ends_of_the_square(self, device):
        # u = 0 has neither loss nor slope; at |u| = kappa both branches agree.
        quantiles = torch.tensor([[2.0], [1.0], [3.0]], device=device, requires_grad=True)
        loss = ops.quantile_huber_loss(quantiles, torch.full((3, 1), 2.0, device=device))
        assert loss.tolist() == [0.0, 0.25, 0.25]
        assert torch.autograd.grad(loss.sum(), quantiles)[0].tolist() == [[0.0], [-0.5], [0.5]]

    def test_one_quantile_is_half_a_huber_loss(self, device):
        quantiles, target = 2 * normal(50, 1, device=device), normal(50, 1, seed=1, device=device)
        expected = 0.5 * torch.nn.functional.huber_loss(quantiles, target, reduction="none")[:, 0]
        torch.testing.assert_close(ops.quantile_huber_loss(quantiles, target), expected)

    def test_a_critic_alone_is_one_of_many(self, device):
        quantiles, target = normal(20, 3, 7, device=device), normal(20, 9, seed=1, device=device)
        together = ops.quantile_huber_loss(quantiles, target)
        alone = [ops.quantile_huber_loss(quantiles[:, n], target) for n in range(3)]
        assert torch.equal(together, torch.stack(alone, -1))

    def test_nan_and_infinity_are_those_of_float64(self, device):
        values = [math.nan, math.inf, -math.inf, 1.0]
        for count in (1, 17):  # a partial vector, a whole one and more
            for q in values:
                for y in values:
                    quantiles = torch.full((1, 2), q, device=device, requires_grad=True)
                    target = torch.full((1, count), 1.0, device=device)
                    target[0, -1] = y
                    loss = ops.quantile_huber_loss(quantiles, target)
                    leaf = to_double(quantiles).requires_grad_()
                    expected = quantile_huber_loss_reference(leaf, to_double(target))
                    torch.testing.assert_close(to_double(loss), expected.detach(), equal_nan=True, rtol=EPS, atol=EPS)
                    grads = torch.autograd.grad(loss, quantiles)[0], torch.autograd.grad(expected, leaf)[0]
                    torch.testing.assert_close(to_double(grads[0]), grads[1], equal_nan=True, rtol=2 * EPS, atol=EPS)

    def test_edit_between_forward_and_backward_is_noticed(self, device):
        quantiles, target = normal(4, 7, device=device).requires_grad_(), normal(4, 9, device=device)
        loss = ops.quantile_huber_loss(quantiles, target)
        target.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.sum().backward()


class TestTruncatedTarget:
    @pytest.mark.parametrize("sizes", [(1, 1, 0), (1, 5, 2), (5, 25, 2), (2, 25, 0), (3, 7, 6), (9, 33, 1)])
    @pytest.mark.parametrize("batch", [0, 1, 5, 33, 400])
    def test_all_sizes_and_coefficients(self, batch, sizes, device):
        critics, quantiles, drop = sizes
        tensors = arguments(batch, critics, quantiles, device)
        per_sample = normal(batch, seed=6, device=device).sigmoid()
        for alpha, gamma in ((0.2, 0.99), (torch.tensor([0.2], device=device), per_sample), (per_sample, 0.9)):
            self.assert_matches_float64(tensors, drop, alpha, gamma)

    def test_ten_thousand_random_cases(self, device):
        self.assert_matches_float64(arguments(10_000, 3, 9, device), 2, 0.2, 0.99)

    def assert_matches_float64(self, tensors, drop, alpha, gamma):
        actual = ops.truncated_quantile_target(*tensors, drop, alpha, gamma)
        _, critics, quantiles = tensors[2].shape
        assert actual.shape == (len(tensors[0]), critics * (quantiles - drop))
        expected = truncated_quantile_target_reference(*map(to_double, (*tensors, drop, alpha, gamma)))
        # Sorting moves numbers, it makes none: four roundings of terms below 40.
        torch.testing.assert_close(to_double(actual), expected, rtol=0, atol=4 * EPS * 40)

    def test_by_hand(self, device):
        quantiles = torch.tensor([[[5.0, 1.0, 9.0], [2.0, 8.0, 2.0]]], device=device)
        one, done = torch.ones(1, device=device), torch.zeros(1, device=device).bool()
        target = ops.truncated_quantile_target(one, done, quantiles, -4 * one, 1, 0.25, 0.5)
        assert target.tolist() == [[1 + 0.5 * (q + 1) for q in (1.0, 2.0, 2.0, 5.0)]]
        assert ops.truncated_quantile_target(one, ~done, quantiles, one, 2, 0.25, 0.5).tolist() == [[1.0, 1.0]]

    def test_equal_quantiles(self, device):
        tensors = arguments(40, 5, 25, device)
        tensors[2] = tensors[2].round()  # ties everywhere
        self.assert_matches_float64(tensors, 2, 0.0, 1.0)
        tensors[2] = torch.zeros_like(tensors[2])
        self.assert_matches_float64(tensors, 2, 0.0, 1.0)

    @pytest.mark.parametrize("position", [0, 2, 3])
    def test_a_nan_makes_its_whole_row_nan_and_no_other(self, position, device):
        tensors = arguments(40, 3, 5, device)
        tensors[1][20] = False
        if position == 2:
            tensors[2][20, 1, 3] = math.nan  # sorted last, it would be dropped
        else:
            tensors[position][20] = math.nan
        target = ops.truncated_quantile_target(*tensors, 2, 0.2, 0.99)
        assert target.isnan().all(-1).nonzero().flatten().tolist() == [20]
        assert target.isnan().any(-1).sum() == 1
        assert torch.equal(target.isnan(), truncated_quantile_target_reference(*tensors, 2, 0.2, 0.99).isnan())

    def test_infinities_are_sorted(self, device):
        tensors = arguments(40, 3, 5, device)
        tensors[2][:, 0, 0], tensors[2][:, 1, 1] = math.inf, -math.inf
        tensors[1].fill_(False)
        self.assert_matches_float64(tensors, 1, 0.2, 0.99)

    def test_layouts(self, device):
        base = arguments(30, 3, 5, device)
        views = [
            normal(30, 5, 3, device=device).transpose(1, 2),
            normal(30, 6, 5, device=device)[:, ::2],
            normal(30, 4, 5, device=device)[:, 1:],
            normal(60, 3, 5, device=device)[::2],
            normal(3, 5, device=device).expand(30, 3, 5),
            normal(5, 30, 3, device=device).permute(1, 2, 0),
        ]
        for view in views:
            results = [
                ops.truncated_quantile_target(base[0], base[1], each, base[3], 1, 0.2, 0.9)
                for each in (view, view.contiguous())
            ]
            assert torch.equal(*results)
            target = normal(30, 9, seed=5, device=device)
            assert torch.equal(*(ops.quantile_huber_loss(each, target) for each in (view, view.contiguous())))
        predicted = normal(30, 3, 5, device=device)
        for target in (normal(9, 30, device=device).t(), normal(30, 18, device=device)[:, ::2]):
            results = [ops.quantile_huber_loss(predicted, each) for each in (target, target.contiguous())]
            assert torch.equal(*results)
        one_for_all = normal(1, 9, device=device).expand(30, 9)
        results = [ops.quantile_huber_loss(predicted, each) for each in (one_for_all, one_for_all.contiguous())]
        assert torch.equal(*results)

    def test_thread_count_does_not_matter(self):
        tensors = arguments(1003, 5, 25)
        threads, results = torch.get_num_threads(), []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                target = ops.truncated_quantile_target(*tensors, 2, 0.2, 0.9)
                results.append((target, ops.quantile_huber_loss(tensors[2], target)))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class TestPyTorchCitizen:
    def test_opcheck(self, device):
        reward, terminated, quantiles, log_prob = arguments(6, 2, 5, device)
        op = torch.ops.sacfast.truncated_quantile_target.default
        alpha = torch.tensor(0.2, device=device)
        torch.library.opcheck(op, (reward, terminated, quantiles, log_prob, 1, alpha, 0.0, None, 0.9))
        torch.library.opcheck(op, (reward, terminated.float(), quantiles, log_prob, 0, None, 0.2, log_prob, 0.0))
        op = torch.ops.sacfast.quantile_huber_loss.default
        target = normal(6, 7, device=device)
        for each in (quantiles, quantiles[:, 0]):
            for needs_slope in (False, True):
                torch.library.opcheck(op, (each, target, 1.0, needs_slope))
            torch.library.opcheck(op, (each.clone().requires_grad_(), target, 0.5, False))

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, backend, device):
        def loss(quantiles, tensors):
            with torch.no_grad():
                target = ops.truncated_quantile_target(*tensors, 1, 0.2, 0.99)
            return ops.quantile_huber_loss(quantiles * 2.0, target).sum()

        torch._dynamo.reset()
        results = []
        for function in (torch.compile(loss, fullgraph=True, backend=backend), loss):
            quantiles = normal(30, 3, 5, seed=7, device=device).requires_grad_()
            value = function(quantiles, arguments(30, 3, 5, device))
            results.append((value, *torch.autograd.grad(value, quantiles)))
        for a, e in zip(*results, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)  # the sum over samples may be ordered differently

    def test_inference_mode(self, device):
        tensors = arguments(9, 2, 5, device)
        expected = ops.truncated_quantile_target(*tensors, 1, 0.2, 0.9)
        with torch.inference_mode():
            target = ops.truncated_quantile_target(*tensors, 1, 0.2, 0.9)
            loss = ops.quantile_huber_loss(tensors[2], target)
        assert torch.equal(target, expected)
        assert torch.equal(loss, ops.quantile_huber_loss(tensors[2], expected))

    def test_autocast_computes_in_float32(self, device):
        tensors = arguments(9, 2, 5, device)
        half = tensors[2].bfloat16().requires_grad_()
        with torch.autocast(device, dtype=torch.bfloat16):
            target = ops.truncated_quantile_target(*tensors[:2], tensors[2].bfloat16(), tensors[3], 1, 0.2, 0.9)
            loss = ops.quantile_huber_loss(half, target)
        assert target.dtype == loss.dtype == torch.float32
        assert torch.equal(loss, ops.quantile_huber_loss(half.detach().float(), target))
        loss.sum().backward()
        assert half.grad.dtype == torch.bfloat16

    def test_vmap(self, device):
        tensors = [torch.stack([t, t.flip(0)]) for t in arguments(9, 2, 5, device)]
        target = torch.vmap(lambda *each: ops.truncated_quantile_target(*each, 1, 0.2, 0.9))(*tensors)
        loss = torch.vmap(ops.quantile_huber_loss)(tensors[2], target)
        for i in range(2):
            each = [t[i] for t in tensors]
            assert torch.equal(target[i], ops.truncated_quantile_target(*each, 1, 0.2, 0.9))
            assert torch.equal(loss[i], ops.quantile_huber_loss(each[2], target[i]))

    @pytest.mark.cuda
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types_on_cuda(self, dtype):
        tensors = [t if t.dtype == torch.bool else t.to(dtype) for t in arguments(300, 5, 25, "cuda")]
        wide = [t if t.dtype == torch.bool else t.float() for t in tensors]
        target = ops.truncated_quantile_target(*tensors, 2, 0.2, 0.99)
        assert torch.equal(target, ops.truncated_quantile_target(*wide, 2, 0.2, 0.99).to(dtype))
        loss = ops.quantile_huber_loss(tensors[2], target)
        assert torch.equal(loss, ops.quantile_huber_loss(wide[2], target.float()).to(dtype))

    @pytest.mark.cuda
    def test_more_quantiles_than_shared_memory_holds_are_refused(self):
        with pytest.raises(ValueError, match="next_quantiles: expected at most 4096 quantiles a sample on CUDA"):
            ops.truncated_quantile_target(*arguments(2, 2, 2049, "cuda"), 1, 0.2, 0.9)


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"reward": torch.zeros(4, 2)}, ValueError, r"reward: expected shape \[B\] or \[B, 1\], got \[4, 2\]"),
            ({"reward": torch.zeros(4).int()}, TypeError, "reward: expected dtype float32 or float64 on the CPU"),
            ({"terminated": torch.zeros(4, 1).bool()}, ValueError, r"terminated: expected shape \[4\]"),
            ({"next_log_prob": torch.zeros(1)}, ValueError, r"next_log_prob: expected shape \[4\] like reward"),
            ({"next_quantiles": torch.zeros(4, 5)}, ValueError, r"next_quantiles: expected shape \[B, N, M\] with B"),
            ({"next_quantiles": torch.zeros(5, 2, 5)}, ValueError, "next_quantiles: expected shape .* B = 4"),
            ({"next_quantiles": torch.zeros(4, 0, 5)}, ValueError, "next_quantiles: expected shape .* others >= 1"),
            ({"next_quantiles": torch.zeros(4, 2, 5).double()}, TypeError, "next_quantiles: expected dtype Float"),
            ({"drop_per_critic": 5}, ValueError, r"drop_per_critic: expected an int in \[0, 5\) for M = 5.*got 5"),
            ({"drop_per_critic": -1}, ValueError, r"drop_per_critic: expected an int in \[0, 5\).*got -1"),
            ({"alpha": torch.zeros(3)}, ValueError, "alpha: expected one element, or shape"),
            ({"gamma": torch.tensor(1)}, TypeError, "gamma: expected dtype Float like reward, got Long"),
        ],
    )
    def test_message_names_the_argument(self, change, error, message):
        good = dict(zip(NAMES, (*arguments(4, 2, 5), 1), strict=True)) | {"alpha": 0.2, "gamma": 0.99}
        with pytest.raises(error, match=message):
            ops.truncated_quantile_target(**{**good, **change})

    @pytest.mark.parametrize("name", ["reward", "next_quantiles", "next_log_prob", "alpha", "gamma"])
    def test_gradients_and_tangents_are_refused(self, name):
        good = dict(zip(NAMES, (*arguments(4, 2, 5), 1), strict=True)) | {"alpha": 0.2, "gamma": 0.99}
        good[name] = torch.as_tensor(good[name]).requires_grad_()
        with pytest.raises(ValueError, match=f"{name}: expected a tensor without requires_grad"):
            ops.truncated_quantile_target(**good)
        with torch.no_grad():
            assert ops.truncated_quantile_target(**good).shape == (4, 8)
        plain = good[name].detach()
        with pytest.raises(ValueError, match=f"{name}: expected a tensor without a tangent"):
            torch.func.jvp(lambda x: ops.truncated_quantile_target(**{**good, name: x}), (plain,), (plain,))

    @pytest.mark.parametrize(
        ("quantiles", "target", "kappa", "error", "message"),
        [
            (torch.zeros(4), torch.zeros(4, 1), 1.0, ValueError, r"quantiles: expected shape \[B, M\] or \[B, N, M\]"),
            (torch.zeros(4, 0), torch.zeros(4, 1), 1.0, ValueError, "quantiles: expected shape .* N and M >= 1"),
            (torch.zeros(4, 0, 3), torch.zeros(4, 1), 1.0, ValueError, "quantiles: expected shape .* N and M >= 1"),
            (torch.zeros(4, 5), torch.zeros(4), 1.0, ValueError, r"target: expected shape \[B, K\] with B = 4"),
            (torch.zeros(4, 5), torch.zeros(1, 5), 1.0, ValueError, r"target: expected shape \[B, K\] with B = 4"),
            (torch.zeros(4, 5), torch.zeros(4, 0), 1.0, ValueError, "target: expected shape .* K >= 1"),
            (torch.zeros(4, 5), torch.zeros(4, 5).double(), 1.0, TypeError, "target: expected dtype Float like"),
            (torch.zeros(4, 5).half(), torch.zeros(4, 5), 1.0, TypeError, "quantiles: expected dtype float32 or"),
            (torch.zeros(4, 5), torch.zeros(4, 5), 0.0, ValueError, "kappa: expected a finite number > 0, got 0"),
            (
                torch.zeros(4, 5),
                torch.zeros(4, 5),
                math.nan,
                ValueError,
                "kappa: expected a finite number > 0, got nan",
            ),
        ],
    )
    def test_message_of_the_loss(self, quantiles, target, kappa, error, message):
        with pytest.raises(error, match=message):
            ops.quantile_huber_loss(quantiles, target, kappa)

    def test_a_target_that_requires_grad_is_refused(self):
        with pytest.raises(ValueError, match="target: expected a tensor without requires_grad"):
            ops.quantile_huber_loss(torch.zeros(4, 7), torch.ones(4, 7, requires_grad=True))
