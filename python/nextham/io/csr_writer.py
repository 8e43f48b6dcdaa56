"""Writes ABACUS sparse matrices one lattice vector at a time, in bounded memory."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import scipy.sparse

from nextham.io.compression import open_for_writing
from nextham.io.csr_binary import BinaryForm
from nextham.io.csr_format import CsrHeader
from nextham.io.csr_npz import NpzForm
from nextham.io.csr_text import NewTextForm, TextForm

__all__ = ["CsrFormat", "CsrWriter"]

CsrFormat = Literal["text", "text-3.11", "binary", "npz"]

_FORMS = {"text": TextForm, "text-3.11": NewTextForm, "binary": BinaryForm, "npz": NpzForm}
_SPOOL = 1 << 26
"""Column indices wait in memory up to 64 MiB, beyond in a temporary file: the values come before them in the file."""


class CsrWriter:
    """A sparse-matrix file that is being written; it takes its name when the `with` statement ends well.

    Formats: `text`, ABACUS's before 3.11 and what PyATB reads; `text-3.11`, ABACUS's since; `binary`, ABACUS's before
    3.11; `npz`, see `nextham.io.csr_npz`. A name that ends in `.gz` or `.xz` compresses the file.

    Args:
        path: the file.
        header: what is announced; `text-3.11` needs its structure, with the atoms of an element one after the other.
        dtype: float64 or complex128; complex is what ABACUS has with spin-orbit coupling.
        format: see above.
        digits: digits behind the decimal point in text (ABACUS: 8); 16 keep every bit.
        spin: (index, number) of spin directions for the header of `text-3.11`.

    Raises:
        ValueError: an argument that is none of the above, or a number of matrices other than announced.
        FileError: the file cannot be created.

    Example:
        >>> with CsrWriter("hrs1_nao.csr", CsrHeader(dimension=26, n_matrices=1, letter="H"), float) as file:
        ...     file.append((0, 0, 0), scipy.sparse.eye(26, format="csr"))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        header: CsrHeader,
        dtype: np.dtype | type,
        *,
        format: CsrFormat = "text",
        digits: int = 8,
        spin: tuple[int, int] = (1, 1),
    ) -> None:
        dtype = np.dtype(dtype)
        if dtype not in (np.float64, np.complex128):
            raise ValueError(f"dtype: expected float64 or complex128, got {dtype}")
        if format not in _FORMS:
            raise ValueError(f"format: expected one of {', '.join(_FORMS)}, got {format!r}")
        if header.dimension < 1 or header.n_matrices < 0 or header.step < 0:
            raise ValueError(f"header: expected dimension >= 1, n_matrices >= 0 and step >= 0, got {header}")
        if header.letter is None or not header.letter.isidentifier():
            raise ValueError(f"header: expected a letter such as 'H' or 'S', got {header.letter!r}")
        if not 0 <= digits <= 17:
            raise ValueError(f"digits: expected 0...17, got {digits}")
        if format == "text-3.11":
            if header.structure is None:
                raise ValueError("header: the format text-3.11 has the cell in its header, and there is no structure")
            if len(header.structure.species()) != 1 + np.count_nonzero(np.diff(header.structure.numbers)):
                raise ValueError("header: the format text-3.11 needs the atoms of an element one after the other")
        if format == "npz" and Path(path).suffix in (".gz", ".xz"):
            raise ValueError(f"path: the format npz is an archive and is not compressed again, got {path}")
        self.path, self.header, self.dtype = Path(path), header, dtype
        self._form_of = lambda file: _FORMS[format](file, header, digits, spin)
        self._written: set[tuple[int, int, int]] = set()
        self._stack = ExitStack()

    def __enter__(self) -> CsrWriter:
        with ExitStack() as stack:
            file = stack.enter_context(open_for_writing(self.path))
            self._form = self._form_of(file)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._form.abandon()
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            if len(self._written) != self.header.n_matrices:
                self._form.abandon()
                raise ValueError(f"announced {self.header.n_matrices} matrices, appended {len(self._written)}")
            self._form.close()

    def append(self, R: Iterable[int], matrix: scipy.sparse.csr_matrix) -> None:
        """Writes the matrix of one lattice vector [3].

        Raises:
            ValueError: as `append_rows`.
        """
        if not matrix.has_canonical_format:
            matrix = matrix.copy()
            matrix.sum_duplicates()
        self.append_rows(R, matrix.nnz, [matrix])

    def append_rows(self, R: Iterable[int], nnz: int, chunks: Iterable[scipy.sparse.csr_matrix]) -> None:
        """Writes the matrix of one lattice vector from groups of its rows, so that it never is in memory as a whole.

        Args:
            R: lattice vector [3].
            nnz: how many elements all groups have together.
            chunks: matrices [rows, dimension] that follow each other, columns ascending in each row.

        Raises:
            ValueError: R was written before, more matrices than announced, rows, columns or elements that are not as
                many as announced, a complex matrix in a real file, or a value that is not finite.
        """
        vector, nnz = tuple(int(component) for component in R), int(nnz)
        if vector in self._written or len(self._written) == self.header.n_matrices:
            raise ValueError(f"R = {vector} was written before, or is beyond the {self.header.n_matrices} announced")
        self._written.add(vector)
        n, form = self.header.dimension, self._form
        pointers = [np.zeros(1, dtype=np.int64)]
        rows = written = 0
        form.start(vector, nnz)
        with tempfile.SpooledTemporaryFile(_SPOOL, dir=self.path.parent) as columns:
            for chunk in chunks:
                if chunk.shape[1] != n or (np.iscomplexobj(chunk.data) and self.dtype.kind != "c"):
                    raise ValueError(
                        f"R = {vector}: expected {n} columns of {self.dtype}, got {chunk.shape[1]} of {chunk.dtype}"
                    )
                if not np.isfinite(chunk.data).all():
                    raise ValueError(f"R = {vector}: a value is not a finite number")
                form.values(chunk.data.astype(self.dtype, copy=False), written)
                columns.write(form.columns(chunk.indices.astype(np.int32, copy=False), written))
                pointers.append(written + chunk.indptr[1:].astype(np.int64))
                rows, written = rows + chunk.shape[0], written + chunk.nnz
            if (rows, written) != (n, nnz):
                raise ValueError(f"R = {vector}: expected {n} rows and {nnz} elements, got {rows} and {written}")
            columns.seek(0)
            form.finish(columns, np.concatenate(pointers))
