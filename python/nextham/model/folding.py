"""A network's weights, folded for the edge frame (DESIGN E1, E2): consecutive linear maps become one matrix per |m|."""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from nextham.model.attention import Attention, head_irreps
from nextham.model.config import NextHAMConfig
from nextham.model.layers import Linear
from nextham.model.network import Network
from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.depthwise_tensor_product import depthwise_irreps
from nextham_kernels.ops.edge_layer import (
    EdgeLayerSettings,
    EdgeLayerWeights,
    HeadMap,
    NodeLayerWeights,
    NodeUpdateWeights,
    PackedEdgeLayer,
    PackedNodeLayer,
    pack,
    pack_nodes,
)
from nextham_kernels.ops.edge_linear.folding import flat, linear_matrices, product_matrices, through_heads
from nextham_kernels.ops.gate import gate_input_irreps
from nextham_kernels.ops.linear.reference import Part, plan
from nextham_kernels.ops.tracegrad import fold_tracegrad

if TYPE_CHECKING:
    from e3nn import o3

__all__ = [
    "FoldedLayer",
    "fold_layer",
    "irrep_parts",
    "layer_settings",
    "message_irreps",
    "output_irreps",
    "output_places",
]

Matrices = list[torch.Tensor | None]


class FoldedLayer(NamedTuple):
    """What one layer needs."""

    settings: EdgeLayerSettings
    node: NodeLayerWeights  # what happens on nodes before and after
    edge: EdgeLayerWeights  # what happens on edges; in the last layer `to_edge` goes to the output
    packed_node: PackedNodeLayer | None  # the same for inference
    packed: PackedEdgeLayer | None
    to_scalars: HeadMap | None  # in the last layer: to the scalars that TraceGrad reads


@functools.cache
def message_irreps(config: NextHAMConfig) -> str:
    """Returns the irreps behind the first product: attention scalars, gate scalars, then the gated irreps."""
    return f"{config.alpha_scalars}x0e+{gate_input_irreps(config.hidden_irreps)}"


@functools.cache
def output_irreps(config: NextHAMConfig) -> str:
    """Returns the output irreps that hidden features can reach, sorted and merged; all others are zero."""
    reachable = {ir for _, ir in config.hidden_irreps}
    count = Counter(ir for mul, ir in config.block_irreps for _ in range(mul) if ir in reachable)
    return "+".join(f"{count[ir]}x{ir}" for ir in sorted(count, key=lambda ir: (ir.l, -ir.p)))


@functools.cache
def output_places(config: NextHAMConfig, device: torch.device) -> torch.Tensor:
    """Returns where each number of `output_irreps` lies in the irreps of a block [d]."""
    blocks = config.block_irreps
    slices = list(zip(blocks, blocks.slices(), strict=True))
    order = [s for _, ir in irreps_of(output_irreps(config)) for (_, own), s in slices if own == ir]
    return torch.cat([torch.arange(s.start, s.stop) for s in order]).to(device)


def irrep_parts(irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> dict[o3.Irrep, Part]:
    """Returns the part of a linear map that belongs to each irrep."""
    there = {ir for mul, ir in irreps_out if mul}
    common = dict.fromkeys(ir for mul, ir in irreps_in if mul and ir in there)
    return dict(zip(common, plan(irreps_in, irreps_out), strict=True))


def layer_settings(config: NextHAMConfig) -> EdgeLayerSettings:
    """Returns sizes and constants of every layer."""
    return EdgeLayerSettings(
        config.hidden,
        config.l_max,
        message_irreps(config),
        config.alpha_scalars,
        config.floor,
        float(config.tracegrad_residual),
    )


def fold_layer(network: Network, k: int, packed: bool = False) -> FoldedLayer:
    """Returns the folded weights of layer k; differentiable, so that training folds in every step.

    Args:
        network: the network.
        k: the layer.
        packed: pack what inference on the CPU reads, too.
    """
    config, layer = network.config, network.layers[k]
    attention, hidden = layer.attention, config.hidden_irreps
    source, target, merge = _merge(attention, hidden)
    product, _ = depthwise_irreps(hidden, config.harmonics_irreps, hidden)
    n_scalar = next(mul for mul, ir in product if ir.is_scalar())
    alpha = attention.alpha.weight.view(n_scalar, -1)[:, : config.alpha_scalars]
    combined = torch.cat([alpha.flatten(), attention.value.weight])
    scalar_bias = torch.cat([attention.alpha.bias[: config.alpha_scalars], attention.value.bias])

    heads = str(head_irreps(hidden, config.n_heads))
    weights = (attention.path_weight, attention.heads.weight)
    values = [product_matrices(*weights, str(hidden), config.l_max, heads, onsite=onsite) for onsite in (False, True)]

    def head_map(weight: torch.Tensor, irreps: str, bias: torch.Tensor | None = None) -> HeadMap:
        projection = linear_matrices(weight, heads, irreps)
        matrix = torch.stack([flat(through_heads(v, projection, heads, config.n_heads)) for v in values])
        scalar = _scalar_matrix(projection, heads, irreps).unflatten(0, (config.n_heads, -1))  # [h, u, v]
        biases = torch.einsum("hu,huv->hv", attention.heads.bias.view(config.n_heads, -1), scalar)
        return HeadMap(irreps, matrix, biases if bias is None else torch.cat([biases, bias[None]]))

    to_node = update = to_scalars = None
    if layer.last:
        weight, bias = _through_readout(network, attention.to_edge)
        to_edge = head_map(weight, output_irreps(config), bias)
        weight, bias = _first_scalars(config, attention.to_edge)
        to_scalars = head_map(weight, f"{config.n_scalars}x0e", bias)
    else:
        to_edge = head_map(attention.to_edge.weight, str(hidden), attention.to_edge.bias)
        to_node = head_map(attention.to_node.weight, str(hidden))
        zeros = attention.to_node.bias.new_zeros(hidden.dim)
        node_bias = zeros.index_copy(0, edge_layout(hidden).scalars.to(zeros.device), attention.to_node.bias)
        norms = (layer.norm_update.weight, layer.norm_update.bias)
        update = NodeUpdateWeights(node_bias, norms, _map(layer.rise), _map(layer.fall))
    trace = network.tracegrad[k]
    tracegrad = fold_tracegrad(trace.forms, list(trace.mlp.parameters()), str(trace.irreps))
    *radial, last = _parameters(attention.radial)
    settings = layer_settings(config)
    edge = EdgeLayerWeights(
        (layer.norm_edge.weight, layer.norm_edge.bias),
        merge,
        (*radial, last, attention.radial_offset),
        combined,
        scalar_bias,
        tuple(_parameters(attention.logits)),
        to_edge,
        to_node,
        tracegrad,
    )
    norms = (layer.norm_node.weight, layer.norm_node.bias)
    node = NodeLayerWeights(norms, *source, target, update)
    ready = (pack_nodes(node, settings), pack(edge, settings)) if packed else (None, None)
    return FoldedLayer(settings, node, edge, *ready, to_scalars)


def _parameters(mlp: nn.Sequential) -> list[torch.Tensor]:
    """Weights and biases in their order."""
    return [p for part in mlp for p in part._parameters.values() if p is not None]


def _map(linear: Linear) -> tuple[torch.Tensor, torch.Tensor]:
    return (flat(linear_matrices(linear.weight, str(linear.irreps_in), str(linear.irreps_out))), linear.bias)


def _merge(
    attention: Attention, hidden: o3.Irreps
) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor, torch.Tensor]:
    """What the two ends of an edge and the edge itself add to its message; the biases come with the first."""
    thrice = str(hidden + hidden + hidden)
    matrices = linear_matrices(attention.merge.weight, thrice, str(hidden))
    # The channels of the three stand one after the other in each block.
    thirds = [[m.chunk(3)[i] for m in matrices] for i in range(3)]
    parts = []
    for linear, third in zip((attention.source, attention.target), thirds, strict=False):
        own = linear_matrices(linear.weight, str(hidden), str(hidden))
        parts.append(flat([a @ b for a, b in zip(own, third, strict=True)]))
    scalar = _scalar_matrix(thirds[0], str(hidden), str(hidden))
    return (parts[0], attention.source.bias @ scalar + attention.merge.bias), parts[1], flat(thirds[2])


def _through_readout(network: Network, to_edge: Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias of the last projection and the readout in one, from the heads to `output_irreps`."""
    readout = network.readout
    first = irrep_parts(to_edge.irreps_in, to_edge.irreps_out)
    second = irrep_parts(readout.irreps_in, readout.irreps_out)
    both = [(ir, first[ir], second[ir]) for _, ir in to_edge.irreps_in if ir in first and ir in second]
    weight = [to_edge.weight[a.weight] @ readout.weight[b.weight] for _, a, b in both]
    scalar = next(readout.weight[b.weight] for ir, _, b in both if ir.is_scalar())
    return torch.cat([w.flatten() for w in weight]), to_edge.bias @ scalar + readout.bias


def _first_scalars(config: NextHAMConfig, to_edge: Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Weights and bias of the hidden scalars alone, the first irreps of the last edge features."""
    n = config.n_scalars
    parts = irrep_parts(to_edge.irreps_in, to_edge.irreps_out)
    scalar = next(part for ir, part in parts.items() if ir.is_scalar())
    return to_edge.weight[scalar.weight[:, :n]].flatten(), to_edge.bias[:n]


def _scalar_matrix(matrices: Matrices, irreps_in: str, irreps_out: str) -> torch.Tensor:
    """The 0e part of a map; block (0, +), where 0e lies, comes first in a row."""
    first, into = edge_layout(irreps_of(irreps_in)), edge_layout(irreps_of(irreps_out))
    return matrices[first.blocks.index(first.find(0, 1))][first.scalars[:, None], into.scalars]
