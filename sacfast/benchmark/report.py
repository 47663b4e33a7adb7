"""What makes a figure checkable: hardware, versions, date, command and source; and tables of figures."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

BUSY = 0.05
"""Share of the cores in other processes' hands above which figures of whole updates are not to be believed."""

FUSED_OUT = "fused, out="
"""The contender that is the fused op again, writing to memory that is there; it is no plain way."""


def fastest_plain(ratios: Mapping[str, Mapping[str, float]]) -> str:
    """Return which of the contenders beside a fused op, by how many times slower they are, is the fastest plain one."""
    return min(ratios.keys() - {FUSED_OUT}, key=lambda name: ratios[name]["p50"])


def provenance(command: str) -> dict[str, Any]:
    """Return where, when, with what and how a result came about; JSON-safe."""
    from sacfast import _ext
    from sacfast.metrics import versions

    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "load_average": os.getloadavg()[0],  # of the last minute: who else was at work
        "versions": versions(),
        "source": source(ROOT),
        "native": {key: value for key, value in _ext.info().items() if key != "library"},
    }


def hardware() -> dict[str, Any]:
    """Return processor, usable cores, memory and GPUs."""
    import torch

    gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return {
        "processor": _processor(),
        "usable_cores": len(os.sched_getaffinity(0)),
        "memory_gigabytes": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 1e-9, 1),
        "gpus": [
            {
                "name": gpu.name,
                "compute_capability": f"{gpu.major}.{gpu.minor}",
                "memory_gigabytes": round(gpu.total_memory * 1e-9, 1),
            }
            for gpu in gpus
        ],
        "cuda": torch.version.cuda,
        "system": platform.platform(),
    }


def source(root: Path) -> dict[str, Any]:
    """Return the commit (None outside git) and the git tree hash of `csrc/` (None in an installed package).

    The tree hash is computed from the files as they lie, so it is there without git and tells of changes that are
    not committed. For a clean checkout it is what `git rev-parse HEAD:csrc` prints.
    """
    csrc = root / "csrc"
    return {
        "commit": _commit(root) if csrc.is_dir() else None,
        "csrc_tree": tree_hash(csrc).hex() if csrc.is_dir() else None,
    }


def tree_hash(directory: Path) -> bytes:
    """Return git's hash of a directory's content."""
    entries = []
    for path in directory.iterdir():
        if path.is_dir():
            # git sorts a directory as if its name ended with a slash.
            entries.append((f"{path.name}/", b"40000", path.name, tree_hash(path)))
        else:
            mode = b"100755" if os.access(path, os.X_OK) else b"100644"
            entries.append((path.name, mode, path.name, _git_hash(b"blob", path.read_bytes())))
    content = b"".join(mode + b" " + name.encode() + b"\0" + digest for _, mode, name, digest in sorted(entries))
    return _git_hash(b"tree", content)


SPREADS = "median (20th - 80th percentile) over the rounds; ratios are taken inside each round"
"""What the numbers of `op_table` are."""


def op_table(row: Mapping[str, Any]) -> str:
    """Format what `bench_ops.measure` returned."""
    return "\n".join([f"{row['op']}  {row['size']}", *_contender_lines(row)])


def _contender_lines(row: Mapping[str, Any]) -> Iterator[str]:
    for name, microseconds in row["microseconds"].items():
        line = f"  {name:16}{_spread(microseconds, ' us'):>34}"
        ratio = row["times_slower_than_fused"].get(name)
        line += f"{'' if ratio is None else 'fused is ' + _spread(ratio, 'x'):>38}"
        if row["bandwidth"] is not None:
            line += f"{row['bandwidth']['fraction_of_copy'][name]['p50']:>9.0%} of a copy's bandwidth"
        yield line.rstrip()
    if row["bandwidth"] is not None:
        yield f"  a copy moves {row['bandwidth']['copy_gigabytes_per_second']:.1f} GB/s, read and written"


def collect_table(row: Mapping[str, Any]) -> str:
    """Format what `bench_collect.measure` returned."""
    return (
        f"{row['env_id']}, {row['num_envs']} environments, {row['env_threads']} threads, no updates; "
        "median (20th - 80th percentile) over the rounds\n"
        f"  EnvPool alone  {_spread(row['bare_steps_per_second'], ' steps/s')}\n"
        f"  trainer        {_spread(row['trainer_steps_per_second'], ' steps/s')}\n"
        f"  fraction       {_spread(row['fraction_of_bare'], '')}, taken inside each round"
    )


def update_table(row: Mapping[str, Any]) -> str:
    """Format what `bench_update.measure` returned."""
    lines = [f"one SAC update, {_size(row)}: {row['megaflop_per_update']:.0f} MFLOP; {_threads(row)}", _rounds(row)]
    for name, rate in row["updates_per_second"].items():
        share, ratio = row["fraction_of_peak"].get(name), row["fused_is_times_faster"].get(name)
        line = f"  {name:20}{_spread(rate, ' updates/s'):34}"
        line += f"{'' if share is None else format(share['p50'], '.0%') + ' of the peak':20}"
        lines.append((line + ("" if ratio is None else f"fused is {_spread(ratio, 'x')}")).rstrip())
    if row["peak_gigaflops"] is not None:
        lines.append(f"  {'peak':20}{_spread(row['peak_gigaflops'], ' GFLOP/s')}")
    if row["product_fraction_of_peak"] is not None:
        lines.append(f"  {'large torch product':20}{_percent(row['product_fraction_of_peak'])} of the peak")
    return "\n".join([*lines, *_remarks(row)])


def profile_table(row: Mapping[str, Any]) -> str:
    """Format what `bench_update.measure_profile` returned."""
    lines = [f"phases of the fused update, {_size(row)}; {_threads(row)}", _rounds(row)]
    for phase in row["phases"]:
        share = phase["fraction_of_peak"]
        microseconds = {name: value * 1e3 for name, value in phase["milliseconds"].items()}
        line = f"  {phase['phase']:28}{_spread(microseconds, ' us'):32}{phase['share']['p50']:5.1%}"
        lines.append(line + ("" if share is None else f"  {share['p50']:4.0%} of the peak"))
    return "\n".join([*lines, *_remarks(row)])


def train_table(row: Mapping[str, Any]) -> str:
    """Format what `bench_train.measure` returned."""
    lines = [
        f"training on {row['env_id']}, {row['num_envs']} environments, one update per transition; {_threads(row)}",
        _rounds(row),
        f"  sacfast, {row['backend']:10} {_spread(row['steps_per_second'], ' steps/s')}",
        f"  its bare updates    {_spread(row['bare_updates_per_second'], ' updates/s')}",
        f"  fraction            {_spread(row['fraction_of_bare_updates'], '')}",
    ]
    if row["peer_steps_per_second"] is not None:
        lines.append(f"  Stable-Baselines3   {_spread(row['peer_steps_per_second'], ' steps/s')}")
        lines.append(f"  sacfast is          {_spread(row['times_faster_than_peer'], 'x')}")
    return "\n".join([*lines, *_remarks(row)])


def autograd_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Format what `benchmarks.autograd` has written."""
    lines = ["fastest sample of a round: median (20th - 80th percentile) over the rounds; ratios are inside each round"]
    for row in rows:
        lines += ["", f"{row['op']}  {row['size']}"]
        for name, microseconds in row["microseconds"].items():
            ratio = row["times_slower_than_cpp"].get(name)
            what = name if name == "plain torch" else f"autograd in {name}"
            line = f"  {what:20}{_spread(microseconds, ' us'):>34}"
            lines.append(line + ("" if ratio is None else f"{_spread(ratio, ' times that of C++'):>46}"))
    return "\n".join(lines)


def _size(row: Mapping[str, Any]) -> str:
    hidden = "-".join(map(str, row["hidden_sizes"]))
    sizes = f"observation {row['observation_dim']}, action {row['action_dim']}, hidden {hidden}"
    return f"{sizes}, batch {row['batch_size']}"


def _threads(row: Mapping[str, Any]) -> str:
    return "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"


def _rounds(row: Mapping[str, Any]) -> str:
    return f"median (20th - 80th percentile) over {row['rounds']} rounds; ratios and shares are taken inside each round"


def _remarks(row: Mapping[str, Any]) -> Iterator[str]:
    for name, reason in row["absent"].items():
        yield f"  {name:20}not measured: {reason}"
    others = row["others_share_of_cores"]
    line = f"  other processes had {_percent(others)} of these cores"
    yield line + (": too much for these figures to mean anything" if others["p50"] > BUSY else "")


def _spread(values: Mapping[str, float], unit: str) -> str:
    numbers = [f"{values[name]:.{_decimals(values['p50'])}f}" for name in ("p50", "p20", "p80")]
    return f"{numbers[0]}{unit} ({numbers[1]} - {numbers[2]})"


def _percent(values: Mapping[str, float]) -> str:
    return f"{values['p50']:.0%} ({values['p20']:.0%} - {values['p80']:.0%})"


def _decimals(value: float) -> int:
    return 3 if value < 1 else 1 if value < 1000 else 0


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _commit(root: Path) -> str | None:
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _git_hash(kind: bytes, content: bytes) -> bytes:
    # git's own content address, not a signature.
    return hashlib.sha1(kind + b" %d\0" % len(content) + content, usedforsecurity=False).digest()
