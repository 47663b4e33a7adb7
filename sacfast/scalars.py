"""Numbers that a user gives, in one form: NumPy's scalars, and floats that are whole, become Python's own."""

from __future__ import annotations

import numpy as np


def as_int(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return a whole number, such as 5, 1e5 or NumPy's, as an int within [low, high].

    Raises TypeError for anything else, a bool too, and ValueError for one out of range; both name `name`.
    """
    limits = f">= {low}" if high is None else f"in {low}..{high}"
    message = f"{name}: expected an int {limits}, got {_plain(value)!r}"
    if isinstance(value, float | np.floating) and float(value).is_integer():
        value = int(value)
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(message)
    if value < low or (high is not None and value > high):
        raise ValueError(message)
    return int(value)


def as_float(value: object) -> float | None:
    """Return a real number of Python or NumPy as a float, and None for anything else, a bool too."""
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return None
    return float(value)


def as_bool(name: str, value: object) -> bool:
    """Return a bool of Python or NumPy as Python's; raise TypeError, naming `name`, for anything else."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value
