"""Our file of block matrices, written and read piece by piece: for systems whose matrices do not fit the memory.

It is a file of `nextham.io.hdf5`, which reads it like any other. Its edges come in pieces; each has first one of every
edge and its reverse, then the reverses, so that a piece is read without the others:

    /graphs/0/pieces  where each piece begins [p + 1, 3]: in edges, in edges of `half`, and in numbers of a plane

Matrices are Hermitian: `rest` is empty. While it is written the file has another name (`….part`) and another format.
Every piece is written as a whole or not at all (`undo_file`), so that a run that was stopped can go on.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.graph import Graph
from nextham.io.errors import FileError
from nextham.io.hdf5 import (
    FORMAT,
    INCOMPLETE,
    Metadata,
    check_precision,
    in_precision,
    open_h5,
    read_head,
    write_head,
    write_metadata,
)
from nextham.io.hdf5_matrix import CHUNK, FILTERS, put_word, word
from nextham.io.hdf5_planes import PAIRED, Planes, from_planes, pair_spins, plane_names, to_planes, unpair_spins
from nextham.io.undo_file import UndoFile
from nextham.structure import Structure

if TYPE_CHECKING:
    import h5py

__all__ = ["PieceReader", "PieceWriter", "open_pieces"]

_STEP = 1 << 17
"""Numbers of a plane that are encoded at a time: a megabyte, of which there are some thirty."""

_PLAIN = {"fletcher32": True}
"""Numbers whose last bits are as good as random are not compressed: it saves a tenth and writes at 59 MB/s."""


class PieceWriter:
    """Writes matrices of one structure piece by piece; used with `with`, which closes the file.

    Args:
        path: usually ends in `.h5`.
        structure: the atoms.
        basis: shells of their elements.
        key: says of what it is made: an unfinished file of the same key is continued; None begins anew.
        precision: `single` or `double`; by default each matrix keeps its own.

    Raises:
        ValueError: another precision.
        FileError: the file cannot be written, or there is an unfinished one that this key cannot continue.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        structure: Structure,
        basis: Basis,
        key: str | None,
        precision: str | None = None,
    ) -> None:
        check_precision(precision)
        self.path, self._precision = Path(path), precision
        self.part = self.path.with_name(self.path.name + ".part")
        self._basis, self._key = basis, key
        self.structure, _ = structure.wrapped()
        with self._named():
            self._file = UndoFile(self.part)
        try:
            self.n_pieces = self._to_continue()
            """Pieces that the file has."""
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> PieceWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, matrices: Mapping[str, Blocks], relative: Mapping[str, str] | None = None) -> None:
        """Writes the next piece.

        Args:
            matrices: name → blocks of one of each edge and its reverse; all on the same graph, and the same names,
                spins and precisions in every piece.
            relative: name → name of the matrix from which it differs little.

        Raises:
            ValueError: different edges, an edge together with its reverse, or a number that is not finite.
            FileError: the file cannot be written.
        """
        relative = relative or {}
        graph = next(iter(matrices.values())).graph
        onsite = graph.onsite()
        if any(matrix.graph is not graph for matrix in matrices.values()):
            raise ValueError("matrices: expected the same graph for all")
        if (graph.reverse()[~onsite] >= 0).any():
            raise ValueError("matrices: expected one of each edge and its reverse")
        for name, matrix in matrices.items():
            if not np.isfinite(matrix.data).all():
                raise ValueError(f"{name}: {np.count_nonzero(~np.isfinite(matrix.data))} numbers are not finite")
        reverse = np.flatnonzero(~onsite)
        with self._changed("r+") as file:
            edges = file["graphs/0"]
            begin = edges["pieces"][-1]
            columns = {"src": graph.src, "dst": graph.dst, "R": graph.R}
            back = {"src": graph.dst, "dst": graph.src, "R": -graph.R}
            for name, own in columns.items():
                _append(edges[name], int(begin[0]), np.concatenate([own, back[name][reverse]]).astype(np.int32))
            first = next(iter(matrices.values()))
            starts = np.concatenate([[0], np.cumsum(first.sizes // first.n_spin)])
            for name, matrix in matrices.items():
                group = self._group(file["matrices"], name, matrix, relative.get(name))
                diagonal = matrix.select(onsite)
                group.attrs["hermitian"] = bool(group.attrs["hermitian"]) and not diagonal.hermitian_error()
                other = matrices.get(relative.get(name, ""))
                for some in _steps(starts):
                    known = None if other is None else in_precision(other.select(some), self._precision)
                    at = int(begin[2]) + int(starts[some[0]])
                    here = in_precision(matrix.select(some), self._precision)
                    _put_planes(group["half"], _encoded(here, known), at)
            end = begin + np.array([graph.n_edges + len(reverse), graph.n_edges, starts[-1]])
            _append(edges["pieces"], self.n_pieces + 1, end[None])
        self.n_pieces += 1

    def finish(self, metadata: Metadata | None = None) -> None:
        """Ends the file and gives it its name.

        Raises:
            FileError: the file cannot be written.
        """
        with self._changed("r+", replace=True) as file:
            size = int(file["graphs/0/pieces"][-1, 2])
            for group in file["matrices"].values():
                for plane in group["half"].values():
                    plane.resize((size,))
            write_metadata(file, metadata or {})
            del file.attrs["key"]
            put_word(file, "format", FORMAT)

    @contextmanager
    def _changed(self, mode: str, replace: bool = False) -> Iterator[h5py.File]:
        """The open file, for changes that are made as a whole or not at all."""
        import h5py

        with self._named(), self._file.step():
            if mode == "w":
                self._file.truncate(0)
            with h5py.File(self._file, mode, libver=("v110", "v110")) as file:
                yield file
            if replace:
                self._file.check()
                os.replace(self.part, self.path)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except BlockingIOError as error:
            raise FileError(self.part, "is being written by another run") from error
        except OSError as error:
            raise FileError(self.path, f"cannot be written ({error})") from error

    def _to_continue(self) -> int:
        """Pieces of an unfinished file of the same key; a new file has none."""
        import h5py

        if self._key is None or not self._file.size:
            self._begin()
            return 0
        try:
            with h5py.File(self._file, "r") as file:
                if word(file, "format") != INCOMPLETE or word(file, "key") != self._key:
                    raise FileError(
                        self.part,
                        "is another run's (structure, files, precision, budget or version of this program): "
                        "remove it to begin anew",
                    )
                return len(file["graphs/0/pieces"]) - 1
        except FileError:
            raise
        except (OSError, RuntimeError, KeyError, ValueError) as error:
            raise FileError(self.part, f"is damaged, remove it to begin anew ({error})") from error

    def _begin(self) -> None:
        """Writes a file without pieces."""
        with self._changed("w") as file:
            put_word(file, "format", INCOMPLETE)
            write_head(file, self.structure, self._basis)
            put_word(file, "key", self._key or "")
            graph = file.create_group("graphs/0")
            for name, shape in (("src", ()), ("dst", ()), ("R", (3,))):
                options = {"chunks": (CHUNK, *shape), "maxshape": (None, *shape), **FILTERS}
                graph.create_dataset(name, (0, *shape), np.int32, **options)
            graph.create_dataset("pieces", data=np.zeros((1, 3), np.int64), maxshape=(None, 3), chunks=(1024, 3))
            file.create_group("matrices", track_order=True)

    def _group(self, parent: h5py.Group, name: str, matrix: Blocks, relative: str | None) -> h5py.Group:
        if name not in parent:
            group = parent.create_group(name)
            group.attrs["graph"], group.attrs["n_spin"], group.attrs["hermitian"] = 0, matrix.n_spin, True
            put_word(group, "dtype", str(in_precision(matrix.select(np.arange(0)), self._precision).data.dtype))
            put_word(group, "unit", "1" if name == "S" else "eV")
            if relative:
                put_word(group, "relative_to", relative)
            group.create_group("half")
            group.create_group("rest")
        return parent[name]


class PieceReader:
    """Reads pieces of an open file; `open_pieces` makes it.

    Args:
        path: for sentences.
        file: the open file.

    Raises:
        FileError: it was not written in pieces.
    """

    def __init__(self, path: str | os.PathLike[str], file: h5py.File) -> None:
        self._path, self._file = path, file
        with self._reading():
            self.structure, self.basis = read_head(file)
            self._pieces = file["graphs/0/pieces"][()] if "pieces" in file["graphs/0"] else None
            self.names = list(file["matrices"])
            """Names of the matrices."""
        if self._pieces is None:
            raise FileError(path, "was not written piece by piece (by `nextham h0 -o FILE.h5`)")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            raise FileError(self._path, f"the HDF5 file is damaged or cut short ({error})") from error

    @property
    def n_pieces(self) -> int:
        """Number of pieces."""
        return len(self._pieces) - 1

    @property
    def n_edges(self) -> int:
        """Number of edges of the whole file."""
        return int(self._pieces[-1, 0])

    def graph(self, piece: int) -> Graph:
        """Returns one of each edge and its reverse of a piece, on-site ones included."""
        first, n = int(self._pieces[piece, 0]), int(self._pieces[piece + 1, 1] - self._pieces[piece, 1])
        with self._reading():
            return Graph(self.structure, *(self._file["graphs/0"][x][first : first + n] for x in ("src", "dst", "R")))

    def read(self, name: str, piece: int, graph: Graph, edges: slice) -> Blocks:
        """Returns blocks of a piece.

        Args:
            name: which matrix.
            piece: number of the piece.
            graph: `graph(piece)`.
            edges: a contiguous range of its edges.

        Raises:
            FileError: damage.
        """
        with self._reading():
            return self._read(name, piece, graph, edges)

    def _read(self, name: str, piece: int, graph: Graph, edges: slice) -> Blocks:
        group = self._file["matrices"][name]
        n_spin, dtype = int(group.attrs["n_spin"]), np.dtype(word(group, "dtype"))
        orbitals = self.basis.n_orbitals_of(graph.structure.numbers)
        starts = np.concatenate([[0], np.cumsum(orbitals[graph.src] * orbitals[graph.dst])])
        if starts[-1] != self._pieces[piece + 1, 2] - self._pieces[piece, 2] or len(group["rest"]):
            raise ValueError(f"{group.name} does not fit its pieces")
        first, last, _ = edges.indices(graph.n_edges)
        span = slice(*(int(self._pieces[piece, 2] + starts[at]) for at in (first, last)))
        planes = self._planes(group, span, plane_names(n_spin, dtype))
        if "relative_to" in group.attrs:
            other = self._file["matrices"][word(group, "relative_to")]
            for plane, bits in self._planes(other, span, plane_names(n_spin, dtype)).items():
                planes[plane] = planes[plane] ^ bits if plane in planes else bits
        return from_planes(
            unpair_spins(planes, n_spin, dtype), graph.select(np.arange(first, last)), self.basis, n_spin, dtype
        )

    @staticmethod
    def _planes(group: h5py.Group, span: slice, names: list[str]) -> Planes:
        found = {plane: group["half"][plane] for plane in names if plane in group["half"]}
        return {plane: data[span].view(f"u{data.dtype.itemsize}") for plane, data in found.items()}


@contextmanager
def open_pieces(path: str | os.PathLike[str]) -> Iterator[PieceReader]:
    """Opens a file for reading piece by piece.

    Raises:
        FileError: as `open_h5`; or it was not written in pieces.
    """
    import h5py

    with open_h5(path):  # it is one of ours
        pass
    with h5py.File(path, "r") as file:
        yield PieceReader(path, file)


def _steps(starts: np.ndarray) -> Iterator[np.ndarray]:
    """Ranges of edges of at most `_STEP` numbers of a plane, or one edge."""
    first = 0
    while first < len(starts) - 1:
        last = max(int(np.searchsorted(starts, starts[first] + _STEP, side="right")) - 1, first + 1)
        yield np.arange(first, last)
        first = last


def _encoded(matrix: Blocks, other: Blocks | None) -> Planes:
    """What is stored of some blocks."""
    planes, real = pair_spins(to_planes(matrix)), matrix.data.real.dtype
    if other is not None:
        known = pair_spins(to_planes(other))
        return {plane: bits ^ known[plane] for plane, bits in planes.items()}
    return {plane: bits if plane in PAIRED else bits.view(real) for plane, bits in planes.items()}


def _put_planes(group: h5py.Group, planes: Planes, at: int) -> None:
    """Writes a range of each plane; ranges of zeros are left out, and planes of nothing else too."""
    for plane, values in planes.items():
        if not values.any():
            continue
        if plane not in group:
            filters = _PLAIN if values.dtype.kind == "f" else FILTERS
            group.create_dataset(plane, (0,), values.dtype, chunks=(CHUNK,), maxshape=(None,), **filters)
        _append(group[plane], at, values)


def _append(dataset: h5py.Dataset, at: int, values: np.ndarray) -> None:
    if len(dataset) < at + len(values):
        dataset.resize(at + len(values), axis=0)
    dataset[at : at + len(values)] = values
