"""Real spherical harmonics: the definition."""

from __future__ import annotations

import torch


def spherical_harmonics(vector: torch.Tensor, l_max: int) -> torch.Tensor:
    """e3nn's polynomials at the unit vector (y, z, x); 1, 0, 0, … where the vector is zero."""
    from e3nn import o3

    zero = (vector == 0).all(1, keepdim=True)  # [e, 1]
    direction = torch.where(zero, torch.ones_like(vector), vector)
    direction = direction / direction.norm(dim=1, keepdim=True)
    y = o3.spherical_harmonics(
        list(range(l_max + 1)), direction[:, [1, 2, 0]], normalize=False, normalization="component"
    )
    at_zero = torch.zeros_like(y)
    at_zero[:, 0] = 1
    return torch.where(zero, at_zero, y)
