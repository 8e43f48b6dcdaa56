"""Two-center integrals: overlap and kinetic energy of orbitals, and whatever else is a product of two atoms' functions.

With f̃(q) = ∫ r² f(r) j_l(qr) dr, for φ_a around 0 and φ_b around R (Bohr),

    ⟨φ_a | (−∇²)^p | φ_b⟩ = 8 Σ_LM i^(l_a − l_b − L) G_LM Y_LM(R̂) ∫ q^(2 + 2p) f̃_a f̃_b j_L(qR) dq,

with the real Gaunt coefficients G_LM = ∫ Y_la,ma Y_lb,mb Y_LM, L = |l_a − l_b|, … l_a + l_b in steps of 2; −∇² is the
kinetic energy in Rydberg. The integral over q depends on |R| alone: it is tabulated once per pair of elements and
interpolated.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.special import spherical_jn

from nextham.basis import Basis
from nextham.block_layouts import element_pairs
from nextham.blocks import Blocks
from nextham.graph import Graph, neighbour_graph
from nextham.h0.radial import Radial
from nextham.h0.table_cache import cached_table, table_key
from nextham.io.orb import OrbFile
from nextham.structure import Structure
from nextham.units import BOHR, RYDBERG, SYMBOLS
from nextham_kernels.ops.spherical_harmonics import spherical_harmonics
from nextham_kernels.ops.two_center import two_center, two_center_columns

__all__ = ["TwoCenterTable", "orbital_blocks", "orbital_graph", "overlap_and_kinetic", "refuse_same_place"]

Q_MAX = 100.0
"""Largest wave number, 1/Bohr: 40 misses 4e-4 Ry of the kinetic energy of a published orbital (Bi f), 100 1e-6."""

SPACING = 0.02
"""Spacing of the tables in |R|, Bohr; six points are off by 2e-9 in S and 2e-7 Ry in T of published orbitals."""

SAME_PLACE = 0.1
"""Å; two atoms that are closer are an error of the input: a bond of hydrogen is 0.74 Å long."""

_CHUNK = 1 << 12
"""Edges that are interpolated at a time: some 25 MB for the largest published elements."""


class TwoCenterTable:
    """Integrals of the functions of one atom with those of another, as a function of the vector between them.

    The table comes from the disk where it was made before (`table_cache`).

    Args:
        left: functions around 0.
        right: functions around R.
        powers: p of each operator (−∇²)^p; (0, 1) gives the overlap and the kinetic energy in Rydberg.
    """

    def __init__(self, left: Radial, right: Radial, powers: Sequence[int] = (0,)) -> None:
        self.left, self.right, self.powers = left, right, tuple(powers)
        self.cutoff = left.cutoff + right.cutoff
        functions = (x for radial in (left, right) for x in (radial.l, radial.r_f, radial.dr))
        key = table_key([*functions, self.powers, Q_MAX, SPACING])
        self._table = torch.from_numpy(cached_table("two-center", key, self._tabulate))

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        """Returns the integrals at vectors R, differentiable in them (not at R = 0).

        Args:
            vector: [e, 3], from the left to the right atom, float64, Bohr.

        Returns:
            [p, e, a, b], float64, on the device of the vectors; zero from the cutoff on.
        """
        distance = torch.where((vector == 0).all(dim=1), torch.zeros_like(vector[:, 0]), _length(vector))
        left, right = self.left.l, self.right.l
        harmonics = spherical_harmonics(vector, max(left) + max(right))
        table = self._table.to(vector.device)
        return two_center(distance, harmonics, table, left, right, SPACING, self.cutoff, len(self.powers))

    def _tabulate(self) -> np.ndarray:
        """8 i^(l_a − l_b − L) ∫ q^(2 + 2p) f̃_a f̃_b j_L(qR) dq in the columns of `two_center_columns`."""
        left, right, n_p = self.left.l, self.right.l, len(self.powers)
        # The integrand is even in q and its Fourier transform ends at 2·cutoff, so the trapezoid rule is exact for any
        # step below π/cutoff; 10 % less leaves room for the points beyond the cutoff.
        step = math.pi / (1.1 * self.cutoff + 4 * SPACING)
        n_q, n_r = int(Q_MAX / step) + 1, int(self.cutoff / SPACING) + 6
        q = step * np.arange(1, n_q + 1)
        left_q, right_q = self.left.transform(q), self.right.transform(q)
        weights = 8 * step * q[None] ** (2 + 2 * np.array(self.powers)[:, None])
        columns = two_center_columns(left, right, n_p)
        table = np.empty((n_r, len(columns)))
        of_degree = np.array([degree for degree, *_ in columns])
        for degree in np.unique(of_degree):
            which = np.flatnonzero(of_degree == degree)
            p, i, j = np.array([columns[c][1:] for c in which]).T
            # l_a − l_b − L is even.
            sign = 1 - ((np.array(left)[i] - np.array(right)[j] - degree) // 2 % 2) * 2
            product = sign[:, None] * weights[p] * left_q[i] * right_q[j]
            table[:, which] = (product @ _bessel(int(degree), n_q, step, n_r)).T
        return table


def _length(vector: torch.Tensor) -> torch.Tensor:
    """|R| with a harmless derivative at 0."""
    square = (vector * vector).sum(dim=1)
    return torch.where(square > 0, square, torch.ones_like(square)).sqrt()


@functools.lru_cache(maxsize=64)
def _bessel(degree: int, n_q: int, step: float, n_r: int) -> np.ndarray:
    """j_L(qR) for q = step, 2 step, … and R = −2, −1, 0, 1, … times the spacing [n_q, n_r]."""
    r = SPACING * np.arange(-2, n_r - 2)
    values = spherical_jn(degree, np.outer(step * np.arange(1, n_q + 1), np.abs(r)))
    return values * np.where(r < 0, (-1) ** degree, 1)


def orbital_graph(structure: Structure, radius: Mapping[int, float]) -> Graph:
    """Returns every pair of atoms whose orbitals reach each other, |r| < radius_i + radius_j, on-site ones included.

    Args:
        structure: any structure; it is wrapped into the cell first.
        radius: atomic number → where the functions end, Å.

    Raises:
        ValueError: two atoms at the same place, less than 0.1 Å apart.
    """
    reach = np.array([radius[int(z)] for z in structure.numbers])
    graph = neighbour_graph(structure, 2 * float(reach.max()))
    distance = graph.distance()
    refuse_same_place(graph, distance)
    return graph.select(distance < reach[graph.src] + reach[graph.dst])


def refuse_same_place(graph: Graph, distance: np.ndarray) -> None:
    """Refuses atoms less than 0.1 Å apart.

    Raises:
        ValueError: there are such.
    """
    close = np.flatnonzero((distance < SAME_PLACE) & ~graph.onsite())
    if len(close):
        i, j, apart = graph.src[close[0]], graph.dst[close[0]], distance[close[0]]
        raise ValueError(f"structure: atoms {i} and {j} are at the same place ({apart:.3f} Å apart)")


def orbital_blocks(
    structure: Structure, orbitals: Mapping[int, OrbFile], graph: Graph | None = None
) -> tuple[dict[int, Radial], Blocks]:
    """Returns the radial functions by element, and a matrix of zeros for all pairs of orbitals that reach each other.

    Args:
        structure: any structure.
        orbitals: atomic number → orbitals.
        graph: the pairs, where they are known.

    Raises:
        ValueError: as `overlap_and_kinetic`.
    """
    missing = [SYMBOLS[z] for z in structure.species() if z not in orbitals]
    if missing:
        raise ValueError(f"orbitals: none for {', '.join(missing)}")
    if not structure.n_atoms:
        raise ValueError("structure: expected at least one atom")
    radials = {z: Radial.of_orbitals(orbitals[z]) for z in structure.species()}
    basis = Basis({z: radial.l for z, radial in radials.items()})
    if graph is None:
        graph = orbital_graph(structure, {z: radial.cutoff * BOHR for z, radial in radials.items()})
    return radials, Blocks.zeros(graph, basis, 1)


def overlap_and_kinetic(
    structure: Structure,
    orbitals: Mapping[int, OrbFile],
    device: torch.device | None = None,
    graph: Graph | None = None,
) -> tuple[Blocks, Blocks]:
    """Returns the overlap S and the kinetic energy T of a structure's orbitals, for all pairs that reach each other.

    Time and memory are linear in the number of atoms.

    Args:
        structure: any structure; the result is that of its wrapped form, as everywhere.
        orbitals: atomic number → orbitals (`nextham.io.basis_directory.read_orbitals`).
        device: where it is computed, the CPU by default.
        graph: some of those pairs, of the wrapped structure; by default all.

    Returns:
        S and T (eV) on the same graph, n_spin 1, float64.

    Raises:
        ValueError: an element without orbitals, a structure without atoms, or two atoms at the same place.
    """
    radials, overlap = orbital_blocks(structure, orbitals, graph)
    graph = overlap.graph
    kinetic = Blocks.zeros(graph, overlap.basis, 1)
    vector = torch.from_numpy(graph.vector() / BOHR)
    for z_src, z_dst, edges in element_pairs(graph):
        table = TwoCenterTable(radials[z_src], radials[z_dst], (0, 1))
        for start in range(0, len(edges), _CHUNK):
            some = edges[start : start + _CHUNK]
            s, t = table(vector[some].to(device)).cpu().numpy()
            overlap.put(some, s[:, None])
            kinetic.put(some, t[:, None] * RYDBERG)
    return overlap, kinetic
