"""The binary forms of ABACUS sparse matrices.

int32 step, dimension N, number of lattice vectors; then for each int32 Rx, Ry, Rz, nnz and, without padding, nnz values
(float64, or complex128 with spin-orbit coupling), nnz int32 column indices, N + 1 row pointers. Nothing in the file
says which of three things vary, so all of them are tried, and the one that ends where the file ends is right:

- values are real or complex;
- row pointers are int32 (before 3.11) or int64 (since);
- after nnz = 0 there is nothing (before 3.11), or N + 1 row pointers (since 3.11, and in other programs).

Some versions in between put the text header of 3.11 in front of such matrices.
"""

from __future__ import annotations

import itertools
import shutil
import struct
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, NamedTuple

import numpy as np
import scipy.sparse

from nextham.io.compression import Content
from nextham.io.csr_format import CsrForm, CsrHeader, LatticeVector, Records, checked_matrix
from nextham.io.errors import FileError

__all__ = ["BinaryForm", "binary_matrices", "binary_records"]


class _Layout(NamedTuple):
    """One of the eight forms."""

    values: str
    pointers: str
    after_empty: bool

    def size(self, dimension: int, nnz: int) -> int:
        """Bytes of a matrix behind its four integers."""
        pointers = (dimension + 1) * int(self.pointers[-1])
        return nnz * (4 + np.dtype(self.values).itemsize) + pointers if nnz or self.after_empty else 0


_LAYOUTS = [_Layout(*choice) for choice in itertools.product(("<f8", "<c16"), ("<i4", "<i8"), (False, True))]


def binary_records(path: str, content: Content) -> Records:
    """Yields each ionic step of a binary file: its header and its matrices.

    Raises:
        FileError: no layout fits, or a matrix is damaged; with the byte.
    """
    fits, reached, layout = max((*_reach(content, layout), layout) for layout in _LAYOUTS)
    if not fits and reached <= 12:
        raise FileError(path, "is no ABACUS sparse matrix, neither text nor binary, or ends within its first matrix")
    if not fits:
        raise FileError(path, "the binary matrices are cut short or damaged", byte=reached)
    offset = 0
    while offset < len(content):
        step, dimension, n_matrices = struct.unpack_from("<3i", content, offset)
        header = CsrHeader(dimension, n_matrices, step=step)
        yield header, _matrices(path, content, offset + 12, header, layout)
        offset, _ = _end_of_step(content, offset + 12, dimension, n_matrices, layout)


def binary_matrices(
    path: str, content: Content, offset: int, header: CsrHeader
) -> Iterator[tuple[LatticeVector, scipy.sparse.csr_matrix]]:
    """Yields the binary matrices that follow a text header, up to the end of the file.

    Raises:
        FileError: no layout fits, or a matrix is damaged; with the byte.
    """
    ends = [
        (*_end_of_step(content, offset, header.dimension, header.n_matrices, layout), layout) for layout in _LAYOUTS
    ]
    fitting = [layout for end, whole, layout in ends if whole and end == len(content)]
    if not fitting:
        raise FileError(path, "the binary matrices are cut short or damaged", byte=max(ends)[0])
    yield from _matrices(path, content, offset, header, fitting[0])


def _reach(content: Content, layout: _Layout) -> tuple[bool, int]:
    """Whether whole ionic steps of this layout fill the file, and how far they come (0: not even the header)."""
    offset, whole = 0, True
    while whole and offset + 12 <= len(content):
        step, dimension, n_matrices = struct.unpack_from("<3i", content, offset)
        if step < 0 or dimension < 1 or n_matrices < 0:
            break
        offset, whole = _end_of_step(content, offset + 12, dimension, n_matrices, layout)
    return whole and offset == len(content), offset


def _end_of_step(content: Content, offset: int, dimension: int, n_matrices: int, layout: _Layout) -> tuple[int, bool]:
    """Where the matrices of an ionic step end, True; or where they stop being of this layout, False."""
    width = int(layout.pointers[-1])
    for _ in range(n_matrices):
        if offset + 16 > len(content):
            return offset, False
        nnz = struct.unpack_from("<i", content, offset + 12)[0]
        end = offset + 16 + layout.size(dimension, nnz)
        if not 0 <= nnz <= dimension**2 or end > len(content):
            return offset, False
        if end > offset + 16:
            start = end - (dimension + 1) * width
            first = int.from_bytes(content[start : start + width], "little")
            last = int.from_bytes(content[end - width : end], "little")
            if (first, last) != (0, nnz) or (not nnz and any(content[start:end])):
                return offset, False
        offset = end
    return offset, True


def _matrices(
    path: str, content: Content, offset: int, header: CsrHeader, layout: _Layout
) -> Iterator[tuple[LatticeVector, scipy.sparse.csr_matrix]]:
    """The matrices of one ionic step."""
    n, seen = header.dimension, set()
    for _ in range(header.n_matrices):
        *vector, nnz = struct.unpack_from("<4i", content, offset)
        R = tuple(vector)
        if R in seen:
            raise FileError(path, f"the lattice vector R = {R} occurs twice", byte=offset)
        seen.add(R)
        start = offset + 16
        offset = start + layout.size(n, nnz)
        if offset == start:
            yield R, scipy.sparse.csr_matrix((n, n), dtype=layout.values)
            continue
        lists, places = [], {}
        for name, dtype, count in (
            ("values", layout.values, nnz),
            ("column indices", "<i4", nnz),
            ("row pointers", layout.pointers, n + 1),
        ):
            places[name] = start
            lists.append(np.frombuffer(content, dtype, count, start).copy())
            start += lists[-1].nbytes
        yield R, checked_matrix(partial(_fail, path, R, places), n, *lists)


def _fail(path: str, R: LatticeVector, places: dict[str, int], name: str, sentence: str) -> FileError:
    """The error in one of the three lists of a matrix."""
    return FileError(path, f"{sentence}, in R = {R}", byte=places[name])


class BinaryForm(CsrForm):
    """The binary form before 3.11: int32 row pointers, nothing after nnz = 0."""

    def __init__(self, file: BinaryIO, header: CsrHeader, digits: int, spin: tuple[int, int]) -> None:
        super().__init__(file, header, digits, spin)
        file.write(struct.pack("<3i", header.step, header.dimension, header.n_matrices))

    def start(self, R: LatticeVector, nnz: int) -> None:
        """Writes R and nnz."""
        if nnz > np.iinfo(np.int32).max:
            raise ValueError(f"nnz: the binary form counts with int32, and R = {R} has {nnz} elements")
        self.nnz = nnz
        self.file.write(struct.pack("<4i", *R, nnz))

    def values(self, values: np.ndarray, first: int) -> None:
        """Writes values."""
        self.file.write(values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes())

    def columns(self, columns: np.ndarray, first: int) -> bytes:
        """Returns the bytes of column indices."""
        return columns.astype("<i4", copy=False).tobytes()

    def finish(self, columns: BinaryIO, pointers: np.ndarray) -> None:
        """Writes column indices and row pointers."""
        if self.nnz:
            shutil.copyfileobj(columns, self.file)
            self.file.write(pointers.astype("<i4").tobytes())
