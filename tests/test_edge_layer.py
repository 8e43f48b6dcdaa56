"""edge_layer: the kernel against the composition of ops, which other tests compare with their definitions."""

import dataclasses

import harness
import pytest
import torch
from torch.nn import functional

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.ops.edge_layer import (
    EdgeLayerSettings,
    EdgeLayerWeights,
    Edges,
    HeadMap,
    NodeLayerWeights,
    NodeUpdateWeights,
    edge_layer,
    edge_outputs,
    edge_values,
    node_ends,
    node_update,
    pack,
    pack_nodes,
    through_heads,
)
from nextham_kernels.ops.edge_linear.reference import pieces
from nextham_kernels.ops.edge_tensor_product import edge_tensor_product_sizes
from nextham_kernels.ops.gate import gate_input_irreps
from nextham_kernels.ops.rotation import edge_wigner, rotate_to_nodes
from nextham_kernels.ops.tracegrad import fold_tracegrad


@dataclasses.dataclass
class Case:
    """Sizes."""

    irreps: str
    l_max: int
    n_alpha: int
    radial: tuple[int, ...]  # of the basis and of the hidden layers
    logits: tuple[int, ...]  # hidden widths, then heads
    forms: int
    trace: tuple[int, ...]
    nodes: tuple[int, ...]  # edges into each node
    floor: float = 0.0
    residual: float = 0.2


CASES = {
    "small": Case("4x0e+3x1o+2x1e+1x2e", 2, 3, (8, 8, 7), (9, 2), 9, (7, 7), (17, 1, 5)),
    "no_update": Case("3x0e+2x0o+1x1o", 1, 1, (5, 6), (4, 3), 3, (4, 3), (2, 2), 1.0, 0.0),
    "production": Case(
        "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e", 5, 32, (64, 64, 64), (64, 64, 4), 20, (256,) * 4, (43, 150, 1)
    ),
}


def mlp(widths, seed):
    parameters = []
    for i in range(len(widths) - 1):
        if i:
            parameters += [1 + 0.1 * harness.random(widths[i], seed=seed + i), 0.1 * harness.random(widths[i], seed=i)]
        parameters.append(harness.random(widths[i + 1], widths[i], seed=seed + 10 + i) / widths[i] ** 0.5)
        parameters.append(0.1 * harness.random(widths[i + 1], seed=seed + 20 + i))
    return parameters


def problem(name, dtype=torch.float64):
    """Everything that `edge_layer` takes."""
    case = CASES[name]
    irreps = irreps_of(case.irreps)
    d, n_heads, n_edges, n_nodes = irreps.dim, case.logits[-1], sum(case.nodes), len(case.nodes)
    n_scalars = irreps[0].mul
    product = f"{case.n_alpha}x0e+{gate_input_irreps(case.irreps)}"
    n_paths, n_weights = edge_tensor_product_sizes(case.irreps, case.l_max, product)
    flat = sum(p.c_in * p.c_out for p in pieces(str(irreps), str(irreps)))
    n_product_bias = sum(mul for mul, ir in irreps_of(product) if ir.is_scalar())

    def heads(seed, extra):
        matrix = harness.random(2, n_heads * flat, seed=seed) / 10
        return HeadMap(str(irreps), matrix, harness.random(n_heads + extra, n_scalars, seed=seed + 1))

    n_forms = sum(mul * mul for mul, _ in irreps) * case.forms
    trace = fold_tracegrad(harness.random(n_forms, seed=3), mlp((case.forms, *case.trace), 40), str(irreps))
    weights = EdgeLayerWeights(
        (1 + 0.1 * harness.random(irreps.num_irreps, seed=4), 0.1 * harness.random(n_scalars, seed=5)),
        harness.random(flat, seed=6) / 4,
        tuple(mlp((*case.radial, n_paths), 60)),
        harness.random(n_weights, seed=7) / 4,
        harness.random(n_product_bias, seed=8),
        tuple(mlp((case.radial[0] + case.n_alpha, *case.logits), 80)),
        heads(9, 1),
        heads(11, 0),
        trace,
    )
    settings = EdgeLayerSettings(str(irreps), case.l_max, product, case.n_alpha, case.floor, case.residual)
    dst = 2 + torch.repeat_interleave(torch.arange(n_nodes), torch.tensor(case.nodes))
    onsite = functional.pad(dst[1:] != dst[:-1], (1, 0), value=True)
    vector = harness.random(n_edges, 3, seed=13) * ~onsite[:, None]
    src = torch.randint(0, n_nodes + 2, (n_edges,), generator=torch.Generator().manual_seed(0))
    radial = harness.random(n_edges, case.radial[0], seed=14).abs()
    edges = Edges(src, dst, onsite, edge_wigner(vector, irreps.lmax), radial)
    rows = [harness.random(n, d, seed=15 + i) for i, n in enumerate((n_nodes + 2, n_nodes + 2, n_edges))]
    return to([*rows, edges, weights], dtype), settings, (2, 2 + n_nodes)


def to(x, dtype):
    if isinstance(x, torch.Tensor):
        return x.to(dtype) if x.is_floating_point() else x
    if isinstance(x, list | tuple):
        items = [to(i, dtype) for i in x]
        return type(x)(*items) if hasattr(x, "_fields") else type(x)(items)
    return x


def both(name, dtype):
    (*rows, edges, weights), settings, nodes = problem(name, dtype)
    results = []
    for w in (pack(weights, settings), weights):
        made = edge_layer(*rows, edges, w, settings, nodes)
        results.append([made.edge, made.node, *edge_values(*rows, edges, w, settings)])
    return results


@pytest.mark.parametrize("name", CASES)
def test_forward(name):
    for what, kernel, composed in zip(("edge", "node", "value", "logits"), *both(name, torch.float64), strict=True):
        harness.assert_close(kernel, composed, 1e-10, what)


@pytest.mark.parametrize("name", CASES)
def test_single_precision_is_as_exact_as_the_composition(name):
    exact = both(name, torch.float64)[1]
    for kernel, composed, expected in zip(*both(name, torch.float32), exact, strict=True):
        allowed = 2 * harness.relative_error(composed.double(), expected) + 8 * torch.finfo(torch.float32).eps
        harness.assert_close(kernel.double(), expected, allowed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_instruction_sets_agree(instruction_set, dtype):
    for kernel, composed in zip(*both("production", dtype), strict=True):
        harness.assert_close(kernel, composed, 1e-10 if dtype == torch.float64 else 1e-4)


def test_threads():
    (*rows, edges, weights), settings, nodes = problem("production", torch.float32)
    packed = pack(weights, settings)
    harness.assert_threads_agree(lambda: edge_layer(*rows, edges, packed, settings, nodes)[:2])


@pytest.mark.parametrize("name", ["small", "production"])
def test_outputs(name):
    """A last layer writes to its rows and columns alone."""
    (*rows, edges, weights), settings, _ = problem(name)
    d = rows[-1].shape[1]
    weights = weights._replace(to_node=None, tracegrad=None)
    factor, found = harness.random(len(rows[-1]), seed=1), []
    generator = torch.Generator().manual_seed(0)
    order, places = torch.randperm(len(factor) + 3, generator=generator), torch.randperm(d + 2, generator=generator)
    order, places = order[: len(factor)], places[:d]
    for w in (pack(weights, settings), weights):
        found.append(torch.full((len(factor) + 3, d + 2), 7.0, dtype=torch.float64))
        edge_outputs(*rows, edges, w, settings, factor, found[-1], order, places)
    harness.assert_close(*found, 1e-10)
    value, logits = edge_values(*rows, edges, weights, settings)
    row = through_heads(value, logits, weights.to_edge, edges, settings.irreps)
    expected = torch.full_like(found[0], 7.0)
    expected[order[:, None], places] = factor[:, None] * rotate_to_nodes(row, edges.wigner, settings.irreps)
    harness.assert_close(found[1], expected)


def test_in_place():
    (source, target, edge, edges, weights), settings, nodes = problem("small")
    expected = edge_layer(source, target, edge, edges, weights, settings, nodes)
    for w in (weights, pack(weights, settings)):
        rows = edge.clone()
        made = edge_layer(source, target, rows, edges, w, settings, nodes, out=rows)
        assert made.edge is rows
        harness.assert_close(rows, expected.edge, 1e-10)
        harness.assert_close(made.node, expected.node, 1e-10)


def test_contract():
    (source, target, edge, edges, weights), settings, nodes = problem("small")
    packed = pack(weights, settings)
    nothing = Edges(*(x[:0] for x in edges))
    made = edge_layer(source, target, edge[:0], nothing, packed, settings, nodes)
    assert made.edge.shape == edge[:0].shape and not made.node.any() and len(made.node) == nodes[1] - nodes[0]
    with harness.raises(ValueError, "invariants: packed weights give none"):
        edge_layer(source, target, edge, edges, packed, settings, nodes, invariants=True)
    with harness.raises(ValueError, "edge: expected"):
        edge_layer(source, target, edge[:, 1:], edges, packed, settings, nodes)
    with harness.raises(TypeError, "radial"):
        edge_values(source, target, edge, edges._replace(radial=edges.radial.float()), packed, settings)


@pytest.mark.parametrize("n_nodes", [0, 1, 70])
def test_nodes(n_nodes):
    irreps = irreps_of(CASES["production"].irreps)
    settings = problem("production")[1]
    between = gate_input_irreps(irreps)
    flat = [sum(p.c_in * p.c_out for p in pieces(str(irreps), str(to))) for to in (irreps, between)]
    n_rise = sum(mul for mul, ir in irreps_of(between) if ir.is_scalar())

    def norms(seed):
        return 1 + 0.1 * harness.random(irreps.num_irreps, seed=seed), 0.1 * harness.random(irreps[0].mul, seed=seed)

    rise = harness.random(flat[1], seed=4) / 4, harness.random(n_rise, seed=5)
    fall = harness.random(flat[0], seed=6) / 4, harness.random(irreps[0].mul, seed=7)
    update = NodeUpdateWeights(harness.random(irreps.dim, seed=3), norms(8), rise, fall)
    maps = (harness.random(flat[0], seed=i) / 4 for i in (0, 1))
    weights = NodeLayerWeights(norms(9), next(maps), harness.random(irreps[0].mul, seed=2), next(maps), update)
    node, total = (harness.random(n_nodes, irreps.dim, seed=i) for i in (10, 11))
    found = []
    for w in (pack_nodes(weights, settings), weights):
        ends = node_ends(node, w, settings)
        found.append([*ends, node_update(total, ends[0], w, settings)])
    for kernel, composed in zip(*found, strict=True):
        harness.assert_close(kernel, composed)
