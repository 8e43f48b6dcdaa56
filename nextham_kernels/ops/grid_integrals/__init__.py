"""Matrix elements of a local potential between atomic orbitals, by the sum over a uniform grid.

    M_ab = Σ_p w_p φ_a(r_p − τ_a) φ_b(r_p − τ_b)        φ(d) = f(|d|) |d|^l Y_lm(d/|d|)

w_p is the potential times the volume of a point. Y_lm are real harmonics with ∫ Y² = 1, m = −l … l, and f = R/r^l.

The grid is all points i₁ s₁ + i₂ s₂ + i₃ s₃ of *bricks*, boxes of indices. Each brick names the atoms whose orbitals
may reach it, periodic images as atoms of their own, and which pairs of them are wanted and where their blocks go;
several bricks and several pairs of one brick may add to the same block, but different blocks must not overlap. Time is
linear in the number of points. On a GPU small bricks (8³ points) are best, on a CPU larger ones (16³).

The result is linear in the weights. Derivatives with respect to weights, positions and coefficients are those of the
reference.
"""

from __future__ import annotations

import torch

from nextham_kernels.checks import check_range, check_shapes, check_starts, check_tensors, check_true
from nextham_kernels.ops.grid_integrals import cpu, reference
from nextham_kernels.registration import define

__all__ = ["grid_integrals"]


def _fake(weight: torch.Tensor, *others: object) -> torch.Tensor:
    return weight.new_empty(others[-3])


_op = define(
    "grid_integrals",
    "Tensor weight, Tensor centres, Tensor table, Tensor step, Tensor rows, Tensor bricks, Tensor starts, "
    "Tensor species, Tensor pairs, Tensor pair_starts, float per_length, int size, str shells, int most",
    reference.grid_integrals,
    cpu.forward,
    None,
    _fake,
    gpu=("grid_integrals.kernel.forward",),
)


def grid_integrals(
    weight: torch.Tensor,
    centres: torch.Tensor,
    species: torch.Tensor,
    starts: torch.Tensor,
    pairs: torch.Tensor,
    pair_starts: torch.Tensor,
    bricks: torch.Tensor,
    step: torch.Tensor,
    table: torch.Tensor,
    rows: torch.Tensor,
    degrees: torch.Tensor,
    spacing: float,
    size: int,
) -> torch.Tensor:
    """Returns the blocks M_ab of all pairs, added up over the bricks.

    Args:
        weight: w of all points, brick after brick, the third index counting fastest [p], float32 or float64.
        centres: τ of the atoms of all bricks, brick after brick [i, 3].
        species: row of `rows` of each [i], int64.
        starts: where the atoms of each brick begin [c + 1], int64.
        pairs: the blocks of all bricks, brick after brick [q, 3], int64: place of the first and of the second atom
            among those of the brick, first ≤ second, and where in the result their block [a, b] begins.
        pair_starts: where the pairs of each brick begin [c + 1], int64.
        bricks: first index and number of points along s₁, s₂, s₃ of each brick [c, 6], int64.
        step: s₁, s₂, s₃ as rows [3, 3].
        table: f of each shell on each interval of the distance, [row, 4, s]: coefficients of 1, t, t², t³, then shells,
            t from 0 to 1; zero beyond the last interval.
        rows: where the intervals of each species begin [z + 1], int64.
        degrees: l of each shell, −1 where a species has no more [z, s], int64; on the CPU or where the others are.
        spacing: length of an interval.
        size: length of the result.

    Returns:
        [size].

    Raises:
        ValueError: a wrong shape, an index out of range, or a spacing that is not positive.
        TypeError: a wrong dtype or device.

    Example:
        >>> import torch
        >>> table = torch.zeros(1, 4, 1)
        >>> table[0, 0, 0] = 1.0  # f = 1 up to r = 1
        >>> zero, ends = torch.zeros(1, dtype=torch.int64), torch.tensor([0, 1])
        >>> cube = torch.tensor([[0, 0, 0, 2, 1, 1]])
        >>> one = dict(species=zero, starts=ends, pairs=torch.tensor([[0, 0, 0]]), pair_starts=ends, bricks=cube)
        >>> tables = dict(table=table, rows=ends, degrees=zero[:, None], spacing=1.0, size=1)
        >>> m = grid_integrals(torch.ones(2), torch.zeros(1, 3), step=torch.eye(3) / 2, **one, **tables)
        >>> (4 * torch.pi * m).round(decimals=4)
        tensor([2.])
    """
    integer = {"species": species, "starts": starts, "pairs": pairs, "pair_starts": pair_starts, "bricks": bricks}
    integer |= {"rows": rows, "degrees": degrees.to(weight.device)}
    check_tensors(integer=integer, weight=weight, centres=centres, step=step, table=table)
    sizes = check_shapes(
        weight=(weight, "p"),
        centres=(centres, "i 3"),
        species=(species, "i"),
        pairs=(pairs, "q 3"),
        bricks=(bricks, "c 6"),
        step=(step, "3 3"),
        table=(table, "row 4 s"),
        degrees=(degrees, "z s"),
    )
    for name, starting, length, total in (
        ("starts", starts, sizes["c"] + 1, sizes["i"]),
        ("pair_starts", pair_starts, sizes["c"] + 1, sizes["q"]),
        ("rows", rows, sizes["z"] + 1, sizes["row"]),
    ):
        check_starts(name, starting, length, total)
    check_range("species", species, sizes["z"])
    if degrees.numel() and not -1 <= int(degrees.min()) <= int(degrees.max()) <= 6:
        raise ValueError(f"degrees: expected l from 0 to 6, or -1, got {int(degrees.min())} to {int(degrees.max())}")
    check_true(bricks[:, 3:] > 0, "bricks: expected at least one point along every axis")
    one_each = bricks[:, 3:].prod(1).sum() == sizes["p"]
    check_true(one_each, f"weight: expected one number for each point of the bricks, got {sizes['p']}")
    if not spacing > 0:
        raise ValueError(f"spacing: expected a positive length, got {spacing}")
    degrees = degrees.cpu()
    orbitals = ((2 * degrees + 1) * (degrees >= 0)).sum(1).to(weight.device)[species]
    _check_pairs(pairs, pair_starts, starts, orbitals, size)
    ends = torch.nn.functional.pad(orbitals.cumsum(0), (1, 0))[starts]
    most = int(ends.diff().max()) if len(bricks) else 0
    shells = ";".join(",".join(str(l) for l in row if l >= 0) for row in degrees.tolist())
    tables = (centres, table, step, rows, bricks, starts, species, pairs, pair_starts)
    return _op(weight, *tables, 1 / float(spacing), size, shells, most)


def _check_pairs(
    pairs: torch.Tensor, pair_starts: torch.Tensor, starts: torch.Tensor, orbitals: torch.Tensor, size: int
) -> None:
    """Every pair names two atoms of its brick, in order, and its block lies inside the result."""
    number = torch.arange(len(pairs), device=pairs.device)
    brick = torch.searchsorted(pair_starts, number, right=True) - 1
    first, second, offset = pairs.unbind(1)
    ordered = (first >= 0) & (first <= second) & (second < starts.diff()[brick])
    check_true(ordered, "pairs: expected two atoms of the brick, the first not behind the second")
    numbers = orbitals[starts[brick] + first] * orbitals[starts[brick] + second]
    inside = (offset >= 0) & (offset + numbers <= size)
    check_true(inside, f"pairs: expected blocks inside the result of {size} numbers")
