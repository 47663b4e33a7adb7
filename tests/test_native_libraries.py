"""A native library that is missing, stale, built for another torch or another GPU is named in one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sacfast import _ext, cli, engines

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("version", ["2.10.1+cpu", "1.13.1"])
def test_a_torch_that_is_too_old_is_refused(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    message = rf"expected torch 2\.11 or later, got torch {re.escape(version)}: run `pip install 'torch>=2\.11'`$"
    with pytest.raises(ImportError, match=message):
        _ext.load.__wrapped__()


def test_a_torch_without_a_library_of_its_own_has_autograd_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.99.0+cpu")
    assert _ext.autograd_library() is None
    assert _ext.info()["autograd"] == "Python"


def test_a_kind_of_autograd_that_does_not_exist_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SACFAST_AUTOGRAD", "c++")
    with pytest.raises(ImportError, match=r"SACFAST_AUTOGRAD: expected 'python' or nothing, got 'c\+\+'"):
        _ext.load.__wrapped__()


def test_a_torch_for_another_cuda_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(_ext, "FOLDER", tmp_path)
    assert "built without CUDA kernels: where nvcc is installed, build it from source" in _ext.cuda_reason()
    (tmp_path / "_ops_cuda13.so").touch()
    assert _ext.cuda_library() is None  # nothing of another CUDA is loaded
    assert re.fullmatch(
        r"sacfast has kernels for CUDA 13, and torch .* is built for CUDA 12\.8: install a torch for CUDA 13, .*",
        _ext.cuda_reason(),
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert _ext.cuda_library() == tmp_path / "_ops_cuda13.so"


def test_an_nvcc_of_another_cuda_is_refused() -> None:
    beside = Path(sys.executable).with_name("cmake")
    cmake = shutil.which(beside) or shutil.which("cmake")
    assert cmake is not None

    def check(cuda: str, nvcc: str) -> str:
        facts = (f"-DTORCH_CUDA={cuda}", f"-DNVCC_VERSION={nvcc}")
        command = [cmake, *facts, "-P", str(ROOT / "cmake" / "cuda_major.cmake")]
        return subprocess.run(command, capture_output=True, text=True, check=False).stderr

    for cuda, nvcc in (("13.0", "13.0.88"), ("13.2", "13.0.88"), ("", "12.8.61")):  # the last: a CPU build of torch
        assert check(cuda, nvcc) == ""
    message = " ".join(check("12.8", "13.0.88").split())
    assert "nvcc is of CUDA 13.0.88 and the installed torch is built for CUDA 12.8: set CUDA_HOME to a" in message
    assert "set SACFAST_CUDA=0" in message


def test_a_gpu_that_the_kernels_do_not_run_on_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_ext, "FOLDER", tmp_path)
    (tmp_path / "_ops_cuda13.so").touch()
    for name, value in {"is_available": True, "device_count": 2}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5) if index == 1 else (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    for number, reason in ((1, "GPU 1 is older than compute capability 8.0"), (2, "the machine has 2 of them")):
        with pytest.raises(
            ValueError, match=f"^device: expected one that this machine has, got 'cuda:{number}': {reason}"
        ):
            engines.check_device(torch.device("cuda", number), torch.float32)
    engines.check_device(torch.device("cuda", 0), torch.float32)


def test_a_library_that_does_not_load_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_ext, "LIBRARY", tmp_path / "_ops.so")
    (tmp_path / "_ops.so").write_bytes(_ext.LIBRARY.name.encode())
    with pytest.raises(ImportError, match=r"_ops\.so does not load into torch .* damaged: run `pip install"):
        _ext.load.__wrapped__()


def test_a_library_of_other_sources_is_refused() -> None:
    autograd = _ext.autograd_library()
    assert autograd is not None
    with pytest.raises(ImportError, match=r"_autograd_\d+\.so was built from other sources .* run `make setup`"):
        _ext._register_kernels(autograd, "CPU", autograd)  # it has no kernels, as the library of an earlier build may


def test_a_library_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_ext, "LIBRARY", tmp_path / "_ops.so")
    with pytest.raises(ImportError, match=r"_ops\.so is not built; run `pip install"):
        _ext.load.__wrapped__()


NO_MODULE = """
import sys
import sysconfig
sys.modules["sacfast.MODULE"] = None
from sacfast import cli
sys.exit(cli.main("train --env-id Pendulum-v1 --run-dir /nowhere/run".split()))
"""
NO_LEVEL = "import sys; from sacfast import cli; sys.exit(cli.main(['doctor']))"


@pytest.fixture(scope="module", autouse=True)
def programs() -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Tests in a process of their own: they start, which takes seconds, while the other tests run."""
    scripts: dict[str, tuple[str, dict[str, str]]] = {"level": (NO_LEVEL, {"SACFAST_CPU_LEVEL": "sse9"})}
    scripts |= {module: (NO_MODULE.replace("MODULE", module), {}) for module in ("_C", "_collect")}
    started = {
        name: subprocess.Popen(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, (script, environment) in scripts.items()
    }
    yield started
    for process in started.values():
        process.kill()
        process.communicate()


def outcome(program: subprocess.Popen[str]) -> tuple[int, str, str]:
    """The exit code, what was printed, and the errors."""
    output, errors = program.communicate(timeout=120)
    return program.returncode, output, errors


@pytest.mark.parametrize("module", ["_C", "_collect"])
def test_a_native_module_that_is_not_there_is_refused(programs: dict[str, subprocess.Popen[str]], module: str) -> None:
    code, _, errors = outcome(programs[module])
    assert code == cli.FAILED
    assert errors.count("\n") == 1
    assert f"the native module {module} is not built for this Python" in errors
    assert "pip install" in errors


@pytest.mark.parametrize(
    ("missing", "statement"),
    [
        (("_ops", "_C", "_collect"), "from sacfast import ops"),
        (("_ops", "_C", "_collect"), "from sacfast import ReplayBuffer"),
        (("_C",), "import sacfast; sacfast.make_learner(2, 1)"),
    ],
)
def test_sources_that_hide_an_installed_package_are_named(
    tmp_path: Path, missing: tuple[str, ...], statement: str
) -> None:
    """Python that is started in a clone, after `pip install .`, takes the sources there."""
    clone, package = tmp_path / "sacfast", ROOT / "sacfast"
    shutil.copytree(package, clone, ignore=lambda *_: {each.name for each in package.iterdir() if each.suffix == ".so"})
    for library in package.glob("*.so"):
        if library.name.partition(".")[0] not in missing:
            (clone / library.name).symlink_to(library)
    # -S: without the finder of an editable installation, which gives what the sources lack.
    command = [sys.executable, "-S", "-c", statement]
    paths = os.pathsep.join((str(ROOT), sysconfig.get_path("purelib")))
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    said = f"Python has found the sources in {clone} before the package that is installed in {package}: start it in"
    assert said in done.stderr


def test_the_command_refuses_a_cpu_level_in_one_line(programs: dict[str, subprocess.Popen[str]]) -> None:
    allowed = ", ".join(_ext.info()["cpu_levels_available"])
    message = f"SACFAST_CPU_LEVEL: expected one of {allowed} on this processor, got 'sse9'"
    assert outcome(programs["level"]) == (cli.FAILED, "", f"sacfast doctor: sacfast: {message}\n")
