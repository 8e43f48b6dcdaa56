"""The same network in the frame of each edge: exact, and without the products that the reference writes down.

Everything on an edge commutes with the rotation into its frame, so edge features live there for the whole network
(DESIGN E1); only the way from nodes to edges and back rotates. Edges are sorted by the atom they point to and processed
in chunks of whole atoms, so the attention of an atom is complete in its chunk and memory follows the chunk, not the
number of edges: beside the edge features, d numbers per edge.
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch.autograd.function import FunctionCtx

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
from nextham_kernels.recomputation import recomputed

__all__ = ["edges_of", "output_decay", "run_network"]


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
        edge: rows of its first edge features [e, d] (`edge_embedding`); written over where no gradient is recorded.
        geometry: the edges.
        chunk: edges of a chunk of the last layer.
        with_trace: compute the trace head.
        into: a tensor, and which of its rows belongs to each edge [e]: the output is added there.

    Returns:
        The edges of its range [g] (places in the geometry), their output irreps [g, d], or the tensor that they were
        added to, and trace head [g, s²] or None.
    """
    config = network.config
    in_place = not torch.is_grad_enabled()  # then nothing but the current rows of all edges is kept
    inside = geometry.inside[network.span]
    node = edge[geometry.onsite_of]  # a row too: the frame of an on-site edge is the global one
    invariants: list[torch.Tensor] = []
    for layer, fold in zip(network.layers, folded, strict=True):
        on_nodes = fold.node if with_trace or fold.packed is None else fold.packed_node
        normed, *ends = node_ends(node, on_nodes, fold.settings)
        if layer.last:
            output, rows = (edge.new_zeros(len(inside), config.block_dim), None) if into is None else into
            at = torch.arange(len(inside), device=edge.device) if rows is None else rows.index_select(0, inside)
            last = (network, fold, ends, edge, geometry, list(zip(inside.split(chunk), at.split(chunk), strict=True)))
            if in_place and not with_trace:
                _outputs(*last, output)
                return inside, output, None
            output, z = _last_layer(*last, output, with_trace)
            invariants += [z] if with_trace else []
            break
        weights = fold.edge if with_trace or fold.packed is None else fold.packed
        edges, updates, traces = [], [], []
        sizes = [b - a for a, b, _, _ in geometry.chunks]
        alone = len(sizes) == 1 and weights is fold.edge  # then the ops' own result saves a copy
        for (a, b, *nodes), rows in zip(geometry.chunks, edge.split(sizes), strict=True):
            geometry_of = edges_of(geometry, slice(a, b))
            out = rows if in_place and not alone else None
            made = edge_layer(*ends, rows, geometry_of, weights, fold.settings, tuple(nodes), with_trace, out)
            edges.append(made.edge)
            updates.append(made.node)
            traces.append(made.invariants)
        edge = edges[0] if alone else edge if in_place else torch.cat(edges)
        invariants += [torch.cat(traces)[inside]] if with_trace else []
        node = node_update(torch.cat(updates), normed, on_nodes, fold.settings)
    head = network.trace_head(torch.cat(invariants, dim=1)) if with_trace else None
    return inside, output, head


def output_decay(geometry: EdgeGeometry, which: torch.Tensor, config: NextHAMConfig) -> torch.Tensor:
    """Returns the factor that the output of some edges has for their length."""
    return torch.exp(-config.decay * geometry.distance.index_select(0, which))


def edges_of(geometry: EdgeGeometry, which: slice | torch.Tensor) -> Edges:
    """Returns what a layer reads of some edges.

    Rows are copied by `index_select`, where indexing goes number by number.
    """
    every = (geometry.src, geometry.dst, geometry.onsite, geometry.wigner, geometry.radial)
    plain = isinstance(which, torch.Tensor)
    return Edges(*(x.index_select(0, which) if plain and isinstance(x, torch.Tensor) else x[which] for x in every))


Pieces: TypeAlias = "list[tuple[torch.Tensor, torch.Tensor]]"  # edges, and the rows that their output belongs to


def _outputs(
    network: Network,
    folded: FoldedLayer,
    ends: list[torch.Tensor],
    edge: torch.Tensor,
    geometry: EdgeGeometry,
    pieces: Pieces,
    output: torch.Tensor,
) -> None:
    """Writes the output irreps of the edges of the range, without a graph."""
    config, weights = network.config, folded.edge if folded.packed is None else folded.packed
    places = output_places(config, output.device)
    for part, rows in pieces:
        given = (edge.index_select(0, part), edges_of(geometry, part), weights, folded.settings)
        edge_outputs(*ends, *given, output_decay(geometry, part, config), output, rows, places)


def _last_layer(
    network: Network,
    folded: FoldedLayer,
    ends: list[torch.Tensor],
    edge: torch.Tensor,
    geometry: EdgeGeometry,
    pieces: Pieces,
    output: torch.Tensor,
    with_trace: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Adds the output irreps of the edges of the range; returns the sum and the invariants of the last TraceGrad."""
    config, hidden, to_edge = network.config, network.config.hidden, folded.edge.to_edge
    places, traces = output_places(config, output.device), [edge.new_zeros(0, network.config.tracegrad_widths[-1])]

    def reach(
        source: torch.Tensor, target: torch.Tensor, rows: torch.Tensor, edges: Edges
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        value, logits = edge_values(source, target, rows, edges, folded.edge, folded.settings)
        row = through_heads(value, logits, to_edge, edges, hidden)
        scalars = through_heads(value, logits, folded.to_scalars, edges, hidden) if with_trace else None
        return rotate_to_nodes(row, edges.wigner, to_edge.irreps), scalars

    for part, rows in pieces:
        reached, scalars = recomputed(reach, *ends, edge.index_select(0, part), edges_of(geometry, part))
        output = _Add.apply(output, output_decay(geometry, part, config)[:, None] * reached, rows, places)
        if with_trace:
            traces.append(folded_invariants(scalars, folded.edge.tracegrad))
    return output, torch.cat(traces) if with_trace else None


class _Add(torch.autograd.Function):
    """Adds numbers to some rows and columns of a tensor, in place; torch's own ops keep the numbers for backward."""

    @staticmethod
    def forward(
        ctx: FunctionCtx, to: torch.Tensor, x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
    ) -> torch.Tensor:
        """Each column stands once."""
        ctx.save_for_backward(rows, columns)
        ctx.mark_dirty(to)
        return to.index_add_(0, rows, x.new_zeros(len(rows), to.shape[1]).index_copy_(1, columns, x))

    @staticmethod
    def backward(ctx: FunctionCtx, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The same rows and columns of the gradient."""
        rows, columns = ctx.saved_tensors
        return grad, grad.index_select(0, rows).index_select(1, columns), None, None
