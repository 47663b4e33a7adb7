"""Checkpoints: a directory of safetensors files and one JSON manifest. Never a pickle, never half written.

    NAME/
      <group>.safetensors    one file per group of tensors ("learner", ...)
      manifest.json          format, schema_version, size and sha256 of each file, and what the writer adds

A checkpoint is written to `NAME.tmp/`, each file synced to the disk, the manifest last, and then renamed: a
directory called NAME is whole, whenever the process or the machine stopped. One that had the name before is
`NAME.old/` for the moment between two renames, and is found there. Groups are separate files, so that what is
large (a replay buffer) can be left out, or skipped when it is not needed: it is written from where it lies and
read as a mapped file, without a second copy in memory.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import safetensors
import safetensors.torch
import torch

from sacfast import files, output

FORMAT = "sacfast-checkpoint"
SCHEMA_VERSION = 3
READABLE_VERSIONS = (1, 2, SCHEMA_VERSION)
"""Version 1 held the learner alone, without sizes and the manifest's own sum. Version 2 lacked the counts
of a run that stopped within a step, and the actions that bring the environments back."""
MANIFEST = "manifest.json"
MANIFEST_BYTES = 16 * 2**20
"""Most bytes of a manifest that is read; those of tasks with thousands of actions have some hundred thousand."""
FAULT_CHARACTERS = 2000
"""Most characters that are said of one checkpoint's fault: it may quote what is in a file."""
STEP_PREFIX = "step_"
_SUFFIX = ".safetensors"
_RESERVED_KEYS = ("format", "schema_version", "files", "sizes", "manifest_sha256")
_STEP = re.compile(rf"{STEP_PREFIX}(\d+)", re.ASCII)
_LEFTOVER = re.compile(rf"(?:{STEP_PREFIX}\d+|best)(\.tmp|\.old)", re.ASCII)
_LOG = output.logger(__name__)
_Result = TypeVar("_Result")


class CheckpointError(ValueError):
    """A checkpoint that cannot be trusted or understood; the message names the file and what was expected."""


class Checkpoint(NamedTuple):
    """What a checkpoint directory holds."""

    tensors: dict[str, dict[str, torch.Tensor]]  # by group, then by name
    manifest: dict[str, Any]


def save(directory: Path | str, tensors: Mapping[str, Mapping[str, torch.Tensor]], manifest: Mapping[str, Any]) -> Path:
    """Write groups of named tensors and a JSON manifest as one checkpoint, whole or not at all.

    Args:
        directory: the checkpoint's name. A checkpoint already there is replaced, anything else is refused.
        tensors: by group and name, any shapes, dtypes and devices; each group becomes `<group>.safetensors`.
        manifest: JSON-safe values. `format`, `schema_version` and `files` are added.

    Returns:
        The checkpoint's path.

    Raises:
        ValueError: a group's name that is not a plain identifier, or a reserved key in the manifest.
        FileExistsError: `directory` exists and is not a checkpoint.
        OSError: it could not be written, as on a full disk. What was written is removed, and a checkpoint that
            had the name before is still there.
    """
    directory = Path(directory)
    for group in tensors:
        if not group.isidentifier():
            raise ValueError(f"tensors: expected group names like 'learner', got {group!r}")
    if reserved := [key for key in _RESERVED_KEYS if key in manifest]:
        raise ValueError(f"manifest: expected none of the reserved keys {_RESERVED_KEYS}, got {reserved}")
    if directory.exists() and not is_checkpoint(directory) and not _is_empty_directory(directory):
        raise FileExistsError(f"directory: expected a new path or a checkpoint to replace, got {directory}")

    partial = _beside(directory, ".tmp")
    files.remove(partial)
    try:
        partial.mkdir(parents=True)
        _write(partial, tensors, manifest)
        _rename_over(partial, directory)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)  # on a full disk its space is needed
        raise
    return directory


def _write(partial: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], manifest: Mapping[str, Any]) -> None:
    """Write the files of a checkpoint, the manifest last, and push all to the disk."""
    sums, sizes = {}, {}
    for group, named in tensors.items():
        path = partial / f"{group}{_SUFFIX}"
        try:
            safetensors.torch.save_file(_owned(named), path)
        except safetensors.SafetensorError as error:  # it wraps those of the system
            raise OSError(f"{path}: {error}") from error
        _sync(path)
        sums[path.name], sizes[path.name] = _sha256(path), path.stat().st_size
    content = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **manifest, "files": sums, "sizes": sizes}
    content["manifest_sha256"] = _manifest_sha256(content)
    (partial / MANIFEST).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    _sync(partial / MANIFEST)
    _sync(partial)


def load(
    directory: Path | str,
    groups: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
    manifest: dict[str, Any] | None = None,
) -> Checkpoint:
    """Read a checkpoint after checking its schema and the sha256 of every file that is read.

    Args:
        directory: a checkpoint written by `save`.
        groups: the groups to read; None: all.
        device: where the tensors go.
        manifest: what `read_manifest` has returned for `directory`; None: it is read.

    Raises:
        CheckpointError: not a checkpoint, another schema version, a file missing, changed or of a foreign
            format, or a group that is not in it.
    """
    directory = _present(Path(directory))
    manifest = read_manifest(directory) if manifest is None else manifest
    wanted = [name.removesuffix(_SUFFIX) for name in manifest["files"]] if groups is None else list(groups)
    tensors = {}
    for group in wanted:
        path = directory / f"{group}{_SUFFIX}"
        _check_file(path, manifest)
        try:
            tensors[group] = safetensors.torch.load_file(path, device=str(device))
        except Exception as error:  # whoever changes a header can write its sum anew: errors of many types
            raise CheckpointError(
                f"{path}: expected a safetensors file, got {type(error).__name__}: {error}"
            ) from error
    return Checkpoint(tensors, manifest)


def _check_file(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the manifest lists this file, and its size and sum are as listed."""
    name, sums = path.name, manifest["files"]
    if name not in sums:
        raise CheckpointError(f"{path.parent}: expected a group {path.stem!r}, got only {sorted(sums)}")
    if not os.path.lexists(path):
        raise CheckpointError(f"{path}: expected the file that {MANIFEST} lists, but it is missing")
    try:
        with files.open_regular(files.target_of(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != manifest.get("sizes", {}).get(name, size):
                raise CheckpointError(
                    f"{path}: expected {manifest['sizes'][name]} bytes, got {size}: the file was cut or grown"
                )
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path}: expected a file that can be read, got an error: {error}") from error
    if found != sums[name]:
        raise CheckpointError(f"{path}: expected sha256 {sums[name]}, got {found}: the file was changed")


def read_manifest(directory: Path | str) -> dict[str, Any]:
    """Read and check a checkpoint's manifest without reading its tensors.

    Raises:
        CheckpointError: not a checkpoint, another schema version, or files listed that are not safetensors.
    """
    directory = _present(Path(directory))
    path = directory / MANIFEST
    if directory.is_file():
        raise CheckpointError(
            f"{directory}: expected a checkpoint directory, got a file; pickles (.pt, .pth, .pkl, .zip) "
            "are never loaded, for they can run code"
        )
    if not os.path.lexists(path):
        raise CheckpointError(f"{directory}: expected a checkpoint directory with a {MANIFEST}, found none")
    try:
        content = files.read_bytes(files.target_of(path), MANIFEST_BYTES)
    except OSError as error:
        raise CheckpointError(f"{path}: expected a manifest that can be read, got an error: {error}") from error
    try:
        manifest = json.loads(content.decode())
        content_sha256 = _manifest_sha256(manifest) if isinstance(manifest, dict) else None
    except (ValueError, RecursionError) as error:  # of UTF-8 or of JSON; nested too deep
        raise CheckpointError(f"{path}: expected JSON, got an error: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT!r}, got {str(manifest)[:200]}")
    version = manifest.get("schema_version")
    if type(version) is not int or version not in READABLE_VERSIONS:
        raise CheckpointError(
            f"{path}: expected one of schema_version {', '.join(map(str, READABLE_VERSIONS))}, got {version}"
        )
    _check_listing(path, manifest, version)
    if (version > 1 or "manifest_sha256" in manifest) and manifest.get("manifest_sha256") != content_sha256:
        raise CheckpointError(
            f"{path}: expected the content that its manifest_sha256 was taken of: the file was changed"
        )
    return manifest


def held(manifest: Mapping[str, Any], groups: Iterable[str]) -> list[str]:
    """Return which of the groups a checkpoint has, by its manifest."""
    return [group for group in groups if f"{group}{_SUFFIX}" in manifest["files"]]


def _check_listing(path: Path, manifest: Mapping[str, Any], version: int) -> None:
    """Raise CheckpointError unless a manifest lists safetensors files, each with its sum and, from 2 on, its size."""
    sums, sizes = manifest.get("files"), manifest.get("sizes")
    if not isinstance(sums, dict):
        raise CheckpointError(f"{path}: expected 'files' to map names to sha256, got {sums!r}")
    for name in sums:
        if not (name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX).isidentifier()):
            raise CheckpointError(f"{path.parent / name}: expected only <group>{_SUFFIX} files, never a pickle")
    is_listed = (
        isinstance(sizes, dict) and set(sizes) == set(sums) and all(type(size) is int for size in sizes.values())
    )
    if not (is_listed or (version == 1 and sizes is None)):
        raise CheckpointError(f"{path}: expected 'sizes' to map the names of 'files' to bytes, got {sizes!r}")


def is_checkpoint(directory: Path) -> bool:
    """Tell whether a directory has a checkpoint's manifest, or a link to one."""
    return (directory / MANIFEST).is_file()


def step_name(step: int) -> str:
    """Return the name of a run's checkpoint after `step` stored transitions; names sort by step."""
    return f"{STEP_PREFIX}{step:012d}"


def step_of(path: Path) -> int | None:
    """Return the transitions that the name of a run's checkpoint gives; None for another name."""
    found = _STEP.fullmatch(path.name)
    return None if found is None else int(found[1])


def candidates(folder: Path, follow_links: bool = False) -> list[Path]:
    """Return all that is named `step_N` in a run's checkpoints folder, sound or not, the oldest first.

    A save that was killed between its two renames leaves a checkpoint under the name `step_N.old`: it counts.

    Raises:
        OSError: `folder` is there, and is no folder or cannot be listed. A link to a folder is one with `follow_links`.
    """
    listed = files.target_of(folder) if follow_links and folder.is_dir() else folder
    names = {name.removesuffix(".old") for name in files.list_folder(listed)}
    found = {folder / name: step for name in names if (step := step_of(folder / name)) is not None}
    return sorted(found, key=lambda path: found[path])


def steps(folder: Path) -> list[Path]:
    """Return the whole checkpoints `step_N` in a run's checkpoints folder, the oldest first. Raises as `candidates`."""
    return [path for path in candidates(folder) if files.is_folder(path) and is_checkpoint(path)]


def take(path: Path | str, read: Callable[[Path], _Result], follow_links: bool = True) -> _Result:
    """Return what `read` makes of the checkpoint `path`, or of the newest one in the run directory `path`.

    A checkpoint of a run that `read` refuses, by whatever exception, is passed over for the one before it, and a
    warning says so. A package that is not installed is no checkpoint's fault.

    Args:
        path: a checkpoint or a run directory.
        read: is called with the path of a checkpoint.
        follow_links: whether a run's checkpoints, their folder and their files may be links, as a cache of downloads
            and a larger disk have it. False: a linked one is refused, for a run that goes on writes there.

    Raises:
        CheckpointError: neither a checkpoint nor a run directory with one, or `read` has refused all.
        ImportError: raised by `read`.
    """
    path = Path(path)
    try:
        is_single = path.is_file() or os.path.lexists(_present(path) / MANIFEST)
        found = [path] if is_single else candidates(path / "checkpoints", follow_links)
    except OSError as error:
        raise CheckpointError(f"{path}: expected checkpoints that can be listed, got an error: {error}") from error
    if not found:
        raise CheckpointError(f"{path}: expected a checkpoint, or a run directory with checkpoints, found neither")
    faults: list[str] = []
    for candidate in reversed(found):
        try:
            if not follow_links:
                _check_no_links(_present(candidate))
            result = read(candidate)
        except ImportError:
            raise
        # A file can be wrong in more ways than one type of exception tells; none of them may keep from the next.
        except Exception as error:
            faults.append(_describe(error, candidate))
            continue
        if faults:
            _LOG.warning("checkpoint passed over: %s; taken instead: %s", "; ".join(faults), candidate)
        return result
    if is_single:
        raise CheckpointError(faults[0])
    raise CheckpointError(f"{path}: found no checkpoint that can be taken: {'; '.join(faults)}")


def _check_no_links(directory: Path) -> None:
    """Raise OSError for a checkpoint that is a link, or has a file that is one."""
    for name in files.list_folder(directory):
        if (directory / name).is_symlink():
            raise OSError(errno.ELOOP, f"expected a regular file, got {files.kind_of(directory / name)}", name)


def _describe(error: Exception, candidate: Path) -> str:
    """Return the message of `error`, with the checkpoint's path, and the error's type where it is a foreign one."""
    said = str(error) if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
    said = said if len(said) <= FAULT_CHARACTERS else f"{said[:FAULT_CHARACTERS]}..."
    return said if said.startswith(str(candidate)) else f"{candidate}: {said}"


def find(path: Path | str, groups: Iterable[str] = ("learner",)) -> Path:
    """Return `path` if it is a checkpoint, or the newest checkpoint of the run directory `path` whose files are sound.

    Args:
        path: a checkpoint or a run directory.
        groups: the groups that must be there and sound.

    Raises:
        CheckpointError: as `take`.
    """

    def checked(candidate: Path) -> Path:
        manifest = read_manifest(candidate)
        for group in groups:
            _check_file(_present(candidate) / f"{group}{_SUFFIX}", manifest)
        return candidate

    return take(path, checked)


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the newest `count` checkpoints `step_N` of a run's checkpoints folder.

    One that cannot be removed stays, and a warning says so.
    """
    for path in steps(folder)[:-count]:
        # Renamed first: what is half removed must not look like a checkpoint.
        doomed = _beside(path, ".tmp")
        try:
            files.remove(doomed)
            path.rename(doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            _LOG.warning("an old checkpoint could not be removed: %s", error)


def tidy(folder: Path, step: int) -> None:
    """Prepare a run's checkpoints folder for going on from its checkpoint at `step`.

    What a killed process left half written is removed, and what it was replacing gets its name back. Newer checkpoints,
    which were found damaged, are set aside as `step_N.damaged`. Whatever else lies there is left alone. What cannot be
    moved or removed stays, and a warning says so.
    """
    for name in files.list_folder(folder):
        path = folder / name
        try:
            if leftover := _LEFTOVER.fullmatch(name):
                whole = path.with_suffix("")
                if leftover[1] == ".old" and not os.path.lexists(whole):
                    path.rename(whole)
                else:
                    files.remove(path)
            elif (step_of(path) or 0) > step:
                path.rename(files.free_name(_beside(path, ".damaged")))
        except OSError as error:
            _LOG.warning("%s: could not be tidied away: %s", path, error)


def _present(directory: Path) -> Path:
    """Return where a checkpoint lies whose replacement was cut short between two renames."""
    replaced = _beside(directory, ".old")
    return replaced if not directory.exists() and is_checkpoint(replaced) else directory


def _beside(directory: Path, ending: str) -> Path:
    return directory.with_name(directory.name + ending)


def _owned(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the values on the host, copied only where they share memory, which safetensors refuses."""
    host = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in host.values())
    shared = {name for name, tensor in host.items() if users[tensor.untyped_storage().data_ptr()] > 1}
    return {name: tensor.clone() if name in shared else tensor for name, tensor in host.items()}


def _sync(path: Path, kind: int = os.O_NOFOLLOW) -> None:
    """Push the content of a file, or of a directory with `kind` os.O_DIRECTORY, to the disk."""
    descriptor = os.open(path, os.O_RDONLY | kind)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_over(partial: Path, directory: Path) -> None:
    """Give a finished directory its name; a checkpoint that had the name goes only after that."""
    replaced = _beside(directory, ".old")
    if is_checkpoint(directory):
        files.remove(replaced)
        directory.rename(replaced)
    partial.rename(directory)
    _sync(directory.parent, os.O_DIRECTORY)  # the user has named it, so it may be reached by a link
    files.remove(replaced)


def _sha256(path: Path) -> str:
    with files.open_regular(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_sha256(content: Mapping[str, Any]) -> str:
    """Return the sum over a manifest's content, its own sum left out."""
    rest = {key: value for key, value in content.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _is_empty_directory(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
