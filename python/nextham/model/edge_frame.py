"""The same network in the frame of each edge: exact, and without the products that the reference writes down.

Everything on an edge commutes with the rotation into its frame, so edge features live there for the whole network
(DESIGN E1); only the way from nodes to edges and back rotates. Edges are sorted by the atom they point to and processed
in chunks of whole atoms, so the attention of an atom is complete in its chunk and memory follows the chunk, not the
number of edges: beside the edge features, d numbers per edge.
"""

from __future__ import annotations

import torch

from nextham.model.config import NextHAMConfig
from nextham.model.edge_geometry import EdgeGeometry
from nextham.model.folding import FoldedLayer, output_places
from nextham.model.network import Network
from nextham_kernels.ops.edge_layer import (
    Edges,
    edge_layer,
    edge_outputs,
    edge_values,
    node_ends,
    node_update,
    through_heads,
)
from nextham_kernels.ops.rotation import rotate_to_nodes
from nextham_kernels.ops.tracegrad import folded_invariants

__all__ = ["run_network"]


def run_network(
    network: Network,
    folded: list[FoldedLayer],
    edge: torch.Tensor,
    geometry: EdgeGeometry,
    chunk: int,
    with_trace: bool,
    into: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Runs one network.

    Args:
        network: its weights that are not folded.
        folded: `fold_layer` of each layer.
        edge: rows of its first edge features [e, d] (`embed_rows`); written over where no gradient is recorded.
        geometry: the edges.
        chunk: edges of a chunk of the last layer.
        with_trace: compute the trace head.
        into: a tensor of zeros, and which of its rows belongs to each edge [e]: packed weights write there.

    Returns:
        The edges of its range [g] (places in the geometry), their output irreps [g, d], or the tensor that they were
        written into, and trace head [g, s²] or None.
    """
    config = network.config
    in_place = not torch.is_grad_enabled()  # then nothing but the current rows of all edges is kept
    inside = geometry.inside[network.span]
    node = edge[geometry.onsite_of]  # a row too: the frame of an on-site edge is the global one
    invariants: list[torch.Tensor] = []
    for layer, fold in zip(network.layers, folded, strict=True):
        on_nodes = fold.node if with_trace or fold.packed is None else fold.packed_node
        normed, *ends = node_ends(node, on_nodes, fold.settings)
        if layer.last and fold.packed is not None and not with_trace:
            out, rows = (edge.new_zeros(len(inside), config.block_dim), None) if into is None else into
            for first in range(0, len(inside), chunk):
                part = inside[first : first + chunk]
                at = torch.arange(first, first + len(part)) if rows is None else rows.index_select(0, part)
                given = (edge.index_select(0, part), _edges(geometry, part), fold.packed, fold.settings)
                edge_outputs(*ends, *given, _decay(geometry, part, config), out, at, output_places(config, out.device))
            return inside, out, None
        if layer.last:
            output, z = _last_layer(network, fold, ends, edge, geometry, inside, chunk, with_trace)
            invariants += [z] if with_trace else []
            break
        weights = fold.edge if with_trace or fold.packed is None else fold.packed
        edges, updates, traces = [], [], []
        sizes = [b - a for a, b, _, _ in geometry.chunks]
        for (a, b, *nodes), rows in zip(geometry.chunks, edge.split(sizes), strict=True):
            geometry_of = _edges(geometry, slice(a, b))
            out = rows if in_place else None
            made = edge_layer(*ends, rows, geometry_of, weights, fold.settings, tuple(nodes), with_trace, out)
            edges.append(made.edge)
            updates.append(made.node)
            traces.append(made.invariants)
        edge = edge if in_place else torch.cat(edges)
        invariants += [torch.cat(traces)[inside]] if with_trace else []
        node = node_update(torch.cat(updates), normed, on_nodes, fold.settings)
    head = network.trace_head(torch.cat(invariants, dim=1)) if with_trace else None
    return inside, output, head


def _decay(geometry: EdgeGeometry, which: torch.Tensor, config: NextHAMConfig) -> torch.Tensor:
    return torch.exp(-config.decay * geometry.distance.index_select(0, which))


def _edges(geometry: EdgeGeometry, which: slice | torch.Tensor) -> Edges:
    """Rows are copied by `index_select`, where indexing goes number by number."""
    every = (geometry.src, geometry.dst, geometry.onsite, geometry.wigner, geometry.radial)
    plain = isinstance(which, torch.Tensor)
    return Edges(*(x.index_select(0, which) if plain and isinstance(x, torch.Tensor) else x[which] for x in every))


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
    config, hidden, to_edge = network.config, network.config.hidden, folded.edge.to_edge
    outputs, traces = [edge.new_zeros(0, config.block_dim)], []
    for part in inside.split(chunk):
        edges = _edges(geometry, part)
        value, logits = edge_values(*ends, edge[part], edges, folded.edge, folded.settings)
        row = through_heads(value, logits, to_edge, edges, hidden)
        reached = rotate_to_nodes(row, edges.wigner, to_edge.irreps)
        full = edge.new_zeros(len(part), config.block_dim)
        decay = _decay(geometry, part, config)
        outputs.append(full.index_copy(1, output_places(config, full.device), decay[:, None] * reached))
        if with_trace:
            scalars = through_heads(value, logits, folded.to_scalars, edges, hidden)
            traces.append(folded_invariants(scalars, folded.edge.tracegrad))
    n_invariants = config.tracegrad_widths[-1]
    return torch.cat(outputs), torch.cat([edge.new_zeros(0, n_invariants), *traces]) if with_trace else None
