"""Layer norm per irrep: the definition."""

from __future__ import annotations

import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout


def norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, irreps: str, edge: bool, eps: float, floor: float
) -> torch.Tensor:
    """Returns y = w x / √(s_b + f² s + ε) + b, x centred over channels on 0e."""
    irreps = irreps_of(irreps)
    x = edge_layout(irreps).from_row(x) if edge else x
    blocks = []
    for (mul, ir), s in zip(irreps, irreps.slices(), strict=True):
        block = x[:, s].unflatten(1, (mul, ir.dim))  # [e, u, i]
        blocks.append(block - block.mean(1, keepdim=True) if ir.is_scalar() else block)
    square = [block.square().mean((1, 2)) for block in blocks]  # s_eb
    whole = sum(s * mul for s, (mul, _) in zip(square, irreps, strict=True)) / irreps.num_irreps  # s_e
    out, channel, scalar = [], 0, 0
    for block, s, (mul, ir) in zip(blocks, square, irreps, strict=True):
        scale = torch.rsqrt(s + floor**2 * whole + eps)[:, None] * weight[channel : channel + mul]  # [e, u]
        y = block * scale[:, :, None]
        if ir.is_scalar():
            y = y + bias[scalar : scalar + mul, None]
            scalar += mul
        channel += mul
        out.append(y.flatten(1))
    y = torch.cat(out, dim=1)
    return edge_layout(irreps).to_row(y) if edge else y
