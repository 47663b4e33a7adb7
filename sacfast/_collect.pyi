# What csrc/collect/collect_bind.cpp defines. n rows, O observation size, A action size.
from collections.abc import Sequence
from typing import Any

import numpy as np

_Array = np.ndarray[Any, Any]
_Float32Array = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
_Float64Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

class Actor:
    """Acts by a multilayer perceptron with relu: weight [outputs, inputs] and bias [outputs] of each layer, float32.

    The last layer's outputs are mean and raw log_std. `noise_state`: int64 [2], seed and offset of the noise; None: the
    mode. Parameters are read, and the state is advanced, where they lie.
    """

    def __init__(
        self,
        parameters: Sequence[_Array],
        noise_state: _Array | None,
        log_std_bounding: str,
        log_std_low: float,
        log_std_high: float,
        most_rows: int,
    ) -> None: ...
    def act(self, observation: Any) -> _Float32Array | None:
        """Return actions [n, A] float32 for a dense float32 [n, O], n <= most_rows; None for anything else."""

def flatten(leaves: list[_Array], rows: int, dimension: int) -> _Float32Array | None:
    """Return float32 [rows, dimension]: the columns of all leaves; None unless they are dense, float32 or float64."""

def uneventful(
    observation: _Array,
    reward: _Array,
    terminated: _Array,
    truncated: _Array,
    env_id: _Array,
    starting: _Array,
    returns: _Array,
    lengths: _Array,
) -> bool:
    """Whether a step is finite, without reset rows, and ends no episode; then `returns` and `lengths` are advanced."""

def rescale(action: Any, rows: int, action_range: _Array, limit: float) -> tuple[_Float32Array, _Float64Array] | None:
    """Return (clipped float32 [rows, A], native float64 [rows, A]), or None for anything but actions within `limit`.

    `action_range`, float64 [4, A]: native = scale * action + offset, clipped to [low, high].
    """

def row_widths(observation_dim: int, action_dim: int) -> tuple[int, int, int, int, int]:
    """Return how many columns each field of a row of the replay buffer has: x, a, reward, x', terminated."""

def write_rows(
    ring: _Array,
    position: int,
    observation: Any,
    action: Any,
    reward: Any,
    next_observation: Any,
    terminated: Any,
    action_limit: float,
) -> int:
    """Write n transitions as rows of `ring` from `position` on, around its end; return n, or -1: none written.

    They are those of which every value is finite and every |action| at most `action_limit`.
    """
