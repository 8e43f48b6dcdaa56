"""Weights of e3nn-style maps as one dense matrix per |m| of the edge frame.

A list of matrices has one entry [c_in, c_out] (or None, where the output lacks it) for each block of the input's
`edge_layout`; `flat` makes of it what `edge_linear` and `head_linear` take. Everything is linear in the weights and
differentiable, so training folds in every step.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import Block, EdgeLayout, edge_coefficient, edge_layout
from nextham_kernels.ops.depthwise_tensor_product import depthwise_irreps
from nextham_kernels.ops.depthwise_tensor_product.reference import output_order, paths
from nextham_kernels.ops.linear.reference import plan

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
    padded = torch.cat([weight, weight.new_zeros(1)])
    return [None if i is None else padded[i] for i in _linear_index_on(irreps_in, irreps_out, weight.device)]


@functools.cache
def _linear_index_on(irreps_in: str, irreps_out: str, device: torch.device) -> list[torch.Tensor | None]:
    return [None if index is None else index.to(device) for index in _linear_index(irreps_in, irreps_out)]


@functools.cache
def _linear_index(irreps_in: str, irreps_out: str) -> list[torch.Tensor | None]:
    """Which weight stands where in each matrix; −1, the appended zero, where none does."""
    a, b = edge_layout(irreps_of(irreps_in)), edge_layout(irreps_of(irreps_out))
    result: list[torch.Tensor | None] = []
    for block in a.blocks:
        target = b.find(block.m, block.sigma)
        if target is None:
            result.append(None)
            continue
        index = torch.full((block.c, target.c), -1)
        for part, ir in zip(plan(a.irreps, b.irreps), _common(a, b), strict=True):
            rows, columns = _columns(a, block, ir), _columns(b, target, ir)
            if len(rows) and len(columns):
                index[rows[:, None], columns] = part.weight
        result.append(index)
    return result


def _common(a: EdgeLayout, b: EdgeLayout) -> list[object]:
    """The irreps that both have, in the order of `plan`."""
    there = {ir for mul, ir in b.irreps if mul}
    return list(dict.fromkeys(ir for mul, ir in a.irreps if mul and ir in there))


def _columns(layout: EdgeLayout, block: Block, ir: object) -> torch.Tensor:
    """The columns of a block that belong to an irrep, all its blocks in the irreps one after the other."""
    found = [torch.arange(c.start, c.stop) for c in block.channels if layout.irreps[c.irrep].ir == ir]
    return torch.cat([torch.empty(0, dtype=torch.int64), *found])


class _Term(NamedTuple):
    """What one output irrep adds to one matrix."""

    block: int
    rows: torch.Tensor  # of the matrix, one for each (path, channel)
    columns: torch.Tensor  # of the matrix
    path_weight: torch.Tensor  # which path weight, for each (path, channel)
    weight: torch.Tensor  # which weights of the linear map [(path, channel), column]
    coefficient: torch.Tensor  # float64, for each (path, channel)


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
    a, b = edge_layout(irreps_of(irreps_x)), edge_layout(irreps_of(irreps_out))
    result: Matrices = []
    for block in a.blocks:
        target = b.find(block.m, block.sigma)
        result.append(None if target is None else weight.new_zeros(block.c, target.c))
    for term in _terms_on(irreps_x, l_max, irreps_out, onsite, weight.device):
        scale = path_weight[term.path_weight] * term.coefficient.to(path_weight)
        values = scale[:, None] * weight[term.weight]
        sums = weight.new_zeros(len(result[term.block]), values.shape[1]).index_add(0, term.rows, values)
        result[term.block] = result[term.block].index_copy(1, term.columns, sums)
    return result


@functools.cache
def _terms_on(irreps_x: str, l_max: int, irreps_out: str, onsite: bool, device: torch.device) -> list[_Term]:
    terms = _product_terms(irreps_x, l_max, irreps_out, onsite)
    return [_Term(t.block, *(x.to(device) for x in t[1:])) for t in terms]


@functools.cache
def _product_terms(irreps_x: str, l_max: int, irreps_out: str, onsite: bool) -> list[_Term]:
    from e3nn import o3

    x, harmonics = irreps_of(irreps_x), o3.Irreps.spherical_harmonics(l_max)
    a, b = edge_layout(x), edge_layout(irreps_of(irreps_out))
    product = depthwise_irreps(x, harmonics, x)[0]
    weights = dict(zip(_common(edge_layout(product), b), plan(product, b.irreps), strict=True))
    ordered = output_order(paths(x, harmonics, x))
    of_slice = {(s.start, s.stop): i for i, s in enumerate(x.slices())}
    terms = []
    for number, block in enumerate(a.blocks):
        target = b.find(block.m, block.sigma)
        for ir, part in weights.items() if target is not None else ():
            columns = _columns(b, target, ir)
            rows, path_index, weight_rows, coefficients, start = [], [], [], [], 0
            for path in (p for p in ordered if p.ir == ir):
                irrep = of_slice[path.x.start, path.x.stop]
                channels = next((c for c in block.channels if c.irrep == irrep), None)
                if channels is not None and block.m <= ir.l and (path.l_y == 0 or not onsite) and len(columns):
                    c = edge_coefficient(path.l_x, x[irrep].ir.p, path.l_y, ir.l, block.m)
                    if c:
                        rows.append(torch.arange(channels.start, channels.stop))
                        path_index.append(torch.arange(path.weight.start, path.weight.stop))
                        weight_rows.append(torch.arange(start, start + path.mul_x))
                        coefficients.append(torch.full((path.mul_x,), c, dtype=torch.float64))
                start += path.mul_x
            if rows:
                index = part.weight[torch.cat(weight_rows)]
                terms.append(
                    _Term(number, torch.cat(rows), columns, torch.cat(path_index), index, torch.cat(coefficients))
                )
    return terms


def through_heads(values: Matrices, projection: Matrices, head_irreps: str, n_heads: int) -> Matrices:
    """Returns, for each block, the matrices [h, c_in, c_out] of values followed by a projection, one for each head.

    Args:
        values: to the heads' values, whose channels of each irrep are (head, channel).
        projection: from the heads' values.
        head_irreps: irreps of the values; each multiplicity is n_heads times a head's.
        n_heads: number of heads.
    """
    layout: EdgeLayout = edge_layout(irreps_of(head_irreps))
    result: Matrices = []
    for block, value, project in zip(layout.blocks, values, projection, strict=True):
        if value is None or project is None:
            result.append(None)
            continue
        order = _head_order(block, n_heads)
        result.append(torch.einsum("uhc,hcv->huv", value[:, order], project[order]))
    return result


def _head_order(block: Block, n_heads: int) -> torch.Tensor:
    """The columns of each head [h, c]."""
    parts: Sequence[torch.Tensor] = [torch.arange(c.start, c.stop).reshape(n_heads, -1) for c in block.channels]
    return torch.cat(list(parts), dim=1)
