"""Real spherical harmonics of edge vectors.

Y_e,lm = √(4π) × the usual real spherical harmonic of the direction r/|r|, components m = −l … l with the usual signs,
so that Σ_m Y_lm² = 2l + 1 (e3nn's `component` normalisation). It is e3nn's function at (r_y, r_z, r_x), which makes
e3nn's component order the usual one. The irrep of degree l has parity (−1)^l.

At r = 0 there is no direction: Y_00 = 1 and all others are 0, with zero derivative. Elsewhere every derivative exists.
Source: e3nn, `o3.spherical_harmonics`.
"""

from __future__ import annotations

import torch

from nextham_kernels.checks import check_shapes, check_tensors
from nextham_kernels.ops.spherical_harmonics import reference

__all__ = ["spherical_harmonics"]


def spherical_harmonics(vector: torch.Tensor, l_max: int) -> torch.Tensor:
    """Returns the real spherical harmonics l = 0 … l_max of the directions of vectors.

    Args:
        vector: [e, 3], cartesian (x, y, z) in any unit, float32 or float64; for an edge i→j, r = τ_j + R − τ_i.
        l_max: largest degree, 0 to 11.

    Returns:
        [e, (l_max + 1)²], degree after degree.

    Raises:
        ValueError: a wrong shape or degree.
        TypeError: a wrong dtype.

    Example:
        >>> import torch
        >>> spherical_harmonics(torch.tensor([[0.0, 0.0, 2.0]]), 1).round(decimals=4) + 0.0
        tensor([[1.0000, 0.0000, 1.7321, 0.0000]])
    """
    check_tensors(vector=vector)
    check_shapes(vector=(vector, "e 3"))
    if not 0 <= l_max <= 11:
        raise ValueError(f"l_max: expected 0 to 11, got {l_max}")
    return reference.spherical_harmonics(vector, l_max)
