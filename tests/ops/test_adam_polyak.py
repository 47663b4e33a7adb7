"""adam_polyak_ against torch.optim.Adam and AdamW with plain averages, and as a citizen of PyTorch."""

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from sacfast import ops
from sacfast.ops.adam_polyak import adam_polyak_reference_

EPS = torch.finfo(torch.float32).eps
LISTS = ("params", "grads", "exp_avgs", "exp_avg_sqs", "target_params")
WRITTEN = ("params", "exp_avgs", "exp_avg_sqs", "target_params")
OPTIONS = {"step": 3, "lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "tau": 0.05}


def normal(*shape: int, seed: int = 0, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


def lists(shapes, device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, list[Tensor]]:
    """Return the five lists by name; second moments are positive."""
    made = {
        name: [normal(*shape, seed=10 * i + k, device=device, dtype=dtype) for i, shape in enumerate(shapes)]
        for k, name in enumerate(LISTS)
    }
    made["exp_avg_sqs"] = [tensor.square() for tensor in made["exp_avg_sqs"]]
    return made


def clones(tensors: dict[str, list[Tensor]], dtype: torch.dtype | None = None) -> dict[str, list[Tensor]]:
    return {name: [each.detach().clone().to(dtype or each.dtype) for each in those] for name, those in tensors.items()}


def assert_close_to_float64(actual, before, options) -> None:
    """Each result has at most some 10 roundings of the terms that it is made of, all below 8 here."""
    exact = clones(before, torch.float64)
    adam_polyak_reference_(**exact, **options)
    for name in LISTS:
        for a, e in zip(actual[name], exact[name], strict=True):
            torch.testing.assert_close(a.double(), e, rtol=10 * EPS, atol=10 * EPS)


class TestAgainstTorchOptim:
    @pytest.mark.parametrize("weight_decay", [0.0, 0.1])
    @pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.99), (0.0, 0.9)])
    def test_many_steps_in_float64(self, weight_decay, betas, device):
        torch.manual_seed(0)
        online = nn.Sequential(nn.Linear(7, 33), nn.ReLU(), nn.Linear(33, 3)).double().to(device)
        twin, target = copy.deepcopy(online), copy.deepcopy(online)
        twin_target = copy.deepcopy(target)
        kind = torch.optim.AdamW if weight_decay else torch.optim.Adam
        optimiser = kind(twin.parameters(), lr=0.01, betas=betas, weight_decay=weight_decay, foreach=False)
        moments = [[torch.zeros_like(p) for p in online.parameters()] for _ in range(2)]
        for step in range(1, 101):
            x = normal(20, 7, seed=step, device=device, dtype=torch.float64)
            for network in (online, twin):
                network.zero_grad()
                network(x).square().mean().backward()
            gradients = [p.grad for p in online.parameters()]
            ops.adam_polyak_(
                online.parameters(), gradients, *moments, target.parameters(),
                step=step, lr=0.01, betas=betas, weight_decay=weight_decay, tau=0.02,
            )  # fmt: skip
            optimiser.step()
            with torch.no_grad():
                for average, parameter in zip(twin_target.parameters(), twin.parameters(), strict=True):
                    average.lerp_(parameter, 0.02)
        for networks in ((online, twin), (target, twin_target)):
            for a, e in zip(*(network.parameters() for network in networks), strict=True):
                torch.testing.assert_close(a, e, rtol=0, atol=1e-11)
        states = [optimiser.state[p] for p in twin.parameters()]
        for mine, name in zip(moments, ("exp_avg", "exp_avg_sq"), strict=True):
            for a, state in zip(mine, states, strict=True):
                torch.testing.assert_close(a, state[name], rtol=0, atol=1e-12)


class TestFormula:
    def test_ten_thousand_random_cases(self, device):
        for step in (1, 2, 1000, 10**9):
            tensors = lists([(10_000,)], device)
            before, options = clones(tensors), {**OPTIONS, "step": step}
            ops.adam_polyak_(**tensors, **options)
            assert_close_to_float64(tensors, before, options)

    @pytest.mark.parametrize("count", [1, 5, 40, 700])
    def test_lists_of_odd_sizes(self, count, device):
        shapes = [(), (0,), (1,), (7,), (3, 5), (17,), (0, 4), (64,), (2, 3, 5), (33,), (129,)]
        tensors = lists([shapes[i % len(shapes)] for i in range(count)], device)
        before = clones(tensors)
        ops.adam_polyak_(**tensors, **OPTIONS)
        assert_close_to_float64(tensors, before, OPTIONS)

    def test_nothing_at_all(self):
        ops.adam_polyak_([], [], [], [], None, step=1, lr=0.1)
        ops.adam_polyak_([], [], [], [], [], step=1, lr=0.1)

    def test_without_targets_the_rest_is_the_same(self, device):
        tensors = lists([(33,), (4, 5)], device)
        alone = clones(tensors)
        ops.adam_polyak_(**tensors, **OPTIONS)
        targets = clones({"target_params": alone["target_params"]})["target_params"]
        ops.adam_polyak_(**{**alone, "target_params": None}, **OPTIONS)
        for name in WRITTEN[:-1]:
            assert all(torch.equal(a, b) for a, b in zip(tensors[name], alone[name], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(alone["target_params"], targets, strict=True))

    def test_tau_of_one_copies_and_of_zero_keeps(self, device):
        for tau in (0.0, 1.0):
            tensors = lists([(33,)], device)
            before = tensors["target_params"][0].clone()
            ops.adam_polyak_(**tensors, **{**OPTIONS, "tau": tau})
            expected = tensors["params"][0] if tau == 1.0 else before
            assert torch.equal(tensors["target_params"][0], expected)

    def test_generators_are_welcome_and_gradients_are_left_alone(self, device):
        tensors = lists([(33,), (5,)], device)
        expected = clones(tensors)
        gradients = [each.clone() for each in tensors["grads"]]
        ops.adam_polyak_(**{name: iter(those) for name, those in tensors.items()}, **OPTIONS)
        ops.adam_polyak_(**expected, **OPTIONS)
        for name in LISTS:
            assert all(torch.equal(a, b) for a, b in zip(tensors[name], expected[name], strict=True))
        assert all(torch.equal(a, b) for a, b in zip(tensors["grads"], gradients, strict=True))

    def test_nan_and_infinity_are_those_of_plain_torch(self, device):
        for value in (math.nan, math.inf, -math.inf):
            for name in LISTS:
                tensors = lists([(20,)], device)
                tensors[name][0][13] = value
                expected = clones(tensors)
                ops.adam_polyak_(**tensors, **OPTIONS)
                adam_polyak_reference_(**expected, **OPTIONS)
                for each in WRITTEN:
                    torch.testing.assert_close(tensors[each], expected[each], equal_nan=True, rtol=1e-5, atol=1e-5)

    def test_thread_count_does_not_matter(self):
        threads, results = torch.get_num_threads(), []
        try:
            for count in (1, 2):
                torch.set_num_threads(count)
                tensors = lists([(40_003,), (1,), (30_001,)])
                ops.adam_polyak_(**tensors, **OPTIONS)
                results.append([each for name in WRITTEN for each in tensors[name]])
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


class TestLayouts:
    @pytest.mark.parametrize("name", LISTS)
    def test_any_layout_of_any_list(self, name, device):
        def square(seed, *shape):
            return normal(*shape, seed=seed, device=device).square()

        for view in (
            square(50, 9, 5).t(),
            square(51, 5, 18)[:, ::2],
            square(52, 100)[3:48].view(5, 9),
            square(53, 5, 3, 3).permute(0, 2, 1).reshape(5, 9),
        ):
            tensors = lists([(4,), (5, 9)], device)
            tensors[name][1] = view
            before, around = clones(tensors), view._base.clone() if view._base is not None else None
            ops.adam_polyak_(**tensors, **OPTIONS)
            assert_close_to_float64(tensors, before, OPTIONS)
            if around is not None:  # what lies between and around the view's elements is as it was
                inside = torch.zeros_like(around, dtype=torch.bool)
                inside.as_strided(view.size(), view.stride(), view.storage_offset()).fill_(True)
                assert torch.equal(view._base[~inside], around[~inside])

    def test_all_of_one_other_layout(self, device):
        tensors = {name: [each[0].t()] for name, each in lists([(9, 5)], device).items()}
        before = clones(tensors)
        ops.adam_polyak_(**tensors, **OPTIONS)
        assert_close_to_float64(tensors, before, OPTIONS)

    def test_an_expanded_gradient(self, device):
        tensors = lists([(5, 9)], device)
        tensors["grads"] = [normal(9, seed=60, device=device).expand(5, 9)]
        before = clones(tensors)
        ops.adam_polyak_(**tensors, **OPTIONS)
        assert_close_to_float64(tensors, before, OPTIONS)

    @pytest.mark.parametrize("first", WRITTEN)
    @pytest.mark.parametrize("second", LISTS)
    def test_shared_memory_is_refused_before_anything_changes(self, first, second, device):
        tensors = lists([(10,), (10,)], device)
        buffer = normal(19, seed=70, device=device).square()
        if first == second:
            tensors[first] = [buffer[:10], buffer[9:]]
        else:
            tensors[first][0], tensors[second][1] = buffer[:10], buffer[9:]
        before = clones(tensors)
        with pytest.raises(ValueError, match=r"\w+\[[01]\]: expected memory that no other argument shares"):
            ops.adam_polyak_(**tensors, **OPTIONS)
        for name in LISTS:
            assert all(torch.equal(a, b) for a, b in zip(tensors[name], before[name], strict=True))

    @pytest.mark.parametrize("name", WRITTEN)
    def test_an_expanded_tensor_is_not_written_to(self, name, device):
        tensors = lists([(3,), (5,)], device)
        tensors[name][1] = torch.ones(1, device=device).expand(5)
        with pytest.raises(ValueError, match=rf"{name}\[1\]: expected memory of its own for each element"):
            ops.adam_polyak_(**tensors, **OPTIONS)


class TestAutograd:
    def test_leaves_that_require_grad(self, device):
        tensors = lists([(9,)], device)
        before = clones(tensors)
        for those in tensors.values():
            those[0].requires_grad_()
        ops.adam_polyak_(**tensors, **OPTIONS)
        assert all(those[0].is_leaf and those[0].grad_fn is None for those in tensors.values())
        assert_close_to_float64(clones(tensors), before, OPTIONS)

    def test_gradients_that_autograd_records(self, device):
        tensors = lists([(9,)], device)
        tensors["grads"] = [tensors["grads"][0].requires_grad_() * 2]  # of create_graph=True
        ops.adam_polyak_(**tensors, **OPTIONS)
        assert not tensors["params"][0].requires_grad

    @pytest.mark.parametrize("name", WRITTEN)
    def test_results_that_autograd_records_are_refused(self, name, device):
        tensors = lists([(9,), (9,)], device)
        tensors[name][1] = tensors[name][1].requires_grad_() * 2
        with pytest.raises(ValueError, match=rf"{name}\[1\]: expected a leaf tensor"):
            ops.adam_polyak_(**tensors, **OPTIONS)
        with torch.no_grad():
            ops.adam_polyak_(**tensors, **OPTIONS)

    @pytest.mark.parametrize("name", LISTS)
    def test_tangents_are_refused(self, name):
        tensors = lists([(9,)])
        with pytest.raises(ValueError, match=rf"{name}\[0\]: expected a tensor without a tangent"):
            torch.func.jvp(
                lambda x: ops.adam_polyak_(**{**tensors, name: [x]}, **OPTIONS) or x, (torch.ones(9),), (torch.ones(9),)
            )

    @pytest.mark.parametrize("name", WRITTEN)
    @pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
    def test_autograd_notices_the_edit(self, name, mode, device):
        tensors = lists([(9,)], device)
        factor = torch.ones(9, device=device, requires_grad=True)
        loss, version = (factor * tensors[name][0]).sum(), tensors[name][0]._version
        gradient_version = tensors["grads"][0]._version
        with mode():
            ops.adam_polyak_(**tensors, **OPTIONS)
        assert tensors[name][0]._version > version
        assert tensors["grads"][0]._version == gradient_version
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


class TestPyTorchCitizen:
    def test_opcheck(self, device):
        op = torch.ops.sacfast.adam_polyak_.default
        numbers = (3, 0.01, 0.9, 0.99, 1e-8, 0.1, 0.05)
        tensors = lists([(7,), (3, 5)], device)
        torch.library.opcheck(op, (*tensors.values(), *numbers))
        torch.library.opcheck(op, (*list(tensors.values())[:4], [], *numbers))

    def test_compile_without_graph_breaks(self, device):
        def step(tensors):
            with torch.no_grad():
                ops.adam_polyak_(**tensors, **OPTIONS)
                return tensors["params"][0] * 2.0

        torch._dynamo.reset()
        results = []
        for function in (torch.compile(step, fullgraph=True, backend="aot_eager"), step):
            tensors = lists([(7,), (3, 5)], device)
            results.append([function(tensors), *(each for name in WRITTEN for each in tensors[name])])
        assert all(torch.equal(a, e) for a, e in zip(*results, strict=True))

    def test_inference_tensors(self, device):
        with torch.inference_mode():
            tensors = lists([(9,)], device)
            before = clones(tensors)
            ops.adam_polyak_(**tensors, **OPTIONS)
            assert_close_to_float64(tensors, before, OPTIONS)

    def test_vmap(self, device):
        # Three networks at once, of which one gradient is shared and one tensor has its networks last.
        tensors = lists([(3, 4), (3, 2, 5)], device)
        tensors["grads"][0] = tensors["grads"][0][0]
        tensors["exp_avgs"][1] = tensors["exp_avgs"][1].movedim(0, -1).contiguous()
        expected = clones(tensors)
        in_dims = {name: [0, 0] for name in LISTS} | {"grads": [None, 0], "exp_avgs": [0, 2]}
        torch.vmap(lambda each: ops.adam_polyak_(**each, **OPTIONS) or each["params"][0], (in_dims,))(tensors)
        for network in range(3):
            alone = {
                name: [
                    t if dim is None else t.select(dim, network) for t, dim in zip(those, in_dims[name], strict=True)
                ]
                for name, those in expected.items()
            }
            ops.adam_polyak_(**alone, **OPTIONS)
        for name in LISTS:
            assert all(torch.equal(a, e) for a, e in zip(tensors[name], expected[name], strict=True))

    def test_one_place_for_all_calls_of_vmap_is_refused(self):
        tensors = lists([(9,)])
        with pytest.raises(ValueError, match=r"exp_avgs\[0\]: expected a tensor that torch.vmap maps"):
            torch.vmap(lambda p: ops.adam_polyak_(**{**tensors, "params": [p]}, **OPTIONS) or p)(torch.ones(4, 9))

    @pytest.mark.cuda
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types_on_cuda(self, dtype):
        tensors = lists([(1_003,)], "cuda", dtype)
        wide = clones(tensors, torch.float32)
        ops.adam_polyak_(**tensors, **OPTIONS)
        ops.adam_polyak_(**{**wide, "target_params": None}, **OPTIONS)
        for name in WRITTEN[:-1]:
            assert torch.equal(tensors[name][0], wide[name][0].to(dtype))

    @pytest.mark.cuda
    def test_cuda_graph(self):
        tensors = lists([(1_003,)], "cuda")
        expected = clones(tensors)
        ops.adam_polyak_(**clones(tensors), **OPTIONS)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            ops.adam_polyak_(**tensors, **OPTIONS)
        for _ in range(3):
            graph.replay()
            ops.adam_polyak_(**expected, **OPTIONS)
        assert torch.equal(tensors["params"][0], expected["params"][0])


class TestBadInput:
    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"grads": [None]}, TypeError, r"grads\[0\]: expected a tensor, got None"),
            ({"grads": []}, ValueError, "grads: expected 1 tensors like params, got 0"),
            ({"exp_avgs": [torch.zeros(4)] * 2}, ValueError, "exp_avgs: expected 1 tensors like params, got 2"),
            ({"target_params": []}, ValueError, "target_params: expected 1 tensors like params, got 0"),
            ({"params": []}, ValueError, "target_params: expected 0 tensors like params, got 1"),
            ({"grads": [torch.zeros(4, 1)]}, ValueError, r"grads\[0\]: expected shape \[4\] like params\[0\]"),
            ({"exp_avg_sqs": [torch.zeros(1)]}, ValueError, r"exp_avg_sqs\[0\]: expected shape \[4\] like params\[0\]"),
            ({"target_params": [torch.zeros(5)]}, ValueError, r"target_params\[0\]: expected shape \[4\]"),
            ({"exp_avgs": [torch.zeros(4).double()]}, TypeError, r"exp_avgs\[0\]: expected dtype Float like params"),
            ({"params": [torch.zeros(4).int()]}, TypeError, r"params\[0\]: expected dtype float32 or float64 on the"),
            ({"params": [torch.zeros(4).half()]}, TypeError, r"params\[0\]: expected dtype float32 or float64 on the"),
            ({"grads": [torch.zeros(4).to("meta")]}, ValueError, r"grads\[0\]: expected device cpu like params"),
            ({"step": 0}, ValueError, "step: expected an int >= 1, got 0"),
            ({"lr": -0.1}, ValueError, "lr: expected a finite number >= 0, got -0.1"),
            ({"lr": math.nan}, ValueError, "lr: expected a finite number >= 0, got nan"),
            ({"betas": (1.0, 0.9)}, ValueError, r"betas: expected two numbers in \[0, 1\), got \(1, 0.9\)"),
            ({"betas": (0.9, -0.1)}, ValueError, r"betas: expected two numbers in \[0, 1\)"),
            ({"eps": -1e-8}, ValueError, "eps: expected a finite number >= 0"),
            ({"weight_decay": math.inf}, ValueError, "weight_decay: expected a finite number >= 0, got inf"),
            ({"tau": 1.5}, ValueError, r"tau: expected a number in \[0, 1\], got 1.5"),
        ],
    )
    def test_message_names_the_argument(self, change, error, message):
        tensors = lists([(4,)])
        before = clones(tensors)
        with pytest.raises(error, match=message):
            ops.adam_polyak_(**{**tensors, **OPTIONS, **change})
        for name in LISTS:
            assert all(torch.equal(a, b) for a, b in zip(tensors[name], before[name], strict=True))
