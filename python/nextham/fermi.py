"""The Fermi level from an electron count: meshes of k-points and the filling of levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import scipy.optimize
import scipy.special

from nextham.blocks import Blocks
from nextham.kspace import bands_at, has_time_reversal
from nextham.structure import Structure

__all__ = [
    "FermiLevel",
    "fermi_level",
    "fermi_level_of",
    "mesh_size",
    "monkhorst_pack",
    "reduced_mesh",
    "smeared_level",
]


@dataclass(frozen=True)
class FermiLevel:
    """Where the filled levels end.

    Args:
        energy: the middle of the gap, or the level of Gaussian smearing in a metal, eV.
        valence_top: highest filled level of an insulator on the mesh, eV; None in a metal.
        conduction_bottom: its lowest empty level, eV; None in a metal.
        width: smearing σ, eV; a smaller gap counts as none.
        n_electrons: per cell.
    """

    energy: float
    valence_top: float | None
    conduction_bottom: float | None
    width: float
    n_electrons: float

    @property
    def gap(self) -> float:
        """The gap between any two k-points of the mesh, eV; 0 in a metal."""
        if self.valence_top is None or self.conduction_bottom is None:
            return 0.0
        return self.conduction_bottom - self.valence_top

    @property
    def is_metal(self) -> bool:
        """Whether no gap larger than the width was found."""
        return self.valence_top is None

    def to_dict(self) -> dict[str, float | None]:
        """Returns all numbers for JSON."""
        return {**asdict(self), "gap": self.gap}


def mesh_size(structure: Structure, spacing: float = 0.25) -> tuple[int, int, int]:
    """Returns the smallest mesh whose points lie at most `spacing` (1/Å, 2π included) apart; 1 without periodicity.

    Raises:
        ValueError: the spacing is not positive.
    """
    if not spacing > 0:
        raise ValueError(f"spacing: expected a positive distance in 1/Å, got {spacing}")
    lengths = 2 * np.pi * np.linalg.norm(np.linalg.inv(structure.cell), axis=0)
    counts = np.where(structure.pbc, np.maximum(1, np.ceil(lengths / spacing - 1e-9)), 1)
    return tuple(int(n) for n in counts)


def monkhorst_pack(size: tuple[int, int, int], time_reversal: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Returns a Γ-centred mesh k = (i₁/n₁, i₂/n₂, i₃/n₃) [q, 3] and its weights [q], whose sum is 1.

    Args:
        size: points along each reciprocal lattice vector.
        time_reversal: keep one of k and −k, with both weights; valid where ε(−k) = ε(k) (`has_time_reversal`).

    Raises:
        ValueError: a size below 1.
    """
    points, which = reduced_mesh(size, time_reversal)
    weights = np.bincount(which.reshape(-1)) / which.size
    return points, weights


def reduced_mesh(size: tuple[int, int, int], time_reversal: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points of `monkhorst_pack` [q, 3] and which of them stands for each point of the mesh [n₁, n₂, n₃].

    Raises:
        ValueError: a size below 1.
    """
    if len(size) != 3 or min(size) < 1:
        raise ValueError(f"size: expected three counts of at least 1, got {tuple(size)}")
    points = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), axis=-1).reshape(-1, 3)
    place = np.arange(len(points))
    if time_reversal:
        place = np.minimum(place, np.ravel_multi_index((-points % size).T, size))
    kept, which = np.unique(place, return_inverse=True)
    return points[kept] / np.array(size), which.reshape(size)


def fermi_level(
    eigenvalues: np.ndarray, weights: np.ndarray, n_electrons: float, degeneracy: int, width: float = 0.05
) -> FermiLevel:
    """Returns the level up to which n electrons fill the bands on a mesh.

    If the same bands are filled at every k-point and the gap is larger than the width: the middle of the gap. Otherwise
    the level of Gaussian smearing (`smeared_level`).

    Args:
        eigenvalues: [q, s], or [2, q, s] for collinear spin, eV.
        weights: of the k-points [q]; their sum is taken as 1.
        n_electrons: valence electrons per cell.
        degeneracy: electrons per level: 2 for n_spin 1, otherwise 1.
        width: σ of the smearing, eV.

    Raises:
        ValueError: shapes, a width or weight that is not positive, or more electrons than the bands hold.
    """
    levels, filled = _checked(eigenvalues, weights, n_electrons, degeneracy, width)
    order = np.argsort(levels, axis=None, kind="stable")
    flat = levels.reshape(-1)[order]
    last = int(np.searchsorted(np.cumsum(filled.reshape(-1)[order]), n_electrons - 1e-6))
    top, bottom = float(flat[last]), float(flat[min(last + 1, len(flat) - 1)])
    counts = (levels < (top + bottom) / 2).sum(axis=2)  # [spin, q]
    same_everywhere = (counts == counts[:, :1]).all() and abs(degeneracy * counts[:, 0].sum() - n_electrons) < 1e-6
    if same_everywhere and bottom - top > width:
        return FermiLevel((top + bottom) / 2, top, bottom, width, float(n_electrons))
    energy = smeared_level(eigenvalues, weights, n_electrons, degeneracy, width)
    return FermiLevel(energy, None, None, width, float(n_electrons))


def smeared_level(
    eigenvalues: np.ndarray, weights: np.ndarray, n_electrons: float, degeneracy: int, width: float
) -> float:
    """Returns E_F of n = g Σ_q w_q Σ_s ½ erfc((ε_qs − E_F)/σ), eV, gap or no gap: what ABACUS prints as E_Fermi.

    Args:
        eigenvalues: [q, s], or [2, q, s] for collinear spin, eV.
        weights: of the k-points [q]; their sum is taken as 1.
        n_electrons: valence electrons per cell.
        degeneracy: electrons per level: 2 for n_spin 1, otherwise 1.
        width: σ, eV.

    Raises:
        ValueError: as `fermi_level`.
    """
    levels, filled = _checked(eigenvalues, weights, n_electrons, degeneracy, width)

    def surplus(energy: float) -> float:
        return float((filled * scipy.special.erfc((levels - energy) / width)).sum()) / 2 - n_electrons

    return float(scipy.optimize.brentq(surplus, levels.min() - 10 * width, levels.max() + 10 * width, xtol=1e-10))


def _checked(
    eigenvalues: np.ndarray, weights: np.ndarray, n_electrons: float, degeneracy: int, width: float
) -> tuple[np.ndarray, np.ndarray]:
    """Levels [spin, q, s] and how many electrons each holds, likewise."""
    levels = np.asarray(eigenvalues, dtype=np.float64)
    weights = np.asarray(weights, dtype=np.float64)
    if levels.ndim not in (2, 3) or weights.shape != (levels.shape[-2],):
        raise ValueError(
            f"eigenvalues, weights: expected [q, s] or [2, q, s] and [q], got {levels.shape}, {weights.shape}"
        )
    if not width > 0 or not (weights > 0).all():
        raise ValueError("width, weights: expected positive numbers")
    levels = levels.reshape(-1, *levels.shape[-2:])
    capacity = degeneracy * levels.shape[0] * levels.shape[2]
    if not 0 < n_electrons < capacity:
        raise ValueError(f"n_electrons: expected between 0 and the {capacity} that all bands hold, got {n_electrons}")
    return levels, np.broadcast_to(degeneracy * (weights / weights.sum())[None, :, None], levels.shape)


def fermi_level_of(
    hamiltonian: Blocks,
    overlap: Blocks,
    n_electrons: float,
    size: tuple[int, int, int] | None = None,
    width: float = 0.05,
    progress: Callable[[int, int], None] | None = None,
    threshold: float | None = None,
) -> FermiLevel:
    """Returns the Fermi level of H and S on a Γ-centred mesh, halved by time reversal where H has it.

    Args:
        hamiltonian: H, eV.
        overlap: S.
        n_electrons: valence electrons per cell.
        size: the mesh; by default `mesh_size` of the structure.
        width: smearing of metals, eV (see `fermi_level`).
        progress: called with the number of k-points done and their total.
        threshold: canonical orthogonalisation, see `kspace.bands_at`.

    Raises:
        ValueError: as `bands_at` and `fermi_level`.
    """
    size = mesh_size(hamiltonian.graph.structure) if size is None else size
    kpoints, weights = monkhorst_pack(size, time_reversal=has_time_reversal(hamiltonian))
    levels = bands_at(hamiltonian, overlap, kpoints, progress, threshold=threshold)
    return fermi_level(levels, weights, n_electrons, 2 if hamiltonian.n_spin == 1 else 1, width)
