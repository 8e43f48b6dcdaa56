"""The position matrix in ABACUS's sparse text, `data-rR-sparse.csr` or `rr.csr` (`out_mat_r`), which PyATB reads.

STEP: 0
Matrix Dimension of r(R): 26
Matrix number of r(R): 119
-3 0 0                       a lattice vector; for x, y and z each:
188                          number of elements, and if there are any
-3.63212909e-10 …           values (Bohr), column indices and row pointers, one line each
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import numpy as np
import scipy.sparse

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.io.compression import load_bytes, open_for_writing
from nextham.io.csr_format import checked_matrix
from nextham.io.errors import FileError
from nextham.structure import Structure
from nextham.units import BOHR
from nextham_kernels.number_text import MalformedNumber, format_numbers, parse_numbers

__all__ = ["read_position", "write_position"]

_AXES = "xyz"
_THRESHOLD = 1e-10


def write_position(
    path: str | os.PathLike[str],
    position: Sequence[Blocks],
    *,
    spinor: bool = False,
    R: np.ndarray | None = None,
    digits: int = 8,
) -> None:
    """Writes the matrices of x, y and z, one lattice vector at a time.

    Args:
        path: the file; a name in `.gz` or `.xz` compresses it.
        position: three matrices on one graph, Å, n_spin 1, real (`nextham.h0.position_matrix`).
        spinor: rows and columns for both spins, as beside an H with n_spin 4; the matrix is the same for both.
        R: the lattice vectors to write [r, 3], in this order; by default those of the matrices, ascending. PyATB reads
            H, S and r together and takes it that their lists are the same.
        digits: digits behind the decimal point (ABACUS: 8).

    Raises:
        ValueError: not three real matrices with n_spin 1 on one graph, or a lattice vector of theirs that is not in R.
        FileError: the file cannot be created.
    """
    if len(position) != 3 or any(m.n_spin != 1 or np.iscomplexobj(m.data) for m in position):
        raise ValueError("position: expected three real matrices with n_spin 1")
    graph = position[0].graph
    if any(m.graph is not graph and m.graph.n_edges != graph.n_edges for m in position):
        raise ValueError("position: expected three matrices on one graph")
    own, which = np.unique(graph.R, axis=0, return_inverse=True)
    vectors = own if R is None else np.asarray(R, dtype=np.int64).reshape(-1, 3)
    order = np.argsort(which.reshape(-1), kind="stable")
    cuts = np.searchsorted(which.reshape(-1)[order], np.arange(len(own) + 1))
    edges_of = {tuple(v): order[a:b] for v, a, b in zip(own.tolist(), cuts[:-1], cuts[1:], strict=True)}
    lost = set(edges_of) - {tuple(v) for v in vectors.tolist()}
    if lost:
        raise ValueError(f"R: the matrices have the lattice vector {min(lost)}, which is not in the list")
    spins = 2 if spinor else 1
    dimension = spins * position[0].n_orbitals
    with open_for_writing(path) as file:
        head = ("STEP: 0", f"Matrix Dimension of r(R): {dimension}", f"Matrix number of r(R): {len(vectors)}")
        file.write("".join(line + "\n" for line in head).encode())
        for vector in map(tuple, vectors.tolist()):
            file.write("{} {} {}\n".format(*vector).encode())
            for matrix in position:
                sparse = _sparse(matrix, edges_of.get(vector, order[:0]), spins)
                file.write(f"{sparse.nnz}\n".encode())
                if sparse.nnz:
                    for numbers in (sparse.data, sparse.indices, sparse.indptr):
                        file.write(format_numbers(numbers, digits) + b"\n")


def _sparse(matrix: Blocks, edges: np.ndarray, spins: int) -> scipy.sparse.csr_matrix:
    """The matrix of one lattice vector, Bohr, small elements left out."""
    if not len(edges):
        return scipy.sparse.csr_matrix((spins * matrix.n_orbitals,) * 2)
    part = matrix.select(edges) * (1 / BOHR)
    part.data[np.abs(part.data) <= _THRESHOLD] = 0
    sparse = scipy.sparse.kron(part.to_sparse()[1][0], scipy.sparse.identity(spins), format="csr")
    sparse.sort_indices()
    return sparse


def read_position(path: str | os.PathLike[str], structure: Structure, basis: Basis) -> tuple[Blocks, Blocks, Blocks]:
    """Reads the matrices of x, y and z as blocks on one graph, Å, n_spin 1; of a file for both spins the first.

    Args:
        path: the file, plain, gzip or xz.
        structure: the structure of the calculation, atoms in the order of its STRU.
        basis: shells of its elements.

    Raises:
        FileError: not a position matrix as ABACUS writes it; a dimension other than that of the structure.
    """
    reader = _Reader(path)
    dimension, n_vectors = reader.header()
    n_orbitals = int(basis.n_orbitals_of(structure.numbers).sum())
    if dimension not in (n_orbitals, 2 * n_orbitals):
        sentence = f"has matrices of {dimension} rows, but {structure.formula()} with {basis} has {n_orbitals} orbitals"
        raise FileError(path, f"{sentence}, {2 * n_orbitals} with spin")
    spins = dimension // n_orbitals
    vectors, found = [], ([], [], [])
    for _ in range(n_vectors):
        vectors.append(reader.integers(3, "the three integers of a lattice vector"))
        for matrices in found:
            matrix = reader.matrix(dimension)
            matrices.append(matrix[::spins, ::spins] if spins > 1 else matrix)
    if len({tuple(v) for v in vectors}) != len(vectors):
        raise FileError(path, "a lattice vector occurs twice")
    somewhere = [abs(x) + abs(y) + abs(z) for x, y, z in zip(*found, strict=True)]
    graph = Blocks.from_sparse(structure, basis, np.array(vectors), somewhere, 1).graph
    parts = (Blocks.from_sparse(structure, basis, np.array(vectors), matrices, 1) for matrices in found)
    x, y, z = (part.on(graph) * BOHR for part in parts)
    return x, y, z


class _Reader:
    """A place in the text; errors raised by it know their line."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.content, self.offset = path, load_bytes(path), 0

    def error(self, sentence: str, offset: int) -> FileError:
        return FileError(self.path, sentence, bytes(self.content[:offset]).count(b"\n") + 1)

    def line(self) -> tuple[str, int]:
        """The next line that is not blank, and where it begins."""
        while self.offset < len(self.content):
            start, end = self.offset, self.content.find(b"\n", self.offset)
            end = len(self.content) if end < 0 else end
            self.offset = end + 1
            text = bytes(self.content[start:end]).decode("ascii", "replace").strip()
            if text:
                return text, start
        raise self.error("the file ends too early", len(self.content))

    def header(self) -> tuple[int, int]:
        """Dimension and number of lattice vectors."""
        counts = []
        for kind in ("Dimension", "number"):
            text, start = self.line()
            if kind == "Dimension" and text.startswith("STEP:"):
                text, start = self.line()
            match = re.fullmatch(rf"Matrix {kind} of r\(R\): *(\d{{1,9}})", text)
            if not match:
                raise self.error(f"expected 'Matrix {kind} of r(R): n', got {text[:60]!r}", start)
            counts.append(int(match[1]))
        return counts[0], counts[1]

    def integers(self, count: int, what: str) -> list[int]:
        text, start = self.line()
        words = text.split()
        if len(words) != count or not all(re.fullmatch(r"[+-]?\d{1,9}", word) for word in words):
            raise self.error(f"expected {what}, got {text[:60]!r}", start)
        return [int(word) for word in words]

    def matrix(self, dimension: int) -> scipy.sparse.csr_matrix:
        start = self.offset
        (nnz,) = self.integers(1, "the number of elements of a matrix")
        if not 0 <= nnz <= dimension**2:
            raise self.error(f"a matrix of {dimension} rows cannot have {nnz} elements", start)
        if not nnz:
            return scipy.sparse.csr_matrix((dimension, dimension))
        lists = []
        for kind, count in ((np.float64, nnz), (np.int32, nnz), (np.int64, dimension + 1)):
            try:
                numbers, self.offset = parse_numbers(self.content, self.offset, count, kind)
            except MalformedNumber as error:
                raise self.error(f"expected {count} numbers, found {error.word!r} among them", error.offset) from error
            lists.append(numbers)
        return checked_matrix(lambda name, sentence: self.error(sentence, start), dimension, *lists)
