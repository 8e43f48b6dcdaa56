"""Gaussian radial basis: the definition."""

from __future__ import annotations

import torch


def gaussians(n: int, stop: float) -> tuple[torch.Tensor, float]:
    """Returns the centres μ [n] in float64, and σ."""
    return torch.linspace(0, stop, n, dtype=torch.float64), 0.5 * stop / n


def radial_basis(distance: torch.Tensor, n: int, stop: float) -> torch.Tensor:
    """exp(−(r − μ_c)² / 2σ²)."""
    centres, sigma = gaussians(n, stop)
    return torch.exp(-((distance[:, None] - centres.to(distance)).square()) / (2 * sigma**2))
