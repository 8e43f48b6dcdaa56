"""Matrix elements of the position, ⟨φ_a,0| r |φ_b,R⟩, from two-center integrals.

With r counted from the atom of φ_a, each component of r φ_a is a sum of functions of degrees l ± 1,

    r_k R(r) Y_lm = r R(r) √(4π/3) Σ_l'm' G(lm, 1k, l'm') Y_l'm',    G = ∫ Y Y Y,

so ⟨r_k φ_a|φ_b⟩ is a sum of two-center integrals of the radial functions r R(r); ⟨φ_a|φ_b⟩ times the place of the atom
takes the origin to that of the cell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from nextham.block_layouts import element_pairs
from nextham.blocks import Blocks
from nextham.h0.radial import Radial
from nextham.h0.two_center import TwoCenterTable, orbital_blocks
from nextham.io.orb import OrbFile
from nextham.structure import Structure
from nextham.units import BOHR
from nextham_kernels.clebsch_gordan import gaunt

__all__ = ["position_matrix"]

_CHUNK = 1 << 13
"""Edges that are computed at a time: some 200 MB for the largest published elements."""

_YZX = [1, 2, 0]


def position_matrix(structure: Structure, orbitals: Mapping[int, OrbFile]) -> tuple[Blocks, Blocks, Blocks]:
    """Returns the matrices of x, y and z of a structure's orbitals, for all pairs that reach each other.

    The origin is that of the cell, atoms are wrapped into it (as in ABACUS's files). With r_ab(R) for one component,
    r_ba(−R) = r_ab(R) − R S_ab(R), and atoms moved by t add t S. Time and memory are linear in the number of atoms.

    Args:
        structure: any structure; the result is that of its wrapped form, as everywhere.
        orbitals: atomic number → orbitals.

    Returns:
        Three matrices, Å, on the graph of `overlap_and_kinetic`, n_spin 1, float64.

    Raises:
        ValueError: as `overlap_and_kinetic`.
    """
    radials, first = orbital_blocks(structure, orbitals)
    graph = first.graph
    result = (first, Blocks.zeros(graph, first.basis, 1), Blocks.zeros(graph, first.basis, 1))
    vector = torch.from_numpy(graph.vector() / BOHR)
    place = graph.structure.positions[graph.src]
    for z_src, z_dst, edges in element_pairs(graph):
        moved, coupling = _times_r(radials[z_src])
        table = TwoCenterTable(moved, radials[z_dst])
        overlap = TwoCenterTable(radials[z_src], radials[z_dst], (0, 1))  # the table that S and T have
        for start in range(0, len(edges), _CHUNK):
            some = edges[start : start + _CHUNK]
            around_atom = torch.einsum("kac,ecb->keab", coupling, table(vector[some])[0]).numpy() * BOHR
            s = overlap(vector[some])[0].numpy()
            for k, matrix in enumerate(result):
                matrix.put(some, (around_atom[k] + place[some, k, None, None] * s)[:, None])
    return result


def _times_r(radial: Radial) -> tuple[Radial, torch.Tensor]:
    """Radial functions c of degrees l ± 1, and x, y, z times each function as sums of them [3, a, c]."""
    r_f = radial.dr * np.arange(radial.r_f.shape[1]) * radial.r_f
    sources = [(i, degree) for i, l in enumerate(radial.l) for degree in (l - 1, l + 1) if degree >= 0]
    moved = Radial(tuple(degree for _, degree in sources), r_f[[i for i, _ in sources]], radial.dr)
    coupling = torch.zeros(3, radial.components, moved.components, dtype=torch.float64)
    rows, column = np.cumsum([0, *(2 * l + 1 for l in radial.l)]), 0
    for i, degree in sources:
        l = radial.l[i]
        found = math.sqrt(4 * math.pi / 3) * gaunt(l, 1, degree).permute(1, 0, 2)  # y, z, x
        columns = slice(column, column + 2 * degree + 1)
        coupling[_YZX, rows[i] : rows[i + 1], columns] = found
        column = columns.stop
    return moved, coupling
