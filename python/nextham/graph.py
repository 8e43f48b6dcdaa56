"""Which pairs of atoms interact: edges i→j with the lattice vector of j."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from nextham.structure import Structure

__all__ = ["Graph", "neighbour_graph"]


@dataclass(frozen=True, eq=False)
class Graph:
    """Directed edges of a periodic structure.

    Edge e goes from atom src[e] in cell 0 to atom dst[e] in cell R[e]; its vector is r = τ_dst + R·cell − τ_src.

    Args:
        structure: atoms inside the cell (`Structure.wrapped`), because R counts from wrapped positions.
        src: atom of the row index [e].
        dst: atom of the column index [e].
        R: integer lattice vector [e, 3].

    Raises:
        ValueError: shapes that do not match, or an atom index outside the structure.
    """

    structure: Structure
    src: np.ndarray
    dst: np.ndarray
    R: np.ndarray

    def __post_init__(self) -> None:
        for name in ("src", "dst", "R"):
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=np.int64))
        n_edges = len(self.src)
        if self.src.shape != (n_edges,) or self.dst.shape != (n_edges,) or self.R.shape != (n_edges, 3):
            raise ValueError(
                f"graph: expected src [e], dst [e], R [e, 3], got {self.src.shape}, {self.dst.shape}, {self.R.shape}"
            )
        for name, atoms in (("src", self.src), ("dst", self.dst)):
            if n_edges and (atoms.min() < 0 or atoms.max() >= self.structure.n_atoms):
                raise ValueError(f"{name}: expected atom indices 0...{self.structure.n_atoms - 1}, got {atoms.max()}")

    @property
    def n_edges(self) -> int:
        """Number of directed edges, on-site ones included."""
        return len(self.src)

    def vector(self) -> np.ndarray:
        """Returns the edge vectors [e, 3], Å; exactly zero on site."""
        positions = self.structure.positions
        between = positions[self.dst] - positions[self.src]
        return between + self.R @ self.structure.cell

    def distance(self) -> np.ndarray:
        """Returns the edge lengths [e], Å."""
        return np.linalg.norm(self.vector(), axis=1)

    def onsite(self) -> np.ndarray:
        """Returns which edges join an atom with itself in the same cell, bool [e]."""
        return (self.src == self.dst) & ~self.R.any(axis=1)

    def select(self, which: np.ndarray) -> Graph:
        """Returns the edges of an index array or boolean mask."""
        return Graph(self.structure, self.src[which], self.dst[which], self.R[which])

    def _keys(self, low: np.ndarray, span: np.ndarray) -> np.ndarray:
        """One integer per edge: (R − low, src, dst) in mixed radix, so its order is the published order."""
        n = self.structure.n_atoms
        r = self.R - low
        return ((((r[:, 0] * span[1]) + r[:, 1]) * span[2] + r[:, 2]) * n + self.src) * n + self.dst

    def find(self, other: Graph) -> np.ndarray:
        """Returns where each edge of `other` is in this graph, int64 [other.n_edges]; −1 where it is absent.

        Raises:
            ValueError: the graphs are of different numbers of atoms, or this graph has an edge twice.
        """
        if other.structure.n_atoms != self.structure.n_atoms:
            raise ValueError(
                f"other: expected a graph of {self.structure.n_atoms} atoms, got {other.structure.n_atoms}"
            )
        if not self.n_edges or not other.n_edges:
            return np.full(other.n_edges, -1, dtype=np.int64)
        everything = np.concatenate([self.R, other.R])
        low = everything.min(axis=0)
        span = everything.max(axis=0) - low + 1
        mine, theirs = self._keys(low, span), other._keys(low, span)
        order = np.argsort(mine, kind="stable")
        ordered = mine[order]
        if (ordered[1:] == ordered[:-1]).any():
            twice = order[int(np.argmax(ordered[1:] == ordered[:-1]))]
            raise ValueError(
                f"graph: edge {self.src[twice]}→{self.dst[twice]} with R = {tuple(self.R[twice])} occurs twice"
            )
        place = np.minimum(np.searchsorted(ordered, theirs), len(ordered) - 1)
        return np.where(ordered[place] == theirs, order[place], -1)

    def union(self, other: Graph) -> Graph:
        """Returns the edges of this graph and those that only the other has, in the published order.

        Raises:
            ValueError: as `find`.
        """
        lonely = other.select(self.find(other) < 0)
        parts = ((getattr(graph, name) for graph in (self, lonely)) for name in ("src", "dst", "R"))
        return Graph(self.structure, *map(np.concatenate, map(list, parts))).sorted_by_R()[0]

    def reverse(self) -> np.ndarray:
        """Returns the index of the edge dst→src with −R, int64 [e]; −1 where it is absent."""
        return self.find(Graph(self.structure, self.dst, self.src, -self.R))

    def sorted_by_R(self) -> tuple[Graph, np.ndarray]:
        """Returns the graph in the published order (R, then src, then dst) and the permutation that made it."""
        order = np.lexsort((self.dst, self.src, self.R[:, 2], self.R[:, 1], self.R[:, 0]))
        return self.select(order), order

    def supercell(self, n1: int, n2: int, n3: int) -> Graph:
        """Returns the same edges in `Structure.supercell(n1, n2, n3)`: edge e of copy c is edge c·n_edges + e."""
        counts = np.array([n1, n2, n3])
        structure, shifts = self.structure.supercell(n1, n2, n3).wrapped()
        if shifts.any():
            raise ValueError("structure: expected atoms wrapped into the cell")
        n = self.structure.n_atoms
        copies = np.array([(a, b, c) for a in range(n1) for b in range(n2) for c in range(n3)])
        target = copies[:, None] + self.R[None]
        big_R, inside = np.floor_divide(target, counts), np.mod(target, counts)
        copy_of = (inside[..., 0] * n2 + inside[..., 1]) * n3 + inside[..., 2]
        src = np.arange(len(copies))[:, None] * n + self.src[None]
        dst = copy_of * n + self.dst[None]
        return Graph(structure, src.reshape(-1), dst.reshape(-1), big_R.reshape(-1, 3))


def neighbour_graph(structure: Structure, cutoff: float = 8.0) -> Graph:
    """Returns every pair with |r| < cutoff, and every atom with itself, in the published order.

    Args:
        structure: any structure; it is wrapped into the cell first.
        cutoff: Å, exclusive.

    Raises:
        ValueError: the cutoff is not positive.
    """
    from vesin import NeighborList

    if not cutoff > 0:
        raise ValueError(f"cutoff: expected a positive length in Å, got {cutoff}")
    structure, _ = structure.wrapped()
    # vesin includes pairs at exactly the cutoff and works on the same wrapped positions.
    found = NeighborList(cutoff=float(cutoff), full_list=True).compute(
        points=structure.positions, box=structure.cell, periodic=np.array(structure.pbc), quantities="ijS"
    )
    atoms = np.arange(structure.n_atoms)
    src = np.concatenate([atoms, found[0].astype(np.int64)])
    dst = np.concatenate([atoms, found[1].astype(np.int64)])
    R = np.concatenate([np.zeros((structure.n_atoms, 3), dtype=np.int64), found[2].astype(np.int64)])
    graph = Graph(structure, src, dst, R)
    return graph.select(graph.distance() < cutoff).sorted_by_R()[0]
