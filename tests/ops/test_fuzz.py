"""The ops of critics with a distribution, of Adam and of running moments: 10,000 random cases each, against float64.

A case is a row (for Adam and the moments: an element or a column). Sizes, layouts, coefficients and scales are drawn
for some 250 rows at a time, and edges are mixed in: atoms hit exactly, all mass at an end, ties, one atom or quantile,
empty batches. The oracles are written out here, in float64 and from the papers, and share nothing with the ops' twins.
"""

import math
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sacfast import _ext, ops

ROOT = Path(__file__).parents[2]
EPS = torch.finfo(torch.float32).eps
ROWS, DRAWS = 250, 40
SIZES = (1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 51, 101, 130)


class Draw:
    """Random numbers, always the same for one seed."""

    def __init__(self, seed: int, device: str) -> None:
        self.generator, self.device = torch.Generator().manual_seed(seed), device

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=self.generator)

    def number(self, low: float, high: float) -> float:
        return float(self.uniform(low, high))

    def choice(self, values: Sequence[Any]) -> Any:
        return values[int(torch.randint(len(values), (), generator=self.generator))]

    def mask(self, probability: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator) < probability

    def laid_out(self, tensor: Tensor) -> Tensor:
        """Return the same values on the device in another memory layout."""
        tensor = tensor.to(self.device)
        kind = self.choice(("dense", "transposed", "wider", "every second"))
        if kind == "dense" or tensor.ndim == 0:
            return tensor
        if kind == "transposed":
            return tensor.movedim(0, -1).contiguous().movedim(-1, 0)
        wide = tensor.new_empty(*tensor.shape[:-1], 2 * tensor.shape[-1] + 3)
        view = wide[..., 3 : 3 + tensor.shape[-1]] if kind == "wider" else wide[..., 1 : 1 + 2 * tensor.shape[-1] : 2]
        return view.copy_(tensor)

    def coefficient(self, low: float, high: float, rows: int) -> float | Tensor:
        """Return a number, a tensor of one element, or one for each sample."""
        kind = self.choice(("number", "one", "each"))
        if kind == "number":
            return self.number(low, high)
        return self.laid_out(self.uniform(low, high, *([] if kind == "one" else [rows])))


@pytest.fixture
def draws(device: str) -> list[Draw]:
    return [Draw(seed, device) for seed in range(DRAWS)]


def wide(value: Any) -> Any:
    """Return a tensor on the CPU in float64; a number as it is."""
    return value.detach().double().cpu() if isinstance(value, Tensor) else value


def column(value: float | Tensor, rows: int) -> Tensor:
    return torch.as_tensor(wide(value), dtype=torch.float64).reshape(-1).expand(rows)[:, None]


def assert_within(actual: Tensor, expected: Tensor, tolerance: Tensor | float) -> None:
    """Compare a result on any device with one in float64; infinities and NaN must be the same."""
    actual = wide(actual)
    assert actual.shape == expected.shape
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    wrong = ~(same | ((actual - expected).abs() <= tolerance))
    assert not bool(wrong.any()), (actual[wrong][:5], expected[wrong][:5], int(wrong.sum()))


# ---- categorical_target ------------------------------------------------------------------------------------------


def categorical_by_pairs(z: Tensor, moved: Tensor, masses: Tensor) -> Tensor:
    """Equation 7 of arXiv 1707.06887, a sum over all pairs of atoms."""
    if len(z) == 1:
        return masses
    spacing = (z[-1] - z[0]) / (len(z) - 1)
    distance = (moved.clamp(z[0], z[-1])[:, None, :] - z[:, None]).abs() / spacing
    return ((1 - distance).clamp(0, 1) * masses[:, None, :]).sum(-1)


def draw_sample(draw: Draw, rows: int, spread: float, v_min: float) -> dict[str, Any]:
    """Return what a sample brings: rewards beyond both ends and far beyond, coefficients of all kinds."""
    reward = v_min + spread * draw.uniform(-0.7, 1.7, rows)
    far = draw.mask(0.05, rows)
    reward = torch.where(far, 1e4 * spread * draw.normal(rows).sign(), reward)
    terminated = draw.mask(0.2, rows)
    return {
        "reward": reward,
        "terminated": terminated if draw.choice((True, False)) else terminated.float(),
        "next_log_prob": 3 * draw.normal(rows),
        "alpha": draw.coefficient(0.0, 0.1 * spread, rows),
        "gamma": draw.choice((0.0, 0.99, 1.0, draw.coefficient(0.0, 1.0, rows), draw.coefficient(0.6, 1.3, rows))),
    }


def draw_on_the_grid(draw: Draw, rows: int, atoms: int) -> tuple[dict[str, Any], float, float]:
    """Return samples whose atoms all hit atoms exactly: whole numbers."""
    whole = lambda scale: (scale * draw.normal(rows)).round()  # noqa: E731
    v_min = float(torch.randint(-20, 20, (), generator=draw.generator))
    sample = {"reward": whole(0.3 * atoms), "terminated": draw.mask(0.2, rows), "next_log_prob": whole(2.0)}
    return {**sample, "alpha": 1.0, "gamma": 1.0}, v_min, v_min + max(atoms - 1, 1)


def draw_logits(draw: Draw, rows: int, atoms: int) -> Tensor:
    logits = 10 ** draw.number(-2, 1.3) * draw.normal(rows, atoms)
    if draw.choice((True, False)):
        without_mass = draw.mask(0.2, rows, atoms)
        without_mass[:, atoms // 2] = False
        logits = logits.masked_fill(without_mass, -math.inf)
    return logits


def moved_atoms(sample: dict[str, Any], z: Tensor) -> tuple[Tensor, Tensor]:
    """Return where the atoms go, [B, M], and the largest term of each row's sums."""
    rows = len(sample["reward"])
    reward, log_prob = wide(sample["reward"])[:, None], wide(sample["next_log_prob"])[:, None]
    discount = column(sample["gamma"], rows) * (1 - wide(sample["terminated"])[:, None])
    entropy = column(sample["alpha"], rows) * log_prob
    largest = reward.abs() + discount.abs() * (z.abs().amax() + entropy.abs()) + z.abs().amax()
    return reward + discount * (z - entropy), largest


def check_categorical_target(draw: Draw, atoms: int) -> int:
    """Check some rows; return how many critics were too close for float32 to tell which has the smaller mean."""
    if draw.choice((True, False, False)):
        sample, v_min, v_max = draw_on_the_grid(draw, ROWS, atoms)
    else:
        spread = 10 ** draw.number(-1, 3)
        v_min = spread * draw.number(-1.5, 0.5)
        v_max = v_min + spread
        sample = draw_sample(draw, ROWS, spread, v_min)
    logits1, kind = draw_logits(draw, ROWS, atoms), draw.choice(("one", "two", "two", "tied"))
    logits2 = {"one": None, "two": draw_logits(draw, ROWS, atoms), "tied": logits1.clone()}[kind]
    z = torch.linspace(v_min, v_max, atoms, dtype=torch.float64)
    masses, unclear = wide(logits1).softmax(-1), torch.zeros(ROWS, dtype=torch.bool)
    if kind == "two" and atoms > 1:
        masses2 = wide(logits2).softmax(-1)
        gap = (masses2 - masses) @ z
        masses = torch.where(gap[:, None] >= 0, masses, masses2)
        unclear = gap.abs() < 100 * EPS * z.abs().amax()
    moved, largest = moved_atoms(sample, z)
    expected = categorical_by_pairs(z, moved, masses)
    tensors = {name: draw.laid_out(each) if isinstance(each, Tensor) else each for name, each in sample.items()}
    actual = ops.categorical_target(
        **tensors,
        next_logits1=draw.laid_out(logits1),
        next_logits2=None if logits2 is None else draw.laid_out(logits2),
        v_min=v_min,
        v_max=v_max,
    )
    # A place has some 6 roundings of the largest term, and those of the spacing; all of the mass may move by it, out
    # of one atom and into another. A probability has some 20 roundings. Beyond the ends, no place is wrong.
    inside = largest.clamp(max=1e3 * (v_max - v_min))
    tolerance = 2 * 6 * EPS * inside * max(atoms - 1, 1) / (v_max - v_min) + 20 * EPS
    assert_within(actual[~unclear.to(actual.device)], expected[~unclear], tolerance[~unclear])
    assert bool((actual >= 0).all())
    assert_within(actual.sum(-1), torch.ones(ROWS, dtype=torch.float64), 100 * EPS)
    return int(unclear.sum())


def test_categorical_target(draws: list[Draw]) -> None:
    unclear = sum(check_categorical_target(draw, SIZES[i % len(SIZES)]) for i, draw in enumerate(draws))
    assert unclear < 0.02 * ROWS * DRAWS


# ---- categorical_cross_entropy -----------------------------------------------------------------------------------


def test_categorical_cross_entropy(draws: list[Draw]) -> None:
    for i, draw in enumerate(draws):
        atoms = SIZES[i % len(SIZES)]
        logits = 10 ** draw.number(-2, 1.5) * draw.normal(ROWS, atoms) + draw.number(-100, 100)
        target = draw.choice((draw_logits(draw, ROWS, atoms).softmax(-1), draw.normal(ROWS, atoms)))
        one_hot = draw.mask(0.1, ROWS)
        target[one_hot] = torch.nn.functional.one_hot(target[one_hot].argmax(-1), atoms).float()
        exact, exact_target, weight = wide(logits), wide(target), draw.normal(ROWS)
        below = exact - exact.amax(-1, keepdim=True)
        log_sum = below.exp().sum(-1, keepdim=True).log()
        expected = (exact_target * (log_sum - below)).sum(-1)
        slope = exact_target.sum(-1, keepdim=True) * (below - log_sum).exp() - exact_target
        leaf = draw.laid_out(logits).requires_grad_()
        loss = ops.categorical_cross_entropy(leaf, draw.laid_out(target))
        (grad,) = torch.autograd.grad(loss, leaf, weight.to(leaf.device))
        # A difference of logits has a rounding of the larger one, which is then a relative one of its exponential.
        size = exact.abs().amax(-1, keepdim=True) + 10
        total = exact_target.abs().sum(-1, keepdim=True) + 1
        assert_within(loss, expected, (6 * EPS * size * total)[:, 0])
        assert_within(grad, wide(weight)[:, None] * slope, 6 * EPS * size * total * wide(weight).abs()[:, None])


# ---- quantile_huber_loss -----------------------------------------------------------------------------------------


def huber_by_pairs(quantiles: Tensor, target: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
    """Return the loss [B, N] of arXiv 1806.06923, equation 3, over all pairs, and its slope [B, N, M]."""
    count = quantiles.shape[-1]
    fractions = ((torch.arange(count, dtype=torch.float64) + 0.5) / count)[:, None]
    u = target[:, None, None, :] - quantiles[..., None]
    weights = (fractions - (u < 0).double()).abs() / kappa
    square = u.abs() <= kappa
    loss = weights * torch.where(square, 0.5 * u * u, kappa * (u.abs() - 0.5 * kappa))
    slope = -weights * torch.where(square, u, kappa * u.sign())
    return loss.mean((-1, -2)), slope.mean(-1) / count


def test_quantile_huber_loss(draws: list[Draw]) -> None:
    for i, draw in enumerate(draws):
        count, critics, targets = SIZES[i % 8], draw.choice((1, 2, 3)), draw.choice((1, 4, 17, 46))
        kappa, scale = draw.choice((1.0, 10 ** draw.number(-2, 1))), 10 ** draw.number(-2, 2)
        quantiles, target = scale * draw.normal(ROWS, critics, count), scale * draw.normal(ROWS, targets)
        if draw.choice((True, False)):  # ties: differences of 0, and others of whole kappas
            quantiles, target = (kappa * (each / scale).round() for each in (quantiles, target))
        expected, slope = huber_by_pairs(wide(quantiles), wide(target), kappa)
        weight = draw.normal(ROWS, critics)
        leaf = draw.laid_out(quantiles).requires_grad_()
        loss = ops.quantile_huber_loss(leaf, draw.laid_out(target), kappa)
        (grad,) = torch.autograd.grad(loss, leaf, weight.to(leaf.device))
        # Means of terms of one sign have some 20 roundings; a difference has one of the larger number, and decides
        # nothing: the loss is continuous in it, with slopes of at most 1. So is the slope, but at u = 0, where it is 0.
        rounded = EPS * (quantiles.abs().amax() + target.abs().amax()).double()
        assert_within(loss, expected, 20 * EPS * expected + rounded)
        bound = (20 * EPS + rounded / kappa) * wide(weight).abs()[..., None] / count
        assert_within(grad, wide(weight)[..., None] * slope, bound)


# ---- truncated_quantile_target -----------------------------------------------------------------------------------


def test_truncated_quantile_target(draws: list[Draw]) -> None:
    for i, draw in enumerate(draws):
        count, critics = SIZES[i % len(SIZES)], draw.choice((1, 2, 3, 5))
        drop, spread = draw.choice(range(count)), 10 ** draw.number(-1, 3)
        sample = draw_sample(draw, ROWS, spread, -0.5 * spread)
        quantiles = spread * draw.normal(ROWS, critics, count)
        if draw.choice((True, False)):
            quantiles = spread * (quantiles / spread).round()  # ties everywhere
        z = wide(quantiles).flatten(1).sort(-1).values[:, : critics * (count - drop)]
        expected, largest = moved_atoms(sample, z)
        tensors = {name: draw.laid_out(each) if isinstance(each, Tensor) else each for name, each in sample.items()}
        actual = ops.truncated_quantile_target(**tensors, next_quantiles=draw.laid_out(quantiles), drop_per_critic=drop)
        assert_within(actual, expected, 6 * EPS * largest)  # sorting makes no number


# ---- adam_polyak_ ------------------------------------------------------------------------------------------------


def test_adam_polyak(draws: list[Draw]) -> None:
    for draw in draws:
        shapes = draw.choice(([(250,)], [(10, 25)], [(1,), (7, 7), (100,), (0,), (4, 25)]))
        scale = 10 ** draw.number(-3, 2)
        params, grads, averages, targets = ([scale * draw.normal(*shape) for shape in shapes] for _ in range(4))
        squares = [(scale * draw.normal(*shape)).square() for shape in shapes]
        for each in grads:
            each[draw.mask(0.1, *each.shape)] = 0.0
        beta1, beta2 = draw.choice(((0.9, 0.999), (0.0, 0.0), (draw.number(0, 0.99), draw.number(0, 0.9999))))
        step, lr, decay = draw.choice((1, 2, 100, 10**6)), 10 ** draw.number(-5, -1), draw.choice((0.0, 0.1))
        tau, eps = draw.choice((0.0, 0.005, 1.0)), 1e-8
        lists = [
            [draw.laid_out(each.clone()) for each in those] for those in (params, grads, averages, squares, targets)
        ]
        ops.adam_polyak_(*lists, step=step, lr=lr, betas=(beta1, beta2), eps=eps, weight_decay=decay, tau=tau)
        for k in range(len(shapes)):
            p, g, m, v, t = (wide(those[k]) for those in (params, grads, averages, squares, targets))
            m = beta1 * m + (1 - beta1) * g
            v = beta2 * v + (1 - beta2) * g * g
            root = (v / (1 - beta2**step)).sqrt() + eps
            move = lr * (m / (1 - beta1**step)) / root
            new = p * (1 - lr * decay) - move
            actual = [those[k] for those in lists]
            # Some 10 roundings of the terms; a first moment may cancel, and the step is as wrong as it then is.
            size = g.abs() + wide(averages[k]).abs()
            assert_within(actual[2], m, 4 * EPS * size)
            assert_within(actual[3], v, 6 * EPS * v + 1e-38)
            wrong = 4 * EPS * (p.abs() + lr * size / (1 - beta1**step) / root) + 10 * EPS * move.abs()
            assert_within(actual[0], new, wrong)
            assert_within(actual[4], t + tau * (new - t), wrong + 4 * EPS * (t.abs() + new.abs()))
            assert torch.equal(actual[1].cpu(), grads[k])


# ---- update_running_moments_, normalize --------------------------------------------------------------------------


def test_running_moments_and_normalize(draws: list[Draw]) -> None:
    for draw in draws:
        offset, scale = 10 ** draw.uniform(-3, 6, ROWS) * draw.normal(ROWS).sign(), 10 ** draw.uniform(-3, 3, ROWS)
        shape = draw.choice(((250,), (10, 25), (2, 5, 25)))
        dtype = draw.choice((torch.float32, torch.float64))
        mean, variance = (draw.normal(*shape).double().to(draw.device) for _ in range(2))
        count = torch.zeros((), dtype=draw.choice((torch.float64, torch.int64)), device=draw.device)
        batches = []
        for _ in range(draw.choice((1, 2, 5))):
            rows = draw.choice((0, 1, 2, 16, 33, 300))
            batches.append((offset + scale * draw.normal(rows, ROWS)).to(dtype).view(rows, *shape))
            ops.update_running_moments_(mean, variance, count, draw.laid_out(batches[-1]))
        samples = wide(torch.cat(batches))
        assert int(count) == len(samples)
        if len(samples) == 0:
            continue
        expected = samples.mean(0)
        expected_variance = (samples - expected).square().mean(0)
        # In float64: some tens of roundings of the mean, which add 2 (deviation) (error) to the variance.
        error = 50 * torch.finfo(torch.float64).eps * samples.abs().amax(0)
        assert_within(mean, expected, error)
        assert_within(
            variance, expected_variance, 1e-12 * expected_variance + 2 * expected_variance.sqrt() * error + error**2
        )
        clip, eps = draw.choice((math.inf, 10.0, 0.5)), draw.choice((1e-8, 1e-3))
        normalized = ops.normalize(draw.laid_out(batches[0]), mean, variance, eps, None if clip == math.inf else clip)
        root = (wide(variance) + eps).sqrt()
        exact = (wide(batches[0]) - wide(mean)) / root
        unit = torch.finfo(dtype).eps
        # Three operations; of float64 the mean has but one number, whose rounding counts in deviations.
        mean_rounding = unit * wide(mean).abs() / root if dtype == torch.float64 else 0.0
        assert_within(normalized, exact.clamp(-clip, clip), 4 * unit * exact.abs() + 2 * unit + mean_rounding)


# ---- Every op under torch.compile, and at every instruction set --------------------------------------------------


def losses_and_targets(t: dict[str, Tensor], drop: int) -> tuple[Tensor, ...]:
    """Call every op whose results are new tensors, with gradients where it has them."""
    sample = t["reward"], t["terminated"]
    with torch.no_grad():
        target = ops.categorical_target(*sample, t["logits1"], t["logits2"], t["log_prob"], t["alpha"], 0.9, -3.0, 3.0)
        kept = ops.truncated_quantile_target(*sample, t["quantiles"], t["log_prob"], drop, t["alpha"], 0.9)
    entropy = ops.categorical_cross_entropy(t["logits1"].sin(), target)
    huber = ops.quantile_huber_loss(t["quantiles"].sin(), kept)
    normalized = ops.normalize(t["logits1"].sin(), t["mean"], t["variance"], clip=0.5)
    return target, kept, entropy, huber, normalized


def steps(t: dict[str, Tensor]) -> None:
    """Call every op in place."""
    with torch.no_grad():
        ops.update_running_moments_(t["mean"], t["variance"], t["count"], t["logits1"])
        moments = [t["logits2"]], [t["mask"]]
        ops.adam_polyak_([t["logits1"]], [t["slope"]], *moments, [t["average"]], step=2, lr=0.1, tau=0.3)


def case_for_compile(draw: Draw, rows: int, atoms: int, dtype: torch.dtype) -> dict[str, Tensor]:
    matrices = ("logits1", "logits2", "slope", "average")
    tensors = {name: draw.normal(rows, atoms) for name in matrices} | {"mask": draw.normal(rows, atoms).square()}
    tensors |= {name: draw.normal(rows) for name in ("reward", "log_prob")}
    tensors |= {"quantiles": draw.normal(rows, 2, atoms + 1), "alpha": draw.uniform(0, 1)}
    tensors = {name: draw.laid_out(each.to(dtype)) for name, each in tensors.items()}
    moments = {"mean": draw.normal(atoms).double(), "variance": draw.uniform(0.5, 2, atoms).double()}
    moments |= {"count": torch.tensor(5.0, dtype=torch.float64), "terminated": draw.mask(0.3, rows)}
    return tensors | {name: each.to(draw.device) for name, each in moments.items()}


@pytest.mark.parametrize(("dtype", "dynamic"), [(torch.float32, False), (torch.float32, True), (torch.float64, False)])
def test_compiled_ops_give_the_same_numbers(dtype: torch.dtype, dynamic: bool, device: str) -> None:
    torch._dynamo.reset()
    compile_: Callable[..., Any] = lambda f: torch.compile(f, fullgraph=True, backend="aot_eager", dynamic=dynamic)  # noqa: E731
    compiled, compiled_steps = compile_(losses_and_targets), compile_(steps)
    for seed, (rows, atoms) in enumerate([(4, 3), (9, 17), (33, 2), (256, 101), (7, 8)]):
        results = []
        for function, in_place in ((compiled, compiled_steps), (losses_and_targets, steps)):
            tensors = case_for_compile(Draw(seed, device), rows, atoms, dtype)
            for name in ("logits1", "quantiles"):
                tensors[name].requires_grad_()
            made = function(tensors, 1)
            grads = torch.autograd.grad(
                sum(each.sum() for each in made[2:]), [tensors["logits1"], tensors["quantiles"]]
            )
            in_place({name: each.detach() for name, each in tensors.items()})
            results.append([*made, *grads, *(each.detach() for each in tensors.values())])
        for actual, expected in zip(*results, strict=True):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_other_instruction_sets(level: str) -> None:
    if level not in _ext.info()["cpu_levels_available"]:
        pytest.skip(f"{level} is not on this processor")
    chosen = "test_categorical or test_running or test_truncated"  # where levels differ by more than their width
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", chosen]
    environment = {**os.environ, "SACFAST_CPU_LEVEL": level, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout
