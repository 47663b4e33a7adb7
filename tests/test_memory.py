"""What a process can still take is the least of all limits above it."""

import os
import subprocess
import sys
from pathlib import Path

import torch

from sacfast import memory


def test_free_memory_of_the_host_is_within_what_the_machine_has():
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert 0 < memory.free_memory(torch.device("cpu")) <= total


def _write_group(folder: Path, files: dict[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)


def _unified(limit: str, usage: int, cache: int) -> dict[str, str]:
    statistics = f"anon 1\ninactive_file {cache}\nactive_file 2\n"
    return {"memory.max": f"{limit}\n", "memory.current": f"{usage}\n", "memory.stat": statistics}


def _legacy(limit: int, usage: int, cache: int) -> dict[str, str]:
    return {
        "memory.limit_in_bytes": f"{limit}\n",
        "memory.usage_in_bytes": f"{usage}\n",
        "memory.stat": f"inactive_file 0\ntotal_inactive_file {cache}\n",
    }


def test_unified_control_groups_limit_at_every_level(tmp_path):
    _write_group(tmp_path / "a" / "b", _unified("max", 100, 0))
    _write_group(tmp_path / "a", _unified("1000", 700, 50))
    assert list(memory._cgroup_headroom(tmp_path, "0::/a/b\n")) == [350]


def test_legacy_control_groups_limit_at_every_level(tmp_path):
    _write_group(tmp_path / "memory" / "a", _legacy(1000, 700, 50))
    _write_group(tmp_path / "memory", _legacy(2**63 - 4096, 900, 0))
    membership = "9:name=systemd:/x\n4:hugetlb,memory:/a\n0::/\n"
    assert list(memory._cgroup_headroom(tmp_path, membership)) == [350, 2**63 - 4096 - 900]


def test_a_container_sees_its_own_limit_at_the_root(tmp_path):
    _write_group(tmp_path, _unified("1000", 400, 0))
    assert list(memory._cgroup_headroom(tmp_path, "0::/docker/0123\n")) == [600]


def test_a_group_beyond_its_limit_has_nothing_free(tmp_path):
    _write_group(tmp_path, _unified("1000", 1200, 0))
    assert list(memory._cgroup_headroom(tmp_path, "0::/\n")) == [0]


def test_without_limits_control_groups_say_nothing(tmp_path):
    assert list(memory._cgroup_headroom(tmp_path, "4:memory:/a\n0::/\n")) == []


LIMITED = """
import resource, torch
from sacfast import memory
mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
before = memory.free_memory(torch.device("cpu"))
resource.setrlimit(resource.RLIMIT_AS, (mapped + 10**8, resource.getrlimit(resource.RLIMIT_AS)[1]))
after = memory.free_memory(torch.device("cpu"))
print(before > 10**8, 0 < after <= 10**8)
"""


def test_an_address_space_limit_counts() -> None:
    """What it leaves is less than what the machine has free."""
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run(
        [sys.executable, "-c", LIMITED],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "True True\n"
