"""Matrix elements of a potential between orbitals on a grid: the C++ kernel's tables and calls."""

from __future__ import annotations

import torch

from nextham_kernels.loading import kernels
from nextham_kernels.ops.grid_integrals.reference import degrees_of

_PAD = 64
"""Bytes that divide a row of the table: those of the longest vector of any instruction set."""


def forward(
    weight: torch.Tensor,
    centres: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    rows: torch.Tensor,
    bricks: torch.Tensor,
    starts: torch.Tensor,
    species: torch.Tensor,
    pairs: torch.Tensor,
    pair_starts: torch.Tensor,
    per_length: float,
    size: int,
    shells: str,
    most: int,
) -> torch.Tensor:
    """Runs `grid_integrals_forward`."""
    result = weight.new_zeros(size)
    kinds = degrees_of(shells)
    degrees = torch.full((len(kinds), table.shape[2]), -1)
    for z, ls in enumerate(kinds):
        degrees[z, : len(ls)] = torch.tensor(ls, dtype=torch.int64)
    n_rows, _, n_shells = table.shape
    pad = _PAD // table.element_size()
    width = -(-n_shells // pad) * pad
    # A row of zeros behind the table is what lies beyond the last interval of any species.
    padded = table.new_zeros(n_rows + 1, 4, width)
    padded[:n_rows, :, :n_shells] = table
    ends = bricks[:, 3:].prod(1).cumsum(0)
    offsets = torch.cat([ends.new_zeros(1), ends])
    arrays = (weight, centres, padded, step, rows, degrees, bricks, offsets, starts, species, pairs, pair_starts)
    kernels().grid_integrals_forward(*(x.numpy() for x in arrays), per_length, result.numpy())
    return result
