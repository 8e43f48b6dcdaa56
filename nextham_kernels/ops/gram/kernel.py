"""Gram matrices of irreps features, and products with packed symmetric matrices, on the GPU (Triton).

gram: a program takes ROWS rows and ENTRIES neighbouring entries, a thread an entry of some rows; it walks over the
components of the widest irrep among its entries. gram_apply: ENTRIES numbers of the result, those of large
multiplicities first, and a walk over the channels. The lanes of a warp read neighbouring channels of one row in the
edge frame, from the first-level cache after the first time; tables say where.

NextHAM per edge, float32: gram reads 392 (or twice 392) numbers and writes 980, 5.5 kB; gram_apply reads 980 + 392 and
writes 392, 7.1 kB. 2,532 and 4,672 multiply-adds. 1.3 ns and 1.6 ns at 4.3 TB/s.

Why they are not one kernel with the rest of TraceGrad, per edge and call in inference:

    G = gram(x, x)             392 → 980                                5.5 kB
    h_0 = G A + b              980 → 256, 251 k multiply-adds, cuBLAS   4.9 kB
    h_1, v_0                   256 → 256, 65 k each, cuBLAS             2.0 kB each
    layer_norm_silu and vjp    256 → 256, one and two                   2.0 kB, 3.1 kB each
    C = g_0 Aᵀ                 256 → 980, 251 k, cuBLAS                 4.9 kB
    g = gram_apply(C, x)       980 + 392 → 392                          7.1 kB
    x′ = x + s g               two norms and a sum                      7.8 kB

(In inference the last two are one kernel, `gram_update`, of 7.1 kB: it keeps g in registers.)

The products take 19 ns of an H200 in float32 and 2.6 ns in tf32 at the data sheet's rates, and cuBLAS comes near
these; the 44 kB take 10 ns, less where a chunk of edges stays in the second-level cache (10,000 edges: 39 MB of G).
Keeping G and C on chip would save 15.7 kB, 3.6 ns, but stream A twice (2 MB) for every tile of edges, for 64 of them
31 kB per edge from the second-level cache: about as much as it saves.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import triton
import triton.language as tl

from nextham_kernels.cost import Cost, nbytes
from nextham_kernels.ops.gram.cpu import tables

ENTRIES = 128
ROWS = 8
"""With 128 threads: eight sums each, whose loads do not wait for each other; one load of the tables for eight rows."""

UPDATED = 32
"""Tiles of numbers of a program that updates whole rows, which each of its threads keeps a number of."""


@functools.cache
def _entry_tables(irreps: str, edge: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each entry where its channels u and v lie behind a component, the first component and their number [4, p].

    Also the places of the components, and the largest number of components of each tile of entries.
    """
    blocks, places = tables(irreps, edge)
    rows = []
    for mul, dim, stride, first in blocks.tolist():
        rows += [[u * stride, v * stride, first, dim] for u in range(mul) for v in range(u, mul)]
    columns = np.array(rows, dtype=np.int32).reshape(-1, 4).T
    steps = [columns[3, i : i + ENTRIES].max() for i in range(0, columns.shape[1], ENTRIES)]
    found = (np.ascontiguousarray(columns), places, np.array(steps, dtype=np.int32))
    return tuple(torch.from_numpy(a).to(device) for a in found)


@functools.cache
def _number_tables(irreps: str, edge: bool, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """For each number of a row its place, channel u, multiplicity, first entry, component and stride [6, d].

    Sorted by multiplicity, largest first; and the largest multiplicity of each tile.
    """
    blocks, places = tables(irreps, edge)
    rows, entry = [], 0
    for mul, dim, stride, first in blocks.tolist():
        for place in places[first : first + dim].tolist():
            rows += [[place + u * stride, u, mul, entry, place, stride] for u in range(mul)]
        entry += mul * (mul + 1) // 2
    columns = np.array(sorted(rows, key=lambda row: (-row[2], row[0])), dtype=np.int32).reshape(-1, 6).T
    steps = [columns[2, i] for i in range(0, columns.shape[1], ENTRIES)]
    return tuple(
        torch.from_numpy(np.ascontiguousarray(a, dtype=np.int32)).to(device) for a in (columns, np.array(steps))
    )


@triton.jit(do_not_specialize=["n"])
def _gram(
    x, y, entries, places, steps, result, n, N: tl.constexpr, D: tl.constexpr, TILES: tl.constexpr,
    SAME: tl.constexpr, ENTRIES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    tile = program % TILES
    e = (program // TILES * ROWS + tl.arange(0, ROWS))[None, :]
    p = tile * ENTRIES + tl.arange(0, ENTRIES)
    there = p < N
    u, v = tl.load(entries + p, mask=there, other=0), tl.load(entries + N + p, mask=there, other=0)
    first, dim = tl.load(entries + 2 * N + p, mask=there, other=0), tl.load(entries + 3 * N + p, mask=there, other=0)
    off = (u != v)[:, None]
    total = tl.zeros((ENTRIES, ROWS), x.dtype.element_ty)
    for i in range(0, tl.load(steps + tile)):
        own = i < dim
        place = tl.load(places + first + i, mask=own, other=0)
        mask = own[:, None] & (e < n)
        at_u, at_v = e * D + (place + u)[:, None], e * D + (place + v)[:, None]
        left = tl.load(x + at_u, mask=mask, other=0.0)
        if SAME:
            total += left * tl.load(x + at_v, mask=mask, other=0.0)
        else:
            total += left * tl.load(y + at_v, mask=mask, other=0.0)
            mask = mask & off
            total += tl.load(x + at_v, mask=mask, other=0.0) * tl.load(y + at_u, mask=mask, other=0.0)
    if SAME:
        total = tl.where(off, 2 * total, total)
    tl.store(result + e * N + p[:, None], total, mask=there[:, None] & (e < n))


@triton.jit
def _numbers(
    c, x, numbers, steps, e, n, tile, N: tl.constexpr, D: tl.constexpr, ENTRIES: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    """A tile of numbers of C x, their places, and which are there."""
    k = tile * ENTRIES + tl.arange(0, ENTRIES)
    there = k < D
    place, u = tl.load(numbers + k, mask=there, other=0), tl.load(numbers + D + k, mask=there, other=0)
    mul, entry = tl.load(numbers + 2 * D + k, mask=there, other=0), tl.load(numbers + 3 * D + k, mask=there, other=0)
    component = tl.load(numbers + 4 * D + k, mask=there, other=0)
    stride = tl.load(numbers + 5 * D + k, mask=there, other=0)
    total = tl.zeros((ENTRIES, ROWS), x.dtype.element_ty)
    for v in range(0, tl.load(steps + tile)):
        low, high = tl.minimum(u, v), tl.maximum(u, v)
        mask = (v < mul)[:, None] & (e < n)
        packed = entry + low * mul - low * (low - 1) // 2 + high - low
        number = tl.load(x + e * D + (component + v * stride)[:, None], mask=mask, other=0.0)
        total += tl.load(c + e * N + packed[:, None], mask=mask, other=0.0) * number
    return total, place[:, None], there[:, None] & (e < n)


@triton.jit(do_not_specialize=["n"])
def _apply(
    c, x, numbers, steps, y, n, N: tl.constexpr, D: tl.constexpr, TILES: tl.constexpr,
    ENTRIES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    e = (program // TILES * ROWS + tl.arange(0, ROWS))[None, :]
    total, place, mask = _numbers(c, x, numbers, steps, e, n, program % TILES, N, D, ENTRIES, ROWS)
    tl.store(y + e * D + place, total, mask=mask)


@triton.jit(do_not_specialize=["n"])
def _update(
    c, x, numbers, steps, y, n, N: tl.constexpr, D: tl.constexpr, TILES: tl.constexpr,
    RESIDUAL: tl.constexpr, EPS: tl.constexpr, ENTRIES: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Whole rows: all tiles of numbers stay in registers until both norms are known."""
    e = (tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS))[None, :]
    of_x, of_g = tl.zeros((ENTRIES, ROWS), x.dtype.element_ty), tl.zeros((ENTRIES, ROWS), x.dtype.element_ty)
    found = ()
    for tile in tl.static_range(TILES):
        total, place, mask = _numbers(c, x, numbers, steps, e, n, tile, N, D, ENTRIES, ROWS)
        own = tl.load(x + e * D + place, mask=mask, other=0.0)
        of_x += own * own
        of_g += total * total
        found = found + (total,)  # noqa: RUF005 (Triton has no star)
    scale = 2 * RESIDUAL * tl.sqrt(tl.sum(of_x, 0)) / (2 * tl.sqrt(tl.sum(of_g, 0)) + EPS)
    for tile in tl.static_range(TILES):
        k = tile * ENTRIES + tl.arange(0, ENTRIES)
        place = tl.load(numbers + k, mask=k < D, other=0)[:, None]
        mask = (k < D)[:, None] & (e < n)
        own = tl.load(x + e * D + place, mask=mask, other=0.0)
        tl.store(y + e * D + place, own + scale[None, :] * found[tile], mask=mask)


def _same(x: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether both are one tensor; those of the device meta have no address."""
    return x is y if x.is_meta else x.data_ptr() == y.data_ptr()


def gram(x: torch.Tensor, y: torch.Tensor, irreps: str, edge: bool) -> torch.Tensor:
    """Runs `_gram`."""
    entries, places, steps = _entry_tables(irreps, edge, x.device)
    result = x.new_empty(len(x), entries.shape[1])
    _gram[(triton.cdiv(len(x), ROWS) * len(steps),)](
        x,
        y,
        entries,
        places,
        steps,
        result,
        len(x),
        N=entries.shape[1],
        D=x.shape[1],
        TILES=len(steps),
        SAME=_same(x, y),
        ENTRIES=ENTRIES,
        ROWS=ROWS,
        num_warps=4,
    )
    return result


def gram_cost(x: torch.Tensor, y: torch.Tensor, irreps: str, edge: bool) -> Cost:
    """Counts `gram`."""
    blocks, _ = tables(irreps, edge)
    entries, products = _counts(blocks)
    same = _same(x, y)
    moved = nbytes(x) if same else nbytes(x, y)
    return Cost(moved + len(x) * entries * x.element_size(), (2 if same else 4) * products * len(x))


def _counts(blocks: np.ndarray) -> tuple[int, int]:
    """Entries, and multiply-adds of all of them."""
    each = [(mul * (mul + 1) // 2, dim) for mul, dim, _, _ in blocks.tolist()]
    return sum(n for n, _ in each), sum(n * dim for n, dim in each)


def gram_backward(
    grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor, irreps: str, edge: bool, needs: list[bool]
) -> list[torch.Tensor]:
    """Runs `gram_apply` on the other."""
    return [
        gram_apply(grad, other, irreps, edge) if need else x.new_empty(0)
        for other, need in zip((y, x), needs, strict=True)
    ]


def gram_backward_cost(
    grad: torch.Tensor, x: torch.Tensor, y: torch.Tensor, irreps: str, edge: bool, needs: list[bool]
) -> Cost:
    """Counts `gram_backward`."""
    costs = [gram_apply_cost(grad, x, irreps, edge)] * sum(needs)
    return sum(costs, Cost(0))


def gram_apply(c: torch.Tensor, x: torch.Tensor, irreps: str, edge: bool) -> torch.Tensor:
    """Runs `_apply`."""
    numbers, steps = _number_tables(irreps, edge, x.device)
    y = torch.empty_like(x)
    _apply[(triton.cdiv(len(x), ROWS) * len(steps),)](
        c,
        x,
        numbers,
        steps,
        y,
        len(x),
        N=c.shape[1],
        D=x.shape[1],
        TILES=len(steps),
        ENTRIES=ENTRIES,
        ROWS=ROWS,
        num_warps=4,
    )
    return y


def gram_update(c: torch.Tensor, x: torch.Tensor, irreps: str, edge: bool, residual: float) -> torch.Tensor:
    """Runs `_update`."""
    numbers, steps = _number_tables(irreps, edge, x.device)
    y = torch.empty_like(x)
    rows = max(1, min(ROWS, UPDATED // triton.next_power_of_2(max(1, len(steps)))))
    _update[(triton.cdiv(len(x), rows),)](
        c,
        x,
        numbers,
        steps,
        y,
        len(x),
        N=c.shape[1],
        D=x.shape[1],
        TILES=len(steps),
        RESIDUAL=residual,
        EPS=1e-5,
        ENTRIES=ENTRIES,
        ROWS=rows,
        num_warps=4,
    )
    return y


def gram_update_cost(c: torch.Tensor, x: torch.Tensor, irreps: str, edge: bool, residual: float) -> Cost:
    """Counts `gram_update`."""
    return gram_apply_cost(c, x, irreps, edge) + Cost(0, 6 * x.numel())


def gram_apply_cost(c: torch.Tensor, x: torch.Tensor, irreps: str, edge: bool) -> Cost:
    """Counts `gram_apply`."""
    blocks, _ = tables(irreps, edge)
    products = sum(mul * mul * dim for mul, dim, _, _ in blocks.tolist())
    return Cost(nbytes(c, x, x), 2 * products * len(x))


def gram_apply_backward(
    grad: torch.Tensor, c: torch.Tensor, x: torch.Tensor, irreps: str, edge: bool, needs: list[bool]
) -> list[torch.Tensor]:
    """Runs `gram` for C and `gram_apply` for x."""
    return [
        gram(grad, x, irreps, edge) if needs[0] else x.new_empty(0),
        gram_apply(c, grad, irreps, edge) if needs[1] else x.new_empty(0),
    ]


def gram_apply_backward_cost(
    grad: torch.Tensor, c: torch.Tensor, x: torch.Tensor, irreps: str, edge: bool, needs: list[bool]
) -> Cost:
    """Counts `gram_apply_backward`."""
    of_c = gram_cost(grad, x, irreps, edge) if needs[0] else Cost(0)
    return of_c + (gram_apply_cost(c, grad, irreps, edge) if needs[1] else Cost(0))
