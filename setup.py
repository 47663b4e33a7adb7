"""A thin driver: CMake owns the native sources and flags (CMakeLists.txt), this hands them to pip.

SACFAST_CUDA=0 or 1 overrides the choice of CUDA kernels; SACFAST_TORCH_INCLUDES="2.12=FOLDER;2.13=FOLDER" adds minor
versions of torch to build autograd for, each with its torch/include; SACFAST_CMAKE_ARGS adds arguments for CMake.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent.resolve()
# CMake's targets for each extension. Those beside _ops are libraries whose names depend on torch's versions.
TARGETS = {"_ops": ("_ops", "_ops_cuda", "_autograd"), "_C": ("_C",), "_collect": ("_collect",)}
BESIDE_OPS = ("_ops_cuda*.so", "_autograd_*.so")


class CMakeBuild(build_ext):
    """Builds the native libraries, by one CMake build, and puts them beside the Python files that load them."""

    def build_extension(self, ext: Extension) -> None:
        """Configure, compile and place libraries; what the calls before have built is not built again."""
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"native-{sys.implementation.cache_tag}"
        arguments = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={output.parent}",
        ]
        cuda = os.environ.get("SACFAST_CUDA", "")
        if cuda not in ("", "0", "1"):
            raise SystemExit(f"SACFAST_CUDA: expected 0 or 1, got {cuda!r}")
        arguments.append(f"-DSACFAST_CUDA={({'': 'AUTO', '0': 'OFF', '1': 'ON'})[cuda]}")
        arguments.append(f"-DSACFAST_TORCH_INCLUDES={os.environ.get('SACFAST_TORCH_INCLUDES', '')}")
        arguments += shlex.split(os.environ.get("SACFAST_CMAKE_ARGS", ""))
        cmake = _cmake()
        subprocess.run([cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *arguments], check=True)
        subprocess.run([cmake, "--build", build, "--target", *TARGETS[ext.name.rpartition(".")[2]]], check=True)

    def copy_extensions_to_source(self) -> None:
        """Place the libraries beside _ops as well, for an editable installation; those of an earlier build go."""
        super().copy_extensions_to_source()
        for pattern in BESIDE_OPS:
            for library in (ROOT / "sacfast").glob(pattern):
                library.unlink()
            for library in (Path(self.build_lib) / "sacfast").glob(pattern):
                shutil.copy2(library, ROOT / "sacfast")

    def get_ext_filename(self, fullname: str) -> str:
        """Name the ops library without Python's ABI tag: it holds torch ops only and loads on any Python."""
        if fullname.endswith("_ops"):
            return str(Path(*fullname.split("."))) + ".so"
        return str(super().get_ext_filename(fullname))


def _cmake() -> str:
    """Return the cmake program that pip installed beside this Python, or the one on PATH."""
    beside = Path(sys.executable).with_name("cmake")
    return str(beside) if beside.exists() else "cmake"


setup(
    packages=find_packages(include=["sacfast", "sacfast.*"]),
    package_data={"sacfast": ["py.typed", "*.pyi"]},
    ext_modules=[Extension(f"sacfast.{name}", sources=[]) for name in ("_ops", "_C", "_collect")],
    cmdclass={"build_ext": CMakeBuild},
)
