"""Golden hashes: whether two builds make the same updates, to the last bit.

    python -m benchmarks.golden --base COMMIT      # `make golden BASE=COMMIT`: compares; exit code 1 where they differ
    python -m benchmarks.golden --output FILE      # the hashes of the sources as they lie

It hashes everything that a learner holds and its metrics after its updates, actions, rows of the replay buffer and the
values of ops (`golden_cases`), for every instruction set that this processor has, and the updates of the GPU's kernels
run on the host (tests/csrc/kernel_hashes.cpp). Each build is imported from its own checkout; the table of cases is that
of these sources. Another compiler or torch changes bits too: compare two builds on one machine, and commit no hashes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.builds import Build, build_commit, build_working_tree, host_kernels

Results = dict[str, dict[str, Any]]
"""For each case {"hashes": {tensor: hash}}, or {"cannot": why} or {"skipped": why}."""

CASES = Path(__file__).with_name("golden_cases.py")
LEVELS = "from sacfast import _ext; import json; print(json.dumps(_ext.info()['cpu_levels_available']))"


def hash_build(build: Build) -> Results:
    """Run all cases of a build, one process for each instruction set.

    Raises:
        RuntimeError: a process failed.
    """
    results: Results = {}
    for level in json.loads(_run(build, [sys.executable, "-P", "-c", LEVELS])):
        found = json.loads(_run(build, [sys.executable, "-P", str(CASES)], SACFAST_CPU_LEVEL=level))
        results |= {f"{level}/{name}": result for name, result in found.items()}
    for line in _run(build, [str(host_kernels(build))]).splitlines():
        case, tensor, value = line.split("\t")
        results.setdefault(f"kernels on the host/{case}", {"hashes": {}})["hashes"][tensor] = value
    return results


def _run(build: Build, command: list[str], **more: str) -> str:
    environment = build.environment()
    environment.pop("SACFAST_CPU_LEVEL", None)
    result = subprocess.run(command, env=environment | more, capture_output=True, text=True, check=False)
    if result.returncode:
        output = (result.stdout + result.stderr)[-2000:]
        raise RuntimeError(f"{build.name}: {' '.join(command)} ended with {result.returncode}\n{output}")
    return result.stdout


class Comparison(NamedTuple):
    """Names of cases."""

    equal: list[str]
    different: dict[str, str]
    """What differs, or which build could not run the case."""
    new: dict[str, str]
    """What the base cannot run, and why."""
    skipped: dict[str, str]

    @property
    def is_equal(self) -> bool:
        """Whether some cases were compared, and none differs."""
        return bool(self.equal) and not self.different


def compare(base: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> Comparison:
    """Compare case by case. One that only the base can run is a difference: something has been lost."""
    found = Comparison([], {}, {}, {})
    for name in dict.fromkeys((*base, *new)):
        before, after = base.get(name, {"cannot": "has no such case"}), new.get(name, {"cannot": "has no such case"})
        if "skipped" in before and "skipped" in after:
            found.skipped[name] = after["skipped"]
        elif "hashes" not in after:
            found.different[name] = f"the new build: {after.get('cannot') or after.get('skipped')}"
        elif "hashes" not in before:
            found.new[name] = str(before.get("cannot") or before.get("skipped"))
        elif tensors := _different_tensors(before["hashes"], after["hashes"]):
            found.different[name] = f"{len(tensors)} of {len(after['hashes'])}: {', '.join(tensors)}"
        else:
            found.equal.append(name)
    return found


def _different_tensors(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    names = dict.fromkeys((*before, *after))
    return [name for name in names if before.get(name) is None or before.get(name) != after.get(name)]


def report(found: Comparison, base: str) -> str:
    """Return what is to be said of a comparison with the build of that name."""
    lines = [f"DIFFERS  {name}: {what}" for name, what in found.different.items()]
    lines += [f"skipped  {name}: {why}" for name, why in found.skipped.items()]
    lines += [f"new      {name}: {base} says {why}" for name, why in found.new.items()]
    counts = f"{len(found.equal)} equal, {len(found.different)} different, {len(found.new)} new"
    verdict = "equal to" if found.is_equal else "NOT equal to"
    if not found.equal and not found.different:
        verdict = "NOT compared with"
    return "\n".join([*lines, f"{verdict} {base}: {counts}, {len(found.skipped)} skipped"])


def main() -> int:
    """Return 1 where the builds differ or none could be made, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.golden", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--base", metavar="COMMIT", help="compare with the build of this commit")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the hashes of these sources, as JSON")
    options = parser.parse_args()
    if options.base is None and options.output is None:
        parser.error("expected --base, --output or both")
    try:
        base = None if options.base is None else build_commit(options.base)
        new = hash_build(build_working_tree())
        if options.output is not None:
            options.output.write_text(json.dumps(new, indent=1) + "\n")
        if base is None:
            return 0
        found = compare(hash_build(base), new)
    except (RuntimeError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(report(found, base.name))
    return 0 if found.is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
