"""What a run prints and logs: it never ends the run, whatever becomes of its terminal, its pipe or its log's disk."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class SafeStream:
    """A text stream whose writes never fail: what cannot be written is dropped. `failure` is what was first raised."""

    def __init__(self, stream: TextIO | None) -> None:
        """Wrap a stream; None, as sys.stderr is where it was closed from the start, drops all."""
        self._stream = stream
        self.failure: Exception | None = None

    def write(self, text: str) -> int:
        """Write, or drop the text; return its length."""
        try:
            if self._stream is None:
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            self._stream.write(text)
        except (OSError, ValueError) as error:  # ValueError: the stream is closed, or lacks a character
            self.failure = self.failure or error
        return len(text)

    def flush(self) -> None:
        """Flush, if that can be done."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError) as error:
                self.failure = self.failure or error

    def __getattr__(self, name: str) -> Any:
        """Be the stream in all else."""
        return getattr(self._stream, name)


class SafeLogger(logging.LoggerAdapter[logging.Logger]):
    """A logger that drops what its handlers fail to write.

    A handler catches most errors itself, but reports them to sys.stderr, and fails where that is closed.
    """

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        """Log, if that can be done."""
        with suppress(OSError, ValueError):
            super().log(level, msg, *args, **{"stacklevel": 2, **kwargs})

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        """Add nothing."""
        return msg, kwargs


def logger(name: str) -> SafeLogger:
    """Return the logger of a module."""
    return SafeLogger(logging.getLogger(name), {})


def progress_stream() -> TextIO:
    """Return sys.stderr as it is now, for a progress bar."""
    return cast("TextIO", SafeStream(sys.stderr))


def occupy_standard_descriptors() -> None:
    """Open /dev/null as each of the descriptors 0, 1 and 2 that is closed.

    The next file that is opened, a run's metrics for one, would get the number, and with it all that is printed.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere == descriptor:
                os.set_inheritable(descriptor, True)
            else:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)


@contextmanager
def safe_standard_streams() -> Iterator[SafeStream]:
    """Let sys.stdout and sys.stderr never fail inside; yield sys.stdout, which says afterwards if it has."""
    before = sys.stdout, sys.stderr
    safe = SafeStream(before[0]), SafeStream(before[1])
    sys.stdout, sys.stderr = cast("tuple[TextIO, TextIO]", safe)
    try:
        yield safe[0]
    finally:
        sys.stdout, sys.stderr = before
        for stream, wrapped in zip(before, safe, strict=True):
            wrapped.flush()
            if wrapped.failure is not None:
                _forget(stream)


def _forget(stream: TextIO | None) -> None:
    """Send what a stream could not write to nowhere: Python writes it again, and fails, when it ends."""
    with suppress(OSError, ValueError, AttributeError, io.UnsupportedOperation):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
        os.close(nowhere)
