"""The pictures: each a function from a theme and the data of benchmarks/results to a canvas."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Rectangle

from benchmarks.canvas import TIMES, WIDTH, Canvas, Theme
from sacfast.benchmark.report import BUSY, fastest_plain

CONTENDERS = {
    "fused": "sacfast",
    "reference": "PyTorch, eager",
    "reference_compiled": "torch.compile",
    "stable_baselines3": "Stable-Baselines3",
    "sbx": "SBX (JAX)",
    "rltools": "RLtools (C++)",
}

PHASES = {
    "actor on x', a'": "actor at the next observations",
    "actor on x, a~": "actor at the observations",
    "target critics, y": "target critics, and the target",
    "critics on (x, a~)": "critics at the actor's actions",
    "critics' gradients of a~": "critics' gradients to these actions",
}
"""The phases of an update whose names are the equations' own, in words."""

VARIANTS = {"pendulum_value_network": "with a value network, "}
"""How experiments differ from the default settings."""

HISTORY = {
    "update_2_times_eager": ("Update, 2 threads", "times faster than eager PyTorch"),
    "update_1_times_eager": ("Update, 1 thread", "times faster than eager PyTorch"),
    "update_2_of_peak": ("Update, 2 threads", "share of the processor's peak"),
    "op_rsample_256x6_times_plain": ("tanh_gaussian_rsample", "times faster than plain PyTorch"),
    "op_polyak_twin_critics_times_plain": ("polyak_update_", "times faster than the fastest plain way"),
    "collect_of_bare": ("Collection", "share of EnvPool's bare rate"),
}
"""The figures of the history that are shown, and what they are of what."""

MEDIANS = "Bars: median over the rounds; thin lines: 20th to 80th percentile."

Percentiles = Mapping[str, float]


def updates(theme: Theme, result: Mapping[str, Any]) -> Canvas:
    """Draw updates a second of every contender, by number of threads."""
    left, top, bar, gap = 132, 68, 27, 24
    rows = result["rows"]
    # In the order of the first number of threads, the fastest above.
    names = sorted(rows[0]["updates_per_second"], key=lambda name: -rows[0]["updates_per_second"][name]["p50"])
    height = bar * len(names)
    canvas = Canvas(theme, top + height + 60)
    canvas.title(
        "Gradient updates per second: longer is faster",
        "In brackets: how many times faster sacfast is, the median of the ratios inside each round.",
    )
    width = (WIDTH - left - gap * (len(rows) - 1)) / len(rows)
    for index, row in enumerate(rows):
        rates, ratios = row["updates_per_second"], row["fused_is_times_faster"]
        axes = canvas.axes(left + index * (width + gap), top, width, height)
        labels = [
            f"{rates[name]['p50']:.0f}" + (f" ({number(ratios[name]['p50'])}{TIMES})" if name in ratios else "")
            for name in names
        ]
        colors = [theme.accent if name == "fused" else theme.peer for name in names]
        bars(axes, theme, [rates[name] for name in names], labels, colors)
        axes.set_xlim(0, 1.2 * max(rates[name]["p80"] for name in names))
        axes.set_yticks(
            range(len(names)), [CONTENDERS.get(name, name) for name in names] if index == 0 else [""] * len(names)
        )
        axes.get_yticklabels()[names.index("fused")].set_fontweight("bold")
        axes.set_title(threads(row["threads"]), loc="left", fontsize=9, color=theme.muted)
    canvas.note(top + height + 12, f"{sizes(rows[0])}; {rows[0]['rounds']} rounds. {MEDIANS}", origin(result))
    return canvas


def sweep(theme: Theme, result: Mapping[str, Any]) -> Canvas:
    """Draw how many times faster than eager torch an update is, a cell for each size, by number of threads."""
    left, top, cell, task_gap, panel_gap = 132, 86, 29, 14, 28
    rows = result["rows"]
    counts = list(dict.fromkeys(row["threads"] for row in rows))
    networks = list(dict.fromkeys((row["observation_dim"], tuple(row["hidden_sizes"])) for row in rows))
    batches = sorted({row["batch_size"] for row in rows})
    observations = list(dict.fromkeys(observation for observation, _ in networks))
    tops = {each: index * cell + observations.index(each[0]) * task_gap for index, each in enumerate(networks)}
    height = max(tops.values()) + cell
    canvas = Canvas(theme, top + height + 60)
    canvas.title(
        "How many times faster an update is than in eager PyTorch",
        "By length of the observation, units of the hidden layers, and size of the minibatch.",
    )
    for observation, hidden in networks:
        middle = top + tops[observation, hidden] + cell / 2
        canvas.text(left - 8, middle, "-".join(map(str, hidden)), ha="right", va="center")
        if (observation, hidden) == next(each for each in networks if each[0] == observation):
            canvas.text(0, middle, f"obs. {observation}", color=theme.muted, va="center")
    width = (WIDTH - left - panel_gap * (len(counts) - 1)) / len(counts)
    highest = max(row["fused_is_times_faster"]["reference"]["p50"] for row in rows)
    for index, count in enumerate(counts):
        axes = canvas.axes(left + index * (width + panel_gap), top, width, height)
        axes.set(xlim=(0, len(batches)), ylim=(height, 0), xticks=[], yticks=[])
        axes.set_title(threads(count), loc="left", fontsize=9, color=theme.ink, pad=18, fontweight="bold")
        for column, batch in enumerate(batches):
            axes.text(column + 0.5, -5, f"batch {batch}", ha="center", va="bottom", fontsize=8.5, color=theme.muted)
        for row in rows:
            if row["threads"] == count:
                place = batches.index(row["batch_size"]), tops[row["observation_dim"], tuple(row["hidden_sizes"])]
                _cell(axes, theme, row, place, cell, highest)
    busy = any(_is_busy(row) for row in rows)
    canvas.note(
        top + height + 12,
        f"Median of the ratios inside each of {rows[0]['rounds']} rounds."
        + (f" *: other processes had more than {BUSY:.0%} of the cores." if busy else ""),
        origin(result),
    )
    return canvas


def _cell(
    axes: Axes, theme: Theme, row: Mapping[str, Any], place: tuple[int, float], height: float, highest: float
) -> None:
    """Draw one size: the more it gains, the more of the accent; orange where eager torch is faster."""
    ratio = row["fused_is_times_faster"]["reference"]["p50"]
    share = math.log(max(ratio, 1.0)) / math.log(highest)
    color = theme.second if ratio < 1 else mixed(*theme.tints, share)
    column, top = place
    axes.add_patch(Rectangle((column + 0.015, top + 1), 0.97, height - 2, color=color, linewidth=0))
    label = f"{number(ratio)}{TIMES}{'*' if _is_busy(row) else ''}"
    axes.text(column + 0.5, top + height / 2, label, ha="center", va="center", fontsize=9.5, color=theme.ink)


def _is_busy(row: Mapping[str, Any]) -> bool:
    busy: bool = row["others_share_of_cores"]["p50"] > BUSY
    return busy


def ops(theme: Theme, result: Mapping[str, Any]) -> Canvas:
    """Draw how many times faster each op is, at sizes within the caches, than the fastest plain way to do the same."""
    left, top, bar = 276, 80, 31
    rows = [row for row in result["rows"] if row["bandwidth"] is None]
    plain = [fastest_plain(row["times_slower_than_fused"]) for row in rows]
    ratios = [row["times_slower_than_fused"][way] for row, way in zip(rows, plain, strict=True)]
    height = bar * len(rows)
    canvas = Canvas(theme, top + height + 58)
    canvas.title(
        "How many times faster the fused ops are than the fastest plain way",
        "Eager PyTorch, where no other is named; torch.compile and PyTorch's own fused functions were tried too.",
    )
    axes = canvas.axes(left, top, WIDTH - left, height)
    labels = [f"{number(ratio['p50'])}{TIMES}" for ratio in ratios]
    axes.set_xscale("log")
    bars(axes, theme, ratios, labels, [theme.accent] * len(rows), left=1)
    axes.set_xlim(1, 1.3 * max(ratio["p80"] for ratio in ratios))
    axes.set_xticks([1, 2, 5, 10, 20], [f"{tick}{TIMES}" for tick in (1, 2, 5, 10, 20)])
    axes.set_xticks([], minor=True)
    axes.xaxis.tick_top()
    axes.tick_params(labelcolor=theme.muted)
    axes.grid(axis="x", color=theme.line, linewidth=0.8)
    axes.set_yticks([])
    for index, (row, way) in enumerate(zip(rows, plain, strict=True)):
        name, _, what = row["op"].partition(" ")
        middle = top + (index + 0.5) * bar
        canvas.text(0, middle, f"{name}, {row['size']}", va="bottom")
        beside = "" if way == "plain torch" else f", beside {way}"
        canvas.text(0, middle + 1, f"{what or 'forward'}{beside}", 8, theme.muted)
    rounds = f"{result['settings']['rounds']} rounds; the ratios are taken inside each."
    canvas.note(top + height + 12, f"{rounds} {MEDIANS}", origin(result))
    return canvas


def profile(theme: Theme, result: Mapping[str, Any]) -> Canvas:
    """Draw how long each phase of an update takes, in their order, for the first number of threads."""
    left, top, bar = 226, 58, 26
    row = result["rows"][0]
    phases = [phase for phase in row["phases"] if phase["milliseconds"]["p50"] > 0]
    names = [PHASES.get(phase["phase"], phase["phase"]) for phase in phases]
    times = [phase["milliseconds"] for phase in phases]
    height = bar * len(phases)
    canvas = Canvas(theme, top + height + 60)
    canvas.title(
        f"Where the {sum(time['p50'] for time in times):.1f} ms of an update go",
        "Time, share of the update, and share of the processor's peak of multiply-adds that the phase reaches.",
    )
    axes = canvas.axes(left, top, WIDTH - left, height)
    labels = [
        f"{time['p50'] * 1e3:.0f} us, {phase['share']['p50']:.1%}"
        + ("" if phase["fraction_of_peak"] is None else f", {phase['fraction_of_peak']['p50']:.0%} of the peak")
        for phase, time in zip(phases, times, strict=True)
    ]
    colors = [
        theme.second if name.startswith("actor") else theme.accent if "critics" in name else theme.peer
        for name in names
    ]
    bars(axes, theme, times, labels, colors)
    axes.set_xlim(0, 1.65 * max(time["p80"] for time in times))
    axes.set_yticks(range(len(phases)), names)
    where = f"{sizes(row)}; {threads(row['threads'])}, {row['rounds']} rounds."
    canvas.note(top + height + 12, f"{where} {MEDIANS}", origin(result))
    return canvas


def train(theme: Theme, result: Mapping[str, Any]) -> Canvas:
    """Draw training end to end beside its updates alone and Stable-Baselines3."""
    (row,) = result["rows"]
    left, top, bar = 178, 58, 30
    share, ratio = row["fraction_of_bare_updates"]["p50"], row["times_faster_than_peer"]["p50"]
    contenders = {
        "sacfast": (row["steps_per_second"], ""),
        "sacfast's updates alone": (row["bare_updates_per_second"], f" (sacfast has {share:.0%} of it)"),
        "Stable-Baselines3": (row["peer_steps_per_second"], f" (sacfast is {number(ratio)}{TIMES} as fast)"),
    }
    height = bar * len(contenders)
    canvas = Canvas(theme, top + height + 60)
    canvas.title(
        "Training end to end: environment steps per second",
        f"{row['env_id']}, {row['num_envs']} environments, one update a step, {threads(row['threads'])}.",
    )
    axes = canvas.axes(left, top, WIDTH - left, height)
    rates = [rate for rate, _ in contenders.values()]
    labels = [f"{rate['p50']:.0f}{remark}" for rate, remark in contenders.values()]
    bars(axes, theme, rates, labels, [theme.accent, theme.peer, theme.peer])
    axes.set_xlim(0, 1.4 * max(rate["p80"] for rate in rates))
    axes.set_yticks(range(len(contenders)), list(contenders))
    axes.get_yticklabels()[0].set_fontweight("bold")
    rounds = f"{row['rounds']} rounds; the ratios are taken inside each."
    canvas.note(top + height + 12, f"{rounds} {MEDIANS}", origin(result))
    return canvas


def learning(theme: Theme, *results: Mapping[str, Any]) -> Canvas:
    """Draw the evaluations of each experiment over environment steps: every seed, and the mean over them."""
    columns, left, top, width, height, across, down = 3, 40, 92, 180, 108, 270, 180
    canvas = Canvas(theme, top + down * math.ceil(len(results) / columns) + 6)
    canvas.title(
        "Return over environment steps", "Thin: each seed. Thick: their mean. The number: the mean at the end."
    )
    for index, result in enumerate(results):
        row, column = divmod(index, columns)
        axes = canvas.axes(left + column * across, top + row * down, width, height)
        _learning_panel(axes, theme, result)
    every = [seed for result in results for seed in result["seeds"].values()]
    dates = sorted(seed["date"][:10] for seed in every)
    processors = ", ".join(sorted({seed["hardware"]["processor"] for seed in every}))
    canvas.note(
        canvas.height - 44,
        f"Evaluation: {results[0]['evaluation']}, the mean of their returns. python -m benchmarks.learning, {dates[0]} "
        f"to {dates[-1]}, on {processors}; each seed's command and commit are in the data.",
    )
    return canvas


def _learning_panel(axes: Axes, theme: Theme, result: Mapping[str, Any]) -> None:
    # Seeds are evaluated at nearly the same steps: the first ones after each interval.
    curves = np.array([seed["curve"] for seed in result["seeds"].values()])
    for curve in curves:
        axes.plot(*curve.T, color=theme.accent, alpha=0.45, linewidth=0.9)
    steps, means = curves.mean(axis=0).T
    axes.plot(steps, means, color=theme.accent, linewidth=2.2)
    _label(axes, theme, f"{means[-1]:.0f}", (steps[-1], means[-1]))
    axes.grid(color=theme.line, linewidth=0.8)
    axes.tick_params(labelsize=8, labelcolor=theme.muted)
    axes.locator_params(nbins=4)
    low, high = axes.get_ylim()
    axes.set(xlim=(0, result["total_timesteps"]), ylim=(min(low, 0), max(high, 0)))  # from or to no return at all
    axes.xaxis.set_major_formatter(lambda step, _: f"{step / 1000:g}k" if step else "0")
    _panel_title(axes, theme, result["env_id"], VARIANTS.get(result["experiment"], "") + f"{len(curves)} seeds")


def _panel_title(axes: Axes, theme: Theme, title: str, below: str) -> None:
    axes.set_title(title, loc="left", fontsize=9.5, color=theme.ink, fontweight="bold", pad=18)
    axes.text(0, 1.05, below, transform=axes.transAxes, fontsize=8, color=theme.muted)


def history(theme: Theme, rows: Sequence[Mapping[str, Any]]) -> Canvas:
    """Draw ratios and shares of every measurement, in their order, by machine."""
    columns, left, top, width, height, across, down = 3, 32, 112, 212, 100, 276, 176
    rows = sorted(rows, key=lambda row: row["date"])
    machines = list(dict.fromkeys(_machine(row) for row in rows))
    styles = [(theme.accent, "o"), (theme.second, "s"), (theme.ink, "^"), (theme.muted, "D")]
    canvas = Canvas(theme, top + down * math.ceil(len(HISTORY) / columns) + 2)
    canvas.title("History of speed", "Every measurement in its order, with its 20th to 80th percentile.")
    for index, (figure, (title, unit)) in enumerate(HISTORY.items()):
        row, column = divmod(index, columns)
        axes = canvas.axes(left + column * across, top + row * down, width, height)
        for number, machine in enumerate(machines):
            mine = {place: each for place, each in enumerate(rows) if _machine(each) == machine}
            _history_line(axes, theme, mine, figure, *styles[number % len(styles)])
        days = {each["date"][:10]: place for place, each in reversed(list(enumerate(rows)))}
        axes.set_xticks(list(days.values()), [day[5:] for day in days])
        axes.set(xlim=(-0.5, len(rows) - 0.5), ylim=(0, None))
        axes.tick_params(labelsize=8, labelcolor=theme.muted)
        axes.grid(axis="y", color=theme.line, linewidth=0.8)
        _panel_title(axes, theme, title, unit)
    for number, machine in enumerate(machines):
        color, marker = styles[number % len(styles)]
        axes = canvas.axes(number * 262, 50, 12, 12)
        axes.plot([0], [0], marker=marker, markersize=6, color=color)
        axes.set(xticks=[], yticks=[])
        canvas.text(number * 262 + 17, 49, machine, 8.5)
    canvas.note(
        canvas.height - 44,
        "Machines differ: compare along a line alone. make bench-record appends a measurement to "
        "benchmarks/results/history.jsonl.",
    )
    return canvas


def _machine(row: Mapping[str, Any]) -> str:
    processor = row["processor"].replace("(R)", "").partition(" Processor")[0]
    return f"{processor}, {row['usable_cores']} cores, {row['cpu_level'].upper()}"


def _history_line(
    axes: Axes, theme: Theme, rows: Mapping[int, Mapping[str, Any]], figure: str, color: str, marker: str
) -> None:
    """Draw one machine's values of a figure, at their places among all measurements."""
    found = {place: row["figures"][figure] for place, row in rows.items() if figure in row["figures"]}
    medians = [value["p50"] for value in found.values()]
    axes.plot(list(found), medians, color=color, linewidth=1, alpha=0.6)
    for place, value in found.items():
        axes.plot([place, place], [value["p20"], value["p80"]], color=theme.muted, linewidth=1)
        axes.plot([place], [value["p50"]], marker=marker, markersize=5.5, color=color)


def bars(
    axes: Axes,
    theme: Theme,
    values: Sequence[Percentiles],
    labels: Sequence[str],
    colors: Sequence[str],
    left: float = 0,
) -> None:
    """Draw horizontal bars from the top down, each to its median, with its spread and a label behind it."""
    medians = [value["p50"] for value in values]
    below = [value["p50"] - value["p20"] for value in values]
    above = [value["p80"] - value["p50"] for value in values]
    axes.barh(range(len(values)), [median - left for median in medians], 0.66, left=left, color=colors)
    axes.errorbar(medians, range(len(values)), xerr=[below, above], fmt="none", ecolor=theme.muted)
    for index, (value, label, color) in enumerate(zip(values, labels, colors, strict=True)):
        weight = "bold" if color == theme.accent and len(set(colors)) == 2 else "normal"
        _label(axes, theme, label, (value["p80"], index), weight)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_xticks([])


def _label(axes: Axes, theme: Theme, text: str, place: tuple[float, float], weight: str = "normal") -> None:
    """Write to the right of a place in data coordinates."""
    style = {"va": "center", "fontsize": 9, "color": theme.ink, "fontweight": weight}
    axes.annotate(text, place, (5, 0), textcoords="offset points", annotation_clip=False, **style)


def number(value: float) -> str:
    """Write a ratio with one decimal below 10, whole above."""
    return f"{value:.1f}" if value < 9.95 else f"{value:.0f}"


def threads(count: int) -> str:
    """Say how many threads."""
    return "1 thread" if count == 1 else f"{count} threads"


def sizes(row: Mapping[str, Any]) -> str:
    """Say what one update is of."""
    hidden = "-".join(map(str, row["hidden_sizes"]))
    return (
        f"One SAC update of critics, actor, temperature and targets: observation {row['observation_dim']}, action "
        f"{row['action_dim']}, hidden {hidden}, batch {row['batch_size']}"
    )


def origin(result: Mapping[str, Any]) -> str:
    """Say with what machine, command, version and commit a result came about, and when."""
    hardware, versions = result["hardware"], result["versions"]
    command = re.sub(r" --output \S+", "", result["command"])
    return (
        f"{hardware['processor']}, {hardware['usable_cores']} cores, {result['native']['cpu_level'].upper()}, "
        f"torch {versions['torch']}, {result['date'][:10]}, commit {result['source']['commit'][:7]}: "
        f"{command}"
    )


def mixed(low: str, high: str, share: float) -> str:
    """Return the colour that lies that share of the way from one colour to another."""
    return to_hex([(1 - share) * a + share * b for a, b in zip(to_rgb(low), to_rgb(high), strict=True)])
