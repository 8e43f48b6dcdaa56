"""The first edge features of a network, in the frame of each edge."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nextham.model.block_channels import BlockChannels
from nextham.model.folding import irrep_parts
from nextham.model.network import Network
from nextham_kernels.ops.edge_embedding import EmbeddingWeights, PackedEmbedding, pack

__all__ = ["fold_embedding"]


def fold_embedding(
    networks: Sequence[Network], channels: BlockChannels, packed: bool, columns: torch.Tensor | None = None
) -> EmbeddingWeights | PackedEmbedding:
    """Returns the weights of networks of one configuration that act on some irreps of H⁽⁰⁾, side by side.

    Args:
        networks: the networks.
        channels: which irreps of H⁽⁰⁾ there are.
        packed: pack them for inference on the CPU.
        columns: the column of each of their components in padded irreps of blocks; None: rows hold nothing else.
    """
    config = networks[0].config
    parts = irrep_parts(config.block_irreps, config.hidden_irreps)
    joint = {}
    for ir, kept in channels.kept.items():
        index = parts[ir].weight[kept].to(networks[0].embed.weight.device)
        joint[ir] = torch.stack([n.embed.weight[index] for n in networks], dim=1).flatten(1)
    given = None if columns is None else config.block_dim
    weights = EmbeddingWeights(channels.irreps, config.hidden, joint, len(networks), columns, given)
    return pack(weights) if packed else weights
