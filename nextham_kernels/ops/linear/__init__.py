"""Irreps-wise linear map.

y_evk = Σ_u W_uv x_euk + b_v, over all channels u of the irrep (l, p) that channel v has; the bias exists for 0e
channels only. There is no 1/√fan-in: the weights carry the whole scale.

The weight vector is laid out as e3nn's `Linear` (and the published `LinearRS`) has it: for each pair (input block,
output block) of equal irrep, input-major, a matrix [mul_in, mul_out], row-major. The bias has one number per 0e output
channel, in their order.

Any derivative exists. The kernels are those of `tensor_product`. Source: e3nn, `o3.Linear`, without path normalisation.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from nextham_kernels.checks import check_irreps_dim, check_shapes, check_tensors
from nextham_kernels.clebsch_gordan import IrrepsLike, irreps_of
from nextham_kernels.ops.linear import reference
from nextham_kernels.ops.tensor_product import Path, Product, tensor_product

if TYPE_CHECKING:
    from e3nn import o3

__all__ = ["linear", "linear_fan_in", "linear_sizes"]


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    irreps_in: IrrepsLike,
    irreps_out: IrrepsLike,
) -> torch.Tensor:
    """Applies an irreps-wise linear map: y_evk = Σ_u W_uv x_euk + b_v.

    Args:
        x: features [e, d_in], float32 or float64.
        weight: [w], same dtype; layout on the op's page, length from `linear_sizes`.
        bias: [v], one number per 0e output channel, or None.
        irreps_in: layout of `x`.
        irreps_out: layout of the result; blocks without an equal input irrep come out zero.

    Returns:
        [e, d_out].

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> linear(torch.ones(1, 4), torch.tensor([2.0, 3.0]), torch.tensor([1.0]), "1x0e+1x1o", "1x1o+1x0e")
        tensor([[3., 3., 3., 3.]])
    """
    irreps_in, irreps_out = irreps_of(irreps_in), irreps_of(irreps_out)
    check_tensors(x=x, weight=weight, **({} if bias is None else {"bias": bias}))
    check_irreps_dim("x", x, irreps_in, irreps_in.dim)
    n_weights, n_bias = linear_sizes(irreps_in, irreps_out)
    check_shapes(weight=(weight, str(n_weights)), **({} if bias is None else {"bias": (bias, str(n_bias))}))
    product, scalars = _product(irreps_in, irreps_out)
    y = tensor_product(x, x.new_ones(x.shape[0], 1), weight, product)
    if bias is not None and n_bias:
        y = y.index_add(1, scalars.to(x.device), bias.expand(x.shape[0], -1))
    return y


@functools.cache
def _product(irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> tuple[Product, torch.Tensor]:
    """The same map as a product with the scalar 1, for the kernels of `tensor_product`; columns of the 0e channels."""
    paths = tuple(
        # C_i0k of an irrep and a scalar is δ_ik / √(2l + 1)
        Path(i, 0, j, "uvw", True, ir.dim**0.5)
        for i, (_, ir) in enumerate(irreps_in)
        for j, (_, ir_out) in enumerate(irreps_out)
        if ir == ir_out
    )
    slices = zip(irreps_out, irreps_out.slices(), strict=True)
    columns = [torch.arange(s.start, s.stop) for (_, ir), s in slices if ir.is_scalar()]
    return Product(irreps_in, irreps_of("0e"), irreps_out, paths), torch.cat([torch.arange(0), *columns])


def linear_sizes(irreps_in: IrrepsLike, irreps_out: IrrepsLike) -> tuple[int, int]:
    """Returns the length of the weight vector and of the bias of a linear map."""
    plan = reference.plan(irreps_of(irreps_in), irreps_of(irreps_out))
    n_bias = sum(mul for mul, ir in irreps_of(irreps_out) if ir.l == 0 and ir.p == 1)
    return sum(part.weight.numel() for part in plan), n_bias


def linear_fan_in(irreps_in: IrrepsLike, irreps_out: IrrepsLike) -> torch.Tensor:
    """Returns, for each weight, the number of input channels that its output sums over [w]."""
    plan = reference.plan(irreps_of(irreps_in), irreps_of(irreps_out))
    fan_in = torch.zeros(sum(part.weight.numel() for part in plan))
    for part in plan:
        fan_in[part.weight.flatten()] = float(part.weight.shape[0])
    return fan_in
