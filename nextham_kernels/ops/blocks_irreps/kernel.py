"""Blocks to irreps and back on the GPU (Triton).

Spin, (l1, l2) → L and L ⊗ 1 → J are one sparse matrix here, a row for each component: the products of both steps, for
the published orbitals with spin 64 entries a row at most and 18 on average (silicon's: 34 and 12). A program takes ROWS
edges and NUMBERS neighbouring results, a thread one of them for some edges, and walks over their entries, which lie
such that the lanes read neighbouring ones. Results are made where they belong: the components that go to a place are
found by sorting `places`, so nothing is set to zero before and nothing is added by atomics.

Per edge, float32: the published 27 x 27 orbitals with spin are 5,832 numbers, 23 kB, in and out (11 ns at 4.3 TB/s);
silicon's 13 x 13 are 1,352. The input is read from the caches once for each entry: 105 k multiply-adds and 0.4 MB
(16 k and 64 kB). Two steps would take 35 k multiply-adds, but a second pass through shared memory. The way back to the
blocks of a correction by one scalar has 5 k entries (862). Both run once for all networks and layers.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import triton
import triton.language as tl

from nextham_kernels.cost import Cost, nbytes
from nextham_kernels.ops.blocks_irreps.cpu import blocks_like, coupling, factors, irreps_like, spin_map

NUMBERS = 128
ROWS = 8
"""With 128 threads: eight sums each, whose loads do not wait for each other; one load of the entries for eight rows."""

_Shells = tuple[int, ...]


@functools.cache
def _entries(rows: _Shells, columns: _Shells, spin: str, scaled: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The sparse matrix: components, numbers of a block, values in float64."""
    spinor, dtype = spin != "none", torch.float64
    pairs, space, of_spin = coupling(rows, columns, spinor, dtype)
    scale = factors(rows, columns, spinor, dtype)
    n_parts, n_spins = (2, 4) if spinor else (1, 1)
    of_parts = np.zeros((n_spins * n_parts, n_spins, n_parts))
    entries, values = spin_map(spin, dtype)
    of_parts.reshape(len(of_parts), -1)[entries[:, 0], entries[:, 1]] = values
    n_columns = sum(2 * l + 1 for l in columns)
    n_orbitals = sum(2 * l + 1 for l in rows) * n_columns
    found = []
    for first_row, first_column, l1, l2, row, component in pairs.tolist():
        n = (2 * l1 + 1) * (2 * l2 + 1)
        coupled = _dense(space, row, n, n)  # [LM, m1m2]
        own = np.zeros((n_spins * n, n, n_spins))
        own[:n, :, 0] = coupled
        for l in range(abs(l1 - l2), l1 + l2 + 1) if spinor else ():
            lm, size = l * l - (l1 - l2) ** 2, 2 * l + 1
            again = _dense(of_spin, 3 * l * l, 3 * size, 3 * size).reshape(3 * size, size, 3)
            own[n + 3 * lm : n + 3 * (lm + size), :, 1:] = np.einsum("jms,mi->jis", again, coupled[lm : lm + size])
        i, j = np.divmod(np.arange(n), 2 * l2 + 1)
        orbital = (first_row + i) * n_columns + first_column + j
        for part in range(n_parts):
            whole = np.einsum("kis,ts->kit", own, of_parts[:, :, part])
            k, i, t = np.nonzero(np.abs(whole) > 1e-14)
            place = part * (len(scale) // n_parts) + component + k
            number = (t // n_parts * n_orbitals + orbital[i]) * n_parts + t % n_parts
            found.append((place, number, whole[k, i, t] * (scale[place] if scaled else 1)))
    return tuple(np.concatenate(part) for part in zip(*found, strict=True))


def _dense(sparse: tuple[np.ndarray, np.ndarray, np.ndarray], row: int, n_rows: int, n_columns: int) -> np.ndarray:
    start, column, value = sparse
    matrix = np.zeros((n_rows, n_columns))
    for i in range(n_rows):
        own = slice(start[row + i], start[row + i + 1])
        matrix[i, column[own]] = value[own]
    return matrix


@functools.cache
def _padded(
    rows: _Shells, columns: _Shells, spin: str, scaled: bool, to_blocks: bool, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each result how many entries it has [n], which numbers they take [most, n], and times what."""
    place, number, value = _entries(rows, columns, spin, scaled)
    n_results = sum(2 * l + 1 for l in rows) * sum(2 * l + 1 for l in columns) * (1 if spin == "none" else 8)
    result, source = (number, place) if to_blocks else (place, number)
    order = np.lexsort((source, result))
    result, source, value = result[order], source[order], value[order]
    count = np.bincount(result, minlength=n_results)
    step = np.arange(len(result)) - (np.cumsum(count) - count)[result]
    sources = np.zeros((max(1, count.max(initial=0)), n_results), dtype=np.int32)
    values = np.zeros(sources.shape)
    sources[step, result], values[step, result] = source, value
    tensors = (torch.from_numpy(count.astype(np.int32)), torch.from_numpy(sources), torch.from_numpy(values).to(dtype))
    return tuple(t.to(device) for t in tensors)


@triton.jit(do_not_specialize=["n", "width", "D"])
def _to_irreps(
    blocks, order, starts, count, sources, values, x, n, width, D,
    NUMBERS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Each place of a row: the sum of the components that go there, sorted by place in `order` from `starts` on."""
    program, tiles = tl.program_id(0).to(tl.int64), (width + NUMBERS - 1) // NUMBERS
    e = (program // tiles * ROWS + tl.arange(0, ROWS))[None, :]
    w = program % tiles * NUMBERS + tl.arange(0, NUMBERS)
    start = tl.load(starts + w, mask=w < width, other=0)
    many = tl.load(starts + w + 1, mask=w < width, other=0) - start
    total = tl.zeros((NUMBERS, ROWS), x.dtype.element_ty)
    for k in range(0, tl.max(many, 0)):
        component = tl.load(order + start + k, mask=k < many, other=0)
        own = tl.load(count + component, mask=k < many, other=0)
        for q in range(0, tl.max(own, 0)):
            there = q < own
            source = tl.load(sources + q * D + component, mask=there, other=0)
            value = tl.load(values + q * D + component, mask=there, other=0.0)[:, None]
            mask = there[:, None] & (e < n)
            total += value * tl.load(blocks + e * D + source[:, None], mask=mask, other=0.0)
    tl.store(x + e * width + w[:, None], total, mask=(w < width)[:, None] & (e < n))


@triton.jit(do_not_specialize=["n", "width", "D"])
def _to_blocks(
    x, places, count, sources, values, blocks, n, width, D,
    NUMBERS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Each number of a block from the components, which lie at their places of the row, or nowhere."""
    program, tiles = tl.program_id(0).to(tl.int64), (D + NUMBERS - 1) // NUMBERS
    e = (program // tiles * ROWS + tl.arange(0, ROWS))[None, :]
    b = program % tiles * NUMBERS + tl.arange(0, NUMBERS)
    own = tl.load(count + b, mask=b < D, other=0)
    total = tl.zeros((NUMBERS, ROWS), x.dtype.element_ty)
    for q in range(0, tl.max(own, 0)):
        there = q < own
        source = tl.load(sources + q * D + b, mask=there, other=0)
        place = tl.load(places + source, mask=there, other=-1)
        value = tl.load(values + q * D + b, mask=there, other=0.0)[:, None]
        mask = (place >= 0)[:, None] & (e < n)
        total += value * tl.load(x + e * width + place[:, None], mask=mask, other=0.0)
    tl.store(blocks + e * D + b[:, None], total, mask=(b < D)[:, None] & (e < n))


def _run(
    blocks: torch.Tensor,
    x: torch.Tensor,
    to_blocks: bool,
    places: torch.Tensor,
    rows: list[int],
    columns: list[int],
    spin: str,
    scaled: bool,
) -> None:
    width, d = x.shape[1], places.shape[0]
    tables = _padded(tuple(rows), tuple(columns), spin, scaled, to_blocks, x.dtype, x.device)
    if to_blocks:
        grid = (triton.cdiv(len(x), ROWS) * triton.cdiv(d, NUMBERS),)
        _to_blocks[grid](x, places, *tables, blocks, len(x), width, d, NUMBERS=NUMBERS, ROWS=ROWS, num_warps=4)
        return
    ordered, order = places.sort(stable=True)
    starts = torch.searchsorted(ordered, torch.arange(width + 1, device=x.device))
    grid = (triton.cdiv(len(x), ROWS) * triton.cdiv(width, NUMBERS),)
    _to_irreps[grid](blocks, order, starts, *tables, x, len(x), width, d, NUMBERS=NUMBERS, ROWS=ROWS, num_warps=4)


def to_irreps_forward(
    blocks: torch.Tensor, places: torch.Tensor, rows: list[int], columns: list[int], width: int
) -> torch.Tensor:
    """Runs D Q."""
    x = irreps_like(blocks, places, rows, columns, width)
    _run(blocks, x, False, places, rows, columns, "spinor" if blocks.ndim == 5 else "none", True)
    return x


def to_irreps_backward(
    grad: torch.Tensor,
    blocks: torch.Tensor,
    places: torch.Tensor,
    rows: list[int],
    columns: list[int],
    width: int,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs Qᵀ D."""
    grad_blocks = torch.empty_like(blocks)
    _run(grad_blocks, grad, True, places, rows, columns, "spinor" if blocks.ndim == 5 else "none", True)
    return [grad_blocks, torch.zeros_like(places)]


def to_blocks_forward(
    x: torch.Tensor, places: torch.Tensor, rows: list[int], columns: list[int], spin: str
) -> torch.Tensor:
    """Runs Qᵀ."""
    blocks = blocks_like(x, places, rows, columns, spin)
    _run(blocks, x, True, places, rows, columns, spin, False)
    return blocks


def to_blocks_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    places: torch.Tensor,
    rows: list[int],
    columns: list[int],
    spin: str,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs Q."""
    grad_x = torch.empty_like(x)
    _run(grad, grad_x, False, places, rows, columns, spin, False)
    return [grad_x, torch.zeros_like(places)]


def _cost(
    blocks: torch.Tensor, x: torch.Tensor, places: torch.Tensor, rows: list[int], columns: list[int], spin: str
) -> Cost:
    entries = len(_entries(tuple(rows), tuple(columns), spin, False)[0])
    return Cost(nbytes(blocks, x, places), 2 * entries * len(x))


def to_irreps_forward_cost(
    blocks: torch.Tensor, places: torch.Tensor, rows: list[int], columns: list[int], width: int
) -> Cost:
    """Counts `to_irreps_forward`."""
    x = irreps_like(blocks, places, rows, columns, width)
    return _cost(blocks, x, places, rows, columns, "spinor" if blocks.ndim == 5 else "none")


def to_irreps_backward_cost(
    grad: torch.Tensor,
    blocks: torch.Tensor,
    places: torch.Tensor,
    rows: list[int],
    columns: list[int],
    width: int,
    needs: list[bool],
) -> Cost:
    """Counts `to_irreps_backward`."""
    return to_irreps_forward_cost(blocks, places, rows, columns, width)


def to_blocks_forward_cost(
    x: torch.Tensor, places: torch.Tensor, rows: list[int], columns: list[int], spin: str
) -> Cost:
    """Counts `to_blocks_forward`."""
    return _cost(blocks_like(x, places, rows, columns, spin), x, places, rows, columns, spin)


def to_blocks_backward_cost(
    grad: torch.Tensor,
    x: torch.Tensor,
    places: torch.Tensor,
    rows: list[int],
    columns: list[int],
    spin: str,
    needs: list[bool],
) -> Cost:
    """Counts `to_blocks_backward`."""
    return to_blocks_forward_cost(x, places, rows, columns, spin)
