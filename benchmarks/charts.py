"""The pictures: each a function from a theme and the data of benchmarks/results to a canvas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.canvas import TIMES, WIDTH, Canvas, Theme, number, origin, spread, threads

CONTENDERS = {
    "fused": "sacfast",
    "reference": "PyTorch, eager",
    "reference_compiled": "torch.compile",
    "stable_baselines3": "Stable-Baselines3",
    "sbx": "SBX (JAX)",
    "rltools": "RLtools (C++)",
}
MEDIANS = "Bars: median over the rounds; thin lines: 20th to 80th percentile."


def updates(theme: Theme, result: Mapping[str, Any]) -> Canvas:
    """Draw updates a second of every contender, by number of threads."""
    left, top, bar, gap = 132, 68, 27, 24
    rows = result["rows"]
    names = sorted(rows[0]["updates_per_second"], key=lambda name: rows[0]["updates_per_second"][name]["p50"])
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
        values = [rates[name]["p50"] for name in names]
        axes.barh(names, values, 0.66, color=[theme.accent if name == "fused" else theme.peer for name in names])
        axes.errorbar(values, names, xerr=spread([rates[name] for name in names]), fmt="none", ecolor=theme.muted)
        for name in names:
            label = f"{rates[name]['p50']:.0f}" + (f" ({number(ratios[name]['p50'])}{TIMES})" if name in ratios else "")
            bold = "bold" if name == "fused" else "normal"
            place = (rates[name]["p80"], name)
            axes.annotate(
                label, place, (5, 0), textcoords="offset points", va="center", fontsize=9, color=theme.ink, weight=bold
            )
        axes.set_xlim(0, 1.2 * max(rates[name]["p80"] for name in names))
        axes.set_xticks([])
        axes.set_yticks(names, [CONTENDERS[name] for name in names] if index == 0 else [])
        if index == 0:
            axes.get_yticklabels()[names.index("fused")].set_fontweight("bold")
        axes.set_title(threads(row["threads"]), loc="left", fontsize=9, color=theme.muted)
    canvas.note(top + height + 12, f"{sizes(rows[0])}; {rows[0]['rounds']} rounds. {MEDIANS}", f"{origin(result)}.")
    return canvas


def sizes(row: Mapping[str, Any]) -> str:
    """Say what one update is of."""
    hidden = "-".join(map(str, row["hidden_sizes"]))
    return (
        f"One SAC update of critics, actor, temperature and targets: observation {row['observation_dim']}, action "
        f"{row['action_dim']}, hidden {hidden}, batch {row['batch_size']}"
    )
