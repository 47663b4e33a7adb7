"""The fused learner's threads: they change no bit, other Python threads go on beside them, and forks are met."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from learner_cases import OPTIONS, A, O, assert_states_equal, every_option, make_config, random_batch, random_replay
from process_threads import those_that_stay, thread_ids
from torch import Tensor

from sacfast import engines
from sacfast.fused import FusedLearner

ROOT = Path(__file__).resolve().parents[1]
THREADS = (1, 2, 3, 5)
UPDATES = 4  # past every target interval; more threads than cores are slow


class Threaded(FusedLearner):
    """Uses as many threads as it is told, on however few cores and for however few rows."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._wanted = wanted = [1]  # no circle of references: a learner goes when its last name does
        self._engine.threads = lambda: wanted[0]

    @property
    def threads(self) -> int:
        return self._wanted[0]

    @threads.setter
    def threads(self, count: int) -> None:
        self._wanted[0] = count


def updated(
    threads: int, updates: int, options: dict[str, Any], sizes: tuple[int, int] = (O, A), dtype: Any = torch.float32
) -> dict[str, Tensor]:
    learner = Threaded(*sizes, make_config(options), seed=3, dtype=dtype)
    learner.threads = threads
    metrics = learner.update(random_replay(max(64, learner.config.batch_size), 0, *sizes), updates)
    return learner.state_dict() | {f"metrics.{k}": torch.tensor(v) for k, v in metrics.to_dict().items()}


# ---- The same bits -------------------------------------------------------------------------------------------------


@every_option
def test_any_number_of_threads_gives_the_same_bits(options: dict[str, Any]) -> None:
    expected = updated(1, UPDATES, options)
    for threads in THREADS:
        assert_states_equal(updated(threads, UPDATES, options), expected)


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((17, 6), {"hidden_sizes": (64, 48), "batch_size": 37}),
        ((17, 6), {"hidden_sizes": (100,), "batch_size": 130, **OPTIONS["v1"]}),  # more rows than a block of panels.h
        ((5, 2), {"hidden_sizes": (33, 65), "batch_size": 3}),  # more threads than rows
        ((1, 1), {"hidden_sizes": (1,), "batch_size": 1}),  # and than panels
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_any_number_of_threads_gives_the_same_bits_at_other_sizes(
    sizes: tuple[int, int], options: dict[str, Any], dtype: torch.dtype
) -> None:
    expected = updated(1, UPDATES, options, sizes, dtype)
    for threads in THREADS:
        assert_states_equal(updated(threads, UPDATES, options, sizes, dtype), expected)


def test_the_number_of_threads_may_change_between_updates() -> None:
    learner, replay = Threaded(O, A, make_config(), seed=3), random_replay()
    for threads in (1, 3, 2, 5, 5, 1, 2, 1):
        learner.threads = threads
        learner.update(replay, 3)
    expected = updated(1, 24, {})
    assert_states_equal(learner.state_dict(), {name: expected[name] for name in learner.state_dict()})


def test_there_are_no_more_threads_than_cores_and_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "usable_cores", lambda: 4)
    learner = FusedLearner(O, A, make_config(batch_size=3))
    for wished, rows, given in ((1, 16, 1), (3, 16, 3), (9, 16, 4), (9, 2, 2), (9, 1, 1)):
        monkeypatch.setattr(torch, "get_num_threads", lambda wished=wished: wished)
        learner = FusedLearner(O, A, make_config(batch_size=rows))
        assert learner._engine.threads() == given
        learner.update(random_replay(), 2)


def test_the_usable_cores_are_those_of_the_process() -> None:
    cores = os.sched_getaffinity(0)
    assert 1 <= engines.usable_cores() <= len(cores)
    os.sched_setaffinity(0, {min(cores)})
    try:
        assert engines.usable_cores() == 1
    finally:
        os.sched_setaffinity(0, cores)


# ---- Beside other Python threads -----------------------------------------------------------------------------------


def test_two_learners_work_at_once() -> None:
    options = {"hidden_sizes": (64, 64), "batch_size": 64}
    expected = updated(1, 60, options)
    results: dict[int, dict[str, Tensor]] = {}
    workers = [
        threading.Thread(target=lambda n=n: results.update({n: updated(n, 60, options)}))  # with 1 and 2 threads
        for n in (1, 2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert_states_equal(results[1], expected)
    assert_states_equal(results[2], expected)


def long_update(learner: FusedLearner, failures: list[Exception] | None = None) -> None:
    """Some hundred milliseconds."""
    try:
        learner.update(random_replay(256, 0), 100)
    except RuntimeError as error:
        assert failures is not None
        failures.append(error)


def large_config() -> Any:
    return make_config(hidden_sizes=(256, 256), batch_size=256)


def test_python_goes_on_while_an_update_works() -> None:
    worker = threading.Thread(target=long_update, args=(Threaded(O, A, large_config()),))
    ticks = 0
    worker.start()
    while worker.is_alive():
        time.sleep(1e-3)
        ticks += 1
    # A lock held throughout would leave some at the start and at the end. Hundreds are seen.
    assert ticks > 20


def test_a_learner_refuses_a_second_thread_and_survives_it() -> None:
    learner = Threaded(O, A, large_config(), seed=3)
    failures: list[Exception] = []
    done = 0
    for _ in range(20):  # until the two have overlapped: at the first time, unless the machine is very busy
        workers = [threading.Thread(target=long_update, args=(learner, failures)) for _ in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        done += 2
        if failures:
            break
    assert [str(failure) for failure in failures] == ["learner: in use by another thread"]
    assert learner.gradient_updates == 100 * (done - 1)
    twin = Threaded(O, A, large_config(), seed=3)
    for each in [twin] * (done - 1):
        long_update(each)
    long_update(learner)
    long_update(twin)
    assert_states_equal(learner.state_dict(), twin.state_dict())


# ---- Forks ---------------------------------------------------------------------------------------------------------


FORKS = """
import multiprocessing, os, sys
import torch
from learner_cases import A, O, make_config, random_replay
from test_fused_threads import Threaded

learner = Threaded(O, A, make_config(), seed=3)
learner.threads = 2
learner.update(random_replay(), 3)

def in_the_child():
    before = learner.state_dict()
    for act in (lambda: learner.update(random_replay(), 1), lambda: learner.load_state_dict(before)):
        try:
            act()
        except RuntimeError as error:
            assert "made before this process was forked" in str(error), error
        else:
            raise AssertionError("no error")
    assert all(torch.equal(value, before[name]) for name, value in learner.state_dict().items())
    fresh = Threaded(O, A, make_config(), seed=4)  # one of its own works
    fresh.threads = 2
    fresh.load_state_dict(before)
    fresh.update(random_replay(), 3)
    assert fresh.gradient_updates == 6

child = multiprocessing.get_context("fork").Process(target=in_the_child)
child.start()
child.join(60)
print("multiprocessing", child.exitcode)

pid = os.fork()
if pid == 0:
    in_the_child()
    sys.exit(7)  # through the whole of Python's own end
print("fork", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

pid = os.fork()
if pid == 0:
    del learner
    sys.exit(8)
print("fork, deleted", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

learner.update(random_replay(), 3)
print("parent", learner.gradient_updates)
"""


def test_a_forked_process_is_refused_and_ends_and_its_parent_goes_on() -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", FORKS]
    process = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert process.stderr == ""
    assert process.stdout.splitlines() == ["multiprocessing 0", "fork 7", "fork, deleted 8", "parent 6"]
    assert process.returncode == 0


# ---- Memory --------------------------------------------------------------------------------------------------------


MALLINFO2 = (
    "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
)  # fmt: skip


class MallInfo(ctypes.Structure):
    """glibc's struct mallinfo2: of its first arena, and of all memory that was mapped for one allocation alone."""

    _fields_: ClassVar = [(name, ctypes.c_size_t) for name in MALLINFO2]


def allocated_bytes() -> int:
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = MallInfo
    info = mallinfo2()
    return int(info.uordblks + info.hblkhd)


def data_kilobytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmData:"))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or later")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("options", [{}, OPTIONS["v1"]], ids=["v2", "v1"])
def test_a_thousand_updates_keep_no_memory(threads: int, options: dict[str, Any]) -> None:
    """What a call draws and returns aside; that an update allocates nothing at all, the native tests count."""
    learner, replay = Threaded(O, A, make_config(options), seed=3), random_replay()
    learner.threads = threads
    for _ in range(3):
        learner.update(replay, 1000)
    before, data_before = allocated_bytes(), data_kilobytes()
    learner.update(replay, 1000)
    # Nothing is smaller than 32 bytes in glibc; Python itself keeps a kilobyte or two.
    assert allocated_bytes() - before < 1000 * 8
    assert data_kilobytes() - data_before < 128


def test_learners_come_and_go_without_a_trace() -> None:
    def one() -> None:
        learner = Threaded(O, A, large_config())
        learner.threads = 3
        learner.update(random_replay(256), 1)

    for _ in range(5):  # glibc's heap finds its size by the first few: what is freed then stays with it
        one()
    before, data_before = thread_ids(), data_kilobytes()
    for _ in range(5):
        one()
    assert not those_that_stay(thread_ids() - before)
    # An engine of this size holds about 10 MB.
    assert data_kilobytes() - data_before < 5_000


def test_a_failed_update_keeps_no_memory() -> None:
    learner = Threaded(O, A, make_config(), seed=3)
    learner.threads = 2
    batch = random_batch(0)
    batch.reward[0] = float("nan")

    def fail(times: int) -> None:
        for _ in range(times):
            with pytest.raises(FloatingPointError):
                learner.update_batch(batch)

    fail(50)
    before = allocated_bytes()
    fail(200)
    assert allocated_bytes() - before < 200 * 16
