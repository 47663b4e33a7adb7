"""What the tests of the learners share: every option of the update, small configurations, and random transitions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from sacfast.config import SACConfig
from sacfast.replay import ReplayBuffer
from sacfast.types import Batch

O, A, B = 4, 3, 16  # noqa: E741 # the project's shape letters

OPTIONS: dict[str, dict[str, Any]] = {
    "v2": {},
    "alpha-fixed": {"alpha": 0.2},
    "alpha-zero": {"alpha": 0.0},
    "initial-alpha": {"initial_alpha": 0.3},
    "target-entropy": {"target_entropy": -0.5},
    "reward-scale": {"reward_scale": 5.0},
    "gamma": {"gamma": 0.5},
    "tau": {"tau": 0.3},
    "polyak-every-3": {"tau": 0.3, "target_update_interval": 3},
    "hard-every-1": {"target_update": "hard"},
    "hard-every-3": {"target_update": "hard", "target_update_interval": 3},
    "v1": {"value_network": True, "alpha": 1.0, "reward_scale": 5.0},
    "v1-alpha-zero": {"value_network": True, "alpha": 0.0},
    "v1-hard-every-3": {
        "value_network": True,
        "alpha": 0.2,
        "target_update": "hard",
        "target_update_interval": 3,
    },
    "deterministic": {"deterministic_policy": True, "alpha": 0.0},
    "deterministic-hard": {
        "deterministic_policy": True,
        "alpha": 0.0,
        "target_update": "hard",
        "target_update_interval": 3,
    },
    "deterministic-v1": {"deterministic_policy": True, "alpha": 0.0, "value_network": True},
    "linear": {"hidden_sizes": ()},
    "one-layer": {"hidden_sizes": (8,)},
    "three-layers": {"hidden_sizes": (8, 12, 8)},
    # The fresh actor's raw log-std lies within about +-0.5: these bounds cut some of it and pass some.
    "log-std-clamp": {"log_std_bounding": "clamp", "log_std_bounds": (-0.1, 0.1)},
    "log-std-tanh": {"log_std_bounding": "tanh", "log_std_bounds": (-5.0, 2.0)},
    "log-std-none": {"log_std_bounding": "none"},
    "optimisers": {
        "actor_lr": 1e-3,
        "critic_lr": 2e-3,
        "alpha_lr": 3e-3,
        "adam_betas": (0.5, 0.9),
        "adam_eps": 1e-3,
    },
    "v1-optimisers": {"value_network": True, "alpha": 0.2, "value_lr": 2e-3, "adam_eps": 1e-3},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def make_config(options: Mapping[str, Any] | None = None, **more: Any) -> SACConfig:
    return SACConfig(**{"hidden_sizes": (16, 8), "batch_size": B, **(options or {}), **more})


def random_batch(
    seed: int, dtype: torch.dtype = torch.float32, rows: int = B, observation_dim: int = O, action_dim: int = A
) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    return Batch(
        observation=torch.randn(rows, observation_dim, generator=generator).to(dtype),
        action=(2 * torch.rand(rows, action_dim, generator=generator) - 1).to(dtype),
        reward=torch.randn(rows, generator=generator).to(dtype),
        next_observation=torch.randn(rows, observation_dim, generator=generator).to(dtype),
        terminated=(torch.rand(rows, generator=generator) < 0.3).to(dtype),
    )


def random_noise(
    config: SACConfig, seed: int, dtype: torch.dtype, rows: int = B, action_dim: int = A
) -> dict[str, Tensor]:
    """The keyword arguments of `update_batch` that the configured update has a use for."""
    generator = torch.Generator().manual_seed(10_000 + seed)
    next_noise, noise = torch.randn(2, rows, action_dim, generator=generator).to(dtype)
    if config.deterministic_policy:
        return {}
    return {"noise": noise} if config.value_network else {"next_noise": next_noise, "noise": noise}


def random_replay(length: int = 64, seed: int = 0, observation_dim: int = O, action_dim: int = A) -> ReplayBuffer:
    """A full buffer of random transitions; the same arguments give the same transitions and the same minibatches."""
    replay = ReplayBuffer(length, observation_dim, action_dim, seed=seed)
    batch = random_batch(seed, rows=length, observation_dim=observation_dim, action_dim=action_dim)
    replay.add(*batch[:4], batch.terminated.bool())
    return replay


def assert_states_equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> None:
    """The same names in the same order, and the same bits."""
    assert list(left) == list(right)
    for name in left:
        assert left[name].dtype == right[name].dtype, name
        assert left[name].shape == right[name].shape, name
        assert left[name].numpy().tobytes() == right[name].numpy().tobytes(), name  # a NaN equals itself
