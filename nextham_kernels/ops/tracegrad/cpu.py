"""TraceGrad's update and its derivative: calls of the C++ kernels."""

from __future__ import annotations

import torch

from nextham_kernels.loading import kernels
from nextham_kernels.ops.gram.cpu import tables

Rows = list[torch.Tensor]


def update(
    x: torch.Tensor,
    forms: torch.Tensor,
    bias: torch.Tensor,
    last: torch.Tensor,
    layers: list[tuple[torch.Tensor, ...]],
    irreps: str,
    edge: bool,
    eps: float,
    residual: float,
    keep: bool,
    wanted: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, Rows, Rows]:
    """Runs `tracegrad_update`: x′, s [e, 1], z if `wanted`, and if `keep` every h_j and v_j (else no one)."""
    n = len(x)
    y, scale = torch.empty_like(x), x.new_empty(n, 1)
    widths = [w.shape[1] for _, _, w, _ in layers]
    h = [x.new_empty(n, width) for width in widths] if keep else []
    v = [x.new_empty(n, width) for width in widths[:-1]] if keep else []
    width = layers[-1][2].shape[0] if layers else len(bias)
    z = x.new_empty(n, width) if wanted else None
    weights = [t.detach().contiguous().numpy() for t in (forms, bias, last, *(t for layer in layers for t in layer))]
    kernels().tracegrad_update(
        x.detach().numpy(),
        *weights[:3],
        weights[3:],
        *tables(irreps, edge),
        eps,
        residual,
        y.numpy(),
        scale.numpy(),
        [t.numpy() for t in (*h, *v)],
        (x.new_empty(0, width) if z is None else z).numpy(),
    )
    return y, scale, z, h, [*v, last.expand(n, -1)] if keep and layers else []


def backward(
    grad_y: torch.Tensor,
    grad_z: torch.Tensor | None,
    x: torch.Tensor,
    scale: torch.Tensor,
    forms: torch.Tensor,
    last: torch.Tensor,
    layers: list[tuple[torch.Tensor, ...]],
    h: Rows,
    v: Rows,
    irreps: str,
    edge: bool,
    eps: float,
) -> list[torch.Tensor]:
    """Runs `tracegrad_backward`: the gradients of x, forms, bias, last and every tensor of the layers, one at least."""
    grad_x = torch.empty_like(x)
    flat = [t.detach().contiguous() for layer in layers for t in layer]
    grads = [torch.zeros_like(t) for t in (forms, h[0].new_empty(h[0].shape[1]), last, *flat)]
    grad_z = x.new_empty(0, layers[-1][2].shape[0]) if grad_z is None else grad_z
    kernels().tracegrad_backward(
        *(t.contiguous().numpy() for t in (grad_y, grad_z, x, scale)),
        *(t.detach().contiguous().numpy() for t in (forms, last)),
        [t.numpy() for t in flat],
        [t.contiguous().numpy() for t in (*h, *v[:-1])],
        *tables(irreps, edge),
        eps,
        grad_x.numpy(),
        [t.numpy() for t in grads],
    )
    return [grad_x, *grads]
