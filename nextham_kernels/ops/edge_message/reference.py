"""The message of an edge: the definition."""

from __future__ import annotations

import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout


def edge_message(
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    wigner: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    matrix: torch.Tensor,
    irreps: str,
    eps: float,
    floor: float,
) -> torch.Tensor:
    """Returns D (s_src + t_dst) + M norm(x)."""
    layout = edge_layout(irreps)
    sent, x = layout.from_row(source[src] + target[dst]), layout.from_row(edge)
    turned, blocks, square, starts = [x[:, :0]], [], [], [0]
    for l in range(1 + max((ir.l for _, ir in layout.irreps), default=0)):
        starts.append(starts[-1] + (2 * l + 1) ** 2)
    for (mul, ir), s in zip(layout.irreps, irreps_of(irreps).slices(), strict=True):
        d = wigner[:, starts[ir.l] : starts[ir.l + 1]].unflatten(1, (ir.dim, ir.dim))
        turned.append(torch.einsum("eki,eui->euk", d, sent[:, s].unflatten(1, (mul, ir.dim))).flatten(1))
        block = x[:, s].unflatten(1, (mul, ir.dim))
        blocks.append(block - block.mean(1, keepdim=True) if ir.is_scalar() else block)
        square.append(blocks[-1].square().mean((1, 2)))
    whole = sum(s * mul for s, (mul, _) in zip(square, layout.irreps, strict=True)) / layout.irreps.num_irreps
    normed, channel, scalar = [x[:, :0]], 0, 0
    for block, s, (mul, ir) in zip(blocks, square, layout.irreps, strict=True):
        scale = torch.rsqrt(s + floor**2 * whole + eps)[:, None] * weight[channel : channel + mul]
        shift = bias[scalar : scalar + mul, None] if ir.is_scalar() else 0
        normed.append((block * scale[:, :, None] + shift).flatten(1))
        channel, scalar = channel + mul, scalar + mul * ir.is_scalar()
    row, made, start = layout.to_row(torch.cat(normed, dim=1)), [x[:, :0]], 0
    for b in layout.blocks:
        m = matrix[start : start + b.c * b.c].view(b.c, b.c)
        made.append((row[:, b.start : b.start + b.n * b.c].unflatten(1, (b.n, b.c)) @ m).flatten(1))
        start += b.c * b.c
    return layout.to_row(torch.cat(turned, dim=1)) + torch.cat(made, dim=1)
