"""The first rows of edges as the composition of ops: their meaning, and the way that records gradients."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from nextham_kernels.clebsch_gordan import dim_of, irreps_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.rotation import rotate_to_edges

if TYPE_CHECKING:
    from e3nn import o3

__all__ = ["EmbeddingWeights", "edge_embedding"]


class EmbeddingWeights(NamedTuple):
    """Irreps-wise linear maps of one kind, side by side."""

    irreps_in: str  # each irrep once
    irreps_out: str  # likewise
    matrices: dict[o3.Irrep, torch.Tensor]  # of each irrep of the input [u, (k, v)]
    n_maps: int  # k
    columns: torch.Tensor | None = None  # the column of x of each component of `irreps_in`; None: their own order
    given: int | None = None  # columns of x, where `columns` says which of them are read

    @property
    def width(self) -> int:
        """Columns of x."""
        return dim_of(self.irreps_in) if self.given is None else self.given


def edge_embedding(
    x: torch.Tensor, wigner: torch.Tensor, weights: EmbeddingWeights, order: torch.Tensor
) -> torch.Tensor:
    """Returns the rows; one product for each irrep and component serves all maps."""
    irreps_in, irreps_out = irreps_of(weights.irreps_in), irreps_of(weights.irreps_out)
    x = x if weights.columns is None else x.index_select(1, weights.columns)
    rows = rotate_to_edges(x, wigner, weights.irreps_in, order, trusted=True)
    into, pieces = edge_layout(irreps_in), []
    for block in edge_layout(irreps_out).blocks:
        source = into.find(block.m, block.sigma)
        columns = {} if source is None else {irreps_in[c.irrep].ir: c for c in source.channels}
        for component in range(block.n):
            for channels_out in block.channels:
                mul, ir = irreps_out[channels_out.irrep]
                if ir not in columns:
                    pieces.append(rows.new_zeros(weights.n_maps, len(rows), mul))
                    continue
                start = source.columns(component).start
                own = rows[:, start + columns[ir].start : start + columns[ir].stop]
                made = own @ weights.matrices[ir]
                pieces.append(made.unflatten(1, (weights.n_maps, mul)).transpose(0, 1))
    return torch.cat(pieces, dim=2)
