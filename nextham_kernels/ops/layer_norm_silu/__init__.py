"""Layer norm and SiLU, the step between two linear layers of an MLP, and its vector-Jacobian product as an op.

    y_ei = silu(u_ei),  u_ei = w_i n_ei + b_i,  n_ei = (h_ei − mean_j h_ej) / √(mean_j (h_ej − mean)² + ε)
    layer_norm_silu_vjp(v, h)_ei = Σ_j v_ej ∂y_ej/∂h_ei

Whoever needs the gradient of an MLP inside a computation that is itself differentiated (TraceGrad) composes it of the
second op, whose first derivative has a kernel: no graph is built inside a graph. Both have derivatives up to second
order. Source: ours.
"""

from __future__ import annotations

import torch

from nextham_kernels.checks import check_shapes, check_tensors
from nextham_kernels.ops.layer_norm_silu import cpu, reference
from nextham_kernels.registration import define

__all__ = ["layer_norm_silu", "layer_norm_silu_backward", "layer_norm_silu_vjp", "layer_norm_silu_vjp_backward"]

_op = define(
    "layer_norm_silu",
    "Tensor h, Tensor weight, Tensor bias, float eps",
    reference.layer_norm_silu,
    cpu.forward,
    cpu.backward,
    gpu=("layer_norm_silu.kernel.forward", "layer_norm_silu.kernel.backward"),
)
_vjp = define(
    "layer_norm_silu_vjp",
    "Tensor v, Tensor h, Tensor weight, Tensor bias, float eps",
    reference.layer_norm_silu_vjp,
    cpu.vjp,
    cpu.vjp_backward,
    gpu=("layer_norm_silu.kernel.vjp", "layer_norm_silu.kernel.vjp_backward"),
)
# (grad of the result, arguments …, which gradients are wanted) → gradients; unchecked
layer_norm_silu_backward, layer_norm_silu_vjp_backward = _op.backward, _vjp.backward


def layer_norm_silu(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    """Returns silu(w · layer_norm(h) + b); the formula is on the op's page.

    Args:
        h: [e, c], float32 or float64.
        weight: w [c].
        bias: b [c].
        eps: ε, added to the variance.

    Returns:
        y [e, c].

    Raises:
        ValueError: a wrong shape, or eps not positive.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> layer_norm_silu(torch.tensor([[1.0, 3.0]]), torch.ones(2), torch.zeros(2)).round(decimals=4)
        tensor([[-0.2689,  0.7311]])
    """
    check_tensors(h=h, weight=weight, bias=bias)
    _check(eps, h=(h, "e c"), weight=(weight, "c"), bias=(bias, "c"))
    return _op(h, weight, bias, eps)


def layer_norm_silu_vjp(
    v: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float = 1e-6
) -> torch.Tensor:
    """Returns vᵀ ∂y/∂h for y = layer_norm_silu(h, weight, bias, eps); the formula is on the op's page.

    Args:
        v: [e, c], float32 or float64, or [1, c] for the same in every row.
        h: [e, c], same dtype.
        weight: w [c].
        bias: b [c].
        eps: ε, added to the variance.

    Returns:
        [e, c].

    Raises:
        ValueError: a wrong shape, or eps not positive.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> v, one, zero = torch.tensor([[1.0, 0.0, 0.0]]), torch.ones(3), torch.zeros(3)
        >>> layer_norm_silu_vjp(v, torch.tensor([[-1.0, 0.0, 1.0]]), one, zero).round(decimals=4)
        tensor([[ 0.0025, -0.0050,  0.0025]])
    """
    check_tensors(v=v, h=h, weight=weight, bias=bias)
    _check(eps, v=(v, "1 c" if len(v) == 1 else "e c"), h=(h, "e c"), weight=(weight, "c"), bias=(bias, "c"))
    if len(v) != len(h) and torch.is_grad_enabled():
        v = v.expand(h.shape)  # the derivative has a row for each
    return _vjp(v, h, weight, bias, eps)


def _check(eps: float, **shapes: tuple[torch.Tensor, str]) -> None:
    check_shapes(**shapes)
    if not eps > 0:
        raise ValueError(f"eps: expected a positive number, got {eps}")
