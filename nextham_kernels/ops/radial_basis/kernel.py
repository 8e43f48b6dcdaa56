"""Gaussian radial basis on the GPU (Triton).

A program makes a tile [rows, Gaussians]; backward, it sums over the Gaussians in registers.
Numbers per row: n + 1; n exponentials. Bound by memory.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from nextham_kernels.cost import Cost, nbytes
from nextham_kernels.ops.radial_basis.reference import gaussians

TILE = 2048
"""Numbers of a program, 16 for each of its 128 threads."""


@functools.cache
def _centres(n: int, stop: float, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    return gaussians(n, stop)[0].to(device, dtype)


@triton.jit(do_not_specialize=["n"])
def _forward(distance, centres, y, n, C: tl.constexpr, SCALE: tl.constexpr, ROWS: tl.constexpr, C2: tl.constexpr):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[:, None]
    c = tl.arange(0, C2)[None, :]
    mask = (row < n) & (c < C)
    away = tl.load(distance + row, mask=row < n, other=0.0) - tl.load(centres + c, mask=c < C, other=0.0)
    tl.store(y + row * C + c, tl.exp(-SCALE * away * away), mask=mask)


@triton.jit(do_not_specialize=["n"])
def _backward(
    grad,
    distance,
    centres,
    grad_distance,
    n,
    C: tl.constexpr,
    SCALE: tl.constexpr,
    ROWS: tl.constexpr,
    C2: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    row = rows[:, None]
    c = tl.arange(0, C2)[None, :]
    g = tl.load(grad + row * C + c, mask=(row < n) & (c < C), other=0.0)
    away = tl.load(distance + row, mask=row < n, other=0.0) - tl.load(centres + c, mask=c < C, other=0.0)
    slope = -2 * SCALE * tl.sum(g * away * tl.exp(-SCALE * away * away), 1)
    tl.store(grad_distance + rows, slope, mask=rows < n)


def _launch(distance: torch.Tensor, n: int, stop: float) -> tuple[torch.Tensor, tuple, tuple[int]]:
    width = triton.next_power_of_2(n)
    rows, sigma = max(1, TILE // width), gaussians(n, stop)[1]
    constants = (len(distance), n, 1 / (2 * sigma**2), rows, width)
    return _centres(n, stop, distance.dtype, distance.device), constants, (triton.cdiv(len(distance), rows),)


def forward(distance: torch.Tensor, n: int, stop: float) -> torch.Tensor:
    """Runs the basis."""
    y = distance.new_empty(len(distance), n)
    centres, constants, grid = _launch(distance, n, stop)
    _forward[grid](distance, centres, y, *constants, num_warps=4)
    return y


def forward_cost(distance: torch.Tensor, n: int, stop: float) -> Cost:
    """Counts `forward`."""
    return Cost((n + 1) * nbytes(distance), 4 * n * len(distance))


def backward(grad: torch.Tensor, distance: torch.Tensor, n: int, stop: float, needs: list[bool]) -> list[torch.Tensor]:
    """Runs the basis's derivative; `needs` has one entry, which is true."""
    grad_distance = torch.empty_like(distance)
    centres, constants, grid = _launch(distance, n, stop)
    _backward[grid](grad, distance, centres, grad_distance, *constants, num_warps=4)
    return [grad_distance]


def backward_cost(grad: torch.Tensor, distance: torch.Tensor, n: int, stop: float, needs: list[bool]) -> Cost:
    """Counts `backward`."""
    return Cost(nbytes(grad) + 2 * nbytes(distance), 7 * n * len(distance))
