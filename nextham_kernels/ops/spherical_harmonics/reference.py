"""Real spherical harmonics: the definition."""

from __future__ import annotations

import torch


def direction(vector: torch.Tensor) -> torch.Tensor:
    """The unit vector (y, z, x); zero, with zero derivative, where the vector is zero."""
    zero = (vector == 0).all(1, keepdim=True)  # [e, 1]
    safe = torch.where(zero, torch.ones_like(vector), vector)
    unit = safe / safe.norm(dim=1, keepdim=True)
    return torch.where(zero, torch.zeros_like(unit), unit)[:, [1, 2, 0]]


def solid_harmonics(vector: torch.Tensor, l_max: int) -> torch.Tensor:
    """e3nn's polynomials."""
    from e3nn import o3

    return o3.spherical_harmonics(list(range(l_max + 1)), vector, normalize=False, normalization="component")


def spherical_harmonics(vector: torch.Tensor, l_max: int) -> torch.Tensor:
    """e3nn's polynomials at the unit vector (y, z, x); 1, 0, 0, … where the vector is zero."""
    return solid_harmonics(direction(vector), l_max)
