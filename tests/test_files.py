"""Files in a directory that others can write to."""

import errno
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sacfast import files


def link(path: Path) -> None:
    path.symlink_to(path.parent / "victim")


def dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def unix_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


PLANTED: list[tuple[Callable[[Path], None], str]] = [
    (link, "a link to .*victim"),
    (dangling, "a link to .*nowhere"),
    (os.mkfifo, "a FIFO"),
    (unix_socket, "a socket"),
    (Path.mkdir, "[Ii]s a directory"),
]
planted = pytest.mark.parametrize(("plant", "said"), PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "victim").write_text("precious")
    return tmp_path


@planted
def test_only_regular_files_are_read_and_appended_to(folder: Path, plant: Callable[[Path], None], said: str) -> None:
    plant(folder / "file")
    with pytest.raises(OSError, match=said):
        files.read_bytes(folder / "file", at_most=100)
    for mode in ("ab", "ab+", "xb"):
        with pytest.raises(OSError, match="file"):
            files.open_regular(folder / "file", mode)
    assert (folder / "victim").read_text() == "precious"
    assert not (folder / "nowhere").exists()


def test_a_fifo_with_a_reader_is_no_file_to_append_to(folder: Path) -> None:
    os.mkfifo(folder / "file")
    reader = os.open(folder / "file", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(OSError, match="expected a regular file, got a FIFO"):
        files.open_regular(folder / "file", "ab")
    os.close(reader)


@planted
def test_what_was_planted_at_the_temporary_name_is_not_written_through(
    folder: Path, plant: Callable[[Path], None], said: str
) -> None:
    plant(folder / "file.tmp")
    files.write_bytes(folder / "file", b"content")
    assert (folder / "file").read_bytes() == b"content"
    assert (folder / "victim").read_text() == "precious"
    assert sorted(path.name for path in folder.iterdir()) == ["file", "victim"]


def test_a_link_is_replaced_and_not_followed(folder: Path) -> None:
    link(folder / "file")
    files.write_bytes(folder / "file", b"content")
    assert not (folder / "file").is_symlink()
    assert (folder / "victim").read_text() == "precious"


def test_a_file_that_is_too_large_is_not_read(folder: Path) -> None:
    assert files.read_bytes(folder / "victim", at_most=8) == b"precious"
    with pytest.raises(OSError, match="expected at most 7 bytes, got 8"):
        files.read_bytes(folder / "victim", at_most=7)
    with (folder / "huge").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(OSError, match=f"at most 1000 bytes, got {1 << 40}"):
        files.read_bytes(folder / "huge", at_most=1000)


def test_a_write_that_fails_leaves_the_old_content_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        files.write_bytes(folder / "victim", b"new")
    assert [(path.name, path.read_text()) for path in folder.iterdir()] == [("victim", "precious")]


def test_json_is_strict_and_its_folder_is_made(folder: Path) -> None:
    files.write_json(folder / "new" / "file.json", {"a": [1, 2.5]})
    assert (folder / "new" / "file.json").read_text() == '{\n  "a": [\n    1,\n    2.5\n  ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(folder / "new" / "file.json", {"a": float("nan")})


def test_a_folder_is_listed_and_nothing_in_its_place(folder: Path) -> None:
    assert files.list_folder(folder) == ["victim"]
    assert files.list_folder(folder / "absent") == []
    (folder / "to_folder").symlink_to(folder)
    for name in ("victim", "to_folder"):
        with pytest.raises(NotADirectoryError, match=re.escape(f"{folder / name}")):
            files.list_folder(folder / name)


def test_removing_a_link_leaves_what_it_points_to(folder: Path) -> None:
    (folder / "kept").mkdir()
    (folder / "kept" / "file").write_text("kept")
    (folder / "link").symlink_to(folder / "kept")
    (folder / "tree").mkdir()
    (folder / "tree" / "link").symlink_to(folder / "kept")
    for name in ("link", "tree", "absent"):
        files.remove(folder / name)
    assert sorted(path.name for path in folder.iterdir()) == ["kept", "victim"]
    assert (folder / "kept" / "file").read_text() == "kept"


def test_a_free_name_is_none_that_is_taken(folder: Path) -> None:
    assert files.free_name(folder / "new") == folder / "new"
    dangling(folder / "victim.1")
    assert files.free_name(folder / "victim") == folder / "victim.2"
