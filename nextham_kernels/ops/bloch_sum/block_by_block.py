"""H(k) V block by block, for cells so large that H(k) is mostly zeros: it is never formed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from nextham_kernels.ops.bloch_sum import BlochLayout

__all__ = ["apply", "is_cheaper"]

_MEMORY = 2**26
"""Bytes of the blocks and vectors that are gathered at a time, if one edge's are not larger."""


def is_cheaper(layout: BlochLayout) -> bool:
    """Whether block by block does half of the dense product's arithmetic, or less: fewer numbers than N²/2."""
    return 2 * layout.n_numbers <= layout.size**2


def apply(blocks: torch.Tensor, layout: BlochLayout, phases: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Returns H(k) V = Σ_e phase_e M_e V.

    Args:
        blocks: as for `bloch_sum`.
        layout: where they go.
        phases: [r, q], complex.
        right: V [q, N, t], complex of the blocks' precision.

    Returns:
        [q, N, t], with derivatives of any order with respect to blocks and right.
    """
    spins, t = layout.spins, right.shape[2]
    shapes, group_of = torch.unique(layout.edges[:, 4:], dim=0, return_inverse=True)
    results = [torch.zeros_like(v) for v in right]
    for group, (a, b) in enumerate(shapes.tolist()):
        rows, columns = spins * a, spins * b
        within = torch.arange(rows * columns, device=blocks.device).reshape(spins, spins, a, b)
        within = within.permute(2, 0, 3, 1).reshape(rows, columns)  # (orbital, spin) of row and column
        edges = layout.edges[group_of == group]
        per_edge = max(1, (rows * columns + (rows + columns) * t) * right.element_size())
        for some in edges.split(max(1, _MEMORY // per_edge)):
            matrices = blocks[some[:, :1, None] + within].to(right.dtype)
            to = (some[:, 2:3] + torch.arange(rows, device=blocks.device)).flatten()
            of = some[:, 3:4] + torch.arange(columns, device=blocks.device)
            for q, vectors in enumerate(right):
                phase = phases[some[:, 1], q, None, None].to(right.dtype)
                product = torch.bmm(matrices, phase * vectors[of])
                results[q] = results[q].index_add(0, to, product.flatten(0, 1))
    return torch.stack(results) if results else right.clone()
