"""Linear maps of edge rows: the definition."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout


def pieces(irreps_in: str, irreps_out: str) -> list[tuple[slice, slice, int]]:
    """Where each block's components lie in the two rows, and which block of the input that is."""
    layout_in, layout_out = edge_layout(irreps_of(irreps_in)), edge_layout(irreps_of(irreps_out))
    found = []
    for number, block in enumerate(layout_in.blocks):
        target = layout_out.find(block.m, block.sigma)
        if target is not None:
            found += [(block.columns(i), target.columns(i), number) for i in range(block.n)]
    return found


def edge_linear(
    x: torch.Tensor, matrices: Sequence[torch.Tensor | None], irreps_in: str, irreps_out: str
) -> torch.Tensor:
    """y_e,m,v = Σ_u M_m,uv x_e,m,u for both components of each |m|."""
    y = x.new_zeros(x.shape[0], irreps_of(irreps_out).dim)
    for source, target, block in pieces(irreps_in, irreps_out):
        if matrices[block] is not None:
            y[:, target] = x[:, source] @ matrices[block]
    return y


def head_linear(
    x: torch.Tensor, heads: torch.Tensor, matrices: Sequence[torch.Tensor | None], irreps_in: str, irreps_out: str
) -> torch.Tensor:
    """y_e,m,v = Σ_h Σ_u a_eh M_m,huv x_e,m,u."""
    y = x.new_zeros(x.shape[0], irreps_of(irreps_out).dim)
    for source, target, block in pieces(irreps_in, irreps_out):
        if matrices[block] is not None:
            y[:, target] = torch.einsum("eh,eu,huv->ev", heads, x[:, source], matrices[block])
    return y
