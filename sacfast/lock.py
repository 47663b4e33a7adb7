"""One model at a time writes in a run directory: two would lose each other's metrics and damage checkpoints.

The lock is held while `learn` is at work, by flock on RUN_DIR/lock, so that it ends with its process however that
ends. Between two calls of `learn` the directory is free: another model may take the run up. So every holder writes
into the file who he is, and a model that comes back, or was resumed, and finds another's name there is refused: what
it would write belongs to an earlier state of the run.
"""

from __future__ import annotations

import errno
import fcntl
import io
import os
import uuid
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from sacfast import files, output

LOCK_FILE = "lock"
_LOCK_BYTES = 200
_NOT_SUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_LOG = output.logger(__name__)


class RunInUseError(RuntimeError):
    """A run directory in which another model is at work, or has been since this one was there."""


class RunLock:
    """The right of one model to write in a run directory."""

    def __init__(self, run_dir: Path) -> None:
        """Name the directory; nothing is touched yet."""
        self._run_dir = run_dir
        self._file: io.FileIO | None = None
        self._known: bytes | None = None  # what the file said last; None: not looked at yet

    def acquire(self) -> None:
        """Lock the directory, which is made where there is none, and note down that this model is at work there.

        Held already, nothing happens.

        Raises:
            RunInUseError: another model holds the lock, in this process or another one; or one has held it since
                this model did, or since `reading`.
            OSError: the lock file is no regular file, or it cannot be made or written.
        """
        if self._file is not None:
            return
        self._run_dir.mkdir(parents=True, exist_ok=True)
        self._lock()
        assert self._file is not None
        try:
            found = _content(self._file)
            if self._known not in (None, found):
                raise RunInUseError(
                    f"run_dir: {self._run_dir} was taken up by {_owner(found)} since this model had it; resume the run "
                    "(SAC.resume, --resume) to go on from where it is now"
                )
            self._known = f"{os.getpid()} {uuid.uuid4().hex}\n".encode()
            self._file.truncate(0)
            self._file.write(self._known)
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Unlock the directory; not held, nothing happens."""
        if self._file is not None:
            _held.discard(self)
            with suppress(OSError):  # where nothing can be locked: see `_lock`
                fcntl.flock(self._file, fcntl.LOCK_UN)  # a child that C code has forked has the file open too
            self._file.close()
            self._file = None

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Hold the lock while the state of a run is read, which `acquire` will then go on from.

        Raises:
            RunInUseError: another model holds the lock.
            OSError: the lock file is no regular file, or it cannot be made.
        """
        self._lock()
        assert self._file is not None
        try:
            self._known = _content(self._file)
            yield
        finally:
            self.release()

    def _lock(self) -> None:
        file = files.open_regular(self._run_dir / LOCK_FILE, "ab+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = _owner(_content(file))
            file.close()
            raise RunInUseError(
                f"run_dir: {self._run_dir} is in use by {owner}; wait for it to end, or choose another directory"
            ) from None
        except OSError as error:
            if error.errno not in _NOT_SUPPORTED:
                file.close()
                raise
            _warn_once(f"{self._run_dir} cannot be locked ({error.strerror}): start no second run in it")
        self._file = file
        _held.add(self)


@cache
def _warn_once(message: str) -> None:
    _LOG.warning("%s", message)


def _content(file: io.FileIO) -> bytes:
    """Return the first bytes of a lock file: more than a holder writes, and as few as fit whatever lies there."""
    return os.pread(file.fileno(), _LOCK_BYTES, 0)


def _owner(content: bytes) -> str:
    """Say who has written into a lock file."""
    pid = content.decode(errors="replace").partition(" ")[0]
    if not (pid.isascii() and pid.isdigit()):
        return "another process"
    return "another model of this process" if int(pid) == os.getpid() else f"process {pid}"


_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


def _let_go_in_child() -> None:
    """Close a forked child's copies of the lock files: they would keep the lock when the parent is killed."""
    for lock in list(_held):
        if lock._file is not None:
            lock._file.close()
            lock._file = None
    _held.clear()


os.register_at_fork(after_in_child=_let_go_in_child)
