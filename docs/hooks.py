"""What mkdocs asks for while it builds the site: figures from their JSON, and equations as MathML.

A page names a file of benchmarks/results as `<!-- figures: FILE -->`, or all learning runs as `<!-- learning -->`.
Browsers render MathML themselves, so a page needs no script and no network.
"""

import html
import json
import re
import sys
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"

sys.path.insert(0, str(ROOT))  # the tables are those that `sacfast benchmark` prints
from sacfast.benchmark import report  # noqa: E402

TABLES = {
    "ops": lambda rows: report.ops_table(rows),
    "update": lambda rows: "\n\n".join(map(update_table, rows)),
    "collect": lambda rows: "\n\n".join(map(report.collect_table, rows)),
    "train": lambda rows: "\n\n".join(map(report.train_table, rows)),
    "autograd": lambda rows: report.autograd_table(rows),
    "install": lambda rows: report.install_table(rows),
}


def update_table(row: dict[str, Any]) -> str:
    """Return a row of `sacfast benchmark update`: of contenders, or of phases."""
    return report.profile_table(row) if "phases" in row else report.update_table(row)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put figures where a page asks for them."""
    markdown = re.sub(r"<!-- figures: (\S+) -->", lambda found: figures(RESULTS / found[1]), markdown)
    return re.sub("<!-- learning -->", lambda _: learning(), markdown)


def on_page_content(content: str, **_: Any) -> str:
    """Turn the LaTeX that arithmatex has marked into MathML."""
    pattern = r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>'
    return re.sub(pattern, lambda found: mathml(found[3], block=found[2] == "["), content, flags=re.DOTALL)


def mathml(latex: str, block: bool) -> str:
    """Convert one equation; a displayed one gets a box of its own, see style.css."""
    equation = convert(html.unescape(latex).strip(), display="block" if block else "inline")
    return f'<div class="equation">{equation}</div>' if block else equation


def figures(path: Path) -> str:
    """Return a result as `sacfast benchmark` prints it, with where it comes from."""
    result = json.loads(path.read_text())
    table = TABLES[result["benchmark"]](result["rows"])
    return f"```text\n{table}\n```\n\n{origin(result)} Data: `{path.relative_to(ROOT)}`."


def origin(result: dict[str, Any]) -> str:
    """Name machine, versions, date, commit and command."""
    hardware, versions = result["hardware"], result.get("versions")  # an installation has those of each row
    found = f"torch {versions['torch']}, Python {versions['python']}, " if versions else ""
    return (
        f"`{result['command']}` on {hardware['usable_cores']} cores of {hardware['processor']}, "
        f"{found}{result['date'][:10]}, "
        f"commit `{result['source']['commit'][:10]}`."
    )


def learning() -> str:
    """Return the table of what was learned, by experiment: the fused update and the reference."""
    lines = ["| experiment | transitions | fused update | reference |", "|---|---|---|---|"]
    for path in sorted(RESULTS.glob("learning_*.json")):
        if path.name.startswith("learning_reference_"):
            continue
        reference = path.with_name(path.name.replace("learning_", "learning_reference_"))
        result, *others = (json.loads(each.read_text()) for each in (path, reference) if each.exists())
        cells = [f"{each['mean_return']:.0f} ({returns(each)})" for each in (result, *others)]
        cells += ["not run"] * (2 - len(cells))
        lines.append(f"| `{result['experiment']}` | {result['total_timesteps']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def returns(result: dict[str, Any]) -> str:
    """Return each seed's evaluation at the end."""
    return ", ".join(f"{seed['eval_return_mean']:.0f}" for seed in result["seeds"].values())
