"""Gate: the definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout

if TYPE_CHECKING:
    from e3nn import o3

# e3nn's normalize2mom of SiLU and sigmoid, from its million normal numbers (generator seed 0): not the exact integrals.
SILU_SCALE = 1.6791767923989418
SIGMOID_SCALE = 1.8467055342154763


def counts(irreps_out: o3.Irreps) -> tuple[int, int]:
    """Returns the number of scalar and of gated channels."""
    n_scalars = sum(mul for mul, ir in irreps_out if ir.is_scalar())
    return n_scalars, irreps_out.num_irreps - n_scalars


def gate(x: torch.Tensor, irreps_out: str, edge: bool, skip: int) -> torch.Tensor:
    """[c₁ SiLU(s) | c₂ σ(g_u) t_uk]."""
    irreps = irreps_of(irreps_out)
    n_scalars, n_gated = counts(irreps)
    scalars, gates, gated = x[:, skip:].split([n_scalars, n_gated, irreps.dim - n_scalars], dim=1)
    scalars, gates = SILU_SCALE * torch.nn.functional.silu(scalars), SIGMOID_SCALE * torch.sigmoid(gates)
    if edge:
        layout = edge_layout(irreps)
        gated = layout.from_row(torch.cat([scalars, gated], dim=1))[:, n_scalars:]
    out, channel, start = [scalars], 0, 0
    for mul, ir in irreps:
        if ir.is_scalar():
            continue
        block = gated[:, start : start + mul * ir.dim].unflatten(1, (mul, ir.dim))
        out.append((block * gates[:, channel : channel + mul, None]).flatten(1))  # [e, u, i]
        channel, start = channel + mul, start + mul * ir.dim
    y = torch.cat(out, dim=1)
    return layout.to_row(y) if edge else y
