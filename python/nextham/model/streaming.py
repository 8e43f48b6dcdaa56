"""ΔH of a structure in pieces: blocks → irreps → edge-frame engine → blocks, within a budget of memory.

Edges are sorted by the atom they point to. One network runs after the other; each keeps one row of features per edge,
everything else exists for one piece of edges at a time: blocks and irreps of H⁽⁰⁾, rotations, radial basis, messages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from nextham.blocks import Blocks
from nextham.model.block_channels import BlockChannels, input_channels, output_channels
from nextham.model.edge_frame import run_network
from nextham.model.edge_geometry import EdgeGeometry
from nextham.model.embedding import fold_embedding
from nextham.model.ensemble import Ensemble, chunk_of
from nextham.model.folding import fold_layer
from nextham.model.reduced_network import ReducedNetwork
from nextham_kernels.ops.blocks_irreps import blocks_to_irreps, irreps_to_blocks
from nextham_kernels.ops.edge_embedding import edge_embedding
from nextham_kernels.ops.edge_layer import packable

__all__ = [
    "Needs",
    "block_dtype",
    "bytes_per_edge",
    "irreps_of_edges",
    "needs_of",
    "stream_delta",
    "write_edges",
]

ROW_COPIES = 1
"""Rows of features that an edge has: the engine writes a layer's output over its input."""


class Needs(NamedTuple):
    """Memory beside the networks, H⁽⁰⁾ and ΔH."""

    kept: int  # bytes for all edges together
    per_edge: int  # bytes for each edge of a piece
    largest: int  # edges of the atom that has most, which are one piece


def needs_of(ensemble: Ensemble, h0: Blocks, reading: BlockChannels, writing: BlockChannels) -> Needs:
    """Returns what the computation of ΔH on the edges of `h0` below the cutoff needs."""
    config, size = ensemble.config, 8 if ensemble.dtype == torch.float64 else 4
    distance, d = h0.graph.distance(), config.hidden_irreps.dim
    near = distance < config.cutoff
    inside = max(int(((distance >= lo) & (distance < hi)).sum()) for lo, hi in config.ranges)
    per_kept = ROW_COPIES * d * size + 4 * size + 16 * 8  # rows, vector and distance, graph and indices
    kept = int(near.sum()) * per_kept + 2 * inside * writing.width * size
    largest = int(np.bincount(h0.graph.dst[near], minlength=1).max(initial=0))
    return Needs(kept, bytes_per_edge(ensemble, reading, int(h0.sizes.max(initial=0))), largest)


def bytes_per_edge(ensemble: Ensemble, reading: BlockChannels, block: int) -> int:
    """Returns what an edge of a piece needs, bytes.

    Args:
        ensemble: the networks.
        reading: what they read of H⁽⁰⁾.
        block: numbers of the largest block.
    """
    config, size = ensemble.config, 8 if ensemble.dtype == torch.float64 else 4
    n_paths = ensemble.networks[0].layers[0].attention.path_weight.numel()
    engine = 2 * n_paths + 24 * config.hidden_irreps.dim + 6 * config.n_radial + 2 * config.tracegrad_forms
    # the block as it is and in our dtype, its irreps as they are and rotated
    embedding = 3 * block * 4 + 2 * reading.width
    return max(engine, embedding) * size


def _piece(needs: Needs, memory_budget: int | None, chunk: int) -> int:
    """Edges of a piece."""
    if memory_budget is None:
        return chunk
    least = needs.kept + needs.per_edge * max(needs.largest, 1)
    if memory_budget < least:
        raise ValueError(f"memory_budget: expected at least {least} bytes for these edges, got {memory_budget}")
    return min(chunk, (memory_budget - needs.kept) // needs.per_edge)


def stream_delta(
    ensemble: Ensemble,
    h0: Blocks,
    memory_budget: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Blocks:
    """Predicts ΔH with the edge-frame engine; `predict_delta` says of what.

    Args:
        ensemble: the networks.
        h0: H⁽⁰⁾, eV, with an on-site block for every atom.
        memory_budget: see `predict_delta`.
        progress: called with (done, total) pieces.

    Raises:
        ValueError: the budget is too small.
    """
    config, device = ensemble.config, ensemble.device
    near = np.flatnonzero(h0.graph.distance() < config.cutoff)
    graph = h0.graph.select(near)
    numbers = graph.structure.numbers
    between = np.unique(np.stack([numbers[graph.src], numbers[graph.dst]], axis=1), axis=0)
    elements = frozenset((h0.basis[a], h0.basis[b]) for a, b in between.tolist())
    result = Blocks.zeros(h0.graph, h0.basis, 4 if config.spinor else 1, block_dtype(ensemble))
    if not elements:
        return result
    reading, writing = input_channels(config, elements), output_channels(config, elements)
    piece = _piece(needs_of(ensemble, h0, reading, writing), memory_budget, chunk_of(device))
    src, dst = (torch.as_tensor(index, device=device) for index in (graph.src, graph.dst))
    vector = torch.as_tensor(graph.vector()).to(device, ensemble.dtype)
    geometry = EdgeGeometry.of(src, dst, vector, config, piece, on_demand=True)
    order = geometry.order.cpu().numpy()
    edge_of = near[order]
    cuts = [*range(0, len(order), piece), len(order)]
    spans = [slice(a, b) for a, b in pairwise(cuts)]
    done, total = 0, len(config.ranges) * (2 * len(spans))

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    with torch.no_grad():
        for network, folded in zip(ensemble.networks, ensemble.fold(), strict=True):
            reduced = ReducedNetwork(network, writing)
            last = fold_layer(reduced, config.n_layers - 1, packable(device))
            embedding = fold_embedding([network], reading, packable(device))
            rows = vector.new_empty(len(order), config.hidden_irreps.dim)
            for span in spans:
                irreps = irreps_of_edges(h0, edge_of[span], reading, ensemble)
                rows[span] = edge_embedding(irreps, geometry.wigner[span], embedding)[0]
                advance(1)
            inside, output, _ = run_network(reduced, [*folded[:-1], last], rows, geometry, piece, with_trace=False)
            del rows
            edges = edge_of[inside.cpu().numpy()]
            for first in range(0, len(edges), piece):
                span = slice(first, first + piece)
                write_edges(result, edges[span], output[span], writing, ensemble)
            advance(len(spans))
    return result


def block_dtype(ensemble: Ensemble) -> type:
    """Returns the type of the numbers of predicted blocks."""
    double = ensemble.dtype == torch.float64
    if ensemble.config.spinor:
        return np.complex128 if double else np.complex64
    return np.float64 if double else np.float32


def _by_elements(blocks: Blocks, edges: np.ndarray) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], np.ndarray]]:
    """Shells of both atoms, and places within `edges`, of every pair of elements."""
    numbers = blocks.graph.structure.numbers
    pair = numbers[blocks.graph.src[edges]] * 1000 + numbers[blocks.graph.dst[edges]]
    for key in np.unique(pair).tolist():
        yield blocks.basis[key // 1000], blocks.basis[key % 1000], np.flatnonzero(pair == key)


def irreps_of_edges(h0: Blocks, edges: np.ndarray, channels: BlockChannels, ensemble: Ensemble) -> torch.Tensor:
    """Irreps [g, width] of the blocks of some edges."""
    config = ensemble.config
    kind = ensemble.dtype.to_complex() if config.spinor else ensemble.dtype
    out = torch.zeros(len(edges), channels.width, dtype=ensemble.dtype, device=ensemble.device)
    for rows, columns, places in _by_elements(h0, edges):
        blocks = torch.as_tensor(h0.data[h0.index(edges[places])]).to(ensemble.device, kind)
        if config.spinor and h0.n_spin < 4:
            nothing = torch.zeros_like(blocks[:, 0])
            blocks = torch.stack([blocks[:, 0], nothing, nothing, blocks[:, -1]], dim=1)
        at = channels.places(config, rows, columns).to(ensemble.device)
        irreps = blocks_to_irreps(blocks, rows, columns, at, channels.width)
        out[torch.as_tensor(places, device=ensemble.device)] = irreps
    return out


def write_edges(
    result: Blocks, edges: np.ndarray, irreps: torch.Tensor, channels: BlockChannels, ensemble: Ensemble
) -> None:
    """Puts the blocks of predicted irreps [g, width] where they belong."""
    config = ensemble.config
    for rows, columns, places in _by_elements(result, edges):
        at = channels.places(config, rows, columns).to(ensemble.device)
        x = irreps[torch.as_tensor(places, device=ensemble.device)]
        blocks = irreps_to_blocks(x, rows, config.spinor, columns, at, config.target if config.spinor else "spinor")
        result.put(edges[places], blocks.cpu().numpy())
