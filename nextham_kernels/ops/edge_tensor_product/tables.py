"""Tables of the Triton kernels: which places of the rows and of the weights each unit of work reads.

Places are numbers of a row in the edge layout, or of `radial`, `linear_weight` and `bias`; everything is int32 but the
coefficients, which have the dtype of the features.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch

from nextham_kernels.clebsch_gordan import dim_of, irreps_of
from nextham_kernels.edge_layout import edge_coefficient, edge_layout, sigma_of

__all__ = ["PAIRS", "Tables", "forward_tables", "pull_tables", "weight_works"]

PAIRS = 32
"""Pairs (path, channel) of a program of the weight gradient."""


class _Path(NamedTuple):
    """A coupling of a block of x with the harmonic of degree l2, to ir."""

    irrep: int
    mul: int
    degree: int
    ir: object
    radial: int  # where its weights begin
    row: int  # where its channels begin among all that reach ir


class Tables(NamedTuple):
    """What a kernel asks of a plan; its page says what stands where."""

    units: torch.Tensor  # int32
    places: torch.Tensor  # int32, or int64 for doubles
    coefficients: torch.Tensor
    classes: tuple[tuple[int, ...], ...]  # components, width, …
    align: int  # what divides all places and runs of consecutive ones, at most 4


@functools.cache
def _paths(irreps_x: str, l_max: int, irreps_out: str) -> tuple[list[_Path], list[int]]:
    """All paths, and where the weights of each block of the result begin in `linear_weight`; as `reference.plan`."""
    paths, n_radial, n_rows = [], 0, {ir: 0 for _, ir in irreps_of(irreps_x)}
    for block, (mul, ir_x) in enumerate(irreps_of(irreps_x)):
        for degree in range(l_max + 1):
            for ir in ir_x * irreps_of(f"1x{degree}{'eo'[degree % 2]}")[0].ir:
                if ir in n_rows:
                    paths.append(_Path(block, mul, degree, ir, n_radial, n_rows[ir]))
                    n_radial += mul
                    n_rows[ir] += mul
    starts, start = [0] * len(irreps_of(irreps_out)), 0
    for b, (mul, ir) in sorted(enumerate(irreps_of(irreps_out)), key=lambda block: (block[1].ir.l, -block[1].ir.p)):
        starts[b] = start
        start += n_rows.get(ir, 0) * mul
    return paths, starts


@functools.cache
def _column(irreps: str, irrep: int, component: int) -> int:
    """Where a block's channels begin in the row; components are 0, +1, −1, +2, −2 … (with the swap of σ = −1)."""
    layout, m = edge_layout(irreps), (component + 1) // 2
    ir = layout.irreps[irrep].ir
    block = layout.find(m, 0 if m else sigma_of(ir.l, ir.p))
    start = next(channels.start for channels in block.channels if channels.irrep == irrep)
    return block.columns(0 if m == 0 else (component + 1) % 2).start + start


def _coefficient(irreps_x: str, path: _Path, component: int) -> float:
    """What a component of the path is multiplied by; 0 where it has none."""
    ir, m = irreps_of(irreps_x)[path.irrep].ir, (component + 1) // 2
    if m > min(ir.l, path.ir.l) or (m == 0 and (ir.l + path.degree + path.ir.l) % 2):
        return 0.0
    c = edge_coefficient(ir.l, ir.p, path.degree, path.ir.l, m)
    return c if abs(c) > 1e-12 else 0.0  # some vanish, and float64 leaves 1e-17 of them


def _width(mul: int, components: int) -> int:
    """Channels of a tile with so many components: at most 32 sums for each of 128 threads, 64 edges."""
    most = max(8, 1 << (max(1, min(64, 128 // components)).bit_length() - 1))
    return min(most, max(8, 1 << (mul - 1).bit_length()))


@functools.cache
def forward_tables(irreps_x: str, l_max: int, irreps_out: str, dtype: torch.dtype, device: torch.device) -> Tables:
    """Units [8]: class, pairs, first place, first coefficient, channels, first column of W, components, first bias.

    The places of a unit: of r, l2 > 0, W (without the column), then x for each component (−1: none), for each pair; and
    at the end the column of the result for each component.
    """
    paths, starts = _paths(irreps_x, l_max, irreps_out)
    units, places, coefficients, classes, n_scalars = [], [], [], {}, 0
    aligned = [dim_of(irreps_x), dim_of(irreps_out)]
    for b, (mul, ir) in enumerate(irreps_of(irreps_out)):
        own = [p for p in paths if p.ir == ir and p.mul]
        n_pairs, components = sum(p.mul for p in own), 2 * ir.l + 1
        width = _width(mul, components)
        rows = [
            [p.radial + u for p in own for u in range(p.mul)],
            [int(p.degree > 0) for p in own for u in range(p.mul)],
            [starts[b] + (p.row + u) * mul for p in own for u in range(p.mul)],
        ]
        values = []
        for j in range(components):
            found = [_coefficient(irreps_x, p, j) for p in own]
            values.append([c for p, c in zip(own, found, strict=True) for u in range(p.mul)])
            columns = [_column(irreps_x, p.irrep, j) if c else -1 for p, c in zip(own, found, strict=True)]
            rows.append([c + u if c >= 0 else -1 for p, c in zip(own, columns, strict=True) for u in range(p.mul)])
            aligned += [c for c in columns if c >= 0]
        aligned += [mul, starts[b], *(n for p in own for n in (p.mul, p.radial, p.row))]
        for n in range(0, mul, width):
            kind = classes.setdefault((components, width, int(ir.is_scalar())), len(classes))
            aligned.append(n_scalars + n)
            outputs = [_column(irreps_out, b, j) + n for j in range(components)]
            aligned += outputs
            units.append([kind, n_pairs, len(places), len(coefficients), mul - n, n, components, n_scalars + n])
            places += [place for row in rows for place in row] + outputs
            coefficients += [c for row in values for c in row]
        n_scalars += mul if ir.is_scalar() else 0
    return _on(units, 8, places, coefficients, classes, aligned, dtype, device)


def _on(
    units: list,
    n: int,
    places: list,
    coefficients: list,
    classes: dict,
    aligned: list,
    dtype: torch.dtype,
    device: torch.device,
) -> Tables:
    # Triton 3.6 cannot compile a product of doubles whose operands depend on a narrower load (MMAv2, largeK).
    wide = torch.int64 if dtype == torch.float64 else torch.int32
    return Tables(
        torch.tensor(units, dtype=torch.int32, device=device).reshape(-1, n),
        torch.tensor(places, dtype=wide, device=device),
        torch.tensor(coefficients, dtype=torch.float64).to(dtype).to(device),
        tuple(classes),
        math.gcd(4, *aligned),
    )


@functools.cache
def pull_tables(irreps_x: str, l_max: int, irreps_out: str, dtype: torch.dtype, device: torch.device) -> Tables:
    """Units [6]: class, items, first place, first coefficient, channels, first item's … for every block of x.

    An item is a path and a block of the result that it reaches; those of a path follow each other. Its places: of r,
    l2 > 0, whether it is the path's first and last, W, its channels, then the column of the gradient for each component
    (−1: none). The places of a unit begin with the columns of x.
    """
    paths, starts = _paths(irreps_x, l_max, irreps_out)
    units, places, coefficients, classes = [], [], [], {}
    aligned = [dim_of(irreps_x), dim_of(irreps_out), *starts]
    for a, (mul, ir_x) in enumerate(irreps_of(irreps_x)):
        components = 2 * ir_x.l + 1
        width = _width(mul, components)
        for u in range(0, mul, width):
            kind = classes.setdefault((components, width), len(classes))
            columns = [_column(irreps_x, a, j) + u for j in range(components)]
            first, items = [len(places), len(coefficients)], 0
            places += columns
            for p in (p for p in paths if p.irrep == a):
                targets = [(b, n) for b, (n, ir) in enumerate(irreps_of(irreps_out)) if ir == p.ir] or [(-1, 0)]
                found = [_coefficient(irreps_x, p, j) for j in range(components)]
                for i, (b, n) in enumerate(targets):
                    ends = [int(i == 0), int(i == len(targets) - 1)]
                    into = [_column(irreps_out, b, j) if c and b >= 0 else -1 for j, c in enumerate(found)]
                    weight = starts[b] + (p.row + u) * n if b >= 0 else 0
                    places += [p.radial + u, int(p.degree > 0), *ends, weight, n, *into]
                    coefficients += found
                    aligned += [p.radial + u, weight, n, *(c for c in into if c >= 0)]
                    items += 1
            aligned += [*columns, mul - u]
            units.append([kind, items, *first, mul - u, 0])
    return _on(units, 6, places, coefficients, classes, aligned, dtype, device)


@functools.cache
def weight_works(irreps_x: str, l_max: int, irreps_out: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Unit and first pair of each program of the weight gradient, int32 [works, 2]."""
    units = forward_tables(irreps_x, l_max, irreps_out, dtype, torch.device("cpu")).units
    works = [[unit, first] for unit, row in enumerate(units.tolist()) for first in range(0, row[1], PAIRS)]
    return torch.tensor(works, dtype=torch.int32, device=device).reshape(-1, 2)
