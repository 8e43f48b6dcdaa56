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
from nextham.io.orb import OrbFile
from nextham.structure import Structure
from nextham.units import BOHR, RYDBERG, SYMBOLS
from nextham_kernels.clebsch_gordan import wigner_3j
from nextham_kernels.ops.spherical_harmonics import spherical_harmonics

__all__ = ["TwoCenterTable", "orbital_graph", "overlap_and_kinetic"]

Q_MAX = 100.0
"""Largest wave number, 1/Bohr: 40 misses 4e-4 Ry of the kinetic energy of a published orbital (Bi f), 100 1e-6."""

SPACING = 0.02
"""Spacing of the tables in |R|, Bohr; six points are off by 2e-9 in S and 2e-7 Ry in T of published orbitals."""

_CHUNK = 1 << 14
"""Edges that are interpolated at a time: some 100 MB for the largest published elements."""


class TwoCenterTable:
    """Integrals of the functions of one atom with those of another, as a function of the vector between them.

    Args:
        left: functions around 0.
        right: functions around R.
        powers: p of each operator (−∇²)^p; (0, 1) gives the overlap and the kinetic energy in Rydberg.
    """

    def __init__(self, left: Radial, right: Radial, powers: Sequence[int] = (0,)) -> None:
        self.left, self.right, self.powers = left, right, tuple(powers)
        self.cutoff = left.cutoff + right.cutoff
        # The integrand is even in q and its Fourier transform ends at 2·cutoff, so the trapezoid rule is exact for any
        # step below π/cutoff; 10 % less leaves room for the points beyond the cutoff.
        step = math.pi / (1.1 * self.cutoff + 4 * SPACING)
        n_q, n_r = int(Q_MAX / step) + 1, int(self.cutoff / SPACING) + 6
        q = step * np.arange(1, n_q + 1)
        left_q, right_q = left.transform(q), right.transform(q)
        weights = 8 * step * q[None] ** (2 + 2 * np.array(self.powers)[:, None])
        columns, self._terms, start = [], [], 0
        for la in sorted(set(left.l)):
            for lb in sorted(set(right.l)):
                f = left_q[[i for i, l in enumerate(left.l) if l == la]]
                g = right_q[[i for i, l in enumerate(right.l) if l == lb]]
                product = np.einsum("pq,aq,bq->pabq", weights, f, g).reshape(-1, n_q)
                for degree in range(abs(la - lb), la + lb + 1, 2):
                    sign = (-1) ** ((la - lb - degree) // 2)
                    columns.append(sign * (product @ _bessel(degree, n_q, step, n_r)).T)
                    stop = start + len(product)
                    self._terms.append((la, lb, degree, slice(start, stop), (len(self.powers), len(f), len(g))))
                    start = stop
        self._table = torch.from_numpy(np.concatenate(columns, axis=1))
        self._l_max = max(left.l) + max(right.l)

    def __call__(self, vector: torch.Tensor) -> torch.Tensor:
        """Returns the integrals at vectors R, differentiable in them (not at R = 0).

        Args:
            vector: [e, 3], from the left to the right atom, float64, Bohr.

        Returns:
            [p, e, a, b], float64; zero from the cutoff on.
        """
        distance = torch.where((vector == 0).all(dim=1), torch.zeros_like(vector[:, 0]), _length(vector))
        values = self._interpolated(distance)
        harmonics = spherical_harmonics(vector, self._l_max) / math.sqrt(4 * math.pi)
        blocks: dict[tuple[int, int], torch.Tensor] = {}
        for la, lb, degree, columns, shape in self._terms:
            radial = values[:, columns].reshape(-1, *shape)
            of_degree = harmonics[:, degree**2 : (degree + 1) ** 2]
            angular = torch.einsum("xym,em->exy", gaunt(la, lb, degree), of_degree)
            term = torch.einsum("epab,exy->peaxby", radial, angular)
            blocks[la, lb] = blocks[la, lb] + term if (la, lb) in blocks else term
        result = values.new_zeros((len(self.powers), len(vector), self.left.components, self.right.components))
        for (la, lb), block in blocks.items():
            rows, columns = (torch.from_numpy(x.components_of(l)) for x, l in ((self.left, la), (self.right, lb)))
            result[:, :, rows[:, None], columns] = block.reshape(*result.shape[:2], len(rows), len(columns))
        return result

    def _interpolated(self, distance: torch.Tensor) -> torch.Tensor:
        """The table at distances [e] by Lagrange's polynomial through six points [e, column]."""
        inside = distance < self.cutoff
        x = torch.where(inside, distance, torch.zeros_like(distance)) / SPACING
        row = x.detach().floor().long()
        t = x - row
        total = self._table.new_zeros((len(distance), self._table.shape[1]))
        for i in range(6):  # row + i is the point at row + i − 2
            others = [j for j in range(6) if j != i]
            weight = math.prod([(t + 2 - j) / (i - j) for j in others])
            total = total + (weight * inside)[:, None] * self._table[row + i]
        return total


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


@functools.cache
def gaunt(l1: int, l2: int, l3: int) -> torch.Tensor:
    """Returns ∫ Y_l1,m1 Y_l2,m2 Y_l3,m3 dΩ of real harmonics [2 l1 + 1, 2 l2 + 1, 2 l3 + 1]; l1 + l2 + l3 is even.

    It is √((2l₁+1)(2l₂+1)(2l₃+1)/4π) C_000 C with the real Wigner 3j symbol C, whose sign that of C_000 makes good.
    """
    c = wigner_3j(l1, l2, l3)
    return c * c[l1, l2, l3] * math.sqrt((2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1) / (4 * math.pi))


def orbital_graph(structure: Structure, radius: Mapping[int, float]) -> Graph:
    """Returns every pair of atoms whose orbitals reach each other, |r| < radius_i + radius_j, on-site ones included.

    Args:
        structure: any structure; it is wrapped into the cell first.
        radius: atomic number → where the functions end, Å.

    Raises:
        ValueError: two atoms at the same place.
    """
    reach = np.array([radius[int(z)] for z in structure.numbers])
    graph = neighbour_graph(structure, 2 * float(reach.max()))
    distance = graph.distance()
    close = (distance < 1e-3) & ~graph.onsite()
    if close.any():
        i, j = graph.src[close][0], graph.dst[close][0]
        raise ValueError(f"structure: atoms {i} and {j} are at the same place")
    return graph.select(distance < reach[graph.src] + reach[graph.dst])


def overlap_and_kinetic(structure: Structure, orbitals: Mapping[int, OrbFile]) -> tuple[Blocks, Blocks]:
    """Returns the overlap S and the kinetic energy T of a structure's orbitals, for all pairs that reach each other.

    Time and memory are linear in the number of atoms.

    Args:
        structure: any structure; the result is that of its wrapped form, as everywhere.
        orbitals: atomic number → orbitals (`nextham.io.basis_directory.read_orbitals`).

    Returns:
        S and T (eV) on the same graph, n_spin 1, float64.

    Raises:
        ValueError: an element without orbitals, a structure without atoms, or two atoms at the same place.
    """
    missing = [SYMBOLS[z] for z in structure.species() if z not in orbitals]
    if missing:
        raise ValueError(f"orbitals: none for {', '.join(missing)}")
    if not structure.n_atoms:
        raise ValueError("structure: expected at least one atom")
    radials = {z: Radial.of_orbitals(orbitals[z]) for z in structure.species()}
    basis = Basis({z: radial.l for z, radial in radials.items()})
    graph = orbital_graph(structure, {z: radial.cutoff * BOHR for z, radial in radials.items()})
    overlap, kinetic = Blocks.zeros(graph, basis, 1), Blocks.zeros(graph, basis, 1)
    vector = torch.from_numpy(graph.vector() / BOHR)
    for z_src, z_dst, edges in element_pairs(graph):
        table = TwoCenterTable(radials[z_src], radials[z_dst], (0, 1))
        for start in range(0, len(edges), _CHUNK):
            some = edges[start : start + _CHUNK]
            s, t = table(vector[some]).numpy()
            overlap.put(some, s[:, None])
            kinetic.put(some, t[:, None] * RYDBERG)
    return overlap, kinetic
