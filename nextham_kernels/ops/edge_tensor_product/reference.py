"""Tensor product with the harmonics of the edge and a linear map, in the edge frame: the definition."""

from __future__ import annotations

import functools
import itertools
from typing import NamedTuple

import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_coefficient, edge_layout


class Path(NamedTuple):
    """One coupling of a block of x with the harmonic of degree l₂; its channels u are those of x."""

    irrep: int  # which block of x
    mul: int
    degree: int  # l₂
    radial: int  # where its weights start in `radial`


class Part(NamedTuple):
    """Channels of one irrep and one |m| of the result: what they are sums of, k counting (path, u)."""

    x: torch.Tensor  # [i, k] places in the row of x; i = +m, −m or only m = 0
    radial: torch.Tensor  # [k] places in `radial`
    coefficient: torch.Tensor  # [k], float64
    weight: torch.Tensor  # [k, w] places in `linear_weight`
    y: torch.Tensor  # [i, w] places in the row of the result


class Plan(NamedTuple):
    """The whole op."""

    parts: tuple[Part, ...]  # together they cover the row of the result
    directed: torch.Tensor  # [p], bool: whether the path of this place in `radial` has l₂ > 0
    n_weights: int


@functools.cache
def plan(irreps_x: str, l_max: int, irreps_out: str) -> Plan:
    """Returns how the result is made."""
    irreps_x, irreps_out = irreps_of(irreps_x), irreps_of(irreps_out)
    paths: dict = {ir: [] for _, ir in irreps_x}  # target irrep → its paths, in the order of their weights
    degrees: list[int] = []
    for block, (mul, ir_x) in enumerate(irreps_x):
        for degree in range(l_max + 1):
            for ir in ir_x * irreps_of(f"1x{degree}{'eo'[degree % 2]}")[0].ir:
                if ir in paths:
                    paths[ir].append(Path(block, mul, degree, len(degrees)))
                    degrees += [degree] * mul
    weights, n_weights = {}, 0
    for b, (mul, ir) in sorted(enumerate(irreps_out), key=lambda block: (block[1].ir.l, -block[1].ir.p)):
        fan_in = sum(path.mul for path in paths.get(ir, ()))
        weights[b] = torch.arange(fan_in * mul).reshape(fan_in, mul) + n_weights
        n_weights += fan_in * mul
    layout_x, layout_y = edge_layout(irreps_x), edge_layout(irreps_out)
    parts = []
    for block_y in layout_y.blocks:
        block_x = layout_x.find(block_y.m, block_y.sigma)
        starts = {} if block_x is None else {c.irrep: c.start for c in block_x.channels}
        components = torch.arange(block_y.n)[:, None]
        for ir, channels in itertools.groupby(block_y.channels, key=lambda c: irreps_out[c.irrep].ir):
            channels = list(channels)
            columns = torch.arange(channels[0].start, channels[-1].stop)
            x, radial, coefficient, row, position = [], [], [], [], 0
            for path in paths.get(ir, ()):
                u = torch.arange(path.mul)
                if path.irrep in starts:
                    ir_x = irreps_x[path.irrep].ir
                    c = edge_coefficient(ir_x.l, ir_x.p, path.degree, ir.l, block_y.m)
                    if abs(c) > 1e-12:  # some vanish, and float64 leaves 1e-17 of them
                        x.append(block_x.start + block_x.c * components + starts[path.irrep] + u)
                        radial.append(path.radial + u)
                        coefficient.append(torch.full((path.mul,), c, dtype=torch.float64))
                        row.append(position + u)
                position += path.mul
            none = torch.zeros(0, dtype=torch.int64)
            own = torch.cat([weights[c.irrep] for c in channels], dim=1)
            parts.append(
                Part(
                    torch.cat([none.expand(block_y.n, 0), *x], dim=1),
                    torch.cat([none, *radial]),
                    torch.cat([none.double(), *coefficient]),
                    own[torch.cat([none, *row])],
                    block_y.start + block_y.c * components + columns,
                )
            )
    return Plan(tuple(parts), torch.tensor(degrees, dtype=torch.int64) > 0, n_weights)


def edge_tensor_product(
    x: torch.Tensor,
    radial: torch.Tensor,
    linear_weight: torch.Tensor,
    onsite: torch.Tensor,
    radial_weight: torch.Tensor,
    radial_bias: torch.Tensor,
    bias: torch.Tensor,
    irreps_x: str,
    l_max: int,
    irreps_out: str,
) -> torch.Tensor:
    """y_eiw = Σ_k W_kw c_k r_ek x_eik + b_w, r being zero on on-site edges where l₂ > 0.

    r is `radial`, or radial @ radial_weightᵀ + radial_bias where these are not empty; neither needs `bias` be there.
    """
    parts, directed, _ = plan(irreps_x, l_max, irreps_out)
    if radial_weight.numel():
        radial = radial @ radial_weight.T + radial_bias
    radial = radial.masked_fill(onsite[:, None] & directed.to(x.device), 0)
    y = x.new_zeros(len(x), irreps_of(irreps_out).dim)
    for part in parts:
        z = x[:, part.x] * (radial[:, part.radial] * part.coefficient.to(x))[:, None]  # [e, i, k]
        y = y.index_copy(1, part.y.flatten().to(x.device), (z @ linear_weight[part.weight]).flatten(1))
    return y.index_add(1, edge_layout(irreps_out).scalars.to(x.device), bias.expand(len(x), -1)) if len(bias) else y
