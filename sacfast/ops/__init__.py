"""Fused SAC operations for PyTorch: each runs on CPU and CUDA, under autograd and torch.compile.

Beside every op stands its plain-torch twin (`..._reference`, in the op's own module): the oracle of the tests and
the baseline of the benchmarks.
"""

from sacfast import _ext
from sacfast.ops.adam_polyak import adam_polyak_
from sacfast.ops.categorical import categorical_cross_entropy, categorical_target
from sacfast.ops.moments import normalize, update_running_moments_
from sacfast.ops.polyak import polyak_update_
from sacfast.ops.quantile import quantile_huber_loss, truncated_quantile_target
from sacfast.ops.tanh_gaussian import philox_state, tanh_gaussian_log_prob, tanh_gaussian_rsample
from sacfast.ops.twin_q import twin_q_target

if _ext.autograd_library() is None:
    from sacfast.ops import _autograd  # noqa: F401

__all__ = [
    "adam_polyak_",
    "categorical_cross_entropy",
    "categorical_target",
    "normalize",
    "philox_state",
    "polyak_update_",
    "quantile_huber_loss",
    "tanh_gaussian_log_prob",
    "tanh_gaussian_rsample",
    "truncated_quantile_target",
    "twin_q_target",
    "update_running_moments_",
]
