"""A file that is changed step by step, and after any end of the process is as the last whole step left it.

Before bytes of the last whole step are overwritten or cut off they are added to a second file (`….undo`), which is
removed at the end of the step; where it is still there, the step was not finished, and the bytes are put back. A
process that is killed is so survived at any moment, a loss of power is not: the system may write the two files in
another order.

Libraries written in C cannot bear exceptions from a file object: HDF5 goes on, and leaves files open. So an error of
the system (no space left) is raised at the end of the step, and Ctrl-C waits for it.
"""

from __future__ import annotations

import errno
import os
import signal
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["UndoFile"]

_RECORD = struct.Struct("<qq")
"""Before the bytes that were there: at which byte, and how many."""

_AT_ONCE = 1 << 20
"""Bytes that are copied at a time."""


class UndoFile:
    """An open file, as the libraries that take Python's file objects use it; it is changed inside `step` alone.

    Args:
        path: the file; it is made where it is not there, and an unfinished step is taken back.

    Raises:
        BlockingIOError: another process has it open.
        OSError: it cannot be read and written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._undo = self.path.with_name(self.path.name + ".undo")
        self._at, self._records = 0, -1
        self._error: OSError | None = None
        if not self.path.exists():
            self._undo.unlink(missing_ok=True)  # of a file that was removed
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock()
            self._end = self.size
            self._take_back()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Closes the file; others may open it then."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self._file).st_size

    @contextmanager
    def step(self) -> Iterator[UndoFile]:
        """Changes the file as a whole, or not at all: an exception takes back what was done.

        Raises:
            OSError: the file could not be changed.
        """
        self._end = self.size
        with _interrupts_wait():
            self._records = os.open(self._undo, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            try:
                _write(self._records, _RECORD.pack(self._end, 0))
                yield self
                self.check()
            except BaseException as error:
                first, self._error = self._error, None
                self._stop_recording()
                self._take_back()
                if first is not None and first is not error:
                    raise first from error
                raise
            self._stop_recording()
            self._undo.unlink()

    def check(self) -> None:
        """Raises what went wrong in this step so far.

        Raises:
            OSError: something did.
        """
        if self._error is not None:
            raise self._error

    # What a file object has.

    def read(self, size: int = -1) -> bytes:
        """Returns the next bytes; fewer at the end."""
        found = bytearray(max(0, self.size - self._at) if size < 0 else size)
        return bytes(found[: self.readinto(found)])

    def readinto(self, buffer: memoryview | bytearray) -> int:
        """Reads the next bytes into a buffer and returns how many; fewer at the end."""
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view):
            n = os.preadv(self._file, [view[done:]], self._at + done)
            if not n:
                break
            done += n
        self._at += done
        return done

    def write(self, data: bytes | memoryview) -> int:
        """Writes bytes and returns how many."""
        view = memoryview(data).cast("B")
        with self._changing():
            self._keep(self._at, self._at + len(view))
            _write(self._file, view, self._at)
        self._at += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Goes to a byte."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        """Returns the next byte's place."""
        return self._at

    def truncate(self, size: int | None = None) -> int:
        """Makes the file longer or shorter."""
        size = self._at if size is None else size
        with self._changing():
            self._keep(size, self._end)
            os.ftruncate(self._file, size)
        return size

    def flush(self) -> None:
        """Does nothing: all is written at once."""

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Remembers what goes wrong; what is done afterwards does not matter."""
        if self._records < 0:
            raise ValueError("step: the file is changed inside a step alone")
        try:
            yield
        except OSError as error:
            self._error = self._error or error

    def _keep(self, begin: int, end: int) -> None:
        """Records bytes of the last whole step that are about to change."""
        for at in range(begin, min(end, self._end), _AT_ONCE):
            old = os.pread(self._file, min(_AT_ONCE, end - at, self._end - at), at)
            _write(self._records, _RECORD.pack(at, len(old)) + old)

    def _stop_recording(self) -> None:
        os.close(self._records)
        self._records = -1

    def _take_back(self) -> None:
        """Puts the bytes of the last whole step back, if there is a step that was not finished."""
        try:
            records = os.open(self._undo, os.O_RDONLY)
        except FileNotFoundError:
            return
        try:
            places, at, size = [], 0, os.fstat(records).st_size
            while at + _RECORD.size <= size:
                target, length = _RECORD.unpack(os.pread(records, _RECORD.size, at))
                at += _RECORD.size
                if at + length <= size:  # else the process ended here, before the bytes were overwritten
                    places.append((target, at, length))
                at += length
            for target, at, length in reversed(places[1:]):  # what was kept first was there first
                _write(self._file, os.pread(records, length, at), target)
            if places:  # else not even the step's beginning was recorded
                os.ftruncate(self._file, places[0][0])
        finally:
            os.close(records)
        self._undo.unlink()

    def _lock(self) -> None:
        import fcntl

        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                raise BlockingIOError(error.errno, "another process writes it") from error
            # Some file systems of networks know no locks.


@contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Ctrl-C comes into force at the end; it would be an exception in the next function that is called from C."""
    usual = signal.getsignal(signal.SIGINT)
    if not callable(usual) or threading.current_thread() is not threading.main_thread():
        yield  # it raises nothing here
        return
    came: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if came:
        usual(signal.SIGINT, None)


def _write(file: int, data: bytes | memoryview, at: int | None = None) -> None:
    """Writes all of some bytes, at a place or behind what was written last."""
    view = memoryview(data)
    while len(view):
        n = os.write(file, view) if at is None else os.pwrite(file, view, at)
        view, at = view[n:], None if at is None else at + n
