"""TraceGrad: invariants of features from quadratic forms, and their gradient with respect to the features.

    q_eh = Σ_b Σ_uv W_b,uvh ⟨x_eu, x_ev⟩ / √(2l_b + 1) / √N,    N = Σ_b mul_b²
    z_e  = MLP(q_e),    g_ed = ∂(Σ_c z_ec) / ∂x_ed

The sum runs over the blocks b of the irreps, each irrep standing once. The weight vector has, per block, an array
[mul, mul, h]. The MLP is Linear, then any number of (LayerNorm with ε = 1e-6, SiLU, Linear); its parameters are a flat
list: weight [out, in] and bias of a Linear, weight and bias of a LayerNorm, and so on.

q and z are invariant under rotation and inversion, so g transforms as x does. g is itself differentiable, with respect
to x and all parameters, any number of times; training differentiates through it. Source: TraceGrad, Yin et al. (2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from nextham_kernels.checks import check_irreps_dim, check_shapes, check_tensors
from nextham_kernels.clebsch_gordan import IrrepsLike, irreps_of
from nextham_kernels.ops.tracegrad import reference

if TYPE_CHECKING:
    from e3nn import o3

__all__ = ["quadratic_forms", "trace_invariants", "tracegrad"]


def quadratic_forms(x: torch.Tensor, weight: torch.Tensor, irreps: IrrepsLike, n_forms: int) -> torch.Tensor:
    """Returns q, n_forms quadratic forms of the features; the formula is on the op's page.

    Args:
        x: features [e, d], float32 or float64.
        weight: W [Σ_b mul_b² · n_forms], same dtype.
        irreps: layout of `x`, each irrep once.
        n_forms: number of forms h.

    Returns:
        q [e, h].

    Raises:
        ValueError: a wrong shape, or an irrep that stands twice.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> quadratic_forms(torch.tensor([[3.0, 0.0, 4.0]]), torch.ones(1), "1x1o", 1).round(decimals=3)
        tensor([[14.4340]])
    """
    return reference.quadratic_forms(x, weight, _check_forms(x, weight, irreps, n_forms), n_forms)


def trace_invariants(
    x: torch.Tensor, weight: torch.Tensor, mlp: Sequence[torch.Tensor], irreps: IrrepsLike
) -> torch.Tensor:
    """Returns z = MLP(q), the invariants alone.

    Args:
        x: features [e, d], float32 or float64.
        weight: W [Σ_b mul_b² · h], h being the input width of the MLP.
        mlp: the MLP's parameters, as on the op's page.
        irreps: layout of `x`, each irrep once.

    Returns:
        z [e, c].

    Raises:
        ValueError: a wrong shape, an irrep that stands twice, or a list of another length.
        TypeError: a wrong or mixed dtype or device.
    """
    n_forms = _check_mlp(mlp, x)
    q = reference.quadratic_forms(x, weight, _check_forms(x, weight, irreps, n_forms), n_forms)
    return reference.mlp(q, mlp)


def tracegrad(
    x: torch.Tensor, weight: torch.Tensor, mlp: Sequence[torch.Tensor], irreps: IrrepsLike
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns z = MLP(q) and g = ∂(Σ_c z_c)/∂x.

    Args:
        x: features [e, d], float32 or float64.
        weight: W [Σ_b mul_b² · h], h being the input width of the MLP.
        mlp: the MLP's parameters, as on the op's page.
        irreps: layout of `x`, each irrep once.

    Returns:
        z [e, c] and g [e, d].

    Raises:
        ValueError: a wrong shape, an irrep that stands twice, or a list of another length.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> one, zero = torch.ones(1, 1), torch.zeros(1)
        >>> z, g = tracegrad(torch.tensor([[3.0]]), torch.ones(1), [one, zero], "1x0e")
        >>> z, g
        (tensor([[9.]]), tensor([[6.]]))
    """
    return reference.tracegrad(x, weight, mlp, _check_forms(x, weight, irreps, _check_mlp(mlp, x)))


def _check_forms(x: torch.Tensor, weight: torch.Tensor, irreps: IrrepsLike, n_forms: int) -> o3.Irreps:
    """Checks features and forms, and returns the irreps."""
    irreps = irreps_of(irreps)
    check_tensors(x=x, weight=weight)
    check_irreps_dim("x", x, irreps, irreps.dim)
    if len({ir for _, ir in irreps}) != len(irreps):
        raise ValueError(f"irreps: expected each irrep once, got {irreps}")
    check_shapes(weight=(weight, str(sum(mul * mul for mul, _ in irreps) * n_forms)))
    return irreps


def _check_mlp(mlp: Sequence[torch.Tensor], x: torch.Tensor) -> int:
    """Checks the shapes of the MLP's parameters and returns its input width."""
    if len(mlp) % 4 != 2:
        raise ValueError(
            f"mlp: expected 2 tensors (Linear) and 4 more for each (LayerNorm, Linear) behind it, got {len(mlp)}"
        )
    check_tensors(x=x, **{f"mlp[{i}]": p for i, p in enumerate(mlp)})
    width = mlp[0].shape[-1]
    for i in range(0, len(mlp), 4):
        if i:
            check_shapes(**{f"mlp[{j}]": (mlp[j], str(width)) for j in (i - 2, i - 1)})
        check_shapes(**{f"mlp[{i}]": (mlp[i], f"out {width}"), f"mlp[{i + 1}]": (mlp[i + 1], "out")})
        width = mlp[i].shape[0]
    return mlp[0].shape[-1]
