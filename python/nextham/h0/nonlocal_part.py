"""The non-local part of the pseudopotentials, with spin-orbit coupling.

With the projectors β_n Y_lm of every atom A,

    V_NL = Σ_A Σ_nn' |β_n Y_lm σ⟩ D_nn' [P_lj]_(mσ,m'σ') ⟨β_n' Y_lm' σ'|,

where n and n' share l and j, P = ((l + 1) + L·σ)/(2l + 1) for j = l + 1/2 and (l − L·σ)/(2l + 1) for j = l − 1/2.
Between real harmonics L = i M with real antisymmetric M, so that V_NL = V_0 + i (V_x σ_x + V_y σ_y + V_z σ_z) with four
real matrices. Without spin-orbit coupling P = 1, and V_0 is all there is.
"""

from __future__ import annotations

from collections.abc import Mapping

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
from nextham_kernels.ops.projector_product import projector_product

__all__ = ["angular_momentum", "nonlocal_potential", "parts_of"]

_CHUNK = 1 << 9
"""Blocks that are made at a time: some 25 MB for the largest published elements."""


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
    structure: Structure,
    orbitals: Mapping[int, OrbFile],
    pseudopotentials: Mapping[int, Pseudopotential],
    plus: Blocks | None = None,
    device: torch.device | None = None,
    near: Graph | None = None,
    rows: np.ndarray | None = None,
    n_parts: int | None = None,
) -> Blocks:
    """Returns V_NL of a structure, for all pairs of orbitals that reach a common projector.

    Time and memory are linear in the number of atoms.

    Args:
        structure: any structure; the result is that of its wrapped form, as everywhere.
        orbitals: atomic number → orbitals.
        pseudopotentials: atomic number → pseudopotential.
        plus: a real matrix without spin, eV, of the same wrapped structure and basis, that is added: the largest matrix
            there is, H of step zero, is so written once.
        device: where it is computed, the CPU by default. Pairs are found, and blocks put together, on the CPU.
        near: the pairs A→i of an atom with projectors and one whose orbitals reach them, sorted by A; found by default.
        rows: atoms [n], of pairs that begin at them and end at an atom that does not come before; by default all pairs.
        n_parts: components of V_NL, 4 with spin-orbit coupling, else 1; by default what the elements here have.

    Returns:
        V_NL in eV, with the edges of `plus` too: n_spin 4 and complex128 where a pseudopotential has spin-orbit
        coupling, else n_spin 1 and float64.

    Raises:
        ValueError: an element without orbitals or pseudopotential.
    """
    for name, given in (("orbitals", orbitals), ("pseudopotentials", pseudopotentials)):
        missing = [SYMBOLS[z] for z in structure.species() if z not in given]
        if missing:
            raise ValueError(f"{name}: none for {', '.join(missing)}")
    radials = {z: Radial.of_orbitals(orbitals[z]) for z in structure.species()}
    projectors = {z: Radial.of_projectors(pseudopotentials[z]) for z in structure.species() if pseudopotentials[z].l}
    basis = Basis({z: radial.l for z, radial in radials.items()})
    near = _projector_graph(structure, projectors, radials) if near is None else near
    # Atoms that see the same projectors: edges first[t] and second[t] of `near` begin at the same atom.
    first, second = _common_sources(near, rows)
    triples = Graph(near.structure, near.dst[first], near.dst[second], near.R[second] - near.R[first])
    distinct, edge = _distinct(triples)
    graph = distinct
    if plus is not None:
        graph = distinct.union(plus.graph)
        edge = graph.find(distinct)[edge]
        of_plus = plus.graph.find(graph)
    n_parts = n_parts or parts_of(structure, pseudopotentials)
    result = Blocks.zeros(graph, basis, n_parts, np.complex128 if n_parts == 4 else np.float64)
    strengths = {
        z: torch.from_numpy(_strengths(pseudopotentials[z])[:n_parts] * RYDBERG).to(device) for z in projectors
    }
    row, values = _projections(near, projectors, radials, device)
    by_edge = np.argsort(edge, kind="stable")
    pairs, edge = np.stack([row[first], row[second]], axis=1)[by_edge], edge[by_edge]
    carrier = near.structure.numbers[near.src[first[by_edge]]]
    of_carrier = {int(z): (pairs[carrier == z], edge[carrier == z]) for z in np.unique(carrier)}
    for z_a, z_b, edges in element_pairs(graph):
        for start in range(0, len(edges), _CHUNK):
            some, total = edges[start : start + _CHUNK], None
            for z, (pairs, edge) in of_carrier.items():
                begin, end = (np.searchsorted(edge, some, side) for side in ("left", "right"))
                which, starts = _ranges(begin, end)
                if len(which):
                    arrays = (torch.from_numpy(x).to(device) for x in (pairs[which], starts))
                    own = projector_product(values[z, z_a], values[z, z_b], strengths[z], *arrays)
                    total = own if total is None else total.add_(own)
            if total is not None:
                total = total.cpu()
            else:
                total = torch.zeros(len(some), n_parts, *result.shape_of[some[0]], dtype=torch.float64)
            if plus is not None:
                there = np.flatnonzero(of_plus[some] >= 0)
                if len(there):
                    total[:, 0].index_add_(
                        0, torch.from_numpy(there), torch.from_numpy(plus.take(of_plus[some[there]])[:, 0])
                    )
            _put(result, some, total)
    return result


def _projector_graph(structure: Structure, projectors: Mapping[int, Radial], radials: Mapping[int, Radial]) -> Graph:
    """Every atom A with every atom i whose orbitals reach its projectors, A→i, sorted by A."""
    orbital = np.array([radials[int(z)].cutoff for z in structure.numbers]) * BOHR
    projector = np.array([projectors[int(z)].cutoff if z in projectors else -np.inf for z in structure.numbers]) * BOHR
    reach = float(orbital.max(initial=0.0) + max(0.0, projector.max(initial=0.0)))
    graph = neighbour_graph(structure, max(reach, 1e-3))
    near = np.flatnonzero(graph.distance() < projector[graph.src] + orbital[graph.dst])
    return graph.select(near[np.argsort(graph.src[near], kind="stable")])


def parts_of(structure: Structure, pseudopotentials: Mapping[int, Pseudopotential]) -> int:
    """Returns how many real matrices V_NL has: 4 with spin-orbit coupling, else 1."""
    return 4 if any(pseudopotentials[z].spin_orbit for z in structure.species()) else 1


def _common_sources(near: Graph, rows: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of edges with the same src, each pair in both orders, and each edge with itself.

    With `rows`, those whose first edge goes to one of these atoms, and whose second to it or an atom behind it.
    """
    counts = np.bincount(near.src, minlength=near.structure.n_atoms)
    starts = np.cumsum(counts) - counts
    edges = np.arange(near.n_edges) if rows is None else np.flatnonzero(np.isin(near.dst, rows))
    source = near.src[edges]
    second, _ = _ranges(starts[source], (starts + counts)[source])
    first = np.repeat(edges, counts[source])
    if rows is None:
        return first, second
    kept = near.dst[first] <= near.dst[second]
    return first[kept], second[kept]


def _ranges(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """begin_i, … end_i − 1 for all i, one after the other, and where each begins in that list, its length last."""
    starts = np.concatenate([[0], np.cumsum(end - begin)])
    return np.repeat(begin - starts[:-1], end - begin) + np.arange(starts[-1]), starts


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
    ends = np.cumsum([2 * l + 1 for l in pseudo.l])
    result = np.zeros((4, ends[-1], ends[-1]))
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
    near: Graph, projectors: Mapping[int, Radial], radials: Mapping[int, Radial], device: torch.device | None
) -> tuple[np.ndarray, dict[tuple[int, int], torch.Tensor]]:
    """⟨β|φ⟩ by elements [e, c, a], and the row of every edge in that of its elements."""
    row, values = np.zeros(near.n_edges, dtype=np.int64), {}
    vector = torch.from_numpy(near.vector() / BOHR).to(device)
    for z_p, z, edges in element_pairs(near):
        values[z_p, z] = TwoCenterTable(projectors[z_p], radials[z])(vector[edges])[0]
        row[edges] = np.arange(len(edges))
    return row, values


def _put(result: Blocks, edges: np.ndarray, parts: torch.Tensor) -> None:
    """Writes V_0, or V_0 + i V·σ of four real matrices [e, k, a, b], on all threads where the edges follow each other.

    Half of the time of a large result is the first touch of its memory.
    """
    if parts.shape[1] == 1:
        return result.put(edges, parts.numpy())
    view = result.view(edges)
    target = torch.from_numpy(np.empty((len(edges), *parts.shape[1:]), np.complex128) if view is None else view)
    v0, vx, vy, vz = parts.unbind(1)
    torch.complex(v0, vz, out=target[:, 0])
    torch.complex(vy, vx, out=target[:, 1])
    torch.complex(vy.neg(), vx, out=target[:, 2])
    torch.complex(v0, vz.neg(), out=target[:, 3])
    if view is None:
        result.put(edges, target.numpy())
