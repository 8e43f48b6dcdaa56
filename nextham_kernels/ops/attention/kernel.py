"""Softmax over segments on the GPU (Triton).

A program takes a segment and walks over its edges in tiles [edges, heads], once for the maximum, once for the sum, once
for the result; the second and third time they come from the first-level cache (137 edges of silicon are 2 kB). So no
atomics, and the same input gives the same bits. Segments in any order are sorted by torch first, which an ascending
list is spared.

Numbers per edge: 2 h, backward 3 h; two exponentials for each head. Bound by latency: some 10 µs whatever the size.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nextham_kernels.cost import Cost, nbytes

EDGES = 64
"""Edges of a tile: 256 numbers with 4 heads, two for each thread, and the last tile of a segment is half empty."""


def segments(segment: torch.Tensor, n_segments: int, ascending: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns edges grouped by segment, without waiting for the device.

    The first place of each segment, and the edge of each place; inside a segment they are in the order of the edges.

    Args:
        segment: segment of each edge [e], int64.
        n_segments: number of segments.
        ascending: `segment` is sorted; then each place is its own edge, and the second result is `segment` itself.

    Returns:
        int64 [n_segments + 1] and [e].
    """
    order = segment
    if not ascending:
        segment, order = torch.sort(segment, stable=True)
    return torch.searchsorted(segment, torch.arange(n_segments + 1, device=segment.device)), order


@triton.jit
def _tile(logits, order, place, stop, H: tl.constexpr, H2: tl.constexpr, SORTED: tl.constexpr, EDGES: tl.constexpr):
    """Offsets of a tile [edges, heads] and whether they exist."""
    at = place + tl.arange(0, EDGES)
    edge = at.to(tl.int64)
    if not SORTED:
        edge = tl.load(order + at, mask=at < stop, other=0)
    h = tl.arange(0, H2)[None, :]
    return edge[:, None] * H + h, (at < stop)[:, None] & (h < H)


@triton.jit
def _forward(logits, first, order, y, H: tl.constexpr, H2: tl.constexpr, SORTED: tl.constexpr, EDGES: tl.constexpr):
    segment = tl.program_id(0).to(tl.int64)
    start = tl.load(first + segment)
    stop = tl.load(first + segment + 1)
    kind = logits.dtype.element_ty
    largest = tl.full((H2,), float("-inf"), kind)
    for place in range(start, stop, EDGES):
        offset, mask = _tile(logits, order, place, stop, H, H2, SORTED, EDGES)
        largest = tl.maximum(largest, tl.max(tl.load(logits + offset, mask=mask, other=float("-inf")), 0))
    there = tl.arange(0, H2) < H
    largest = tl.where(there, largest, 0.0)
    total = tl.where(there, 0.0, 1.0).to(kind)
    for place in range(start, stop, EDGES):
        offset, mask = _tile(logits, order, place, stop, H, H2, SORTED, EDGES)
        x = tl.load(logits + offset, mask=mask, other=float("-inf"))
        total += tl.sum(tl.where(mask, tl.exp(x - largest[None, :]), 0.0), 0)
    for place in range(start, stop, EDGES):
        offset, mask = _tile(logits, order, place, stop, H, H2, SORTED, EDGES)
        x = tl.load(logits + offset, mask=mask, other=0.0)
        tl.store(y + offset, tl.exp(x - largest[None, :]) / total[None, :], mask=mask)


@triton.jit
def _backward(
    grad,
    logits,
    first,
    order,
    grad_logits,
    H: tl.constexpr,
    H2: tl.constexpr,
    SORTED: tl.constexpr,
    EDGES: tl.constexpr,
):
    segment = tl.program_id(0).to(tl.int64)
    start = tl.load(first + segment)
    stop = tl.load(first + segment + 1)
    kind = logits.dtype.element_ty
    largest = tl.full((H2,), float("-inf"), kind)
    for place in range(start, stop, EDGES):
        offset, mask = _tile(logits, order, place, stop, H, H2, SORTED, EDGES)
        largest = tl.maximum(largest, tl.max(tl.load(logits + offset, mask=mask, other=float("-inf")), 0))
    there = tl.arange(0, H2) < H
    largest = tl.where(there, largest, 0.0)
    total = tl.where(there, 0.0, 1.0).to(kind)
    inner = tl.zeros((H2,), kind)
    for place in range(start, stop, EDGES):
        offset, mask = _tile(logits, order, place, stop, H, H2, SORTED, EDGES)
        x = tl.load(logits + offset, mask=mask, other=float("-inf"))
        weight = tl.where(mask, tl.exp(x - largest[None, :]), 0.0)
        total += tl.sum(weight, 0)
        inner += tl.sum(weight * tl.load(grad + offset, mask=mask, other=0.0), 0)
    mean = (inner / tl.where(total > 0, total, 1.0))[None, :]  # a segment may have no edges
    for place in range(start, stop, EDGES):
        offset, mask = _tile(logits, order, place, stop, H, H2, SORTED, EDGES)
        x = tl.load(logits + offset, mask=mask, other=0.0)
        g = tl.load(grad + offset, mask=mask, other=0.0)
        tl.store(grad_logits + offset, tl.exp(x - largest[None, :]) / total[None, :] * (g - mean), mask=mask)


def forward(logits: torch.Tensor, segment: torch.Tensor, n_segments: int, ascending: bool) -> torch.Tensor:
    """Runs the softmax."""
    y, heads = torch.empty_like(logits), logits.shape[1]
    first, order = segments(segment, n_segments, ascending)
    if logits.numel():
        _forward[(n_segments,)](
            logits, first, order, y, heads, triton.next_power_of_2(heads), ascending, EDGES, num_warps=4
        )
    return y


def forward_cost(logits: torch.Tensor, segment: torch.Tensor, n_segments: int, ascending: bool) -> Cost:
    """Counts `forward`, without the sort that an unsorted list needs."""
    return Cost(2 * nbytes(logits) + nbytes(segment), 8 * logits.numel())


def backward(
    grad: torch.Tensor,
    logits: torch.Tensor,
    segment: torch.Tensor,
    n_segments: int,
    ascending: bool,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs the softmax's derivative; `needs` says true of the logits."""
    grad_logits, heads = torch.empty_like(logits), logits.shape[1]
    first, order = segments(segment, n_segments, ascending)
    if logits.numel():
        _backward[(n_segments,)](
            grad,
            logits,
            first,
            order,
            grad_logits,
            heads,
            triton.next_power_of_2(heads),
            ascending,
            EDGES,
            num_warps=4,
        )
    return [grad_logits, torch.zeros_like(segment)]


def backward_cost(
    grad: torch.Tensor,
    logits: torch.Tensor,
    segment: torch.Tensor,
    n_segments: int,
    ascending: bool,
    needs: list[bool],
) -> Cost:
    """Counts `backward`."""
    return Cost(3 * nbytes(logits) + nbytes(segment), 14 * logits.numel())
