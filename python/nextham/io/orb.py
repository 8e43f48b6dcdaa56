"""`.orb`: the numerical atomic orbitals of ABACUS, and the basis they make."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from nextham.basis import Basis
from nextham.io.element_files import ElementFiles
from nextham.io.errors import FileError
from nextham.io.stru import Species, read_stru
from nextham.io.text_file import parse_integer, parse_number, read_text
from nextham.units import SYMBOLS

__all__ = ["OrbFile", "basis_from_directory", "basis_from_stru", "read_orb", "read_orb_of"]

_LETTERS = "spdfghiklm"
_SUFFIXES = ("", ".xz", ".gz")
_ENTRIES = ("Element", "Energy Cutoff(Ry)", "Radius Cutoff(a.u.)", "Lmax", "Mesh", "dr")
_TITLE = ["Type", "L", "N"]


@dataclass(frozen=True, eq=False)
class OrbFile:
    """The orbitals of one element: φ(r) = R(r) Y_lm with ∫ R² r² dr = 1.

    Args:
        number: atomic number.
        energy_cutoff: plane-wave cutoff they were made for, Ry.
        radius_cutoff: R vanishes from here on, Bohr.
        shells: l of each shell, ascending; the zetas of one l follow each other.
        dr: spacing of the radial mesh, Bohr.
        radial: R on the mesh r = 0, dr, 2 dr, … [n_shells, mesh], Bohr^(−3/2).
    """

    number: int
    energy_cutoff: float
    radius_cutoff: float
    shells: tuple[int, ...]
    dr: float
    radial: np.ndarray

    @property
    def r(self) -> np.ndarray:
        """The radial mesh [mesh], Bohr."""
        return self.dr * np.arange(self.radial.shape[1])

    @property
    def zetas(self) -> tuple[int, ...]:
        """Number of shells of each l = 0, 1, …."""
        return tuple(self.shells.count(l) for l in range(max(self.shells) + 1))


def read_orb(path: str | os.PathLike[str]) -> OrbFile:
    """Reads an orbital file, plain, gzip or xz.

    Raises:
        FileError: not an orbital file, unknown element, or header and radial functions that do not agree.
    """
    lines = read_text(path).splitlines()
    titles = [i for i, text in enumerate(lines) if text.split() == _TITLE]
    if not titles:
        raise FileError(path, "this is no orbital file: there is no `Type L N` line")
    header = _Header(path, lines[: titles[0]])
    symbol, line = header.entry("Element")
    if symbol not in SYMBOLS[1:]:
        raise FileError(path, f"expected an element, got {symbol!r}", line)
    radius, dr = header.number("Radius Cutoff(a.u.)"), header.number("dr")
    mesh = header.integer("Mesh")
    if mesh < 2 or dr <= 0 or abs((mesh - 1) * dr - radius) > 1.5 * dr:
        sentence = f"{mesh} points {dr} Bohr apart do not end at the radius cutoff of {radius} Bohr"
        raise FileError(path, sentence, header.entry("Mesh")[1])
    shells = header.shells()
    if len(titles) != len(shells):
        sentence = f"the header announces {len(shells)} orbitals, the file has {len(titles)}"
        raise FileError(path, sentence, titles[-1] + 1)
    return OrbFile(
        number=SYMBOLS.index(symbol),
        energy_cutoff=header.number("Energy Cutoff(Ry)"),
        radius_cutoff=radius,
        shells=shells,
        dr=dr,
        radial=_read_radial(path, lines, titles, shells, mesh),
    )


def read_orb_of(path: str | os.PathLike[str], number: int) -> OrbFile:
    """Reads an orbital file that must be of the element `number`.

    Raises:
        FileError: a file that `read_orb` refuses, or orbitals of another element.
    """
    orb = read_orb(path)
    if orb.number != number:
        raise FileError(path, f"expected orbitals of {SYMBOLS[number]}, got those of {SYMBOLS[orb.number]}")
    return orb


class _Header:
    """The named entries above the first orbital: name → (word, line number)."""

    def __init__(self, path: str | os.PathLike[str], lines: Sequence[str]) -> None:
        self.path = path
        self.entries: dict[str, tuple[str, int]] = {}
        for line, text in enumerate(lines, start=1):
            count = re.fullmatch(r"\s*(Number of [A-Z]orbital)-->\s*(\S+)\s*", text)
            if count:
                self.entries[count[1]] = (count[2], line)
            for name in _ENTRIES:
                entry = re.fullmatch(rf"\s*{re.escape(name)}\s+(\S+)\s*", text)
                if entry:
                    self.entries[name] = (entry[1], line)

    def entry(self, name: str) -> tuple[str, int]:
        if name not in self.entries:
            raise FileError(self.path, f"the header has no `{name}` line")
        return self.entries[name]

    def number(self, name: str) -> float:
        word, line = self.entry(name)
        return parse_number(self.path, word, name, line)

    def integer(self, name: str) -> int:
        word, line = self.entry(name)
        return parse_integer(self.path, word, name, line)

    def shells(self) -> tuple[int, ...]:
        l_max = self.integer("Lmax")
        if not 0 <= l_max < len(_LETTERS):
            raise FileError(self.path, f"expected Lmax of 0 to {len(_LETTERS) - 1}, got {l_max}", self.entry("Lmax")[1])
        names = [f"Number of {letter.upper()}orbital" for letter in _LETTERS]
        shells: list[int] = []
        for l, name in enumerate(names):
            if l > l_max and name not in self.entries:
                continue
            count, (_, line) = self.integer(name), self.entry(name)
            if l > l_max or not 0 <= count < 100:
                raise FileError(self.path, f"`{name}` of {count} does not fit Lmax of {l_max}", line)
            shells += [l] * count
        if not shells:
            raise FileError(self.path, "the header announces no orbitals", self.entry("Lmax")[1])
        return tuple(shells)


def _read_radial(
    path: str | os.PathLike[str], lines: Sequence[str], titles: Sequence[int], shells: Sequence[int], mesh: int
) -> np.ndarray:
    """R(r) of each shell [n_shells, mesh], wherever in the file it stands."""
    places = {(l, i - shells.index(l)): i for i, l in enumerate(shells)}
    radial = np.empty((len(shells), mesh))
    for title, end in pairwise([*titles, len(lines)]):
        line = title + 2
        words = lines[title + 1].split() if line <= len(lines) else []
        if len(words) != 3:
            raise FileError(path, "expected the three integers of `Type L N`", min(line, len(lines)))
        _, l, zeta = (parse_integer(path, word, "`Type L N`", line) for word in words)
        if (l, zeta) not in places:
            sentence = f"orbital l = {l}, zeta {zeta} is not in the header, or stands twice"
            raise FileError(path, sentence, line)
        rows = enumerate(lines[title + 2 : end], start=title + 3)
        values = [parse_number(path, word, "the radial function", at) for at, text in rows for word in text.split()]
        if len(values) != mesh:
            raise FileError(path, f"expected {mesh} values of R for l = {l}, zeta {zeta}, got {len(values)}", line)
        radial[places.pop((l, zeta))] = values
    return radial


def basis_from_directory(directory: str | os.PathLike[str], numbers: Iterable[int]) -> Basis:
    """Returns the basis of the elements `numbers` from the orbital files of a directory.

    The file of an element is the one whose name begins with its symbol and ends with `.orb`, `.orb.xz` or `.orb.gz`.

    Raises:
        FileError: no directory, no file or several files for an element, or a file that is not what its name says.
    """
    files = ElementFiles(directory)
    return Basis({z: read_orb_of(files.orbital(z), z).shells for z in dict.fromkeys(int(z) for z in numbers)})


def basis_from_stru(stru: str | os.PathLike[str], orbital_dir: str | os.PathLike[str] | None = None) -> Basis:
    """Returns the basis that a STRU names in its NUMERICAL_ORBITAL block.

    The files are looked for in `orbital_dir`, or without it beside the STRU, also with `.xz` or `.gz` after the name. A
    file that is absent there (and no `orbital_dir` is given) is taken at its name: `Si_gga_7au_100Ry_2s2p1d.orb`
    declares 2s2p1d. A STRU without the block has the published basis.

    Raises:
        FileError: unreadable STRU or orbital file, a file of another element, an absent file in `orbital_dir` or one
            whose name declares no shells, two species of one element with different shells, or an element that the
            published basis does not have.
    """
    shells: dict[int, tuple[int, ...]] = {}
    for species in read_stru(stru).species:
        if not species.n_atoms:
            continue
        z = species.number
        found = _shells_of_species(stru, species, orbital_dir)
        if shells.setdefault(z, found) != found:
            raise FileError(stru, f"two species of {SYMBOLS[z]} have different shells, {shells[z]} and {found}")
    return Basis(shells)


def _shells_of_species(
    stru: str | os.PathLike[str], species: Species, orbital_dir: str | os.PathLike[str] | None
) -> tuple[int, ...]:
    if species.orbital is None:
        try:
            return Basis.published([species.number])[species.number]
        except ValueError as error:
            raise FileError(stru, f"there is no NUMERICAL_ORBITAL block, and {error}") from error
    folder = Path(stru).parent if orbital_dir is None else Path(orbital_dir)
    for suffix in _SUFFIXES:
        path = folder / (species.orbital + suffix)
        if path.is_file():
            return read_orb_of(path, species.number).shells
    if orbital_dir is not None:
        raise FileError(folder / species.orbital, f"the orbital file of {species.label} is not there")
    declared = re.search(rf"_(([1-9]\d?[{_LETTERS}])+)\.orb(\.xz|\.gz)?$", species.orbital)
    if not declared:
        sentence = f"the orbital file {species.orbital} is not there, and its name declares no shells (as 2s2p1d does)"
        raise FileError(stru, sentence)
    counts = re.findall(rf"(\d+)([{_LETTERS}])", declared[1])
    return tuple(sorted(_LETTERS.index(letter) for count, letter in counts for _ in range(int(count))))
