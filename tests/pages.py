"""README and the pages of docs/: their blocks of code, their links, and small versions of what they run."""

import re
import shlex
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text()
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}


def blocks(page: str, language: str) -> list[str]:
    """Return a page's blocks of a language, but for those that are a whole file, which has tests of its own."""
    found = re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)
    return [block for block in found if not block.startswith("--8<--")]


SMALLER = {
    r"\b(?:\d+0|5)_000\b|\b1_000_000\b": "300",  # transitions
    r"\b1_000\b(?=:)": "256",  # transitions before the first update
    r"episodes=\d+": "episodes=2",
    r"range\(100\)": "range(2)",
    r"gradient_steps=100\b": "gradient_steps=2",
}
"""What makes a block quick. No test of how well something is learned is among the blocks."""


def smaller(code: str) -> str:
    """Return a block with a few transitions, updates and episodes where it has thousands."""
    for pattern, replacement in SMALLER.items():
        code = re.sub(pattern, replacement, code)
    return code


def run(page: str, **names: Any) -> dict[str, Any]:
    """Run a page's Python from top to bottom, as a reader would, on `names`; return all names that it leaves."""
    for number, block in enumerate(blocks(page, "python")):
        exec(compile(smaller(block), f"{page}, block {number}", "exec"), names)
    return names


def commands(page: str) -> list[list[str]]:
    """Return the words of each command of a page's blocks for a shell."""
    lines = "".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]
