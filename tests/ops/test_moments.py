"""update_running_moments_ and normalize against float64, against other libraries, and as citizens of PyTorch."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sacfast import ops
from sacfast.ops.moments import normalize_reference, update_running_moments_reference_

EPS, EPS64 = torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps
# Around the edges of vectors, of rows side by side (128), of a block's threads (256) and of a tile (1024).
COLUMNS = [1, 2, 3, 17, 64, 101, 128, 129, 256, 257, 1024, 1030]


def normal(*shape: int, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def state(*shape: int, device: str = "cpu", dtype: torch.dtype = torch.float64, count: float = 0.0) -> list[Tensor]:
    """Return mean, variance, count."""
    mean, variance = torch.zeros(shape, device=device, dtype=dtype), torch.ones(shape, device=device, dtype=dtype)
    return [mean, variance, torch.tensor(count, device=device, dtype=torch.float64)]


def assert_moments_of(moments: list[Tensor], samples: Tensor, dtype_eps: float = EPS64) -> None:
    """Compare with two passes over all samples in float64."""
    mean, variance, count = (each.double().cpu() for each in moments)
    rows = samples.double().cpu().reshape(-1, *mean.shape)
    expected_mean, expected_variance = rows.mean(0), (rows - rows.mean(0)).square().mean(0)
    assert count == len(rows)
    # Some tens of roundings of the mean on both sides; of the variance, sums of some 1000 terms in float64.
    deviation, error = expected_variance.sqrt(), (50 * EPS64 + dtype_eps) * rows.abs().amax(0)
    assert bool(((mean - expected_mean).abs() <= error).all())
    # A mean that is wrong by `error` adds to (delta of two batches)^2 < variance what (delta + error)^2 is more.
    allowed = (1e-12 + 2 * dtype_eps) * expected_variance + 2 * deviation * error + error.square()
    assert bool(((variance - expected_variance).abs() <= allowed).all())


class TestUpdate:
    @pytest.mark.parametrize("columns", COLUMNS)
    @pytest.mark.parametrize("rows", [1, 2, 7, 130, 1_003])
    def test_all_sizes(self, rows, columns, device):
        moments, batches = state(columns, device=device), []
        for seed, count in enumerate((rows, 1, rows + 3)):
            batches.append(3 * normal(count, columns, seed=seed, device=device) + 2)
            ops.update_running_moments_(*moments, batches[-1])
        assert_moments_of(moments, torch.cat(batches))

    def test_many_parts_of_rows(self, device):
        # More rows than one thread's part: 4 x 16384 elements on the CPU, 8192 on a GPU.
        for columns, rows in ((1, 700_001), (3, 100_003), (376, 3_001)):
            moments, batch = state(columns, device=device), normal(rows, columns, device=device)
            ops.update_running_moments_(*moments, batch)
            assert_moments_of(moments, batch)

    def test_ten_thousand_random_cases(self, device):
        # A case is a column: its own offset, scale and history of batches.
        offset, scale = 10 * normal(10_000, seed=1, device=device), normal(10_000, seed=2, device=device).exp()
        for dtype in (torch.float32, torch.float64):
            moments, expected, batches = state(10_000, device=device), state(10_000), []
            for seed in range(8):
                batch = (offset + scale * normal(1 + 3 * seed, 10_000, seed=seed, device=device)).to(dtype)
                batches.append(batch)
                ops.update_running_moments_(*moments, batch)
                update_running_moments_reference_(*expected, batch.cpu())
            assert_moments_of(moments, torch.cat(batches))
            for a, e in zip(moments, expected, strict=True):
                torch.testing.assert_close(a.cpu(), e, rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize(("mean", "std"), [(1e6, 1e-2), (-1e6, 1.0), (1e8, 1e-6), (0.0, 1e-30), (1e30, 1e24)])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_numbers_far_from_zero(self, mean, std, dtype, device):
        # E(x^2) - E(x)^2 would have no digit left, and often be negative.
        samples = (mean + std * normal(4_000, 5, dtype=torch.float64)).to(dtype).to(device)
        moments = state(5, device=device)
        for batch in samples.split([1, 999, 2_000, 1_000]):
            ops.update_running_moments_(*moments, batch)
        assert_moments_of(moments, samples)

    def test_an_outlier_comes_first(self, device):
        # The sums are of differences from the first sample, so this is what costs them most.
        samples = normal(2_000, 3, device=device, dtype=torch.float64)
        samples[0] = 1e6
        moments = state(3, device=device)
        ops.update_running_moments_(*moments, samples)
        rows = samples.cpu()
        expected = (rows - rows.mean(0)).square().mean(0)
        # n = 256 x 42 sums at most, each n roundings of the largest, 1e12; the variance is 1e12 / 2000.
        torch.testing.assert_close(moments[1].cpu(), expected, rtol=1e-10, atol=0)

    def test_equal_samples_have_no_variance(self, device):
        for value in (0.1, 1e6 + 0.1, -3e30):
            moments = state(3, device=device)
            for rows in (1, 7, 300):
                ops.update_running_moments_(*moments, torch.full((rows, 3), value, device=device))
            assert torch.equal(moments[0].float(), torch.full((3,), value, device=device))
            assert torch.equal(moments[1], torch.zeros(3, device=device, dtype=torch.float64))

    def test_a_count_beyond_2_24_goes_on(self, device):
        for count_dtype in (torch.float64, torch.int64):
            mean, variance, _ = state(2, device=device)
            count = torch.tensor(2**24, device=device, dtype=count_dtype)
            for _ in range(5):
                ops.update_running_moments_(mean, variance, count, torch.ones(1, 2, device=device))
            assert int(count) == 2**24 + 5
            torch.testing.assert_close(mean, torch.full_like(mean, 5 / (2**24 + 5)), rtol=1e-9, atol=0)

    def test_float32_moments(self, device):
        moments, batches = state(17, device=device, dtype=torch.float32), []
        for seed in range(5):
            batches.append(normal(200, 17, seed=seed, device=device) + 1)
            ops.update_running_moments_(*moments, batches[-1])
        assert moments[0].dtype == moments[1].dtype == torch.float32
        assert_moments_of(moments, torch.cat(batches), dtype_eps=5 * EPS)  # a rounding a batch

    def test_shapes_of_samples(self, device):
        numbers = normal(7, 5, device=device)
        moments = state(device=device)
        ops.update_running_moments_(*moments, numbers)  # 35 numbers
        assert_moments_of(moments, numbers)
        for shape in ((3, 4, 5), (5,), (4, 5)):
            images = normal(6, 2, 3, 4, 5, device=device)
            moments = state(*shape, device=device)
            ops.update_running_moments_(*moments, images)
            assert_moments_of(moments, images)
        moments = state(5, device=device)
        ops.update_running_moments_(*moments, numbers[0])  # one sample
        assert_moments_of(moments, numbers[:1])

    @pytest.mark.parametrize("shape", [(0, 3), (0, 4, 3), (4, 0, 3)])
    def test_an_empty_batch_changes_nothing(self, shape, device):
        moments = [*state(3, device=device)[:2], torch.tensor(5.0, dtype=torch.float64, device=device)]
        before = [each.clone() for each in moments]
        for function in (ops.update_running_moments_, update_running_moments_reference_):
            function(*moments, torch.zeros(shape, device=device))
            assert all(torch.equal(a, b) for a, b in zip(moments, before, strict=True))

    def test_with_a_count_of_zero_nothing_was_before(self, device):
        for function in (ops.update_running_moments_, update_running_moments_reference_):
            moments = state(3, device=device)
            moments[0].fill_(math.nan)
            moments[1].fill_(math.inf)
            batch = normal(9, 3, device=device)
            function(*moments, batch)
            assert_moments_of(moments, batch)

    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("row", [0, 100, 399])
    def test_nan_and_infinity_are_those_of_all_samples_at_once(self, bad, row, device):
        samples = normal(400, 3, device=device)
        samples[row, 1] = bad
        for function in (ops.update_running_moments_, update_running_moments_reference_):
            moments = state(3, device=device)
            for batch in samples.split([100, 50, 250]):
                function(*moments, batch)
            mean, variance = samples.double().mean(0), samples.double().var(0, correction=0)
            torch.testing.assert_close(moments[0], mean, equal_nan=True, rtol=1e-12, atol=1e-14)
            torch.testing.assert_close(moments[1], variance, equal_nan=True, rtol=1e-12, atol=0)

    def test_thread_count_does_not_matter(self):
        threads, results = torch.get_num_threads(), []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                for shape in ((100_003, 17), (300_001,), (70, 5_000)):
                    moments = state(*shape[1:])
                    ops.update_running_moments_(*moments, normal(*shape))
                    results.append(torch.cat([each.flatten() for each in moments]))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(results[:3], results[3:], strict=True))


class TestOtherLibraries:
    BATCHES = (16, 1, 33)

    def test_gymnasium(self):
        utils = pytest.importorskip("gymnasium.wrappers.utils", reason="gymnasium is not installed")
        for epsilon in (1e-4, 1.0):
            theirs = utils.RunningMeanStd(epsilon=epsilon, shape=(5,))
            ours = state(5, count=epsilon)
            for seed, rows in enumerate(self.BATCHES):
                batch = 100 * normal(rows, 5, seed=seed) + 7
                theirs.update(batch.double().numpy())
                ops.update_running_moments_(*ours, batch)
            for a, e in zip(ours, (theirs.mean, theirs.var, theirs.count), strict=True):
                np.testing.assert_allclose(a.numpy(), e, rtol=1e-13)

    def test_the_first_sample_of_gymnasium_counts_for_a_variance_of_one(self):
        # Where the count begins at 1e-4 the moments are not those of the samples alone.
        utils = pytest.importorskip("gymnasium.wrappers.utils", reason="gymnasium is not installed")
        theirs, ours = utils.RunningMeanStd(shape=(5,)), state(5)
        batch = 1e-3 * normal(10, 5)
        theirs.update(batch.double().numpy())
        ops.update_running_moments_(*ours, batch)
        assert_moments_of(ours, batch)
        assert np.all(theirs.var > 5 * ours[1].numpy())

    def test_normalize_observation_of_gymnasium(self):
        gymnasium = pytest.importorskip("gymnasium", reason="gymnasium is not installed")
        env = gymnasium.wrappers.NormalizeObservation(gymnasium.make("Pendulum-v1"))
        bare, ours = gymnasium.make("Pendulum-v1"), state(3, count=1e-4, dtype=torch.float32)
        theirs, raw = env.reset(seed=1)[0], bare.reset(seed=1)[0]
        for _ in range(20):
            ops.update_running_moments_(*ours, torch.from_numpy(raw))
            normalized = ops.normalize(torch.from_numpy(raw), *ours[:2])
            # Both keep float32 moments, and theirs computes in float32: some roundings a step of a mean of about 1, in
            # units of the deviation.
            atol = 40 * EPS / float(ours[1].sqrt().min())
            np.testing.assert_allclose(normalized.numpy(), theirs, rtol=1e-5, atol=atol)
            theirs, raw = env.step(np.ones(1))[0], bare.step(np.ones(1))[0]

    def test_vec_normalize_of_stable_baselines3(self):
        common = pytest.importorskip("stable_baselines3.common.vec_env", reason="stable_baselines3 is not installed")
        running = pytest.importorskip("stable_baselines3.common.running_mean_std")
        theirs, ours = running.RunningMeanStd(shape=(5,)), state(5, count=1e-4)
        for seed, rows in enumerate(self.BATCHES):
            batch = 100 * normal(rows, 5, seed=seed) + 7
            theirs.update(batch.numpy().astype(np.float64))
            ops.update_running_moments_(*ours, batch)
        for a, e in zip(ours, (theirs.mean, theirs.var, theirs.count), strict=True):
            np.testing.assert_allclose(a.numpy(), e, rtol=1e-13)
        normalizer = common.VecNormalize.__new__(common.VecNormalize)
        normalizer.epsilon, normalizer.clip_obs = 1e-8, 1.5
        expected = normalizer._normalize_obs(batch.numpy(), theirs)
        actual = ops.normalize(batch, *ours[:2], clip=1.5).numpy()
        assert (np.abs(expected) == 1.5).any()
        np.testing.assert_allclose(actual, expected, rtol=4 * EPS, atol=EPS)


def assert_normalized(x: Tensor, mean: Tensor, variance: Tensor, clip: float | None, eps: float = 1e-8) -> None:
    """Compare value and gradient with the plain twin in float64."""
    grad = normal(*x.shape, seed=9, device=x.device, dtype=x.dtype)
    leaf, wide = x.clone().requires_grad_(), x.double().cpu().requires_grad_()
    actual = ops.normalize(leaf, mean, variance, eps, clip)
    expected = normalize_reference(wide, mean.double().cpu(), variance.double().cpu(), eps, clip)
    assert actual.dtype == x.dtype
    assert actual.shape == x.shape
    # Three operations, and the factor's own rounding; the mean's, where it is of the type of x.
    unit = torch.finfo(x.dtype).eps
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=4 * unit, atol=2 * unit)
    a, e = (
        torch.autograd.grad(y, w, g)[0] for y, w, g in ((actual, leaf, grad), (expected, wide, grad.double().cpu()))
    )
    if clip is not None:  # at the edge, one rounding decides
        away = (expected.abs() < clip * (1 - 8 * unit)) | (expected.abs() == clip)
        a, e = a.double().cpu().masked_fill(~away, 0), e.masked_fill(~away, 0)
    torch.testing.assert_close(a.double().cpu(), e, rtol=3 * unit, atol=0)


class TestNormalize:
    @pytest.mark.parametrize("columns", COLUMNS)
    @pytest.mark.parametrize("rows", [0, 1, 7, 130, 1_003])
    def test_all_sizes(self, rows, columns, device):
        x, mean = normal(rows, columns, device=device), normal(columns, seed=1, device=device)
        variance = normal(columns, seed=2, device=device).exp()
        for clip, wide in itertools.product((None, 1.5), (False, True)):
            moments = [each.double() if wide else each for each in (mean, variance)]
            assert_normalized(x, *moments, clip)

    def test_ten_thousand_random_cases(self, device):
        # A case is a column with its own mean, variance and distance from the mean.
        mean = 1e3 * normal(10_000, seed=1, device=device)
        variance = (4 * normal(10_000, seed=2, device=device)).exp()
        x = mean + variance.sqrt() * 2 * normal(9, 10_000, seed=3, device=device)
        for clip in (None, 0.7, 10.0):
            for dtype in (torch.float32, torch.float64):
                assert_normalized(x.to(dtype), mean.double(), variance.double(), clip)

    def test_far_from_zero_no_digit_is_lost(self, device):
        mean = torch.tensor([1e6, -1e8, 16_777_217.0], dtype=torch.float64, device=device)
        x = (mean + torch.tensor([0.25, 8.0, 3.0], dtype=torch.float64, device=device)).float()
        y = ops.normalize(x, mean, torch.full_like(mean, 4.0), eps=0.0)
        torch.testing.assert_close(y, ((x.double() - mean) / 2).float(), rtol=EPS, atol=0)

    def test_shapes_of_samples(self, device):
        images = normal(6, 2, 3, 4, 5, device=device)
        for shape in ((3, 4, 5), (5,), (), (6, 2, 3, 4, 5)):
            mean, variance = normal(*shape, seed=1, device=device), normal(*shape, seed=2, device=device).exp()
            assert_normalized(images, mean, variance, 1.0)
        scalar = normal(seed=1, device=device)
        assert_normalized(scalar, scalar.double(), scalar.exp().double(), None)

    def test_at_the_edge_of_the_clip_the_gradient_flows(self, device):
        # Exact numbers: y = -3, -2, 2, 3 and NaN.
        x = torch.tensor([[-3.0], [-2.0], [2.0], [3.0], [math.nan]], device=device)
        for function in (ops.normalize, normalize_reference):
            leaf = x.clone().requires_grad_()
            y = function(leaf, torch.zeros(1, device=device), torch.ones(1, device=device), 0.0, 2.0)
            assert y[:4, 0].tolist() == [-2.0, -2.0, 2.0, 2.0]
            assert math.isnan(float(y[4].detach()))
            assert torch.autograd.grad(y.sum(), leaf)[0][:, 0].tolist() == [0.0, 1.0, 1.0, 0.0, 0.0]

    def test_not_finite_and_degenerate_are_those_of_float64(self, device):
        values = [math.nan, math.inf, -math.inf, 0.0, 1.0, -2.0]
        x, mean = (torch.tensor(each, device=device) for each in zip(*itertools.product(values, values), strict=True))
        for variance, eps in (
            (1.0, 0.0),
            (0.0, 0.0),
            (0.0, 1e-8),
            (-1.0, 0.0),
            (math.inf, 0.0),
            (math.nan, 0.0),
            (1e-60, 0.0),
        ):
            for clip in (None, 3.0):
                variances = torch.full_like(mean, variance, dtype=torch.float64)
                y = ops.normalize(x, mean.double(), variances, eps, clip)
                expected = normalize_reference(x.double(), mean.double(), variances, eps, clip)
                torch.testing.assert_close(y, expected.float(), equal_nan=True, rtol=4 * EPS, atol=0)

    def test_into_memory_that_the_caller_keeps(self, device):
        moments = normal(17, seed=1, device=device).double(), normal(17, seed=2, device=device).exp().double()
        for x in (normal(9, 17, device=device), normal(17, 9, device=device).t(), normal(0, 17, device=device)):
            out = torch.full(x.shape, math.nan, device=device)
            version = out._version
            assert ops.normalize(x, *moments, clip=1.0, out=out) is out
            assert torch.equal(out, ops.normalize(x, *moments, clip=1.0))
            assert out._version == version + 1
        x = normal(9, 17, device=device)
        for out, message in (
            (x, "out: expected memory that no other argument shares, got an overlap with x"),
            (torch.zeros(9, 1, device=device), r"out: expected shape \[9, 17\] like x"),
            (torch.zeros(17, 9, device=device).t(), "out: expected a contiguous tensor"),
        ):
            with pytest.raises(ValueError, match=message):
                ops.normalize(x, *moments, out=out)
        with pytest.raises(TypeError, match="out: expected dtype Float like x"):
            ops.normalize(x, *moments, out=x.double())
        with pytest.raises(ValueError, match="x: expected a tensor without requires_grad"):
            ops.normalize(x.requires_grad_(), *moments, out=torch.zeros_like(x))

    def test_thread_count_does_not_matter(self):
        x, moments = normal(100_003, 17), (normal(17, seed=1), normal(17, seed=2).exp())
        threads, results = torch.get_num_threads(), []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                results.append(ops.normalize(x, *moments, clip=1.0))
        finally:
            torch.set_num_threads(threads)
        assert torch.equal(*results)


class TestLayouts:
    def views(self, device):
        yield "transposed", normal(17, 30, device=device).t()
        yield "columns of a wider one", normal(30, 40, device=device)[:, 5:22]
        yield "every second column", normal(30, 34, device=device)[:, ::2]
        yield "every second row", normal(60, 17, device=device)[::2]
        yield "one row for all", normal(1, 17, device=device).expand(30, 17)
        yield "one value a row", normal(30, 1, device=device).expand(30, 17)
        yield "three dimensions", normal(5, 17, 6, device=device).transpose(1, 2)
        yield "wide", normal(30, 3 * 1_300, device=device)[:, ::3]

    def test_views_equal_their_copies(self, device):
        for name, view in self.views(device):
            columns = view.shape[-1]
            results = []
            for each in (view, view.contiguous()):
                moments = state(columns, device=device)
                ops.update_running_moments_(*moments, each)
                assert_moments_of(moments, each)
                leaf = each.detach().requires_grad_()
                y = ops.normalize(leaf, *moments[:2], clip=1.0)
                gradient = torch.autograd.grad(y, leaf, view.expand(view.shape))[0]
                results.append((y.detach(), gradient))
            assert all(map(torch.equal, *results)), name

    def test_moments_of_any_layout(self, device):
        around = normal(3, 40, device=device, dtype=torch.float64).square()
        batch = normal(9, 20, device=device)
        moments = [around[0, ::2], around[1, 1::2], around.new_zeros(())]
        kept = around.clone()
        ops.update_running_moments_(*moments, batch)
        assert_moments_of(moments, batch)
        assert torch.equal(around[0, 1::2], kept[0, 1::2])
        assert torch.equal(around[2], kept[2])
        square = normal(9, 4, 5, device=device)
        moments = [normal(5, 4, device=device, dtype=torch.float64).t(), *state(4, 5, device=device)[1:]]
        ops.update_running_moments_(*moments, square)
        assert_moments_of(moments, square)
        expected = ops.normalize(square, *(each.contiguous() for each in moments[:2]))
        assert torch.equal(ops.normalize(square, *moments[:2]), expected)

    def test_shared_memory_is_refused_before_anything_changes(self, device):
        memory = normal(60, device=device, dtype=torch.float64).square()
        good = {"mean": memory[:5], "variance": memory[5:10], "count": memory[10], "batch": memory[20:].view(8, 5)}
        overlaps = {
            "mean": ("variance", memory[4:9]),
            "variance": ("count", memory[5]),
            "count": ("batch", memory[6:46].view(8, 5)),
        }
        before = memory.clone()
        for name, (other, tensor) in overlaps.items():
            change = {other: tensor, "mean": memory[55:]} if name == "count" else {other: tensor}
            if name == "count":
                change["variance"] = memory[50:55]
            with pytest.raises(ValueError, match=f"{name}: expected memory that no other argument shares.* {other}"):
                ops.update_running_moments_(**{**good, **change})
            assert torch.equal(memory, before)

    def test_an_expanded_tensor_is_not_written_to(self, device):
        for position, name in enumerate(("mean", "variance")):
            moments = state(5, device=device)
            moments[position] = moments[position][:1].expand(5)
            with pytest.raises(ValueError, match=f"{name}: expected memory of its own for each element"):
                ops.update_running_moments_(*moments, normal(4, 5, device=device))


class TestAutograd:
    def test_nothing_is_recorded(self, device):
        moments = [each.requires_grad_() for each in state(3, device=device)]
        batch = normal(9, 3, device=device).requires_grad_()
        ops.update_running_moments_(*moments, batch)
        assert all(each.is_leaf and each.grad_fn is None for each in moments)
        assert_moments_of([each.detach() for each in moments], batch.detach())

    def test_results_that_autograd_records_are_refused(self, device):
        for position, name in enumerate(("mean", "variance", "count")):
            moments = state(3, device=device)
            moments[position] = moments[position].requires_grad_() * 2
            with pytest.raises(ValueError, match=f"{name}: expected a leaf tensor"):
                ops.update_running_moments_(*moments, normal(4, 3, device=device))

    def test_tangents_are_refused(self):
        batch = normal(4, 3)
        with pytest.raises(ValueError, match="batch: expected a tensor without a tangent"):
            torch.func.jvp(lambda x: ops.update_running_moments_(*state(3), x) or x, (batch,), (batch,))

    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    def test_autograd_notices_the_edit(self, mode, device):
        moments = state(3, device=device)
        factor = torch.ones(3, device=device, requires_grad=True)
        losses = [(factor.sum() * each).sum() for each in moments]
        versions = [each._version for each in moments]
        with mode():
            ops.update_running_moments_(*moments, normal(4, 3, device=device))
        assert all(each._version > version for each, version in zip(moments, versions, strict=True))
        for loss in losses:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                loss.backward()

    def test_moments_take_no_gradient(self, device):
        x, mean, variance = normal(4, 3, device=device), normal(3, device=device), torch.ones(3, device=device)
        for position, name in ((1, "mean"), (2, "variance")):
            tensors = [x.clone().requires_grad_(), mean.clone(), variance.clone()]
            tensors[position].requires_grad_()
            with pytest.raises(ValueError, match=f"{name}: expected a tensor without requires_grad"):
                ops.normalize(*tensors)
            with torch.no_grad():
                assert ops.normalize(*tensors).shape == (4, 3)

    def test_edit_between_forward_and_backward_is_noticed(self, device):
        for position in range(3):
            tensors = [normal(4, 3, device=device), normal(3, device=device), torch.ones(3, device=device)]
            leaf = tensors[0].requires_grad_()
            y = ops.normalize(leaf * 1.0 if position else leaf, *tensors[1:], clip=1.0)
            with torch.no_grad():
                tensors[position].add_(1.0)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                y.sum().backward()


class TestPyTorchCitizen:
    def test_opcheck(self, device):
        moments, batch = state(3, device=device), normal(6, 3, device=device)
        torch.library.opcheck(torch.ops.sacfast.update_running_moments_.default, (*moments, batch))
        op = torch.ops.sacfast.normalize.default
        for x in (batch, batch.double(), batch.clone().requires_grad_()):
            torch.library.opcheck(op, (x, *moments[:2], 1e-8, math.inf))
            torch.library.opcheck(op, (x, *moments[:2], 1e-8, 0.5))
        with_out = torch.ops.sacfast.normalize_out.default
        torch.library.opcheck(with_out, (batch, *moments[:2], 1e-8, 0.5, torch.zeros_like(batch)))
        backward = torch.ops.sacfast.normalize_backward.default
        torch.library.opcheck(backward, (batch, batch, *moments[:2], 1e-8, 0.5))

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, backend, device):
        def step(x, mean, variance, count):
            ops.update_running_moments_(mean, variance, count, x.detach())
            return (ops.normalize(x * 2.0, mean, variance, clip=1.0) ** 2).sum()

        torch._dynamo.reset()
        results = []
        for function in (torch.compile(step, fullgraph=True, backend=backend), step):
            moments, x = state(17, device=device), normal(30, 17, device=device).requires_grad_()
            value = function(x, *moments)
            results.append((value, *torch.autograd.grad(value, x), *moments))
        for a, e in zip(*results, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)  # the sum may be ordered differently

    def test_inference_mode(self, device):
        with torch.inference_mode():
            moments, batch = state(3, device=device), normal(9, 3, device=device)
            ops.update_running_moments_(*moments, batch)
            y = ops.normalize(batch, *moments[:2])
        assert_moments_of(moments, batch)
        torch.testing.assert_close(y.var(0, correction=0), torch.ones(3, device=device), rtol=1e-5, atol=0)

    def test_autocast_computes_in_float32(self, device):
        x = normal(9, 3, device=device).bfloat16().requires_grad_()
        moments = normal(3, device=device, dtype=torch.bfloat16), torch.ones(3, device=device, dtype=torch.bfloat16)
        with torch.autocast(device, dtype=torch.bfloat16):
            y = ops.normalize(x, *moments)
        assert y.dtype == torch.float32
        assert torch.equal(y, ops.normalize(x.detach().float(), *(each.float() for each in moments)))
        y.sum().backward()
        assert x.grad.dtype == torch.bfloat16

    def test_autocast_and_float64_moments(self, device):
        # What autocast makes float32 elsewhere, float64 moments among them, stays as it is: a cast would lose digits.
        x, moments = normal(9, 3, device=device), state(3, device=device)
        with torch.autocast(device, dtype=torch.bfloat16):
            ops.update_running_moments_(*moments, x)
            y = ops.normalize(x, *moments[:2])
        assert_moments_of(moments, x)
        assert torch.equal(y, ops.normalize(x, *moments[:2]))

    def test_vmap_of_the_update(self, device):
        batches = normal(3, 20, 5, device=device)
        moments = [each.expand(3, *each.shape).contiguous() for each in state(5, device=device)]
        torch.vmap(lambda m, v, c, b: ops.update_running_moments_(m, v, c, b) or b)(*moments, batches)
        for i in range(3):
            assert_moments_of([each[i] for each in moments], batches[i])
        with pytest.raises(ValueError, match=r"count: expected a tensor that torch\.vmap maps"):
            torch.vmap(lambda m, v, b: ops.update_running_moments_(m, v, state(5, device=device)[2], b) or b)(
                *moments[:2], batches
            )

    @pytest.mark.parametrize("mapped", list(itertools.product((None, 0, 1), (None, 0), (None, 0))))
    def test_vmap_of_normalize(self, mapped, device):
        if all(each is None for each in mapped):
            pytest.skip("vmap needs a mapped argument")
        shapes = ((4, 6, 5), (5,), (5,))
        tensors = [
            normal(*shape, seed=i, device=device).square()
            if dim is None
            else normal(3, *shape, seed=i, device=device).square().movedim(0, dim)
            for i, (shape, dim) in enumerate(zip(shapes, mapped, strict=True))
        ]
        y = torch.vmap(lambda *each: ops.normalize(*each, clip=1.0), mapped)(*tensors)
        gradients = torch.vmap(torch.func.grad(lambda *each: ops.normalize(*each, clip=1.0).sin().sum()), mapped)(
            *tensors
        )
        for i in range(3):
            alone = [t if dim is None else t.select(dim, i) for t, dim in zip(tensors, mapped, strict=True)]
            assert torch.equal(y[i], ops.normalize(*alone, clip=1.0))
            leaf = alone[0].clone().requires_grad_()
            ops.normalize(leaf, *alone[1:], clip=1.0).sin().sum().backward()
            torch.testing.assert_close(gradients[i], leaf.grad)

    def test_meta(self):
        moments = [each.to("meta") for each in state(3)]
        ops.update_running_moments_(*moments, torch.zeros(4, 3, device="meta"))
        assert ops.normalize(torch.zeros(4, 3, device="meta"), *moments[:2]).shape == (4, 3)

    @pytest.mark.cuda
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types_on_cuda(self, dtype):
        batch = normal(1_003, 17, device="cuda", dtype=dtype)
        for moment_dtype in (torch.float32, torch.float64):
            moments = state(17, device="cuda", dtype=moment_dtype)
            ops.update_running_moments_(*moments, batch)
            assert_moments_of(moments, batch, dtype_eps=EPS if moment_dtype == torch.float32 else EPS64)
            y = ops.normalize(batch, *moments[:2], clip=2.0)
            assert torch.equal(y, ops.normalize(batch.float(), *moments[:2], clip=2.0).to(dtype))

    @pytest.mark.cuda
    def test_cuda_graph(self):
        batch, moments = normal(1_003, 17, device="cuda"), state(17, device="cuda")
        expected = [each.clone() for each in moments]
        ops.update_running_moments_(*state(17, device="cuda"), batch)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ops.update_running_moments_(*moments, batch)
            y = ops.normalize(batch, *moments[:2])
        for seed in range(3):
            batch.copy_(normal(1_003, 17, seed=seed))
            graph.replay()
            ops.update_running_moments_(*expected, batch)
            assert torch.equal(y, ops.normalize(batch, *expected[:2]))
        assert all(torch.equal(a, e) for a, e in zip(moments, expected, strict=True))

    @pytest.mark.cuda
    def test_a_count_without_meaning_makes_nan_on_cuda(self):
        for count in (-1.0, math.nan, math.inf, 2.0**54):
            moments = state(3, device="cuda", count=count)
            ops.update_running_moments_(*moments, normal(4, 3, device="cuda"))
            assert moments[0].isnan().all()
            assert moments[1].isnan().all()


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"batch": torch.zeros(4, 3).half()}, TypeError, "batch: expected dtype float32 or float64 on the CPU"),
            ({"batch": torch.zeros(4, 3).int()}, TypeError, "batch: expected dtype float32 or float64 on the CPU"),
            ({"batch": torch.zeros(4, 3).double()}, TypeError, "mean: expected dtype Double for data like batch"),
            ({"mean": torch.zeros(3).int()}, TypeError, "mean: expected dtype Float or Double for data like batch"),
            ({"mean": None}, TypeError, "mean: expected a tensor, got None|argument 'mean'"),
            ({"variance": torch.zeros(3).double()}, TypeError, "variance: expected dtype Float like mean, got Double"),
            ({"variance": torch.zeros(1)}, ValueError, r"variance: expected shape \[3\] like mean, got \[1\]"),
            (
                {"batch": torch.zeros(4)},
                ValueError,
                r"batch: expected a shape that ends with \[3\] like mean, got \[4\]",
            ),
            ({"batch": torch.zeros(4, 1)}, ValueError, r"batch: expected a shape that ends with \[3\] like mean"),
            (
                {"batch": torch.zeros(())},
                ValueError,
                r"batch: expected a shape that ends with \[3\] like mean, got \[\]",
            ),
            (
                {"mean": torch.zeros(0), "variance": torch.zeros(0), "batch": torch.zeros(4, 0)},
                ValueError,
                "mean: expected at least one element",
            ),
            ({"count": torch.zeros(())}, TypeError, r"count: expected dtype float64 or int64 .* beyond 2\^24"),
            ({"count": torch.zeros(3).double()}, ValueError, r"count: expected one element, got shape \[3\]"),
            ({"count": torch.tensor(-1)}, ValueError, r"count: expected a number in \[0, 2\^53\], got -1"),
            ({"count": torch.tensor(math.nan).double()}, ValueError, r"count: expected a number in \[0, 2\^53\]"),
            ({"count": torch.tensor(2**54)}, ValueError, r"count: expected a number in \[0, 2\^53\]"),
            ({"count": torch.tensor(0, device="meta")}, ValueError, "count: expected device cpu like batch, got meta"),
        ],
    )
    def test_message_names_the_argument(self, change, error, message):
        good = {"mean": torch.ones(3), "variance": torch.ones(3), "count": torch.tensor(5.0).double()}
        before = {name: each.clone() for name, each in good.items()}
        with pytest.raises(error, match=message):
            ops.update_running_moments_(**{**good, "batch": torch.zeros(4, 3), **change})
        assert all(torch.equal(good[name], before[name]) for name in good)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"x": torch.zeros(4, 3).half()}, TypeError, "x: expected dtype float32 or float64 on the CPU"),
            ({"x": torch.zeros(4, 1)}, ValueError, r"x: expected a shape that ends with \[3\] like mean, got \[4, 1\]"),
            ({"mean": torch.zeros(3).half()}, TypeError, "mean: expected dtype Float or Double for data like x"),
            ({"variance": torch.zeros(4)}, ValueError, r"variance: expected shape \[3\] like mean"),
            ({"variance": torch.ones(3, device="meta")}, ValueError, "variance: expected device cpu like x, got meta"),
            ({"eps": -1.0}, ValueError, "eps: expected a finite number >= 0, got -1"),
            ({"eps": math.inf}, ValueError, "eps: expected a finite number >= 0, got inf"),
            ({"clip": 0.0}, ValueError, "clip: expected None or a number > 0, got 0"),
            ({"clip": math.nan}, ValueError, "clip: expected None or a number > 0, got nan"),
        ],
    )
    def test_message_of_normalize(self, change, error, message):
        good = {"x": torch.zeros(4, 3), "mean": torch.zeros(3), "variance": torch.ones(3)}
        with pytest.raises(error, match=message):
            ops.normalize(**{**good, **change})
