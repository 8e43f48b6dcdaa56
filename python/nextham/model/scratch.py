"""Rows of numbers in a file that is gone when it is closed: features of more edges than fit the memory."""

from __future__ import annotations

import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from nextham.io.errors import FileError

__all__ = ["KeptRows", "ScratchRows"]

_STATE = struct.Struct("<32sq")
"""Behind the rows of a file that is kept: of what they are made, and how many stages of the work are done."""


class ScratchRows:
    """A matrix of numbers in a file without a name; rows that were never written are zero and take no room.

    The file is read and written by position, so what is in memory is the system's cache of files, which gives way.

    Args:
        folder: where the file lies.
        n: number of rows.
        width: numbers of a row.
        dtype: float32 or float64.

    Raises:
        FileError: the folder cannot be written or is full; `read` and `write` too.
    """

    def __init__(self, folder: Path, n: int, width: int, dtype: torch.dtype) -> None:
        self._folder, self._width, self._dtype = folder, width, dtype
        self._row = width * torch.empty(0, dtype=dtype).element_size()
        with self._named():
            self._file = self._opened(n * self._row)

    def _opened(self, size: int) -> FileIO:
        file = tempfile.TemporaryFile(dir=self._folder, buffering=0)
        file.truncate(size)
        return file

    def close(self) -> None:
        """Gives the file's room back."""
        self._file.close()

    def __enter__(self) -> ScratchRows:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, rows: slice | np.ndarray) -> torch.Tensor:
        """Returns rows of a contiguous range or an index [g, width]."""
        n = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
        found = torch.empty(n, self._width, dtype=self._dtype)
        for here, first in self._runs(rows):
            self._move(os.preadv, found.numpy()[here], first)
        return found

    def write(self, rows: slice | np.ndarray, values: torch.Tensor) -> None:
        """Writes rows of a contiguous range or an index."""
        values = values.contiguous().cpu().numpy()
        for here, first in self._runs(rows):
            self._move(os.pwritev, values[here], first)

    def _move(self, how: Callable[..., int], part: np.ndarray, first: int) -> None:
        view, at = memoryview(part).cast("B"), first * self._row
        while len(view):  # the system may move less than it is asked for
            with self._named():
                moved = how(self._file.fileno(), [view], at)
            if moved <= 0:
                raise FileError(self._folder, "the file for intermediate results is shorter than it was made")
            view, at = view[moved:], at + moved

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except FileError:
            raise
        except OSError as error:
            raise FileError(self._folder, f"cannot keep intermediate results ({error.strerror})") from error

    @staticmethod
    def _runs(rows: slice | np.ndarray) -> Iterator[tuple[slice, int]]:
        """Rows that follow each other: places in the tensor, and the first row in the file."""
        if isinstance(rows, slice):
            if rows.stop > rows.start:
                yield slice(0, rows.stop - rows.start), rows.start
            return
        cuts = np.flatnonzero(np.diff(rows) != 1) + 1
        bounds = [0, *cuts.tolist(), len(rows)] if len(rows) else [0]
        for begin, end in pairwise(bounds):
            yield slice(begin, end), int(rows[begin])


class KeptRows(ScratchRows):
    """Such rows in a file with a name, which stays where work ends early of which a stage is done.

    Args:
        path: the file; one that is there is continued.
        n: number of rows.
        width: numbers of a row.
        dtype: float32 or float64.
        key: of what the rows are made, 32 letters.

    Raises:
        FileError: as `ScratchRows`, or the file has stages of another key.
    """

    def __init__(self, path: Path, n: int, width: int, dtype: torch.dtype, key: str) -> None:
        self._path, self._key, self.done = path, key.encode(), 0
        super().__init__(path.parent, n, width, dtype)

    def advance(self) -> None:
        """Says that one more stage of the work is done, whose rows are written."""
        self.done += 1
        with self._named():
            os.pwrite(self._file.fileno(), _STATE.pack(self._key, self.done), self._size)

    def close(self) -> None:
        """Closes the file, and removes it where nothing would be lost."""
        super().close()
        if not self.done:
            self._path.unlink(missing_ok=True)

    def remove(self) -> None:
        """Removes the file with its rows: the work is done."""
        self.done = 0
        self.close()

    def _opened(self, size: int) -> FileIO:
        self._size = size
        file = FileIO(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666), "r+")
        there = os.fstat(file.fileno()).st_size
        state = os.pread(file.fileno(), _STATE.size, max(0, there - _STATE.size))
        key, done = _STATE.unpack(state) if len(state) == _STATE.size else (b"", 0)
        if done == 0:
            file.truncate(0)  # rows that were never written are zero
            os.pwrite(file.fileno(), _STATE.pack(self._key, 0), size)
        elif (key, there) != (self._key, size + _STATE.size):
            file.close()
            made_of = "structure, H of step zero, model, precision or version of this program"
            raise FileError(self._path, f"is another run's ({made_of}): remove it to begin anew")
        self.done = done
        return file
