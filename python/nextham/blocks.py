"""The container of H, S and ΔH: one ragged block of orbitals per edge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse

from nextham.basis import PUBLISHED_SHELLS_PADDED, Basis, order_permutation, published_slots
from nextham.graph import Graph
from nextham.structure import Structure

__all__ = ["Blocks"]


def _ragged_index(starts: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """starts[e], starts[e] + 1, … starts[e] + sizes[e] − 1 for all e, one after the other."""
    ends = np.cumsum(sizes)
    return np.repeat(starts - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)


def _element_pairs(graph: Graph) -> Iterator[tuple[int, int, np.ndarray]]:
    """(Z_src, Z_dst, edges [g]) for every pair of elements that occurs."""
    numbers = graph.structure.numbers
    pair = numbers[graph.src] * 1000 + numbers[graph.dst]
    for key in np.unique(pair):
        yield int(key // 1000), int(key % 1000), np.flatnonzero(pair == key)


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
        for z_src, z_dst, edges in _element_pairs(self.graph):
            yield z_src, z_dst, edges, self.data[self._index(edges)]

    def put(self, edges: np.ndarray, blocks: np.ndarray) -> None:
        """Writes blocks [g, n_spin, a, b] of one pair of elements to the edges [g]."""
        self.data[self._index(edges)] = blocks

    def _index(self, edges: np.ndarray) -> np.ndarray:
        """Where the blocks of edges of one shape lie in `data`, [g, n_spin, a, b]."""
        shape = (self.n_spin, *self.shape_of[edges[0]])
        return self.offsets[edges][:, None, None, None] + np.arange(np.prod(shape)).reshape(shape)

    def _like(self, data: np.ndarray) -> Blocks:
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
        return self._like(self.data + self._partner(other))

    def __sub__(self, other: Blocks) -> Blocks:
        return self._like(self.data - self._partner(other))

    def __mul__(self, factor: float) -> Blocks:
        return self._like(self.data * self.data.dtype.type(factor))

    __rmul__ = __mul__

    def astype(self, dtype: np.dtype | type) -> Blocks:
        """Returns the matrix in another precision; complex to real is refused unless the imaginary part is zero."""
        if np.iscomplexobj(self.data) and not np.issubdtype(dtype, np.complexfloating):
            if np.any(self.data.imag):
                raise ValueError("dtype: the matrix has an imaginary part")
            return self._like(self.data.real.astype(dtype))
        return self._like(self.data.astype(dtype))

    def shift_gauge(self, overlap: Blocks, mu: float) -> Blocks:
        """Returns H + μS: the same physics with its zero of energy moved by μ (eV)."""
        overlap = overlap.on(self.graph).with_spin(self.n_spin)
        return self._like(self.data + overlap.data * mu)

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
        result.data[_ragged_index(result.offsets[there], result.sizes[there])] = self.data[
            _ragged_index(self.offsets[here], self.sizes[here])
        ]
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
        return this._like((this.data + adjoint.data) / 2)

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
            return result._like(np.ascontiguousarray(result.data.real))
        return result

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

    # --- other layouts

    def _positions(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Row and column of every number of `data` in the cell's matrix (e3nn order, spin fastest), and its size."""
        if self.n_spin == 2:
            raise ValueError("n_spin 2 is two matrices: take channel(0) and channel(1)")
        start = self.basis.offsets(self.graph.structure.numbers)
        spins = 2 if self.n_spin == 4 else 1
        rows, columns = np.empty((2, len(self.data)), dtype=np.int64)
        spin = np.arange(self.n_spin)[:, None, None]
        for _, _, edges in _element_pairs(self.graph):
            n_a, n_b = self.shape_of[edges[0]]
            first_a = start[self.graph.src[edges]][:, None, None, None]
            first_b = start[self.graph.dst[edges]][:, None, None, None]
            index = self._index(edges)
            rows[index] = (first_a + np.arange(n_a)[:, None]) * spins + spin // 2
            columns[index] = (first_b + np.arange(n_b)) * spins + spin % 2
        return rows, columns, spins * int(start[-1])

    def to_dense(self, k: Sequence[float] | np.ndarray) -> np.ndarray:
        """Returns M(k) = Σ_R exp(2πi k·R) M(R), the sum in which bands are computed.

        Args:
            k: one k-point [3] or many [q, 3], in units of the reciprocal lattice vectors.

        Returns:
            complex128 [N, N] or [q, N, N]; N counts orbitals in the order of atoms, shells and m = −l … l, for n_spin 4
            times two with the spin index fastest.

        Raises:
            ValueError: shape of k, or n_spin 2.
        """
        k = np.asarray(k, dtype=np.float64)
        if k.ndim not in (1, 2) or k.shape[-1] != 3:
            raise ValueError(f"k: expected shape (3,) or (q, 3), got {k.shape}")
        rows, columns, size = self._positions()
        place = rows * size + columns
        dense = np.empty((len(np.atleast_2d(k)), size * size), dtype=np.complex128)
        for q, point in enumerate(np.atleast_2d(k)):
            phased = self.data * np.repeat(np.exp(2j * np.pi * (self.graph.R @ point)), self.sizes)
            dense[q].real = np.bincount(place, phased.real, size * size)
            dense[q].imag = np.bincount(place, phased.imag, size * size)
        return dense.reshape(*k.shape[:-1], size, size)

    def to_sparse(self, order: str = "abacus") -> tuple[np.ndarray, list[scipy.sparse.csr_matrix]]:
        """Returns lattice vectors R [r, 3] in ascending order and one sparse matrix for each.

        Rows and columns run over atoms, shells and the components of `order`, for n_spin 4 with the spin index fastest:
        ABACUS's row order.

        Raises:
            ValueError: n_spin 2 (two files: take the channels), or an unknown order.
        """
        ordered = self._reordered(order, inverse=False)
        rows, columns, size = ordered._positions()
        vectors, which = np.unique(self.graph.R, axis=0, return_inverse=True)
        of_number = np.repeat(which.reshape(-1), self.sizes)
        by_vector = np.argsort(of_number, kind="stable")
        cuts = np.searchsorted(of_number[by_vector], np.arange(len(vectors) + 1))
        matrices = []
        for r in range(len(vectors)):
            chosen = by_vector[cuts[r] : cuts[r + 1]]
            chosen = chosen[ordered.data[chosen] != 0]
            entries = (ordered.data[chosen], (rows[chosen], columns[chosen]))
            matrices.append(scipy.sparse.csr_matrix(entries, shape=(size, size)))
        return vectors, matrices

    @classmethod
    def from_sparse(
        cls,
        structure: Structure,
        basis: Basis,
        R: np.ndarray,
        matrices: Sequence[scipy.sparse.csr_matrix],
        n_spin: int,
        order: str = "abacus",
    ) -> Blocks:
        """Returns the blocks of sparse matrices, the inverse of `to_sparse`; pairs without any number get no edge.

        Args:
            structure: its atoms, once wrapped, are those the lattice vectors refer to.
            basis: shells of its elements.
            R: lattice vectors [r, 3].
            matrices: one [N, N] for each, N = orbitals (n_spin 1) or twice that with the spin index fastest (n_spin 4).
            n_spin: 1 or 4.
            order: component order of rows and columns.

        Raises:
            ValueError: n_spin, dimension, or a lattice vector that occurs twice.
        """
        if n_spin not in (1, 4):
            raise ValueError(f"n_spin: expected 1 or 4 (n_spin 2 is two matrices, see Blocks.collinear), got {n_spin}")
        structure, _ = structure.wrapped()
        R = np.asarray(R, dtype=np.int64).reshape(-1, 3)
        if len(np.unique(R, axis=0)) != len(R) or len(matrices) != len(R):
            raise ValueError("R: expected one matrix for each of distinct lattice vectors")
        spins, start = (2 if n_spin == 4 else 1), basis.offsets(structure.numbers)
        size, n_atoms = spins * int(start[-1]), structure.n_atoms
        for vector, matrix in zip(R, matrices, strict=True):
            if matrix.shape != (size, size):
                raise ValueError(
                    f"matrices: expected {size} x {size} for {structure.formula()} with {basis} and n_spin {n_spin}, "
                    f"got {matrix.shape[0]} x {matrix.shape[1]} at R = {tuple(int(x) for x in vector)}"
                )
        atom_of = np.repeat(np.arange(n_atoms), spins * np.diff(start))
        entries = [m.tocoo() for m in matrices]
        pairs = [np.unique(atom_of[m.row] * n_atoms + atom_of[m.col]) for m in entries]
        everything = np.concatenate(pairs) if pairs else np.empty(0, dtype=np.int64)
        graph = Graph(
            structure, everything // n_atoms, everything % n_atoms, np.repeat(R, [len(p) for p in pairs], axis=0)
        )
        dtype = np.result_type(np.float64, *{m.dtype for m in entries}, np.complex128 if n_spin == 4 else np.float64)
        result = cls.zeros(graph, basis, n_spin, dtype)
        first = 0
        for m, pair in zip(entries, pairs, strict=True):
            i, j = atom_of[m.row], atom_of[m.col]
            edge = first + np.searchsorted(pair, i * n_atoms + j)
            a, b = m.row // spins - start[i], m.col // spins - start[j]
            spin = (m.row % spins) * spins + m.col % spins
            place = (spin * result.shape_of[edge, 0] + a) * result.shape_of[edge, 1] + b
            np.add.at(result.data, result.offsets[edge] + place, m.data)
            first += len(pair)
        return result._reordered(order, inverse=True)

    def _reordered(self, order: str, inverse: bool) -> Blocks:
        """Components from e3nn's order to another one, or back."""
        if order == "e3nn":
            return self
        result = self._like(np.empty_like(self.data))
        for z_src, z_dst, edges, blocks in self.groups():
            (i, sign_i), (j, sign_j) = (order_permutation(self.basis[z], order) for z in (z_src, z_dst))
            sign = np.outer(sign_i, sign_j).astype(blocks.real.dtype)
            if inverse:
                moved = np.empty_like(blocks)
                moved[:, :, i[:, None], j] = blocks * sign
            else:
                moved = blocks[:, :, i[:, None], j] * sign
            result.put(edges, moved)
        return result

    def padded(self, shells: Sequence[int] = PUBLISHED_SHELLS_PADDED, order: str = "e3nn") -> np.ndarray:
        """Returns the blocks in a common layout [e, n_spin, d, d], empty slots zero (see `basis.published_slots`)."""
        size = sum(2 * l + 1 for l in shells)
        wide = np.zeros((self.n_edges, self.n_spin, size, size), dtype=self.data.dtype)
        spin = np.arange(self.n_spin)[:, None, None]
        for z_src, z_dst, edges, blocks in self._reordered(order, inverse=False).groups():
            a, b = (published_slots(self.basis[z], shells) for z in (z_src, z_dst))
            wide[edges[:, None, None, None], spin, a[:, None], b] = blocks
        return wide

    @classmethod
    def from_padded(
        cls,
        graph: Graph,
        basis: Basis,
        wide: np.ndarray,
        shells: Sequence[int] = PUBLISHED_SHELLS_PADDED,
        order: str = "e3nn",
    ) -> Blocks:
        """Returns the blocks of an array [e, n_spin, d, d], the inverse of `padded`; other slots are not looked at."""
        size = sum(2 * l + 1 for l in shells)
        if wide.ndim != 4 or wide.shape[0] != graph.n_edges or wide.shape[2:] != (size, size):
            raise ValueError(f"wide: expected shape ({graph.n_edges}, n_spin, {size}, {size}), got {wide.shape}")
        result = cls.zeros(graph, basis, wide.shape[1], wide.dtype)
        spin = np.arange(wide.shape[1])[:, None, None]
        for z_src, z_dst, edges in _element_pairs(graph):
            a, b = (published_slots(basis[z], shells) for z in (z_src, z_dst))
            result.put(edges, wide[edges[:, None, None, None], spin, a[:, None], b])
        return result._reordered(order, inverse=True)
