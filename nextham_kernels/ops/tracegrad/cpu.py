"""TraceGrad's update: the call of the C++ kernel."""

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
