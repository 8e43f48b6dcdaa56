"""`.upf`: pseudopotential files (UPF version 2), and the number of electrons they leave to the calculation."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from nextham.io.errors import FileError
from nextham.io.text_file import parse_number, read_text
from nextham.structure import Structure
from nextham.units import SYMBOLS, atomic_number

__all__ = ["PUBLISHED_VALENCE", "electron_count", "read_valence"]

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


def read_valence(path: str | os.PathLike[str]) -> tuple[int, float]:
    """Returns the atomic number and the number of valence electrons `z_valence` of a UPF 2 file, plain, gzip or xz.

    Raises:
        FileError: not a UPF 2 file, or a header without element or valence.
    """
    text = read_text(path)
    if not re.search(r'<UPF\s+version\s*=\s*["\']2', text):
        old = "an older UPF format" if "<PP_HEADER>" in text else "something else"
        raise FileError(path, f'expected a pseudopotential of UPF version 2 (`<UPF version="2…">`), got {old}')
    # The file is not XML: PP_INFO quotes the generator's input as it was.
    header = re.search(r"<PP_HEADER\s([^<>]*)>", text)
    if header is None:
        raise FileError(path, "there is no complete PP_HEADER")
    values = {}
    for name in ("element", "z_valence"):
        found = re.search(rf"(?<!\S){name}\s*=\s*(\"[^\"]*\"|'[^']*')", header[1])
        at = header.start() if found is None else header.start(1) + found.start()
        line = text.count("\n", 0, at) + 1
        if found is None:
            raise FileError(path, f"the PP_HEADER has no `{name}`", line)
        values[name] = (found[1][1:-1].strip(), line)
    symbol, line = values["element"]
    if symbol not in SYMBOLS[1:]:
        raise FileError(path, f"expected an element, got {symbol!r}", line)
    word, line = values["z_valence"]
    valence, number = parse_number(path, word, "z_valence", line), SYMBOLS.index(symbol)
    if not 0 < valence <= number:
        raise FileError(path, f"z_valence of {symbol} must lie between 0 and {number}, got {word}", line)
    return number, valence


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
