"""Matrix elements of a potential between orbitals on a grid, on the GPU (Triton).

Three kernels, the same for any order in which their programs run:

1. `_orbitals`: 128 points of a brick, a thread one, go through the atoms of the brick and write Φ [orbital, point].
2. `_products`: M = Φ diag(w) Φᵀ of a brick in tiles of 64 × 64 orbitals, on or above the diagonal, a program each; in
   double precision by the tensor cores where the GPU has such (compute capability 8.0 and 9.0).
3. `_blocks`: a block of the result is the sum of its pairs' parts of M, in order of the bricks.

Making an orbital at a point costs some 12 flops and a share of 32 bytes of its radial function's coefficients from the
caches; made anew for every tile of M it would cost more than the product, so Φ is written. The product reads a row of
Φ once per tile, from the second-level cache: those of a brick are neighbours in the grid.

Silicon on the default grid, double precision, per atom: 12,300 points in 24 bricks of 8³ points with 17 atoms or 215
orbitals each. Φ is 21 MB, written and read; M 8.9 MB; 1.0 GFLOP. Larger bricks would hold more orbitals that are zero
(16³ points: 23 atoms), smaller ones more parts of M.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl

from nextham_kernels.cost import Cost, nbytes
from nextham_kernels.ops.edge_linear.kernel import matrix_precision
from nextham_kernels.ops.grid_integrals.reference import degrees_of
from nextham_kernels.ops.superposition.kernel import brick_points, of_atom, tiles_of

POINTS = 128
"""Points of a program that makes orbitals."""

TILE, STEP = 64, 16
"""Orbitals of a side of a tile of M, and points of a step; Φ is padded with zeros to a multiple of STEP points."""

PROGRAMS = 4096
"""Programs that share the blocks of the result: some thirty for each multiprocessor."""


@functools.cache
def _normalisations(l_max: int) -> tuple[float, ...]:
    """Factors of r^l Y_lm = factor Q_lm (re, im)_m at l (l + 1)/2 + m, m = 0 … l; the recursions make Q_mm = 1."""
    return tuple(
        math.prod(range(1, 2 * m, 2))
        * math.sqrt((2 * l + 1) * (2 if m else 1) * math.factorial(l - m) / math.factorial(l + m) / (4 * math.pi))
        for l in range(l_max + 1)
        for m in range(l + 1)
    )


@functools.cache
def _sizes(shells: str, device: torch.device) -> torch.Tensor:
    """Orbitals of each species, int64."""
    return torch.tensor([sum(2 * l + 1 for l in ls) for ls in degrees_of(shells)], device=device)


@triton.jit
def _radial(at, t, inside):
    """The cubic whose four coefficients lie at these places."""
    k = tl.arange(0, 2)[None, :]
    c0, c1 = tl.split(tl.load(at[:, None] + k, mask=inside[:, None], other=0.0))
    c2, c3 = tl.split(tl.load(at[:, None] + 2 + k, mask=inside[:, None], other=0.0))
    return ((c3 * t + c2) * t + c1) * t + c0


@triton.jit
def _write(
    x,
    y,
    z,
    square,
    at,
    t,
    inside,
    to,
    stride,
    written,
    SHELLS: tl.constexpr,
    DEGREES: tl.constexpr,
    FACTORS: tl.constexpr,
    KIND: tl.constexpr,
):
    """The orbitals of one atom of a species at points of a brick."""
    one = tl.full(x.shape, 1.0, x.dtype)
    real, imaginary = (one,), (tl.zeros_like(x),)
    older, old = (), ()
    for l in tl.static_range(DEGREES[KIND] + 1):
        if l > 0:
            turned = real[l - 1] * x - imaginary[l - 1] * y
            imaginary = imaginary + (real[l - 1] * y + imaginary[l - 1] * x,)  # noqa: RUF005 (Triton has no star)
            real = real + (turned,)  # noqa: RUF005
        q = ()
        for m in tl.static_range(l):
            next_q = (2 * l - 1) * z * old[m]
            if m < l - 1:
                next_q -= (l + m - 1) * square * older[m]
            q = q + (next_q * (1.0 / (l - m)),)  # noqa: RUF005
        q = q + (one,)  # noqa: RUF005
        orbital = 0
        for s in tl.static_range(len(SHELLS[KIND])):
            if SHELLS[KIND][s] == l:
                f = _radial(at + 4 * s, t, inside)
                for m in tl.static_range(l + 1):
                    v = f * (FACTORS[l * (l + 1) // 2 + m] * q[m])
                    tl.store(to + (orbital + l + m) * stride, v * real[m], mask=written)
                    if m > 0:
                        tl.store(to + (orbital + l - m) * stride, v * imaginary[m], mask=written)
            orbital += 2 * SHELLS[KIND][s] + 1
        older, old = old, q


@triton.jit(do_not_specialize=["n_bricks"])
def _orbitals(
    centres,
    table,
    step,
    rows,
    bricks,
    starts,
    species,
    row_of,
    places,
    tile_brick,
    first_tile,
    first_point,
    phi,
    n_bricks,
    n_shells,
    PER_LENGTH: tl.constexpr,
    SHELLS: tl.constexpr,
    DEGREES: tl.constexpr,
    FACTORS: tl.constexpr,
    POINTS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    c = tl.load(tile_brick + program)
    if c < n_bricks:
        p = (program - tl.load(first_tile + c)).to(tl.int32) * POINTS + tl.arange(0, POINTS)
        px, py, pz, live = brick_points(bricks, step, c, p)
        begin, stride = tl.load(places + 2 * c), tl.load(places + 2 * c + 1)
        written = p < stride
        for i in range(tl.load(starts + c), tl.load(starts + c + 1)):
            x, y, z, square, element, row, t, inside = of_atom(px, py, pz, live, centres, rows, species, i, PER_LENGTH)
            at = table + row * n_shells * 4
            to = phi + begin + tl.load(row_of + i) * stride + p
            for kind in tl.static_range(len(SHELLS)):
                if element == kind:
                    _write(x, y, z, square, at, t, inside, to, stride, written, SHELLS, DEGREES, FACTORS, kind)


@triton.jit(do_not_specialize=["most", "tiles"])
def _products(
    phi,
    weight,
    places,
    points,
    first_point,
    n_rows,
    product,
    most,
    tiles,
    TILE: tl.constexpr,
    STEP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    dtype: tl.constexpr = phi.dtype.element_ty
    program = tl.program_id(0).to(tl.int64)
    c = program // (tiles * tiles)
    first, second = program % (tiles * tiles) // tiles * TILE, program % tiles * TILE
    n = tl.load(n_rows + c)
    if (first <= second) & (second < n):
        begin, stride = tl.load(places + 2 * c), tl.multiple_of(tl.load(places + 2 * c + 1), STEP)
        begin = tl.multiple_of(begin, STEP)
        n_points, w = tl.load(points + c), weight + tl.load(first_point + c)
        i, j, k = first + tl.arange(0, TILE), second + tl.arange(0, TILE), tl.arange(0, STEP)
        left = phi + begin + i[:, None] * stride + k[None, :]
        right = phi + begin + j[None, :] * stride + k[:, None]
        total = tl.zeros((TILE, TILE), dtype)
        for start in range(0, stride, STEP):
            a = tl.load(left + start, mask=(i < n)[:, None], other=0.0)
            b = tl.load(right + start, mask=(j < n)[None, :], other=0.0)
            b = b * tl.load(w + start + k, mask=start + k < n_points, other=0.0)[:, None]
            total = tl.dot(a, b, total, input_precision=PRECISION, out_dtype=dtype)
        to = product + (c * most + i[:, None]) * most + j[None, :]
        tl.store(to, total, mask=(i < n)[:, None] & (j < n)[None, :])


@triton.jit(do_not_specialize=["most", "n_programs"], do_not_specialize_on_alignment=["n_blocks"])
def _blocks(
    product,
    place,
    offset,
    numbers_a,
    numbers_b,
    begins,
    n_blocks,
    y,
    most,
    n_programs,
    SIDE: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    a, b = tl.arange(0, SIDE)[:, None], tl.arange(0, SIDE)[None, :]
    while block < tl.load(n_blocks):
        begin, end = tl.load(begins + block), tl.load(begins + block + 1)
        n_a, n_b = tl.load(numbers_a + begin), tl.load(numbers_b + begin)
        mask = (a < n_a) & (b < n_b)
        total = tl.zeros((SIDE, SIDE), y.dtype.element_ty)
        for q in range(begin, end):
            # place is (brick · most + row of the first) · most + row of the second; above the diagonal alone is M made.
            at = tl.load(place + q)
            row, column = at // most % most + a, at % most + b
            corner = product + at // (most * most) * (most * most)
            total += tl.load(corner + tl.minimum(row, column) * most + tl.maximum(row, column), mask=mask, other=0.0)
        tl.store(y + tl.load(offset + begin) + a * n_b + b, total, mask=mask)
        block += n_programs


def forward(
    weight: torch.Tensor,
    centres: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    rows: torch.Tensor,
    bricks: torch.Tensor,
    starts: torch.Tensor,
    species: torch.Tensor,
    pairs: torch.Tensor,
    pair_starts: torch.Tensor,
    per_length: float,
    size: int,
    shells: str,
    most: int,
) -> torch.Tensor:
    """Runs the orbitals, the products and the sums."""
    y = weight.new_zeros(size)
    if not len(pairs) or not most:
        return y
    kinds, n_bricks, sizes = degrees_of(shells), len(bricks), _sizes(shells, weight.device)
    degrees = tuple(max(ls, default=-1) for ls in kinds)
    # Where the orbitals of each atom begin among those of its brick, and how many a brick has.
    ends = torch.nn.functional.pad(sizes[species].cumsum(0), (1, 0))
    brick = torch.searchsorted(starts, torch.arange(len(species), device=y.device), right=True) - 1
    row_of, n_rows = ends[:-1] - ends[starts[brick]], ends[starts[1:]] - ends[starts[:-1]]
    points = bricks[:, 3:].prod(1)
    stride = (points + STEP - 1) // STEP * STEP
    places = torch.stack([(stride.cumsum(0) - stride) * most, stride], dim=1)
    tile_brick, first_tile, first_point = tiles_of(bricks, len(weight), POINTS)
    phi = weight.new_empty(most * (len(weight) + STEP * n_bricks))
    _orbitals[(len(tile_brick),)](
        centres,
        table.transpose(1, 2).contiguous(),
        step,
        rows,
        bricks,
        starts,
        species,
        row_of,
        places,
        tile_brick,
        first_tile,
        first_point,
        phi,
        n_bricks,
        table.shape[2],
        per_length,
        kinds,
        degrees,
        _normalisations(max(degrees)),
        POINTS,
        num_warps=POINTS // 32,
    )
    product, tiles = weight.new_empty(n_bricks, most, most), triton.cdiv(most, TILE)
    _products[(n_bricks * tiles**2,)](
        phi,
        weight,
        places,
        points,
        first_point,
        n_rows,
        product,
        most,
        tiles,
        TILE,
        STEP,
        matrix_precision(weight),
        num_warps=8,  # with four the accumulator and the operands of a step would not fit the registers
        num_stages=3,
    )
    _sum_blocks(y, product, sizes, row_of, starts, species, pairs, pair_starts, kinds)
    return y


def _sum_blocks(
    y: torch.Tensor,
    product: torch.Tensor,
    sizes: torch.Tensor,
    row_of: torch.Tensor,
    starts: torch.Tensor,
    species: torch.Tensor,
    pairs: torch.Tensor,
    pair_starts: torch.Tensor,
    kinds: tuple[tuple[int, ...], ...],
) -> None:
    """Adds up the parts of M of all pairs with the same block, in order."""
    n_pairs, most = len(pairs), product.shape[1]
    number = torch.arange(n_pairs, device=y.device)
    brick = torch.searchsorted(pair_starts, number, right=True) - 1
    a, b = (starts[brick] + pairs[:, side] for side in (0, 1))
    place = (brick * most + row_of[a]) * most + row_of[b]
    offset, order = torch.sort(pairs[:, 2], stable=True)
    is_first = torch.cat([number[:1] == 0, offset[1:] != offset[:-1]])
    block = is_first.cumsum(0)
    begins = number.new_full((n_pairs + 2,), n_pairs)
    begins.scatter_(0, torch.where(is_first, block - 1, n_pairs + 1), number)  # the last place is for the others
    most_orbitals = max(sum(2 * l + 1 for l in ls) for ls in kinds)
    programs = min(PROGRAMS, n_pairs)
    _blocks[(programs,)](
        product,
        place[order],
        offset,
        sizes[species[a]][order],
        sizes[species[b]][order],
        begins,
        block[-1:],
        y,
        most,
        programs,
        triton.next_power_of_2(most_orbitals),
        num_warps=4,
    )


def forward_cost(
    weight: torch.Tensor,
    centres: torch.Tensor,
    table: torch.Tensor,
    step: torch.Tensor,
    rows: torch.Tensor,
    bricks: torch.Tensor,
    starts: torch.Tensor,
    species: torch.Tensor,
    pairs: torch.Tensor,
    pair_starts: torch.Tensor,
    per_length: float,
    size: int,
    shells: str,
    most: int,
) -> Cost:
    """Counts `forward`, bricks of one size with as many orbitals taken for granted; Φ does not fit the cache."""
    kinds, n_bricks, n_points = degrees_of(shells), max(1, len(bricks)), len(weight)
    orbitals = sum(sum(2 * l + 1 for l in ls) for ls in kinds) / max(1, len(kinds))
    n = orbitals * len(centres) / n_bricks
    tiles = math.ceil(n / TILE)
    phi = 2 * n_points * n
    parts = n_bricks * tiles * (tiles + 1) // 2 * TILE**2 + len(pairs) * orbitals**2
    moved = int((phi + parts + size) * weight.element_size()) + nbytes(weight, centres, pairs) + 8 * 8 * len(pairs)
    product = tiles * (tiles + 1) * TILE**2 * n_points
    exact = matrix_precision(weight) == "ieee" and weight.element_size() == 4
    flops = 20 * int(n_points * n)
    return Cost(moved, flops + product) if exact else Cost(moved, flops, product)
