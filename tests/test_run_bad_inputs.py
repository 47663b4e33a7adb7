"""A run within the caller's modes and threads, and one whose update is not finite."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bad_inputs import in_threads, modes
from learner_cases import assert_states_equal

from sacfast import SAC, cli
from sacfast.policy import Policy

SMALL: dict[str, Any] = {
    **{"num_envs": 2, "hidden_sizes": (16,), "batch_size": 16, "learning_starts": 20, "replay_capacity": 1000},
    **{"torch_threads": 1, "progress": False, "evaluation_episodes": 0},
}


def trained(**fields: Any) -> SAC:
    return SAC("Pendulum-v1", **{**SMALL, **fields}).learn(60)


@pytest.mark.parametrize("mode", modes().values(), ids=modes().keys())
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_the_callers_mode_does_not_reach_into_a_run(
    backend: str, mode: Callable[[], AbstractContextManager[Any]]
) -> None:
    expected = trained(backend=backend)
    with mode():
        model = trained(backend=backend)
        action = model.predict(np.ones(3, np.float32))
    assert_states_equal(model.learner.state_dict(), expected.learner.state_dict())
    np.testing.assert_array_equal(action, expected.predict(np.ones(3, np.float32)))
    assert isinstance(model.policy, Policy)


def test_two_runs_in_two_threads() -> None:
    models: dict[int, SAC] = {}
    in_threads(*(lambda seed=seed: models.update({seed: trained(seed=seed)}) for seed in (1, 2)))
    for seed in (1, 2):
        assert_states_equal(models[seed].learner.state_dict(), trained(seed=seed).learner.state_dict())


def test_a_reference_update_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    model = SAC("Pendulum-v1", **SMALL, backend="reference", critic_lr=5e9, run_dir=tmp_path)
    with pytest.raises(FloatingPointError, match=r"update \d+: .* is not finite; no parameter has taken it on"):
        model.learn(400)
    assert '"failed"' in (tmp_path / "summary.json").read_text()
    saved = SAC.load(tmp_path).learner.state_dict()
    assert_states_equal(saved, model.learner.state_dict())
    assert all(value.isfinite().all() for value in saved.values())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--batch-size 0", "batch_size: expected an int >= 1, got 0"),
        ("--total-timesteps 0", "total_timesteps: expected an int >= 1, got 0"),
        ("--replay-capacity 10", r"replay_capacity: expected at least batch_size \(256\), .* got 10"),
        ("--replay-capacity 1000000000000", r"capacity: 1000000000000 transitions .* need 36000\.00 GB, but cpu has"),
        (
            "--hidden-sizes 1000000 1000000",
            r"hidden_sizes: \(1000000, 1000000\) with .* need \d+\.\d\d GB, but cpu has",
        ),
        ("--batch-size 1000000000 --replay-capacity 1000000000", r"batch_size 1000000000 need \d+\.\d\d GB, but cpu"),
        ("--num-envs 10000000", "num_envs: expected an int in"),
    ],
)
def test_the_command_refuses_in_one_line(
    flags: str, said: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    arguments = f"train --env-id Pendulum-v1 --device cpu --run-dir {run_dir} {flags}"
    assert cli.main(arguments.split()) == cli.BAD_USAGE
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert re.search(said, output.err)
    assert not run_dir.exists()
