"""Runs the PTX that nvcc makes of every kernel, without a GPU, and holds the checks to faults that are put in."""

from __future__ import annotations

import re
from pathlib import Path

import ptx_build
import pytest
from ptx_build import ARCHITECTURES, Program

pytestmark = pytest.mark.skipif(bool(ptx_build.missing()), reason=ptx_build.missing())


@pytest.fixture(scope="module")
def program() -> Program:
    return ptx_build.build()


def test_the_checks_find_what_they_are_for_and_nothing_else(program: Program) -> None:
    done = ptx_build.run(program, [], "tiny")
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("group", ["ops", "update"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compute_what_the_cpu_computes_and_no_check_finds_a_fault(
    program: Program, architecture: str, group: str
) -> None:
    of_update = [path for path in program.ptx[architecture] if path.name.startswith("engine_cuda")]
    of_ops = [path for path in program.ptx[architecture] if path not in of_update]
    done = ptx_build.run(program, of_update if group == "update" else of_ops, group)
    print(done.stdout)  # cases, instructions, launches and findings: pytest -s shows them
    assert done.returncode == 0, done.stdout + done.stderr
    assert ", 0 findings," in done.stdout
    assert "never launched" not in done.stdout
    instructions = re.search(r": (\d+) instructions, (\d+) launches", done.stdout)
    assert instructions is not None
    assert int(instructions[1]) > 100 * int(instructions[2]) > 0


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_an_update_costs_has_not_changed(program: Program, architecture: str) -> None:
    """Instructions, wavefronts, sectors, nodes: `python tests/ptx/ptx_build.py --record` where a change is meant.

    Another version of nvcc makes other instructions, so only the form of the graphs is compared with it.
    """
    found = ptx_build.counters(program, architecture)
    print(found)
    recorded = (Path(__file__).parent / "counters.txt").read_text()
    version, *_ = re.findall(r"nvcc (\S+),", recorded)
    _, _, rest = recorded.partition(f"sm_{architecture}\n")
    expected, _, _ = rest.partition("nvcc ")
    if version == ptx_build.nvcc_version():
        assert found.splitlines() == expected.splitlines()
    else:
        graphs = [[line for line in text.splitlines() if line.startswith("graph: ")] for text in (found, expected)]
        assert graphs[0] == graphs[1]
