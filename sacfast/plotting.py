"""Pictures of runs: learning curves over seeds, and what the updates and the machine did meanwhile.

Runs whose settings differ by the seed alone form a group. At each step a group shows the interquartile mean over its
seeds and the 95 % percentile-bootstrap interval of that mean, the seeds resampled as wholes (Agarwal et al. 2021,
arXiv 2108.13264, section 4.3 and appendix A.4); of the returns also each seed and the mean over them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sacfast.config import SACConfig, TrainConfig
from sacfast.metrics import CONFIG_FILE, Run, RunError, read_run

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Float64Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]

CONFIDENCE = 0.95
RESAMPLES = 2_000
"""Bootstrap resamples of the seeds."""

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""One a group; those of Okabe and Ito, which the colour-blind can tell apart."""

_TRAIN_SETTINGS = ("env_id", "num_envs", "env_batch_size", "backend", "checkpoint_every")
"""The fields of `TrainConfig` that a group has in common: the others are the seed, and how a run is carried out.
Checkpoints cut episodes."""


class Group(NamedTuple):
    """Runs that differ by their seed alone."""

    settings: dict[str, Any]  # the `_TRAIN_SETTINGS` and `SACConfig`
    runs: dict[int, Run]  # by seed


class _Panel(NamedTuple):
    title: str
    unit: str  # the label of the vertical axis
    metrics: dict[str, str]  # column of the metrics: its name in the panel, "" where it is alone
    logarithmic: bool = False
    every_seed: bool = False  # each seed and the mean too


_RETURNS = (
    _Panel(
        "Evaluation, mean of its episodes", "undiscounted return (reward)", {"eval_return_mean": ""}, every_seed=True
    ),
    _Panel(
        "Training, mean of the latest episodes",
        "undiscounted return (reward)",
        {"episode_return_mean": ""},
        every_seed=True,
    ),
)
_DIAGNOSTICS = (
    _Panel("Critic loss", "squared error (scaled reward²)", {"critic_loss": ""}, logarithmic=True),
    _Panel("Actor loss", "loss (scaled reward)", {"actor_loss": ""}),
    _Panel("Value loss", "squared error (scaled reward²)", {"value_loss": ""}, logarithmic=True),
    _Panel("Q-values", "soft return (scaled reward)", {"q_mean": "critics", "target_mean": "target"}),
    _Panel("Policy entropy", "entropy (nat)", {"entropy": ""}),
    _Panel("Temperature", "alpha (scaled reward / nat)", {"alpha": ""}, logarithmic=True),
    _Panel("Temperature loss", "loss (nat)", {"alpha_loss": ""}),
    _Panel("Throughput, evaluations included", "environment steps / s", {"env_steps_per_second": ""}, logarithmic=True),
    _Panel("Throughput, evaluations included", "gradient updates / s", {"updates_per_second": ""}, logarithmic=True),
    _Panel("Training, mean of the latest episodes", "episode length (steps)", {"episode_length_mean": ""}),
)
_DIAGNOSTICS_A_ROW = 3

# The first metric of a panel, and a second one beneath it, which it often hides.
_STYLES: tuple[dict[str, Any], ...] = ({"linewidth": 1.5}, {"linewidth": 4, "alpha": 0.35, "solid_capstyle": "butt"})


def plot(run_dirs: Sequence[Path | str], output: Path | str) -> list[Path]:
    """Draw one picture a task, of all its runs.

    Args:
        run_dirs: directories of runs, finished or not.
        output: a file that ends in .png, or a directory, made where there is none, for `<env_id>.png`. A picture
            already there is replaced.

    Returns:
        The pictures' paths.

    Raises:
        RunError: a run that cannot be read, or two of one group with the same seed.
        ValueError: no runs, more groups of a task than colours, or a file for the runs of several tasks.
        ImportError: matplotlib is not installed.
    """
    import_figure()
    tasks: dict[str, list[Group]] = {}
    for group in group_runs([read_run(run_dir) for run_dir in run_dirs]):
        tasks.setdefault(group.settings["env_id"], []).append(group)
    if not tasks:
        raise ValueError("run_dirs: expected at least one run, got none")
    output = Path(output)
    if output.suffix == ".png" and len(tasks) > 1:
        raise ValueError(f"output: expected a directory for the runs of {len(tasks)} tasks, got the file {output}")
    if output.suffix != ".png" and output.exists() and not output.is_dir():
        raise ValueError(f"output: expected a directory or a file that ends in .png, got {output}")
    pictures = []
    for env_id, groups in tasks.items():
        figure = draw(env_id, groups)
        name = re.sub(r"[^\w.-]", "-", env_id)
        path = output if output.suffix == ".png" else output / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
        pictures.append(path)
    return pictures


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Put runs together whose settings differ by the seed alone, in the order in which they come.

    Raises:
        RunError: settings that this version does not know, or two runs of one group with the same seed: they are no
            two samples.
    """
    groups: list[Group] = []
    for run in runs:
        try:
            train, sac = TrainConfig.from_dict(run.train), SACConfig.from_dict(run.sac)
        except (TypeError, ValueError) as error:
            raise RunError(f"{run.path / CONFIG_FILE}: expected the settings of this version: {error}") from error
        settings = {name: getattr(train, name) for name in _TRAIN_SETTINGS} | vars(sac)
        group = next((group for group in groups if group.settings == settings), None)
        if group is None:
            group = Group(settings, {})
            groups.append(group)
        if train.seed in group.runs:
            raise RunError(
                f"{run.path}: expected another seed than that of {group.runs[train.seed].path}, whose settings are "
                f"the same; got {train.seed} again"
            )
        group.runs[train.seed] = run
    return groups


def common_curve(runs: Sequence[Run], metric: str) -> tuple[Float64Array, Float64Array]:
    """Return a metric of several runs on common steps [T], one row a run: [runs, T].

    Runs report after nearly, not exactly, the same transitions, so the values are interpolated linearly to the steps
    of the run with the fewest. Steps that not every run has reached are left out, and so are runs without the metric.
    """
    curves = [curve for run in runs if len((curve := _curve(run, metric))[0])]
    if not curves:
        return np.empty(0), np.empty((0, 0))
    first, last = max(step[0] for step, _ in curves), min(step[-1] for step, _ in curves)
    if first > last:
        return np.empty(0), np.empty((len(curves), 0))
    fewest = min((step for step, _ in curves), key=len)
    grid = np.unique(np.concatenate(([first, last], fewest[(fewest >= first) & (fewest <= last)])))
    return grid, np.stack([np.interp(grid, step, value) for step, value in curves])


def interquartile_mean(values: Float64Array) -> Float64Array:
    """Return the mean of the middle half of `values` [n, ...] over their first axis.

    A value that lies across a quartile counts by its part within, so that it is defined for every n: of three values
    the middle one counts 2/3, the others 1/6 each.
    """
    count = len(values)
    rank = np.arange(count)
    inside = np.minimum(rank + 1, 0.75 * count) - np.maximum(rank, 0.25 * count)
    mean: Float64Array = np.tensordot(inside.clip(min=0) / (0.5 * count), np.sort(values, axis=0), axes=1)
    return mean


def bootstrap_interval(values: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Return the ends of the 95 % percentile-bootstrap interval of the interquartile mean of `values` [n, T].

    Rows are resampled as wholes, `RESAMPLES` times, always with the same random numbers.
    """
    count, steps = values.shape
    chosen = np.random.default_rng(0).integers(count, size=(count, RESAMPLES))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.empty(steps), np.empty(steps)
    for part in range(0, steps, 64):  # all at once would take gigabytes
        means = interquartile_mean(values[chosen, part : part + 64])
        low[part : part + 64], high[part : part + 64] = np.quantile(means, (tail, 1 - tail), axis=0)
    return low, high


def draw(env_id: str, groups: Sequence[Group]) -> Figure:
    """Draw the runs of one task: returns above, the other metrics that any run has below.

    Raises:
        ValueError: more groups than colours.
    """
    if len(groups) > len(COLORS):
        raise ValueError(f"run_dirs: expected at most {len(COLORS)} different settings of {env_id}, got {len(groups)}")
    returns, diagnostics = (
        [panel for panel in panels if any(_has(group, metric) for group in groups for metric in panel.metrics)]
        for panels in (_RETURNS, _DIAGNOSTICS)
    )
    rows = -(-len(diagnostics) // _DIAGNOSTICS_A_ROW)
    top, row_height, legend = (3.6 if returns else 0.0), 2.5, 0.9 + 0.2 * len(groups)
    figure = import_figure()(figsize=(12, top + rows * row_height + legend), layout="constrained")
    figure.suptitle(env_id)
    heights = [top] * bool(returns) + [row_height] * rows
    grid = figure.add_gridspec(len(heights), 6, height_ratios=heights)
    for index, panel in enumerate(returns):
        width = 6 // len(returns)
        _draw_panel(figure.add_subplot(grid[0, width * index : width * (index + 1)]), panel, groups)
    for index, panel in enumerate(diagnostics):
        row, column = divmod(index, _DIAGNOSTICS_A_ROW)
        _draw_panel(figure.add_subplot(grid[row + bool(returns), 2 * column : 2 * column + 2]), panel, groups)
    last = max(run.rows[-1]["step"] or 0 for group in groups for run in group.runs.values())
    for axes in figure.axes:
        axes.set_xlim(0, 1.02 * last)
    figure.align_ylabels()
    _add_legend(figure, groups)
    return figure


def import_figure() -> type[Figure]:
    """Return matplotlib's figure, or raise ImportError that says how to install it."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "plot: expected the matplotlib package, which is not installed; pip install 'sacfast[plot]'"
        ) from error
    return Figure


def _curve(run: Run, metric: str) -> tuple[Float64Array, Float64Array]:
    """Return the steps and values of the lines that have the metric."""
    points = [(row["step"], row[metric]) for row in run.rows if row.get(metric) is not None]
    step, value = np.array(points, dtype=np.float64).reshape(-1, 2).T
    return step, value


def _has(group: Group, metric: str) -> bool:
    return any(row.get(metric) is not None for run in group.runs.values() for row in run.rows)


def _draw_panel(axes: Axes, panel: _Panel, groups: Sequence[Group]) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullFormatter

    axes.set_title(panel.title, fontsize="medium")
    axes.set_xlabel("environment steps", fontsize="small")
    axes.set_ylabel(panel.unit, fontsize="small")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize="small")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    for color, group in zip(COLORS, groups, strict=False):
        for metric, style in zip(panel.metrics, _STYLES, strict=False):
            _draw_curves(axes, group, metric, color, style, panel.every_seed)
    lines = [np.asarray(line.get_ydata()) for line in axes.lines]
    # Zeros, such as the rate of updates before the first one, are left out; a line of nothing else is worth seeing.
    if panel.logarithmic and all(np.nanmin(line) >= 0 and np.nanmax(line) > 0 for line in lines):
        axes.set_yscale("log", nonpositive="mask")
        low, high = axes.get_ylim()
        # A range within few decades has a label at its 2s and 5s too, a wide one at powers of ten.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if len(panel.metrics) > 1:
        for name, style in zip(panel.metrics.values(), _STYLES, strict=False):
            axes.plot([], [], color="gray", label=name, **style)
        axes.legend(frameon=False, fontsize="small")


def _draw_curves(axes: Axes, group: Group, metric: str, color: str, style: dict[str, Any], every_seed: bool) -> None:
    step, values = common_curve(list(group.runs.values()), metric)
    if not len(values):
        return
    marker = "o" if len(step) == 1 else None
    axes.plot(step, interquartile_mean(values), color=color, marker=marker, **style)
    if len(values) < 2:
        return
    axes.fill_between(step, *bootstrap_interval(values), color=color, alpha=0.2, linewidth=0)
    if every_seed:
        axes.plot(step, values.mean(axis=0), color=color, linestyle="dashed", linewidth=1)
        for run in group.runs.values():
            axes.plot(*_curve(run, metric), color=color, alpha=0.35, linewidth=0.7)


def _add_legend(figure: Figure, groups: Sequence[Group]) -> None:
    """Say below the panels which colour is which group, and what lines and bands are."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Line2D | Patch] = [
        Line2D([], [], color=color, label=label) for color, label in zip(COLORS, group_labels(groups), strict=False)
    ]
    if max(len(group.runs) for group in groups) > 1:
        handles += [
            Line2D([], [], color="gray", label="interquartile mean over seeds"),
            Patch(color="gray", alpha=0.2, label=f"{CONFIDENCE:.0%} bootstrap interval of the interquartile mean"),
            Line2D([], [], color="gray", linestyle="dashed", linewidth=1, label="mean over seeds (returns)"),
            Line2D([], [], color="gray", alpha=0.5, linewidth=0.7, label="each seed (returns)"),
        ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)


def group_labels(groups: Sequence[Group]) -> Iterator[str]:
    """Yield what tells each group from the others, and how many seeds it has."""
    settings = [group.settings for group in groups]
    differing = [name for name in settings[0] if any(other[name] != settings[0][name] for other in settings)]
    for group in groups:
        seeds = "1 seed" if len(group.runs) == 1 else f"{len(group.runs)} seeds"
        own = ", ".join(f"{name} {_brief(group.settings[name])}" for name in differing)
        yield f"{own}: {seeds}" if own else seeds


def _brief(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, tuple) else str(value)
