"""The prediction of systems whose matrices do not fit the memory: from a file of H⁽⁰⁾ to a file of Ĥ.

The network is that of `streaming`: one row of features per edge, read and written once in each layer, edges sorted by
the atom they point to. Here the rows lie in a file. The other way, a group of atoms with all atoms that it depends on,
is exact too, but asks for (layers − 1) cut-offs around each group: for four layers and 8 Å, a group of 40 Å makes five
times the edges it needs, and its rows alone take 5.8 GB. In a file, an edge and network moves 1.6 kB eight times (four
layers, published sizes, single precision), at 1 GB/s a tenth of the 0.1 ms that its arithmetic takes.

Of the whole system there are in memory some 100 bytes per edge below the cutoff (10 kB per silicon atom and 8 Å) and
five rows per atom; in files that are gone afterwards one row (1.6 kB) and the output of one edge for each of these
edges. The outputs of finished networks outlive a run that ends early. Everything else exists for one piece of edges at
a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from nextham.blocks import Blocks
from nextham.graph import Graph
from nextham.io.digest import content_key
from nextham.io.hdf5_pieces import PieceReader, PieceWriter, open_pieces
from nextham.model.block_channels import input_channels, output_channels
from nextham.model.edge_frame import edges_of, output_decay
from nextham.model.edge_geometry import EdgeGeometry
from nextham.model.embedding import fold_embedding
from nextham.model.ensemble import Ensemble, chunk_of
from nextham.model.folding import FoldedLayer, fold_layer, output_places
from nextham.model.network import Network
from nextham.model.reading import what_is_read
from nextham.model.reduced_network import ReducedNetwork
from nextham.model.scratch import KeptRows, ScratchRows
from nextham.model.streaming import block_dtype, bytes_per_edge, irreps_of_edges, write_edges
from nextham_kernels import __version__
from nextham_kernels.ops.edge_embedding import edge_embedding
from nextham_kernels.ops.edge_layer import edge_layer, edge_outputs, node_ends, node_update, packable

__all__ = ["predict_file"]

_BLOCKS = 2048
"""Pairs of blocks that are read or written at a time: some 100 MB for silicon with spin."""


class _Piece(NamedTuple):
    """The network's edges of a piece of the file: those below the cutoff, then the reverses of those off site."""

    near: np.ndarray  # places in the piece's graph
    turned: np.ndarray  # places in `near`
    first: int  # of the network's edges, in the file's order


class _Part(NamedTuple):
    """Some blocks of a piece."""

    near: np.ndarray  # those below the cutoff
    turned: np.ndarray  # places in `near` of those off site
    edges: np.ndarray  # the network's edges, in the file's order: `near`, then the reverses of `turned`
    matrices: dict[str, Blocks]

    def graph(self) -> tuple[Graph, Graph]:
        """Returns the edges of `near`, and the network's edges."""
        near = next(iter(self.matrices.values())).graph.select(self.near)
        back = near.select(self.turned)
        both = ((near.src, back.dst), (near.dst, back.src), (near.R, -back.R))
        return near, Graph(near.structure, *map(np.concatenate, both))


def predict_file(
    ensemble: Ensemble,
    h0: str | os.PathLike[str],
    path: str | os.PathLike[str],
    memory_budget: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """Predicts Ĥ of a file of H⁽⁰⁾ and S, and writes H, H0 and S to another one, within a budget of memory.

    H is the Hermitian part of the prediction, equal to rounding to that of `predict_delta`. The output can be read in
    pieces too (`nextham.io.hdf5_pieces`). It has its name once it is whole.

    Args:
        ensemble: the networks, with the engine `edge_frame`.
        h0: a file with `H0` and `S` that was written piece by piece (`nextham.h0.stream_h0`).
        path: the file to write. In its folder are also features, in files without names, and outputs of networks, in
            `….networks`: it stays where a run ends early, and the next one begins with the networks that are missing.
        memory_budget: bytes beside the ensemble, 100 bytes for each edge below the cutoff and five rows of features for
            each atom; by default as many as are quickest.
        progress: called with (done, total) pieces of work.

    Returns:
        The largest difference of the prediction from its adjoint, eV.

    Raises:
        ValueError: another engine, networks without spin for a matrix with spin, an atom without on-site block, or a
            budget that is too small.
        FileError: a file that cannot be read or written, or was not written in pieces; or outputs of other networks, or
            of another file.
    """
    if ensemble.engine != "edge_frame":
        raise ValueError("engine: the engine reference keeps everything, set engine = 'edge_frame'")
    path = Path(path)
    with open_pieces(h0) as reader, torch.no_grad():
        run = _Run(ensemble, reader, path.parent, memory_budget, progress)
        kept = path.with_name(path.name + ".networks")
        with KeptRows(kept, run.n_edges, run.writing.width, ensemble.dtype, _key(ensemble, Path(h0))) as output:
            run.networks(output)
            asymmetry = run.write(path, output)
            output.remove()
            return asymmetry


def _key(ensemble: Ensemble, h0: Path) -> str:
    """What says of which file, and by which networks, outputs are made."""
    file, weights = os.stat(h0), (x.cpu().numpy() for x in ensemble.state_dict().values())
    return content_key([__version__, ensemble.config, file.st_size, file.st_mtime_ns, *weights])


class _Run:
    """One prediction."""

    def __init__(
        self,
        ensemble: Ensemble,
        reader: PieceReader,
        folder: Path,
        memory_budget: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.ensemble, self.reader, self.folder, self._progress = ensemble, reader, folder, progress
        config, device = ensemble.config, ensemble.device
        structure, basis = reader.structure, reader.basis
        shells = {basis[z] for z in structure.species()}
        elements = frozenset((a, b) for a in shells for b in shells)
        self.reading, self.writing = input_channels(config, elements), output_channels(config, elements)
        self.pieces, src, dst, vector = self._edges()
        self.n_edges = len(src)
        largest = int(np.bincount(dst, minlength=1).max(initial=0))
        most = int(basis.n_orbitals_of(structure.numbers).max()) ** 2
        per_edge = bytes_per_edge(ensemble, self.reading, (4 if config.spinor else 1) * most)
        # A block and its adjoint as they are read, added and written, some eight times, and both edges' irreps.
        per_pair = 8 * 64 * most + 2 * per_edge
        budget = max(chunk_of(device) * per_edge, _BLOCKS * per_pair) if memory_budget is None else memory_budget
        least = max(largest, 1) * max(per_edge, per_pair)
        if budget < least:
            raise ValueError(f"memory_budget: expected at least {least} bytes for these edges, got {budget}")
        self.chunk, self.at_once = min(chunk_of(device), budget // per_edge), min(_BLOCKS, budget // per_pair)
        send = [torch.as_tensor(x, device=device) for x in (src, dst, vector)]
        self.geometry = EdgeGeometry.of(*send, config, self.chunk, on_demand=True)
        self.order = self.geometry.order.cpu().numpy()
        self.place = np.empty_like(self.order)
        self.place[self.order] = np.arange(self.n_edges)
        pieces = sum(-(-reader.graph(i).n_edges // self.at_once) for i in range(reader.n_pieces))
        layers = (config.n_layers - 1) * len(self.geometry.chunks) + 1
        self._done, self._steps = 0, pieces + layers
        self._total = len(config.ranges) * self._steps + pieces

    def _advance(self) -> None:
        self._done += 1
        if self._progress is not None:
            self._progress(self._done, self._total)

    def _edges(self) -> tuple[list[_Piece], np.ndarray, np.ndarray, np.ndarray]:
        """The pieces of the file, and source, target and vector of the network's edges in the file's order."""
        reader, cutoff, first = self.reader, self.ensemble.config.cutoff, 0
        kind = np.float64 if self.ensemble.dtype == torch.float64 else np.float32
        pieces: list[_Piece] = []
        columns: tuple[list[np.ndarray], ...] = ([], [], [])
        onsite = np.zeros(reader.structure.n_atoms, dtype=bool)
        for piece in range(reader.n_pieces):
            graph = reader.graph(piece)
            vector, here = graph.vector(), graph.onsite()
            onsite[graph.src[here]] = True
            near = np.flatnonzero(np.linalg.norm(vector, axis=1) < cutoff)
            turned = np.flatnonzero(~here[near])
            pieces.append(_Piece(near, turned, first))
            back = near[turned]
            columns[0].append(np.concatenate([graph.src[near], graph.dst[back]]))
            columns[1].append(np.concatenate([graph.dst[near], graph.src[back]]))
            columns[2].append(np.concatenate([vector[near], -vector[back]]).astype(kind))
            first += len(near) + len(turned)
        if not onsite.all():
            raise ValueError(f"h0: atom {int(np.argmin(onsite))} has no on-site block")
        return pieces, *map(np.concatenate, columns)

    def _parts(self, names: list[str]) -> Iterator[_Part]:
        """Blocks of some matrices, a budget's worth at a time."""
        for number, piece in enumerate(self.pieces):
            graph, behind = self.reader.graph(number), piece.first + len(piece.near)
            for begin in range(0, graph.n_edges, self.at_once):
                edges = slice(begin, min(begin + self.at_once, graph.n_edges))
                low, high = np.searchsorted(piece.near, (edges.start, edges.stop))
                t_low, t_high = np.searchsorted(piece.turned, (low, high))
                yield _Part(
                    piece.near[low:high] - begin,
                    piece.turned[t_low:t_high] - low,
                    np.concatenate([piece.first + np.arange(low, high), behind + np.arange(t_low, t_high)]),
                    {name: self.reader.read(name, number, graph, edges) for name in names},
                )

    def networks(self, output: KeptRows) -> None:
        """Runs the networks that are missing; their outputs go to the rows of their edges in the file's order."""
        ensemble, config, device = self.ensemble, self.ensemble.config, self.ensemble.device
        self._done = output.done * self._steps
        for network, folded in list(zip(ensemble.networks, ensemble.fold(), strict=True))[output.done :]:
            reduced = ReducedNetwork(network, self.writing)
            last = fold_layer(reduced, config.n_layers - 1, packable(device))
            with ScratchRows(self.folder, self.n_edges, config.hidden_irreps.dim, ensemble.dtype) as rows:
                self._embed(network, rows)
                ends = self._layers(folded[:-1], last, rows)
                self._outputs(reduced, last, ends, rows, output)
            output.advance()
            self._advance()

    def _embed(self, network: Network, rows: ScratchRows) -> None:
        """The first features of all edges."""
        config = self.ensemble.config
        weights = fold_embedding([network], self.reading, packable(self.ensemble.device))
        for part in self._parts(["H0"]):
            h0 = part.matrices["H0"] if config.spinor else part.matrices["H0"].spinless()
            if np.iscomplexobj(h0.data) and not config.spinor:
                raise ValueError("h0: expected a real matrix for networks without spin, got a complex one")
            h0 = what_is_read(h0, config).select(part.near)
            numbers = np.concatenate([h0.data, h0.select(part.turned).adjoint().data])
            both = Blocks(part.graph()[1], h0.basis, numbers, h0.n_spin)
            place = self.place[part.edges]
            order = np.argsort(place)  # rows that follow each other in the file are written at once
            place = place[order]
            irreps = irreps_of_edges(both, order, self.reading, self.ensemble)
            wigner = self.geometry.wigner[torch.as_tensor(place, device=self.ensemble.device)]
            rows.write(place, edge_embedding(irreps, wigner, weights)[0])
            self._advance()

    def _layers(self, layers: list[FoldedLayer], last: FoldedLayer, rows: ScratchRows) -> list[torch.Tensor]:
        """All layers but the last, whose ends it returns."""
        geometry, device = self.geometry, self.ensemble.device
        node = rows.read(geometry.onsite_of.cpu().numpy()).to(device)
        for fold in layers:
            on_nodes = fold.node if fold.packed is None else fold.packed_node
            weights = fold.edge if fold.packed is None else fold.packed
            normed, *ends = node_ends(node, on_nodes, fold.settings)
            updates = []
            for a, b, *nodes in geometry.chunks:
                edge = rows.read(slice(a, b)).to(device)
                made = edge_layer(
                    *ends, edge, edges_of(geometry, slice(a, b)), weights, fold.settings, tuple(nodes), False, edge
                )
                rows.write(slice(a, b), made.edge)
                updates.append(made.node)
                self._advance()
            node = node_update(torch.cat(updates), normed, on_nodes, fold.settings)
        on_nodes = last.node if last.packed is None else last.packed_node
        return node_ends(node, on_nodes, last.settings)[1:]

    def _outputs(
        self,
        network: ReducedNetwork,
        last: FoldedLayer,
        ends: list[torch.Tensor],
        rows: ScratchRows,
        output: ScratchRows,
    ) -> None:
        config, geometry, device = self.ensemble.config, self.geometry, self.ensemble.device
        weights, places = last.edge if last.packed is None else last.packed, output_places(network.config, device)
        for part in geometry.inside[network.span].split(self.chunk):
            index = part.cpu().numpy()
            made = torch.zeros(len(part), self.writing.width, dtype=self.ensemble.dtype, device=device)
            edge, at = rows.read(index).to(device), torch.arange(len(part), device=device)
            decay = output_decay(geometry, part, config)
            edge_outputs(*ends, edge, edges_of(geometry, part), weights, last.settings, decay, made, at, places)
            order = np.argsort(self.order[index])
            output.write(self.order[index][order], made[torch.as_tensor(order, device=device)])

    def write(self, path: Path, output: ScratchRows) -> float:
        """Writes H, H0 and S; returns how far the prediction is from its adjoint."""
        config, largest = self.ensemble.config, 0.0
        with PieceWriter(path, self.reader.structure, self.reader.basis, None) as writer:
            for part in self._parts(["H0", "S"]):
                h0, overlap = part.matrices["H0"], part.matrices["S"]
                near, graph = part.graph()
                delta = Blocks.zeros(graph, h0.basis, 4 if config.spinor else 1, block_dtype(self.ensemble))
                irreps = output.read(part.edges).to(self.ensemble.device)
                write_edges(delta, np.arange(graph.n_edges), irreps, self.writing, self.ensemble)
                adjoint = delta.adjoint().on(near)
                delta = delta.on(near)
                if near.n_edges:
                    largest = max(largest, float(np.abs(delta.data - adjoint.data).max()))
                delta = delta.like((delta.data + adjoint.data) / 2).on(h0.graph)
                n_spin = max(h0.n_spin, delta.n_spin)
                h = h0.with_spin(n_spin) + delta.with_spin(n_spin)
                alike = (h.n_spin, h.data.dtype) == (h0.n_spin, h0.data.dtype)
                overlap = Blocks(h0.graph, overlap.basis, overlap.data, overlap.n_spin)
                writer.append({"H": h, "H0": h0, "S": overlap}, {"H": "H0"} if alike else None)
                self._advance()
            writer.finish()
        return largest
