"""Runs the PTX that nvcc makes of every kernel, without a GPU, and holds the checks to faults that are put in."""

from __future__ import annotations

import ptx_build
import pytest
from ptx_build import ARCHITECTURES, Program

pytestmark = pytest.mark.skipif(bool(ptx_build.missing()), reason=ptx_build.missing())


@pytest.fixture(scope="module")
def program() -> Program:
    return ptx_build.build()


@pytest.mark.parametrize("group", ["ops", "update"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compute_what_the_cpu_computes_and_no_check_finds_a_fault(
    program: Program, architecture: str, group: str
) -> None:
    done = ptx_build.run(program, program.ptx[architecture], group)
    print(done.stdout)  # cases, instructions, launches and findings: pytest -s shows them
    assert done.returncode == 0, done.stdout + done.stderr
    assert " 0 findings" in done.stdout
