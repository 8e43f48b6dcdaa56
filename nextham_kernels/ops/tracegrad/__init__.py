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
from nextham_kernels.clebsch_gordan import IrrepsLike, dim_of, irreps_of
from nextham_kernels.ops.tracegrad import closed_form, reference
from nextham_kernels.ops.tracegrad.closed_form import FoldedTraceGrad

if TYPE_CHECKING:
    from e3nn import o3

__all__ = [
    "FoldedTraceGrad",
    "fold_tracegrad",
    "folded_invariants",
    "quadratic_forms",
    "trace_invariants",
    "tracegrad",
    "tracegrad_update",
]


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
    n_forms = _check_mlp(mlp, x=x)
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
    return reference.tracegrad(x, weight, mlp, _check_forms(x, weight, irreps, _check_mlp(mlp, x=x)))


def fold_tracegrad(weight: torch.Tensor, mlp: Sequence[torch.Tensor], irreps: IrrepsLike) -> FoldedTraceGrad:
    """Folds the quadratic forms into the MLP's first Linear: once per model in inference, once per step in training.

    A_uv,c = Σ_h (W_b,uvh + W_b,vuh)/2 /√(2l_b + 1)/√N · (first weight)_ch,  u ≤ v

    in the order of `gram`, whose product with A is q times the first weight: 980 numbers instead of 1856, and 251k
    multiply-adds per edge instead of 2.2 million. Gradients flow through it to the weights (any order).

    Args:
        weight: W [Σ_b mul_b² · h], h being the input width of the MLP, float32 or float64.
        mlp: the MLP's parameters, as on the op's page, same dtype.
        irreps: layout of the features, each irrep once.

    Returns:
        What `tracegrad_update` and `folded_invariants` take.

    Raises:
        ValueError: a wrong shape, an irrep that stands twice, or a list of another length.
        TypeError: a wrong or mixed dtype or device.
    """
    check_tensors(weight=weight)
    irreps = _check_weight(weight, irreps, _check_mlp(mlp, weight=weight))
    return closed_form.fold(weight, mlp, str(irreps))


def tracegrad_update(
    x: torch.Tensor, folded: FoldedTraceGrad, residual: float = 0.2, edge: bool = False, invariants: bool = True
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Returns x′ = x + ρ stopgrad(‖x‖/(‖g‖ + 1e-5)) g and z, the norms being those of whole rows.

    In closed form (see `closed_form`): 0.83 million multiply-adds per edge in NextHAM, 0.76 without z. x′ and z have
    first derivatives with respect to x and every tensor of `folded`, without a graph inside a graph; second
    derivatives raise. The rows of a call are worked on at once, 980 numbers each: call it for some hundred rows.

    Args:
        x: features [e, d], float32 or float64.
        folded: the parameters, made by `fold_tracegrad` in the dtype of `x`.
        residual: ρ.
        edge: x and x′ are rows of the edge frame (`edge_layout`) instead of e3nn's flat axis.
        invariants: z is wanted.

    Returns:
        x′ [e, d], and z [e, c] or None.

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong or mixed dtype or device.
        RuntimeError: in the backward pass, where a graph of it is asked for (`create_graph`).

    Example:
        >>> import torch
        >>> one, zero = torch.ones(1, 1), torch.zeros(1)
        >>> folded = fold_tracegrad(torch.ones(1), [one, zero], "1x0e")
        >>> tracegrad_update(torch.tensor([[3.0]]), folded)
        (tensor([[3.6000]]), tensor([[9.]]))
    """
    _check_folded(x, folded)
    tensors = (folded.forms, folded.bias, folded.last, *(t for layer in folded.layers for t in layer))
    keep = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *tensors))
    return closed_form.Update.apply(folded.irreps, edge, residual, invariants, keep, x, *tensors)


def folded_invariants(x: torch.Tensor, folded: FoldedTraceGrad, edge: bool = False) -> torch.Tensor:
    """Returns z, the invariants alone, by way of the folded parameters.

    Args:
        x: features [e, d], float32 or float64.
        folded: the parameters, made by `fold_tracegrad` in the dtype of `x`.
        edge: x holds rows of the edge frame (`edge_layout`) instead of e3nn's flat axis.

    Returns:
        z [e, c]; derivatives exist up to second order.

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong or mixed dtype or device.
    """
    _check_folded(x, folded)
    return closed_form.invariants(x, folded, edge)


def _check_folded(x: torch.Tensor, folded: FoldedTraceGrad) -> None:
    """Checks features against folded parameters, which were checked when they were made."""
    check_tensors(x=x, forms=folded.forms)
    check_irreps_dim("x", x, folded.irreps, dim_of(folded.irreps))


def _check_forms(x: torch.Tensor, weight: torch.Tensor, irreps: IrrepsLike, n_forms: int) -> o3.Irreps:
    """Checks features and forms, and returns the irreps."""
    check_tensors(x=x, weight=weight)
    check_irreps_dim("x", x, irreps, irreps_of(irreps).dim)
    return _check_weight(weight, irreps, n_forms)


def _check_weight(weight: torch.Tensor, irreps: IrrepsLike, n_forms: int) -> o3.Irreps:
    irreps = irreps_of(irreps)
    if len({ir for _, ir in irreps}) != len(irreps):
        raise ValueError(f"irreps: expected each irrep once, got {irreps}")
    check_shapes(weight=(weight, str(sum(mul * mul for mul, _ in irreps) * n_forms)))
    return irreps


def _check_mlp(mlp: Sequence[torch.Tensor], **first: torch.Tensor) -> int:
    """Checks the MLP's parameters, their dtype being that of the first tensor, and returns its input width."""
    if len(mlp) % 4 != 2:
        raise ValueError(
            f"mlp: expected 2 tensors (Linear) and 4 more for each (LayerNorm, Linear) behind it, got {len(mlp)}"
        )
    check_tensors(**first, **{f"mlp[{i}]": p for i, p in enumerate(mlp)})
    width = mlp[0].shape[-1]
    for i in range(0, len(mlp), 4):
        if i:
            check_shapes(**{f"mlp[{j}]": (mlp[j], str(width)) for j in (i - 2, i - 1)})
        check_shapes(**{f"mlp[{i}]": (mlp[i], f"out {width}"), f"mlp[{i + 1}]": (mlp[i + 1], "out")})
        width = mlp[i].shape[0]
    return mlp[0].shape[-1]
