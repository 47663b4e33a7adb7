"""Builds the interpreter of PTX with the kernels of csrc/, and runs its cases.

As a program (`make ptx`) it runs all cases, the large ones too. With `--counters` it prints what an update costs, and
with `--record` it writes that to counters.txt, to which a test holds it.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "ptx"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
COMPILER = shutil.which(os.environ.get("CXX", "g++"))
ARCHITECTURES = ("80", "90a")

# -frounding-math: instructions are rounded as they say. No contraction: a multiplication and an addition are two.
INTERPRETER = ("-std=gnu++17", "-O2", "-frounding-math", "-ffp-contract=off")
CASES = ("-std=gnu++17", "-O1", "-pthread", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi", f"-I{CSRC}")
WITH_CSRC = ("op_cases", "update_cases")
WARNINGS = ("-Wall", "-Wextra", "-Werror")


@dataclass(frozen=True)
class Program:
    """The runner, and the PTX of all kernels for each architecture."""

    path: Path
    ptx: dict[str, list[Path]]


def missing() -> str:
    """Say what a machine lacks to build and run this, or nothing."""
    if NVCC is None:
        return "needs nvcc: put it on PATH"
    if COMPILER is None:
        return "needs a C++ compiler: set CXX or install g++"
    return ""


def nvcc_version() -> str:
    text = subprocess.run([str(NVCC), "--version"], capture_output=True, text=True, check=True).stdout
    return text.split("release ")[1].split(",")[0]


def call(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def folder_of(command: Sequence[str], sources: Iterable[Path]) -> tuple[Path, bool]:
    """Return a folder for what this command makes of these sources, and whether it has been made before."""
    key = hashlib.sha256("\0".join(command).encode())
    for source in sorted(sources):
        key.update(source.read_bytes())
    folder = BUILD / key.hexdigest()[:16]
    return folder, (folder / "done").exists()


def headers(*folders: Path) -> list[Path]:
    return [path for folder in folders for path in folder.rglob("*") if path.suffix in (".h", ".cuh")]


def compiled(source: Path, *flags: str, depends_on: Iterable[Path]) -> Path:
    """Compile a file for the host; return the object."""
    command = [str(COMPILER), *flags, *WARNINGS, "-DSACFAST_ISA=baseline", f"-isystem{toolkit_headers()}", "-c"]
    folder, is_done = folder_of([*command, source.name], [source, *depends_on])
    target = folder / f"{source.stem}.o"
    if not is_done:
        folder.mkdir(parents=True, exist_ok=True)
        call([*command, str(source), "-o", str(target)])
        (folder / "done").touch()
    return target


@cache
def toolkit_headers() -> str:
    """Ask nvcc for the folder: the one on PATH may only call another one."""
    command = [str(NVCC), "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    plan = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = re.search(r'INCLUDES="-I(\S+?)"', plan)
    assert found is not None, f"{' '.join(command)} names no folder of headers"
    return found[1]


def kernels(source: Path, csrc: Path) -> Path:
    """Compile a CUDA source, host code and PTX; return the object, beside which the PTX lies."""
    targets = [f"-gencode=arch=compute_{each},code=compute_{each}" for each in ARCHITECTURES]
    command = [str(NVCC), "-std=c++17", "--extended-lambda", "-lineinfo", "-cudart=none", *targets]
    command += ["-Xcompiler=-Wall,-Wextra,-Werror", "--keep"]
    part = csrc / source.relative_to(csrc).parts[0]  # ops or update, which include nothing of each other
    folder, is_done = folder_of([*command, source.name], [source, *headers(csrc / "core", part)])
    target = folder / f"{source.stem}.o"
    if not is_done:
        folder.mkdir(parents=True, exist_ok=True)
        call([*command, "--keep-dir", str(folder), "-c", str(source), "-o", str(target)])
        (folder / "done").touch()
    return target


def objects(pool: ThreadPoolExecutor) -> list[Path]:
    """Compile everything but the CUDA sources."""
    own = [*headers(HERE), ROOT / "tests" / "csrc" / "expect.h"]
    all_headers = [*own, *headers(CSRC)]
    jobs = [
        pool.submit(compiled, source, *CASES, depends_on=all_headers)
        for source in (*(HERE / f"{name}.cpp" for name in WITH_CSRC), CSRC / "update" / "cpu" / "engine.cpp",
                       *sorted((CSRC / "ops").glob("*/*_cpu.cpp")), CSRC / "core" / "thread_team.cpp")
    ]  # fmt: skip
    for source in sorted(HERE.glob("*.cpp")):
        if source.stem not in WITH_CSRC:
            jobs.append(pool.submit(compiled, source, *INTERPRETER, depends_on=own))
    return [job.result() for job in jobs]


def build(csrc: Path = CSRC) -> Program:
    """Build the runner. `csrc`: a changed copy to take the CUDA sources from."""
    sources = [source for part in ("ops", "update") for source in sorted((csrc / part).rglob("*_cuda.cu"))]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [pool.submit(kernels, source, csrc) for source in sources]
        made = objects(pool)
        made += [job.result() for job in jobs]
    compiled_kernels = [job.result() for job in jobs]
    ptx = {each: [path.with_suffix(f".compute_{each}.ptx") for path in compiled_kernels] for each in ARCHITECTURES}
    folder, is_done = folder_of(["link", *map(str, made)], [])
    program = folder / "runner"
    if not is_done:
        folder.mkdir(parents=True, exist_ok=True)
        call([str(COMPILER), "-pthread", *map(str, made), "-o", str(program)])
        (folder / "done").touch()
    return Program(program, ptx)


def run(program: Program, ptx: Iterable[Path], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run groups of cases; return what came of them."""
    command = [str(program.path), *arguments, "--", *map(str, ptx)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def counters(program: Program, architecture: str) -> str:
    """Return the table of what an update costs at 64 x 64 units and 64 rows, exact, TF32 and bfloat16."""
    done = run(program, program.ptx[architecture], "--counters", "tf32", "bfloat16")
    assert done.returncode == 0, done.stdout
    lines = done.stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.endswith("  kernel"))
    last = max(i for i, line in enumerate(lines) if line.startswith("graph: "))
    return "\n".join(line.rstrip() for line in lines[first : last + 1]) + "\n"


def table(program: Program) -> str:
    """Return the counters of all architectures."""
    return "".join(f"nvcc {nvcc_version()}, sm_{each}\n{counters(program, each)}" for each in ARCHITECTURES)


def main() -> int:
    """Run all cases on all architectures, and print what they say."""
    if missing():
        print(missing())
        return 1
    program = build()
    if sys.argv[1:] == ["--record"]:
        (HERE / "counters.txt").write_text(table(program))
        return 0
    if sys.argv[1:] == ["--counters"]:
        print(table(program))
        return 0
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        jobs = [
            pool.submit(run, program, program.ptx[each], "--large", "--counters", "tiny", "ops", "update")
            for each in ARCHITECTURES
        ]
        for job in jobs:
            print(job.result().stdout)
    return max(job.result().returncode for job in jobs)


if __name__ == "__main__":
    sys.exit(main())
