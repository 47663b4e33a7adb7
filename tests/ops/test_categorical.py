"""categorical_target and categorical_cross_entropy against float64, and as citizens of PyTorch."""

import math

import pytest
import torch
from torch import Tensor

from sacfast import ops
from sacfast.ops.categorical import categorical_cross_entropy_reference, categorical_target_reference

EPS = torch.finfo(torch.float32).eps
# Around the edges of vectors (4, 8, 16) and of a block's tile of atoms (256).
ATOMS = [1, 2, 3, 16, 17, 101, 256, 300]
NAMES = ("reward", "terminated", "next_logits1", "next_logits2", "next_log_prob")
V_MIN, V_MAX = -10.0, 6.0


def normal(*shape: int, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def arguments(batch: int, atoms: int, device: str = "cpu") -> list[Tensor]:
    """Return reward, terminated, next_logits1, next_logits2, next_log_prob; a fifth of the samples terminate."""
    return [
        3 * normal(batch, seed=1, device=device),
        normal(batch, seed=2, device=device) > 0.84,
        3 * normal(batch, atoms, seed=3, device=device),
        3 * normal(batch, atoms, seed=4, device=device),
        3 * normal(batch, seed=5, device=device),
    ]


def to_double(value):
    if not isinstance(value, Tensor):
        return value
    return value.detach().cpu() if value.dtype == torch.bool else value.detach().double().cpu()


def by_equation(reward, terminated, logits1, logits2, log_prob, alpha, gamma, v_min, v_max) -> Tensor:
    """Equation 7 as the paper writes it, a sum over all pairs of atoms."""
    atoms = logits1.shape[-1]
    z = torch.linspace(v_min, v_max, atoms, dtype=torch.float64)
    spacing = (v_max - v_min) / (atoms - 1)
    p = logits1.softmax(-1)
    if logits2 is not None:
        p2 = logits2.softmax(-1)
        p = torch.where(((p * z).sum(-1) <= (p2 * z).sum(-1))[:, None], p, p2)
    moved = reward[:, None] + gamma * (1 - terminated.double())[:, None] * (z - alpha * log_prob[:, None])
    distance = (moved.clamp(v_min, v_max)[:, None, :] - z[:, None]).abs()
    return ((1 - distance / spacing).clamp(0, 1) * p[:, None, :]).sum(-1)


def tolerance(tensors, atoms: int, alpha: float) -> float:
    """What float32 allows. A place among the atoms has some 4 roundings of the largest term, in units of the spacing;
    where two masses meet it moves twice that share. A probability has some 10 roundings of its logits' range."""
    reward, _, logits1, _, log_prob = tensors
    largest = float(reward.abs().max() + (alpha * log_prob).abs().max()) + max(abs(V_MIN), abs(V_MAX))
    misplaced = 8 * EPS * largest * max(atoms - 1, 1) / (V_MAX - V_MIN)
    return misplaced + 10 * EPS * float(logits1.abs().max())


class TestTargetAgainstFloat64:
    def test_ten_thousand_random_cases(self, device):
        tensors = arguments(10_000, 51, device)
        doubles = [to_double(t) for t in tensors]
        for second in (True, False):
            for each in (tensors, doubles):
                each[3] = each[3] if second else None
            actual = ops.categorical_target(*tensors, 0.2, 0.99, V_MIN, V_MAX)
            expected = categorical_target_reference(*doubles, 0.2, 0.99, V_MIN, V_MAX)
            torch.testing.assert_close(expected, by_equation(*doubles, 0.2, 0.99, V_MIN, V_MAX), rtol=0, atol=1e-12)
            atol = tolerance(tensors, 51, 0.2)
            assert atol < 1e-4
            torch.testing.assert_close(actual.double().cpu(), expected, rtol=0, atol=atol)
            torch.testing.assert_close(actual.sum(-1), torch.ones_like(actual[:, 0]), rtol=0, atol=60 * EPS)

    @pytest.mark.parametrize("atoms", ATOMS)
    @pytest.mark.parametrize("batch", [0, 1, 5, 400])
    def test_all_sizes_and_coefficients(self, batch, atoms, device):
        tensors = arguments(batch, atoms, device)
        per_sample = normal(batch, seed=6, device=device).sigmoid()
        for alpha, gamma in ((0.2, 0.99), (torch.tensor([0.2], device=device), per_sample), (per_sample, 0.9)):
            actual = ops.categorical_target(*tensors, alpha, gamma, V_MIN, V_MAX)
            assert actual.shape == (batch, atoms)
            expected = categorical_target_reference(*map(to_double, (*tensors, alpha, gamma)), V_MIN, V_MAX)
            atol = tolerance(tensors, atoms, 1.0) if batch else 0
            torch.testing.assert_close(actual.double().cpu(), expected, rtol=0, atol=atol)

    def test_float64(self, device):
        tensors = [t if t.dtype == torch.bool else t.double() for t in arguments(300, 101, device)]
        actual = ops.categorical_target(*tensors, 0.2, 0.99, V_MIN, V_MAX)
        expected = categorical_target_reference(*tensors, 0.2, 0.99, V_MIN, V_MAX)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)

    def test_a_column_and_a_number_for_a_mask(self, device):
        tensors = arguments(9, 17, device)
        expected = ops.categorical_target(*tensors, 0.2, 0.99, V_MIN, V_MAX)
        column = [t if t.ndim == 2 else t[:, None] for t in tensors]
        column[1] = column[1].float()
        assert torch.equal(ops.categorical_target(*column, 0.2, 0.99, V_MIN, V_MAX), expected)


class TestTargetEdges:
    def at(self, reward: float, terminated: bool, logits: Tensor, gamma: float = 1.0) -> Tensor:
        """Atoms -8, -7, ..., 8: every place and share is exact."""
        column = torch.full((len(logits),), reward, device=logits.device)
        done = torch.full((len(logits),), terminated, device=logits.device)
        return ops.categorical_target(column, done, logits, None, torch.zeros_like(column), 0.0, gamma, -8, 8)

    def test_atoms_hit_exactly_keep_their_mass(self, device):
        logits = normal(40, 17, device=device)
        p = logits.softmax(-1)
        torch.testing.assert_close(self.at(0.0, False, logits), p, rtol=4 * EPS, atol=0)
        torch.testing.assert_close(self.at(3.0, False, logits)[:, 3:-1], p[:, :-4], rtol=4 * EPS, atol=0)
        assert torch.equal(self.at(3.0, False, logits)[:, :3], torch.zeros(40, 3, device=device))
        torch.testing.assert_close(self.at(3.0, False, logits)[:, -1], p[:, -4:].sum(-1), rtol=8 * EPS, atol=0)

    def test_half_way_between_atoms(self, device):
        logits = normal(40, 17, device=device)
        p = logits.softmax(-1)
        moved = self.at(0.5, False, logits)
        torch.testing.assert_close(moved[:, 1:-1], (p[:, 1:-1] + p[:, :-2]) / 2, rtol=8 * EPS, atol=0)

    @pytest.mark.parametrize(("reward", "index"), [(1e30, 16), (-1e30, 0), (math.inf, 16), (-math.inf, 0), (8.0, 16)])
    def test_all_mass_at_an_end(self, reward, index, device):
        for terminated in (True,) if abs(reward) == 8.0 else (True, False):
            target = self.at(reward, terminated, normal(40, 17, device=device))
            expected = torch.zeros_like(target)
            expected[:, index] = 1
            torch.testing.assert_close(target, expected, rtol=0, atol=8 * EPS)
            assert torch.equal(target != 0, expected != 0)

    def test_a_terminated_sample_has_its_reward_alone(self, device):
        target = self.at(2.0, True, normal(40, 17, device=device))
        assert torch.equal(target.argmax(-1), torch.full((40,), 10, device=device))
        target = self.at(2.25, True, normal(40, 17, device=device))
        torch.testing.assert_close(target[:, 10], torch.full((40,), 0.75, device=device), rtol=8 * EPS, atol=0)

    def test_never_negative(self, device):
        # In float32, 7.3 lies a rounding beyond the last atom: that much of the mass would be taken twice.
        for atoms in (7, 51, 101):
            tensors = arguments(2000, atoms, device)
            for reward in (7.3, -3.0, 1e5):
                tensors[0] = torch.full_like(tensors[0], reward)
                assert bool((ops.categorical_target(*tensors, 0.0, 1.0, -3.0, 7.3) >= 0).all())

    def test_the_critic_with_the_smaller_mean_counts(self, device):
        high, low = torch.zeros(20, 17, device=device), torch.zeros(20, 17, device=device)
        high[:, 12], low[:, 4] = 30.0, 30.0
        zero = torch.zeros(20, device=device)
        for pair in ((high, low), (low, high)):
            target = ops.categorical_target(zero, zero.bool(), *pair, zero, 0.0, 1.0, -8, 8)
            assert target.argmax(-1).unique().tolist() == [4]

    def test_at_a_tie_the_first_critic_counts(self, device):
        one, two = torch.full((20, 17), -math.inf, device=device), torch.full((20, 17), -math.inf, device=device)
        one[:, 8], two[:, 7], two[:, 9] = 30.0, 30.0, 30.0  # both means are exactly 0
        zero = torch.zeros(20, device=device)
        for pair, best in (((one, two), [8]), ((two, one), [7, 9])):
            target = ops.categorical_target(zero, zero.bool(), *pair, zero, 0.0, 1.0, -8, 8)
            assert target.sum(0).topk(len(best)).indices.sort().values.tolist() == best

    @pytest.mark.parametrize("position", [0, 2, 3, 4])
    def test_a_nan_makes_its_whole_row_nan_and_no_other(self, position, device):
        for atoms in (1, 17, 101):
            tensors = arguments(9, atoms, device)
            tensors[1][4] = False
            tensors[position][4] = math.nan
            nan = ops.categorical_target(*tensors, 0.2, 0.99, V_MIN, V_MAX).isnan()
            assert nan.all(-1).nonzero().flatten().tolist() == [4]
            assert nan.any(-1).sum() == 1
            expected = categorical_target_reference(*tensors, 0.2, 0.99, V_MIN, V_MAX).isnan()
            assert torch.equal(nan, expected)

    def test_nan_coefficients(self, device):
        tensors = arguments(9, 17, device)
        assert ops.categorical_target(*tensors, math.nan, 0.99, V_MIN, V_MAX).isnan().all()
        assert ops.categorical_target(*tensors, 0.2, math.nan, V_MIN, V_MAX).isnan().all()

    def test_logits_of_minus_infinity_have_no_mass(self, device):
        logits = normal(20, 17, device=device)
        logits[:, ::2] = -math.inf
        torch.testing.assert_close(self.at(0.0, False, logits), logits.softmax(-1), rtol=4 * EPS, atol=0)


class TestCrossEntropy:
    def pair(self, batch: int, atoms: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
        return 5 * normal(batch, atoms, seed=1, device=device), normal(batch, atoms, seed=2, device=device).softmax(-1)

    @pytest.mark.parametrize("atoms", ATOMS)
    @pytest.mark.parametrize("batch", [0, 1, 5, 400])
    def test_loss_and_gradient(self, batch, atoms, device):
        self.assert_matches_float64(*self.pair(batch, atoms, device))

    def test_ten_thousand_random_cases(self, device):
        self.assert_matches_float64(*self.pair(10_000, 51, device))

    def assert_matches_float64(self, logits: Tensor, target: Tensor) -> None:
        grad = normal(len(logits), seed=3).to(logits.device)
        results = []
        for function, *each in (
            (ops.categorical_cross_entropy, logits, target, grad),
            (categorical_cross_entropy_reference, *map(to_double, (logits, target, grad))),
        ):
            leaf = each[0].clone().requires_grad_()
            loss = function(leaf, each[1])
            results.append((loss.detach().double().cpu(), torch.autograd.grad(loss, leaf, each[2])[0].double().cpu()))
        # Sums of up to 300 terms in vectors: some 30 roundings of terms that add up to at most the logits' range.
        size = float(logits.abs().max()) if logits.numel() else 0.0
        torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=30 * EPS * (size + 6))
        torch.testing.assert_close(results[0][1], results[1][1], rtol=0, atol=30 * EPS * (size + 6))

    def test_targets_that_do_not_add_up_to_one(self, device):
        logits, _ = self.pair(40, 17, device)
        self.assert_matches_float64(logits, normal(40, 17, seed=4, device=device))

    def test_is_torch_cross_entropy(self, device):
        logits, target = self.pair(40, 17, device)
        expected = torch.nn.functional.cross_entropy(logits, target, reduction="none")
        torch.testing.assert_close(ops.categorical_cross_entropy(logits, target), expected)

    def test_large_logits_are_stable(self, device):
        logits = torch.tensor([[1e4, 0.0, -1e4], [-3e38, 3e38, 0.0]], device=device, requires_grad=True)
        target = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], device=device)
        loss = ops.categorical_cross_entropy(logits, target)
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        assert loss[0] == 0
        assert bool((grad[0] == 0).all())

    def test_nan_reaches_its_row_only(self, device):
        for position in (0, 1):
            tensors = list(self.pair(9, 101, device))
            tensors[position][4, 100] = math.nan
            loss = ops.categorical_cross_entropy(*tensors)
            assert loss.isnan().nonzero().flatten().tolist() == [4]
            leaf = tensors[0].requires_grad_()
            (grad,) = torch.autograd.grad(ops.categorical_cross_entropy(leaf, tensors[1]).sum(), leaf)
            assert grad.isnan().any(-1).nonzero().flatten().tolist() == [4]

    def test_create_graph_gives_the_same_gradient(self, device):
        logits, target = (t.double() for t in self.pair(9, 17, device))
        grads = []
        for create_graph in (False, True):
            leaf = logits.clone().requires_grad_()
            loss = ops.categorical_cross_entropy(leaf, target).sum()
            grads.append(torch.autograd.grad(loss, leaf, create_graph=create_graph)[0].detach())
        torch.testing.assert_close(*grads, rtol=0, atol=1e-14)

    def test_edit_between_forward_and_backward_is_noticed(self, device):
        logits, target = self.pair(9, 17, device)
        loss = ops.categorical_cross_entropy(logits.requires_grad_(), target)
        target.zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.sum().backward()

    def test_nothing_is_recorded_without_need(self, device):
        logits, target = self.pair(9, 17, device)
        assert not ops.categorical_cross_entropy(logits, target).requires_grad
        with torch.no_grad():
            assert not ops.categorical_cross_entropy(logits.requires_grad_(), target).requires_grad


class TestLayouts:
    def matrices(self, device):
        yield "transposed", normal(17, 30, device=device).t()
        yield "columns of a wider one", normal(30, 40, device=device)[:, 5:22]
        yield "every second column", normal(30, 34, device=device)[:, ::2]
        yield "every second row", normal(60, 17, device=device)[::2]
        yield "one row for all", normal(1, 17, device=device).expand(30, 17)
        yield "one value a row", normal(30, 1, device=device).expand(30, 17)

    def test_views_equal_their_copies(self, device):
        base = arguments(30, 17, device)
        for name, view in self.matrices(device):
            for position in (2, 3):
                views, copies = list(base), list(base)
                views[position], copies[position] = view, view.contiguous()
                results = [ops.categorical_target(*each, 0.2, 0.9, V_MIN, V_MAX) for each in (views, copies)]
                assert torch.equal(*results), name
            for pair in ((view, base[2]), (base[2], view)):
                results = [ops.categorical_cross_entropy(*each) for each in (pair, [t.contiguous() for t in pair])]
                assert torch.equal(*results), name
        for position in (0, 1, 4):
            views, copies = list(base), list(base)
            views[position] = torch.stack([base[position]] * 3, -1)[:, 1]
            assert torch.equal(*(ops.categorical_target(*each, 0.2, 0.9, V_MIN, V_MAX) for each in (views, copies)))

    def test_thread_count_does_not_matter(self):
        tensors = arguments(1003, 51)
        threads, results = torch.get_num_threads(), []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                target = ops.categorical_target(*tensors, 0.2, 0.9, V_MIN, V_MAX)
                results.append((target, ops.categorical_cross_entropy(tensors[2], target)))
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class TestPyTorchCitizen:
    def test_opcheck(self, device):
        reward, terminated, logits1, logits2, log_prob = arguments(6, 5, device)
        op = torch.ops.sacfast.categorical_target.default
        alpha = torch.tensor(0.2, device=device)
        torch.library.opcheck(op, (reward, terminated, logits1, logits2, log_prob, alpha, 0.0, None, 0.9, V_MIN, V_MAX))
        torch.library.opcheck(
            op, (reward, terminated.float(), logits1, None, log_prob, None, 0.2, log_prob, 0.0, V_MIN, V_MAX)
        )
        op = torch.ops.sacfast.categorical_cross_entropy.default
        target = logits2.softmax(-1)
        for needs_slope in (False, True):
            torch.library.opcheck(op, (logits1, target, needs_slope))
        torch.library.opcheck(op, (logits1.clone().requires_grad_(), target, False))

    @pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
    def test_compile_without_graph_breaks(self, backend, device):
        def loss(logits, tensors):
            with torch.no_grad():
                target = ops.categorical_target(*tensors, 0.2, 0.99, V_MIN, V_MAX)
            return ops.categorical_cross_entropy(logits * 2.0, target).sum()

        torch._dynamo.reset()
        results = []
        for function in (torch.compile(loss, fullgraph=True, backend=backend), loss):
            logits = normal(30, 17, seed=7, device=device).requires_grad_()
            value = function(logits, arguments(30, 17, device))
            results.append((value, *torch.autograd.grad(value, logits)))
        for a, e in zip(*results, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-5, atol=1e-5)  # the sum over samples may be ordered differently

    def test_inference_mode(self, device):
        tensors = arguments(9, 17, device)
        expected = ops.categorical_target(*tensors, 0.2, 0.9, V_MIN, V_MAX)
        with torch.inference_mode():
            target = ops.categorical_target(*tensors, 0.2, 0.9, V_MIN, V_MAX)
            loss = ops.categorical_cross_entropy(tensors[2], target)
        assert torch.equal(target, expected)
        assert torch.equal(loss, ops.categorical_cross_entropy(tensors[2], expected))

    def test_autocast_computes_in_float32(self, device):
        tensors = arguments(9, 17, device)
        half = tensors[2].bfloat16().requires_grad_()
        with torch.autocast(device, dtype=torch.bfloat16):
            target = ops.categorical_target(*tensors[:2], tensors[2].bfloat16(), *tensors[3:], 0.2, 0.9, V_MIN, V_MAX)
            loss = ops.categorical_cross_entropy(half, target)
        assert target.dtype == loss.dtype == torch.float32
        assert torch.equal(loss, ops.categorical_cross_entropy(half.detach().float(), target))
        loss.sum().backward()
        assert half.grad.dtype == torch.bfloat16

    def test_vmap(self, device):
        tensors = [torch.stack([t, t.flip(0)]) for t in arguments(9, 17, device)]
        target = torch.vmap(lambda *each: ops.categorical_target(*each, 0.2, 0.9, V_MIN, V_MAX))(*tensors)
        for i in range(2):
            each = [t[i] for t in tensors]
            assert torch.equal(target[i], ops.categorical_target(*each, 0.2, 0.9, V_MIN, V_MAX))
        shared = torch.vmap(lambda r, a: ops.categorical_target(r, *(t[0] for t in tensors[1:]), a, 0.9, V_MIN, V_MAX))(
            tensors[0], torch.tensor([0.2, 0.4], device=device)
        )
        for i, alpha in enumerate((0.2, 0.4)):
            each = [tensors[0][i], *(t[0] for t in tensors[1:])]
            torch.testing.assert_close(shared[i], ops.categorical_target(*each, alpha, 0.9, V_MIN, V_MAX))

    @pytest.mark.cuda
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types_on_cuda(self, dtype):
        tensors = [t if t.dtype == torch.bool else t.to(dtype) for t in arguments(300, 51, "cuda")]
        wide = [t if t.dtype == torch.bool else t.float() for t in tensors]
        target = ops.categorical_target(*tensors, 0.2, 0.99, V_MIN, V_MAX)
        expected = ops.categorical_target(*wide, 0.2, 0.99, V_MIN, V_MAX)
        assert torch.equal(target, expected.to(dtype))
        loss = ops.categorical_cross_entropy(tensors[2], target)
        assert torch.equal(loss, ops.categorical_cross_entropy(wide[2], target.float()).to(dtype))


class TestBadInput:
    GOOD = {"alpha": 0.2, "gamma": 0.99, "v_min": -1.0, "v_max": 1.0}  # noqa: RUF012

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"reward": torch.zeros(4, 2)}, ValueError, r"reward: expected shape \[B\] or \[B, 1\], got \[4, 2\]"),
            ({"reward": torch.zeros(4, 1)}, ValueError, r"next_log_prob: expected shape \[4, 1\] like reward"),
            ({"reward": torch.zeros(4).half()}, TypeError, "reward: expected dtype float32 or float64 on the CPU"),
            ({"terminated": torch.zeros(4, 1).bool()}, ValueError, r"terminated: expected shape \[4\]"),
            ({"terminated": torch.zeros(4).int()}, TypeError, "terminated: expected dtype bool or Float like reward"),
            ({"next_logits1": torch.zeros(4)}, ValueError, r"next_logits1: expected shape \[B, M\] with B = 4"),
            ({"next_logits1": torch.zeros(5, 7)}, ValueError, r"next_logits1: expected shape \[B, M\] with B = 4"),
            ({"next_logits1": torch.zeros(4, 0)}, ValueError, "next_logits1: expected shape .* others >= 1"),
            ({"next_logits1": torch.zeros(4, 7).double()}, TypeError, "next_logits1: expected dtype Float like reward"),
            ({"next_logits2": torch.zeros(4, 6)}, ValueError, r"next_logits2: expected shape \[4, 7\]"),
            ({"next_logits2": torch.zeros(1, 7)}, ValueError, r"next_logits2: expected shape \[4, 7\]"),
            ({"next_log_prob": torch.zeros(4, 1)}, ValueError, "next_log_prob: expected shape"),
            ({"alpha": torch.zeros(3)}, ValueError, "alpha: expected one element, or shape"),
            ({"gamma": torch.tensor(1)}, TypeError, "gamma: expected dtype Float like reward, got Long"),
            ({"v_min": 1.0}, ValueError, "v_max: expected a finite number > v_min = 1, got 1"),
            ({"v_min": math.nan}, ValueError, "v_min: expected a finite number, got nan"),
            ({"v_max": math.inf}, ValueError, "v_max: expected a finite number > v_min = -1, got inf"),
        ],
    )
    def test_message_names_the_argument(self, change, error, message):
        good = dict(zip(NAMES, arguments(4, 7), strict=True)) | self.GOOD
        with pytest.raises(error, match=message):
            ops.categorical_target(**{**good, **change})

    @pytest.mark.parametrize("name", [*NAMES[:1], *NAMES[2:], "alpha", "gamma"])
    def test_gradients_and_tangents_are_refused(self, name):
        good = dict(zip(NAMES, arguments(4, 7), strict=True)) | self.GOOD
        good[name] = torch.as_tensor(good[name]).requires_grad_()
        with pytest.raises(ValueError, match=f"{name}: expected a tensor without requires_grad"):
            ops.categorical_target(**good)
        with torch.no_grad():
            assert ops.categorical_target(**good).shape == (4, 7)
        plain = good[name].detach()
        with pytest.raises(ValueError, match=f"{name}: expected a tensor without a tangent"):
            torch.func.jvp(lambda x: ops.categorical_target(**{**good, name: x}), (plain,), (plain,))

    @pytest.mark.parametrize(
        ("logits", "target", "error", "message"),
        [
            (torch.zeros(4), torch.zeros(4), ValueError, r"logits: expected shape \[B, M\] with M >= 1, got \[4\]"),
            (torch.zeros(4, 0), torch.zeros(4, 0), ValueError, r"logits: expected shape \[B, M\] with M >= 1"),
            (torch.zeros(4, 7), torch.zeros(4, 1), ValueError, r"target: expected shape \[4, 7\] like logits"),
            (torch.zeros(4, 7), torch.zeros(7), ValueError, r"target: expected shape \[4, 7\] like logits, got \[7\]"),
            (torch.zeros(4, 7), torch.zeros(4, 7).long(), TypeError, "target: expected dtype Float like logits"),
            (torch.zeros(4, 7).int(), torch.zeros(4, 7), TypeError, "logits: expected dtype float32 or float64"),
        ],
    )
    def test_message_of_the_loss(self, logits, target, error, message):
        with pytest.raises(error, match=message):
            ops.categorical_cross_entropy(logits, target)

    def test_a_target_that_requires_grad_is_refused(self):
        target = torch.ones(4, 7, requires_grad=True)
        with pytest.raises(ValueError, match="target: expected a tensor without requires_grad"):
            ops.categorical_cross_entropy(torch.zeros(4, 7), target)
