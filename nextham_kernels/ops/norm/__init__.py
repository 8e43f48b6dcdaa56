"""Layer norm per irrep, and the variant that leaves rounding noise alone.

For each block b of mul channels u and components i, with x first centred over its channels if it is 0e:

    y_eui = w_u x_eui / √(s_eb + f² s_e + ε) + b_u
    s_eb  = mean_u mean_i x_eui² over the block,    s_e the same mean over the channels u of all blocks

with the bias on 0e channels only. The published norm has f = 0. On an ideal crystal many blocks vanish by site symmetry
and hold nothing but rounding noise; with f = 0 each norm multiplies that noise by up to 1/√ε ≈ 316, with f > 0 by no
more than 1/f relative to the whole feature vector, so the symmetry survives.

Any derivative exists, at zero too (ε > 0). Source: EquiformerV2's per-irrep layer norm, Liao et al. (2023), for f = 0.
"""

from __future__ import annotations

import functools

import torch

from nextham_kernels.checks import check_irreps_dim, check_shapes, check_tensors
from nextham_kernels.clebsch_gordan import IrrepsLike, dim_of, irreps_of
from nextham_kernels.ops.norm import cpu, reference
from nextham_kernels.registration import define

__all__ = ["norm"]

_op = define(
    "norm",
    "Tensor x, Tensor weight, Tensor bias, str irreps, bool edge, float eps, float floor",
    reference.norm,
    cpu.forward,
    cpu.backward,
    lambda x, *rest: torch.empty_like(x),
    gpu=("norm.kernel.forward", "norm.kernel.backward"),
)


def norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    irreps: IrrepsLike,
    eps: float = 1e-5,
    floor: float = 0.0,
    edge: bool = False,
) -> torch.Tensor:
    """Normalises each irrep's block to unit mean square, the formula being on the op's page.

    Args:
        x: features [e, d], float32 or float64.
        weight: [u], one number per channel of all blocks.
        bias: [v], one number per 0e channel.
        irreps: layout of `x` and of the result.
        eps: ε, added to the mean square.
        floor: f, the floor relative to the whole feature vector; 0 is the published norm.
        edge: x and the result are rows of the edge frame (`edge_layout`) instead of e3nn's flat axis.

    Returns:
        [e, d].

    Raises:
        ValueError: a wrong shape, eps not positive, or a negative floor.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> norm(torch.tensor([[3.0, 5.0]]), torch.ones(2), torch.zeros(2), "2x0e").round(decimals=4)
        tensor([[-1.,  1.]])
    """
    name, n_channels, n_scalars = _plan(irreps)
    check_tensors(x=x, weight=weight, bias=bias)
    check_irreps_dim("x", x, name, dim_of(name))
    check_shapes(weight=(weight, n_channels), bias=(bias, n_scalars))
    if not eps > 0:
        raise ValueError(f"eps: expected a positive number, got {eps}")
    if not floor >= 0:
        raise ValueError(f"floor: expected 0 or a positive number, got {floor}")
    return _op(x, weight, bias, name, edge, eps, floor)


@functools.cache
def _plan(irreps: IrrepsLike) -> tuple[str, str, str]:
    """The name of irreps, and the numbers of their channels and of their 0e channels."""
    irreps = irreps_of(irreps)
    n_scalars = sum(mul for mul, ir in irreps if ir.is_scalar())
    return str(irreps), str(irreps.num_irreps), str(n_scalars)
