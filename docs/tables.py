"""Tables of the documentation, in Markdown, from the data that measurements and settings are kept in."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

CONTENDERS = {
    "fused": "**sacfast**",
    "reference": "PyTorch, eager",
    "reference_compiled": "`torch.compile`",
    "stable_baselines3": "Stable-Baselines3",
    "sbx": "SBX (JAX)",
    "rltools": "RLtools (C++)",
}

Row = Mapping[str, Any]


def figures(name: str) -> str:
    """Return what a file of benchmarks/results has measured, folded away under the sentence that says where."""
    result = json.loads((RESULTS / name).read_text())
    table = _TABLES[result["benchmark"]](result["rows"])
    summary = f"<summary>The figures, {where(result)}</summary>"
    return f'<details markdown="1">{summary}\n\n{table}\n\n{origin(result, name)}\n\n</details>'


def where(result: Row) -> str:
    """Name processor, instruction set and date of a result in a few words."""
    processor, native = result["hardware"]["processor"].replace("(R)", ""), result.get("native")
    level = f"{native['cpu_level'].upper()}, " if native else ""
    return f"{result['hardware']['usable_cores']} cores of {processor}, {level}{result['date'][:10]}"


def origin(result: Row, name: str) -> str:
    """Name the command, versions, commit and file of a result."""
    versions = result.get("versions")  # an installation has those of each row
    found = f", torch {versions['torch']}, Python {versions['python']}" if versions else ""
    kind = "Median, in brackets the 20th to the 80th percentile. " if versions else ""
    commit = result["source"]["commit"][:10]
    return f"{kind}`{result['command']}`{found}, commit `{commit}`; data: `benchmarks/results/{name}`."


def faults(name: str = "faults.json") -> str:
    """Return how often a run was disturbed, by kind of fault, and how often something was lost."""
    result = json.loads((RESULTS / name).read_text())
    rows = [(row["fault"], row["tries"], row["lost"]) for row in result["rows"]]
    total = ("**all**", sum(row[1] for row in rows), sum(row[2] for row in rows))
    table = _table(("fault", "tries", "lost"), [*rows, total])
    return (
        f"{table}\n\n`{result['command']}` on {where(result)}, commit `{result['source']['commit'][:10]}`; data: "
        f"`benchmarks/results/{name}`."
    )


def learning() -> str:
    """Return what was learned, by experiment: the fused update and the reference."""
    rows = []
    for path in sorted(RESULTS.glob("learning_*.json")):
        if path.name.startswith("learning_reference_"):
            continue
        result = json.loads(path.read_text())
        reference = path.with_name(path.name.replace("learning_", "learning_reference_"))
        other = _returns(json.loads(reference.read_text())) if reference.exists() else "not run"
        rows.append((f"`{result['experiment']}`", result["total_timesteps"], _returns(result), other))
    return _table(("experiment", "transitions", "fused update", "reference"), rows)


def stable_baselines3(names: Mapping[str, str]) -> str:
    """Return what each argument of Stable-Baselines3 is here."""
    named: dict[str, list[str]] = {}
    for name, here in names.items():
        named.setdefault(here.removeprefix("here it is ").removeprefix("here "), []).append(f"`{name}`")
    return _table(("Stable-Baselines3", "sacfast"), [(", ".join(group), here) for here, group in named.items()])


def _returns(result: Row) -> str:
    seeds = ", ".join(f"{seed['eval_return_mean']:.0f}" for seed in result["seeds"].values())
    return f"{result['mean_return']:.0f} ({seeds})"


def _ops(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        bandwidth = row["bandwidth"]
        share = "" if bandwidth is None else f"{bandwidth['fraction_of_copy']['fused']['p50']:.0%}"
        fused = _spread(row["microseconds"]["fused"])
        for name, ratio in row["times_slower_than_fused"].items():
            lines.append((f"`{row['op'].split()[0]}`", _what(row), fused, name, _spread(ratio), share))
    return _table(("op", "what, size", "fused, us", "beside", "times faster", "of a copy's bandwidth"), lines)


def _what(row: Row) -> str:
    return ", ".join(filter(None, (row["op"].partition(" ")[2], row["size"])))


def _update(rows: Sequence[Row]) -> str:
    if "phases" in rows[0]:
        return "\n\n".join(map(_profile, rows))
    return _sweep(rows) if len(rows) > 2 else "\n\n".join(map(_contenders, rows))


def _contenders(row: Row) -> str:
    lines = []
    for name, rate in row["updates_per_second"].items():
        ratio, share = row["fused_is_times_faster"].get(name), row["fraction_of_peak"].get(name)
        percent = "" if share is None else f"{share['p50']:.0%}"
        lines.append((CONTENDERS[name], _spread(rate), percent, "" if ratio is None else _spread(ratio)))
    if row["product_fraction_of_peak"] is not None:
        lines.append(("a large product by torch, alone", "", f"{row['product_fraction_of_peak']['p50']:.0%}", ""))
    header = (_threads(row), "updates/s", "of the peak", "sacfast is times faster")
    return f"{_size(row)}\n\n{_table(header, lines)}"


def _sweep(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        hidden, ratio = "-".join(map(str, row["hidden_sizes"])), row["fused_is_times_faster"]["reference"]
        rate = _spread(row["updates_per_second"]["fused"])
        sizes = f"{row['observation_dim']}, {row['action_dim']}"
        lines.append((row["threads"], sizes, hidden, row["batch_size"], rate, _spread(ratio)))
    header = ("threads", "observation, action", "hidden", "batch", "updates/s", "times faster than eager PyTorch")
    return _table(header, lines)


def _profile(row: Row) -> str:
    lines = []
    for phase in row["phases"]:
        microseconds = {name: value * 1e3 for name, value in phase["milliseconds"].items()}
        peak = phase["fraction_of_peak"]
        percent = "" if peak is None else f"{peak['p50']:.0%}"
        lines.append((phase["phase"], _spread(microseconds), f"{phase['share']['p50']:.1%}", percent))
    return f"{_size(row)}\n\n{_table((_threads(row), 'us', 'of the update', 'of the peak'), lines)}"


def _collect(rows: Sequence[Row]) -> str:
    header = ("task", "environments", "EnvPool alone, steps/s", "trainer, steps/s", "fraction, inside each round")
    names = ("bare_steps_per_second", "trainer_steps_per_second", "fraction_of_bare")
    return _table(header, [(row["env_id"], row["num_envs"], *(_spread(row[name]) for name in names)) for row in rows])


def _train(rows: Sequence[Row]) -> str:
    names = {
        "training, environment steps/s": "steps_per_second",
        "its updates alone, updates/s": "bare_updates_per_second",
        "training as a fraction of its updates alone": "fraction_of_bare_updates",
        "Stable-Baselines3, environment steps/s": "peer_steps_per_second",
        "sacfast is times faster": "times_faster_than_peer",
    }
    tables = []
    for row in rows:
        lines = [(words, _spread(row[name])) for words, name in names.items() if row[name] is not None]
        header = (f"{row['env_id']}, {row['num_envs']} environments, one update a transition", _threads(row))
        tables.append(_table(header, lines))
    return "\n\n".join(tables)


def _autograd(rows: Sequence[Row]) -> str:
    lines = []
    for row in rows:
        for name, microseconds in row["microseconds"].items():
            ratio = row["times_slower_than_cpp"].get(name)
            what = name if name == "plain torch" else f"autograd in {name}"
            lines.append((f"`{row['op']}`", row["size"], what, _spread(microseconds), _spread(ratio) if ratio else ""))
    return _table(("op", "size", "by", "us", "times that of C++"), lines)


def _install(rows: Sequence[Row]) -> str:
    parts = {"torch": "torch", "ops": "the wheel alone", "rest": "its dependencies"}
    lines = []
    for row in rows:
        torch = f"torch {row['torch']} for {'the CPU' if row['cuda'] is None else 'CUDA ' + row['cuda']}"
        where = f"Python {row['python']}, {torch}, autograd in {row['autograd']}"
        for name, what in parts.items():
            lines.append((where, what, f"{row[f'{name}_seconds']:.1f}", f"{row[f'{name}_megabytes']:.1f}"))
        lines.append((where, "`sacfast doctor`", f"{row['doctor_seconds']:.1f}", ""))
        run = row["run"]
        what = f"train {run['env_id']}, {run['total_timesteps']} steps: return {run['eval_return_mean']:.0f}"
        lines.append((where, what, f"{run['seconds']:.1f}", ""))
    return _table(("where", "what", "seconds", "MB that pip adds"), lines)


_TABLES: dict[str, Callable[[Sequence[Row]], str]] = {
    "ops": _ops,
    "update": _update,
    "collect": _collect,
    "train": _train,
    "autograd": _autograd,
    "install": _install,
}


def _size(row: Row) -> str:
    hidden = "-".join(map(str, row["hidden_sizes"]))
    return (
        f"Observation {row['observation_dim']}, action {row['action_dim']}, hidden {hidden}, "
        f"batch {row['batch_size']}; {row['rounds']} rounds, ratios and shares inside each. "
        f"Other processes had {row['others_share_of_cores']['p50']:.1%} of the cores."
    )


def _threads(row: Row) -> str:
    return "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"


def _spread(values: Mapping[str, float]) -> str:
    digits = 2 if values["p50"] < 1.5 else 1 if values["p50"] < 20 else 0
    median, low, high = (f"{values[name]:.{digits}f}" for name in ("p50", "p20", "p80"))
    return f"{median} ({low} to {high})"


def _table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
