"""The message of an edge on the GPU (Triton).

Two kernels. `_moments`: a program of one warp takes a row and writes the mean and 1/√(mean square + ε) of each irrep
block, 16 numbers instead of a normalised row. `_message`: a program takes ROWS edges and one unit, up to 32 channels of
one component of one |m|. It gathers the two nodes and turns them straight into the accumulators of the unit, then walks
over the unit's input channels as `edge_linear` does, 16 at a time, which it normalises in registers.

NextHAM per edge, float32: both ends 3.1 kB, D 0.7 kB, the row twice 3.1 kB, its moments, the result 1.6 kB: 8.7 kB.
One after the other, `rotate_to_edges` (5.5 kB), `norm` (3.1 kB), `edge_linear` (3.1 kB) and a sum (4.7 kB) move
16.4 kB. 2,152 multiply-adds for the rotation of the sum of both ends, 21,056 for the map. The nodes come from the
second-level cache (a crystal has some hundred edges for each), as do the matrices, 84 kB for every ROWS edges.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from nextham_kernels.clebsch_gordan import dim_of, irreps_of
from nextham_kernels.cost import Cost, nbytes
from nextham_kernels.ops.edge_linear.kernel import CHUNK, _units, matrix_precision
from nextham_kernels.ops.edge_linear.reference import pieces
from nextham_kernels.ops.norm.kernel import _normalised, _tables
from nextham_kernels.ops.rotation.kernel import _products

ROWS, WIDEST = 32, 32
"""Edges of a tile and channels of a unit: 96 registers. With 64 of either, addresses spill, or with four warps."""


@functools.cache
def _columns(irreps: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Block, channel and place among the biases of each number [3, d]; wide for doubles, see `edge_linear._flags`."""
    columns = _tables(irreps, True, device)[0]
    return columns.long() if dtype == torch.float64 else columns


@functools.cache
def _turns(irreps: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The products that each number of a rotated row is the sum of, `rotation.kernel._products`."""
    table = _products(irreps, True, "there", device)
    return table.long() if dtype == torch.float64 else table


@triton.jit
def _moments(
    x, columns, numbers, y, D: tl.constexpr, BLOCKS: tl.constexpr, CENTRED: tl.constexpr, EPS: tl.constexpr,
    FLOOR: tl.constexpr, D2: tl.constexpr, BLOCKS2: tl.constexpr,
):  # fmt: skip
    """The mean that each block of a row is centred by (or 0), then what it is multiplied by."""
    row = tl.program_id(0).to(tl.int64)
    j, b = tl.arange(0, D2), tl.arange(0, BLOCKS2)
    there = j < D
    block = tl.load(columns + j, mask=there, other=0)
    values = tl.load(x + row * D + j, mask=there, other=0.0)
    _, square = _normalised(values, block, j, there, numbers, BLOCKS, CENTRED, FLOOR)
    mean = tl.zeros((BLOCKS2,), x.dtype.element_ty)
    scale = tl.zeros((BLOCKS2,), x.dtype.element_ty)
    for i in tl.static_range(BLOCKS):
        own = there & (block == i)
        scale = tl.where(b == i, tl.rsqrt(tl.max(tl.where(own, square, 0.0), 0) + EPS), scale)
        if (CENTRED >> i) & 1:
            count = tl.load(numbers + i).to(x.dtype.element_ty)
            mean = tl.where(b == i, tl.sum(tl.where(own, values, 0.0), 0) / count, mean)
    to = y + row * 2 * BLOCKS + b
    tl.store(to, mean, mask=b < BLOCKS)
    tl.store(to + BLOCKS, scale, mask=b < BLOCKS)


@triton.jit
def _sent(
    source, target, wigner, src, dst, table, e, live, column, mine, width, T: tl.constexpr, D: tl.constexpr,
    N: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Numbers of D (s_src + t_dst), [ROWS, N]; made as [N, ROWS], because lanes run along the first axis."""
    from_source = source + tl.load(src + e, mask=live, other=0)[None, :] * D
    from_target = target + tl.load(dst + e, mask=live, other=0)[None, :] * D
    turn = wigner + e[None, :] * width
    total = tl.zeros((N, ROWS), source.dtype.element_ty)
    t = 0
    while t < T:
        code = tl.load(table + t * D + column, mask=mine, other=-1)[:, None]
        place = tl.load(table + (T + t) * D + column, mask=mine, other=0)[:, None]
        mask = live[None, :] & (code >= 0)
        ends = tl.load(from_source + place, mask=mask, other=0.0) + tl.load(from_target + place, mask=mask, other=0.0)
        d = tl.load(turn + (code >> 1), mask=mask, other=0.0)
        total += tl.where((code & 1) == 1, -d, d) * ends
        t += 1
    return tl.trans(total)


@triton.jit
def _unit(
    source, target, x, wigner, src, dst, weight, bias, matrix, moments, columns, table, y, row, e, live, width,
    n_biases, N: tl.constexpr, T: tl.constexpr, BLOCKS: tl.constexpr, ALIGN: tl.constexpr, D: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One unit of the edges e; a row of the table of `edge_linear`."""
    dtype: tl.constexpr = x.dtype.element_ty
    x_column, y_column = tl.multiple_of(tl.load(row + 1), ALIGN), tl.multiple_of(tl.load(row + 2), ALIGN)
    c_in, c = tl.multiple_of(tl.load(row + 3), ALIGN), tl.multiple_of(tl.load(row + 4), ALIGN)
    place, stride = tl.multiple_of(tl.load(row + 5), ALIGN), tl.multiple_of(tl.load(row + 6), ALIGN)
    v = tl.arange(0, N)
    mine = v < c
    acc = _sent(source, target, wigner, src, dst, table, e, live, y_column + v, mine, width, T, D, N, ROWS)
    start = 0
    while start < c_in:
        k = tl.multiple_of(start, CHUNK) + tl.arange(0, CHUNK)
        own = k < c_in
        there = live[:, None] & own[None, :]
        block = tl.load(columns + x_column + k, mask=own, other=0)
        channel = tl.load(columns + D + x_column + k, mask=own, other=0)
        shift = tl.load(columns + 2 * D + x_column + k, mask=own, other=0)
        of_row = moments + e[:, None] * (2 * BLOCKS) + block[None, :]
        values = tl.load(x + e[:, None] * D + (x_column + k)[None, :], mask=there, other=0.0)
        values -= tl.load(of_row, mask=there, other=0.0)
        values *= tl.load(of_row + BLOCKS, mask=there, other=0.0)
        w = tl.load(weight + channel, mask=own, other=0.0)
        b = tl.load(bias + shift, mask=own & (shift < n_biases), other=0.0)
        there_m = own[:, None] & mine[None, :]
        m = tl.load(matrix + place + k[:, None] * stride + v[None, :], mask=there_m, other=0.0)
        acc = tl.dot(values * w[None, :] + b[None, :], m, acc, input_precision=PRECISION, out_dtype=dtype)
        start += CHUNK
    tl.store(y + e[:, None] * D + (y_column + v)[None, :], acc, mask=live[:, None] & mine[None, :])


@triton.jit(do_not_specialize=["n"])
def _message(
    source, target, x, wigner, src, dst, weight, bias, matrix, moments, columns, table, units, y, n, width, n_biases,
    UNITS: tl.constexpr, CLASSES: tl.constexpr, T: tl.constexpr, BLOCKS: tl.constexpr, ALIGN: tl.constexpr,
    D: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All units; those of the same edges are neighbours in the grid."""
    program = tl.program_id(0).to(tl.int64)
    row = units + program % UNITS * 8
    e = program // UNITS * ROWS + tl.arange(0, ROWS)
    kind = tl.load(row)
    for i in tl.static_range(len(CLASSES)):
        if kind == i:
            _unit(
                source, target, x, wigner, src, dst, weight, bias, matrix, moments, columns, table, y, row, e, e < n,
                width, n_biases, CLASSES[i][0], T, BLOCKS, ALIGN, D, ROWS, CHUNK, PRECISION,
            )  # fmt: skip


def forward(
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    wigner: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    matrix: torch.Tensor,
    irreps: str,
    eps: float,
    floor: float,
) -> torch.Tensor:
    """Runs both kernels."""
    n, d = edge.shape
    y = torch.empty_like(edge)
    _, numbers, centred = _tables(irreps, True, edge.device)
    columns, table = (make(irreps, edge.dtype, edge.device) for make in (_columns, _turns))
    blocks = numbers.shape[1]
    moments = edge.new_empty(n, 2, blocks)
    _moments[(n,)](
        edge,
        columns,
        numbers,
        moments,
        D=d,
        BLOCKS=blocks,
        CENTRED=centred,
        EPS=eps,
        FLOOR=floor,
        D2=triton.next_power_of_2(d),
        BLOCKS2=triton.next_power_of_2(blocks),
        num_warps=max(1, triton.next_power_of_2(d) // 1024),
    )
    units = _units(irreps, irreps, 1, False, edge.device, WIDEST)
    _message[(triton.cdiv(n, ROWS) * len(units.table),)](
        source,
        target,
        edge,
        wigner,
        src,
        dst,
        weight,
        bias,
        matrix,
        moments,
        columns,
        table,
        units.table,
        y,
        n,
        wigner.shape[1],
        len(bias),
        UNITS=len(units.table),
        CLASSES=units.classes,
        T=table.shape[1],
        BLOCKS=blocks,
        ALIGN=units.align,
        D=d,
        ROWS=ROWS,
        CHUNK=CHUNK,
        PRECISION=matrix_precision(edge),
        num_warps=8,
        # As in `edge_linear`; doubles need 168.
        maxnreg=128 if edge.dtype == torch.float32 and units.align == 4 else 255,
        num_stages=1,
    )
    return y


def forward_cost(
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    wigner: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    matrix: torch.Tensor,
    irreps: str,
    eps: float,
    floor: float,
) -> Cost:
    """Counts `forward`: every edge reads its nodes, its row twice, and 64 bytes of moments twice."""
    n, blocks = len(edge), len(irreps_of(irreps))
    moved = (2 + 3) * nbytes(edge) + nbytes(wigner, src, dst, weight, bias, matrix)
    moved += 4 * blocks * n * edge.element_size()
    made = 2 * n * sum(len(p.source) * p.c_in * p.c_out for p in pieces(irreps, irreps))
    plain = n * (2 * sum(mul * ir.dim**2 for mul, ir in irreps_of(irreps)) + (4 * blocks + 6) * dim_of(irreps))
    pieces_of = {"tf32": 1, "tf32x3": 3}.get(matrix_precision(edge), 0)
    return Cost(moved, plain, pieces_of * made) if pieces_of else Cost(moved, plain + made)
