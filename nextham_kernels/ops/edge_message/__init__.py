"""The message of an edge: what its two ends send, seen in its frame, and a linear map of its own normalised row.

    m_e = D_e (s_src e + t_dst e) + M norm(x_e)

with s and t rows of nodes (`rotate_to_edges` with `node_rows`), M one matrix per |m| (`edge_linear`), and `norm` over
rows. It is the composition of these three ops, which training runs one by one; on a GPU inference runs two kernels,
and neither the normalised row nor the two terms are ever written. Derivatives exist up to second order.
"""

from __future__ import annotations

import torch

from nextham_kernels.checks import check_irreps_dim, check_shapes, check_tensors
from nextham_kernels.clebsch_gordan import IrrepsLike, irreps_of
from nextham_kernels.ops.edge_linear.reference import pieces
from nextham_kernels.ops.edge_message import cpu, reference
from nextham_kernels.registration import define

__all__ = ["edge_message"]

_op = define(
    "edge_message",
    "Tensor source, Tensor target, Tensor edge, Tensor wigner, Tensor src, Tensor dst, Tensor weight, Tensor bias, "
    "Tensor matrix, str irreps, float eps, float floor",
    reference.edge_message,
    cpu.forward,
    None,
    lambda source, target, edge, *rest: torch.empty_like(edge),
    gpu=("edge_message.kernel.forward",),
)


def edge_message(
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    wigner: torch.Tensor,
    src: torch.Tensor,
    dst: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    matrix: torch.Tensor,
    irreps: IrrepsLike,
    eps: float = 1e-5,
    floor: float = 0.0,
) -> torch.Tensor:
    """Returns the messages of edges; the formula is on the op's page.

    Args:
        source: s, rows of nodes [n, d], float32 or float64.
        target: t, the same.
        edge: x, rows [e, d].
        wigner: D_e [e, w] of `edge_wigner`; its l_max may exceed that of the irreps.
        src: where each edge begins, int64 [e]; below n, which is not checked.
        dst: where it ends, the same.
        weight: of the norm, one for each channel [c].
        bias: of the norm, for the 0e channels [b].
        matrix: M [w], flat as `edge_linear` takes it.
        irreps: layout of all rows.
        eps: of the norm.
        floor: of the norm.

    Returns:
        m, rows [e, d].

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> from nextham_kernels.ops.rotation import edge_wigner
        >>> node, edge, end = torch.tensor([[5.0]]), torch.tensor([[3.0]]), torch.zeros(1, dtype=torch.int64)
        >>> one, wigner = torch.ones(1), edge_wigner(torch.zeros(1, 3), 0)
        >>> edge_message(node, node, edge, wigner, end, end, one, 2 * one, one, "1x0e")  # one channel less its mean: 0
        tensor([[12.]])
    """
    floating = {"source": source, "target": target, "edge": edge, "wigner": wigner}
    check_tensors(**floating, weight=weight, bias=bias, matrix=matrix, integer={"src": src, "dst": dst})
    layout = irreps_of(irreps)
    check_irreps_dim("edge", edge, layout, layout.dim)
    name, d = str(layout), layout.dim
    size = sum((2 * l + 1) ** 2 for l in range(1 + max((ir.l for mul, ir in layout if mul), default=-1)))
    check_shapes(
        source=(source, f"n {d}"),
        target=(target, f"{len(source)} {d}"),
        src=(src, str(len(edge))),
        dst=(dst, str(len(edge))),
        wigner=(wigner, f"{len(edge)} w"),
        weight=(weight, str(layout.num_irreps)),
        bias=(bias, str(sum(mul for mul, ir in layout if ir.is_scalar()))),
        matrix=(matrix, str(sum(p.c_in * p.c_out for p in pieces(name, name)))),
    )
    if wigner.shape[1] < size:
        raise ValueError(f"wigner: expected at least {size} columns for irreps {name[:80]}, got {wigner.shape[1]}")
    return _op(source, target, edge, wigner, src, dst, weight, bias, matrix, name, eps, floor)
