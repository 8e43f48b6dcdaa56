"""The same network in the frame of each edge: exact, and without the products that the reference writes down.

Everything on an edge commutes with the rotation into its frame, so edge features live there for the whole network
(DESIGN E1); only the way from nodes to edges and back rotates. Edges are sorted by the atom they point to and processed
in chunks of whole atoms, so the attention of an atom is complete in its chunk and memory follows the chunk, not the
number of edges: beside the edge features, d numbers per edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from nextham.model.config import NextHAMConfig
from nextham.model.edge_geometry import EdgeGeometry
from nextham.model.folding import FoldedLayer, HeadMap, message_irreps, output_places
from nextham.model.layers import Norm
from nextham.model.network import Layer, Network
from nextham_kernels.ops.attention import segment_softmax
from nextham_kernels.ops.edge_linear import edge_linear, head_linear
from nextham_kernels.ops.edge_tensor_product import edge_tensor_product
from nextham_kernels.ops.gate import gate, gate_input_irreps
from nextham_kernels.ops.layer_norm_silu import layer_norm_silu
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
        edge: rows of its first edge features [e, d] (`embed_rows`); written over where no gradient is recorded.
        geometry: the edges.
        chunk: edges of a chunk of the last layer.
        with_trace: compute the trace head.

    Returns:
        The edges of its range [g] (places in the geometry), their output irreps [g, d] and trace head [g, s²] or None.
    """
    config, hidden = network.config, network.config.hidden
    in_place = not torch.is_grad_enabled()  # then nothing but the current rows of all edges is kept
    lo, hi = network.span
    inside = torch.nonzero((geometry.distance >= lo) & (geometry.distance < hi))[:, 0]
    node = edge[geometry.onsite_of]  # a row too: the frame of an on-site edge is the global one
    invariants: list[torch.Tensor] = []
    for layer, fold in zip(network.layers, folded, strict=True):
        normed = _norm(layer.norm_node, node, config)
        ends = tuple(edge_linear(normed, m.matrix, hidden, hidden, m.bias) for m in (fold.source, fold.target))
        if layer.last:
            output, z = _last_layer(network, fold, ends, edge, geometry, inside, chunk, with_trace)
            invariants += [z] if with_trace else []
            break
        edges, updates, traces = [], [], []
        sizes = [b - a for a, b, _, _ in geometry.chunks]
        for (a, b, first, last), rows_in in zip(geometry.chunks, edge.split(sizes), strict=True):
            rows = _rows(geometry, slice(a, b))
            into, n_nodes = rows.dst - first, last - first
            value, logits = _message(layer, fold, ends, rows_in, rows, config)
            out = _through_heads(value, logits, fold.to_edge, rows, hidden)
            mixed = _through_heads(
                value, segment_softmax(logits, into, n_nodes, ascending=True), fold.to_node, rows, hidden
            )
            updates.append(rotate_to_nodes(mixed, rows.wigner, hidden, into, n_nodes, True, ascending=True))
            out, z = _trace(fold, out, config.tracegrad_residual, with_trace)
            traces.append(z)
            if in_place:
                rows_in.copy_(out)
            else:
                edges.append(out)
        edge = edge if in_place else torch.cat(edges)
        invariants += [torch.cat(traces)[inside]] if with_trace else []
        y = _norm(layer.norm_update, torch.cat(updates) + normed + fold.node_bias, config)
        risen = edge_linear(y, fold.rise.matrix, hidden, gate_input_irreps(hidden), fold.rise.bias)
        node = y + edge_linear(gate(risen, hidden, edge=True), fold.fall.matrix, hidden, hidden, fold.fall.bias)
    head = network.trace_head(torch.cat(invariants, dim=1)) if with_trace else None
    decay = torch.exp(-config.decay * geometry.distance[inside])[:, None]
    return inside, output * decay, head


def _norm(module: Norm, rows: torch.Tensor, config: NextHAMConfig) -> torch.Tensor:
    return norm(rows, module.weight, module.bias, config.hidden, 1e-5, config.floor, edge=True)


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


def _message(
    layer: Layer,
    folded: FoldedLayer,
    ends: tuple[torch.Tensor, torch.Tensor],
    edge: torch.Tensor,
    rows: _Rows,
    config: NextHAMConfig,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gated values [e, d] and attention logits [e, h] of some edges."""
    hidden, attention = config.hidden, layer.attention
    source, target = ends
    message = rotate_to_edges(source, rows.wigner, hidden, rows.src, target, rows.dst, node_rows=True)
    message = message + edge_linear(_norm(layer.norm_edge, edge, config), folded.merge.matrix, hidden, hidden)
    *first, last = attention.radial
    product = edge_tensor_product(
        message,
        _mlp(first, rows.radial),
        folded.product,
        rows.onsite,
        hidden,
        config.l_max,
        message_irreps(config),
        last.weight,
        attention.radial_offset,
        folded.scalar_bias,
    )
    n_alpha = config.alpha_scalars
    logits = _mlp(attention.logits, torch.cat([rows.radial, product[:, :n_alpha]], dim=1))
    return gate(product, hidden, edge=True, skip=n_alpha), logits


def _mlp(parts: Sequence[nn.Module], x: torch.Tensor) -> torch.Tensor:
    """Linear, then LayerNorm, SiLU, Linear …, the two in the middle in one op."""
    for part in parts:
        if isinstance(part, nn.LayerNorm):
            x = layer_norm_silu(x, part.weight, part.bias, part.eps)
        elif isinstance(part, nn.Linear):
            x = part(x)
    return x


def _through_heads(value: torch.Tensor, heads: torch.Tensor, to: HeadMap, rows: _Rows, irreps: str) -> torch.Tensor:
    return head_linear(value, heads, to.matrix, irreps, to.irreps, to.bias, rows.onsite)


def _last_layer(
    network: Network,
    folded: FoldedLayer,
    ends: tuple[torch.Tensor, torch.Tensor],
    edge: torch.Tensor,
    geometry: EdgeGeometry,
    inside: torch.Tensor,
    chunk: int,
    with_trace: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Output irreps, and the invariants of the last TraceGrad, of the edges of the range."""
    config, hidden, layer = network.config, network.config.hidden, network.layers[-1]
    outputs, traces = [edge.new_zeros(0, config.block_dim)], []
    for part in inside.split(chunk):
        rows = _rows(geometry, part)
        value, logits = _message(layer, folded, ends, edge[part], rows, config)
        row = _through_heads(value, logits, folded.to_edge, rows, hidden)
        reached = rotate_to_nodes(row, rows.wigner, folded.to_edge.irreps)
        full = edge.new_zeros(len(part), config.block_dim)
        outputs.append(full.index_copy(1, output_places(config), reached))
        if with_trace:
            scalars = _through_heads(value, logits, folded.to_scalars, rows, hidden)
            traces.append(folded_invariants(scalars, folded.tracegrad))
    n_invariants = config.tracegrad_widths[-1]
    return torch.cat(outputs), torch.cat([edge.new_zeros(0, n_invariants), *traces]) if with_trace else None
