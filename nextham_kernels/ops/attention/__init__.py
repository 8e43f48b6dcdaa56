"""Attention over the edges into each node.

Each head h scales its channels of the value of edge e by its logit, and the nodes collect with the softmax of the
logits over the edges that point into them (into = edge_dst):

    edge_e,huk = α_eh v_e,huk        node_n,huk = Σ_{e into n} softmax_n(α)_eh v_e,huk
    softmax_n(α)_eh = exp(α_eh) / Σ_{e' into n} exp(α_e'h)

A block of mul channels of the value is read as (head, mul / n_heads). A node without edges gets zero.

Any derivative exists. Source: the published network; Equiformer, Liao and Smidt (2022).
"""

from __future__ import annotations

import torch

from nextham_kernels.checks import check_irreps_dim, check_range, check_shapes, check_tensors
from nextham_kernels.clebsch_gordan import IrrepsLike, irreps_of
from nextham_kernels.ops.attention import cpu, reference
from nextham_kernels.registration import define

__all__ = ["attention", "segment_softmax"]

_softmax = define(
    "segment_softmax",
    "Tensor logits, Tensor segment, SymInt n_segments, bool ascending",
    reference.segment_softmax,
    cpu.forward,
    cpu.backward,
    lambda logits, *rest: torch.empty_like(logits),
    gpu=("attention.kernel.forward", "attention.kernel.backward"),
)


def attention(
    logits: torch.Tensor, value: torch.Tensor, dst: torch.Tensor, n_nodes: int, irreps: IrrepsLike
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales the values of edges by their logits, and sums them into nodes with the softmax of the logits.

    Args:
        logits: α [e, h], float32 or float64.
        value: v [e, d], same dtype.
        dst: node that each edge points into [e], int64.
        n_nodes: number of nodes.
        irreps: layout of `value`; each multiplicity is a multiple of the number of heads.

    Returns:
        edge [e, d] and node [n, d].

    Raises:
        ValueError: a wrong shape, a node index out of range, or a multiplicity that the heads do not divide.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> value, dst = torch.tensor([[2.0], [4.0]]), torch.tensor([0, 0])
        >>> attention(torch.zeros(2, 1), value, dst, 1, "1x0e")[1]
        tensor([[3.]])
    """
    irreps = irreps_of(irreps)
    check_tensors(logits=logits, value=value, integer={"dst": dst})
    check_irreps_dim("value", value, irreps, irreps.dim)
    n_heads = check_shapes(dst=(dst, "e"), logits=(logits, "e h"), value=(value, "e d"))["h"]
    check_range("dst", dst, n_nodes)
    for mul, ir in irreps:
        if n_heads == 0 or mul % n_heads:
            raise ValueError(f"irreps: expected multiplicities that {n_heads} heads divide, got {mul}x{ir}")
    return reference.attention(logits, segment_softmax(logits, dst, n_nodes), value, dst, n_nodes, irreps)


def segment_softmax(
    logits: torch.Tensor, segment: torch.Tensor, n_segments: int, ascending: bool = False, trusted: bool = False
) -> torch.Tensor:
    """Returns exp(α_eh) / Σ exp(α_e'h) over the edges e' of the same segment.

    Args:
        logits: α [e, h], float32 or float64.
        segment: segment of each edge [e], int64, in any order.
        n_segments: number of segments.
        ascending: `segment` is in ascending order, which spares a GPU from sorting it.
        trusted: the indices are right: they are not checked, which takes a GPU seven small kernels.

    Returns:
        [e, h].

    Raises:
        ValueError: a wrong shape, or a segment out of range or out of order.
        TypeError: a wrong dtype or device.

    Example:
        >>> import torch
        >>> segment_softmax(torch.zeros(3, 1), torch.tensor([0, 1, 0]), 2).flatten()
        tensor([0.5000, 1.0000, 0.5000])
    """
    check_tensors(logits=logits, integer={"segment": segment})
    check_shapes(segment=(segment, "e"), logits=(logits, "e h"))
    if not trusted:
        check_range("segment", segment, n_segments, ascending)
    return _softmax(logits, segment, n_segments, ascending)
