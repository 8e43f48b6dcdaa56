"""Paths through the Brillouin zone of the user's own cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from nextham.structure import Structure

__all__ = ["BandPath", "band_path", "path_through"]

_TOLERANCES = (2e-4, 1e-3, 1e-2, 3e-2, 1e-1)
"""How far lengths and angles may be off (relative) when a lattice with the wanted points is looked for."""


@dataclass(frozen=True, eq=False)
class BandPath:
    """k-points along straight lines between named corners.

    Args:
        kpoints: [q, 3], in units of the reciprocal lattice vectors of the structure's own cell.
        distance: length along the path [q], 1/Å (2π included); it stands still where the path jumps.
        labels: name of each k-point, empty except at corners [q]; G is Γ.
        lattice: what the corners were named after, such as `FCC(a=5.43)`.
    """

    kpoints: np.ndarray
    distance: np.ndarray
    labels: tuple[str, ...]
    lattice: str = ""

    def ticks(self) -> list[tuple[float, str]]:
        """Returns (distance, label) of the corners; a jump from U to K is one tick `U|K`."""
        ticks: list[tuple[float, str]] = []
        for distance, label in zip(self.distance, self.labels, strict=True):
            if label and ticks and ticks[-1][0] == distance:
                ticks[-1] = (float(distance), f"{ticks[-1][1]}|{label}")
            elif label:
                ticks.append((float(distance), label))
        return ticks

    def pieces(self) -> list[slice]:
        """Returns the stretches of k-points without a jump."""
        jumps = np.flatnonzero((np.diff(self.distance) == 0) & np.diff(self.kpoints, axis=0).any(axis=1)) + 1
        ends = [0, *jumps.tolist(), len(self.distance)]
        return [slice(a, b) for a, b in pairwise(ends)]


def band_path(
    structure: Structure, kpath: str = "auto", n_points: int = 200, tolerance: float | None = None
) -> BandPath:
    """Returns a path of about `n_points` k-points through the Brillouin zone of the structure's own cell.

    The corners are those of the cell's Bravais lattice (W. Setyawan, S. Curtarolo, Comput. Mater. Sci. 49, 299 (2010),
    as ASE has them), carried over to the reciprocal vectors of the given cell, whatever its choice of lattice vectors.
    The cell itself is never changed: a conventional or repeated cell gets the corners of *its* lattice, and its bands
    are folded. In a strained crystal the corners keep their fractional coordinates in the ideal lattice; corners that
    symmetry made equal (the six X of an fcc lattice) no longer are, and one of each kind is taken.

    Args:
        structure: cell and periodicity; atoms are not looked at.
        kpath: `auto`, the lattice's standard path; or its corners in a row, such as `GXWKGL` (Γ or G, a comma jumps);
            or corners with coordinates, `G=0,0,0 X=0.5,0,0.5 | K=0.375,0.375,0.75 G=0,0,0` (a bar jumps); or `G` alone,
            one k-point.
        n_points: k-points, spread by length; every corner is one of them.
        tolerance: relative deviation of lengths and angles up to which the cell counts as a more symmetric one. By
            default 2e-4 for `auto`, and for corners in a row the smallest of 2e-4, 1e-3, 0.01, 0.03, 0.1 with which the
            lattice has all of them, so that `GXWKGL` works on a strained crystal.

    Raises:
        ValueError: the lattice has no such corner, or a kpath that cannot be read.
    """
    if kpath in ("G", "Γ"):
        return BandPath(np.zeros((1, 3)), np.zeros(1), ("G",), "one k-point")
    if "=" in kpath:
        return path_through(structure, _corners_of_text(kpath), n_points, "given points")
    from ase.cell import Cell
    from ase.dft.kpoints import parse_path_string

    words = None if kpath == "auto" else parse_path_string(kpath.replace("Γ", "G").replace(" ", ""))
    if words is not None and (not words or min(len(part) for part in words) < 2):
        raise ValueError(f"kpath: expected auto, G, corners such as GXWKGL, or G=0,0,0 X=0.5,0,0.5, got {kpath!r}")
    ladder = (tolerance,) if tolerance is not None else _TOLERANCES[:1] if words is None else _TOLERANCES
    found: dict[str, str] = {}
    for eps in ladder:
        path = Cell(np.array(structure.cell)).bandpath(npoints=0, eps=eps, pbc=structure.pbc)
        lattice = str(Cell(np.array(structure.cell)).get_bravais_lattice(eps=eps, pbc=structure.pbc))
        parts = parse_path_string(path.path) if words is None else words
        if all(name in path.special_points for part in parts for name in part):
            corners = [[(name, path.special_points[name]) for name in part] for part in parts]
            return path_through(structure, corners, n_points, lattice)
        found.setdefault(lattice, " ".join(sorted(path.special_points)))
    has = "; ".join(f"{lattice} has {names}" for lattice, names in found.items())
    raise ValueError(f"kpath: {kpath!r} names corners that this cell's lattice does not have ({has})")


def path_through(
    structure: Structure,
    corners: Sequence[Sequence[tuple[str, Sequence[float]]]],
    n_points: int = 200,
    lattice: str = "given points",
) -> BandPath:
    """Returns straight lines through given corners.

    Args:
        structure: its cell gives the lengths.
        corners: for each stretch without a jump, two or more (label, k [3] in units of the reciprocal vectors).
        n_points: k-points in all, at least the corners; spread by length.
        lattice: where the corners come from.

    Raises:
        ValueError: fewer than two corners in a stretch, n_points below 2, or a path of no length.
    """
    if not corners or min(len(part) for part in corners) < 2 or n_points < 2:
        raise ValueError(
            f"corners, n_points: expected two or more corners in every stretch and two or more points, got {n_points}"
        )
    reciprocal = 2 * np.pi * np.linalg.inv(structure.cell).T
    points = [np.array([k for _, k in part], dtype=np.float64) for part in corners]
    lengths = [np.linalg.norm(np.diff(part @ reciprocal, axis=0), axis=1) for part in points]
    total = sum(float(part.sum()) for part in lengths)
    if not total > 0:
        raise ValueError("corners: the path has no length")
    n_corners = sum(len(part) for part in corners)
    kpoints, distance, labels, start = [], [], [], 0.0
    for names, part, steps in zip(corners, points, lengths, strict=True):
        kpoints.append(part[0])
        distance.append(start)
        labels.append(names[0][0])
        for a, b, length, (name, _) in zip(part[:-1], part[1:], steps, names[1:], strict=True):
            n_inside = round((n_points - n_corners) * length / total) if n_points > n_corners else 0
            fraction = np.arange(1, n_inside + 2) / (n_inside + 1)
            kpoints.extend(a + fraction[:, None] * (b - a))
            distance.extend(start + fraction * length)
            labels.extend([""] * n_inside + [name])
            start += length
            distance[-1] = start
    return BandPath(np.array(kpoints), np.array(distance), tuple(labels), lattice)


def _corners_of_text(text: str) -> list[list[tuple[str, list[float]]]]:
    """`G=0,0,0 X=0.5,0,0.5 | …` as stretches of (label, k)."""
    parts = []
    for stretch in text.split("|"):
        part = []
        for word in stretch.split():
            label, _, numbers = word.partition("=")
            try:
                k = [float(x) for x in numbers.split(",")]
            except ValueError:
                k = []
            if not label or len(k) != 3 or not np.isfinite(k).all():
                raise ValueError(f"kpath: expected corners such as X=0.5,0,0.5, got {word!r}")
            part.append((label.replace("Γ", "G"), k))
        parts.append(part)
    return parts
