"""What ProperDocs asks for while it builds the site: tables from data, code from its sources, equations as MathML.

A page asks by a comment, which `_INSERTS` lists. Browsers render MathML themselves, so a page needs no script and no
network.
"""

import ast
import html
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]

sys.path.insert(0, str(ROOT))
from docs import tables  # noqa: E402
from sacfast.config import STABLE_BASELINES3  # noqa: E402


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put tables and code where a page asks for them."""
    for pattern, insert in _INSERTS.items():
        markdown = re.sub(f"<!-- {pattern} -->", lambda found, insert=insert: insert(*found.groups()), markdown)
    return markdown


def definitions(path: str, names: str) -> str:
    """Return the source of some top-level classes and functions of a Python file as a block of code."""
    source = (ROOT / path).read_text()
    found = {getattr(node, "name", ""): ast.get_source_segment(source, node) for node in ast.parse(source).body}
    code = "\n\n\n".join(found[name] for name in names.split())
    return f"```python\n{code}\n```"


_INSERTS: dict[str, Callable[..., str]] = {
    r"figures: (\S+)": tables.figures,
    "learning": tables.learning,
    "faults": tables.faults,
    "stable-baselines3": lambda: tables.stable_baselines3(STABLE_BASELINES3),
    r"source: (\S+) (.+?)": definitions,
}


def on_page_content(content: str, **_: Any) -> str:
    """Turn the LaTeX that arithmatex has marked into MathML."""
    pattern = r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>'
    return re.sub(pattern, lambda found: mathml(found[3], block=found[2] == "["), content, flags=re.DOTALL)


def mathml(latex: str, block: bool) -> str:
    """Convert one equation; a displayed one gets a box of its own, see style.css."""
    equation = convert(html.unescape(latex).strip(), display="block" if block else "inline")
    return f'<div class="equation">{equation}</div>' if block else equation
