"""Superposition of atomic functions on a grid, on the GPU (Triton).

A program takes 64 consecutive points of one brick through the atoms of the brick; its sums stay in registers. Of an
atom and a point it reads one row of 16 coefficients, four tiles [points, 4 functions] with a lane for two of them in
double precision (the row is one line of the first-level cache). All four functions are multiplied by 1, d and d dᵀ/d²,
though n″ and n′/r alone need it: 40 multiply-adds instead of 25, but no function has to leave its lane before the end.

Per atom and point: 128 bytes from the caches in double precision, some 110 flops. Per point: 40 bytes written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from nextham_kernels.cost import Cost, nbytes

POINTS = 64
"""Points of a program: of the ten sums of each of four functions, 20 numbers for each of its 128 threads."""


def tiles_of(bricks: torch.Tensor, n_points: int, size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the brick of every tile of at most `size` points of one brick, and the first tile and point of each.

    There are as many tiles as the sizes of bricks could make; behind the last one the brick is their number.
    """
    points = bricks[:, 3:].prod(1)
    tiles = (points + size - 1) // size
    ends = tiles.cumsum(0)
    tile = torch.arange(n_points // size + len(bricks), device=bricks.device)
    return torch.searchsorted(ends, tile, right=True), ends - tiles, points.cumsum(0) - points


@triton.jit
def brick_points(bricks, step, c, p) -> tuple:
    """Positions of the points p of brick c, as x, y, z, and which of them exist."""
    dtype: tl.constexpr = step.dtype.element_ty
    n2 = tl.load(bricks + 6 * c + 4).to(tl.int32)
    n3 = tl.load(bricks + 6 * c + 5).to(tl.int32)
    live = p < tl.load(bricks + 6 * c + 3).to(tl.int32) * n2 * n3
    i = (tl.load(bricks + 6 * c) + p // (n2 * n3)).to(dtype)
    j = (tl.load(bricks + 6 * c + 1) + p // n3 % n2).to(dtype)
    k = (tl.load(bricks + 6 * c + 2) + p % n3).to(dtype)
    x = i * tl.load(step) + j * tl.load(step + 3) + k * tl.load(step + 6)
    y = i * tl.load(step + 1) + j * tl.load(step + 4) + k * tl.load(step + 7)
    z = i * tl.load(step + 2) + j * tl.load(step + 5) + k * tl.load(step + 8)
    return x, y, z, live


@triton.jit
def of_atom(x, y, z, live, centres, rows, species, i, PER_LENGTH: tl.constexpr) -> tuple:
    """Vectors from atom i to points, their squares, its element, rows of its table, place between two, who is near."""
    x, y, z = x - tl.load(centres + 3 * i), y - tl.load(centres + 3 * i + 1), z - tl.load(centres + 3 * i + 2)
    square = x * x + y * y + z * z
    far = tl.sqrt(square) * PER_LENGTH
    row = far.to(tl.int32)
    element = tl.load(species + i)
    first = tl.load(rows + element)
    inside = live & (row < tl.load(rows + element + 1) - first)
    return x, y, z, square, element, first + row, far - row.to(far.dtype), inside


@triton.jit
def _column(sums, k: tl.constexpr):
    """One of the four functions."""
    return tl.sum(tl.where(tl.arange(0, 4)[None, :] == k, sums, 0.0), axis=1)


@triton.jit(do_not_specialize=["n_bricks"])
def _forward(
    centres,
    table,
    step,
    rows,
    bricks,
    starts,
    species,
    tile_brick,
    first_tile,
    first_point,
    y,
    n_bricks,
    PER_LENGTH: tl.constexpr,
    POINTS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    c = tl.load(tile_brick + program)
    if c < n_bricks:
        tile = (program - tl.load(first_tile + c)).to(tl.int32)
        p = (tile * POINTS + tl.arange(0, POINTS))[:, None]
        x, y_, z, live = brick_points(bricks, step, c, p)
        f = tl.arange(0, 4)[None, :]
        zero = tl.zeros((POINTS, 4), dtype=y.dtype.element_ty)
        plain, along_x, along_y, along_z = zero, zero, zero, zero
        xx, yy, zz, xy, xz, yz = zero, zero, zero, zero, zero, zero
        for i in range(tl.load(starts + c), tl.load(starts + c + 1)):
            dx, dy, dz, square, _, row, t, inside = of_atom(x, y_, z, live, centres, rows, species, i, PER_LENGTH)
            at = table + row * 16 + f
            value = tl.load(at + 12, mask=inside, other=0.0)
            for k in tl.static_range(3):
                value = value * t + tl.load(at + (8 - 4 * k), mask=inside, other=0.0)
            plain += value
            along_x += value * dx
            along_y += value * dy
            along_z += value * dz
            value = value / tl.where(square > 0, square, 1.0)
            xx += value * (dx * dx)
            yy += value * (dy * dy)
            zz += value * (dz * dz)
            xy += value * (dx * dy)
            xz += value * (dx * dz)
            yz += value * (dy * dz)
        slope = _column(plain, 2)
        gx, gy, gz = _column(along_x, 2), _column(along_y, 2), _column(along_z, 2)
        hxx, hyy, hzz = (
            slope + _column(xx, 3) - _column(xx, 2),
            slope + _column(yy, 3) - _column(yy, 2),
            slope + _column(zz, 3) - _column(zz, 2),
        )
        hxy, hxz, hyz = (
            _column(xy, 3) - _column(xy, 2),
            _column(xz, 3) - _column(xz, 2),
            _column(yz, 3) - _column(yz, 2),
        )
        curved = gx * gx * hxx + gy * gy * hyy + gz * gz * hzz + 2 * (gx * gy * hxy + gx * gz * hxz + gy * gz * hyz)
        p = tile * POINTS + tl.arange(0, POINTS)
        to = y + (tl.load(first_point + c) + p) * 5
        _, _, _, there = brick_points(bricks, step, c, p)
        tl.store(to, _column(plain, 0), mask=there)
        tl.store(to + 1, _column(plain, 1), mask=there)
        tl.store(to + 2, gx * gx + gy * gy + gz * gz, mask=there)
        tl.store(to + 3, hxx + hyy + hzz, mask=there)
        tl.store(to + 4, curved, mask=there)


def forward(
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
    """Runs the sums."""
    y = centres.new_empty(n_points, 5)
    if n_points:
        tiles = tiles_of(bricks, n_points, POINTS)
        _forward[(len(tiles[0]),)](
            centres,
            table,
            step,
            rows,
            bricks,
            starts,
            species,
            *tiles,
            y,
            len(bricks),
            per_length,
            POINTS,
            num_warps=4,
        )
    return y


def forward_cost(
    centres: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    rows: torch.Tensor,
    bricks: torch.Tensor,
    starts: torch.Tensor,
    species: torch.Tensor,
    per_length: float,
    n_points: int,
) -> Cost:
    """Counts `forward`, bricks of one size taken for granted; the table is in the cache."""
    visits = n_points * len(centres) // max(1, len(bricks))
    return Cost(nbytes(centres, species, bricks) + 5 * n_points * centres.element_size(), 110 * visits)
