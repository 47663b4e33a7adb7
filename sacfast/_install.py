"""What to do when a native file of the package is missing."""

from __future__ import annotations

import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

HERE = Path(__file__).parent


def advice(name: str) -> str:
    """Say what to do about the native file `name`, given without its suffix, that cannot be imported.

    Python started in a clone takes the sources there before an installed package: the file is then built, elsewhere.
    """
    shadowed = [folder for entry in sys.path if _holds(folder := Path(entry).resolve() / "sacfast", name)]
    if _holds(HERE, name) or not shadowed:
        return "run `pip install --no-build-isolation -e .` in the source tree"
    return (
        f"Python has found the sources in {HERE} before the package that is installed in {shadowed[0]}: start it in "
        f"another folder than {HERE.parent}, or run `pip install --no-build-isolation -e .` there"
    )


def _holds(folder: Path, name: str) -> bool:
    return any((folder / f"{name}{suffix}").is_file() for suffix in EXTENSION_SUFFIXES)
