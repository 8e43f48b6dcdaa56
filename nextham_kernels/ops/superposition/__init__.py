"""Superposition of atomic functions on a grid: a potential V, and a density n with what its functional needs.

    V(r) = Σ_i V_i(|r − τ_i|)    n(r) = Σ_i n_i(|r − τ_i|)    and of n: |∇n|², ∇²n, ∇n·(∇∇n)∇n

∇n = Σ a_i d_i and ∇∇n = Σ a_i 1 + (b_i − a_i) d_i d_iᵀ/d_i² with d_i = r − τ_i, a_i = n_i′/d_i and b_i = n_i″, so that
no Fourier transform over the cell is needed: time is linear in the number of points.

The grid is all points i₁ s₁ + i₂ s₂ + i₃ s₃ of *bricks*, boxes of indices. Each brick names the atoms that may reach
it, periodic images as atoms of their own. The radial functions of a species are cubics on intervals of equal length and
vanish beyond the last.

First and second derivatives with respect to the positions and the coefficients exist (by the reference; the cubics have
kinks in their third derivative).
"""

from __future__ import annotations

import torch

from nextham_kernels.checks import check_range, check_shapes, check_starts, check_tensors, check_true
from nextham_kernels.ops.superposition import cpu, reference
from nextham_kernels.registration import define

__all__ = ["superposition"]


def _fake(
    centres: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    rows: torch.Tensor,
    bricks: torch.Tensor,
    starts: torch.Tensor,
    species: torch.Tensor,
    per_length: float,
    n_points: int,
) -> torch.Tensor:
    return centres.new_empty(n_points, 5)


_op = define(
    "superposition",
    "Tensor centres, Tensor table, Tensor step, Tensor rows, Tensor bricks, Tensor starts, Tensor species, "
    "float per_length, int n_points",
    reference.superposition,
    cpu.forward,
    None,
    _fake,
    gpu=("superposition.kernel.forward",),
)


def superposition(
    centres: torch.Tensor,
    species: torch.Tensor,
    starts: torch.Tensor,
    bricks: torch.Tensor,
    step: torch.Tensor,
    table: torch.Tensor,
    rows: torch.Tensor,
    spacing: float,
) -> torch.Tensor:
    """Returns V, n, |∇n|², ∇²n and ∇n·(∇∇n)∇n at every point of every brick.

    Args:
        centres: τ_i of the atoms of all bricks, brick after brick [i, 3], float32 or float64.
        species: row of `rows` of each [i], int64.
        starts: where the atoms of each brick begin [c + 1], int64.
        bricks: first index and number of points along s₁, s₂, s₃ of each brick [c, 6], int64.
        step: s₁, s₂, s₃ as rows [3, 3].
        table: V, n, n′/r and n″ on each interval, [row, 4, 4]: coefficients of 1, t, t², t³, then the four functions,
            t from 0 to 1.
        rows: where the intervals of each species begin [z + 1], int64.
        spacing: length of an interval.

    Returns:
        [p, 5], bricks in order, in each the third index counting fastest.

    Raises:
        ValueError: a wrong shape, an index out of range, or a spacing that is not positive.
        TypeError: a wrong dtype or device.

    Example:
        >>> import torch
        >>> table = torch.zeros(2, 4, 4)
        >>> table[0, 0] = torch.tensor([-1.0, 0.5, 0.0, 0.0])  # V = −1 and n = 1/2 up to r = 1, zero up to r = 2
        >>> one, bricks = torch.zeros(1, dtype=torch.int64), torch.tensor([[0, 0, 0, 1, 1, 3]])
        >>> ends = torch.tensor([0, 1])
        >>> superposition(torch.zeros(1, 3), one, ends, bricks, 0.6 * torch.eye(3), table, torch.tensor([0, 2]), 1.0)
        tensor([[-1.0000,  0.5000,  0.0000,  0.0000,  0.0000],
                [-1.0000,  0.5000,  0.0000,  0.0000,  0.0000],
                [ 0.0000,  0.0000,  0.0000,  0.0000,  0.0000]])
    """
    integer = {"species": species, "starts": starts, "bricks": bricks, "rows": rows}
    check_tensors(integer=integer, centres=centres, step=step, table=table)
    sizes = check_shapes(
        centres=(centres, "i 3"),
        species=(species, "i"),
        bricks=(bricks, "c 6"),
        step=(step, "3 3"),
        table=(table, "row 4 4"),
    )
    check_starts("starts", starts, sizes["c"] + 1, sizes["i"])
    check_starts("rows", rows, max(rows.numel(), 1), sizes["row"])
    check_range("species", species, len(rows) - 1)
    check_true(bricks[:, 3:] > 0, "bricks: expected at least one point along every axis")
    if not spacing > 0:
        raise ValueError(f"spacing: expected a positive length, got {spacing}")
    n_points = int(bricks[:, 3:].prod(1).sum())
    return _op(centres, table, step, rows, bricks, starts, species, 1 / float(spacing), n_points)
