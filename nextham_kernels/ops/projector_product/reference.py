"""Products of projections: the definition."""

from __future__ import annotations

import torch


def projector_product(
    left: torch.Tensor, right: torch.Tensor, strength: torch.Tensor, pairs: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    """Σ_t left_t0ᵀ D_k right_t1."""
    products = torch.einsum("tca,kcd,tdb->tkab", left[pairs[:, 0]], strength, right[pairs[:, 1]])
    result = torch.repeat_interleave(torch.arange(len(starts) - 1, device=starts.device), starts.diff())
    zeros = left.new_zeros(len(starts) - 1, len(strength), left.shape[2], right.shape[2])
    return zeros.index_add(0, result, products)
