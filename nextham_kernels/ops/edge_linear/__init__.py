"""Linear maps of edge rows: one dense matrix per |m|, which both components share.

    y_e,m,v = Σ_u M_m,uv x_e,m,u                    edge_linear
    y_e,m,v = Σ_h a_eh Σ_u M_m,huv x_e,m,u          head_linear

In the edge frame (`nextham_kernels.edge_layout`) every map that commutes with rotations about the edge has this form:
irreps-wise linear maps, products with the edge's harmonics, and all compositions of them. `folding` makes the matrices.
Derivatives of any order exist for edge_linear, first ones for head_linear. There is no kernel of our own: the products
go to torch (MKL, cuBLAS), 90 % of whose rate at these sizes they reach.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nextham_kernels.checks import check_irreps_dim, check_shapes, check_tensors
from nextham_kernels.clebsch_gordan import IrrepsLike, irreps_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.edge_linear import reference

__all__ = ["edge_linear", "head_linear"]

Matrices = Sequence[torch.Tensor | None]


def edge_linear(x: torch.Tensor, matrices: Matrices, irreps_in: IrrepsLike, irreps_out: IrrepsLike) -> torch.Tensor:
    """Applies one matrix per |m| to edge rows; the formula is on the op's page.

    Args:
        x: rows [e, d_in] in the edge layout of `irreps_in`, float32 or float64.
        matrices: one [c_in, c_out] for each block of that layout; None where the result has no such block.
        irreps_in: irreps of the rows.
        irreps_out: irreps of the result.

    Returns:
        [e, d_out] in the edge layout of `irreps_out`; blocks without a matrix are zero.

    Raises:
        ValueError: a wrong shape or number of matrices.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> double, triple = torch.tensor([[2.0]]), torch.tensor([[3.0]])
        >>> edge_linear(torch.tensor([[1.0, 10.0, 20.0]]), [double, triple], "1x1o", "1x1o")
        tensor([[ 2., 30., 60.]])
    """
    _check(x, matrices, irreps_in, irreps_out, "")
    irreps_in, irreps_out = str(irreps_in), str(irreps_out)
    pieces = reference.pieces(irreps_in, irreps_out)
    parts = [x[:, source] @ matrices[b] for source, _, b in pieces if matrices[b] is not None]
    return _assemble(x, parts, matrices, irreps_in, irreps_out)


def head_linear(
    x: torch.Tensor, heads: torch.Tensor, matrices: Matrices, irreps_in: IrrepsLike, irreps_out: IrrepsLike
) -> torch.Tensor:
    """Applies one matrix per |m| and head, weighted by each edge's head coefficients; the formula is on the op's page.

    Args:
        x: rows [e, d_in] in the edge layout of `irreps_in`, float32 or float64.
        heads: a [e, h].
        matrices: one [h, c_in, c_out] for each block of that layout; None where the result has no such block.
        irreps_in: irreps of the rows.
        irreps_out: irreps of the result.

    Returns:
        [e, d_out] in the edge layout of `irreps_out`; blocks without a matrix are zero.

    Raises:
        ValueError: a wrong shape or number of matrices.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> x, heads = torch.tensor([[1.0]]), torch.tensor([[2.0, 5.0]])
        >>> head_linear(x, heads, [torch.tensor([[[1.0]], [[10.0]]])], "1x0e", "1x0e")
        tensor([[52.]])
    """
    check_shapes(heads=(heads, f"{len(x)} h"))
    check_tensors(x=x, heads=heads)
    _check(x, matrices, irreps_in, irreps_out, f"{heads.shape[1]} ")
    there = [m for m in matrices if m is not None]
    return _HeadLinear.apply(x, heads, str(irreps_in), str(irreps_out), [m is not None for m in matrices], *there)


class _HeadLinear(torch.autograd.Function):
    """Keeps x and a alone; a ⊗ x, n_heads times as large, is made again for the gradient of the matrices."""

    @staticmethod
    def forward(
        x: torch.Tensor, heads: torch.Tensor, irreps_in: str, irreps_out: str, has: list[bool], *there: torch.Tensor
    ) -> torch.Tensor:
        matrices = _spread(has, there)
        pieces = reference.pieces(irreps_in, irreps_out)
        parts = [
            _outer(heads, x[:, source]) @ matrices[b].flatten(0, 1)
            for source, _, b in pieces
            if matrices[b] is not None
        ]
        return _assemble(x, parts, matrices, irreps_in, irreps_out)

    @staticmethod
    def setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: torch.Tensor) -> None:
        x, heads, *settings = inputs
        ctx.settings = settings[:3]
        ctx.save_for_backward(x, heads, *settings[3:])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: torch.Tensor) -> tuple:
        x, heads, *there = ctx.saved_tensors
        irreps_in, irreps_out, has = ctx.settings
        n_heads = heads.shape[1]
        matrices = _spread(has, there)
        grad_x, grad_heads = torch.zeros_like(x), torch.zeros_like(heads)
        grads = {b: torch.zeros_like(m).flatten(0, 1) for b, m in enumerate(matrices) if m is not None}
        for source, target, b in reference.pieces(irreps_in, irreps_out):
            if matrices[b] is None:
                continue
            part, above = x[:, source], grad[:, target]
            pulled = (above @ matrices[b].flatten(0, 1).T).unflatten(1, (n_heads, -1))  # [e, h, u]
            grad_x[:, source] = torch.bmm(heads[:, None], pulled)[:, 0]
            grad_heads += torch.bmm(pulled, part[:, :, None])[:, :, 0]
            grads[b].addmm_(_outer(heads, part).T, above)
        back = [g.unflatten(0, (n_heads, -1)) for g in grads.values()]
        return grad_x, grad_heads, None, None, None, *back


def _spread(has: list[bool], there: Sequence[torch.Tensor]) -> list[torch.Tensor | None]:
    rest = iter(there)
    return [next(rest) if one else None for one in has]


def _outer(heads: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The outer product a ⊗ x of each edge [e, (h, u)]."""
    return (heads[:, :, None] * x[:, None]).flatten(1)


def _assemble(
    x: torch.Tensor, parts: list[torch.Tensor], matrices: Matrices, irreps_in: str, irreps_out: str
) -> torch.Tensor:
    """The row of the results in the order of the output's blocks, zeros where there is none."""
    made = [target for _, target, b in reference.pieces(irreps_in, irreps_out) if matrices[b] is not None]
    row: list[torch.Tensor] = []
    by_start = {target.start: part for target, part in zip(made, parts, strict=True)}
    for block in edge_layout(irreps_of(irreps_out)).blocks:
        for component in range(block.n):
            start = block.columns(component).start
            row.append(by_start[start] if start in by_start else x.new_zeros(len(x), block.c))
    return torch.cat(row, dim=1)


def _check(x: torch.Tensor, matrices: Matrices, irreps_in: IrrepsLike, irreps_out: IrrepsLike, heads: str) -> None:
    irreps_in, irreps_out = irreps_of(irreps_in), irreps_of(irreps_out)
    check_irreps_dim("x", x, irreps_in, irreps_in.dim)
    a, b = edge_layout(irreps_in), edge_layout(irreps_out)
    if len(matrices) != len(a.blocks):
        raise ValueError(f"matrices: expected {len(a.blocks)}, one for each block of {irreps_in}, got {len(matrices)}")
    for number, (block, matrix) in enumerate(zip(a.blocks, matrices, strict=True)):
        target = b.find(block.m, block.sigma)
        if matrix is None:
            continue
        if target is None:
            raise ValueError(f"matrices[{number}]: expected None, {irreps_out} has no block of |m| = {block.m}")
        check_shapes(**{f"matrices[{number}]": (matrix, f"{heads}{block.c} {target.c}")})
        check_tensors(x=x, **{f"matrices[{number}]": matrix})
