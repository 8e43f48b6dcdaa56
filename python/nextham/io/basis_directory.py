"""Orbitals and pseudopotentials of the elements of a calculation, from one directory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

from nextham.io.element_files import ElementFiles
from nextham.io.errors import FileError
from nextham.io.orb import OrbFile, read_orb_of
from nextham.io.upf import Pseudopotential, read_upf
from nextham.units import SYMBOLS

__all__ = ["ElementSurvey", "read_orbitals", "read_pseudopotentials", "survey"]


@dataclass(frozen=True, eq=False)
class ElementSurvey:
    """What a directory has of one element.

    Args:
        number: atomic number.
        orbitals: its orbitals, None where they are missing or damaged.
        pseudopotential: its pseudopotential, None where it is missing or damaged.
        problems: one sentence for each that is None.
    """

    number: int
    orbitals: OrbFile | None
    pseudopotential: Pseudopotential | None
    problems: tuple[str, ...]


def read_orbitals(directory: str | os.PathLike[str], numbers: Iterable[int]) -> dict[int, OrbFile]:
    """Returns the orbitals of the elements `numbers`, atomic number → orbitals.

    Raises:
        FileError: no directory, no file or several files for an element, or a file that cannot be used.
    """
    files = ElementFiles(directory)
    return {z: read_orb_of(files.orbital(z), z) for z in dict.fromkeys(int(z) for z in numbers)}


def read_pseudopotentials(directory: str | os.PathLike[str], numbers: Iterable[int]) -> dict[int, Pseudopotential]:
    """Returns the pseudopotentials of the elements `numbers`, atomic number → pseudopotential.

    Raises:
        FileError: no directory, no file or several files for an element, or a file that cannot be used.
    """
    files = ElementFiles(directory)
    return {z: _read_upf_of(files, z) for z in dict.fromkeys(int(z) for z in numbers)}


def survey(directory: str | os.PathLike[str], numbers: Iterable[int] | None = None) -> list[ElementSurvey]:
    """Reads what a directory has of some elements, and notes instead of raising what is missing or damaged.

    Args:
        directory: the directory.
        numbers: atomic numbers; None takes every element that has a file there.

    Raises:
        FileError: the directory cannot be read.
    """
    files = ElementFiles(directory)
    result = []
    for z in files.numbers if numbers is None else dict.fromkeys(int(z) for z in numbers):
        orbitals = pseudopotential = None
        problems = []
        try:
            orbitals = read_orb_of(files.orbital(z), z)
        except FileError as error:
            problems.append(str(error))
        try:
            pseudopotential = _read_upf_of(files, z)
        except FileError as error:
            problems.append(str(error))
        result.append(ElementSurvey(z, orbitals, pseudopotential, tuple(problems)))
    return result


def _read_upf_of(files: ElementFiles, number: int) -> Pseudopotential:
    path = files.pseudopotential(number)
    found = read_upf(path)
    if found.number != number:
        sentence = f"expected a pseudopotential of {SYMBOLS[number]}, got that of {SYMBOLS[found.number]}"
        raise FileError(path, sentence)
    return found
