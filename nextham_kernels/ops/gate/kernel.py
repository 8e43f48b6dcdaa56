"""Gate on the GPU (Triton).

A program takes a few rows. Forward: every number of the result is c_j σ(x_{g_j}) x_{v_j}, the scalars too (SiLU has
g_j = v_j), so one tile [numbers, rows] does all; a gate that several numbers share comes from the first-level cache.
Backward: a tile [gates, rows] and a loop over the components of a channel, so each number is read once and the sum
over the components stays in registers. Rows are the second axis, because Triton lays the lanes of a gather along the
first, and neighbouring lanes shall read neighbouring numbers.

Numbers per row: d_in + d_out forward, 2 d_in + d_out backward; some 6 and 12 flops per number. Bound by memory.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import triton
import triton.language as tl

from nextham_kernels.clebsch_gordan import dim_of, irreps_of
from nextham_kernels.cost import Cost, nbytes
from nextham_kernels.ops.gate.cpu import gate_of
from nextham_kernels.ops.gate.reference import SIGMOID_SCALE, SILU_SCALE, counts

TILE = 2048
"""Numbers of a program: 16 for each of its 128 threads, so that several loads are on their way."""


@functools.cache
def _columns(irreps_out: str, edge: bool, skip: int, device: torch.device) -> torch.Tensor:
    """Where each number of the result finds its gate and its value in x, int32 [2, d_out]."""
    n_scalars, n_gates = counts(irreps_of(irreps_out))
    scalars = np.arange(n_scalars)
    gate = skip + np.concatenate([scalars, n_scalars + gate_of(irreps_out, edge)])
    value = skip + np.concatenate([scalars, n_gates + np.arange(n_scalars, dim_of(irreps_out))])
    return torch.from_numpy(np.stack([gate, value]).astype(np.int32)).to(device)


@functools.cache
def _members(irreps_out: str, edge: bool, device: torch.device) -> torch.Tensor:
    """The numbers of the result that each gate scales, int32 [components, gates]; −1 where it has fewer."""
    n_scalars, n_gates = counts(irreps_of(irreps_out))
    gates = gate_of(irreps_out, edge)
    most = max((2 * ir.l + 1 for _, ir in irreps_of(irreps_out)), default=1)
    members = np.full((most, n_gates), -1, dtype=np.int32)
    for gate in range(n_gates):
        own = np.flatnonzero(gates == gate)
        members[: len(own), gate] = n_scalars + own
    return torch.from_numpy(members).to(device)


@triton.jit(do_not_specialize=["n"])
def _forward(
    x,
    columns,
    y,
    n,
    width,
    D: tl.constexpr,
    SCALARS: tl.constexpr,
    SILU: tl.constexpr,
    SIGMOID: tl.constexpr,
    ROWS: tl.constexpr,
    D2: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[None, :]
    j = tl.arange(0, D2)[:, None]
    there = j < D
    gate = tl.load(columns + j, mask=there, other=0)
    value = tl.load(columns + D + j, mask=there, other=0)
    mask = there & (row < n)
    g = tl.load(x + row * width + gate, mask=mask, other=0.0)
    v = tl.load(x + row * width + value, mask=mask, other=0.0)
    scaled = tl.sigmoid(g) * v
    tl.store(y + row * D + j, tl.where(j < SCALARS, SILU * scaled, SIGMOID * scaled), mask=mask)


@triton.jit(do_not_specialize=["n"])
def _backward(
    grad,
    x,
    members,
    grad_x,
    n,
    width,
    skip,
    D: tl.constexpr,
    SCALARS: tl.constexpr,
    GATES: tl.constexpr,
    MOST: tl.constexpr,
    SILU: tl.constexpr,
    SIGMOID: tl.constexpr,
    ROWS: tl.constexpr,
    SKIP2: tl.constexpr,
    SCALARS2: tl.constexpr,
    GATES2: tl.constexpr,
):
    row = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[None, :]
    here = row < n
    start = row * width + skip
    if SKIP2 > 0:
        j = tl.arange(0, SKIP2)[:, None]
        nothing = tl.zeros((SKIP2, ROWS), dtype=x.dtype.element_ty)
        tl.store(grad_x + row * width + j, nothing, mask=here & (j < skip))
    if SCALARS > 0:
        j = tl.arange(0, SCALARS2)[:, None]
        mask = here & (j < SCALARS)
        s = tl.load(x + start + j, mask=mask, other=0.0)
        g = tl.load(grad + row * D + j, mask=mask, other=0.0)
        sigma = tl.sigmoid(s)
        tl.store(grad_x + start + j, SILU * g * sigma * (1 + s * (1 - sigma)), mask=mask)
    if GATES > 0:
        u = tl.arange(0, GATES2)[:, None]
        gated = here & (u < GATES)
        sigma = tl.sigmoid(tl.load(x + start + SCALARS + u, mask=gated, other=0.0))
        total = tl.zeros((GATES2, ROWS), dtype=x.dtype.element_ty)
        for k in tl.static_range(MOST):
            j = tl.load(members + k * GATES + u, mask=u < GATES, other=-1)
            mask = gated & (j >= 0)
            g = tl.load(grad + row * D + j, mask=mask, other=0.0)
            t = tl.load(x + start + GATES + j, mask=mask, other=0.0)
            tl.store(grad_x + start + GATES + j, SIGMOID * sigma * g, mask=mask)
            total += g * t
        tl.store(grad_x + start + SCALARS + u, SIGMOID * sigma * (1 - sigma) * total, mask=gated)


def forward(x: torch.Tensor, irreps_out: str, edge: bool, skip: int) -> torch.Tensor:
    """Runs the gate."""
    d = dim_of(irreps_out)
    y = x.new_empty(len(x), d)
    width, rows = triton.next_power_of_2(max(d, 1)), max(1, TILE // triton.next_power_of_2(max(d, 1)))
    columns = _columns(irreps_out, edge, skip, x.device)
    n_scalars, _ = counts(irreps_of(irreps_out))
    grid = (triton.cdiv(len(x), rows),)
    _forward[grid](
        x, columns, y, len(x), x.shape[1], d, n_scalars, SILU_SCALE, SIGMOID_SCALE, ROWS=rows, D2=width, num_warps=4
    )
    return y


def forward_cost(x: torch.Tensor, irreps_out: str, edge: bool, skip: int) -> Cost:
    """Counts `forward`."""
    d = dim_of(irreps_out)
    return Cost((x.shape[1] - skip + d) * len(x) * x.element_size(), 6 * d * len(x))


def backward(
    grad: torch.Tensor, x: torch.Tensor, irreps_out: str, edge: bool, skip: int, needs: list[bool]
) -> list[torch.Tensor]:
    """Runs the gate's derivative; `needs` has one entry, which is true."""
    grad_x = torch.empty_like(x)
    n_scalars, n_gates = counts(irreps_of(irreps_out))
    members = _members(irreps_out, edge, x.device)
    powers = [triton.next_power_of_2(m) if m else 0 for m in (skip, n_scalars, n_gates)]
    rows = max(1, TILE // (4 * max(*powers, 1)))  # the loop over components is another factor of four or more
    _backward[(triton.cdiv(len(x), rows),)](
        grad,
        x,
        members,
        grad_x,
        len(x),
        x.shape[1],
        skip,
        dim_of(irreps_out),
        n_scalars,
        n_gates,
        len(members),
        SILU_SCALE,
        SIGMOID_SCALE,
        rows,
        *powers,
        num_warps=4,
    )
    return [grad_x]


def backward_cost(
    grad: torch.Tensor, x: torch.Tensor, irreps_out: str, edge: bool, skip: int, needs: list[bool]
) -> Cost:
    """Counts `backward`."""
    return Cost(nbytes(grad, x, x), 12 * grad.numel())
