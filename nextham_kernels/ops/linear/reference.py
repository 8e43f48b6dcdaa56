"""Irreps-wise linear map: the definition."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from e3nn import o3


class Part(NamedTuple):
    """One irrep: where its components lie in input, weights and output."""

    source: torch.Tensor  # [u, i]
    weight: torch.Tensor  # [u, v]
    target: torch.Tensor  # [v, i]


@functools.cache
def plan(irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> tuple[Part, ...]:
    """Returns the parts of a linear map, one per irrep that both sides have."""
    blocks_in = [(mul, ir, s.start) for (mul, ir), s in zip(irreps_in, irreps_in.slices(), strict=True) if mul]
    blocks_out = [(mul, ir, s.start) for (mul, ir), s in zip(irreps_out, irreps_out.slices(), strict=True) if mul]
    outs_of: dict = {}
    for mul, ir, start in blocks_out:
        outs_of.setdefault(ir, []).append((mul, start))
    sources: dict = {}
    weights: dict = {}
    offset = 0
    for mul, ir, start in blocks_in:
        if ir not in outs_of:
            continue
        row = []
        for mul_out, _ in outs_of[ir]:
            row.append(torch.arange(mul * mul_out).reshape(mul, mul_out) + offset)
            offset += mul * mul_out
        weights.setdefault(ir, []).append(torch.cat(row, dim=1))
        sources.setdefault(ir, []).append(torch.arange(mul * ir.dim).reshape(mul, ir.dim) + start)
    return tuple(
        Part(
            torch.cat(sources[ir]),
            torch.cat(weights[ir]),
            torch.cat([torch.arange(mul * ir.dim).reshape(mul, ir.dim) + start for mul, start in outs_of[ir]]),
        )
        for ir in sources
    )


def linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, irreps_in: o3.Irreps, irreps_out: o3.Irreps
) -> torch.Tensor:
    """y_evk = Σ_u W_uv x_euk, then + b_v on 0e."""
    y = x.new_zeros(x.shape[0], irreps_out.dim)
    for part in plan(irreps_in, irreps_out):
        block = torch.einsum("eui,uv->evi", x[:, part.source], weight[part.weight])
        y = y.index_copy(1, part.target.flatten().to(x.device), block.flatten(1))
    if bias is not None:
        scalars = [
            torch.arange(s.start, s.stop)
            for (_, ir), s in zip(irreps_out, irreps_out.slices(), strict=True)
            if ir.is_scalar()
        ]
        y = y.index_add(1, torch.cat(scalars).to(x.device), bias.expand(x.shape[0], -1))
    return y
