# What csrc/update/update_bind.cpp defines. T: float32 for Engine32, float64 for Engine64.
from typing import Any

import numpy as np

_Array = np.ndarray[Any, Any]

class UpdateSettings:
    """The fields of `SACConfig` that the update reads; csrc/update/engine.h documents those of another name."""

    def __init__(self) -> None: ...
    observation_dim: int
    action_dim: int
    batch_size: int
    hidden_sizes: list[int]
    gamma: float
    reward_scale: float
    learn_alpha: bool
    alpha: float
    target_entropy: float
    actor_lr: float
    critic_lr: float
    alpha_lr: float
    value_lr: float
    adam_beta1: float
    adam_beta2: float
    adam_eps: float
    hard_target_update: bool
    tau: float
    target_update_interval: int
    value_network: bool
    deterministic_policy: bool
    log_std_bounding: str
    log_std_low: float
    log_std_high: float
    matmul_precision: str

class UpdateCounters:
    """State that is not a network's: temperature, counts and noise."""

    log_alpha: float
    log_alpha_exp_avg: float
    log_alpha_exp_avg_sq: float
    alpha_steps: int
    gradient_updates: int
    noise_state: tuple[int, int]
    adam_steps: list[int]

class _Engine:
    def __init__(self, settings: UpdateSettings) -> None: ...
    @staticmethod
    def bytes(settings: UpdateSettings, threads: int) -> int:
        """Return how much memory an engine takes, with so many threads."""

    @property
    def counters(self) -> UpdateCounters: ...
    def update(
        self,
        rows: _Array,
        index: _Array,
        threads: int,
        actor: _Array,
        metrics: _Array,
        next_noise: _Array | None = None,
        noise: _Array | None = None,
    ) -> dict[str, Any]:
        """Make one update for each row of `index` [steps, B]; return updates, gradient_updates and fault.

        `actor` [P] of T: see `adopt`; it takes the parameters that result. Every update adds its metrics to `metrics`
        [len(METRICS)] float64.
        """

    def adopt(self, actor: _Array) -> None:
        """Take the actor's parameters from `actor` [P], if they are not those that the engine left there."""

    def read(self, network: str, part: str, into: _Array) -> None:
        """Write a part of a network, in torch's order, to `into` [P] of T."""

    def write(self, network: str, part: str, values: _Array) -> None:
        """Take a part of a network, in torch's order, from `values` [P] of T."""

    def profile(self) -> list[tuple[str, float, float]]:
        """Return phase, seconds and floating-point operations so far, and measure from now on."""

class Engine32(_Engine): ...
class Engine64(_Engine): ...

class _GpuEngine:
    """Learners side by side on a GPU. Addresses are those of tensors there; 0 stands for none."""

    def __init__(self, settings: UpdateSettings, learners: int, memory: int, stream: int) -> None: ...
    @staticmethod
    def bytes(settings: UpdateSettings, learners: int) -> int:
        """Return how many bytes `memory` must hold."""

    @property
    def counters(self) -> UpdateCounters: ...
    def use_stream(self, stream: int) -> None:
        """Queue what follows there, behind what was queued elsewhere before."""

    def enqueue(self, work: list[tuple[int, int, int, int, int]], next_noise: int, noise: int, metrics: int) -> None:
        """Queue for each learner (rows, how many there are, index, steps, actor). Its actor [P] of T is read and then
        written; the sums of the metrics [S, len(METRICS)] float64 are written."""

    def is_done(self) -> bool:
        """Say whether `collect` would not wait."""

    def collect(self) -> list[dict[str, Any]]:
        """Wait; return updates, fault and gradient_updates of each learner."""

    def select(self, learner: int) -> None:
        """Say of which learner `counters`, `read` and `write` speak."""

    def read(self, network: str, part: str, into: int) -> None: ...
    def write(self, network: str, part: str, values: int) -> None: ...

class GpuEngine32(_GpuEngine): ...  # in a build with CUDA only
class GpuEngine64(_GpuEngine): ...

METRICS: list[str]

def fma_peak(threads: int, seconds: float) -> float:
    """Return the floating-point operations a second that the threads reach together on registers alone."""
