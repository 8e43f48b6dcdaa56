"""A layer on edges: packed weights, tables and calls of the C++ kernel."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch

from nextham_kernels.clebsch_gordan import dim_of, irreps_of
from nextham_kernels.loading import kernels
from nextham_kernels.ops import edge_linear, edge_tensor_product, gate, gram, norm, rotation
from nextham_kernels.ops.edge_layer.composition import (
    EdgeLayerSettings,
    EdgeLayerWeights,
    Edges,
    HeadMap,
    NodeLayerWeights,
)
from nextham_kernels.ops.edge_linear.reference import pieces
from nextham_kernels.ops.gate.reference import SIGMOID_SCALE, SILU_SCALE, counts
from nextham_kernels.ops.tracegrad.closed_form import EPS


class PackedNodeLayer(NamedTuple):
    """Weights of what happens on nodes, as the kernels read them."""

    ends: tuple[list[np.ndarray], list[np.ndarray], np.ndarray]  # arrays, tables, numbers
    update: tuple[list[np.ndarray], list[np.ndarray], np.ndarray] | None


class PackedEdgeLayer(NamedTuple):
    """Weights as the kernel reads them; `pack` makes it."""

    arrays: list[np.ndarray]
    tables: list[np.ndarray]
    numbers: np.ndarray
    n_heads: int


def packed_matrix(matrix: torch.Tensor) -> torch.Tensor:
    """A matrix [rows, k] that multiplies tiles."""
    size = np.empty(1, dtype=np.int64)
    kernels().packed_size(*matrix.shape, matrix.dtype == torch.float32, size)
    packed = matrix.new_zeros(int(size[0]))
    kernels().pack_weights(matrix.contiguous().numpy(), packed.numpy())
    return packed


def _packed_map(matrix: torch.Tensor, irreps_in: str, irreps_out: str, n_heads: int) -> torch.Tensor:
    """The matrices of all |m|, transposed."""
    parts = [
        matrix[n_heads * p.start : n_heads * (p.start + p.c_in * p.c_out)].view(n_heads * p.c_in, p.c_out)
        for p in pieces(irreps_in, irreps_out)
    ]
    return torch.cat([matrix.new_empty(0), *(packed_matrix(m.T) for m in parts)])


def _mlp(parameters: tuple[torch.Tensor, ...]) -> tuple[list[torch.Tensor], np.ndarray]:
    """The arrays of an MLP, its matrices packed, and its widths."""
    matrices = parameters[::4] if len(parameters) < 3 else [p for p in parameters if p.dim() == 2]
    widths = np.array([matrices[0].shape[1], *(m.shape[0] for m in matrices)], dtype=np.int32)
    return [packed_matrix(p) if p.dim() == 2 else p for p in parameters], widths


def _heads(to: HeadMap, irreps: str) -> list[torch.Tensor]:
    n_heads = to.matrix.shape[1] // max(1, sum(p.c_in * p.c_out for p in pieces(irreps, to.irreps)))
    directed, onsite = (_packed_map(m, irreps, to.irreps, n_heads) for m in to.matrix)
    return [directed, to.bias, onsite]


@functools.cache
def _tables(
    settings: EdgeLayerSettings, dtype: torch.dtype, n_heads: int, n_outputs: int
) -> dict[str, tuple[np.ndarray, ...]]:
    irreps = settings.irreps
    runs, count, share, centred, channel, place = norm.cpu.tables(irreps, True)
    places, at, index, sign, pair_sign = rotation.cpu.tables(irreps, dtype)
    parts, terms, coefficient, weight, directed = edge_tensor_product.cpu.tables(
        irreps, settings.l_max, settings.product, dtype, n_outputs
    )
    n_scalars, n_gates = counts(irreps_of(irreps))
    sizes = np.array([dim_of(settings.product), settings.n_alpha, n_scalars, n_gates], dtype=np.int32)
    return {
        "norm": (runs, centred),
        "norm_arrays": tuple(torch.from_numpy(a).to(dtype) for a in (count, share)),
        "norm_places": (channel, place),
        "rotation": (places, at, index),
        "rotation_arrays": (torch.from_numpy(sign), torch.from_numpy(pair_sign)),
        "merge": edge_linear.cpu.tables(irreps, irreps, 1),
        "product": (parts, terms, directed, edge_tensor_product.cpu.bias_columns(settings.product)),
        "product_weights": (torch.from_numpy(coefficient), torch.from_numpy(weight).long()),
        "gate": (gate.cpu.gate_of(irreps, True), sizes),
        "heads": edge_linear.cpu.tables(irreps, irreps, n_heads),
        "gram": gram.cpu.tables(irreps, True),
    }


def pack(weights: EdgeLayerWeights, settings: EdgeLayerSettings) -> PackedEdgeLayer:
    """Packs weights; csrc/edge_layer_cpu.cpp reads arrays and tables in this order."""
    weights = _detached(weights)
    irreps, n_heads = settings.irreps, len(weights.logits[-1])
    t = _tables(settings, weights.merge.dtype, n_heads, kernels().edge_tensor_product_outputs)
    coefficient, at = t["product_weights"]
    radial, radial_widths = _mlp(weights.radial)
    logits, logits_widths = _mlp(weights.logits)
    arrays = [
        *_norm_arrays(t, weights.norm),
        *t["rotation_arrays"],
        _packed_map(weights.merge, irreps, irreps, 1),
        weights.merge.new_empty(0, len(weights.norm[1])),
        *radial,
        coefficient * weights.product[at],
        weights.scalar_bias,
        *logits,
    ]
    tables = [*t["norm"], *t["rotation"], *t["merge"], radial_widths, *t["product"], logits_widths, *t["gate"]]
    if weights.to_node is not None:
        arrays += [*_heads(weights.to_edge, irreps), *_heads(weights.to_node, irreps)]
        tables += [*t["heads"], *t["gram"]]
        if settings.residual:
            more, widths = _tracegrad(weights)
            arrays += more
            tables.append(widths)
    else:
        irreps_out = weights.to_edge.irreps
        places, at, index, sign, pair_sign = rotation.cpu.tables(irreps_out, weights.merge.dtype)
        arrays += [*_heads(weights.to_edge, irreps), torch.from_numpy(sign), torch.from_numpy(pair_sign)]
        tables += [*edge_linear.cpu.tables(irreps, irreps_out, n_heads), places, at, index]
    s = settings
    numbers = [s.norm_eps, s.floor, s.radial_eps, s.logits_eps, EPS, s.residual, SILU_SCALE, SIGMOID_SCALE]
    return PackedEdgeLayer(_ready(arrays), [np.ascontiguousarray(a) for a in tables], np.array(numbers), n_heads)


def pack_nodes(weights: NodeLayerWeights, settings: EdgeLayerSettings) -> PackedNodeLayer:
    """Packs weights; csrc/node_layer_cpu.cpp reads arrays and tables in this order."""
    weights, irreps = _detached(weights), settings.irreps
    t = _tables(settings, weights.source.dtype, 1, kernels().edge_tensor_product_outputs)
    maps = (_packed_map(m, irreps, irreps, 1) for m in (weights.source, weights.target))
    source, target = maps
    bias, nothing = weights.source_bias[None], weights.source_bias.new_empty(0, len(weights.source_bias))
    arrays = [*_norm_arrays(t, weights.norm), source, bias, target, nothing]
    constants = np.array([settings.norm_eps, settings.floor, SILU_SCALE, SIGMOID_SCALE])
    ends = (_ready(arrays), [*t["norm"], *t["merge"]], constants)
    if weights.update is None:
        return PackedNodeLayer(ends, None)
    update, between = weights.update, gate.gate_input_irreps(irreps)
    rise, fall = _packed_map(update.rise[0], irreps, between, 1), _packed_map(update.fall[0], irreps, irreps, 1)
    arrays = [update.bias, *_norm_arrays(t, update.norm), rise, update.rise[1][None], fall, update.fall[1][None]]
    gates, (_, _, n_scalars, n_gates) = t["gate"]
    sizes = np.array([dim_of(between), n_scalars, n_gates], dtype=np.int32)
    tables = [*t["norm"], *edge_linear.cpu.tables(irreps, between, 1), *t["merge"], gates, sizes]
    return PackedNodeLayer(ends, (_ready(arrays), [np.ascontiguousarray(a) for a in tables], constants))


def _norm_arrays(t: dict[str, tuple], parameters: tuple[torch.Tensor, torch.Tensor]) -> list[torch.Tensor]:
    channel, place = t["norm_places"]
    weight, bias = parameters
    return [*t["norm_arrays"], weight[channel], torch.cat([bias, bias.new_zeros(1)])[place]]


def _ready(arrays: list[torch.Tensor]) -> list[np.ndarray]:
    return [a.contiguous().numpy() for a in arrays]


def _tracegrad(weights: EdgeLayerWeights) -> tuple[list[torch.Tensor], np.ndarray]:
    trace = weights.tracegrad
    arrays, widths = [packed_matrix(trace.forms.T), trace.bias], [*trace.forms.shape]
    for weight, shift, matrix, bias in trace.layers:
        arrays += [weight, shift, packed_matrix(matrix), bias, packed_matrix(matrix.T)]
        widths.append(matrix.shape[0])
    return [*arrays, packed_matrix(trace.forms), trace.last], np.array(widths, dtype=np.int32)


def _detached(x: object) -> object:
    if isinstance(x, torch.Tensor):
        return x.detach()
    if isinstance(x, tuple):
        items = [_detached(i) for i in x]
        return type(x)(*items) if hasattr(x, "_fields") else tuple(items)
    return x


def _arrays(*tensors: torch.Tensor) -> list[np.ndarray]:
    return [t.detach().contiguous().numpy() for t in tensors]


def node_ends(node: torch.Tensor, packed: PackedNodeLayer) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Runs `node_ends`."""
    made = [torch.empty_like(node) for _ in range(3)]
    kernels().node_ends(*_arrays(node), *packed.ends, *(t.numpy() for t in made))
    return tuple(made)


def node_update(total: torch.Tensor, normed: torch.Tensor, packed: PackedNodeLayer) -> torch.Tensor:
    """Runs `node_update`."""
    node = torch.empty_like(normed)
    kernels().node_update(*_arrays(total, normed), *packed.update, node.numpy())
    return node


def edge_values(
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    edges: Edges,
    packed: PackedEdgeLayer,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs `edge_values`."""
    value, logits = torch.empty_like(edge), edge.new_empty(len(edge), packed.n_heads)
    arrays = _arrays(source, target, edge, edges.wigner, edges.radial, edges.src, edges.dst, edges.onsite)
    kernels().edge_values(*arrays, *packed[:3], value.numpy(), logits.numpy())
    return value, logits


def edge_layer(
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    edges: Edges,
    packed: PackedEdgeLayer,
    nodes: tuple[int, int],
    out: torch.Tensor,
) -> torch.Tensor:
    """Runs `edge_layer`, which writes x′ to `out`, and returns y."""
    if out is not edge:
        out.copy_(edge)
    first, last = nodes
    value, logits = torch.empty_like(edge), edge.new_empty(len(edge), packed.n_heads)
    node = edge.new_empty(last - first, edge.shape[1])
    arrays = _arrays(source, target, edges.wigner, edges.radial, edges.src, edges.dst, edges.onsite)
    results = (t.numpy() for t in (out, value, logits, node))
    kernels().edge_layer(*arrays, first, *packed[:3], *results)
    return node


def edge_outputs(
    source: torch.Tensor,
    target: torch.Tensor,
    edge: torch.Tensor,
    edges: Edges,
    packed: PackedEdgeLayer,
    factor: torch.Tensor,
    out: torch.Tensor,
    rows: torch.Tensor,
    places: torch.Tensor,
) -> None:
    """Runs `edge_outputs`, which writes to `out`."""
    arrays = _arrays(source, target, edge, edges.wigner, edges.radial, edges.src, edges.dst, edges.onsite)
    kernels().edge_outputs(*arrays, *packed[:3], *_arrays(factor, places, rows), out.numpy())
