"""Atomic densities and neutral-atom potentials, limited to the wave numbers of a plane-wave grid.

The density of an atom is ρ = `PP_RHOATOM` / 4πr², scaled so that ∫ρ = z_valence; the functional sees n = ρ + ρ_core.
The potential of its nucleus and core together with that of ρ,

    V_NA(r) = V_loc(r) + 2 [(1/r) ∫₀^r 4πs² ρ ds + ∫_r^∞ 4πs ρ ds]        (Ry, e² = 2),

ends where the pseudopotential's mesh does, so that a sum over atoms replaces Poisson's equation. Both are taken as
their Fourier integrals up to a largest wave number,

    f(r) = 1/(2π²) ∫₀^q_max q² f̃(q) sin(qr)/(qr) dq,        f̃(q) = ∫ 4πr² f(r) sin(qr)/(qr) dr,

because a plane-wave code holds no more. For most elements that changes nothing; the density of published As and Se ends
with a step at 6 Bohr, whose gradient is infinite otherwise. Derivatives of f come from the same integral.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.interpolate import CubicSpline

from nextham.h0.radial import simpson_weights
from nextham.h0.table_cache import cached_table, table_key
from nextham.io.upf import Pseudopotential

__all__ = ["AtomicFields"]

DENSITY_TAIL, POTENTIAL_TAIL = 1e-7, 1e-6
"""Density (Bohr⁻³) and potential (Ry) that count as zero far from the atom: a tenth of both changes 0.02 meV."""

MOST = 15.0
"""Bohr; where the functions end at the latest, as in ABACUS (`pseudo_rcut`)."""


@dataclass(frozen=True, eq=False)
class AtomicFields:
    """What the superposition of atoms sums up for one element, on the mesh r = 0, dr, 2 dr, ….

    Args:
        dr: spacing of the mesh, Bohr.
        values: V_NA (Ry), n (Bohr⁻³), n′/r and n″ [4, mesh].
        second_moment: ∫ r² ρ d³r, Bohr²: 4π/3Ω of it per atom is ABACUS's zero of energy.
    """

    dr: float
    values: np.ndarray
    second_moment: float

    @property
    def reach(self) -> float:
        """Where all of them end, Bohr."""
        return self.dr * (self.values.shape[1] - 1)

    @classmethod
    def of(cls, pseudo: Pseudopotential, q_max: float, dr: float = 0.02) -> AtomicFields:
        """Returns the functions of an element.

        Args:
            pseudo: its pseudopotential.
            q_max: largest wave number, 1/Bohr.
            dr: spacing of the mesh of the result, Bohr.

        Raises:
            ValueError: the pseudopotential has no electrons.
        """
        core = () if pseudo.core is None else (pseudo.core,)
        parts = (pseudo.local, pseudo.rho, *core, pseudo.valence, pseudo.dr, q_max, dr, MOST, DENSITY_TAIL)
        table = cached_table("fields", table_key((*parts, POTENTIAL_TAIL)), lambda: cls._table(pseudo, q_max, dr))
        return cls(dr, np.ascontiguousarray(table[:4]), float(table[4, 0]))

    @staticmethod
    def _table(pseudo: Pseudopotential, q_max: float, dr: float) -> np.ndarray:
        """The functions on the mesh and, in a fifth row, the second moment."""
        # An odd number of points, for Simpson's rule; ABACUS drops the last point too.
        mesh = (min(len(pseudo.local), round(MOST / pseudo.dr) + 1) + 1) // 2 * 2 - 1
        r, weights = pseudo.r[:mesh], simpson_weights(mesh, pseudo.dr)
        shell = pseudo.rho[:mesh]
        charge = float(weights @ shell)
        if not charge > 0:
            raise ValueError(f"pseudo: expected a density with electrons, got {charge:g} of them")
        shell = shell * (pseudo.valence / charge)
        core = np.zeros(mesh) if pseudo.core is None else 4 * np.pi * r**2 * pseudo.core[:mesh]
        # n_q nodes integrate products of two sines of arguments up to q_max·MOST exactly.
        nodes, of_node = np.polynomial.legendre.leggauss(int(q_max * MOST) + 40)
        q, q_weights = (nodes + 1) * q_max / 2, of_node * q_max / 2
        j0 = _j0(np.outer(q, r))
        density_q = j0 @ (weights * (shell + core))
        potential_q = j0 @ (weights * _neutral(pseudo, r, shell))
        out = dr * np.arange(int(MOST / dr) + 1)
        back = q_weights * q**2 / (2 * np.pi**2)
        x = np.outer(out, q)
        j0 = _j0(x)
        slope = -_j1_over_x(x, j0) @ (back * q**2 * density_q)
        curvature = -j0 @ (back * q**2 * density_q) - 2 * slope
        values = np.stack([j0 @ (back * potential_q), j0 @ (back * density_q), slope, curvature])
        large = (np.abs(values[0]) > POTENTIAL_TAIL) | (np.abs(values[1]) > DENSITY_TAIL)
        end = min(int(np.flatnonzero(large).max(initial=0)) + 2, len(out))
        return np.concatenate([values[:, :end], np.full((1, end), weights @ (shell * r**2))])


def _neutral(pseudo: Pseudopotential, r: np.ndarray, shell: np.ndarray) -> np.ndarray:
    """4πr² V_NA(r) of the density 4πr²ρ on the mesh."""
    inside = _integral(shell, pseudo.dr)
    outside = _integral(np.divide(shell, r, out=np.zeros_like(r), where=r > 0), pseudo.dr)
    hartree = 2 * (r * inside + r**2 * (outside[-1] - outside))
    return 4 * np.pi * (r**2 * pseudo.local[: len(r)] + hartree)


def _integral(f: np.ndarray, dr: float) -> np.ndarray:
    """∫₀^r f of a function on a uniform mesh by its cubic spline."""
    return CubicSpline(dr * np.arange(len(f)), f).antiderivative()(dr * np.arange(len(f)))


def _j0(x: np.ndarray) -> np.ndarray:
    return np.sinc(x / np.pi)


def _j1_over_x(x: np.ndarray, j0: np.ndarray) -> np.ndarray:
    """j1(x)/x = (j0(x) − cos x)/x²; below 0.02 by its series, whose next term is 1e-11."""
    small = x < 0.02
    safe = np.where(small, 1.0, x)
    return np.where(small, 1 / 3 - x**2 / 30 + x**4 / 840, (j0 - np.cos(safe)) / safe**2)
