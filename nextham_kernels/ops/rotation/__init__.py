"""Rotation of features into the frame of each edge and back.

D_e is the Wigner D matrix of `edge_rotation`, which takes edge e to the polar axis. Features in the frame of an edge
are a row (`edge_layout`), to_row and from_row being that layout's:

    row_e = to_row(D_e (source_{src e} + target_{dst e}))      rotate_to_edges
    y_n = Σ_{e: dst_e = n} D_eᵀ from_row(row_e)                rotate_to_nodes

The two are adjoint to each other: the gradient of the first in `source` is the second with `src` in place of `dst`.
Every sum runs in the order of the edges, so the same input gives the same bits, whatever the number of threads.

Which rotation about the edge comes with D_e is arbitrary (see `edge_rotation`); a zero-length (on-site) edge has D = 1.
Derivatives exist up to second order. That of `edge_wigner` is zero for a zero-length edge, and jumps with D_e itself
where r_z = 0; what does not depend on the rotation about the edge has the right derivative there too.

Source: DESIGN E1; Passaro and Zitnick (2023).
"""

from __future__ import annotations

import functools

import torch

from nextham_kernels.checks import check_irreps_dim, check_range, check_shapes, check_tensors
from nextham_kernels.clebsch_gordan import IrrepsLike, irreps_of
from nextham_kernels.ops.rotation import cpu, reference
from nextham_kernels.registration import define

__all__ = ["edge_wigner", "rotate_to_edges", "rotate_to_nodes"]

L_MAX = 10
"""The largest degree."""


def _size(l_max: int) -> int:
    """Σ_{l ≤ l_max} (2l+1)²."""
    return (l_max + 1) * (2 * l_max + 1) * (2 * l_max + 3) // 3


_edge_wigner = define(
    "edge_wigner",
    "Tensor vector, int l_max",
    reference.edge_wigner,
    cpu.edge_wigner,
    cpu.edge_wigner_backward,
    lambda vector, l_max: vector.new_empty(vector.shape[0], _size(l_max)),
    gpu=("rotation.kernel.edge_wigner", "rotation.kernel.edge_wigner_backward"),
)
_rotate_to_edges = define(
    "rotate_to_edges",
    "Tensor source, Tensor target, Tensor wigner, Tensor src, Tensor dst, str irreps, bool node_rows",
    reference.rotate_to_edges,
    cpu.to_edges_forward,
    cpu.to_edges_backward,
    lambda source, target, wigner, src, dst, irreps, node_rows: source.new_empty(src.shape[0], source.shape[1]),
    gpu=("rotation.kernel.to_edges_forward", "rotation.kernel.to_edges_backward"),
)
_rotate_to_nodes = define(
    "rotate_to_nodes",
    "Tensor rows, Tensor wigner, Tensor dst, SymInt n_nodes, str irreps, bool node_rows, bool ascending",
    reference.rotate_to_nodes,
    cpu.to_nodes_forward,
    cpu.to_nodes_backward,
    lambda rows, wigner, dst, n_nodes, *settings: rows.new_empty(n_nodes, rows.shape[1]),
    gpu=("rotation.kernel.to_nodes_forward", "rotation.kernel.to_nodes_backward"),
)


def edge_wigner(vector: torch.Tensor, l_max: int) -> torch.Tensor:
    """Returns the Wigner D matrices of the rotation that takes each edge to the polar axis.

    D^l(Q_e) for l = 0 … l_max, Q_e = `edge_rotation(vector)_e`, in the component order of `wigner_d`; row-major, one
    after the other. Computed in float64 whatever the dtype.

    Args:
        vector: [e, 3], cartesian (x, y, z), float32 or float64; its length does not matter, unless it is zero.
        l_max: largest degree, 0 to 10.

    Returns:
        [e, w] with w = Σ_{l ≤ l_max} (2l+1)²; the first columns are those of any smaller l_max.

    Raises:
        ValueError: a wrong shape or degree.
        TypeError: a wrong dtype.

    Example:
        >>> import torch
        >>> edge_wigner(torch.tensor([[2.0, 0.0, 0.0]]), 1)[:, 1:].reshape(3, 3).round().int()
        tensor([[ 1,  0,  0],
                [ 0,  0,  1],
                [ 0, -1,  0]], dtype=torch.int32)
    """
    check_tensors(vector=vector)
    check_shapes(vector=(vector, "e 3"))
    if not 0 <= l_max <= L_MAX:
        raise ValueError(f"l_max: expected 0 to {L_MAX}, got {l_max}")
    return _edge_wigner(vector, l_max)


def rotate_to_edges(
    source: torch.Tensor,
    wigner: torch.Tensor,
    irreps: IrrepsLike,
    src: torch.Tensor | None = None,
    target: torch.Tensor | None = None,
    dst: torch.Tensor | None = None,
    node_rows: bool = False,
    trusted: bool = False,
) -> torch.Tensor:
    """Gathers features of nodes and rotates them into rows: row_e = to_row(D_e (source_{src e} + target_{dst e})).

    Args:
        source: features [n, d], float32 or float64.
        wigner: D_e [e, w] of `edge_wigner`; its l_max may exceed that of the irreps.
        irreps: layout of the features.
        src: int64 [e]; None if `source` has one feature vector per edge.
        target: features [n, d], or None to leave them out.
        dst: int64 [e], with `target` only.
        node_rows: source and target are not on e3nn's flat axis but laid out as rows already, `to_row` of features that
            are not rotated.
        trusted: the indices are right: they are not checked.

    Returns:
        Rows [e, d].

    Raises:
        ValueError: a wrong shape, an index out of range, or only one of target and dst.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> wigner = edge_wigner(torch.tensor([[2.0, 0.0, 0.0]]), 1)
        >>> rotate_to_edges(torch.tensor([[5.0, 0.0, 0.0, 2.0]]), wigner, "1x0e+1x1o")
        tensor([[5., 2., 0., 0.]])
    """
    name, dim, size = _plan(irreps)
    if (target is None) != (dst is None):
        raise ValueError("target, dst: expected both or neither, got one")
    src = torch.arange(source.shape[0], device=source.device) if src is None else src
    given = {"source": source} if target is None else {"source": source, "target": target}
    target = source[:0] if target is None else target
    dst = src if dst is None else dst
    check_tensors(integer={"src": src, "dst": dst}, **given, wigner=wigner)
    for key, x in given.items():
        check_irreps_dim(key, x, name, dim)
    check_shapes(wigner=(wigner, "e w"), src=(src, "e"), dst=(dst, "e"))
    _check_columns(wigner, name, size)
    if not trusted:
        check_range("src", src, source.shape[0])
    if "target" in given and not trusted:
        check_range("dst", dst, target.shape[0])
    return _rotate_to_edges(source, target, wigner, src, dst, name, node_rows)


def rotate_to_nodes(
    rows: torch.Tensor,
    wigner: torch.Tensor,
    irreps: IrrepsLike,
    dst: torch.Tensor | None = None,
    n_nodes: int | None = None,
    node_rows: bool = False,
    ascending: bool = False,
    trusted: bool = False,
) -> torch.Tensor:
    """Rotates rows back and sums them into nodes: y_n = Σ_{e: dst_e = n} D_eᵀ from_row(row_e).

    Args:
        rows: rows of edges [e, d], float32 or float64.
        wigner: D_e [e, w] of `edge_wigner`; its l_max may exceed that of the irreps.
        irreps: layout of the features.
        dst: int64 [e], in any order; None to rotate back without summing.
        n_nodes: number of nodes, with `dst` only; those that no edge enters are zero.
        node_rows: the result is not on e3nn's flat axis but laid out as rows, `to_row` of features that are not
            rotated.
        ascending: `dst` is in ascending order, which spares a GPU from sorting it.
        trusted: the indices are right: they are not checked, which takes a GPU seven small kernels.

    Returns:
        [n_nodes, d], or [e, d] without `dst`.

    Raises:
        ValueError: a wrong shape, an index out of range or out of order, or only one of dst and n_nodes.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> wigner = edge_wigner(torch.tensor([[2.0, 0.0, 0.0]]), 1)
        >>> rotate_to_nodes(torch.tensor([[5.0, 2.0, 0.0, 0.0]]), wigner, "1x0e+1x1o")
        tensor([[5., 0., 0., 2.]])
    """
    name, dim, size = _plan(irreps)
    if (dst is None) != (n_nodes is None):
        raise ValueError("dst, n_nodes: expected both or neither, got one")
    check_tensors(integer={} if dst is None else {"dst": dst}, rows=rows, wigner=wigner)
    check_irreps_dim("rows", rows, name, dim)
    check_shapes(rows=(rows, f"e {dim}"), wigner=(wigner, "e w"))
    _check_columns(wigner, name, size)
    if dst is None:
        return _rotate_to_nodes(rows, wigner, _no_index(rows), rows.shape[0], name, node_rows, True)
    check_shapes(rows=(rows, f"e {dim}"), dst=(dst, "e"))
    if n_nodes < 0:
        raise ValueError(f"n_nodes: expected 0 or more, got {n_nodes}")
    if not trusted:
        check_range("dst", dst, n_nodes, ascending)
    return _rotate_to_nodes(rows, wigner, dst, n_nodes, name, node_rows, ascending)


def _no_index(rows: torch.Tensor) -> torch.Tensor:
    """What the op takes for an index that sums nothing."""
    return torch.empty(0, dtype=torch.int64, device=rows.device)


@functools.cache
def _plan(irreps: IrrepsLike) -> tuple[str, int, int]:
    """The name and dimension of irreps, and the numbers of D that they need."""
    irreps = irreps_of(irreps)
    l_max = max((ir.l for mul, ir in irreps if mul), default=-1)
    if l_max > L_MAX:
        raise ValueError(f"irreps: expected degrees of at most {L_MAX}, got {irreps}")
    return str(irreps), irreps.dim, _size(l_max)


def _check_columns(wigner: torch.Tensor, irreps: str, size: int) -> None:
    if wigner.shape[1] < size:
        shown = irreps if len(irreps) <= 80 else irreps[:77] + "..."
        raise ValueError(f"wigner: expected at least {size} columns for irreps {shown}, got {wigner.shape[1]}")
