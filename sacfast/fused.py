"""The SAC update as one native call: the learner behind `backend="fused"`, on the CPU or on a GPU.

What an update does and in which order is documented in `sacfast.reference` and written once for the native backends
in csrc/update/sac_update.h. Both learners share parameters, names of their state and noise: a state of one continues
in the other.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from sacfast.config import SACConfig
from sacfast.devices import with_index
from sacfast.engines import METRICS, GpuEngines, UpdateSettings, Work, check_device, engine_bytes, make_engine
from sacfast.learner import (
    LearnerGroup,
    Replay,
    Turn,
    check_batch,
    check_float32,
    check_noise,
    check_state,
    check_update_arguments,
    metric_names,
    outcome_of,
    random_start,
)
from sacfast.networks import Actor, build_networks, check_learner_fits, network_bytes
from sacfast.types import Batch, Metrics

INDEX_WORDS_PER_CALL = 2**22
"""Most row numbers drawn for one native call: 16,384 updates with minibatches of 256."""

SECONDS_PER_CALL = 0.05
"""How long a native call on the CPU is to take, if it is more than one update: signals are heeded between calls."""

QUEUED_PER_CALL = 128
"""Most updates that a native call queues on a GPU: signals are heeded between calls."""

_SAME_NAME = (
    *("observation_dim", "action_dim", "batch_size", "gamma", "reward_scale", "target_entropy"),
    *("actor_lr", "critic_lr", "alpha_lr", "value_lr", "adam_eps", "tau", "target_update_interval"),
    *("value_network", "deterministic_policy", "log_std_bounding", "matmul_precision"),
)

# Where the engine has what a flat buffer holds, in its order: network and part.
_Segments = tuple[tuple[str, str], ...]
_SEGMENTS: dict[str, _Segments] = {
    "actor": (("actor", "parameters"),),
    "critic": (("q1", "parameters"), ("q2", "parameters")),
    "target_critic": (("q1", "target"), ("q2", "target")),
    "value": (("value", "parameters"),),
    "target_value": (("value", "target"),),
}
_OPTIMIZERS = {"actor": ("actor",), "critic": ("q1", "q2"), "value": ("value",)}
_ENGINE_NETWORKS = ("actor", "q1", "q2", "value")


class FusedLearner:
    """A `Learner` whose update runs natively: no Python, autograd or allocation between its steps.

    On the CPU it uses as many threads as torch is set to, but no more than this process may use cores; the results do
    not depend on their number.

    It belongs to the process that made it, and is updated by one thread at a time.

    On a GPU `update` queues its work and returns; when 512 launches are ahead of the GPU it waits. A failed update is
    reported by a later call, or by `wait`, and so is ValueError for a row number that the replay buffer has no row for;
    the updates queued behind it have then not been made. RuntimeError says at once what the GPU refuses; the updates
    queued before that have been made.
    """

    def __init__(
        self,
        observation_dim: int,
        action_dim: int,
        config: SACConfig | None = None,
        device: torch.device | str = "cpu",
        seed: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Draw parameters and start the noise, as `ReferenceLearner` does.

        `dtype` is torch.float32; torch.float64 serves tests. Raises ValueError for a size below 1, a negative seed,
        and a device, activation or dtype that this backend does not have; ValueError or MemoryError for sizes that do
        not fit.
        """
        self.config = config = config or SACConfig()
        self.device = with_index(device)
        if config.activation != "relu":
            raise ValueError(
                f"activation: the fused backend has 'relu' alone, got {config.activation!r}; "
                "use 'relu', or backend 'reference'"
            )
        self.observation_dim = observation_dim
        self.action_dim = action_dim
        self.metric_names = metric_names(config)
        check_device(self.device, dtype)
        if self.device.type == "cpu" or dtype != torch.float32:
            check_float32(config, f"with {dtype} on {self.device}")
        self._steps_per_call = min(QUEUED_PER_CALL, _most_steps(config)) if self.device.type == "cuda" else 1
        generator, noise_seed = random_start(seed)
        settings = self._checked_settings(dtype)
        self._turn = Turn()
        self._networks = build_networks(observation_dim, action_dim, config, self.device, dtype, generator)
        self._reported = torch.tensor([METRICS.index(name) for name in self.metric_names], device=self.device)
        try:
            self._engine = make_engine(settings, self.device, dtype)
        except MemoryError:
            raise MemoryError(
                f"hidden_sizes {config.hidden_sizes} with batch_size {config.batch_size}: no memory left for the "
                "learner's parameters and workspaces"
            ) from None
        for name, network in self._networks.items():
            self._write(_SEGMENTS[name], network.flat)
        counters = self._engine.counters
        counters.noise_state = (noise_seed, 0)
        counters.log_alpha = math.log(config.initial_alpha) if config.alpha == "auto" else 0.0

    def _checked_settings(self, dtype: torch.dtype) -> UpdateSettings:
        """Return the engine's settings; ValueError when networks and engine do not fit in the device's memory."""
        sizes = self.observation_dim, self.action_dim, self.config
        networks, _ = network_bytes(*sizes, dtype)
        # The least first: sizes far beyond any memory are no settings of the engine.
        least = networks + 3 * self.config.batch_size * (self.observation_dim + self.action_dim) * dtype.itemsize
        check_learner_fits(*sizes, least, self.device)
        settings = _settings(*sizes)
        check_learner_fits(*sizes, networks + engine_bytes(settings, self.device, dtype), self.device)
        return settings

    @property
    def actor(self) -> Actor:
        """See `Learner.actor`."""
        return cast(Actor, self._networks["actor"])

    @property
    def gradient_updates(self) -> int:
        """Whole updates made since the start. On a GPU those queued count, until one is known to have failed."""
        return self._engine.gradient_updates

    def update(self, replay: Replay, gradient_steps: int = 1, should_stop: Callable[[], bool] | None = None) -> Metrics:
        """Make `gradient_steps` whole updates, each on its own minibatch; return their mean metrics.

        The metrics are those of `ReferenceLearner.update`, and so are the minibatches: row numbers are drawn by the
        replay buffer, those of a native call together. The rows are read natively. `should_stop`, and signal handlers,
        are heeded between native calls: after 50 ms or an update, whichever is longer.

        Raises TypeError and ValueError as `Learner.update` says; RuntimeError when another thread is updating this
        learner, when this process was forked from the one that made it, or when the actor's parameters lie elsewhere
        than they were made; FloatingPointError when a loss, a gradient or an optimiser's second moment is not finite:
        its message names it and the update, and the parameters, optimisers and targets are those from before that
        update.
        """
        gradient_steps = check_update_arguments(replay, gradient_steps, self.config.batch_size)
        sums = self._no_metrics()
        made = 0
        with self._turn:
            while made < gradient_steps:
                steps = min(gradient_steps - made, self._steps_per_call)
                start = time.perf_counter()
                self._run(self._rows_of(replay), self._draw(replay, steps), sums)
                made += steps
                self._pace(steps, time.perf_counter() - start)
                if should_stop is not None and should_stop():
                    break
        return self._means(sums, made)

    def update_batch(self, batch: Batch, next_noise: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Make one update on `batch`; return its metrics [len(metric_names)].

        `next_noise` and `noise` are as in `ReferenceLearner.update_batch`, and so are the errors raised.
        """
        check_batch(self, batch)
        check_noise(self, next_noise, noise)
        rows = torch.cat([field.reshape(len(field), -1).float() for field in batch], 1).contiguous()
        dtype = self.actor.flat.dtype
        given = (None if each is None else each.to(dtype).contiguous() for each in (next_noise, noise))
        sums = self._no_metrics()
        with self._turn:
            self._run(rows, torch.arange(len(rows), device=self.device)[None], sums, *given)
        return self._reported_of(sums)

    def wait(self) -> None:
        """Wait for the updates that are queued. Raises FloatingPointError and RuntimeError as `update`."""
        with self._turn.reading():
            self._engine.wait()

    def profile(self, replay: Replay, gradient_steps: int) -> list[dict[str, Any]]:
        """Make updates and take the time of their phases.

        Returns:
            One entry a phase, each with the means over the updates: `phase`, its name; `milliseconds`, the mean over
            the threads; `megaflop`, of its matrix products, all threads together. Raises RuntimeError on a GPU.
        """
        with self._turn:
            before = self._engine.profile()
        self.update(replay, gradient_steps)
        updates_and_threads = gradient_steps * self._engine.threads()
        return [
            {
                "phase": name,
                "milliseconds": (seconds - seconds_before) / updates_and_threads * 1e3,
                "megaflop": (flop - flop_before) / gradient_steps * 1e-6,
            }
            for (name, seconds_before, flop_before), (_, seconds, flop) in zip(
                before, self._engine.profile(), strict=True
            )
        ]

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of everything that an exact resume needs, named as in `ReferenceLearner.state_dict`.

        Raises RuntimeError when another thread is updating this learner, or as `update` for the actor.
        """
        with self._turn.reading():
            return self._state()

    def _state(self) -> dict[str, Tensor]:
        self._checked_actor()
        self._engine.adopt(self.actor.flat.detach())
        counters = self._engine.counters
        dtype = self.actor.flat.dtype
        state: dict[str, Tensor] = {}
        for prefix, network in self._networks.items():
            self._read(_SEGMENTS[prefix], network.flat)
            state |= {f"{prefix}.{name}": each.detach().clone() for name, each in network.named_parameters()}
        if self.config.alpha == "auto":
            state["log_alpha"] = torch.tensor(counters.log_alpha, dtype=dtype)
        for name in self._optimizers():
            network = self._networks[name]
            state[f"{name}_optimizer.step"] = torch.tensor(float(self._adam_steps(name)))
            for part in ("exp_avg", "exp_avg_sq"):
                moment = torch.empty_like(network.flat)
                self._read(_moment(name, part), moment)
                state[f"{name}_optimizer.{part}"] = moment
        if self.config.alpha == "auto":
            state["alpha_optimizer.step"] = torch.tensor(float(counters.alpha_steps))
            state["alpha_optimizer.exp_avg"] = torch.tensor(counters.log_alpha_exp_avg, dtype=dtype)
            state["alpha_optimizer.exp_avg_sq"] = torch.tensor(counters.log_alpha_exp_avg_sq, dtype=dtype)
        state["gradient_updates"] = torch.tensor(self.gradient_updates)
        state["noise_state"] = torch.tensor(counters.noise_state)
        return state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` of a learner with the same configuration returned.

        Raises ValueError naming every entry that is missing, not expected, of another shape or dtype, or a count
        that is none, and TypeError for a value that is no tensor; RuntimeError as `update` does. Nothing has changed
        then.
        """
        with self._turn:
            self._load(state)

    def _load(self, state: Mapping[str, Tensor]) -> None:
        check_state(state, expected=self._state())
        counts = {name: _count(name, state[name]) for name in state if name.endswith(("_optimizer.step", "_updates"))}
        for prefix, network in self._networks.items():
            parameters = [state[f"{prefix}.{name}"].flatten() for name, _ in network.named_parameters()]
            self._write(_SEGMENTS[prefix], torch.cat(parameters))
        counters = self._engine.counters
        steps = list(counters.adam_steps)
        for name, engine_names in self._optimizers().items():
            for engine_name in engine_names:
                steps[_ENGINE_NETWORKS.index(engine_name)] = counts[f"{name}_optimizer.step"]
            for part in ("exp_avg", "exp_avg_sq"):
                self._write(_moment(name, part), state[f"{name}_optimizer.{part}"].contiguous())
        counters.adam_steps = steps
        if self.config.alpha == "auto":
            counters.log_alpha = float(state["log_alpha"])
            counters.alpha_steps = counts["alpha_optimizer.step"]
            counters.log_alpha_exp_avg = float(state["alpha_optimizer.exp_avg"])
            counters.log_alpha_exp_avg_sq = float(state["alpha_optimizer.exp_avg_sq"])
        counters.gradient_updates = counts["gradient_updates"]
        counters.noise_state = tuple(state["noise_state"].tolist())
        self._read(_SEGMENTS["actor"], self.actor.flat)

    def _run(
        self, rows: Tensor, index: Tensor, sums: Tensor, next_noise: Tensor | None = None, noise: Tensor | None = None
    ) -> None:
        """Make one update for each row of `index`; add the metrics of each to `sums`."""
        self._engine.run(rows, index, next_noise, noise, self._checked_actor(), sums)

    def _pace(self, steps: int, seconds: float) -> None:
        """Let the next native call take about SECONDS_PER_CALL, if the last one took `seconds` for `steps` updates.

        How updates are cut into calls changes no bit of a state. On a GPU, where a call only queues its work, it stays
        as it is.
        """
        if self.device.type == "cpu":
            in_time = int(steps * SECONDS_PER_CALL / max(seconds, 1e-6))
            self._steps_per_call = max(1, min(in_time, _most_steps(self.config)))

    def _checked_actor(self) -> Tensor:
        """Return the memory of the actor's parameters [P]; RuntimeError if the actor no longer has them there."""
        self.actor.check_memory("learner.actor")
        return self.actor.flat.detach()

    def _no_metrics(self) -> Tensor:
        return torch.zeros(len(METRICS), dtype=torch.float64, device=self.device)

    def _means(self, sums: Tensor, gradient_steps: int) -> Metrics:
        """Return the metrics that this learner reports, as means over the updates."""
        return Metrics(self.metric_names, sums[self._reported] / gradient_steps)

    def _reported_of(self, metrics: Tensor) -> Tensor:
        """Pick those that this learner reports from all metrics of an engine."""
        return metrics[self._reported].to(self.actor.flat.dtype)

    def _draw(self, replay: Replay, steps: int) -> Tensor:
        """Draw the row numbers of `steps` minibatches [steps, B]."""
        batch_size, device = self.config.batch_size, replay.rows.device
        numbers = replay.draw(steps * batch_size)
        fits = numbers.dtype == torch.int64 and numbers.shape == (steps * batch_size,)
        if not fits or numbers.device != device:
            raise ValueError(
                f"replay: expected {steps * batch_size} int64 row numbers on {device}, "
                f"got {numbers.dtype} {list(numbers.shape)} on {numbers.device}"
            )
        return numbers.view(steps, batch_size)

    def _rows_of(self, replay: Replay) -> Tensor:
        rows, width = replay.rows, 2 * self.observation_dim + self.action_dim + 2
        fits = rows.dtype == torch.float32 and rows.ndim == 2 and rows.shape[1] == width
        if not fits or rows.device != self.device:
            raise ValueError(
                f"replay: expected rows of {width} float32 on {self.device} (observation_dim {self.observation_dim}, "
                f"action_dim {self.action_dim}), got {rows.dtype} {list(rows.shape)} on {rows.device}"
            )
        if not rows.is_contiguous():
            raise ValueError(f"replay: expected contiguous rows, got strides {list(rows.stride())}")
        return rows.detach()

    def _optimizers(self) -> dict[str, tuple[str, ...]]:
        return {name: engine_names for name, engine_names in _OPTIMIZERS.items() if name in self._networks}

    def _adam_steps(self, name: str) -> int:
        return int(self._engine.counters.adam_steps[_ENGINE_NETWORKS.index(_OPTIMIZERS[name][0])])

    def _read(self, segments: _Segments, flat: Tensor) -> None:
        # The twin critics lie one behind the other.
        for (network, part), piece in zip(segments, flat.detach().chunk(len(segments)), strict=True):
            self._engine.read(network, part, piece)

    def _write(self, segments: _Segments, flat: Tensor) -> None:
        for (network, part), piece in zip(segments, flat.detach().chunk(len(segments)), strict=True):
            self._engine.write(network, part, piece)


class FusedGroup(LearnerGroup):
    """Learners on one GPU that every launch serves."""

    learners: tuple[FusedLearner, ...]

    def __init__(self, learners: Sequence[FusedLearner]) -> None:
        """Move the learners' state into one memory; each can still be used alone.

        Raises ValueError for more learners than a launch serves, torch.OutOfMemoryError when the GPU does not hold
        them twice; nothing has changed then.
        """
        super().__init__(learners)
        first = self.learners[0]
        settings = _settings(first.observation_dim, first.action_dim, first.config)
        states = [each.state_dict() for each in self.learners]
        self._engines = GpuEngines(settings, len(states), first.device, first.actor.flat.dtype)
        self._steps_per_call = min(QUEUED_PER_CALL, _most_steps(first.config))
        self._turn = Turn()  # of all: a launch serves them together
        for learner, engine, state in zip(self.learners, self._engines.seats, states, strict=True):
            learner._engine, learner._turn = engine, self._turn
            learner.load_state_dict(state)

    def update(
        self, work: Mapping[int, tuple[Replay, int]], should_stop: Callable[[], bool] | None = None
    ) -> dict[int, Metrics | Exception]:
        """See `LearnerGroup.update`. A failure is known, and returned, later: see `FusedLearner`."""
        with self._turn:
            return self._update(work, should_stop)

    def _update(
        self, work: Mapping[int, tuple[Replay, int]], should_stop: Callable[[], bool] | None
    ) -> dict[int, Metrics | Exception]:
        self._engines.look()
        asked = {number: outcome_of(self._check, number, *task) for number, task in work.items()}
        left = {number: 0 if isinstance(steps, Exception) else steps for number, steps in asked.items()}
        sums = torch.zeros(len(self.learners), len(METRICS), dtype=torch.float64, device=self.learners[0].device)
        while any(left.values()):
            now = {number: min(steps, self._steps_per_call) for number, steps in left.items()}
            calls: list[Work | None] = [None] * len(self.learners)
            for number, steps in now.items():
                if steps:
                    learner, replay = self.learners[number], work[number][0]
                    rows, index = learner._rows_of(replay), learner._draw(replay, steps)
                    calls[number] = Work(rows, index, learner._checked_actor())
            sums += self._engines.run(calls)
            left = {number: steps - now[number] for number, steps in left.items()}
            if should_stop is not None and should_stop():
                break
        return {
            number: steps
            if isinstance(steps, Exception)
            else self.learners[number]._means(sums[number], steps - left[number])
            for number, steps in asked.items()
        }

    def _check(self, number: int, replay: Replay, gradient_steps: int) -> int:
        """Return the gradient steps; raise what an earlier update has met, and what is wrong with the arguments."""
        self._engines.seats[number].check()
        gradient_steps = check_update_arguments(replay, gradient_steps, self.learners[number].config.batch_size)
        self.learners[number]._rows_of(replay)
        self.learners[number]._checked_actor()
        return gradient_steps


def _settings(observation_dim: int, action_dim: int, config: SACConfig) -> UpdateSettings:
    target_entropy = float(-action_dim) if config.target_entropy == "auto" else config.target_entropy
    given = config.to_dict() | {
        "observation_dim": observation_dim,
        "action_dim": action_dim,
        "target_entropy": target_entropy,
    }
    settings = UpdateSettings()
    for name in _SAME_NAME:
        setattr(settings, name, given[name])
    settings.hidden_sizes = list(config.hidden_sizes)
    settings.learn_alpha = config.alpha == "auto"
    settings.alpha = 0.0 if config.alpha == "auto" else config.alpha
    settings.adam_beta1, settings.adam_beta2 = config.adam_betas
    settings.hard_target_update = config.target_update == "hard"
    settings.log_std_low, settings.log_std_high = config.log_std_bounds
    return settings


def _most_steps(config: SACConfig) -> int:
    """Return how many minibatches are drawn at once, at most."""
    return max(1, INDEX_WORDS_PER_CALL // config.batch_size)


def _moment(name: str, part: str) -> _Segments:
    return tuple((network, part) for network in _OPTIMIZERS[name])


def _count(name: str, value: Tensor) -> int:
    number = float(value)
    if not (number >= 0 and number.is_integer()):
        raise ValueError(f"state: expected a count >= 0 for {name}, got {number}")
    return int(number)
