"""The history of speed: what a row is made of, and that none is made of measurements that do not belong together."""

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import history

RESULTS = history.HISTORY.parent
ROWS = [json.loads(line) for line in history.HISTORY.read_text().splitlines()]


def result(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return content


def test_a_row_has_the_ratios_and_shares_of_all_results_and_where_they_are_from() -> None:
    update, train = result("update_cpu.json"), result("train_cpu.json")
    row = history.row_of([update, train])
    assert row["commit"] == update["source"]["commit"]
    assert row["processor"] == update["hardware"]["processor"]
    assert row["date"] == max(update["date"], train["date"])
    assert row["commands"] == [update["command"], train["command"]]
    assert row["load_average"] == max(update["load_average"], train["load_average"])
    one, two = sorted(update["rows"], key=lambda row: row["threads"])
    assert row["figures"] == {
        "update_2_times_eager": two["fused_is_times_faster"]["reference"],
        "update_2_of_peak": two["fraction_of_peak"]["fused"],
        "update_1_times_eager": one["fused_is_times_faster"]["reference"],
        "update_1_of_peak": one["fraction_of_peak"]["fused"],
        "train_of_updates": train["rows"][0]["fraction_of_bare_updates"],
    }


def test_an_op_is_set_beside_its_fastest_plain_way() -> None:
    figures = history.row_of([result("ops_cpu.json")])["figures"]
    (polyak,) = [row for row in result("ops_cpu.json")["rows"] if row["name"] == "polyak_twin_critics"]
    assert figures["op_polyak_twin_critics_times_plain"] == polyak["times_slower_than_fused"]["_foreach_lerp_"]


def test_the_fused_op_in_another_form_is_no_plain_way() -> None:
    figures = history.row_of([result("ops_zen3_cpu.json")])["figures"]
    (large,) = [row for row in result("ops_zen3_cpu.json")["rows"] if row["name"] == "normalize_large"]
    ratios = large["times_slower_than_fused"]
    assert ratios["fused, out="]["p50"] < ratios["torch.compile"]["p50"]
    assert figures["op_normalize_large_times_plain"] == ratios["torch.compile"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"source": {"commit": "other", "csrc_tree": "other"}}, "expected one commit and machine"),
        ({"hardware": {"processor": "other", "usable_cores": 64}}, "expected one commit and machine"),
        ({}, "got update_2_times_eager twice"),
    ],
)
def test_results_that_do_not_belong_together_are_refused(change: dict[str, Any], said: str) -> None:
    first = result("update_cpu.json")
    second = {**copy.deepcopy(first), **change}
    with pytest.raises(ValueError, match=said):
        history.row_of([first, second])


def test_results_without_a_commit_or_a_figure_are_refused() -> None:
    update = result("update_cpu.json")
    with pytest.raises(ValueError, match="outside git"):
        history.row_of([{**update, "source": {"commit": None, "csrc_tree": None}}])
    with pytest.raises(ValueError, match="expected ratios or shares, got none"):
        history.row_of([{**update, "rows": []}])


def test_other_sizes_and_profiles_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected update with hidden_sizes \[256, 256\], got \[64, 64\]"):
        history.row_of([result("update_sweep_zen5_cpu.json")])
    with pytest.raises(ValueError, match="expected ratios or shares, got none"):
        history.row_of([result("update_profile_cpu.json")])


def test_a_busy_machine_is_refused() -> None:
    update = result("update_cpu.json")
    update["rows"][0]["others_share_of_cores"]["p50"] = 0.81
    with pytest.raises(ValueError, match="other processes had 81% of the cores; expected an idle machine"):
        history.row_of([update])


def test_a_row_is_appended_once(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    row = history.row_of([result("update_cpu.json")])
    history.append(row, path)
    history.append({**row, "date": "2026-12-31"}, path)
    with pytest.raises(ValueError, match="is there already"):
        history.append(row, path)
    assert [json.loads(line)["date"] for line in path.read_text().splitlines()] == [row["date"], "2026-12-31"]


def test_sources_that_are_not_committed_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "csrc").mkdir()
    (tmp_path / "csrc" / "new.cpp").touch()
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    monkeypatch.setattr(history, "ROOT", tmp_path)
    monkeypatch.setattr(history, "MEASUREMENTS", ())
    with pytest.raises(RuntimeError, match="expected committed sources, got changes"):
        history.measure()


def test_every_committed_row_is_whole_and_there_once() -> None:
    assert len({(row["commit"], row["processor"], row["cpu_level"], row["date"]) for row in ROWS}) == len(ROWS)
    for row in ROWS:
        assert row["figures"]
        for values in row["figures"].values():
            assert 0 < values["p20"] <= values["p50"] <= values["p80"]


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*_cpu.json")), ids=lambda path: path.name)
def test_rows_have_the_figures_of_the_results_that_they_name(path: Path) -> None:
    """Of those that are still there: later measurements have taken the place of others."""
    found = json.loads(path.read_text())
    for row in ROWS:
        if row["commit"] == found["source"]["commit"] and found["command"] in row["commands"]:
            figures = dict(history.figures_of(found))
            assert figures
            assert {name: row["figures"][name] for name in figures} == figures
