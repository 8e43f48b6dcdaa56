"""One layer of attention, in the frame of each edge, and what it does with nodes before and after.

With x_e the row of edge e (`nextham_kernels.edge_layout`), s and t what nodes send along edges that begin and end at
them, b_e the radial basis and every map one matrix per |m|:

    n_i = norm(node_i),   s_i = S n_i + b,   t_i = T n_i                                node_ends
    m_e = D_e (s_src e + t_dst e) + merge(norm(x_e))
    p_e = edge_tensor_product(m_e, radial MLP(b_e)) + bias on 0e,   the first numbers of p_e being the scalars q_e
    v_e = gate(rest of p_e),   a_e = logits MLP([b_e, q_e])                             edge_values
    x′_e = tracegrad_update(Σ_h a_eh M_h v_e),   y_n = Σ_{e: dst_e = n} D_eᵀ Σ_h softmax_n(a)_eh N_h v_e   edge_layer
    o_e = f_e D_eᵀ Σ_h a_eh M_h v_e                                                     edge_outputs
    u_n = norm(y_n + n_n + b),   node′_n = u_n + F gate(R u_n)                          node_update

It is the composition of the ops of this package that `composition` writes down, with their derivatives. Weights that
were packed (`pack`) run on the CPU in one kernel instead, whose steps share tiles of edges in the second-level cache;
it has no derivatives.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from nextham_kernels.checks import check_range, check_shapes, check_tensors
from nextham_kernels.clebsch_gordan import dim_of
from nextham_kernels.loading import composed
from nextham_kernels.ops.edge_layer import composition, cpu
from nextham_kernels.ops.edge_layer.composition import (
    EdgeLayerSettings,
    EdgeLayerWeights,
    Edges,
    HeadMap,
    NodeLayerWeights,
    NodeUpdateWeights,
    through_heads,
)
from nextham_kernels.ops.edge_layer.cpu import PackedEdgeLayer, PackedNodeLayer

__all__ = [
    "EdgeLayerResult",
    "EdgeLayerSettings",
    "EdgeLayerWeights",
    "Edges",
    "HeadMap",
    "NodeLayerWeights",
    "NodeUpdateWeights",
    "PackedEdgeLayer",
    "PackedNodeLayer",
    "edge_layer",
    "edge_outputs",
    "edge_values",
    "node_ends",
    "node_update",
    "pack",
    "pack_nodes",
    "packable",
    "through_heads",
]


class EdgeLayerResult(NamedTuple):
    """Of `edge_layer`."""

    edge: torch.Tensor  # x′ [e, d]
    node: torch.Tensor  # y [n, d], rows
    invariants: torch.Tensor | None  # z of TraceGrad [e, c]


def packable(device: torch.device) -> bool:
    """Returns whether packed weights have a kernel there, and neither references nor GPU kernels were asked for."""
    return not composed(device)


def pack(weights: EdgeLayerWeights, settings: EdgeLayerSettings) -> PackedEdgeLayer:
    """Returns the weights as the CPU kernel reads them; they do not follow later changes.

    Raises:
        TypeError: weights on another device than the CPU.
        RuntimeError: the kernels are not built.
    """
    if weights.merge.device.type != "cpu":
        raise TypeError(f"weights: expected tensors on the CPU, got {weights.merge.device}")
    return cpu.pack(weights, settings)


def pack_nodes(weights: NodeLayerWeights, settings: EdgeLayerSettings) -> PackedNodeLayer:
    """Returns the weights of nodes as the CPU kernels read them; they do not follow later changes.

    Raises:
        TypeError: weights on another device than the CPU.
        RuntimeError: the kernels are not built.
    """
    if weights.source.device.type != "cpu":
        raise TypeError(f"weights: expected tensors on the CPU, got {weights.source.device}")
    return cpu.pack_nodes(weights, settings)


def node_ends(
    node: torch.Tensor, weights: NodeLayerWeights | PackedNodeLayer, settings: EdgeLayerSettings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns normalised rows of nodes, and what they send along the edges that begin and end there.

    Args:
        node: rows [n, d], float32 or float64.
        weights: plain weights, or packed ones, which record no gradient.
        settings: sizes and constants.

    Returns:
        n, s and t, [n, d] each.

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong dtype.
    """
    check_tensors(node=node)
    check_shapes(node=(node, f"n {dim_of(settings.irreps)}"))
    packed = isinstance(weights, PackedNodeLayer)
    return cpu.node_ends(node, weights) if packed else composition.node_ends(node, weights, settings)


def node_update(
    total: torch.Tensor,
    normed: torch.Tensor,
    weights: NodeLayerWeights | PackedNodeLayer,
    settings: EdgeLayerSettings,
) -> torch.Tensor:
    """Returns the next rows of nodes [n, d].

    Args:
        total: y of `edge_layer` [n, d], float32 or float64.
        normed: n of `node_ends` [n, d].
        weights: those that `node_ends` took.
        settings: sizes and constants.

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong or mixed dtype or device.
    """
    check_tensors(total=total, normed=normed)
    d = dim_of(settings.irreps)
    check_shapes(total=(total, f"n {d}"), normed=(normed, f"{len(total)} {d}"))
    if isinstance(weights, PackedNodeLayer):
        return cpu.node_update(total, normed, weights)
    return composition.node_update(total, normed, weights.update, settings)


def edge_values(
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    edges: Edges,
    weights: EdgeLayerWeights | PackedEdgeLayer,
    settings: EdgeLayerSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns gated values and attention logits of edges, the formulas being on the op's page.

    Args:
        source: s, rows of all nodes [n, d], float32 or float64.
        target: t, the same.
        edge: x, rows [e, d].
        edges: the geometry of these edges.
        weights: plain weights, or packed ones, which record no gradient.
        settings: sizes and constants.

    Returns:
        v [e, d] and a [e, h].

    Raises:
        ValueError: a wrong shape.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> from nextham_kernels.ops.rotation import edge_wigner
        >>> one, zero, eye = torch.ones(1), torch.zeros(1), torch.ones(1, 1)
        >>> radial, logits = (eye, zero, one, zero, eye, one), (torch.ones(1, 2), zero)
        >>> to_edge = HeadMap("1x0e", torch.ones(2, 1), zero[None])
        >>> weights = EdgeLayerWeights(
        ...     (one, zero), one, radial, torch.ones(2), torch.zeros(2), logits, to_edge, None, None
        ... )
        >>> settings = EdgeLayerSettings("1x0e", 0, "1x0e+1x0e", 1, 0.0, 0.0)
        >>> end = torch.zeros(1, dtype=torch.int64)
        >>> edges = Edges(end, end, torch.tensor([True]), edge_wigner(torch.zeros(1, 3), 0), 3 * eye)
        >>> value, a = edge_values(eye, eye, eye, edges, weights, settings)
        >>> value.round(decimals=2), a  # SiLU(2) times e3nn's 1.679, and 3 + 2
        (tensor([[2.9600]]), tensor([[5.]]))
    """
    _check(source, target, edge, edges, settings)
    if isinstance(weights, PackedEdgeLayer):
        return cpu.edge_values(source, target, edge, edges, weights)
    return composition.edge_values(source, target, edge, edges, weights, settings)


def edge_layer(
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    edges: Edges,
    weights: EdgeLayerWeights | PackedEdgeLayer,
    settings: EdgeLayerSettings,
    nodes: tuple[int, int],
    invariants: bool = False,
    out: torch.Tensor | None = None,
) -> EdgeLayerResult:
    """Runs a layer on all edges into some nodes, the formulas being on the op's page.

    Args:
        source: s, rows of all nodes [n, d], float32 or float64.
        target: t, the same.
        edge: x, rows [e, d].
        edges: the geometry of these edges, sorted by `dst`.
        weights: plain weights, or packed ones, which record no gradient and give no invariants.
        settings: sizes and constants.
        nodes: first node that the edges point to, and the one behind the last.
        invariants: TraceGrad's invariants are wanted.
        out: a tensor [e, d] for x′, where no gradient is recorded; `edge` itself is fine.

    Returns:
        x′ [e, d], y of the nodes and TraceGrad's invariants or None.

    Raises:
        ValueError: a wrong shape, or invariants with packed weights.
        TypeError: a wrong or mixed dtype or device.
    """
    _check(source, target, edge, edges, settings)
    if isinstance(weights, PackedEdgeLayer):
        if invariants:
            raise ValueError("invariants: packed weights give none, use plain ones")
        out = torch.empty_like(edge) if out is None else out
        return EdgeLayerResult(out, cpu.edge_layer(source, target, edge, edges, weights, nodes, out), None)
    made = composition.edge_layer(source, target, edge, edges, weights, settings, nodes, invariants)
    return EdgeLayerResult(made[0] if out is None else out.copy_(made[0]), *made[1:])


def edge_outputs(
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    edges: Edges,
    weights: EdgeLayerWeights | PackedEdgeLayer,
    settings: EdgeLayerSettings,
    factor: torch.Tensor,
    out: torch.Tensor,
    rows: torch.Tensor,
    places: torch.Tensor,
) -> None:
    """Writes o, the output of a last layer, into the columns `places` of the rows `rows` of a tensor.

    Args:
        source: s, rows of all nodes [n, d], float32 or float64.
        target: t, the same.
        edge: x, rows [e, d].
        edges: the geometry of these edges.
        weights: plain weights, or packed ones, `to_edge` going to the output.
        settings: sizes and constants.
        factor: f [e].
        out: the tensor [g, width], contiguous and without gradient; nothing else of it is touched.
        rows: which of its rows belongs to each edge [e], int64, each once.
        places: which of its columns belongs to each number of o [d_out], int64, each once.

    Raises:
        ValueError: a wrong shape, or an `out` that is not contiguous.
        TypeError: a wrong or mixed dtype or device.
    """
    _check(source, target, edge, edges, settings)
    check_tensors(edge=edge, factor=factor, out=out, integer={"rows": rows, "places": places})
    check_shapes(factor=(factor, str(len(edge))), rows=(rows, str(len(edge))), out=(out, "g width"))
    check_range("rows", rows, len(out))
    check_range("places", places, out.shape[1])
    if not out.is_contiguous():
        raise ValueError(f"out: expected a contiguous tensor, got strides {out.stride()}")
    if isinstance(weights, PackedEdgeLayer):
        return cpu.edge_outputs(source, target, edge, edges, weights, factor, out, rows, places)
    made = composition.edge_outputs(source, target, edge, edges, weights, settings, factor)
    out[rows[:, None], places] = made
    return None


def _check(
    source: torch.Tensor, target: torch.Tensor, edge: torch.Tensor, edges: Edges, settings: EdgeLayerSettings
) -> None:
    """The shapes, once; indices come from the caller's geometry and are trusted."""
    floating = {"source": source, "target": target, "edge": edge, "wigner": edges.wigner, "radial": edges.radial}
    check_tensors(**floating, integer={"src": edges.src, "dst": edges.dst})
    n, d = len(edge), dim_of(settings.irreps)
    check_shapes(
        source=(source, f"n {d}"),
        target=(target, f"{len(source)} {d}"),
        edge=(edge, f"e {d}"),
        src=(edges.src, str(n)),
        dst=(edges.dst, str(n)),
        onsite=(edges.onsite, str(n)),
        wigner=(edges.wigner, f"{n} w"),
        radial=(edges.radial, f"{n} c"),
    )
