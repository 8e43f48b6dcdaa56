"""Superposition of atomic functions on a grid: calls of the C++ kernel."""

from __future__ import annotations

import torch

from nextham_kernels.loading import kernels


def forward(
    centres: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    rows: torch.Tensor,
    bricks: torch.Tensor,
    starts: torch.Tensor,
    species: torch.Tensor,
    per_length: float,
    n_points: int,
) -> torch.Tensor:
    """Runs `superposition_forward`."""
    ends = bricks[:, 3:].prod(1).cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends])
    result = centres.new_empty(n_points, 5)
    # A row of zeros behind the table is what lies beyond the last interval of any species.
    padded = torch.cat([table, table.new_zeros(1, 4, 4)])
    arrays = (centres, padded, step, rows, bricks, offsets, starts, species)
    kernels().superposition_forward(*(x.numpy() for x in arrays), per_length, result.numpy())
    return result
