"""Golden hashes: the same build gives the same, a change is found, and every setting is varied."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.golden import compare, report
from benchmarks.golden_cases import CASES, NOT_HASHED, OTHERS, Case, attempt, run, sha256
from sacfast import SACConfig

TINY = Case({"hidden_sizes": (4,), "batch_size": 4}, observation_dim=2, action_dim=1, steps=5)


@pytest.fixture(autouse=True)
def _threads_restored() -> Any:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_same_case_twice_is_equal() -> None:
    found = compare({"tiny": attempt(lambda: run(TINY))}, {"tiny": attempt(lambda: run(TINY))})
    assert found.equal == ["tiny"]
    assert found.is_equal


def test_one_changed_learning_rate_is_found() -> None:
    changed = dataclasses.replace(TINY, fields={**TINY.fields, "alpha_lr": 3.001e-4})
    found = compare({"tiny": {"hashes": run(TINY)}}, {"tiny": {"hashes": run(changed)}})
    assert not found.is_equal
    assert "log_alpha" in found.different["tiny"]
    assert "DIFFERS  tiny" in report(found, "base")


def test_parameters_targets_optimisers_and_metrics_are_hashed() -> None:
    names = " ".join(run(TINY))
    for part in ("actor", "critic", "target_critic", "exp_avg", "log_alpha", "metrics of call 1/critic_loss"):
        assert part in names


def test_every_setting_is_varied_by_a_case_or_named_with_a_reason() -> None:
    default = SACConfig()
    varied = {
        name
        for case in CASES.values()
        for name, value in case.config().items()
        if value != getattr(default, name) and case.fields.get(name) is not None
    }
    assert varied | set(NOT_HASHED) == {field.name for field in dataclasses.fields(SACConfig)}
    assert not varied & set(NOT_HASHED)


def test_all_cases_have_settings_that_are_allowed() -> None:
    for case in CASES.values():
        SACConfig(**case.config())
        assert case.steps > 1


def test_each_option_changes_the_hashes() -> None:
    """A case that gave the bits of the default would not watch over its option."""
    options = {name: case for name, case in CASES.items() if name.startswith("option/")}
    hashes = {name: tuple(sorted(run(dataclasses.replace(case, steps=7)).items())) for name, case in options.items()}
    # The default clamps to (-20, 2), beyond the raw log-std of fresh actors: to leave it unbounded is the same.
    assert hashes.pop("option/log-std-none") == hashes["option/v2"]
    assert len(set(hashes.values())) == len(hashes)


@pytest.mark.parametrize("name", OTHERS)
def test_the_other_cases_repeat(name: str) -> None:
    first = OTHERS[name]()
    assert first
    assert first == OTHERS[name]()


def test_a_hash_sees_every_bit_the_type_and_the_shape() -> None:
    value = np.zeros(3, np.float32)
    other = value.copy()
    other[2] = -0.0
    hashes = [sha256(each) for each in (value, other, value.astype(np.float64), value.reshape(3, 1), value[:2])]
    assert len(set(hashes)) == 5
    assert sha256(torch.from_numpy(value)) == hashes[0]


def test_a_case_that_only_the_new_build_knows_is_new() -> None:
    before = {"a": {"hashes": {"x": "1"}}, "b": {"cannot": "TypeError: no such field"}}
    after = {"a": {"hashes": {"x": "1"}}, "b": {"hashes": {"x": "2"}}, "c": {"hashes": {"x": "3"}}}
    found = compare(before, after)
    assert found.is_equal
    assert found.new == {"b": "TypeError: no such field", "c": "has no such case"}


@pytest.mark.parametrize("after", [{}, {"b": {"cannot": "ValueError: broken"}}, {"b": {"hashes": {}}}])
def test_what_the_new_build_has_lost_is_a_difference(after: dict[str, Any]) -> None:
    found = compare({"a": {"hashes": {"x": "1"}}, "b": {"hashes": {"y": "2"}}}, {"a": {"hashes": {"x": "1"}}, **after})
    assert list(found.different) == ["b"]
    assert not found.is_equal


def test_a_comparison_of_nothing_is_not_equal() -> None:
    found = compare({"a": {"cannot": "ImportError"}}, {"a": {"hashes": {"x": "1"}}})
    assert not found.is_equal
    assert "NOT compared with base" in report(found, "base")
    assert not compare({"a": {"cannot": "no"}}, {"a": {"cannot": "no"}}).is_equal
