"""Two-center integrals on the GPU (Triton).

A program makes a tile [pairs of atoms, numbers of the result], each number a sum over L of a column times an angular
factor Σ_M G Y_LM. Both are made where they are needed: the six rows around |R| and the harmonics of a pair are read
again for every number, from the first-level cache, so that nothing but the result is written.

Numbers per pair (silicon, S and T): 26 read and 338 written; some 9,000 flops, nine tenths of them the interpolation
that numbers of one shell repeat. In double precision that, not memory, bounds it.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import triton
import triton.language as tl

from nextham_kernels.cost import Cost, nbytes
from nextham_kernels.ops.two_center.cpu import plan
from nextham_kernels.ops.two_center.reference import components, degrees

PAIRS, NUMBERS = 4, 128
"""Tile of a program."""


@functools.cache
def _terms(
    left: str, right: str, parts: int, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Columns [k, o] (−1 where a number has fewer terms), places in the harmonics and factors [k, m, o]."""
    angular_ends, places, factors, ends, terms = plan(left, right, parts, torch.float64)
    angular_starts, starts = (np.concatenate([[0], x[:-1]]) for x in (angular_ends, ends))
    most_terms, most = int((ends - starts).max()), int((angular_ends - angular_starts).max())
    columns = np.full((most_terms, len(ends)), -1, dtype=np.int32)
    place, factor = np.zeros((2, most_terms, most, len(ends)))
    for o, (start, end) in enumerate(zip(starts, ends, strict=True)):
        for k, (angular, column) in enumerate(terms[start:end]):
            own = slice(angular_starts[angular], angular_ends[angular])
            columns[k, o] = column
            place[k, : own.stop - own.start, o] = places[own]
            factor[k, : own.stop - own.start, o] = factors[own]
    return (
        torch.from_numpy(columns).to(device),
        torch.from_numpy(place.astype(np.int32)).to(device),
        torch.from_numpy(factor).to(device, dtype),
    )


@triton.jit(do_not_specialize=["n", "n_harmonics", "n_columns", "size", "total"])
def _forward(
    distance,
    harmonics,
    table,
    columns,
    places,
    factors,
    y,
    n,
    n_harmonics,
    n_columns,
    size,
    total,
    SPACING: tl.constexpr,
    CUTOFF: tl.constexpr,
    TERMS: tl.constexpr,
    MOST: tl.constexpr,
    PAIRS: tl.constexpr,
    NUMBERS: tl.constexpr,
):
    e = (tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS))[:, None]
    o = (tl.program_id(1).to(tl.int64) * NUMBERS + tl.arange(0, NUMBERS))[None, :]
    there = o < total
    d = tl.load(distance + e, mask=e < n, other=CUTOFF)
    inside = d < CUTOFF
    x = tl.where(inside, d, 0.0) / SPACING
    row = x.to(tl.int64)
    t = x - row.to(x.dtype)
    sum_of_terms = tl.zeros((PAIRS, NUMBERS), dtype=y.dtype.element_ty)
    for k in tl.static_range(TERMS):
        c = tl.load(columns + k * total + o, mask=there, other=-1)
        mask = inside & (c >= 0)
        value = tl.zeros((PAIRS, NUMBERS), dtype=y.dtype.element_ty)
        for i in tl.static_range(6):
            weight = t * 0 + 1
            for j in tl.static_range(6):
                if j != i:
                    weight *= (t + (2 - j)) / (i - j)
            value += weight * tl.load(table + (row + i) * n_columns + c, mask=mask, other=0.0)
        angular = tl.zeros((PAIRS, NUMBERS), dtype=y.dtype.element_ty)
        for m in tl.static_range(MOST):
            place = tl.load(places + (k * MOST + m) * total + o, mask=there, other=0)
            factor = tl.load(factors + (k * MOST + m) * total + o, mask=there, other=0.0)
            angular += factor * tl.load(harmonics + e * n_harmonics + place, mask=mask, other=0.0)
        sum_of_terms += value * angular
    to = y + ((o // size) * n + e) * size + o % size
    tl.store(to, sum_of_terms, mask=there & (e < n))


def forward(
    distance: torch.Tensor,
    harmonics: torch.Tensor,
    table: torch.Tensor,
    left: str,
    right: str,
    parts: int,
    spacing: float,
    cutoff: float,
) -> torch.Tensor:
    """Runs the interpolation and the sums."""
    n, size_a, size_b = len(distance), components(degrees(left)), components(degrees(right))
    y = distance.new_empty(parts, n, size_a, size_b)
    columns, places, factors = _terms(left, right, parts, distance.dtype, distance.device)
    size, total = size_a * size_b, parts * size_a * size_b
    _forward[(triton.cdiv(n, PAIRS), triton.cdiv(total, NUMBERS))](
        distance,
        harmonics,
        table,
        columns,
        places,
        factors,
        y,
        n,
        harmonics.shape[1],
        table.shape[1],
        size,
        total,
        spacing,
        cutoff,
        *places.shape[:2],
        PAIRS,
        NUMBERS,
        num_warps=4,
    )
    return y


def forward_cost(
    distance: torch.Tensor,
    harmonics: torch.Tensor,
    table: torch.Tensor,
    left: str,
    right: str,
    parts: int,
    spacing: float,
    cutoff: float,
) -> Cost:
    """Counts `forward`: the table is in the cache."""
    n, written = len(distance), parts * components(degrees(left)) * components(degrees(right))
    terms = len(plan(left, right, parts, torch.float64)[4])
    return Cost(nbytes(distance, harmonics) + written * n * distance.element_size(), 16 * terms * n)
