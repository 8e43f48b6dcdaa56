"""Structures from any file: ABACUS's STRU, and through ASE everything that it reads (CIF, POSCAR, XYZ, …)."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from nextham.io.compression import load_bytes
from nextham.io.errors import FileError
from nextham.io.stru import read_stru
from nextham.structure import Structure

if TYPE_CHECKING:
    from ase import Atoms

__all__ = ["from_ase", "is_stru", "read_structure", "to_ase"]

# A line that only a STRU has (Quantum ESPRESSO shares ATOMIC_SPECIES and ATOMIC_POSITIONS).
_STRU_LINE = re.compile(rb"^[ \t]*(NUMERICAL_ORBITAL|LATTICE_CONSTANT|LATTICE_VECTORS)(?!\w)", re.MULTILINE)


def is_stru(path: str | os.PathLike[str]) -> bool:
    """Returns whether a file is a STRU, by its headings."""
    return _STRU_LINE.search(load_bytes(path)) is not None


def read_structure(path: str | os.PathLike[str], format: str | None = None) -> Structure:
    """Reads a structure with the user's own positions and order of atoms.

    Args:
        path: a STRU, recognised by its headings whatever its name, or a file of any format that ASE reads.
        format: `stru`, or the name of an ASE format; guessed from content and name without it.

    Returns:
        The structure; directions without periodicity are those that the file declares so (STRU: none).

    Raises:
        FileError: unreadable file, unknown format, no or several structures in the file, no three lattice vectors, or
            sites that are only partly occupied.
    """
    if format == "stru" or (format is None and is_stru(path)):
        return read_stru(path).structure
    atoms = _read_with_ase(path, format)
    occupancy = atoms.info.get("occupancy")  # of a CIF: kind of site -> {symbol: fraction}
    for kinds in occupancy.values() if isinstance(occupancy, dict) else ():
        if any(fraction not in (1, ".", "?") for fraction in kinds.values()):  # "." and "?": not given, so full
            parts = ", ".join(f"{fraction} {symbol}" for symbol, fraction in kinds.items())
            raise FileError(path, f"a site is only partly occupied ({parts}): make an ordered structure of it first")
    try:
        return from_ase(atoms)
    except ValueError as error:
        raise FileError(path, str(error)) from error


def _read_with_ase(path: str | os.PathLike[str], format: str | None) -> Atoms:
    import sqlite3
    import struct

    import ase.io
    from ase.io.formats import UnknownFileTypeError
    from ase.spacegroup.spacegroup import SpacegroupError

    # Each of ASE's readers fails in its own way on a damaged file: this is what was met when files of forty formats
    # were cut, shuffled and overwritten.
    refusals = (UnknownFileTypeError, SpacegroupError, ase.io.ParseError, OSError, ValueError, TypeError, RuntimeError)
    accidents = (LookupError, ArithmeticError, AssertionError, AttributeError, NameError, StopIteration, EOFError)
    others = (SyntaxError, ImportError, MemoryError, sqlite3.Error, struct.error)
    try:
        frames = ase.io.read(os.fspath(path), index=":", format=format, do_not_split_by_at_sign=True)
    except (*refusals, *accidents, *others) as error:
        said = " ".join(str(error).split()) or "no reason given"
        known = "" if format else "; expected a STRU, or what name or content tell: POSCAR, .vasp, .cif, .xyz …"
        raise FileError(path, f"ASE cannot read it ({type(error).__name__}: {said}){known}") from error
    if len(frames) != 1:
        raise FileError(path, f"expected one structure, got {len(frames)}")
    return frames[0]


def from_ase(atoms: Atoms) -> Structure:
    """Returns the cell, positions, elements and periodicity of an `ase.Atoms`.

    Raises:
        ValueError: fewer than three lattice vectors, or a dummy atom.
    """
    if atoms.cell.rank < 3:
        raise ValueError("expected three lattice vectors (put a molecule into a box), got " + str(atoms.cell.rank))
    return Structure(atoms.cell.array, atoms.positions, atoms.numbers, tuple(atoms.pbc))


def to_ase(structure: Structure) -> Atoms:
    """Returns the structure as `ase.Atoms`."""
    from ase import Atoms

    return Atoms(numbers=structure.numbers, positions=structure.positions, cell=structure.cell, pbc=structure.pbc)
