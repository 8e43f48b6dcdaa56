"""H of step zero and S of a structure: every piece, and their sum."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch

from nextham.blocks import Blocks
from nextham.h0.local import add_local_potential, local_potential
from nextham.h0.nonlocal_part import nonlocal_potential
from nextham.h0.two_center import overlap_and_kinetic
from nextham.io.basis_directory import read_orbitals, read_pseudopotentials
from nextham.io.orb import OrbFile
from nextham.io.upf import Pseudopotential
from nextham.structure import Structure

__all__ = ["AtomicFiles", "Pieces", "build_h0", "build_pieces"]


@dataclass(frozen=True, eq=False)
class AtomicFiles:
    """Orbitals and pseudopotentials of the elements of a calculation.

    Args:
        orbitals: atomic number → orbitals.
        pseudopotentials: atomic number → pseudopotential.
    """

    orbitals: Mapping[int, OrbFile]
    pseudopotentials: Mapping[int, Pseudopotential]

    @classmethod
    def read(cls, directory: str | os.PathLike[str], numbers: Iterable[int]) -> AtomicFiles:
        """Reads the files of the elements `numbers` from a directory.

        Raises:
            FileError: no directory, no file or several files for an element, or a file that cannot be used.
        """
        numbers = list(dict.fromkeys(int(z) for z in numbers))
        return cls(read_orbitals(directory, numbers), read_pseudopotentials(directory, numbers))


@dataclass(frozen=True, eq=False)
class Pieces:
    """What H of step zero is made of, H = T + V_NL + V, and S.

    Args:
        overlap: S, n_spin 1.
        kinetic: T, eV, n_spin 1.
        nonlocal_part: V_NL, eV, n_spin 4 with spin-orbit coupling, else 1.
        local: neutral-atom, exchange and correlation potentials V, eV, n_spin 1, on the edges of S.
    """

    overlap: Blocks
    kinetic: Blocks
    nonlocal_part: Blocks
    local: Blocks

    def hamiltonian(self) -> Blocks:
        """Returns H, on the edges of S and those that V_NL has beyond them."""
        graph = self.nonlocal_part.graph.union(self.overlap.graph)
        result = self.nonlocal_part.on(graph)
        result.add_spinless(self.kinetic + self.local)
        return result


def build_pieces(
    structure: Structure,
    basis: AtomicFiles,
    *,
    energy_cutoff: float | None = None,
    functional: str | None = None,
    memory_budget: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float64,
) -> Pieces:
    """Returns S, T, V_NL and V of a structure from orbitals and pseudopotentials alone.

    Args:
        structure: any structure; the result is that of its wrapped form, as everywhere.
        basis: orbitals and pseudopotentials of its elements.
        energy_cutoff: of the grid, Ry, as for `local_potential`.
        functional: of `nextham.h0.xc`, such as `pbe`; None takes that of the pseudopotentials.
        memory_budget: bytes for what the grid needs beside the result.
        progress: called with (bricks of the grid done, all bricks).
        device: where it is computed, as for `build_h0`.
        dtype: of the arithmetic on the grid, as for `local_potential`.

    Raises:
        ValueError: an element without orbitals or pseudopotential, no atoms, two atoms at the same place,
            pseudopotentials of different functionals, or one that is not known.
    """
    overlap, kinetic = overlap_and_kinetic(structure, basis.orbitals, device)
    nonlocal_part = nonlocal_potential(structure, basis.orbitals, basis.pseudopotentials, device=device)
    local = local_potential(
        overlap,
        basis.orbitals,
        basis.pseudopotentials,
        energy_cutoff=energy_cutoff,
        functional=functional,
        memory_budget=memory_budget,
        progress=progress,
        device=device,
        dtype=dtype,
    )
    return Pieces(overlap, kinetic, nonlocal_part, local)


def build_h0(
    structure: Structure,
    basis: AtomicFiles,
    *,
    memory_budget: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float64,
) -> tuple[Blocks, Blocks]:
    """Returns H of step zero and S of a structure from orbitals and pseudopotentials alone.

    H is that of the superposed atomic densities, with ABACUS's zero of energy; nothing is diagonalised. Time and memory
    are linear in the number of atoms.

    On a GPU all integrals are made there: two-center integrals, products of projections, density, potential and matrix
    elements of the grid. On the CPU stay lists of neighbours (which atoms reach which others and which bricks), radial
    tables while they are made, and the blocks of the result, which are copied back in pieces.

    Args:
        structure: any structure; the result is that of its wrapped form, as everywhere.
        basis: orbitals and pseudopotentials of its elements.
        memory_budget: bytes for what the grid needs beside the result.
        progress: called with (bricks of the grid done, all bricks).
        device: where it is computed, the CPU by default.
        dtype: of the arithmetic on the grid, as for `local_potential`; S, T and V_NL are made in float64.

    Returns:
        H in eV, n_spin 4 where a pseudopotential has spin-orbit coupling, else 1; and S, n_spin 1, on the same edges.

    Raises:
        ValueError: as `build_pieces`.
    """
    orbitals, pseudopotentials = basis.orbitals, basis.pseudopotentials
    overlap, scalar = overlap_and_kinetic(structure, orbitals, device)
    add_local_potential(
        scalar,
        orbitals,
        pseudopotentials,
        memory_budget=memory_budget,
        progress=progress,
        device=device,
        dtype=dtype,
    )
    # Spinors come last and take the rest in: they are by far the largest, are never there twice and are written once.
    hamiltonian = nonlocal_potential(structure, orbitals, pseudopotentials, plus=scalar, device=device)
    del scalar
    return hamiltonian, overlap.on(hamiltonian.graph)
