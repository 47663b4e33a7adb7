"""How much memory this process can still take: what does not fit is refused at the start, not hours later."""

from __future__ import annotations

import math
import resource
from collections.abc import Iterator
from pathlib import Path

import torch


def check_fits(what: str, needed: int, device: torch.device) -> None:
    """Raise ValueError, with both sizes, when `what` needs more bytes than this process can still take on `device`.

    Large memory is given untouched: without this a run would end when it writes the last of it, and say nothing.
    """
    free = free_memory(device)
    if needed > free:
        raise ValueError(f"{what} need {needed / 1e9:.2f} GB, but {device} has {free / 1e9:.2f} GB free")


def free_memory(device: torch.device) -> int:
    """Return the bytes that this process can still take on `device`: on the host the least of all limits."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    lines = Path("/proc/meminfo").read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    return int(
        min(
            available,
            _address_headroom(),
            *_cgroup_headroom(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup").read_text()),
        )
    )


def _address_headroom() -> float:
    """Return how many bytes more this process may map: by its RLIMIT_AS (ulimit -v), if it has one."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return math.inf
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    return max(0, limit - mapped)


def _cgroup_headroom(root: Path, membership: str) -> Iterator[int]:
    """Yield what each memory limit above this process leaves, in bytes.

    `root` is where the control groups are mounted and `membership` the text of /proc/self/cgroup. A container
    often sees its own group at the root, whatever path it is told: hence every ancestor is looked at.
    """
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            base, names = root, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            base = root / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        group = base / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(base):
                yield from _group_headroom(folder, *names)


def _group_headroom(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> Iterator[int]:
    """Yield limit - usage + file cache that the kernel would give up, if this group has a limit."""
    try:
        limit = (folder / limit_name).read_text().strip()
        usage = int((folder / usage_name).read_text())
        statistics = (folder / "memory.stat").read_text()
    except OSError:
        return
    if limit != "max":
        counts = dict(line.split(maxsplit=1) for line in statistics.splitlines())
        yield max(0, int(limit) - usage + int(counts.get(cache_name, 0)))
