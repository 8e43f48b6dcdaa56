"""Bloch sum: the definition."""

from __future__ import annotations

import torch


def places(edges: torch.Tensor, size: int, spins: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns for each number of the blocks, by sorted edge: its edge, where it lies in `blocks`, and in H(k)."""
    offset, _, first_row, first_column, a, b = edges.T
    numbers = spins**2 * a * b
    edge = torch.repeat_interleave(torch.arange(len(edges), device=edges.device), numbers)
    within = torch.arange(len(edge), device=edges.device) - (numbers.cumsum(0) - numbers)[edge]  # [s, s', a, b]
    spin, orbital = within // (a * b)[edge], within % (a * b)[edge]
    row = first_row[edge] + orbital // b[edge] * spins + spin // spins
    column = first_column[edge] + orbital % b[edge] * spins + spin % spins
    return edge, offset[edge] + within, row * size + column


def bloch_sum(
    blocks: torch.Tensor, coefficient: torch.Tensor, edges: torch.Tensor, pairs: torch.Tensor, size: int, spins: int
) -> torch.Tensor:
    """Σ_e coefficient[v_e, p] M_e.

    Args:
        blocks: [d, 1] real or [d, 2] real and imaginary part.
        coefficient: [r, p, 2], real and imaginary part.
        edges: [e, 6], see `BlochLayout`.
        pairs: not needed here.
        size: N.
        spins: 1 or 2.

    Returns:
        [p, N, N, 2].
    """
    edge, here, place = places(edges, size, spins)
    factor = coefficient[edges[:, 1]][edge]  # [d, p, 2]
    number = blocks[here][:, None]  # [d, 1, 1 or 2]
    if blocks.shape[1] == 1:
        terms = factor * number
    else:
        (c, s), (x, y) = factor.unbind(-1), number.unbind(-1)
        terms = torch.stack([c * x - s * y, c * y + s * x], dim=-1)
    dense = terms.new_zeros(size * size, *terms.shape[1:]).index_add(0, place, terms)
    return dense.reshape(size, size, -1, 2).permute(2, 0, 1, 3).contiguous()
