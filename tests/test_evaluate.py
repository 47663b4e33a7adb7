import dataclasses
import sys
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

from sacfast import evaluate as evaluate_module
from sacfast.envs import EnvironmentFault, EnvSpec, environment_seeds, make_env
from sacfast.evaluate import MAX_ENVS, RenderingError, evaluate, record_video


class Zero:
    """Always the middle of the action space."""

    def act(self, observation: np.ndarray) -> np.ndarray:
        return np.zeros((len(observation), 1), np.float32)


class Uneven(gymnasium.Env):
    """Episodes of 1 to 30 steps, drawn at each reset; the reward of a step is 1."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    drawn: ClassVar[list[list[int]]] = []  # by instance, the lengths of its episodes
    fail: ClassVar[bool] = False

    def __init__(self) -> None:
        self.mine: list[int] = []
        Uneven.drawn.append(self.mine)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = int(self.np_random.integers(1, 31))
        self.mine.append(self.left)
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return np.zeros(1, np.float32), np.nan if Uneven.fail else 1.0, self.left == 0, False, {}


gymnasium.register("sacfast_test/Uneven-v0", entry_point=Uneven, max_episode_steps=1_000, disable_env_checker=True)


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Uneven.drawn, Uneven.fail = [], False


@pytest.mark.parametrize(("episodes", "num_envs"), [(1, None), (10, 4), (7, 7), (3, 8), (40, None)])
def test_every_environment_gives_its_share_of_episodes(episodes: int, num_envs: int | None) -> None:
    result = evaluate(Zero(), "sacfast_test/Uneven-v0", episodes, num_envs=num_envs)
    count = min(episodes, num_envs or MAX_ENVS)
    # The first episodes of each environment, as many as its share, however long they are.
    instances = Uneven.drawn[-count:]
    shares = [episodes // count + (index < episodes % count) for index in range(count)]
    expected = [length for drawn, share in zip(instances, shares, strict=True) for length in drawn[:share]]
    assert result.lengths.tolist() == expected
    np.testing.assert_array_equal(result.returns, np.asarray(expected, np.float64))
    assert len(result.returns) == episodes


def test_short_episodes_are_not_favoured() -> None:
    # Lengths are uniform on 1..30: mean 15.5, standard error 8.66 / sqrt(400) = 0.43. Taking the first 400
    # episodes to end, of 400 environments, would give lengths far below that.
    result = evaluate(Zero(), "sacfast_test/Uneven-v0", 400, num_envs=400)
    assert abs(result.mean - 15.5) < 4 * 0.43


def test_mean_and_standard_deviation_are_over_episodes() -> None:
    result = evaluate(Zero(), "sacfast_test/Uneven-v0", 9, num_envs=2)
    assert result.mean == pytest.approx(np.mean(result.lengths))
    assert result.std == pytest.approx(np.std(result.lengths))


def test_the_seed_decides_the_episodes() -> None:
    def returns(seed: int) -> list[float]:
        values: list[float] = evaluate(Zero(), "Pendulum-v1", 3, seed=seed).returns.tolist()
        return values

    assert returns(1) == returns(1)
    assert returns(1) != returns(2)


def test_evaluation_never_uses_the_seeds_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    make_env = evaluate_module.make_env

    def spy(env_id: str, num_envs: int, seed: list[int], **fields: Any) -> Any:
        used.extend(seed)
        return make_env(env_id, num_envs, seed, **fields)

    monkeypatch.setattr(evaluate_module, "make_env", spy)
    for seed in (1, 2):
        evaluate(Zero(), "Pendulum-v1", 16, seed=seed)
        assert not set(used[-16:]) & set(environment_seeds(seed, 65_536))
    assert max(Counter(used).values()) == 1


@pytest.mark.parametrize(("name", "arguments"), [("episodes", (0,)), ("num_envs", (1, 0, 0))])
def test_counts_below_one_are_refused(name: str, arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected an int >= 1, got 0"):
        evaluate(Zero(), "Pendulum-v1", *arguments)


@pytest.mark.parametrize("kind", [np.int64, float])
def test_counts_may_be_whole_numbers_of_any_kind(kind: type) -> None:
    found, expected = (evaluate(Zero(), "Pendulum-v1", *map(each, (3, 5, 2))) for each in (kind, int))
    np.testing.assert_array_equal(found.returns, expected.returns)
    with pytest.raises(TypeError, match=r"episodes: expected an int >= 1, got 1\.5"):
        evaluate(Zero(), "Pendulum-v1", 1.5)  # type: ignore[arg-type]


def test_a_number_that_is_not_finite_is_an_error() -> None:
    Uneven.fail = True
    with pytest.raises(EnvironmentFault, match="reward"):
        evaluate(Zero(), "sacfast_test/Uneven-v0", 2)


class Filmed(gymnasium.Env):
    """Episodes of 3, 4, 5, ... steps. Its picture is as bright as 40 times the step, its bounds are not +-1."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 20}
    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Box(np.float32([-3.0]), np.float32([5.0]))
    actions: ClassVar[list[float]] = []
    fail: ClassVar[str] = ""

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.length = 2

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.count = 0
        self.length += 1
        return np.zeros(1, np.float32), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        Filmed.actions.append(float(action[0]))
        self.count += 1
        reward = np.nan if Filmed.fail == "reward" else 1.0
        return np.full(1, self.count, np.float32), reward, self.count == self.length, False, {}

    def render(self) -> np.ndarray:
        if Filmed.fail == "render":
            raise OSError("libGL is\nnot here")
        return np.full((50, 70, 3), 40 * self.count, np.uint8)


gymnasium.register("sacfast_test/Filmed-v0", entry_point=Filmed, disable_env_checker=True)


class Half:
    """Always three quarters of the way from the lower bound to the upper."""

    def act(self, observation: np.ndarray) -> np.ndarray:
        return np.full((len(observation), 1), 0.5, np.float32)


@pytest.fixture
def filmed() -> EnvSpec:
    Filmed.actions, Filmed.fail = [], ""
    with make_env("sacfast_test/Filmed-v0", 1, 0) as env:
        return env.spec


def read_film(path: Path) -> tuple[list[np.ndarray], float]:
    imageio = pytest.importorskip("imageio.v2")
    with imageio.get_reader(path) as reader:
        return [frame for frame in reader], reader.get_meta_data()["fps"]  # noqa: C416 # its length is infinite


def test_a_film_has_every_state_of_whole_episodes(filmed: EnvSpec, tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    result = record_video(Half(), filmed, tmp_path / "new" / "film.mp4", episodes=3)
    frames, fps = read_film(tmp_path / "new" / "film.mp4")
    assert result.lengths.tolist() == [3, 4, 5]
    assert result.returns.tolist() == [3.0, 4.0, 5.0]
    assert fps == 20
    assert frames[0].shape == (50, 70, 3)
    # The first state, that after each step, the last too. The format loses some levels of brightness.
    steps = [*range(4), *range(5), *range(6)]
    np.testing.assert_allclose([frame.mean() for frame in frames], [40 * step for step in steps], atol=6)
    # 0.5 lies at three quarters of [-3, 5]; no action reaches the environment where it resets itself.
    assert Filmed.actions == [3.0] * 12
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["film.mp4"]


@pytest.mark.parametrize(
    ("changes", "path", "episodes", "message"),
    [
        ({}, "film.gif", 1, r"video: expected a path that ends in \.mp4, got .*film\.gif"),
        ({}, "film.mp4", 0, "episodes: expected an int >= 1, got 0"),
        ({"env_id": "CheetahRun-v1"}, "film.mp4", 1, "video: expected a task that Gymnasium has.*'CheetahRun-v1'"),
        ({"observation_dim": 2}, "film.mp4", 1, "to have observation_dim 2, got 1"),
        ({"action_high": np.ones(1)}, "film.mp4", 1, r"to have action_high \[1.\], got \[5.\]"),
    ],
)
def test_what_cannot_be_filmed_is_refused(
    changes: dict[str, Any], path: str, episodes: int, message: str, filmed: EnvSpec, tmp_path: Path
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    with pytest.raises(ValueError, match=message):
        record_video(Half(), dataclasses.replace(filmed, **changes), tmp_path / path, episodes)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("fail", "error", "message"),
    [
        ("reward", EnvironmentFault, "reward = nan"),
        ("render", RenderingError, r"cannot be rendered here \(OSError: libGL.*pygame.*gymnasium\[mujoco\].*MUJOCO_GL"),
    ],
)
def test_a_film_that_fails_leaves_the_one_before(
    fail: str, error: type[Exception], message: str, filmed: EnvSpec, tmp_path: Path
) -> None:
    pytest.importorskip("imageio_ffmpeg")
    (tmp_path / "film.mp4").write_text("kept")
    Filmed.fail = fail
    with pytest.raises(error, match=f"(?s){message}"):
        record_video(Half(), filmed, tmp_path / "film.mp4")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["kept"]


def test_missing_imageio_says_how_to_get_it(filmed: EnvSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(ImportError, match=r"pip install 'sacfast\[video\]'"):
        record_video(Half(), filmed, tmp_path / "film.mp4")
