"""Hamiltonians for sisl (https://zerothi.github.io/sisl), which then plots bands, cuts, tiles or writes other files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse

from nextham.blocks import Blocks

if TYPE_CHECKING:
    import sisl

__all__ = ["to_sisl"]

_SPIN = {1: "unpolarized", 2: "polarized", 4: "spin-orbit"}

# sisl's components of a spin-orbit matrix of reals: (spin component here, imaginary part?).
_SPIN_ORBIT = ((0, False), (3, False), (1, False), (1, True), (0, True), (3, True), (2, False), (2, True))


def to_sisl(H: Blocks, S: Blocks, fermi: float = 0.0) -> sisl.Hamiltonian:
    """Returns a non-orthogonal `sisl.Hamiltonian`: ⟨φ_a, 0| H |φ_b, R⟩ − fermi·S in eV, beside S.

    Its atoms and lattice vectors R are those of H's graph (atoms inside the cell). Its orbitals are sisl's
    `AtomicOrbital` with m = −l … l in each shell and n = l + 1, without radial function; sisl's real harmonics are
    (−1)^m times the usual ones, and so are its matrix elements for each index.

    Args:
        H: Hamiltonian, eV; n_spin 1, 2 and 4 become sisl's unpolarized, polarized and spin-orbit.
        S: overlap.
        fermi: Fermi energy, eV, which becomes sisl's zero of energy.

    Raises:
        ValueError: H and S of different structures, or an overlap that is complex or depends on spin.
        ModuleNotFoundError: sisl is not installed.
    """
    import sisl

    structure = H.graph.structure
    S = S.spinless()
    if np.iscomplexobj(S.data):
        raise ValueError("S: expected a real overlap")
    if not np.array_equal(S.graph.structure.numbers, structure.numbers) or S.basis != H.basis:
        raise ValueError("S: expected the structure and basis of H")

    furthest = np.max([np.abs(m.graph.R).max(axis=0, initial=0) for m in (H, S)], axis=0)
    lattice = sisl.Lattice(structure.cell, nsc=2 * furthest + 1)
    species = {z: sisl.Atom(z, _orbitals(H.basis[z])) for z in structure.species()}
    geometry = sisl.Geometry(structure.positions, [species[z] for z in structure.numbers.tolist()], lattice)

    overlap = _matrix(S, geometry)
    if H.n_spin == 4:
        channels = [_matrix(H.channel(s), geometry) for s in range(4)]
        parts = [channels[s].imag if imaginary else channels[s].real for s, imaginary in _SPIN_ORBIT]
        diagonal = (0, 1)
    else:
        parts = [_matrix(H.channel(s), geometry) for s in range(H.n_spin)]
        diagonal = range(H.n_spin)
    for s in diagonal:
        parts[s] = parts[s] - fermi * overlap
    return sisl.Hamiltonian.fromsp(geometry, parts, overlap, spin=_SPIN[H.n_spin])


def _orbitals(shells: tuple[int, ...]) -> list[sisl.AtomicOrbital]:
    import sisl

    zetas = [shells[: i + 1].count(l) for i, l in enumerate(shells)]
    return [
        sisl.AtomicOrbital(n=l + 1, l=l, m=m, zeta=zeta)
        for l, zeta in zip(shells, zetas, strict=True)
        for m in range(-l, l + 1)
    ]


def _matrix(channel: Blocks, geometry: sisl.Geometry) -> scipy.sparse.csr_matrix:
    """One spin component as sisl keeps it: [N, N·cells], the columns of cell R beginning at N·index(R)."""
    vectors, of_edge = np.unique(channel.graph.R, axis=0, return_inverse=True)
    cells = np.array([geometry.lattice.sc_index(R) for R in vectors], dtype=np.int64)[of_edge.reshape(-1)]
    rows, columns, size = channel.positions()
    shells = [channel.basis[z] for z in channel.graph.structure.numbers.tolist()]
    sign = np.concatenate([(-1.0) ** np.arange(-l, l + 1) for ls in shells for l in ls])
    values = channel.data.astype(np.result_type(channel.data, np.float64)) * sign[rows] * sign[columns]
    columns = columns + size * np.repeat(cells, channel.sizes)
    return scipy.sparse.csr_matrix((values, (rows, columns)), shape=(size, size * geometry.n_s))
