"""Gram matrices of irreps features: the definition."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout


def blocks(x: torch.Tensor, irreps: str, edge: bool) -> Iterator[torch.Tensor]:
    """Yields [e, u, i] of each block."""
    x = edge_layout(irreps).from_row(x) if edge else x
    for (mul, ir), s in zip(irreps_of(irreps), irreps_of(irreps).slices(), strict=True):
        yield x[:, s].unflatten(1, (mul, ir.dim))


def gram(x: torch.Tensor, y: torch.Tensor, irreps: str, edge: bool) -> torch.Tensor:
    """G_uv = ⟨x_u, y_v⟩ + ⟨x_v, y_u⟩ for u < v, ⟨x_u, y_u⟩ for u = v."""
    packed = [x[:, :0]]
    for a, b in zip(blocks(x, irreps, edge), blocks(y, irreps, edge), strict=True):
        u, v = torch.triu_indices(a.shape[1], a.shape[1], device=x.device)
        product = a @ b.transpose(1, 2)  # [e, u, v]
        packed.append(product[:, u, v] + product[:, v, u] * (u < v))
    return torch.cat(packed, dim=1)


def gram_apply(c: torch.Tensor, x: torch.Tensor, irreps: str, edge: bool) -> torch.Tensor:
    """y_u = Σ_v C̃_uv x_v."""
    out, start = [x[:, :0]], 0
    for block in blocks(x, irreps, edge):
        mul = block.shape[1]
        u, v = torch.triu_indices(mul, mul, device=x.device)
        place = torch.empty(mul, mul, dtype=torch.int64, device=x.device)
        place[u, v] = place[v, u] = torch.arange(start, start + len(u), device=x.device)
        out.append((c[:, place] @ block).flatten(1))
        start += len(u)
    y = torch.cat(out, dim=1)
    return edge_layout(irreps).to_row(y) if edge else y


def gram_update(c: torch.Tensor, x: torch.Tensor, irreps: str, edge: bool, residual: float) -> torch.Tensor:
    """Returns x + ρ ‖x‖/(‖g‖ + 1e-5) g, g = 2 gram_apply(C, x)."""
    g = 2 * gram_apply(c, x, irreps, edge)
    return x + residual * x.norm(dim=1, keepdim=True) / (g.norm(dim=1, keepdim=True) + 1e-5) * g
