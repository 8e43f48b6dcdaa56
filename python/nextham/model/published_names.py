"""The published parameter names, and where each parameter lies in our networks."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

import torch

from nextham.model.config import NextHAMConfig
from nextham.model.network import last_edge_irreps

if TYPE_CHECKING:
    from e3nn import o3

    from nextham.model.ensemble import Ensemble

__all__ = ["Place", "published_places", "published_tensors"]

_NETWORK = {
    "input_rs.tp.weight": "embed.weight",
    "edge_lin.tp.weight": "readout.weight",
}
_LAYER = {
    "norm_1.affine_weight": "norm_node.weight",
    "norm_1.affine_bias": "norm_node.bias",
    "norm_edge.affine_weight": "norm_edge.weight",
    "norm_edge.affine_bias": "norm_edge.bias",
    "ga.merge_src.tp.weight": "attention.source.weight",
    "ga.merge_src.bias.0": "attention.source.bias",
    "ga.merge_dst.tp.weight": "attention.target.weight",
    "ga.pre_lin.tp.weight": "attention.merge.weight",
    "ga.pre_lin.bias.0": "attention.merge.bias",
    "ga.sep_act.dtp_rad.offset": "attention.radial_offset",
    "ga.sep_act.lin.tp.weight": "attention.value.weight",
    "ga.sep_act.lin.bias.0": "attention.value.bias",
    "ga.sep_alpha.tp.weight": "attention.alpha.weight",
    "ga.sep_alpha.bias.0": "attention.alpha.bias",
    "ga.sep_value.dtp.tp.weight": "attention.path_weight",
    "ga.sep_value.lin.tp.weight": "attention.heads.weight",
    "ga.sep_value.lin.bias.0": "attention.heads.bias",
    "ga.edge_proj.tp.weight": "attention.to_edge.weight",
}
_LAYER_WITH_NODE = {
    "ga.proj.tp.weight": "attention.to_node.weight",
    "ga.proj.bias.0": "attention.to_node.bias",
    "norm_2.affine_weight": "norm_update.weight",
    "norm_2.affine_bias": "norm_update.bias",
    "ffn.fctp_1.tp.weight": "rise.weight",
    "ffn.fctp_1.bias.0": "rise.bias",
    "ffn.fctp_2.tp.weight": "fall.weight",
    "ffn.fctp_2.bias.0": "fall.bias",
}


class Place(NamedTuple):
    """Where a published parameter lies: in all of one of ours, or in some entries of a bias."""

    name: str
    entries: slice


@functools.cache
def published_places(config: NextHAMConfig) -> dict[str, Place]:
    """Returns the place in our `Network` of every parameter of a published network that the forward pass reads.

    The published biases come one per 0e output block (`edge_lin.bias.0` … `.67`), ours as one vector, so a published
    parameter can be a slice of ours. Otherwise shapes are equal, and every entry of ours is some published one.

    Args:
        config: the configuration of the network.

    Returns:
        published name → place, in the order of a pass through the network. The dictionary is shared: do not write
        into it.
    """
    places = {theirs: Place(ours, slice(None)) for theirs, ours in _NETWORK.items()}
    places |= _biases("edge_lin", "readout", config.block_irreps)
    for k in range(config.n_layers):
        last = k == config.n_layers - 1
        names = _LAYER if last else _LAYER | _LAYER_WITH_NODE
        places |= {f"blocks.{k}.{a}": Place(f"layers.{k}.{b}", slice(None)) for a, b in names.items()}
        edge = last_edge_irreps(config) if last else config.hidden_irreps
        places |= _biases(f"blocks.{k}.ga.edge_proj", f"layers.{k}.attention.to_edge", edge)
        n_radial, n_alpha = len(config.radial_widths) + 1, len(config.alpha_widths) + 1
        places |= _mlp(f"blocks.{k}.ga.sep_act.dtp_rad.net", f"layers.{k}.attention.radial", n_radial, 3, False)
        places |= _mlp(f"blocks.{k}.ga.lin_alpha", f"layers.{k}.attention.logits", n_alpha, 3)
        places[f"edge_feature_nonlin_block.{k}.fctp.weight"] = Place(f"tracegrad.{k}.forms", slice(None))
        n_trace = len(config.tracegrad_widths)
        places |= _mlp(f"edge_feature_nonlin_block.{k}.nonlinear_layers", f"tracegrad.{k}.mlp", n_trace, 3)
    return places | _mlp("nonlinear_layers_for_norm_reg", "trace_head", len(config.trace_widths) + 1, 2)


def _biases(theirs: str, ours: str, irreps: o3.Irreps) -> dict[str, Place]:
    places, start = {}, 0
    for mul, ir in irreps:
        if ir.is_scalar():
            places[f"{theirs}.bias.{len(places)}"] = Place(f"{ours}.bias", slice(start, start + mul))
            start += mul
    return places


def _mlp(theirs: str, ours: str, n_linear: int, step: int, last_bias: bool = True) -> dict[str, Place]:
    """Both number the parts alike: Linear, LayerNorm, SiLU (step 3) or Linear, SiLU (step 2)."""
    numbers = sorted([step * i for i in range(n_linear)] + [3 * i + 1 for i in range(n_linear - 1) if step == 3])
    names = [f"{number}.{kind}" for number in numbers for kind in ("weight", "bias")]
    names = names if last_bias else names[:-1]
    return {f"{theirs}.{name}": Place(f"{ours}.{name}", slice(None)) for name in names}


def published_tensors(ensemble: Ensemble, gradients: bool = False) -> dict[str, torch.Tensor]:
    """Returns the parameters of an ensemble, or their gradients, by published name.

    Args:
        ensemble: the networks.
        gradients: the gradients instead of the values; a parameter that took part in no loss has gradient zero.

    Returns:
        `network:name` → tensor in the published shape, such as `2:blocks.0.norm_1.affine_weight`; values are views.
    """
    tensors = {}
    for number, network in enumerate(ensemble.networks):
        ours = dict(network.named_parameters())
        for name, place in published_places(ensemble.config).items():
            value = ours[place.name].detach()
            if gradients:
                grad = ours[place.name].grad
                value = torch.zeros_like(value) if grad is None else grad
            tensors[f"{number}:{name}"] = value[place.entries]
    return tensors
