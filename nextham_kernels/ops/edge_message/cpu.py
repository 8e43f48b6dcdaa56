"""The message of an edge: calls of the C++ kernels of the three ops that it is made of."""

from __future__ import annotations

import torch

from nextham_kernels.ops.edge_linear import cpu as linear
from nextham_kernels.ops.norm import cpu as norm
from nextham_kernels.ops.rotation import cpu as rotation


def forward(
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    wigner: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    matrix: torch.Tensor,
    irreps: str,
    eps: float,
    floor: float,
) -> torch.Tensor:
    """Runs them."""
    sent = rotation.to_edges_forward(source, target, wigner, src, dst, irreps, True)
    normed = norm.forward(edge, weight, bias, irreps, True, eps, floor)
    no_heads, no_bias, no_flags = edge.new_empty(len(edge), 0), edge.new_empty(0, len(bias)), src[:0] != 0
    return sent.add_(linear.forward(normed, no_heads, matrix[None], no_bias, no_flags, irreps, irreps))
