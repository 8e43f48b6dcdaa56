"""A system in parts: groups of neighbouring atoms, and of each the atoms around it.

Matrix elements are short-ranged, so the rows of a group of atoms need nothing but the atoms around it. A group's region
is a structure without periodicity, in which every image of an atom is an atom of its own. Of an edge and its reverse
one belongs to a group: atoms are ranked group by group, images of an atom by their lattice vectors, and an edge begins
at the end of lower rank.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from nextham.graph import Graph
from nextham.h0.grid import heights, images_of_box
from nextham.structure import Structure
from nextham.units import BOHR

__all__ = ["Region", "groups_of", "neighbour_counts"]

_AT_ONCE = 1 << 14
"""Atoms whose neighbours are counted at a time."""


@dataclass(frozen=True, eq=False)
class Region:
    """A group of atoms and what is around it, ordered by rank.

    Args:
        structure: the atoms and images, without periodicity.
        atom: atom of the whole structure [i].
        R: lattice vector [i, 3].
        rows: the group's own atoms, ascending [n].
    """

    structure: Structure
    atom: np.ndarray
    R: np.ndarray
    rows: np.ndarray

    @classmethod
    def around(cls, whole: Structure, atoms: np.ndarray, rank: np.ndarray, distance: float) -> Region:
        """Returns the region of some atoms.

        Args:
            whole: a wrapped structure.
            atoms: the group.
            rank: of every atom [n].
            distance: how far around each atom of the group the region goes, Å.
        """
        fractional = whole.fractional()[atoms]
        reach = np.full(whole.n_atoms, distance / BOHR)
        images = images_of_box(whole, fractional.min(axis=0), fractional.max(axis=0), reach)
        position = whole.positions[images.atom] + images.R @ whole.cell
        near = np.isfinite(cKDTree(whole.positions[atoms]).query(position, distance_upper_bound=distance)[0])
        atom, R = images.atom[near], images.R[near]
        order = np.lexsort((R[:, 2], R[:, 1], R[:, 0], rank[atom]))
        atom, R = atom[order], R[order]
        structure = Structure(whole.cell, position[near][order], whole.numbers[atom], (False, False, False))
        own = np.zeros(whole.n_atoms, dtype=bool)
        own[atoms] = True
        return cls(structure, atom, R, np.flatnonzero(own[atom] & ~R.any(axis=1)))

    def pairs(self, left: np.ndarray, reach_left: np.ndarray, reach_right: np.ndarray) -> Graph:
        """Returns the pairs of one of some atoms and any atom, both functions of which meet, itself included.

        Args:
            left: atoms of the region [m], ascending.
            reach_left: how far functions of each atom of the region reach [i], Å.
            reach_right: the same, of the other atom's.

        Returns:
            Edges from the atoms on the left, sorted by them, then by the others.
        """
        positions = self.structure.positions
        largest = float(reach_left[left].max(initial=0.0) + reach_right.max(initial=0.0))
        tree = cKDTree(positions)
        found = cKDTree(positions[left]).sparse_distance_matrix(tree, max(largest, 1e-3), output_type="ndarray")
        src, dst = left[found["i"]], found["j"]
        near = np.flatnonzero((found["v"] < reach_left[src] + reach_right[dst]) | (src == dst))
        order = near[np.lexsort((dst[near], src[near]))]
        return Graph(self.structure, src[order], dst[order], np.zeros((len(order), 3), dtype=np.int64))

    def in_whole(self, graph: Graph, whole: Structure) -> Graph:
        """Returns edges from the group's atoms as those of the whole structure."""
        return Graph(whole, self.atom[graph.src], self.atom[graph.dst], self.R[graph.dst])


def groups_of(structure: Structure, atoms: np.ndarray, weight: np.ndarray, most: float) -> list[np.ndarray]:
    """Cuts a structure into groups of neighbouring atoms by halving, again and again, along the longest extent.

    Args:
        structure: a wrapped structure.
        atoms: those that are to be in groups.
        weight: of each atom [n].
        most: what the atoms of a group weigh together at most, unless it is one atom.

    Returns:
        The atoms of each group, ascending; groups that follow each other are near each other.
    """
    across = structure.fractional() * heights(structure.cell)
    waiting, groups = [atoms], []
    while waiting:
        atoms = waiting.pop()
        total = float(weight[atoms].sum())
        if total <= most or len(atoms) == 1:
            groups.append(np.sort(atoms))
            continue
        axis = int(np.ptp(across[atoms], axis=0).argmax())
        ordered = atoms[np.argsort(across[atoms, axis], kind="stable")]
        # Two parts of whole numbers of groups, so that no group is half empty.
        parts = int(np.ceil(total / most))
        cut = int(np.searchsorted(np.cumsum(weight[ordered]), total * (parts // 2) / parts, side="right"))
        cut = min(max(cut, 1), len(atoms) - 1)
        waiting += [ordered[cut:], ordered[:cut]]
    return groups


def neighbour_counts(structure: Structure, reach: np.ndarray, to: np.ndarray, reach_to: float) -> np.ndarray:
    """Returns how many images of some atoms each atom meets, itself included [n].

    Args:
        structure: a wrapped structure.
        reach: how far the functions of each atom reach [n], Å.
        to: the atoms that are counted, ascending.
        reach_to: how far their functions reach, Å.
    """
    fractional = structure.fractional()
    beyond = np.full(structure.n_atoms, (float(reach.max(initial=0.0)) + reach_to) / BOHR)
    images = images_of_box(structure, fractional.min(axis=0), fractional.max(axis=0), beyond, to)
    tree = cKDTree(images.position * BOHR)
    parts = [slice(a, a + _AT_ONCE) for a in range(0, structure.n_atoms, _AT_ONCE)]
    return np.concatenate(
        [tree.query_ball_point(structure.positions[x], reach[x] + reach_to, return_length=True) for x in parts]
    )
