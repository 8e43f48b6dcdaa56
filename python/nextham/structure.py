"""A periodic arrangement of atoms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nextham.units import SYMBOLS

__all__ = ["Structure"]


@dataclass(frozen=True, eq=False)
class Structure:
    """Cell, positions and elements of a periodic system.

    Args:
        cell: lattice vectors as rows [3, 3], Å.
        positions: Cartesian positions [n, 3], Å, in the order of the user's file (that is the row order of matrices).
        numbers: atomic numbers [n].
        pbc: directions with real periodicity; a direction without it still needs a lattice vector (the vacuum box).

    Raises:
        ValueError: wrong shape, non-finite number, cell without volume, or atomic number outside 1...118.
    """

    cell: np.ndarray
    positions: np.ndarray
    numbers: np.ndarray
    pbc: tuple[bool, bool, bool] = (True, True, True)

    def __post_init__(self) -> None:
        cell = np.array(self.cell, dtype=np.float64)
        positions = np.array(self.positions, dtype=np.float64)
        numbers = np.array(self.numbers, dtype=np.int64)
        if cell.shape != (3, 3):
            raise ValueError(f"cell: expected shape (3, 3), got {cell.shape}")
        if numbers.ndim != 1 or positions.shape != (len(numbers), 3):
            raise ValueError(
                f"positions: expected shape (n, 3) with numbers [n], got {positions.shape} and {numbers.shape}"
            )
        if not (np.isfinite(cell).all() and np.isfinite(positions).all()):
            raise ValueError("structure: cell and positions must be finite numbers")
        lengths = np.linalg.norm(cell, axis=1)
        if abs(np.linalg.det(cell)) <= 1e-8 * max(float(np.prod(lengths)), 1e-300):
            raise ValueError("cell: the three lattice vectors span no volume")
        if len(numbers) and (numbers.min() < 1 or numbers.max() >= len(SYMBOLS)):
            raise ValueError(f"numbers: expected atomic numbers 1...{len(SYMBOLS) - 1}, got {numbers.min()}")
        for name, array in (("cell", cell), ("positions", positions), ("numbers", numbers)):
            array.setflags(write=False)
            object.__setattr__(self, name, array)
        object.__setattr__(self, "pbc", tuple(bool(x) for x in self.pbc))

    @property
    def n_atoms(self) -> int:
        """Number of atoms in the cell."""
        return len(self.numbers)

    def fractional(self) -> np.ndarray:
        """Returns the positions in units of the lattice vectors [n, 3]."""
        return np.linalg.solve(self.cell.T, self.positions.T).T

    def wrapped(self) -> tuple[Structure, np.ndarray]:
        """Returns the structure with every atom inside the cell, and the integer shifts s [n, 3] that were taken off.

        fractional_wrapped = fractional − s lies in [0, 1) along periodic directions; along others atoms stay where they
        are. ABACUS does this before it numbers lattice vectors R, and so do all matrices here. A coordinate that is
        zero but for rounding (1e-12) counts as zero, as in ABACUS.
        """
        fractional = self.fractional()
        inside = np.fmod(fractional + 10000.0, 1.0)  # 10000 + x swallows rounding noise below 1e-12
        shifts = np.rint(fractional - inside).astype(np.int64) * np.array(self.pbc)
        if not shifts.any():
            return self, shifts
        return Structure(self.cell, self.positions - shifts @ self.cell, self.numbers, self.pbc), shifts

    def require_inside(self) -> None:
        """Refuses atoms outside the cell along a direction without periodicity.

        Files of programs that only know periodic cells cannot say such a thing: a reader would move the atom by a
        lattice vector.

        Raises:
            ValueError: there is one.
        """
        shifts = Structure(self.cell, self.positions, self.numbers).wrapped()[1]
        atoms, axes = np.nonzero(shifts * ~np.array(self.pbc))
        if len(atoms):
            raise ValueError(
                f"structure: atom {atoms[0]} lies outside the cell along lattice vector {axes[0] + 1}, where the "
                "structure is not periodic; ABACUS's files know periodic cells alone, so move the atoms into the cell"
            )

    def supercell(self, n1: int, n2: int, n3: int) -> Structure:
        """Returns n1·n2·n3 copies; the atoms of cell (c1, c2, c3) follow each other, c3 counting fastest.

        Raises:
            ValueError: a count below 1.
        """
        if min(n1, n2, n3) < 1:
            raise ValueError(f"supercell: expected counts of at least 1, got {(n1, n2, n3)}")
        copies = np.array([(a, b, c) for a in range(n1) for b in range(n2) for c in range(n3)], dtype=np.float64)
        positions = (copies @ self.cell)[:, None] + self.positions[None]
        cell = self.cell * np.array([[n1], [n2], [n3]])
        return Structure(cell, positions.reshape(-1, 3), np.tile(self.numbers, len(copies)), self.pbc)

    def permuted(self, order: Sequence[int] | np.ndarray) -> Structure:
        """Returns the atoms in another order: atom i of the result is atom order[i]."""
        order = np.asarray(order)
        if not np.array_equal(np.sort(order), np.arange(self.n_atoms)):
            raise ValueError(f"order: expected a permutation of {self.n_atoms} atoms")
        return Structure(self.cell, self.positions[order], self.numbers[order], self.pbc)

    def species(self) -> list[int]:
        """Returns the distinct atomic numbers in order of appearance."""
        return list(dict.fromkeys(int(z) for z in self.numbers))

    def formula(self) -> str:
        """Returns the cell's content, such as `Ga4As4`."""
        counts = {z: int((self.numbers == z).sum()) for z in self.species()}
        return "".join(SYMBOLS[z] + (str(c) if c > 1 else "") for z, c in counts.items())
