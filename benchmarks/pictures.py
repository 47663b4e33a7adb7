"""Draws the pictures of README and documentation from the data in benchmarks/results, for light and for dark pages.

    python -m benchmarks.pictures [NAME ...] [--output docs/images]

A picture says in its metadata which data it shows and what their hash is: `stale` finds those that show others.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

from benchmarks import charts
from benchmarks.canvas import SETTINGS, THEMES, Canvas, Theme

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"


class Picture(NamedTuple):
    """How a picture is drawn, its title in words, and the files of benchmarks/results that it shows."""

    draw: Callable[..., Canvas]  # takes the theme and the content of each file
    title: str
    files: tuple[str, ...]


PICTURES = {
    "updates": Picture(charts.updates, "Gradient updates per second, by implementation", ("update_zen5_cpu.json",)),
    "sweep": Picture(charts.sweep, "Updates beside eager PyTorch, by size", ("update_sweep_zen5_cpu.json",)),
    "ops": Picture(charts.ops, "Ops beside plain PyTorch", ("ops_zen3_cpu.json",)),
    "profile": Picture(charts.profile, "Where the time of an update goes", ("update_profile_zen5_cpu.json",)),
    "train": Picture(charts.train, "Training end to end, environment steps per second", ("train_zen5_cpu.json",)),
    "history": Picture(charts.history, "History of speed", ("history.jsonl",)),
    "learning": Picture(
        charts.learning,
        "Return over environment steps",
        (
            "learning_halfcheetah_300k.json",
            "learning_hopper.json",
            "learning_inverted_double_pendulum.json",
            "learning_inverted_pendulum.json",
            "learning_pendulum.json",
            "learning_pendulum_value_network.json",
        ),
    ),
}


def render(name: str, theme: Theme) -> bytes:
    """Return a picture as SVG."""
    picture = PICTURES[name]
    metadata = {
        "Title": picture.title,
        "Source": ", ".join(f"benchmarks/results/{file}" for file in picture.files),
        "Identifier": f"sha256:{data_hash(name)}",
        "Creator": f"python -m benchmarks.pictures {name}, matplotlib {matplotlib.__version__}",
    }
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **SETTINGS}):
        return picture.draw(theme, *map(read, picture.files)).svg(metadata)


def read(file: str) -> Any:
    """Return the content of a file of results: of each line, where it is .jsonl."""
    text = (RESULTS / file).read_text()
    return [json.loads(line) for line in text.splitlines()] if file.endswith(".jsonl") else json.loads(text)


def data_hash(name: str) -> str:
    """Return the hash of the data that a picture shows."""
    digest = hashlib.sha256()
    for file in PICTURES[name].files:
        digest.update(f"{file}\0".encode() + (RESULTS / file).read_bytes())
    return digest.hexdigest()


def path_of(name: str, theme: Theme, folder: Path) -> Path:
    """Return where a picture lies."""
    return folder / f"{name}-{theme.name}.svg"


def stale(folder: Path) -> Iterator[str]:
    """Yield each picture that is missing or no longer what would be drawn, and why.

    The bytes are compared where this matplotlib is the one that drew; another may lay out otherwise, so that the data
    alone are compared then.
    """
    for name in PICTURES:
        for theme in THEMES:
            path = path_of(name, theme, folder)
            if not path.exists():
                yield f"{path.name}: missing"
            elif data_hash(name) not in (found := path.read_text()):
                yield f"{path.name}: shows other data than {', '.join(PICTURES[name].files)}"
            elif f"matplotlib {matplotlib.__version__}<" in found and found.encode() != render(name, theme):
                yield f"{path.name}: would be drawn otherwise"


def main() -> int:
    """Draw the pictures that are named, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pictures", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", choices=[*PICTURES, []], metavar="NAME", help=", ".join(PICTURES))
    parser.add_argument("--output", type=Path, default=IMAGES, help="the folder to write to")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in options.names or PICTURES:
        for theme in THEMES:
            path = path_of(name, theme, options.output)
            path.write_bytes(render(name, theme))
            print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
