"""A layer on edges as the composition of ops: its meaning, and the way that records gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from nextham_kernels.loading import fused
from nextham_kernels.ops.attention import segment_softmax
from nextham_kernels.ops.edge_linear import edge_linear, head_linear
from nextham_kernels.ops.edge_message import edge_message
from nextham_kernels.ops.edge_tensor_product import edge_tensor_product
from nextham_kernels.ops.gate import gate, gate_input_irreps
from nextham_kernels.ops.layer_norm_silu import layer_norm_silu
from nextham_kernels.ops.norm import norm
from nextham_kernels.ops.rotation import rotate_to_edges, rotate_to_nodes
from nextham_kernels.ops.tracegrad import FoldedTraceGrad, folded_invariants, tracegrad_update
from nextham_kernels.recomputation import recomputed

__all__ = [
    "EdgeLayerSettings",
    "EdgeLayerWeights",
    "Edges",
    "HeadMap",
    "NodeLayerWeights",
    "NodeUpdateWeights",
    "edge_layer",
    "edge_outputs",
    "edge_values",
    "node_ends",
    "node_update",
    "through_heads",
]


class HeadMap(NamedTuple):
    """From the gated values of an edge to one output: Σ_h a_h (M_h v + b_h) + b, what `head_linear` takes."""

    irreps: str  # of the output
    matrix: torch.Tensor  # M of directed and of on-site edges, whose harmonics vanish beyond degree 0 [2, w]
    bias: torch.Tensor  # b_h of the 0e channels, and behind them b where it is not added later [h (+ 1), c]


class EdgeLayerWeights(NamedTuple):
    """The weights of a layer; an MLP is a list as in `tracegrad`."""

    norm: tuple[torch.Tensor, torch.Tensor]  # weight and bias of the norm of edge rows
    merge: torch.Tensor  # normalised edge rows → message, what `edge_linear` takes
    radial: tuple[torch.Tensor, ...]  # MLP: radial basis → weights of the product
    product: torch.Tensor  # linear map behind the product
    scalar_bias: torch.Tensor  # bias of its 0e channels
    logits: tuple[torch.Tensor, ...]  # MLP: [radial basis, attention scalars] → logits
    to_edge: HeadMap
    to_node: HeadMap | None  # `edge_layer` needs it, and TraceGrad
    tracegrad: FoldedTraceGrad | None


class NodeLayerWeights(NamedTuple):
    """The weights of what a layer does with nodes."""

    norm: tuple[torch.Tensor, torch.Tensor]  # weight and bias of the first norm
    source: torch.Tensor  # normalised rows → what goes along the edges that begin there, as `edge_linear` takes it
    source_bias: torch.Tensor  # of its 0e channels [c]
    target: torch.Tensor  # the same of the edges that end there, without bias
    update: NodeUpdateWeights | None  # in the last layer None


class NodeUpdateWeights(NamedTuple):
    """The weights of the update of nodes."""

    bias: torch.Tensor  # of all numbers of a row [d]
    norm: tuple[torch.Tensor, torch.Tensor]
    rise: tuple[torch.Tensor, torch.Tensor]  # matrix and bias, to the gate's input
    fall: tuple[torch.Tensor, torch.Tensor]  # and from its result


class EdgeLayerSettings(NamedTuple):
    """Sizes and constants of a layer."""

    irreps: str  # of nodes, edges and values
    l_max: int  # of the harmonics
    product: str  # irreps behind the product: attention scalars, then the gate's input
    n_alpha: int  # attention scalars
    floor: float  # of the norm
    residual: float  # of TraceGrad's update; 0 leaves it out
    norm_eps: float = 1e-5
    radial_eps: float = 1e-5
    logits_eps: float = 1e-6


class Edges(NamedTuple):
    """The geometry of some edges."""

    src: torch.Tensor  # [e]
    dst: torch.Tensor  # [e]
    onsite: torch.Tensor  # whether the edge has zero length [e]
    wigner: torch.Tensor  # rotations into the edge frames [e, w]
    radial: torch.Tensor  # radial basis [e, c]


def node_ends(
    node: torch.Tensor, weights: NodeLayerWeights, settings: EdgeLayerSettings
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns n, s and t."""
    irreps = settings.irreps
    normed = norm(node, *weights.norm, irreps, settings.norm_eps, settings.floor, edge=True)
    source = edge_linear(normed, weights.source, irreps, irreps, weights.source_bias)
    return normed, source, edge_linear(normed, weights.target, irreps, irreps)


def node_update(
    total: torch.Tensor, normed: torch.Tensor, weights: NodeUpdateWeights, settings: EdgeLayerSettings
) -> torch.Tensor:
    """Returns the next rows of nodes."""
    irreps = settings.irreps
    y = norm(total + normed + weights.bias, *weights.norm, irreps, settings.norm_eps, settings.floor, edge=True)
    risen = edge_linear(y, weights.rise[0], irreps, gate_input_irreps(irreps), weights.rise[1])
    return y + edge_linear(gate(risen, irreps, edge=True), weights.fall[0], irreps, irreps, weights.fall[1])


def _fused(x: torch.Tensor) -> bool:
    """Whether ops that are made of several run in kernels of their own, which keep nothing for a backward pass."""
    return not torch.is_grad_enabled() and fused(x.device)


def _mlp(x: torch.Tensor, parameters: Sequence[torch.Tensor], eps: float) -> torch.Tensor:
    for i in range(0, len(parameters), 4):
        if i:
            x = layer_norm_silu(x, *parameters[i - 2 : i], eps)
        x = torch.nn.functional.linear(x, *parameters[i : i + 2])
    return x


def edge_values(
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    edges: Edges,
    weights: EdgeLayerWeights,
    settings: EdgeLayerSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns v and a."""
    irreps, floors = settings.irreps, (settings.norm_eps, settings.floor)
    if _fused(edge):
        where = (edges.wigner, edges.src, edges.dst)
        message = edge_message(source, target, edge, *where, *weights.norm, weights.merge, irreps, *floors)
    else:
        ends = (edges.src, target, edges.dst)
        message = rotate_to_edges(source, edges.wigner, irreps, *ends, node_rows=True, trusted=True)
        normed = norm(edge, *weights.norm, irreps, *floors, edge=True)
        message = message + edge_linear(normed, weights.merge, irreps, irreps)
    *first, weight, shift, last, offset = weights.radial
    hidden = layer_norm_silu(_mlp(edges.radial, first, settings.radial_eps), weight, shift, settings.radial_eps)
    product = edge_tensor_product(
        message,
        hidden,
        weights.product,
        edges.onsite,
        irreps,
        settings.l_max,
        settings.product,
        last,
        offset,
        weights.scalar_bias,
    )
    scalars = product[:, : settings.n_alpha]
    logits = _mlp(torch.cat([edges.radial, scalars], dim=1), weights.logits, settings.logits_eps)
    return gate(product, irreps, edge=True, skip=settings.n_alpha), logits


def through_heads(value: torch.Tensor, heads: torch.Tensor, to: HeadMap, edges: Edges, irreps: str) -> torch.Tensor:
    """Returns Σ_h a_h (M_h v + b_h) + b."""
    return head_linear(value, heads, to.matrix, irreps, to.irreps, to.bias, edges.onsite)


def edge_layer(
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    edges: Edges,
    weights: EdgeLayerWeights,
    settings: EdgeLayerSettings,
    nodes: tuple[int, int],
    invariants: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Returns x′, y and z; what lies before TraceGrad is a third of the arithmetic and 14 of 22 kB per edge."""
    out, node = recomputed(_attention, source, target, edge, edges, weights, settings, nodes)
    if settings.residual:
        out, z = tracegrad_update(out, weights.tracegrad, settings.residual, edge=True, invariants=invariants)
    else:
        z = folded_invariants(out, weights.tracegrad, edge=True) if invariants else None
    return out, node, z


def _attention(
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    edges: Edges,
    weights: EdgeLayerWeights,
    settings: EdgeLayerSettings,
    nodes: tuple[int, int],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns what TraceGrad updates, and y."""
    irreps = settings.irreps
    value, logits = edge_values(source, target, edge, edges, weights, settings)
    into, n_nodes = edges.dst - nodes[0], nodes[1] - nodes[0]
    out = through_heads(value, logits, weights.to_edge, edges, irreps)
    softmax = segment_softmax(logits, into, n_nodes, ascending=True, trusted=True)
    mixed = through_heads(value, softmax, weights.to_node, edges, irreps)
    return out, rotate_to_nodes(mixed, edges.wigner, irreps, into, n_nodes, True, ascending=True, trusted=True)


def edge_outputs(
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    edges: Edges,
    weights: EdgeLayerWeights,
    settings: EdgeLayerSettings,
    factor: torch.Tensor,
) -> torch.Tensor:
    """Returns f_e D_eᵀ Σ_h a_eh M_h v_e [e, d_out] on e3nn's flat axis."""
    value, logits = edge_values(source, target, edge, edges, weights, settings)
    row = through_heads(value, logits, weights.to_edge, edges, settings.irreps)
    return rotate_to_nodes(row, factor[:, None] * edges.wigner, weights.to_edge.irreps)  # D is shorter than the row
