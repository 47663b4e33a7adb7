"""Sizes that no memory has, a process that was forked, objects that were not made: the native engine refuses."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bad_inputs import WIDTH, Learner
from learner_cases import OPTIONS, A, B, O, make_config
from test_fused_threads import allocated_bytes

from sacfast import _C, collect, engines, fused, memory, networks
from sacfast.fused import FusedLearner
from sacfast.reference import ReferenceLearner

ROOT = Path(__file__).resolve().parents[1]

FORK = """
import os, signal, sys
import torch
torch.set_num_threads(2)
from learner_cases import A, O, make_config, random_batch, random_replay
from sacfast import SAC, ops
from sacfast.reference import ReferenceLearner

x = torch.arange(600_000.0).view(100_000, 6) / 3e5 - 1
negative = -x
def results():
    average = torch.from_numpy(x.numpy().copy())  # by torch it would take threads, and hang in the child
    ops.polyak_update_(average, negative, 0.3)
    made = *ops.tanh_gaussian_rsample(x, x, x), ops.tanh_gaussian_log_prob(x, x, x), average
    return [each.numpy().tobytes() for each in made]

expected = results()
learner = ReferenceLearner(O, A, make_config(), seed=1)
learner.update(random_replay(), 2)
model = SAC("Pendulum-v1", num_envs=2, hidden_sizes=(16,), batch_size=16, learning_starts=20, progress=False,
            evaluation_episodes=0)
model.learn(40)

def refused(act):
    try:
        act()
    except RuntimeError as error:
        return "fork" in str(error)
    return False

sys.stdout.flush()
pid = os.fork()
if pid == 0:
    signal.alarm(60)  # a child that hangs is ended by it, and seen by its exit code
    assert results() == expected
    assert refused(lambda: learner.update(random_replay(), 1))
    assert refused(lambda: learner.update_batch(random_batch(0)))
    assert refused(lambda: learner.load_state_dict(learner.state_dict()))
    assert refused(lambda: model.learn(20))
    sys.exit(7)  # through the whole of Python's own end
print("child", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
assert results() == expected
learner.update(random_replay(), 1)
print("parent", learner.gradient_updates, model.learn(20).timesteps)
"""


def test_after_a_fork() -> None:
    """The ops work, alone; learners and environments, whose threads are gone, refuse; all end in peace."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", FORK],  # of fork(), Python 3.12
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "child 7\nparent 3 60\n", "")


@pytest.mark.parametrize("kind", [FusedLearner, ReferenceLearner])
def test_a_learner_that_cannot_fit_is_refused(kind: type[Learner], monkeypatch: pytest.MonkeyPatch) -> None:
    for options in ({"hidden_sizes": (10**6, 10**6)}, {"hidden_sizes": (2**62,)}, {"batch_size": 10**12}):
        options = {"replay_capacity": 10**13, **options}
        with pytest.raises(ValueError, match=r"hidden_sizes: .* need \d+\.\d\d GB, but cpu has \d+\.\d\d GB free"):
            kind(O, A, make_config(options))
    # Parameters, by hand: actor 5*2 + 3*6, each critic 8*2 + 3. Networks and targets have gradients.
    of_networks = 4 * 2 * (28 + 4 * 19)
    if kind is FusedLearner:
        needed = of_networks + engines.engine_bytes(settings_of(hidden_sizes=(2,)), torch.device("cpu"), torch.float32)
    else:  # two moments; of a transition its row, (x, a~), and 3 networks' 2 units
        needed = of_networks + 4 * (2 * (28 + 2 * 19) + 16 * (13 + 7 + 3 * 2))
    monkeypatch.setattr(memory, "free_memory", lambda device: needed)
    kind(O, A, make_config(hidden_sizes=(2,)))
    monkeypatch.setattr(memory, "free_memory", lambda device: needed - 1)
    with pytest.raises(ValueError, match=r"hidden_sizes: \(2,\) with 4 observations, 3 actions and batch_size 16 need"):
        kind(O, A, make_config(hidden_sizes=(2,)))


def settings_of(**options: Any) -> Any:
    return fused._settings(O, A, make_config(options))


@pytest.mark.parametrize(
    ("observation_dim", "options"),
    [(O, {"batch_size": 200_000}), (100_000, {}), (O, {"hidden_sizes": (1000, 1000)}), (O, OPTIONS["v1"])],
    ids=["rows", "observations", "units", "v1"],
)
def test_what_an_engine_is_said_to_take_is_what_it_takes(observation_dim: int, options: dict[str, Any]) -> None:
    """Beside what it takes however small it is: stacks of threads, and what Python needs to speak to it."""
    config = make_config(options)
    settings = fused._settings(observation_dim, A, config)
    rows = torch.zeros(1, 2 * observation_dim + A + 2)
    index = torch.zeros(1, config.batch_size, dtype=torch.int64)
    actor = torch.zeros(networks.Actor(observation_dim, A, config.hidden_sizes).flat.shape)
    gc.collect()  # what tests before this one have left would be freed in between
    before = allocated_bytes()
    engine = engines.CpuEngine(settings, torch.float32)
    engine.threads = lambda: 2  # type: ignore[method-assign]
    engine.run(rows, index, None, None, actor, torch.zeros(len(engines.METRICS), dtype=torch.float64))
    taken = allocated_bytes() - before
    expected = _C.Engine32.bytes(settings, 2)
    assert 0 <= taken - expected < 3e6


@pytest.mark.parametrize("name", ["observation_dim", "action_dim", "batch_size", "hidden_sizes"])
@pytest.mark.parametrize("size", [2**30 + 1, 2**60, 2**62, -1])
def test_a_native_engine_refuses_sizes_that_no_memory_has(name: str, size: int) -> None:
    settings = settings_of()
    setattr(settings, name, [size] if name == "hidden_sizes" else size)
    limit = ">= 1" if size < 1 else "<= 1073741824"
    for build in (_C.Engine32, lambda settings: _C.Engine64.bytes(settings, 1)):
        with pytest.raises(ValueError, match=rf"^{name}: expected an int {limit}, got {size}$"):
            build(settings)


def test_a_native_engine_refuses_sizes_whose_sum_overflows() -> None:
    settings = settings_of()
    settings.hidden_sizes = [2**30] * 8
    for build in (_C.Engine32, lambda settings: _C.Engine64.bytes(settings, 1)):
        with pytest.raises(ValueError, match="sizes: expected those of a learner whose memory has addresses"):
            build(settings)


def test_a_learner_that_does_not_fit_after_all_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an engine that finds no memory throws arrives as MemoryError: bad_alloc, as pybind11 translates it."""
    monkeypatch.setattr(memory, "free_memory", lambda device: 2**80)
    options = {"hidden_sizes": (2**20,), "batch_size": 2**30, "replay_capacity": 2**30}  # beyond any address space
    with pytest.raises(MemoryError, match=r"hidden_sizes \(1048576,\) with batch_size 1073741824: no memory left"):
        FusedLearner(O, A, make_config(options))


def test_a_native_engine_writes_to_no_read_only_array() -> None:
    settings = settings_of()
    engine, size = _C.Engine32(settings), make_actor_size(settings)
    rows, index = np.zeros((1, WIDTH), np.float32), np.zeros((1, B), np.int64)
    actor, metrics = np.zeros(size, np.float32), np.zeros(len(_C.METRICS))
    for name, array in (("actor", actor), ("metrics", metrics)):
        array.flags.writeable = False
        with pytest.raises(ValueError, match=f"^{name}: expected an array to write to, got a read-only one$"):
            engine.update(rows, index, 1, actor, metrics)
        array.flags.writeable = True
    actor.flags.writeable = False
    with pytest.raises(ValueError, match=r"^into: expected an array to write to, got a read-only one$"):
        engine.read("actor", "parameters", actor)
    engine.write("actor", "parameters", actor)  # which it only reads
    assert engine.counters.gradient_updates == 0
    assert not actor.any()
    assert not metrics.any()


def make_actor_size(settings: Any) -> int:
    return networks.Actor(settings.observation_dim, settings.action_dim, settings.hidden_sizes).flat.numel()


def test_native_objects_that_init_has_not_made_are_refused() -> None:
    """Of `__new__` alone; a method of a class takes any object, too."""
    message = "expected an object that its __init__ has made, got one by __new__ alone"
    settings, engine = _C.UpdateSettings.__new__(_C.UpdateSettings), _C.Engine32.__new__(_C.Engine32)
    counters, actor = _C.UpdateCounters.__new__(_C.UpdateCounters), collect.Actor.__new__(collect.Actor)
    values = np.zeros(4, np.float32)
    acts: list[Callable[[], object]] = [
        lambda: settings.hidden_sizes,
        lambda: setattr(settings, "hidden_sizes", [3]),
        lambda: setattr(settings, "log_std_bounding", "tanh"),
        lambda: _C.Engine32(settings),
        lambda: _C.Engine64.bytes(settings, 1),
        lambda: engine.read("actor", "parameters", values),
        lambda: engine.write("actor", "parameters", values),
        lambda: engine.adopt(values),
        lambda: engine.update(np.zeros((1, 1), np.float32), np.zeros((1, 1), np.int64), 1, values, np.zeros(8)),
        lambda: engine.counters,
        engine.profile,
        lambda: counters.adam_steps,
        lambda: setattr(counters, "noise_state", (1, 2)),
        lambda: actor.act(np.zeros((1, 1), np.float32)),
    ]
    for act in acts:
        with pytest.raises(TypeError, match=message):
            act()
    for other in (3, settings_of()):
        with pytest.raises(TypeError, match=f"expected Engine32, got {type(other).__name__}"):
            _C.Engine32.profile(other)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected Actor, got int"):
        collect.Actor.act(3, values)  # type: ignore[arg-type]
