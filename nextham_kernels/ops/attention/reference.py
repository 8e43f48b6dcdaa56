"""Attention over the edges into each node: the definition."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from e3nn import o3


def segment_softmax(
    logits: torch.Tensor, segment: torch.Tensor, n_segments: int, ascending: bool = False
) -> torch.Tensor:
    """exp(α) / Σ exp(α); the largest α of the segment is taken off first, which changes nothing but overflow."""
    rows = segment[:, None].expand_as(logits)
    largest = logits.new_zeros(n_segments, logits.shape[1])
    largest = largest.scatter_reduce(0, rows, logits.detach(), "amax", include_self=False)
    weight = torch.exp(logits - largest[segment])
    total = logits.new_zeros(n_segments, logits.shape[1]).index_add(0, segment, weight)
    return weight / total[segment]


def scale_heads(scale: torch.Tensor, value: torch.Tensor, irreps: o3.Irreps) -> torch.Tensor:
    """scale_eh v_e,huk."""
    n_heads, out = scale.shape[1], [value[:, :0]]
    for (mul, ir), s in zip(irreps, irreps.slices(), strict=True):
        block = value[:, s].unflatten(1, (n_heads, mul // n_heads, ir.dim))  # [e, h, u, i]
        out.append((scale[:, :, None, None] * block).flatten(1))
    return torch.cat(out, dim=1)


def attention(
    logits: torch.Tensor,
    weight: torch.Tensor,
    value: torch.Tensor,
    dst: torch.Tensor,
    n_nodes: int,
    irreps: o3.Irreps,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(α v, Σ_{into n} w v) for the softmax w of α."""
    edge = scale_heads(logits, value, irreps)
    messages = scale_heads(weight, value, irreps)
    return edge, value.new_zeros(n_nodes, value.shape[1]).index_add(0, dst, messages)
