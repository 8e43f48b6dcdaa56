"""Band structures: computed on a path, kept as CSV."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nextham.blocks import Blocks
from nextham.io.errors import FileError
from nextham.kpath import BandPath
from nextham.kspace import bands_at
from nextham.levels import levels_near

__all__ = ["BandStructure", "band_structure", "band_structure_near"]


@dataclass(frozen=True, eq=False)
class BandStructure:
    """Eigenvalues along a path.

    Args:
        path: the k-points.
        eigenvalues: ascending in s, eV, [q, s]; for collinear spin [2, q, s], up and down.
        efermi: Fermi level, eV, on the same scale; None where it is not known.
        first: how many bands lie below the first of these.

    Raises:
        ValueError: shapes that do not match.
    """

    path: BandPath
    eigenvalues: np.ndarray
    efermi: float | None = None
    first: int = 0

    def __post_init__(self) -> None:
        shape, n = self.eigenvalues.shape, len(self.path.distance)
        if len(shape) not in (2, 3) or shape[-2] != n or (len(shape) == 3 and shape[0] != 2):
            raise ValueError(f"eigenvalues: expected [q, s] or [2, q, s] with q = {n}, got {shape}")

    def channels(self) -> np.ndarray:
        """Returns the eigenvalues with the spin axis always there, [1 or 2, q, s]."""
        return self.eigenvalues.reshape(-1, *self.eigenvalues.shape[-2:])

    def with_fermi(self, efermi: float) -> BandStructure:
        """Returns the same bands with a Fermi level, eV."""
        return replace(self, efermi=float(efermi))

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes one row per k-point: distance (1/Å), k, label, then every band (eV, nine decimals).

        Two comment lines hold the lattice and the Fermi level; columns are `band_1 …`, or `up_1 …, down_1 …`.
        """
        values = self.channels()
        kinds = ("band",) if len(values) == 1 else ("up", "down")
        columns = [f"{kind}_{s + 1 + self.first}" for kind in kinds for s in range(values.shape[2])]
        lines = [
            f"# lattice: {self.path.lattice}",
            f"# efermi_eV: {'' if self.efermi is None else f'{self.efermi:.9f}'}",
            ",".join(["distance", "k1", "k2", "k3", "label", *columns]),
        ]
        for q, label in enumerate(self.path.labels):
            where = [f"{x:.10f}" for x in (self.path.distance[q], *self.path.kpoints[q])]
            lines.append(",".join([*where, label, *(f"{x:.9f}" for x in values[:, q].reshape(-1))]))
        Path(path).write_text("\n".join(lines) + "\n", encoding="utf-8")

    @classmethod
    def from_csv(cls, path: str | os.PathLike[str]) -> BandStructure:
        """Reads what `to_csv` wrote.

        Raises:
            FileError: not such a file, or a damaged line; with its number.
        """
        try:
            lines = Path(path).read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            raise FileError(path, "is no text") from None
        heads = ("# lattice:", "# efermi_eV:", "distance,k1,k2,k3,label,")
        for number, head in enumerate(heads, start=1):
            if len(lines) < number or not lines[number - 1].startswith(head):
                raise FileError(path, f"expected a band structure with {head!r} here", line=number)
        fermi = lines[1].removeprefix(heads[1]).strip()
        n_columns = lines[2].count(",") + 1
        numbered = re.match(r"distance,k1,k2,k3,label,[a-z]+_([1-9][0-9]*)", lines[2])
        labels, rows = [], []
        for number, line in enumerate(lines[3:], start=4):
            words = line.split(",")
            if len(words) != n_columns:
                raise FileError(path, f"expected {n_columns} columns, got {len(words)}", line=number)
            labels.append(words.pop(4))
            rows.append(_numbers(path, words, number))
        table = np.array(rows).reshape(-1, n_columns - 1)
        values = table[:, 4:]
        if ",up_1," in lines[2]:
            values = values.reshape(len(table), 2, -1).swapaxes(0, 1)
        efermi = _numbers(path, [fermi], 2)[0] if fermi else None
        k_path = BandPath(table[:, 1:4], table[:, 0], tuple(labels), lines[0].removeprefix(heads[0]).strip())
        return cls(k_path, values, efermi, int(numbered[1]) - 1 if numbered else 0)


def _numbers(path: str | os.PathLike[str], words: list[str], line: int) -> list[float]:
    """Finite numbers, or the error that names the line."""
    try:
        numbers = [float(word) for word in words]
    except ValueError:
        numbers = []
    if not numbers or not np.isfinite(numbers).all():
        raise FileError(path, "expected finite numbers", line=line)
    return numbers


def band_structure(
    hamiltonian: Blocks,
    overlap: Blocks,
    path: BandPath,
    efermi: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    threshold: float | None = None,
) -> BandStructure:
    """Returns the bands of H(k) C = S(k) C ε along a path (see `kspace.bands_at` for arguments and errors)."""
    return BandStructure(path, bands_at(hamiltonian, overlap, path.kpoints, progress, threshold=threshold), efermi)


def band_structure_near(
    hamiltonian: Blocks,
    overlap: Blocks,
    path: BandPath,
    efermi: float,
    count: int,
    progress: Callable[[int, int], None] | None = None,
) -> BandStructure:
    """Returns the bands near the Fermi level alone: for cells where all of them are too many (`levels.levels_near`).

    At each k-point the levels nearest to E_F are computed; of those, the bands that every k-point has are kept.

    Args:
        hamiltonian: H, eV, n_spin 1 or 4.
        overlap: S.
        path: the k-points.
        efermi: eV.
        count: levels at each k-point.
        progress: called with the number of k-points done and their total.

    Raises:
        ValueError: as `levels_near`; no band that is near everywhere.
    """
    found = []
    for k in path.kpoints:
        found.append(levels_near(hamiltonian, overlap, k, efermi, count))
        if progress is not None:
            progress(len(found), len(path.kpoints))
    first, last = max(one.first for one in found), min(one.first + count for one in found)
    if first >= last:
        raise ValueError(f"count: no band is among the {count} levels nearest to E_F at every k-point; give more")
    values = np.array([one.values[first - one.first : last - one.first] for one in found])
    return BandStructure(path, values, efermi, first)
