"""Derivatives beyond the first in reverse mode, and torch.func, against the plain-torch twins in float64."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from sacfast import ops
from sacfast.ops.categorical import categorical_cross_entropy_reference
from sacfast.ops.moments import normalize_reference
from sacfast.ops.polyak import polyak_update_reference_
from sacfast.ops.quantile import quantile_huber_loss_reference
from sacfast.ops.tanh_gaussian import tanh_gaussian_log_prob_reference, tanh_gaussian_rsample_reference
from sacfast.ops.twin_q import twin_q_target_reference

# Both sides compute in float64; hessians of these sizes add some hundred terms of order 10.
CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Case(NamedTuple):
    """An op as a function of its differentiable arguments, and its plain twin."""

    fused: Callable[..., Any]
    plain: Callable[..., Any]
    arguments: tuple[Tensor, ...]


def rsample_case(bounding: str, bounds: tuple[float, float], scale: Tensor | None) -> Case:
    noise = normal(4, 3, seed=3)
    options = {"log_std_bounding": bounding, "log_std_bounds": bounds, "action_scale": scale}
    return Case(
        lambda mean, log_std: ops.tanh_gaussian_rsample(mean, log_std, noise, **options),
        lambda mean, log_std: tanh_gaussian_rsample_reference(mean, log_std, noise, **options),
        (normal(4, 3, seed=1), normal(4, 3, seed=2)),
    )


def target_case(alpha: Tensor, mask: bool) -> Case:
    reward, gamma = normal(5, seed=4), torch.linspace(0.9, 1.0, 5, dtype=torch.float64)
    terminated = torch.tensor([1, 0, 0, 1, 0], dtype=torch.bool if mask else torch.float64)
    return Case(
        lambda q1, q2, log_prob, alpha: ops.twin_q_target(reward, terminated, q1, q2, log_prob, alpha, gamma),
        lambda q1, q2, log_prob, alpha: twin_q_target_reference(reward, terminated, q1, q2, log_prob, alpha, gamma),
        (normal(5, seed=5), normal(5, seed=6), normal(5, seed=7), alpha),
    )


def loss_case(fused: Callable[..., Tensor], plain: Callable[..., Tensor], shape: tuple[int, ...], columns: int) -> Case:
    target = normal(shape[0], columns, seed=12).softmax(-1)
    return Case(lambda x: fused(x, target), lambda x: plain(x, target), (normal(*shape, seed=13),))


def normalize_case(clip: float | None) -> Case:
    moments = normal(3, seed=14), normal(3, seed=15).exp()
    return Case(
        lambda x: ops.normalize(x, *moments, clip=clip),
        lambda x: normalize_reference(x, *moments, clip=clip),
        (normal(4, 3, seed=16),),
    )


CASES = {
    "rsample": rsample_case("none", (-20.0, 2.0), None),
    "rsample clamped, scaled": rsample_case("clamp", (-1.0, 0.5), torch.tensor([0.4, 1.0, 2.0], dtype=torch.float64)),
    "rsample tanh": rsample_case("tanh", (-5.0, 2.0), None),
    "log_prob": Case(
        ops.tanh_gaussian_log_prob,
        tanh_gaussian_log_prob_reference,
        (normal(4, 3, seed=8), normal(4, 1, seed=9), normal(3, seed=10)),
    ),
    "target": target_case(torch.tensor(0.3, dtype=torch.float64), mask=True),
    "target, alpha a sample": target_case(normal(5, seed=11), mask=False),
    "cross-entropy": loss_case(ops.categorical_cross_entropy, categorical_cross_entropy_reference, (4, 5), 5),
    "normalize": normalize_case(None),
    "normalize, clipped": normalize_case(0.8),
    "quantile Huber": loss_case(ops.quantile_huber_loss, quantile_huber_loss_reference, (4, 2, 3), 6),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def loss_of(function: Callable[..., Any], others: tuple[Tensor, ...]) -> Callable[[Tensor], Tensor]:
    """A scalar of the op's outputs whose every derivative is of use, as a function of its first argument."""

    def loss(first: Tensor) -> Tensor:
        outputs = function(first, *others)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        return sum((output.sin() * output).sum() for output in outputs)

    return loss


@pytest.fixture
def losses(case: Case) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]:
    first, *others = case.arguments
    return loss_of(case.fused, tuple(others)), loss_of(case.plain, tuple(others)), first


class TestDerivatives:
    def test_first(self, case):
        inputs = tuple(each.clone().requires_grad_() for each in case.arguments)
        assert gradcheck(
            case.fused, inputs, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
        )

    def test_second(self, case):
        inputs = tuple(each.clone().requires_grad_() for each in case.arguments)
        assert gradgradcheck(case.fused, inputs, check_fwd_over_rev=True, check_batched_grad=True)

    @pytest.mark.parametrize("of", [hessian, lambda f: jacrev(jacrev(f)), lambda f: jacfwd(jacfwd(f))])
    def test_hessian_of_torch_func(self, of, losses):
        fused, plain, first = losses
        torch.testing.assert_close(of(fused)(first), hessian(plain)(first), **CLOSE)

    @pytest.mark.parametrize("strategy", ["reverse-mode", "forward-mode"])
    def test_hessian_of_torch_autograd(self, strategy, losses):
        fused, plain, first = losses
        actual, expected = (
            torch.autograd.functional.hessian(
                f, first, vectorize=strategy == "forward-mode", outer_jacobian_strategy=strategy
            )
            for f in (fused, plain)
        )
        torch.testing.assert_close(actual, expected, **CLOSE)

    def test_third(self, losses):
        fused, plain, first = losses
        third = lambda f: grad(lambda x: grad(lambda y: grad(f)(y).square().sum())(x).sum())(first)  # noqa: E731
        torch.testing.assert_close(third(fused), third(plain), **CLOSE)

    def test_gradient_penalty(self, losses):
        def penalised(loss):
            x = first.clone().requires_grad_()
            (slope,) = torch.autograd.grad(loss(x), x, create_graph=True)
            ((slope.norm() - 1).square() + loss(x)).backward()
            return x.grad

        fused, plain, first = losses
        torch.testing.assert_close(penalised(fused), penalised(plain), **CLOSE)

    def test_tangents_of_gradients_alone(self, losses):
        # Forward over reverse where the op's own inputs have no tangent.
        def tangent_of_gradient(loss):
            x = first.clone().requires_grad_()
            out = loss(x)
            with forward_ad.dual_level():
                weight = forward_ad.make_dual(torch.tensor(2.0).double(), torch.tensor(3.0).double())
                (slope,) = torch.autograd.grad(out, x, weight)
                return forward_ad.unpack_dual(slope).tangent

        fused, plain, first = losses
        torch.testing.assert_close(tangent_of_gradient(fused), tangent_of_gradient(plain), **CLOSE)

    def test_tangents_without_gradients(self, losses):
        fused, plain, first = losses
        with torch.no_grad():
            actual, expected = (jvp(f, (first,), (first.cos(),)) for f in (fused, plain))
        torch.testing.assert_close(actual, expected, **CLOSE)

    def test_values_with_tangents_are_those_of_the_kernel(self):
        # In float32, to a few units in the last place of sums of three terms.
        mean, log_std, noise = (normal(4, 3, seed=seed).float() for seed in (1, 2, 3))
        for function in (
            lambda mean: ops.tanh_gaussian_rsample(mean, log_std, noise),
            lambda mean: ops.tanh_gaussian_log_prob(noise, mean, log_std),
        ):
            value, _ = jvp(function, (mean,), (mean,))
            torch.testing.assert_close(value, function(mean), rtol=1e-5, atol=1e-5)

    def test_noise_drawn_inside(self):
        # The same state gives the same noise on every path.
        mean, log_std = normal(4, 3, seed=1), normal(4, 3, seed=2)

        def sample(mean):
            return ops.tanh_gaussian_rsample(mean, log_std, generator=ops.philox_state(5))[0]

        action, tangent = jvp(sample, (mean,), (torch.ones_like(mean),))
        torch.testing.assert_close(action, sample(mean), **CLOSE)
        torch.testing.assert_close(tangent, 1 - action.square(), **CLOSE)

    def test_a_state_advances_once(self):
        state = ops.philox_state(5)
        jvp(
            lambda mean: ops.tanh_gaussian_rsample(mean, mean, generator=state),
            (normal(3, seed=1),) * 1,
            (normal(3, seed=2),),
        )
        assert state.tolist() == [5, 1]

    def test_shapes_are_checked_with_tangents_too(self):
        reward, others = normal(5, seed=1), [normal(5, 1, seed=seed) for seed in (2, 3, 4)]
        with pytest.raises(ValueError, match="next_q1: expected shape"):
            jvp(lambda r: ops.twin_q_target(r, r > 0, *others, 0.2, 0.9), (reward,), (reward,))


class TestVmap:
    @pytest.mark.parametrize("mapped", range(2))
    def test_every_argument(self, mapped, case):
        for position, argument in enumerate(case.arguments):
            batch = torch.stack([argument, argument + 0.5, -argument], mapped if argument.ndim else 0)
            in_dims = [None] * len(case.arguments)
            in_dims[position] = mapped if argument.ndim else 0
            arguments = [*case.arguments[:position], batch, *case.arguments[position + 1 :]]
            torch.testing.assert_close(
                vmap(case.fused, tuple(in_dims))(*arguments), vmap(case.plain, tuple(in_dims))(*arguments), **CLOSE
            )

    def test_nested(self, losses):
        fused, plain, first = losses
        batch = first + normal(2, 3, *[1] * first.ndim, seed=12)
        for of in (
            lambda f: vmap(vmap(f)),
            lambda f: vmap(vmap(grad(f))),
            lambda f: vmap(grad(lambda x: vmap(f)(x).sum())),
        ):
            torch.testing.assert_close(of(fused)(batch), of(plain)(batch), **CLOSE)

    def test_gradients_through_it(self, losses):
        fused, plain, first = losses
        batch = (first + normal(3, *[1] * first.ndim, seed=12)).requires_grad_()
        actual, expected = (torch.autograd.grad(vmap(f)(batch).sum(), batch) for f in (fused, plain))
        torch.testing.assert_close(actual, expected, **CLOSE)

    def test_an_action_scale_for_each(self):
        mean, scale = normal(4, 3, seed=1), normal(5, 3, seed=2)
        arguments = (mean, 0.1 * mean, mean.cos())
        actual, expected = (
            vmap(lambda s, f=function: grad(lambda m: f(m, *arguments[1:], action_scale=s)[0].sum())(mean))(scale)
            for function in (ops.tanh_gaussian_rsample, tanh_gaussian_rsample_reference)
        )
        torch.testing.assert_close(actual, expected, **CLOSE)
        actual, expected = (
            vmap(lambda s, f=function: f(*arguments, action_scale=s))(scale)
            for function in (ops.tanh_gaussian_rsample, tanh_gaussian_rsample_reference)
        )
        torch.testing.assert_close(actual, expected, **CLOSE)
        with pytest.raises(ValueError, match=r"action_scale: expected shape \[3\], got \[1\]"):
            vmap(lambda s: ops.tanh_gaussian_rsample(*arguments, action_scale=s))(scale[:, :1])

    @pytest.mark.parametrize("wrong", [0, 1, 2, 3])
    def test_shapes_never_broadcast_in_the_target(self, wrong):
        tensors = [normal(4, 5, seed=seed) for seed in range(4)]
        tensors[wrong] = tensors[wrong][..., None]
        with pytest.raises(ValueError, match=r"expected shape .* like reward"):
            vmap(lambda r, *rest: ops.twin_q_target(r, torch.zeros(5, dtype=torch.bool), *rest, 0.2, 0.9))(*tensors)

    def test_scalars_are_refused(self):
        with pytest.raises(ValueError, match="mean: expected shape"):
            vmap(lambda m: ops.tanh_gaussian_rsample(m, torch.zeros(3, dtype=torch.float64), torch.zeros(3).double()))(
                normal(4, seed=1)
            )


class TestRandomnessOfVmap:
    """As torch's own random functions have it, whichever argument is mapped, or none."""

    MEAN, LOG_STD = torch.zeros(4, 3), torch.zeros(3)
    CALLS = {  # noqa: RUF012
        "mean": lambda x: ops.tanh_gaussian_rsample(TestRandomnessOfVmap.MEAN + 0 * x, TestRandomnessOfVmap.LOG_STD)[0],
        "log_std": lambda x: ops.tanh_gaussian_rsample(TestRandomnessOfVmap.MEAN, TestRandomnessOfVmap.LOG_STD + 0 * x)[
            0
        ],
        "action_scale": lambda x: ops.tanh_gaussian_rsample(
            TestRandomnessOfVmap.MEAN, TestRandomnessOfVmap.LOG_STD, action_scale=torch.ones(3) + 0 * x
        )[0],
        "none": lambda x: ops.tanh_gaussian_rsample(TestRandomnessOfVmap.MEAN, TestRandomnessOfVmap.LOG_STD)[0] + 0 * x,
        "a gradient": lambda x: grad(lambda m: ops.tanh_gaussian_rsample(m, TestRandomnessOfVmap.LOG_STD)[1].sum())(
            TestRandomnessOfVmap.MEAN + 0 * x
        ),
        "a tangent": lambda x: jvp(
            lambda m: ops.tanh_gaussian_rsample(m, TestRandomnessOfVmap.LOG_STD)[0],
            (TestRandomnessOfVmap.MEAN + 0 * x,),
            (torch.ones(4, 3),),
        )[1],
    }

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    def test_different(self, call):
        out = vmap(call, randomness="different")(torch.zeros(5))
        assert out.shape == (5, 4, 3)
        assert len(out.flatten().unique()) == 60

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    def test_same(self, call):
        out = vmap(call, randomness="same")(torch.zeros(5))
        # Plain torch rounds its vectors and the ends of rows differently: float32, sums of a few terms of order 1.
        torch.testing.assert_close(out, out[:1].expand(5, 4, 3), rtol=1e-5, atol=1e-6)
        assert len(out[0].flatten().unique()) == 12

    @pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
    def test_error(self, call):
        with pytest.raises(RuntimeError, match="randomness='same' or 'different'"):
            vmap(call)(torch.zeros(5))

    def test_nested(self):
        inner = functools.partial(vmap, randomness="different")
        out = vmap(lambda y: inner(lambda x: self.CALLS["none"](x + y))(torch.zeros(2)), randomness="same")(
            torch.zeros(5)
        )
        assert torch.equal(out, out[:1].expand(5, 2, 4, 3))
        assert len(out[0].flatten().unique()) == 24

    def test_one_state_for_each_call_is_refused(self):
        states = torch.stack([ops.philox_state(seed) for seed in range(3)])
        with pytest.raises(ValueError, match="generator: expected one state"):
            vmap(lambda s: ops.tanh_gaussian_rsample(self.MEAN, self.LOG_STD, generator=s), randomness="different")(
                states
            )


class TestPolyak:
    def test_vmap(self):
        targets, onlines = [normal(3, 4, 2, seed=1), normal(4, 3, seed=2)], [normal(3, 4, 2, seed=3), normal(4, seed=4)]
        expected = [each.clone() for each in targets]
        in_dims = ([0, 1], [0, None])
        vmap(lambda t, o: polyak_update_reference_(t, o, 0.1) or t[0], in_dims)(expected, onlines)
        vmap(lambda t, o: ops.polyak_update_(t, o, 0.1) or t[0], in_dims)(targets, onlines)
        torch.testing.assert_close(targets, expected, **CLOSE)

    def test_one_target_for_all_calls_is_refused(self):
        with pytest.raises(ValueError, match=r"target_params\[0\]: expected a tensor that torch.vmap maps"):
            vmap(lambda o: ops.polyak_update_(torch.zeros(3).double(), o, 0.1) or o)(normal(5, 3, seed=1))

    def test_shapes_that_do_not_fit_are_refused(self):
        with pytest.raises(ValueError, match=r"online_params\[0\]: expected shape"):
            vmap(lambda t, o: ops.polyak_update_(t, o, 0.1) or t)(normal(5, 3, seed=1), normal(5, 1, seed=2))

    @pytest.mark.parametrize("function", [ops.polyak_update_, polyak_update_reference_])
    def test_forward_mode(self, function):
        def moved(online):
            target = torch.zeros_like(online) + 0 * online
            function([target], [online], 0.25)
            return target

        online = normal(4, seed=1)
        value, tangent = jvp(moved, (online,), (torch.ones_like(online),))
        torch.testing.assert_close(value, 0.25 * online, **CLOSE)
        torch.testing.assert_close(tangent, torch.full_like(online, 0.25), **CLOSE)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(online, torch.ones_like(online))
            torch.testing.assert_close(forward_ad.unpack_dual(moved(dual)).tangent, torch.full_like(online, 0.25))
