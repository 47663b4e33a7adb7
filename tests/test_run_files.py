"""Whatever lies in a run directory, or happens to it, no run is lost and nothing is wrong unsaid."""

import contextlib
import copy
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from run_cases import Killed, killed, small

from sacfast import SAC, checkpoint, files, metrics, trainer
from sacfast.checkpoint import CheckpointError

TINY: dict[str, Any] = {
    "hidden_sizes": (8,),
    "batch_size": 8,
    "replay_capacity": 100,
    "num_envs": 2,
    "env_threads": 1,
    "learning_starts": 20,
    "utd_ratio": 0.25,
    "evaluation_episodes": 1,
    "evaluate_every": 40,
    "log_interval": 20,
    "checkpoint_every": 60,
    "torch_threads": 1,
    "progress": False,
}
OLDER, NEWEST = 60, 120


@pytest.fixture(scope="module")
def killed_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return killed(tmp_path_factory.mktemp("killed") / "run", 150, total=200, **TINY)


@pytest.fixture
def run_dir(tmp_path: Path, killed_once: Path) -> Path:
    """A run that was killed after 150 transitions, with checkpoints at 60 and 120: a copy to work on."""
    return Path(shutil.copytree(killed_once, tmp_path / "run"))


def newest(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / checkpoint.step_name(NEWEST)


def content(folder: Path) -> dict[str, Any]:
    """All that lies in a folder: files with their content, links with where they point."""
    return {
        str(path.relative_to(folder)): path.readlink() if path.is_symlink() else path.is_file() and path.read_bytes()
        for path in folder.rglob("*")
    }


# ---- No checkpoint yet, or none any more -------------------------------------------------------------------------


def no_folder(run_dir: Path) -> None:
    shutil.rmtree(run_dir / "checkpoints")


def empty_folder(run_dir: Path) -> None:
    no_folder(run_dir)
    (run_dir / "checkpoints").mkdir()


def dangling_link(run_dir: Path) -> None:
    (run_dir / "checkpoints").rename(run_dir.parent / "elsewhere")
    (run_dir / "checkpoints").symlink_to(run_dir.parent / "not mounted")


def link_to_a_folder(run_dir: Path) -> None:
    (run_dir / "checkpoints").rename(run_dir.parent / "elsewhere")
    (run_dir / "checkpoints").symlink_to(run_dir.parent / "elsewhere")


def file_instead(run_dir: Path) -> None:
    no_folder(run_dir)
    (run_dir / "checkpoints").write_text("")


def only_the_best(run_dir: Path) -> None:
    for path in (run_dir / "checkpoints").glob("step_*"):
        shutil.rmtree(path)
    (run_dir / "metrics.jsonl").write_text("")


def foreign_best(run_dir: Path) -> None:
    empty_folder(run_dir)
    (run_dir / "metrics.jsonl").write_text("")
    (run_dir / "checkpoints" / "best").write_text("")


def damaged_metrics(run_dir: Path) -> None:
    no_folder(run_dir)
    (run_dir / "metrics.jsonl").write_bytes(b"\xff\n")


def summary(run_dir: Path) -> None:
    no_folder(run_dir)
    (run_dir / "metrics.jsonl").write_text("")
    (run_dir / "summary.json").write_text("{}")


LOST: list[tuple[Callable[[Path], None], str]] = [
    (no_folder, r"metrics\.jsonl with a line after 140 transitions"),
    (empty_folder, r"metrics\.jsonl with a line after 140 transitions"),
    (dangling_link, "checkpoints.*expected a folder, got a link to .*not mounted"),
    (link_to_a_folder, "checkpoints.*expected a folder, got a link to .*elsewhere"),
    (file_instead, "checkpoints.*expected a folder, got a file"),
    (only_the_best, r"best, after (80|120) transitions"),
    (foreign_best, "best: .*got a file"),
    (damaged_metrics, r"metrics\.jsonl: line 1"),
    (summary, r"summary\.json, which is written after the last checkpoint"),
]


@pytest.mark.parametrize(("lose", "said"), LOST, ids=[lose.__name__ for lose, _ in LOST])
def test_a_run_whose_checkpoints_are_lost_does_not_start_anew(
    run_dir: Path, lose: Callable[[Path], None], said: str
) -> None:
    if lose is only_the_best:  # that of the last evaluation, so that it is past the first checkpoint
        shutil.rmtree(run_dir / "checkpoints" / "best")
        shutil.copytree(newest(run_dir), run_dir / "checkpoints" / "best")
    lose(run_dir)
    before = content(run_dir.parent)
    with pytest.raises(CheckpointError, match=said):
        SAC.resume(run_dir)
    assert content(run_dir.parent) == before


def test_a_run_whose_checkpoints_cannot_be_listed_does_not_start_anew(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = content(run_dir)
    listdir = os.listdir

    def refused(path: Path) -> list[str]:
        if Path(path).name == "checkpoints":
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr(os, "listdir", refused)
    with pytest.raises(CheckpointError, match=r"checkpoints: expected the folder .*Permission denied"):
        SAC.resume(run_dir)
    assert content(run_dir) == before


def test_a_run_that_has_a_best_policy_but_no_checkpoint_yet_starts_anew(tmp_path: Path) -> None:
    killed(tmp_path / "run", 58, total=200, **TINY)
    (tmp_path / "run" / "checkpoints" / "notes.txt").write_text("mine")
    assert sorted(files.list_folder(tmp_path / "run" / "checkpoints")) == ["best", "notes.txt"]
    assert SAC.resume(tmp_path / "run").learn().timesteps == 200
    assert (tmp_path / "run" / "checkpoints" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("num_envs", [2, 7])
def test_a_run_that_is_killed_in_its_first_save_starts_anew(
    tmp_path: Path, num_envs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its metrics have the line of the step whose checkpoint is missing."""

    def die(directory: Path, *_: Any) -> None:
        directory.with_name(f"{directory.name}.tmp").mkdir(parents=True)
        raise Killed

    with monkeypatch.context() as dying:
        dying.setattr(checkpoint, "save", die)
        model = small(tmp_path, **{**TINY, "num_envs": num_envs, "log_interval": 1, "evaluate_every": 1000})
        with pytest.raises(Killed):
            model.learn(200)
    assert metrics.last_step(tmp_path) >= 60
    assert SAC.resume(tmp_path, checkpoint_every=20).learn().timesteps == 200


def test_a_damaged_configuration_does_not_keep_a_run_from_going_on(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for damage in (b"\xff", b"[" * 100_000, b'{"train": 3}', b'{"train": {"x": NaN}, "sac": {}}'):
        (run_dir / "config.json").write_bytes(damage)
        assert SAC.resume(run_dir).timesteps == NEWEST
        assert "config.json: expected" in caplog.text
        caplog.clear()
    (run_dir / "config.json").unlink()
    (run_dir / "config.json").symlink_to("/etc/passwd")
    SAC.resume(run_dir).learn()
    assert not (run_dir / "config.json").is_symlink()
    assert metrics.read_config(run_dir)["train"]["env_id"] == "Pendulum-v1"


def test_a_damaged_configuration_without_a_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"train": {"env_id": "Pendulum-v1", "num_envs": "two"}, "sac": {}}')
    with pytest.raises(CheckpointError, match=r"config\.json: num_envs: expected an int >= 1, got 'two'"):
        SAC.resume(tmp_path)


# ---- A candidate that will not do --------------------------------------------------------------------------------


def reseal(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with the sums of what is there, as someone would who edits a checkpoint."""
    for name in list(manifest["files"]) if isinstance(manifest.get("files"), dict) else []:
        if (path / name).exists():
            manifest["files"][name] = checkpoint._sha256(path / name)
            if isinstance(manifest.get("sizes"), dict):
                manifest["sizes"][name] = (path / name).stat().st_size
    manifest.pop("manifest_sha256", None)
    manifest["manifest_sha256"] = checkpoint._manifest_sha256(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


MISSING = object()


def mutations_of(value: Any) -> Iterator[Any]:
    """Values of another type, negative, huge, or none."""
    yield MISSING
    yield {"wrong": ["type"]}
    yield "wrong type" if not isinstance(value, str) else 5
    if isinstance(value, bool):
        yield 1
    elif isinstance(value, int | float | None):
        yield -1 if value != -1 else -2
        yield -(10**400)
        yield 10**400 if not isinstance(value, int) else 10**30
        yield True
    elif isinstance(value, str):
        yield ""
        yield "x" * 100_000
    elif isinstance(value, list):
        yield [*value, "wrong type"]
        yield [-(10**400)] * len(value)
        yield [1.5] * 1_000_000
    yield None if value is not None else [None]


def places_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, item in value.items():
        yield (*path, key)
        if isinstance(item, dict):
            yield from places_in(item, (*path, key))


def replaced(manifest: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(manifest)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    if value is MISSING:
        del holder[place[-1]]
    else:
        holder[place[-1]] = value
    return changed


def whole_state(model: SAC) -> dict[str, Any]:
    parts = {"learner": model.learner, "policy": model.policy, "replay": model.replay}
    tensors = {f"{group}.{name}": value for group, part in parts.items() for name, value in part.state_dict().items()}
    return {name: value.tolist() for name, value in tensors.items()} | {
        "exploration": model._exploration.bit_generator.state,
        "progress": model._counts.to_json(),
        "sac": model.config.to_dict(),
    }


class Heard:
    """What a resume gave, of a checkpoint that someone has changed, and what was said of it."""

    def __init__(self, run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
        self.run_dir, self.caplog = run_dir, caplog
        self.whole = whole_state(SAC.resume(run_dir))
        self.passed_over = self.taken = 0

    def check(self, what: str) -> None:
        """Resume: from the older checkpoint, and a warning says so, or as if nothing had been changed."""
        self.caplog.clear()
        model = SAC.resume(self.run_dir)
        if model.timesteps == OLDER:
            assert f"checkpoint passed over: {newest(self.run_dir)}" in self.caplog.text, what
            assert len(self.caplog.text) < 5000, what
            self.passed_over += 1
        else:
            state = whole_state(model)
            assert [name for name in self.whole if state[name] != self.whole[name]] == [], what
            self.taken += 1


def may_be_any(place: tuple[Any, ...], value: Any) -> bool:
    """Whether nothing else in a run directory says what a field is, so that any value in its range may be its own."""
    if type(value) is int and place[:2] in (("progress", "update_metrics"), ("progress", "evaluation")):
        return -2 <= value <= -1
    if place == ("progress", "best_return"):
        return value is None or (type(value) is int and value == -1)
    return place == ("exploration", "state", "state") and type(value) is int and value > 0


def test_a_manifest_that_someone_has_edited_is_passed_over_or_harmless(
    run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard(run_dir, caplog)
    manifest = checkpoint.read_manifest(newest(run_dir))
    for place in places_in(manifest):
        value = manifest
        for key in place:
            value = value[key]
        for mutation in mutations_of(value):
            if may_be_any(place, mutation):
                continue
            reseal(newest(run_dir), replaced(manifest, place, mutation))
            heard.check(f"{place}: {'missing' if mutation is MISSING else repr(mutation)[:60]}")
    assert heard.passed_over > 400
    assert heard.passed_over > 4 * heard.taken


def headers(path: Path) -> tuple[dict[str, Any], bytes]:
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def header_mutations(header: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    entry = header[name]
    for field in entry:
        for mutation in mutations_of(entry[field]):
            yield replaced(header, (name, field), mutation)
    for dtype in ("F64", "F32", "I64", "I32", "U8", "BOOL", "F16", "F4"):
        yield replaced(header, (name, "dtype"), dtype)
    for shape in ([], [1, *entry["shape"]], entry["shape"][::-1], [2**62, 4], [-1], [0]):
        yield replaced(header, (name, "shape"), shape)
    for offsets in ([0, 0], entry["data_offsets"][::-1], [0, 2**62], [-8, 0], [0]):
        yield replaced(header, (name, "data_offsets"), offsets)
    yield replaced(header, (name,), MISSING)
    yield replaced(header, (name,), 5)
    yield {**replaced(header, (name,), MISSING), "renamed": entry}
    yield {**header, "another": entry}


@pytest.mark.parametrize("group", ["learner", "policy", "replay"])
def test_a_header_that_someone_has_edited_is_passed_over_or_harmless(
    run_dir: Path, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard(run_dir, caplog)
    path = newest(run_dir) / f"{group}.safetensors"
    manifest = checkpoint.read_manifest(newest(run_dir))
    header, data = headers(path)
    names = [name for name in header if name != "__metadata__"]
    if group == "learner":  # one of each kind
        names = [name for name in names if name.startswith(("actor.", "actor_optimizer", "log_alpha", "grad", "noise"))]
    for name in names:
        for changed in header_mutations(header, name):
            raw = json.dumps(changed).encode()
            path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)
            reseal(newest(run_dir), copy.deepcopy(manifest))
            heard.check(f"{name}: {repr(changed.get(name))[:100]}")
    for raw in (b"", b"\xff" * 8, (2**63).to_bytes(8, "little"), b"[" * 100_000, b"{}"):
        for prefix in (b"", len(raw).to_bytes(8, "little")):
            path.write_bytes(prefix + raw + data)
            reseal(newest(run_dir), copy.deepcopy(manifest))
            heard.check(repr(raw)[:40])
    assert heard.passed_over > 20 * len(names)
    assert heard.taken < 0.1 * heard.passed_over


def test_every_count_of_a_run_has_its_range() -> None:
    assert set(trainer._COUNTS) == set(trainer._Counts.__dataclass_fields__)


@pytest.mark.parametrize(
    "raw",
    [b"[" * 100_000, b"\xff\xfe", b" " * (checkpoint.MANIFEST_BYTES + 1), b"", b"[NaN]"],
    ids=["deep", "no text", "huge", "empty", "no object"],
)
def test_a_manifest_that_cannot_be_read_is_passed_over(
    run_dir: Path, raw: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard(run_dir, caplog)
    (newest(run_dir) / "manifest.json").write_bytes(raw)
    heard.check("manifest")
    assert heard.passed_over == 1
    with pytest.raises(CheckpointError, match=r"manifest\.json: expected"):
        SAC.load(newest(run_dir))


def link_instead(path: Path) -> None:
    moved = path.parent.parent.parent / f"moved {path.name}"
    path.rename(moved)
    path.symlink_to(moved)


def fifo_instead(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder_instead(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("plant", [link_instead, fifo_instead, folder_instead])
@pytest.mark.parametrize("name", ["manifest.json", "learner.safetensors", "replay.safetensors"])
def test_what_is_no_regular_file_is_passed_over(
    run_dir: Path, plant: Callable[[Path], None], name: str, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard(run_dir, caplog)
    plant(newest(run_dir) / name)
    heard.check(name)
    assert heard.passed_over == 1


def test_a_link_to_a_checkpoint_is_passed_over(run_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    heard = Heard(run_dir, caplog)
    newest(run_dir).rename(run_dir.parent / "moved")
    newest(run_dir).symlink_to(run_dir.parent / "moved")
    heard.check("link")
    assert heard.passed_over == 1
    assert SAC.load(newest(run_dir)).timesteps == NEWEST  # the user has named it


@pytest.mark.parametrize("what", ["files", "checkpoint", "folder"])
def test_a_run_of_links_is_read_and_not_gone_on_with(
    run_dir: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Checkpoints may have been moved to a larger disk, or their files to a store of data."""
    moved = run_dir.parent / "moved"
    folder = run_dir / "checkpoints" if what == "folder" else newest(run_dir)
    folder.rename(moved)
    if what == "files":
        folder.mkdir()
        for path in moved.iterdir():
            (folder / path.name).symlink_to(path)
    else:
        folder.symlink_to(moved)
    before = content(moved)
    model = SAC.load(run_dir)
    assert model.timesteps == NEWEST
    assert model.loaded_from == newest(run_dir)
    assert not caplog.records
    if what == "folder":
        with pytest.raises(CheckpointError, match=r"checkpoints: .*expected a folder, got a link to .*moved"):
            SAC.resume(run_dir)
    else:
        assert SAC.resume(run_dir).timesteps == OLDER
        assert "link to" in caplog.text
    assert content(moved) == before


def test_a_run_does_not_begin_where_its_folder_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(tmp_path / "disk")
    for overwrite in (False, True):
        with pytest.raises(NotADirectoryError, match=r"expected a folder, got a link to .*disk"):
            small(tmp_path / "run", overwrite=overwrite)


@pytest.mark.parametrize("error", [PermissionError(13, "denied"), OSError(5, "I/O error"), MemoryError("too large")])
def test_an_error_of_the_system_is_passed_over(
    run_dir: Path, error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    heard = Heard(run_dir, caplog)
    opened = files.open_regular

    def refusing(path: Path, mode: Any) -> Any:
        if path == newest(run_dir) / "learner.safetensors":
            raise error
        return opened(path, mode)

    monkeypatch.setattr(files, "open_regular", refusing)
    heard.check(str(error))
    assert heard.passed_over == 1
    with pytest.raises(CheckpointError, match=re.escape(str(error))):
        SAC.load(newest(run_dir))


def test_what_else_lies_among_the_checkpoints_disturbs_nothing(run_dir: Path) -> None:
    folder = run_dir / "checkpoints"
    (folder / "step_²").mkdir()
    (folder / "step_٣").mkdir()
    (folder / "x.tmp").write_text("mine")
    (folder / "mine.old").mkdir()
    (folder / f"{checkpoint.step_name(180)}.tmp").symlink_to(run_dir)
    (folder / f"{checkpoint.step_name(160)}.tmp").write_text("")
    (folder / "best.tmp").mkdir()
    assert SAC.resume(run_dir).learn().timesteps == 200
    assert sorted(files.list_folder(folder)) == sorted(
        ["best", "mine.old", *(checkpoint.step_name(step) for step in (180, 200)), "step_²", "step_٣", "x.tmp"]
    )


@pytest.mark.parametrize("build", [SAC.resume, SAC.load])
@pytest.mark.parametrize("fields", [{"device": "tpu"}, {"num_env": 3}, {"seed": -1}], ids=str)
def test_a_setting_that_is_wrong_is_the_callers_fault_and_no_checkpoints(
    run_dir: Path, build: Callable[..., SAC], fields: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=next(iter(fields))) as caught:
        build(run_dir, **fields)
    assert not isinstance(caught.value, CheckpointError)


def test_a_loaded_model_of_edited_files_is_refused_by_a_checkpoint_error_alone(run_dir: Path) -> None:
    path, seen = newest(run_dir), 0
    manifest = checkpoint.read_manifest(path)
    for place in places_in(manifest):
        if place[0] in ("progress", "exploration"):  # which only a resume reads
            continue
        value = manifest
        for key in place:
            value = value[key]
        for mutation in mutations_of(value):
            reseal(path, replaced(manifest, place, mutation))
            with contextlib.suppress(CheckpointError):
                SAC.load(path)
                seen -= 1
            seen += 1
    assert seen > 200


def test_a_removal_that_fails_does_not_end_the_run(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rmtree = shutil.rmtree

    def refused(path: Path, *arguments: Any, **options: Any) -> None:
        if Path(path).suffix == ".tmp":
            raise PermissionError(13, "Permission denied", str(path))
        rmtree(path, *arguments, **options)

    monkeypatch.setattr(shutil, "rmtree", refused)
    model = SAC.resume(run_dir).learn()
    assert (model.summary or {})["status"] == "completed"
    assert "an old checkpoint could not be removed" in caplog.text


def test_infinite_and_negative_state_is_refused(run_dir: Path) -> None:
    path = newest(run_dir)
    for name, value in (("actor.layers.0.bias", torch.inf), ("actor_optimizer.exp_avg_sq", -1.0)):
        tensors, manifest = checkpoint.load(path)
        for key in ("format", "schema_version", "files", "sizes", "manifest_sha256"):
            del manifest[key]
        tensors["learner"][name].view(-1)[0] = value
        checkpoint.save(path.with_name("changed"), tensors, manifest)
        with pytest.raises(CheckpointError, match=f"{name}: expected"):
            SAC.load(path.with_name("changed"))
