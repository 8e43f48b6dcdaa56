"""`.upf`: norm-conserving pseudopotentials (UPF version 2), and the number of electrons they leave over."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nextham.io.errors import FileError
from nextham.io.text_file import parse_integer, parse_number, read_text
from nextham.structure import Structure
from nextham.units import SYMBOLS, atomic_number

__all__ = ["PUBLISHED_VALENCE", "Pseudopotential", "electron_count", "read_upf", "read_valence"]

_BY_VALENCE = {
    1: "H",
    3: "Li B Al",
    4: "C Si",
    5: "N P As",
    6: "O S Se",
    7: "F Cl",
    9: "Na",
    10: "Mg Ca",
    12: "Ti",
    13: "Ga In",
    14: "Ge Mo Sn Pb",
    15: "Sb Bi",
    16: "Te",
    20: "Zn Cd",
}

PUBLISHED_VALENCE: dict[int, float] = {
    atomic_number(symbol): float(valence) for valence, symbols in _BY_VALENCE.items() for symbol in symbols.split()
}
"""Atomic number → `z_valence` of the published pseudopotential, for the 29 elements whose file has been seen.

Read off the headers of the fully relativistic PBE ONCVPSP files (UPF 2.0.1) that the published data were computed with.
"""


@dataclass(frozen=True, eq=False)
class Pseudopotential:
    """A norm-conserving pseudopotential: a local part and projectors, V = V_loc(r) + Σ_nn' |β_n⟩ D_nn' ⟨β_n'|.

    Args:
        number: atomic number.
        valence: electrons that it leaves to the calculation.
        functional: name of the exchange-correlation functional it was made with, as in the file.
        dr: spacing of the radial mesh, Bohr.
        local: V_loc on the mesh r = 0, dr, 2 dr, … [mesh], Ry.
        l: degree of each projector [n_proj].
        j: total angular momentum of each projector, l ± 1/2 [n_proj]; None without spin-orbit coupling.
        r_beta: r·β of each projector [n_proj, mesh], Bohr^(−1/2).
        d: D [n_proj, n_proj], Ry; symmetric, zero between projectors of different l or j.
        rho: 4πr² times the valence density of the atom [mesh], 1/Bohr.
        core: density of the core for the functional's sake [mesh], Bohr⁻³; None where the file has none.
    """

    number: int
    valence: float
    functional: str
    dr: float
    local: np.ndarray
    l: tuple[int, ...]
    j: tuple[float, ...] | None
    r_beta: np.ndarray
    d: np.ndarray
    rho: np.ndarray
    core: np.ndarray | None

    @property
    def r(self) -> np.ndarray:
        """The radial mesh [mesh], Bohr."""
        return self.dr * np.arange(len(self.local))

    @property
    def spin_orbit(self) -> bool:
        """Whether the projectors depend on j."""
        return self.j is not None


def read_upf(path: str | os.PathLike[str]) -> Pseudopotential:
    """Reads a norm-conserving pseudopotential of UPF 2, scalar or fully relativistic, plain, gzip or xz.

    Raises:
        FileError: not a UPF 2 file; an ultrasoft, PAW or Coulomb potential; an absent or damaged section; a mesh that
            is not r = 0, dr, 2 dr, …; or projectors whose l, j and D do not agree.
    """
    file = _Upf(path)
    number, valence = file.element()
    for name in ("is_ultrasoft", "is_paw", "is_coulomb"):
        if file.flag(name):
            raise FileError(
                path, f"expected a norm-conserving pseudopotential, got one with {name}", file.line(file.header)
            )
    kind, line = file.attribute(file.header, "pseudo_type")
    if kind not in ("NC", "SL"):
        raise FileError(path, f"expected a norm-conserving pseudopotential (pseudo_type NC), got {kind}", line)
    dr, mesh = file.mesh()
    word, line = file.attribute(file.header, "number_of_proj")
    n_proj = parse_integer(path, word, "number_of_proj", line)
    tags = [file.section(f"PP_BETA.{n}") for n in range(1, n_proj + 1)]
    degrees = [file.integer(tag, "angular_momentum") for tag in tags]
    j = file.total_angular_momenta(degrees) if file.flag("has_so") else None
    d = np.zeros((0, 0))
    if n_proj:
        d = file.numbers("PP_DIJ", n_proj * n_proj).reshape(n_proj, n_proj)
        channel = np.stack([degrees, degrees if j is None else j], axis=1)
        wrong = (channel[:, None] != channel).any(axis=2) & (d != 0) | (np.abs(d - d.T) > 1e-8 * np.abs(d).max())
        if wrong.any():
            first, second = np.argwhere(wrong)[0] + 1
            sentence = f"PP_DIJ couples projectors {first} and {second} of different l or j, or is not symmetric there"
            raise FileError(path, sentence, file.line(file.section("PP_DIJ")))
    return Pseudopotential(
        number=number,
        valence=valence,
        functional=file.attribute(file.header, "functional")[0],
        dr=dr,
        local=file.numbers("PP_LOCAL", mesh),
        l=tuple(degrees),
        j=j,
        r_beta=np.array([file.numbers(f"PP_BETA.{n}", mesh) for n in range(1, n_proj + 1)]).reshape(n_proj, mesh),
        d=d,
        rho=file.numbers("PP_RHOATOM", mesh),
        core=file.numbers("PP_NLCC", mesh) if file.flag("core_correction") else None,
    )


def read_valence(path: str | os.PathLike[str]) -> tuple[int, float]:
    """Returns the atomic number and the number of valence electrons `z_valence` of a UPF 2 file, plain, gzip or xz.

    Raises:
        FileError: not a UPF 2 file, or a header without element or valence.
    """
    return _Upf(path).element()


class _Upf:
    """The text of a file by sections; a tag is the match of `<NAME attributes>`, its group 1 the attributes."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path, self.text = path, read_text(path)
        if not re.search(r'<UPF\s+version\s*=\s*["\']2', self.text):
            old = "an older UPF format" if "<PP_HEADER>" in self.text else "something else"
            raise FileError(path, f'expected a pseudopotential of UPF version 2 (`<UPF version="2…">`), got {old}')
        # The file is not XML: PP_INFO quotes the generator's input as it was.
        header = re.search(r"<PP_HEADER\s([^<>]*)>", self.text)
        if header is None:
            raise FileError(path, "there is no complete PP_HEADER")
        self.header = header

    def line(self, tag: re.Match[str]) -> int:
        return self._line(tag.start())

    def _line(self, position: int) -> int:
        return self.text.count("\n", 0, position) + 1

    def attribute(self, tag: re.Match[str], name: str) -> tuple[str, int]:
        """The word of an attribute and its line."""
        found = re.search(rf"(?<!\S){name}\s*=\s*(\"[^\"]*\"|'[^']*')", tag[1])
        line = self._line(tag.start() if found is None else tag.start(1) + found.start())
        if found is None:
            tag_name = tag[0][1:].split()[0].rstrip("/>")
            raise FileError(self.path, f"the {tag_name} has no `{name}`", line)
        return found[1][1:-1].strip(), line

    def integer(self, tag: re.Match[str], name: str) -> int:
        word, line = self.attribute(tag, name)
        return parse_integer(self.path, word, name, line)

    def flag(self, name: str) -> bool:
        word, line = self.attribute(self.header, name)
        letter = word.strip(".").lower()
        if letter not in ("t", "f", "true", "false"):
            raise FileError(self.path, f"expected T or F for {name}, got {word!r}", line)
        return letter.startswith("t")

    def element(self) -> tuple[int, float]:
        """Atomic number and z_valence."""
        (symbol, line), (word, at) = (self.attribute(self.header, name) for name in ("element", "z_valence"))
        if symbol not in SYMBOLS[1:]:
            raise FileError(self.path, f"expected an element, got {symbol!r}", line)
        valence, number = parse_number(self.path, word, "z_valence", at), SYMBOLS.index(symbol)
        if not 0 < valence <= number:
            raise FileError(self.path, f"z_valence of {symbol} must lie between 0 and {number}, got {word}", at)
        return number, valence

    def section(self, name: str) -> re.Match[str]:
        tag = re.compile(rf"<{re.escape(name)}(?=[\s/>])([^<>]*)>").search(self.text, self.header.end())
        if tag is None:
            raise FileError(self.path, f"the section {name} is missing")
        return tag

    def numbers(self, name: str, count: int | None = None) -> np.ndarray:
        """All numbers of a section."""
        start = self.section(name).end()
        end = self.text.find(f"</{name}>", start)
        if end < 0:
            raise FileError(self.path, f"the section {name} does not end", self._line(start))
        words = self.text[start:end].split()
        try:
            values = np.array(words, dtype=np.float64)
        except ValueError:
            values = np.array([np.nan])
        if not np.isfinite(values).all():
            for line, text in enumerate(self.text[start:end].split("\n"), start=self._line(start)):
                for word in text.split():
                    parse_number(self.path, word, name, line)
        if count is not None and len(values) != count:
            raise FileError(self.path, f"expected {count} numbers in {name}, got {len(values)}", self._line(start))
        return values

    def mesh(self) -> tuple[float, int]:
        """Spacing and number of points of the radial mesh."""
        r = self.numbers("PP_R")
        line = self.line(self.section("PP_R"))
        dr = (r[-1] - r[0]) / (len(r) - 1) if len(r) > 1 else 0.0
        if not dr > 0 or np.abs(r - dr * np.arange(len(r))).max() > 1e-3 * dr:
            raise FileError(self.path, "expected a uniform radial mesh that starts at 0, got another one", line)
        return float(dr), len(r)

    def total_angular_momenta(self, degrees: Sequence[int]) -> tuple[float, ...]:
        """Returns j of each projector."""
        result = []
        for n, l in enumerate(degrees, start=1):
            tag = self.section(f"PP_RELBETA.{n}")
            if self.integer(tag, "lll") != l:
                raise FileError(self.path, f"PP_RELBETA.{n} and PP_BETA.{n} have different l", self.line(tag))
            word, line = self.attribute(tag, "jjj")
            j = parse_number(self.path, word, "jjj", line)
            if j <= 0 or abs(j - l) != 0.5:
                raise FileError(self.path, f"a projector of l = {l} cannot have j = {word}", line)
            result.append(j)
        return tuple(result)


def electron_count(structure: Structure, valences: Mapping[int, float]) -> float:
    """Returns the number of valence electrons of a neutral cell, Σ_atoms z_valence.

    Args:
        structure: the atoms.
        valences: atomic number → `z_valence`, such as `PUBLISHED_VALENCE` or `dict([read_valence(path), …])`.

    Raises:
        ValueError: an element without an entry.
    """
    absent = [SYMBOLS[z] for z in structure.species() if z not in valences]
    if absent:
        raise ValueError(f"valences: no number of valence electrons for {', '.join(absent)}")
    return float(sum(valences[int(z)] for z in structure.numbers))
