"""Evaluation: whole episodes of a policy that does not learn meanwhile, on environments of its own."""

from __future__ import annotations

import os
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from sacfast.envs import EnvSpec, GymnasiumVectorEnv, ImageArray, Source, environment_seeds, is_registered, make_env
from sacfast.scalars import as_int
from sacfast.types import FloatArray, IntArray

MAX_ENVS = 16
"""Environments that evaluate side by side unless told otherwise."""


class ActingPolicy(Protocol):
    """What evaluation needs of a policy."""

    def act(self, observation: FloatArray) -> FloatArray:
        """Return actions [n, A] in [-1, 1] for observations [n, O]."""
        ...


class RenderingError(RuntimeError):
    """A task cannot be rendered on this machine; the message says what to install."""


class EvaluationResult(NamedTuple):
    """Undiscounted, unscaled returns and lengths of the evaluated episodes, ordered by environment."""

    returns: np.ndarray[tuple[int, ...], np.dtype[np.float64]]  # [episodes]
    lengths: IntArray  # [episodes], in steps

    @property
    def mean(self) -> float:
        """The mean return."""
        return float(self.returns.mean())

    @property
    def std(self) -> float:
        """The standard deviation of the returns over the episodes (not of the mean; no Bessel correction)."""
        return float(self.returns.std())


def evaluate(
    policy: ActingPolicy,
    env_id: str,
    episodes: int = 10,
    seed: int = 0,
    num_envs: int | None = None,
    source: Source | None = None,
) -> EvaluationResult:
    """Run `episodes` whole episodes on fresh environments.

    How many episodes an environment contributes is settled before the first step (as even a share as there
    is). Taking the first `episodes` to end, whichever environment they come from, would favour short ones.

    Args:
        policy: acts on observations [num_envs, O].
        env_id: the task.
        episodes: at least 1.
        seed: of the environments. They never share a seed with training environments, even for equal seeds.
        num_envs: environments side by side; None: one per episode, at most `MAX_ENVS`.
        source: whose environments, as of `make_env`.

    Raises:
        ValueError: `episodes` or `num_envs` below 1.
        EnvironmentFault: an environment raises, or yields a reward or observation that is not finite.
    """
    episodes = as_int("episodes", episodes, 1)
    num_envs = min(episodes, MAX_ENVS if num_envs is None else as_int("num_envs", num_envs, 1))
    share = [episodes // num_envs + (index < episodes % num_envs) for index in range(num_envs)]
    returns: list[list[float]] = [[] for _ in range(num_envs)]
    lengths: list[list[int]] = [[] for _ in range(num_envs)]
    with make_env(env_id, num_envs, environment_seeds(seed, num_envs, "evaluation"), source=source) as env:
        observation, _ = env.reset()
        missing = episodes
        while missing:
            result = env.step(policy.act(observation))
            observation = result.observation
            for index, return_, length in zip(*result.episodes, strict=True):
                if len(returns[index]) < share[index]:
                    returns[index].append(float(return_))
                    lengths[index].append(int(length))
                    missing -= 1
    return EvaluationResult(np.concatenate(returns), np.concatenate(lengths).astype(np.int64))


def record_video(
    policy: ActingPolicy, spec: EnvSpec, path: Path | str, episodes: int = 1, seed: int = 0
) -> EvaluationResult:
    """Run whole episodes, one after the other, on Gymnasium's own environment, and film them.

    EnvPool cannot render. Gymnasium's task of the same name has the same observations, actions and limits; its
    trajectories part from EnvPool's after some steps, as those of two computers would.

    Args:
        policy: acts on observations [1, O].
        spec: the task that the policy was trained on.
        path: the film, ending in .mp4; one already there is replaced once the new one is whole. It has a frame for
            each state, that after the last step too, at the task's own speed.
        episodes: at least 1.
        seed: of the environment; training never uses the same.

    Raises:
        ValueError: another file ending, `episodes` below 1, or a task that Gymnasium does not have or has with other
            observations or actions.
        RenderingError: pygame, MuJoCo or an OpenGL library is missing.
        ImportError: imageio or its ffmpeg is not installed.
        EnvironmentFault: the environment raises, or yields a reward or observation that is not finite.
    """
    path = Path(path)
    if path.suffix != ".mp4":
        raise ValueError(f"video: expected a path that ends in .mp4, got {path}")
    episodes = as_int("episodes", episodes, 1)
    imageio = import_imageio()
    with _rendered_env(spec, seed) as env:
        observation, _ = env.reset()
        frame = _first_frame(env)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.stem}.tmp.mp4")
        returns: list[float] = []
        lengths: list[int] = []
        try:
            # Blocks of 2 pixels: what the format needs; imageio would otherwise stretch frames to blocks of 16.
            # `closing`, for after an error imageio's own context leaves ffmpeg at work on the file.
            with closing(imageio.get_writer(partial, fps=env.frames_per_second, macro_block_size=2)) as writer:
                writer.append_data(frame)
                while len(returns) < episodes:
                    result = env.step(policy.act(observation))
                    observation = result.observation
                    writer.append_data(env.render()[0])
                    returns += result.episodes.return_.tolist()
                    lengths += result.episodes.length.tolist()
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return EvaluationResult(np.array(returns), np.array(lengths, np.int64))


def import_imageio() -> Any:
    """Return imageio with its ffmpeg, or raise ImportError that says how to install them."""
    try:
        import imageio.v2
        import imageio_ffmpeg  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "video: expected the packages imageio and imageio-ffmpeg, which are not installed; "
            "pip install 'sacfast[video]'"
        ) from error
    return imageio.v2


def _rendered_env(spec: EnvSpec, seed: int) -> GymnasiumVectorEnv:
    """Make the one environment that is filmed, and check that it is the task of `spec`."""
    if not is_registered(spec.env_id):
        raise ValueError(f"video: expected a task that Gymnasium has, for EnvPool cannot render; got {spec.env_id!r}")
    if "DISPLAY" not in os.environ:  # which MuJoCo's default, and pygame's, need
        os.environ.setdefault("MUJOCO_GL", "egl")
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
    seeds = environment_seeds(seed, 1, "evaluation")
    try:
        env = GymnasiumVectorEnv(spec.env_id, seeds, render_mode="rgb_array")
    except ValueError:
        raise
    except Exception as error:  # MuJoCo is not installed, or finds no OpenGL library: errors of many types
        raise _rendering_error(spec.env_id, error) from error
    for name in ("observation_dim", "action_dim", "action_low", "action_high"):
        expected, found = getattr(spec, name), getattr(env.spec, name)
        if not np.array_equal(expected, found):
            env.close()
            raise ValueError(f"video: expected Gymnasium's {spec.env_id} to have {name} {expected}, got {found}")
    return env


def _first_frame(env: GymnasiumVectorEnv) -> ImageArray:
    """Render for the first time, which is when libraries are found missing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a display that is not there: the error says it
            return env.render()[0]
    except Exception as error:  # pygame's, MuJoCo's and OpenGL's have nothing in common
        raise _rendering_error(env.spec.env_id, error) from error


def _rendering_error(env_id: str, error: Exception) -> RenderingError:
    return RenderingError(
        f"video: {env_id} cannot be rendered here ({type(error).__name__}: {error}); classic-control tasks need pygame "
        "(pip install 'sacfast[video]'), MuJoCo tasks need pip install 'gymnasium[mujoco]' and an OpenGL library, "
        "libegl1 (MUJOCO_GL=egl) or libosmesa6 (MUJOCO_GL=osmesa)"
    )
