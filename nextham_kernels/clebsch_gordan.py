"""Coefficients of the rotation group, exact in float64 and cached: Wigner 3j symbols, Gaunt coefficients, Wigner D.

Conventions are e3nn's: the components of an irrep l are m = −l … l, and the vector behind l = 1 is (y, z, x). So with
cartesian (x, y, z) vectors permuted to (y, z, x), component m is the usual real spherical harmonic of that m.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch

if TYPE_CHECKING:
    from e3nn import o3

__all__ = ["IrrepsLike", "dim_of", "gaunt", "irreps_of", "wigner_3j", "wigner_d"]

IrrepsLike: TypeAlias = "str | o3.Irreps"

_YZX = [1, 2, 0]


@functools.cache
def irreps_of(irreps: IrrepsLike) -> o3.Irreps:
    """Returns e3nn's `Irreps` of a string or of itself.

    Raises:
        ValueError: a string that is no irreps.
    """
    # e3nn's import takes 2.5 s (it loads torch's compiler), so whoever does not need it does not pay for it.
    from e3nn import o3

    return o3.Irreps(irreps)


@functools.cache
def dim_of(irreps: IrrepsLike) -> int:
    """Returns the dimension of irreps, which e3nn counts anew whenever it is asked."""
    return irreps_of(irreps).dim


@functools.cache
def wigner_3j(
    l1: int, l2: int, l3: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Returns the real Wigner 3j symbol of three irreps with e3nn's signs, rounded once from float64.

    C_ijk with Σ_ijk C_ijk² = 1 and C_ijk = Σ_abc D¹_ia D²_jb D³_kc C_abc for every rotation. The tensor is shared: do
    not write into it.

    Args:
        l1: first degree.
        l2: second degree.
        l3: third degree, |l1 − l2| ≤ l3 ≤ l1 + l2.
        dtype: dtype of the result.
        device: device of the result.

    Returns:
        [2 l1 + 1, 2 l2 + 1, 2 l3 + 1].

    Raises:
        ValueError: degrees that do not couple.
    """
    if min(l1, l2, l3) < 0 or not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"l3: expected |l1 - l2| <= l3 <= l1 + l2, got l1 = {l1}, l2 = {l2}, l3 = {l3}")
    return torch.from_numpy(_real_3j(l1, l2, l3)).to(device=device, dtype=dtype)


@functools.cache
def _real_3j(l1: int, l2: int, l3: int) -> np.ndarray:
    """Racah's formula in whole numbers, then real harmonics: some 0.1 ms, and zeros are exact.

    ⟨l₁m₁l₂m₂|l₃m₃⟩ ∝ Σ_k (−1)^k (l₁+l₂−l₃ over k)(l₁−l₂+l₃ over l₁−m₁−k)(−l₁+l₂+l₃ over l₂+m₂−k) divided by the root of
    (2l₁ over l₁+m₁)(2l₂ over l₂+m₂)(2l₃ over l₃+m₃); the norm 1 gives the factor, which is positive.
    """
    degrees = (l1, l2, l3)
    whole = np.int64 if max(degrees) <= 11 else object  # beyond, a product of three exceeds 2⁶³
    size = 2 * sum(degrees) + 1
    first, second, third = (_binomials(n, size, whole) for n in (l1 + l2 - l3, l1 - l2 + l3, l2 + l3 - l1))
    m1, m2 = np.arange(-l1, l1 + 1)[:, None], np.arange(-l2, l2 + 1)
    total = np.zeros((2 * l1 + 1, 2 * l2 + 1), dtype=whole)
    for k in range(l1 + l2 - l3 + 1):
        total = total + (-1) ** k * first[k] * second[l1 - m1 - k] * third[l2 + m2 - k]
    i, j = np.nonzero(np.abs(m1 + m2) <= l3)
    places = (i, j, i + j - l1 - l2 + l3)
    below = math.prod(_binomials(2 * l, size, np.float64)[at] for l, at in zip(degrees, places, strict=True))
    values = total[i, j].astype(np.float64) / np.sqrt(below)
    c = np.zeros([2 * l + 1 for l in degrees], dtype=np.complex128)
    c[places] = values / np.sqrt((values * values).sum())
    for axis, l in enumerate(degrees):
        basis = _real_harmonics(l).conj() if axis == 2 else _real_harmonics(l)
        c = np.tensordot(c, basis, axes=(0, 0))  # the next axis comes first
    for axis, l in enumerate(degrees):
        c *= np.where(np.arange(-l, l + 1) == 0, 1.0, 0.5**0.5).reshape([-1 if a == axis else 1 for a in range(3)])
    return np.ascontiguousarray((c * (-1j) ** ((l1 + l2 - l3) % 4)).real)


def _binomials(n: int, size: int, dtype: type) -> np.ndarray:
    """The binomials n over k [size], zero beyond n and so, counted from the end, for k < 0."""
    return np.array([math.comb(n, k) for k in range(size)], dtype=dtype)


def _real_harmonics(l: int) -> np.ndarray:
    """√2 times the complex harmonics (rows) in the real ones (columns), except m = 0: entries ±1 and ±i, exact."""
    basis = np.zeros((2 * l + 1, 2 * l + 1), dtype=np.complex128)
    basis[l, l] = 1
    for m in range(1, l + 1):
        basis[l - m, [l - m, l + m]] = -1j, 1
        basis[l + m, [l - m, l + m]] = 1j * (-1) ** m, (-1) ** m
    return basis


@functools.cache
def gaunt(l1: int, l2: int, l3: int) -> torch.Tensor:
    """Returns the integrals ∫ Y_l1,i Y_l2,j Y_l3,k dΩ of real harmonics with ∫ Y² dΩ = 1, m = −l … l.

    √((2l₁+1)(2l₂+1)(2l₃+1)/4π) C_000 C_ijk with C = wigner_3j(l1, l2, l3), whose sign C_000 makes good.

    Args:
        l1: first degree.
        l2: second degree.
        l3: third degree, |l1 − l2| ≤ l3 ≤ l1 + l2; all is zero where l1 + l2 + l3 is odd.

    Returns:
        [2 l1 + 1, 2 l2 + 1, 2 l3 + 1], float64.

    Raises:
        ValueError: degrees that do not couple.
    """
    c = wigner_3j(l1, l2, l3)
    return c * c[l1, l2, l3] * math.sqrt((2 * l1 + 1) * (2 * l2 + 1) * (2 * l3 + 1) / (4 * math.pi))


def wigner_d(rotation: torch.Tensor, l_max: int) -> list[torch.Tensor]:
    """Returns the Wigner D matrices of rotations, l = 0 … l_max.

    D⁰ = 1; D¹ is the rotation with rows and columns in the order (y, z, x);
    D^l_kc = (2l+1) Σ_ijab C_kij D^{l−1}_ia D¹_jb C_cab with C = wigner_3j(l, l − 1, 1).

    Args:
        rotation: [..., 3, 3], proper, acting on cartesian (x, y, z) columns.
        l_max: largest degree.

    Returns:
        l_max + 1 tensors [..., 2l+1, 2l+1] in the dtype of `rotation`, differentiable.

    Raises:
        ValueError: not [..., 3, 3].
    """
    if rotation.ndim < 2 or rotation.shape[-2:] != (3, 3):
        raise ValueError(f"rotation: expected shape [..., 3, 3], got {list(rotation.shape)}")
    vector = rotation[..., _YZX, :][..., _YZX]
    matrices = [torch.ones_like(rotation[..., :1, :1]), vector]
    for l in range(2, l_max + 1):
        c = wigner_3j(l, l - 1, 1, rotation.dtype, rotation.device)
        rows = torch.einsum("kij,...ia->...kaj", c, matrices[-1])
        rows = torch.einsum("...kaj,...jb->...kab", rows, vector)
        matrices.append((2 * l + 1) * torch.einsum("...kab,cab->...kc", rows, c))
    return matrices[: l_max + 1]
