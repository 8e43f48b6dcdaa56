"""Linear maps of edge rows on the GPU (Triton).

A program takes ROWS edges and one unit: up to 64 channels of one component of one |m| of the result. It walks once
over the unit's input channels, 16 at a time, scales each chunk by the head coefficients in registers and multiplies it
into the accumulators of the unit, so the products a_h x (h times the row) are never written. The units of the same
edges are neighbours in the grid and share their rows in the second-level cache.

NextHAM, hidden features to hidden features, per edge in float32: 392 numbers in and out, 3.1 kB, and 21,056
multiply-adds without heads, 84,224 with four. The matrices (84 kB, 337 kB) come from the second-level cache for every
ROWS edges: 1.3 kB and 5.3 kB per edge with ROWS = 64. On an H200 (4.8 TB/s, 67 TFLOP/s in float32, 494 in tf32) the
rows take 0.65 ns; the arithmetic 0.63 ns and 2.5 ns in float32, 0.09 ns and 0.34 ns in tf32. cuBLAS would take nine
calls with strided views, none wider than 72 columns, a copy of every result that is not dense, and 12.5 kB more per
edge for the four a_h x: 2.6 ns. So one grouped product of ours.

Multiplicities need not be powers of two: the channels of a component are cut into powers of two, 72 = 64 + 8,
40 = 32 + 8, 24 = 16 + 8, and nothing is computed for columns that are not there.

On-site edges have matrices of their own, and there is about one in a hundred, at no regular place. The main pass leaves
their rows out; a second one looks at 256 edges at a time, gathers the on-site ones among them into tiles of 16 and
multiplies only these: 6 % more arithmetic instead of 100 %.

The gradient of x is the same product with the transposed matrices. With heads its units keep a_h apart, because
s_h = M_h g also gives the gradient of a_h = <x, s_h>: each unit writes its part, [units, e, h], and these are
added.
Weight gradients: a program takes a tile [32, 32] of one matrix of one head and a share of the edges; the shares are
added in order. Both give the same bits in every run.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from nextham_kernels.clebsch_gordan import dim_of
from nextham_kernels.cost import Cost, nbytes
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.edge_linear.reference import pieces

ROWS = 64
"""Edges of a tile."""

CHUNK = 16
"""Input channels of a step: 72, 40, 24 and 8 are padded to 80, 48, 32 and 16."""

FEW = 16
"""On-site edges of a tile."""

SEARCHED = 256
"""Edges among which the on-site ones of a tile are found."""

SHARE = 4096
"""Edges of one share of a weight gradient, at least; there are at most SHARES of them."""

SHARES = 64

BLOCK = 32
"""Rows and columns of a tile of a weight gradient."""

ALL, DIRECTED, ONSITE = 0, 1, 2  # which rows a pass writes


def matrix_precision(x: torch.Tensor) -> str:
    """Returns how products of this dtype are made: torch.set_float32_matmul_precision says it for float32.

    highest (the default): exact; high: three products of tf32 pieces, exact to some 1e-6; medium: tf32.
    """
    if x.dtype == torch.float64:
        return "ieee"
    return {"highest": "ieee", "high": "tf32x3"}.get(torch.get_float32_matmul_precision(), "tf32")


class _Units(NamedTuple):
    table: torch.Tensor  # int32 [units, 8]: class, first column in x and in y, channels in, out, and the matrix
    classes: tuple[tuple[int, bool], ...]  # width of the tile, whether it has 0e columns
    align: int  # what divides all numbers of the table but the classes, at most 4


def _tiles(c: int, widest: int) -> list[tuple[int, int]]:
    """First channel and width of the tiles that cover c channels: powers of two from 8 on."""
    found, start = [], 0
    while start < c:
        found.append((start, min(widest, max(8, 1 << ((c - start).bit_length() - 1)))))
        start += found[-1][1]
    return found


@functools.cache
def _units(
    irreps_in: str, irreps_out: str, n_heads: int, transposed: bool, device: torch.device, widest: int = 64
) -> _Units:
    """The units of a map, or of its transpose; columns of the result that nothing reaches have no input channels."""
    rows, classes, reached = [], {}, set()
    scalars = set(edge_layout(irreps_out).scalars.tolist())
    for p in pieces(irreps_in, irreps_out):
        c_in, c_out = (p.c_out, p.c_in) if transposed else (p.c_in, p.c_out)
        source, target = (p.target, p.source) if transposed else (p.source, p.target)
        for x, y in zip(source, target, strict=True):
            reached |= set(range(y.start, y.stop))
            for start, width in _tiles(c_out, widest):
                biased = not transposed and not scalars.isdisjoint(range(y.start, y.stop))
                kind = classes.setdefault((width, biased), len(classes))
                place = n_heads * p.start + start * (p.c_out if transposed else 1)
                rows.append([kind, x.start, y.start + start, c_in, c_out - start, place, p.c_out, p.c_in * p.c_out])
    blank = sorted(set(range(dim_of(irreps_in if transposed else irreps_out))) - reached)
    runs = [column for column in blank if column - 1 not in blank]
    for start in runs:
        stop = next(column for column in range(start + 1, start + 2 + len(blank)) if column not in blank)
        for offset, width in _tiles(stop - start, widest):
            biased = not transposed and not scalars.isdisjoint(range(start, stop))
            kind = classes.setdefault((width, biased), len(classes))
            rows.append([kind, 0, start + offset, 0, stop - start - offset, 0, 0, 0])
    align = _align(rows, 1, dim_of(irreps_in), dim_of(irreps_out))
    return _Units(torch.tensor(rows, dtype=torch.int32, device=device).reshape(-1, 8), tuple(classes), align)


def _align(rows: list[list[int]], first: int, *widths: int) -> int:
    """The largest power of two, up to 4, that divides everything from a column of the table on."""
    return math.gcd(4, *widths, *(number for row in rows for number in row[first:]))


@functools.cache
def _bias_of(irreps: str, device: torch.device) -> torch.Tensor:
    """Which number of the bias each column of the result has, int32 [d], or −1."""
    scalars = edge_layout(irreps).scalars
    of_column = torch.full((dim_of(irreps),), -1, dtype=torch.int32)
    of_column[scalars] = torch.arange(len(scalars), dtype=torch.int32)
    return of_column.to(device)


@triton.jit
def _onsite_rows(onsite, first, rank, n, SEARCHED: tl.constexpr, FEW: tl.constexpr):
    """FEW of the on-site edges of a stretch, from a rank on: their places, which are there, and how many in all."""
    k = first + tl.arange(0, SEARCHED)
    on = tl.load(onsite + k, mask=k < n, other=0).to(tl.int32)
    ranks = tl.cumsum(on, 0) * on  # from 1; 0 where the edge is directed
    wanted = rank + tl.arange(0, FEW)
    hit = ranks[None, :] == wanted[:, None] + 1
    count = tl.sum(on, 0)
    return tl.sum(tl.where(hit, k[None, :], 0), axis=1), wanted < count, count


@triton.jit
def _weights_of(m, k, v, stride, c_in, c, TRANSPOSED: tl.constexpr):
    """The chunk [k, v] of a matrix."""
    there = (k < c_in)[:, None] & (v < c)[None, :]
    if TRANSPOSED:
        return tl.load(m + v[None, :] * stride + k[:, None], mask=there, other=0.0)
    return tl.load(m + k[:, None] * stride + v[None, :], mask=there, other=0.0)


@triton.jit
def _with_bias(acc, heads, bias, bias_of, e, live, column, mine, n_heads, n_biases, S: tl.constexpr):
    """Adds a_h b_h of every head, and b, to the 0e columns of a tile."""
    place = tl.load(bias_of + column, mask=mine, other=-1)
    h = 0
    while h < n_biases:
        b = tl.load(bias + h * S + place, mask=mine & (place >= 0), other=0.0)
        a = tl.load(heads + e * n_heads + h, mask=tl.where(h < n_heads, live, False), other=1.0)
        acc += a[:, None] * b[None, :]
        h += 1
    return acc


@triton.jit
def _rows(
    x, heads, matrix, bias, bias_of, y, e, live, x_column, y_column, c_in, c, place, stride, size, n_heads, n_biases,
    N: tl.constexpr, BIASED: tl.constexpr, S: tl.constexpr, TRANSPOSED: tl.constexpr,
    D_IN: tl.constexpr, D_OUT: tl.constexpr, ROWS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One unit of the edges e."""
    dtype: tl.constexpr = x.dtype.element_ty
    v = tl.arange(0, N)
    acc = tl.zeros((ROWS, N), dtype)
    start = 0
    while start < c_in:
        k = tl.multiple_of(start, CHUNK) + tl.arange(0, CHUNK)
        there = live[:, None] & (k < c_in)[None, :]
        values = tl.load(x + e[:, None] * D_IN + (x_column + k)[None, :], mask=there, other=0.0)
        m, h = matrix + place, 0
        # Loops of lengths unknown to the compiler: unrolled, they hold the loads of all steps in registers at once.
        while h < tl.maximum(n_heads, 1):
            a = tl.load(heads + e * n_heads + h, mask=tl.where(h < n_heads, live, False), other=1.0)
            scaled = values * a[:, None]
            w = _weights_of(m, k, v, stride, c_in, c, TRANSPOSED)
            acc = tl.dot(scaled, w, acc, input_precision=PRECISION, out_dtype=dtype)
            m += size
            h += 1
        start += CHUNK
    if BIASED:
        acc = _with_bias(acc, heads, bias, bias_of, e, live, y_column + v, v < c, n_heads, n_biases, S)
    tl.store(y + e[:, None] * D_OUT + (y_column + v)[None, :], acc, mask=live[:, None] & (v < c)[None, :])


@triton.jit
def _pulled_rows(
    grad, x, heads, matrix, y, part, e, live, x_column, y_column, c_in, c, place, stride, size, n_heads,
    N: tl.constexpr, D_IN: tl.constexpr, D_OUT: tl.constexpr,
    ROWS: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One unit of grad_x, and its part of grad_heads; `grad` is what comes in, D_IN wide, y what goes out."""
    dtype: tl.constexpr = grad.dtype.element_ty
    v = tl.arange(0, N)
    acc = tl.zeros((ROWS, N), dtype)
    to = e[:, None] * D_OUT + (y_column + v)[None, :]
    mask = live[:, None] & (v < c)[None, :]
    m, h = matrix + place, 0
    while h < n_heads:
        s = tl.zeros((ROWS, N), dtype)
        start = 0
        while start < c_in:
            k = tl.multiple_of(start, CHUNK) + tl.arange(0, CHUNK)
            there = live[:, None] & (k < c_in)[None, :]
            g = tl.load(grad + e[:, None] * D_IN + (x_column + k)[None, :], mask=there, other=0.0)
            w = _weights_of(m, k, v, stride, c_in, c, True)
            s = tl.dot(g, w, s, input_precision=PRECISION, out_dtype=dtype)
            start += CHUNK
        acc += s * tl.load(heads + e * n_heads + h, mask=live, other=0.0)[:, None]
        own = tl.sum(s * tl.load(x + to, mask=mask, other=0.0), axis=1)
        tl.store(part + e * n_heads + h, own, mask=live)
        m += size
        h += 1
    tl.store(y + to, acc, mask=mask)


@triton.jit(do_not_specialize=["n"])
def _product(
    x, given, heads, matrix, bias, bias_of, onsite, units, y, part, n, n_heads, n_biases,
    UNITS: tl.constexpr, CLASSES: tl.constexpr, PULLED: tl.constexpr, PASS: tl.constexpr, W: tl.constexpr,
    S: tl.constexpr, TRANSPOSED: tl.constexpr, ALIGN: tl.constexpr, D_IN: tl.constexpr, D_OUT: tl.constexpr,
    ROWS: tl.constexpr, SEARCHED: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """All units; PASS 0 writes all rows, 1 the directed edges' and 2, with the second matrices, the on-site ones'."""
    program = tl.program_id(0).to(tl.int64)
    unit, tile = program % UNITS, program // UNITS
    row = units + unit * 8
    kind, size = tl.load(row), tl.load(row + 7)
    # Everything that a row of 16 bytes may start at: without these words each number is loaded alone.
    x_column, y_column = tl.multiple_of(tl.load(row + 1), ALIGN), tl.multiple_of(tl.load(row + 2), ALIGN)
    c_in, c = tl.multiple_of(tl.load(row + 3), ALIGN), tl.multiple_of(tl.load(row + 4), ALIGN)
    place, stride = tl.multiple_of(tl.load(row + 5), ALIGN), tl.multiple_of(tl.load(row + 6), ALIGN)
    size = tl.multiple_of(size, ALIGN)
    own = part + unit * n * n_heads
    if PASS == 2:
        matrix += W
        first, rank = tile * SEARCHED, 0
        e, live, count = _onsite_rows(onsite, first, rank, n, SEARCHED, ROWS)
    else:
        rank, count = 0, 1
        e = tile * ROWS + tl.arange(0, ROWS)
        live = e < n
        if PASS == 1:
            live = live & (tl.load(onsite + e, mask=live, other=1) == 0)
    while rank < count:
        for i in tl.static_range(len(CLASSES)):
            if kind == i:
                if PULLED:
                    _pulled_rows(
                        x, given, heads, matrix, y, own, e, live, x_column, y_column, c_in, c, place, stride, size,
                        n_heads, CLASSES[i][0], D_IN, D_OUT, ROWS, CHUNK, PRECISION,
                    )  # fmt: skip
                else:
                    _rows(
                        x, heads, matrix, bias, bias_of, y, e, live, x_column, y_column, c_in, c, place, stride, size,
                        n_heads, n_biases, CLASSES[i][0], CLASSES[i][1], S, TRANSPOSED, D_IN, D_OUT,
                        ROWS, CHUNK, PRECISION,
                    )  # fmt: skip
        rank += ROWS
        if PASS == 2:
            e, live, _ = _onsite_rows(onsite, first, rank, n, SEARCHED, ROWS)


@triton.jit
def _outer(
    acc, x, grad, heads, e, live, x_at, y_at, u, v, c_in, c_out, h,
    H: tl.constexpr, D_IN: tl.constexpr, D_OUT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds the sum over e of a_h x_u g_v."""
    left = tl.load(x + e[:, None] * D_IN + (x_at + u)[None, :], mask=live[:, None] & (u < c_in)[None, :], other=0.0)
    right = tl.load(
        grad + e[:, None] * D_OUT + (y_at + v)[None, :], mask=live[:, None] & (v < c_out)[None, :], other=0.0
    )
    if H > 0:
        left = left * tl.load(heads + e * H + h, mask=live, other=0.0)[:, None]
    return tl.dot(tl.trans(left), right, acc, input_precision=PRECISION, out_dtype=x.dtype.element_ty)


@triton.jit(do_not_specialize=["n", "share_tiles"])
def _weights(
    grad, x, heads, onsite, units, part, n, share_tiles,
    UNITS: tl.constexpr, PASS: tl.constexpr, W: tl.constexpr, H: tl.constexpr,
    ALIGN: tl.constexpr, D_IN: tl.constexpr, D_OUT: tl.constexpr, BLOCK: tl.constexpr,
    ROWS: tl.constexpr, SEARCHED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile [BLOCK, BLOCK] of the gradient of one matrix from one share of the edges."""
    program = tl.program_id(0).to(tl.int64)
    HEADS: tl.constexpr = H if H > 0 else 1
    unit, h, share = program % UNITS, program // UNITS % HEADS, program // (UNITS * HEADS)
    row = units + unit * 9
    x_at, x_step = tl.multiple_of(tl.load(row), ALIGN), tl.multiple_of(tl.load(row + 1), ALIGN)
    y_at, y_step = tl.multiple_of(tl.load(row + 2), ALIGN), tl.multiple_of(tl.load(row + 3), ALIGN)
    c_in, c_out = tl.multiple_of(tl.load(row + 4), ALIGN), tl.multiple_of(tl.load(row + 5), ALIGN)
    place, stride, size = tl.load(row + 6), tl.load(row + 7), tl.load(row + 8)
    u, v = tl.arange(0, BLOCK), tl.arange(0, BLOCK)
    acc = tl.zeros((BLOCK, BLOCK), x.dtype.element_ty)
    components = tl.where(x_step > 0, 2, 1)
    tile = share * share_tiles
    LENGTH: tl.constexpr = SEARCHED if PASS == 2 else ROWS
    stop = tl.minimum((n + LENGTH - 1) // LENGTH, tile + share_tiles)
    while tile < stop:
        if PASS == 2:
            rank = 0
            e, live, count = _onsite_rows(onsite, tile * SEARCHED, rank, n, SEARCHED, ROWS)
            while rank < count:
                i = 0
                while i < components:
                    acc = _outer(
                        acc, x, grad, heads, e, live, x_at + i * x_step, y_at + i * y_step, u, v, c_in, c_out, h,
                        H, D_IN, D_OUT, PRECISION,
                    )  # fmt: skip
                    i += 1
                rank += ROWS
                e, live, _ = _onsite_rows(onsite, tile * SEARCHED, rank, n, SEARCHED, ROWS)
        else:
            e = tile * ROWS + tl.arange(0, ROWS)
            live = e < n
            if PASS == 1:
                live = live & (tl.load(onsite + e, mask=live, other=1) == 0)
            i = 0
            while i < components:
                acc = _outer(
                    acc, x, grad, heads, e, live, x_at + i * x_step, y_at + i * y_step, u, v, c_in, c_out, h,
                    H, D_IN, D_OUT, PRECISION,
                )  # fmt: skip
                i += 1
        tile += 1
    to = part + share * W + place + h * size + u[:, None] * stride + v[None, :]
    tl.store(to, acc, mask=(u < c_in)[:, None] & (v < c_out)[None, :])


@functools.cache
def _weight_units(irreps_in: str, irreps_out: str, n_heads: int, device: torch.device) -> tuple[torch.Tensor, int]:
    """The tiles of all matrices, int32 [units, 9] in the order in which `_weights` reads them, and what divides all."""
    rows = []
    for p in pieces(irreps_in, irreps_out):
        steps = [s[-1].start - s[0].start for s in (p.source, p.target)]
        for u in range(0, p.c_in, BLOCK):
            for v in range(0, p.c_out, BLOCK):
                place = n_heads * p.start + u * p.c_out + v
                starts = (p.source[0].start + u, steps[0], p.target[0].start + v, steps[1])
                rows.append([*starts, p.c_in - u, p.c_out - v, place, p.c_out, p.c_in * p.c_out])
    align = _align(rows, 0, dim_of(irreps_in), dim_of(irreps_out))
    return torch.tensor(rows, dtype=torch.int32, device=device).reshape(-1, 9), align


def _flags(onsite: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Flags as numbers: wide ones for doubles, whose products Triton cannot compile where a narrow load decides."""
    return onsite.long() if x.dtype == torch.float64 else onsite.view(torch.uint8)


def _registers(x: torch.Tensor, align: int, pulled_at_once: bool) -> int:
    """With 255 it aims at more programs and spills; unaligned columns and doubles need more than 128.

    So does the gradient of heads over all rows at once for compute capability 10.0; the network has on-site rows apart.
    """
    if matrix_precision(x) != "ieee" or x.dtype == torch.float64 or align < 4:
        return 255
    return 160 if pulled_at_once else 128


def _run(
    x: torch.Tensor,
    given: torch.Tensor,
    heads: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor,
    onsite: torch.Tensor,
    irreps_in: str,
    irreps_out: str,
    transposed: bool,
    parts: torch.Tensor | None,
) -> torch.Tensor:
    """The product with all matrices, or with the transposed ones; with `parts` the gradient of heads too."""
    n, h = heads.shape
    d_in, d_out = dim_of(irreps_in), dim_of(irreps_out)
    units = _units(irreps_in, irreps_out, max(1, h), transposed, x.device)
    d_in, d_out = (d_out, d_in) if transposed else (d_in, d_out)
    y, precision = x.new_empty(n, d_out), matrix_precision(x)
    bias_of = _bias_of(irreps_out, x.device)
    bias_of = bias_of.long() if x.dtype == torch.float64 else bias_of
    for number in (DIRECTED, ONSITE) if len(matrix) == 2 else (ALL,):
        rows = FEW if number == ONSITE else ROWS
        grid = (triton.cdiv(n, SEARCHED if number == ONSITE else rows) * len(units.table),)
        _product[grid](
            x,
            given,
            heads,
            matrix,
            bias,
            bias_of,
            _flags(onsite, x),
            units.table,
            y,
            y if parts is None else parts,
            n,
            h,
            0 if transposed else len(bias),
            UNITS=len(units.table),
            CLASSES=units.classes,
            PULLED=parts is not None,
            PASS=number,
            W=matrix.shape[1],
            S=bias.shape[1],
            TRANSPOSED=transposed,
            ALIGN=units.align,
            D_IN=d_in,
            D_OUT=d_out,
            ROWS=rows,
            SEARCHED=SEARCHED,
            CHUNK=CHUNK,
            PRECISION=precision,
            num_warps=4 if precision != "ieee" else 8,  # exact products hold both operands of a step in registers
            maxnreg=_registers(x, units.align, parts is not None and number == ALL),
            num_stages=1,
        )
    return y


def forward(
    x: torch.Tensor,
    heads: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor,
    onsite: torch.Tensor,
    irreps_in: str,
    irreps_out: str,
) -> torch.Tensor:
    """Runs the maps."""
    return _run(x, x, heads, matrix, bias, onsite, irreps_in, irreps_out, False, None)


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    heads: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor,
    onsite: torch.Tensor,
    irreps_in: str,
    irreps_out: str,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs the maps' derivatives; the gradients of x and heads come together."""
    n, h = heads.shape
    nothing = x.new_empty(0)
    grad_x = grad_heads = grad_matrix = grad_bias = nothing
    # Behind a bias: the coefficient of every row of it, and what reaches the 0e columns.
    scalars = grad[:, _scalars(irreps_out, x.device)] if len(bias) else grad[:, :0]
    if needs[0] or (needs[1] and h):
        parts = None
        if h and needs[1]:
            parts = x.new_empty(len(_units(irreps_in, irreps_out, h, True, x.device).table), n, h)
        grad_x = _run(grad, x, heads, matrix, bias, onsite, irreps_in, irreps_out, True, parts)
        if parts is not None:
            grad_heads = parts.sum(0)
            if len(bias):
                grad_heads = grad_heads.addmm_(scalars, bias[:h].T)
    if needs[1] and not h:
        grad_heads = torch.empty_like(heads)
    if needs[2]:
        grad_matrix = _weight_gradient(grad, x, heads, matrix, onsite, irreps_in, irreps_out)
    if needs[3]:
        grad_bias = torch.empty_like(bias)
        if len(bias):
            grad_bias[:h] = heads.T @ scalars
            grad_bias[h:] = scalars.sum(0)
    return [grad_x, grad_heads, grad_matrix, grad_bias, torch.empty_like(onsite)]


@functools.cache
def _scalars(irreps: str, device: torch.device) -> torch.Tensor:
    return edge_layout(irreps).scalars.to(device)


def _weight_gradient(
    grad: torch.Tensor,
    x: torch.Tensor,
    heads: torch.Tensor,
    matrix: torch.Tensor,
    onsite: torch.Tensor,
    irreps_in: str,
    irreps_out: str,
) -> torch.Tensor:
    n, h = heads.shape
    units, align = _weight_units(irreps_in, irreps_out, max(1, h), x.device)
    result = torch.empty_like(matrix)
    for number in (DIRECTED, ONSITE) if len(matrix) == 2 else (ALL,):
        length = SEARCHED if number == ONSITE else 2 * CHUNK
        shares = min(SHARES, max(1, n // SHARE))
        part = x.new_empty(shares, matrix.shape[1])
        _weights[(shares * max(1, h) * len(units),)](
            grad,
            x,
            heads,
            _flags(onsite, x),
            units,
            part,
            n,
            triton.cdiv(triton.cdiv(n, length), shares),
            UNITS=len(units),
            PASS=number,
            W=matrix.shape[1],
            H=h,
            ALIGN=align,
            D_IN=x.shape[1],
            D_OUT=grad.shape[1],
            BLOCK=BLOCK,
            ROWS=FEW if number == ONSITE else length,
            SEARCHED=SEARCHED,
            PRECISION=matrix_precision(x),
            num_warps=4,
            maxnreg=200,
            num_stages=1,
        )
        result[int(number == ONSITE)] = part.sum(0)
    return result


def forward_cost(
    x: torch.Tensor,
    heads: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor,
    onsite: torch.Tensor,
    irreps_in: str,
    irreps_out: str,
) -> Cost:
    """Counts `forward`."""
    return _products(x, heads, matrix, irreps_in, irreps_out, 1) + Cost(
        nbytes(x, heads, matrix, bias, onsite) + len(x) * dim_of(irreps_out) * x.element_size()
    )


def backward_cost(
    grad: torch.Tensor,
    x: torch.Tensor,
    heads: torch.Tensor,
    matrix: torch.Tensor,
    bias: torch.Tensor,
    onsite: torch.Tensor,
    irreps_in: str,
    irreps_out: str,
    needs: list[bool],
) -> Cost:
    """Counts `backward`."""
    inputs, weights = needs[0] or needs[1], needs[2] or needs[3]
    moved = nbytes(grad, x, heads, matrix) * (inputs + weights) + nbytes(x, heads) * inputs + nbytes(matrix) * weights
    return _products(x, heads, matrix, irreps_in, irreps_out, inputs + weights) + Cost(moved)


def _products(
    x: torch.Tensor, heads: torch.Tensor, matrix: torch.Tensor, irreps_in: str, irreps_out: str, times: int
) -> Cost:
    """The multiply-adds of one row with all matrices, so many times."""
    found = sum(len(p.source) * p.c_in * p.c_out for p in pieces(irreps_in, irreps_out))
    flops = 2 * found * max(1, heads.shape[1]) * len(x) * times
    pieces_of = {"tf32": 1, "tf32x3": 3}.get(matrix_precision(x), 0)
    return Cost(0, 0, pieces_of * flops) if pieces_of else Cost(0, flops)
