"""Exchange-correlation potentials of an unpolarised density, Rydberg and Bohr.

Of an energy per volume f(n, σ) with σ = |∇n|²,

    v = ∂f/∂n − ∇·(2 ∂f/∂σ ∇n) = f_n − 2 f_σ ∇²n − 2 f_nσ σ − 4 f_σσ ∇n·(∇∇n)∇n.

`pbe`: Perdew, Burke and Ernzerhof, Phys. Rev. Lett. 77, 3865 (1996), with the correlation of Perdew and Wang, Phys.
Rev. B 45, 13244 (1992). `lda`: Slater's exchange with the correlation of Perdew and Zunger, Phys. Rev. B 23, 5048
(1981).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

__all__ = ["FUNCTIONALS", "functional_named", "potential"]

VACUUM = 1e-10
"""Density, Bohr⁻³, below which the potential is zero."""


def _exchange(n: torch.Tensor) -> torch.Tensor:
    """Slater's exchange energy per volume, Hartree."""
    return -0.75 * (3 / math.pi) ** (1 / 3) * n ** (4 / 3)


def _wigner_seitz(n: torch.Tensor) -> torch.Tensor:
    return (3 / (4 * math.pi * n)) ** (1 / 3)


def _perdew_wang(n: torch.Tensor) -> torch.Tensor:
    """Correlation energy per electron, Hartree."""
    rs = _wigner_seitz(n)
    root = rs.sqrt()
    series = root * (7.5957 + root * (3.5876 + root * (1.6382 + root * 0.49294)))
    return -2 * 0.0310907 * (1 + 0.21370 * rs) * torch.log1p(1 / (2 * 0.0310907 * series))


def pbe(n: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Returns PBE's energy per volume, Ry."""
    beta, gamma, kappa, mu = 0.06672455060314922, (1 - math.log(2)) / math.pi**2, 0.804, 0.2195149727645171
    fermi = (3 * math.pi**2 * n) ** (1 / 3)
    s2 = sigma / (2 * fermi * n) ** 2
    enhancement = 1 + kappa - kappa / (1 + mu * s2 / kappa)
    correlation = _perdew_wang(n)
    t2 = sigma * math.pi / (16 * fermi * n**2)
    a = beta / gamma / torch.expm1(-correlation / gamma)
    ratio = (1 + a * t2) / (1 + a * t2 + (a * t2) ** 2)
    gradient = gamma * torch.log1p(beta / gamma * t2 * ratio)
    return 2 * (_exchange(n) * enhancement + n * (correlation + gradient))


def lda(n: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Returns the local density approximation's energy per volume, Ry."""
    rs = _wigner_seitz(n)
    dense = 0.0311 * rs.log() - 0.048 + 0.0020 * rs * rs.log() - 0.0116 * rs
    thin = -0.1423 / (1 + 1.0529 * rs.sqrt() + 0.3334 * rs)
    return 2 * (_exchange(n) + n * torch.where(rs < 1, dense, thin)) + 0 * sigma


FUNCTIONALS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"pbe": pbe, "lda": lda}
"""Name → energy per volume (Ry) of n (Bohr⁻³) and |∇n|² (Bohr⁻⁸)."""

_NAMES = {"PBE": "pbe", "SLA PW PBX PBC": "pbe", "LDA": "lda", "PZ": "lda", "SLA PZ NOGX NOGC": "lda"}


def functional_named(name: str) -> str:
    """Returns which of FUNCTIONALS a pseudopotential's functional is.

    Raises:
        ValueError: none of them.
    """
    known = _NAMES.get(" ".join(name.replace("-", " ").replace("+", " ").upper().split()))
    if known is None:
        raise ValueError(f"functional: expected PBE or LDA (PZ), got {name!r}")
    return known


def potential(
    functional: str, n: torch.Tensor, sigma: torch.Tensor, laplacian: torch.Tensor, curved: torch.Tensor
) -> torch.Tensor:
    """Returns v_xc at points of a density.

    Args:
        functional: name in FUNCTIONALS.
        n: density [p], Bohr⁻³, float64.
        sigma: |∇n|² [p].
        laplacian: ∇²n [p].
        curved: ∇n·(∇∇n)∇n [p].

    Returns:
        [p], Ry; zero where n is below VACUUM.

    Raises:
        ValueError: an unknown functional.
    """
    if functional not in FUNCTIONALS:
        raise ValueError(f"functional: expected one of {', '.join(FUNCTIONALS)}, got {functional!r}")
    there = n > VACUUM
    with torch.enable_grad():
        safe = torch.where(there, n, torch.ones_like(n)).detach().requires_grad_()
        square = torch.where(there, sigma, torch.zeros_like(n)).detach().requires_grad_()
        energy = FUNCTIONALS[functional](safe, square).sum()
        of_n, of_sigma = torch.autograd.grad(energy, (safe, square), create_graph=True)
        if of_sigma.requires_grad:
            mixed, second = torch.autograd.grad(of_sigma.sum(), (safe, square), allow_unused=True)
    if not of_sigma.requires_grad or mixed is None:
        return torch.where(there, of_n.detach(), torch.zeros_like(n))
    second = torch.zeros_like(n) if second is None else second
    v = of_n.detach() - 2 * of_sigma.detach() * laplacian - 2 * mixed * sigma - 4 * second * curved
    return torch.where(there, v, torch.zeros_like(n))
