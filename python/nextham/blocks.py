"""The container of H, S and ΔH: one ragged block of orbitals per edge."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from nextham import block_layouts
from nextham.basis import Basis
from nextham.graph import Graph

__all__ = ["Blocks"]


_AT_ONCE = 1 << 12
"""Blocks that are moved at a time where each of their numbers needs an index."""


def _ragged_index(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """starts[e], starts[e] + 1, … starts[e] + sizes[e] − 1 for all e, one after the other."""
    ends = np.cumsum(sizes)
    return np.repeat(starts - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)


class Blocks:
    """A periodic matrix M_ab(R) = ⟨φ_a, 0| M |φ_b, R⟩ as blocks on edges.

    The block of edge e, `data[offsets[e]:offsets[e + 1]]` reshaped to [n_spin, a, b], couples the orbitals a of src
    with the orbitals b of dst in cell R. Components are in e3nn's order (m = −l … l in each shell), only orbitals
    that exist are stored. Spin is explicit:

    - n_spin 1: no spin dependence (S, or H without spin); real unless said otherwise;
    - n_spin 2: up, down (collinear);
    - n_spin 4: ↑↑, ↑↓, ↓↑, ↓↓ (spinor).

    H is in eV, S has no unit. The array `data` is the matrix: writing into it changes the matrix.

    Args:
        graph: the edges.
        basis: shells of the elements.
        data: all blocks one after the other, float32, float64, complex64 or complex128.
        n_spin: 1, 2 or 4.

    Raises:
        ValueError: n_spin, or the length of data, does not fit.
        TypeError: dtype of data.
    """

    def __init__(self, graph: Graph, basis: Basis, data: np.ndarray, n_spin: int) -> None:
        if n_spin not in (1, 2, 4):
            raise ValueError(f"n_spin: expected 1, 2 or 4, got {n_spin}")
        if data.dtype not in (np.float32, np.float64, np.complex64, np.complex128):
            raise TypeError(f"data: expected float32, float64, complex64 or complex128, got {data.dtype}")
        self.graph, self.basis, self.n_spin = graph, basis, n_spin
        orbitals = basis.n_orbitals_of(graph.structure.numbers)
        self.shape_of = np.stack([orbitals[graph.src], orbitals[graph.dst]], axis=1)
        """Rows and columns of each block [e, 2]."""
        self.sizes = n_spin * self.shape_of.prod(axis=1)
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        if data.shape != (self.offsets[-1],):
            raise ValueError(f"data: expected shape ({self.offsets[-1]},) for this graph and basis, got {data.shape}")
        self.data = data

    @classmethod
    def zeros(cls, graph: Graph, basis: Basis, n_spin: int, dtype: np.dtype | type = np.float64) -> Blocks:
        """Returns a matrix of zeros."""
        orbitals = basis.n_orbitals_of(graph.structure.numbers)
        size = n_spin * int((orbitals[graph.src] * orbitals[graph.dst]).sum())
        return cls(graph, basis, np.zeros(size, dtype=dtype), n_spin)

    def __repr__(self) -> str:
        kind = f"{self.graph.structure.formula()}, {self.n_edges} edges, n_spin {self.n_spin}, {self.data.dtype}"
        return f"Blocks({kind})"

    @property
    def n_edges(self) -> int:
        """Number of blocks."""
        return self.graph.n_edges

    @property
    def n_orbitals(self) -> int:
        """Orbitals of the whole cell, without spin."""
        return int(self.basis.n_orbitals_of(self.graph.structure.numbers).sum())

    def block(self, e: int) -> np.ndarray:
        """Returns the block of edge e as a view [n_spin, a, b]."""
        return self.data[self.offsets[e] : self.offsets[e + 1]].reshape(self.n_spin, *self.shape_of[e])

    def groups(self) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
        """Yields (Z_src, Z_dst, edges [g], blocks [g, n_spin, a, b]) per pair of elements; the blocks are copies."""
        for z_src, z_dst, edges in block_layouts.element_pairs(self.graph):
            yield z_src, z_dst, edges, self.data[self.index(edges)]

    def put(self, edges: np.ndarray, blocks: np.ndarray) -> None:
        """Writes blocks [g, n_spin, a, b] of one pair of elements to the edges [g]."""
        view = self.view(edges)
        if view is None:
            self.data[self.index(edges)] = blocks
        else:
            view[...] = blocks  # ten times as fast as by an index for each number

    def take(self, edges: np.ndarray) -> np.ndarray:
        """Returns the blocks of edges of one shape [g, n_spin, a, b], a view if they follow each other."""
        view = self.view(edges)
        return self.data[self.index(edges)] if view is None else view

    def view(self, edges: np.ndarray) -> np.ndarray | None:
        """Returns the blocks of edges of one shape as a view [g, n_spin, a, b] if they follow each other, else None."""
        if not len(edges) or edges[-1] - edges[0] != len(edges) - 1 or (np.diff(edges) != 1).any():
            return None
        data = self.data[self.offsets[edges[0]] : self.offsets[edges[-1] + 1]]
        return data.reshape(len(edges), self.n_spin, *self.shape_of[edges[0]])

    def index(self, edges: np.ndarray) -> np.ndarray:
        """Returns where the blocks of edges of one shape lie in `data`, [g, n_spin, a, b]."""
        shape = (self.n_spin, *self.shape_of[edges[0]])
        return self.offsets[edges][:, None, None, None] + np.arange(np.prod(shape)).reshape(shape)

    def like(self, data: np.ndarray) -> Blocks:
        """Returns a matrix of the same form with other numbers."""
        return Blocks(self.graph, self.basis, data, self.n_spin)

    # --- arithmetic

    def _partner(self, other: Blocks) -> np.ndarray:
        same = other.graph is self.graph or (
            np.array_equal(other.graph.src, self.graph.src)
            and np.array_equal(other.graph.dst, self.graph.dst)
            and np.array_equal(other.graph.R, self.graph.R)
        )
        if not same or other.basis != self.basis or other.n_spin != self.n_spin:
            raise ValueError("other: expected the same graph, basis and n_spin (see Blocks.on and Blocks.with_spin)")
        return other.data

    def __add__(self, other: Blocks) -> Blocks:
        return self.like(self.data + self._partner(other))

    def __sub__(self, other: Blocks) -> Blocks:
        return self.like(self.data - self._partner(other))

    def __mul__(self, factor: float) -> Blocks:
        return self.like(self.data * self.data.dtype.type(factor))

    __rmul__ = __mul__

    def astype(self, dtype: np.dtype | type) -> Blocks:
        """Returns the matrix in another precision; complex to real is refused unless the imaginary part is zero."""
        if np.iscomplexobj(self.data) and not np.issubdtype(dtype, np.complexfloating):
            if np.any(self.data.imag):
                raise ValueError("dtype: the matrix has an imaginary part")
            return self.like(self.data.real.astype(dtype))
        return self.like(self.data.astype(dtype))

    def shift_gauge(self, overlap: Blocks, mu: float) -> Blocks:
        """Returns H + μS: the same physics with its zero of energy moved by μ (eV)."""
        overlap = overlap.on(self.graph).with_spin(self.n_spin)
        return self.like(self.data + overlap.data * mu)

    # --- edges

    def select(self, which: np.ndarray) -> Blocks:
        """Returns the blocks of an index array or boolean mask."""
        which = np.asarray(which)
        edges = np.flatnonzero(which) if which.dtype == bool else which
        index = _ragged_index(self.offsets[edges], self.sizes[edges])
        return Blocks(self.graph.select(edges), self.basis, self.data[index], self.n_spin)

    def within(self, low: float, high: float) -> Blocks:
        """Returns the blocks with low ≤ |r| < high (Å)."""
        distance = self.graph.distance()
        return self.select((distance >= low) & (distance < high))

    def on(self, graph: Graph) -> Blocks:
        """Returns the matrix on another graph of the same structure: missing edges are zero, others are dropped."""
        if graph is self.graph:
            return self
        if not np.array_equal(graph.structure.numbers, self.graph.structure.numbers):
            raise ValueError("graph: expected a graph of the same atoms in the same order")
        result = Blocks.zeros(graph, self.basis, self.n_spin, self.data.dtype)
        found = self.graph.find(graph)
        there = np.flatnonzero(found >= 0)
        here = found[there]
        for first in range(0, len(there), _AT_ONCE):  # an index for each number takes as much memory as the numbers
            to, source = there[first : first + _AT_ONCE], here[first : first + _AT_ONCE]
            index = _ragged_index(self.offsets[source], self.sizes[source])
            result.data[_ragged_index(result.offsets[to], result.sizes[to])] = self.data[index]
        return result

    def supercell(self, n1: int, n2: int, n3: int) -> Blocks:
        """Returns the same crystal in a larger cell (see `Graph.supercell`)."""
        return Blocks(self.graph.supercell(n1, n2, n3), self.basis, np.tile(self.data, n1 * n2 * n3), self.n_spin)

    # --- Hermiticity

    def adjoint(self) -> Blocks:
        """Returns M†, (M†)_ab(R) = conj(M_ba(−R)), on the reversed edges."""
        graph = Graph(self.graph.structure, self.graph.dst, self.graph.src, -self.graph.R)
        result = Blocks.zeros(graph, self.basis, self.n_spin, self.data.dtype)
        for _, _, edges, blocks in self.groups():
            flipped = np.conj(blocks.swapaxes(2, 3))
            if self.n_spin == 4:
                flipped = flipped[:, [0, 2, 1, 3]]
            result.put(edges, flipped)
        return result

    def _with_adjoint(self) -> tuple[Blocks, Blocks]:
        """This matrix and its adjoint on the union of their graphs."""
        adjoint = self.adjoint()
        lonely = np.flatnonzero(self.graph.find(adjoint.graph) < 0)
        if len(lonely):
            extra = adjoint.graph.select(lonely)
            union = Graph(
                self.graph.structure,
                np.concatenate([self.graph.src, extra.src]),
                np.concatenate([self.graph.dst, extra.dst]),
                np.concatenate([self.graph.R, extra.R]),
            )
        else:
            union = self.graph
        return self.on(union), adjoint.on(union)

    def hermitian_error(self) -> float:
        """Returns max |M(R) − M(−R)†|; a missing partner counts as zero."""
        this, adjoint = self._with_adjoint()
        return float(np.abs(this.data - adjoint.data).max(initial=0.0))

    def symmetrised(self) -> Blocks:
        """Returns (M + M†)/2, on this graph and the partners it lacks."""
        this, adjoint = self._with_adjoint()
        return this.like((this.data + adjoint.data) / 2)

    # --- spin

    def with_spin(self, n_spin: int) -> Blocks:
        """Returns the same operator with more spin components: 1 → 2, 1 → 4 or 2 → 4 (then complex).

        Raises:
            ValueError: fewer components are asked for (see `spinless`).
        """
        if n_spin == self.n_spin:
            return self
        if n_spin < self.n_spin or n_spin not in (2, 4):
            raise ValueError(f"n_spin: cannot turn {self.n_spin} spin components into {n_spin}")
        dtype = np.result_type(self.data.dtype, np.complex64) if n_spin == 4 else self.data.dtype
        result = Blocks.zeros(self.graph, self.basis, n_spin, dtype)
        for _, _, edges, blocks in self.groups():
            wide = np.zeros((len(edges), n_spin, *blocks.shape[2:]), dtype=dtype)
            wide[:, 0], wide[:, -1] = blocks[:, 0], blocks[:, -1]
            result.put(edges, wide)
        return result

    def spinor(self) -> Blocks:
        """Returns the matrix with n_spin 4."""
        return self.with_spin(4)

    def spinless(self, tolerance: float = 1e-8) -> Blocks:
        """Returns the matrix with n_spin 1, real where its imaginary part is below the tolerance everywhere.

        Raises:
            ValueError: the matrix depends on spin by more than the tolerance.
        """
        largest = 0.0
        pieces = []
        for _, _, edges, blocks in self.groups():
            mean = (blocks[:, :1] + blocks[:, -1:]) / 2
            difference = [np.abs(blocks[:, 0] - blocks[:, -1])]
            if self.n_spin == 4:
                difference.append(np.abs(blocks[:, 1:3]))
            largest = max(largest, *(float(d.max(initial=0.0)) for d in difference))
            pieces.append((edges, mean))
        if largest > tolerance:
            raise ValueError(f"the matrix depends on spin: its spin components differ by up to {largest:.3g}")
        result = Blocks.zeros(self.graph, self.basis, 1, self.data.dtype)
        for edges, mean in pieces:
            result.put(edges, mean)
        if np.iscomplexobj(result.data) and np.abs(result.data.imag).max(initial=0.0) <= tolerance:
            return result.like(np.ascontiguousarray(result.data.real))
        return result

    def add_spinless(self, other: Blocks) -> None:
        """Adds a matrix without spin to every diagonal spin component of this one, in place.

        Raises:
            ValueError: the other has spin or another basis, is complex where this is real, or has an edge that this
                matrix lacks.
        """
        if other.n_spin != 1 or other.basis != self.basis or (np.iscomplexobj(other.data) > np.iscomplexobj(self.data)):
            raise ValueError("other: expected a matrix with n_spin 1 of the same basis, real if this one is")
        place = self.graph.find(other.graph)
        if (place < 0).any():
            raise ValueError(f"other: has {(place < 0).sum()} edges that this matrix lacks")
        for _, _, edges in block_layouts.element_pairs(other.graph):
            for first in range(0, len(edges), _AT_ONCE):
                some = edges[first : first + _AT_ONCE]
                index, own = other.index(some)[:, 0], place[some]
                size = np.prod(self.shape_of[own[0]])
                start = self.offsets[own][:, None, None] + np.arange(size).reshape(self.shape_of[own[0]])
                for spin in {1: (0,), 2: (0, 1), 4: (0, 3)}[self.n_spin]:
                    self.data[start + spin * size] += other.data[index]

    def channel(self, spin: int) -> Blocks:
        """Returns one spin component with n_spin 1: 0 … n_spin − 1 in the order of the class's page."""
        if not 0 <= spin < self.n_spin:
            raise ValueError(f"spin: expected 0...{self.n_spin - 1}, got {spin}")
        result = Blocks.zeros(self.graph, self.basis, 1, self.data.dtype)
        for _, _, edges, blocks in self.groups():
            result.put(edges, blocks[:, spin : spin + 1])
        return result

    @staticmethod
    def collinear(up: Blocks, down: Blocks) -> Blocks:
        """Returns the n_spin 2 matrix of two n_spin 1 matrices on the same graph."""
        if up.n_spin != 1:
            raise ValueError(f"up: expected n_spin 1, got {up.n_spin}")
        up._partner(down)
        result = Blocks.zeros(up.graph, up.basis, 2, np.result_type(up.data, down.data))
        for (_, _, edges, first), (_, _, _, second) in zip(up.groups(), down.groups(), strict=True):
            result.put(edges, np.concatenate([first, second], axis=1))
        return result

    # --- other layouts (block_layouts.py)

    positions = block_layouts.positions
    reordered = block_layouts.reordered
    bloch_layout = block_layouts.bloch_layout
    to_dense = block_layouts.to_dense
    to_sparse = block_layouts.to_sparse
    from_sparse = classmethod(block_layouts.from_sparse)
    padded = block_layouts.padded
    from_padded = classmethod(block_layouts.from_padded)
