"""Densities of states, whole and by Mulliken's weights on elements, shells or atoms."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.special
import torch

from nextham.blocks import Blocks
from nextham.fermi import mesh_size, reduced_mesh
from nextham.kspace import BlochMatrix, bloch_pairs, has_time_reversal, solve
from nextham.tetrahedra import states_in_bins, tetrahedra
from nextham.units import SYMBOLS

__all__ = ["GROUPINGS", "METHODS", "DensityOfStates", "density_of_states", "orbital_groups"]

METHODS = ("tetrahedron", "gaussian")
GROUPINGS = ("element", "shell", "atom")

_LETTERS = "spdfghi"
_LEVELS = 1 << 14
"""Levels whose smeared steps are held at a time."""


@dataclass(frozen=True, eq=False)
class DensityOfStates:
    """Densities of states per cell, averaged over the bins of a grid of energies.

    Args:
        energies: middle of each bin [m], eV, on the scale of H.
        total: [spin, m], electrons per eV: a level of n_spin 1 counts twice. Spin 2 is up and down of collinear spin.
        projected: name → [spin, m]; their sum is the total.
        below: electrons that the levels below the first bin hold [spin].
        efermi: Fermi level, eV; None where it is not known.
        method: how it was made.
    """

    energies: np.ndarray
    total: np.ndarray
    projected: dict[str, np.ndarray]
    below: np.ndarray
    efermi: float | None = None
    method: str = METHODS[0]

    @property
    def step(self) -> float:
        """Width of a bin, eV."""
        return float(self.energies[1] - self.energies[0])

    def integrated(self) -> np.ndarray:
        """Returns the electrons that all levels below the upper end of each bin hold [spin, m]."""
        return self.below[:, None] + np.cumsum(self.total, axis=1) * self.step

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes one row per bin: energy (eV), total, integrated, then every part; spin down in columns of its own.

        Three comment lines hold the method, the Fermi level and the units.
        """
        spins = [""] if len(self.total) == 1 else ["_up", "_down"]
        columns, names = [self.energies], ["energy_eV"]
        for name, values in {"total": self.total, "integrated": self.integrated(), **self.projected}.items():
            columns += list(values)
            names += [name.replace(" ", "_") + spin for spin in spins]
        head = [
            f"# method: {self.method}",
            f"# efermi_eV: {'' if self.efermi is None else f'{self.efermi:.9f}'}",
            "# densities in electrons per eV and cell, energies on the scale of H",
            ",".join(names),
        ]
        rows = (",".join(f"{x:.9g}" for x in row) for row in np.stack(columns, axis=1))
        Path(path).write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")


def density_of_states(
    hamiltonian: Blocks,
    overlap: Blocks,
    window: tuple[float, float] | None = None,
    step: float = 0.02,
    size: tuple[int, int, int] | None = None,
    method: str = "tetrahedron",
    width: float = 0.1,
    by: str | None = "shell",
    efermi: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    threshold: float | None = None,
) -> DensityOfStates:
    """Returns the density of states on a Γ-centred mesh, halved by time reversal where H has it.

    g(E) = Σ_s ∫ dk δ(E − ε_s(k)), projected with the Mulliken weight Σ_{a in group} Re(C*_as (SC)_as), whose sum over
    all groups is 1. Each bin holds its exact number of states, so that the sum over all bins is the number of levels,
    whatever the step: of levels that are linear between k-points (tetrahedron), or with steps ½ erfc((ε − E)/σ)
    (gaussian). Mulliken weights depend on the basis, and may be slightly negative with diffuse orbitals.

    Args:
        hamiltonian: H, eV.
        overlap: S.
        window: lowest and highest energy, eV, on the scale of H; by default that of all levels.
        step: width of the bins, eV.
        size: the mesh; by default `mesh_size` with 0.15/Å.
        method: `tetrahedron` or `gaussian`.
        width: σ of gaussian, eV: exp(−(E − ε)²/σ²), as everywhere in this package.
        by: `element`, `shell` (element and l), `atom`, or None for the total alone.
        efermi: kept in the result, eV.
        progress: called with the number of k-points done and their total.
        threshold: canonical orthogonalisation, see `kspace.bands_at`.

    Raises:
        ValueError: an unknown method or grouping, a step or width that is not positive, an empty window; and as
            `kspace.bands_at`.
    """
    if method not in METHODS or (by is not None and by not in GROUPINGS):
        raise ValueError(f"method, by: expected {' or '.join(METHODS)}, {', '.join(GROUPINGS)} or None")
    if not step > 0 or not width > 0:
        raise ValueError(f"step, width: expected positive energies, got {step:g} and {width:g}")
    if window is not None and not window[0] < window[1]:
        raise ValueError(f"window: expected two ascending energies, got {window[0]:g} and {window[1]:g}")
    structure = hamiltonian.graph.structure
    size = mesh_size(structure, 0.15) if size is None else size
    kpoints, which = reduced_mesh(size, has_time_reversal(hamiltonian))
    names, member = orbital_groups(hamiltonian, by)
    pairs, channels, done = bloch_pairs(hamiltonian, overlap), [], 0
    for h, s in pairs:
        levels, parts = [], []
        for k, found in solve(h, s, kpoints, vectors=True, threshold=threshold, matrices=4):
            levels.append(found.values.numpy())
            parts.append(_mulliken(s, k, found.vectors, member))
            done += len(k)
            if progress is not None:
                progress(done, len(pairs) * len(kpoints))
        channels.append((np.concatenate(levels), np.concatenate(parts)))
    if window is None:
        levels = np.concatenate([c[0][np.isfinite(c[0])] for c in channels])
        margin = step if method == "tetrahedron" else 6 * width
        window = (float(levels.min()) - margin, float(levels.max()) + margin)
    edges = window[0] + step * np.arange(max(2, int(np.ceil((window[1] - window[0]) / step - 1e-9)) + 1))
    edges_and_all = np.concatenate([[-1e9], edges])
    electrons, densities = 2 if hamiltonian.n_spin == 1 else 1, []
    for values, weights in channels:
        # A level that canonical orthogonalisation took away has no weight; it may lie anywhere above.
        values = np.where(np.isfinite(values), values, 1e6)
        if method == "tetrahedron":
            flat = which.reshape(-1)
            counted = states_in_bins(values[flat], weights[flat], tetrahedra(size, structure.cell), edges_and_all)
        else:
            share = np.bincount(which.reshape(-1)) / which.size
            counted = _smeared(values, weights * share[:, None, None], edges_and_all, width)
        densities.append(electrons * counted)
    result = np.stack(densities, axis=1)  # [group, spin, bin]
    below, bins = result[:, :, 0].sum(0), result[:, :, 1:] / step
    projected = dict(zip(names, bins, strict=True)) if by is not None else {}
    described = method if method == "tetrahedron" else f"gaussian, width {width:g} eV"
    described += f", mesh {size[0]} x {size[1]} x {size[2]}"
    return DensityOfStates((edges[1:] + edges[:-1]) / 2, bins.sum(0), projected, below, efermi, described)


def orbital_groups(matrix: Blocks, by: str | None) -> tuple[list[str], np.ndarray]:
    """Returns the names of the groups of orbitals and the group of each orbital, without spin.

    Args:
        matrix: its structure and basis.
        by: `element`, `shell` (such as `Si p`), `atom` (such as `Si 1`, counted from 1), or None: one group.
    """
    labels, numbers = [], matrix.graph.structure.numbers
    for atom, z in enumerate(numbers):
        name, shells = SYMBOLS[z], matrix.basis[int(z)]
        for l in shells:
            label = {"element": name, "shell": f"{name} {_LETTERS[l]}", "atom": f"{name} {atom + 1}"}.get(by, "")
            labels += [label] * (2 * l + 1)
    names = list(dict.fromkeys(labels))
    place = {name: i for i, name in enumerate(names)}
    return names, np.array([place[label] for label in labels])


def _mulliken(s: BlochMatrix, kpoints: np.ndarray, vectors: torch.Tensor, member: np.ndarray) -> np.ndarray:
    """Weights of the groups in each level [q, s, g]."""
    share = (vectors.conj() * (s.at(kpoints) @ vectors)).real  # [q, a, s]
    group = torch.from_numpy(np.repeat(member, s.size // len(member)))
    found = share.new_zeros(len(share), int(member.max()) + 1, share.shape[2]).index_add(1, group, share)
    return found.transpose(1, 2).numpy()


def _smeared(levels: np.ndarray, weights: np.ndarray, edges: np.ndarray, width: float) -> np.ndarray:
    """Number of states between consecutive energies [g, m − 1] with steps ½ erfc((ε − E)/σ)."""
    found = np.zeros((weights.shape[2], len(edges) - 1))
    flat, columns = levels.reshape(-1), weights.reshape(-1, weights.shape[2])
    group = max(1, (_LEVELS * 64) // len(edges))
    for first in range(0, len(flat), group):
        part = slice(first, first + group)
        steps = 0.5 * scipy.special.erfc((flat[part, None] - edges) / width)
        found += columns[part].T @ np.diff(steps, axis=1)
    return found
