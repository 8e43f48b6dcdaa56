"""Layer norm per irrep on the GPU (Triton).

A program of one warp takes a row and keeps it in registers (13 numbers of each thread for the published features): one
masked sum for each irrep block, by shuffles alone, then one pass that scales. Backward, a program takes every
PROGRAMS-th row, so the gradients of weight and bias grow in its registers; it writes them once, and torch adds them up
in a fixed order.

Numbers per row: 2 d forward, 3 d backward. Flops: each block's sums run over the whole row, 4 d for each of 8 blocks.
Bound by memory.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import triton
import triton.language as tl

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.cost import Cost, nbytes
from nextham_kernels.ops.norm.cpu import tables

PROGRAMS = 2048
"""Programs of the backward kernel, 15 for each multiprocessor of an H100: many loads on their way, few partial sums."""


@functools.cache
def _tables(irreps: str, edge: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Block, channel and place among the biases of each number, int32 [3, d]; count and share of each block [2, b].

    Also the blocks that are centred, as bits.
    """
    runs, count, share, centred, channel, place = tables(irreps, edge)
    block = np.zeros(len(channel), dtype=np.int64)
    for start, stop, group in runs:
        block[start:stop] = group
    columns = np.stack([block, channel.numpy(), place.numpy()]).astype(np.int32)
    bits = sum(1 << b for b, flag in enumerate(centred) if flag)
    numbers = torch.from_numpy(np.stack([np.maximum(count, 1), share]))
    return torch.from_numpy(columns).to(device), numbers.to(device), bits


@functools.cache
def _members(irreps: str, edge: bool, row: int, n: int, device: torch.device) -> torch.Tensor:
    """The numbers of each channel (row 1 of the table) or bias (row 2), int64 [n, components]; d where it has fewer."""
    owner = _tables(irreps, edge, torch.device("cpu"))[0][row].numpy()
    own = [np.flatnonzero(owner == i) for i in range(n)]
    most = max((len(places) for places in own), default=0)
    padded = [np.pad(places, (0, most - len(places)), constant_values=len(owner)) for places in own]
    return torch.from_numpy(np.reshape(padded, (n, most)).astype(np.int64)).to(device)


@triton.jit
def _normalised(x, block, j, there, numbers, BLOCKS: tl.constexpr, CENTRED: tl.constexpr, FLOOR: tl.constexpr):
    """The centred row, and the mean square (with the floor's share) that each number is divided by."""
    square = tl.zeros_like(x)
    whole = tl.sum(tl.zeros_like(x), 0)
    for b in tl.static_range(BLOCKS):
        own = there & (block == b)
        count = tl.load(numbers + b).to(x.dtype)
        if (CENTRED >> b) & 1:
            x = tl.where(own, x - tl.sum(tl.where(own, x, 0.0), 0) / count, x)
        mean = tl.sum(tl.where(own, x * x, 0.0), 0) / count
        square = tl.where(own, mean, square)
        if FLOOR > 0:
            whole += tl.load(numbers + BLOCKS + b).to(x.dtype) * mean
    if FLOOR > 0:
        square += FLOOR * FLOOR * whole
    return x, square


@triton.jit
def _forward(
    x,
    weight,
    bias,
    columns,
    numbers,
    y,
    n_bias,
    D: tl.constexpr,
    BLOCKS: tl.constexpr,
    CENTRED: tl.constexpr,
    EPS: tl.constexpr,
    FLOOR: tl.constexpr,
    D2: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * D
    j = tl.arange(0, D2)
    there = j < D
    block = tl.load(columns + j, mask=there, other=0)
    centred, square = _normalised(
        tl.load(x + row + j, mask=there, other=0.0), block, j, there, numbers, BLOCKS, CENTRED, FLOOR
    )
    w = tl.load(weight + tl.load(columns + D + j, mask=there, other=0), mask=there, other=0.0)
    place = tl.load(columns + 2 * D + j, mask=there, other=0)
    b = tl.load(bias + place, mask=there & (place < n_bias), other=0.0)
    tl.store(y + row + j, centred * tl.rsqrt(square + EPS) * w + b, mask=there)


@triton.jit(do_not_specialize=["n"])
def _backward(
    grad,
    x,
    weight,
    columns,
    numbers,
    grad_x,
    partial,
    n,
    D: tl.constexpr,
    BLOCKS: tl.constexpr,
    CENTRED: tl.constexpr,
    EPS: tl.constexpr,
    FLOOR: tl.constexpr,
    SUMS: tl.constexpr,
    D2: tl.constexpr,
):
    first = tl.program_id(0).to(tl.int64)
    j = tl.arange(0, D2)
    there = j < D
    block = tl.load(columns + j, mask=there, other=0)
    w = tl.load(weight + tl.load(columns + D + j, mask=there, other=0), mask=there, other=0.0)
    of_weight = tl.zeros_like(w)
    of_bias = tl.zeros_like(w)
    for e in range(first, n, tl.num_programs(0)):
        g = tl.load(grad + e * D + j, mask=there, other=0.0)
        centred, square = _normalised(
            tl.load(x + e * D + j, mask=there, other=0.0), block, j, there, numbers, BLOCKS, CENTRED, FLOOR
        )
        r = tl.rsqrt(square + EPS)
        if SUMS:
            of_weight += g * centred * r
            of_bias += g
        h = g * w
        # ∂L/∂s_b = −½ r³ Σ h x over the block, and by the floor a share of the sum of all of them
        pull = tl.zeros_like(h)
        total = tl.sum(tl.zeros_like(h), 0)
        cubed = -0.5 * r * r * r * h * centred
        for b in tl.static_range(BLOCKS):
            own = there & (block == b)
            inner = tl.sum(tl.where(own, cubed, 0.0), 0)
            pull = tl.where(own, inner, pull)
            total += inner
        result = h * r
        for b in tl.static_range(BLOCKS):
            own = there & (block == b)
            count = tl.load(numbers + b).to(h.dtype)
            if FLOOR > 0:
                pull = tl.where(own, pull + FLOOR * FLOOR * tl.load(numbers + BLOCKS + b).to(h.dtype) * total, pull)
            if (CENTRED >> b) & 1:
                result = tl.where(own, result - tl.sum(tl.where(own, result, 0.0), 0) / count, result)
            result = tl.where(own, result + 2 * centred * pull / count, result)
        tl.store(grad_x + e * D + j, result, mask=there)
    if SUMS:
        tl.store(partial + first * 2 * D + j, of_weight, mask=there)
        tl.store(partial + first * 2 * D + D + j, of_bias, mask=there)


def _settings(x: torch.Tensor, irreps: str, edge: bool, eps: float, floor: float) -> tuple[torch.Tensor, ...]:
    columns, numbers, centred = _tables(irreps, edge, x.device)
    return columns, numbers, (x.shape[1], numbers.shape[1], centred, eps, floor)


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, irreps: str, edge: bool, eps: float, floor: float
) -> torch.Tensor:
    """Runs the norm."""
    y = torch.empty_like(x)
    if x.shape[1]:
        columns, numbers, constants = _settings(x, irreps, edge, eps, floor)
        width = triton.next_power_of_2(x.shape[1])
        _forward[(len(x),)](
            x, weight, bias, columns, numbers, y, len(bias), *constants, width, num_warps=max(1, width // 1024)
        )
    return y


def forward_cost(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, irreps: str, edge: bool, eps: float, floor: float
) -> Cost:
    """Counts `forward`."""
    return Cost(2 * nbytes(x) + nbytes(weight, bias), (4 * len(irreps_of(irreps)) + 4) * x.numel())


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    irreps: str,
    edge: bool,
    eps: float,
    floor: float,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs the norm's derivative; always makes that of x."""
    grad_x, d = torch.empty_like(x), x.shape[1]
    sums = (needs[1] or needs[2]) and x.numel() > 0
    programs = min(len(x), PROGRAMS)
    partial = x.new_empty(programs if sums else 0, 2, d)
    if x.numel():
        columns, numbers, constants = _settings(x, irreps, edge, eps, floor)
        width = triton.next_power_of_2(d)
        _backward[(programs,)](
            grad,
            x,
            weight,
            columns,
            numbers,
            grad_x,
            partial,
            len(x),
            *constants,
            sums,
            width,
            num_warps=max(1, width // 512) * (1 if x.element_size() == 4 else 4),  # with two, doubles spill
        )
    if not sums:
        return [grad_x, torch.zeros_like(weight), torch.zeros_like(bias)]
    full = torch.nn.functional.pad(partial.sum(0), (0, 1))
    places = [_members(irreps, edge, row, n, x.device) for row, n in ((1, len(weight)), (2, len(bias)))]
    return [grad_x, *(full[i][place].sum(1) for i, place in enumerate(places))]


def backward_cost(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    irreps: str,
    edge: bool,
    eps: float,
    floor: float,
    needs: list[bool],
) -> Cost:
    """Counts `backward`, its partial sums being a share that falls with the number of rows."""
    return Cost(3 * nbytes(x), (8 * len(irreps_of(irreps)) + 16) * x.numel())
