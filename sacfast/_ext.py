"""Loads the native library and says which backends exist, and why one does not."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from sacfast._install import advice

LIBRARY = Path(__file__).with_name("_ops.so")

OLDEST_GPU = (8, 0)
"""Compute capability of the oldest GPU that the kernels are compiled for (CMakeLists.txt)."""


@cache
def load() -> None:
    """Load the ops library into torch.

    Raises:
        ImportError: the library is missing, was built against another torch, or is told to use an instruction set
            that the processor lacks; the message says what to do.
    """
    if not LIBRARY.exists():
        raise ImportError(f"sacfast: the native library {LIBRARY.name} is not built; {advice(LIBRARY.stem)}")
    try:
        torch.ops.load_library(str(LIBRARY))
    except OSError as error:
        raise ImportError(
            f"sacfast: {LIBRARY.name} does not load into torch {torch.__version__} ({error}); it was probably "
            "built against another torch: run `pip install --no-build-isolation --force-reinstall .` again"
        ) from error
    built_against = torch.ops.sacfast.torch_version()
    if built_against != ".".join(torch.__version__.split(".")[:2]):
        raise ImportError(
            f"sacfast: {LIBRARY.name} was built against torch {built_against}, whose binary interface torch "
            f"{torch.__version__} does not keep: run `pip install --no-build-isolation --force-reinstall .` again"
        )
    try:
        torch.ops.sacfast.cpu_level()
    except RuntimeError as error:  # SACFAST_CPU_LEVEL
        raise ImportError(f"sacfast: {error}") from error


def cuda_reason() -> str:
    """Say why the CUDA kernels cannot run here, or return "" when they can."""
    if not torch.ops.sacfast.has_cuda():
        if torch.version.cuda is None:
            return f"torch {torch.__version__} is a CPU build"
        return "sacfast was built without CUDA (no nvcc was found, or SACFAST_CUDA=0)"
    if not torch.cuda.is_available():
        return "no CUDA device is available"
    if torch.cuda.get_device_capability() < OLDEST_GPU:
        return f"{torch.cuda.get_device_name()} is older than compute capability {'.'.join(map(str, OLDEST_GPU))}"
    return ""


def info() -> dict[str, Any]:
    """Return what the native library is and does here.

    Keys: `library` (file), `cpu_level` (instruction set of the kernels in use), `cpu_levels_available`,
    `cuda_built` (CUDA kernels are in the library), `cuda_available` (they can run here), `cuda_reason` (why not).
    """
    load()
    reason = cuda_reason()
    return {
        "library": str(LIBRARY),
        "cpu_level": torch.ops.sacfast.cpu_level(),
        "cpu_levels_available": list(torch.ops.sacfast.available_cpu_levels()),
        "cuda_built": bool(torch.ops.sacfast.has_cuda()),
        "cuda_available": reason == "",
        "cuda_reason": reason,
    }


load()
