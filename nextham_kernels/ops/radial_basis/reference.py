"""Gaussian radial basis: the definition."""

from __future__ import annotations

import torch


def radial_basis(distance: torch.Tensor, n: int, stop: float) -> torch.Tensor:
    """exp(−(r − μ_c)² / 2σ²)."""
    centres = torch.linspace(0, stop, n, dtype=torch.float64).to(distance)
    sigma = 0.5 * stop / n
    return torch.exp(-((distance[:, None] - centres).square()) / (2 * sigma**2))
