"""STRU: the structure file of ABACUS.

Blocks stand in any order, each begun by its heading; `//` and `#` begin a comment. Atoms are grouped by species, in the
order of ATOMIC_SPECIES, and that order is the row order of ABACUS's matrices. The format is described in ABACUS's
manual ("The STRU file"); where the manual and the program differ (the `_center_` coordinates of a skew cell) this
module follows the program.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from nextham.io.compression import open_for_writing
from nextham.io.errors import FileError
from nextham.io.stru_blocks import Block, atom_words, split_blocks
from nextham.io.text_file import parse_integer, read_text
from nextham.structure import Structure
from nextham.units import BOHR, SYMBOLS

__all__ = ["COORDINATES", "Species", "StruFile", "read_stru", "write_stru"]

COORDINATES = (
    "Direct",
    "Cartesian",
    "Cartesian_au",
    "Cartesian_angstrom",
    "Cartesian_angstrom_center_xy",
    "Cartesian_angstrom_center_xz",
    "Cartesian_angstrom_center_yz",
    "Cartesian_angstrom_center_xyz",
)
"""The words that may follow ATOMIC_POSITIONS.

Direct: fractions of the lattice vectors; Cartesian: in lattice constants; _au: Bohr; _angstrom: Å; _center_: Å, counted
from the components named there of half the sum of the lattice vectors.
"""

_READ = ("ATOMIC_SPECIES", "NUMERICAL_ORBITAL", "LATTICE_CONSTANT", "LATTICE_VECTORS", "ATOMIC_POSITIONS")


@dataclass(frozen=True)
class Species:
    """One species of a STRU: a label with its atoms, which follow each other.

    Args:
        label: name in the file, such as `Fe` or `Fe1`.
        number: atomic number.
        n_atoms: number of atoms; may be zero.
        mass: atomic mass, u.
        pseudo: name of the pseudopotential file, or None where the file names none.
        orbital: name of the orbital file, or None where the file has no NUMERICAL_ORBITAL block.
        magnetisation: starting moment of the atoms whose row says nothing, μ_B.
        pseudo_type: word after the pseudopotential, such as `upf201`, or None.
    """

    label: str
    number: int
    n_atoms: int
    mass: float
    pseudo: str | None = None
    orbital: str | None = None
    magnetisation: float = 0.0
    pseudo_type: str | None = None


@dataclass(frozen=True, eq=False)
class StruFile:
    """The content of a STRU.

    Args:
        structure: cell and positions (Å) as the user gave them: file order, not wrapped into the cell.
        species: the species in file order.
        coordinate: one of `COORDINATES`.
        lattice_constant: the unit of the lattice vectors in the file, Bohr.
        words: per atom, what follows its coordinates: `m`, `v`, `mag`, `angle1`, `angle2`, `lambda`, `sc` → numbers as
            they stand in the file.
        other_blocks: heading → lines of the blocks that have no meaning here (NUMERICAL_DESCRIPTOR …).

    Raises:
        ValueError: species and words do not fit the structure, or unknown coordinate.
    """

    structure: Structure
    species: tuple[Species, ...]
    coordinate: str = "Direct"
    lattice_constant: float = 1 / BOHR
    words: tuple[Mapping[str, tuple[float, ...]], ...] = ()
    other_blocks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = self.structure.n_atoms
        if not self.words:
            object.__setattr__(self, "words", tuple({} for _ in range(n)))
        numbers = [s.number for s in self.species for _ in range(s.n_atoms)]
        if numbers != self.structure.numbers.tolist():
            raise ValueError("species: expected the elements of the structure, atom by atom and grouped by species")
        if len(self.words) != n:
            raise ValueError(f"words: expected one entry for each of {n} atoms, got {len(self.words)}")
        if self.coordinate not in COORDINATES:
            raise ValueError(f"coordinate: expected one of {', '.join(COORDINATES)}, got {self.coordinate!r}")
        if not self.lattice_constant > 0:
            raise ValueError(f"lattice_constant: expected a positive length in Bohr, got {self.lattice_constant}")

    @classmethod
    def from_structure(
        cls,
        structure: Structure,
        pseudos: Mapping[int, str] | None = None,
        orbitals: Mapping[int, str] | None = None,
        coordinate: str = "Direct",
    ) -> StruFile:
        """Returns the STRU of a structure, one species per element, lattice vectors in Å.

        A STRU holds the atoms of a species together: they are grouped in order of first appearance, which keeps a
        grouped structure as it is; the result's own `structure` has the order that will be written.

        Args:
            structure: the atoms.
            pseudos: atomic number → pseudopotential file; `Si.upf` and so on without it.
            orbitals: atomic number → orbital file; no NUMERICAL_ORBITAL block without it.
            coordinate: one of `COORDINATES`.

        Raises:
            ValueError: unknown coordinate, or an element without an entry in `pseudos` or `orbitals`.
        """
        from ase.data import atomic_masses

        found = structure.species()
        for name, files in (("pseudos", pseudos), ("orbitals", orbitals)):
            absent = [SYMBOLS[z] for z in found if files is not None and z not in files]
            if absent:
                raise ValueError(f"{name}: no file for {', '.join(absent)}")
        species = tuple(
            Species(
                label=SYMBOLS[z],
                number=z,
                n_atoms=int((structure.numbers == z).sum()),
                mass=float(atomic_masses[z]),
                pseudo=pseudos[z] if pseudos else f"{SYMBOLS[z]}.upf",
                orbital=orbitals[z] if orbitals else None,
            )
            for z in found
        )
        rank = {z: i for i, z in enumerate(found)}
        order = np.argsort([rank[int(z)] for z in structure.numbers], kind="stable")
        return cls(structure.permuted(order), species, coordinate)

    @property
    def moves(self) -> np.ndarray:
        """Directions in which each atom may move in a relaxation, bool [n, 3]; true where the row says nothing."""
        rows = [words.get("m", (1, 1, 1)) for words in self.words]
        return np.array(rows, dtype=bool).reshape(-1, 3)

    @property
    def velocities(self) -> np.ndarray | None:
        """Starting velocities [n, 3] in the file's unit, zero where the row has none; None where no row has any."""
        if not any("v" in words for words in self.words):
            return None
        return np.array([words.get("v", (0.0, 0.0, 0.0)) for words in self.words], dtype=np.float64)

    @property
    def moments(self) -> np.ndarray:
        """Starting moment of each atom, μ_B [n, 3].

        Three numbers after `mag` are the vector. One number m (or the species' own) is m·z; with angles θ = angle1 and
        φ = angle2 it is m·(sin θ cos φ, sin θ sin φ, cos θ), and of a vector only the length m counts, as in ABACUS.
        Where all moments vanish, ABACUS with nspin 2 or 4 starts from moments of its own.
        """
        rows = []
        defaults = [s.magnetisation for s in self.species for _ in range(s.n_atoms)]
        for words, default in zip(self.words, defaults, strict=True):
            mag = words.get("mag", (default,))
            if len(mag) == 3 and not {"angle1", "angle2"} & set(words):
                rows.append(mag)
                continue
            theta, phi = np.deg2rad([words.get("angle1", (0.0,))[0], words.get("angle2", (0.0,))[0]])
            direction = np.array([np.sin(theta) * np.cos(phi), np.sin(theta) * np.sin(phi), np.cos(theta)])
            rows.append((mag[0] if len(mag) == 1 else np.linalg.norm(mag)) * direction)
        return np.array(rows, dtype=np.float64).reshape(-1, 3)


def read_stru(path: str | os.PathLike[str]) -> StruFile:
    """Reads a STRU, plain or compressed.

    The element of a species is the one its label begins with (`Fe1`, `Si_up`), else the one that the name of its
    pseudopotential or orbital file begins with.

    Raises:
        FileError: absent file or block, a row that is not what the format asks for, a number of atoms that does not
            fit, unknown element, word or coordinate kind, or a cell without volume.
    """
    blocks = split_blocks(path, read_text(path))
    species = _read_species(blocks)
    constant = _read_lattice_constant(blocks)
    vectors = _read_lattice_vectors(blocks)
    species, coordinate, values, words = _read_positions(blocks, species)
    numbers = [s.number for s in species for _ in range(s.n_atoms)]
    cell = vectors * (constant * BOHR)
    try:
        positions = _positions_from_file(values, coordinate, cell, constant)
        structure = Structure(cell, positions, np.array(numbers, dtype=np.int64))
    except ValueError as error:
        raise FileError(path, str(error), blocks["LATTICE_VECTORS"].line) from error
    others = {name: tuple(row for _, row in b.rows()) for name, b in blocks.items() if name not in _READ}
    return StruFile(structure, species, coordinate, constant, words, others)


def write_stru(path: str | os.PathLike[str], stru: StruFile) -> None:
    """Writes a STRU, every number with all its digits; `.gz` and `.xz` in the name compress it.

    Raises:
        FileError: the file cannot be written.
    """
    structure, unit = stru.structure, stru.lattice_constant * BOHR
    lines = ["ATOMIC_SPECIES"]
    for s in stru.species:
        names = [name for name in (s.pseudo, s.pseudo_type) if name is not None]
        lines.append(" ".join([s.label, repr(float(s.mass)), *names]))
    if any(s.orbital is not None for s in stru.species):
        lines += ["", "NUMERICAL_ORBITAL", *(str(s.orbital) for s in stru.species)]
    for name, rows in stru.other_blocks.items():
        lines += ["", name, *rows]
    lines += ["", "LATTICE_CONSTANT", repr(float(stru.lattice_constant))]
    lines += ["", "LATTICE_VECTORS", *map(_row, structure.cell / unit)]
    lines += ["", "ATOMIC_POSITIONS", stru.coordinate]
    values = _positions_to_file(structure.positions, stru.coordinate, structure.cell, stru.lattice_constant)
    atom = 0
    for s in stru.species:
        lines += ["", s.label, repr(float(s.magnetisation)), str(s.n_atoms)]
        for _ in range(s.n_atoms):
            words = (f" {name} {_row(numbers)}" for name, numbers in stru.words[atom].items())
            lines.append(_row(values[atom]) + "".join(words))
            atom += 1
    with open_for_writing(path) as file:
        file.write(("\n".join(lines) + "\n").encode())


def _row(values: Sequence[float] | np.ndarray) -> str:
    return " ".join(str(int(x)) if float(x).is_integer() and abs(x) < 1e9 else repr(float(x)) for x in values)


def _read_species(blocks: Mapping[str, Block]) -> list[Species]:
    block = blocks["ATOMIC_SPECIES"]
    rows = block.rows()
    orbitals: list[str | None] = [None] * len(rows)
    if "NUMERICAL_ORBITAL" in blocks:
        orbitals = [word for _, text in blocks["NUMERICAL_ORBITAL"].rows() for word in text.split()]
        if len(orbitals) != len(rows):
            sentence = f"expected one orbital file for each of {len(rows)} species, got {len(orbitals)}"
            raise blocks["NUMERICAL_ORBITAL"].error(sentence)
    species = []
    for (line, text), orbital in zip(rows, orbitals, strict=True):
        words = text.split()
        if not 2 <= len(words) <= 4:
            raise block.error(f"expected `label mass pseudopotential-file`, got {text!r}", line)
        label, mass = words[0], block.number(words[1], "the mass", line)
        pseudo, kind = (*words[2:], None, None)[:2]
        number = _element(block, label, (pseudo, orbital), line)
        species.append(Species(label, number, 0, mass, pseudo, orbital, pseudo_type=kind))
    if not species:
        raise block.error("expected one row per species, got none")
    return species


def _element(block: Block, label: str, files: Sequence[str | None], line: int) -> int:
    if "empty" in label:
        raise block.error(
            f"species {label!r} is an empty one (basis functions without an atom), which is not read", line
        )
    names = (label, *(Path(file).name for file in files if file is not None))
    symbols = {name: re.match("[A-Za-z]*", name).group() for name in names}
    known = {name: symbol for name, symbol in symbols.items() if symbol in SYMBOLS[1:]}
    if not known:
        raise block.error(
            f"neither the label {label!r} nor the names of its files begin with an element's symbol", line
        )
    if len(set(known.values())) > 1:
        shown = ", ".join(f"{name} ({symbol})" for name, symbol in known.items())
        raise block.error(f"the label and the files of a species name different elements: {shown}", line)
    return SYMBOLS.index(next(iter(known.values())))


def _read_lattice_constant(blocks: Mapping[str, Block]) -> float:
    block = blocks["LATTICE_CONSTANT"]
    rows = block.rows()
    if not rows:
        raise block.error("expected the lattice constant, got nothing")
    line, text = rows[0]
    value = block.number(text.split()[0], "the lattice constant", line)
    if value <= 0:
        raise block.error(f"expected a positive lattice constant, got {value}", line)
    return value


def _read_lattice_vectors(blocks: Mapping[str, Block]) -> np.ndarray:
    block = blocks["LATTICE_VECTORS"]
    rows = block.rows()
    if len(rows) != 3:
        raise block.error(f"expected three lattice vectors, got {len(rows)} rows")
    return np.array([block.vector(text.split(), "a lattice vector", line) for line, text in rows])


def _read_positions(
    blocks: Mapping[str, Block], species: Sequence[Species]
) -> tuple[tuple[Species, ...], str, np.ndarray, tuple[dict[str, tuple[float, ...]], ...]]:
    block = blocks["ATOMIC_POSITIONS"]
    rows = iter(block.rows())
    line, text = _next(block, rows, "the kind of coordinates")
    coordinate = text.split()[0]
    if coordinate not in COORDINATES:
        raise block.error(f"expected one of {', '.join(COORDINATES)}, got {coordinate!r}", line)
    filled, values, words = [], [], []
    for s in species:
        line, text = _next(block, rows, f"the label {s.label}")
        if text.split()[0] != s.label:
            sentence = f"expected the label {s.label} (order of ATOMIC_SPECIES), got {text!r}"
            if filled:
                sentence += f"; are there really {filled[-1].n_atoms} atoms of {filled[-1].label}?"
            raise block.error(sentence, line)
        line, text = _next(block, rows, f"the magnetisation of {s.label}")
        magnetisation = block.number(text.split()[0], "the magnetisation", line)
        line, text = _next(block, rows, f"the number of {s.label} atoms")
        count = parse_integer(block.path, text.split()[0], f"the number of {s.label} atoms", line)
        if count < 0:
            raise block.error(f"expected a number of {s.label} atoms, got {count}", line)
        for i in range(count):
            line, text = _next(block, rows, f"atom {i + 1} of {count} of {s.label}")
            row = text.split()
            values.append(block.vector(row, "a position", line))
            words.append(atom_words(block, row[3:], line))
        filled.append(replace(s, n_atoms=count, magnetisation=magnetisation))
    for line, text in rows:
        last = filled[-1]
        raise block.error(f"expected the end after {last.n_atoms} atoms of {last.label}, got {text!r}", line)
    if not values:
        raise block.error("there are no atoms")
    return tuple(filled), coordinate, np.array(values, dtype=np.float64).reshape(-1, 3), tuple(words)


def _next(block: Block, rows: Iterator[tuple[int, str]], what: str) -> tuple[int, str]:
    for row in rows:
        return row
    raise block.error(f"the block ends where {what} was expected", block.raw[-1][0])


def _centre(coordinate: str, cell: np.ndarray) -> np.ndarray:
    """Half the sum of the lattice vectors, in the Cartesian components that a `_center_` word names, Å [3]."""
    axes = coordinate.partition("_center_")[2]
    return 0.5 * cell.sum(axis=0) * [axis in axes for axis in "xyz"]


def _unit(coordinate: str, constant: float) -> float:
    """Å per unit of a Cartesian coordinate."""
    return {"Cartesian": constant * BOHR, "Cartesian_au": BOHR}.get(coordinate, 1.0)


def _positions_from_file(values: np.ndarray, coordinate: str, cell: np.ndarray, constant: float) -> np.ndarray:
    if coordinate == "Direct":
        return values @ cell
    return values * _unit(coordinate, constant) + _centre(coordinate, cell)


def _positions_to_file(positions: np.ndarray, coordinate: str, cell: np.ndarray, constant: float) -> np.ndarray:
    if coordinate == "Direct":
        return np.linalg.solve(cell.T, positions.T).T
    return (positions - _centre(coordinate, cell)) / _unit(coordinate, constant)
