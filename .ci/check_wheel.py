"""Say whether the installed sacfast works: run where a wheel was installed, away from the sources.

The ops, forward and backward, equal their twins in plain torch; the native modules load; no compiler is on PATH.
"""

import copy
import importlib
import shutil
import sys

import torch

from sacfast import _ext, ops
from sacfast.ops.adam_polyak import adam_polyak_reference_
from sacfast.ops.categorical import categorical_cross_entropy_reference, categorical_target_reference
from sacfast.ops.polyak import polyak_update_reference_
from sacfast.ops.quantile import quantile_huber_loss_reference, truncated_quantile_target_reference
from sacfast.ops.tanh_gaussian import tanh_gaussian_log_prob_reference, tanh_gaussian_rsample_reference
from sacfast.ops.twin_q import twin_q_target_reference

ADAM = {"step": 3, "lr": 0.01, "tau": 0.3}


def gradients(function, tensors):
    """Return a function's outputs and the gradients of their squared sums."""
    leaves = [each.clone().requires_grad_() for each in tensors]
    out = function(*leaves)
    out = out if isinstance(out, tuple) else (out,)
    return [*out, *torch.autograd.grad(sum(each.square().sum() for each in out), leaves)]


def main() -> None:
    """Compare each op with its twin, and print what the libraries are."""
    compilers = [name for name in ("c++", "g++", "gcc", "clang++", "nvcc") if shutil.which(name)]
    assert not compilers, f"PATH: expected no compiler, got {compilers}"
    assert "site-packages" in _ext.__file__, f"expected the installed sacfast, got {_ext.__file__}"
    for module in ("_C", "_collect"):
        importlib.import_module(f"sacfast.{module}")
    mean, log_std, noise = torch.randn(3, 256, 6).unbind()
    q1, q2, log_prob, reward, average = torch.randn(5, 256).unbind()
    pairs = (
        (ops.tanh_gaussian_rsample, tanh_gaussian_rsample_reference, (mean, log_std), (noise,)),
        (ops.tanh_gaussian_log_prob, tanh_gaussian_log_prob_reference, (noise, mean, log_std), ()),
        (
            lambda *qs: ops.twin_q_target(reward, reward > 1, *qs, 0.2, 0.99),
            lambda *qs: twin_q_target_reference(reward, reward > 1, *qs, 0.2, 0.99),
            (q1, q2, log_prob),
            (),
        ),
        (ops.categorical_cross_entropy, categorical_cross_entropy_reference, (mean,), (log_std.softmax(-1),)),
        (ops.quantile_huber_loss, quantile_huber_loss_reference, (mean,), (log_std,)),
    )
    for fused, plain, tensors, others in pairs:
        actual, expected = (gradients(lambda *x, f=f, o=others: f(*x, *o), tensors) for f in (fused, plain))
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)  # squares of sums of six terms of order 10
    done = reward > 1
    targets = (
        (ops.categorical_target, categorical_target_reference, (mean, log_std, log_prob, 0.2, 0.99, -5.0, 5.0)),
        (ops.truncated_quantile_target, truncated_quantile_target_reference, (noise[:, None], log_prob, 2, 0.2, 0.99)),
    )
    for fused, plain, arguments in targets:
        torch.testing.assert_close(fused(reward, done, *arguments), plain(reward, done, *arguments))
    steps = (
        (ops.polyak_update_, polyak_update_reference_, (average, q1), {"tau": 0.3}),
        (ops.adam_polyak_, adam_polyak_reference_, [[each] for each in (q1, q2, reward, reward.exp(), average)], ADAM),
    )
    for fused, plain, arguments, options in steps:
        actual, expected = copy.deepcopy(arguments), copy.deepcopy(arguments)
        fused(*actual, **options)
        plain(*expected, **options)
        torch.testing.assert_close(actual, expected)
    info = _ext.info()
    print(
        f"Python {sys.version.split()[0]}, torch {torch.__version__}: autograd in {info['autograd']}, CPU kernels "
        f"{info['cpu_level']}, CUDA kernels {'loaded' if info['cuda_built'] else 'left out'}"
    )


main()
