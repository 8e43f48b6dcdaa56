"""tensor_product_radial and its module against the radial network and the product one after the other."""

import copy

import harness
import pytest
import torch
from e3nn import nn as e3nn_nn
from e3nn import o3

from nextham_kernels import nn
from nextham_kernels.ops.tensor_product import product, radial
from nextham_kernels.ops.tensor_product.conv import edge_orders
from nextham_kernels.ops.tensor_product.radial import tensor_product_radial

FIRST, SECOND, OUT = "5x0e+4x1o", "1x0e+1x1o+1x2e", "5x0e+4x0e+4x1o+5x1o"
PATHS = [(0, 0, 0, "uvu", True), (1, 1, 1, "uvu", True), (1, 2, 2, "uvu", False), (0, 1, 3, "uvu", True)]
UVU = product(FIRST, SECOND, OUT, PATHS)
UVW = product(FIRST, SECOND, "3x0e+7x1o", [(0, 0, 0, "uvw", True), (0, 1, 1, "uvw", True)])
EDGES, HIDDEN = 83, 6  # more edges than a block of 64


def graph(n):
    generator = torch.Generator().manual_seed(3)
    rows, cols = torch.randint(harness.NODES, (2, n), generator=generator)
    return {"rows": rows.clamp(max=harness.NODES - 2), "cols": cols}


def inputs(paths, nodes, n=EDGES):
    shapes = {"x": (harness.NODES if nodes else n, paths.dims[0]), "y": (n, paths.dims[1])}
    shapes |= {"hidden": (n, HIDDEN), "weight": (HIDDEN, paths.n_weights)}
    return {name: harness.random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def functions(paths, nodes, n=EDGES):
    """The op, and e3nn's way with weights of each edge."""
    ends = graph(n) if nodes else {}
    module = o3.TensorProduct(
        paths.irreps_1,
        paths.irreps_2,
        paths.irreps_out,
        [(*path[:5], path.coefficient**2) for path in paths.paths],
        irrep_normalization="none",
        path_normalization="none",
        shared_weights=False,
        internal_weights=False,
    ).double()

    def plain(x, y, hidden, weight):
        out = module(x[ends["cols"]] if nodes else x, y, hidden @ weight)
        return out.new_zeros(harness.NODES, out.shape[1]).index_add(0, ends["rows"], out) if nodes else out

    return lambda **given: tensor_product_radial(**given, product=paths, **ends), plain


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(radial, "NUMBERS", 64)


@pytest.mark.parametrize("nodes", [False, True])
@pytest.mark.parametrize("paths", [UVU, UVW], ids=["uvu", "uvw"])
def test_forward_and_backward(paths, nodes):
    harness.assert_same_gradients(*functions(paths, nodes), inputs(paths, nodes), harness.GOLDEN)


@pytest.mark.parametrize("wanted", [("x",), ("y",), ("hidden",), ("weight",), ("x", "weight")])
def test_backward_of_some(wanted):
    for nodes in (False, True):
        given = inputs(UVU, nodes)
        chosen = {name: given.pop(name) for name in wanted}
        ours, plain = functions(UVU, nodes)
        harness.assert_same_gradients(
            lambda f=ours, g=given, **leaves: f(**g, **leaves),
            lambda f=plain, g=given, **leaves: f(**g, **leaves),
            chosen,
            harness.GOLDEN,
        )


@pytest.mark.parametrize("nodes", [False, True])
def test_gradcheck(nodes):
    ours = functions(UVU, nodes, 4)[0]
    given = inputs(UVU, nodes, 4)
    harness.gradcheck(lambda *tensors: ours(**dict(zip(given, tensors, strict=True))), *given.values())


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion):
    rotation = harness.random_rotation(1)
    irreps = (UVU.irreps_1, UVU.irreps_2, UVU.irreps_out)
    d_1, d_2, d_out = (harness.representation(i, rotation, inversion).T for i in irreps)
    given, function = inputs(UVU, True), functions(UVU, True)[0]
    turned = {**given, "x": given["x"] @ d_1, "y": given["y"] @ d_2}
    harness.assert_close(function(**turned), function(**given) @ d_out)


def test_module_takes_the_checkpoint_of_a_layer():
    torch.manual_seed(2)
    plain = o3.TensorProduct(FIRST, SECOND, OUT, PATHS, shared_weights=False, internal_weights=False).double()
    network = e3nn_nn.FullyConnectedNet([3, 8, HIDDEN, plain.weight_numel], torch.nn.functional.silu).double()
    module = nn.RadialTensorProduct(FIRST, SECOND, OUT, PATHS, [3, 8, HIDDEN]).double()
    module.load_state_dict({f"radial.{n}": p for n, p in network.state_dict().items()}, strict=False)
    ends, numbers = graph(EDGES), harness.random(EDGES, 3, seed=5)
    x, y = harness.random(harness.NODES, 17), harness.random(EDGES, 9, seed=1)
    messages = plain(x[ends["cols"]], y, network(numbers))
    sums = torch.zeros(harness.NODES, 36, dtype=torch.float64).index_add(0, ends["rows"], messages)
    harness.assert_close(module(x, y, numbers, **ends), sums, harness.GOLDEN)
    harness.assert_close(module(x[ends["cols"]], y, numbers), messages, harness.GOLDEN)
    single = copy.deepcopy(module).float()(x.float(), y.float(), numbers.float(), **ends)
    assert single.dtype == torch.float32
    harness.assert_close(single.double(), sums, 1e-5)
    expected = torch.autograd.grad(sums.square().sum(), list(network.parameters()))
    actual = torch.autograd.grad(module(x, y, numbers, **ends).square().sum(), list(module.parameters()))
    for one, other in zip(actual, expected, strict=True):
        harness.assert_close(one, other, harness.GOLDEN)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    harness.assert_close(compiled(x, y, numbers, **ends), sums, harness.GOLDEN)


def test_contract():
    given, ends = inputs(UVU, True), graph(EDGES)
    leaves = [harness.leaf(t) for t in given.values()]
    indices = (*ends.values(), *edge_orders(**ends))
    none = (ends["rows"][:0],) * 4
    own = torch.ops.nextham.tensor_product_radial
    torch.library.opcheck(own, (*leaves, *indices, harness.NODES, UVU.word))
    flat = [harness.leaf(t) for t in inputs(UVU, False).values()]
    torch.library.opcheck(own, (*flat, *none, -1, UVU.word))
    empty = {**given, "y": given["y"][:0], "hidden": given["hidden"][:0]}
    out = tensor_product_radial(**empty, product=UVU, rows=none[0], cols=none[0], n_rows=3)
    assert out.shape == (3, UVU.dims[2]) and not out.any()
    assert tensor_product_radial(**empty | {"x": given["x"][:0]}, product=UVU).shape == (0, UVU.dims[2])
    with harness.raises(ValueError, "weight: expected shape [h, 14] with h = 6, got [5, 14]"):
        tensor_product_radial(**given | {"weight": given["weight"][1:]}, product=UVU, **ends)
    with harness.raises(ValueError, "hidden: expected shape [e, h] with e = 83, got [82, 6]"):
        tensor_product_radial(**given | {"hidden": given["hidden"][1:]}, product=UVU, **ends)
    with harness.raises(ValueError, "cols: expected 0 <= index < "):
        tensor_product_radial(**given | {"x": given["x"][:2]}, product=UVU, **ends, n_rows=harness.NODES)
    with harness.raises(ValueError, "rows, cols: expected both or none"):
        tensor_product_radial(**given, product=UVU, rows=ends["rows"])
    with harness.raises(ValueError, "product: expected a path with weights, got none"):
        tensor_product_radial(**given, product=product("1x0e", "1x0e", "1x0e", [(0, 0, 0, "uvu", False)]))


WIDE = product(  # more channels than a tile, several degrees, two paths to one block, one without weights
    "19x0e+18x1o+3x2e",
    "1x0e+1x1o+1x2e",
    "19x0e+18x1o+19x1o+18x1o+3x1o+3x2e",
    [
        (0, 0, 0, "uvu", True),
        (1, 0, 1, "uvu", True),
        (0, 1, 2, "uvu", True),
        (1, 2, 3, "uvu", False),
        (1, 0, 3, "uvu", True),
        (2, 1, 4, "uvu", True),
        (2, 2, 5, "uvu", True),
    ],
)


@pytest.mark.triton
@pytest.mark.parametrize("nodes", [False, True])
@pytest.mark.parametrize("paths", [WIDE, UVW], ids=["uvu", "uvw"])
def test_gpu_kernel(paths, nodes, monkeypatch):
    from nextham_kernels.ops.tensor_product import kernel

    monkeypatch.setattr(kernel, "RADIAL_DTYPES", (torch.float32, torch.float64))
    monkeypatch.setattr(kernel, "RADIAL_NUMBERS", 70 * paths.n_weights)  # two blocks
    monkeypatch.setattr(kernel, "RADIAL_PARTS", 2 * HIDDEN * paths.n_weights)  # two runs of rows
    none = torch.empty(0, dtype=torch.int64)
    ends = graph(EDGES) if nodes else {}

    def ours(**given):
        given |= {name: t.to(given["x"].device) for name, t in ends.items()}
        return tensor_product_radial(**given, product=paths)

    def plain(x, y, hidden, weight):
        indices = (*ends.values(), *edge_orders(**ends)) if nodes else (none,) * 4
        return radial._reference(x, y, hidden, weight, *indices, harness.NODES if nodes else -1, paths.word)

    harness.assert_gpu_kernel(
        "tensor_product_radial tensor_product_radial_backward", ours, plain, inputs(paths, nodes), float32=3e-6
    )


@pytest.mark.triton
@pytest.mark.parametrize("wanted", ["x", "y", "hidden", "weight"])
def test_gpu_gradients_of_one(wanted):
    given = {name: t[:9] if name in ("y", "hidden") else t for name, t in inputs(WIDE, True).items()}
    ends = {name: t[:9] for name, t in graph(EDGES).items()}
    with harness.on_gpu() as device:
        moved = {name: t.to(device) for name, t in (given | ends).items()}
        leaf = moved[wanted].requires_grad_()
        found = torch.autograd.grad(tensor_product_radial(**moved, product=WIDE).sum(), leaf)[0]
    leaf = harness.leaf(given[wanted])
    expected = torch.autograd.grad(tensor_product_radial(**given | {wanted: leaf}, **ends, product=WIDE).sum(), leaf)[0]
    harness.assert_close(found.cpu(), expected, harness.GOLDEN)
