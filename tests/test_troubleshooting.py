"""Every message that docs/troubleshooting.md quotes stands in the sources as it stands there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
ENTRIES = re.findall(r"^- (`.*)", PAGE, flags=re.MULTILINE)
QUOTES = [
    quote.replace("\0", "`")
    for entry in ENTRIES
    # A message may itself have code in backticks, which this page's only such one has in brackets.
    for quote in re.findall(r"`([^`]+)`", entry.replace("(`wandb login`)", "(\0wandb login\0)"))
]


def python_messages() -> Iterator[str]:
    """Yield every string of the package but docstrings; "…" stands for what is filled in."""
    for path in (ROOT / "sacfast").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if id(node) in docstrings:
                continue
            if isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield re.sub(r"%[sd]", "…", node.value)  # of a warning


def native_messages() -> Iterator[str]:
    """Yield what each check of the ops says; "…" stands for what is filled in."""
    for path in (ROOT / "csrc" / "ops").rglob("*.[hc]*"):
        for check in re.findall(r"(?:SACFAST_CHECK|refuse)\((.*?)\);", path.read_text(), flags=re.DOTALL):
            code = re.sub(r'"\s*"', "", check)  # C++ joins neighbouring literals
            yield "…".join(["", *re.findall(r'"((?:[^"\\]|\\.)*)"', code), ""])


MESSAGES = [*python_messages(), *native_messages()]


def is_quoted_from(quote: str, message: str) -> bool:
    """Tell whether a message is what is quoted, where "…" of either stands for anything."""
    pattern = ".*".join(map(re.escape, quote.split("…")))
    return re.fullmatch(rf"…*{pattern}…*", message.strip(), flags=re.DOTALL) is not None


def test_there_are_messages() -> None:
    assert len(QUOTES) > 50
    assert len(MESSAGES) > 500


@pytest.mark.parametrize("quote", QUOTES)
def test_message_is_in_the_sources(quote: str) -> None:
    assert any(is_quoted_from(quote, message) for message in MESSAGES)


@pytest.mark.parametrize(
    "wrong", ["device: expected 'cpu', for torch … …; got …", "learner: in use by another process", "…: no such …"]
)
def test_another_message_is_not(wrong: str) -> None:
    assert not any(is_quoted_from(wrong, message) for message in MESSAGES)
