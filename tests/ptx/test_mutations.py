"""Puts faults into the sources and into the PTX, and holds the checks to finding each.

A fault here is one that a person makes, or a compiler could. Each names a case that must then fail, and what must be
found; `WRONG` where the results alone can tell.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import ptx_build
import pytest

pytestmark = pytest.mark.skipif(bool(ptx_build.missing()), reason=ptx_build.missing())

ARCHITECTURE = "80"
WRONG = "FAILED"

EXACT, TF32, BFLOAT16 = "ExactTile", "PrecisionE1", "PrecisionE2"  # in the names of kernels


class Change(NamedTuple):
    """Text that stands once in a file of csrc/, and what takes its place."""

    before: str
    after: str


FORK = "    machine_.after(Lane::kCritics, Lane::kMain);\n"
JOIN = "    machine_.after(Lane::kMain, Lane::kActor);\n"
GATHER = "    launch(Lane::kMain, body, Gather<T>::blocks("
ASK_CRITICS = "    critics_forward(Lane::kMain, now_ ^ 1, s_.current);\n"

# Of the sources: what is changed in a file, the case that must fail, and what it must say.
SOURCES = {
    "the critics do not wait for their minibatch": (
        "update/gpu/steps.h", [Change(FORK, ""), Change(GATHER, FORK + GATHER)], "small", "race between launches"),
    "the critics' lane is not part of the graph": (
        "update/gpu/steps.h", [Change(FORK, "")], "small", "cudaStreamWaitEvent"),
    "the actor's lane is not joined": (
        "update/gpu/steps.h", [Change(JOIN, "")], "small", "lane not joined"),
    "the critics are asked before the action is there": (
        "update/gpu/steps.h", [Change(JOIN + ASK_CRITICS, ASK_CRITICS + JOIN)], "small", "race between launches"),
    "one row too many is written": (
        "update/gpu/kernels/product.h", [Change("if (row >= item.rows || col", "if (row > item.rows || col")],
        "rows", "outside of memory"),
    "one element too many is read": (
        "update/gpu/kernels/product.h",
        [Change("if (k < end_depth && at < end) {", "if (k <= end_depth && at < end) {")],
        "rows", "outside of memory"),
}  # fmt: skip


def without(pattern: str, number: int = 0) -> Callable[[str], str]:
    """Return a change that takes out the n-th match."""
    return instead(pattern, "", number)


def instead(pattern: str, replacement: str, number: int = 0) -> Callable[[str], str]:
    """Return a change that replaces the n-th match."""

    def change(text: str) -> str:
        matches = list(re.finditer(pattern, text, re.MULTILINE))
        assert len(matches) > number, f"the PTX no longer has {pattern}"
        match = matches[number]
        return text[: match.start()] + match.expand(replacement) + text[match.end() :]

    return change


REGISTER = r"(%\w+)"
TF32_A = rf"(mma\.sync\.aligned\.m16n8k8[^;]*\}}, \{{{REGISTER}, ){REGISTER}, {REGISTER}(, {REGISTER}\}}, \{{)"
BFLOAT16_B = rf"(mma\.sync\.aligned\.m16n8k16[^;]*\}}, \{{){REGISTER}, {REGISTER}(\}}, \{{[^{{}}]*\}};)"
HALF_OF_THE_BLOCK = (
    "{ .reg .pred %half; .reg .b32 %thread; mov.u32 %thread, %tid.x; setp.lt.u32 %half, %thread, 128; "
    "@%half bar.sync 0; }"
)

BARRIER = r"^\s*bar\.sync\s+0;"

# Of the PTX: a kernel, what is changed in it, the case that must fail, and what it must say.
PTX = {
    "a1 and a2 of a tensor core's product are swapped": (
        f"HiddenLayer.*{TF32}", instead(TF32_A, r"\1\4, \3\5"), "tf32", WRONG),
    "the halves of B are swapped": (
        f"HiddenLayer.*{BFLOAT16}", instead(BFLOAT16_B, r"\1\3, \2\4"), "bfloat16", WRONG),
    "no barrier between filling and multiplying": (
        f"HiddenLayerIf.*{EXACT}", without(BARRIER, 1), "small", "race in a block"),
    "no barrier in a sum over the block": (
        "FinishIf", without(BARRIER, 2), "small", "race in a block"),
    "a barrier for half of the block": (
        "3ActIf", instead(BARRIER, HALF_OF_THE_BLOCK), "small", "barrier"),
    "a shuffle's mask names half of the warp": (
        "log_prob_kernelIf", instead(r"(shfl\.sync\.down[^;]*, )%\w+;", r"\g<1>65535;"), "ops-float32", "collective"),
    "shared memory is read before it is written": (
        "log_prob_kernelIf", without(r"^\s*st\.shared\.f32[^;]*;"), "ops-float32", "unwritten memory"),
    "a vector is loaded from an address that is not aligned": (
        f"HiddenLayerIf.*{EXACT}", instead(r"(ld\.shared\.v4\.f32[^;]*\+-?)(\d+)\]", r"\g<1>\g<2>4]"),
        "small", "misaligned"),
    "an atomic is a load and a store": (
        f"DescentIf.*{EXACT}",
        instead(r"atom\.min\.s64\s+(%\w+), \[(%\w+)\], (%\w+);",
                r"ld.u64 \1, [\2]; min.s64 \1, \1, \3; st.u64 [\2], \1;"),
        "fault", "race between blocks"),
    "a result is not written": (
        "13target_kernelIf", without(r"^\s*st\.global\.f32[^;]*;"), "ops-float32", WRONG),
}  # fmt: skip


@pytest.fixture(scope="module")
def program() -> ptx_build.Program:
    return ptx_build.build()


def assert_found(program: ptx_build.Program, ptx: list[Path], case: str, expected: str) -> None:
    done = ptx_build.run(program, ptx, case)
    assert done.returncode != 0, f"nothing was found\n{done.stdout}"
    assert expected in done.stdout, done.stdout


@pytest.mark.parametrize("name", SOURCES)
def test_a_fault_in_the_sources_is_found(name: str, tmp_path: Path) -> None:
    file, changes, case, expected = SOURCES[name]
    csrc = tmp_path / "csrc"
    shutil.copytree(ptx_build.CSRC, csrc)
    text = (csrc / file).read_text()
    for each in changes:
        assert text.count(each.before) == 1, f"{file} no longer says {each.before}"
        text = text.replace(each.before, each.after)
    (csrc / file).write_text(text)
    program = ptx_build.build(csrc)
    assert_found(program, program.ptx[ARCHITECTURE], case, expected)


def changed_kernel(text: str, name: str, change: Callable[[str], str]) -> tuple[str, bool]:
    """Change the body of the first kernel whose name matches."""
    for entry in re.finditer(r"^(?:\.visible )?\.entry (\w+)\(", text, re.MULTILINE):
        if re.search(name, entry[1]):
            end = text.index("\n}\n", entry.start())
            return text[: entry.start()] + change(text[entry.start() : end]) + text[end:], True
    return text, False


@pytest.mark.parametrize("name", PTX)
def test_a_fault_in_the_ptx_is_found(program: ptx_build.Program, name: str, tmp_path: Path) -> None:
    kernel, change, case, expected = PTX[name]
    files, count = [], 0
    for path in program.ptx[ARCHITECTURE]:
        text, is_changed = changed_kernel(path.read_text(), kernel, change)
        count += is_changed
        files.append(path)
        if is_changed:
            files[-1] = tmp_path / path.name
            files[-1].write_text(text)
    assert count == 1, f"{count} kernels match {kernel}"
    assert_found(program, files, case, expected)
