"""Checkpoints: a directory of safetensors files and one JSON manifest. Never a pickle, never half written.

    NAME/
      <group>.safetensors    one file per group of tensors ("learner", ...)
      manifest.json          format, schema_version, sha256 of each file, and what the writer adds

A checkpoint is written to `NAME.tmp/`, each file synced to the disk, the manifest last, and then renamed: a
directory called NAME is whole, whenever the process or the machine stopped. Groups are separate files, so
that what is large (a replay buffer) can be left out, or skipped when it is not needed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch

FORMAT = "sacfast-checkpoint"
SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
STEP_PREFIX = "step_"
_SUFFIX = ".safetensors"
_RESERVED_KEYS = ("format", "schema_version", "files")


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
    """
    directory = Path(directory)
    for group in tensors:
        if not group.isidentifier():
            raise ValueError(f"tensors: expected group names like 'learner', got {group!r}")
    if reserved := [key for key in _RESERVED_KEYS if key in manifest]:
        raise ValueError(f"manifest: expected none of the reserved keys {_RESERVED_KEYS}, got {reserved}")
    if directory.exists() and not is_checkpoint(directory) and not _is_empty_directory(directory):
        raise FileExistsError(f"directory: expected a new path or a checkpoint to replace, got {directory}")

    partial = directory.with_name(f"{directory.name}.tmp")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    files = {}
    for group, named in tensors.items():
        path = partial / f"{group}{_SUFFIX}"
        safetensors.torch.save_file({name: _owned(tensor) for name, tensor in named.items()}, path)
        _sync(path)
        files[path.name] = _sha256(path)
    content = {"format": FORMAT, "schema_version": SCHEMA_VERSION, **manifest, "files": files}
    (partial / MANIFEST).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
    _sync(partial / MANIFEST)
    _sync(partial)
    _rename_over(partial, directory)
    return directory


def load(directory: Path | str, groups: Iterable[str] | None = None, device: torch.device | str = "cpu") -> Checkpoint:
    """Read a checkpoint after checking its schema and the sha256 of every file that is read.

    Args:
        directory: a checkpoint written by `save`.
        groups: the groups to read; None: all.
        device: where the tensors go.

    Raises:
        CheckpointError: not a checkpoint, another schema version, a file missing, changed or of a foreign
            format, or a group that is not in it.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    files: dict[str, str] = manifest["files"]
    wanted = [name.removesuffix(_SUFFIX) for name in files] if groups is None else list(groups)
    tensors = {}
    for group in wanted:
        name = f"{group}{_SUFFIX}"
        if name not in files:
            raise CheckpointError(f"{directory}: expected a group {group!r}, got only {sorted(files)}")
        path = directory / name
        if not path.is_file():
            raise CheckpointError(f"{path}: expected the file that {MANIFEST} lists, but it is missing")
        if (found := _sha256(path)) != files[name]:
            raise CheckpointError(f"{path}: expected sha256 {files[name]}, got {found}: the file was changed")
        tensors[group] = safetensors.torch.load_file(path, device=str(device))
    return Checkpoint(tensors, manifest)


def read_manifest(directory: Path | str) -> dict[str, Any]:
    """Read and check a checkpoint's manifest without reading its tensors.

    Raises:
        CheckpointError: not a checkpoint, another schema version, or files listed that are not safetensors.
    """
    directory = Path(directory)
    if directory.is_file():
        raise CheckpointError(
            f"{directory}: expected a checkpoint directory, got a file; pickles (.pt, .pth, .pkl, .zip) "
            "are never loaded, for they can run code"
        )
    if not is_checkpoint(directory):
        raise CheckpointError(f"{directory}: expected a checkpoint directory with a {MANIFEST}, found none")
    try:
        manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise CheckpointError(f"{directory / MANIFEST}: expected JSON, got an error: {error}") from error
    expected = {"format": FORMAT, "schema_version": SCHEMA_VERSION}
    found = {key: manifest.get(key) for key in expected} if isinstance(manifest, dict) else manifest
    if found != expected:
        raise CheckpointError(f"{directory / MANIFEST}: expected {expected}, got {found}")
    files = manifest.get("files")
    if not isinstance(files, dict):
        raise CheckpointError(f"{directory / MANIFEST}: expected 'files' to map names to sha256, got {files!r}")
    for name in files:
        if not (name.endswith(_SUFFIX) and name.removesuffix(_SUFFIX).isidentifier()):
            raise CheckpointError(f"{directory / name}: expected only <group>{_SUFFIX} files, never a pickle")
    return manifest


def is_checkpoint(directory: Path) -> bool:
    """Tell whether a directory has a checkpoint's manifest."""
    return (directory / MANIFEST).is_file()


def step_name(step: int) -> str:
    """Return the name of a run's checkpoint after `step` stored transitions; names sort by step."""
    return f"{STEP_PREFIX}{step:012d}"


def find(path: Path | str) -> Path:
    """Return `path` if it is a checkpoint, or the newest whole checkpoint of the run directory `path`.

    Raises:
        CheckpointError: neither a checkpoint nor a run directory that holds one.
    """
    path = Path(path)
    if path.is_file() or is_checkpoint(path):
        return path
    names = [name for name in path.glob(f"checkpoints/{STEP_PREFIX}*") if name.name[len(STEP_PREFIX) :].isdigit()]
    whole = sorted(name for name in names if is_checkpoint(name))
    if not whole:
        raise CheckpointError(f"{path}: expected a checkpoint, or a run directory with checkpoints, found neither")
    return whole[-1]


def _owned(tensor: torch.Tensor) -> torch.Tensor:
    """Return the values on the host with memory of their own: safetensors refuses views of shared memory."""
    host = tensor.detach().cpu().contiguous()
    return host if host.untyped_storage().nbytes() == host.nbytes else host.clone()


def _sync(path: Path) -> None:
    """Push a file's, or a directory's, content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rename_over(partial: Path, directory: Path) -> None:
    """Give a finished directory its name; a checkpoint that had the name goes only after that."""
    replaced = directory.with_name(f"{directory.name}.old")
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


def _is_empty_directory(path: Path) -> bool:
    return path.is_dir() and not any(path.iterdir())
