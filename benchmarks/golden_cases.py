"""What is hashed of a build of sacfast: a table of cases, run by one process for each instruction set.

    PYTHONPATH=ROOT python -P benchmarks/golden_cases.py

It runs as a file, with the sacfast of any checkout, and so imports nothing else of this repository. Prints JSON: for
each case {"hashes": {tensor: sha256 of its bytes}}, or {"cannot": why} where this build has no such case.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

TRANSITIONS = 500
ADDED_AT_ONCE = 37  # does not divide the capacity: some additions go around the ring's end


@dataclass(frozen=True)
class Case:
    """Updates of one or several learners, with fields of `SACConfig` other than the default."""

    fields: Mapping[str, Any] = field(default_factory=dict)
    observation_dim: int = 5
    action_dim: int = 3
    steps: int = 100
    threads: int = 1
    learners: int = 1
    backend: str = "fused"

    def config(self) -> dict[str, Any]:
        """Return the fields: small networks where the case is not about their size."""
        return {"hidden_sizes": (33, 20), "batch_size": 24, **self.fields}


_V1 = {"value_network": True, "alpha": 0.2}
_DETERMINISTIC = {"deterministic_policy": True, "alpha": 0.0}
_HARD = {"target_update": "hard", "target_update_interval": 3}
OPTIONS: dict[str, dict[str, Any]] = {
    "v2": {},
    "alpha-fixed": {"alpha": 0.2},
    "alpha-zero": {"alpha": 0.0},
    "initial-alpha": {"initial_alpha": 0.3},
    "target-entropy": {"target_entropy": -0.5},
    "reward-scale": {"reward_scale": 5.0},
    "gamma": {"gamma": 0.5},
    "gamma-zero": {"gamma": 0.0},
    "tau": {"tau": 0.3},
    "polyak-every-3": {"tau": 0.3, "target_update_interval": 3},
    "hard-every-1": {"target_update": "hard"},
    "hard-every-3": _HARD,
    "v1": _V1,
    "v1-alpha-zero": {**_V1, "alpha": 0.0},
    "v1-hard": {**_V1, **_HARD},
    "v1-reward-scale": {**_V1, "reward_scale": 5.0},
    "v1-value-lr": {**_V1, "value_lr": 2e-3},
    "deterministic": _DETERMINISTIC,
    "deterministic-hard": {**_DETERMINISTIC, **_HARD},
    "deterministic-v1": {**_DETERMINISTIC, "value_network": True},
    "log-std-clamp": {"log_std_bounds": (-0.1, 0.1)},
    "log-std-tanh": {"log_std_bounding": "tanh", "log_std_bounds": (-5.0, 2.0)},
    "log-std-none": {"log_std_bounding": "none", "log_std_bounds": (-0.1, 0.1)},  # bounds that would be seen
    "v1-log-std-tanh": {**_V1, "log_std_bounding": "tanh"},
    "actor-lr": {"actor_lr": 1e-3},
    "critic-lr": {"critic_lr": 2e-3},
    "alpha-lr": {"alpha_lr": 3e-3},
    "adam-betas": {"adam_betas": (0.5, 0.9)},
    "adam-eps": {"adam_eps": 1e-3},
}
# Hidden sizes, batch size, observation size, action size, updates: around the edges of vectors (4, 8, 16 floats), of
# panels and of the blocks of a batch, and the sizes that people train with.
SIZES: tuple[tuple[tuple[int, ...], int, int, int, int], ...] = (
    ((), 16, 5, 3, 100),
    ((8,), 1, 1, 1, 100),
    ((1,), 2, 3, 1, 100),
    ((15,), 15, 4, 2, 100),
    ((16, 16), 16, 8, 8, 100),
    ((17, 31), 17, 7, 5, 100),
    ((8, 12, 8), 31, 11, 3, 100),
    ((32, 33, 5, 40), 33, 9, 4, 100),
    ((64, 64), 64, 17, 6, 100),
    ((63, 65), 63, 16, 7, 100),
    ((48, 47), 65, 27, 8, 100),
    ((40, 130), 127, 67, 17, 50),
    ((128, 128), 128, 67, 21, 50),
    ((129, 96), 129, 33, 6, 30),
    ((256, 256), 256, 17, 6, 20),
    ((256, 256), 255, 348, 17, 5),
    ((400, 300), 100, 24, 4, 20),
    ((1024, 1024), 64, 17, 6, 2),
)
# The fields that no case here varies, and why.
NOT_HASHED = {
    "utd_ratio": "the trainer counts with it; no update reads it",
    "learning_starts": "the trainer counts with it; no update reads it",
    "replay_capacity": "the trainer makes a buffer of that size; no update reads it",
    "exploration_noise": "a setting of the acting policy: `acting`",
    "matmul_precision": "on a GPU only: the cases of tests/csrc/test_kernels.cpp",
}


def _cases() -> dict[str, Case]:
    cases = {f"option/{name}": Case(fields) for name, fields in OPTIONS.items()}
    for hidden, batch, observation, action, steps in SIZES:
        name = f"{'-'.join(map(str, hidden)) or 'linear'}/B{batch}/O{observation}/A{action}"
        for threads in (1, 2):
            fields = {"hidden_sizes": hidden, "batch_size": batch}
            cases[f"size/{name}/{threads}"] = Case(fields, observation, action, steps, threads)
    for name, fields in {"v1": _V1, "deterministic": _DETERMINISTIC, "hard": _HARD}.items():
        cases[f"threads/{name}/2"] = Case(fields, threads=2)
        cases[f"learners/{name}/3"] = Case(fields, learners=3, steps=40)
    cases["learners/v2/3"] = Case(learners=3, steps=40)
    for name, more in {"fused-ops": {}, "plain": {"fused_ops": False}, "tanh": {"activation": "tanh"}}.items():
        cases[f"reference/{name}"] = Case(more, backend="reference", steps=20)
    cases["reference/v1"] = Case(_V1, backend="reference", steps=20)
    return cases


CASES = _cases()


def sha256(value: Any) -> str:
    """Return the hash of the bytes of a tensor, an array or a number."""
    if isinstance(value, Tensor):
        value = value.detach().contiguous().numpy()
    array = np.ascontiguousarray(value)
    return hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()


def run(case: Case) -> dict[str, str]:
    """Make the updates; return the hashes of everything a learner holds, and of the metrics."""
    from sacfast import SACConfig, make_learner

    torch.set_num_threads(case.threads)
    config = SACConfig(**case.config())
    sizes = case.observation_dim, case.action_dim
    learners = [make_learner(*sizes, config, backend=case.backend, seed=seed) for seed in range(case.learners)]
    replays = [filled_replay(*sizes, seed) for seed in range(case.learners)]
    hashes: dict[str, str] = {}
    # One update alone, and then many in a call: the first are also found where the rest blurs what has changed.
    for call, steps in enumerate((1, case.steps - 1)):
        for number, metrics in enumerate(_update(learners, replays, steps)):
            for name, value in metrics.items():
                hashes[f"{number}/metrics of call {call}/{name}"] = sha256(float(value))
    for number, learner in enumerate(learners):
        if learner.gradient_updates != case.steps:
            raise RuntimeError(f"expected {case.steps} updates, got {learner.gradient_updates}")
        hashes |= {f"{number}/{name}": sha256(value) for name, value in learner.state_dict().items()}
    return hashes


def _update(learners: list[Any], replays: list[Any], steps: int) -> list[Mapping[str, float]]:
    if len(learners) == 1:
        return [learners[0].update(replays[0], steps)]
    from sacfast.learner import side_by_side

    outcomes = side_by_side(learners).update({number: (replay, steps) for number, replay in enumerate(replays)})
    for outcome in outcomes.values():
        if isinstance(outcome, Exception):
            raise outcome
    return list(outcomes.values())


def transitions(count: int, observation_dim: int, action_dim: int, seed: int) -> tuple[np.ndarray[Any, Any], ...]:
    """Return observation, action, reward, next observation and terminated of random transitions."""
    random = np.random.default_rng(seed)

    def normal(*shape: int) -> Any:
        return random.standard_normal((count, *shape), dtype=np.float32)

    observation, next_observation = normal(observation_dim), normal(observation_dim)
    return observation, np.tanh(normal(action_dim)), normal(), next_observation, random.random(count) < 0.2


def filled_replay(observation_dim: int, action_dim: int, seed: int) -> Any:
    """Return a buffer that has been filled around its end."""
    from sacfast import ReplayBuffer

    replay = ReplayBuffer(TRANSITIONS - 100, observation_dim, action_dim, seed=seed)
    fields = transitions(TRANSITIONS, observation_dim, action_dim, seed)
    for first in range(0, TRANSITIONS, ADDED_AT_ONCE):
        replay.add(*(each[first : first + ADDED_AT_ONCE] for each in fields))
    return replay


def replay_rows() -> dict[str, str]:
    """Hash the rows of replay buffers, and which of them are drawn."""
    hashes = {}
    for observation_dim, action_dim in ((1, 1), (5, 3), (17, 6), (348, 17)):
        replay = filled_replay(observation_dim, action_dim, seed=3)
        name = f"O{observation_dim}/A{action_dim}"
        hashes |= {f"{name}/rows": sha256(replay.rows), f"{name}/draw": sha256(replay.draw(100))}
        for part, value in zip(("x", "a", "r", "x'", "terminated"), replay.sample(33), strict=True):
            hashes[f"{name}/sample/{part}"] = sha256(value)
    return hashes


def acting() -> dict[str, str]:
    """Hash actions, of one and of several observations, stochastic, deterministic and with exploration noise."""
    from sacfast import SACConfig, make_learner
    from sacfast.policy import Policy

    torch.set_num_threads(1)
    kinds: dict[str, dict[str, Any]] = {
        "stochastic": {},
        "tanh bounds": {"log_std_bounding": "tanh", "log_std_bounds": (-5.0, 2.0)},
        "no bounds": {"log_std_bounding": "none"},
        "mode": {"deterministic": True},
        "exploration": {"deterministic": True, "exploration_noise": 0.3},
    }
    hashes = {}
    for hidden, observation_dim, action_dim in (((), 3, 1), ((33, 20), 5, 3), ((256, 256), 17, 6), ((64, 65), 348, 17)):
        actor = make_learner(observation_dim, action_dim, SACConfig(hidden_sizes=hidden), seed=1).actor
        for kind, fields in kinds.items():
            policy = Policy(actor, seed=2, **fields)
            for rows in (1, 2, 7, 16, 33, 100):
                observation = transitions(rows, observation_dim, 1, seed=rows)[0]
                hashes[f"{hidden}/{kind}/{rows}"] = sha256(policy.act(observation))
    return hashes


def collecting() -> dict[str, str]:
    """Hash what the native calls of a step return beside acting and the rows: columns and scaled actions."""
    from sacfast import collect

    leaves = [transitions(13, size, 1, seed=size)[0] for size in (1, 5, 17)]
    action = transitions(13, 1, 6, seed=1)[1]
    low, high = np.linspace(-2, -1, 6), np.linspace(1, 3, 6)
    action_range = np.stack([(high - low) / 2, (high + low) / 2, low, high])
    clipped, native = collect.rescale(action, 13, action_range, 1.0)
    flat = collect.flatten([leaves[0].astype(np.float64), *leaves[1:]], 13, 23)
    return {"flatten": sha256(flat), "clipped": sha256(clipped), "native": sha256(native)}


def op_values() -> dict[str, str]:
    """Hash the values of the ops and, where there are some, the gradients."""
    from sacfast import ops

    torch.set_num_threads(1)
    hashes: dict[str, str] = {}
    for dtype in (torch.float32, torch.float64):
        for rows, cols in ((1, 1), (17, 5), (256, 6), (33, 51)):
            _hash_ops(
                ops, hashes, f"{dtype}/{rows}x{cols}", lambda seed, *shape, d=dtype: _normal(seed, shape, d), rows, cols
            )
    return hashes


def _normal(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def _hash_ops(ops: Any, hashes: dict[str, str], name: str, normal: Callable[..., Tensor], rows: int, cols: int) -> None:
    def keep(op: str, outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...] = ()) -> None:
        gradients = torch.autograd.grad([each.sum() for each in outputs], inputs) if inputs else ()
        for number, value in enumerate((*outputs, *gradients)):
            hashes[f"{name}/{op}/{number}"] = sha256(value)

    mean, log_std = normal(1, rows, cols).requires_grad_(), normal(2, rows, cols).requires_grad_()
    for bounding in ("none", "clamp", "tanh"):
        sample = ops.tanh_gaussian_rsample(mean, log_std, normal(3, rows, cols), log_std_bounding=bounding)
        keep(f"rsample {bounding}", sample, (mean, log_std))
    pre_tanh = normal(4, rows, cols).requires_grad_()
    keep("log_prob", (ops.tanh_gaussian_log_prob(pre_tanh, mean, log_std),), (pre_tanh, mean, log_std))
    reward, terminated, log_prob = normal(5, rows), (normal(6, rows) > 1).to(mean.dtype), normal(7, rows)
    keep("twin_q_target", (ops.twin_q_target(reward, terminated, normal(8, rows), log_prob, log_prob, 0.2, 0.99),))
    target, online = normal(9, rows, cols), normal(10, rows, cols)
    ops.polyak_update_([target], [online], 0.1)
    keep("polyak", (target,))
    state = [normal(seed, rows, cols) for seed in (11, 12, 13, 14, 15)]
    state[3] = state[3].square()
    ops.adam_polyak_(*([each] for each in state), step=3, lr=1e-2)
    keep("adam_polyak", tuple(state))
    quantiles = normal(16, rows, 2, cols).requires_grad_()
    keep("quantile_huber_loss", (ops.quantile_huber_loss(quantiles, normal(17, rows, cols)),), (quantiles,))
    if cols > 1:
        soft = normal(18, rows, cols).softmax(-1)
        keep("cross_entropy", (ops.categorical_cross_entropy(mean, soft),), (mean,))
        logits = normal(19, rows, cols), normal(20, rows, cols)
        keep(
            "categorical_target",
            (ops.categorical_target(reward, terminated > 0, *logits, log_prob, 0.2, 0.99, -5.0, 5.0),),
        )
        truncated = ops.truncated_quantile_target(
            reward, terminated > 0, normal(21, rows, 2, cols), log_prob, 1, 0.2, 0.99
        )
        keep("truncated_target", (truncated,))


OTHERS: dict[str, Callable[[], dict[str, str]]] = {
    "replay": replay_rows,
    "acting": acting,
    "collecting": collecting,
    "ops": op_values,
}


def attempt(function: Callable[[], dict[str, str]]) -> dict[str, Any]:
    """Return the hashes, or why this build has no such case."""
    try:
        return {"hashes": function()}
    except Exception as error:  # whatever older or newer sources raise: the comparison judges it
        return {"cannot": f"{type(error).__name__}: {error}"}


def main() -> int:
    """Run every case."""
    cores = len(os.sched_getaffinity(0))
    results = {
        name: attempt(lambda case=case: run(case))  # type: ignore[misc]
        if case.threads <= cores
        else {"skipped": f"needs {case.threads} cores, this process may use {cores}"}
        for name, case in CASES.items()
    }
    results |= {name: attempt(function) for name, function in OTHERS.items()}
    json.dump(results, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
