"""Only valid transitions come out of an environment, and only sound actions go in."""

import math
import os
import sys
import types
from collections import defaultdict
from pathlib import Path
from typing import Any, ClassVar

import envpool
import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from process_threads import those_that_stay, thread_ids

from sacfast.envs import EnvironmentFault, EnvPoolVectorEnv, VectorEnv, environment_seeds, make, make_env

# The environments made up here are odd on purpose, and Gymnasium's checker remarks on it.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:gymnasium")


_VECTOR = gymnasium.spaces.Box(-1, 1, (2,), np.float32)


class _Chain(gymnasium.Env[np.ndarray, np.ndarray]):
    """Observes (episode, step); reward: 10 * step + action. Ends and breaks when it is told to."""

    def __init__(
        self,
        terminates_at: int = 0,
        truncates_at: int = 0,
        dtype: type[np.floating] = np.float64,
        low: float = -1.0,
        high: float = 3.0,
        **broken: Any,
    ) -> None:
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), dtype)
        self.action_space = gymnasium.spaces.Box(low, high, (1,), np.float64)
        self.terminates_at, self.truncates_at, self.broken = terminates_at, truncates_at, broken
        self.episode, self.steps = -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action: np.ndarray) -> Any:
        assert self.action_space.contains(action)
        self.steps += 1
        reward = 10.0 * self.steps + action.item()
        if self.broken.get("quantity") == "reward" and self.broken["at"] == self.steps:
            reward = self.broken["value"]
        return (
            self._observe(),
            reward,
            self.steps == self.terminates_at,
            self.steps == self.truncates_at,
            {},
        )

    def _observe(self) -> np.ndarray:
        observation = np.array([self.episode, self.steps], self.observation_space.dtype)
        if self.broken.get("quantity") == "observation[1]" and self.broken["at"] == self.steps:
            observation[1] = self.broken["value"]
        return observation


class _Spaces(gymnasium.Env[Any, Any]):
    """Has the spaces it is given, and closes visibly."""

    closed: ClassVar[int] = 0

    def __init__(self, observation: gymnasium.Space[Any], action: gymnasium.Space[Any]) -> None:
        self.observation_space, self.action_space = observation, action

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        if seed is not None:
            self.observation_space.seed(seed)
        return self.observation_space.sample(), {}

    def close(self) -> None:
        type(self).closed += 1


class _Wiretap:
    """Stands before a pool: keeps what is sent, and alters what is received."""

    def __init__(self, pool: Any, alter: Any = lambda received: received) -> None:
        self.pool, self.alter, self.sent = pool, alter, []

    def _send(self, values: list[np.ndarray]) -> None:
        self.sent.append(dict(zip(self.pool._action_keys, values, strict=True)))
        self.pool._send(values)

    def _recv(self) -> Any:
        received = dict(zip(self.pool._state_keys, self.pool._recv(), strict=True))
        return list(self.alter(received).values())


@pytest.fixture
def register():
    """Register a Gymnasium task under a name of its own, for one test."""
    names = []

    def add(
        entry_point: Any, max_episode_steps: int | None = None, additional_wrappers: Any = (), **kwargs: Any
    ) -> str:
        name = f"SacfastTest{len(names)}-v0"
        gymnasium.register(
            name,
            entry_point,
            max_episode_steps=max_episode_steps,
            additional_wrappers=additional_wrappers,
            kwargs=kwargs,
        )
        names.append(name)
        return name

    yield add
    for name in names:
        del gymnasium.registry[name]


def _random_actions(env: VectorEnv, steps: int, seed: int = 0) -> np.ndarray:
    shape = (steps, env.batch_size, env.spec.action_dim)
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def _bare_pool(env_id: str, seeds: list[int], **kwargs: Any) -> Any:
    return envpool.make(env_id, env_type="gymnasium", num_envs=len(seeds), seed=seeds, **kwargs)


# Transitions, episodes


@pytest.mark.parametrize("env_id", ["InvertedPendulum-v5", "Hopper-v5"])
def test_transitions_and_episodes_are_those_of_the_bare_pool_without_reset_rows(env_id):
    seeds = [11, 5, 700]
    with make_env(env_id, 3, seeds) as env:
        bare = _bare_pool(env_id, seeds)
        previous, _ = bare.reset()
        observation, env_ids = env.reset()
        np.testing.assert_array_equal(observation, previous.astype(np.float32))
        np.testing.assert_array_equal(env_ids, [0, 1, 2])
        running: dict[int, list[float]] = defaultdict(list)
        reset_rows = episodes = 0
        for action in _random_actions(env, 150):
            result = env.step(action)
            native = action.astype(np.float64) * env.spec.action_high
            observation, reward, terminated, truncated, info = bare.step(native)
            np.testing.assert_array_equal(info["env_id"], [0, 1, 2])
            valid = info["elapsed_step"] != 0
            reset_rows += (~valid).sum()
            transition = result.transition
            np.testing.assert_array_equal(transition.observation, previous[valid].astype(np.float32))
            np.testing.assert_array_equal(transition.action, action[valid])
            np.testing.assert_array_equal(transition.reward, reward[valid])
            np.testing.assert_array_equal(transition.next_observation, observation[valid].astype(np.float32))
            np.testing.assert_array_equal(transition.terminated, terminated[valid])
            np.testing.assert_array_equal(result.observation, observation.astype(np.float32))
            np.testing.assert_array_equal(result.env_id, [0, 1, 2])

            ended = []
            for i in np.flatnonzero(valid):
                running[i].append(float(reward[i]))
                if terminated[i] or truncated[i]:
                    rewards = running.pop(i)
                    ended.append((i, math.fsum(rewards), len(rewards)))
            assert [e[0] for e in ended] == result.episodes.env_id.tolist()
            np.testing.assert_allclose(result.episodes.return_, [e[1] for e in ended], rtol=1e-12)
            assert [e[2] for e in ended] == result.episodes.length.tolist()
            episodes += len(ended)
            previous = observation
        assert reset_rows >= 5
        assert episodes >= 5


def test_a_gymnasium_task_has_the_same_semantics(register):
    env_id = register(_Chain, terminates_at=3)
    with make_env(env_id, 2, seed=0) as env:
        assert (env.spec.source, env.spec.max_episode_steps) == ("gymnasium", None)
        observation, _ = env.reset()
        np.testing.assert_array_equal(observation, [[0, 0], [0, 0]])
        seen = [env.step(np.full((2, 1), 0.5, np.float32)) for _ in range(8)]
    lengths = [len(result.transition.reward) for result in seen]
    assert lengths == [2, 2, 2, 0, 2, 2, 2, 0]  # the fourth step of each round is the reset
    rows = [tuple(result.transition.observation[0]) for result in seen if len(result.transition.reward)]
    nexts = [tuple(result.transition.next_observation[0]) for result in seen if len(result.transition.reward)]
    assert rows == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert nexts == [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)]
    np.testing.assert_array_equal(seen[3].observation, [[1, 0], [1, 0]])  # but a reset row awaits an action
    ended = [result.episodes for result in seen if len(result.episodes.length)]
    assert [episodes.length.tolist() for episodes in ended] == [[3, 3], [3, 3]]
    assert [episodes.return_.tolist() for episodes in ended] == [[66.0, 66.0]] * 2  # 10+20+30 + 3 * action 2
    assert [episodes.env_id.tolist() for episodes in ended] == [[0, 1]] * 2


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"terminates_at": 2}, True),
        ({"truncates_at": 2}, False),
        ({"terminates_at": 2, "truncates_at": 2}, True),
    ],
)
def test_only_a_termination_is_stored_as_terminated(register, flags, expected):
    with make_env(register(_Chain, **flags), 1, seed=0) as env:
        env.reset()
        assert not env.step(np.zeros((1, 1), np.float32)).transition.terminated[0]
        result = env.step(np.zeros((1, 1), np.float32))
    assert result.transition.terminated[0] == expected
    assert result.episodes.length.tolist() == [2]


def test_gymnasium_time_limit_is_a_truncation(register):
    with make_env(register(_Chain, max_episode_steps=4), 1, seed=0) as env:
        assert env.spec.max_episode_steps == 4
        env.reset()
        results = [env.step(np.zeros((1, 1), np.float32)) for _ in range(4)]
    assert not any(result.transition.terminated[0] for result in results)
    assert results[-1].episodes.length.tolist() == [4]


def test_envpool_time_limit_is_a_truncation():
    with make_env("Pendulum-v1", 2, seed=3) as env:
        assert env.spec.max_episode_steps == 200
        env.reset()
        terminated, lengths = 0, []
        for action in _random_actions(env, 402):
            result = env.step(action)
            terminated += result.transition.terminated.sum()
            lengths += result.episodes.length.tolist()
    assert terminated == 0
    assert lengths == [200] * 4


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "Pendulum-v1", "FingerSpin-v1"])
def test_dtypes_and_shapes(env_id):
    with make_env(env_id, 3, seed=0, batch_size=2) as env:
        observation, env_ids = env.reset()
        results = [env.step(action) for action in _random_actions(env, 4)]
    width, actions = env.spec.observation_dim, env.spec.action_dim
    assert (observation.shape, observation.dtype, env_ids.dtype) == ((2, width), np.float32, np.int64)
    for transition, observation, env_ids, episodes in results:
        count = len(transition.reward)
        assert [field.dtype for field in transition] == [np.float32] * 4 + [np.bool_]
        shapes = [(count, width), (count, actions), (count,), (count, width), (count,)]
        assert [field.shape for field in transition] == shapes
        assert (observation.shape, observation.dtype) == ((2, width), np.float32)
        assert (env_ids.shape, env_ids.dtype) == ((2,), np.int64)
        assert [field.dtype for field in episodes] == [np.int64, np.float64, np.int64]


@pytest.mark.parametrize("env_id", ["InvertedPendulum-v5", "Pendulum-v1", np.float32, np.float64])
def test_results_are_not_overwritten_by_later_steps(register, env_id):
    if not isinstance(env_id, str):
        env_id = register(_Chain, terminates_at=5, dtype=env_id)
    with make_env(env_id, 2, seed=1) as env:
        observation, _ = env.reset()
        held, copies = [observation], [observation.copy()]
        for action in _random_actions(env, 40):
            result = env.step(action)
            arrays = [*result.transition, result.observation, result.env_id, *result.episodes]
            held += arrays
            copies += [array.copy() for array in arrays]
    for array, copy in zip(held, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_the_caller_may_reuse_its_action_array_after_send():
    with make_env("HalfCheetah-v5", 4, seed=1) as env, make_env("HalfCheetah-v5", 4, seed=1) as other:
        env.reset()
        other.reset()
        actions = _random_actions(env, 20)
        buffer = np.empty_like(actions[0])
        for action in actions:
            buffer[:] = action
            env.send(buffer)
            buffer[:] = 0.0
            result, expected = env.recv().transition, other.step(action).transition
            np.testing.assert_array_equal(result.action, action)
            np.testing.assert_array_equal(result.next_observation, expected.next_observation)


# Asynchronous stepping, threads, seeds


def _trajectories(env: VectorEnv, batches: int, actions: np.ndarray) -> dict[int, list[tuple[bytes, ...]]]:
    """Every environment's transitions; its k-th action, reset steps included, is actions[environment, k]."""
    trajectories: dict[int, list[tuple[bytes, ...]]] = defaultdict(list)
    sent = np.zeros(env.num_envs, np.int64)
    starting = np.ones(env.num_envs, bool)
    _, env_id = env.reset()
    starting[env_id] = False
    for _ in range(batches):
        env.send(actions[env_id, sent[env_id]])
        sent[env_id] += 1
        transition, _, env_id, episodes = env.recv()
        assert len(set(env_id.tolist())) == env.batch_size
        valid = env_id[~starting[env_id]]
        starting[env_id] = False
        starting[episodes.env_id] = True
        assert len(valid) == len(transition.reward)
        for row, index in enumerate(valid.tolist()):
            trajectories[index].append(tuple(field[row].tobytes() for field in transition))
    return trajectories


@pytest.mark.parametrize("env_id", ["InvertedPendulum-v5", "HalfCheetah-v5"])
@pytest.mark.parametrize(("batch_size", "num_threads"), [(6, 3), (2, 2), (1, 3), (5, 1)])
def test_trajectories_do_not_depend_on_threads_or_batch_size(env_id, batch_size, num_threads):
    seeds = [3, 1, 4, 15, 9, 2]
    with make_env(env_id, 6, seeds, num_threads=1) as env:
        width = env.spec.action_dim
        actions = np.random.default_rng(0).uniform(-1, 1, (6, 2000, width)).astype(np.float32)
        expected = _trajectories(env, 60, actions)
    with make_env(env_id, 6, seeds, batch_size=batch_size, num_threads=num_threads) as env:
        got = _trajectories(env, 60 * 6 // batch_size, actions)
    compared = 0
    for index in range(6):
        length = min(len(got[index]), len(expected[index]))
        assert got[index][:length] == expected[index][:length]
        compared += length
    assert compared > 60


def test_async_reset_returns_a_batch_and_later_first_rows_are_no_transitions():
    with make_env("HalfCheetah-v5", 4, seed=0, batch_size=2, num_threads=1) as env:
        observation, env_id = env.reset()
        assert observation.shape == (2, 17)
        seen = set(env_id.tolist())
        for action in _random_actions(env, 20):
            result = env.step(action)
            fresh = set(result.env_id.tolist()) - seen
            assert len(result.transition.reward) == 2 - len(fresh)
            seen |= fresh
        assert seen == {0, 1, 2, 3}


def test_explicit_seeds_reach_the_environments():
    with make_env("HalfCheetah-v5", 3, [42, 7, 43]) as env:
        observation, _ = env.reset()
    for seed, row in zip([42, 7, 43], observation, strict=True):
        alone, _ = _bare_pool("HalfCheetah-v5", [seed]).reset()
        np.testing.assert_array_equal(alone[0].astype(np.float32), row)


def test_a_run_seed_gives_each_environment_its_own_derived_seed():
    with make_env("HalfCheetah-v5", 4, 9) as env, make_env("HalfCheetah-v5", 4, 9) as again:
        first, _ = env.reset()
        np.testing.assert_array_equal(first, again.reset()[0])
        assert len(np.unique(first[:, 1])) == 4
    with make_env("HalfCheetah-v5", 4, environment_seeds(9, 4)) as explicit:
        np.testing.assert_array_equal(first, explicit.reset()[0])


def test_gymnasium_environments_are_seeded_once(register):
    env_id = register(_Spaces, observation=_VECTOR, action=_VECTOR)
    with make_env(env_id, 2, [1, 2]) as env, make_env(env_id, 2, [1, 2]) as again:
        first, _ = env.reset()
        second, _ = env.reset()
        np.testing.assert_array_equal(first, again.reset()[0])
        np.testing.assert_array_equal(second, again.reset()[0])
    assert len(np.unique(np.concatenate([first, second])[:, 0])) == 4


@settings(deadline=None)
@given(
    seed=st.integers(0, 2**40),
    num_envs=st.integers(1, 300),
    ranks=st.lists(st.integers(0, 4095), min_size=2, max_size=2, unique=True),
)
def test_no_two_purposes_or_ranks_of_a_run_share_a_seed(seed, num_envs, ranks):
    seeds = [
        value
        for purpose in ("training", "evaluation")
        for rank in ranks
        for value in environment_seeds(seed, num_envs, purpose, rank)
    ]
    assert len(set(seeds)) == 4 * num_envs
    assert all(0 <= value < 2**31 for value in seeds)


def test_seeds_differ_between_runs_and_generations_and_are_stable():
    first = environment_seeds(1, 16)
    assert first == environment_seeds(1, 16)
    assert first[:4] == environment_seeds(1, 4)
    assert not set(first) & set(environment_seeds(2, 16))
    assert not set(first) & set(environment_seeds(1, 16, generation=1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"seed": -1}, ValueError, "seed: expected an int >= 0, got -1"),
        ({"seed": 1.5}, TypeError, "seed: expected an int >= 0, got 1.5"),
        ({"num_envs": 0}, ValueError, "num_envs: expected an int in 1..65536, got 0"),
        ({"purpose": "test"}, ValueError, "purpose: expected one of"),
        ({"rank": 4096}, ValueError, "rank: expected an int in 0..4095, got 4096"),
        ({"generation": -1}, ValueError, "generation: expected an int >= 0, got -1"),
    ],
)
def test_seed_derivation_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        environment_seeds(**{"seed": 0, "num_envs": 2, **arguments})


# Actions


@pytest.mark.parametrize(
    ("env_id", "bound", "dtype"),
    [
        ("HalfCheetah-v5", 1.0, np.float64),
        ("Humanoid-v5", 0.4, np.float64),
        ("Pusher-v5", 2.0, np.float64),
        ("InvertedPendulum-v5", 3.0, np.float64),
        ("Pendulum-v1", 2.0, np.float32),  # not all of EnvPool takes float64
    ],
)
def test_actions_are_rescaled_to_the_bounds_in_the_dtype_of_the_pool(env_id, bound, dtype):
    with make_env(env_id, 3, seed=0) as env:
        assert isinstance(env, EnvPoolVectorEnv)
        np.testing.assert_allclose(env.spec.action_low, -bound, rtol=1e-7)
        np.testing.assert_allclose(env.spec.action_high, bound, rtol=1e-7)
        env.reset()
        wire = env._pool = _Wiretap(env._pool)
        action = np.zeros((3, env.spec.action_dim), np.float32)
        action[0], action[1], action[2] = 1.0, -0.25, -1.0
        result = env.step(action)
        sent = wire.sent[0]["action"]
        assert sent.dtype == dtype
        np.testing.assert_allclose(sent[:, 0], [bound, -0.25 * bound, -bound], rtol=1e-7)
        np.testing.assert_array_equal(result.transition.action, action)  # stored as the policy knows it


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-1.0, 3.0, [-1.0, 1.0, 2.0, 3.0]),
        (-0.2, 0.1, [-0.2, -0.05, 0.025, 0.1]),  # where (high - low) / 2 + (high + low) / 2 > high
    ],
)
def test_asymmetric_bounds_are_reached_and_never_left(register, low, high, expected):
    received = []

    class Recorder(_Chain):
        def step(self, action: np.ndarray) -> Any:
            received.append(action.item())
            return super().step(action)

    with make_env(register(Recorder, low=low, high=high), 1, seed=0) as env:
        env.reset()
        for value in (-1.0, 0.0, 0.5, 1.0):
            env.step(np.full((1, 1), value, np.float32))
    np.testing.assert_allclose(received, expected, rtol=1e-14)
    assert (received[0], received[-1]) == (low, high)


def test_rounding_beyond_one_is_clipped(register):
    with make_env(register(_Chain), 1, seed=0) as env:
        env.reset()
        result = env.step(np.full((1, 1), np.nextafter(np.float32(1), np.float32(2))))
    assert result.transition.action[0, 0] == 1.0


def _bad(value: float) -> np.ndarray:
    action = np.zeros((3, 6), np.float32)
    action[1, 4] = value
    return action


@pytest.mark.parametrize(
    ("action", "error", "message"),
    [
        (
            _bad(np.nan),
            ValueError,
            r"finite values in \[-1, 1\], got nan in row 1, column 4 \(environment 1\)",
        ),
        (_bad(np.inf), ValueError, "got inf in row 1, column 4"),
        (_bad(-np.inf), ValueError, "got -inf in row 1, column 4"),
        (_bad(1.01), ValueError, "got 1.0099.* in row 1, column 4"),
        (_bad(-2), ValueError, "got -2.0 in row 1, column 4"),
        (np.zeros((2, 6), np.float32), ValueError, r"expected shape \(3, 6\), got \(2, 6\)"),
        (np.zeros((4, 6), np.float32), ValueError, r"expected shape \(3, 6\), got \(4, 6\)"),
        (np.zeros((3, 5), np.float32), ValueError, r"expected shape \(3, 6\), got \(3, 5\)"),
        (np.zeros(18, np.float32), ValueError, r"expected shape \(3, 6\), got \(18,\)"),
        (np.zeros((3, 6)), TypeError, "expected dtype float32, got float64"),
        (np.zeros((3, 6), np.int64), TypeError, "expected dtype float32, got int64"),
        ([[0.0] * 6] * 3, TypeError, "expected a float32 NumPy array, got list"),
    ],
)
@pytest.mark.parametrize("earlier_steps", [0, 2])
def test_a_bad_action_is_refused_before_it_is_sent(action, error, message, earlier_steps):
    with make_env("HalfCheetah-v5", 3, seed=0) as env:
        env.reset()
        for _ in range(earlier_steps):
            env.step(np.zeros((3, 6), np.float32))
        wire = env._pool = _Wiretap(env._pool)
        with pytest.raises(error, match=message):
            env.send(action)
        assert wire.sent == []
        assert len(env.step(np.zeros((3, 6), np.float32)).transition.reward) == 3  # it goes on


def test_a_tensor_is_refused():
    with make_env("HalfCheetah-v5", 1, seed=0) as env:
        env.reset()
        with pytest.raises(TypeError, match="expected a float32 NumPy array, got Tensor"):
            env.send(torch.zeros(1, 6))


# Faults of an environment


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("quantity", ["reward", "observation[1]"])
def test_a_non_finite_value_is_a_fault_that_names_its_place(register, quantity, value):
    class Broken(_Chain):
        made = 0

        def __init__(self) -> None:
            index, Broken.made = Broken.made, Broken.made + 1
            broken = {"quantity": quantity, "at": 2, "value": value} if index == 1 else {}
            super().__init__(terminates_at=4, **broken)

    env_id = register(Broken)
    with make_env(env_id, 3, seed=0) as env:
        env.reset()
        env.step(np.zeros((3, 1), np.float32))
        with pytest.raises(EnvironmentFault) as fault:
            env.step(np.zeros((3, 1), np.float32))
        assert (fault.value.env_index, fault.value.step, fault.value.quantity) == (1, 2, quantity)
        expected = f"{env_id}: environment 1 gave {quantity} = {value} at step 2 of its episode"
        assert str(fault.value) == expected
        with pytest.raises(RuntimeError, match="the last step failed, make a new environment"):
            env.send(np.zeros((3, 1), np.float32))


def test_a_non_finite_first_observation_is_a_fault_at_step_zero(register):
    env = make_env(register(_Chain, quantity="observation[1]", at=0, value=np.nan), 1, seed=0)
    with env, pytest.raises(EnvironmentFault, match=r"environment 0 gave .* at step 0 of its episode"):
        env.reset()


def test_an_observation_beyond_float32_is_a_fault(register):
    with make_env(register(_Chain, quantity="observation[1]", at=1, value=1e300), 1, seed=0) as env:
        env.reset()
        with pytest.raises(EnvironmentFault), np.errstate(over="ignore"):
            env.step(np.zeros((1, 1), np.float32))


def test_the_reward_of_a_reset_row_counts_for_nothing(register):
    # EnvPool leaves it unwritten: 2 of 400 starts of FingerSpin-v1 gave NaN there.
    with make_env(register(_Chain, terminates_at=2), 2, seed=0) as env:
        collect = env._collect

        def unwritten():
            rows = collect()
            return rows._replace(reward=np.where(env._starting, np.float32(np.nan), rows.reward))

        env._collect = unwritten
        env.reset()
        steps = [env.step(np.zeros((2, 1), np.float32)) for _ in range(5)]
        assert [len(step.transition.reward) for step in steps] == [2, 2, 0, 2, 2]
        assert all(np.isfinite(step.transition.reward).all() for step in steps)


def test_large_finite_values_are_no_fault(register):
    with make_env(register(_Chain, quantity="observation[1]", at=1, value=3e38), 2, seed=0) as env:
        env.reset()
        assert env.step(np.zeros((2, 1), np.float32)).observation[0, 1] == np.float32(3e38)


@pytest.mark.parametrize("batch_size", [4, 2])
def test_a_non_finite_reward_of_the_pool_is_a_fault(batch_size):
    def poison(received: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return received | {"reward": np.where(received["info:env_id"] == 2, np.float32(np.nan), received["reward"])}

    def step_often(env: VectorEnv) -> None:
        for action in _random_actions(env, 20):
            env.step(action)

    with make_env("HalfCheetah-v5", 4, seed=0, batch_size=batch_size) as env:
        env.reset()
        env._pool = _Wiretap(env._pool, poison)
        with pytest.raises(EnvironmentFault, match="HalfCheetah-v5: environment 2 gave reward = nan at step"):
            step_often(env)


# Which tasks, which arguments


@pytest.mark.parametrize(
    ("env_id", "suggestion"),
    [("HalfCheeta-v5", "HalfCheetah-v5"), ("Hopper-v9", "Hopper-v5"), ("SacfastTest0-v1", "SacfastTest0-v0")],
)
def test_an_unknown_task_is_refused_with_close_matches(register, env_id, suggestion):
    register(_Chain)
    with pytest.raises(ValueError, match=f"knows '{env_id}'; did you mean .*{suggestion}"):
        make_env(env_id, 1, seed=0)


def test_an_unknown_task_like_no_other_is_refused_without_a_hint():
    with pytest.raises(ValueError, match=r"knows '\?\?\?\?\?\?\?\?'$"):
        make_env("????????", 1, seed=0)


def test_a_module_prefix_imports_the_module_that_registers_the_task(monkeypatch, register):
    module = types.ModuleType("sacfast_test_tasks")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    env_id = f"{module.__name__}:{register(_Chain)}"
    with make_env(env_id, 1, seed=0) as env:
        assert env.spec.env_id == env_id
        np.testing.assert_array_equal(env.reset()[0], [[0, 0]])
    with pytest.raises(ModuleNotFoundError, match="sacfast_no_such_module"):
        make_env("sacfast_no_such_module:Task-v0", 1, seed=0)


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        ("CartPole-v1", "CartPole-v1: action: expected a Box of floats with one dimension, got Discrete"),
        ("Pong-v5", "Pong-v5: observation: expected a Box of floats, no images or integers"),
        ("CarRacing-v3", "CarRacing-v3: observation: expected a Box of floats, no images or integers"),
    ],
)
def test_discrete_and_pixel_tasks_of_envpool_are_refused(env_id, message):
    with pytest.raises(ValueError, match=message):
        make_env(env_id, 1, seed=0)


@pytest.mark.parametrize(
    ("observation", "action", "message"),
    [
        (_VECTOR, gymnasium.spaces.Box(-np.inf, np.inf, (2,)), "finite bounds with low < high"),
        (_VECTOR, gymnasium.spaces.Box(-1, np.inf, (2,)), "finite bounds with low < high"),
        (_VECTOR, gymnasium.spaces.Box(-1, np.finfo(np.float32).max, (2,)), "finite bounds with low < high"),
        (
            _VECTOR,
            gymnasium.spaces.Box(np.float32([1, 0]), np.float32([1, 1])),
            "finite bounds with low < high",
        ),
        (_VECTOR, gymnasium.spaces.Box(-1, 1, (2, 2)), "action: expected a Box of floats with one dimension"),
        (_VECTOR, gymnasium.spaces.Box(0, 9, (2,), np.int32), "action: expected a Box of floats"),
        (_VECTOR, gymnasium.spaces.MultiBinary(3), "action: expected a Box of floats"),
        (gymnasium.spaces.Box(0, 255, (8, 8, 3), np.uint8), _VECTOR, "observation: expected a Box of floats"),
        (gymnasium.spaces.Box(0, 1, (8, 8, 3), np.float32), _VECTOR, "observation: expected a Box of floats"),
        (gymnasium.spaces.Discrete(4), _VECTOR, "observation: expected a Box of floats"),
        (
            gymnasium.spaces.Dict({"a": _VECTOR, "b": gymnasium.spaces.Discrete(4)}),
            _VECTOR,
            r"observation\.b: expected a Box of floats",
        ),
    ],
)
def test_unsuitable_spaces_are_refused_and_their_environments_closed(register, observation, action, message):
    _Spaces.closed = 0
    with pytest.raises(ValueError, match=message):
        make_env(register(_Spaces, observation=observation, action=action), 2, seed=0)
    assert _Spaces.closed == 2


@pytest.mark.parametrize("env_id", ["FingerSpin-v1", "HumanoidStand-v1", "ManipulatorBringBall-v1"])
def test_dictionaries_are_flattened_in_alphabetical_order(env_id):
    with make_env(env_id, 2, [1, 2]) as env:
        observation, _ = env.reset()
        expected, _ = _bare_pool(env_id, [1, 2]).reset()
    assert any(entry.ndim != 2 for entry in expected.values())  # scalars or matrices are among them
    flat = np.concatenate([expected[key].reshape(2, -1) for key in sorted(expected)], axis=1)
    np.testing.assert_array_equal(observation, flat.astype(np.float32))
    assert env.spec.observation_dim == flat.shape[1]


def test_nested_dictionaries_of_gymnasium_are_flattened_in_alphabetical_order(register):
    class Nested(_Spaces):
        def __init__(self) -> None:
            box = gymnasium.spaces.Box
            inner = gymnasium.spaces.Dict({"y": box(-9, 9, (2, 2)), "x": box(-9, 9, ())})
            super().__init__(gymnasium.spaces.Dict({"z": box(-9, 9, (1,)), "b": inner}), _VECTOR)

        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            matrix = np.float32([[2, 3], [4, 5]])
            return {"z": np.float32([6]), "b": {"y": matrix, "x": np.float32(1)}}, {}

    with make_env(register(Nested), 2, seed=0) as env:
        np.testing.assert_array_equal(env.reset()[0], [[1, 2, 3, 4, 5, 6]] * 2)


@pytest.mark.parametrize("kind", [np.int64, np.float64, float])
def test_numbers_may_be_whole_ones_of_any_kind(kind):
    assert environment_seeds(kind(3), kind(4), rank=kind(1), generation=kind(2)) == environment_seeds(
        3, 4, rank=1, generation=2
    )
    for seed, same in ((3, kind(3)), ([5, 6], [kind(5), kind(6)]), ([5, 6], np.array([5, 6], kind))):
        with make_env("Pendulum-v1", 2, seed) as env, make_env("Pendulum-v1", kind(2), same, kind(2), kind(1)) as other:
            np.testing.assert_array_equal(env.reset()[0], other.reset()[0])


class _Misfit(gymnasium.Env[Any, Any]):
    """Returns from `reset` or `step` what it is told to, in place of the result or of the observation in it."""

    action_space = _VECTOR

    def __init__(self, call: str, result: Any = None, observation: Any = None, nested: bool = False) -> None:
        self.broken_call, self.result, self.observation, self.nested = call, result, observation, nested
        box = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
        self.observation_space = gymnasium.spaces.Dict({"b": box, "a": _VECTOR}) if nested else box

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return self._returned("reset", ({},))

    def step(self, action: np.ndarray) -> Any:
        return self._returned("step", (0.0, False, False, {}))

    def _returned(self, call: str, rest: tuple[Any, ...]) -> Any:
        if call == self.broken_call:
            return (self.observation, *rest) if self.result is None else self.result
        vector = np.zeros(3, np.float32)
        return {"b": vector, "a": vector[:2]} if self.nested else vector, *rest


def _reset_and_step(env: VectorEnv, steps: int = 1) -> np.ndarray:
    observation, _ = env.reset()
    for _ in range(steps):
        observation = env.step(np.zeros((2, 2), np.float32)).observation
    return observation


@pytest.mark.parametrize("checked", [True, False], ids=["gymnasium checks", "unchecked"])
@pytest.mark.parametrize("limit", [None, 9], ids=["no limit", "limit"])
@pytest.mark.parametrize("call", ["reset", "step"])
@pytest.mark.parametrize(
    ("broken", "found", "checker_raises"),
    [
        ({}, r"observation = None .*; expected numbers of shape \(3,\)", False),
        ({"observation": "left"}, r"observation = 'left' .*; expected numbers of shape \(3,\)", False),
        (
            {"observation": np.zeros((1, 3))},
            r"observation = an array of shape \(1, 3\) and dtype float64 .* \(3,\)",
            False,
        ),
        (
            {"observation": np.zeros(2), "nested": True},
            r"observation = an array .*; expected a dictionary of a, b",
            True,
        ),
        ({"observation": {"b": np.zeros(3)}, "nested": True}, r"observation.a = None .* of shape \(2,\)", True),
        (
            {"observation": {"a": np.zeros(2), "b": 1.0}, "nested": True},
            r"observation.b = 1.0 .* of shape \(3,\)",
            False,
        ),
    ],
)
def test_an_observation_that_its_space_does_not_have_is_named(
    register, broken, found, checker_raises, call, limit, checked
):
    env_id = register(_Misfit, limit, call=call, **broken)
    gymnasium.registry[env_id].disable_env_checker = not checked
    step = 0 if call == "reset" else 1
    pattern = rf"gave {call}\(\)'s {found}, as its observation_space says$"
    if checked and checker_raises:
        pattern = rf"raised AssertionError in {call}\(\) at step {step} of its episode: .*obs"
    message = rf"^{env_id}: environment 0 {pattern}"
    with make_env(env_id, 2, seed=0) as env, pytest.raises(EnvironmentFault, match=message) as caught:
        _reset_and_step(env)
    assert (caught.value.env_index, caught.value.step) == (0, step)


@pytest.mark.parametrize(
    ("call", "result", "message"),
    [
        ("reset", np.zeros(3), r"gave reset\(\) = an array of shape \(3,\) .*; expected \(observation, info\)"),
        (
            "step",
            (np.zeros(3), 0.0, False, {}),
            r"gave step\(\) = 4 values at step 1 .*; expected \(observation, reward,",
        ),
    ],
)
def test_a_result_of_another_form_is_named(register, call, result, message):
    env_id = register(_Misfit, None, call=call, result=result)
    gymnasium.registry[env_id].disable_env_checker = True
    with make_env(env_id, 2, seed=0) as env, pytest.raises(EnvironmentFault, match=message):
        _reset_and_step(env)


def test_a_shape_that_a_wrapper_mends_is_no_fault(register):
    def mended(**kwargs: Any) -> gymnasium.Env:
        space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
        return gymnasium.wrappers.TransformObservation(_Misfit(**kwargs), lambda each: each.reshape(3), space)

    with make_env(register(mended, call="step", observation=np.ones((1, 3), np.float32)), 2, seed=0) as env:
        assert (_reset_and_step(env) == 1).all()


class _Gain(gymnasium.Env[Any, Any]):
    """Its reward is its `gain`, which a wrapper may set."""

    observation_space = action_space = _VECTOR

    def __init__(self) -> None:
        self.gain, self.count = 1.0, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.count = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: np.ndarray) -> Any:
        self.count += 1
        return np.zeros(2, np.float32), self.gain, False, False, {}

    def bonus(self) -> float:
        return 0.5


class _SetsTheGain(gymnasium.Wrapper):
    def reset(self, **kwargs: Any) -> Any:
        self.env.gain = 5.0
        return self.env.reset(**kwargs)

    def step(self, action: np.ndarray) -> Any:
        observation, reward, *rest = self.env.step(action)
        return observation, reward + self.env.bonus(), *rest


def test_a_wrapper_reaches_the_environment_that_it_wraps(register):
    with make_env(register(lambda: _SetsTheGain(_Gain())), 2, seed=0) as env:
        env.reset()
        assert env.step(np.zeros((2, 2), np.float32)).transition.reward.tolist() == [5.5, 5.5]


class _Raises(_Gain):
    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at

    def reset(self, **kwargs: Any) -> Any:
        if self.at == 0:
            raise ConnectionError("the simulator is busy")
        return super().reset(**kwargs)

    def step(self, action: np.ndarray) -> Any:
        if self.count + 1 == self.at:
            raise ConnectionError("the simulator is busy")
        return super().step(action)


@pytest.mark.parametrize(("at", "call"), [(0, "reset"), (3, "step")])
def test_an_environment_that_raises_is_named(register, at, call):
    env_id = register(_Raises, at=at)
    message = rf"^{env_id}: environment 0 raised ConnectionError in {call}\(\) at step {at} of its episode: the sim"
    with make_env(env_id, 2, seed=0) as env, pytest.raises(EnvironmentFault, match=message) as caught:
        _reset_and_step(env, steps=3)
    assert (caught.value.env_index, caught.value.step, caught.value.quantity) == (0, at, f"{call}()")
    assert isinstance(caught.value.__cause__, ConnectionError)


class _CountsItsSpace(_Gain):
    asked = 0

    @property
    def observation_space(self) -> gymnasium.Space:  # type: ignore[override]
        _CountsItsSpace.asked += 1
        return _VECTOR


def test_a_step_does_not_ask_for_the_observation_space(register):
    env_id = register(_CountsItsSpace)
    gymnasium.registry[env_id].disable_env_checker = True
    with make_env(env_id, 2, seed=0) as env:
        _CountsItsSpace.asked = 0
        _reset_and_step(env)
    assert _CountsItsSpace.asked == 0


def _normalised(**kwargs: Any) -> gymnasium.Env:
    return gymnasium.wrappers.NormalizeReward(gymnasium.wrappers.NormalizeObservation(_Chain(**kwargs)))


def _frozen(**kwargs: Any) -> gymnasium.Env:
    env = gymnasium.wrappers.NormalizeObservation(_Chain(**kwargs))
    env.update_running_mean = False
    return env


class _Statistics:
    def __init__(self) -> None:
        self.mean, self.var, self.count = 0.0, 1.0, 0


class _OwnStatistics(_Chain):
    def __init__(self) -> None:
        super().__init__()
        self.statistics = _Statistics()


class _NormalizeByHand(gymnasium.Wrapper):
    def __init__(self, env: gymnasium.Env) -> None:
        super().__init__(env)
        self.rms = gymnasium.wrappers.utils.RunningMeanStd()


def test_wrappers_with_running_statistics_are_warned_of_once(register, caplog):
    wrapper = gymnasium.envs.registration.WrapperSpec("own", f"{__name__}:_NormalizeByHand", kwargs={})
    names = [register(_normalised), register(_Chain, additional_wrappers=(wrapper,)), register(_OwnStatistics)]
    for env_id in names * 2:
        make_env(env_id, 2, seed=0).close()
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    keepers = ("NormalizeReward and NormalizeObservation", "_NormalizeByHand", "_OwnStatistics")
    assert len(said) == 3
    for message, env_id, keeper in zip(said, names, keepers, strict=True):
        assert message.startswith(f"{env_id}: the running statistics of {keeper} are of each environment alone")


def test_what_does_not_adapt_is_not_warned_of(register, caplog):
    stacked = gymnasium.wrappers.FrameStackObservation.wrapper_spec(stack_size=2)
    for env_id in (register(_frozen), register(_Chain, additional_wrappers=(stacked,))):
        make_env(env_id, 2, seed=0).close()
    make_env("Pendulum-v1", 2, seed=0).close()
    assert not [record for record in caplog.records if record.name.startswith("sacfast.envs")]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"env_id": 3}, TypeError, "env_id: expected a str, got int"),
        ({"num_envs": 0}, ValueError, "num_envs: expected an int in 1..65536, got 0"),
        ({"num_envs": 2.5}, TypeError, "num_envs: expected an int in 1..65536, got 2.5"),
        ({"num_envs": True}, TypeError, "num_envs: expected an int in 1..65536, got True"),
        ({"batch_size": 0}, ValueError, "batch_size: expected an int in 1..2, got 0"),
        ({"batch_size": 3}, ValueError, "batch_size: expected an int in 1..2, got 3"),
        ({"num_threads": 0}, ValueError, "num_threads: expected an int in 1..65536, got 0"),
        ({"seed": -1}, ValueError, "seed: expected an int >= 0, got -1"),
        ({"seed": [1, 1]}, ValueError, r"seed: expected 2 different seeds, got \[1, 1\]"),
        ({"seed": [1]}, ValueError, r"seed: expected 2 different seeds, got \[1\]"),
        ({"seed": [1, 2**31]}, ValueError, "seed: expected an int in 0..2147483647, got 2147483648"),
    ],
)
def test_make_env_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        make_env(**{"env_id": "Pendulum-v1", "num_envs": 2, "seed": 0, **arguments})


def test_gymnasium_tasks_do_not_step_asynchronously(register):
    with pytest.raises(ValueError, match=r"batch_size: .* steps all 2 environments at once, got 1"):
        make_env(register(_Chain), 2, seed=0, batch_size=1)


# Without EnvPool, and with another one than is known


@pytest.fixture
def no_envpool(monkeypatch):
    """Let imports of EnvPool fail as where it is not installed."""
    monkeypatch.setitem(sys.modules, "envpool", None)
    make._warn_of_gymnasium.cache_clear()


@pytest.mark.usefixtures("no_envpool")
def test_without_envpool_a_task_has_the_same_spec_and_says_once_what_is_faster(caplog):
    for _ in range(2):
        with make_env("Pendulum-v1", 2, seed=0) as env:
            env.reset()
            result = env.step(np.full((2, 1), 0.5, np.float32))
    assert (env.spec.source, env.spec.max_episode_steps, result.transition.next_observation.shape) == (
        *("gymnasium", 200),
        (2, 3),
    )
    np.testing.assert_array_equal((env.spec.action_low, env.spec.action_high), [[-2], [2]])
    assert caplog.messages == [
        "EnvPool is not installed: the environments are Gymnasium's, stepped one after the other; "
        "for faster ones: pip install 'sacfast[envpool]'"
    ]


@pytest.mark.usefixtures("no_envpool")
def test_a_task_that_envpool_does_not_have_is_not_said_to_be_faster_with_it(register, caplog):
    env_id = register(_Chain)
    make_env(env_id, 2, seed=0).close()
    assert caplog.messages == []
    with pytest.raises(ValueError, match=r"steps all 2 environments at once, got 1$"):
        make_env(env_id, 2, seed=0, batch_size=1)


def test_envpool_has_what_it_is_said_to_make_faster():
    """All of Gymnasium's tasks but this one, whose actions are discrete."""
    own = [name for name, task in gymnasium.registry.items() if str(task.entry_point).startswith("gymnasium.envs.")]
    assert len(own) > 30
    assert set(own) - set(envpool.list_all_envs()) <= {"Taxi-v3", "Taxi-v4"}


@pytest.mark.usefixtures("no_envpool")
@pytest.mark.parametrize("env_id", ["CheetahRun-v1", "HalfCheeta-v5"])
def test_without_envpool_an_unknown_task_may_be_one_of_its_own(env_id):
    message = rf"Gymnasium does not know '{env_id}', and EnvPool, .*pip install 'sacfast\[envpool\]'; did you mean Half"
    with pytest.raises(ValueError, match=message):
        make_env(env_id, 1, seed=0)


def test_a_source_is_kept(monkeypatch, caplog):
    with make_env("Pendulum-v1", 1, seed=0, source="gymnasium") as env:
        assert env.spec.source == "gymnasium"
    with make_env("Pendulum-v1", 1, seed=0, source="envpool") as env:
        assert env.spec.source == "envpool"
    assert caplog.messages == []
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(ImportError, match=r"Pendulum-v1: .*EnvPool is not installed: pip install 'sacfast\[envpool\]'"):
        make_env("Pendulum-v1", 1, seed=0, source="envpool")


class _Pool:
    """An EnvPool's pool without, or with other, private names."""

    def __init__(self, pool: Any, **changes: Any) -> None:
        self._pool, self._changes = pool, changes

    def __getattr__(self, name: str) -> Any:
        value = self._changes.get(name, self)
        if value is None:
            raise AttributeError(name)
        return getattr(self._pool, name) if value is self else value


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"_send": None}, "a pool without _send"),
        ({"_recv": None, "_state_keys": None}, "a pool without _recv, _state_keys"),
        ({"_action_keys": ["players.env_id", "env_id", "action"]}, r"a pool that takes \['players.env_id', 'env_id'"),
        ({"_state_keys": ["obs", "reward", "done", "trunc"]}, "a pool that does not return info.env_id"),
    ],
    ids=str,
)
def test_a_pool_of_another_envpool_is_refused(monkeypatch, changes, found):
    make = envpool.make
    monkeypatch.setattr(envpool, "make", lambda *args, **kwargs: _Pool(make(*args, **kwargs), **changes))
    message = rf"envpool: expected EnvPool 1\.2\.5 or a later 1\.2, got {envpool.__version__}, {found}.*; pip install"
    with pytest.raises(ImportError, match=message):
        make_env("Pendulum-v1", 1, seed=0)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise ImportError('libstdc++.so.6: not found')", r"cannot be imported \(libstdc\+\+.*--force-reinstall"),
        ("import sacfast_no_such_module", r"cannot be imported \(No module named 'sacfast_no_such_module'\)"),
        ("__version__ = '9.0'\nmake = list_all_envs = print", r"got 9\.0, one without make_spec; pip install"),
        (None, r"got of no version, one without list_all_envs, make, make_spec; pip install"),  # a folder of that name
    ],
)
def test_a_broken_envpool_is_not_taken_for_a_missing_one(monkeypatch, tmp_path: Path, source, message):
    (tmp_path / "envpool").mkdir()
    if source is None:
        monkeypatch.setattr(sys, "path", [str(tmp_path)])
    else:
        (tmp_path / "envpool" / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "envpool")
    with pytest.raises(ImportError, match=f"envpool: .*{message}"):
        make_env("Pendulum-v1", 1, seed=0)


# Order of calls, processes, threads


@pytest.mark.parametrize("source", ["envpool", "gymnasium"])
def test_calls_out_of_turn_are_refused_instead_of_hanging(register, source):
    env = make_env("Pendulum-v1" if source == "envpool" else register(_Chain), 2, seed=0)
    action = np.zeros((2, 1), np.float32)
    for call in (env.recv, lambda: env.send(action)):
        with pytest.raises(RuntimeError, match=r"not possible: reset\(\) must come first"):
            call()
    env.reset()
    with pytest.raises(RuntimeError, match=r"recv\(\): not possible: the environments wait for send\(\)"):
        env.recv()
    env.send(action)
    for call in (env.reset, lambda: env.send(action)):
        with pytest.raises(RuntimeError, match=r"a step is under way, recv\(\) must come first"):
            call()
    assert len(env.recv().transition.reward) == 2
    env.close()
    env.close()
    for call in (env.reset, env.recv, lambda: env.send(action)):
        with pytest.raises(RuntimeError, match="the environment is closed"):
            call()


@pytest.mark.parametrize("source", ["envpool", "gymnasium"])
def test_a_second_reset_abandons_the_running_episodes(register, source):
    if source == "envpool":
        env_id, action, limit = "Pendulum-v1", np.zeros((2, 1), np.float32), 200
    else:
        env_id, action, limit = register(_Chain, truncates_at=20), np.zeros((2, 1), np.float32), 20
    with make_env(env_id, 2, seed=0) as env:
        first, _ = env.reset()
        for _ in range(5):
            env.step(action)
        second, _ = env.reset()
        assert not np.array_equal(first, second)  # the generators go on
        results = [env.step(action) for _ in range(limit)]
    np.testing.assert_array_equal(results[0].transition.observation, second)
    assert [len(result.episodes.length) for result in results] == [0] * (limit - 1) + [2]
    assert results[-1].episodes.length.tolist() == [limit, limit]
    rewards = np.sum([result.transition.reward.astype(np.float64) for result in results], axis=0)
    np.testing.assert_allclose(results[-1].episodes.return_, rewards, rtol=1e-12)


def test_a_second_asynchronous_reset_is_refused():
    with make_env("Pendulum-v1", 3, seed=0, batch_size=1) as env:
        env.reset()
        with pytest.raises(RuntimeError, match="asynchronous environments are still stepping"):
            env.reset()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_stepping_after_a_fork_is_refused():
    with make_env("Pendulum-v1", 2, seed=0, num_threads=2) as env:
        env.reset()
        action = np.zeros((2, 1), np.float32)
        env.step(action)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            messages = []
            for call in (lambda: env.send(action), env.recv, env.reset, env.close):
                try:
                    call()
                except RuntimeError as error:
                    messages.append(str(error))
            os.write(writer, "\n".join(messages).encode())
            os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as pipe:
            messages = pipe.read().splitlines()
        os.waitpid(child, 0)
        assert len(messages) == 4
        assert all("does not survive a fork" in message and "'spawn'" in message for message in messages)
        assert len(env.step(action).transition.reward) == 2  # the parent goes on


@pytest.mark.parametrize("batch_size", [4, 2])
def test_close_ends_the_threads_also_with_steps_under_way(batch_size):
    before = thread_ids()
    env = make_env("HalfCheetah-v5", 4, seed=0, batch_size=batch_size, num_threads=3)
    env.reset()
    env.send(np.zeros((batch_size, 6), np.float32))
    started = thread_ids() - before
    assert len(started) >= 3
    env.close()
    assert not those_that_stay(started)


def test_threads_default_to_usable_cores_but_no_more_than_environments():
    with make_env("Pendulum-v1", 1, seed=0) as env:
        assert env._pool.config["num_threads"] == 1
    with make_env("Pendulum-v1", 512, seed=0) as env:
        assert env._pool.config["num_threads"] == min(512, len(os.sched_getaffinity(0)))


# Physics


def test_the_first_step_agrees_with_gymnasium():
    # Pendulum: its Gymnasium version needs no simulator besides. The state is read back from float32
    # observations, hence the tolerance.
    with make_env("Pendulum-v1", 8, seed=0) as env:
        observation, _ = env.reset()
        action = np.linspace(-1, 1, 8, dtype=np.float32)[:, None]
        transition = env.step(action).transition
    twin = gymnasium.make("Pendulum-v1")
    twin.reset()
    for row in range(8):
        cosine, sine, speed = observation[row].astype(np.float64)
        twin.unwrapped.state = np.array([math.atan2(sine, cosine), speed])
        expected, reward, *_ = twin.unwrapped.step(2.0 * action[row])
        np.testing.assert_allclose(transition.next_observation[row], expected, rtol=0, atol=2e-6)
        np.testing.assert_allclose(transition.reward[row], reward, rtol=0, atol=2e-6)
