"""Every setting of the algorithm and of a run: its meaning, its default and where the default comes from.

v1 is arXiv 1801.01290 (a value network, a fixed temperature); v2 is arXiv 1812.05905 (target critics, a
learned temperature). A default marked v2 is from Table 1 of v2.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args

from sacfast.scalars import as_bool, as_float, as_int

Backend = Literal["fused", "reference"]
BACKENDS: tuple[str, ...] = get_args(Backend)
"""The backends that `make_learner` can build."""

Activation = Literal["relu", "tanh", "elu", "silu", "gelu"]
"""What follows each hidden layer; `sacfast.networks` has the functions."""


_LEARNING_RATE = "here it is `actor_lr`, `critic_lr` and `alpha_lr`"
_RATIO = "here it is `utd_ratio`, gradient updates per transition"
_NO_SDE = "here there is no state-dependent exploration"
_ONE_BUFFER = "here there is one kind of replay buffer, of `replay_capacity` transitions"
STABLE_BASELINES3 = {
    "policy": "here there is one kind of policy, of `hidden_sizes` and `activation`",
    "env": "here it is `env_id`, the name of a task",
    "n_envs": "here it is `num_envs`",
    "learning_rate": _LEARNING_RATE,
    "lr_schedule": _LEARNING_RATE,
    "buffer_size": "here it is `replay_capacity`",
    "train_freq": _RATIO,
    "gradient_steps": _RATIO,
    "n_steps": "here the target looks one step ahead",
    "ent_coef": "here it is `alpha`; what 'auto_0.1' starts from is `initial_alpha`",
    "action_noise": "here it is `exploration_noise`, with `deterministic_policy`",
    "replay_buffer_class": _ONE_BUFFER,
    "replay_buffer_kwargs": _ONE_BUFFER,
    "optimize_memory_usage": _ONE_BUFFER,
    "use_sde": _NO_SDE,
    "sde_sample_freq": _NO_SDE,
    "use_sde_at_warmup": _NO_SDE,
    "policy_kwargs": "here they are settings of their own: `hidden_sizes`, `activation`, `adam_betas`, `adam_eps`",
    "net_arch": "here it is `hidden_sizes`",
    "activation_fn": "here it is `activation`",
    "tensorboard_log": "here it is `tensorboard`, which writes to `run_dir`",
    "verbose": "here it is `progress`",
    "progress_bar": "here it is `progress`",
    "stats_window_size": "here returns are means of the latest 100 episodes",
    "eval_freq": "here it is `evaluate_every`",
    "n_eval_episodes": "here it is `evaluation_episodes`",
}
"""What Stable-Baselines3 calls its settings: what they are here, with the fields of this module in backticks."""


def check_backend(backend: str) -> None:
    """Raise ValueError unless `backend` is one of `BACKENDS`."""
    _check_choice("backend", backend, BACKENDS)


class _Interval(NamedTuple):
    """A range of real numbers that prints as mathematics writes it, such as "[0, 1)"."""

    low: float
    high: float
    closed: Literal["[]", "[)", "(]", "()"]

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float):
            return False
        above = value >= self.low if self.closed[0] == "[" else value > self.low
        below = value <= self.high if self.closed[1] == "]" else value < self.high
        return above and below

    def __str__(self) -> str:
        return f"{self.closed[0]}{self.low:g}, {self.high:g}{self.closed[1]}"


_POSITIVE = _Interval(0, math.inf, "()")
_NOT_NEGATIVE = _Interval(0, math.inf, "[)")
_FINITE = _Interval(-math.inf, math.inf, "()")
_FLOAT_RANGES = {
    "utd_ratio": _NOT_NEGATIVE,
    "gamma": _Interval(0, 1, "[]"),
    "reward_scale": _POSITIVE,
    "initial_alpha": _POSITIVE,
    "actor_lr": _POSITIVE,
    "critic_lr": _POSITIVE,
    "alpha_lr": _POSITIVE,
    "value_lr": _POSITIVE,
    "adam_eps": _POSITIVE,
    "tau": _Interval(0, 1, "(]"),
    "exploration_noise": _NOT_NEGATIVE,
}
_AUTO_OR_FLOAT_RANGES = {
    "alpha": _NOT_NEGATIVE,
    "target_entropy": _FINITE,
}
_FLOAT_PAIR_RANGES = {
    "adam_betas": _Interval(0, 1, "[)"),
    "log_std_bounds": _FINITE,
}


@dataclass(frozen=True)
class _Config:
    """Conversion to and from JSON-safe dictionaries, shared by the configurations."""

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as values that JSON can hold: tuples become lists, paths strings."""
        return {field.name: _to_json(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build from what `to_dict` returned; fields not in `values` take their defaults.

        Raises ValueError for a key that is no field, naming it, and whatever the constructor raises.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = sorted(set(values) - set(known))
        if unknown:
            raise ValueError(f"{cls.__name__}: unknown key(s) {', '.join(unknown)}; expected some of {known}")
        return cls(**values)

    def _store(self, name: str, value: object) -> None:
        # For __post_init__ only: settings that mean the same (0, 0.0 and NumPy's, a list from JSON and a tuple) are
        # held in one form, so that they compare equal and JSON takes them.
        object.__setattr__(self, name, value)


@dataclass(frozen=True)
class SACConfig(_Config):
    """Soft Actor-Critic. The defaults are v2 with a learned temperature.

    The paper's experiments are reached by:

    - v1: `value_network=True, alpha=1.0, reward_scale=5.0` (20 for Humanoid);
    - hard target updates: `target_update="hard", target_update_interval=1000, utd_ratio=4.0`;
    - the deterministic ablation: `deterministic_policy=True, alpha=0.0`.

    Raises ValueError for a value out of its range or a combination without a meaning, TypeError for a wrong
    type; both name the field, what came and what was expected.
    """

    hidden_sizes: tuple[int, ...] = (256, 256)
    """Units of each hidden layer of every network; () makes them linear. v2."""
    activation: Activation = "relu"
    """What follows each hidden layer. v2. The fused backend has "relu" alone."""
    batch_size: int = 256
    """Transitions in a minibatch. v2."""
    utd_ratio: float = 1.0
    """Gradient updates per stored transition, whatever the number of environments; 0: collect only. v2."""
    learning_starts: int = 1_000
    """Transitions collected with uniformly random actions before the first update. The authors' code."""
    replay_capacity: int = 1_000_000
    """Transitions the replay buffer holds. v2."""
    gamma: float = 0.99
    """Discount per environment step. v2."""
    reward_scale: float = 1.0
    """Multiplies the reward in the Bellman target. 1: v2; v1 tunes it (5, Humanoid 20)."""
    alpha: float | Literal["auto"] = "auto"
    """Temperature in units of scaled reward per nat: "auto" learns it (v2, equation 18), a float fixes it,
    0.0 leaves out the entropy term."""
    initial_alpha: float = 1.0
    """Where the learned temperature starts; not used when `alpha` is fixed. The authors' code of v2."""
    target_entropy: float | Literal["auto"] = "auto"
    """Entropy in nats that the learned temperature aims at; "auto": minus the action dimensions. v2."""
    actor_lr: float = 3e-4
    """Adam step size of the actor. v2."""
    critic_lr: float = 3e-4
    """Adam step size of the twin critics. v2."""
    alpha_lr: float = 3e-4
    """Adam step size of log alpha. v2."""
    value_lr: float = 3e-4
    """Adam step size of the value network. v1."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Adam's decay rates of the first and second moment. Adam's own defaults (arXiv 1412.6980)."""
    adam_eps: float = 1e-8
    """Adam's addition to the root of the second moment. Adam's own default."""
    target_update: Literal["polyak", "hard"] = "polyak"
    """How target parameters follow: "polyak", target += tau * (online - target), v2; "hard", a copy, v1."""
    tau: float = 0.005
    """Polyak step of the target parameters; not used by "hard". v2."""
    target_update_interval: int = 1
    """Gradient updates from one target update to the next, for both kinds. v2: 1; v1 with "hard": 1000."""
    value_network: bool = False
    """v1: learn V and bootstrap from its target copy, not from target critics; needs a fixed `alpha`."""
    deterministic_policy: bool = False
    """v1's ablation: the policy is a = tanh(mean), in the losses and while acting. The update draws no noise
    and there is no entropy, so `alpha` must be 0. Collection then explores with `exploration_noise`."""
    exploration_noise: float = 0.1
    """With `deterministic_policy` only: standard deviation, in units of the [-1, 1] action, of the Gaussian
    noise added to collected actions, which are then clipped. v1 speaks of "fixed" exploration noise and gives
    no figure; 0.1 is TD3's (arXiv 1802.09477)."""
    log_std_bounding: Literal["none", "clamp", "tanh"] = "clamp"
    """How the actor's raw log standard deviation s is kept in `log_std_bounds` = (low, high): "clamp" cuts it
    (the authors' code), "tanh" maps it to low + (high - low) / 2 * (tanh(s) + 1), "none" leaves it."""
    log_std_bounds: tuple[float, float] = (-20.0, 2.0)
    """Lowest and highest log standard deviation. The authors' code."""
    matmul_precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    """What the fused update on a GPU rounds the operands of its matrix products to, for its tensor cores; parameters
    and sums stay float32. The other backends have "float32" alone."""
    fused_ops: bool = True
    """In the reference backend: the kernels of `sacfast.ops` (True) or their plain-torch twins (False)."""

    def __post_init__(self) -> None:
        """Validate, and store every value in its one form."""
        self._store("hidden_sizes", _int_tuple("hidden_sizes", self.hidden_sizes))
        for name in ("batch_size", "replay_capacity", "target_update_interval"):
            self._store(name, as_int(name, getattr(self, name), 1))
        self._store("learning_starts", as_int("learning_starts", self.learning_starts, 0))
        for name, interval in _FLOAT_RANGES.items():
            self._store(name, _float(name, getattr(self, name), interval))
        for name, interval in _AUTO_OR_FLOAT_RANGES.items():
            if getattr(self, name) != "auto":
                self._store(name, _float(name, getattr(self, name), interval, alternative="'auto' or "))
        for name, interval in _FLOAT_PAIR_RANGES.items():
            self._store(name, _float_pair(name, getattr(self, name), interval))
        _check_choice("activation", self.activation, get_args(Activation))
        _check_choice("target_update", self.target_update, ("polyak", "hard"))
        _check_choice("log_std_bounding", self.log_std_bounding, ("none", "clamp", "tanh"))
        _check_choice("matmul_precision", self.matmul_precision, ("float32", "tf32", "bfloat16"))
        for name in ("value_network", "deterministic_policy", "fused_ops"):
            self._store(name, as_bool(name, getattr(self, name)))
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.replay_capacity < self.batch_size:
            raise ValueError(
                f"replay_capacity: expected at least batch_size ({self.batch_size}), or no minibatch is ever full; "
                f"got {self.replay_capacity}"
            )
        if not self.log_std_bounds[0] < self.log_std_bounds[1]:
            raise ValueError(f"log_std_bounds: expected (low, high) with low < high, got {self.log_std_bounds}")
        if self.value_network and self.alpha == "auto":
            raise ValueError("alpha: expected a float >= 0 with value_network=True (v1 fixes it), got 'auto'")
        if self.deterministic_policy and self.alpha != 0.0:
            raise ValueError(
                f"alpha: expected 0.0 with deterministic_policy=True (its entropy is not defined), got {self.alpha!r}"
            )


@dataclass(frozen=True)
class TrainConfig(_Config):
    """One training run: task, length, seed, machine and what is written. Raises as `SACConfig` does."""

    env_id: str
    """Task name, such as "HalfCheetah-v5"."""
    total_timesteps: int = 100_000
    """Transitions to collect over all environments."""
    num_envs: int = 16
    """Environments stepped side by side."""
    env_batch_size: int | None = None
    """Environments answered per step: fewer than `num_envs` steps asynchronously; None: all of them."""
    env_threads: int | None = None
    """EnvPool's threads; None: the usable cores, at most `num_envs`."""
    seed: int = 1
    """Seed of everything random in the run, from 0."""
    device: str = "auto"
    """Where the learner works: "cpu", "cuda", "cuda:N", or "auto" (CUDA where the kernels can use it)."""
    backend: Backend = "fused"
    """How the update is carried out: "fused" natively, "reference" in plain PyTorch."""
    run_dir: Path | None = None
    """Folder of the run's configuration, metrics, summary and checkpoints; None: nothing is written (from Python),
    or a new folder under runs/ (from the command line)."""
    overwrite: bool = False
    """Whether a `run_dir` that already holds a run may be replaced."""
    log_interval: int = 1_000
    """Transitions from one line of metrics to the next."""
    evaluate_every: int = 10_000
    """Transitions from one evaluation to the next; 0: only at the end."""
    evaluation_episodes: int = 10
    """Episodes in an evaluation; 0: none."""
    checkpoint_every: int | None = None
    """Transitions from one checkpoint in `run_dir` to the next; each cuts the running episodes, as a time limit would.
    None: ten full episodes of every environment, at least 100,000; 0: only at the end, or when interrupted, and a
    resume then makes every step of the environments again."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept; beside them the best by evaluation return, without its replay buffer."""
    checkpoint_replay: bool = True
    """Whether checkpoints hold the replay buffer; without it a run cannot be resumed, only its policy used."""
    tensorboard: bool = False
    """Whether metrics also go to TensorBoard files in `run_dir`."""
    wandb: bool = False
    """Whether metrics also go to Weights & Biases, as its environment variables say: WANDB_MODE=offline keeps them in
    `run_dir`, WANDB_PROJECT names another project than "sacfast"."""
    progress: bool = True
    """Whether to show a progress bar."""
    torch_threads: int | None = None
    """Threads of torch's CPU operators; None: as torch has chosen."""

    def __post_init__(self) -> None:
        """Validate, and store every value in its one form."""
        _check_str("env_id", self.env_id)
        _check_str("device", self.device)
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ValueError(f"device: expected 'auto', 'cpu', 'cuda' or 'cuda:N', got {self.device!r}")
        check_backend(self.backend)
        for name in ("total_timesteps", "num_envs", "log_interval", "keep_checkpoints"):
            self._store(name, as_int(name, getattr(self, name), 1))
        if self.checkpoint_every is not None:
            self._store("checkpoint_every", as_int("checkpoint_every", self.checkpoint_every, 0))
        for name in ("seed", "evaluate_every", "evaluation_episodes"):
            self._store(name, as_int(name, getattr(self, name), 0))
        for name in ("env_batch_size", "env_threads", "torch_threads"):
            if getattr(self, name) is not None:
                self._store(name, as_int(name, getattr(self, name), 1))
        for name in ("overwrite", "checkpoint_replay", "tensorboard", "wandb", "progress"):
            self._store(name, as_bool(name, getattr(self, name)))
        if self.env_batch_size is not None and self.env_batch_size > self.num_envs:
            raise ValueError(f"env_batch_size: expected at most num_envs ({self.num_envs}), got {self.env_batch_size}")
        if isinstance(self.run_dir, str):  # as JSON holds it
            self._store("run_dir", Path(self.run_dir))
        if not isinstance(self.run_dir, Path | None):
            raise TypeError(f"run_dir: expected a path or None, got {self.run_dir!r}")
        for name in ("tensorboard", "wandb"):
            if getattr(self, name) and self.run_dir is None:
                raise ValueError(f"{name}: expected a run_dir to write to, got run_dir=None")


def _to_json(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Path) else value


def _check_str(name: str, value: object) -> None:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected a string, got {value!r}")
    if not value:
        raise ValueError(f"{name}: expected a string that is not empty, got ''")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def _int_tuple(name: str, value: Any) -> tuple[int, ...]:
    message = f"{name}: expected a tuple of ints >= 1, got {value!r}"
    if not isinstance(value, tuple | list):
        raise TypeError(message)
    try:
        return tuple(as_int(name, item, 1) for item in value)
    except (TypeError, ValueError) as error:
        raise type(error)(message) from None


def _float(name: str, value: Any, interval: _Interval, alternative: str = "") -> float:
    number = as_float(value)
    if number is None:
        raise TypeError(f"{name}: expected {alternative}a float in {interval}, got {value!r}")
    if number not in interval:
        raise ValueError(f"{name}: expected {alternative}a float in {interval}, got {number!r}")
    return number


def _float_pair(name: str, value: Any, interval: _Interval) -> tuple[float, float]:
    low, high = map(as_float, value) if isinstance(value, tuple | list) and len(value) == 2 else (None, None)
    if low is None or high is None:
        raise TypeError(f"{name}: expected two floats in {interval}, got {value!r}")
    if low not in interval or high not in interval:
        raise ValueError(f"{name}: expected two floats in {interval}, got {value!r}")
    return low, high
