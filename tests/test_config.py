import dataclasses
import inspect
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from sacfast.config import BACKENDS, STABLE_BASELINES3, SACConfig, TrainConfig, check_backend

# field, refused value, error, what the message must say
SAC_REFUSALS = [
    ("hidden_sizes", 256, TypeError, "a tuple of ints >= 1, got 256"),
    ("hidden_sizes", (256.5,), TypeError, "a tuple of ints >= 1"),
    ("hidden_sizes", (256, 0), ValueError, "a tuple of ints >= 1"),
    ("activation", "swish", ValueError, "one of 'relu', 'tanh', 'elu', 'silu', 'gelu', got 'swish'"),
    ("batch_size", 0, ValueError, "an int >= 1, got 0"),
    ("batch_size", 256.5, TypeError, "an int >= 1, got 256.5"),
    ("batch_size", True, TypeError, "an int >= 1, got True"),
    ("replay_capacity", 0, ValueError, "an int >= 1, got 0"),
    ("replay_capacity", 255, ValueError, "at least batch_size (256), or no minibatch is ever full; got 255"),
    ("learning_starts", -1, ValueError, "an int >= 0, got -1"),
    ("utd_ratio", -0.5, ValueError, "a float in [0, inf), got -0.5"),
    ("utd_ratio", math.inf, ValueError, "a float in [0, inf), got inf"),
    ("utd_ratio", "1", TypeError, "a float in [0, inf), got '1'"),
    ("gamma", 1.5, ValueError, "a float in [0, 1], got 1.5"),
    ("gamma", math.nan, ValueError, "a float in [0, 1], got nan"),
    ("reward_scale", -1.0, ValueError, "a float in (0, inf), got -1.0"),
    ("alpha", -1.0, ValueError, "'auto' or a float in [0, inf), got -1.0"),
    ("alpha", "learned", TypeError, "'auto' or a float in [0, inf), got 'learned'"),
    ("alpha", False, TypeError, "'auto' or a float in [0, inf), got False"),
    ("initial_alpha", 0.0, ValueError, "a float in (0, inf), got 0.0"),
    ("target_entropy", math.inf, ValueError, "'auto' or a float in (-inf, inf), got inf"),
    ("target_entropy", None, TypeError, "'auto' or a float in (-inf, inf), got None"),
    ("actor_lr", 0.0, ValueError, "a float in (0, inf), got 0.0"),
    ("critic_lr", -1e-3, ValueError, "a float in (0, inf), got -0.001"),
    ("alpha_lr", 0.0, ValueError, "a float in (0, inf), got 0.0"),
    ("value_lr", 0.0, ValueError, "a float in (0, inf), got 0.0"),
    ("adam_betas", (0.9, 1.0), ValueError, "two floats in [0, 1), got (0.9, 1.0)"),
    ("adam_betas", (0.9,), TypeError, "two floats in [0, 1), got (0.9,)"),
    ("adam_eps", 0.0, ValueError, "a float in (0, inf), got 0.0"),
    ("target_update", "soft", ValueError, "one of 'polyak', 'hard', got 'soft'"),
    ("tau", 0.0, ValueError, "a float in (0, 1], got 0.0"),
    ("target_update_interval", 0, ValueError, "an int >= 1, got 0"),
    ("value_network", 1, TypeError, "True or False, got 1"),
    ("deterministic_policy", None, TypeError, "True or False, got None"),
    ("exploration_noise", -0.1, ValueError, "a float in [0, inf), got -0.1"),
    ("log_std_bounding", "clip", ValueError, "one of 'none', 'clamp', 'tanh', got 'clip'"),
    ("matmul_precision", "float16", ValueError, "one of 'float32', 'tf32', 'bfloat16', got 'float16'"),
    ("log_std_bounds", (2.0, -20.0), ValueError, "(low, high) with low < high, got (2.0, -20.0)"),
    ("log_std_bounds", (-math.inf, 2.0), ValueError, "two floats in (-inf, inf)"),
    ("log_std_bounds", 2.0, TypeError, "two floats in (-inf, inf), got 2.0"),
    ("fused_ops", "yes", TypeError, "True or False, got 'yes'"),
]

TRAIN_REFUSALS = [
    ("env_id", "", ValueError, "a string that is not empty"),
    ("env_id", 3, TypeError, "a string, got 3"),
    ("total_timesteps", 0, ValueError, "an int >= 1, got 0"),
    ("num_envs", 0, ValueError, "an int >= 1, got 0"),
    ("env_batch_size", 0, ValueError, "an int >= 1, got 0"),
    ("env_batch_size", 17, ValueError, "at most num_envs (16), got 17"),
    ("env_threads", 0, ValueError, "an int >= 1, got 0"),
    ("seed", -1, ValueError, "an int >= 0, got -1"),
    ("seed", None, TypeError, "an int >= 0, got None"),
    ("device", "tpu", ValueError, "'auto', 'cpu', 'cuda' or 'cuda:N', got 'tpu'"),
    ("device", None, TypeError, "a string, got None"),
    ("backend", "jax", ValueError, "one of 'fused', 'reference', got 'jax'"),
    ("run_dir", 3, TypeError, "a path or None, got 3"),
    ("overwrite", 1, TypeError, "True or False, got 1"),
    ("log_interval", 0, ValueError, "an int >= 1, got 0"),
    ("evaluate_every", -1, ValueError, "an int >= 0, got -1"),
    ("evaluation_episodes", -1, ValueError, "an int >= 0, got -1"),
    ("checkpoint_every", -1, ValueError, "an int >= 0, got -1"),
    ("checkpoint_every", 1.5, TypeError, "an int >= 0, got 1.5"),
    ("keep_checkpoints", 0, ValueError, "an int >= 1, got 0"),
    ("checkpoint_replay", 1, TypeError, "True or False, got 1"),
    ("tensorboard", True, ValueError, "a run_dir to write to"),
    ("wandb", True, ValueError, "a run_dir to write to"),
    ("progress", "no", TypeError, "True or False, got 'no'"),
    ("torch_threads", 0, ValueError, "an int >= 1, got 0"),
]


@pytest.mark.parametrize(("field", "value", "error", "message"), SAC_REFUSALS)
def test_sac_config_refuses(field, value, error, message):
    with pytest.raises(error) as caught:
        SACConfig(**{field: value})
    assert str(caught.value).startswith(f"{field}: expected ")
    assert message in str(caught.value)


@pytest.mark.parametrize(("field", "value", "error", "message"), TRAIN_REFUSALS)
def test_train_config_refuses(field, value, error, message):
    with pytest.raises(error) as caught:
        TrainConfig(**{"env_id": "Pendulum-v1", field: value})
    assert str(caught.value).startswith(f"{field}: expected ")
    assert message in str(caught.value)


def test_every_field_has_a_refusal_tested():
    assert {field.name for field in dataclasses.fields(SACConfig)} == {case[0] for case in SAC_REFUSALS}
    assert {field.name for field in dataclasses.fields(TrainConfig)} == {case[0] for case in TRAIN_REFUSALS}


def test_value_network_needs_a_fixed_temperature():
    with pytest.raises(ValueError, match="alpha: expected a float >= 0 with value_network=True"):
        SACConfig(value_network=True)
    assert SACConfig(value_network=True, alpha=1.0).alpha == 1.0


@pytest.mark.parametrize("alpha", ["auto", 0.2])
def test_deterministic_policy_needs_a_zero_temperature(alpha):
    with pytest.raises(ValueError, match=r"alpha: expected 0\.0 with deterministic_policy=True"):
        SACConfig(deterministic_policy=True, alpha=alpha)


def test_the_backends_are_known_by_name():
    assert BACKENDS == ("fused", "reference")
    assert TrainConfig("Pendulum-v1").backend == "fused"
    for backend in BACKENDS:
        check_backend(backend)
    with pytest.raises(ValueError, match="backend: expected one of 'fused', 'reference', got 'Fused'"):
        check_backend("Fused")


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.float32, np.float64, float])
def test_whole_numbers_of_any_kind_are_held_as_ints(kind):
    ints = {"batch_size": 64, "learning_starts": 0, "replay_capacity": 200, "target_update_interval": 3}
    plain = SACConfig(hidden_sizes=(32, 16), **ints)
    given = SACConfig(hidden_sizes=(kind(32), kind(16)), **{name: kind(value) for name, value in ints.items()})
    assert repr(given) == repr(plain)
    assert json.dumps(given.to_dict()) == json.dumps(plain.to_dict())
    names = ("total_timesteps", "num_envs", "env_batch_size", "env_threads", "seed", "log_interval", "evaluate_every")
    names += ("evaluation_episodes", "checkpoint_every", "keep_checkpoints", "torch_threads")
    plain, given = (TrainConfig("Pendulum-v1", **dict.fromkeys(names, value)) for value in (7, kind(7)))
    assert repr(given) == repr(plain)


def test_floats_and_bools_of_numpy_are_held_as_pythons():
    given = SACConfig(
        gamma=np.float64(0.9), tau=np.float32(0.5), alpha=np.int64(1), adam_betas=(np.float64(0.5), np.int8(0)),
        value_network=np.True_, fused_ops=np.False_,
    )  # fmt: skip
    plain = SACConfig(gamma=0.9, tau=0.5, alpha=1.0, adam_betas=(0.5, 0.0), value_network=True, fused_ops=False)
    assert repr(given) == repr(plain)
    assert repr(TrainConfig("Pendulum-v1", progress=np.False_)) == repr(TrainConfig("Pendulum-v1", progress=False))


@pytest.mark.parametrize("value", [np.bool_(True), np.float64(1.5), np.nan, np.inf, "7", np.array(7)])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(TypeError, match="batch_size: expected an int >= 1, got"):
        SACConfig(batch_size=value)


@pytest.mark.parametrize("value", [np.bool_(True), "0.9", np.array(0.9), None])
def test_what_is_no_real_number_is_refused(value):
    with pytest.raises(TypeError, match="gamma: expected a float in"):
        SACConfig(gamma=value)


def test_every_setting_of_stable_baselines3_has_an_answer_by_names_that_exist():
    fields = {field.name for config in (SACConfig, TrainConfig) for field in dataclasses.fields(config)}
    for name, answer in STABLE_BASELINES3.items():
        assert name not in fields
        assert set(re.findall("`(.*?)`", answer)) <= fields, name
    sb3 = pytest.importorskip("stable_baselines3", reason="stable_baselines3 is not installed")
    theirs = set(inspect.signature(sb3.SAC.__init__).parameters) - {"self", "_init_setup_model"}
    assert theirs <= fields | set(STABLE_BASELINES3)


def test_configs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SACConfig().gamma = 0.5


@pytest.mark.parametrize(
    "config",
    [
        SACConfig(),
        SACConfig(hidden_sizes=(), activation="tanh", alpha=0, target_entropy=-3, log_std_bounds=(-5, 2)),
        TrainConfig("Pendulum-v1"),
        TrainConfig("Pendulum-v1", run_dir=Path("runs/x"), env_batch_size=8, torch_threads=1),
    ],
    ids=["sac", "sac-set", "train", "train-set"],
)
def test_dictionaries_survive_json(config):
    values = json.loads(json.dumps(config.to_dict(), allow_nan=False))
    assert set(values) == {field.name for field in dataclasses.fields(config)}
    restored = type(config).from_dict(values)
    assert restored == config
    assert repr(restored) == repr(config)  # equal types too: a tuple is not a list, 0 not 0.0


def test_from_dict_takes_defaults_for_what_is_absent():
    assert SACConfig.from_dict({"gamma": 0.9}) == SACConfig(gamma=0.9)


@pytest.mark.parametrize("config", [SACConfig, TrainConfig])
def test_from_dict_names_unknown_keys(config):
    with pytest.raises(ValueError, match=rf"{config.__name__}: unknown key\(s\) gama, lr; expected some of"):
        config.from_dict({"gama": 0.9, "lr": 1e-3})
