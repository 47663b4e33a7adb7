"""What a learner is, whichever backend carries out its updates, and how to make one."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ParamSpec, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from sacfast.config import SACConfig, check_backend
from sacfast.networks import Actor
from sacfast.scalars import as_int
from sacfast.types import Batch, Metrics

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")
_SECONDS_PER_LOOK = 0.01  # between two looks at whether what is waited for can still end


class Replay(Protocol):
    """What a learner needs of a replay buffer."""

    def __len__(self) -> int:
        """Return the number of transitions held."""
        ...

    def sample(self, batch_size: int) -> Batch:
        """Draw `batch_size` transitions, on the learner's device."""
        ...

    @property
    def rows(self) -> Tensor:
        """Every transition as a row [capacity, 2*O + A + 2]: x, a, r, x', terminated."""
        ...

    def draw(self, count: int) -> Tensor:
        """Draw the numbers of `count` rows [count] int64, as that many transitions are sampled.

        `draw(a + b)` must return what `draw(a)` and `draw(b)` in turn return: how many updates are drawn for at once
        depends on the time that they take. A buffer that draws otherwise does not repeat a run.
        """
        ...


class Learner(Protocol):
    """Parameters, optimiser state and noise of one SAC agent, and the update that advances them."""

    config: SACConfig
    observation_dim: int
    action_dim: int
    device: torch.device

    @property
    def actor(self) -> Actor:
        """The current policy; its parameters change in place with every update.

        They may be written to between calls, in place: the next call goes on from what it finds.
        """
        ...

    @property
    def gradient_updates(self) -> int:
        """Whole updates made since the start."""
        ...

    def update(self, replay: Replay, gradient_steps: int = 1, should_stop: Callable[[], bool] | None = None) -> Metrics:
        """Make `gradient_steps` whole updates, each on its own minibatch; return their mean metrics.

        `should_stop` is asked between updates; once it says True no more are made: `gradient_updates` tells how many
        were. At least one is made. Python's signal handlers run between updates too: Ctrl-C does not wait for the last.

        With 0 steps nothing changes and the means are NaN. Raises TypeError when `gradient_steps` is no whole number,
        ValueError when it is negative or when `replay` holds fewer transitions than one minibatch.
        """
        ...

    def wait(self) -> None:
        """Wait for updates under way: on a GPU `update` may return before them. Raises what they have met."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of everything that an exact resume needs, by name.

        Raises RuntimeError while another thread is updating this learner.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from what `state_dict` of a learner with the same configuration returned.

        Raises as `check_state`; nothing has changed then.
        """
        ...


def make_learner(
    observation_dim: int,
    action_dim: int,
    config: SACConfig | None = None,
    backend: str = "fused",
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> Learner:
    """Build a learner for observations [O] and actions [A] with freshly drawn parameters.

    `config` None is `SACConfig()`. The same `seed` (an int >= 0) gives the same parameters and noise. Raises
    ValueError for a backend that does not exist, or not for this device or configuration, and for a size below 1.
    """
    check_backend(backend)
    # Late: they build on the interfaces above.
    if backend == "fused":
        from sacfast.fused import FusedLearner

        return FusedLearner(observation_dim, action_dim, config, device=device, seed=seed)
    from sacfast.reference import ReferenceLearner

    return ReferenceLearner(observation_dim, action_dim, config, device=device, seed=seed)


class LearnerGroup:
    """Learners that are updated together, each as if it were alone. Here they take turns: see `side_by_side`."""

    def __init__(self, learners: Sequence[Learner]) -> None:
        """Take at least one learner."""
        self.learners = tuple(learners)

    def update(
        self, work: Mapping[int, tuple[Replay, int]], should_stop: Callable[[], bool] | None = None
    ) -> dict[int, Metrics | Exception]:
        """Make updates of some learners: by the number of each, its replay buffer and its gradient steps.

        `should_stop` is as in `Learner.update`. Returns what `Learner.update` returns or raises, for each: one that
        fails stops none of the others.
        """
        return {number: outcome_of(self.learners[number].update, *task, should_stop) for number, task in work.items()}


def side_by_side(learners: Sequence[Learner]) -> LearnerGroup:
    """Return a group of learners that may differ in their seeds and their state alone.

    On a GPU the fused ones then share memory and launches, so that several cost little more than one. Raises
    ValueError for learners of different kinds, sizes, devices or configurations, or more than a launch serves.
    """
    from sacfast.fused import FusedGroup, FusedLearner  # late: it builds on the interfaces above

    kinds = [
        (type(each).__name__, each.observation_dim, each.action_dim, str(each.device), each.config) for each in learners
    ]
    for kind in kinds:
        if kind != kinds[0]:
            raise ValueError(f"learners: expected a group that differs in seeds alone, got {kinds[0]} and {kind}")
    fused = [each for each in learners if isinstance(each, FusedLearner)]
    is_one_launch = len(fused) > 1 and fused[0].device.type == "cuda"
    return FusedGroup(fused) if is_one_launch else LearnerGroup(learners)


def outcome_of(
    function: Callable[_Arguments, _Result], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Result | Exception:
    """Call; return what was returned or raised."""
    try:
        return function(*args, **kwargs)
    except Exception as error:
        return error


def metric_names(config: SACConfig) -> tuple[str, ...]:
    """Return the names of the metrics that an update reports, in order."""
    names = ["critic_loss", "actor_loss", "q_mean", "target_mean", "alpha"]
    if config.alpha == "auto":
        names.append("alpha_loss")
    if not config.deterministic_policy:
        names.append("entropy")
    if config.value_network:
        names.append("value_loss")
    return tuple(names)


def random_start(seed: int) -> tuple[torch.Generator, int]:
    """Return a learner's generator of initial parameters, and the seed of its noise.

    The two must not share one stream of random numbers. Raises ValueError for a negative `seed`.
    """
    if seed < 0:
        raise ValueError(f"seed: expected an int >= 0, got {seed}")
    init_seed, noise_seed = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    return torch.Generator().manual_seed(init_seed), noise_seed


def check_float32(config: SACConfig, where: str) -> None:
    """Raise ValueError for a configuration that asks for less than float32 in matrix products."""
    if config.matmul_precision != "float32":
        raise ValueError(
            f"matmul_precision: expected 'float32' {where}, got {config.matmul_precision!r}, which the fused backend "
            "has in float32 on a GPU"
        )


def check_update_arguments(replay: Replay, gradient_steps: int, batch_size: int) -> int:
    """Return `gradient_steps` as an int; raise what `Learner.update` documents, before anything is changed."""
    gradient_steps = as_int("gradient_steps", gradient_steps, 0)
    if len(replay) < batch_size:
        raise ValueError(f"replay: expected at least batch_size ({batch_size}) transitions, got {len(replay)}")
    return gradient_steps


def check_batch(learner: Learner, batch: Batch) -> None:
    """Raise TypeError or ValueError for a field of `batch` that is not as `types.Batch` says, for this learner.

    float64 is taken too. Nothing is broadcast: a reward [B, 1] would make a target [B, B].
    """
    tails = ((learner.observation_dim,), (learner.action_dim,), (), (learner.observation_dim,), ())
    for name, field, tail in zip(Batch._fields, batch, tails, strict=True):
        shape = (learner.config.batch_size, *tail)
        _check_data(name, field, shape, (torch.float32, torch.float64), learner.device)


def check_noise(learner: Learner, next_noise: Tensor | None, noise: Tensor | None) -> None:
    """Raise TypeError or ValueError for noise that does not fit, or that the configured update has no use for."""
    config, like = learner.config, learner.actor.flat
    if next_noise is not None and (config.value_network or config.deterministic_policy):
        raise ValueError("next_noise: expected None with a value network or a deterministic policy")
    if noise is not None and config.deterministic_policy:
        raise ValueError("noise: expected None with a deterministic policy")
    for name, each in (("next_noise", next_noise), ("noise", noise)):
        if each is not None:
            _check_data(name, each, (config.batch_size, learner.action_dim), (like.dtype,), learner.device)


def _check_data(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if tensor.dtype not in dtypes:
        raise TypeError(f"{name}: expected dtype {' or '.join(map(str, dtypes))}, got {tensor.dtype}")
    if tensor.shape != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(tensor.shape)}")
    if tensor.device != device:
        raise ValueError(f"{name}: expected a tensor on {device} like the learner, got one on {tensor.device}")
    if tensor.requires_grad:
        raise ValueError(
            f"{name}: expected a tensor without requires_grad, because no gradient flows through it (detach it), "
            "got one that requires grad"
        )


class Turn:
    """Lets one thread at a time update a learner or read its state, in the process that made it.

    A read is short, so whoever comes meanwhile waits for it. An update may take long: while one is under way, or waits
    for a read, a second update and a read are refused.
    """

    def __init__(self) -> None:
        """Belong to the process that calls."""
        self._process = os.getpid()
        self._updating = threading.Lock()  # held by an update that waits, too: reads in a loop do not keep it waiting
        self._at_work = threading.Lock()
        self._reader: int | None = None  # the thread that reads

    def __enter__(self) -> None:
        """Begin an update; raises RuntimeError in another process, and while another update is under way."""
        if os.getpid() != self._process:
            raise RuntimeError(
                "learner: made before this process was forked, and torch's threads were not; build it in this process, "
                "or start the process by spawn"
            )
        if not self._updating.acquire(blocking=False):
            raise _in_use()
        try:
            while not self._at_work.acquire(timeout=_SECONDS_PER_LOOK):
                self._check_reader()
        except BaseException:
            self._updating.release()
            raise

    def __exit__(self, *_: object) -> None:
        """End the update."""
        self._at_work.release()
        self._updating.release()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Begin and end a read, which a forked process may do too: it has a copy.

        Raises RuntimeError while an update is under way.
        """
        while True:
            if self._updating.locked():
                raise _in_use()
            if self._at_work.acquire(timeout=_SECONDS_PER_LOOK):
                break
            self._check_reader()
        self._reader = threading.get_ident()
        try:
            yield
        finally:
            self._reader = None
            self._at_work.release()

    def _check_reader(self) -> None:
        """Raise RuntimeError where the reader would never end: a forked process lacks its thread, or it waits here."""
        if os.getpid() != self._process or self._reader == threading.get_ident():
            raise _in_use()


def _in_use() -> RuntimeError:
    return RuntimeError("learner: in use by another thread")


def check_state(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Check that `state` holds exactly the names of `expected`, with their shapes and dtypes.

    Raises ValueError that lists every name that is missing, not expected, or of another shape or dtype, and
    TypeError for a value that is no tensor.
    """
    faults = [f"{name} is missing" for name in expected if name not in state]
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"state: expected a tensor for {name}, got {type(value).__name__}")
        if name not in expected:
            faults.append(f"{name} is not expected")
            continue
        wanted = expected[name]
        if value.shape != wanted.shape or value.dtype != wanted.dtype:
            faults.append(f"{name} is {value.dtype} {list(value.shape)}, expected {wanted.dtype} {list(wanted.shape)}")
    if faults:
        raise ValueError("state: " + "; ".join(faults))
