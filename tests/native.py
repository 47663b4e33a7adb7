"""Builds and runs the native tests in tests/csrc/, which need no torch, with the flags of CMakeLists.txt.

As a program (`make sanitize`) it runs them all under sanitizers.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sacfast import _ext

ROOT = Path(__file__).resolve().parents[1]
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
ENGINE = ("csrc/update/cpu/engine.cpp", "csrc/core/thread_team.cpp", "csrc/core/cpu_level.cpp")
CUDA_RUNTIME = tuple(f"tests/csrc/cuda_runtime/{name}.cpp" for name in ("operations", "streams", "graphs"))
# What each test is compiled with, beside its own file in tests/csrc/.
SOURCES = {
    "test_core": (),
    "test_panels": (),
    "test_ops": tuple(f"csrc/ops/{op}/{op}_cpu.cpp" for op in ("categorical", "moments", "quantile")),
    "test_update": ENGINE,
    "test_kernels": ENGINE,
    "test_cuda_runtime": CUDA_RUNTIME,
    "test_cuda_engine": CUDA_RUNTIME,
    "kernel_hashes": (),  # no test: benchmarks/golden.py
}


def cuda_headers() -> Path | None:
    """Return the folder of the CUDA toolkit's headers, or None; the tests on its stand-in need no more of it."""
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1], "/usr/local/cuda"]
    folders = (Path(home) / "include" for home in homes if home)
    return next((folder for folder in folders if (folder / "cuda_runtime_api.h").exists()), None)


def cmake_flags(variable: str) -> list[str]:
    """Return the compiler flags that CMakeLists.txt sets, so that the tests see the code that ships."""
    match = re.search(rf"^\s*set\({variable} ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    assert match is not None, f"CMakeLists.txt no longer sets {variable}"
    return [flag for flag in match[1].replace('"', "").split() if not flag.startswith("${")]


def levels() -> list[str]:
    """Return the instruction sets that the library is compiled for on this kind of processor."""
    return ["baseline", "avx2", "avx512"] if on_x86() else ["baseline"]


def on_x86() -> bool:
    return os.uname().machine in ("x86_64", "amd64")


def build(test: str, level: str, folder: Path, *options: str) -> Path:
    """Compile a test for an instruction set; return the program."""
    program = folder / f"{test}_{level}"
    sources = [ROOT / "tests" / "csrc" / f"{test}.cpp", *(ROOT / name for name in SOURCES[test])]
    headers = ["-isystem", str(cuda_headers())] if SOURCES[test] == CUDA_RUNTIME else []
    command = [
        str(COMPILER), "-std=gnu++17", "-pthread", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}", *headers,
        f"-DSACFAST_ISA={level}", *(["-DSACFAST_X86_LEVELS"] if on_x86() else []),
        *cmake_flags("kernel_flags"), *cmake_flags(f"flags_{level}"), *options, *map(str, sources), "-o", str(program),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"
    return program


def run(program: Path, *arguments: str) -> str:
    """Run a test; return what it says."""
    sanitizers = dict.fromkeys(("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS"), "halt_on_error=1")
    result = subprocess.run(
        [str(program), *arguments], env={**os.environ, **sanitizers}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, f"{program.name} ended with {result.returncode}\n{result.stdout}{result.stderr}"
    return result.stdout


# Checks survive at -O1. The engine compiles in half the time at -O0, where the other sanitizer is slow to run. Static:
# no preloaded library is in the way.
ADDRESS = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-static-libasan")
ADDRESS_OF_ENGINE = ("-O0", *ADDRESS[1:])
THREAD = ("-Og", "-g", "-fsanitize=thread")
THIN = {"test_core": ("50",)}  # so many times fewer points: the dense ranges stay quick


def sanitized(case: tuple[str, str, str, tuple[str, ...]]) -> tuple[bool, str]:
    """Build and run one case; return whether it was clean, and a line that says so, or what was found."""
    test, level, sanitizer, options = case
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            run(build(test, level, Path(folder), *options), *THIN.get(test, ()))
            clean, found = True, "clean"
        except AssertionError as error:
            clean, found = False, f"FAILED\n{error}"
    return clean, f"{test}, {level}, {sanitizer}: {found} ({time.monotonic() - start:.0f} s)"


def main() -> int:
    """Run every test under the sanitizers, at the best instruction set and at the baseline."""
    chosen = dict.fromkeys((_ext.info()["cpu_level"], "baseline"))
    engine = (("address", ADDRESS_OF_ENGINE), ("thread", THREAD))
    cases = [("test_update", level, *each) for level in chosen for each in engine]
    cases += [("test_kernels", "baseline", "address", ADDRESS_OF_ENGINE)]
    cases += [
        (test, level, "address", ADDRESS) for test in ("test_core", "test_panels", "test_ops") for level in chosen
    ]
    if cuda_headers() is not None:
        cases += [
            (test, "baseline", "address", ADDRESS_OF_ENGINE) for test in ("test_cuda_runtime", "test_cuda_engine")
        ]
    clean = True
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # the longest first
        for case_is_clean, line in pool.map(sanitized, cases):
            clean &= case_is_clean
            print(line, flush=True)
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())
