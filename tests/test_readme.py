"""README is short, its figures are those of the data, and its code and commands run as they stand there."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from pages import PAGES, ROOT, commands, run

from benchmarks.pictures import PICTURES
from sacfast import cli

README = PAGES["README.md"]
RESULTS = ROOT / "benchmarks" / "results"


def test_readme_is_short() -> None:
    assert len(README.splitlines()) <= 140
    assert len(README.split()) <= 1200


def test_figures_are_those_of_the_chart() -> None:
    (name,) = PICTURES["updates"].files
    (row, _) = json.loads((RESULTS / name).read_text())["rows"]
    assert row["threads"] == 2
    times = {name: f"{ratio['p50']:.1f} times as fast as" for name, ratio in row["fused_is_times_faster"].items()}
    text = " ".join(README.split())
    whose = {"sbx": "SBX's", "reference": "eager PyTorch's", "stable_baselines3": "Stable-Baselines3's"}
    for name, words in whose.items():
        assert f"{times[name]} {words}" in text


def test_it_claims_no_figure_of_a_gpu() -> None:
    assert "**Nothing has run on a GPU yet, and no figure is claimed for one.**" in README
    assert "**Nothing has run on a GPU yet, and no figure is claimed for one.**" in PAGES["docs/performance.md"]
    for path in RESULTS.glob("*.json"):
        result = json.loads(path.read_text())
        assert result.get("hardware", {}).get("gpus", []) == [], path.name


def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("README.md")
    assert names["model"].timesteps == 300
    assert names["mean"].grad.isfinite().all()
    assert (names["mean"].grad != 0).any()
    # What was saved acts as the model does.
    saved = names["sacfast"].SAC.load("pendulum").predict([1.0, 0.0, 0.0])
    np.testing.assert_array_equal(saved, names["model"].predict([1.0, 0.0, 0.0]))


TRANSITIONS = {"5000": "300", "300000": "320", "1000000": "340"}
"""Transitions in README's commands: those that the test makes. The last run goes on from the one before it."""


def test_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command of sacfast, in README's order and folders, with fewer transitions and episodes."""
    monkeypatch.chdir(tmp_path)
    found = [words for words in commands("README.md") if words[0] == "sacfast"]
    assert [words[1] for words in found] == ["doctor", "train", "evaluate", "train", "train"]
    for words in found:
        arguments = [TRANSITIONS.get(word, word) for word in words[1:]]
        if words[1] == "train":
            arguments += ["--no-progress"]
            if "--resume" not in words:
                arguments += ["--evaluation-episodes", "1", "--replay-capacity", "1000"]
        else:
            arguments = ["2" if word == "10" else word for word in arguments]
        assert cli.main(arguments) == 0, words
    assert "resumed after 320 transitions" in capsys.readouterr().out


def test_other_commands_are_there() -> None:
    """The rest set up and build, which takes minutes: here only their targets are looked for."""
    rest = [words for words in commands("README.md") if words[0] != "sacfast"]
    assert rest == [["make", "train"], ["make", "test"], ["make", "wheel"], ["pip", "install", "dist/sacfast-*.whl"]]
    for program, *arguments in rest:
        if program == "make":
            done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
            assert done.returncode == 0, done.stderr
