"""The first rows of edges: packed weights and the call of the C++ kernel."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from nextham_kernels.clebsch_gordan import dim_of, irreps_of
from nextham_kernels.loading import kernels
from nextham_kernels.ops import rotation
from nextham_kernels.ops.edge_embedding.composition import EmbeddingWeights
from nextham_kernels.ops.edge_layer.cpu import packed_matrix
from nextham_kernels.result_memory import empty


class PackedEmbedding(NamedTuple):
    """Weights as the kernel reads them; `pack` makes it."""

    columns: np.ndarray  # of the first component of each channel that is read, irrep by irrep of the result
    n_channels: np.ndarray  # of each irrep
    matrices: list[np.ndarray]  # likewise, of those that have channels
    irreps_out: str
    n_maps: int
    width: int  # columns of x


def pack(weights: EmbeddingWeights) -> PackedEmbedding:
    """Packs weights; csrc/edge_embedding_cpu.cpp reads them in the order of the result's irreps."""
    irreps_in = irreps_of(weights.irreps_in)
    column = torch.arange(irreps_in.dim) if weights.columns is None else weights.columns
    starts = {}
    for (mul, ir), part in zip(irreps_in, irreps_in.slices(), strict=True):
        places = column[part].view(mul, ir.dim)
        if not torch.equal(places, places[:, :1] + torch.arange(ir.dim)):
            raise ValueError(f"weights: expected the {ir.dim} components of a channel of {ir} in neighbouring columns")
        starts[ir] = places[:, 0]
    columns, matrices = [torch.zeros(0, dtype=torch.int64)], []
    for mul, ir in irreps_of(weights.irreps_out):
        if mul:
            columns.append(starts.get(ir, columns[0]))
            if ir in starts:
                matrices.append(packed_matrix(weights.matrices[ir].detach().T).numpy())
    n_channels = np.array([len(c) for c in columns[1:]], dtype=np.int32)
    joined = torch.cat(columns).to(torch.int32).numpy()
    return PackedEmbedding(joined, n_channels, matrices, weights.irreps_out, weights.n_maps, weights.width)


def edge_embedding(x: torch.Tensor, wigner: torch.Tensor, packed: PackedEmbedding, order: torch.Tensor) -> torch.Tensor:
    """Runs `edge_embedding`."""
    rows = empty(x, (packed.n_maps, len(order), dim_of(packed.irreps_out)))
    arrays = [t.detach().contiguous().numpy() for t in (x, wigner, order)]
    kernels().edge_embedding(*arrays, *packed[:3], *rotation.cpu.tables(packed.irreps_out, x.dtype), rows.numpy())
    return rows
