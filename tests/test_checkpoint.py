import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sacfast import checkpoint
from sacfast.checkpoint import CheckpointError


def some_tensors() -> dict[str, dict[str, torch.Tensor]]:
    flat = torch.arange(12, dtype=torch.float32)
    return {
        "learner": {
            # Views of one buffer, as the networks' parameters are.
            "actor.weight": flat[:6].view(2, 3),
            "actor.bias": flat[6:],
            "gradient_updates": torch.tensor(7),
        },
        "noise": {"state": torch.tensor([1, 2], dtype=torch.uint8), "transposed": flat.view(3, 4).T},
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return checkpoint.save(tmp_path / "model", some_tensors(), {"env": {"env_id": "Pendulum-v1"}})


def test_round_trip_keeps_names_values_and_dtypes(saved: Path) -> None:
    tensors, manifest = checkpoint.load(saved)
    expected = some_tensors()
    assert {group: set(named) for group, named in tensors.items()} == {
        group: set(named) for group, named in expected.items()
    }
    for group, named in expected.items():
        for name, value in named.items():
            assert tensors[group][name].dtype == value.dtype
            assert torch.equal(tensors[group][name], value)
    assert manifest["env"] == {"env_id": "Pendulum-v1"}
    assert manifest["schema_version"] == checkpoint.SCHEMA_VERSION


def test_only_the_wanted_groups_are_read(saved: Path) -> None:
    (saved / "noise.safetensors").unlink()
    assert set(checkpoint.load(saved, groups=["learner"]).tensors) == {"learner"}
    with pytest.raises(CheckpointError, match="expected a group 'replay'"):
        checkpoint.load(saved, groups=["replay"])


def test_nothing_partial_is_left_and_leftovers_do_not_disturb(tmp_path: Path) -> None:
    leftover = tmp_path / "model.tmp"
    leftover.mkdir()
    (leftover / "learner.safetensors").write_bytes(b"half")
    checkpoint.save(tmp_path / "model", some_tensors(), {})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert sorted(path.name for path in (tmp_path / "model").iterdir()) == [
        "learner.safetensors",
        "manifest.json",
        "noise.safetensors",
    ]


def test_a_checkpoint_is_replaced_and_nothing_else_is(saved: Path, tmp_path: Path) -> None:
    checkpoint.save(saved, {"learner": {"only": torch.ones(1)}}, {})
    assert set(checkpoint.load(saved).tensors["learner"]) == {"only"}
    assert [path.name for path in tmp_path.iterdir()] == ["model"]

    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("words")
    with pytest.raises(FileExistsError, match="thesis"):
        checkpoint.save(other, some_tensors(), {})
    assert (other / "chapter.txt").read_text() == "words"


def test_every_write_is_synced_before_the_name_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    fsync, rename = os.fsync, Path.rename

    def spy_fsync(descriptor: int) -> None:
        events.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    def spy_rename(self: Path, target: Path) -> Path:
        events.append(f"{self.name} -> {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", spy_fsync)
    monkeypatch.setattr(Path, "rename", spy_rename)
    checkpoint.save(tmp_path / "model", some_tensors(), {})
    files = ["learner.safetensors", "noise.safetensors", "manifest.json"]
    assert events == [*files, "model.tmp", "model.tmp -> model", tmp_path.name]


def test_a_checkpoint_is_saved_through_a_link_to_its_folder(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk")
    for value in (1.0, 2.0):
        checkpoint.save(tmp_path / "link" / "model", {"learner": {"only": torch.full((1,), value)}}, {})
        assert [path.name for path in (tmp_path / "disk").iterdir()] == ["model"]
        assert checkpoint.load(tmp_path / "disk" / "model").tensors["learner"]["only"].item() == value


def linked_copy(saved: Path) -> Path:
    """A folder of links to a checkpoint's files, under other names, as a cache of downloads has it."""
    blobs, linked = saved.with_name("blobs"), saved.with_name("linked")
    saved.rename(blobs)
    linked.mkdir()
    for number, path in enumerate(sorted(blobs.iterdir())):
        (linked / path.name).symlink_to(path.rename(blobs / str(number)))
    return linked


def test_a_checkpoint_of_links_is_read_where_nothing_is_written(saved: Path) -> None:
    linked = linked_copy(saved)
    assert set(checkpoint.load(linked).tensors) == {"learner", "noise"}
    assert checkpoint.take(linked, lambda path: path) == linked
    with pytest.raises(CheckpointError, match=r"expected a regular file, got a link to .*blobs/0"):
        checkpoint.take(linked, lambda path: path, follow_links=False)


@pytest.mark.parametrize(("plant", "said"), [(os.mkfifo, "a FIFO"), (Path.mkdir, "directory")])
@pytest.mark.parametrize("name", ["learner.safetensors", "manifest.json"])
def test_a_link_to_no_regular_file_is_refused(saved: Path, plant: Callable[[Path], None], said: str, name: str) -> None:
    linked = linked_copy(saved)
    (linked / name).readlink().unlink()
    plant((linked / name).readlink())
    with pytest.raises(CheckpointError, match=f"{name}: .*{said}"):
        checkpoint.load(linked)


def test_a_link_to_nothing_is_refused_by_name(saved: Path) -> None:
    linked = linked_copy(saved)
    shutil.rmtree(saved.with_name("blobs"))
    with pytest.raises(CheckpointError, match=r"manifest\.json: .*No such file .*blobs"):
        checkpoint.take(linked, checkpoint.load)


def test_an_interrupted_write_leaves_the_old_checkpoint(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="disk full"):
            checkpoint.save(saved, {"learner": {"only": torch.ones(1)}}, {})
    assert "actor.weight" in checkpoint.load(saved).tensors["learner"]


def test_a_changed_file_is_refused_by_name(saved: Path) -> None:
    path = saved / "learner.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"learner\.safetensors: expected sha256"):
        checkpoint.load(saved)


def test_a_missing_file_is_refused_by_name(saved: Path) -> None:
    (saved / "noise.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"noise\.safetensors.*missing"):
        checkpoint.load(saved)


@pytest.mark.parametrize("change", [{"schema_version": 99}, {"schema_version": None}, {"format": "other"}])
def test_another_schema_is_refused(saved: Path, change: dict[str, object]) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    (saved / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(
        CheckpointError, match=r"expected (one of schema_version 1, 2, 3|format 'sacfast-checkpoint'), got"
    ):
        checkpoint.load(saved)


@pytest.mark.parametrize("content", ["[]", "{", "3", '"text"'])
def test_a_manifest_that_is_no_object_is_refused(saved: Path, content: str) -> None:
    (saved / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        checkpoint.load(saved)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("exploded"),)


def test_a_pickle_is_never_opened(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Bomb(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt: .*pickle"):
        checkpoint.load(tmp_path / "model.pt")

    (saved / "learner.pkl").write_bytes(pickle.dumps(Bomb()))
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"] = {"learner.pkl": "0" * 64}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"learner\.pkl: .*pickle"):
        checkpoint.load(saved)
    assert not (tmp_path / "exploded").exists()


def test_the_manifest_cannot_point_outside(saved: Path) -> None:
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["files"] = {"../elsewhere.safetensors": "0" * 64}
    (saved / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="elsewhere"):
        checkpoint.load(saved)


@pytest.mark.parametrize("group", ["../x", "a.b", "", "a/b"])
def test_group_names_are_plain(tmp_path: Path, group: str) -> None:
    with pytest.raises(ValueError, match="group names"):
        checkpoint.save(tmp_path / "model", {group: {}}, {})
    assert not list(tmp_path.iterdir())


def test_reserved_manifest_keys_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="schema_version"):
        checkpoint.save(tmp_path / "model", {}, {"schema_version": 2})


def test_find_takes_a_checkpoint_or_the_newest_of_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    for step in (900, 10_000, 2_000):
        checkpoint.save(folder / checkpoint.step_name(step), some_tensors(), {})
    newest = folder / checkpoint.step_name(10_000)
    for unfinished in (f"{checkpoint.step_name(20_000)}.tmp", checkpoint.step_name(30_000)):
        (folder / unfinished).mkdir()
    assert checkpoint.find(tmp_path) == newest
    assert checkpoint.find(newest) == newest


def test_find_refuses_what_is_neither(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(CheckpointError, match="expected a checkpoint, or a run directory"):
            checkpoint.find(path)
