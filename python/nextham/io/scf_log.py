"""What the log of an ABACUS run (`running_scf.log`) says about its end."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from nextham.io.errors import FileError

__all__ = ["ScfLog", "find_scf_log", "read_scf_log"]

_YES = re.compile(r"charge density convergence is achieved|#\s*SCF IS CONVERGED", re.IGNORECASE)
_NO = re.compile(r"convergence has not been achieved|SCF IS NOT CONVERGED", re.IGNORECASE)
_FERMI = re.compile(r"EFERMI\s*=\s*(\S+)\s*eV|E_Fermi\s+\S+\s+(\S+)", re.IGNORECASE)


@dataclass(frozen=True)
class ScfLog:
    """The end of a self-consistent run.

    Args:
        converged: whether it says that it converged; None where it says nothing.
        efermi: the last Fermi energy it prints, eV.
    """

    converged: bool | None
    efermi: float | None


def find_scf_log(folder: Path) -> Path | None:
    """Returns the log of a run folder: `running_*.log` there or in `OUT.*`."""
    for place in (folder, *sorted(folder.glob("OUT.*"))):
        for path in sorted(place.glob("running_*.log")):
            return path
    return None


def read_scf_log(path: Path) -> ScfLog:
    """Reads a log; of several ionic steps the last one counts.

    Raises:
        FileError: it cannot be read, or its Fermi energy is no number.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from error
    ends = [(m.start(), True) for m in _YES.finditer(text)] + [(m.start(), False) for m in _NO.finditer(text)]
    levels = [a or b for a, b in _FERMI.findall(text)]
    try:
        efermi = float(levels[-1]) if levels else None
    except ValueError:
        raise FileError(path, f"expected a number as Fermi energy, got {levels[-1]!r}") from None
    return ScfLog(max(ends)[1] if ends else None, efermi)
