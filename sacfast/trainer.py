"""The training loop: the one place that sees environments, replay, learner and policy, and carries the data.

    actions -> environments -> transitions -> replay -> updates -> actor parameters -> policy -> actions

What is due of the updates runs while the environments carry out the actions that were just sent, on the
transitions stored so far.
"""

from __future__ import annotations

import dataclasses
import difflib
import signal
import threading
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from tqdm import tqdm

from sacfast import checkpoint
from sacfast.config import SACConfig, TrainConfig
from sacfast.envs import EnvironmentFault, EnvSpec, EpisodeStatistics, VectorEnv, make_env
from sacfast.evaluate import EvaluationResult, evaluate
from sacfast.learner import make_learner
from sacfast.metrics import MetricsLogger, check_run_dir, import_summary_writer, versions
from sacfast.policy import Policy
from sacfast.replay import ReplayBuffer
from sacfast.types import FloatArray, Metrics, Transition

RECENT_EPISODES = 100
"""Ended episodes that the reported return and length of training are averaged over."""

REFRESH_SECONDS = 0.5
"""How often the progress bar is brought up to date."""

ACTING_THREADS = 1
"""Threads of torch while it acts. A few rows gain nothing from more, and threads of torch that wait for the
next operator spin on the cores that the environments need: with 2, on 2 cores, collection halves."""

UPDATES_PER_CALL = 32
"""Most gradient updates in one call of the learner: between calls a Ctrl-C is noticed."""


class SAC:
    """Soft Actor-Critic on one task: collect, learn, act, evaluate, save.

    Attributes:
        config: the algorithm's settings.
        train_config: the run's settings.
        spec: the task's name, sizes and bounds.
        learner: parameters, optimiser state and `update`.
        policy: acts as training does.
        timesteps: transitions that this model has collected.
        wall_seconds: that `learn` has taken for them, evaluations included.
        summary: of the latest `learn`, as in `summary.json`; None before the first.
    """

    config: SACConfig
    train_config: TrainConfig
    spec: EnvSpec
    _env: VectorEnv | None
    _replay: ReplayBuffer | None
    _logger: MetricsLogger | None

    def __init__(self, env_id: str, **fields: Any) -> None:
        """Build everything that a run needs, so that what is wrong fails here and not after hours.

        Args:
            env_id: task name, such as "HalfCheetah-v5".
            **fields: fields of `TrainConfig` (num_envs, seed, device, backend, run_dir, ...) and `SACConfig`
                (hidden_sizes, utd_ratio, alpha, ...), with the defaults given there. `total_timesteps` is not
                among them: `learn` takes it.

        Raises:
            TypeError: an unknown field, or one of a wrong type.
            ValueError: a value out of range, an unknown or unsupported task, a device that is not there.
            FileExistsError: `run_dir` already holds a run and `overwrite` is False.
        """
        train, algorithm = _split_fields(fields)
        self._build(TrainConfig(env_id=env_id, **train), SACConfig(**algorithm))

    @classmethod
    def from_config(cls, train_config: TrainConfig, config: SACConfig | None = None) -> Self:
        """Build from whole configurations. `learn()` then takes its length from `train_config`."""
        model = cls.__new__(cls)
        model._build(train_config, SACConfig() if config is None else config)
        return model

    def learn(self, total_timesteps: int | None = None) -> Self:
        """Collect `total_timesteps` transitions and do the gradient updates that are due for them.

        Called again, it goes on where it stopped. In a run directory it leaves metrics, a summary and a
        checkpoint, also when it is cut short.

        Args:
            total_timesteps: transitions to collect; None: as the configuration says.

        Raises:
            ValueError: `total_timesteps` below 1.
            EnvironmentFault: a reward or observation that is not finite. Nothing of that step is stored.
            FloatingPointError: a loss or gradient that is not finite; that update was not made.
            KeyboardInterrupt: at Ctrl-C, after everything was written; at a second Ctrl-C, at once.
        """
        count = self.train_config.total_timesteps if total_timesteps is None else total_timesteps
        if count < 1:
            raise ValueError(f"total_timesteps: expected an int >= 1, got {count!r}")
        with _torch_threads(ACTING_THREADS), _Interrupt() as interrupt:
            run = _Run(self, self._claim_logger(), last=self.timesteps + count)
            try:
                self._collect(run, interrupt)
            except Exception as error:
                self._close_env()  # in an unknown state: a later call starts with fresh environments
                self._finish(run, "environment_fault" if isinstance(error, EnvironmentFault) else "failed")
                raise
            self._finish(run, "interrupted" if interrupt.requested else "completed")
        if interrupt.requested:
            raise KeyboardInterrupt
        return self

    def predict(self, observation: np.ndarray, deterministic: bool = True) -> FloatArray:
        """Return the actions for observations, within the task's own bounds.

        Args:
            observation: [O] or [n, O].
            deterministic: the mean action, or a sample.

        Returns:
            [A] or [n, A] float32.

        Raises:
            ValueError: another shape, or an observation that is not finite.
        """
        values = np.asarray(observation, dtype=np.float32)
        size = self.spec.observation_dim
        if values.ndim not in (1, 2) or values.shape[-1] != size:
            raise ValueError(f"observation: expected shape ({size},) or (n, {size}), got {values.shape}")
        if not np.isfinite(values).all():
            raise ValueError("observation: expected finite values, got NaN or infinity")
        policy = self._mean_policy if deterministic else self.policy
        action = policy.act(values.reshape(-1, size))
        low, high = self.spec.action_low, self.spec.action_high
        scaled: FloatArray = np.clip(low + (action + 1.0) * (0.5 * (high - low)), low, high).astype(np.float32)
        return scaled[0] if values.ndim == 1 else scaled

    def evaluate(self, episodes: int = 10, deterministic: bool = True, seed: int | None = None) -> EvaluationResult:
        """Run whole episodes on fresh environments, whose seeds training never uses.

        Args:
            episodes: at least 1.
            deterministic: act by the mean action, or by samples.
            seed: of the environments; None: the run's. Equal seeds start from equal states.
        """
        policy = self._mean_policy if deterministic else self.policy
        seed = self.train_config.seed if seed is None else seed
        with _torch_threads(ACTING_THREADS):
            return evaluate(policy, self.train_config.env_id, episodes, seed)

    def save(self, path: Path | str) -> Path:
        """Write a checkpoint directory: safetensors and JSON. A checkpoint already there is replaced."""
        manifest = {
            "train": self.train_config.to_dict(),
            "sac": self.config.to_dict(),
            "env": _spec_to_json(self.spec),
            "timesteps": self.timesteps,
            "wall_seconds": self.wall_seconds,
            "versions": versions(),
        }
        return checkpoint.save(path, {"learner": self.learner.state_dict()}, manifest)

    @classmethod
    def load(cls, path: Path | str, **fields: Any) -> Self:
        """Read what `save` wrote: all but the replay buffer, which `learn` refills by acting.

        Args:
            path: a checkpoint, or a run directory, whose newest checkpoint is taken.
            **fields: fields of `TrainConfig` for what follows. `device` is "auto", `run_dir` None and
                `overwrite` False unless given here; the others are as they were saved.

        Raises:
            CheckpointError: not a whole checkpoint of this schema.
        """
        tensors, manifest = checkpoint.load(checkpoint.find(path), groups=("learner",))
        machine = {"device": "auto", "run_dir": None, "overwrite": False, "tensorboard": False}
        model = cls.__new__(cls)
        model._build(
            TrainConfig.from_dict({**manifest["train"], **machine, **fields}),
            SACConfig.from_dict(manifest["sac"]),
            spec=_spec_from_json(manifest["env"]),
        )
        model.learner.load_state_dict(tensors["learner"])
        model.timesteps, model.wall_seconds = manifest["timesteps"], manifest["wall_seconds"]
        return model

    @property
    def replay(self) -> ReplayBuffer:
        """The stored transitions. Of a loaded model it is made at the first use: evaluation needs none."""
        if self._replay is None:
            self._replay = ReplayBuffer(
                self.config.replay_capacity,
                self.spec.observation_dim,
                self.spec.action_dim,
                device=self.device,
                seed=self._seeds["replay"],
            )
        return self._replay

    def _build(self, train: TrainConfig, config: SACConfig, spec: EnvSpec | None = None) -> None:
        """Set up all parts; with a `spec`, environments and replay only when `learn` needs them."""
        self.train_config, self.config = train, config
        self.device = resolve_device(train.device)
        if train.run_dir is not None:
            check_run_dir(train.run_dir, train.overwrite)
        if train.tensorboard:
            import_summary_writer()
        self._update_threads = train.torch_threads or torch.get_num_threads()
        self._seeds = _derive_seeds(train.seed)
        self._exploration = np.random.default_rng(self._seeds["exploration"])
        self._env = self._replay = self._logger = None
        self.timesteps = 0
        self.wall_seconds = 0.0
        self.summary: dict[str, Any] | None = None
        self._collected = 0  # transitions in this process; `timesteps` also counts those before a load
        self._updates = 0  # gradient updates in this process
        self._schedule = UpdateSchedule(config.utd_ratio, config.learning_starts)
        self.spec = self._open_env().spec if spec is None else spec
        self.learner = make_learner(
            self.spec.observation_dim,
            self.spec.action_dim,
            config,
            backend=train.backend,
            device=self.device,
            seed=self._seeds["learner"],
        )
        noise = config.exploration_noise if config.deterministic_policy else 0.0
        self.policy = self._make_policy(config.deterministic_policy, noise)
        self._mean_policy = self._make_policy(deterministic=True)
        if spec is None:
            _ = self.replay  # a capacity that does not fit is refused now

    def _make_policy(self, deterministic: bool, exploration_noise: float = 0.0) -> Policy:
        return Policy(
            self.learner.actor,
            deterministic=deterministic,
            seed=self._seeds["policy"],
            log_std_bounding=self.config.log_std_bounding,
            log_std_bounds=self.config.log_std_bounds,
            exploration_noise=exploration_noise,
        )

    def _open_env(self) -> VectorEnv:
        """Return the training environments, started if they are not yet."""
        if self._env is None:
            train = self.train_config
            env = make_env(
                train.env_id,
                train.num_envs,
                train.seed,
                batch_size=train.env_batch_size,
                num_threads=train.env_threads,
            )
            self._observation, _ = env.reset()
            self._env = env
        return self._env

    def _close_env(self) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    def _claim_logger(self) -> MetricsLogger:
        """Return the writer of the run's files; the first call takes over the run directory."""
        if self._logger is None:
            train = self.train_config
            self._logger = MetricsLogger(train.run_dir, train.overwrite, train.tensorboard)
        return self._logger

    def _collect(self, run: _Run, interrupt: _Interrupt) -> None:
        """Step, store and update until `run.last` transitions are there or an interrupt is requested."""
        env = self._open_env()
        latest: Transition | None = None  # of the step before; stored while the environments work on the next
        while self.timesteps < run.last and not interrupt.requested:
            env.send(self._choose_action(self._observation))
            self._store(latest)
            self._update(run, interrupt)
            result = env.recv()
            self._observation = result.observation
            latest = _first_rows(result.transition, run.last - self.timesteps)
            count = len(latest.reward)
            self._collected += count
            self.timesteps += count
            run.count(count, result.episodes)
            if self.timesteps >= run.next_report:
                self._store(latest)
                latest = None
                self._update(run, interrupt)
                run.report(may_evaluate=not interrupt.requested)
        self._store(latest)

    def _store(self, transition: Transition | None) -> None:
        if transition is not None:
            self.replay.add(*transition)

    def _choose_action(self, observation: FloatArray) -> FloatArray:
        """Uniformly random actions before learning starts, then the policy's; [n, A] in [-1, 1]."""
        if self._collected < self.config.learning_starts and self.learner.gradient_updates == 0:
            shape = (len(observation), self.spec.action_dim)
            return self._exploration.random(shape, dtype=np.float32) * np.float32(2) - np.float32(1)
        return self.policy.act(observation)

    def _update(self, run: _Run, interrupt: _Interrupt) -> None:
        """Do the gradient updates that are due, once the replay buffer can fill a minibatch."""
        due = self._schedule.due(self._collected) - self._updates
        if due <= 0 or len(self.replay) < self.config.batch_size:
            return
        with _torch_threads(self._update_threads):
            while due > 0 and not interrupt.requested:
                steps = min(due, UPDATES_PER_CALL)
                run.update_metrics = self.learner.update(self.replay, gradient_steps=steps)
                self._updates += steps
                due -= steps

    def _finish(self, run: _Run, status: str) -> None:
        """Write what a run leaves behind, whatever ended it; the summary last, when all is there."""
        try:
            run.report_rest()
            path = run.logger.checkpoint_path(self.timesteps)
            if path is not None:
                self.save(path)
        finally:
            run.close(status)


class UpdateSchedule:
    """How many gradient updates are due: exactly `utd_ratio` per transition stored after `learning_starts`.

    The count follows from the transitions alone, in integers, so it neither drifts nor depends on how many
    transitions a step of the environments stores.
    """

    def __init__(self, utd_ratio: float, learning_starts: int) -> None:
        """Take a ratio >= 0, read as the nearest fraction with a denominator up to a million."""
        self._ratio = Fraction(utd_ratio).limit_denominator(1_000_000)
        self._learning_starts = learning_starts

    def due(self, stored: int) -> int:
        """Return the updates that belong to `stored` transitions in all, rounded down."""
        return max(0, stored - self._learning_starts) * self._ratio.numerator // self._ratio.denominator


def resolve_device(device: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device that is there.

    Raises:
        ValueError: CUDA was asked for by name and is not available.
    """
    available = torch.cuda.is_available()
    if device == "auto":
        return torch.device("cuda" if available else "cpu")
    resolved = torch.device(device)
    if resolved.type == "cuda" and not available:
        reason = "finds no GPU" if torch.version.cuda else "is built without CUDA"
        raise ValueError(f"device: expected 'cpu' or 'auto', for torch {torch.__version__} {reason}; got {device!r}")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: expected an index below {torch.cuda.device_count()}, got {device!r}")
    return resolved


class _Run:
    """One call of `learn` as its user sees it: metrics, evaluations, progress and the summary."""

    def __init__(self, model: SAC, logger: MetricsLogger, last: int) -> None:
        """Start the clock of a call that ends when the model has collected `last` transitions."""
        self.logger = logger
        self.last = last
        self.update_metrics: Metrics | None = None  # of the learner's latest call; on its device until read
        self._model = model
        self._returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._lengths: deque[int] = deque(maxlen=RECENT_EPISODES)
        self._episodes = 0
        self._evaluation: EvaluationResult | None = None
        self._reported_step = -1
        train = dataclasses.replace(model.train_config, total_timesteps=last)
        logger.write_config({"train": train.to_dict(), "sac": model.config.to_dict()})
        self._progress = tqdm(
            total=last,
            initial=model.timesteps,
            unit="step",
            dynamic_ncols=True,
            mininterval=REFRESH_SECONDS,
            disable=not model.train_config.progress,
        )
        self._earlier_seconds = model.wall_seconds
        self._start = time.perf_counter()
        self._row_mark = self._refresh_mark = self._mark()
        self._plan_reports()

    def count(self, stored: int, episodes: EpisodeStatistics) -> None:
        """Take in one step of the environments: transitions stored, episodes ended."""
        if len(episodes.return_):
            self._returns.extend(episodes.return_.tolist())
            self._lengths.extend(episodes.length.tolist())
            self._episodes += len(episodes.return_)
        self._progress.update(stored)
        if time.perf_counter() - self._start >= self._refresh_mark.seconds + REFRESH_SECONDS:
            self._refresh()

    def report(self, may_evaluate: bool) -> None:
        """Write a line of metrics, with an evaluation where one is due."""
        model = self._model
        evaluation = None
        if may_evaluate and model.train_config.evaluation_episodes and model.timesteps >= self._next_evaluation:
            evaluation = self._evaluation = model.evaluate(model.train_config.evaluation_episodes)
        mark = self._mark()
        row = {
            "step": model.timesteps,
            "gradient_updates": mark.updates,
            "wall_seconds": self._earlier_seconds + mark.seconds,
            "env_steps_per_second": mark.steps_per_second(self._row_mark),
            "updates_per_second": mark.updates_per_second(self._row_mark),
            "episodes": self._episodes,
            "episode_return_mean": _mean(self._returns),
            "episode_length_mean": _mean(self._lengths),
            **({} if self.update_metrics is None else self.update_metrics.to_dict()),
        }
        if evaluation is not None:
            row |= {"eval_return_mean": evaluation.mean, "eval_return_std": evaluation.std}
            row |= {"eval_length_mean": float(evaluation.lengths.mean())}
        self.logger.log(row)
        self._row_mark, self._reported_step = mark, model.timesteps
        model.wall_seconds = self._earlier_seconds + mark.seconds
        self._plan_reports()

    def report_rest(self) -> None:
        """Write the last line of metrics, if the run was cut short between two."""
        if self._reported_step != self._model.timesteps:
            self.report(may_evaluate=False)

    def close(self, status: str) -> None:
        """End the progress bar and write the summary."""
        model, train = self._model, self._model.train_config
        self._refresh()
        self._progress.close()
        updates, seconds = model.learner.gradient_updates, max(model.wall_seconds, 1e-9)
        model.summary = {
            "status": status,
            "env_id": train.env_id,
            "seed": train.seed,
            "total_timesteps": model.timesteps,
            "gradient_updates": updates,
            "wall_seconds": model.wall_seconds,
            "env_steps_per_second": model.timesteps / seconds,
            "updates_per_second": updates / seconds,
            "eval_return_mean": None if self._evaluation is None else self._evaluation.mean,
            "eval_return_std": None if self._evaluation is None else self._evaluation.std,
            "eval_episodes": 0 if self._evaluation is None else len(self._evaluation.returns),
            "device": str(model.device),
            "backend": train.backend,
            "versions": versions(),
        }
        self.logger.write_summary(model.summary)

    def _plan_reports(self) -> None:
        """Set the transitions at which the next line, and the next evaluation, are due."""
        step, train = self._model.timesteps, self._model.train_config
        every = train.evaluate_every or self.last
        self._next_evaluation = min((step // every + 1) * every, self.last)
        self.next_report = min((step // train.log_interval + 1) * train.log_interval, self._next_evaluation)

    def _refresh(self) -> None:
        """Show the return and the update rate; tqdm itself shows steps, steps per second and the ETA."""
        mark = self._mark()
        postfix = {"return": f"{_mean(self._returns):.1f}"} if self._returns else {}
        postfix["updates/s"] = f"{mark.updates_per_second(self._refresh_mark):.0f}"
        self._progress.set_postfix(postfix, refresh=False)
        self._refresh_mark = mark

    def _mark(self) -> _Mark:
        model = self._model
        return _Mark(time.perf_counter() - self._start, model.timesteps, model.learner.gradient_updates)


class _Mark(NamedTuple):
    """A moment of a run; rates are those since an earlier one."""

    seconds: float  # since the call of `learn`
    timesteps: int
    updates: int

    def steps_per_second(self, earlier: _Mark) -> float:
        return (self.timesteps - earlier.timesteps) / max(self.seconds - earlier.seconds, 1e-9)

    def updates_per_second(self, earlier: _Mark) -> float:
        return (self.updates - earlier.updates) / max(self.seconds - earlier.seconds, 1e-9)


class _Interrupt:
    """Turns the first Ctrl-C into a request to stop, and gives the second its usual effect back."""

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> Self:
        self._handles = threading.current_thread() is threading.main_thread()  # others cannot take signals
        if self._handles:
            self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._handles:
            signal.signal(signal.SIGINT, self._previous)

    def _request(self, _signal: int, _frame: FrameType | None) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Let torch's CPU operators use `count` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _first_rows(transition: Transition, count: int) -> Transition:
    """Return at most `count` rows: a run ends after exactly as many transitions as were asked for."""
    if len(transition.reward) <= count:
        return transition
    observation, action, reward, next_observation, terminated = transition
    return Transition(observation[:count], action[:count], reward[:count], next_observation[:count], terminated[:count])


def _spec_to_json(spec: EnvSpec) -> dict[str, Any]:
    values = {field.name: getattr(spec, field.name) for field in dataclasses.fields(spec)}
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in values.items()}


def _spec_from_json(values: dict[str, Any]) -> EnvSpec:
    bounds = {name: np.asarray(values[name], np.float64) for name in ("action_low", "action_high")}
    return EnvSpec(**{**values, **bounds})


def _split_fields(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sort keyword arguments into those of `TrainConfig` and those of `SACConfig`."""
    train_names = {field.name for field in dataclasses.fields(TrainConfig)} - {"env_id", "total_timesteps"}
    sac_names = {field.name for field in dataclasses.fields(SACConfig)}
    for name in fields:
        if name not in train_names | sac_names:
            close = difflib.get_close_matches(name, train_names | sac_names, n=1)
            hint = f"did you mean {close[0]}?" if close else f"expected some of {sorted(train_names | sac_names)}"
            raise TypeError(f"SAC: unknown argument {name!r}; {hint}")
    train = {name: value for name, value in fields.items() if name in train_names}
    return train, {name: value for name, value in fields.items() if name in sac_names}


def _derive_seeds(seed: int) -> dict[str, int]:
    """Give each consumer of randomness a seed of its own: equal ones would draw equal numbers."""
    names = ("learner", "replay", "policy", "exploration")
    return dict(zip(names, np.random.SeedSequence(seed).generate_state(len(names)).tolist(), strict=True))


def _mean(values: Collection[float]) -> float | None:
    return sum(values) / len(values) if values else None
