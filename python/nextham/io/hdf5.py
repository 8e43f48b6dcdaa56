"""Our own file of block matrices: HDF5, small, exact, readable piece by piece.

    /                 attributes: format, version
    /structure        cell [3, 3] and positions [n, 3] in Å (inside the cell), numbers [n]; attribute pbc
    /basis            numbers [z], shells [z, s]: l of each shell, −1 where an element has fewer
    /graphs/<i>       src [e], dst [e], R [e, 3]; pieces [p + 1, 3] where it was written piece by piece (`hdf5_pieces`)
    /matrices/<name>  attributes: graph (which one), n_spin, dtype, unit, hermitian, relative_to
        half/<plane>  numbers of the edges that come before their reversed edge (on-site edges and edges without a
                      partner included), one block [a, b] after the other, e3nn's component order
        rest/<plane>  what distinguishes the other edges from M(−R) = M(R)†; absent where M is Hermitian to the last bit
    /metadata         attributes and arrays of the caller

A plane (`uu_re`, `ud_im`, …) of floating-point type holds the numbers themselves; one of integer type holds bit
patterns of differences (see `nextham.io.hdf5_planes`), and H may be stored as its difference from H0, with which it
shares all spin-orbit terms. Absent planes are zero. Every array carries a checksum, and so does HDF5's own bookkeeping.

Sizes of H0, H and S of all pairs below 8 Å in float32, against 187 kB per edge of a published sample: Si (2s2p1d)
1.9 kB, GaAs (2s2p2d1f and 2s2p1d) 3.9 kB; in float64 3.9 and 8.7 kB.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.graph import Graph
from nextham.io.errors import FileError
from nextham.io.hdf5_matrix import put_word, read_matrix, word, write_matrix
from nextham.structure import Structure

if TYPE_CHECKING:
    import h5py

__all__ = [
    "FORMAT",
    "INCOMPLETE",
    "VERSION",
    "Contents",
    "Metadata",
    "check_precision",
    "contents_of_group",
    "in_precision",
    "open_h5",
    "read_blocks_h5",
    "read_contents_h5",
    "read_group",
    "read_head",
    "write_blocks_h5",
    "write_head",
    "write_metadata",
]

FORMAT = "nextham blocks"
INCOMPLETE = "nextham blocks, incomplete"
"""What a file says that is written piece by piece (`nextham.io.hdf5_pieces`), until its last piece is there."""

VERSION = 1

Metadata = Mapping[str, "str | int | float | np.ndarray"]

_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Contents:
    """What a file holds, without its numbers.

    Args:
        structure: the atoms, inside the cell.
        basis: shells of their elements.
        n_edges: edges of each matrix.
        n_spin: spin components of each matrix.
        dtype: precision of each matrix.
        metadata: what the writer added.
    """

    structure: Structure
    basis: Basis
    n_edges: dict[str, int]
    n_spin: dict[str, int]
    dtype: dict[str, str]
    metadata: dict[str, str | int | float | np.ndarray]


def write_blocks_h5(
    path: str | os.PathLike[str],
    matrices: Mapping[str, Blocks],
    metadata: Metadata | None = None,
    precision: str | None = None,
    relative: Mapping[str, str] | None = None,
) -> None:
    """Writes matrices of one structure; every bit comes back, in the precision that was asked for.

    The file takes its name only once it is complete.

    Args:
        path: usually ends in `.h5`.
        matrices: name → matrix, such as H0, H, S; all of the same structure and basis. S has no unit, others are in eV.
        metadata: words, numbers and arrays to keep with them, such as the Fermi energy.
        precision: `single` or `double`; by default each matrix keeps its own. The published data are `single`.
        relative: name → name of the matrix from which it differs little, which saves room where both have the same
            edges, spin and precision; by default H from H0.

    Raises:
        ValueError: nothing to write, a name that is no identifier, different structures or bases, a number that is not
            finite, or an edge that occurs twice.
        FileError: the file cannot be written.
    """
    import h5py

    check_precision(precision)
    matrices = {name: _checked(name, matrix, precision) for name, matrix in matrices.items()}
    if not matrices:
        raise ValueError("matrices: expected at least one matrix")
    first = next(iter(matrices.values()))
    for name, matrix in matrices.items():
        if matrix.basis != first.basis or not _same_structure(matrix.graph.structure, first.graph.structure):
            raise ValueError(f"matrices: expected the same structure and basis for all, {name} has another")
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with h5py.File(part, "w", libver=("v110", "v110")) as file:  # since 1.10 HDF5 checks its own bookkeeping
            put_word(file, "format", FORMAT)
            write_head(file, first.graph.structure, first.basis)
            write_metadata(file, metadata or {})
            _write_matrices(file, matrices, {"H": "H0"} if relative is None else relative)
        os.replace(part, path)
    except OSError as error:
        raise FileError(path, f"cannot be written ({error})") from error
    finally:
        part.unlink(missing_ok=True)


def read_blocks_h5(
    path: str | os.PathLike[str], names: list[str] | tuple[str, ...] | None = None, edges: slice | None = None
) -> dict[str, Blocks]:
    """Reads matrices, or the same range of edges of each.

    Args:
        path: a file of `write_blocks_h5`.
        names: which matrices; all by default.
        edges: a contiguous range of each matrix's edges in the file's order; only what it needs is read.

    Raises:
        ValueError: a range with a step.
        FileError: not such a file, a newer version, damage, or no matrix of a name.
    """
    if edges is not None and edges.step not in (None, 1):
        raise ValueError(f"edges: expected a contiguous range, got {edges}")
    with open_h5(path) as file:
        return read_group(path, file, names, edges)


def read_group(
    path: str | os.PathLike[str],
    file: h5py.Group,
    names: list[str] | tuple[str, ...] | None = None,
    edges: slice | None = None,
) -> dict[str, Blocks]:
    """Reads matrices of an open file, or of a group with the same content (a sample of a dataset).

    Args:
        path: the file, for sentences.
        file: it, or the group.
        names: as `read_blocks_h5`.
        edges: likewise.

    Raises:
        FileError: no matrix of a name.
    """
    structure, basis = read_head(file)
    graphs: dict[str, Graph] = {}
    result = {}
    for name in file["matrices"] if names is None else names:
        if name not in file["matrices"]:
            raise FileError(path, f"there is no matrix {name}, only {', '.join(file['matrices'])}")
        group = file["matrices"][name]
        key = str(group.attrs["graph"])
        if key not in graphs:
            graphs[key] = _read_graph(file["graphs"][key], structure)
        other = file["matrices"][word(group, "relative_to")] if "relative_to" in group.attrs else None
        result[name] = read_matrix(group, other, graphs[key], basis, edges)
    return result


def read_contents_h5(path: str | os.PathLike[str]) -> Contents:
    """Reads what a file holds, without its numbers.

    Raises:
        FileError: not such a file, a newer version, or damage.
    """
    with open_h5(path) as file:
        return contents_of_group(file)


def contents_of_group(file: h5py.Group) -> Contents:
    """Returns what an open file, or a group with the same content, holds."""
    groups = {name: file["matrices"][name] for name in file["matrices"]}
    return Contents(
        structure=_read_structure(file["structure"]),
        basis=_read_basis(file["basis"]),
        n_edges={name: len(file["graphs"][str(g.attrs["graph"])]["src"]) for name, g in groups.items()},
        n_spin={name: int(g.attrs["n_spin"]) for name, g in groups.items()},
        dtype={name: word(g, "dtype") for name, g in groups.items()},
        metadata={name: _plain(value) for name, value in file["metadata"].attrs.items()}
        | {name: file["metadata"][name][()] for name in file["metadata"]},
    )


@contextmanager
def open_h5(path: str | os.PathLike[str], format: str = FORMAT, version: int = VERSION) -> Iterator[h5py.File]:
    """Opens a file for reading once it is known to be one of ours; whatever HDF5 stumbles over becomes a FileError.

    Args:
        path: the file.
        format: what its attribute `format` says.
        version: the newest version that is understood.

    Raises:
        FileError: no HDF5 file, another format, a newer version, or damage.
    """
    import h5py

    try:
        with open(path, "rb") as start:
            signature = start.read(len(_SIGNATURE))
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    if signature != _SIGNATURE:
        raise FileError(path, "this is no HDF5 file")
    try:
        with h5py.File(path, "r", rdcc_nbytes=1 << 26) as file:
            if "format" in file.attrs and word(file, "format") == INCOMPLETE:
                raise FileError(path, "is incomplete: the run that wrote it did not come to its end")
            if "format" not in file.attrs or word(file, "format") != format:
                what = "one of block matrices written by nextham" if format == FORMAT else f"a {format}"
                raise FileError(path, f"this HDF5 file is not {what}")
            if int(file.attrs["version"]) > version:
                sentence = f"its format is version {file.attrs['version']}, this program reads up to {version}"
                raise FileError(path, sentence)
            yield file
    except FileError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
        raise FileError(path, f"the HDF5 file is damaged or cut short ({error})") from error


def _checked(name: str, matrix: Blocks, precision: str | None) -> Blocks:
    if not name.isidentifier():
        raise ValueError(f"matrices: expected names like H0, got {name!r}")
    if not np.isfinite(matrix.data).all():
        raise ValueError(f"{name}: {np.count_nonzero(~np.isfinite(matrix.data))} numbers are not finite")
    return in_precision(matrix, precision)


def check_precision(precision: str | None) -> None:
    """Raises ValueError where a precision is none that `in_precision` takes."""
    if precision not in (None, "single", "double"):
        raise ValueError(f"precision: expected 'single', 'double' or None, got {precision!r}")


def in_precision(matrix: Blocks, precision: str | None) -> Blocks:
    """Returns a matrix in `single` or `double` precision, or as it is (None)."""
    if precision is None:
        return matrix
    dtypes = {"single": (np.float32, np.complex64), "double": (np.float64, np.complex128)}
    return matrix.astype(dtypes[precision][np.iscomplexobj(matrix.data)])


def _same_structure(a: Structure, b: Structure) -> bool:
    same = (np.array_equal(getattr(a, x), getattr(b, x)) for x in ("cell", "positions", "numbers", "pbc"))
    return a is b or all(same)


# --- small things


def _put(group: h5py.Group, name: str, values: np.ndarray) -> None:
    """An array that is not of orbitals, with checksum."""
    options = {"chunks": True, "fletcher32": True, "shuffle": True, "compression": "gzip"} if values.size else {}
    group.create_dataset(name, data=values, **options)


def write_head(file: h5py.File, structure: Structure, basis: Basis) -> None:
    """Writes version, structure, basis and empty metadata into a new file."""
    file.attrs["version"] = VERSION
    _write_structure(file.create_group("structure"), structure)
    _write_basis(file.create_group("basis"), basis)
    file.create_group("metadata")


def read_head(file: h5py.Group) -> tuple[Structure, Basis]:
    """Reads the structure and the basis of an open file."""
    return _read_structure(file["structure"]), _read_basis(file["basis"])


def _write_structure(group: h5py.Group, structure: Structure) -> None:
    for name in ("cell", "positions", "numbers"):
        _put(group, name, getattr(structure, name))
    group.attrs["pbc"] = np.array(structure.pbc, dtype=np.int8)
    put_word(group, "unit", "angstrom")


def _read_structure(group: h5py.Group) -> Structure:
    cell, positions, numbers = (group[name][()] for name in ("cell", "positions", "numbers"))
    return Structure(cell, positions, numbers, tuple(group.attrs["pbc"] != 0))


def _write_basis(group: h5py.Group, basis: Basis) -> None:
    longest = max(map(len, basis.shells.values()))
    rows = [[*ls, *[-1] * (longest - len(ls))] for ls in basis.shells.values()]
    _put(group, "numbers", np.array(list(basis.shells), dtype=np.int32))
    _put(group, "shells", np.array(rows, dtype=np.int32))


def _read_basis(group: h5py.Group) -> Basis:
    rows = zip(group["numbers"][()], group["shells"][()], strict=True)
    return Basis({int(z): tuple(int(l) for l in ls if l >= 0) for z, ls in rows})


def write_metadata(file: h5py.File, metadata: Metadata) -> None:
    """Writes words, numbers and arrays of the caller."""
    group = file["metadata"]
    for name, value in metadata.items():
        if isinstance(value, np.ndarray) and value.ndim:
            _put(group, name, value)
        elif isinstance(value, str):
            put_word(group, name, value)
        else:
            group.attrs[name] = value


def _plain(value: np.generic) -> str | int | float:
    return value.decode() if isinstance(value, bytes) else value.item()


def _write_graph(group: h5py.Group, graph: Graph) -> None:
    for name in ("src", "dst", "R"):
        _put(group, name, getattr(graph, name).astype(np.int32))


def _read_graph(group: h5py.Group, structure: Structure) -> Graph:
    return Graph(structure, *(group[name][()] for name in ("src", "dst", "R")))


def _same_edges(a: Graph, b: Graph) -> bool:
    return a is b or all(np.array_equal(getattr(a, x), getattr(b, x)) for x in ("src", "dst", "R"))


def _write_matrices(file: h5py.File, matrices: Mapping[str, Blocks], relative: Mapping[str, str]) -> None:
    graphs: list[Graph] = []
    group_of_all = file.create_group("matrices", track_order=True)
    for name, matrix in matrices.items():
        number = next((i for i, graph in enumerate(graphs) if _same_edges(graph, matrix.graph)), len(graphs))
        if number == len(graphs):
            graphs.append(matrix.graph)
            _write_graph(file.create_group(f"graphs/{number}"), matrix.graph)
        group = group_of_all.create_group(name)
        group.attrs["graph"], group.attrs["n_spin"] = number, matrix.n_spin
        put_word(group, "dtype", str(matrix.data.dtype))
        put_word(group, "unit", "1" if name == "S" else "eV")
        other = matrices.get(relative.get(name, ""))
        if other is None or relative[name] in relative or not _alike(other, matrix):
            write_matrix(group, matrix, None)
        else:
            put_word(group, "relative_to", relative[name])
            write_matrix(group, matrix, other)


def _alike(a: Blocks, b: Blocks) -> bool:
    return (a.n_spin, a.data.dtype) == (b.n_spin, b.data.dtype) and _same_edges(a.graph, b.graph)
