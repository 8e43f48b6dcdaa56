"""The same network in the frame of each edge: exact, and without the products that the reference writes down.

Everything on an edge commutes with the rotation into its frame, so edge features live there for the whole network
(DESIGN E1); only the way from nodes to edges and back rotates. Edges are sorted by the atom they point to and processed
in chunks of whole atoms, so the attention of an atom is complete in its chunk and memory follows the chunk, not the
number of edges: beside the edge features, d numbers per edge.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional

from nextham.model.config import NextHAMConfig
from nextham.model.edge_geometry import EdgeGeometry
from nextham.model.folding import FoldedLayer, HeadMaps, message_irreps, output_places
from nextham.model.network import Layer, Network
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.attention import segment_softmax
from nextham_kernels.ops.edge_linear import edge_linear, head_linear
from nextham_kernels.ops.edge_tensor_product import edge_tensor_product
from nextham_kernels.ops.gate import gate
from nextham_kernels.ops.linear import linear
from nextham_kernels.ops.norm import norm
from nextham_kernels.ops.rotation import rotate_to_edges, rotate_to_nodes
from nextham_kernels.ops.tracegrad import folded_invariants, tracegrad_update

__all__ = ["run_network"]


def run_network(
    network: Network,
    folded: list[FoldedLayer],
    edge: torch.Tensor,
    geometry: EdgeGeometry,
    chunk: int,
    with_trace: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Runs one network.

    Args:
        network: its weights that are not folded.
        folded: `fold_layer` of each layer.
        edge: rows of its first edge features [e, d] (`embed_rows`).
        geometry: the edges.
        chunk: edges of a chunk of the last layer.
        with_trace: compute the trace head.

    Returns:
        The edges of its range [g] (places in the geometry), their output irreps [g, d] and trace head [g, s²] or None.
    """
    config, hidden = network.config, str(network.config.hidden_irreps)
    lo, hi = network.span
    inside = torch.nonzero((geometry.distance >= lo) & (geometry.distance < hi))[:, 0]
    # The frame of an on-site edge is the global one.
    node = edge_layout(config.hidden_irreps).from_row(edge[geometry.onsite_of])
    invariants: list[torch.Tensor] = []
    for k, layer in enumerate(network.layers):
        normed = layer.norm_node(node)
        if layer.last:
            output, z = _last_layer(network, folded[k], normed, edge, geometry, inside, chunk, with_trace)
            invariants += [z] if with_trace else []
            break
        source, target = _merged(layer, normed)
        edges, updates, traces = [], [], []
        sizes = [b - a for a, b, _, _ in geometry.chunks]
        for (a, b, first, last), rows_in in zip(geometry.chunks, edge.split(sizes), strict=True):
            part = slice(a, b)
            value, logits = _message(layer, folded[k], source, target, rows_in, _rows(geometry, part), config)
            onsite = torch.nonzero(geometry.onsite[part])[:, 0]
            out = _through_heads(value, logits, folded[k].to_edge, onsite, hidden)
            weight = segment_softmax(logits, geometry.dst[part] - first, last - first)
            mixed = _through_heads(value, weight, folded[k].to_node, onsite, hidden, bias=False)
            updates.append(
                rotate_to_nodes(mixed, geometry.wigner[part], hidden, geometry.dst[part] - first, last - first)
            )
            out, z = _trace(folded[k], out, config.tracegrad_residual, with_trace)
            edges.append(out)
            traces.append(z)
        edge = torch.cat(edges)
        invariants += [torch.cat(traces)[inside]] if with_trace else []
        update = torch.cat(updates)
        n_scalars = config.n_scalars
        update = torch.cat([update[:, :n_scalars] + folded[k].to_node.bias, update[:, n_scalars:]], dim=1)
        y = layer.norm_update(update + normed)
        node = y + layer.fall(gate(layer.rise(y), layer.hidden))
    head = network.trace_head(torch.cat(invariants, dim=1)) if with_trace else None
    decay = torch.exp(-config.decay * geometry.distance[inside])[:, None]
    return inside, output * decay, head


def _trace(
    folded: FoldedLayer, edge: torch.Tensor, residual: float, with_trace: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The TraceGrad update of edge rows, and its invariants."""
    if residual:
        return tracegrad_update(edge, folded.tracegrad, residual, edge=True, invariants=with_trace)
    return edge, folded_invariants(edge, folded.tracegrad, edge=True) if with_trace else None


class _Rows(NamedTuple):
    """The geometry of some edges."""

    src: torch.Tensor
    dst: torch.Tensor
    onsite: torch.Tensor
    wigner: torch.Tensor
    radial: torch.Tensor


def _rows(geometry: EdgeGeometry, which: slice | torch.Tensor) -> _Rows:
    return _Rows(*(x[which] for x in (geometry.src, geometry.dst, geometry.onsite, geometry.wigner, geometry.radial)))


def _merged(layer: Layer, node: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What each node contributes to the messages of the edges it begins and ends; the merge's bias with the first."""
    attention, zero = layer.attention, torch.zeros_like(node)
    thrice = layer.hidden + layer.hidden + layer.hidden
    source = torch.cat([attention.source(node), zero, zero], dim=1)
    target = torch.cat([zero, attention.target(node), zero], dim=1)
    merge = attention.merge
    return (
        linear(source, merge.weight, merge.bias, thrice, layer.hidden),
        linear(target, merge.weight, None, thrice, layer.hidden),
    )


def _message(
    layer: Layer,
    folded: FoldedLayer,
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    rows: _Rows,
    config: NextHAMConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gated values [e, d] and attention logits [e, h] of some edges."""
    hidden, attention = str(config.hidden_irreps), layer.attention
    normed = norm(edge, layer.norm_edge.weight, layer.norm_edge.bias, hidden, 1e-5, config.floor, edge=True)
    message = rotate_to_edges(source, rows.wigner, hidden, rows.src, target, rows.dst)
    message = message + edge_linear(normed, folded.merge, hidden, hidden)
    *first, last = attention.radial
    weight = rows.radial
    for part in first:
        weight = part(weight)
    weight = functional.linear(weight, last.weight, folded.radial_bias)
    product = edge_tensor_product(
        message, weight, folded.product, rows.onsite, hidden, config.l_max, message_irreps(config)
    )
    n_alpha, n_scalars = config.alpha_scalars, len(folded.scalar_bias)
    scalars = product[:, :n_scalars] + folded.scalar_bias
    logits = attention.logits(torch.cat([rows.radial, scalars[:, :n_alpha]], dim=1))
    return gate(torch.cat([scalars[:, n_alpha:], product[:, n_scalars:]], dim=1), hidden, edge=True), logits


def _through_heads(
    value: torch.Tensor, heads: torch.Tensor, maps: HeadMaps, onsite: torch.Tensor, irreps: str, bias: bool = True
) -> torch.Tensor:
    """Σ_h a_h (M_h v + b_h) + b; the on-site edges with their own matrices."""
    out = head_linear(value, heads, maps.matrices, irreps, maps.irreps)
    if len(onsite):
        own = head_linear(value[onsite], heads[onsite], maps.onsite, irreps, maps.irreps)
        out = out.index_copy(0, onsite, own)
    scalars = heads @ maps.head_bias
    n = scalars.shape[1]  # 0e comes first in the irreps, and so in the row
    return torch.cat([out[:, :n] + (scalars + maps.bias if bias else scalars), out[:, n:]], dim=1)


def _last_layer(
    network: Network,
    folded: FoldedLayer,
    node: torch.Tensor,
    edge: torch.Tensor,
    geometry: EdgeGeometry,
    inside: torch.Tensor,
    chunk: int,
    with_trace: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Output irreps, and the invariants of the last TraceGrad, of the edges of the range."""
    config, hidden, layer = network.config, str(network.config.hidden_irreps), network.layers[-1]
    source, target = _merged(layer, node)
    outputs, traces = [node.new_zeros(0, config.block_irreps.dim)], []
    for part, rows_in in zip(inside.split(chunk), edge[inside].split(chunk), strict=True):
        rows = _rows(geometry, part)
        value, logits = _message(layer, folded, source, target, rows_in, rows, config)
        onsite = torch.nonzero(rows.onsite)[:, 0]
        row = _through_heads(value, logits, folded.to_edge, onsite, hidden)
        reached = rotate_to_nodes(row, rows.wigner, folded.to_edge.irreps)
        full = node.new_zeros(len(part), config.block_irreps.dim)
        outputs.append(full.index_copy(1, output_places(config), reached))
        if with_trace:
            scalars = _through_heads(value, logits, folded.to_scalars, onsite, hidden)
            traces.append(folded_invariants(scalars, folded.tracegrad))
    n_invariants = config.tracegrad_widths[-1]
    return torch.cat(outputs), torch.cat([node.new_zeros(0, n_invariants), *traces]) if with_trace else None
