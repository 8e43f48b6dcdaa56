"""The first edge features of a network, in the frame of each edge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch

from nextham.model.block_channels import BlockChannels
from nextham.model.folding import irrep_parts
from nextham.model.network import Network
from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.rotation import rotate_to_edges

if TYPE_CHECKING:
    from e3nn import o3

__all__ = ["Embedding", "embed_rows", "fold_embedding"]

Embedding: TypeAlias = "dict[o3.Irrep, torch.Tensor]"
"""Irrep → weights of all networks [u, (network, v)]."""


def fold_embedding(networks: Sequence[Network], channels: BlockChannels) -> Embedding:
    """Returns the weights of networks of one configuration that act on some irreps of H⁽⁰⁾, side by side."""
    config = networks[0].config
    parts = irrep_parts(config.block_irreps, config.hidden_irreps)
    joint = {}
    for ir, kept in channels.kept.items():
        index = parts[ir].weight[kept].to(networks[0].embed.weight.device)
        joint[ir] = torch.stack([n.embed.weight[index] for n in networks], dim=1).flatten(1)
    return joint


def embed_rows(
    networks: Sequence[Network],
    h0: torch.Tensor,
    wigner: torch.Tensor,
    channels: BlockChannels,
    weights: Embedding,
    order: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Returns each network's first edge features as rows [e, d].

    H⁽⁰⁾ is rotated into the edge frames once, and one product per irrep and component serves all networks.

    Args:
        networks: networks of one configuration.
        h0: irreps of H⁽⁰⁾ [e, width], in the layout of the channels.
        wigner: rotations into the edge frames [e, w].
        channels: which irreps of H⁽⁰⁾ are there.
        weights: of `fold_embedding`.
        order: which row of `h0` belongs to each edge [e], if not its own.
    """
    irreps_in, hidden = irreps_of(channels.irreps), networks[0].config.hidden_irreps
    rows = rotate_to_edges(h0, wigner, channels.irreps, order, trusted=True)
    into, pieces = edge_layout(irreps_in), []
    for block in edge_layout(hidden).blocks:
        source = into.find(block.m, block.sigma)
        columns = {} if source is None else {irreps_in[c.irrep].ir: c for c in source.channels}
        for component in range(block.n):
            for channels_out in block.channels:
                mul, ir = hidden[channels_out.irrep]
                if ir not in columns:
                    pieces.append(rows.new_zeros(len(networks), len(rows), mul))
                    continue
                start = source.columns(component).start
                x = rows[:, start + columns[ir].start : start + columns[ir].stop]
                pieces.append((x @ weights[ir]).unflatten(1, (len(networks), mul)).transpose(0, 1))
    return list(torch.cat(pieces, dim=2).unbind(0))
