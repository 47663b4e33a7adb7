"""Who may import and include whom (the parts stay exchangeable), and what `import sacfast` costs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import permutations
from pathlib import Path

import pytest

import sacfast

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sacfast"
CSRC = ROOT / "csrc"

# `envs`, `replay`, `learner` (with its backends) and `policy` are the parts that `trainer` carries data
# between. None knows another one; what they share is here.
PARTS = ({"envs"}, {"replay"}, {"learner", "fused", "engines", "reference"}, {"policy"})
NATIVE = ("_C", "_collect")
FOUNDATIONS = {
    "types",
    "scalars",
    "config",
    "devices",
    "memory",
    "networks",
    "ops",
    "_install",
    "_ext",
    "collect",
    "output",
}
# Foundations, from the bottom: each may import only those before it.
ALLOWED = {
    "types": set(),
    "scalars": set(),
    "config": {"scalars"},
    "devices": set(),
    "memory": set(),
    "_install": set(),
    "_ext": {"_install"},
    "collect": {"_collect", "_install"},
    "ops": {"_ext"},
    "networks": {"types", "config", "memory", "ops"},
    "files": set(),
    "output": set(),
    "lock": {"files", "output"},
    "checkpoint": {"files", "output"},
    "metrics": {"checkpoint", "files", "output", ""},  # "": the package itself, for its version
    "saved": {"checkpoint", "config", "envs", "files", "metrics"},
    "evaluate": {"envs", "scalars", "types"},
    "rollout": {"envs", "output", "types"},
}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def part_of(path: Path) -> str:
    """The module's name; a package such as ops counts as one."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_parts(source: str, package: str = "sacfast") -> Iterator[str]:
    """Yield the parts of sacfast that a file of `package` imports anywhere in it, for type checking too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = package.split(".")[: 1 - node.level or None] if node.level else []
            module = ".".join([*relative, *([node.module] if node.module else [])])
            names = [f"sacfast.{alias.name}" for alias in node.names] if module == "sacfast" else [module]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "sacfast":
                part = rest.partition(".")[0]
                # A name of the package that is no module, such as __version__.
                known = (PACKAGE / part).is_dir() or (PACKAGE / f"{part}.py").exists() or part in ("", *NATIVE)
                yield part if known else ""


def imports_of(part: str) -> set[str]:
    found: set[str] = set()
    for path in modules():
        if part_of(path) == part:
            found |= set(imported_parts(path.read_text(), ".".join(path.parent.relative_to(ROOT).parts)))
    return found - {part}


def test_the_import_reader_sees_every_form() -> None:
    source = (
        "import sacfast.envs\nfrom sacfast.replay import ReplayBuffer\nfrom sacfast import ops, __version__\n"
        "import torch\ndef late():\n    from sacfast.policy import Policy\n"
    )
    assert set(imported_parts(source)) == {"envs", "replay", "ops", "", "policy"}
    relative = "from .polyak import polyak_update_\nfrom ..config import SACConfig\nfrom .. import envs\n"
    assert list(imported_parts(relative, "sacfast.ops")) == ["ops", "config", "envs"]


@pytest.mark.parametrize("part", sorted(set().union(*PARTS)))
def test_parts_do_not_know_each_other(part: str) -> None:
    own = next(group for group in PARTS if part in group)
    assert imports_of(part) - {"_C"} <= FOUNDATIONS | own
    assert (PACKAGE / f"{part}.py").exists() or (PACKAGE / part).is_dir()


@pytest.mark.parametrize("part", sorted(ALLOWED))
def test_lower_parts_import_only_what_lies_below(part: str) -> None:
    assert imports_of(part) <= ALLOWED[part]


def test_the_backends_do_not_know_each_other() -> None:
    assert not imports_of("fused") & {"reference"}
    assert not imports_of("reference") & {"fused"}


def test_only_the_fused_backend_knows_the_native_module() -> None:
    parts = {part_of(path) for path in modules()}
    assert {part for part in parts if "_C" in imports_of(part)} == {"engines"}
    assert {part for part in parts if "engines" in imports_of(part)} == {"fused"}


def test_one_file_knows_the_native_module_of_collection() -> None:
    assert {part for part in map(part_of, modules()) if "_collect" in imports_of(part)} == {"collect"}


def test_only_the_trainer_sees_all_parts() -> None:
    every = set().union(*PARTS) - {"fused", "engines", "reference"}
    seeing = {part_of(path) for path in modules() if every <= imports_of(part_of(path))}
    assert seeing == {"trainer"}


def test_nothing_below_the_trainer_imports_it() -> None:
    above = {"trainer", "cli", "completion", "__main__", "benchmark", "plotting"}
    # A callback is handed the model that learns: its signatures name it, and nothing is imported at run time.
    assert "if TYPE_CHECKING:\n    from sacfast.trainer import SAC\n" in (PACKAGE / "callbacks.py").read_text()
    for part in {part_of(path) for path in modules()} - above - {"callbacks"}:
        assert not imports_of(part) & above, part
    assert imports_of("callbacks") & above == {"trainer"}


def modules_imported_by(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of sacfast that are imported when `path` is, not later and not for type checking."""
    package = path.parent.relative_to(ROOT).parts
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            found |= {name if (name := f"{module}.{alias.name}") in known else module for alias in node.names}
    return found & known.keys()


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PACKAGE.rglob("*.py")}
    known = {name.removesuffix(".__init__"): path for name, path in known.items()}
    graph = {name: modules_imported_by(path, known) - {name} for name, path in known.items()}
    assert "sacfast.envs.protocol" in graph["sacfast.envs.make"]
    assert list(TopologicalSorter(graph).static_order())  # CycleError names a circle


def test_every_logger_is_one_that_cannot_fail() -> None:
    """A handler of the standard library raises where stderr is closed, and a run would end by its own warning."""
    sources = {path.name: path.read_text() for path in modules()}
    assert [name for name, source in sources.items() if "getLogger" in source] == ["output.py"]


def test_the_package_file_holds_only_names() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert defined == {"__getattr__", "__dir__"}


def test_the_public_names_are_there_and_no_others() -> None:
    expected = {"SAC", "ReplayBuffer", "SACConfig", "__version__", "learn_together", "make_learner", "ops"}
    assert set(sacfast.__all__) == expected
    assert all(getattr(sacfast, name) is not None for name in expected)
    assert expected <= set(dir(sacfast))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sacfast.nothing


def test_type_checkers_see_the_public_names() -> None:
    """What `__getattr__` imports at run time stands under TYPE_CHECKING once more."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    assert ast.unparse(checked.test) == "TYPE_CHECKING"
    places = {
        alias.name: node.module for node in checked.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    assert places == {**sacfast._MODULE_OF, "ops": "sacfast"}
    assert {*places, "__version__"} == set(sacfast.__all__)


def test_the_version_is_the_same_in_package_project_citation_and_changelog() -> None:
    assert f'\nversion = "{sacfast.__version__}"\n' in (ROOT / "pyproject.toml").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {sacfast.__version__}\n" in citation
    released = re.search(r"^date-released: (.+)$", citation, flags=re.MULTILINE)
    assert released is not None
    newest = re.search(r"^## \[(\d.*)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest is not None
    assert newest[1] == f"{sacfast.__version__}] - {released[1]}"


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("from sacfast import ops", ("envpool", "gymnasium", "tyro", "sacfast.trainer")),
        ("import sacfast", ("torch", "envpool", "gymnasium", "numpy")),
        ("import sacfast.cli", ("torch", "envpool", "gymnasium")),
        ("from sacfast import ReplayBuffer, make_learner", ("envpool", "gymnasium", "sacfast._C", "sacfast.reference")),
        ("import sacfast.fused", ("envpool", "gymnasium", "sacfast.reference")),
    ],
)
def test_an_import_loads_no_more_than_it_needs(statement: str, absent: tuple[str, ...]) -> None:
    check = f"import sys; {statement}; print([name for name in {absent!r} if name in sys.modules])"
    command = [sys.executable, "-c", check]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[]"


def includes(path: Path) -> list[str]:
    return re.findall(r'^\s*#\s*include\s*[<"]([^>"]+)[>"]', path.read_text(), flags=re.MULTILINE)


def native_sources() -> list[Path]:
    return sorted(path for path in CSRC.rglob("*") if path.suffix in (".h", ".cuh", ".cpp", ".cu"))


def reaches(path: Path, layer: str) -> list[str]:
    """The includes of `path` that lie in csrc/<layer>, written from csrc/ or relative to the file."""
    local = [(name, (path.parent / name).resolve()) for name in includes(path)]
    return [name for name, target in local if name.startswith(f"{layer}/") or (CSRC / layer) in target.parents]


def test_the_native_sources_are_found() -> None:
    assert {path.relative_to(CSRC).parts[0] for path in native_sources()} == {"core", "ops", "update", "collect"}
    assert any(includes(path) for path in native_sources())


def test_core_includes_nothing_above_it() -> None:
    for path in (CSRC / "core").rglob("*"):
        if path.is_file():
            assert not [name for layer in ("ops", "update", "collect") for name in reaches(path, layer)], path


@pytest.mark.parametrize(("layer", "other"), list(permutations(("ops", "update", "collect"), 2)))
def test_what_stands_on_core_includes_nothing_of_each_other(layer: str, other: str) -> None:
    for path in (CSRC / layer).rglob("*"):
        if path.is_file():
            assert not reaches(path, other), path


def test_bindings_are_included_by_nothing() -> None:
    for path in native_sources():
        assert not [name for name in includes(path) if "_bind" in name], path


def included_closure(path: Path) -> set[str]:
    """Every include that `path` reaches through the files of csrc/."""
    names, seen, waiting = set(), {path}, [path]
    while waiting:
        current = waiting.pop()
        for name in includes(current):
            names.add(name)
            target = next((t for t in ((current.parent / name).resolve(), CSRC / name) if t.is_file()), None)
            if target is not None and target not in seen:
                seen.add(target)
                waiting.append(target)
    return names


def is_kernel(path: Path) -> bool:
    """Whether CMake compiles the file with CUDA, or once for each instruction set of a CPU."""
    return path.suffix == ".cu" or path.stem.endswith("_cpu") or (path.suffix == ".cpp" and path.parent.name == "cpu")


def test_kernels_core_and_modules_reach_no_torch_header() -> None:
    kernels = [path for path in native_sources() if is_kernel(path)]
    core = [path for path in native_sources() if CSRC / "core" in path.parents]
    modules = [path for path in native_sources() if path.relative_to(CSRC).parts[0] in ("update", "collect")]
    assert kernels
    assert core
    assert modules  # their bindings too
    for path in kernels + core + modules:
        assert not [name for name in included_closure(path) if re.match(r"(torch|ATen|c10)/", name)], path


def test_kernels_reach_no_python_header() -> None:
    for path in native_sources():
        if not path.stem.endswith("_bind"):
            assert not [name for name in included_closure(path) if re.match(r"pybind11/|Python\.h", name)], path


def test_the_order_of_an_update_stands_once() -> None:
    """Every step of an update is called by sac_update.h, and by nothing else of the update."""
    steps = set(re.findall(r"steps\.(\w+)\(", (CSRC / "update" / "sac_update.h").read_text()))
    assert len(steps) > 10
    for path in native_sources():
        if CSRC / "update" in path.parents and path.name != "sac_update.h":
            called = set(re.findall(r"\bsteps(?:\.|->)(\w+)\(", path.read_text()))
            assert not called & steps, path
