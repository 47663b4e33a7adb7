"""The noise that tanh_gaussian_rsample draws: its bits against the published generator, its law, and its streams."""

import concurrent.futures
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sacfast import _ext, ops

EPS = float(np.finfo(np.float32).eps)
STREAM_TAG = 0x5AC00000  # csrc/core/philox.h
ROOT = Path(__file__).resolve().parents[2]


def noise_from(source: torch.Generator | Tensor | None, shape=(4096,), device="cpu", dtype=torch.float32) -> Tensor:
    zero = torch.zeros(shape, dtype=dtype, device=device)
    state = source if isinstance(source, Tensor) else None
    generator = source if isinstance(source, torch.Generator) else None
    op = torch.ops.sacfast._tanh_gaussian_rsample_with_noise.default
    return op(zero, zero, generator, state, "none", 0.0, 0.0, None)[2]


def noise(seed: int, offset: int = 0, shape=(4096,), device="cpu", dtype=torch.float32) -> Tensor:
    state = torch.tensor([seed, offset], dtype=torch.int64, device=device)
    return noise_from(state, shape, device, dtype)


# ---- The oracle, from the papers ---------------------------------------------------------------------------------


def philox4x32_10(counter: list, key: list[int]) -> list[np.ndarray]:
    """Philox4x32-10 (Salmon et al., 2011, section 3.3): four counter words (arrays or numbers), two key words."""
    mask, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    x = [np.asarray(word, dtype=np.uint64) for word in counter]
    k0, k1 = (np.uint64(word) for word in key)
    for _ in range(10):
        product0, product1 = x[0] * np.uint64(0xD2511F53), x[2] * np.uint64(0xCD9E8D57)
        x = [
            (product1 >> shift) ^ x[1] ^ k0,
            product1 & mask,
            (product0 >> shift) ^ x[3] ^ k1,
            product0 & mask,
        ]
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & mask, (k1 + np.uint64(0xBB67AE85)) & mask
    return x


def expected_noise(count: int, seed: int, offset: int, precision: type) -> tuple[np.ndarray, np.ndarray]:
    """Elements 0..count-1 and the radius of each, in float64 from uniform numbers rounded to `precision`.

    The layout: 64 elements to a group of 16 counters, stored output by output.
    """
    element = np.arange(count, dtype=np.uint64)
    group, within = element // np.uint64(64), element % np.uint64(64)
    counter = np.uint64(16) * group + within % np.uint64(16)
    seed, offset = seed % 2**64, offset % 2**64
    words = philox4x32_10(
        [counter & np.uint64(0xFFFFFFFF), counter >> np.uint64(32), offset & 0xFFFFFFFF, (offset >> 32) ^ STREAM_TAG],
        [seed & 0xFFFFFFFF, seed >> 32],
    )
    words = [np.broadcast_to(word, element.shape) for word in words]
    output = within // np.uint64(16)  # 0, 1: cosine and sine of words 0, 1; 2, 3: of words 2, 3
    radius_word = np.where(output < 2, words[0], words[2]) >> np.uint64(1)
    angle_word = np.where(output < 2, words[1], words[3]).astype(np.uint32).view(np.int32)
    uniform = (radius_word.astype(precision).astype(np.float64) * 2.0**-31 + 2.0**-32).astype(precision)
    turns = angle_word.astype(precision).astype(np.float64) * 2.0**-32
    radius = np.sqrt(-2.0 * np.log(uniform.astype(np.float64)))
    angle = 2.0 * np.pi * turns
    return radius * np.where(output % np.uint64(2) == 0, np.cos(angle), np.sin(angle)), radius


STREAMS = [
    (0, 0),
    (1, 0),
    (1, 1),
    (-1, 5),
    (2**63 - 1, 2**31),
    (0x0123456789ABCDEF, 2**32),
    (7, 2**62 + 12345),
    (3, -1),
]


class TestBits:
    @pytest.mark.parametrize(
        ("counter", "key", "expected"),
        [  # Random123, kat_vectors
            ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
            ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
            (
                [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
                [0xA4093822, 0x299F31D0],
                [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
            ),
        ],
    )
    def test_the_oracle_gives_the_published_answers(self, counter, key, expected):
        assert [int(word) for word in philox4x32_10(counter, key)] == expected

    @pytest.mark.parametrize(("seed", "offset"), STREAMS)
    def test_float64(self, seed, offset, device):
        actual = noise(seed, offset, (100_003,), device, torch.float64).cpu().numpy()
        expected, _ = expected_noise(100_003, seed, offset, np.float64)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-14)

    @pytest.mark.parametrize(("seed", "offset"), STREAMS)
    def test_float32(self, seed, offset, device):
        actual = noise(seed, offset, (100_003,), device).cpu().numpy()
        expected, _ = expected_noise(100_003, seed, offset, np.float32)
        # Half of the logarithm's 2 ulp, and root, sine (2 ulp) and product: under 4 units in the last place.
        assert np.all(np.abs(actual - expected) <= 4 * EPS * np.abs(expected))

    def test_float32_and_float64_agree_to_the_rounding_of_the_uniform_numbers(self, device):
        single = noise(5, 3, (500_000,), device).double().cpu().numpy()
        double = noise(5, 3, (500_000,), device, torch.float64).cpu().numpy()
        _, radius = expected_noise(500_000, 5, 3, np.float64)
        # A relative error of 2^-24 in u moves radius^2 = -2 log u by 2^-23, so the radius by 2^-23 / radius, or
        # sqrt(2^-23) where it vanishes. The angle and the functions add a few units of the radius.
        bound = np.minimum(2.0**-23 / radius, 2.0**-11.5) + 4 * EPS * radius
        assert np.all(np.abs(single - double) <= bound)

    def test_the_noise_is_what_the_action_is_made_of(self, device):
        mean, log_std = torch.linspace(-2, 2, 300, device=device).view(50, 6), torch.full((50, 6), -0.5, device=device)
        drawn = ops.tanh_gaussian_rsample(mean, log_std, generator=torch.tensor([9, 4], device=device))
        given = ops.tanh_gaussian_rsample(mean, log_std, noise(9, 4, (50, 6), device))
        assert torch.equal(drawn[0], given[0])
        assert torch.equal(drawn[1], given[1])

    @pytest.mark.cuda
    @pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 8 * EPS), (torch.float64, 1e-14)])
    def test_cuda_equals_cpu(self, dtype, bound):
        cpu, cuda = (noise(11, 2, (1_000_003,), device, dtype) for device in ("cpu", "cuda"))
        # Each is within half of the bound of the exact value.
        assert bool(((cuda.cpu() - cpu).abs() <= bound * cpu.abs() + 1e-15).all())


class TestWhereItIsDrawn:
    @pytest.mark.parametrize(
        "shape",
        [(2, 3_000), (6_000, 1), (1, 6_000), (1_000, 6), (353, 17), (60, 10, 10), (5_999,), (2, 1_025), (63,), (1,)],
    )
    def test_the_shape_does_not_matter(self, shape, device):
        for dtype in (torch.float32, torch.float64):
            flat = noise(3, 1, (6_001,), device, dtype)
            assert torch.equal(noise(3, 1, shape, device, dtype).flatten(), flat[: math.prod(shape)])

    def test_the_layout_of_the_mean_does_not_matter(self, device):
        state = torch.tensor([3, 1], device=device)
        zero = torch.zeros(6, 50, device=device).t()
        op = torch.ops.sacfast._tanh_gaussian_rsample_with_noise.default
        actual = op(zero, zero[:1], None, state, "none", 0.0, 0.0, None)[2]
        assert torch.equal(actual, noise(3, 1, (50, 6), device))

    def test_the_thread_count_does_not_matter(self):
        threads = torch.get_num_threads()
        try:
            for shape in [(100_000,), (20_001, 17)]:
                results = []
                for count in (1, 2):
                    torch.set_num_threads(count)
                    results.append(noise(3, 1, shape))
                assert torch.equal(*results)
        finally:
            torch.set_num_threads(threads)


LEVEL_SCRIPT = """
import sys
import numpy as np
import torch
from sacfast import _ext, ops

torch.set_num_threads(1)
zero = torch.zeros(1000, 17)
mean = torch.linspace(-3, 3, 17_000).view(1000, 17).requires_grad_()
log_std = torch.linspace(-5, 1, 17_000).view(17, 1000).t().requires_grad_()
draw = torch.ops.sacfast._tanh_gaussian_rsample_with_noise.default
noise = draw(zero, zero, None, ops.philox_state(5), "none", 0.0, 0.0, None)[2]
action, log_prob = ops.tanh_gaussian_rsample(mean, log_std, noise, log_std_bounding="tanh", log_std_bounds=(-5, 2))
gradients = torch.autograd.grad((action.sum(), log_prob.sum()), (mean, log_std))
columns = [action.detach()[:, i].contiguous() for i in range(5)]
target = ops.twin_q_target(columns[0], columns[1] > 0.5, *columns[2:], 0.2, 0.99)
average = noise.flatten().clone()
ops.polyak_update_(average, mean.detach().flatten(), 0.3)
results = dict(noise=noise, action=action, log_prob=log_prob, grad_mean=gradients[0], grad_log_std=gradients[1])
results |= dict(target=target, average=average)
np.savez(sys.argv[1], level=_ext.info()["cpu_level"], **{k: v.detach().numpy() for k, v in results.items()})
"""


def run_at_level(level: str, *command: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "SACFAST_CPU_LEVEL": level, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", *command], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


class TestCpuLevels:
    def test_all_levels_agree(self, tmp_path):
        levels = _ext.info()["cpu_levels_available"]
        assert levels[0] == "baseline"
        results = {}
        for level in levels:
            file = tmp_path / f"{level}.npz"
            process = run_at_level(level, LEVEL_SCRIPT, str(file))
            assert process.returncode == 0, process.stderr
            with np.load(file) as loaded:
                results[level] = dict(loaded)
            assert results[level].pop("level") == level
        expected_bits, _ = expected_noise(17_000, 5, 0, np.float32)
        for level in levels:
            error = np.abs(results[level]["noise"].ravel() - expected_bits)
            assert np.all(error <= 4 * EPS * np.abs(expected_bits)), level
            for name, value in results[level].items():
                # A few units in the last place of noise of up to 5, carried through slopes of up to e^2 = 7.4;
                # log_prob and the gradients add terms of up to 100.
                np.testing.assert_allclose(
                    value, results["baseline"][name], rtol=1e-5, atol=2e-4, err_msg=f"{level}: {name}"
                )

    def test_a_level_that_does_not_exist_is_refused(self):
        use = "import torch; from sacfast import ops; z = torch.zeros(3, 2); ops.tanh_gaussian_rsample(z, z)"
        process = run_at_level("sse9", use)
        assert process.returncode != 0
        allowed = ", ".join(_ext.info()["cpu_levels_available"])
        assert f"SACFAST_CPU_LEVEL: expected one of {allowed} on this processor, got 'sse9'" in process.stderr


class TestStreams:
    def test_a_call_takes_one_offset(self, device):
        state = ops.philox_state(4, device)
        assert state.tolist() == [4, 0]
        assert state.dtype == torch.int64
        for call in range(1, 4):
            drawn = noise_from(state, (call * 10,), device)
            assert state.tolist() == [4, call]
            assert torch.equal(drawn, noise(4, call - 1, (call * 10,), device))
        noise_from(state, (0, 3), device)
        assert state.tolist() == [4, 4]  # also for no elements, so that streams do not depend on the batch

    def test_an_offset_is_not_taken_when_the_call_fails(self):
        state = ops.philox_state(4)
        zero = torch.zeros(4, 3)
        with pytest.raises(ValueError, match="action_scale"):
            ops.tanh_gaussian_rsample(zero, zero, generator=state, action_scale=torch.ones(2))
        assert state.tolist() == [4, 0]

    def test_a_saved_state_replays(self, device):
        state = ops.philox_state(4, device)
        noise_from(state, device=device)
        saved = state.clone()
        first = noise_from(state, device=device)
        assert torch.equal(noise_from(saved, device=device), first)
        assert not torch.equal(noise_from(saved, device=device), first)

    def test_any_integer_is_a_seed(self):
        assert ops.philox_state(-1).tolist() == [2**63 - 1, 0]
        assert ops.philox_state(2**63).tolist() == [0, 0]
        assert not torch.equal(noise(0), noise(2**62))
        assert not torch.equal(noise(0, 0), noise(0, 2**32))

    def test_streams_are_uncorrelated(self):
        n = 2**18
        streams = {(seed, offset): noise(seed, offset, (n,)).double() for seed in range(4) for offset in range(4)}
        streams |= {(1 << bit, 0): noise(1 << bit, 0, (n,)).double() for bit in (8, 31, 32, 62)}
        streams |= {(0, 1 << bit): noise(0, 1 << bit, (n,)).double() for bit in (8, 31, 32, 62)}
        rows = torch.stack(list(streams.values()))
        # 24 streams, 276 pairs, of values and of squares: 5 standard errors of a correlation, 1 / sqrt(n).
        for values in (rows, rows.square()):
            correlation = torch.corrcoef(values) - torch.eye(len(rows), dtype=torch.float64)
            assert float(correlation.abs().max()) < 5 / math.sqrt(n)

    def test_neighbours_are_uncorrelated(self):
        x = noise(6, 0, (2**22,)).double()
        # Lags within a vector, between the outputs of one counter (16, 32, 48) and between groups.
        for lag in (1, 2, 3, 4, 8, 15, 16, 17, 32, 48, 63, 64, 128, 1024):
            for values in (x, x.square(), x.abs()):
                correlation = torch.corrcoef(torch.stack([values[:-lag], values[lag:]]))[0, 1]
                assert abs(float(correlation)) < 4.5 / math.sqrt(len(x) - lag), lag

    def test_no_value_repeats_between_streams(self):
        # Shifted copies would escape a correlation at equal positions. Two of 2^14 float64 normals from 63 bits
        # coincide with a probability below 1e-9.
        both = torch.cat([noise(8, offset, (2**14,), dtype=torch.float64) for offset in (0, 1)])
        assert len(both.unique()) == 2**15


class TestLaw:
    N = 2**22

    @pytest.mark.parametrize("seed", [0, 12345])
    def test_moments(self, seed, device):
        x = noise(seed, 0, (self.N,), device).double()
        # Variances of the sample means of x, x^2 - 1, x^3 and x^4 - 3: 1, 2, 15 and 96, over n.
        for power, mean, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
            error = float(x.pow(power).mean()) - mean
            assert abs(error) < 4 * math.sqrt(variance / self.N), power
        centred = x - x.mean()
        spread = centred.square().mean()
        skew = float(centred.pow(3).mean() / spread**1.5)
        kurtosis = float(centred.pow(4).mean() / spread**2)
        assert abs(skew) < 4 * math.sqrt(6 / self.N)
        assert abs(kurtosis - 3) < 4 * math.sqrt(24 / self.N)

    @pytest.mark.parametrize("offset", [0, 1])
    def test_kolmogorov_smirnov(self, offset, device):
        x = np.sort(noise(77, offset, (self.N,), device).double().cpu().numpy())
        cdf = 0.5 + 0.5 * np.fromiter(map(math.erf, (x / math.sqrt(2)).tolist()), np.float64, len(x))
        steps = np.arange(self.N + 1) / self.N
        distance = max(np.max(steps[1:] - cdf), np.max(cdf - steps[:-1]))
        assert distance * math.sqrt(self.N) < 1.95  # exceeded with probability 2 exp(-2 1.95^2) = 0.001

    def test_each_output_of_a_counter_has_the_law(self):
        # A fault in one of the four would be diluted in the whole.
        x = noise(78, 0, (self.N,)).double().view(-1, 4, 16)
        for output in range(4):
            part = x[:, output].flatten()
            assert abs(float(part.mean())) < 4 / math.sqrt(len(part))
            assert abs(float(part.square().mean()) - 1) < 4 * math.sqrt(2 / len(part))
            assert abs(float((part > 0).double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(len(part))

    def test_tails(self, device):
        n = 2**24
        x = noise(79, 0, (n,), device)
        for sigmas in (3, 4, 5):
            expected = n * math.erfc(sigmas / math.sqrt(2)) / 2  # each side; 5 sigmas: 4.8
            for count in (int((x > sigmas).sum()), int((x < -sigmas).sum())):
                # Poisson, with 4 standard deviations above; below, chance leaves one of 4.8 with 99 %.
                assert max(1, expected - 4 * math.sqrt(expected)) <= count <= expected + 4 * math.sqrt(expected)
        # The radius comes from 31 bits: sqrt(-2 log 2^-32).
        assert 5 < float(x.abs().max()) <= math.sqrt(64 * math.log(2)) * (1 + 4 * EPS)


class TestTorchGenerator:
    def test_the_same_seed_gives_the_same_noise(self, device):
        first, second = (torch.Generator(device).manual_seed(5) for _ in range(2))
        a, b = noise_from(first, device=device), noise_from(first, device=device)
        assert torch.equal(noise_from(second, device=device), a)
        assert torch.equal(noise_from(second, device=device), b)
        assert not torch.equal(a, b)
        assert not torch.equal(noise_from(torch.Generator(device).manual_seed(6), device=device), a)

    def test_a_saved_state_replays(self, device):
        generator = torch.Generator(device).manual_seed(5)
        torch.randn(3, generator=generator, device=device)
        saved = generator.get_state()
        first = noise_from(generator, device=device)
        generator.set_state(saved)
        assert torch.equal(noise_from(generator, device=device), first)

    def test_the_default_generator(self, device):
        torch.manual_seed(5)
        first = noise_from(None, device=device)
        second = noise_from(None, device=device)
        torch.manual_seed(5)
        assert torch.equal(noise_from(None, device=device), first)
        assert not torch.equal(first, second)

    def test_it_leaves_other_generators_alone(self, device):
        torch.manual_seed(5)
        expected = torch.randn(4, device=device)
        torch.manual_seed(5)
        noise_from(torch.Generator(device).manual_seed(1), device=device)
        noise_from(ops.philox_state(1, device), device=device)
        assert torch.equal(torch.randn(4, device=device), expected)

    def test_calls_are_uncorrelated(self, device):
        n = 2**18
        generator = torch.Generator(device).manual_seed(5)
        rows = torch.stack([noise_from(generator, (n,), device).double() for _ in range(12)])
        correlation = torch.corrcoef(rows) - torch.eye(12, dtype=torch.float64, device=device)
        assert float(correlation.abs().max()) < 4.5 / math.sqrt(n)  # 66 pairs


class TestThreads:
    def test_a_state_for_each_thread(self):
        def draw(seed: int) -> list[Tensor]:
            state = ops.philox_state(seed)
            return [noise_from(state, (50, 7)) for _ in range(50)]

        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            together = list(pool.map(draw, range(8)))
        for seed, drawn in enumerate(together):
            assert all(torch.equal(a, e) for a, e in zip(drawn, draw(seed), strict=True))

    def test_a_generator_shared_by_threads_gives_every_call_its_own_noise(self):
        shared = torch.Generator().manual_seed(5)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            together = list(pool.map(lambda _: tuple(noise_from(shared, (5,)).tolist()), range(200)))
        alone = torch.Generator().manual_seed(5)
        assert set(together) == {tuple(noise_from(alone, (5,)).tolist()) for _ in range(200)}
