"""Weights of e3nn-style maps as one dense matrix per |m| of the edge frame.

A list of matrices has one entry [c_in, c_out] (or None, where the output lacks it) for each block of the input's
`edge_layout`; `flat` makes of it what `edge_linear` and `head_linear` take. Everything is linear in the weights and
differentiable, so training folds in every step.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from itertools import accumulate

import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import Block, EdgeLayout, edge_coefficient, edge_layout
from nextham_kernels.ops.depthwise_tensor_product import depthwise_irreps
from nextham_kernels.ops.depthwise_tensor_product.reference import output_order, paths
from nextham_kernels.ops.linear.reference import plan
from nextham_kernels.sparse_map import SparseMap

__all__ = ["flat", "linear_matrices", "product_matrices", "through_heads"]

Matrices = list[torch.Tensor | None]


def flat(matrices: Matrices) -> torch.Tensor:
    """Returns the matrices one after the other [w]."""
    return torch.cat([m.flatten() for m in matrices if m is not None])


def linear_matrices(weight: torch.Tensor, irreps_in: str, irreps_out: str) -> Matrices:
    """Returns the matrices of an irreps-wise linear map (`ops.linear`).

    Args:
        weight: [w], in the layout of `ops.linear`.
        irreps_in: irreps of the input.
        irreps_out: irreps of the output.
    """
    return _cut(_linear_map(irreps_in, irreps_out, len(weight))(weight), _shapes(irreps_in, irreps_out))


@functools.cache
def _shapes(irreps_in: str, irreps_out: str) -> list[tuple[int, int] | None]:
    """Of the matrix of each block of the input."""
    a, b = edge_layout(irreps_of(irreps_in)), edge_layout(irreps_of(irreps_out))
    targets = [b.find(block.m, block.sigma) for block in a.blocks]
    return [None if to is None else (block.c, to.c) for block, to in zip(a.blocks, targets, strict=True)]


def _cut(numbers: torch.Tensor, shapes: Sequence[tuple[int, ...] | None]) -> Matrices:
    """The inverse of `flat`."""
    parts = iter(numbers.split([math.prod(s) for s in shapes if s is not None]))
    return [None if s is None else next(parts).view(s) for s in shapes]


def _starts(shapes: Sequence[tuple[int, ...] | None]) -> list[int]:
    """Where each matrix begins in `flat`, and where the last ends."""
    return [0, *accumulate(0 if s is None else math.prod(s) for s in shapes)]


@functools.cache
def _linear_map(irreps_in: str, irreps_out: str, n_weights: int) -> SparseMap:
    """From weights to matrices."""
    a, b = edge_layout(irreps_of(irreps_in)), edge_layout(irreps_of(irreps_out))
    shapes = _shapes(irreps_in, irreps_out)
    starts, to, of = _starts(shapes), [], []
    for block, start, shape in zip(a.blocks, starts, shapes, strict=False):
        if shape is None:
            continue
        for part, ir in zip(plan(a.irreps, b.irreps), _common(a, b), strict=True):
            rows, columns = _columns(a, block, ir), _columns(b, b.find(block.m, block.sigma), ir)
            if len(rows) and len(columns):
                to.append((start + rows[:, None] * shape[1] + columns).flatten())
                of.append(part.weight.flatten())
    return _map_of(to, of, None, starts[-1], n_weights)


def _map_of(
    to: list[torch.Tensor], of: list[torch.Tensor], coefficients: list[torch.Tensor] | None, n_to: int, n_of: int
) -> SparseMap:
    none = torch.zeros(0, dtype=torch.int64)
    rows, columns = torch.cat([none, *to]), torch.cat([none, *of])
    ones = torch.ones(len(rows), dtype=torch.float64)
    return SparseMap(rows, columns, ones if coefficients is None else torch.cat([ones[:0], *coefficients]), n_to, n_of)


def _common(a: EdgeLayout, b: EdgeLayout) -> list[object]:
    """The irreps that both have, in the order of `plan`."""
    there = {ir for mul, ir in b.irreps if mul}
    return list(dict.fromkeys(ir for mul, ir in a.irreps if mul and ir in there))


def _columns(layout: EdgeLayout, block: Block, ir: object) -> torch.Tensor:
    """The columns of a block that belong to an irrep, all its blocks in the irreps one after the other."""
    found = [torch.arange(c.start, c.stop) for c in block.channels if layout.irreps[c.irrep].ir == ir]
    return torch.cat([torch.empty(0, dtype=torch.int64), *found])


def product_matrices(
    path_weight: torch.Tensor, weight: torch.Tensor, irreps_x: str, l_max: int, irreps_out: str, onsite: bool = False
) -> Matrices:
    """Returns the matrices of a depthwise product with an edge's harmonics, shared weights, followed by a linear map.

    M_m,uv = Σ_p c(p, m) w_p,u W_(p,u),v over the paths p of `ops.depthwise_tensor_product`.

    Args:
        path_weight: w [p], shared by all edges.
        weight: W of the linear map from `depthwise_irreps(irreps_x, harmonics, irreps_x)[0]` to `irreps_out`.
        irreps_x: irreps of the features; only these irreps are kept in the product.
        l_max: largest degree of the harmonics.
        irreps_out: irreps of the result.
        onsite: the matrices of edges of zero length, whose harmonics vanish beyond degree 0.
    """
    spread, combine = _product_maps(irreps_x, l_max, irreps_out, onsite, len(path_weight), len(weight))
    return _cut(combine(spread(path_weight) * weight), _shapes(irreps_x, irreps_out))


@functools.cache
def _product_maps(
    irreps_x: str, l_max: int, irreps_out: str, onsite: bool, n_paths: int, n_weights: int
) -> tuple[SparseMap, SparseMap]:
    """From path weights to the weights of the linear map that they scale, and from those to matrices."""
    from e3nn import o3

    x, harmonics = irreps_of(irreps_x), o3.Irreps.spherical_harmonics(l_max)
    a, b = edge_layout(x), edge_layout(irreps_of(irreps_out))
    product = depthwise_irreps(x, harmonics, x)[0]
    weights = dict(zip(_common(edge_layout(product), b), plan(product, b.irreps), strict=True))
    ordered = output_order(paths(x, harmonics, x))
    of_slice = {(s.start, s.stop): i for i, s in enumerate(x.slices())}
    shapes = _shapes(irreps_x, irreps_out)
    starts = _starts(shapes)
    spread: tuple[list, list] = ([], [])
    combine: tuple[list, list, list] = ([], [], [])
    for ir, part in weights.items():
        row = 0
        for path in (p for p in ordered if p.ir == ir):
            own = part.weight[row : row + path.mul_x]  # of the channels of this path [u, v]
            row += path.mul_x
            spread[0].append(own.flatten())
            spread[1].append(torch.arange(path.weight.start, path.weight.stop)[:, None].expand_as(own).flatten())
            irrep = of_slice[path.x.start, path.x.stop]
            for block, start, shape in zip(a.blocks, starts, shapes, strict=False):
                channels = next((c for c in block.channels if c.irrep == irrep), None)
                if shape is None or channels is None or block.m > ir.l or (onsite and path.l_y > 0):
                    continue
                columns = _columns(b, b.find(block.m, block.sigma), ir)
                c = edge_coefficient(path.l_x, x[irrep].ir.p, path.l_y, ir.l, block.m)
                if c and len(columns):
                    rows = torch.arange(channels.start, channels.stop)
                    combine[0].append((start + rows[:, None] * shape[1] + columns).flatten())
                    combine[1].append(own.flatten())
                    combine[2].append(torch.full((own.numel(),), c, dtype=torch.float64))
    return _map_of(*spread, None, n_weights, n_paths), _map_of(*combine, starts[-1], n_weights)


def through_heads(values: Matrices, projection: Matrices, head_irreps: str, n_heads: int) -> Matrices:
    """Returns, for each block, the matrices [h, c_in, c_out] of values followed by a projection, one for each head.

    Args:
        values: to the heads' values, whose channels of each irrep are (head, channel).
        projection: from the heads' values.
        head_irreps: irreps of the values; each multiplicity is n_heads times a head's.
        n_heads: number of heads.
    """
    pairs = [None if v is None or p is None else (v, p) for v, p in zip(values, projection, strict=True)]
    sizes = [None if pair is None else (len(pair[0]), pair[1].shape[1]) for pair in pairs]
    if not any(pairs):
        return [None] * len(pairs)
    orders = _head_orders(head_irreps, n_heads, tuple(sizes))
    left, right = (order(flat([pair and pair[i] for pair in pairs])) for i, order in enumerate(orders))
    depths = [pair and len(pair[1]) // n_heads for pair in pairs]
    left = _cut(left, [s and (n_heads, s[0], c) for s, c in zip(sizes, depths, strict=True)])
    right = _cut(right, [s and (n_heads, c, s[1]) for s, c in zip(sizes, depths, strict=True)])
    return [a if a is None else torch.bmm(a, b) for a, b in zip(left, right, strict=True)]


@functools.cache
def _head_orders(
    head_irreps: str, n_heads: int, sizes: tuple[tuple[int, int] | None, ...]
) -> tuple[SparseMap, SparseMap]:
    """From matrices [u, (all)] and [(all), v], flat, to those of each head [h, u, c] and [h, c, v]."""
    found: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    starts = [0, 0]
    for block, size in zip(edge_layout(irreps_of(head_irreps)).blocks, sizes, strict=True):
        if size is None:
            continue
        # The columns of each head [h, c].
        own = torch.cat([torch.arange(c.start, c.stop).reshape(n_heads, -1) for c in block.channels], dim=1)
        u, v = (torch.arange(n) for n in size)
        found[0].append(starts[0] + (u[:, None] * block.c + own[:, None, :]).flatten())
        found[1].append(starts[1] + (own[:, :, None] * size[1] + v).flatten())
        starts = [starts[0] + size[0] * block.c, starts[1] + block.c * size[1]]
    return tuple(_map_of([torch.arange(n)], of, None, n, n) for of, n in zip(found, starts, strict=True))
