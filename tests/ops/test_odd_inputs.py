"""Tensors of unusual kinds, and modes of torch that ops seldom meet: equal to the plain twin, or refused."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sacfast import ops
from sacfast.ops.polyak import polyak_update_reference_
from sacfast.ops.tanh_gaussian import tanh_gaussian_log_prob_reference, tanh_gaussian_rsample_reference
from sacfast.ops.twin_q import twin_q_target_reference


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


class Subclass(Tensor):
    pass


UNUSUAL = {
    "negated view": torch._neg_view(normal(4, 3, seed=1)),
    "zero tensor": torch._efficientzerotensor((4, 3)),
    "subclass": normal(4, 3, seed=1).as_subclass(Subclass),
    "expanded": normal(1, 3, seed=1).expand(4, 3),
    "transposed": normal(3, 4, seed=1).t(),
    "one column of a wider matrix": normal(4, 9, seed=1)[:, ::3],
}
UNSUPPORTED = {
    "sparse": normal(4, 3).to_sparse(),
    "nested": torch.nested.nested_tensor([normal(3), normal(3)]),
    "mkldnn": normal(4, 3).to_mkldnn(),
    "an array": normal(4, 3).numpy(),
    "a number": 1.0,
}
# Three terms of order 10 in float32, against plain torch in float32 too.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def assert_same(actual, expected) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert type(a) is type(e)
        torch.testing.assert_close(a, e, **CLOSE)


@pytest.mark.parametrize("tensor", UNUSUAL.values(), ids=UNUSUAL)
class TestUnusualTensors:
    def test_rsample(self, tensor):
        for position in range(3):
            arguments = [normal(4, 3, seed=seed) for seed in (2, 3, 4)]
            arguments[position] = tensor
            assert_same(ops.tanh_gaussian_rsample(*arguments), tanh_gaussian_rsample_reference(*arguments))

    def test_log_prob(self, tensor):
        for position in range(3):
            arguments = [normal(4, 3, seed=seed) for seed in (2, 3, 4)]
            arguments[position] = tensor
            assert_same([ops.tanh_gaussian_log_prob(*arguments)], [tanh_gaussian_log_prob_reference(*arguments)])

    def test_target(self, tensor):
        for position in range(5):
            arguments = [normal(4, seed=seed) for seed in (2, 3, 4, 5, 6)]
            arguments[position] = tensor[:, 0]
            assert_same([ops.twin_q_target(*arguments, 0.2, 0.9)], [twin_q_target_reference(*arguments, 0.2, 0.9)])

    def test_polyak(self, tensor):
        actual, expected = normal(4, 3), normal(4, 3)
        ops.polyak_update_(actual, tensor, 0.1)
        polyak_update_reference_(expected, tensor, 0.1)
        assert_same([actual], [expected])


@pytest.mark.parametrize("tensor", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_refused(tensor):
    dense, column = normal(4, 3), normal(4)
    for call in (
        lambda: ops.tanh_gaussian_rsample(tensor, dense, dense),
        lambda: ops.tanh_gaussian_rsample(dense, dense, tensor),
        lambda: ops.tanh_gaussian_log_prob(dense, dense, tensor),
        lambda: ops.twin_q_target(column, column, tensor, column, column, 0.2, 0.9),
        lambda: ops.polyak_update_([dense.clone()], [tensor], 0.1),
    ):
        with pytest.raises((NotImplementedError, RuntimeError, TypeError, ValueError)):
            call()


def test_none_is_named():
    with pytest.raises(TypeError, match="mean: expected a tensor, got None"):
        ops.tanh_gaussian_rsample(None, normal(4, 3))


class TestMeta:
    """Where no kernel runs, what does not fit is refused all the same."""

    def test_shapes(self):
        mean, column = normal(4, 3).to("meta"), normal(4).to("meta")
        action, log_prob = ops.tanh_gaussian_rsample(mean, mean, mean)
        assert (action.shape, log_prob.shape) == ((4, 3), (4,))
        assert ops.tanh_gaussian_log_prob(mean, mean, mean).shape == (4,)
        assert ops.twin_q_target(*[column] * 5, 0.2, 0.9).shape == (4,)

    @pytest.mark.parametrize("position", range(1, 5))
    def test_a_target_does_not_broadcast(self, position):
        arguments = [normal(4).to("meta") for _ in range(5)]
        arguments[position] = arguments[position][:, None]
        with pytest.raises(ValueError, match=r"expected shape \[4\] like reward, got \[4, 1\]"):
            ops.twin_q_target(*arguments, 0.2, 0.9)

    def test_what_does_not_fit(self):
        mean, column = normal(4, 3).to("meta"), normal(4).to("meta")
        with pytest.raises(TypeError, match="log_std: expected dtype"):
            ops.tanh_gaussian_rsample(mean, mean.double())
        with pytest.raises(ValueError, match="log_std_bounding: expected"):
            ops.tanh_gaussian_rsample(mean, mean, log_std_bounding="cut")
        with pytest.raises(ValueError, match="action_scale: expected shape"):
            ops.tanh_gaussian_rsample(mean, mean, action_scale=column)
        with pytest.raises(ValueError, match="alpha: expected shape"):
            ops.twin_q_target(*[column] * 5, column[:2], 0.9)
        with pytest.raises(ValueError, match=r"online_params\[0\]: expected shape"):
            ops.polyak_update_([mean], [mean[:1]], 0.1)


class TestModes:
    MEAN, LOG_STD, NOISE = normal(4, 3, seed=1), normal(4, 3, seed=2), normal(4, 3, seed=3)

    def gradient(self, function) -> Tensor:
        mean = self.MEAN.clone().requires_grad_()
        action, log_prob = function(mean, self.LOG_STD, self.NOISE)
        (action.sum() + log_prob.sum()).backward()
        return mean.grad

    def assert_gradients_are_the_same(self) -> None:
        assert_same([self.gradient(ops.tanh_gaussian_rsample)], [self.gradient(tanh_gaussian_rsample_reference)])

    def test_deterministic(self):
        torch.use_deterministic_algorithms(True)
        try:
            self.assert_gradients_are_the_same()
        finally:
            torch.use_deterministic_algorithms(False)

    def test_anomaly_detection(self):
        with torch.autograd.detect_anomaly(check_nan=True):
            self.assert_gradients_are_the_same()

    def test_hooks_of_saved_tensors(self):
        with torch.autograd.graph.saved_tensors_hooks(lambda x: x.double(), lambda x: x.float()):
            self.assert_gradients_are_the_same()

    @pytest.mark.parametrize("use_reentrant", [False, True])
    def test_checkpointing_draws_the_same_noise_again(self, use_reentrant):
        mean = self.MEAN.clone().requires_grad_()
        action = checkpoint(lambda x: ops.tanh_gaussian_rsample(x, self.LOG_STD)[0], mean, use_reentrant=use_reentrant)
        action.sum().backward()
        torch.testing.assert_close(mean.grad, 1 - action.detach().square(), **CLOSE)

    def test_export(self):
        class Module(torch.nn.Module):
            def forward(self, mean, log_std, noise):
                return ops.tanh_gaussian_rsample(mean, log_std, noise)

        program = torch.export.export(Module(), (self.MEAN, self.LOG_STD, self.NOISE))
        arguments = self.MEAN + 1, self.LOG_STD, self.NOISE
        assert_same(program.module()(*arguments), tanh_gaussian_rsample_reference(*arguments))


def test_numpy_numbers():
    column = normal(4)
    expected = ops.twin_q_target(*[column] * 5, 0.5, 0.25)
    assert torch.equal(ops.twin_q_target(*[column] * 5, np.float32(0.5), np.float64(0.25)), expected)
    assert ops.philox_state(np.int64(-1)).tolist() == ops.philox_state(-1).tolist() == [2**63 - 1, 0]
    with pytest.raises(TypeError):
        ops.philox_state(1.5)
