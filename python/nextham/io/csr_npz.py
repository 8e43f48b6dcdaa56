"""The NPZ forms of sparse matrices: ABACUS's (`out_hsr 3`) and a plain one.

ABACUS: `lattice_vectors` [9] in Bohr, `atom_info` [n, 5] (type, Z, fractional position), `orbital_info_T` [orbitals, 3]
(n, l, m) of each type, and `mat_I_J_Rx_Ry_Rz`, the dense block of atoms I and J in cell R. Blocks with I > J may be
absent: they are the adjoints, M_JI(−R) = M_IJ(R)†.

Ours, readable with `numpy.load` and nothing else: `format`, `letter`, `step`, `dimension`, `R` [r, 3]; then for lattice
vector i the three lists `values_i`, `column_indices_i`, `row_pointers_i` of compressed sparse rows.
"""

from __future__ import annotations

import io
import mmap
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO

import numpy as np
import scipy.sparse

from nextham.io.compression import Content
from nextham.io.csr_format import CsrForm, CsrHeader, LatticeVector, Records, checked_matrix
from nextham.io.errors import FileError
from nextham.structure import Structure
from nextham.units import BOHR

__all__ = ["NpzForm", "npz_records"]

_FORMAT = "nextham sparse matrices 1"
_DAMAGE = (zipfile.BadZipFile, zlib.error, ValueError, KeyError, EOFError, OSError, RuntimeError)
"""What zipfile and numpy raise on bytes that are no archive or no array."""
_BLOCK = re.compile(r"mat_(\d+)_(\d+)_(-?\d+)_(-?\d+)_(-?\d+)", re.ASCII)


def npz_records(path: str, content: Content) -> Records:
    """Yields the one ionic step of an NPZ file: its header and its matrices.

    Raises:
        FileError: a damaged archive, an absent or ill-shaped array.
    """
    arrays = _Arrays(path, content)
    if "format" in arrays.names:
        yield _plain(arrays)
    elif "atom_info" in arrays.names:
        yield _abacus(arrays)
    else:
        raise FileError(path, "is an NPZ archive, but of no sparse matrices: it has neither atom_info nor format")


class _Arrays:
    """The arrays of an archive; what is damaged is said in one sentence."""

    def __init__(self, path: str, content: Content) -> None:
        self.path = path
        try:
            self.archive = zipfile.ZipFile(path if isinstance(content, mmap.mmap) else io.BytesIO(content))
        except _DAMAGE as error:
            raise FileError(path, f"the NPZ archive is damaged or cut short ({error})") from error
        self.names = dict.fromkeys(name.removesuffix(".npy") for name in self.archive.namelist())

    def require(self, name: str) -> None:
        """Looks whether the two places of the archive that name an array agree."""
        try:
            self.archive.open(name + ".npy").close()
        except _DAMAGE as error:
            raise FileError(self.path, f"the array {name} is damaged ({error})") from error

    def get(self, name: str, shape: tuple[int | None, ...], kinds: str) -> np.ndarray:
        """The array `name`, of this shape (None is free) and one of the dtype kinds; float64, complex128 or int64."""
        if name not in self.names:
            raise FileError(self.path, f"the array {name} is missing")
        try:
            entry = io.BytesIO(self.archive.read(name + ".npy"))  # as a whole, so that its checksum is looked at first
            array = np.lib.format.read_array(entry, allow_pickle=False)
        except _DAMAGE as error:
            raise FileError(self.path, f"the array {name} is damaged ({error})") from error
        fits = len(shape) == array.ndim and all(n in (None, m) for n, m in zip(shape, array.shape, strict=True))
        if not fits or array.dtype.kind not in kinds:
            raise FileError(
                self.path,
                f"the array {name} should be {shape} of kind {kinds!r}, and is {array.shape} of {array.dtype}",
            )
        wide = {"f": np.float64, "c": np.complex128, "i": np.int64}.get(array.dtype.kind)
        return array if wide is None else array.astype(wide, copy=False)


def _plain(arrays: _Arrays) -> tuple[CsrHeader, Iterator[tuple[LatticeVector, scipy.sparse.csr_matrix]]]:
    """The plain form."""
    if str(arrays.get("format", (), "U")) != _FORMAT:
        raise FileError(arrays.path, f"expected the format {_FORMAT!r}, got {str(arrays.get('format', (), 'U'))!r}")
    vectors = arrays.get("R", (None, 3), "i")
    dimension = int(arrays.get("dimension", (), "i"))
    if dimension < 1 or len(np.unique(vectors, axis=0)) < len(vectors):
        raise FileError(arrays.path, "expected matrices of at least one row and distinct lattice vectors R")
    letter = str(arrays.get("letter", (), "U")) or None
    header = CsrHeader(dimension, len(vectors), letter, int(arrays.get("step", (), "i")))

    def matrices() -> Iterator[tuple[LatticeVector, scipy.sparse.csr_matrix]]:
        for i, vector in enumerate(vectors.tolist()):
            values = arrays.get(f"values_{i}", (None,), "fc")
            columns = arrays.get(f"column_indices_{i}", values.shape, "i")
            pointers = arrays.get(f"row_pointers_{i}", (dimension + 1,), "i")
            R = tuple(vector)
            yield R, checked_matrix(partial(_fail, arrays.path, R), dimension, values, columns, pointers)

    return header, matrices()


def _abacus(arrays: _Arrays) -> tuple[CsrHeader, Iterator[tuple[LatticeVector, scipy.sparse.csr_matrix]]]:
    """ABACUS's form."""
    atoms = arrays.get("atom_info", (None, 5), "f")
    cell = arrays.get("lattice_vectors", (9,), "f").reshape(3, 3) * BOHR
    types = atoms[:, 0].astype(np.int64)
    if not np.array_equal(types, atoms[:, 0]) or not np.array_equal(atoms[:, 1], np.rint(atoms[:, 1])):
        raise FileError(arrays.path, "atom_info: expected integer types and atomic numbers")
    orbitals = np.array([len(arrays.get(f"orbital_info_{t}", (None, 3), "f")) for t in types])
    structure = None
    if atoms[:, 1].all():  # Z = 0 where the label is no element
        try:
            structure = Structure(cell, atoms[:, 2:] @ cell, atoms[:, 1].astype(np.int64))
        except ValueError as error:
            raise FileError(arrays.path, str(error)) from error
    blocks = _blocks_by_vector(arrays, len(atoms))
    spins = 1
    if blocks:
        i, _, name, adjoint = next(iter(blocks.values()))[0]
        rows = arrays.get(name, (None, None), "fc").shape[adjoint]
        spins = 2 if rows == 2 * orbitals[i] else 1
    header = CsrHeader(spins * int(orbitals.sum()), len(blocks), structure=structure)
    starts = np.concatenate([[0], spins * np.cumsum(orbitals)])

    def matrices() -> Iterator[tuple[LatticeVector, scipy.sparse.csr_matrix]]:
        for R, members in sorted(blocks.items()):
            parts = []
            for i, j, name, adjoint in members:
                shape = (spins * int(orbitals[i]), spins * int(orbitals[j]))
                block = arrays.get(name, shape[::-1] if adjoint else shape, "fc")
                block = block.conj().T if adjoint else block
                a, b = np.nonzero(block)
                parts.append((block[a, b], starts[i] + a, starts[j] + b))
            values, rows, columns = (np.concatenate(part) for part in zip(*parts, strict=True))
            order = np.lexsort((columns, rows))
            pointers = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=header.dimension))])
            fail = partial(_fail, arrays.path, R)
            yield R, checked_matrix(fail, header.dimension, values[order], columns[order], pointers)

    return header, matrices()


def _blocks_by_vector(arrays: _Arrays, n_atoms: int) -> dict[LatticeVector, list[tuple[int, int, str, bool]]]:
    """R → (i, j, array, whether it is the adjoint) of every block, those that the file leaves out included."""
    present = {}
    for name in arrays.names:
        if match := _BLOCK.fullmatch(name):
            key = tuple(map(int, match.groups()))
            if max(key[:2]) >= n_atoms:
                raise FileError(arrays.path, f"the array {name} is of an atom beyond the {n_atoms} of atom_info")
            present[key] = name
        else:
            arrays.require(name)  # a block whose name is damaged must not pass for something else
    blocks: dict[LatticeVector, list[tuple[int, int, str, bool]]] = {}
    for (i, j, x, y, z), name in present.items():
        blocks.setdefault((x, y, z), []).append((i, j, name, False))
        if (j, i, -x, -y, -z) not in present:
            blocks.setdefault((-x, -y, -z), []).append((j, i, name, True))
    return blocks


def _fail(path: str, R: LatticeVector, name: str, sentence: str) -> FileError:
    """The error in one of the three lists of a matrix."""
    return FileError(path, f"{sentence}, in the {name} of R = {R}")


class NpzForm(CsrForm):
    """The plain NPZ form."""

    def __init__(self, file: BinaryIO, header: CsrHeader, digits: int, spin: tuple[int, int]) -> None:
        super().__init__(file, header, digits, spin)
        self.vectors: list[LatticeVector] = []
        self.entry: BinaryIO | None = None
        self.archive = zipfile.ZipFile(file, "w")
        self.put("format", np.array(_FORMAT))
        self.put("letter", np.array(header.letter))
        self.put("step", np.array(header.step))
        self.put("dimension", np.array(header.dimension))

    def put(self, name: str, array: np.ndarray) -> None:
        """Writes an array."""
        with self.archive.open(name + ".npy", "w", force_zip64=True) as entry:
            np.lib.format.write_array(entry, array, allow_pickle=False)

    def open(self, name: str, dtype: np.dtype | type, n: int) -> BinaryIO:
        """Begins a list of n numbers."""
        entry = self.archive.open(name + ".npy", "w", force_zip64=True)
        description = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": (n,)}
        np.lib.format.write_array_header_1_0(entry, description)
        return entry

    def start(self, R: LatticeVector, nnz: int) -> None:
        """Begins a matrix; its values are opened with the first of them, when their dtype is known."""
        self.vectors.append(R)
        self.nnz, self.entry = nnz, None

    def values(self, values: np.ndarray, first: int) -> None:
        """Writes values."""
        if self.entry is None:
            self.entry = self.open(f"values_{len(self.vectors) - 1}", values.dtype, self.nnz)
        self.entry.write(values.tobytes())

    def columns(self, columns: np.ndarray, first: int) -> bytes:
        """Returns the bytes of column indices."""
        return columns.astype(np.int32, copy=False).tobytes()

    def finish(self, columns: BinaryIO, pointers: np.ndarray) -> None:
        """Writes column indices and row pointers."""
        i = len(self.vectors) - 1
        self.entry.close()
        with self.open(f"column_indices_{i}", np.int32, self.nnz) as entry:
            shutil.copyfileobj(columns, entry)
        self.put(f"row_pointers_{i}", pointers)

    def close(self) -> None:
        """Writes the lattice vectors and the list of contents."""
        self.put("R", np.array(self.vectors, dtype=np.int64).reshape(-1, 3))
        self.archive.close()

    def abandon(self) -> None:
        """Closes the archive as it is."""
        if self.entry is not None:
            self.entry.close()
        self.archive.close()
