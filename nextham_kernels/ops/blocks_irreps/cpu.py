"""Blocks to irreps and back: the C++ kernel's tables and calls. Both are one sparse map Q, its transpose and scales."""

from __future__ import annotations

import functools

import numpy as np
import torch

from nextham_kernels.clebsch_gordan import wigner_3j
from nextham_kernels.loading import kernels
from nextham_kernels.ops.blocks_irreps.reference import correction, coupled, layout, pairs, spin_blocks
from nextham_kernels.result_memory import empty, empty_like

_Sparse = tuple[np.ndarray, np.ndarray, np.ndarray]


def _sparse(matrices: list[np.ndarray], dtype: torch.dtype) -> _Sparse:
    """Starts of rows, columns and values of matrices below each other."""
    starts, columns, values = [np.zeros(1, dtype=np.int64)], [], []
    for matrix in matrices:
        found = np.nonzero(matrix)
        starts.append(starts[-1][-1] + np.cumsum(np.count_nonzero(matrix, axis=1)))
        columns.append(found[1])
        values.append(matrix[found])
    numbers = torch.from_numpy(np.concatenate(values)).to(dtype).numpy()
    return np.concatenate(starts).astype(np.int32), np.concatenate(columns).astype(np.int32), numbers


@functools.cache
def coupling(rows: tuple[int, ...], columns: tuple[int, ...], spinor: bool, dtype: torch.dtype) -> tuple:
    """What the kernel asks of the shells.

    Pairs [n, 6] (first row and column, l₁, l₂, first row in the next, component), the map m₁m₂ → LM of each pair of
    degrees, and the map (M, s) → J of L = 0, 1, … (without factors 2L+1, so that the transposes go back).
    """
    table, degrees, component, space, n_rows = [], {}, 0, [], 0
    for l1, l2, row, column in pairs(rows, columns):
        if (l1, l2) not in degrees:
            degrees[l1, l2] = n_rows
            space += [wigner_3j(l, l1, l2).numpy().reshape(2 * l + 1, -1) for l in coupled(l1, l2)]
            n_rows += (2 * l1 + 1) * (2 * l2 + 1)
        table.append([row.start, column.start, l1, l2, degrees[l1, l2], component])
        component += (4 if spinor else 1) * (2 * l1 + 1) * (2 * l2 + 1)
    l_max = max(rows) + max(columns)
    spin = [wigner_3j(j, l, 1).numpy().reshape(2 * j + 1, -1) for l in range(l_max + 1) for j in coupled(l, 1)]
    return np.array(table, dtype=np.int32), _sparse(space, dtype), _sparse(spin, dtype)


@functools.cache
def factors(rows: tuple[int, ...], columns: tuple[int, ...], spinor: bool, dtype: torch.dtype) -> np.ndarray:
    """The factor 2L+1 of each component, for those of the spin vector (2J+1)(2L+1)."""
    out: list[int] = []
    for l1, l2, _, _ in pairs(rows, columns):
        out += [2 * l + 1 for l in coupled(l1, l2) for _ in range(2 * l + 1)]
        if spinor:
            out += [(2 * j + 1) * (2 * l + 1) for l in coupled(l1, l2) for j in coupled(l, 1) for _ in range(2 * j + 1)]
    assert len(out) * (2 if spinor else 1) == sum(2 * l + 1 for l, _ in layout(rows, columns, spinor))
    return torch.tensor(2 * out if spinor else out, dtype=dtype).numpy()


@functools.cache
def spin_map(spin: str, dtype: torch.dtype) -> tuple[np.ndarray, np.ndarray]:
    """From (h₀, h_y, h_z, h_x) to (uu, ud, du, dd) as a real matrix between (component, part): entries and values."""
    if spin == "none":
        return np.zeros((1, 2), dtype=np.int32), torch.ones(1, dtype=dtype).numpy()
    parts = torch.view_as_complex(torch.eye(8, dtype=torch.float64).view(8, 4, 2))  # [from, component]
    blocks = correction(spin_blocks(parts), spin)
    matrix = torch.view_as_real(blocks.contiguous()).flatten(1).T.numpy()  # [to, from]
    entries = np.argwhere(matrix)
    return np.ascontiguousarray(entries, dtype=np.int32), torch.from_numpy(matrix[tuple(entries.T)]).to(dtype).numpy()


def _run(
    blocks: torch.Tensor,
    x: torch.Tensor,
    to_blocks: bool,
    places: torch.Tensor,
    rows: tuple[int, ...],
    columns: tuple[int, ...],
    spin: str,
    scaled: bool,
) -> None:
    spinor = spin != "none"
    table, space, of_spin = coupling(rows, columns, spinor, x.dtype)
    scale = factors(rows, columns, spinor, x.dtype)
    kernels().blocks_irreps(
        blocks.flatten(1).numpy(),
        x.numpy(),
        to_blocks,
        blocks.shape[3],
        spinor,
        table,
        *spin_map(spin, x.dtype),
        *space,
        *of_spin,
        places.numpy(),
        scale if scaled else np.ones_like(scale),
    )


def irreps_like(
    blocks: torch.Tensor, places: torch.Tensor, rows: list[int], columns: list[int], width: int
) -> torch.Tensor:
    """An empty [e, width]."""
    return empty(blocks, (len(blocks), width))


def blocks_like(x: torch.Tensor, places: torch.Tensor, rows: list[int], columns: list[int], spin: str) -> torch.Tensor:
    """Empty blocks."""
    sizes = [sum(2 * l + 1 for l in shells) for shells in (rows, columns)]
    return empty(x, (len(x), 1, *sizes) if spin == "none" else (len(x), 4, *sizes, 2))


def to_irreps_forward(
    blocks: torch.Tensor, places: torch.Tensor, rows: list[int], columns: list[int], width: int
) -> torch.Tensor:
    """Runs D Q."""
    x = irreps_like(blocks, places, rows, columns, width)
    spin = "spinor" if blocks.ndim == 5 else "none"
    _run(blocks, x, False, places, tuple(rows), tuple(columns), spin, True)
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
    grad_blocks = empty_like(blocks)
    spin = "spinor" if blocks.ndim == 5 else "none"
    _run(grad_blocks, grad, True, places, tuple(rows), tuple(columns), spin, True)
    return [grad_blocks, torch.zeros_like(places)]


def to_blocks_forward(
    x: torch.Tensor, places: torch.Tensor, rows: list[int], columns: list[int], spin: str
) -> torch.Tensor:
    """Runs Qᵀ."""
    blocks = blocks_like(x, places, rows, columns, spin)
    _run(blocks, x, True, places, tuple(rows), tuple(columns), spin, False)
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
    grad_x = empty_like(x)
    _run(grad, grad_x, False, places, tuple(rows), tuple(columns), spin, False)
    return [grad_x, torch.zeros_like(places)]
