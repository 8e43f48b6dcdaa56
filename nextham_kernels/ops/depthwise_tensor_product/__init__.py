"""Depthwise ('uvu') tensor product of features with a second set of irreps, such as spherical harmonics.

A path p = (block 1, block 2, l₃p₃) exists for every l₃ with |l₁ − l₂| ≤ l₃ ≤ l₁ + l₂ and p₃ = p₁p₂ whose irrep is in
`irreps_keep`:

    t_e,(p,u),k = √(2l₃+1) Σ_v w_e,p,uv Σ_ij wigner_3j(l₁,l₂,l₃)_ijk x_e,ui y_e,vj

Paths are counted block 1 first, then block 2, then l₃ ascending; that is the order of the weights, mul₁·mul₂ per path
(row-major [u, v]). The output's irreps are sorted by l, even parity first; within an irrep the paths' channels are
stacked in path order. e3nn calls this `irrep_normalization='component'`, `path_normalization='none'`.

It is linear in x, y and the weight; any derivative exists. The kernels are those of `tensor_product`. Source: e3nn,
`o3.TensorProduct`; Equiformer, Liao and Smidt (2022).
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch

from nextham_kernels.checks import check_irreps_dim, check_tensors
from nextham_kernels.clebsch_gordan import IrrepsLike, irreps_of
from nextham_kernels.ops.depthwise_tensor_product import reference
from nextham_kernels.ops.tensor_product import Path, Product, tensor_product

if TYPE_CHECKING:
    from e3nn import o3

__all__ = ["depthwise_irreps", "depthwise_tensor_product"]


def depthwise_tensor_product(
    x: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor,
    irreps_x: IrrepsLike,
    irreps_y: IrrepsLike,
    irreps_keep: IrrepsLike,
) -> torch.Tensor:
    """Multiplies features by a second set of irreps channel by channel; the formula is on the op's page.

    Args:
        x: features [e, d₁], float32 or float64.
        y: [e, d₂], same dtype; usually the spherical harmonics, one channel per degree.
        weight: [w] shared by all edges, or [e, w] per edge; w from `depthwise_irreps`.
        irreps_x: layout of `x`.
        irreps_y: layout of `y`.
        irreps_keep: the irreps that the output may have; multiplicities do not matter.

    Returns:
        [e, d₃] in the layout `depthwise_irreps(...)[0]`.

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> x, y = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[0.0, 0.0, 1.0]])
        >>> depthwise_tensor_product(x, y, torch.ones(1), "1x1o", "1x1o", "0e").round(decimals=4)
        tensor([[0.5774]])
    """
    irreps_x, irreps_y, irreps_keep = irreps_of(irreps_x), irreps_of(irreps_y), irreps_of(irreps_keep)
    check_tensors(x=x, y=y, weight=weight)
    check_irreps_dim("x", x, irreps_x, irreps_x.dim)
    check_irreps_dim("y", y, irreps_y, irreps_y.dim)
    if y.shape[0] != x.shape[0]:
        raise ValueError(f"y: expected {x.shape[0]} edges as x, got {y.shape[0]}")
    product = _product(irreps_x, irreps_y, irreps_keep)
    return tensor_product(x, y, weight, product)


@functools.cache
def _product(irreps_x: o3.Irreps, irreps_y: o3.Irreps, irreps_keep: o3.Irreps) -> Product:
    """The same paths, in the order of their weights, for the kernels of `tensor_product`."""
    found = reference.paths(irreps_x, irreps_y, irreps_keep)
    blocks = reference.output_order(found)
    layout = irreps_of("+".join(f"{path.mul_x}x{path.ir}" for path in blocks))
    first, second = irreps_x.slices(), irreps_y.slices()
    return Product(
        irreps_x,
        irreps_y,
        layout,
        tuple(
            Path(first.index(p.x), second.index(p.y), blocks.index(p), "uvu", True, (2 * p.ir.l + 1) ** 0.5)
            for p in found
        ),
    )


def depthwise_irreps(irreps_x: IrrepsLike, irreps_y: IrrepsLike, irreps_keep: IrrepsLike) -> tuple[o3.Irreps, int]:
    """Returns the layout of the product and the number of its weights."""
    found = reference.paths(irreps_of(irreps_x), irreps_of(irreps_y), irreps_of(irreps_keep))
    layout = irreps_of("+".join(f"{path.mul_x}x{path.ir}" for path in reference.output_order(found)))
    return layout.simplify(), sum(path.mul_x * path.mul_y for path in found)
