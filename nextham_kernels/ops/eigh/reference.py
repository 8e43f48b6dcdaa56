"""Generalized Hermitian eigenproblems: the definition."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch

SMALLEST_RCOND = {torch.float32: 1e-6, torch.float64: 1e-13}
"""Below this reciprocal condition number of S rounding alone moves levels by meV and more (single precision: by eV)."""


class NotPositiveDefinite(ValueError):
    """S is indefinite or singular to working precision.

    Args:
        structure: its number in the list.
        k: number of the k-point.
        smallest: λ_min(S).
    """

    def __init__(self, structure: int, k: int, smallest: float) -> None:
        self.structure, self.k, self.smallest = structure, k, smallest
        super().__init__(
            f"s: structure {structure}, k-point {k} has the eigenvalue {smallest:.3g}, too small for an eigenproblem "
            "(S must be positive definite); a threshold drops such combinations of orbitals"
        )


class Found(NamedTuple):
    """Levels [q, s], vectors [q, a, s] or None, number of levels [q], condition number of S [q]."""

    values: torch.Tensor
    vectors: torch.Tensor | None
    kept: torch.Tensor
    condition: torch.Tensor


Problem = tuple[torch.Tensor, torch.Tensor | None]
Window = tuple[int, int] | None
Condition = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Hermitian = Callable[[torch.Tensor, bool], tuple[torch.Tensor, torch.Tensor | None]]


def condition_of(s: torch.Tensor, lower: torch.Tensor) -> torch.Tensor:
    """Condition numbers [q] of S = L L† in the 1-norm."""
    return torch.linalg.norm(s, ord=1, dim=(1, 2)) * torch.linalg.norm(torch.cholesky_inverse(lower), ord=1, dim=(1, 2))


def hermitian(h: torch.Tensor, vectors: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Levels [q, s] and vectors [q, a, s] of Hermitian matrices [q, N, N]."""
    return torch.linalg.eigh(h) if vectors else (torch.linalg.eigvalsh(h), None)


def solve(problems: list[Problem], vectors: bool, window: Window, threshold: float | None) -> list[Found]:
    """Solves each problem [q, N, N]; `window` cuts the levels."""
    return [batch(i, 0, h, s, vectors, window, threshold, condition_of) for i, (h, s) in enumerate(problems)]


def batch(
    structure: int,
    k: int,
    h: torch.Tensor,
    s: torch.Tensor | None,
    vectors: bool,
    window: Window,
    threshold: float | None,
    condition_of: Condition,
    hermitian: Hermitian = hermitian,
) -> Found:
    """Solves k-points k, k + 1, … of a structure."""
    n, real = h.shape[-1], h.real.dtype
    levels = slice(*(window or (0, n)))
    if s is not None and threshold is not None:
        return _canonical(h, s, vectors, levels, threshold, hermitian)
    kept, condition = torch.full((len(h),), n, device=h.device), torch.ones(len(h), dtype=real, device=h.device)
    if s is not None:
        lower, failed = torch.linalg.cholesky_ex(s)
        if n and not failed.any():
            condition = condition_of(s, lower)
        unsound = (failed > 0) | ~(condition * SMALLEST_RCOND[real] < 1)
        if unsound.any():
            bad = int(unsound.int().argmax())
            raise NotPositiveDefinite(structure, k + bad, float(torch.linalg.eigvalsh(s[bad])[0]))
        half = torch.linalg.solve_triangular(lower, h, upper=False)
        h = torch.linalg.solve_triangular(lower, half.mH, upper=False)
    values, z = hermitian(h, vectors)
    if z is None:
        return Found(values[:, levels], None, kept, condition)
    z = z[:, :, levels]
    c = z if s is None else torch.linalg.solve_triangular(lower.mH, z, upper=True)
    return Found(values[:, levels], c, kept, condition)


def _canonical(
    h: torch.Tensor, s: torch.Tensor, vectors: bool, levels: slice, threshold: float, hermitian: Hermitian
) -> Found:
    """Solves in the space of the eigenvectors of S above the threshold, one k-point after the other."""
    q, n = h.shape[:2]
    values = torch.full((q, n), math.inf, dtype=h.real.dtype, device=h.device)
    c = torch.zeros_like(h) if vectors else None
    sigma, v = hermitian(s, True)
    above = sigma > threshold
    kept, largest = above.sum(1), sigma[:, -1:].amax(1) if n else sigma.sum(1)
    condition = torch.ones(q, dtype=h.real.dtype, device=h.device)
    for i, m in enumerate(kept.tolist()):
        if m == 0:
            continue
        x = v[i, :, n - m :] / sigma[i, n - m :].sqrt()
        condition[i] = largest[i] / sigma[i, n - m]
        values[i, :m], z = torch.linalg.eigh(x.mH @ h[i] @ x)
        if c is not None:
            c[i, :, :m] = x @ z
    return Found(values[:, levels], None if c is None else c[:, :, levels], kept, condition)
