"""ABACUS sparse matrices H(R), S(R): every generation of text, binary and NPZ, plain, gzip or xz.

What a file is, is told by its content, never by its name; `csr_text`, `csr_binary` and `csr_npz` describe the forms.
Rows and columns are ABACUS's: atoms in the order of STRU, shells, m = 0, 1, −1, 2, −2, …, and with spin-orbit coupling
the spin index fastest. H is in Rydberg in the file; `read_blocks` and `write_blocks` convert to eV.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import scipy.sparse

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.graph import Graph
from nextham.io.compression import Content, load_bytes
from nextham.io.csr_binary import binary_records
from nextham.io.csr_format import CsrHeader, LatticeVector, Records
from nextham.io.csr_npz import npz_records
from nextham.io.csr_text import looks_like_text, text_records
from nextham.io.csr_writer import CsrFormat, CsrWriter
from nextham.io.errors import FileError
from nextham.structure import Structure
from nextham.units import RYDBERG

__all__ = [
    "CsrFormat",
    "CsrHeader",
    "CsrWriter",
    "SparseMatrices",
    "iter_csr",
    "open_csr",
    "read_blocks",
    "read_csr",
    "write_blocks",
    "write_csr",
]

PathLike = str | os.PathLike[str]

_GROUP = 1 << 20
"""Elements that `write_blocks` holds at a time beside the blocks."""

_UNITS = {"Ry": RYDBERG, "eV": 1.0, "1": 1.0}
_UNIT_OF = {"H": "Ry", "S": "1"}


@dataclass(frozen=True, eq=False)
class SparseMatrices:
    """The content of a sparse-matrix file, in the file's own unit (Rydberg for H, none for S).

    Args:
        dimension: rows of each matrix.
        R: lattice vectors int64 [r, 3], in the order of the file.
        matrices: one float64 or complex128 matrix [dimension, dimension] for each, columns ascending.
        letter: `H`, `S`, …; None where the file does not say.
        step: ionic step, from 0.
        structure: the cell block of text since 3.11 (lengths with six digits) and of ABACUS's NPZ, else None.
        folded: a gamma-only matrix, Σ_R M(R) under the name R = 0.
    """

    dimension: int
    R: np.ndarray
    matrices: list[scipy.sparse.csr_matrix]
    letter: str | None = None
    step: int = 0
    structure: Structure | None = None
    folded: bool = False

    @property
    def dtype(self) -> np.dtype:
        """float64 or complex128, the same for all matrices."""
        return np.dtype(np.result_type(np.float64, *{m.dtype for m in self.matrices}))

    @property
    def nnz(self) -> int:
        """Number of stored elements."""
        return sum(m.nnz for m in self.matrices)

    @property
    def n_spin(self) -> int:
        """What the values suggest: 4 (spinor) where they are complex, else 1."""
        return 4 if self.dtype.kind == "c" else 1


def read_csr(path: PathLike, *, step: int | None = None) -> SparseMatrices:
    """Reads an ABACUS sparse-matrix file.

    Args:
        path: any form of the file (see the module's page).
        step: ionic step, from 0, where the file has several.

    Raises:
        FileError: absent, empty, cut short or damaged; a lattice vector twice, or with elements but without its
            partner −R; a column outside the matrix; row pointers that do not ascend; a number that is not finite;
            several ionic steps, or not the one asked for.
    """
    header, entries = open_csr(path, step=step)
    entries = list(entries)
    vectors = np.array([R for R, _ in entries], dtype=np.int64).reshape(-1, 3)
    dtype = np.result_type(np.float64, *{matrix.dtype for _, matrix in entries})
    matrices = [matrix.astype(dtype, copy=False) for _, matrix in entries]
    return SparseMatrices(
        header.dimension, vectors, matrices, header.letter, header.step, header.structure, header.folded
    )


def open_csr(
    path: PathLike, *, step: int | None = None
) -> tuple[CsrHeader, Iterator[tuple[LatticeVector, scipy.sparse.csr_matrix]]]:
    """Reads the header of an ABACUS sparse-matrix file; its matrices follow one at a time, as from `iter_csr`.

    Raises:
        FileError: as `read_csr`.
    """
    path = os.fspath(path)
    records = _records(path, load_bytes(path))
    found = []
    for header, matrices in records:
        if step in (None, header.step):
            return header, _checked(path, matrices, records if step is None else iter(()))
        for _ in matrices:
            pass
        found.append(header.step)
    raise FileError(path, f"has no ionic step {step}, it has {', '.join(map(str, found)) or 'none'}")


def iter_csr(path: PathLike, *, step: int | None = None) -> Iterator[tuple[LatticeVector, scipy.sparse.csr_matrix]]:
    """Yields (R, matrix) of an ABACUS sparse-matrix file, one in memory at a time.

    An empty matrix ahead of the first number is float64, whatever follows. What concerns all lattice vectors together
    (a missing partner) is checked behind the last one.

    Raises:
        FileError: as `read_csr`.
    """
    return open_csr(path, step=step)[1]


def write_csr(
    path: PathLike,
    matrices: SparseMatrices,
    *,
    format: CsrFormat = "text",
    digits: int = 8,
    spin: tuple[int, int] = (1, 1),
) -> None:
    """Writes an ABACUS sparse-matrix file; what it reads back is equal, in text to the last printed digit.

    Args:
        path: the file; a name in `.gz` or `.xz` compresses it.
        matrices: what to write, in the file's unit.
        format: `text` (ABACUS before 3.11, PyATB), `text-3.11`, `binary` or `npz`.
        digits: digits behind the decimal point in text.
        spin: (index, number) of spin directions for the header of `text-3.11`.

    Raises:
        ValueError: as `CsrWriter`.
        FileError: the file cannot be created.
    """
    header = CsrHeader(matrices.dimension, len(matrices.R), matrices.letter, matrices.step, matrices.structure)
    with CsrWriter(path, header, matrices.dtype, format=format, digits=digits, spin=spin) as file:
        for R, matrix in zip(matrices.R, matrices.matrices, strict=True):
            file.append(R, matrix)


def read_blocks(
    path: PathLike | Sequence[PathLike],
    structure: Structure,
    basis: Basis,
    *,
    unit: str | None = None,
    step: int | None = None,
) -> Blocks:
    """Reads a matrix as blocks on edges, in eV (H) or without unit (S).

    The dimension says whether it has spin: one row per orbital is n_spin 1, two are n_spin 4.

    Args:
        path: one file, or the two files (up, down) of nspin 2.
        structure: the structure of the calculation, atoms in the order of its STRU.
        basis: shells of its elements.
        unit: unit of the numbers in the file, `Ry`, `eV` or `1`; by default `Ry` for H and `1` for S, where the file
            says which it is.
        step: ionic step, where the file has several.

    Raises:
        FileError: as `read_csr`; S where the unit is one of H, or H where it is `1`; a dimension or structure other
            than the given one; a gamma-only folded matrix.
        ValueError: an unknown unit, or none given for a file that does not say what it is.
    """
    if not isinstance(path, str | os.PathLike):
        up, down = (read_blocks(p, structure, basis, unit=unit, step=step) for p in path)
        extra = down.graph.select(up.graph.find(down.graph) < 0)
        parts = zip(*((g.src, g.dst, g.R) for g in (up.graph, extra)), strict=True)
        graph = Graph(up.graph.structure, *(np.concatenate(part) for part in parts))
        return Blocks.collinear(up.on(graph), down.on(graph))
    found = read_csr(path, step=step)
    if unit in _UNITS and found.letter in _UNIT_OF and (unit == "1") != (found.letter == "S"):
        raise FileError(
            path, f"holds {found.letter}(R), but {'an overlap S' if unit == '1' else 'a Hamiltonian'} is expected"
        )
    factor = _UNITS[_unit(unit, found.letter)]
    n_orbitals = int(basis.n_orbitals_of(structure.numbers).sum())
    if found.dimension not in (n_orbitals, 2 * n_orbitals):
        raise FileError(
            path,
            f"has matrices of {found.dimension} rows, but {structure.formula()} with {basis} has {n_orbitals} "
            f"orbitals, {2 * n_orbitals} with spin",
        )
    if found.folded:
        raise FileError(path, "is a gamma-only folded matrix, without lattice vectors: run ABACUS with gamma_only 0")
    if found.structure is not None:
        _require_same(path, found.structure, structure)
    n_spin = 1 if found.dimension == n_orbitals else 4
    blocks = Blocks.from_sparse(structure, basis, found.R, found.matrices, n_spin)
    blocks.data *= factor
    return blocks


def write_blocks(
    path: PathLike | Sequence[PathLike],
    blocks: Blocks,
    *,
    letter: str = "H",
    unit: str | None = None,
    R: np.ndarray | None = None,
    format: CsrFormat = "text",
    digits: int = 8,
    step: int = 0,
    threshold: float = 1e-10,
) -> None:
    """Writes blocks as an ABACUS sparse-matrix file, a group of rows at a time.

    Beside the blocks this needs memory for a million elements and a few integers per edge.

    Args:
        path: the file; two (up, down) for n_spin 2. A name in `.gz` or `.xz` compresses it.
        blocks: H in eV, or S.
        letter: `H` or `S`.
        unit: unit of the numbers in the file; by default `Ry` for H and `1` for S.
        R: the lattice vectors to write [r, 3], in this order; by default those of the blocks, ascending. PyATB reads H
            and S together and takes it that their lists are the same: give it the R of the S file.
        format: as in `write_csr`.
        digits: digits behind the decimal point in text.
        step: ionic step, from 0.
        threshold: smaller elements are left out, in the unit of the file; ABACUS's own is 1e-10.

    Raises:
        ValueError: an unknown unit, a wrong number of files, or a lattice vector of the blocks that is not in R.
        FileError: the file cannot be created.
    """
    factor = _UNITS[_unit(unit, letter)]
    paths = [path] if isinstance(path, str | os.PathLike) else list(path)
    n_files = 2 if blocks.n_spin == 2 else 1
    if len(paths) != n_files:
        raise ValueError(f"path: expected {n_files} for n_spin {blocks.n_spin}, got {len(paths)}")
    own = np.unique(blocks.graph.R, axis=0)
    vectors = own if R is None else np.asarray(R, dtype=np.int64).reshape(-1, 3)
    lost = {tuple(v) for v in own.tolist()} - {tuple(v) for v in vectors.tolist()}
    if lost:
        raise ValueError(f"R: the blocks have the lattice vector {min(lost)}, which is not in the list")
    spins = 2 if blocks.n_spin == 4 else 1
    header = CsrHeader(spins * blocks.n_orbitals, len(vectors), letter, step, blocks.graph.structure)
    dtype = np.result_type(blocks.data.dtype, np.float64)
    for spin, target in enumerate(paths):
        rows = _Rows(blocks, spin, factor, threshold)
        with CsrWriter(target, header, dtype, format=format, digits=digits, spin=(spin + 1, len(paths))) as file:
            for vector in vectors:
                groups = rows.groups(vector)
                nnz = sum(np.count_nonzero(rows.part(edges).data) for edges, _, _ in groups)
                file.append_rows(vector, nnz, (rows.matrix(*group) for group in groups))


class _Rows:
    """The rows of blocks in the unit of a file, a group of atoms at a time."""

    def __init__(self, blocks: Blocks, spin: int, factor: float, threshold: float) -> None:
        self.blocks, self.spin, self.factor, self.threshold = blocks, spin, factor, threshold
        graph = blocks.graph
        self.order = np.lexsort((graph.src, graph.R[:, 2], graph.R[:, 1], graph.R[:, 0]))
        vectors = graph.R[self.order]
        first = np.flatnonzero(np.concatenate([[True], (vectors[1:] != vectors[:-1]).any(axis=1)])[: graph.n_edges])
        cuts = np.append(first, graph.n_edges)
        self.slices = {tuple(vectors[a]): slice(a, b) for a, b in pairwise(cuts)}
        spins = 2 if blocks.n_spin == 4 else 1
        self.starts = spins * blocks.basis.offsets(graph.structure.numbers)

    def groups(self, vector: np.ndarray) -> list[tuple[np.ndarray, int, int]]:
        """(edges, first row, row behind the last) of groups that follow each other and cover all rows."""
        edges = self.order[self.slices.get(tuple(vector), slice(0, 0))]
        atoms = self.blocks.graph.src[edges]
        group = np.cumsum(self.blocks.sizes[edges]) // _GROUP
        # A group ends where its number changes, moved to where the atom ends.
        ends = np.unique(np.searchsorted(atoms, atoms[np.flatnonzero(np.diff(group))], side="right"))
        bounds = [0, *ends[ends < len(edges)].tolist(), len(edges)]
        rows = [0, *self.starts[atoms[bounds[1:-1]]].tolist(), int(self.starts[-1])]
        return [(edges[a:b], c, d) for (a, b), (c, d) in zip(pairwise(bounds), pairwise(rows), strict=True)]

    def part(self, edges: np.ndarray) -> Blocks:
        """The blocks of some edges in the unit of the file, elements below the threshold zero."""
        part = self.blocks.select(edges)
        part = part.channel(self.spin) if part.n_spin == 2 else part
        data = part.data.astype(np.result_type(part.data.dtype, np.float64)) / self.factor
        data[np.abs(data) <= self.threshold] = 0
        return Blocks(part.graph, part.basis, data, part.n_spin)

    def matrix(self, edges: np.ndarray, start: int, stop: int) -> scipy.sparse.csr_matrix:
        """The rows of a group."""
        n = int(self.starts[-1])
        if not len(edges):
            return scipy.sparse.csr_matrix((stop - start, n))
        return self.part(edges).to_sparse()[1][0][start:stop]


def _unit(unit: str | None, letter: str | None) -> str:
    """The unit of the numbers in a file."""
    if unit is None and letter not in _UNIT_OF:
        raise ValueError(f"unit: the file does not say that it is H or S (but {letter}), so give 'Ry', 'eV' or '1'")
    unit = unit or _UNIT_OF[letter]
    if unit not in _UNITS:
        raise ValueError(f"unit: expected one of {', '.join(_UNITS)}, got {unit!r}")
    if letter == "S" and unit != "1":
        raise ValueError(f"unit: S has none, expected '1', got {unit!r}")
    return unit


def _records(path: str, content: Content) -> Records:
    """The ionic steps of a file of any form."""
    if not len(content):
        raise FileError(path, "the file is empty")
    if content[:4] == b"PK\x03\x04":
        return npz_records(path, content)
    return text_records(path, content) if looks_like_text(content) else binary_records(path, content)


def _checked(
    path: str, matrices: Iterator[tuple[LatticeVector, scipy.sparse.csr_matrix]], others: Records
) -> Iterator[tuple[LatticeVector, scipy.sparse.csr_matrix]]:
    """The same, with what concerns the whole file checked at the end."""
    elements = {}
    for R, matrix in matrices:
        elements[R] = matrix.nnz
        yield R, matrix
    if (other := next(others, None)) is not None:
        raise FileError(path, f"has several ionic steps (another is {other[0].step}): say which one with step=")
    for R, nnz in elements.items():
        partner = (-R[0], -R[1], -R[2])
        if nnz and partner not in elements:
            raise FileError(path, f"R = {R} has {nnz} elements, but its partner R = {partner} is missing")


def _require_same(path: PathLike, found: Structure, given: Structure) -> None:
    """Refuses the matrix of another crystal."""
    if not np.array_equal(found.numbers, given.numbers):
        raise FileError(path, f"is of {found.formula()} in this order of atoms, the structure is {given.formula()}")
    if not np.allclose(found.cell, given.cell, rtol=0, atol=1e-4 * np.abs(given.cell).max()):
        raise FileError(path, "is of a cell other than the structure's")
    moved = found.fractional() - given.fractional()
    if np.abs(moved - np.rint(moved)).max(initial=0.0) > 1e-4:
        raise FileError(path, "is of positions other than the structure's")
