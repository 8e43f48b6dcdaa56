"""What the local potential takes of a whole system: functional, energy of the grid, atomic fields, zero of energy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from nextham.h0.density import AtomicFields
from nextham.h0.resolution import grid_cutoff
from nextham.h0.xc import check_functional, functional_named
from nextham.io.orb import OrbFile
from nextham.io.upf import Pseudopotential
from nextham.structure import Structure
from nextham.units import BOHR, SYMBOLS

__all__ = ["LocalSettings", "default_energy"]


@dataclass(frozen=True, eq=False)
class LocalSettings:
    """What a part of a system cannot know by itself.

    Args:
        functional: of `nextham.h0.xc`, such as `pbe`.
        energy_cutoff: of the grid, Ry.
        fields: atomic number → potential and density.
        zero: what is added to the potential everywhere, Ry: (4π/3Ω) Σ_A ∫ r² ρ_A d³r.
    """

    functional: str
    energy_cutoff: float
    fields: Mapping[int, AtomicFields]
    zero: float

    @classmethod
    def of(
        cls,
        structure: Structure,
        orbitals: Mapping[int, OrbFile],
        pseudopotentials: Mapping[int, Pseudopotential],
        energy_cutoff: float | None = None,
        functional: str | None = None,
    ) -> LocalSettings:
        """Returns those of a structure; arguments and errors are those of `local_potential`."""
        species = structure.species()
        missing = [SYMBOLS[z] for z in species if z not in pseudopotentials]
        if missing:
            raise ValueError(f"pseudopotentials: none for {', '.join(missing)}")
        functional = functional or _common_functional(pseudopotentials, species)
        check_functional(functional)
        fields = _fields(orbitals, pseudopotentials, species)
        if energy_cutoff is None:
            energy_cutoff = default_energy(orbitals, pseudopotentials, species, functional)
        volume = abs(float(np.linalg.det(structure.cell / BOHR)))
        moments = sum(fields[z].second_moment * int((structure.numbers == z).sum()) for z in species)
        return cls(functional, energy_cutoff, fields, 4 * math.pi / (3 * volume) * moments)


def default_energy(
    orbitals: Mapping[int, OrbFile],
    pseudopotentials: Mapping[int, Pseudopotential],
    species: list[int],
    functional: str | None = None,
) -> float:
    """Returns the energy of the grid that `local_potential` takes by default, Ry: that of the element with the largest.

    Args:
        orbitals: atomic number → orbitals.
        pseudopotentials: atomic number → pseudopotential.
        species: atomic numbers.
        functional: of `nextham.h0.xc`, such as `pbe`; None takes that of the pseudopotentials.

    Raises:
        ValueError: as `check_functional`.
    """
    functional = functional or _common_functional(pseudopotentials, species)
    check_functional(functional)
    fields = _fields(orbitals, pseudopotentials, species)
    return max(grid_cutoff(orbitals[z], fields[z], functional) for z in species)


def _fields(
    orbitals: Mapping[int, OrbFile], pseudopotentials: Mapping[int, Pseudopotential], species: list[int]
) -> dict[int, AtomicFields]:
    q_max = math.sqrt(4 * max(orbitals[z].energy_cutoff for z in species))
    return {z: AtomicFields.of(pseudopotentials[z], q_max) for z in species}


def _common_functional(pseudopotentials: Mapping[int, Pseudopotential], species: list[int]) -> str:
    names = {functional_named(pseudopotentials[z].functional) for z in species}
    if len(names) > 1:
        raise ValueError(f"pseudopotentials: expected one functional, got {' and '.join(sorted(names))}")
    return names.pop()
