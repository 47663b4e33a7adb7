"""End to end: how fast training goes, against its learner's bare updates and against Stable-Baselines3.

With one update per transition, environment steps per second are updates per second. So the share of the bare rate says
what acting, the environments, the replay buffer and the loop leave of it.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from sacfast.benchmark.contenders import BARE_UPDATES, TRAIN, TRAIN_PEER
from sacfast.benchmark.harness import Spread
from sacfast.benchmark.problems import TrainProblem
from sacfast.benchmark.workers import open_team, take_turns


def measure(problem: TrainProblem, threads: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Let all three work `seconds` each in every round.

    Returns:
        Environment steps per second of trainer and peer, updates per second without environments, the share of them
        that the trainer makes, and how many times faster than the peer it is, as percentiles over the rounds; and why
        contenders are absent.

    Raises:
        ValueError: the trainer cannot work on this problem.
    """
    with open_team([TRAIN, BARE_UPDATES, TRAIN_PEER], problem, threads) as team:
        for name in (TRAIN, BARE_UPDATES):
            if name in team.absent:
                raise ValueError(team.absent[name])
        rates = {name: np.array(values) for name, values in take_turns(team.workers, rounds, seconds).items()}
    train, peer = rates[TRAIN], rates.get(TRAIN_PEER)
    return {
        **asdict(problem),
        "threads": threads,
        "rounds": rounds,
        "contender_versions": team.versions(),
        "absent": team.absent,
        "others_share_of_cores": Spread.of(team.others()).to_dict(),
        "steps_per_second": Spread.of(train).to_dict(),
        "bare_updates_per_second": Spread.of(rates[BARE_UPDATES]).to_dict(),
        "fraction_of_bare_updates": Spread.of(train / rates[BARE_UPDATES]).to_dict(),
        "peer_steps_per_second": None if peer is None else Spread.of(peer).to_dict(),
        "times_faster_than_peer": None if peer is None else Spread.of(train / peer).to_dict(),
    }
