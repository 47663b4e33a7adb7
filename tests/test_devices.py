"""A GPU named without its index is resolved once, where the name comes in."""

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from learner_cases import A, O, make_config

from sacfast import _C, ReplayBuffer, _ext, memory
from sacfast.devices import with_index
from sacfast.fused import FusedLearner
from sacfast.reference import ReferenceLearner
from sacfast.trainer import resolve_device


@pytest.fixture
def third(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """A machine of four GPUs, as far as it is asked, of which this one is current."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 2)
    return torch.device("cuda", 2)


def test_a_gpu_without_an_index_is_the_current_one(third: torch.device) -> None:
    for name in ("cuda", torch.device("cuda"), "cuda:2", third):
        assert with_index(name) == third
    assert with_index("cuda:1") == torch.device("cuda", 1)
    assert with_index("cpu") == torch.device("cpu")
    assert with_index("meta") == torch.device("meta")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_without_a_gpu_a_name_stays_as_it_is() -> None:
    assert with_index("cuda") == torch.device("cuda")


@pytest.mark.parametrize("name", ["auto", "cuda", "cuda:2"])
def test_the_device_of_a_run_has_an_index(name: str, third: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ext, "cuda_reason", lambda: "")
    assert resolve_device(name) == third


def test_a_gpu_that_the_kernels_cannot_use_is_passed_over_and_said_once(
    third: torch.device, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    reason = "sacfast has kernels for CUDA 13, and torch is built for CUDA 12.8"
    monkeypatch.setattr(_ext, "cuda_reason", lambda: reason)
    assert resolve_device("auto") == resolve_device("auto") == torch.device("cpu")
    assert [record.getMessage() for record in caplog.records] == [f"device: 'auto' is the CPU: {reason}"]
    assert resolve_device("cuda") == third


@pytest.mark.parametrize(
    "build",
    [
        lambda: ReplayBuffer(8, O, A, device="cuda"),
        lambda: ReferenceLearner(O, A, make_config(), device="cuda"),
        lambda: FusedLearner(O, A, make_config(), device="cuda"),
    ],
    ids=["replay", "reference", "fused"],
)
def test_every_part_resolves_its_device(
    build: Callable[[], object], third: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each asks whether it fits on its device before anything is put there."""
    monkeypatch.setattr("sacfast.fused.check_device", lambda *_: None)
    monkeypatch.setattr(_C, "GpuEngine32", SimpleNamespace(bytes=lambda *_: 1), raising=False)
    monkeypatch.setattr(memory, "free_memory", lambda _: 0)
    with pytest.raises(ValueError, match=r"need .* GB, but cuda:2 has 0.00 GB free"):
        build()
