"""The speed of one SAC gradient update, by this package and by others, in turns in every round.

Beside updates per second there is the share of the device's peak: the operations that an update cannot do without
(`problems.update_flops`), over what the same cores did in the same round when they did nothing but multiply and add
(a GPU: a large product of matrices).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from sacfast.benchmark.contenders import FUSED, PEAK, PRODUCT, peak_of
from sacfast.benchmark.harness import Spread
from sacfast.benchmark.problems import UpdateProblem
from sacfast.benchmark.workers import Team, open_team, take_turns

HUMANOID = (348, 17)
"""Observation and action size of Humanoid-v5."""

PROFILED_UPDATES = 100
"""Updates in one round of `profile`."""


def sweep(device: str = "cpu") -> Iterator[UpdateProblem]:
    """Yield the sizes at which the fused update is set against eager torch, small to large."""
    for width in (64, 128, 256, 512, 1024):
        for batch_size in (64, 256, 1024, 4096):
            yield UpdateProblem(hidden_sizes=(width, width), batch_size=batch_size, device=device)
    for width, batch_size in ((64, 64), (256, 64), (256, 256), (256, 1024), (256, 4096), (1024, 256), (1024, 4096)):
        yield UpdateProblem(*HUMANOID, hidden_sizes=(width, width), batch_size=batch_size, device=device)


def measure(
    problem: UpdateProblem, threads: int, rounds: int, seconds: float, contenders: Sequence[str]
) -> dict[str, Any]:
    """Let the contenders and the peak work `seconds` each in every round; on a CPU a large product of matrices, too.

    Returns:
        For each contender updates per second, share of the peak, and how many times faster the fused update is, as
        percentiles over the rounds; the large product's share of the peak; and why contenders are absent.
    """
    peak = peak_of(problem.device)
    measures = [PEAK, PRODUCT] if peak == PEAK else [peak]
    with open_team([*contenders, *measures], problem, threads) as team:
        rates = take_turns(team.workers, rounds, seconds)
    return {**_settings(problem, threads, rounds, seconds, team), **_summarize(problem, rates, peak)}


def measure_profile(problem: UpdateProblem, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Take the time of the fused update's phases, and the peak in between.

    Returns:
        For each phase milliseconds of an update, share of all phases, and share of the peak (None without matrix
        products), as percentiles over the rounds; and why contenders are absent.
    """
    profiles, peaks = [], []
    with open_team([FUSED, PEAK], problem, threads) as team:
        for _ in range(rounds if not team.absent else 0):
            peaks.append(team.workers[PEAK].rate(seconds))
            profiles.append(team.workers[FUSED].profile(PROFILED_UPDATES) or [])
    return {
        **_settings(problem, threads, rounds, seconds, team),
        "phases": [_phase(index, profiles, peaks) for index in range(len(profiles[0]) if profiles else 0)],
    }


def _settings(problem: UpdateProblem, threads: int, rounds: int, seconds: float, team: Team) -> dict[str, Any]:
    return {
        **asdict(problem),
        "hidden_sizes": list(problem.hidden_sizes),
        "threads": threads,
        "rounds": rounds,
        "seconds": seconds,
        "megaflop_per_update": problem.flops * 1e-6,
        "contender_versions": team.versions(),
        "absent": team.absent,
        "others_share_of_cores": Spread.of(team.others() or [0.0]).to_dict(),
    }


def _summarize(problem: UpdateProblem, rates: Mapping[str, list[float]], peak_name: str) -> dict[str, Any]:
    contenders = {name: np.array(values) for name, values in rates.items() if name not in (peak_name, PRODUCT)}
    peak = np.array(rates[peak_name]) if peak_name in rates else None
    product = np.array(rates[PRODUCT]) if PRODUCT in rates else None
    fused = contenders.get(FUSED)
    return {
        "peak_gigaflops": None if peak is None else Spread.of(peak).to_dict(1e-9),
        "product_fraction_of_peak": None if peak is None or product is None else Spread.of(product / peak).to_dict(),
        "updates_per_second": {name: Spread.of(values).to_dict() for name, values in contenders.items()},
        "fraction_of_peak": {}
        if peak is None
        else {name: Spread.of(values * problem.flops / peak).to_dict() for name, values in contenders.items()},
        "fused_is_times_faster": {}
        if fused is None
        else {name: Spread.of(fused / values).to_dict() for name, values in contenders.items() if name != FUSED},
    }


def _phase(index: int, profiles: Sequence[Sequence[Mapping[str, Any]]], peaks: Sequence[float]) -> dict[str, Any]:
    phases = [profile[index] for profile in profiles]
    milliseconds = np.array([phase["milliseconds"] for phase in phases])
    update = np.array([sum(phase["milliseconds"] for phase in profile) for profile in profiles])
    megaflop = phases[0]["megaflop"]
    share_of_peak = Spread.of(megaflop * 1e9 / milliseconds / np.array(peaks)).to_dict() if megaflop else None
    return {
        "phase": phases[0]["phase"],
        "megaflop": megaflop,
        "milliseconds": Spread.of(milliseconds).to_dict(),
        "share": Spread.of(milliseconds / update).to_dict(),
        "fraction_of_peak": share_of_peak,
    }
