"""The non-local part of the pseudopotentials, with spin-orbit coupling.

With the projectors β_n Y_lm of every atom A,

    V_NL = Σ_A Σ_nn' |β_n Y_lm σ⟩ D_nn' [P_lj]_(mσ,m'σ') ⟨β_n' Y_lm' σ'|,

where n and n' share l and j, P = ((l + 1) + L·σ)/(2l + 1) for j = l + 1/2 and (l − L·σ)/(2l + 1) for j = l − 1/2.
Between real harmonics L = i M with real antisymmetric M, so that V_NL = V_0 + i (V_x σ_x + V_y σ_y + V_z σ_z) with four
real matrices. Without spin-orbit coupling P = 1, and V_0 is all there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
import torch

from nextham.basis import Basis
from nextham.block_layouts import element_pairs
from nextham.blocks import Blocks
from nextham.graph import Graph, neighbour_graph
from nextham.h0.radial import Radial
from nextham.h0.two_center import TwoCenterTable
from nextham.io.orb import OrbFile
from nextham.io.upf import Pseudopotential
from nextham.structure import Structure
from nextham.units import BOHR, RYDBERG, SYMBOLS

__all__ = ["angular_momentum", "nonlocal_potential"]

_ByElements: TypeAlias = dict[tuple[int, int], tuple[np.ndarray, torch.Tensor]]

_CHUNK = 1 << 12
"""Pairs of orbital atoms around a projector's atom that are multiplied at a time: some 100 MB."""


def angular_momentum(l: int) -> np.ndarray:
    """Returns M of the angular momentum L_k = i M_k between real harmonics m = −l … l, [3, 2l + 1, 2l + 1]."""
    m = np.arange(-l, l + 1)
    raising = np.diag(np.sqrt(l * (l + 1) - m[:-1] * (m[:-1] + 1)), -1)
    cartesian = np.stack([(raising + raising.T) / 2, (raising - raising.T) / 2j, np.diag(m)])
    real = np.zeros((2 * l + 1, 2 * l + 1), dtype=np.complex128)  # real harmonics (rows) in complex ones
    real[l, l] = 1
    for k in range(1, l + 1):
        real[l + k, [l + k, l - k]] = np.array([(-1) ** k, 1]) / 2**0.5
        real[l - k, [l + k, l - k]] = np.array([(-1) ** k, -1]) / (1j * 2**0.5)
    return (real.conj() @ cartesian @ real.T).imag


def nonlocal_potential(
    structure: Structure, orbitals: Mapping[int, OrbFile], pseudopotentials: Mapping[int, Pseudopotential]
) -> Blocks:
    """Returns V_NL of a structure, for all pairs of orbitals that reach a common projector.

    Time and memory are linear in the number of atoms.

    Args:
        structure: any structure; the result is that of its wrapped form, as everywhere.
        orbitals: atomic number → orbitals.
        pseudopotentials: atomic number → pseudopotential.

    Returns:
        V_NL in eV: n_spin 4 and complex128 where a pseudopotential has spin-orbit coupling, else n_spin 1 and float64.

    Raises:
        ValueError: an element without orbitals or pseudopotential.
    """
    for name, given in (("orbitals", orbitals), ("pseudopotentials", pseudopotentials)):
        missing = [SYMBOLS[z] for z in structure.species() if z not in given]
        if missing:
            raise ValueError(f"{name}: none for {', '.join(missing)}")
    species = [z for z in structure.species() if pseudopotentials[z].l]
    left = {z: Radial.of_orbitals(orbitals[z]) for z in structure.species()}
    right = {z: Radial.of_projectors(pseudopotentials[z]) for z in species}
    basis = Basis({z: radial.l for z, radial in left.items()})
    near = _projector_graph(structure, left, right)
    strengths = {z: _strengths(pseudopotentials[z]) for z in species}
    n_parts = 4 if any(pseudopotentials[z].spin_orbit for z in structure.species()) else 1
    # Atoms that see the same projectors: edges first[t] and second[t] of `near` end at the same atom.
    first, second = _common_targets(near)
    triples = Graph(near.structure, near.src[first], near.src[second], near.R[first] - near.R[second])
    graph, edge = _distinct(triples)
    parts = Blocks.zeros(graph, basis, n_parts)
    bra, ket = _projections(near, left, right, strengths, n_parts)
    numbers = near.structure.numbers
    shape = np.stack([numbers[near.src[first]], numbers[near.dst[first]], numbers[near.src[second]]], axis=1)
    for z_a, z_p, z_b in np.unique(shape, axis=0):
        of_kind = np.flatnonzero((shape == (z_a, z_p, z_b)).all(axis=1))
        for start in range(0, len(of_kind), _CHUNK):
            t = of_kind[start : start + _CHUNK]
            (rows_a, values_a), (rows_b, values_b) = bra[z_a, z_p], ket[z_b, z_p]
            a = values_a[torch.from_numpy(rows_a[first[t]])]
            b = values_b[torch.from_numpy(rows_b[second[t]])]
            blocks = torch.bmm(a.flatten(1, 2), b.transpose(1, 2)).unflatten(1, a.shape[1:3])
            here, place = np.unique(edge[t], return_inverse=True)
            total = torch.zeros((len(here), *blocks.shape[1:]), dtype=torch.float64)
            total.index_add_(0, torch.from_numpy(place), blocks)
            parts.data[parts.index(here)] += total.numpy() * RYDBERG
    return parts if n_parts == 1 else _spinor(parts)


def _projector_graph(structure: Structure, left: Mapping[int, Radial], right: Mapping[int, Radial]) -> Graph:
    """Every atom i with every atom A whose projectors its orbitals reach, i→A."""
    orbital = np.array([left[int(z)].cutoff for z in structure.numbers]) * BOHR
    projector = np.array([right[int(z)].cutoff if z in right else -np.inf for z in structure.numbers]) * BOHR
    reach = float(orbital.max(initial=0.0) + max(0.0, projector.max(initial=0.0)))
    graph = neighbour_graph(structure, max(reach, 1e-3))
    return graph.select(graph.distance() < orbital[graph.src] + projector[graph.dst])


def _common_targets(near: Graph) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of edges with the same dst, each pair in both orders, and each edge with itself."""
    order = np.argsort(near.dst, kind="stable")
    counts = np.bincount(near.dst, minlength=near.structure.n_atoms)
    starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    repeats = counts[near.dst[order]]
    ends = np.cumsum(repeats)
    within = np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - repeats, repeats)
    return np.repeat(order, repeats), order[np.repeat(starts[near.dst[order]], repeats) + within]


def _distinct(graph: Graph) -> tuple[Graph, np.ndarray]:
    """The distinct edges of a graph in the published order, and which of them each edge is."""
    low = graph.R.min(axis=0, initial=0)
    span = graph.R.max(axis=0, initial=0) - low + 1
    r = graph.R - low
    n = graph.structure.n_atoms
    keys = (((r[:, 0] * span[1] + r[:, 1]) * span[2] + r[:, 2]) * n + graph.src) * n + graph.dst
    _, which, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return graph.select(which), inverse


def _strengths(pseudo: Pseudopotential) -> np.ndarray:
    """D ⊗ P as four real matrices, of 1 and of i σ_x, i σ_y, i σ_z, between components [4, c, c], Ry."""
    radial = Radial.of_projectors(pseudo)
    ends = np.cumsum([2 * l + 1 for l in pseudo.l])
    result = np.zeros((4, radial.components, radial.components))
    for n, k in np.argwhere(pseudo.d):
        l = pseudo.l[n]
        rows, columns = (slice(ends[i] - 2 * l - 1, ends[i]) for i in (n, k))
        scalar, vector = 1.0, 0.0
        if pseudo.j is not None:
            upper = pseudo.j[n] > l
            scalar, vector = (l + 1 if upper else l) / (2 * l + 1), (1 if upper else -1) / (2 * l + 1)
        result[0, rows, columns] = pseudo.d[n, k] * scalar * np.eye(2 * l + 1)
        result[1:, rows, columns] = pseudo.d[n, k] * vector * angular_momentum(l)
    return result


def _projections(
    near: Graph, left: Mapping[int, Radial], right: Mapping[int, Radial], strengths: Mapping[int, np.ndarray], n: int
) -> tuple[_ByElements, _ByElements]:
    """⟨φ|β⟩ times the strengths [e, n, a, c], and ⟨φ|β⟩ [e, a, c], by elements, each with the row of every edge."""
    bra, ket = {}, {}
    vector = torch.from_numpy(near.vector() / BOHR)
    for z, z_p, edges in element_pairs(near):
        values = TwoCenterTable(left[z], right[z_p])(vector[edges])[0]
        row = np.zeros(near.n_edges, dtype=np.int64)
        row[edges] = np.arange(len(edges))
        ket[z, z_p] = row, values
        bra[z, z_p] = row, torch.einsum("eac,ncd->enad", values, torch.from_numpy(strengths[z_p][:n]))
    return bra, ket


def _spinor(parts: Blocks) -> Blocks:
    """V_0 + i V·σ of the four real matrices."""
    result = Blocks.zeros(parts.graph, parts.basis, 4, np.complex128)
    for _, _, edges, blocks in parts.groups():
        v0, vx, vy, vz = np.moveaxis(blocks, 1, 0)
        result.put(edges, np.stack([v0 + 1j * vz, vy + 1j * vx, -vy + 1j * vx, v0 - 1j * vz], axis=1))
    return result
