"""Optical conductivity and the imaginary part of the dielectric function, interband, by the Kubo–Greenwood formula.

    σ_cd(E) = π e²/(ħ V) Σ_q w_q Σ_mn (f_m − f_n)/(ε_n − ε_m) P^c_mn P^d_nm δ(ε_n − ε_m − E),  E = ħω > 0
    ε₂,cd(E) = ħ σ_cd(E)/(ε₀ E)

P is ħ times the velocity. Phases are those of the vectors between atoms, and to P belong the dipoles of the orbitals
around the middle of the bond,

    P^c_mn = C_m† [∂H/∂k_c − ½(ε_m + ε_n) ∂S/∂k_c − i (ε_n − ε_m) d^c] C_n,
    d_ab(R) = ⟨φ_a,0|r|φ_b,R⟩ − ½(τ_a + τ_b + R) S_ab(R)

With the position matrix this is exact for the given H and orbitals (non-local potentials included). **Approximation**
where it is not given: H and S do not say where an orbital's charge lies, and d is left out. Dipoles between orbitals of
one atom (s–p and so on) are then neglected, and errors of P grow towards high empty levels, where coefficients are
large. Group velocities (m = n) do not need d. Intraband (Drude) transitions are left out: a metal's σ at small E is too
small. One-particle levels: no excitons, no local fields, and the gap is that of H. A small basis has too few empty
levels: `Optics.electrons` shows how far a spectrum can be trusted.

Source: D. A. Greenwood, Proc. Phys. Soc. 71, 585 (1958); for orbitals that overlap T. G. Pedersen, K. Pedersen,
T. B. Kriestensen, Phys. Rev. B 63, 201101 (2001) (matrix elements of tight-binding models).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.constants
import torch

from nextham.blocks import Blocks
from nextham.fermi import mesh_size, monkhorst_pack
from nextham.kspace import BlochMatrix, bloch_pairs, has_time_reversal, solve
from nextham_kernels.ops.eigh import Eigh
from nextham_kernels.threads import map_serial

__all__ = ["APPROXIMATION", "EXACT", "Optics", "optical_conductivity"]

APPROXIMATION = "interband; position matrix elements at bond centres, no dipoles inside atoms"
"""What pictures and files say about a spectrum without the position matrix."""

EXACT = "interband; position matrix elements of the orbitals"
"""What they say about one with it."""

_CONDUCTANCE = scipy.constants.e**2 / scipy.constants.hbar * 1e10
"""e²/ħ in S/m times Å."""

_DIELECTRIC = scipy.constants.hbar / (scipy.constants.epsilon_0 * scipy.constants.e)
"""ħ/ε₀ in eV m/S: ε₂ = that times σ / E."""

_NUMBERS = 1 << 20
"""Pairs of levels times energies that are held at a time."""

_COMPONENTS = "xyz"


@dataclass(frozen=True, eq=False)
class Optics:
    """The absorptive (Hermitian) part of the optical conductivity.

    Args:
        energies: photon energies E [m], eV.
        conductivity: σ_cd [m, c, d], S/m; complex, its imaginary part (antisymmetric, dichroism) is zero with time
            reversal.
        width: σ of the Gaussian that stands for δ, eV: exp(−x²/σ²).
        size: the mesh of k-points.
        volume: of the cell, Å³.
        method: `EXACT` or `APPROXIMATION`.
    """

    energies: np.ndarray
    conductivity: np.ndarray
    width: float
    size: tuple[int, int, int]
    volume: float
    method: str = APPROXIMATION

    def electrons(self) -> np.ndarray:
        """Returns n(E) = 2 m V/(π e²) ∫₀^E tr σ/3 dω [m] (trapezoids), the valence electrons in an exact spectrum."""
        c = scipy.constants
        mean = np.concatenate([[0.0], np.trace(self.conductivity.real, axis1=1, axis2=2) / 3])
        energy = np.concatenate([[0.0], self.energies])
        below = np.cumsum(np.diff(energy) * (mean[1:] + mean[:-1]) / 2)
        return 2 * c.m_e * self.volume * 1e-30 / (np.pi * c.e**2) * below * c.e / c.hbar

    def epsilon2(self) -> np.ndarray:
        """Returns the dielectric function's part ε₂ [m, c, d] of this σ, without unit (SI); real with time reversal."""
        return _DIELECTRIC * self.conductivity / self.energies[:, None, None]

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Writes one row per energy (eV): Re σ (S/m) and Re ε₂ of xx yy zz xy yz zx, Im σ of xy yz zx, n(E)."""
        pairs = ["xx", "yy", "zz", "xy", "yz", "zx"]
        at = [(_COMPONENTS.index(c), _COMPONENTS.index(d)) for c, d in pairs]
        epsilon = self.epsilon2()
        columns = [self.energies, *(self.conductivity[:, c, d].real for c, d in at)]
        columns += [*(epsilon[:, c, d].real for c, d in at), *(self.conductivity[:, c, d].imag for c, d in at[3:])]
        columns.append(self.electrons())
        names = ["energy_eV", *(f"sigma_{p}_S/m" for p in pairs), *(f"eps2_{p}" for p in pairs)]
        names += [*(f"im_sigma_{p}_S/m" for p in pairs[3:]), "electrons"]
        head = [
            f"# {self.method}",
            f"# gaussian width {self.width:g} eV, mesh {self.size[0]} x {self.size[1]} x {self.size[2]}",
            ",".join(names),
        ]
        rows = (",".join(f"{x:.9g}" for x in row) for row in np.stack(columns, axis=1))
        Path(path).write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")


def optical_conductivity(
    hamiltonian: Blocks,
    overlap: Blocks,
    efermi: float,
    energies: np.ndarray,
    size: tuple[int, int, int] | None = None,
    width: float = 0.1,
    smearing: float = 0.05,
    progress: Callable[[int, int], None] | None = None,
    threshold: float | None = None,
    position: Sequence[Blocks] | None = None,
) -> Optics:
    """Returns σ on a Γ-centred mesh, halved by time reversal where H has it; formulas are on the module's page.

    Args:
        hamiltonian: H, eV.
        overlap: S.
        efermi: Fermi level, eV, on the scale of H.
        energies: photon energies, positive [m], eV.
        size: the mesh; by default `mesh_size` with 0.15/Å.
        width: σ of δ(x) = exp(−x²/σ²)/(σ√π), eV.
        smearing: of the occupations f = ½ erfc((ε − E_F)/smearing), eV.
        progress: called with the number of k-points done and their total.
        threshold: canonical orthogonalisation, see `kspace.bands_at`.
        position: matrices of x, y and z, Å (`nextham.h0.position_matrix`, `nextham.io.position_file.read_position`);
            None: the approximation.

    Raises:
        ValueError: energies, a width or a smearing that are not positive; position matrices of other atoms or another
            basis; and as `kspace.bands_at`.
    """
    energies = np.asarray(energies, dtype=np.float64)
    if energies.ndim != 1 or not len(energies) or not (energies > 0).all() or not np.isfinite(energies).all():
        raise ValueError("energies: expected one or more positive photon energies in eV")
    if not width > 0 or not smearing > 0:
        raise ValueError(f"width, smearing: expected positive energies, got {width:g} and {smearing:g}")
    structure, reversal = hamiltonian.graph.structure, has_time_reversal(hamiltonian)
    size = mesh_size(structure, 0.15) if size is None else size
    kpoints, weights = monkhorst_pack(size, reversal)
    pairs, done = bloch_pairs(hamiltonian, overlap, interatomic=True), 0
    dipoles = [] if position is None else _dipoles(hamiltonian, overlap, position)
    photons = torch.from_numpy(energies)
    tensor = torch.zeros(9, len(energies), dtype=torch.complex128)
    for h, s in pairs:
        for group, found in solve(h, s, kpoints, vectors=True, threshold=threshold, matrices=15):
            slope = [m.derivative(group) for m in (h, s)]
            dipole = torch.stack([d.at(group) for d in dipoles], dim=1) if dipoles else None
            shares = weights[done % len(kpoints) :][: len(group)]

            def of_point(
                q: int, found: Eigh = found, slope: list[torch.Tensor] = slope, dipole: torch.Tensor | None = dipole
            ) -> torch.Tensor:
                one = (found.values[q], found.vectors[q], slope[0][q], slope[1][q])
                return _transitions(*one, None if dipole is None else dipole[q], efermi, photons, width, smearing)

            for share, part in zip(shares, map_serial(of_point, range(len(group))), strict=True):
                tensor += share * part
            done += len(group)
            if progress is not None:
                progress(done, len(pairs) * len(kpoints))
    volume = abs(np.linalg.det(structure.cell))
    electrons = 2 if hamiltonian.n_spin == 1 else 1
    tensor = electrons * np.pi * _CONDUCTANCE / volume * tensor.T.reshape(-1, 3, 3).numpy()
    # The levels at −k give the complex conjugate.
    tensor = tensor.real.astype(np.complex128) if reversal else tensor
    method = APPROXIMATION if position is None else EXACT
    return Optics(energies, tensor, float(width), tuple(int(n) for n in size), float(volume), method)


def _dipoles(hamiltonian: Blocks, overlap: Blocks, position: Sequence[Blocks]) -> list[BlochMatrix]:
    """The dipoles d of x, y and z."""
    overlap = overlap.spinless()
    result = []
    for c, matrix in enumerate(position):
        graph = matrix.graph
        same = np.array_equal(graph.structure.numbers, hamiltonian.graph.structure.numbers)
        if len(position) != 3 or matrix.n_spin != 1 or not same or matrix.basis != hamiltonian.basis:
            raise ValueError(
                "position: expected three matrices with n_spin 1 of the atoms and basis of the Hamiltonian"
            )
        middle = graph.structure.positions[graph.src, c] + graph.vector()[:, c] / 2
        around = matrix.data - np.repeat(middle, matrix.sizes) * overlap.on(graph).data
        result.append(BlochMatrix(matrix.like(around), 2 if hamiltonian.n_spin == 4 else 1, interatomic=True))
    return result


def _transitions(
    values: torch.Tensor,
    vectors: torch.Tensor,
    slope_h: torch.Tensor,
    slope_s: torch.Tensor,
    dipole: torch.Tensor | None,
    efermi: float,
    photons: torch.Tensor,
    width: float,
    smearing: float,
) -> torch.Tensor:
    """Σ_mn (f_m − f_n)/(ε_n − ε_m) P^c_mn P^d_nm δ(ε_n − ε_m − E) of one k-point, [(c, d), m]."""
    exist = torch.isfinite(values)
    values, vectors = values[exist], vectors[:, exist]
    filled = 0.5 * torch.special.erfc((values - efermi) / smearing)
    # Only levels from which, or to which, there is something to go.
    origin, aim = (filled > 1e-12).nonzero()[:, 0], (filled < 1 - 1e-12).nonzero()[:, 0]
    left, right = vectors[:, origin], vectors[:, aim]
    low, high = values[origin][:, None], values[aim][None, :]
    p = left.mH @ slope_h @ right - 0.5 * (low + high) * (left.mH @ slope_s @ right)
    if dipole is not None:
        p = p - 1j * (high - low) * (left.mH @ dipole @ right)
    gap, occupied = high - low, filled[origin][:, None] - filled[aim][None, :]
    m, n = ((gap > 1e-6) & (gap < photons.max() + 6 * width) & (occupied > 1e-12)).nonzero().T
    p, gap, occupied = p[:, m, n], gap[m, n], occupied[m, n]
    strength = (occupied / gap * p[:, None] * p[None].conj()).flatten(0, 1)
    result, step = strength.new_zeros(9, len(photons)), max(1, _NUMBERS // len(photons))
    for first in range(0, len(gap), step):
        part = slice(first, first + step)
        lines = torch.exp(-(((gap[part, None] - photons) / width) ** 2)) / (width * torch.pi**0.5)
        # A product of real matrices: half the work of a complex one.
        both = torch.view_as_real(strength[:, part]).movedim(-1, 0) @ lines
        result += torch.complex(both[0], both[1])
    return result
