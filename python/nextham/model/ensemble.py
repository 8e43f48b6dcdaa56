"""The ensemble: one network per distance range, and what their sum does to H⁽⁰⁾."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import nn

from nextham.model.block_channels import input_channels
from nextham.model.config import NextHAMConfig
from nextham.model.edge_frame import run_network
from nextham.model.edge_geometry import EdgeGeometry
from nextham.model.embedding import fold_embedding
from nextham.model.folding import FoldedLayer, fold_layer
from nextham.model.network import Geometry, Network
from nextham_kernels import result_memory
from nextham_kernels.checks import check_shapes, check_tensors
from nextham_kernels.ops.blocks_irreps import blocks_to_irreps, irreps_to_blocks
from nextham_kernels.ops.edge_embedding import EmbeddingWeights, PackedEmbedding, edge_embedding
from nextham_kernels.ops.edge_layer import packable

__all__ = ["ENGINES", "Ensemble", "Prediction"]

ENGINES = ("edge_frame", "reference")
"""How an ensemble computes; the results are equal to rounding."""

CHUNK = 2048
"""Edges that the edge frame's engine processes at a time, some 50 MB; 512 are slower by a tenth, 128 by half."""

CHUNK_GPU = 65536
"""The same on a GPU, some 2 GB: launches must be few (the work on an edge and layer takes it some 0.05 µs)."""


def chunk_of(device: torch.device) -> int:
    """Returns how many edges the edge frame's engine processes at a time on a device."""
    return CHUNK if device.type == "cpu" else CHUNK_GPU


Folded: TypeAlias = "tuple[list[list[FoldedLayer]], EmbeddingWeights | PackedEmbedding]"


class Prediction(NamedTuple):
    """The sum of the networks' outputs."""

    irreps: torch.Tensor  # [e, d], eV
    trace: torch.Tensor | None  # [e, s²] for s shells


class Ensemble(nn.Module):
    """The networks of all distance ranges; beyond the last range ΔH is zero.

    Args:
        config: the configuration; the default is the published one.
        engine: `edge_frame`, the fast formulation, or `reference`, the plain one. It may be changed at any time.

    Raises:
        ValueError: another engine.
    """

    def __init__(self, config: NextHAMConfig | None = None, engine: str = "edge_frame") -> None:
        super().__init__()
        self.config = NextHAMConfig() if config is None else config
        self.engine = engine
        self.networks = nn.ModuleList(Network(self.config, span) for span in self.config.ranges)
        self._folded: tuple[object, Folded] | None = None

    @property
    def engine(self) -> str:
        """How it computes, one of `ENGINES`."""
        return self._engine

    @engine.setter
    def engine(self, name: str) -> None:
        if name not in ENGINES:
            raise ValueError(f"engine: expected one of {', '.join(ENGINES)}, got {name!r}")
        self._engine = name

    @property
    def dtype(self) -> torch.dtype:
        """The dtype it computes in: that of its parameters."""
        return self.networks[0].embed.weight.dtype

    @property
    def device(self) -> torch.device:
        """The device that its parameters are on."""
        return self.networks[0].embed.weight.device

    def forward(
        self,
        h0: torch.Tensor,
        src: torch.Tensor,
        dst: torch.Tensor,
        vector: torch.Tensor,
        with_trace: bool = True,
        record: list[dict[str, torch.Tensor]] | None = None,
    ) -> Prediction:
        """Predicts ΔH irreps and trace head from the irreps of H⁽⁰⁾.

        Every atom needs its on-site edge (r = 0). Edges run i→j; attention collects over the edges into j.

        Args:
            h0: irreps of the blocks of H⁽⁰⁾ [e, d], eV (`irreps_of_blocks` makes them).
            src: atom i of each edge [e], int64.
            dst: atom j of each edge [e], int64.
            vector: r = τ_j + R − τ_i of each edge [e, 3], Å, shorter than the cutoff.
            with_trace: compute the trace head, which inference does not read.
            record: a list that takes one dictionary of intermediates per network (see `Network.forward`); only the
                engine `reference` has them.

        Returns:
            The sums over the networks.

        Raises:
            ValueError: a wrong shape, an atom without on-site edge, an edge beyond the cutoff, or `record` with one
                of the engines that have no intermediates.
            TypeError: a wrong dtype or device.
        """
        self._check(src, dst, vector, h0)
        if self.engine == "edge_frame":
            if record is not None:
                raise ValueError("record: the engine edge_frame has no intermediates, set engine = 'reference'")
            return self._in_edge_frame(
                h0, EdgeGeometry.of(src, dst, vector, self.config, chunk_of(vector.device)), with_trace
            )
        geometry = Geometry.of(src, dst, vector, self.config)
        irreps, trace = h0.new_zeros(h0.shape), None
        for network in self.networks:
            recorded: dict[str, torch.Tensor] | None = None if record is None else {}
            output, head = network(h0, geometry, with_trace, recorded)
            irreps = irreps + output
            if with_trace:
                trace = head if trace is None else trace + head
            if record is not None:
                record.append({**recorded, "output": output})
        return Prediction(irreps, trace)

    def geometry(self, src: torch.Tensor, dst: torch.Tensor, vector: torch.Tensor) -> EdgeGeometry:
        """Returns what all networks read of a structure alone: to be kept where the same structure comes again.

        Args:
            src: as for `forward`.
            dst: likewise.
            vector: likewise.

        Raises:
            ValueError: as `forward`.
            TypeError: likewise.
        """
        self._check(src, dst, vector)
        return EdgeGeometry.of(src, dst, vector, self.config, chunk_of(vector.device))

    def on_geometries(
        self, h0: torch.Tensor, geometries: Sequence[EdgeGeometry], with_trace: bool = True
    ) -> Prediction:
        """Predicts several structures at once with the engine `edge_frame`, as one graph without common edges.

        On a GPU nothing in it waits for the device if one structure of at most a chunk of edges is given: once it has
        run, a CUDA graph can capture it.

        Args:
            h0: irreps of H⁽⁰⁾ [e, d], eV, of one structure's edges after another's.
            geometries: what `geometry` returned for each of them.
            with_trace: compute the trace head.
        """
        return self._in_edge_frame(h0, EdgeGeometry.joined(geometries, chunk_of(h0.device)), with_trace)

    def _check(
        self, src: torch.Tensor, dst: torch.Tensor, vector: torch.Tensor, h0: torch.Tensor | None = None
    ) -> None:
        given = {"vector": vector} if h0 is None else {"h0": h0, "vector": vector}
        check_tensors(**given, weights=self.networks[0].embed.weight, integer={"src": src, "dst": dst})
        shapes = {} if h0 is None else {"h0": (h0, f"e {self.config.block_dim}")}
        check_shapes(src=(src, "e"), dst=(dst, "e"), vector=(vector, "e 3"), **shapes)
        longest = float(vector.detach().norm(dim=1).max()) if len(vector) else 0.0
        if not longest < self.config.cutoff:
            raise ValueError(f"vector: expected edges below the cutoff {self.config.cutoff} Å, got {longest:.4f} Å")

    def _in_edge_frame(self, h0: torch.Tensor, geometry: EdgeGeometry, with_trace: bool) -> Prediction:
        irreps = result_memory.zeros(h0, h0.shape)
        trace = h0.new_zeros(len(h0), len(self.config.shells) ** 2) if with_trace else None
        layers, embedding = self._fold()
        rows = edge_embedding(h0, geometry.wigner, embedding, geometry.order)
        chunk = chunk_of(h0.device)
        for network, folded, edge in zip(self.networks, layers, rows, strict=True):
            into = (irreps, geometry.order)
            inside, irreps, head = run_network(network, folded, edge, geometry, chunk, with_trace, into)
            if with_trace:
                trace.index_add_(0, geometry.order[inside], head)
        return Prediction(irreps, trace)

    def fold(self) -> list[list[FoldedLayer]]:
        """Returns the folded weights: made in every step that records gradients, else once until a weight changes."""
        return self._fold()[0]

    def _fold(self) -> Folded:
        """The folded weights of all layers, and of the embedding of everything that a block can have."""
        packed, recorded = packable(self.device), torch.is_grad_enabled()
        key = (packed, *((p.data_ptr(), p.dtype, p._version) for p in _parameters(self)))
        if recorded or self._folded is None or self._folded[0] != key:
            layers = [
                [fold_layer(n, k, packed and not recorded) for k in range(self.config.n_layers)] for n in self.networks
            ]
            channels, columns = input_channels(self.config), _read_components(self.config, self.device)
            folded = (layers, fold_embedding(list(self.networks), channels, packed and not recorded, columns))
            if recorded:
                return folded
            self._folded = (key, folded)
        return self._folded[1]

    def irreps_of_blocks(self, blocks: torch.Tensor) -> torch.Tensor:
        """Returns the irreps [e, d] of padded blocks: [e, 4, a, b] complex with spin, [e, 1, a, b] real without."""
        return blocks_to_irreps(blocks, self.config.shells)

    def correction(self, irreps: torch.Tensor) -> torch.Tensor:
        """Returns the ΔH that is added to H⁽⁰⁾: padded blocks of predicted irreps, of the configured target alone.

        Args:
            irreps: predicted irreps [e, d], eV.

        Returns:
            [e, 4, a, b] complex with spin (uu, ud, du, dd), [e, 1, a, b] real without; eV.
        """
        return irreps_to_blocks(irreps, self.config.shells, self.config.spinor, spin=self.config.target)


@functools.cache
def _read_components(config: NextHAMConfig, device: torch.device) -> torch.Tensor:
    """The components of a padded block that the networks read; on the device, because copying it there waits for it."""
    return input_channels(config).components().to(device)


def _parameters(module: nn.Module) -> list[nn.Parameter]:
    """What `parameters()` gives, which also makes names: 4 ms for an ensemble, a layer of a small crystal."""
    found, modules = [], [module]
    while modules:
        own = modules.pop().__dict__
        found += [p for p in own["_parameters"].values() if p is not None]
        modules += own["_modules"].values()
    return found
