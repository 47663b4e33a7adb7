import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sacfast import cli, plotting
from sacfast.config import SACConfig, TrainConfig
from sacfast.metrics import MetricsLogger, Run, RunError, read_run
from sacfast.plotting import (
    COLORS,
    bootstrap_interval,
    common_curve,
    draw,
    group_labels,
    group_runs,
    interquartile_mean,
    plot,
)

EVALUATION = (300.0, 500.0)


def write_run(
    path: Path, seed: int = 1, env_id: str = "Pendulum-v1", shift: float = 0.0, updates: bool = True, **settings: Any
) -> Path:
    """A run as `learn` leaves it, whose metrics are lines of the step, and `shift` above them."""
    logger = MetricsLogger(path)
    logger.write_config({"train": TrainConfig(env_id, seed=seed).to_dict(), "sac": SACConfig(**settings).to_dict()})
    for step in (100, 200, 300, 400, 500):
        row: dict[str, float | None] = {"step": step, "episode_return_mean": None if step == 100 else step + shift}
        if updates:
            row |= {"env_steps_per_second": 50.0 + step, "updates_per_second": 10.0 + shift if step > 200 else 0.0}
        if updates and step > 200:
            names = ("critic_loss", "actor_loss", "q_mean", "target_mean", "alpha", "alpha_loss", "entropy")
            row |= dict.fromkeys(names, 0.5 * step + shift)
        if step in EVALUATION:
            row["eval_return_mean"] = 2.0 * step + shift
        logger.log(row)
    logger.close()
    return path


def make_run(values: Sequence[tuple[float, float | None]], seed: int = 1) -> Run:
    rows: list[dict[str, float | None]] = [{"step": step, "x": value} for step, value in values]
    return Run(Path("run"), TrainConfig("Pendulum-v1", seed=seed).to_dict(), SACConfig().to_dict(), rows)


def titles(figure: Any) -> list[str]:
    return [axes.get_title() for axes in figure.axes]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 8, 11])
def test_the_interquartile_mean_is_the_mean_of_the_middle_half(count: int) -> None:
    values = np.random.default_rng(count).normal(size=(count, 3))
    # Each value four times: then a quarter of them is a whole number of them.
    middle = np.sort(np.repeat(values, 4, axis=0), axis=0)[count:-count]
    np.testing.assert_allclose(interquartile_mean(values), middle.mean(axis=0), rtol=1e-12)


def test_the_interquartile_mean_leaves_outliers_out() -> None:
    assert interquartile_mean(np.array([[-1e9], [1.0], [3.0], [1e9]])) == [2.0]


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_the_interval_is_that_of_all_resamples(count: int) -> None:
    values = np.random.default_rng(0).normal(size=(count, 70))  # more steps than are resampled at a time
    every = interquartile_mean(values[np.array(list(itertools.product(range(count), repeat=count))).T])
    low, high = bootstrap_interval(values)
    # Of 2,000 resamples the share below a quantile has a standard error of 0.35 %: it lies within four of them.
    for got, share in ((low, 0.025), (high, 0.975)):
        below, above = np.quantile(every, (share - 0.014, share + 0.014), axis=0, method="inverted_cdf")
        assert (below - 1e-9 <= got).all()
        assert (got <= above + 1e-9).all()
    assert (low < high).all()
    np.testing.assert_array_equal(bootstrap_interval(values), (low, high))  # the same picture every time


def test_seeds_are_brought_to_common_steps() -> None:
    runs = [
        make_run([(100, None), (200, 2.0), (300, 3.0), (404, 4.04)]),
        make_run([(104, 10.4), (208, 20.8), (304, 30.4), (400, 40.0), (500, 50.0)]),
        make_run([(100, None)]),  # without a value: no part of it
    ]
    step, values = common_curve(runs, "x")
    np.testing.assert_array_equal(step, [200, 300, 404])
    np.testing.assert_allclose(values, [step / 100, step / 10])


def test_seeds_without_common_steps_have_no_common_curve() -> None:
    step, values = common_curve([make_run([(100, 1.0)]), make_run([(200, 1.0)])], "x")
    assert len(step) == 0
    assert values.shape == (2, 0)
    assert common_curve([make_run([(100, 1.0)])], "y")[1].shape == (0, 0)


def test_runs_that_differ_by_the_seed_are_a_group(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / name, seed, gamma=gamma))
        for name, seed, gamma in (("a", 1, 0.99), ("b", 1, 0.9), ("c", 2, 0.99), ("d", 3, 0.9), ("e", 4, 0.9))
    ]
    groups = group_runs(runs)
    assert [[run.path.name for run in group.runs.values()] for group in groups] == [["a", "c"], ["b", "d", "e"]]
    assert list(group_labels(groups)) == ["gamma 0.99: 2 seeds", "gamma 0.9: 3 seeds"]
    assert list(group_labels(groups[:1])) == ["2 seeds"]


def test_a_setting_that_was_not_there_yet_has_its_default(tmp_path: Path) -> None:
    old, new = read_run(write_run(tmp_path / "old")), read_run(write_run(tmp_path / "new", seed=2))
    del old.sac["activation"]
    assert len(group_runs([old, new])) == 1


def test_a_picture_shows_the_statistics_that_its_legend_names(tmp_path: Path) -> None:
    shifts = (0.0, 1.0, 10.0)
    runs = [
        read_run(write_run(tmp_path / str(seed), seed, shift=shift, updates=False)) for seed, shift in enumerate(shifts)
    ]
    figure = draw("Pendulum-v1", group_runs(runs))
    evaluation = figure.axes[0]
    mean_line, dashed, *seeds = evaluation.lines
    base = 2 * np.array(EVALUATION)
    np.testing.assert_array_equal(mean_line.get_xdata(), EVALUATION)
    np.testing.assert_allclose(mean_line.get_ydata(), base + (0.0 + 4 * 1.0 + 10.0) / 6)
    np.testing.assert_allclose(dashed.get_ydata(), base + sum(shifts) / 3)
    assert [list(line.get_ydata()) for line in seeds] == [list(base + shift) for shift in shifts]
    (band,) = evaluation.collections
    extent = band.get_datalim(evaluation.transData)
    low, high = bootstrap_interval(base + np.array(shifts)[:, None])
    np.testing.assert_allclose([extent.y0, extent.y1], [low.min(), high.max()])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == [
        "3 seeds",
        "interquartile mean over seeds",
        "95% bootstrap interval of the interquartile mean",
        "mean over seeds (returns)",
        "each seed (returns)",
    ]


def test_every_metric_has_its_panel_with_labelled_axes_and_nothing_overlaps(tmp_path: Path) -> None:
    names = "a long name of a task/that nobody would use-v5"
    runs = [read_run(write_run(tmp_path / f"{s}{g}", s, names, s, gamma=g)) for s in (1, 2) for g in (0.9, 0.99)]
    figure = draw(names, group_runs(runs))
    assert titles(figure) == [
        "Evaluation, mean of its episodes",
        "Training, mean of the latest episodes",
        *("Critic loss", "Actor loss", "Q-values", "Policy entropy", "Temperature", "Temperature loss"),
        *["Throughput, evaluations included"] * 2,
    ]
    for axes in figure.axes:
        assert axes.get_xlabel() == "environment steps"
        assert axes.get_ylabel()
        assert axes.get_xlim() == (0, 510)
        assert {line.get_color() for line in axes.lines} - {"gray"} == set(COLORS[:2])
    figure.draw_without_rendering()
    boxes = [part.get_tightbbox() for part in (*figure.axes, *figure.legends)]
    for one, other in itertools.combinations(boxes, 2):
        assert one.x1 <= other.x0 or other.x1 <= one.x0 or one.y1 <= other.y0 or other.y1 <= one.y0
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


def test_zeros_do_not_hinder_a_logarithmic_axis_unless_there_is_nothing_else(tmp_path: Path) -> None:
    figure = draw("Pendulum-v1", group_runs([read_run(write_run(tmp_path / "run"))]))
    assert figure.axes[-1].get_ylabel() == "gradient updates / s"
    assert figure.axes[-1].get_yscale() == "log"
    runs = [make_run([(100, 1.0)])]
    runs[0].rows[0]["alpha"] = 0.0
    (axes,) = draw("Pendulum-v1", group_runs(runs)).axes
    assert axes.get_yscale() == "linear"
    assert list(axes.lines[0].get_ydata()) == [0.0]


def test_one_picture_a_task_in_a_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / env_id, env_id=env_id, updates=False) for env_id in ("Pendulum-v1", "mine/Task-v0")]
    assert cli.main(["plot", *map(str, runs), "--output", str(tmp_path / "new" / "pictures")]) == 0
    pictures = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [picture.name for picture in pictures] == ["Pendulum-v1.png", "mine-Task-v0.png"]
    for picture in pictures:
        assert picture.parent == tmp_path / "new" / "pictures"
        assert picture.read_bytes().startswith(b"\x89PNG\r\n")


def test_one_file_for_one_task(tmp_path: Path) -> None:
    run_dirs = [write_run(tmp_path / f"seed{seed}", seed, updates=False) for seed in (1, 2)]
    assert plot(run_dirs, tmp_path / "new" / "curve.png") == [tmp_path / "new" / "curve.png"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["curve.png"]


def test_more_groups_than_colours_are_refused(tmp_path: Path) -> None:
    run_dirs = [write_run(tmp_path / str(tau), tau=tau / 10) for tau in range(1, 9)]
    with pytest.raises(ValueError, match="run_dirs: expected at most 7 different settings of Pendulum-v1, got 8"):
        plot(run_dirs, tmp_path / "curve.png")


def overwrite(name: str, content: str) -> Any:
    return lambda run_dir: (run_dir / name).write_text(content)


def change_config(**changes: Any) -> Any:
    def change(run_dir: Path) -> None:
        path = run_dir / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda run_dir: (run_dir / "config.json").unlink(), "expected a run directory, which has a config.json"),
        (overwrite("config.json", "{"), "config.json: expected JSON, got an error"),
        (overwrite("config.json", "[]"), "config.json: expected a run of schema_version 1, got None"),
        (change_config(schema_version=2), "config.json: expected a run of schema_version 1, got 2"),
        (change_config(sac=None), "expected the objects 'train' and 'sac'"),
        (
            change_config(sac={"optimism": 1}),
            "expected the settings of this version: SACConfig: unknown key(s) optimism",
        ),
        (
            lambda run_dir: (run_dir / "metrics.jsonl").unlink(),
            "metrics.jsonl: expected the metrics of a run, found none",
        ),
        (overwrite("metrics.jsonl", ""), "metrics.jsonl: expected at least one line of metrics, found none"),
        (overwrite("metrics.jsonl", '{"step": 1}\n{"step": 2, "q'), "metrics.jsonl: line 2: expected a JSON object"),
        (overwrite("metrics.jsonl", '{"step": 1, "alpha": "low"}\n'), "metrics.jsonl: line 1: expected a JSON object"),
        (
            overwrite("metrics.jsonl", '{"step": 2}\n{"step": 1}\n'),
            "metrics.jsonl: line 2: expected a 'step' of at least 2, got 1",
        ),
        (overwrite("metrics.jsonl", '{"alpha": 2}\n'), "metrics.jsonl: line 1: expected a 'step', got None"),
    ],
)
def test_a_run_that_cannot_be_read_is_one_line(
    damage: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "sound")
    damage(write_run(tmp_path / "bad", seed=2))
    arguments = ["plot", str(tmp_path / "sound"), str(tmp_path / "bad"), "--output", str(tmp_path / "curve.png")]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error
    assert str(tmp_path / "bad") in error
    assert error.count("\n") == 1
    assert not (tmp_path / "curve.png").exists()


def test_the_same_seed_twice_is_refused(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name)) for name in ("a", "b")]
    with pytest.raises(RunError, match=r"b: expected another seed than that of .*a, whose settings .* got 1 again"):
        group_runs(runs)


@pytest.mark.parametrize(
    ("output", "said"),
    [("curves.png", "expected a directory for the runs of 2 tasks"), ("notes.txt", "ends in .png")],
)
def test_an_output_that_does_not_fit_is_refused(output: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("kept")
    run_dirs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", env_id="mine/Task-v0")]
    with pytest.raises(ValueError, match=f"output: .*{said}"):
        plot(run_dirs, tmp_path / output)
    assert (tmp_path / "notes.txt").read_text() == "kept"


def test_missing_matplotlib_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["plot", str(write_run(tmp_path / "run"))]) == 1
    error = capsys.readouterr().err
    assert "pip install 'sacfast[plot]'" in error
    assert error.count("\n") == 1


def test_the_styles_are_enough_for_every_panel() -> None:
    panels = (*plotting._RETURNS, *plotting._DIAGNOSTICS)
    assert all(1 <= len(panel.metrics) <= len(plotting._STYLES) for panel in panels)
