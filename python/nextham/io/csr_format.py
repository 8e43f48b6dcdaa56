"""What the forms of ABACUS sparse matrices have in common: a header, matrices that must be whole, one way to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import scipy.sparse

from nextham.io.errors import FileError
from nextham.structure import Structure

__all__ = ["CsrForm", "CsrHeader", "LatticeVector", "Records", "checked_matrix"]

LatticeVector = tuple[int, int, int]


@dataclass(frozen=True)
class CsrHeader:
    """What a file says of its matrices before the first one.

    Args:
        dimension: rows of each matrix.
        n_matrices: how many lattice vectors follow.
        letter: what it is (`H`, `S`, …); None where the file does not say.
        step: ionic step, from 0.
        structure: the cell block of ABACUS 3.11 (lengths with six digits), where all labels are elements.
        folded: a gamma-only matrix, Σ_R M(R) under the name R = 0.
    """

    dimension: int
    n_matrices: int
    letter: str | None = None
    step: int = 0
    structure: Structure | None = None
    folded: bool = False


Records = Iterator[tuple[CsrHeader, Iterator[tuple[LatticeVector, scipy.sparse.csr_matrix]]]]
"""The ionic steps of a file; the matrices of one must be taken before the next is asked for."""


def checked_matrix(
    fail: Callable[[str, str], FileError],
    dimension: int,
    values: np.ndarray,
    columns: np.ndarray,
    pointers: np.ndarray,
) -> scipy.sparse.csr_matrix:
    """Returns the sparse matrix of three arrays, columns ascending in each row.

    Args:
        fail: (which array, sentence) → the error to raise; it knows the file and the place in it.
        dimension: rows and columns.
        values: [z], float64 or complex128.
        columns: [z].
        pointers: [dimension + 1].

    Raises:
        FileError: pointers that do not ascend from 0 to z, a column outside the matrix or twice in a row, or a value
            that is not finite.
    """
    n = len(values)
    descending = pointers[1:] < pointers[:-1]
    if pointers[0] != 0 or pointers[-1] != n or descending.any():
        wrong = 0 if pointers[0] else int(descending.argmax()) + 1 if descending.any() else dimension
        raise fail(
            "row pointers", f"the row pointers must ascend from 0 to {n}, but number {wrong + 1} is {pointers[wrong]}"
        )
    if n and not (columns.min() >= 0 and columns.max() < dimension):
        wrong = columns[(columns < 0) | (columns >= dimension)][0]
        raise fail("column indices", f"column index {wrong} is outside 0...{dimension - 1}")
    if not np.isfinite(values).all():
        raise fail("values", f"a value is not a finite number: {values[~np.isfinite(values)][0]}")
    small = n <= np.iinfo(np.int32).max
    arrays = (values, columns, pointers.astype(np.int32 if small else np.int64, copy=False))
    matrix = scipy.sparse.csr_matrix(arrays, shape=(dimension, dimension), copy=False)
    if not _ascending(columns, pointers):
        matrix.sort_indices()
        if not _ascending(matrix.indices, pointers):
            raise fail("column indices", "a column index occurs twice in a row")
    matrix.has_sorted_indices = matrix.has_canonical_format = True
    return matrix


def _ascending(columns: np.ndarray, pointers: np.ndarray) -> bool:
    """Whether the columns of each row ascend strictly."""
    ascending = columns[1:] > columns[:-1]
    starts = pointers[1:-1]
    ascending[starts[(starts > 0) & (starts < len(columns))] - 1] = True
    return bool(ascending.all())


class CsrForm:
    """How one form of file is written: `start`, `values` (any number of times) and `finish` for each lattice vector.

    Args:
        file: where to.
        header: what is announced.
        digits: digits behind the decimal point, in text.
        spin: (index, number) of spin directions, in text since 3.11.
    """

    def __init__(self, file: BinaryIO, header: CsrHeader, digits: int, spin: tuple[int, int]) -> None:
        self.file, self.header, self.digits, self.spin = file, header, digits, spin

    def start(self, R: LatticeVector, nnz: int) -> None:
        """Begins the matrix of a lattice vector."""
        raise NotImplementedError

    def values(self, values: np.ndarray, first: int) -> None:
        """Writes values of which `first` came before."""
        raise NotImplementedError

    def columns(self, columns: np.ndarray, first: int) -> bytes:
        """Returns column indices, of which `first` came before, as `finish` will find them."""
        raise NotImplementedError

    def finish(self, columns: BinaryIO, pointers: np.ndarray) -> None:
        """Ends the matrix with its column indices and row pointers."""
        raise NotImplementedError

    def close(self) -> None:
        """Ends the file."""

    def abandon(self) -> None:
        """Lets go of a file that will not be finished."""
