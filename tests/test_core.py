"""Compiles tests/csrc/test_core.cpp, which needs no torch, for every instruction set and runs what it can."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sacfast import _ext

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "tests" / "csrc" / "test_core.cpp"
COMPILER = shutil.which(os.environ.get("CXX", "g++"))

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler: set CXX or install g++")


def cmake_flags(variable: str) -> list[str]:
    """Return the compiler flags that CMakeLists.txt sets, so that the tests see the code that ships."""
    match = re.search(rf"^\s*set\({variable} ([^)]*)\)", (ROOT / "CMakeLists.txt").read_text(), re.MULTILINE)
    assert match is not None, f"CMakeLists.txt no longer sets {variable}"
    return [flag for flag in match[1].replace('"', "").split() if not flag.startswith("${")]


def levels() -> list[str]:
    """Return the instruction sets that the library is compiled for on this kind of processor."""
    x86 = os.uname().machine in ("x86_64", "amd64")
    return ["baseline", "avx2", "avx512"] if x86 else ["baseline"]


def build(program: Path, level: str, *options: str) -> Path:
    command = [
        str(COMPILER), "-std=gnu++17", "-Wall", "-Wextra", "-Werror", f"-I{ROOT / 'csrc'}",
        f"-DSACFAST_ISA={level}", *cmake_flags("kernel_flags"), *cmake_flags(f"flags_{level}"), *options,
        str(SOURCE), "-o", str(program),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"
    return program


def run(program: Path, *arguments: str) -> None:
    result = subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False)
    print(result.stdout)  # the table of errors: pytest -s shows it
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("level", levels())
def test_functions_and_noise(level, tmp_path):
    program = build(tmp_path / level, level, *cmake_flags("CMAKE_CXX_FLAGS_RELEASE"))
    available = _ext.info()["cpu_levels_available"]
    if level not in available:
        pytest.skip(f"compiled; this processor runs {', '.join(available)} only")
    run(program)


def test_sanitizers_find_nothing(tmp_path):
    # -O1: checks survive, and the dense ranges, thinned out, stay quick. Static: no preloaded library is in the way.
    options = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-static-libasan")
    level = _ext.info()["cpu_level"]
    run(build(tmp_path / "sanitized", level, *options), "50")


def test_flags_are_read_from_cmake():
    assert "-ffp-contract=fast" in cmake_flags("kernel_flags")
    assert cmake_flags("flags_avx2") == ["-mavx2", "-mfma"]
    assert cmake_flags("flags_baseline") == []
