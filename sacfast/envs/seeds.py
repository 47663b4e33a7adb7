"""Seeds for the environments of a run: no two are alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from sacfast.scalars import as_int

Purpose = Literal["training", "evaluation"]
# Seeds are a permutation of 31-bit indices, purpose | rank | environment (see `environment_seeds`).
_SEED_BITS = 31
_RANK_BITS = 12
ENV_BITS = 16
_PURPOSES: dict[Purpose, int] = {"training": 0, "evaluation": 1}


def environment_seeds(
    seed: int, num_envs: int, purpose: Purpose = "training", rank: int = 0, generation: int = 0
) -> list[int]:
    """Derive one seed for each environment, in [0, 2**31).

    For one `seed` and `generation` no two environments of any purpose and rank share a seed: their indices go
    through a permutation of the 31-bit numbers that `seed` and `generation` choose.

    Args:
        seed: the run's seed, >= 0.
        num_envs: environments, 1 to 65,536.
        purpose: "training" or "evaluation".
        rank: which of several processes, 0 to 4,095.
        generation: how many times this run has made its environments anew, >= 0.

    Raises:
        TypeError: an argument is not an int.
        ValueError: an argument is out of range.
    """
    seed = as_int("seed", seed, 0)
    num_envs = as_int("num_envs", num_envs, 1, 2**ENV_BITS)
    rank = as_int("rank", rank, 0, 2**_RANK_BITS - 1)
    generation = as_int("generation", generation, 0)
    if purpose not in _PURPOSES:
        raise ValueError(f"purpose: expected one of {sorted(_PURPOSES)}, got {purpose!r}")
    first = ((_PURPOSES[purpose] << _RANK_BITS) + rank) << ENV_BITS
    state = np.random.SeedSequence([seed, generation]).generate_state(2)
    multiplier, offset = int(state[0]) | 1, int(state[1])  # an odd multiplier permutes the numbers below 2**k
    return [(multiplier * index + offset) % 2**_SEED_BITS for index in range(first, first + num_envs)]


def checked_seeds(seeds: Sequence[int], num_envs: int) -> list[int]:
    """Return the seeds, or raise ValueError unless there are `num_envs` different ones in [0, 2**31)."""
    checked = [as_int("seed", value, 0, 2**_SEED_BITS - 1) for value in seeds]
    if len(checked) != num_envs or len(set(checked)) != num_envs:
        raise ValueError(f"seed: expected {num_envs} different seeds, got {checked}")
    return checked
