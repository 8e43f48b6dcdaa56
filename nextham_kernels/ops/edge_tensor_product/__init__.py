"""Depthwise tensor product with the harmonics of the edge, then a linear map, both in the edge frame.

In the edge frame (`edge_layout`) a path p = (block of x, l₂, l₃p₃) multiplies components of |m| by a number c_p,|m|
(`edge_coefficient`). So for each irrep l₃p₃ of the result and each m,

    y_ewm = Σ_(p,u) W_(p,u),w c_p,|m| r_e,(p,u) x_eum,    p over the paths to l₃p₃, u over the channels of p

which is `linear(depthwise_tensor_product(x, Y, r))` with Y the `spherical_harmonics` of the edge up to l_max, all seen
in the edge frame; the kernel never stores the product. Paths, and with them the order of `radial` and of the product's
channels, are those of `depthwise_tensor_product` with the irreps of x to keep; the weights are laid out as in `linear`.
On on-site edges (zero length) only the paths with l₂ = 0 contribute, as there is no other harmonic.

It is linear in x, the radial weights and the linear weights, but for a bias of the 0e channels that may be added; any
derivative up to second order exists. Source: DESIGN E1; the product is that of `depthwise_tensor_product`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch

from nextham_kernels.checks import check_shapes, check_tensors
from nextham_kernels.clebsch_gordan import IrrepsLike, irreps_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.edge_tensor_product import cpu, reference
from nextham_kernels.registration import define

__all__ = ["edge_tensor_product", "edge_tensor_product_sizes"]


def _terms(i: int, tensors: list[torch.Tensor]) -> list[torch.Tensor | None]:
    """W c (t Vᵀ + v) x + b: what stands beside each of them."""
    x, radial, weight, onsite, radial_weight, radial_bias, bias = tensors
    if i == 6:
        return [None, radial, weight, onsite, radial_weight, radial_bias, bias]
    if radial_weight.numel() and i in (1, 4):
        radial_bias = None
    elif i == 5:
        radial = None
    return [x, radial, weight, onsite, radial_weight, radial_bias, bias[:0]]


_op = define(
    "edge_tensor_product",
    "Tensor x, Tensor radial, Tensor linear_weight, Tensor onsite, Tensor radial_weight, Tensor radial_bias, "
    "Tensor bias, str irreps_x, int l_max, str irreps_out",
    reference.edge_tensor_product,
    cpu.forward,
    cpu.backward,
    lambda x, *rest: x.new_empty(x.shape[0], irreps_of(rest[-1]).dim),
    terms=_terms,
    gpu=("edge_tensor_product.kernel.forward", "edge_tensor_product.kernel.backward"),
)


def edge_tensor_product(
    x: torch.Tensor,
    radial: torch.Tensor,
    linear_weight: torch.Tensor,
    onsite: torch.Tensor,
    irreps_x: IrrepsLike,
    l_max: int,
    irreps_out: IrrepsLike,
    radial_weight: torch.Tensor | None = None,
    radial_bias: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """Multiplies rows of the edge frame by the edge's harmonics and maps them; the formula is on the op's page.

    Args:
        x: rows [e, d] in the edge layout of `irreps_x`, float32 or float64.
        radial: r [e, p], the weight of each channel of each path, same dtype; or t [e, c] with `radial_weight`.
        linear_weight: W [w], same dtype; p and w from `edge_tensor_product_sizes`.
        onsite: bool [e], true where the edge has zero length.
        irreps_x: layout of `x`, and the irreps that the product keeps.
        l_max: largest degree of the harmonics.
        irreps_out: layout of the result; blocks of an irrep that the product does not have come out zero.
        radial_weight: V [p, c], for r = t Vᵀ + v, the last layer of a radial MLP: r (4.6 kB per edge in NextHAM) is
            then made for a few edges at a time and never stored.
        radial_bias: v [p], with `radial_weight` only; None for zero.
        bias: [b], added to the 0e channels of the result.

    Returns:
        Rows [e, d_out] in the edge layout of `irreps_out`.

    Raises:
        ValueError: a wrong shape, or a negative l_max.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> x, radial, onsite = torch.tensor([[3.0, 5.0, 0.0, 0.0]]), torch.ones(2, 4), torch.tensor([False, True])
        >>> edge_tensor_product(x.expand(2, 4), radial, torch.ones(2), onsite, "1x0e+1x1o", 1, "1x0e")
        tensor([[8.],
                [3.]])
    """
    optional = {"radial_weight": radial_weight, "radial_bias": radial_bias, "bias": bias}
    given = {name: t for name, t in optional.items() if t is not None}
    check_tensors(x=x, radial=radial, linear_weight=linear_weight, **given)
    if onsite.dtype != torch.bool or onsite.device != x.device:
        raise TypeError(f"onsite: expected dtype bool on device {x.device} as x, got {onsite.dtype} on {onsite.device}")
    names, (n_radial, n_weights) = _names(irreps_x, irreps_out), edge_tensor_product_sizes(irreps_x, l_max, irreps_out)
    check_shapes(
        x=(x, f"e {names.dim}"),
        radial=(radial, f"e {n_radial}" if radial_weight is None else "e c"),
        linear_weight=(linear_weight, str(n_weights)),
        onsite=(onsite, "e"),
        **({} if radial_weight is None else {"radial_weight": (radial_weight, f"{n_radial} c")}),
        **({} if radial_bias is None else {"radial_bias": (radial_bias, str(n_radial))}),
        **({} if bias is None else {"bias": (bias, str(names.n_scalars))}),
    )
    if radial_weight is None and radial_bias is not None:
        raise ValueError("radial_bias: expected None without radial_weight")
    if radial_weight is None:
        radial_weight, radial_bias = x.new_empty(0, 0), x.new_empty(0)
    elif radial_bias is None:
        radial_bias = x.new_zeros(n_radial)
    bias = x.new_empty(0) if bias is None else bias
    return _op(x, radial, linear_weight, onsite, radial_weight, radial_bias, bias, names.x, l_max, names.out)


@functools.cache
def edge_tensor_product_sizes(irreps_x: IrrepsLike, l_max: int, irreps_out: IrrepsLike) -> tuple[int, int]:
    """Returns p, the number of radial weights of an edge, and w, the length of the linear weights.

    Raises:
        ValueError: a negative l_max.
    """
    if l_max < 0:
        raise ValueError(f"l_max: expected 0 or a positive number, got {l_max}")
    plan = reference.plan(str(irreps_of(irreps_x)), l_max, str(irreps_of(irreps_out)))
    return len(plan.directed), plan.n_weights


class _Names(NamedTuple):
    x: str
    out: str
    dim: int
    n_scalars: int


@functools.cache
def _names(irreps_x: IrrepsLike, irreps_out: IrrepsLike) -> _Names:
    """Irreps as words, which takes 40 µs, the dimension of x, and the number of 0e channels of the result."""
    x, out = irreps_of(irreps_x), irreps_of(irreps_out)
    return _Names(str(x), str(out), x.dim, len(edge_layout(out).scalars))
