"""Say whether the installed sacfast works: run where a wheel was installed, away from the sources.

The ops, forward and backward, equal their twins in plain torch; the native modules load; no compiler is on PATH.
"""

import importlib
import shutil
import sys

import torch

from sacfast import _ext, ops
from sacfast.ops.polyak import polyak_update_reference_
from sacfast.ops.tanh_gaussian import tanh_gaussian_log_prob_reference, tanh_gaussian_rsample_reference
from sacfast.ops.twin_q import twin_q_target_reference


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
    )
    for fused, plain, tensors, others in pairs:
        actual, expected = (gradients(lambda *x, f=f, o=others: f(*x, *o), tensors) for f in (fused, plain))
        torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)  # squares of sums of six terms of order 10
    expected = average.clone()
    ops.polyak_update_(average, q1, 0.3)
    polyak_update_reference_(expected, q1, 0.3)
    torch.testing.assert_close(average, expected)
    info = _ext.info()
    print(
        f"Python {sys.version.split()[0]}, torch {torch.__version__}: autograd in {info['autograd']}, CPU kernels "
        f"{info['cpu_level']}, CUDA kernels {'loaded' if info['cuda_built'] else 'left out'}"
    )


main()
