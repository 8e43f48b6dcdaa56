"""How fine a grid an element needs.

The sum over a grid takes the Fourier components of φ_a V φ_b at the grid's reciprocal vectors, from 2√E on for a
grid of the energy E, for part of the matrix elements: an error that changes when the atom moves through the grid
(egg-box error). For the on-site elements of one atom it is at most about

    8 max_q≥2√E |∫ r² R_a R_b V j_L(qr) dr|,

V being the atom's own potential (measured: the largest error of a crystal is five times less or more, where this is
above 1 meV). A plane-wave code makes the gradient's part of v_xc by Fourier transforms, whose components end at √E, and
has no such error from it; for densities with semicore states and no core, Na and Mg, the bound is 8 meV on that code's
grid.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from scipy.special import spherical_jn

from nextham.h0.density import AtomicFields
from nextham.h0.radial import simpson_weights
from nextham.h0.table_cache import cached_table, table_key
from nextham.h0.xc import xc_at
from nextham.io.orb import OrbFile
from nextham.units import RYDBERG

__all__ = ["grid_cutoff"]

_FACTORS = (0.5, 1.0, 1.5, 2.25, 4.0)

COARSE, FINE = 5e-6, 5e-3
"""eV: what the bounds may be: of the whole error on half the usual energy, of the gradient's part from that one on."""

_BACKGROUND = 2e-3
"""Density that the other atoms of a crystal leave around one, Bohr⁻³: in its vacuum v_xc is rough where no φ is."""


def grid_cutoff(orbitals: OrbFile, fields: AtomicFields, functional: str) -> float:
    """Returns the energy of the grid that an element needs, Ry.

    Four times the cutoff of its orbitals, as in a plane-wave code; half of that where the error stays below 0.005 meV,
    more where the gradient's part of v_xc is off by more than 5 meV (see the module's page).

    Args:
        orbitals: its orbitals.
        fields: its density and potential.
        functional: of `nextham.h0.xc`.
    """
    energy = 4 * orbitals.energy_cutoff
    parts = (orbitals.radial, orbitals.dr, orbitals.shells, energy, fields.values, fields.dr, functional, _FACTORS)
    whole, gradient = cached_table("grid-error", table_key(parts), lambda: _errors(orbitals, fields, functional))
    for factor, w, g in zip(_FACTORS, whole, gradient, strict=True):
        if (factor < 1 and w < COARSE) or (factor >= 1 and g < FINE):
            return factor * energy
    return _FACTORS[-1] * energy


def _errors(orbitals: OrbFile, fields: AtomicFields, functional: str) -> np.ndarray:
    """Bounds for the whole potential and for the gradient's part of v_xc on grids of all factors [2, factor], eV."""
    r = orbitals.r
    inside = np.minimum(r, fields.reach)
    mesh = fields.dr * np.arange(fields.values.shape[1])
    v, n, slope, curvature = CubicSpline(mesh, fields.values.T)(inside).T
    gradient = slope * r
    local = np.stack([np.maximum(n, 0) + _BACKGROUND, 0 * r, 0 * r, 0 * r], axis=1)
    whole = local + np.stack([0 * r, gradient**2, curvature + 2 * slope, gradient**2 * curvature], axis=1)
    xc = [xc_at(torch.from_numpy(x), functional).numpy() for x in (whole, local)]
    potentials = np.stack([v + xc[0], xc[0] - xc[1]])
    weighted = potentials * simpson_weights(len(r), orbitals.dr) * r**2
    result = np.zeros((2, len(_FACTORS)))
    l = np.array(orbitals.shells)
    for e, factor in enumerate(_FACTORS):
        q = 2 * np.sqrt(4 * orbitals.energy_cutoff * factor) * np.linspace(1, 1.3, 7)
        for degree in range(2 * int(l.max()) + 1):
            a, b = np.nonzero(
                (abs(l[:, None] - l) <= degree) & (degree <= l[:, None] + l) & ((l[:, None] + l - degree) % 2 == 0)
            )
            products = orbitals.radial[a] * orbitals.radial[b]  # [pair, r]
            kernel = spherical_jn(degree, np.outer(r, q))
            for part in range(2):
                found = np.abs(products @ (weighted[part][:, None] * kernel)).max(initial=0.0)
                result[part, e] = max(result[part, e], found)
    return 8 * RYDBERG * result
