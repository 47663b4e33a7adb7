"""The native engines of the fused update behind one interface: tensors in, tensors out, on the CPU or on a GPU.

What an engine computes is written once, in csrc/update/sac_update.h. Only `sacfast.fused` uses these classes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from sacfast import _ext
from sacfast._install import advice

try:
    from sacfast import _C
except ImportError as error:
    raise ImportError(
        f"sacfast: the native module _C is not built for this Python ({error}); {advice('_C')}; "
        "or use backend 'reference'"
    ) from error

UpdateSettings = _C.UpdateSettings


class Engine(Protocol):
    """Networks, optimisers and counters of one learner, and the updates that advance them."""

    @property
    def counters(self) -> _C.UpdateCounters:
        """The state that is no tensor, after all updates made so far. Changes count from the next update on."""
        ...

    @property
    def gradient_updates(self) -> int:
        """Whole updates made since the start, those under way included; waits for nothing."""
        ...

    def run(
        self, rows: Tensor, index: Tensor, next_noise: Tensor | None, noise: Tensor | None, actor: Tensor, sums: Tensor
    ) -> None:
        """Make one update for each row of `index` [steps, B]; add the metrics of each to `sums` [len(METRICS)] float64.

        `rows` [capacity, 2*O + A + 2] float32 is the replay buffer's memory; given noise [B, A] serves every update.
        `actor` [P] has the actor's parameters: the updates start from them, and leave there what results. All are on
        the engine's device, and contiguous.

        Raises FloatingPointError when a loss, a gradient or a second moment of an optimiser was not finite, ValueError
        for a row number that `rows` does not have; the state is that of before this update.
        """
        ...

    def adopt(self, actor: Tensor) -> None:
        """Take the actor's parameters from `actor` [P], which somebody may have written to since the last call."""
        ...

    def read(self, network: str, part: str, into: Tensor) -> None:
        """Write a part of a network, in torch's order, to `into` [P]."""
        ...

    def write(self, network: str, part: str, values: Tensor) -> None:
        """Take a part of a network, in torch's order, from `values` [P]."""
        ...

    def profile(self) -> list[tuple[str, float, float]]:
        """Return phase, seconds and floating-point operations so far, and measure from now on."""
        ...

    def threads(self) -> int:
        """Return how many of the host's threads share an update."""
        ...

    def wait(self) -> None:
        """Wait for the updates under way; raises as `run`."""
        ...


METRICS: tuple[str, ...] = tuple(_C.METRICS)


def check_device(device: torch.device, dtype: torch.dtype) -> None:
    """Raise ValueError for a device or dtype that no engine has, or that this machine lacks."""
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: the fused backend runs on 'cpu' and 'cuda', got {str(device)!r}")
    if device.type == "cuda" and (reason := _ext.cuda_reason(device.index)):
        raise ValueError(f"device: expected one that this machine has, got {str(device)!r}: {reason}")
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")


def engine_bytes(settings: _C.UpdateSettings, device: torch.device, dtype: torch.dtype) -> int:
    """Return how much of the device's memory `make_engine` and the updates take."""
    if device.type == "cuda":
        return int((_C.GpuEngine32 if dtype == torch.float32 else _C.GpuEngine64).bytes(settings, 1))
    return (_C.Engine32 if dtype == torch.float32 else _C.Engine64).bytes(settings, _most_threads(settings))


def _most_threads(settings: _C.UpdateSettings) -> int:
    return min(usable_cores(), settings.batch_size)


def make_engine(settings: _C.UpdateSettings, device: torch.device, dtype: torch.dtype) -> Engine:
    """Build the engine for a device that `check_device` lets pass.

    Raises MemoryError, or torch.OutOfMemoryError, when the device's memory does not hold it.
    """
    return CpuEngine(settings, dtype) if device.type == "cpu" else GpuEngines(settings, 1, device, dtype).seats[0]


class CpuEngine:
    """As many threads as torch is set to, but no more than this process may use cores. Results do not depend on it."""

    def __init__(self, settings: _C.UpdateSettings, dtype: torch.dtype) -> None:
        """Allocate all that updates need."""
        engine_type = _C.Engine32 if dtype == torch.float32 else _C.Engine64
        self._engine = engine_type(settings)
        self._settings = settings
        self._limit = _most_threads(settings)

    @property
    def counters(self) -> _C.UpdateCounters:
        """See `Engine`."""
        return self._engine.counters

    @property
    def gradient_updates(self) -> int:
        """See `Engine`."""
        return int(self._engine.counters.gradient_updates)

    def run(
        self, rows: Tensor, index: Tensor, next_noise: Tensor | None, noise: Tensor | None, actor: Tensor, sums: Tensor
    ) -> None:
        """See `Engine`. Also raises RuntimeError for use by two threads at once, or after a fork."""
        given = (None if each is None else each.numpy() for each in (next_noise, noise))
        result = self._engine.update(rows.numpy(), index.numpy(), self.threads(), actor.numpy(), sums.numpy(), *given)
        if result["fault"]:
            bad = self._not_finite(rows[index[result["updates"]]])
            raise FloatingPointError(fault_message(result["fault"], self.gradient_updates, bad))

    def adopt(self, actor: Tensor) -> None:
        """See `Engine`."""
        self._engine.adopt(actor.numpy())

    def read(self, network: str, part: str, into: Tensor) -> None:
        """See `Engine`."""
        self._engine.read(network, part, into.numpy())

    def write(self, network: str, part: str, values: Tensor) -> None:
        """See `Engine`."""
        self._engine.write(network, part, values.numpy())

    def profile(self) -> list[tuple[str, float, float]]:
        """See `Engine`."""
        return self._engine.profile()

    def threads(self) -> int:
        """See `Engine`."""
        return max(1, min(torch.get_num_threads(), self._limit))

    def wait(self) -> None:
        """See `Engine`: `run` has waited."""

    def _not_finite(self, rows: Tensor) -> str:
        """Say which columns of a minibatch hold a number that is not finite, if any does."""
        sizes = (self._settings.observation_dim, self._settings.action_dim, 1, self._settings.observation_dim, 1)
        names = ("observation", "action", "reward", "next_observation", "terminated")
        bad = [name for name, field in zip(names, rows.split(sizes, 1), strict=True) if not field.isfinite().all()]
        return f" (the minibatch holds NaN or infinity in: {', '.join(bad)})" if bad else ""


@dataclass(frozen=True)
class Work:
    """What one of several learners is to do in a call: see `Engine.run`."""

    rows: Tensor
    index: Tensor
    actor: Tensor


@dataclass
class _Progress:
    """What is known of one learner's updates."""

    queued: int = 0  # since the GPU was last waited for
    made: int | None = 0  # when the GPU was last waited for; None: to be asked
    fault: str = ""  # found, and not raised yet


class GpuEngines:
    """The engines of S learners side by side: every launch serves all of them. A learner alone is one of one.

    Updates are CUDA graphs: a call queues its work behind what was queued before, and waits for nothing while fewer
    than 512 launches are ahead of the GPU. So an update that failed is known later. Until then every update queued
    behind it does nothing, and the learner's next call that finds it raises what it met; the other learners go on. One
    thread at a time: the caller sees to it.
    """

    def __init__(self, settings: _C.UpdateSettings, learners: int, device: torch.device, dtype: torch.dtype) -> None:
        """Take all memory that updates need, from torch. Raises ValueError for more learners than a call can serve."""
        self.device = device
        self.progress = tuple(_Progress() for _ in range(learners))
        self._is_pending = False  # work was queued since the GPU was last waited for
        engine_type = _C.GpuEngine32 if dtype == torch.float32 else _C.GpuEngine64
        with torch.cuda.device(device):
            self._memory = torch.empty(engine_type.bytes(settings, learners), dtype=torch.uint8, device=device)
            self._stream = self._current_stream().cuda_stream
            self._native = engine_type(settings, learners, self._memory.data_ptr(), self._stream)

    @property
    def seats(self) -> tuple[GpuEngine, ...]:
        """The engine of each learner."""
        # Made when asked for: engines that held them would hold themselves, and their memory until garbage is collected
        return tuple(GpuEngine(self, learner) for learner in range(len(self.progress)))

    @contextmanager
    def native(self, learner: int = 0) -> Iterator[Any]:
        """Give the native engine, which queues on the current stream and speaks of `learner`."""
        with torch.cuda.device(self.device):
            stream = self._current_stream()
            if stream.cuda_stream != self._stream:
                self._memory.record_stream(stream)  # torch gives it to nobody before the work there is done
                self._native.use_stream(stream.cuda_stream)
                self._stream = stream.cuda_stream
            self._native.select(learner)
            yield self._native

    def run(self, work: Sequence[Work | None], next_noise: Tensor | None = None, noise: Tensor | None = None) -> Tensor:
        """Queue each learner's work (None: nothing); return the sums of the metrics [S, len(METRICS)].

        The result and the actors are there in the order of the current stream. Raises RuntimeError when the GPU refuses
        some of the work: the updates queued before that count.
        """
        for learner in range(len(self.progress)):
            self.known_updates(learner)
        with self.native() as native:
            metrics = torch.empty(len(work), len(METRICS), dtype=torch.float64, device=self.device)
            self._is_pending = True
            native.enqueue(
                work=[(0, 0, 0, 0, 0) if each is None else _addresses(each) for each in work],
                next_noise=0 if next_noise is None else next_noise.data_ptr(),
                noise=0 if noise is None else noise.data_ptr(),
                metrics=metrics.data_ptr(),
            )
        for mine, each in zip(self.progress, work, strict=True):
            mine.queued += 0 if each is None else len(each.index)
        return metrics

    def known_updates(self, learner: int) -> int:
        """Return the updates made when the GPU was last waited for."""
        mine = self.progress[learner]
        # Asked while nothing is queued: `GpuEngine.counters` has waited, and `run` asks before it queues.
        if mine.made is None:
            with self.native(learner) as native:
                mine.made = int(native.counters.gradient_updates)
        return mine.made

    def look(self) -> None:
        """Take note of what came of the work that was queued, if it is done; wait for nothing."""
        if not self._is_pending:
            return
        with self.native() as native:
            is_done = native.is_done()
        if is_done:
            self.wait()

    def wait(self) -> None:
        """Wait for the GPU, and take note of what came of the work."""
        if not self._is_pending:
            return
        with self.native() as native:
            outcomes = native.collect()
        self._is_pending = False
        for mine, outcome in zip(self.progress, outcomes, strict=True):
            mine.made, mine.queued = outcome["gradient_updates"], 0
            mine.fault = mine.fault or outcome["fault"]

    def _current_stream(self) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self.device)


class GpuEngine:
    """One learner's engine of `GpuEngines`."""

    def __init__(self, engines: GpuEngines, learner: int) -> None:
        """Speak for learner number `learner`."""
        self.engines = engines
        self._learner = learner

    @property
    def counters(self) -> _C.UpdateCounters:
        """See `Engine`; waits for the GPU."""
        self.engines.wait()
        self.engines.progress[self._learner].made = None
        with self.engines.native(self._learner) as native:
            counters: _C.UpdateCounters = native.counters
        return counters

    @property
    def gradient_updates(self) -> int:
        """See `Engine`. Those that a failed update keeps from being made count until the failure is known."""
        return self.engines.known_updates(self._learner) + self.engines.progress[self._learner].queued

    def run(
        self, rows: Tensor, index: Tensor, next_noise: Tensor | None, noise: Tensor | None, actor: Tensor, sums: Tensor
    ) -> None:
        """See `Engine` and `GpuEngines.run`; the other learners do nothing."""
        self.engines.look()
        self.check()
        work: list[Work | None] = [None] * len(self.engines.progress)
        work[self._learner] = Work(rows, index, actor)
        sums += self.engines.run(work, next_noise, noise)[self._learner]

    def adopt(self, actor: Tensor) -> None:
        """See `Engine`; waits for the GPU, which `run` does not."""
        self.write("actor", "parameters", actor)

    def check(self) -> None:
        """Raise what a failed update has met, if one is known to have failed.

        That is FloatingPointError, or ValueError for a row number that the replay buffer has no row for.
        """
        mine = self.engines.progress[self._learner]
        if mine.fault:
            fault, mine.fault = mine.fault, ""
            kind = ValueError if fault.startswith("index:") else FloatingPointError
            raise kind(fault_message(fault, self.gradient_updates))

    def wait(self) -> None:
        """Wait for the GPU, and raise what a failed update has met."""
        self.engines.wait()
        self.check()

    def read(self, network: str, part: str, into: Tensor) -> None:
        """See `Engine`; waits for the GPU."""
        self.engines.wait()
        with self.engines.native(self._learner) as native:
            native.read(network, part, into.data_ptr())

    def write(self, network: str, part: str, values: Tensor) -> None:
        """See `Engine`; waits for the GPU."""
        self.engines.wait()
        with self.engines.native(self._learner) as native:
            native.write(network, part, values.data_ptr())

    def profile(self) -> list[tuple[str, float, float]]:
        """Raise RuntimeError: the phases of a graph are not timed one by one."""
        raise RuntimeError("profile: phases are timed on the CPU; on a GPU use a profiler such as nsys")

    def threads(self) -> int:
        """See `Engine`."""
        return 1


def _addresses(work: Work) -> tuple[int, int, int, int, int]:
    return work.rows.data_ptr(), len(work.rows), work.index.data_ptr(), len(work.index), work.actor.data_ptr()


def fault_message(fault: str, updates: int, detail: str = "") -> str:
    """Return the message for `fault`, met by the update after `updates` whole ones."""
    met = fault if fault.startswith("index:") else f"{fault} is not finite{detail}"
    return f"update {updates + 1}: {met}; the learner is as it was after update {updates}"


def usable_cores() -> int:
    """Return how many cores this process may keep busy: by its affinity and by its control group's quota."""
    cores = float(len(os.sched_getaffinity(0)))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except OSError:
        return int(cores)  # no control groups, or their first version, which containers no longer use
    if quota != "max":
        cores = min(cores, float(quota) / float(period))
    return max(1, math.floor(cores))
