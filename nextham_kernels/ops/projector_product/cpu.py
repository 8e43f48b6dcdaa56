"""Products of projections: calls of the C++ kernel."""

from __future__ import annotations

import torch

from nextham_kernels.loading import kernels


def forward(
    left: torch.Tensor, right: torch.Tensor, strength: torch.Tensor, pairs: torch.Tensor, starts: torch.Tensor
) -> torch.Tensor:
    """Runs `projector_product_forward`."""
    y = left.new_empty(len(starts) - 1, len(strength), left.shape[2], right.shape[2])
    arrays = (t.numpy() for t in (left, right, strength, pairs, starts))
    kernels().projector_product_forward(*arrays, y.numpy())
    return y
