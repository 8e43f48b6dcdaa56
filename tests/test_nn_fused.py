"""TensorProductLinear and EdgeTensorProduct against the modules that they replace."""

import copy
import io

import harness
import pytest
import torch
from e3nn import o3

from nextham_kernels import nn
from nextham_kernels.ops.depthwise_tensor_product import depthwise_irreps, depthwise_tensor_product
from nextham_kernels.ops.linear import linear
from nextham_kernels.ops.tensor_product.linear import ROWS, tensor_product_linear

FEATURES, HARMONICS, MIDDLE, OUT = "5x0e+4x1o", "1x0e+1x1o+1x2e", "5x0e+4x0e+4x1o+5x1o", "6x0e+3x1o+2x2e"
PATHS = [(0, 0, 0, "uvu", True), (1, 1, 1, "uvu", True), (1, 2, 2, "uvu", False), (0, 1, 3, "uvu", True)]


def fused(shared):
    torch.manual_seed(4)
    ours = nn.TensorProductLinear(
        FEATURES, HARMONICS, MIDDLE, PATHS, OUT, shared_weights=shared, internal_weights=False
    ).double()
    product = o3.TensorProduct(FEATURES, HARMONICS, MIDDLE, PATHS, shared_weights=shared, internal_weights=False)
    after = o3.Linear(MIDDLE, OUT)
    after.load_state_dict({**after.state_dict(), "weight": ours.linear.weight})
    return ours, product.double(), after.double()


def inputs(shared, n):
    shapes = {"x": (n, 17), "y": (n, 9), "weight": (14,) if shared else (n, 14)}
    return {name: harness.random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize("n", [3, ROWS + 19])
@pytest.mark.parametrize("shared", [False, True])
def test_product_and_linear_map(shared, n):
    ours, product, after = fused(shared)
    given = inputs(shared, n)
    harness.assert_same_gradients(ours, lambda x, y, weight: after(product(x, y, weight)), given, harness.GOLDEN)
    cotangent = harness.random(n, ours.irreps_out.dim, seed=9)
    grads = [
        torch.autograd.grad((f(given["x"], given["y"], given["weight"]) * cotangent).sum(), w)[0]
        for f, w in ((ours, ours.linear.weight), (lambda x, y, w: after(product(x, y, w)), after.weight))
    ]
    harness.assert_close(*grads, harness.GOLDEN)


@pytest.mark.parametrize("shared", [False, True])
def test_all_derivatives(shared):
    ours, _, _ = fused(shared)
    function = lambda *tensors: tensor_product_linear(*tensors, ours._product, ours.linear._product)  # noqa: E731
    harness.gradcheck(function, *inputs(shared, 2).values(), ours.linear.weight.detach())


def test_contract_of_product_and_linear_map():
    ours, _, _ = fused(False)
    given = [harness.leaf(t) for t in inputs(False, 5).values()]
    words = ours._product.word, ours.linear._product.word
    torch.library.opcheck(torch.ops.nextham.tensor_product_linear, (*given, ours.linear.weight, *words))
    assert ours(*(t[:0] for t in given)).shape == (0, ours.irreps_out.dim)
    with harness.raises(ValueError, "y: expected shape [e, 9] with e = 5, got [4, 9]"):
        ours(given[0], given[1][1:], given[2])
    with harness.raises(ValueError, "linear: expected operands of dimension 36 and 1, got (17, 9)"):
        tensor_product_linear(*given, given[2].new_zeros(14), ours._product, ours._product)


def plain(x, vector, radial, weight, l_max):
    """The product and the map on e3nn's axis, with e3nn's harmonics."""
    irreps = FEATURES + "+2x1e"
    harmonics = o3.Irreps.spherical_harmonics(l_max)
    y = o3.spherical_harmonics(harmonics, vector, normalize=True, normalization="component")
    product, _ = depthwise_irreps(irreps, str(harmonics), irreps)
    return linear(depthwise_tensor_product(x, y, radial, irreps, str(harmonics), irreps), weight, None, product, OUT)


@pytest.mark.parametrize("nodes", [False, True])
def test_edge_tensor_product(nodes):
    torch.manual_seed(4)
    ours = nn.EdgeTensorProduct(FEATURES + "+2x1e", 3, OUT).double()
    n = harness.NODES if nodes else harness.EDGES
    given = {
        "x": harness.random(n, 23),
        "vector": harness.random(harness.EDGES, 3, seed=1),
        "radial": harness.random(harness.EDGES, ours.radial_numel, seed=2),
    }
    src = torch.arange(harness.EDGES) * 3 % n
    ends = {"src": src, "dst": src.flip(0), "n_nodes": n} if nodes else {}

    def expected(x, vector, radial):
        out = plain(x[src] if nodes else x, vector, radial, ours.weight.detach(), 3)
        return out.new_zeros(n, out.shape[1]).index_add(0, src.flip(0), out) if nodes else out

    harness.assert_same_gradients(lambda **tensors: ours(**tensors, **ends), expected, given, harness.GOLDEN)
    assert str(ours).startswith("EdgeTensorProduct(5x0e+4x1o+2x1e x 0..3 -> 6x0e+3x1o+2x2e | ")


def test_edge_of_zero_length():
    ours = nn.EdgeTensorProduct(FEATURES + "+2x1e", 2, OUT).double()
    x, radial = harness.random(1, 23), harness.random(1, ours.radial_numel, seed=1)
    zero = torch.zeros(1, 3, dtype=torch.float64)
    harness.assert_close(ours(x, zero, radial), plain(x, zero, radial, ours.weight.detach(), 2), harness.GOLDEN)


FUSED = {
    "TensorProductLinear": (lambda: fused(True)[0].requires_grad_(), lambda: (*inputs(True, 4).values(),)),
    "EdgeTensorProduct": (lambda: nn.EdgeTensorProduct("3x0e+2x1o", 2, "2x0e+1x1o").double(), lambda: edge_inputs()),
    "TensorProductConv": (
        lambda: nn.TensorProductConv("2x0e+1x1o", "1x0e+1x1o", "2x0e+2x1o", GRAPH_PATHS, shared_weights=False).double(),
        lambda: (harness.random(3, 5), harness.random(4, 4, seed=1), harness.random(4, 4, seed=2), *GRAPH),
    ),
    "RadialTensorProduct": (
        lambda: nn.RadialTensorProduct("2x0e+1x1o", "1x0e+1x1o", "2x0e+2x1o", GRAPH_PATHS, [6, 8]).double(),
        lambda: (harness.random(3, 5), harness.random(4, 4, seed=1), harness.random(4, 6, seed=2), *GRAPH),
    ),
}
GRAPH_PATHS = [(0, 0, 0, "uvu", True), (0, 1, 1, "uvu", True)]
GRAPH = torch.tensor([0, 2, 2, 1]), torch.tensor([1, 0, 2, 2])


def edge_inputs():
    module = nn.EdgeTensorProduct("3x0e+2x1o", 2, "2x0e+1x1o")
    return harness.random(4, 9), harness.random(4, 3, seed=1), harness.random(4, module.radial_numel, seed=2)


@pytest.mark.parametrize("name", FUSED)
def test_copies_and_compilation(name):
    """Pickled, copied, in single precision, and by torch.compile without graph breaks."""
    torch.manual_seed(4)
    ours, given = FUSED[name][0](), FUSED[name][1]()
    expected = ours(*given)
    stored = io.BytesIO()
    torch.save(ours, stored)
    stored.seek(0)
    for other in (copy.deepcopy(ours), torch.load(stored, weights_only=False)):
        assert torch.equal(other(*given), expected)
    single = copy.deepcopy(ours).to(torch.float32)(*(t.float() if t.is_floating_point() else t for t in given))
    assert single.dtype == torch.float32
    harness.assert_close(single.double(), expected, 1e-5)
    harness.assert_close(torch.compile(ours, fullgraph=True, backend="aot_eager")(*given), expected)


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion):
    ours = nn.EdgeTensorProduct(FEATURES + "+2x1e", 3, OUT).double()
    rotation = harness.random_rotation(1)
    d_in, d_1, d_out = (harness.representation(i, rotation, inversion).T for i in (ours.irreps_in, "1x1o", OUT))
    x, vector = harness.random(harness.EDGES, 23), harness.random(harness.EDGES, 3, seed=1)
    radial = harness.random(harness.EDGES, ours.radial_numel, seed=2)
    harness.assert_close(ours(x @ d_in, vector @ d_1, radial), ours(x, vector, radial) @ d_out)
