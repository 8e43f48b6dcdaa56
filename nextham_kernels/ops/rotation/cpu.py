"""Rotation into the frame of each edge and back: the C++ kernels' tables and calls."""

from __future__ import annotations

import functools

import numpy as np
import torch

from nextham_kernels.clebsch_gordan import irreps_of, wigner_3j
from nextham_kernels.edge_layout import edge_layout, sigma_of
from nextham_kernels.loading import kernels
from nextham_kernels.ops.rotation.derivative import vector_gradient


@functools.cache
def entries(l_max: int) -> tuple[np.ndarray, np.ndarray]:
    """√(2l+1)·wigner_3j(l, l − 1, 1) for l = 2 … l_max: where it is not zero, [n, 4] (l, k, i, j), and what it is."""
    places, values = [np.empty((0, 4), dtype=np.int32)], [np.empty(0)]
    for l in range(2, l_max + 1):
        c = wigner_3j(l, l - 1, 1).numpy() * (2 * l + 1) ** 0.5
        found = np.argwhere(c)
        places.append(np.insert(found, 0, l, axis=1).astype(np.int32))
        values.append(c[tuple(found.T)])
    return np.concatenate(places), np.concatenate(values)


def edge_wigner(vector: torch.Tensor, l_max: int) -> torch.Tensor:
    """Runs `edge_wigner`."""
    wigner = vector.new_empty(len(vector), sum((2 * l + 1) ** 2 for l in range(l_max + 1)))
    kernels().edge_wigner(vector.numpy(), *entries(l_max), l_max, wigner.numpy())
    return wigner


def edge_wigner_backward(grad: torch.Tensor, vector: torch.Tensor, l_max: int, needs: list[bool]) -> list[torch.Tensor]:
    """Runs `edge_wigner` in double, and products of matrices; `needs` says true of the vector."""
    return [vector_gradient(grad, edge_wigner(vector.double(), l_max), vector, l_max)]


@functools.cache
def tables(irreps: str, dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    """What the kernels ask of a layout, in the order of their arguments.

    irreps [n, 4] (degree, channels, whether σ = −1, first entry of the next), the place in the row of the first channel
    of each component, the place on e3nn's axis and the sign of each number of the row, and the signs [w] that an irrep
    with σ = −1 has in D: those of its components, multiplied.
    """
    layout = edge_layout(irreps)
    place = layout.index.argsort().numpy()
    blocks, at, signs = [], [], []
    for (mul, ir), s in zip(irreps_of(irreps), irreps_of(irreps).slices(), strict=True):
        if mul:
            blocks.append([ir.l, mul, sigma_of(ir.l, ir.p) == -1, len(at)])
            at.extend(place[s.start : s.start + ir.dim])
    for l in range(max((l for l, *_ in blocks), default=-1) + 1):
        sign = np.where(np.arange(2 * l + 1) > l, -1.0, 1.0)
        signs.append(np.outer(sign, sign).ravel())
    integer = (np.array(a, dtype=np.int32) for a in (np.reshape(blocks, (-1, 4)), at, layout.index.numpy()))
    floating = (torch.as_tensor(a).to(dtype).numpy() for a in (layout.sign, np.concatenate([np.empty(0), *signs])))
    return (*integer, *floating)


def to_edges_forward(
    source: torch.Tensor,
    target: torch.Tensor,
    wigner: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    irreps: str,
    node_rows: bool,
) -> torch.Tensor:
    """Runs `rotate_to_edges`."""
    rows = source.new_empty(len(src), source.shape[1])
    arrays = (t.numpy() for t in (source, target, wigner, src, dst))
    kernels().rotate_to_edges(*arrays, *tables(irreps, rows.dtype), not node_rows, rows.numpy())
    return rows


def to_nodes_forward(
    rows: torch.Tensor,
    wigner: torch.Tensor,
    dst: torch.Tensor,
    n_nodes: int,
    irreps: str,
    node_rows: bool,
    ascending: bool,
) -> torch.Tensor:
    """Runs `rotate_to_nodes`."""
    dst = _every(rows, dst)
    nodes = rows.new_empty(n_nodes, rows.shape[1])
    arrays = (t.numpy() for t in (rows, wigner, dst))
    kernels().rotate_to_nodes(*arrays, *tables(irreps, rows.dtype), not node_rows, nodes.numpy())
    return nodes


def _every(rows: torch.Tensor, dst: torch.Tensor) -> torch.Tensor:
    """The index; that of all rows where it is empty."""
    return dst if len(dst) == len(rows) else torch.arange(len(rows))


def to_edges_backward(
    grad: torch.Tensor,
    source: torch.Tensor,
    target: torch.Tensor,
    wigner: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    irreps: str,
    node_rows: bool,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs `rotate_to_nodes` for each input that wants a gradient, and `rotation_grad_wigner` if D does."""
    grads = [torch.empty_like(t) for t in (source, target, wigner, src, dst)]
    for i, index in enumerate((src, dst)):
        if needs[i] and len(grads[i]):
            grads[i] = to_nodes_forward(grad, wigner, index, len(grads[i]), irreps, node_rows, False)
    if needs[2]:
        _grad_wigner(grad, source, target, src, dst, irreps, node_rows, grads[2])
    return grads


def to_nodes_backward(
    grad: torch.Tensor,
    rows: torch.Tensor,
    wigner: torch.Tensor,
    dst: torch.Tensor,
    n_nodes: int,
    irreps: str,
    node_rows: bool,
    ascending: bool,
    needs: list[bool],
) -> list[torch.Tensor]:
    """Runs `rotate_to_edges`, and `rotation_grad_wigner` if D wants a gradient."""
    grads = [torch.empty_like(t) for t in (rows, wigner, dst)]
    dst = _every(rows, dst)
    if needs[0]:
        grads[0] = to_edges_forward(grad, grad[:0], wigner, dst, dst, irreps, node_rows)
    if needs[1]:
        _grad_wigner(rows, grad, grad[:0], dst, dst, irreps, node_rows, grads[1])
    return grads


def _grad_wigner(
    rows: torch.Tensor,
    source: torch.Tensor,
    target: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    irreps: str,
    node_rows: bool,
    result: torch.Tensor,
) -> None:
    arrays = (t.numpy() for t in (rows, source, target, src, dst))
    kernels().rotation_grad_wigner(*arrays, *tables(irreps, rows.dtype), not node_rows, result.numpy())
