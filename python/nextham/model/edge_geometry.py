"""What all networks read of the edges: computed once, edges sorted by the atom they point to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch

from nextham.model.config import NextHAMConfig
from nextham_kernels.ops.radial_basis import radial_basis
from nextham_kernels.ops.rotation import edge_wigner

__all__ = ["EdgeGeometry", "OnDemand"]


class OnDemand:
    """A tensor over edges that is computed where it is asked for, and kept for the place that was asked for last.

    Args:
        compute: from the inputs of some edges to what is wanted of them.
        inputs: the inputs of all edges [e, …].
    """

    def __init__(self, compute: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> None:
        self._compute, self._inputs = compute, inputs
        self._last: tuple[slice | torch.Tensor, torch.Tensor] | None = None

    def __getitem__(self, which: slice | torch.Tensor) -> torch.Tensor:
        """Returns that of the edges of a slice or an index."""
        last = self._last
        same = last is not None and (last[0] is which or (isinstance(which, slice) and last[0] == which))
        if not same:
            self._last = None  # the old one goes before the other comes
            self._last = last = (which, self._compute(self._inputs[which]))
        return last[1]


class EdgeGeometry(NamedTuple):
    """What all networks read of the structure; edges sorted by dst."""

    order: torch.Tensor  # the caller's edge of each of ours [e]
    src: torch.Tensor  # [e]
    dst: torch.Tensor  # [e], ascending
    distance: torch.Tensor  # [e], Å
    onsite: torch.Tensor  # whether the edge has zero length [e]
    onsite_of: torch.Tensor  # the on-site edge of each node [n]
    wigner: torch.Tensor | OnDemand  # rotations into the edge frames [e, w]
    radial: torch.Tensor | OnDemand  # radial basis [e, c]
    inside: dict[tuple[float, float], torch.Tensor]  # the edges of each network's range [g]
    chunks: tuple[tuple[int, int, int, int], ...]  # first and last edge, first and last node; one at least

    @classmethod
    def of(
        cls,
        src: torch.Tensor,
        dst: torch.Tensor,
        vector: torch.Tensor,
        config: NextHAMConfig,
        chunk: int,
        on_demand: bool = False,
    ) -> EdgeGeometry:
        """Computes it once for all networks.

        Args:
            src: atom i of each edge [e].
            dst: atom j of each edge [e].
            vector: [e, 3], Å.
            config: the configuration.
            chunk: edges of a chunk, exceeded only by an atom with more edges.
            on_demand: compute `wigner` and `radial` whenever a piece of them is asked for, instead of keeping 0.9 kB
                for each edge (published sizes, single precision).

        Raises:
            ValueError: a node without exactly one on-site edge.
        """
        n_nodes = int(torch.cat([src, dst]).max()) + 1 if len(src) else 0
        order = torch.argsort(dst, stable=True)
        src, dst, vector = src[order], dst[order], vector[order]
        distance = vector.norm(dim=1)
        onsite = (src == dst) & (distance == 0)
        edges = torch.nonzero(onsite)[:, 0]
        count = torch.bincount(src[edges], minlength=n_nodes)
        for node in torch.nonzero(count != 1)[:1, 0].tolist():
            raise ValueError(f"src, dst, vector: expected one on-site edge (r = 0) of node {node}, got {count[node]}")
        onsite_of = torch.empty_like(edges).index_copy(0, src[edges], edges)
        chunks = _chunks(dst, n_nodes, chunk)
        degree = max(ir.l for _, ir in config.hidden_irreps)

        def frames(vector: torch.Tensor) -> torch.Tensor:
            return edge_wigner(vector, degree)

        def gaussians(distance: torch.Tensor) -> torch.Tensor:
            return radial_basis(distance, config.n_radial, config.radial_stop)

        if on_demand:
            wigner, radial = OnDemand(frames, vector), OnDemand(gaussians, distance)
        else:
            wigner, radial = frames(vector), gaussians(distance)
        # Here, because it waits for a GPU: what reads the geometry can then run as a CUDA graph.
        inside = {(lo, hi): torch.nonzero((distance >= lo) & (distance < hi))[:, 0] for lo, hi in config.ranges}
        return cls(order, src, dst, distance, onsite, onsite_of, wigner, radial, inside, chunks)

    @classmethod
    def joined(cls, parts: Sequence[EdgeGeometry], chunk: int) -> EdgeGeometry:
        """Returns that of several structures as one without common edges, atoms and edges one structure after another.

        Args:
            parts: what `of` returned for each, not on demand.
            chunk: as for `of`.
        """
        if len(parts) == 1 and chunk >= len(parts[0].src):
            return parts[0]
        nodes, edges = ([0, *accumulate(len(getattr(p, name)) for p in parts)] for name in ("onsite_of", "src"))

        def join(name: str, starts: Sequence[int] | None = None) -> torch.Tensor:
            tensors = [getattr(p, name) for p in parts]
            return torch.cat(tensors if starts is None else [x + s for x, s in zip(tensors, starts, strict=False)])

        dst = join("dst", nodes)
        return cls(
            join("order", edges),
            join("src", nodes),
            dst,
            join("distance"),
            join("onsite"),
            join("onsite_of", edges),
            join("wigner"),
            join("radial"),
            {
                span: torch.cat([p.inside[span] + start for p, start in zip(parts, edges, strict=False)])
                for span in parts[0].inside
            },
            _chunks(dst, nodes[-1], chunk),
        )

    def nbytes(self) -> int:
        """Returns its memory."""
        return sum(x.nbytes for x in (*self, *self.inside.values()) if isinstance(x, torch.Tensor))


def _chunks(dst: torch.Tensor, n_nodes: int, chunk: int) -> tuple[tuple[int, int, int, int], ...]:
    """Whole nodes with at most `chunk` edges together, or one node; one chunk at least."""
    ends = torch.cumsum(torch.bincount(dst, minlength=n_nodes), 0).tolist()
    chunks, first, first_node = [], 0, 0
    for node, end in enumerate(ends):
        if node + 1 == n_nodes or ends[node + 1] - first > chunk:
            chunks.append((first, end, first_node, node + 1))
            first, first_node = end, node + 1
    return tuple(chunks) or ((0, 0, 0, 0),)
