"""The training loop: the one place that sees environments, replay, learner and policy, and carries the data.

    actions -> environments -> transitions -> replay -> updates -> actor parameters -> policy -> actions

What is due of the updates runs while the environments carry out the actions that were just sent, on the
transitions stored so far. The loop asks for them (it is a generator), so that several models can take their steps in
turns and have their updates made together: `learn_together`.

A checkpoint of a run holds all that the rest of the run depends on, but for the environments, which cannot be saved.
At a regular checkpoint, one every `checkpoint_every` transitions, they are closed, and fresh ones opened from seeds
that follow from the run's seed and their count, in the run that goes on and in one that is resumed. So both make the
same steps, bit for bit. The price is that the running episodes are cut: their last transition bootstraps, as at a time
limit, and their return is not counted.

At any other moment, when a signal or a callback stops the run or it has its `total_timesteps`, the environments stay
open, and the checkpoint holds the actions that were sent to them since they were opened. A resumed run opens fresh
ones from the same seeds and steps them with these actions. A stop may come in the middle of the loop's body; the counts
in `_Counts` then tell what is left of it, so that actions, updates and evaluations keep their order.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import signal
import threading
import time
import zlib
from collections import deque
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from functools import cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from tqdm import tqdm

from sacfast import _ext, checkpoint, output, saved
from sacfast.callbacks import Callback, as_callbacks, asks_to_stop, overriding
from sacfast.config import STABLE_BASELINES3, SACConfig, TrainConfig
from sacfast.devices import with_index
from sacfast.envs import (
    EnvironmentFault,
    EnvSpec,
    EpisodeStatistics,
    environment_seeds,
    make_env,
)
from sacfast.evaluate import EvaluationResult, evaluate, record_video
from sacfast.learner import Learner, LearnerGroup, make_learner, metric_names, side_by_side
from sacfast.lock import RunLock
from sacfast.memory import check_fits
from sacfast.metrics import (
    CHECKPOINTS,
    CONFIG_FILE,
    MetricsLogger,
    RunError,
    check_run_dir,
    import_summary_writer,
    import_wandb,
    read_config,
    versions,
)
from sacfast.policy import Policy
from sacfast.replay import ReplayBuffer
from sacfast.rollout import Rollout, check_state
from sacfast.scalars import as_int
from sacfast.types import FloatArray, Metrics, Transition

RECENT_EPISODES = 100
"""Ended episodes that the reported return and length of training are averaged over."""

REFRESH_SECONDS = 0.5
"""How often the progress bar is brought up to date."""

ACTING_THREADS = 1
"""Threads of torch while it acts. A few rows gain nothing from more, and threads of torch that wait for the
next operator spin on the cores that the environments need: with 2, on 2 cores, collection halves."""

UPDATES_PER_CALL = 32
"""Most gradient updates in one call of the learner. A signal ends a call early."""

CHECKPOINT_EVERY = 100_000
"""Transitions between checkpoints unless told otherwise, or more: with EPISODES_UNCUT episodes of every environment."""

EPISODES_UNCUT = 10

ENVIRONMENTS = "environments"
"""The group of a checkpoint that brings the environments back."""

_LOG = output.logger(__name__)


class _Stateful(Protocol):
    """A part of a model whose state a checkpoint holds."""

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None: ...


class SAC:
    """Soft Actor-Critic on one task: collect, learn, act, evaluate, save.

    Attributes:
        config: the algorithm's settings.
        train_config: the run's settings.
        spec: the task's name, sizes and bounds.
        learner: parameters, optimiser state and `update`.
        policy: acts as training does.
        summary: of the latest `learn`, as in `summary.json`; None before the first.
        loaded_from: the checkpoint that `load` or `resume` took; None without one.
    """

    config: SACConfig
    train_config: TrainConfig
    spec: EnvSpec
    learner: Learner
    loaded_from: Path | None
    _rollout: Rollout | None
    _replay: ReplayBuffer | None
    _logger: MetricsLogger | None
    _lock: RunLock | None
    _updates_seen: int

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
            ImportError: a package that the task or a setting needs is not installed.
            FileExistsError: `run_dir` already holds a run and `overwrite` is False.
            NotADirectoryError: `run_dir` has a link or a file in the place of a folder that a run writes to.
        """
        train, algorithm = _split_fields(fields)
        self._build(TrainConfig(env_id=env_id, **train), SACConfig(**algorithm))

    @classmethod
    def from_config(cls, train_config: TrainConfig, config: SACConfig | None = None) -> Self:
        """Build from whole configurations. `learn()` then takes its length from `train_config`."""
        model = cls.__new__(cls)
        model._build(train_config, SACConfig() if config is None else config)
        return model

    @classmethod
    def resume(cls, run_dir: Path | str, **fields: Any) -> Self:
        """Take up a run from its newest sound checkpoint, to go on as if it had never stopped.

        With the same machine, versions and number of threads what `learn` then does is bit for bit what the run
        would have done from that checkpoint on. It goes on in the same directory, up to the `total_timesteps` of the
        run, or as many more as `learn` is told. A run that was stopped before its first checkpoint starts anew.

        After a stop between two regular checkpoints the environments are first stepped to where they were; if they do
        not come there, a warning says so and the run goes on with fresh ones.

        Args:
            run_dir: of a run; it may have been moved.
            **fields: fields of `TrainConfig` to change. What changes collection or updates ends the exactness. `env_id`
                must be the run's own: a task "module:Name-v0" is named here, or its module imported before, for no
                code is run because a file says so.

        Raises:
            TypeError: a field has a value of a wrong type.
            ValueError: `seed` is given, or a field is unknown or has a value out of range or not for this machine, or
                the run has all of the `total_timesteps` that are given.
            CheckpointError: no checkpoint is sound, of this run and its task, and whole with its replay buffer; or
                there is none, and other files say that there was one.
            ImportError: a package that the run needs is not installed: EnvPool, where it was begun with it.
            RunInUseError: another model, of this process or another one, is at work in `run_dir`.
            OSError: `run_dir` cannot be written to, or something else than a file is in the place of its `lock`.
        """
        run_dir = Path(run_dir)
        fields = {**fields, "run_dir": run_dir}
        if "seed" in fields:
            raise ValueError(f"seed: expected none, for another seed is another run, got {fields['seed']!r}")
        TrainConfig.from_dict({"env_id": "any", **fields})  # what is wrong here is no checkpoint's fault
        saved.check_is_run(run_dir)
        lock = RunLock(run_dir)
        with lock.reading():
            return cls._take_up(run_dir, fields, lock)

    @classmethod
    def _take_up(cls, run_dir: Path, fields: Mapping[str, Any], lock: RunLock) -> Self:
        """Build the model of a run's newest sound checkpoint, or that of its start where there is none yet."""
        config = _config_of_run(run_dir)
        if config is not None and isinstance(config["train"].get("env_id"), str):
            saved.check_task_is_known(config["train"]["env_id"], fields.get("env_id"))
        if config is not None:
            resolve_device(fields.get("device", saved.config_of(CONFIG_FILE, TrainConfig, config["train"]).device))
        if not saved.has_no_checkpoint(run_dir):
            model, environments, manifest = checkpoint.take(
                run_dir, lambda path: cls._restore(path, config, fields, lock), follow_links=False
            )
            if fields.get("total_timesteps", math.inf) <= model.timesteps:
                model._close_env()
                raise ValueError(
                    f"total_timesteps: expected more than the {model.timesteps} transitions that the run has, got "
                    f"{fields['total_timesteps']}"
                )
            # Not before the checkpoint is taken: that an environment fails on the way is no fault of the checkpoint.
            model._reopen_env(environments, manifest["train"])
            _warn_of_changes({**manifest["versions"], "torch threads": manifest["torch_threads"]}, model._conditions())
            return model
        if config is None:
            raise checkpoint.CheckpointError(f"{run_dir}: expected a run directory with {CONFIG_FILE}, found none")
        own = saved.config_of(CONFIG_FILE, TrainConfig, config["train"])
        train = TrainConfig.from_dict({**config["train"], **fields, "overwrite": True})
        model = cls.__new__(cls)
        model._build(train, saved.config_of(CONFIG_FILE, SACConfig, config["sac"]), lock=lock)
        every = _checkpoint_every(own, model.spec)
        # A line of metrics and the best policy are written before the first checkpoint, at the same step. That step
        # can be up to num_envs - 1 transitions past the mark.
        saved.check_nothing_is_lost(run_dir, every + own.num_envs if every else math.inf)
        _LOG.warning("%s has no checkpoint yet: the run starts anew", run_dir)
        return model

    @classmethod
    def _restore(
        cls, path: Path, config: Mapping[str, Any] | None, fields: Mapping[str, Any], lock: RunLock
    ) -> tuple[Self, Mapping[str, torch.Tensor] | None, dict[str, Any]]:
        """Build the model of a run's checkpoint. Whatever is wrong with the checkpoint is an error of some type.

        Returns the model, whose environments are yet to be brought to where they were; the group `ENVIRONMENTS`, if
        there is one; and the manifest.
        """
        manifest = checkpoint.read_manifest(path)
        saved.check_run_manifest(manifest, config)
        present = checkpoint.held(manifest, (ENVIRONMENTS,))
        tensors, _ = checkpoint.load(path, groups=("learner", "policy", "replay", *present), manifest=manifest)
        train, sac, spec = saved.settings_of(manifest)
        saved.check_task_is_known(train.env_id, fields.get("env_id"))
        counts = _Counts.from_json(manifest["progress"], manifest["schema_version"])
        if not counts.timesteps == manifest["timesteps"] == checkpoint.step_of(path):
            raise checkpoint.CheckpointError(
                f"timesteps: expected {checkpoint.step_of(path)}, by the checkpoint's name, got {counts.timesteps} "
                f"in 'progress' and {manifest['timesteps']}"
            )
        saved.check_learner(tensors["learner"], spec, sac)
        if ENVIRONMENTS in tensors:
            check_state(tensors[ENVIRONMENTS], train.num_envs, spec)
        settings = train.to_dict()
        if config is not None:  # which has the length that the run was last given
            settings["total_timesteps"] = config["train"].get("total_timesteps", train.total_timesteps)
        model = cls.__new__(cls)
        model._build(TrainConfig.from_dict({**settings, **fields}), sac, spec, counts, resumed=True, lock=lock)
        model.loaded_from = path
        parts: dict[str, _Stateful] = {"learner": model.learner, "policy": model.policy, "replay": model.replay}
        for group, part in parts.items():
            _load_state(part, tensors[group], path, group)
        model._check_counts()
        model._updates_seen = model.learner.gradient_updates
        saved.restore_stream(model._exploration, manifest["exploration"])
        model._saved_fingerprint = model._fingerprint()
        model._open_env()  # which tells whether the task is still the same
        return model, tensors.get(ENVIRONMENTS), manifest

    def _check_counts(self) -> None:
        """Raise CheckpointError unless a checkpoint's transitions and updates belong together."""
        counts, names = self._counts, metric_names(self.config)
        made, due = self.learner.gradient_updates - counts.first_update, self._schedule.due(counts.collected)
        if not 0 <= made <= due:
            raise checkpoint.CheckpointError(
                f"gradient_updates: expected at most {due} after the first {counts.first_update}, got {made}"
            )
        if counts.update_metrics is not None:
            found = counts.update_metrics.to_dict()
            if set(found) != set(names):
                raise checkpoint.CheckpointError(
                    f"progress: update_metrics: expected {sorted(names)}, got {sorted(found)}"
                )
            values = torch.tensor([found[name] for name in names], dtype=torch.float64)
            counts.update_metrics = Metrics(names, values)

    def _leave_out_updates_of_others(self) -> None:
        """Count the updates that the learner made outside of `learn`, or that a loaded state had, as none of the run's.

        Else the run would make none until as many were due.
        """
        self._counts.first_update += self.learner.gradient_updates - self._updates_seen
        self._updates_seen = self.learner.gradient_updates

    def learn(self, total_timesteps: int | None = None, callbacks: Callback | Sequence[Callback] = ()) -> Self:
        """Collect `total_timesteps` transitions and do the gradient updates that are due for them.

        Called again, it goes on where it stopped. In a run directory it leaves metrics, a summary and
        checkpoints, also when it is cut short.

        Args:
            total_timesteps: transitions to collect; None: as the configuration says, or for a resumed run what is
                left of that.
            callbacks: one or several, called at every step, update and evaluation; each can end the run.

        Raises:
            TypeError: `total_timesteps` is no whole number, something that is no callback is among these, or one
                returns neither a bool nor None.
            ValueError: `total_timesteps` below 1.
            EnvironmentFault: a reward or observation that is not finite. Nothing of that step is stored.
            FloatingPointError: a loss, gradient or parameter that is not finite; the last checkpoint is from before.
            TrackingError: Weights & Biases, asked for with `wandb`, has refused to begin a run.
            RunInUseError: another model is at work in `run_dir`, or has been since this one was: see `sacfast.lock`.
            KeyboardInterrupt: at Ctrl-C, after everything was written; at a second Ctrl-C, at once.
            SystemExit: with code 143 at SIGTERM, after everything was written; a second SIGTERM ends the process.
            OSError: the files at the end could not be written. During the run that is a warning.
        """
        _learn([self], LearnerGroup([self.learner]), total_timesteps, callbacks)
        return self

    def predict(self, observation: Any, deterministic: bool = True) -> FloatArray:
        """Return the actions for observations, within the task's own bounds.

        Args:
            observation: what the task's `reset` and `step` return, a dictionary or a matrix too, or a batch of n of
                these, with n in front of every shape. Or flat as in training: [O] or [n, O]. Where several of these
                fit, the one that comes first here is meant.
            deterministic: the mean action, or a sample.

        Returns:
            [A] or [n, A] float32.

        Raises:
            TypeError: something else than real numbers.
            ValueError: another shape, a missing key, or an observation that is not finite.
        """
        rows, is_one = self.spec.flatten(observation)
        action = self._acting_policy(deterministic).act(rows)
        low, high = self.spec.action_low, self.spec.action_high
        scaled: FloatArray = np.clip(low + (action + 1.0) * (0.5 * (high - low)), low, high).astype(np.float32)
        return scaled[0] if is_one else scaled

    def evaluate(self, episodes: int = 10, deterministic: bool = True, seed: int | None = None) -> EvaluationResult:
        """Run whole episodes on fresh environments, whose seeds training never uses.

        Args:
            episodes: at least 1.
            deterministic: act by the mean action, or by samples.
            seed: of the environments; None: the run's. Equal seeds start from equal states.
        """
        policy = self._acting_policy(deterministic)
        seed = self.train_config.seed if seed is None else seed
        # A policy that was learned on EnvPool's environments can be evaluated without EnvPool.
        source = None if self.spec.source == "envpool" else self.spec.source
        self._check_task_is_known()
        with _torch_threads(ACTING_THREADS):
            return evaluate(policy, self.train_config.env_id, episodes, seed, source=source)

    def record_video(
        self, path: Path | str, episodes: int = 1, deterministic: bool = True, seed: int | None = None
    ) -> EvaluationResult:
        """Film whole episodes on Gymnasium's own environment of the task, for EnvPool cannot render.

        Args and errors are those of `evaluate` and of `sacfast.evaluate.record_video`.
        """
        policy = self._acting_policy(deterministic)
        seed = self.train_config.seed if seed is None else seed
        self._check_task_is_known()
        with _torch_threads(ACTING_THREADS):
            return record_video(policy, self.spec, path, episodes, seed)

    def _check_task_is_known(self) -> None:
        """Raise CheckpointError where environments would run a module's code because a file says so."""
        saved.check_task_is_known(self.train_config.env_id, self._named_task)

    def _acting_policy(self, deterministic: bool) -> Policy:
        """Return the policy that acts; RuntimeError when the actor's parameters are not where policies read them."""
        self.learner.actor.check_memory("learner.actor")
        return self._mean_policy if deterministic else self.policy

    def save(self, path: Path | str) -> Path:
        """Write a checkpoint directory: safetensors and JSON. A checkpoint already there is replaced.

        It holds all but the replay buffer and the run's random streams, which the checkpoints of a run directory
        hold: `load` takes both kinds, `resume` those.

        Raises:
            FloatingPointError: a parameter is not finite; nothing was written.
            OSError: it could not be written; a checkpoint that was there before still is.
        """
        return self._save(path, {}, {})

    def _save(self, path: Path | str, groups: dict[str, Mapping[str, torch.Tensor]], manifest: dict[str, Any]) -> Path:
        state = self.learner.state_dict()
        for name, value in state.items():
            if not value.isfinite().all():
                raise FloatingPointError(f"{path}: not saved, for the learner's {name} is not finite")
        common = {
            "train": self.train_config.to_dict(),
            "sac": self.config.to_dict(),
            "env": saved.spec_to_json(self.spec),
            "timesteps": self.timesteps,
            "wall_seconds": self.wall_seconds,
            "versions": versions(),
        }
        return checkpoint.save(path, {"learner": state, **groups}, common | manifest)

    @classmethod
    def load(cls, path: Path | str, **fields: Any) -> Self:
        """Read what `save` wrote: all but the replay buffer, which `learn` refills by acting.

        Args:
            path: a checkpoint, or a run directory, whose newest sound checkpoint is taken.
            **fields: fields of `TrainConfig` for what follows. `device` is "auto", `run_dir` None and
                `overwrite` False unless given here; the others are as they were saved. `env_id` as in `resume`.

        Raises:
            CheckpointError: not a whole checkpoint of a schema that is known, or `env_id` is another task's. Later, by
                `learn`, `evaluate` and `record_video`: the task would import a module and is not named.
        """
        TrainConfig.from_dict({"env_id": "any", **fields})  # what is wrong here is no checkpoint's fault
        return checkpoint.take(path, lambda found: cls._load(found, fields))

    @classmethod
    def _load(cls, path: Path, fields: Mapping[str, Any]) -> Self:
        """Build the model of a checkpoint. Whatever is wrong with the checkpoint is an error of some type."""
        tensors, manifest = checkpoint.load(path, groups=("learner",))
        train, sac, spec = saved.settings_of(manifest)
        saved.check_task_is_the_same(train.env_id, fields.get("env_id"))
        saved.check_learner(tensors["learner"], spec, sac)
        machine = {"device": "auto", "run_dir": None, "overwrite": False, "tensorboard": False, "wandb": False}
        model = cls.__new__(cls)
        model._build(
            TrainConfig.from_dict({**train.to_dict(), **machine, **fields}),
            sac,
            spec=spec,
            counts=_Counts.after(manifest["timesteps"], manifest["wall_seconds"]),
        )
        model.loaded_from = path
        model._named_task = fields.get("env_id")
        _load_state(model.learner, tensors["learner"], path, "learner")
        model._leave_out_updates_of_others()
        return model

    @property
    def timesteps(self) -> int:
        """Transitions that this model has collected."""
        return self._counts.timesteps

    @property
    def wall_seconds(self) -> float:
        """Seconds that `learn` has taken, evaluations and checkpoints included."""
        return self._counts.wall_seconds

    @property
    def environment_steps(self) -> int:
        """Steps that the training environments have made since they were opened; `resume` makes them again."""
        return 0 if self._rollout is None else self._rollout.steps

    @property
    def checkpoint_every(self) -> int:
        """Transitions from one checkpoint of the run to the next; 0: only at the end."""
        return _checkpoint_every(self.train_config, self.spec)

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

    def _build(
        self,
        train: TrainConfig,
        config: SACConfig,
        spec: EnvSpec | None = None,
        counts: _Counts | None = None,
        resumed: bool = False,
        lock: RunLock | None = None,
    ) -> None:
        """Set up all parts; with a `spec`, of a checkpoint, environments and replay only when `learn` needs them.

        `lock`: the run directory's, where it is held already.
        """
        self.train_config, self.config = train, config
        self._named_task: str | None = train.env_id  # by the user; None: a file alone says it
        self.device = resolve_device(train.device)
        self._counts = counts or _Counts()
        self._resumed = resumed
        self._updates_seen = 0  # of the learner, when `learn` last ended
        self._saved_fingerprint: tuple[int, ...] | None = None  # at the run's newest checkpoint
        self._latest: Transition | None = None  # of the step before; stored while the environments work on the next
        if train.run_dir is not None and not resumed:
            check_run_dir(train.run_dir, train.overwrite)
        if train.tensorboard:
            import_summary_writer()
        if train.wandb:
            import_wandb()
        self._update_threads = train.torch_threads or torch.get_num_threads()
        self._seeds = _derive_seeds(train.seed)
        self._exploration = np.random.default_rng(self._seeds["exploration"])
        self._rollout = self._replay = self._logger = None
        self.loaded_from = None
        self._lock = RunLock(train.run_dir) if lock is None and train.run_dir is not None else lock
        self.summary: dict[str, Any] | None = None
        self._schedule = UpdateSchedule(config.utd_ratio, config.learning_starts)
        if spec is None:
            self._open_env()
        else:
            self.spec = spec
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

    def _open_env(self) -> Rollout:
        """Return the training environments, started if they are not open. Each generation has seeds of its own."""
        if self._rollout is None:
            train = self.train_config
            before: EnvSpec | None = getattr(self, "spec", None)
            env = make_env(
                train.env_id,
                train.num_envs,
                environment_seeds(train.seed, train.num_envs, generation=self._counts.env_generation),
                batch_size=train.env_batch_size,
                num_threads=train.env_threads,
                source=None if before is None else before.source,
            )
            try:
                saved.check_spec(env.spec, env.spec if before is None else before)
                self._rollout = Rollout(env, keeps_actions=train.run_dir is not None)
            except Exception:
                env.close()
                raise
            self.spec = env.spec  # that of an earlier version's checkpoint does not hold the observation's layout
        return self._rollout

    def _close_env(self) -> None:
        if self._rollout is not None:
            self._rollout.close()
            if not self._rollout.is_fresh:
                self._counts.env_generation += 1
            self._rollout = None

    def _reopen_env(self, environments: Mapping[str, torch.Tensor] | None, was: Mapping[str, Any]) -> None:
        """Open the environments of a resumed run, and step them to where they were if the checkpoint tells how.

        `environments`: the checkpoint's group `ENVIRONMENTS`; `was`: the settings that the run had.
        """
        train = self.train_config.to_dict()
        was = {name: was.get(name, train[name]) for name in ("num_envs", "env_batch_size")}
        changed = [name for name in was if train[name] != was[name]]
        fresh = "the run goes on with fresh environments, not bit for bit"
        rollout = self._open_env()
        if environments is not None and not changed:
            if rollout.restep(environments, train["progress"]):
                return
            _LOG.warning("%s: the environments do not repeat themselves: %s", train["env_id"], fresh)
        elif changed:
            changes = (f"{name} was {was[name]}, is {train[name]}" for name in changed)
            _LOG.warning("%s: %s", "; ".join(changes), fresh)
        elif train["env_batch_size"] not in (None, train["num_envs"]):
            _LOG.warning("env_batch_size: which of the environments answer first is chance: %s", fresh)
        if environments is not None:
            self._close_env()
            self._open_env()

    def _claim_logger(self) -> MetricsLogger:
        """Return the writer of the run's files, and lock its directory; the first call takes over the directory."""
        if self._lock is not None:
            self._lock.acquire()
        if self._logger is None:
            train = self.train_config
            step = self._counts.reported if self._resumed else None
            self._logger = MetricsLogger(train.run_dir, train.overwrite, train.tensorboard, train.wandb, step)
            if self._resumed and train.run_dir is not None:
                checkpoint.tidy(train.run_dir / CHECKPOINTS, self.timesteps)
        self._logger.take_back(self._counts.reported)
        return self._logger

    def _end_of_learn(self) -> None:
        self._updates_seen = self.learner.gradient_updates
        if self._lock is not None:
            self._lock.release()

    def _last_timestep(self, total_timesteps: int | None) -> int:
        """Return how many transitions there are after a call of `learn`."""
        count = self.train_config.total_timesteps if total_timesteps is None else total_timesteps
        if total_timesteps is None and self._resumed:
            return max(count, self.timesteps)  # the latter: the run was killed at its end, and lacks its summary
        return self.timesteps + as_int("total_timesteps", count, 1)

    def _collect(self, run: _Run) -> Generator[int, Metrics | None, None]:
        """Step, store and update until `run.last` transitions are there or something asks to stop.

        Yields how many gradient updates are to be made now, at least once a step, and is sent their metrics.
        """
        if self.loaded_from is not None and not self._resumed and self._saved_fingerprint is None:
            self._try_checkpoint(run, regular=False)  # what was loaded is nowhere else in the run directory
        while True:
            if run.has_event or run.lacks_last_report:
                yield from self._pause(run)
            if self.timesteps >= run.last or run.stop.requested:
                break
            self._send_next_action()
            self._store_latest()
            yield from self._update(run)
            if run.stop.requested:  # the step is received when the run goes on, after the updates that are left
                break
            self._receive(run)
        self._store_latest()
        self.learner.wait()  # on a GPU an update that failed may not be known yet

    def _pause(self, run: _Run) -> Generator[int, Metrics | None, None]:
        """Make all updates before the next step, then what is due: a line of metrics, an evaluation, a checkpoint."""
        if not run.has_event and self.environment_steps:
            self._send_next_action()  # as a longer run, which would not pause here, does before these updates
        self._store_latest()
        yield from self._update(run)
        if run.stop.requested:
            return
        if self.timesteps >= run.next_report or run.lacks_last_report:
            run.report()
        if run.next_checkpoint <= self.timesteps < run.last and not run.stop.requested:
            self._try_checkpoint(run, regular=True)

    def _try_checkpoint(self, run: _Run, regular: bool) -> None:
        try:
            self._checkpoint(run, regular)
        except OSError as error:
            _LOG.warning("no checkpoint at %d transitions, training goes on: %s", self.timesteps, error)

    def _send_next_action(self) -> None:
        rollout = self._open_env()
        if not rollout.is_stepping:
            rollout.send(self._choose_action(rollout.observation))

    def _receive(self, run: _Run) -> None:
        """Take in the step that is under way."""
        counts = self._counts
        transition, _, _, episodes = self._open_env().recv()
        self._latest = _first_rows(transition, run.last - counts.timesteps)
        count = len(self._latest.reward)
        counts.collected += count
        counts.timesteps += count
        if count < len(transition.reward) and self.train_config.run_dir is not None:
            self._close_env()  # these environments have made transitions that the run does not have
        run.count(self._latest, episodes)

    def _store_latest(self) -> None:
        if self._latest is not None:
            self.replay.add(*self._latest)
            self._latest = None

    def _choose_action(self, observation: FloatArray) -> FloatArray:
        """Uniformly random actions before learning starts, then the policy's; [n, A] in [-1, 1]."""
        if self._counts.collected < self.config.learning_starts and self.learner.gradient_updates == 0:
            shape = (len(observation), self.spec.action_dim)
            return self._exploration.random(shape, dtype=np.float32) * np.float32(2) - np.float32(1)
        return self.policy.act(observation)

    def _update(self, run: _Run) -> Generator[int, Metrics | None, None]:
        """Ask for the gradient updates that are due, once the replay buffer can fill a minibatch."""
        counts, learner = self._counts, self.learner
        steps = self._updates_due(run)
        if not steps:
            yield 0
        while steps and not run.stop.requested:
            before = learner.gradient_updates
            metrics = yield steps
            assert metrics is not None, "updates were asked for"
            if made := learner.gradient_updates - before:  # none, or fewer than asked for: a signal came
                counts.add_updates(metrics, made, steps)
                run.updated(metrics)
            steps = self._updates_due(run)

    def _updates_due(self, run: _Run) -> int:
        """Return the updates of the next call of the learner; the rest of one that was cut is a call of its own."""
        counts = self._counts
        if len(self.replay) < self.config.batch_size:
            return 0
        due = self._schedule.due(counts.collected) - (self.learner.gradient_updates - counts.first_update)
        return max(0, min(due, run.updates_per_call, counts.updates_cut or due))

    def _action_bytes(self, last: int) -> int:
        """Return what the actions take that a run up to `last` transitions keeps: twice, for a checkpoint copies them.

        They are dropped at every regular checkpoint.
        """
        if self.train_config.run_dir is None:
            return 0
        kept = min(last - self.timesteps, self.checkpoint_every or math.inf)
        return 2 * 4 * int(kept) * self.spec.action_dim

    def _checkpoint(self, run: _Run, regular: bool) -> None:
        """Write the run's checkpoint, with all that `resume` needs, and remove those that are too many.

        At a `regular` one, whether or not it can be written, the environments are closed, and the next step opens
        fresh ones: what the run does then does not depend on the disk. At others they stay open, if a resumed run can
        step its own to where they are.
        """
        if regular:
            self._counts.checkpointed = self.timesteps
            run.plan_checkpoint()
        path = run.logger.checkpoint_path(self.timesteps)
        if path is None:
            return
        self.learner.wait()  # nothing is saved behind an update that failed
        rollout = self._rollout
        if regular or rollout is None or rollout.is_fresh or not rollout.is_repeatable:
            self._close_env()
        if self._saved_fingerprint == self._fingerprint():
            return
        self._counts.wall_seconds = run.seconds()
        groups: dict[str, Mapping[str, torch.Tensor]] = {"policy": self.policy.state_dict()}
        if self.train_config.checkpoint_replay:
            groups["replay"] = self.replay.state_dict()
        if self._rollout is not None:
            groups[ENVIRONMENTS] = self._rollout.state_dict()
        manifest = {
            "train": run.train_config.to_dict(),
            "progress": self._counts.to_json(),
            "exploration": self._exploration.bit_generator.state,
            "torch_threads": self._update_threads,
        }
        self._save(path, groups, manifest)
        self._saved_fingerprint = self._fingerprint()
        checkpoint.keep_newest(path.parent, self.train_config.keep_checkpoints)

    def _fingerprint(self) -> tuple[int, ...]:
        """Return what changes with all that a run, or its user, does: equal ones are of equal checkpoints."""
        counts, actor = self._counts, self.learner.actor.flat.detach().cpu().numpy()
        numbers = counts.timesteps, counts.reported, counts.checkpointed, len(self.replay)
        return *numbers, self.learner.gradient_updates, zlib.crc32(actor.tobytes())

    def _conditions(self) -> dict[str, Any]:
        """Return what must not change for a resumed run to be exact."""
        found = {**versions(), "torch threads": self._update_threads}
        if self.spec.source == "gymnasium":
            found.pop("envpool", None)
        return found

    def _finish(self, run: _Run, status: str) -> None:
        """Write what a run leaves behind, whatever ended it; the summary last, when all is there."""
        failed = status in ("environment_fault", "failed")
        try:
            self._store_latest()  # a callback that failed has seen it, and it is counted
            run.report_rest()
            self._checkpoint(run, regular=status == "completed" and run.next_checkpoint <= self.timesteps)
            run.close(status)
        except Exception as error:
            with suppress(Exception):  # what failed first is raised
                run.close(status if failed else "failed")
            if not failed:
                raise
            _LOG.warning("no checkpoint at %d transitions, or no summary: %s", self.timesteps, error)


def learn_together(
    models: Sequence[SAC], total_timesteps: int | None = None, callbacks: Callback | Sequence[Callback] = ()
) -> None:
    """Let models that differ in their seeds alone learn side by side in this process, each as `SAC.learn` has it.

    They take their steps in turns, so that the environments of all are at work at the same time. On a GPU the fused
    updates of all are made by the same launches: several seeds take little longer than one. A model's result is that
    of learning alone, on a GPU to rounding. One that fails ends, and the others go on.

    Args:
        models: of one task, configuration, backend and device.
        total_timesteps: transitions to collect, for each.
        callbacks: called for every model, which is their first argument; what ends a run ends that model's alone.

    Raises:
        ValueError: models that differ in more, or more than a launch serves (64), or too large replay buffers for the
            memory.
        Exception: what ended the first model that failed, when all have ended; otherwise as `SAC.learn`.
    """
    models = list(models)
    if len(set(map(id, models))) < len(models) or not models:
        raise ValueError(f"models: expected one or more, each once, got {models}")
    for model in models:
        if model.spec.env_id != models[0].spec.env_id:
            raise ValueError(f"models: expected one task, got {models[0].spec.env_id!r} and {model.spec.env_id!r}")
    _learn(models, side_by_side([each.learner for each in models]), total_timesteps, callbacks)


def _learn(
    models: Sequence[SAC], group: LearnerGroup, total_timesteps: int | None, callbacks: Callback | Sequence[Callback]
) -> None:
    """Run the loops of all models step by step, and make the updates that they ask for together."""
    called = as_callbacks(callbacks)
    lasts = [each._last_timestep(total_timesteps) for each in models]
    for model in models:
        model._check_task_is_known()
    _check_memory(models, lasts)
    with _torch_threads(ACTING_THREADS), _Signals() as signals, ExitStack() as at_the_end:
        for model in models:
            model._leave_out_updates_of_others()
            at_the_end.callback(model._end_of_learn)
        bar_numbers: Sequence[int | None] = [None] if len(models) == 1 else range(len(models))
        loops = {
            number: _Loop(_Run(model, model._claim_logger(), _Stop(signals), called, last, bar_number))
            for number, (model, last, bar_number) in enumerate(zip(models, lasts, bar_numbers, strict=True))
        }
        failures: list[Exception] = []
        outcomes: dict[int, Metrics | Exception] = {}
        while loops:
            for number, loop in list(loops.items()):
                try:
                    loop.advance(outcomes.get(number))
                except Exception as error:
                    if len(loops) > 1:
                        _LOG.warning("seed %d: %s; the others go on", models[number].train_config.seed, error)
                    failures.append(error)
                if loop.has_ended:
                    del loops[number]
            outcomes = {}
            if work := {number: (models[number].replay, loop.steps) for number, loop in loops.items() if loop.steps}:
                with _torch_threads(models[0]._update_threads):
                    outcomes = group.update(work, should_stop=lambda: signals.number is not None)
    if failures:
        raise failures[0]
    if signals.number == signal.SIGINT:
        raise KeyboardInterrupt
    if signals.number is not None:
        raise SystemExit(128 + signals.number)


def _check_memory(models: Sequence[SAC], lasts: Sequence[int]) -> None:
    """Raise ValueError where the host has too little memory for what all models will still write to, up to `lasts`.

    Memory is given untouched: each part for itself may have seemed to fit.
    """
    replay = sum(each.replay.rows[len(each.replay) :].nbytes for each in models if each.device.type == "cpu")
    actions = sum(each._action_bytes(last) for each, last in zip(models, lasts, strict=True))
    what = "replay_capacity: the replay buffer" if len(models) == 1 else f"num_seeds: {len(models)} replay buffers"
    if actions:
        what += " and the actions between checkpoints (checkpoint_every)"
    check_fits(what, replay + actions, torch.device("cpu"))


class _Loop:
    """A model's loop from one request for updates to the next, and how it ends."""

    def __init__(self, run: _Run) -> None:
        self.has_ended = False
        self.steps = 0  # gradient updates that are asked for
        self._run = run
        self._steps = run.model._collect(run)

    def advance(self, outcome: Metrics | Exception | None) -> None:
        """Go on with what became of the updates. Raises what has ended the loop before its time."""
        try:
            self.steps = self._steps.throw(outcome) if isinstance(outcome, Exception) else self._steps.send(outcome)
        except StopIteration:
            self.has_ended = True
            self._run.model._finish(self._run, self._run.stop.status)
        except Exception as error:
            self.has_ended = True
            self._run.model._close_env()  # in an unknown state: a later call starts with fresh environments
            status = "environment_fault" if isinstance(error, EnvironmentFault) else "failed"
            self._run.model._finish(self._run, status)
            raise
        except BaseException:  # a second Ctrl-C, which may have come in the middle of a step
            self._run.model._close_env()
            raise


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
    """Turn "auto", "cpu", "cuda" or "cuda:N" into a device that is there; a GPU with its index.

    "auto" is a GPU that torch and the kernels can use, or else the CPU; a warning says why where only torch can.

    Raises:
        ValueError: CUDA was asked for by name and is not available.
    """
    available = torch.cuda.is_available()
    if device == "auto":
        reason = _ext.cuda_reason()
        if available and reason:
            _warn_of_cpu(reason)
        return with_index("cpu" if reason else "cuda")
    resolved = torch.device(device)
    if resolved.type == "cuda" and not available:
        reason = "finds no GPU" if torch.version.cuda else "is built without CUDA"
        raise ValueError(f"device: expected 'cpu' or 'auto', for torch {torch.__version__} {reason}; got {device!r}")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"device: expected an index below {torch.cuda.device_count()}, got {device!r}")
    return with_index(resolved)


@cache
def _warn_of_cpu(reason: str) -> None:
    """Say once in a process why a GPU stays idle."""
    _LOG.warning("device: 'auto' is the CPU: %s", reason)


_EVALUATION = {
    "eval_return_mean": saved.optional(saved.number()),
    "eval_return_std": saved.optional(saved.number(0)),
    "eval_episodes": saved.integer(0),
}
_COUNTS = {
    "timesteps": saved.integer(0),
    "wall_seconds": saved.number(0),
    "collected": saved.integer(0),
    "first_update": saved.integer(-(2**62)),
    "env_generation": saved.integer(0),
    "reported": saved.integer(0),
    "checkpointed": saved.integer(0),
    "episodes": saved.integer(0),
    "returns": saved.list_of(saved.number(), RECENT_EPISODES),
    "lengths": saved.list_of(saved.integer(0), RECENT_EPISODES),
    "update_metrics": saved.optional(saved.mapping_of(saved.number())),
    "updates_met": saved.integer(0),
    "updates_cut": saved.integer(0),
    "best_return": saved.optional(saved.number()),
    "evaluation": saved.OBJECT,
}
"""What the fields of `_Counts` are in a checkpoint."""


@dataclasses.dataclass
class _Counts:
    """What a model counts while it learns. A checkpoint holds it, so that a resumed run goes on counting."""

    timesteps: int = 0  # transitions, those before a `load` among them
    wall_seconds: float = 0.0
    collected: int = 0  # transitions since the model was made or loaded
    first_update: int = 0  # the learner's updates that are none of the run's: those of before, and of others
    env_generation: int = 0  # of the environments that are open, or are opened next
    reported: int = 0  # transitions at the latest line of metrics that was due
    checkpointed: int = 0  # transitions at the latest regular checkpoint
    episodes: int = 0  # that ended
    returns: deque[float] = dataclasses.field(default_factory=lambda: deque(maxlen=RECENT_EPISODES))
    lengths: deque[int] = dataclasses.field(default_factory=lambda: deque(maxlen=RECENT_EPISODES))
    update_metrics: Metrics | None = None  # of the learner's latest call; on its device until read
    updates_met: int = 0  # updates that `update_metrics` is the mean of
    updates_cut: int = 0  # updates of the latest call that were not made because of a signal: they are its rest
    best_return: float | None = None  # of an evaluation whose policy is kept
    evaluation: dict[str, Any] = dataclasses.field(  # the latest, as the summary has it
        default_factory=lambda: {"eval_return_mean": None, "eval_return_std": None, "eval_episodes": 0}
    )

    def add_updates(self, metrics: Metrics, made: int, asked: int) -> None:
        """Take in the metrics of the updates that were made of those asked for in one call of the learner.

        A call that was cut and its rest together give, rounded, the means of a call that was not.
        """
        if self.updates_cut and self.update_metrics is not None:
            metrics = self.update_metrics.joined(self.updates_met, metrics, made)
            asked, made = self.updates_met + self.updates_cut, self.updates_met + made
        self.updates_met, self.updates_cut = made, asked - made
        self.update_metrics = metrics if self.updates_cut else metrics.rounded()

    @classmethod
    def after(cls, timesteps: int, wall_seconds: float) -> _Counts:
        """Begin behind `timesteps` transitions of an earlier run."""
        return cls(timesteps, wall_seconds, reported=timesteps, checkpointed=timesteps)

    def to_json(self) -> dict[str, Any]:
        """Return values that JSON can hold, and hold exactly."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        metrics = None if self.update_metrics is None else self.update_metrics.to_dict()
        return {**values, "returns": list(self.returns), "lengths": list(self.lengths), "update_metrics": metrics}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], schema_version: int) -> _Counts:
        """Rebuild what `to_json` took for a checkpoint of this schema.

        Raises CheckpointError for a field that is not what it must be.
        """
        if schema_version < 3 and isinstance(values, dict):  # all that was due was done at every checkpoint
            done = dict.fromkeys(("reported", "checkpointed"), values.get("timesteps"))
            met = int(values.get("update_metrics") is not None)
            values = {**done, "updates_met": met, "updates_cut": 0, **values}
        saved.check("progress", values, _COUNTS)
        evaluation = values["evaluation"]
        saved.check("progress: evaluation", evaluation, _EVALUATION)
        if any((evaluation[name] is None) != (evaluation["eval_episodes"] == 0) for name in list(_EVALUATION)[:2]):
            raise checkpoint.CheckpointError(
                f"progress: evaluation: expected a return of its episodes, got {evaluation}"
            )
        if unknown := sorted(set(values) - {field.name for field in dataclasses.fields(cls)}):
            raise checkpoint.CheckpointError(f"progress: expected the keys {sorted(_COUNTS)}, got {unknown} too")
        if (values["update_metrics"] is None) != (values["updates_met"] == 0):
            raise checkpoint.CheckpointError(
                f"progress: update_metrics: expected the means over {values['updates_met']} updates, got "
                f"{values['update_metrics']}"
            )
        for name in ("collected", "reported", "checkpointed"):
            if values[name] > values["timesteps"]:
                raise checkpoint.CheckpointError(
                    f"progress: {name}: expected at most {values['timesteps']}, got {values[name]}"
                )
        found: dict[str, float] | None = values["update_metrics"]
        metrics = None
        if found is not None:
            metrics = Metrics(tuple(found), torch.tensor(list(found.values()), dtype=torch.float64))
        recent = {name: deque(values[name], maxlen=RECENT_EPISODES) for name in ("returns", "lengths")}
        return cls(**{**values, **recent, "update_metrics": metrics})


class _Run:
    """One call of `learn` as its user sees it: metrics, evaluations, callbacks, progress and the summary."""

    def __init__(
        self,
        model: SAC,
        logger: MetricsLogger,
        stop: _Stop,
        callbacks: tuple[Callback, ...],
        last: int,
        bar_number: int | None,
    ) -> None:
        """Start the clock of a call that ends when the model has collected `last` transitions.

        `bar_number` is that of its progress bar, None where there is but one.
        """
        self.logger = logger
        self.last = last
        self.model = model
        self.stop = stop
        self._on_step = overriding(callbacks, "on_step")
        self._on_update = overriding(callbacks, "on_update")
        self._on_evaluation = overriding(callbacks, "on_evaluation")
        self.updates_per_call = 1 if self._on_update else UPDATES_PER_CALL
        self.train_config = dataclasses.replace(model.train_config, total_timesteps=last)
        logger.write_config({"train": self.train_config.to_dict(), "sac": model.config.to_dict()})
        self._bar = tqdm(
            total=last,
            initial=model.timesteps,
            unit="step",
            dynamic_ncols=True,
            desc=None if bar_number is None else f"seed {model.train_config.seed}",
            position=bar_number,
            mininterval=REFRESH_SECONDS,
            disable=not model.train_config.progress,
            file=output.progress_stream(),
        )
        self._earlier_seconds = model.wall_seconds
        self._start = time.perf_counter()
        self._row_mark = self._refresh_mark = self._mark()
        self.plan_checkpoint()
        self._plan_reports()
        self._warn_of_cut_episodes()

    def count(self, transition: Transition, episodes: EpisodeStatistics) -> None:
        """Take in one step of the environments: transitions stored, episodes ended."""
        if len(episodes.return_):
            counts = self.model._counts
            counts.returns.extend(episodes.return_.tolist())
            counts.lengths.extend(episodes.length.tolist())
            counts.episodes += len(episodes.return_)
        self._bar.update(len(transition.reward))
        if time.perf_counter() - self._start >= self._refresh_mark.seconds + REFRESH_SECONDS:
            self._refresh()
        for callback in self._on_step:
            self._heed(callback, "on_step", callback.on_step(self.model, transition, episodes))

    def updated(self, metrics: Metrics) -> None:
        """Take in one call of the learner."""
        for callback in self._on_update:
            self._heed(callback, "on_update", callback.on_update(self.model, metrics))

    def _heed(self, callback: Callback, method: str, answer: object) -> None:
        if asks_to_stop(callback, method, answer):
            self.stop.by_callback()

    def report(self) -> None:
        """Write a line of metrics, with an evaluation where one is due."""
        model, evaluation = self.model, None
        if model.train_config.evaluation_episodes and model.timesteps >= min(self._next_evaluation, self.last):
            evaluation = self._evaluate()
        self._write_line(evaluation)
        model._counts.reported = model.timesteps
        self._plan_reports()
        if evaluation is not None:
            for callback in self._on_evaluation:
                self._heed(callback, "on_evaluation", callback.on_evaluation(model, evaluation))

    def report_rest(self) -> None:
        """Write a line of metrics of a run that is cut short between two. When it goes on the line is taken back."""
        if self.model._counts.reported != self.model.timesteps:
            self._write_line(None)

    def _write_line(self, evaluation: EvaluationResult | None) -> None:
        model, counts = self.model, self.model._counts
        mark = self._mark()
        row = {
            "step": model.timesteps,
            "gradient_updates": mark.updates,
            "wall_seconds": self.seconds(),
            "env_steps_per_second": mark.steps_per_second(self._row_mark),
            "updates_per_second": mark.updates_per_second(self._row_mark),
            "episodes": counts.episodes,
            "episode_return_mean": _mean(counts.returns),
            "episode_length_mean": _mean(counts.lengths),
            **({} if counts.update_metrics is None else counts.update_metrics.to_dict()),
        }
        if evaluation is not None:
            row |= {"eval_return_mean": evaluation.mean, "eval_return_std": evaluation.std}
            row |= {"eval_length_mean": float(evaluation.lengths.mean())}
        try:
            self.logger.log(row)
        except OSError as error:
            _LOG.warning("no metrics at %d transitions, training goes on: %s", model.timesteps, error)
        self._row_mark = mark
        counts.wall_seconds = self.seconds()

    def _evaluate(self) -> EvaluationResult:
        """Evaluate; keep the policy if none was better."""
        model, counts = self.model, self.model._counts
        result = model.evaluate(model.train_config.evaluation_episodes)
        counts.evaluation = {
            "eval_return_mean": result.mean,
            "eval_return_std": result.std,
            "eval_episodes": len(result.returns),
        }
        if counts.best_return is None or result.mean > counts.best_return:
            try:
                path = self.logger.best_path()
                if path is not None:
                    model._save(path, {}, {"evaluation": counts.evaluation})
                    counts.best_return = result.mean
            except OSError as error:
                _LOG.warning("the best policy so far could not be saved, training goes on: %s", error)
        return result

    def close(self, status: str) -> None:
        """End the progress bar and write the summary."""
        model, train = self.model, self.model.train_config
        self._refresh()
        self._bar.close()
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
            **model._counts.evaluation,
            "device": str(model.device),
            "backend": train.backend,
            "versions": versions(),
        }
        self.logger.write_summary(model.summary)

    def seconds(self) -> float:
        """Return the time that the model has learned, in earlier calls of `learn` too."""
        return self._earlier_seconds + time.perf_counter() - self._start

    @property
    def has_event(self) -> bool:
        """Whether a line of metrics or a checkpoint is due, in a run of any length."""
        return self.model.timesteps >= min(self.next_report, self.next_checkpoint)

    @property
    def lacks_last_report(self) -> bool:
        """Whether the run has its length, and not yet the line and the evaluation at its end."""
        return self.model._counts.reported < self.last <= self.model.timesteps

    def plan_checkpoint(self) -> None:
        """Set the transitions at which the next checkpoint is due."""
        every = self.model.checkpoint_every if self.model.train_config.run_dir is not None else 0
        self.next_checkpoint = (self.model._counts.checkpointed // every + 1) * every if every else math.inf

    def _warn_of_cut_episodes(self) -> None:
        model, limit = self.model, self.model.spec.max_episode_steps
        steps = model.checkpoint_every / model.train_config.num_envs
        if self.next_checkpoint < self.last and limit is not None and steps < limit:
            _LOG.warning(
                "checkpoint_every: %d transitions are %d steps of each of %d environments, so episodes of up to %d "
                "steps may never end; expected at least %d",
                *(model.checkpoint_every, steps, model.train_config.num_envs, limit),
                model.train_config.num_envs * limit,
            )

    def _plan_reports(self) -> None:
        """Set the transitions at which the next line, and the next evaluation, are due."""
        step, train = self.model._counts.reported, self.model.train_config
        every = train.evaluate_every
        self._next_evaluation = (step // every + 1) * every if every else math.inf
        self.next_report = min((step // train.log_interval + 1) * train.log_interval, self._next_evaluation)

    def _refresh(self) -> None:
        """Show the return and the update rate; tqdm itself shows steps, steps per second and the ETA."""
        mark, returns = self._mark(), self.model._counts.returns
        postfix = {"return": f"{_mean(returns):.1f}"} if returns else {}
        postfix["updates/s"] = f"{mark.updates_per_second(self._refresh_mark):.0f}"
        self._bar.set_postfix(postfix, refresh=False)
        self._refresh_mark = mark

    def _mark(self) -> _Mark:
        model = self.model
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


class _Stop:
    """What asks a run to end: a signal, which ends all runs, or a callback."""

    def __init__(self, signals: _Signals) -> None:
        self._signals = signals
        self._by_callback = False

    @property
    def requested(self) -> bool:
        return self._by_callback or self._signals.number is not None

    @property
    def status(self) -> str:
        """How a run ends that did not fail, in the words of the summary."""
        if self._signals.number is not None:
            return "interrupted"
        return "stopped" if self._by_callback else "completed"

    def by_callback(self) -> None:
        self._by_callback = True


class _Signals:
    """Takes note of the first Ctrl-C or SIGTERM. A second one has its usual effect."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __enter__(self) -> Self:
        self._previous = {}
        if threading.current_thread() is threading.main_thread():  # others cannot take signals
            self._previous = {number: signal.signal(number, self._request) for number in _USUAL_EFFECT}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set by Python

    def _request(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        for each, handler in _USUAL_EFFECT.items():
            signal.signal(each, handler)


_USUAL_EFFECT: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Let torch's CPU operators use `count` threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _checkpoint_every(train: TrainConfig, spec: EnvSpec) -> int:
    uncut = EPISODES_UNCUT * train.num_envs * (spec.max_episode_steps or 0)
    return max(CHECKPOINT_EVERY, uncut) if train.checkpoint_every is None else train.checkpoint_every


def _first_rows(transition: Transition, count: int) -> Transition:
    """Return at most `count` rows: a run ends after exactly as many transitions as were asked for."""
    if len(transition.reward) <= count:
        return transition
    observation, action, reward, next_observation, terminated = transition
    return Transition(observation[:count], action[:count], reward[:count], next_observation[:count], terminated[:count])


def _config_of_run(run_dir: Path) -> dict[str, Any] | None:
    """Return what config.json says; None where there is none, or where it cannot be read, which a warning says."""
    if not os.path.lexists(run_dir / CONFIG_FILE):
        return None
    try:
        return read_config(run_dir)
    except RunError as error:
        _LOG.warning("%s; the settings are those of the checkpoint", error)
        return None


def _load_state(part: _Stateful, state: Mapping[str, torch.Tensor], path: Path, group: str) -> None:
    """Load a group of a checkpoint; what is refused is a CheckpointError that names the group's file."""
    try:
        part.load_state_dict(state)
    except (TypeError, ValueError, RuntimeError) as error:
        raise checkpoint.CheckpointError(f"{path / group}.safetensors: {error}") from error


def _warn_of_changes(before: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for name, value in found.items():
        if before.get(name) != value:
            _LOG.warning("%s was %s, is %s: the run may not go on bit for bit", name, before.get(name), value)


def _split_fields(fields: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sort keyword arguments into those of `TrainConfig` and those of `SACConfig`."""
    train_names = {field.name for field in dataclasses.fields(TrainConfig)} - {"env_id", "total_timesteps"}
    sac_names = {field.name for field in dataclasses.fields(SACConfig)}
    if unknown := [name for name in fields if name not in train_names | sac_names]:
        hints = (_hint(name, sorted(train_names | sac_names)) for name in unknown)
        lines = (f"SAC: unknown argument {name!r}; {hint}" for name, hint in zip(unknown, hints, strict=True))
        raise TypeError("\n".join(lines))
    train = {name: value for name, value in fields.items() if name in train_names}
    return train, {name: value for name, value in fields.items() if name in sac_names}


def _hint(name: str, known: list[str]) -> str:
    """Say what an argument that does not exist may be here."""
    if name == "total_timesteps":
        return "learn takes it: SAC(...).learn(total_timesteps=...)"
    if name in STABLE_BASELINES3:
        return STABLE_BASELINES3[name].replace("`", "")
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"expected some of {known}"


def _derive_seeds(seed: int) -> dict[str, int]:
    """Give each consumer of randomness a seed of its own: equal ones would draw equal numbers."""
    names = ("learner", "replay", "policy", "exploration")
    return dict(zip(names, np.random.SeedSequence(seed).generate_state(len(names)).tolist(), strict=True))


def _mean(values: Collection[float]) -> float | None:
    return sum(values) / len(values) if values else None
