"""TraceGrad: the definition, its gradient by automatic differentiation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from nextham_kernels.edge_layout import edge_layout

if TYPE_CHECKING:
    from e3nn import o3


def quadratic_forms(x: torch.Tensor, weight: torch.Tensor, irreps: o3.Irreps, n_forms: int) -> torch.Tensor:
    """q_h = Σ_b Σ_uv W_b,uvh ⟨x_u, x_v⟩ / √(2l+1) / √N."""
    gram = []
    for (mul, ir), s in zip(irreps, irreps.slices(), strict=True):
        block = x[:, s].unflatten(1, (mul, ir.dim))  # [e, u, i]
        gram.append((block @ block.transpose(1, 2)).flatten(1) / ir.dim**0.5)  # [e, u v]
    gram = torch.cat(gram, dim=1)
    return gram @ weight.view(-1, n_forms) / gram.shape[1] ** 0.5


def mlp(q: torch.Tensor, parameters: Sequence[torch.Tensor]) -> torch.Tensor:
    """Linear, then (LayerNorm, SiLU, Linear) as often as there are parameters."""
    z = functional.linear(q, parameters[0], parameters[1])
    for i in range(2, len(parameters), 4):
        z = layer_norm(z) * parameters[i] + parameters[i + 1]
        z = functional.linear(functional.silu(z), parameters[i + 2], parameters[i + 3])
    return z


def layer_norm(z: torch.Tensor) -> torch.Tensor:
    """(z − mean)/√(variance + 1e-6), written out because the third derivative of torch's own (2.13) is wrong."""
    centred = z - z.mean(1, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(1, keepdim=True) + 1e-6)


def tracegrad(
    x: torch.Tensor, weight: torch.Tensor, parameters: Sequence[torch.Tensor], irreps: o3.Irreps
) -> tuple[torch.Tensor, torch.Tensor]:
    """(z, ∂(Σ_c z_c)/∂x); a graph through the gradient is kept where the caller records one."""
    recorded = torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, *parameters))
    with torch.enable_grad():
        x = x if recorded and x.requires_grad else x.detach().requires_grad_()
        z = mlp(quadratic_forms(x, weight, irreps, parameters[0].shape[1]), parameters)
        (g,) = torch.autograd.grad(z.sum(), x, create_graph=recorded)
    return (z, g) if recorded else (z.detach(), g)


def tracegrad_update(
    x: torch.Tensor,
    weight: torch.Tensor,
    parameters: Sequence[torch.Tensor],
    irreps: o3.Irreps,
    residual: float,
    edge: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x + ρ stopgrad(‖x‖/(‖g‖ + 1e-5)) g, z)."""
    layout = edge_layout(irreps)
    z, g = tracegrad(layout.from_row(x) if edge else x, weight, parameters, irreps)
    g = layout.to_row(g) if edge else g
    scale = (x.norm(dim=1, keepdim=True) / (g.norm(dim=1, keepdim=True) + 1e-5)).detach()
    return x + residual * scale * g, z
