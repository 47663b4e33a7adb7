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

import hashlib
import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
import torch

FORMAT = "sacfast-checkpoint"
SCHEMA_VERSION = 3
READABLE_VERSIONS = (1, 2, SCHEMA_VERSION)
"""Version 1 held the learner alone, without sizes and the manifest's own sum. Version 2 did not tell what of a step
was still to be done, nor hold the actions that bring the environments back."""
MANIFEST = "manifest.json"
STEP_PREFIX = "step_"
_SUFFIX = ".safetensors"
_RESERVED_KEYS = ("format", "schema_version", "files", "sizes", "manifest_sha256")
_LOG = logging.getLogger(__name__)


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
    if partial.exists():
        shutil.rmtree(partial)
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
    files, sizes = {}, {}
    for group, named in tensors.items():
        path = partial / f"{group}{_SUFFIX}"
        try:
            safetensors.torch.save_file(_owned(named), path)
        except safetensors.SafetensorError as error:  # it wraps those of the system
            raise OSError(f"{path}: {error}") from error
        _sync(path)
        files[path.name], sizes[path.name] = _sha256(path), path.stat().st_size
    content = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **manifest, "files": files, "sizes": sizes}
    content["manifest_sha256"] = _manifest_sha256(content)
    (partial / MANIFEST).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    _sync(partial / MANIFEST)
    _sync(partial)


def load(
    directory: Path | str,
    groups: Iterable[str] | None = None,
    device: torch.device | str = "cpu",
    verified: bool = False,
) -> Checkpoint:
    """Read a checkpoint after checking its schema and the sha256 of every file that is read.

    Args:
        directory: a checkpoint written by `save`.
        groups: the groups to read; None: all.
        device: where the tensors go.
        verified: whether `find` has just checked these groups, so that their sums need not be taken again.

    Raises:
        CheckpointError: not a checkpoint, another schema version, a file missing, changed or of a foreign
            format, or a group that is not in it.
    """
    directory = _present(Path(directory))
    manifest = read_manifest(directory)
    wanted = [name.removesuffix(_SUFFIX) for name in manifest["files"]] if groups is None else list(groups)
    tensors = {}
    for group in wanted:
        path = directory / f"{group}{_SUFFIX}"
        if not verified:
            _check_file(path, manifest)
        tensors[group] = safetensors.torch.load_file(path, device=str(device))
    return Checkpoint(tensors, manifest)


def _check_file(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the manifest lists this file, and its size and sum are as listed."""
    name, files = path.name, manifest["files"]
    if name not in files:
        raise CheckpointError(f"{path.parent}: expected a group {path.stem!r}, got only {sorted(files)}")
    if not path.is_file():
        raise CheckpointError(f"{path}: expected the file that {MANIFEST} lists, but it is missing")
    size = path.stat().st_size
    if size != manifest.get("sizes", {}).get(name, size):
        raise CheckpointError(
            f"{path}: expected {manifest['sizes'][name]} bytes, got {size}: the file was cut or grown"
        )
    if (found := _sha256(path)) != files[name]:
        raise CheckpointError(f"{path}: expected sha256 {files[name]}, got {found}: the file was changed")


def read_manifest(directory: Path | str) -> dict[str, Any]:
    """Read and check a checkpoint's manifest without reading its tensors.

    Raises:
        CheckpointError: not a checkpoint, another schema version, or files listed that are not safetensors.
    """
    directory = _present(Path(directory))
    if directory.is_file():
        raise CheckpointError(
            f"{directory}: expected a checkpoint directory, got a file; pickles (.pt, .pth, .pkl, .zip) "
            "are never loaded, for they can run code"
        )
    if not is_checkpoint(directory):
        raise CheckpointError(f"{directory}: expected a checkpoint directory with a {MANIFEST}, found none")
    path = directory / MANIFEST
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:  # of UTF-8 or of JSON
        raise CheckpointError(f"{path}: expected JSON, got an error: {error}") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT!r}, got {manifest!r:.200}")
    if (version := manifest.get("schema_version")) not in READABLE_VERSIONS:
        raise CheckpointError(
            f"{path}: expected one of schema_version {', '.join(map(str, READABLE_VERSIONS))}, got {version}"
        )
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{path}: expected 'files' to map names to sha256, got {files!r}")
    for name in files:
        if not (name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX).isidentifier()):
            raise CheckpointError(f"{directory / name}: expected only <group>{_SUFFIX} files, never a pickle")
    if version > 1 and manifest.get("manifest_sha256") != _manifest_sha256(manifest):
        raise CheckpointError(
            f"{path}: expected the content that its manifest_sha256 was taken of: the file was changed"
        )
    return manifest


def held(manifest: Mapping[str, Any], groups: Iterable[str]) -> list[str]:
    """Return which of the groups a checkpoint has, by its manifest."""
    return [group for group in groups if f"{group}{_SUFFIX}" in manifest["files"]]


def is_checkpoint(directory: Path) -> bool:
    """Tell whether a directory has a checkpoint's manifest."""
    return (directory / MANIFEST).is_file()


def step_name(step: int) -> str:
    """Return the name of a run's checkpoint after `step` stored transitions; names sort by step."""
    return f"{STEP_PREFIX}{step:012d}"


def steps(folder: Path) -> list[Path]:
    """Return the whole checkpoints `step_N` in a run's checkpoints folder, the oldest first.

    One whose replacement was cut short between two renames is `step_N.old`.
    """
    names = {path.with_suffix("") if path.suffix == ".old" else path for path in folder.glob(f"{STEP_PREFIX}*")}
    numbered = sorted(name for name in names if name.name[len(STEP_PREFIX) :].isdigit())
    return [path for path in map(_present, numbered) if is_checkpoint(path)]


def find(
    path: Path | str,
    groups: Iterable[str] = ("learner",),
    check: Callable[[dict[str, Any]], None] | None = None,
    optional: Iterable[str] = (),
) -> Path:
    """Return `path` if it is a checkpoint, or the newest checkpoint of the run directory `path` that is sound.

    One that is not is passed over for the one before it, and a warning says so.

    Args:
        path: a checkpoint or a run directory.
        groups: of a run's checkpoint, the groups that must be there and sound.
        check: of a run's checkpoint, looks at the manifest and raises CheckpointError if it will not do.
        optional: of a run's checkpoint, the groups that must be sound where they are there.

    Raises:
        CheckpointError: neither a checkpoint nor a run directory that holds a sound one.
    """
    path = Path(path)
    if path.is_file() or is_checkpoint(_present(path)):
        return path
    found = steps(path / "checkpoints")
    if not found:
        raise CheckpointError(f"{path}: expected a checkpoint, or a run directory with checkpoints, found neither")
    faults = []
    for candidate in reversed(found):
        try:
            manifest = read_manifest(candidate)
            if check is not None:
                check(manifest)
            for group in (*groups, *held(manifest, optional)):
                _check_file(candidate / f"{group}{_SUFFIX}", manifest)
        except CheckpointError as error:
            fault = str(error) if str(candidate) in str(error) else f"{candidate}: {error}"
            faults.append(fault)
            continue
        if faults:
            _LOG.warning("checkpoint passed over: %s; taken instead: %s", "; ".join(faults), candidate)
        return candidate
    raise CheckpointError(f"{path}: found no checkpoint that can be taken: {'; '.join(faults)}")


def keep_newest(folder: Path, count: int) -> None:
    """Remove all but the newest `count` checkpoints `step_N` of a run's checkpoints folder."""
    for path in steps(folder)[:-count]:
        # Renamed first: what is half removed must not look like a checkpoint.
        doomed = _beside(path, ".tmp")
        shutil.rmtree(doomed, ignore_errors=True)
        path.rename(doomed)
        shutil.rmtree(doomed)


def tidy(folder: Path, step: int) -> None:
    """Prepare a run's checkpoints folder for going on from its checkpoint at `step`.

    What a killed process left half written is removed, and what it was replacing gets its name back. Newer checkpoints,
    which were found damaged, are set aside as `step_N.damaged`.
    """
    for path in folder.glob("*.tmp"):
        shutil.rmtree(path)
    for path in folder.glob("*.old"):
        if path.with_suffix("").exists():
            shutil.rmtree(path)
        else:
            path.rename(path.with_suffix(""))
    for path in folder.glob(f"{STEP_PREFIX}*"):
        digits = path.name[len(STEP_PREFIX) :]
        if digits.isdigit() and int(digits) > step:
            aside = _beside(path, ".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)


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


def _sync(path: Path) -> None:
    """Push a file's, or a directory's, content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_over(partial: Path, directory: Path) -> None:
    """Give a finished directory its name; a checkpoint that had the name goes only after that."""
    replaced = _beside(directory, ".old")
    if is_checkpoint(directory):
        if replaced.exists():
            shutil.rmtree(replaced)
        directory.rename(replaced)
    partial.rename(directory)
    _sync(directory.parent)
    if replaced.exists():
        shutil.rmtree(replaced)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _manifest_sha256(content: Mapping[str, Any]) -> str:
    """Return the sum over a manifest's content, its own sum left out."""
    rest = {key: value for key, value in content.items() if key != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _is_empty_directory(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
