"""A network's weights, folded for the edge frame (DESIGN E1, E2): consecutive linear maps become one matrix per |m|."""

from __future__ import annotations

import functools
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

import torch

from nextham.model.attention import head_irreps
from nextham.model.config import NextHAMConfig
from nextham.model.layers import Linear
from nextham.model.network import Network
from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.depthwise_tensor_product import depthwise_irreps
from nextham_kernels.ops.edge_linear.folding import linear_matrices, product_matrices, through_heads
from nextham_kernels.ops.gate import gate_input_irreps
from nextham_kernels.ops.linear.reference import Part, plan
from nextham_kernels.ops.tracegrad import FoldedTraceGrad, fold_tracegrad

if TYPE_CHECKING:
    from e3nn import o3

__all__ = [
    "FoldedLayer",
    "HeadMaps",
    "fold_layer",
    "irrep_parts",
    "message_irreps",
    "output_irreps",
    "output_places",
]

Matrices = list[torch.Tensor | None]


class HeadMaps(NamedTuple):
    """From the gated values of an edge to one output: Σ_h a_h (M_h v + b_h) + b."""

    irreps: str  # of the output
    matrices: Matrices  # [h, c_in, c_out] per block
    onsite: Matrices  # the same for edges of zero length, whose harmonics vanish beyond degree 0
    head_bias: torch.Tensor  # b_h of the 0e channels [h, c]
    bias: torch.Tensor  # b of the 0e channels [c]


class FoldedLayer(NamedTuple):
    """What one layer needs on edges."""

    merge: Matrices  # normalised edge features → message
    radial_bias: torch.Tensor  # offset of the radial weights [p]
    product: torch.Tensor  # linear map behind the first product, to attention scalars and gate input
    scalar_bias: torch.Tensor  # bias of those scalars [c]
    to_edge: HeadMaps  # in the last layer: to the output
    to_node: HeadMaps | None
    to_scalars: HeadMaps | None  # in the last layer: to the scalars that TraceGrad reads
    tracegrad: FoldedTraceGrad


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
def output_places(config: NextHAMConfig) -> torch.Tensor:
    """Returns where each number of `output_irreps` lies in the irreps of a block [d]."""
    blocks = config.block_irreps
    slices = list(zip(blocks, blocks.slices(), strict=True))
    order = [s for _, ir in irreps_of(output_irreps(config)) for (_, own), s in slices if own == ir]
    return torch.cat([torch.arange(s.start, s.stop) for s in order])


def irrep_parts(irreps_in: o3.Irreps, irreps_out: o3.Irreps) -> dict[o3.Irrep, Part]:
    """Returns the part of a linear map that belongs to each irrep."""
    there = {ir for mul, ir in irreps_out if mul}
    common = dict.fromkeys(ir for mul, ir in irreps_in if mul and ir in there)
    return dict(zip(common, plan(irreps_in, irreps_out), strict=True))


def fold_layer(network: Network, k: int) -> FoldedLayer:
    """Returns the folded weights of layer k; differentiable, so that training folds in every step."""
    config, layer = network.config, network.layers[k]
    attention, hidden = layer.attention, config.hidden_irreps
    thrice = linear_matrices(attention.merge.weight, str(hidden + hidden + hidden), str(hidden))
    merge = [m[2 * len(m) // 3 :] for m in thrice]  # the channels of the edge features come last in each block
    product, _ = depthwise_irreps(hidden, config.harmonics_irreps, hidden)
    n_scalar = next(mul for mul, ir in product if ir.is_scalar())
    alpha = attention.alpha.weight.view(n_scalar, -1)[:, : config.alpha_scalars]
    combined = torch.cat([alpha.flatten(), attention.value.weight])
    scalar_bias = torch.cat([attention.alpha.bias[: config.alpha_scalars], attention.value.bias])

    heads = str(head_irreps(hidden, config.n_heads))
    weights = (attention.path_weight, attention.heads.weight)
    values = [product_matrices(*weights, str(hidden), config.l_max, heads, onsite=onsite) for onsite in (False, True)]

    def maps(weight: torch.Tensor, bias: torch.Tensor, irreps: str) -> HeadMaps:
        projection = linear_matrices(weight, heads, irreps)
        matrices, onsite = (through_heads(v, projection, heads, config.n_heads) for v in values)
        scalar = _scalar_matrix(projection, heads, irreps).unflatten(0, (config.n_heads, -1))  # [h, u, v]
        head_bias = torch.einsum("hu,huv->hv", attention.heads.bias.view(config.n_heads, -1), scalar)
        return HeadMaps(irreps, matrices, onsite, head_bias, bias)

    to_node = to_scalars = None
    if layer.last:
        to_edge = maps(*_through_readout(network, attention.to_edge), output_irreps(config))
        weight, bias = _first_scalars(config, attention.to_edge)
        to_scalars = maps(weight, bias, f"{config.n_scalars}x0e")
    else:
        to_edge = maps(attention.to_edge.weight, attention.to_edge.bias, str(hidden))
        to_node = maps(attention.to_node.weight, attention.to_node.bias, str(hidden))
    trace = network.tracegrad[k]
    tracegrad = fold_tracegrad(trace.forms, list(trace.mlp.parameters()), str(trace.irreps))
    return FoldedLayer(merge, attention.radial_offset, combined, scalar_bias, to_edge, to_node, to_scalars, tracegrad)


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


def _scalar_columns(irreps: str) -> torch.Tensor:
    """The columns of block (0, +) that are 0e."""
    layout = edge_layout(irreps_of(irreps))
    channels = layout.find(0, 1).channels
    return torch.cat([torch.arange(c.start, c.stop) for c in channels if layout.irreps[c.irrep].ir.is_scalar()])


def _scalar_matrix(matrices: Matrices, irreps_in: str, irreps_out: str) -> torch.Tensor:
    """The 0e part of a map."""
    blocks = edge_layout(irreps_of(irreps_in)).blocks
    number = next(i for i, block in enumerate(blocks) if (block.m, block.sigma) == (0, 1))
    return matrices[number][_scalar_columns(irreps_in)[:, None], _scalar_columns(irreps_out)]
