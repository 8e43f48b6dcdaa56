"""Generalized Hermitian eigenproblems at many k-points, and of structures of different size: H C = S C E.

    S = L L†,  A = L⁻¹ H L⁻†,  A Z = Z E,  C = L⁻† Z,  so that C† S C = 1

Everything is LAPACK as torch calls it (potrf, trsm, heevd). On the CPU groups of k-points of all structures are spread
over `torch.get_num_threads()` threads, each with a serial LAPACK; only where there are fewer k-points than threads
LAPACK's own threads work instead. On CUDA all k-points of a structure are solved by one call of cuSOLVER
(`cusolver.py`). On other devices it is `torch.linalg` on the whole batch.

A window is cut out of the full set of vectors of A, because torch has no driver for a part of it; only that part is
then transformed back. For the lowest tenth of 500 levels scipy has a driver that takes 0.76 of the time, on one thread
(`python -m bench eigh --case n500-k8 --direction window --against scipy`).

S must be positive definite to working precision: an error names the k-point and λ_min otherwise. With a `threshold`
canonical orthogonalisation is done instead: S = V σ V†, X = the columns V σ^-1/2 with σ > threshold, X†HX Z = Z E and
C = XZ. So levels go missing, at each k-point another number; their places, the last, hold E = inf and C = 0. Nothing is
NaN.

Derivatives (not with a threshold), with G_E, G_C the gradients of E and C and M = C† G_C:

    dE_s = c_s† (dH − E_s dS) c_s
    ∂L/∂H = C [diag G_E + F∘M] C†,  ∂L/∂S = −C [diag(G_E E) + (F∘M) diag E + ½ M∘D] C†

D_ts = 1 inside a degenerate group and 0 elsewhere (a level is a group by itself), F_ts = (1 − D_ts)/(E_s − E_t). The
gradient of E always exists. That of C exists for what does not depend on the choice of vectors inside a degenerate
group, phases included: then M∘D is Hermitian, and otherwise a sentence says so; a window that cuts a group is the usual
reason. Of any order, with that condition on each. Source: J. R. Magnus, Econometric Theory 1, 179 (1985), for S = 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from nextham_kernels.checks import check_shapes, check_tensors
from nextham_kernels.ops.eigh import cpu, cusolver, derivative, reference
from nextham_kernels.ops.eigh.reference import NotPositiveDefinite

__all__ = ["Eigh", "NotPositiveDefinite", "eigh"]


class Eigh(NamedTuple):
    """The solution at the k-points of one structure."""

    values: torch.Tensor
    """E, ascending in s, [q, s], real."""
    vectors: torch.Tensor | None
    """C [q, a, s], C†SC = 1; None where they were not asked for."""
    first: int
    """Number of the first level of the window, counted from 0."""
    kept: torch.Tensor
    """Number of levels that exist at each k-point [q], int64: N, or less with a threshold."""
    condition: torch.Tensor
    """Condition number of S [q]: LAPACK's estimate in the 1-norm; with a threshold that of the kept part, in the
    2-norm; 1 without S."""


def eigh(
    h: torch.Tensor | Sequence[torch.Tensor],
    s: torch.Tensor | Sequence[torch.Tensor] | None = None,
    *,
    vectors: bool = True,
    window: tuple[int, int] | None = None,
    energies: tuple[float, float] | None = None,
    threshold: float | None = None,
) -> Eigh | list[Eigh]:
    """Solves H C = S C E at every k-point; the formulas are on the op's page.

    Args:
        h: H(k) [q, N, N], Hermitian (not checked), float32, float64, complex64 or complex128; or a list of such, one
            for each structure, with its own q and N.
        s: S(k) likewise; None: S = 1.
        vectors: whether C is wanted; E alone takes about half the time.
        window: levels first … last − 1 of each k-point; by default all.
        energies: lowest and highest energy: the smallest window that has, at every k-point, all levels between them.
        threshold: canonical orthogonalisation drops eigenvalues of S up to it; None: S must be positive definite.

    Returns:
        The solution, or a list of them for a list.

    Raises:
        NotPositiveDefinite: a `ValueError` with the k-point, λ_min and what can be done; also where the reciprocal
            condition number is below 1e-13 (single precision 1e-6), because rounding then moves levels by meV.
        ValueError: shapes, a window that does not fit, both windows, a threshold below 0, a number that is not finite.
        TypeError: a wrong or mixed dtype or device.
        RuntimeError: a gradient with a threshold; in the backward pass, vectors that are not determined.

    Example:
        >>> import torch
        >>> h, s = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]]), torch.tensor([[[1.0, 0.5], [0.5, 1.0]]])
        >>> eigh(h, s).values.round(decimals=4)  # ±1 / (1 ± 1/2)
        tensor([[-2.0000,  0.6667]])
    """
    single = isinstance(h, torch.Tensor)
    hs = [h] if single else list(h)
    ss: list[torch.Tensor | None] = [None] * len(hs) if s is None else [s] if single else list(s)
    if len(ss) != len(hs) or (single and s is not None and not isinstance(s, torch.Tensor)):
        raise ValueError(f"s: expected one for each of {len(hs)} structures, as h")
    _check(hs, ss, window, energies, threshold)
    problems = list(zip(hs, ss, strict=True))
    graph = torch.is_grad_enabled() and any(x is not None and x.requires_grad for pair in problems for x in pair)
    if graph and threshold is not None:
        raise RuntimeError("threshold: canonical orthogonalisation has no derivative here; detach h and s, or use None")
    keep = vectors or graph
    # An energy window is known once all levels are; a graph needs all vectors.
    early = window if energies is None and not graph else None
    solvers = {"cpu": cpu.solve, "cuda": cusolver.solve}
    solve = solvers.get(hs[0].device.type if hs else "cpu", reference.solve)
    detached = [tuple(None if x is None else x.detach() for x in pair) for pair in problems]
    found = solve(detached, keep, early, threshold)
    result = []
    for (h_one, s_one), (values, c, kept, condition) in zip(problems, found, strict=True):
        if graph:
            values, c = derivative.Spectrum.apply(h_one, s_one, values, c)
        first, last = window or (0, h_one.shape[-1])
        if energies is not None:
            first, last = _inside(values.detach(), *energies)
        if early is None:
            values, c = values[:, first:last], None if c is None else c[:, :, first:last]
        result.append(Eigh(values, c if vectors else None, first, kept, condition))
    return result[0] if single else result


def _inside(values: torch.Tensor, low: float, high: float) -> tuple[int, int]:
    """The smallest range of levels that has all levels from low to high."""
    if not len(values):
        return 0, 0
    first, last = int((values < low).sum(1).min()), int((values <= high).sum(1).max())
    return min(first, last), last


def _check(
    hs: list[torch.Tensor],
    ss: list[torch.Tensor | None],
    window: tuple[int, int] | None,
    energies: tuple[float, float] | None,
    threshold: float | None,
) -> None:
    for structure, (h, s) in enumerate(zip(hs, ss, strict=True)):
        given = {"h": h} if s is None else {"h": h, "s": s}
        check_tensors(complex_=isinstance(h, torch.Tensor) and h.is_complex(), **given)
        shapes = {name: (x, f"q {x.shape[-1] if x.ndim else 'N'} N") for name, x in given.items()}
        n = check_shapes(**shapes)["N"]
        if window is not None and not 0 <= window[0] < window[1] <= n:
            raise ValueError(f"window: expected 0 <= first < last <= {n}, got {window[0]} and {window[1]}")
        for name, x in given.items():
            finite = torch.isfinite(x).flatten(1).all(1)
            if not finite.all():
                k = int(finite.int().argmin())
                raise ValueError(f"{name}: contains numbers that are not finite (structure {structure}, k-point {k})")
    if window is not None and energies is not None:
        raise ValueError("window, energies: expected at most one of them")
    if energies is not None and not energies[0] <= energies[1]:
        raise ValueError(f"energies: expected two ascending energies, got {energies[0]:g} and {energies[1]:g}")
    if threshold is not None and not threshold >= 0:
        raise ValueError(f"threshold: expected at least 0, got {threshold:g}")
