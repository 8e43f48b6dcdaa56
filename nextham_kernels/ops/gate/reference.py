"""Gate: the definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from e3nn import o3

# e3nn's normalize2mom of SiLU and sigmoid, from its million normal numbers (generator seed 0): not the exact integrals.
SILU_SCALE = 1.6791767923989418
SIGMOID_SCALE = 1.8467055342154763


def counts(irreps_out: o3.Irreps) -> tuple[int, int]:
    """Returns the number of scalar and of gated channels."""
    n_scalars = sum(mul for mul, ir in irreps_out if ir.is_scalar())
    return n_scalars, irreps_out.num_irreps - n_scalars


def gate(x: torch.Tensor, irreps_out: o3.Irreps) -> torch.Tensor:
    """[c₁ SiLU(s) | c₂ σ(g_u) t_uk]."""
    n_scalars, n_gated = counts(irreps_out)
    scalars, gates, gated = x.split([n_scalars, n_gated, irreps_out.dim - n_scalars], dim=1)
    gates = SIGMOID_SCALE * torch.sigmoid(gates)
    out, channel, start = [SILU_SCALE * torch.nn.functional.silu(scalars)], 0, 0
    for mul, ir in irreps_out:
        if ir.is_scalar():
            continue
        block = gated[:, start : start + mul * ir.dim].unflatten(1, (mul, ir.dim))
        out.append((block * gates[:, channel : channel + mul, None]).flatten(1))  # [e, u, i]
        channel, start = channel + mul, start + mul * ir.dim
    return torch.cat(out, dim=1)
