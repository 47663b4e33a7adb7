"""Films a trained policy as a loop for the README.

    python -m benchmarks.film RUN_DIR [--output docs/images/cheetah.gif]

`make film` trains one first. Needs 'gymnasium[mujoco]' and an OpenGL library: libegl1, or libosmesa6 with
MUJOCO_GL=osmesa.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from PIL import Image

import sacfast

ROOT = Path(__file__).parents[1]
SIZE = {"width": 400, "height": 200}  # pixels
CAMERA = {"distance": 2.6, "elevation": -10.0, "azimuth": 90.0}
HEIGHT = 0.5  # metres, of what the camera looks at
STEPS = 400  # of which a stretch is shown
SETTLED = 100  # steps until the policy has its pace
SHORTEST, LONGEST = 60, 90  # frames of the loop, 20 a second
COLORS = 128
FLOOR = ((40, 46, 54), (62, 70, 80))  # of the dark and of the light squares

States = np.ndarray[tuple[int, int], np.dtype[np.float64]]


def make_env(env_id: str) -> Any:
    """Return the task's environment, MuJoCo's own, with a floor that is less glaring than black and white."""
    if "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")
    env = gymnasium.make(env_id, render_mode="rgb_array", default_camera_config=CAMERA, **SIZE)
    model = env.unwrapped.model
    model.light_castshadow[:] = False  # the light stays where it is, so that a shadow is seen in its spot alone
    texture = model.texture("texplane")
    texture.data[:] = np.where(texture.data.mean(axis=-1, keepdims=True) < 128, *np.array(FLOOR)[:, None, None])
    return env


def roll_out(model: sacfast.SAC, env: Any, seed: int) -> States:
    """Return the positions and velocities of an episode by the mean action, [STEPS, 2 x degrees of freedom]."""
    observation, _ = env.reset(seed=seed)
    states = []
    for _ in range(STEPS):
        observation, _, ended, cut, _ = env.step(model.predict(observation, deterministic=True))
        if ended or cut:
            raise RuntimeError(f"the episode was over after {len(states)} steps; expected {STEPS}")
        states.append(np.concatenate([env.unwrapped.data.qpos, env.unwrapped.data.qvel]))
    return np.array(states)


def find_loop(states: States, stride: float) -> tuple[int, int]:
    """Return the first and the one-past-last step of the stretch whose end is most like its beginning.

    Args:
        states: the first column is the distance run, in metres.
        stride: the length in metres after which the floor looks the same.
    """
    phase = 2 * np.pi * states[:, :1] / stride
    # The joints in units of their own spread; the floor counts as much as one of them.
    joints = (states[:, 1:] - states[:, 1:].mean(axis=0)) / states[:, 1:].std(axis=0)
    shown = np.hstack([joints, np.cos(phase), np.sin(phase)])
    pairs = (
        (first, first + length)
        for length in range(SHORTEST, LONGEST + 1)
        for first in range(SETTLED, len(states) - length)
    )
    return min(pairs, key=lambda pair: float(np.square(shown[pair[0]] - shown[pair[1]]).sum()))


def centred(states: States, stride: float) -> States:
    """Return the states moved by whole strides to the middle of the floor, which an episode runs off."""
    moved = states.copy()
    moved[:, 0] -= stride * round(states[:, 0].mean() / stride)
    return moved


def render(env: Any, states: States) -> list[Image.Image]:
    """Return a picture of each state, by a camera that moves at the mean speed."""
    count = env.unwrapped.model.nq
    env.render()  # makes the viewer
    camera = env.unwrapped.mujoco_renderer.viewer.cam
    pictures = []
    for state, distance in zip(states, np.linspace(states[0, 0], states[-1, 0], len(states)), strict=True):
        env.unwrapped.set_state(state[:count], state[count:])
        camera.lookat[:] = distance, 0.0, HEIGHT
        pictures.append(Image.fromarray(env.render()))
    return pictures


def write(path: Path, pictures: list[Image.Image], frames_per_second: float, comment: str) -> None:
    """Write an endless GIF, with one palette for all its pictures."""
    strip = Image.new("RGB", (SIZE["width"], SIZE["height"] * len(pictures)))
    for index, picture in enumerate(pictures):
        strip.paste(picture, (0, index * SIZE["height"]))
    # Without k-means hardly a colour is left for the runner, which fills little of a picture.
    palette = strip.quantize(COLORS, kmeans=4)
    # Without dithering, whose noise would be drawn anew in each frame and is what fills the file.
    first, *others = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    milliseconds = round(1000 / frames_per_second)
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=others, duration=milliseconds, loop=0, optimize=True, comment=comment)


def main() -> int:
    """Film a run's newest policy."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.film", description=__doc__.splitlines()[0])
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "images" / "cheetah.gif")
    parser.add_argument("--seed", type=int, default=1, help="of the environment")
    options = parser.parse_args()
    model = sacfast.SAC.load(options.run_dir)
    env_id = model.train_config.env_id
    env = make_env(env_id)
    states = roll_out(model, env, options.seed)
    floor, physics = env.unwrapped.model.geom("floor"), env.unwrapped.model
    stride = 2 * floor.size[0] / physics.mat_texrepeat[floor.matid[0]][0]
    first, end = find_loop(states, stride)
    summary = json.loads((options.run_dir / "summary.json").read_text())
    comment = (
        f"{env_id}, {summary['total_timesteps']} transitions, seed {model.train_config.seed}, return "
        f"{summary['eval_return_mean']:.0f} over {summary['eval_episodes']} episodes; sacfast {sacfast.__version__}"
    )
    write(options.output, render(env, centred(states[first:end], stride)), env.metadata["render_fps"], comment)
    print(f"{options.output}: {end - first} frames, {options.output.stat().st_size / 1e6:.2f} MB; {comment}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
