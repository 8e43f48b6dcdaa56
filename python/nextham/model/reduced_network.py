"""A network whose output is cut down to the irreps that are read, for inference (E4, E6)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from nextham.model.block_channels import BlockChannels
from nextham.model.config import NextHAMConfig
from nextham.model.folding import irrep_parts
from nextham.model.layers import Linear, not_drawn
from nextham.model.network import Network
from nextham_kernels.clebsch_gordan import irreps_of

if TYPE_CHECKING:
    from e3nn import o3

__all__ = ["ReducedNetwork"]


@dataclass(frozen=True)
class _ReducedConfig(NextHAMConfig):
    """The configuration of the network, but with other irreps as the output's."""

    output: str = ""

    @property
    def block_irreps(self) -> o3.Irreps:
        """Irreps of the output."""
        return irreps_of(self.output)


class ReducedNetwork(nn.Module):
    """The same layers as a network, and of its readout only the given channels; made for `fold_layer`, `run_network`.

    Args:
        network: the network; its parameters are shared, not copied, except those of the readout.
        channels: the irreps of the output.
    """

    def __init__(self, network: Network, channels: BlockChannels) -> None:
        super().__init__()
        settings = {name: getattr(network.config, name) for name in network.config.to_dict()}
        self.config = _ReducedConfig(**settings, output=channels.irreps)
        self.span = network.span
        self.layers, self.tracegrad, self.trace_head = network.layers, network.tracegrad, network.trace_head
        self.readout = _reduced(network.readout, channels)


def _reduced(readout: Linear, channels: BlockChannels) -> Linear:
    """The readout to the given channels."""
    with not_drawn():
        reduced = Linear(readout.irreps_in, irreps_of(channels.irreps)).to(readout.weight)
    whole = irrep_parts(readout.irreps_in, readout.irreps_out)
    with torch.no_grad():
        for ir, part in irrep_parts(reduced.irreps_in, reduced.irreps_out).items():
            reduced.weight[part.weight] = readout.weight[whole[ir].weight[:, channels.kept[ir]]]
            if ir.is_scalar():
                reduced.bias.copy_(readout.bias[channels.kept[ir]])
    return reduced
