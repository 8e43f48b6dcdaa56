"""Radial functions on a uniform mesh, and their spherical Bessel transforms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import spherical_jn

from nextham.io.orb import OrbFile
from nextham.io.upf import Pseudopotential

__all__ = ["Radial", "simpson_weights"]


@dataclass(frozen=True, eq=False)
class Radial:
    """Functions f(r) Y_lm around one atom, several radial functions f at once.

    Args:
        l: degree of each function [n].
        r_f: r·f on the mesh r = 0, dr, 2 dr, … [n, mesh], in powers of Bohr; f vanishes beyond the mesh.
        dr: spacing of the mesh, Bohr.
    """

    l: tuple[int, ...]
    r_f: np.ndarray
    dr: float

    @classmethod
    def of_orbitals(cls, orbitals: OrbFile) -> Radial:
        """Returns the orbitals of an element."""
        return cls(orbitals.shells, orbitals.r * orbitals.radial, orbitals.dr)

    @classmethod
    def of_projectors(cls, pseudo: Pseudopotential) -> Radial:
        """Returns the projectors of a pseudopotential, on the part of the mesh where one of them is not zero."""
        end = int(np.flatnonzero(pseudo.r_beta.any(axis=0)).max(initial=0)) + 2
        return cls(pseudo.l, pseudo.r_beta[:, :end], pseudo.dr)

    @property
    def cutoff(self) -> float:
        """Where the functions end, Bohr."""
        return self.dr * (self.r_f.shape[1] - 1)

    @property
    def components(self) -> int:
        """Number of functions with their m, Σ (2l + 1)."""
        return sum(2 * l + 1 for l in self.l)

    def components_of(self, l: int) -> np.ndarray:
        """Returns the places of all components of degree l, function after function, int64."""
        ends = np.cumsum([2 * x + 1 for x in self.l])
        return np.concatenate([np.arange(end - 2 * l - 1, end) for x, end in zip(self.l, ends, strict=True) if x == l])

    def transform(self, q: np.ndarray) -> np.ndarray:
        """Returns f̃(q) = ∫ r² f(r) j_l(qr) dr by Simpson's rule.

        The error at 0.01 Bohr is below 1e-9 for functions that vanish smoothly where the mesh ends.

        Args:
            q: wave numbers [n_q], 1/Bohr.

        Returns:
            [n, n_q].
        """
        r = self.dr * np.arange(self.r_f.shape[1])
        weights = r * simpson_weights(len(r), self.dr)
        result = np.empty((len(self.l), len(q)))
        for l in set(self.l):
            kernel = spherical_jn(l, np.outer(r, q)) * weights[:, None]
            which = [i for i, x in enumerate(self.l) if x == l]
            result[which] = self.r_f[which] @ kernel
        return result


def simpson_weights(n: int, step: float) -> np.ndarray:
    """Returns the weights of Simpson's rule on n points; with an even n, the function is zero at one more."""
    weights = np.full(n, 2.0)
    weights[1::2] = 4.0
    weights[0] = 1.0
    if n % 2:
        weights[-1] = 1.0
    return weights * (step / 3)
