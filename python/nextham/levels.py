"""Levels of large cells, where all of them are too many: those near an energy, or around the Fermi level.

H(k) − εS(k) = P L D L† P† is factorised once (Bunch–Kaufman). By Sylvester's law of inertia D has as many negative
eigenvalues as there are levels below ε: so each level has its number among all, and counting finds the Fermi level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from nextham.blocks import Blocks
from nextham.fermi import FermiLevel
from nextham.kspace import BlochMatrix, bloch_pairs

__all__ = ["Levels", "levels_around_fermi", "levels_near"]

_START = 5.0
"""eV: where the search for a Fermi level begins; on ABACUS's scale it is some eV in most materials."""

_CLOSE = 0.02
"""eV: how well the search without spin–orbit coupling needs to know it."""

_FEWEST = 24
"""Levels that are computed while a Fermi level is looked for."""

_BLOCK = 16
"""Lanczos vectors that are made at a time."""

_CHECKS = 4
"""Blocks of the second start."""

_CONVERGED = 1e-10
"""eV: a bound of the error of a level at which Lanczos vectors are enough; its square, rather, is the error."""

_TOO_CLOSE = 1e-6
"""eV: a level so close to the energy would drown the others in rounding; then the energy is moved."""

Apply = Callable[[torch.Tensor], torch.Tensor]


class Levels(NamedTuple):
    """Neighbouring levels at one k-point."""

    values: np.ndarray
    """eV, ascending [s]."""
    first: int
    """How many levels lie below the first of them."""


def levels_near(hamiltonian: Blocks, overlap: Blocks, k: np.ndarray, energy: float, count: int) -> Levels:
    """Returns the levels at one k-point that are nearest to an energy, and their numbers among all.

    One factorisation (twice the dense matrix in memory, 4/3 n³ real multiplications and additions), with which the
    Lanczos vectors of (H − εS)⁻¹S are made. All levels take some ten times as long.

    Args:
        hamiltonian: H, eV, n_spin 1 or 4, with both directions of every edge.
        overlap: S on any graph of the same structure, with any spin; likewise.
        k: [3], in units of the reciprocal lattice vectors.
        energy: eV; beside a level (1e-6) the search begins 1e-4 above.
        count: how many levels, fewer than there are by two or more.

    Raises:
        ValueError: as `kspace.bands_at`; n_spin 2 (take the channels); a count that is too small or too large.
    """
    h, s, k = _problem(hamiltonian, overlap, k, count)
    return _near(h, s.at(k)[0], k, energy, count)


def levels_around_fermi(
    hamiltonian: Blocks, overlap: Blocks, k: np.ndarray, n_electrons: float, count: int
) -> tuple[Levels, FermiLevel]:
    """Returns neighbouring levels at one k-point around its own Fermi level, and that level.

    The n electrons fill the levels of this k-point alone, as one does for a cell so large that one k-point is enough.
    First without spin–orbit coupling, whose matrices have half the size, factorisations count the levels below some
    energies; then the whole H is factorised where the filled levels end, most often once. The levels are those nearest
    to that energy, in the gap but not always in its middle; the last filled and the first empty one are among them.

    Args:
        hamiltonian: H, eV, n_spin 1 or 4, with both directions of every edge.
        overlap: S on any graph of the same structure, with any spin; likewise.
        k: [3], in units of the reciprocal lattice vectors.
        n_electrons: valence electrons per cell.
        count: how many levels, fewer than there are by two or more.

    Raises:
        ValueError: as `levels_near`; more electrons than the levels hold.
    """
    h, s, k = _problem(hamiltonian, overlap, k, count)
    degeneracy = 2 if hamiltonian.n_spin == 1 else 1
    if not 0 < n_electrons <= degeneracy * (h.size - 1):
        most = degeneracy * (h.size - 1)
        raise ValueError(f"n_electrons: expected more than 0 and at most {most}, got {n_electrons}")
    filled, metric = n_electrons / degeneracy, s.at(k)[0]
    scalar = h if hamiltonian.n_spin == 1 else BlochMatrix(_scalar(hamiltonian))
    search = _Search(filled * scalar.size / h.size)
    while search.high - search.low > _CLOSE:
        if not search.add(_Factors(scalar.at(k)[0], metric, search.energy).below):
            search.energy = _middle(search, lambda energy: _Factors(scalar.at(k)[0], metric, energy).below)
            break
    top, bottom = math.ceil(filled - 1e-9) - 1, math.floor(filled + 1e-9)
    search, computed = _Search(filled, search.energy), max(count, _FEWEST)
    while True:
        computed = min(computed, h.size - 2)
        found = _near(h, metric, k, search.energy, computed)
        if found.first <= top and bottom < found.first + len(found.values):
            break
        below = found.first + int((found.values < search.energy).sum())
        if not search.add(below) or search.high - search.low < _CLOSE:
            if computed == h.size - 2:
                raise ValueError("n_electrons: the Fermi level lies at the end of the spectrum; compute all levels")
            computed *= 2  # at the edge of a wide gap, or many levels at one place
    fermi = _fermi(found, top, bottom, n_electrons)
    nearest = np.sort(np.argsort(np.abs(found.values - fermi.energy), kind="stable")[:count])
    return Levels(found.values[nearest], found.first + int(nearest[0])), fermi


def _fermi(found: Levels, top: int, bottom: int, n_electrons: float, width: float = 0.05) -> FermiLevel:
    """The middle between the last filled level and the first empty one; a gap below the width counts as none."""
    low, high = (float(found.values[number - found.first]) for number in (top, bottom))
    edges = (low, high) if high - low > width else (None, None)
    return FermiLevel((low + high) / 2, *edges, width, float(n_electrons))


class _Search:
    """Looks for the energy below which so many levels lie."""

    def __init__(self, wanted: float, energy: float = _START) -> None:
        self.wanted, self.energy = wanted, energy
        self.low, self.high, self.step = -math.inf, math.inf, 4.0
        self.below = [0, 0]  # of low and high

    def add(self, below: int) -> bool:
        """Takes the number of levels below `energy` and moves on; whether that was another number than the wanted."""
        if abs(below - self.wanted) < 1:
            return False
        if below < self.wanted:
            self.low, self.below[0] = self.energy, below
        else:
            self.high, self.below[1] = self.energy, below
        if math.isinf(self.low) or math.isinf(self.high):
            self.energy += self.step if below < self.wanted else -self.step
            self.step *= 2
            return True
        share = (self.wanted - self.below[0]) / max(1, self.below[1] - self.below[0])
        self.energy = self.low + min(max(share, 0.1), 0.9) * (self.high - self.low)
        return True


def _middle(search: _Search, count_below: Callable[[float], int]) -> float:
    """An energy near the middle of the gap in which the search ended; two halvings on each side look for its edges."""
    inside = [search.energy, search.energy]
    for side, edge in enumerate((search.low, search.high)):
        for _ in range(2 if math.isfinite(edge) else 0):
            probe = (inside[side] + edge) / 2
            if abs(count_below(probe) - search.wanted) < 1:
                inside[side] = probe
            else:
                edge = probe
    return sum(inside) / 2


class _Factors:
    """H − εS = P L D L† P†, in real numbers where H and S are real."""

    def __init__(self, h: torch.Tensor, s: torch.Tensor, energy: float) -> None:
        """Overwrites h [n, n]; s is without spin [n or n/2, …]."""
        spins = len(h) // len(s)
        split = h.view(len(s), spins, len(s), spins)
        for spin in range(spins):
            split[:, spin, :, spin].sub_(s, alpha=energy)
        h = h if h.imag.any() else h.real.contiguous()
        self.ld, self.pivots, info = torch.linalg.ldl_factor_ex(h, hermitian=True)
        self.singular = bool(info)
        # Bunch and Kaufman's blocks of two rows, whose pivots are negative, have one eigenvalue of each sign.
        single = self.pivots > 0
        self.below = int((self.ld.diagonal().real[single] < 0).sum() + (~single).sum() // 2)
        """Levels below ε."""

    def solve(self, x: torch.Tensor) -> torch.Tensor:
        """Returns (H − εS)⁻¹ x for x [n, s]."""
        return torch.linalg.ldl_solve(self.ld, self.pivots, x, hermitian=True)


def _near(h: BlochMatrix, s: torch.Tensor, k: np.ndarray, energy: float, count: int) -> Levels:
    """The levels nearest to an energy: ε + 1/θ for the largest |θ| of (H − εS)⁻¹S."""
    while True:
        factors = _Factors(h.at(k)[0], s, energy)
        metric = s if factors.ld.is_complex() else s.real.contiguous()

        def product(x: torch.Tensor, metric: torch.Tensor = metric) -> torch.Tensor:
            return (metric @ x.reshape(len(metric), -1)).view(x.shape)

        if not factors.singular:
            theta = _largest(factors.solve, product, h.size, count, metric.dtype)
            if theta.abs().max() < 1 / _TOO_CLOSE:
                break
        energy += 100 * _TOO_CLOSE
    values = np.sort(energy + 1 / theta.numpy())
    return Levels(values, factors.below - int((values < energy).sum()))


def _largest(solve: Apply, metric: Apply, n: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """The eigenvalues θ largest in size of solve·metric, by Lanczos vectors of `_BLOCK` columns, all kept.

    Blocks read the factors and S once for many columns. The vectors Q, orthonormal with respect to S, are some ten
    times as many as the levels: little beside the matrices. A start finds at most `_BLOCK` vectors of one level; so
    after convergence a second one, orthogonal to all before, looks for what an ideal crystal may have more.
    """
    generator = torch.Generator().manual_seed(0)

    def start() -> tuple[torch.Tensor, torch.Tensor]:
        return _orthonormal(torch.randn(n, _BLOCK, dtype=dtype, generator=generator), q, sq, metric)[:2]

    q = sq = torch.empty(n, 0, dtype=dtype)
    t, again, steps = q.new_empty(0, 0), False, 0
    x, sx = start()
    while True:
        q, sq = torch.cat([q, x], dim=1), torch.cat([sq, sx], dim=1)
        y = solve(sx)
        column, old, steps = sq.mH @ y, len(t), steps + 1
        t = torch.cat([torch.cat([t, column[:old].mH]), column], dim=1)
        theta, vectors = torch.linalg.eigh((t + t.mH) / 2)
        nearest = theta.abs().argsort(descending=True)[:count]
        x, sx, coupling = _orthonormal(y, q, sq, metric)
        residual = torch.linalg.vector_norm(coupling @ vectors[old:, nearest], dim=0)
        converged = len(nearest) == count and bool((residual < _CONVERGED * theta[nearest] ** 2).all())
        if len(t) >= n or (converged and again and steps >= _CHECKS):
            return theta[nearest]
        if not x.shape[1] or (converged and not again):
            (x, sx), again, steps = start(), True, 0


def _orthonormal(
    x: torch.Tensor, q: torch.Tensor, sq: torch.Tensor, metric: Apply
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What x has beside Q: orthonormal columns X, SX, and R of x = QC + XR; fewer columns where x depends on Q."""
    total, noise = torch.eye(x.shape[1], dtype=x.dtype), 1e-24 * float(x.norm() ** 2)
    for _ in range(3):  # once leaves rounding of the size of what was taken off
        x = x - q @ (sq.mH @ x)
        sx = metric(x)
        w, u = torch.linalg.eigh(x.mH @ sx)
        kept = w > (1e-14 * w.max()).clamp_min(noise) if len(w) else w > 0
        w, u = w[kept].sqrt(), u[:, kept]
        x, sx = x @ (u / w), sx @ (u / w)
        total = (w[:, None] * u.mH) @ total
    return x, sx, total


def _problem(
    hamiltonian: Blocks, overlap: Blocks, k: np.ndarray, count: int
) -> tuple[BlochMatrix, BlochMatrix, np.ndarray]:
    """H, S without spin and k [1, 3], checked."""
    if hamiltonian.n_spin == 2:
        raise ValueError("hamiltonian: n_spin 2 is two matrices: take channel(0) and channel(1)")
    ((h, _),) = bloch_pairs(hamiltonian, overlap)
    if not 1 <= count <= h.size - 2:
        raise ValueError(f"count: expected 1 to {h.size - 2} of {h.size} levels, got {count}")
    k = np.asarray(k, dtype=np.float64)
    if k.shape != (3,) or not np.isfinite(k).all():
        raise ValueError(f"k: expected three finite numbers, got shape {k.shape}")
    return h, BlochMatrix(overlap if overlap.n_spin == 1 else overlap.spinless()), k.reshape(1, 3)


def _scalar(hamiltonian: Blocks) -> Blocks:
    """H without spin–orbit coupling and magnetisation: the real part of (↑↑ + ↓↓)/2."""
    mean = (hamiltonian.channel(0) + hamiltonian.channel(3)) * 0.5
    return mean.like(np.ascontiguousarray(mean.data.real))
