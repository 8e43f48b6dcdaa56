"""A directory of orbital and pseudopotential files: which file belongs to which element."""

from __future__ import annotations

import os
import re
from pathlib import Path

from nextham.io.errors import FileError
from nextham.units import SYMBOLS

__all__ = ["ElementFiles"]

_NAME = re.compile(r"([A-Z][a-z]?)(?![A-Za-z]).*\.(orb|upf|UPF)(\.xz|\.gz)?")
_KINDS = {"orb": "orbital", "upf": "pseudopotential"}


class ElementFiles:
    """The `.orb` and `.upf` files of a directory, by element.

    The files of an element are those whose name begins with its symbol and ends with `.orb` or `.upf`, also with `.xz`
    or `.gz` after it: `Si_gga_7au_100Ry_2s2p1d.orb`, `Si.upf.xz`. Nothing is read yet.

    Args:
        directory: the directory.

    Raises:
        FileError: the directory cannot be read.
    """

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)
        try:
            names = sorted(os.listdir(directory))
        except OSError as error:
            raise FileError(directory, f"cannot be read: {error.strerror}") from error
        self._found: dict[tuple[int, str], list[str]] = {}
        for name in names:
            match = _NAME.fullmatch(name)
            if match and match[1] in SYMBOLS[1:]:
                self._found.setdefault((SYMBOLS.index(match[1]), match[2].lower()), []).append(name)

    @property
    def numbers(self) -> list[int]:
        """Atomic numbers that have a file of either kind, ascending."""
        return sorted({z for z, _ in self._found})

    def orbital(self, number: int) -> Path:
        """Returns the orbital file of an element; FileError where there is none or more than one."""
        return self._one(number, "orb", "_…_2s2p1d.orb")

    def pseudopotential(self, number: int) -> Path:
        """Returns the pseudopotential file of an element; FileError where there is none or more than one."""
        return self._one(number, "upf", ".upf")

    def _one(self, number: int, kind: str, example: str) -> Path:
        symbol, names = SYMBOLS[number], self._found.get((int(number), kind), [])
        if not names:
            raise FileError(
                self.directory, f"there is no {_KINDS[kind]} file for {symbol} (a name like {symbol}{example})"
            )
        if len(names) > 1:
            sentence = f"there are {len(names)} {_KINDS[kind]} files for {symbol}: {', '.join(names)}"
            raise FileError(self.directory, sentence)
        return self.directory / names[0]
