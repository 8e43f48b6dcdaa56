"""Linear maps of edge rows: one dense matrix per |m|, which both components share.

    y_e,m,v = Σ_u M_m,uv x_e,m,u (+ b_v on 0e)                          edge_linear
    y_e,m,v = Σ_h a_eh (Σ_u M_m,huv x_e,m,u + b_hv) (+ b_v)             head_linear

In the edge frame (`nextham_kernels.edge_layout`) every map that commutes with rotations about the edge has this form:
irreps-wise linear maps, products with the edge's harmonics, and all compositions of them. `folding` makes the matrices;
they come flat: for each block of the input's layout that the output has too, in that order, M_m row-major
([c_in, c_out], with heads [h, c_in, c_out]). Derivatives exist up to second order.
"""

from __future__ import annotations

import functools

import torch

from nextham_kernels.checks import check_irreps_dim, check_shapes, check_tensors
from nextham_kernels.clebsch_gordan import IrrepsLike, dim_of, irreps_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.edge_linear import cpu, reference
from nextham_kernels.registration import define

__all__ = ["edge_linear", "head_linear"]


def _terms(i: int, tensors: list[torch.Tensor]) -> list[torch.Tensor | None]:
    """Σ_h a_h (M_h x + b_h) + b: what stands beside each of them."""
    x, heads, matrix, bias, onsite = tensors
    if i == 3:
        return [None, heads, matrix, bias, onsite]
    return [x, heads, matrix, bias[: heads.shape[1] if i == 1 else 0], onsite]


_op = define(
    "edge_linear",
    "Tensor x, Tensor heads, Tensor matrix, Tensor bias, Tensor onsite, str irreps_in, str irreps_out",
    reference.edge_linear,
    cpu.forward,
    cpu.backward,
    lambda x, heads, matrix, bias, onsite, irreps_in, irreps_out: x.new_empty(x.shape[0], dim_of(irreps_out)),
    terms=_terms,
    gpu=("edge_linear.kernel.forward", "edge_linear.kernel.backward"),
)


def edge_linear(
    x: torch.Tensor,
    matrix: torch.Tensor,
    irreps_in: IrrepsLike,
    irreps_out: IrrepsLike,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Applies one matrix per |m| to edge rows; the formula is on the op's page.

    Args:
        x: rows [e, d_in] in the edge layout of `irreps_in`, float32 or float64.
        matrix: M [w], flat as on the op's page (`folding.flat` makes it of a list).
        irreps_in: irreps of the rows.
        irreps_out: irreps of the result.
        bias: b [c], added to the 0e channels of the result.

    Returns:
        [e, d_out] in the edge layout of `irreps_out`; blocks that the input lacks are zero.

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> edge_linear(torch.tensor([[1.0, 10.0, 20.0]]), torch.tensor([2.0, 3.0]), "1x1o", "1x1o")
        tensor([[ 2., 30., 60.]])
    """
    name_in, name_out, d_in, n_weights, n_scalars = _plan(irreps_in, irreps_out)
    check_tensors(x=x, matrix=matrix, **({} if bias is None else {"bias": bias}))
    check_irreps_dim("x", x, name_in, d_in)
    check_shapes(matrix=(matrix, str(n_weights)))
    if bias is not None:
        check_shapes(bias=(bias, str(n_scalars)))
    bias = x.new_empty(0, n_scalars) if bias is None else bias[None]
    return _op(x, x.new_empty(x.shape[0], 0), matrix[None], bias, _none(x.device), name_in, name_out)


def head_linear(
    x: torch.Tensor,
    heads: torch.Tensor,
    matrix: torch.Tensor,
    irreps_in: IrrepsLike,
    irreps_out: IrrepsLike,
    bias: torch.Tensor | None = None,
    onsite: torch.Tensor | None = None,
) -> torch.Tensor:
    """Applies one matrix per |m| and head, weighted by each edge's head coefficients; the formula is on the op's page.

    Args:
        x: rows [e, d_in] in the edge layout of `irreps_in`, float32 or float64.
        heads: a [e, h], h at least 1.
        matrix: M [1, w], flat as on the op's page; [2, w] with `onsite`, the second for on-site edges.
        irreps_in: irreps of the rows.
        irreps_out: irreps of the result.
        bias: b of the 0e channels of the result: [h, c], or [h + 1, c] where the last row has the coefficient 1.
        onsite: which edges have zero length [e], bool: their harmonics, and so their maps, are others.

    Returns:
        [e, d_out] in the edge layout of `irreps_out`; blocks that the input lacks are zero.

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> x, heads = torch.tensor([[1.0]]), torch.tensor([[2.0, 5.0]])
        >>> head_linear(x, heads, torch.tensor([[1.0, 10.0]]), "1x0e", "1x0e")
        tensor([[52.]])
    """
    name_in, name_out, d_in, n_weights, n_scalars = _plan(irreps_in, irreps_out)
    check_tensors(x=x, heads=heads, matrix=matrix, **({} if bias is None else {"bias": bias}))
    check_irreps_dim("x", x, name_in, d_in)
    n_heads = check_shapes(heads=(heads, f"{x.shape[0]} h"))["h"]
    if n_heads < 1:
        raise ValueError("heads: expected at least one head, got shape [e, 0]")
    check_shapes(matrix=(matrix, f"{1 if onsite is None else 2} {n_heads * n_weights}"))
    if bias is not None:
        check_shapes(bias=(bias, f"{n_heads + (len(bias) > n_heads)} {n_scalars}"))
    if onsite is not None:
        check_shapes(onsite=(onsite, str(x.shape[0])))
        if onsite.dtype != torch.bool:
            raise TypeError(f"onsite: expected bool, got {onsite.dtype}")
    bias = x.new_empty(0, n_scalars) if bias is None else bias
    return _op(x, heads, matrix, bias, _none(x.device) if onsite is None else onsite, name_in, name_out)


@functools.cache
def _none(device: torch.device) -> torch.Tensor:
    return torch.empty(0, dtype=torch.bool, device=device)


@functools.cache
def _plan(irreps_in: IrrepsLike, irreps_out: IrrepsLike) -> tuple[str, str, int, int, int]:
    """The names, the dimension of the input, and the numbers of weights (for one head) and of 0e channels."""
    name_in, name_out = str(irreps_of(irreps_in)), str(irreps_of(irreps_out))
    n_weights = sum(p.c_in * p.c_out for p in reference.pieces(name_in, name_out))
    return name_in, name_out, dim_of(name_in), n_weights, len(edge_layout(name_out).scalars)
