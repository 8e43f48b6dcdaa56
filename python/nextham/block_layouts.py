"""The forms of a block matrix that other programs want: dense in k, sparse per lattice vector, padded.

These functions are methods of `nextham.blocks.Blocks`; they live here so that each file has one idea.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from nextham.basis import PUBLISHED_SHELLS_PADDED, Basis, order_permutation, published_slots
from nextham.graph import Graph
from nextham.structure import Structure

if TYPE_CHECKING:
    from nextham.blocks import Blocks
    from nextham_kernels.ops.bloch_sum import BlochLayout


def element_pairs(graph: Graph) -> Iterator[tuple[int, int, np.ndarray]]:
    """(Z_src, Z_dst, edges [g]) for every pair of elements that occurs."""
    numbers = graph.structure.numbers
    pair = numbers[graph.src] * 1000 + numbers[graph.dst]
    for key in np.unique(pair):
        yield int(key // 1000), int(key % 1000), np.flatnonzero(pair == key)


def positions(this: Blocks) -> tuple[np.ndarray, np.ndarray, int]:
    """Returns row and column of each number of `data` in the matrix of the cell (spin fastest), and its size."""
    _one_matrix(this)
    start = this.basis.offsets(this.graph.structure.numbers)
    spins = 2 if this.n_spin == 4 else 1
    rows, columns = np.empty((2, len(this.data)), dtype=np.int64)
    spin = np.arange(this.n_spin)[:, None, None]
    for _, _, edges in element_pairs(this.graph):
        n_a, n_b = this.shape_of[edges[0]]
        first_a = start[this.graph.src[edges]][:, None, None, None]
        first_b = start[this.graph.dst[edges]][:, None, None, None]
        index = this.index(edges)
        rows[index] = (first_a + np.arange(n_a)[:, None]) * spins + spin // 2
        columns[index] = (first_b + np.arange(n_b)) * spins + spin % 2
    return rows, columns, spins * int(start[-1])


def to_dense(this: Blocks, k: Sequence[float] | np.ndarray) -> np.ndarray:
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
    import torch

    from nextham_kernels.ops.bloch_sum import bloch_sum

    layout = this.bloch_layout()
    kind = np.complex128 if np.iscomplexobj(this.data) else np.float64
    data = torch.from_numpy(this.data.astype(kind, copy=False))
    dense = bloch_sum(data, layout, torch.from_numpy(np.atleast_2d(k))).numpy()
    return dense.reshape(*k.shape[:-1], layout.size, layout.size)


def bloch_layout(this: Blocks, interatomic: bool = False) -> BlochLayout:
    """Returns where the blocks go in M(k), for `nextham_kernels.ops.bloch_sum` with `torch.from_numpy(data)`.

    Args:
        interatomic: phases of the vectors between atoms instead of lattice vectors.

    Raises:
        ValueError: n_spin 2 (take the channels).
    """
    import torch

    from nextham_kernels.ops.bloch_sum import bloch_layout as layout_of

    _one_matrix(this)
    graph = this.graph
    orbitals = np.asarray(this.basis.n_orbitals_of(graph.structure.numbers), dtype=np.int64)
    arrays = (torch.from_numpy(x) for x in (graph.src, graph.dst, graph.R, orbitals))
    structure = graph.structure
    x = torch.from_numpy(structure.positions @ np.linalg.inv(structure.cell)) if interatomic else None
    return layout_of(*arrays, 2 if this.n_spin == 4 else 1, x)


def _one_matrix(this: Blocks) -> None:
    if this.n_spin == 2:
        raise ValueError("n_spin 2 is two matrices: take channel(0) and channel(1)")


def to_sparse(this: Blocks, order: str = "abacus") -> tuple[np.ndarray, list[scipy.sparse.csr_matrix]]:
    """Returns lattice vectors R [r, 3] in ascending order and one sparse matrix for each.

    Rows and columns run over atoms, shells and the components of `order`, for n_spin 4 with the spin index fastest:
    ABACUS's row order.

    Raises:
        ValueError: n_spin 2 (two files: take the channels), or an unknown order.
    """
    ordered = this.reordered(order, inverse=False)
    rows, columns, size = ordered.positions()
    vectors, which = np.unique(this.graph.R, axis=0, return_inverse=True)
    of_number = np.repeat(which.reshape(-1), this.sizes)
    by_vector = np.argsort(of_number, kind="stable")
    cuts = np.searchsorted(of_number[by_vector], np.arange(len(vectors) + 1))
    matrices = []
    for r in range(len(vectors)):
        chosen = by_vector[cuts[r] : cuts[r + 1]]
        chosen = chosen[ordered.data[chosen] != 0]
        entries = (ordered.data[chosen], (rows[chosen], columns[chosen]))
        matrices.append(scipy.sparse.csr_matrix(entries, shape=(size, size)))
    return vectors, matrices


def from_sparse(
    cls: type[Blocks],
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
        ValueError: n_spin, dimension, a lattice vector that occurs twice, or an atom outside the cell along a direction
            without periodicity.
    """
    if n_spin not in (1, 4):
        raise ValueError(f"n_spin: expected 1 or 4 (n_spin 2 is two matrices, see Blocks.collinear), got {n_spin}")
    structure.require_inside()
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
    graph = Graph(structure, everything // n_atoms, everything % n_atoms, np.repeat(R, [len(p) for p in pairs], axis=0))
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
    return result.reordered(order, inverse=True)


def reordered(this: Blocks, order: str, inverse: bool) -> Blocks:
    """Returns the blocks with components in another order than e3nn's, or (inverse) back in e3nn's from that order."""
    if order == "e3nn":
        return this
    result = this.like(np.empty_like(this.data))
    for z_src, z_dst, edges, blocks in this.groups():
        (i, sign_i), (j, sign_j) = (order_permutation(this.basis[z], order) for z in (z_src, z_dst))
        sign = np.outer(sign_i, sign_j).astype(blocks.real.dtype)
        if inverse:
            moved = np.empty_like(blocks)
            moved[:, :, i[:, None], j] = blocks * sign
        else:
            moved = blocks[:, :, i[:, None], j] * sign
        result.put(edges, moved)
    return result


def padded(this: Blocks, shells: Sequence[int] = PUBLISHED_SHELLS_PADDED, order: str = "e3nn") -> np.ndarray:
    """Returns the blocks in a common layout [e, n_spin, d, d], empty slots zero (see `basis.published_slots`)."""
    size = sum(2 * l + 1 for l in shells)
    wide = np.zeros((this.n_edges, this.n_spin, size, size), dtype=this.data.dtype)
    spin = np.arange(this.n_spin)[:, None, None]
    for z_src, z_dst, edges, blocks in this.reordered(order, inverse=False).groups():
        a, b = (published_slots(this.basis[z], shells) for z in (z_src, z_dst))
        wide[edges[:, None, None, None], spin, a[:, None], b] = blocks
    return wide


def from_padded(
    cls: type[Blocks],
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
    for z_src, z_dst, edges in element_pairs(graph):
        a, b = (published_slots(basis[z], shells) for z in (z_src, z_dst))
        result.put(edges, wide[edges[:, None, None, None], spin, a[:, None], b])
    return result.reordered(order, inverse=True)
