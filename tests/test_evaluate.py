from collections import Counter
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest

from sacfast import evaluate as evaluate_module
from sacfast.envs import EnvironmentFault, environment_seeds
from sacfast.evaluate import MAX_ENVS, evaluate


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

    def spy(env_id: str, num_envs: int, seed: list[int]) -> Any:
        used.extend(seed)
        return make_env(env_id, num_envs, seed)

    monkeypatch.setattr(evaluate_module, "make_env", spy)
    for seed in (1, 2):
        evaluate(Zero(), "Pendulum-v1", 16, seed=seed)
        assert not set(used[-16:]) & set(environment_seeds(seed, 65_536))
    assert max(Counter(used).values()) == 1


@pytest.mark.parametrize(("name", "arguments"), [("episodes", (0,)), ("num_envs", (1, 0, 0))])
def test_counts_below_one_are_refused(name: str, arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected an int >= 1, got 0"):
        evaluate(Zero(), "Pendulum-v1", *arguments)


def test_a_number_that_is_not_finite_is_an_error() -> None:
    Uneven.fail = True
    with pytest.raises(EnvironmentFault, match="reward"):
        evaluate(Zero(), "sacfast_test/Uneven-v0", 2)
