"""Files in a directory that others can write to: regular files alone, of bounded size, and no link is followed.

A link in a run directory would make its owner overwrite any file of his, a FIFO would make him wait for ever, and a
file of a terabyte would fill his memory. The directory itself may be reached by a link, and who only reads a checkpoint
follows links to regular files: see `target_of`.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal


def open_regular(path: Path, mode: Literal["rb", "ab", "ab+", "xb"]) -> io.FileIO:
    """Open a regular file without a buffer, in one of the modes of `open`; "xb" makes a file that must not exist.

    Raises:
        OSError: it is a link, a folder, a FIFO, a socket or a device; or as `open` raises.
    """

    def opener(name: str, flags: int) -> int:
        return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)

    try:
        file = io.FileIO(str(path), mode, opener=opener)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a FIFO that nobody reads
            raise OSError(error.errno, f"expected a regular file, got {kind_of(path)}", str(path)) from error
        raise
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, f"expected a regular file, got {kind_of(path)}", str(path))
    return file


def read_bytes(path: Path, at_most: int) -> bytes:
    """Return the content of a regular file of at most `at_most` bytes.

    Raises:
        OSError: as `open_regular`, or the file is larger.
    """
    with io.BufferedReader(open_regular(path, "rb")) as file:
        size = os.fstat(file.fileno()).st_size
        content = file.read(at_most + 1) if size <= at_most else b""
    if size > at_most or len(content) > at_most:
        raise OSError(errno.EFBIG, f"expected at most {at_most} bytes, got {max(size, len(content))}", str(path))
    return content


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part.

    Whatever lies at `path` is replaced: a link goes, and what it points to stays as it is.

    Raises:
        OSError: it could not be written, as on a full disk; the old content is still there.
    """
    partial = path.with_name(f"{path.name}.tmp")
    remove(partial)
    try:
        with io.BufferedWriter(open_regular(partial, "xb")) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)  # on a full disk its space is needed
        raise


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write strict JSON, as `write_bytes`; folders that are missing are made.

    Raises:
        OSError: as `write_bytes`.
        ValueError: a number that is not finite.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, (json.dumps(content, indent=2, allow_nan=False) + "\n").encode())


def target_of(path: Path) -> Path:
    """Return where `path` leads to through links, whether or not anything lies there."""
    return Path(os.path.realpath(path))


def is_folder(path: Path) -> bool:
    """Tell whether a folder lies at `path` itself, not behind a link."""
    return not path.is_symlink() and path.is_dir()


def list_folder(path: Path) -> list[str]:
    """Return the sorted names in a folder; none where nothing lies at `path`.

    Raises:
        OSError: something else lies there, or it cannot be listed.
    """
    check_folder(path)
    return sorted(os.listdir(path)) if is_folder(path) else []  # noqa: PTH208 - names, not paths


def check_folder(path: Path) -> None:
    """Raise OSError where something else than a folder lies at `path`, such as a link to one."""
    try:
        found = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(found):
        raise NotADirectoryError(errno.ENOTDIR, f"expected a folder, got {kind_of(path)}", str(path))


def remove(path: Path) -> None:
    """Remove a file, a folder with all in it, or a link but not what it points to; nothing where there is none."""
    if is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def free_name(path: Path) -> Path:
    """Return `path`, or the first of path.1, path.2, ... at which nothing lies."""
    found, number = path, 0
    while os.path.lexists(found):
        number += 1
        found = path.with_name(f"{path.name}.{number}")
    return found


def kind_of(path: Path) -> str:
    """Say in words what lies at `path`."""
    try:
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            return f"a link to {path.readlink()}"
    except OSError as error:
        return f"nothing that can be looked at ({error.strerror})"
    kinds = {stat.S_IFREG: "a file", stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(mode), "a device")
