"""Loads the native library and says which backends exist, and why one does not."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any

import torch

from sacfast._install import advice

FOLDER = Path(__file__).parent
LIBRARY = FOLDER / "_ops.so"
"""The ops on the CPU: for every torch from `OLDEST_TORCH` on."""

OLDEST_TORCH = (2, 11)

OLDEST_GPU = (8, 0)
"""Compute capability of the oldest GPU that the kernels are compiled for (CMakeLists.txt)."""


@cache
def load() -> None:
    """Load the ops into torch: those for the CPU, those for CUDA where torch has it, and autograd for this torch.

    Raises:
        ImportError: torch is too old, a library is missing or does not load, or an environment variable has no meaning
            here; the message says what to do.
    """
    if _torch_version() < OLDEST_TORCH:
        raise ImportError(
            f"sacfast: expected torch {_dotted(OLDEST_TORCH)} or later, got torch {torch.__version__}: "
            f"run `pip install 'torch>={_dotted(OLDEST_TORCH)}'`"
        )
    if not LIBRARY.exists():
        raise ImportError(f"sacfast: the native library {LIBRARY.name} is not built; {advice(LIBRARY.stem)}")
    kernels = {"CPU": LIBRARY, "CUDA": cuda_library()}
    autograd = autograd_library()
    for library in (*kernels.values(), autograd):
        if library is not None:
            _load_into_torch(library)
    for device, library in kernels.items():
        if library is not None:
            _register_kernels(library, device, autograd)
    try:
        torch.ops.sacfast.cpu_level()
    except RuntimeError as error:  # SACFAST_CPU_LEVEL
        raise ImportError(f"sacfast: {error}") from error


def _load_into_torch(library: Path) -> None:
    try:
        torch.ops.load_library(str(library))
    except OSError as error:
        raise ImportError(
            f"sacfast: {library.name} does not load into torch {torch.__version__} ({error}); the installation is "
            "damaged: run `pip install --force-reinstall --no-deps sacfast`, or in the source tree "
            "`pip install --no-build-isolation --force-reinstall .`"
        ) from error


def _register_kernels(library: Path, device: str, autograd: Path | None) -> None:
    """Register a library's kernels with torch: by autograd in C++, which calls them faster, and by the stable ABI."""
    if autograd is not None:
        bind = _function(autograd, "sacfast_bind_kernels")
        bind(_function(library, "sacfast_kernel"), _function(library, "sacfast_make_tensors_by"), device.encode())
    _function(library, "sacfast_register_kernels")()


def _function(library: Path, name: str) -> Any:
    """Return a C function of one of the package's libraries."""
    try:
        return getattr(ctypes.CDLL(str(library)), name)
    except AttributeError as error:
        raise ImportError(
            f"sacfast: the native library {library.name} was built from other sources than these (it has no {name}): "
            "run `make setup`, or `pip install --no-build-isolation -e .` in the source tree"
        ) from error


def _torch_version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def cuda_library() -> Path | None:
    """Return the library of CUDA kernels for the CUDA that torch was built with, or None where there is none."""
    if torch.version.cuda is None:
        return None
    library = FOLDER / f"_ops_cuda{torch.version.cuda.partition('.')[0]}.so"
    return library if library.exists() else None


def autograd_library() -> Path | None:
    """Return the library of autograd in C++ for this minor version of torch.

    Without one, or with SACFAST_AUTOGRAD=python, autograd is that of `sacfast.ops._autograd`.

    Raises:
        ImportError: SACFAST_AUTOGRAD has no meaning.
    """
    wish = os.environ.get("SACFAST_AUTOGRAD", "")
    if wish not in ("", "python"):
        raise ImportError(f"sacfast: SACFAST_AUTOGRAD: expected 'python' or nothing, got {wish!r}")
    library = FOLDER / "_autograd_{}{}.so".format(*_torch_version())
    return library if wish == "" and library.exists() else None


def has_autograd(op: str) -> bool:
    """Return whether autograd in C++ serves an op that is also in `sacfast.ops._gradients`."""
    library = autograd_library()
    return library is not None and bool(_function(library, "sacfast_has_autograd")(op.encode()))


def cuda_reason(index: int | None = None) -> str:
    """Say why the CUDA kernels cannot run here, or return "" when they can.

    `index` is that of a GPU; None: the current one.
    """
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a CPU build"
    if cuda_library() is None:
        others = sorted(path.stem.removeprefix("_ops_cuda") for path in FOLDER.glob("_ops_cuda*.so"))
        if others:
            return (
                f"sacfast has kernels for CUDA {' and '.join(others)}, and torch {torch.__version__} is built for CUDA "
                f"{torch.version.cuda}: install a torch for CUDA {others[-1]}, or build sacfast from source"
            )
        return (
            "sacfast was built without CUDA kernels: where nvcc is installed, build it from source "
            "(SACFAST_CUDA=1 pip install --no-build-isolation .)"
        )
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    if index is not None and index >= torch.cuda.device_count():
        return f"the machine has {torch.cuda.device_count()} of them"
    if torch.cuda.get_device_capability(index) < OLDEST_GPU:
        return f"{torch.cuda.get_device_name(index)} is older than compute capability {_dotted(OLDEST_GPU)}"
    return ""


def info() -> dict[str, Any]:
    """Return what the native library is and does here.

    Keys: `library` (file), `autograd` ("C++", or "Python" where no library fits this torch), `cpu_level` (instruction
    set of the kernels in use), `cpu_levels_available`, `cuda_built` (there are CUDA kernels for this torch),
    `cuda_available` (they can run here), `cuda_reason` (why not).
    """
    load()
    reason = cuda_reason()
    return {
        "library": str(LIBRARY),
        "autograd": "Python" if autograd_library() is None else "C++",
        "cpu_level": torch.ops.sacfast.cpu_level(),
        "cpu_levels_available": list(torch.ops.sacfast.available_cpu_levels()),
        "cuda_built": cuda_library() is not None,
        "cuda_available": reason == "",
        "cuda_reason": reason,
    }


load()
