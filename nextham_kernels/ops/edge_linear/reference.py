"""Linear maps of edge rows: the definition."""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout


class Piece(NamedTuple):
    """A block of |m| that both layouts have: its columns for each component, and its matrix."""

    source: tuple[slice, ...]  # columns in the input, one slice per component
    target: tuple[slice, ...]  # columns in the result
    c_in: int
    c_out: int
    start: int  # where its matrix begins in the flat one, for one head


@functools.cache
def pieces(irreps_in: str, irreps_out: str) -> tuple[Piece, ...]:
    """Returns the blocks, in the order of the input's layout."""
    layout_in, layout_out = edge_layout(irreps_of(irreps_in)), edge_layout(irreps_of(irreps_out))
    found, start = [], 0
    for block in layout_in.blocks:
        target = layout_out.find(block.m, block.sigma)
        if target is not None:
            source, to = (tuple(b.columns(i) for i in range(block.n)) for b in (block, target))
            found.append(Piece(source, to, block.c, target.c, start))
            start += block.c * target.c
    return tuple(found)


def edge_linear(
    x: torch.Tensor,
    heads: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor,
    onsite: torch.Tensor,
    irreps_in: str,
    irreps_out: str,
) -> torch.Tensor:
    """y_e,m,v = Σ_h a_eh (Σ_u M_huv x_e,m,u + b_hv), a = 1 without heads; of two M the second is for on-site edges."""
    a = heads if heads.shape[1] else x.new_ones(len(x), 1)
    y = x.new_zeros(len(x), irreps_of(irreps_out).dim)
    for piece in pieces(irreps_in, irreps_out):
        start, n = a.shape[1] * piece.start, a.shape[1] * piece.c_in * piece.c_out
        m = matrix[:, start : start + n].unflatten(1, (a.shape[1], piece.c_in, piece.c_out))  # [s, h, u, v]
        for source, target in zip(piece.source, piece.target, strict=True):
            made = torch.einsum("eh,eu,shuv->sev", a, x[:, source], m)
            y[:, target] = torch.where(onsite[:, None], made[1], made[0]) if len(m) == 2 else made[0]
    if len(bias):
        a = torch.cat([a, a.new_ones(len(x), len(bias) - a.shape[1])], dim=1)
        y = y.index_add(1, edge_layout(irreps_out).scalars.to(x.device), a @ bias)
    return y
