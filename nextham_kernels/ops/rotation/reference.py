"""Rotation into the frame of each edge and back: the definition."""

from __future__ import annotations

import torch

from nextham_kernels.clebsch_gordan import irreps_of, wigner_d
from nextham_kernels.edge_layout import edge_layout, edge_rotation


def edge_wigner(vector: torch.Tensor, l_max: int) -> torch.Tensor:
    """Returns D^0, D^1 … of each edge's rotation, packed [e, Σ(2l+1)²], computed in float64."""
    return torch.cat([d.flatten(1) for d in wigner_d(edge_rotation(vector.double()), l_max)], dim=1).to(vector.dtype)


def rotate_to_edges(
    source: torch.Tensor,
    target: torch.Tensor,
    wigner: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    irreps: str,
    node_rows: bool,
) -> torch.Tensor:
    """Returns row_e = to_row(D_e (source_{src e} + target_{dst e})); a target without nodes is left out."""
    layout = edge_layout(irreps)
    x = source[src] + target[dst] if target.shape[0] else source[src]
    x = layout.from_row(x) if node_rows else x
    return layout.to_row(_turned(x, wigner, irreps, back=False))


def rotate_to_nodes(
    rows: torch.Tensor,
    wigner: torch.Tensor,
    dst: torch.Tensor,
    n_nodes: int,
    irreps: str,
    node_rows: bool,
    ascending: bool = False,
) -> torch.Tensor:
    """Returns y_n = Σ_{e: dst_e = n} D_eᵀ from_row(row_e), without the sum where dst is empty."""
    layout = edge_layout(irreps)
    x = _turned(layout.from_row(rows), wigner, irreps, back=True)
    x = layout.to_row(x) if node_rows else x
    return rows.new_zeros(n_nodes, rows.shape[1]).index_add(0, dst, x) if dst.shape[0] == rows.shape[0] else x


def _turned(x: torch.Tensor, wigner: torch.Tensor, irreps: str, back: bool) -> torch.Tensor:
    """D x or Dᵀ x, every irrep by its own."""
    layout, out = irreps_of(irreps), [x[:, :0]]
    for (mul, ir), s in zip(layout, layout.slices(), strict=True):
        if mul == 0:
            continue
        start = sum((2 * l + 1) ** 2 for l in range(ir.l))
        d = wigner[:, start : start + ir.dim**2].unflatten(1, (ir.dim, ir.dim))
        block = x[:, s].unflatten(1, (mul, ir.dim))  # [e, u, i]
        out.append((block @ (d if back else d.mT)).flatten(1))
    return torch.cat(out, dim=1)
