"""H of step zero and S of systems whose matrices do not fit the memory: group after group of atoms, into a file.

A group's rows need the atoms around it and nothing else (`regions`), and of an edge and its reverse one is made. For
silicon with 13 orbitals and spin-orbit coupling, an atom has 43 pairs whose orbitals meet and 74 that see a common
projector. While the grid is visited there are T + V and S, 58 kB each for each atom of the group. H, 800 kB, S on the
same edges, 100 kB, and pairs that meet at a projector, 100 kB, exist for a piece of the group at a time, then they are
written. Of the whole system there are positions, ranks and weights, some 200 bytes for each atom.

Matrix elements are made once. Potentials and orbitals on the grid are made again where the orbitals of two groups
reach, which is why groups are larger than pieces: for silicon and a budget of 1 GB a group is some 40 Å wide.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.h0.build import AtomicFiles
from nextham.h0.local import BUDGET, add_local_potential
from nextham.h0.local_settings import LocalSettings
from nextham.h0.nonlocal_part import nonlocal_potential, parts_of
from nextham.h0.radial import Radial
from nextham.h0.regions import Region, groups_of, neighbour_counts
from nextham.h0.table_cache import table_key
from nextham.h0.two_center import overlap_and_kinetic, refuse_same_place
from nextham.io.hdf5 import VERSION
from nextham.io.hdf5_pieces import PieceWriter
from nextham.structure import Structure
from nextham.units import BOHR, SYMBOLS
from nextham_kernels import __version__

__all__ = ["stream_h0"]

DEFAULT_BUDGET = 1 << 31
"""Bytes."""

_PER_TRIPLE = 250
"""Bytes for two orbitals' atoms that meet at a projector, while their pairs are sorted."""

_PER_ATOM = 30_000
"""Bytes for the atoms around a group: positions, pairs, projections."""

_PER_PAIR = 200
"""Bytes for a pair of a group, while it is found and sorted."""

_SHARE = 0.45
"""Of what the budget leaves beside the grid: for a group, and as much for a piece of it; a tenth is what a piece needs
while it is made."""

_GRID = 0.8
"""Share of the grid in the time, for the progress bar."""


def stream_h0(
    structure: Structure,
    basis: AtomicFiles,
    path: str | os.PathLike[str],
    *,
    memory_budget: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float64,
    precision: str = "double",
) -> None:
    """Writes H of step zero and S of a structure to a file, in memory that does not grow with the system.

    They are those of `build_h0` to rounding. The file (`H0` and `S`) is one of `nextham.io.hdf5`, and can be read in
    pieces (`nextham.io.hdf5_pieces`). It gets its name when it is whole; until then it is called `….part`, and a run
    with the same arguments goes on where another one stopped or was killed; with others, the budget included, or of
    another version of this package, it is refused.

    Args:
        structure: any structure; the result is that of its wrapped form, as everywhere.
        basis: orbitals and pseudopotentials of its elements.
        path: the file.
        memory_budget: bytes, by default 2 GiB.
        progress: called with (atoms done, all atoms).
        device: where it is computed, as for `build_h0`.
        dtype: likewise.
        precision: of the numbers in the file, `double` or `single`, which halves it; the networks read single ones.

    Raises:
        ValueError: as `build_h0`, another precision, or a budget that is too small for the rows of one atom.
        FileError: the file cannot be written, or an unfinished one cannot be continued.
    """
    plan = _Plan.of(structure, basis, DEFAULT_BUDGET if memory_budget is None else memory_budget)
    whole, species = plan.structure, sorted(structure.species())
    files = [x for given in (basis.orbitals, basis.pseudopotentials) for z in species for x in vars(given[z]).values()]
    pieces = [piece for group in plan.groups for piece in group]
    key = table_key(
        [
            __version__,
            VERSION,
            whole.cell,
            whole.positions,
            whole.numbers,
            whole.pbc,
            *pieces,
            str(dtype),
            precision,
            *files,
        ]
    )
    done, first = 0, 0
    with PieceWriter(path, whole, plan.shells, key, precision) as writer:
        for group in plan.groups:
            behind, first = first, first + len(group)
            left = group[max(0, writer.n_pieces - behind) :]  # the rest was written by a run that was interrupted
            n_left = sum(map(len, left))
            done += sum(map(len, group)) - n_left
            if left:
                plan.write(writer, left, _shared(progress, done, n_left, whole.n_atoms), device, dtype)
            done += n_left
            if progress:
                progress(done, whole.n_atoms)
        writer.finish()


def _shared(
    progress: Callable[[int, int], None] | None, done: int, n_atoms: int, total: int
) -> Callable[[float], None]:
    """What shows the share of a group's work that is done as a number of atoms."""
    return lambda share: progress(done + int(share * n_atoms), total) if progress else None


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is known of the whole system: the groups, and what each needs."""

    structure: Structure
    basis: AtomicFiles
    shells: Basis
    orbital: np.ndarray  # where the orbitals of each atom end, Å
    projector: np.ndarray  # where its projectors end, Å; −∞ without
    settings: LocalSettings
    n_parts: int
    groups: list[list[np.ndarray]]  # the atoms of each group, piece by piece
    rank: np.ndarray
    grid_budget: int

    @classmethod
    def of(cls, structure: Structure, basis: AtomicFiles, memory_budget: int) -> _Plan:
        structure, _ = structure.wrapped()
        if not structure.n_atoms:
            raise ValueError("structure: expected at least one atom")
        for name, given in (("orbitals", basis.orbitals), ("pseudopotentials", basis.pseudopotentials)):
            missing = [SYMBOLS[z] for z in structure.species() if z not in given]
            if missing:
                raise ValueError(f"{name}: none for {', '.join(missing)}")
        shells = Basis({z: Radial.of_orbitals(basis.orbitals[z]).l for z in structure.species()})
        orbital, projector = np.empty(structure.n_atoms), np.full(structure.n_atoms, -np.inf)
        for z in structure.species():
            orbital[structure.numbers == z] = Radial.of_orbitals(basis.orbitals[z]).cutoff * BOHR
            if basis.pseudopotentials[z].l:
                cutoff = Radial.of_projectors(basis.pseudopotentials[z]).cutoff * BOHR
                projector[structure.numbers == z] = cutoff
        n_parts = parts_of(structure, basis.pseudopotentials)
        settings = LocalSettings.of(structure, basis.orbitals, basis.pseudopotentials)
        of_grid, of_rows = _bytes_of(structure, shells, orbital, projector, n_parts)
        grid_budget = min(BUDGET["cpu"], memory_budget // 4)
        share = _SHARE * (memory_budget - grid_budget)
        largest = max(of_grid.max(), of_rows.max())
        if share < largest:
            least = int(largest / (0.75 * _SHARE)) + 1
            raise ValueError(f"memory_budget: expected at least {least} bytes for these orbitals, got {memory_budget}")
        every = np.arange(structure.n_atoms)
        groups = [groups_of(structure, x, of_rows, share) for x in groups_of(structure, every, of_grid, share)]
        rank = np.empty(structure.n_atoms, dtype=np.int64)
        rank[np.concatenate([piece for group in groups for piece in group])] = every
        return cls(structure, basis, shells, orbital, projector, settings, n_parts, groups, rank, grid_budget)

    def write(
        self,
        writer: PieceWriter,
        group: list[np.ndarray],
        advance: Callable[[float], None],
        device: torch.device | None,
        dtype: torch.dtype,
    ) -> None:
        """Writes H and S of the edges that belong to each piece of a group; one piece exists at a time."""
        basis, most = self.basis, float(self.orbital.max())
        fields = max(f.reach for f in self.settings.fields.values()) * BOHR
        beyond = most + max(most, fields, most + 2 * max(0.0, float(self.projector.max())))
        atoms = np.concatenate(group)
        region = Region.around(self.structure, atoms, self.rank, beyond)
        orbital, projector = self.orbital[region.atom], self.projector[region.atom]
        meet = region.pairs(region.rows, orbital, orbital)
        refuse_same_place(region.in_whole(meet, self.structure), meet.distance())
        meet = meet.select(meet.src <= meet.dst)
        overlap, scalar = overlap_and_kinetic(region.structure, basis.orbitals, device, meet)
        add_local_potential(
            scalar,
            basis.orbitals,
            basis.pseudopotentials,
            memory_budget=self.grid_budget,
            progress=lambda brick, bricks: advance(_GRID * brick / bricks),
            device=device,
            dtype=dtype,
            settings=self.settings,
        )
        ends = np.cumsum([len(piece) for piece in group])
        for begin, end in zip([0, *ends[:-1]], ends, strict=True):
            rows = region.rows[begin:end]  # ranks ascend from piece to piece
            own = np.isin(meet.src, rows)
            seeing = np.unique(region.pairs(rows, orbital, projector).dst)
            hamiltonian = nonlocal_potential(
                region.structure,
                basis.orbitals,
                basis.pseudopotentials,
                plus=scalar.select(own),
                device=device,
                near=region.pairs(seeing[projector[seeing] > 0], projector, orbital),
                rows=rows,
                n_parts=self.n_parts,
            )
            graph = region.in_whole(hamiltonian.graph, self.structure)
            matrices = {"H0": hamiltonian, "S": overlap.select(own).on(hamiltonian.graph)}
            writer.append({name: Blocks(graph, self.shells, m.data, m.n_spin) for name, m in matrices.items()})
            del matrices, hamiltonian, graph
            advance(_GRID + (1 - _GRID) * end / len(atoms))


def _bytes_of(
    structure: Structure, shells: Basis, orbital: np.ndarray, projector: np.ndarray, n_parts: int
) -> tuple[np.ndarray, np.ndarray]:
    """What each atom of a group needs while the grid is visited, and while its rows are put together [n], bytes."""
    n_orbitals = shells.n_orbitals_of(structure.numbers)
    reach = orbital + 2 * max(0.0, float(projector.max()))
    of_grid, of_rows = np.full((2, structure.n_atoms), float(_PER_ATOM))
    triples = np.zeros(structure.n_atoms)
    for z in structure.species():
        of_z = np.flatnonzero(structure.numbers == z)
        seen = neighbour_counts(structure, reach, of_z, float(orbital[of_z[0]]))
        meeting = neighbour_counts(structure, orbital, of_z, float(orbital[of_z[0]]))
        block = n_orbitals * n_orbitals[of_z[0]] / 2
        of_grid += meeting * (16 * block + _PER_PAIR)
        of_rows += seen * block * (16 if n_parts == 1 else 72) + meeting * 16 * block
        if projector[of_z[0]] > 0:
            triples += neighbour_counts(structure, orbital, of_z, float(projector[of_z[0]]))
    return of_grid, of_rows + _PER_TRIPLE * triples**2 / 2
