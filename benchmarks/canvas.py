"""What the pictures have in common: colours for a light and a dark page, a canvas in pixels, and the file's bytes."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 800
"""Pixels; about the width of a README's text."""

PIXELS_PER_INCH = 96
FONT = "system-ui, -apple-system, 'Segoe UI', 'Liberation Sans', Helvetica, Arial, sans-serif"

TIMES = "\N{MULTIPLICATION SIGN}"

SETTINGS: dict[str, Any] = {
    "svg.hashsalt": "sacfast",  # otherwise the names of clip paths are drawn anew for every file
    "svg.fonttype": "none",  # text stays text
    "font.family": ["DejaVu Sans"],  # comes with matplotlib, so that every machine lays out the same
    "axes.unicode_minus": False,
}


@dataclass(frozen=True)
class Theme:
    """The colours of a page, and those on it. Blue and orange are Okabe's and Ito's, which the colour-blind can tell
    apart; `tints` go from the page's ground to the accent."""

    name: str
    ink: str
    muted: str
    line: str
    peer: str
    accent: str
    second: str
    tints: tuple[str, str]


LIGHT = Theme("light", "#1f2328", "#59636e", "#d1d9e0", "#a5afb9", "#0072B2", "#D55E00", ("#eaf3f9", "#4a9bc9"))
DARK = Theme("dark", "#e6edf3", "#9198a1", "#3d444d", "#6e7681", "#56B4E9", "#E69F00", ("#14222e", "#1f6f9f"))
THEMES = (LIGHT, DARK)


class Canvas:
    """A transparent figure of `WIDTH` by `height` pixels, with places counted from its upper left corner."""

    def __init__(self, theme: Theme, height: int) -> None:
        """Make an empty one."""
        self.theme = theme
        self.height = height
        self.figure = Figure(figsize=(WIDTH / PIXELS_PER_INCH, height / PIXELS_PER_INCH))

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Add axes without a frame, with that box in pixels."""
        box = (left / WIDTH, 1 - (top + height) / self.height, width / WIDTH, height / self.height)
        axes = self.figure.add_axes(box, facecolor="none")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0, labelsize=9, labelcolor=self.theme.ink)
        axes.set_axisbelow(True)
        return axes

    def text(self, left: float, top: float, text: str, size: float = 9, color: str | None = None, **more: Any) -> None:
        """Write text whose upper left corner is at that pixel."""
        more = {"va": "top", "color": color or self.theme.ink, "fontsize": size, **more}
        self.figure.text(left / WIDTH, 1 - top / self.height, text, **more)

    def title(self, text: str, below: str = "") -> None:
        """Write what the picture shows, and a line under it."""
        self.text(0, 4, text, 12, fontweight="bold")
        self.text(0, 25, below, 9, self.theme.muted)

    def note(self, top: float, *sentences: str) -> None:
        """Write small type, each sentence from a new line, broken where it is too long."""
        lines = [line for sentence in sentences for line in textwrap.wrap(sentence, 148, break_on_hyphens=False)]
        self.text(0, top, "\n".join(lines), 7.5, self.theme.muted, linespacing=1.5)

    def svg(self, metadata: Mapping[str, str]) -> bytes:
        """Return the picture as SVG: the same bytes each time, with the same matplotlib.

        Args:
            metadata: Dublin Core terms, such as "Title".
        """
        file = io.StringIO()
        # matplotlib's own default writes the date.
        self.figure.savefig(file, format="svg", transparent=True, metadata={**metadata, "Date": None})
        # Laid out in DejaVu Sans, which is wider than what a page's reader has: nothing overlaps in those.
        return file.getvalue().replace("'DejaVu Sans', sans-serif", FONT).replace("'DejaVu Sans'", FONT).encode()
