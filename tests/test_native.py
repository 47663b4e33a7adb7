"""Compiles the tests in tests/csrc/ for every instruction set, and runs those that this processor can."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from native import ADDRESS, COMPILER, ROOT, THIN, build, cmake_flags, cuda_headers, levels, run

from sacfast import _ext

pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C++ compiler: set CXX or install g++")


@pytest.mark.parametrize(
    ("test", "options"),
    [("test_core", cmake_flags("CMAKE_CXX_FLAGS_RELEASE")), ("test_panels", ["-O2"])],  # -O2: quick to compile
    ids=["test_core", "test_panels"],
)
@pytest.mark.parametrize("level", levels())
def test_functions_noise_and_products(test: str, options: list[str], level: str, tmp_path: Path) -> None:
    program = build(test, level, tmp_path, *options)
    available = _ext.info()["cpu_levels_available"]
    if level not in available:
        pytest.skip(f"compiled; this processor runs {', '.join(available)} only")
    print(run(program))  # the table of errors: pytest -s shows it


def test_threads_and_engine(tmp_path: Path) -> None:
    """At one level: test_fused.py has the others. -Og compiles in a quarter of the time."""
    run(build("test_update", _ext.info()["cpu_level"], tmp_path, "-Og"))


def test_the_gpu_s_kernels_on_the_host(tmp_path: Path) -> None:
    """They make the updates of the CPU engine. Scalar code: one level says it all."""
    run(build("test_kernels", "baseline", tmp_path, "-O1"))


@pytest.mark.skipif(cuda_headers() is None, reason="needs the headers of a CUDA toolkit: install nvcc or set CUDA_HOME")
@pytest.mark.parametrize("test", ["test_cuda_runtime", "test_cuda_engine"])
def test_the_gpu_s_engine_on_a_stand_in_for_the_cuda_runtime(test: str, tmp_path: Path) -> None:
    """Streams, graphs, memory and calls that a GPU refuses: what no test of the kernels can see."""
    run(build(test, "baseline", tmp_path, "-O1"))


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc")
def test_a_warp_multiplies_together(tmp_path: Path) -> None:
    """A multiplication on tensor cores is one instruction of all 32 threads: no branch may part them before it."""
    ptx = tmp_path / "tile_product.ptx"
    source = ROOT / "tests" / "csrc" / "tile_product.cu"
    flags = ("-std=c++17", "-DSACFAST_ISA=portable", f"-I{ROOT / 'csrc'}", "-arch=compute_80", "-ptx")
    subprocess.run(["nvcc", *flags, source, "-o", ptx], check=True)
    kernels = ptx.read_text().split(".entry")[1:]
    # 64 deep: by 8 in TF32, by 16 in bfloat16.
    assert sorted(kernel.count("mma.sync") for kernel in kernels) == [4, 8]
    for kernel in kernels:
        assert re.search(r"\bbra\b", kernel) is None


def test_the_gpu_s_kernels_of_the_ops_on_the_host(tmp_path: Path) -> None:
    """They return what the CPU's kernels return, in float64, which is scalar at every level."""
    run(build("test_ops", "baseline", tmp_path, "-O1"))


def test_sanitizers_find_nothing_in_the_core(tmp_path: Path) -> None:
    """The others take minutes to compile for sanitizers: `make sanitize` runs them all."""
    run(build("test_core", _ext.info()["cpu_level"], tmp_path, *ADDRESS), *THIN["test_core"])


def test_flags_are_read_from_cmake() -> None:
    assert "-ffp-contract=fast" in cmake_flags("kernel_flags")
    assert cmake_flags("flags_avx2") == ["-mavx2", "-mfma", "-mprfchw"]
    assert cmake_flags("flags_baseline") == []
