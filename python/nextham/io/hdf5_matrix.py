"""One matrix in a file of `nextham.io.hdf5`: which edges are stored themselves, and how their planes are laid out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.graph import Graph
from nextham.io.hdf5_planes import PAIRED, Planes, from_planes, pair_spins, plane_names, to_planes, unpair_spins

if TYPE_CHECKING:
    import h5py

__all__ = ["CHUNK", "FILTERS", "put_word", "read_matrix", "word", "write_matrix"]

CHUNK = 1 << 16  # numbers per compressed piece: 256 kB or 512 kB
_STEP = 1 << 22  # numbers encoded or decoded at a time
# Level 1 of gzip is 2 % larger than level 4 and writes half as fast again (59 against 38 MB/s).
FILTERS = {"fletcher32": True, "shuffle": True, "compression": "gzip", "compression_opts": 1}
_DTYPES = ("float32", "float64", "complex64", "complex128")


def put_word(group: h5py.Group, name: str, text: str) -> None:
    """Sets an attribute to a text, of fixed length: HDF5 loops forever over a damaged one of variable length."""
    group.attrs[name] = np.array(text.encode(), dtype=f"S{max(len(text.encode()), 1)}")


def word(group: h5py.Group, name: str) -> str:
    """Returns the text of an attribute."""
    return np.bytes_(group.attrs[name]).decode()


class _Halves:
    """Which edges are stored themselves (`half`), and which as what their reversed edge says (`rest`).

    An edge, or the partner that stands for it, is number `place` of `half`; it is number `place_in_rest` of `rest`,
    where −1 says that it is in `half` itself.
    """

    def __init__(self, graph: Graph) -> None:
        partner = graph.reverse()
        edges = np.arange(graph.n_edges)
        in_half = (partner < 0) | (edges <= partner)
        self.half, self.rest = np.flatnonzero(in_half), np.flatnonzero(~in_half)
        self.partner_of_rest = partner[self.rest]
        self.place = (np.cumsum(in_half) - 1)[np.where(in_half, edges, partner)]
        self.place_in_rest = np.where(in_half, -1, np.cumsum(~in_half) - 1)
        self.lonely = bool((partner < 0).any())


def _starts(graph: Graph, basis: Basis) -> np.ndarray:
    """Where each edge's block begins in a plane [e + 1]."""
    orbitals = basis.n_orbitals_of(graph.structure.numbers)
    return np.concatenate([[0], np.cumsum(orbitals[graph.src] * orbitals[graph.dst])])


def _pieces(starts: np.ndarray) -> Iterator[slice]:
    """Ranges of edges of at most `_STEP` numbers (or one edge)."""
    first = 0
    while first < len(starts) - 1:
        last = max(int(np.searchsorted(starts, starts[first] + _STEP, side="right")) - 1, first + 1)
        yield slice(first, last)
        first = last


def write_matrix(group: h5py.Group, matrix: Blocks, other: Blocks | None) -> None:
    """Writes a matrix into its own group, as its difference from another one on the same edges if that is given."""
    halves, real = _Halves(matrix.graph), matrix.data.real.dtype
    half, rest = group.create_group("half"), group.create_group("rest")
    starts = _starts(matrix.graph.select(halves.half), matrix.basis)
    for piece in _pieces(starts):
        planes = pair_spins(to_planes(matrix.select(halves.half[piece])))
        if other is not None:
            known = pair_spins(to_planes(other.select(halves.half[piece])))
            planes = {plane: bits ^ known[plane] for plane, bits in planes.items()}
        values = {
            plane: bits if other is not None or plane in PAIRED else bits.view(real) for plane, bits in planes.items()
        }
        _write_planes(half, values, starts, piece)
    starts = _starts(matrix.graph.select(halves.rest), matrix.basis)
    for piece in _pieces(starts):
        expected = to_planes(matrix.select(halves.partner_of_rest[piece]).adjoint())
        planes = to_planes(matrix.select(halves.rest[piece]))
        _write_planes(rest, {plane: bits ^ expected[plane] for plane, bits in planes.items()}, starts, piece)
    onsite = matrix.select(matrix.graph.onsite())
    group.attrs["hermitian"] = not (len(rest) or halves.lonely or onsite.hermitian_error())


def _write_planes(group: h5py.Group, planes: Planes, starts: np.ndarray, piece: slice) -> None:
    """Writes a piece of each plane; pieces of nothing but zeros are left out, and planes of nothing else too."""
    for plane, values in planes.items():
        if not values.any():
            continue
        if plane not in group:
            size = int(starts[-1])
            group.create_dataset(plane, (size,), values.dtype, chunks=(min(size, CHUNK),), **FILTERS)
        group[plane][starts[piece.start] : starts[piece.stop]] = values


def read_matrix(group: h5py.Group, other: h5py.Group | None, graph: Graph, basis: Basis, edges: slice | None) -> Blocks:
    """Reads a matrix from its group, or a range of its edges.

    Args:
        group: where it is.
        other: the group of the matrix that it was written as the difference from.
        graph: all its edges.
        basis: shells of the elements.
        edges: the range; None for all.

    Raises:
        ValueError: arrays that do not fit the graph.
    """
    n_spin, dtype = int(group.attrs["n_spin"]), np.dtype(word(group, "dtype"))
    if str(dtype) not in _DTYPES or n_spin not in (1, 2, 4):
        raise ValueError(f"{group.name} has n_spin {n_spin} and type {dtype}")
    halves = _Halves(graph)
    wanted = np.arange(graph.n_edges)[edges if edges is not None else slice(None)]
    result = Blocks.zeros(graph.select(wanted), basis, n_spin, dtype)

    needed = np.unique(halves.place[wanted])
    half_graph = graph.select(halves.half)
    starts = _starts(half_graph, basis)
    planes = _read_planes(group["half"], starts, needed, result)
    if other is not None:
        for plane, bits in _read_planes(other["half"], starts, needed, result).items():
            planes[plane] = planes[plane] ^ bits if plane in planes else bits
    planes = unpair_spins(planes, n_spin, dtype)
    half = from_planes(planes, half_graph.select(needed), basis, n_spin, dtype)
    del planes

    starts = _starts(graph.select(halves.rest), basis)
    for piece in _pieces(result.offsets):
        place, place_in_rest = halves.place[wanted[piece]], halves.place_in_rest[wanted[piece]]
        itself, from_partner = np.flatnonzero(place_in_rest < 0), np.flatnonzero(place_in_rest >= 0)
        plain = half.select(np.searchsorted(needed, place[itself]))
        turned = half.select(np.searchsorted(needed, place[from_partner])).adjoint()
        differences = _read_planes(group["rest"], starts, place_in_rest[from_partner], result)
        if differences:
            expected = to_planes(turned)
            planes = {plane: bits ^ differences.get(plane, bits ^ bits) for plane, bits in expected.items()}
            turned = from_planes(planes, turned.graph, basis, n_spin, dtype)
        order = np.concatenate([itself, from_partner])
        joined_graph = graph.select(wanted[piece][order])
        joined = Blocks(joined_graph, basis, np.concatenate([plain.data, turned.data]), n_spin)
        target = slice(result.offsets[piece.start], result.offsets[piece.stop])
        result.data[target] = joined.select(np.argsort(order)).data
    return result


def _read_planes(group: h5py.Group, starts: np.ndarray, edges: np.ndarray, like: Blocks) -> Planes:
    """Returns the bit patterns of some edges (ascending) of each plane that there is, for a matrix like this one."""
    names, item = plane_names(like.n_spin, like.data.dtype), like.data.real.dtype.itemsize
    runs = np.split(edges, np.flatnonzero(np.diff(edges) > 1) + 1) if len(edges) else []
    planes = {}
    for plane in group:  # not items(), which makes None of what is damaged
        dataset = group[plane]
        if plane not in names or dataset.shape != (starts[-1],) or dataset.dtype.itemsize != item:
            raise ValueError(f"{dataset.name} does not fit its matrix")
        pieces = [dataset[starts[run[0]] : starts[run[-1] + 1]] for run in runs]
        planes[plane] = np.concatenate([np.empty(0, dataset.dtype), *pieces]).view(f"u{item}")
    return planes
