"""Layer norm and SiLU: the calls of the C++ kernel."""

from __future__ import annotations

import torch

from nextham_kernels.loading import kernels


def forward(h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Runs `layer_norm_silu_forward`."""
    y = torch.empty_like(h)
    kernels().layer_norm_silu_forward(h.numpy(), weight.numpy(), bias.numpy(), eps, y.numpy())
    return y


def backward(
    grad: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, needs: list[bool]
) -> list[torch.Tensor]:
    """Runs `layer_norm_silu_backward`, or `layer_norm_silu_vjp` where only h needs a gradient."""
    if not any(needs[1:]):
        return [vjp(grad, h, weight, bias, eps), weight.new_empty(0), bias.new_empty(0)]
    grads = [torch.empty_like(h), torch.zeros_like(weight), torch.zeros_like(bias)]
    arrays = [t.numpy() for t in (grad, h, weight, bias)]
    kernels().layer_norm_silu_backward(*arrays, eps, *(g.numpy() for g in grads))
    return grads


def vjp(v: torch.Tensor, h: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Runs `layer_norm_silu_vjp`; v may be one row for all rows of h."""
    y, v = torch.empty_like(h), v.expand(h.shape).contiguous()
    kernels().layer_norm_silu_vjp(v.numpy(), h.numpy(), weight.numpy(), bias.numpy(), eps, y.numpy())
    return y


def vjp_backward(
    grad: torch.Tensor,
    v: torch.Tensor,
    h: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs `layer_norm_silu_vjp_backward`, which makes all gradients whatever `needs` says: they share their sums."""
    grads = [torch.empty_like(v), torch.empty_like(h), torch.zeros_like(weight), torch.zeros_like(bias)]
    arrays = [t.numpy() for t in (grad, v, h, weight, bias)]
    kernels().layer_norm_silu_vjp_backward(*arrays, eps, *(g.numpy() for g in grads))
    return grads
