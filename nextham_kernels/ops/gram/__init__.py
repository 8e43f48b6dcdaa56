"""Gram matrices of irreps features, packed, and products with packed symmetric matrices.

For each block b of the irreps and its channels u ≤ v, in the order of an upper triangle read row by row:

    gram(x, y)_uv = ⟨x_u, y_v⟩ + ⟨x_v, y_u⟩ (u < v),  ⟨x_u, y_u⟩ (u = v)
    gram_apply(C, x)_u = Σ_v C̃_uv x_v,  C̃_uv = C̃_vu = C_uv (u ≤ v)

⟨ , ⟩ sums over the components of an irrep. An entry off the diagonal thus stands for both of its places, and

    Σ C · gram(x, y) = ⟨x, gram_apply(C, y)⟩ = ⟨gram_apply(C, x), y⟩,  ∂/∂x Σ C · gram(x, x) = 2 gram_apply(C, x):

the derivatives of each are made of the other, and exist to any order. gram is invariant under rotation and inversion.

    gram_update(C, x) = x + ρ ‖x‖/(‖g‖ + 1e-5) g,  g = 2 gram_apply(C, x),  norms of whole rows

is what TraceGrad does with them. NextHAM has 980 entries per edge. Source: ours.
"""

from __future__ import annotations

import torch

from nextham_kernels.checks import check_irreps_dim, check_shapes, check_tensors
from nextham_kernels.clebsch_gordan import IrrepsLike, irreps_of
from nextham_kernels.ops.gram import cpu, reference
from nextham_kernels.registration import define

__all__ = ["gram", "gram_apply", "gram_update", "n_pairs"]


def n_pairs(irreps: IrrepsLike) -> int:
    """Returns the number of entries of `gram`, Σ_b mul_b (mul_b + 1)/2."""
    return sum(mul * (mul + 1) // 2 for mul, _ in irreps_of(irreps))


_gram = define(
    "gram",
    "Tensor x, Tensor y, str irreps, bool edge",
    reference.gram,
    cpu.gram,
    cpu.gram_backward,
    lambda x, y, irreps, edge: x.new_empty(x.shape[0], n_pairs(irreps)),
    linear_part=lambda i, irreps, edge: (irreps, edge),
    gpu=("gram.kernel.gram", "gram.kernel.gram_backward"),
)
_apply = define(
    "gram_apply",
    "Tensor c, Tensor x, str irreps, bool edge",
    reference.gram_apply,
    cpu.gram_apply,
    cpu.gram_apply_backward,
    lambda c, x, irreps, edge: torch.empty_like(x),
    linear_part=lambda i, irreps, edge: (irreps, edge),
    gpu=("gram.kernel.gram_apply", "gram.kernel.gram_apply_backward"),
)
_update = define(
    "gram_update",
    "Tensor c, Tensor x, str irreps, bool edge, float residual",
    reference.gram_update,
    cpu.gram_update,
    None,
    lambda c, x, irreps, edge, residual: torch.empty_like(x),
    gpu=("gram.kernel.gram_update",),
)


def gram(x: torch.Tensor, y: torch.Tensor, irreps: IrrepsLike, edge: bool = False) -> torch.Tensor:
    """Returns the packed inner products of the channels of x and y; the formula is on the op's page.

    Args:
        x: features [e, d], float32 or float64.
        y: features [e, d], same dtype; x itself takes half the time.
        irreps: layout of `x` and `y`.
        edge: they are rows of the edge frame (`edge_layout`) instead of e3nn's flat axis.

    Returns:
        [e, n_pairs(irreps)].

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> gram(x, x, "2x0e+1x0o")
        tensor([[1., 4., 4., 9.]])
    """
    irreps = irreps_of(irreps)
    check_tensors(x=x, y=y)
    check_irreps_dim("x", x, irreps, irreps.dim)
    check_shapes(x=(x, "e d"), y=(y, "e d"))
    return _gram(x, y, str(irreps), edge)


def gram_apply(c: torch.Tensor, x: torch.Tensor, irreps: IrrepsLike, edge: bool = False) -> torch.Tensor:
    """Returns the product of packed symmetric matrices and features; the formula is on the op's page.

    Args:
        c: C [e, n_pairs(irreps)], float32 or float64.
        x: features [e, d], same dtype.
        irreps: layout of `x` and of the result.
        edge: they are rows of the edge frame (`edge_layout`) instead of e3nn's flat axis.

    Returns:
        [e, d].

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> gram_apply(torch.tensor([[1.0, 10.0, 2.0]]), torch.tensor([[3.0, 4.0]]), "2x0e")
        tensor([[43., 38.]])
    """
    irreps = irreps_of(irreps)
    check_tensors(c=c, x=x)
    check_irreps_dim("x", x, irreps, irreps.dim)
    check_shapes(x=(x, "e d"), c=(c, f"e {n_pairs(irreps)}"))
    return _apply(c, x, str(irreps), edge)


def gram_update(
    c: torch.Tensor, x: torch.Tensor, irreps: IrrepsLike, residual: float, edge: bool = False
) -> torch.Tensor:
    """Returns x + ρ ‖x‖/(‖g‖ + 1e-5) g with g = 2 gram_apply(C, x), the norms being those of whole rows.

    On a GPU one kernel that keeps g on the chip.

    Args:
        c: C [e, n_pairs(irreps)], float32 or float64.
        x: features [e, d], same dtype.
        irreps: layout of `x` and of the result.
        residual: ρ.
        edge: they are rows of the edge frame (`edge_layout`) instead of e3nn's flat axis.

    Returns:
        [e, d]. Derivatives exist up to second order, where no row and no g is zero.

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> gram_update(torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[3.0, 4.0]]), "2x0e", 0.5).round(decimals=3)
        tensor([[4.5000, 6.0000]])
    """
    irreps = irreps_of(irreps)
    check_tensors(c=c, x=x)
    check_irreps_dim("x", x, irreps, irreps.dim)
    check_shapes(x=(x, "e d"), c=(c, f"e {n_pairs(irreps)}"))
    return _update(c, x, str(irreps), edge, residual)
