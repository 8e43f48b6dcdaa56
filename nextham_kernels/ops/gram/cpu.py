"""Gram matrices of irreps features: the C++ kernel's tables and calls."""

from __future__ import annotations

import functools

import numpy as np
import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.loading import kernels


@functools.cache
def tables(irreps: str, edge: bool) -> tuple[np.ndarray, np.ndarray]:
    """Where the channels of each block lie.

    blocks [n, 4] (channels, components, stride from channel to channel, first entry of the second table) and the place
    of the first channel of each component. A sign that a whole component has in the row cancels everywhere.
    """
    layout = irreps_of(irreps)
    blocks, places = [], []
    for b, ((mul, ir), part) in enumerate(zip(layout, layout.slices(), strict=True)):
        blocks.append((mul, ir.dim, 1 if edge else ir.dim, len(places)))
        if not edge:
            places += range(part.start, part.start + ir.dim)
            continue
        for block in edge_layout(irreps).blocks:
            for channels in block.channels:
                if channels.irrep == b:
                    places += [block.columns(i).start + channels.start for i in range(block.n)]
    blocks = [block for block in blocks if block[0]]
    return np.array(blocks, dtype=np.int32).reshape(-1, 4), np.array(places, dtype=np.int32)


def gram(x: torch.Tensor, y: torch.Tensor, irreps: str, edge: bool) -> torch.Tensor:
    """Runs `gram`."""
    blocks, places = tables(irreps, edge)
    result = x.new_empty(x.shape[0], sum(mul * (mul + 1) // 2 for mul in blocks[:, 0].tolist()))
    kernels().gram(x.numpy(), y.numpy(), blocks, places, result.numpy())
    return result


def gram_backward(
    grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor, irreps: str, edge: bool, needs: list[bool]
) -> list[torch.Tensor]:
    """Runs `gram_apply` on the other."""
    return [
        gram_apply(grad, other, irreps, edge) if need else x.new_empty(0)
        for other, need in zip((y, x), needs, strict=True)
    ]


def gram_apply(c: torch.Tensor, x: torch.Tensor, irreps: str, edge: bool) -> torch.Tensor:
    """Runs `gram_apply`."""
    y = torch.empty_like(x)
    kernels().gram_apply(c.numpy(), x.numpy(), *tables(irreps, edge), y.numpy())
    return y


def gram_apply_backward(
    grad: torch.Tensor, c: torch.Tensor, x: torch.Tensor, irreps: str, edge: bool, needs: list[bool]
) -> list[torch.Tensor]:
    """Runs `gram` for C and `gram_apply` for x."""
    return [
        gram(grad, x, irreps, edge) if needs[0] else x.new_empty(0),
        gram_apply(c, grad, irreps, edge) if needs[1] else x.new_empty(0),
    ]


def gram_update(c: torch.Tensor, x: torch.Tensor, irreps: str, edge: bool, residual: float) -> torch.Tensor:
    """Runs `gram_apply`, and torch for the rest."""
    g = gram_apply(c, x, irreps, edge)  # half of it
    scale = residual * x.norm(dim=1, keepdim=True) / (2 * g.norm(dim=1, keepdim=True) + 1e-5)
    return torch.addcmul(x, scale, g, value=2)
