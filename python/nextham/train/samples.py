"""Prepared samples: what does not change between steps is computed once and kept, within a bound of memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from nextham.blocks import Blocks
from nextham.compact_target import CompactTarget
from nextham.dataset import CUTOFF, Dataset
from nextham.graph import Graph
from nextham.kspace import bloch_pairs, solve
from nextham.model import Ensemble
from nextham.model.edge_geometry import EdgeGeometry
from nextham.model.reading import what_is_read
from nextham.train.settings import KPointSettings

__all__ = ["BandSolver", "PreparedSample", "SampleStore", "packed_batches"]


class BandSolver:
    """Eigenvectors of H(k) C = S(k) C ε of one structure; checks and layout are done once for all k-points."""

    def __init__(self, hamiltonian: Blocks, overlap: Blocks) -> None:
        self.matrices = bloch_pairs(hamiltonian, overlap)[0]

    def at(self, kpoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns ε [q, s] and C [q, a, s] at k-points [q, 3], a as in `Blocks.to_dense`.

        Raises:
            ValueError: S(k) is not positive definite.
        """
        found = [solution for _, solution in solve(*self.matrices, kpoints, vectors=True)]
        return tuple(np.concatenate([getattr(x, name).numpy() for x in found]) for name in ("values", "vectors"))

    def nbytes(self) -> int:
        """Returns its memory."""
        layouts = (x for m in self.matrices for x in (m.data, m.layout.edges, m.layout.vectors))
        return sum(x.nbytes for x in layouts)


@dataclass(frozen=True, eq=False)
class PreparedSample:
    """One structure as a step needs it.

    Args:
        name: in the dataset.
        h0: irreps of H0 on the edges of the network [g, d], eV.
        overlap: irreps of S likewise, where the gauge is augmented, else None.
        src: atom i of them [g].
        dst: atom j [g].
        vector: [g, 3], Å.
        geometry: what the networks read of the structure alone.
        distance: of all edges of the label [e], Å.
        n_atoms: in the cell.
        target: the label, without k-points.
        solver: computes eigenvectors; None where no k-points are wanted, or stored ones are used.
        stored: k-points [q, 3] and eigenvectors [q, a, s] that came with the sample, or None.
        n_low: the published number of low bands.
        efermi: eV.
    """

    name: str
    h0: torch.Tensor
    overlap: torch.Tensor | None
    src: torch.Tensor
    dst: torch.Tensor
    vector: torch.Tensor
    geometry: EdgeGeometry
    distance: torch.Tensor
    n_atoms: int
    target: CompactTarget
    solver: BandSolver | None
    stored: tuple[np.ndarray, np.ndarray] | None
    n_low: int
    efermi: float

    def nbytes(self) -> int:
        """Returns the memory it takes, about."""
        tensors = sum(x.nbytes for x in (self.h0, self.overlap, self.src, self.dst, self.vector) if x is not None)
        stored = sum(x.nbytes for x in self.stored) if self.stored else 0
        return (
            tensors
            + stored
            + self.geometry.nbytes()
            + self.target.nbytes()
            + (self.solver.nbytes() if self.solver else 0)
        )

    def in_gauge(self, c: float) -> PreparedSample:
        """Returns the sample with H0 + c·S as what the network reads."""
        return replace(self, h0=self.h0 + c * self.overlap)

    def target_at(self, settings: KPointSettings, rng: np.random.Generator) -> CompactTarget:
        """Returns the label with the k-points of one step, drawn with `rng`."""
        if not settings.per_step:
            return self.target
        if self.stored is not None:
            which = rng.integers(len(self.stored[0]), size=settings.per_step)
            kpoints, vectors = self.stored[0][which], self.stored[1][which]
            low = np.arange(vectors.shape[2]) < np.full((len(which), 1), self.n_low)
            return self.target.with_bands(kpoints, vectors, low)
        kpoints = np.array([_draw(settings.mesh, rng) for _ in range(settings.per_step)])
        try:
            epsilon, vectors = self.solver.at(kpoints)
        except ValueError as error:
            raise ValueError(f"sample {self.name}: {error}") from error
        low = np.arange(epsilon.shape[1]) < np.full((len(kpoints), 1), self.n_low)
        if settings.window is not None:
            low = (epsilon - self.efermi >= settings.window[0]) & (epsilon - self.efermi <= settings.window[1])
        return self.target.with_bands(kpoints, vectors, low)


def _draw(mesh: int, rng: np.random.Generator) -> np.ndarray:
    """A point of a mesh with a random shift, or anywhere."""
    shift = rng.uniform(size=3)
    return shift if not mesh else (rng.integers(mesh, size=3) + shift) / mesh


class SampleStore:
    """Prepares samples when they are asked for and keeps the latest, within a bound of memory.

    Args:
        dataset: where they are.
        ensemble: the network, whose configuration, dtype and device they are prepared for.
        kpoints: what the steps will need.
        cache_bytes: bound; one sample is always kept.
        overlap: also prepare the irreps of S.
    """

    def __init__(
        self,
        dataset: Dataset,
        ensemble: Ensemble,
        kpoints: KPointSettings,
        cache_bytes: int,
        overlap: bool = False,
    ) -> None:
        self._with_overlap = overlap
        self.dataset, self.config, self.kpoints = dataset, ensemble.config, kpoints
        self.dtype, self.device = ensemble.dtype, ensemble.device
        self._irreps, self._geometry = ensemble.irreps_of_blocks, ensemble.geometry
        self.cache_bytes, self.used = cache_bytes, 0
        self._kept: OrderedDict[str, PreparedSample] = OrderedDict()

    def __getitem__(self, name: str) -> PreparedSample:
        if name in self._kept:
            self._kept.move_to_end(name)
            return self._kept[name]
        sample = self._prepare(name)
        self._kept[name] = sample
        self.used += sample.nbytes()
        while self.used > self.cache_bytes and len(self._kept) > 1:
            self.used -= self._kept.popitem(last=False)[1].nbytes()
        return sample

    def _prepare(self, name: str) -> PreparedSample:
        facts, config = self.dataset.samples[name], self.config
        matrices = self.dataset.read(name)
        h0, h, s = (matrices[key] for key in ("H0", "H", "S"))
        wants_bands = self.kpoints.per_step > 0
        stored = self.dataset.stored_bands(name) if wants_bands and self.kpoints.source == "stored" else None
        if wants_bands and self.kpoints.source == "stored" and stored is None:
            raise ValueError(f"kpoints.source: sample {name} came without eigenvectors, use 'fresh'")
        if stored is not None and self.kpoints.window is not None:
            raise ValueError("kpoints.window: stored eigenvectors have no energies, use source 'fresh'")
        try:
            solver = BandSolver(h, s) if wants_bands and stored is None else None
        except ValueError as error:
            raise ValueError(f"sample {name}: {error}") from error
        graph = _union(h.graph, h0.graph)
        graph = graph.select(graph.distance() < CUTOFF)
        distance = graph.distance()
        near = np.flatnonzero(distance < config.cutoff)
        h0, h = h0.on(graph), h.on(graph)
        if config.spinor:
            h0, h = h0.spinor(), h.spinor()
        elif h.n_spin != 1:
            raise ValueError(f"model.spinor: sample {name} has spin, the network has none")
        target = CompactTarget.from_blocks(h - h0, s, near, config.shells).to(self.device, self.dtype)
        src, dst = (torch.as_tensor(x[near], device=self.device) for x in (graph.src, graph.dst))
        vector = torch.as_tensor(graph.vector()[near]).to(self.device, self.dtype)
        return PreparedSample(
            name=name,
            h0=self._read(what_is_read(h0.select(near), config)),
            overlap=self._read(s.on(graph).select(near).with_spin(h0.n_spin)) if self._with_overlap else None,
            src=src,
            dst=dst,
            vector=vector,
            geometry=self._geometry(src, dst, vector),
            distance=torch.as_tensor(distance).to(self.device, self.dtype),
            n_atoms=facts.n_atoms,
            target=target,
            solver=solver,
            stored=stored,
            n_low=facts.n_low,
            efermi=facts.efermi,
        )

    def _read(self, matrix: Blocks) -> torch.Tensor:
        """Irreps [g, d] of the blocks of a matrix."""
        wide = torch.complex128 if self.dtype == torch.float64 else torch.complex64
        padded = torch.as_tensor(matrix.padded(self.config.shells))
        with torch.no_grad():
            return self._irreps(padded.to(self.device, wide if self.config.spinor else self.dtype))


def _union(a: Graph, b: Graph) -> Graph:
    """All edges of a, then those of b that a lacks."""
    more = b.select(a.find(b) < 0)
    both = [np.concatenate([getattr(a, name), getattr(more, name)]) for name in ("src", "dst", "R")]
    return Graph(a.structure, *both) if more.n_edges else a


def packed_batches(
    names: Sequence[str], edges: dict[str, int], structures: int, max_edges: int
) -> list[tuple[str, ...]]:
    """Returns the names in their order, cut into steps of at most so many structures and edges (or one structure)."""
    batches: list[list[str]] = []
    used = 0
    for name in names:
        full = not batches or len(batches[-1]) == structures
        if full or (max_edges and used + edges[name] > max_edges):
            batches.append([])
            used = 0
        batches[-1].append(name)
        used += edges[name]
    return [tuple(batch) for batch in batches]
