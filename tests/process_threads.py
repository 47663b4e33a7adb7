"""The threads of this process by their numbers: those of other tests may end at any time, so counts say little."""

from __future__ import annotations

import time
from pathlib import Path


def thread_ids() -> set[str]:
    return {each.name for each in Path("/proc/self/task").iterdir()}


def those_that_stay(ids: set[str], seconds: float = 1.0) -> set[str]:
    """Waits for threads to end: the kernel lists one for a moment after it has been joined."""
    deadline = time.monotonic() + seconds
    while (left := ids & thread_ids()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return left
