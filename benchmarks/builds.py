"""Builds a commit and the working tree beside each other, to compare them: `golden` and `speed_gate`.

Both are copies under build/compare/, built by the same command with the torch of this Python, without CUDA. Libraries
are kept by what they are made of: the tree hash of csrc/, CMakeLists.txt, compiler, torch and Python.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from sacfast.benchmark.report import tree_hash

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "compare"
SOURCES = ("csrc", "sacfast", "tests", "CMakeLists.txt")
TARGETS = ("_ops", "_autograd", "_C", "_collect")


class Build(NamedTuple):
    """Python sources with their libraries, ready to import."""

    name: str
    root: Path
    """To be put on PYTHONPATH."""
    libraries: Path
    """Where what is compiled from the same native sources is kept."""

    def environment(self) -> dict[str, str]:
        """Return the environment of a process that imports this build and no other."""
        return {**os.environ, "PYTHONPATH": str(self.root)}


def build_commit(commit: str) -> Build:
    """Build a commit; ValueError where there is none of that name."""
    try:
        number = _git("rev-parse", "--verify", "--end-of-options", f"{commit}^{{commit}}").decode().strip()
    except subprocess.CalledProcessError:
        raise ValueError(f"base: expected a commit of this repository, got {commit!r}") from None
    root = FOLDER / f"commit-{number[:12]}"
    if not root.exists():
        partial = root.with_name(f"{root.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(fileobj=io.BytesIO(_git("archive", number, *SOURCES))) as archive:
            archive.extractall(partial, filter="data")
        partial.rename(root)
    return _with_libraries(number[:12], root)


def build_working_tree() -> Build:
    """Build the sources as they lie, without a change to the libraries beside them."""
    root = FOLDER / "working"
    listed = _git("ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *SOURCES).decode().split("\0")
    wanted = {name for name in listed if name and (ROOT / name).is_file()}
    for path in [each for each in root.rglob("*") if each.is_file()]:
        if str(path.relative_to(root)) not in wanted:
            path.unlink()
    for name in wanted:
        # Only what has changed, so that CMake compiles only that.
        target, content = root / name, (ROOT / name).read_bytes()
        if not target.exists() or target.read_bytes() != content:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    return _with_libraries("working tree", root)


def _with_libraries(name: str, root: Path) -> Build:
    libraries = FOLDER / f"native-{_native_key(root)}"
    if not libraries.exists():
        print(f"building {name}", file=sys.stderr, flush=True)
        _compile(root, libraries)
    for library in libraries.glob("*.so"):
        shutil.copy2(library, root / "sacfast")
    return Build(name, root, libraries)


def _native_key(root: Path) -> str:
    compiler = subprocess.run([_compiler(), "--version"], capture_output=True, check=True).stdout
    parts = (
        _content_hash(root / "csrc"),
        (root / "CMakeLists.txt").read_bytes(),
        compiler,
        f"{torch.__version__} {sys.version} {os.environ.get('CXXFLAGS')}".encode(),
    )
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def _content_hash(folder: Path) -> bytes:
    for path in [each for each in folder.rglob("*") if each.is_dir()]:
        if not any(path.iterdir()):
            path.rmdir()  # git knows no empty folders
    return tree_hash(folder)


def _compiler() -> str:
    return os.environ.get("CXX", "c++")


def _compile(root: Path, libraries: Path) -> None:
    """Compile in a folder that a later build of the same sources takes up; place the libraries when all are there."""
    tools = Path(sys.executable).parent
    cmake, ninja = (str(tools / tool) if (tools / tool).exists() else tool for tool in ("cmake", "ninja"))
    build, output = FOLDER / f"{root.name}-build", libraries.with_name(f"{libraries.name}.partial")
    shutil.rmtree(output, ignore_errors=True)
    _run([
        cmake, "-S", str(root), "-B", str(build), "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}", "-DSACFAST_CUDA=OFF",
        f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={FOLDER / f'{root.name}-output'}",
    ])  # fmt: skip
    _run([cmake, "--build", str(build), "--target", *TARGETS])
    shutil.copytree(FOLDER / f"{root.name}-output", output)
    output.rename(libraries)


def _run(command: Sequence[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}: failed\n{(result.stdout + result.stderr)[-4000:]}")


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=True).stdout


def host_kernels(build: Build) -> Path:
    """Return the program that runs the GPU's kernels on the host and prints hashes of their updates.

    It is the build's own tests/csrc/kernel_hashes.cpp; where there is none yet, the one of these sources.
    """
    folder = build.root / "tests" / "csrc"
    if not (folder / "kernel_hashes.cpp").exists():
        shutil.copytree(ROOT / "tests" / "csrc", folder, dirs_exist_ok=True)
    program = build.libraries / f"kernels-{_content_hash(folder).hex()[:16]}" / "kernel_hashes_baseline"
    if not program.exists():
        print(f"building the GPU's kernels of {build.name} for the host", file=sys.stderr, flush=True)
        program.parent.mkdir(exist_ok=True)
        code = (
            "import sys, pathlib, native; native.SOURCES['kernel_hashes'] = ();"
            "native.build('kernel_hashes', 'baseline', pathlib.Path(sys.argv[1]), '-O2')"
        )
        tests = build.environment() | {"PYTHONPATH": f"{build.root}{os.pathsep}{build.root / 'tests'}"}
        command = [sys.executable, "-P", "-c", code, str(program.parent)]
        result = subprocess.run(command, env=tests, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{folder / 'kernel_hashes.cpp'}: does not compile\n{result.stderr[-4000:]}")
    return program
