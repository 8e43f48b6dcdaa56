"""Exchange-correlation potentials: the definition."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

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


def pbe(
    n: torch.Tensor, sigma: torch.Tensor, beta: float = 0.06672455060314922, mu: float = 0.2195149727645171
) -> torch.Tensor:
    """Returns PBE's energy per volume, Ry."""
    gamma, kappa = (1 - math.log(2)) / math.pi**2, 0.804
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
    """Returns the local density approximation's energy per volume, Ry; σ is not read."""
    rs = _wigner_seitz(n)
    dense = 0.0311 * rs.log() - 0.048 + 0.0020 * rs * rs.log() - 0.0116 * rs
    thin = -0.1423 / (1 + 1.0529 * rs.sqrt() + 0.3334 * rs)
    return 2 * (_exchange(n) + n * torch.where(rs < 1, dense, thin)) + 0 * sigma


FUNCTIONALS: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {"pbe": pbe, "lda": lda}
"""Name → energy per volume (Ry) of n (Bohr⁻³) and |∇n|² (Bohr⁻⁸)."""


def xc_potential(fields: torch.Tensor, functional: str) -> torch.Tensor:
    """f_n − 2 f_σ ∇²n − 2 f_nσ σ − 4 f_σσ ∇n·(∇∇n)∇n.

    Args:
        fields: n, σ, ∇²n and ∇n·(∇∇n)∇n [p, 4].
        functional: name in FUNCTIONALS.

    Returns:
        [p].
    """
    energy = FUNCTIONALS[functional]
    n, sigma, laplacian, curved = fields.unbind(1)
    there = n > VACUUM
    safe, square = torch.where(there, n, torch.ones_like(n)), torch.where(there, sigma, torch.zeros_like(n))
    of_n = torch.func.grad(lambda x: energy(x, square).sum())(safe)

    def of_sigma(x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return torch.func.grad(lambda y: energy(x, y).sum())(s)

    mixed, second = torch.func.grad(lambda x, s: of_sigma(x, s).sum(), (0, 1))(safe, square)
    v = of_n - 2 * of_sigma(safe, square) * laplacian - 2 * mixed * square - 4 * second * curved
    return torch.where(there, v, torch.zeros_like(n))
