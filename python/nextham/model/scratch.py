"""Rows of numbers in a file that is gone when it is closed: features of more edges than fit the memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from nextham.io.errors import FileError

__all__ = ["ScratchRows"]


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
            self._file = tempfile.TemporaryFile(dir=folder, buffering=0)
            self._file.truncate(n * self._row)

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
