"""edge_tensor_product against the product and the linear map on e3nn's axis."""

import functools
import importlib

import harness
import pytest
import torch

from nextham_kernels.clebsch_gordan import irreps_of, wigner_d
from nextham_kernels.edge_layout import edge_layout, edge_rotation
from nextham_kernels.ops.depthwise_tensor_product import depthwise_irreps, depthwise_tensor_product
from nextham_kernels.ops.edge_tensor_product import (
    edge_tensor_product,
    edge_tensor_product_sizes,
    reference,
)
from nextham_kernels.ops.linear import linear, linear_sizes
from nextham_kernels.ops.spherical_harmonics import spherical_harmonics

# irreps of x, l_max, irreps of the result
CASES = {
    "tiny": ("2x0e+1x1o", 1, "1x1o+1x0e"),
    "unordered": ("3x1o+2x0e+1x2e+2x1e+1x1o", 3, "1x2e+2x0e+5x1o+3x0e+1x1e+2x1e"),
    "nothing_to_reach": ("2x1o", 2, "3x0o+2x2e+1x1o+2x4e"),
    "odd_scalar": ("2x0o+3x1e+1x2o", 2, "9x0o+1x1o+11x2o"),
    "scalars": ("4x0e", 2, "17x0e"),
    "production": (
        "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e",
        5,
        "32x0e+104x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e",
    ),
}


def inputs(case, n_edges=harness.EDGES):
    n_radial, n_weights = edge_tensor_product_sizes(*CASES[case])
    return {
        "x": harness.random(n_edges, irreps_of(CASES[case][0]).dim, seed=1),
        "radial": harness.random(n_edges, n_radial, seed=2),
        "linear_weight": harness.random(n_weights, seed=3),
    }


def onsite_of(n_edges):
    return torch.arange(n_edges) % 7 == 2


def functions(case, n_edges=harness.EDGES):
    """The op and its reference, of what has gradients."""
    onsite = onsite_of(n_edges)

    def kernel(x, radial, linear_weight):
        return edge_tensor_product(x, radial, linear_weight, onsite, *CASES[case])

    def plain(x, radial, linear_weight):
        none = x.new_empty(0)
        return reference.edge_tensor_product(
            x, radial, linear_weight, onsite, none.reshape(0, 0), none, none, *CASES[case]
        )

    return kernel, plain


def fused_inputs(case, n_edges=harness.EDGES, width=7):
    """With r made of features of the edges, and a bias."""
    n_radial, n_weights = edge_tensor_product_sizes(*CASES[case])
    return {
        "x": harness.random(n_edges, irreps_of(CASES[case][0]).dim, seed=1),
        "radial": harness.random(n_edges, width, seed=2),
        "linear_weight": harness.random(n_weights, seed=3),
        "radial_weight": harness.random(n_radial, width, seed=4),
        "radial_bias": harness.random(n_radial, seed=5),
        "bias": harness.random(len(edge_layout(CASES[case][2]).scalars), seed=6),
    }


def fused_functions(case, n_edges=harness.EDGES):
    onsite = onsite_of(n_edges)

    def kernel(x, radial, linear_weight, radial_weight, radial_bias, bias):
        rest = radial_weight, radial_bias, bias
        return edge_tensor_product(x, radial, linear_weight, onsite, *CASES[case], *rest)

    def plain(x, radial, linear_weight, radial_weight, radial_bias, bias):
        rest = radial_weight, radial_bias, bias
        return reference.edge_tensor_product(x, radial, linear_weight, onsite, *rest, *CASES[case])

    return kernel, plain


def rotated(x, vector, irreps, back=False):
    """Features on e3nn's axis in the frame of each edge, or back from there."""
    irreps = irreps_of(irreps)
    matrices = wigner_d(edge_rotation(vector), irreps.lmax)
    blocks = [x.new_zeros(len(x), 0)]
    for (mul, ir), s in zip(irreps, irreps.slices(), strict=True):
        d = matrices[ir.l].mT if back else matrices[ir.l]
        blocks.append(torch.einsum("eki,eui->euk", d, x[:, s].reshape(-1, mul, ir.dim)).flatten(1))
    return torch.cat(blocks, dim=1)


@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_definition(case):
    irreps_x, l_max, irreps_out = CASES[case]
    harmonics = "+".join(f"1x{l}{'eo'[l % 2]}" for l in range(l_max + 1))
    product, n_radial = depthwise_irreps(irreps_x, harmonics, irreps_x)
    assert edge_tensor_product_sizes(*CASES[case]) == (n_radial, linear_sizes(product, irreps_out)[0])
    x, radial, weight = inputs(case).values()
    vector = harness.random(len(x), 3, seed=4)
    vector[3], vector[5] = torch.tensor([0.0, 1.5, 0.0]), torch.tensor([0.0, -1.5, 0.0])
    vector[onsite_of(len(x))] = 0.0
    y = spherical_harmonics(vector, l_max)
    expected = linear(
        depthwise_tensor_product(x, y, radial, irreps_x, harmonics, irreps_x), weight, None, product, irreps_out
    )
    row = edge_layout(irreps_x).to_row(rotated(x, vector, irreps_x))
    actual = edge_layout(irreps_out).from_row(functions(case)[1](row, radial, weight))
    harness.assert_close(rotated(actual, vector, irreps_out, back=True), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_edges", [harness.EDGES, 150])
@pytest.mark.parametrize("case", CASES)
def test_forward(case, n_edges, dtype):
    kernel, plain = functions(case, n_edges)
    tensors = [t.to(dtype) for t in inputs(case, n_edges).values()]
    harness.assert_as_exact_as_reference(kernel, plain, tensors)


@pytest.mark.parametrize("case", CASES)
def test_radial_weights_and_bias(case):
    """r = t Vᵀ + v and the bias are what they are outside."""
    tensors = fused_inputs(case)
    x, t, weight, v, v_bias, bias = tensors.values()
    kernel, plain = fused_functions(case)
    expected = functions(case)[1](x, t @ v.T + v_bias, weight)
    expected[:, edge_layout(CASES[case][2]).scalars] += bias
    harness.assert_close(plain(*tensors.values()), expected)
    for dtype in (torch.float32, torch.float64):
        harness.assert_as_exact_as_reference(kernel, plain, [t.to(dtype) for t in tensors.values()])
    given = {name: t for name, t in tensors.items() if t.numel()}
    rest = {name: t for name, t in tensors.items() if not t.numel()}  # no 0e, no bias
    harness.assert_same_gradients(lambda **a: kernel(**a, **rest), lambda **a: plain(**a, **rest), given)
    settings = onsite_of(len(x)), *CASES[case]
    harness.assert_close(edge_tensor_product(x, t, weight, *settings, v), kernel(x, t, weight, v, 0 * v_bias, 0 * bias))


@pytest.mark.parametrize("name", ["x", "radial", "linear_weight", "radial_weight", "radial_bias", "bias"])
def test_backward_of_one_fused(name):
    kernel, plain = fused_functions("unordered")
    tensors = fused_inputs("unordered")
    one = {name: tensors.pop(name)}
    harness.assert_same_gradients(lambda **a: kernel(**a, **tensors), lambda **a: plain(**a, **tensors), one)


def test_double_backward_fused():
    def gradient(function):
        def of(**tensors):
            return torch.autograd.grad(function(**tensors).square().sum(), list(tensors.values()), create_graph=True)

        return of

    kernel, plain = fused_functions("tiny", 3)
    harness.assert_same_gradients(gradient(kernel), gradient(plain), fused_inputs("tiny", 3))


@pytest.mark.parametrize("n_edges", [harness.EDGES, 300])
@pytest.mark.parametrize("case", CASES)
def test_backward(case, n_edges):
    harness.assert_same_gradients(*functions(case, n_edges), inputs(case, n_edges))


@pytest.mark.parametrize("name", ["x", "radial", "linear_weight"])
def test_backward_of_one(name):
    """What is not asked for is not made, and what is asked for does not depend on the rest."""
    kernel, plain = functions("unordered")
    tensors = inputs("unordered")
    one = {name: tensors.pop(name)}
    harness.assert_same_gradients(lambda **a: kernel(**a, **tensors), lambda **a: plain(**a, **tensors), one)


def test_weight_gradients_per_path():
    """Each path's gradient on its own scale, so that a small one cannot hide behind a large one."""
    kernel, plain = functions("production")
    tensors = inputs("production")
    grads = []
    for function in (kernel, plain):
        leaves = [harness.leaf(t) for t in tensors.values()]
        grads.append(torch.autograd.grad(function(*leaves).square().sum(), leaves[1:]))
    assert grads[0][0].shape == (harness.EDGES, 1160)
    for start in range(0, 1160, 8):  # every path has a multiple of 8 channels
        harness.assert_close(
            grads[0][0][:, start : start + 8], grads[1][0][:, start : start + 8], what=f"radial {start}"
        )
    for start in range(0, len(grads[0][1]), 64):
        harness.assert_close(grads[0][1][start : start + 64], grads[1][1][start : start + 64], what=f"weight {start}")


def test_double_backward():
    kernel, plain = functions("unordered", 3)

    def gradient(function):
        def of(x, radial, linear_weight):
            leaves = (x, radial, linear_weight)
            return torch.autograd.grad(function(*leaves).square().sum(), leaves, create_graph=True)

        return of

    harness.assert_same_gradients(gradient(kernel), gradient(plain), inputs("unordered", 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_instruction_sets_agree(instruction_set, dtype):
    for case in ("unordered", "production"):
        kernel, plain = functions(case, 70)
        tensors = inputs(case, 70)
        harness.assert_as_exact_as_reference(kernel, plain, [t.to(dtype) for t in tensors.values()])
        if dtype == torch.float64:
            harness.assert_same_gradients(kernel, plain, tensors)


def test_threads():
    """Any number of threads gives the same result; the same number, the same bits."""
    kernel, _ = functions("odd_scalar", 500)

    def run():
        leaves = [harness.leaf(t.float()) for t in inputs("odd_scalar", 500).values()]
        y = kernel(*leaves)
        return y.detach(), *torch.autograd.grad(y.square().sum(), leaves)

    harness.assert_threads_agree(run, 1e-5)


def test_onsite_edges_have_no_direction():
    """There only l₂ = 0 counts: whatever the other radial weights are, and their gradient is zero."""
    x, radial, weight = inputs("unordered").values()
    onsite, directed = onsite_of(len(x)), reference.plan(*CASES["unordered"]).directed
    kernel, _ = functions("unordered")
    other = torch.where(onsite[:, None] & directed, torch.nan, radial)
    harness.assert_close(kernel(x, other, weight), kernel(x, radial, weight))
    radial.requires_grad_()
    (grad,) = torch.autograd.grad(kernel(x, radial, weight).sum(), radial)
    assert not grad[onsite][:, directed].any() and grad[onsite][:, ~directed].any() and grad[~onsite].all(0).any()


def test_gradcheck():
    kernel, _ = functions("tiny", 3)
    harness.gradcheck(kernel, *inputs("tiny", 3).values())


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion):
    """Under rotations about the edge, and the inversion followed by half a turn about an axis across it."""
    irreps_x, _, irreps_out = CASES["unordered"]
    kernel, _ = functions("unordered")
    x, radial, weight = inputs("unordered").values()
    angle = torch.tensor(0.7, dtype=torch.float64)
    c, s = angle.cos(), angle.sin()
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    if inversion:  # it turns the edge round, and the half turn turns it back
        turn = turn @ torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))
    rows = []
    for irreps in (irreps_x, irreps_out):
        layout, d = edge_layout(irreps), harness.representation(irreps, turn, inversion)
        rows.append(lambda row, layout=layout, d=d: layout.to_row(layout.from_row(row) @ d.T))
    harness.assert_close(kernel(rows[0](x), radial, weight), rows[1](kernel(x, radial, weight)))


def test_contract():
    settings = CASES["tiny"]
    kernel, _ = functions("tiny")
    x, radial, weight = inputs("tiny").values()
    onsite = onsite_of(len(x))
    assert edge_tensor_product(x[:0], radial[:0], weight, onsite[:0], *settings).shape == (0, 4)
    harness.assert_close(kernel(x.T.contiguous().T, radial.T.contiguous().T, weight), kernel(x, radial, weight))
    leaves = map(harness.leaf, (x, radial, weight))
    none = torch.empty(0, dtype=torch.float64)
    torch.library.opcheck(
        torch.ops.nextham.edge_tensor_product, (*leaves, onsite, none.reshape(0, 0), none, none, *settings)
    )
    fused = [harness.leaf(t) for t in fused_inputs("tiny").values()]
    torch.library.opcheck(torch.ops.nextham.edge_tensor_product, (*fused[:3], onsite, *fused[3:], *settings))
    empty = [harness.leaf(t) for t in (x[:0], radial[:0], weight)]
    grads = torch.autograd.grad(edge_tensor_product(*empty, onsite[:0], *settings).sum(), empty)
    assert [g.shape for g in grads] == [t.shape for t in empty] and not grads[2].any()
    with harness.raises(ValueError, "x: expected shape [e, 5]"):
        edge_tensor_product(x[:, 1:], radial, weight, onsite, *settings)
    with harness.raises(ValueError, f"radial: expected shape [e, {radial.shape[1]}] with e = 17, got [16"):
        edge_tensor_product(x, radial[1:], weight, onsite, *settings)
    with harness.raises(ValueError, f"linear_weight: expected shape [{len(weight)}], got [{len(weight) - 1}]"):
        edge_tensor_product(x, radial, weight[1:], onsite, *settings)
    with harness.raises(ValueError, "onsite: expected shape [e] with e = 17, got [16]"):
        edge_tensor_product(x, radial, weight, onsite[1:], *settings)
    with harness.raises(ValueError, "l_max: expected 0 or a positive number, got -1"):
        edge_tensor_product(x, radial, weight, onsite, settings[0], -1, settings[2])
    with harness.raises(TypeError, "onsite: expected dtype bool on device cpu as x, got torch.int64 on cpu"):
        edge_tensor_product(x, radial, weight, onsite.long(), *settings)
    with harness.raises(TypeError, "radial: expected dtype float64 as x, got float32"):
        edge_tensor_product(x, radial.float(), weight, onsite, *settings)
    _, t, _, v, v_bias, bias = fused_inputs("tiny").values()
    with harness.raises(ValueError, f"radial_weight: expected shape [{len(v)} c] with c = 7".replace(" c]", ", c]")):
        edge_tensor_product(x, t, weight, onsite, *settings, v[1:])
    with harness.raises(ValueError, f"radial_bias: expected shape [{len(v)}]"):
        edge_tensor_product(x, t, weight, onsite, *settings, v, v_bias[1:])
    with harness.raises(ValueError, "radial_bias: expected None without radial_weight"):
        edge_tensor_product(x, radial, weight, onsite, *settings, None, v_bias)
    with harness.raises(ValueError, "bias: expected shape [1], got [0]"):
        edge_tensor_product(x, radial, weight, onsite, *settings, bias=bias[1:])


@pytest.mark.triton
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("case", ["tiny", "unordered", "nothing_to_reach", "odd_scalar", "scalars", "aligned"])
def test_gpu_kernel(case, fused, monkeypatch):
    # Two steps over the radial features, three slices of edges.
    monkeypatch.setattr(importlib.import_module("nextham_kernels.ops.edge_tensor_product.kernel"), "SLICE", 8)
    arguments = {**CASES, "aligned": ("8x0e+8x1o", 1, "12x0e+8x1o")}[case]
    n_radial, n_weights = edge_tensor_product_sizes(*arguments)
    given = {
        "x": harness.random(harness.EDGES, irreps_of(arguments[0]).dim, seed=1),
        "radial": harness.random(harness.EDGES, 18 if fused else n_radial, seed=2),
        "linear_weight": harness.random(n_weights, seed=3),
        "bias": harness.random(len(edge_layout(irreps_of(arguments[2])).scalars), seed=4),
        "onsite": onsite_of(harness.EDGES),
    }
    if fused:
        given["radial_weight"] = harness.random(n_radial, 18, seed=5)
        given["radial_bias"] = harness.random(n_radial, seed=6)

    def kernel(x, radial, linear_weight, bias, onsite, radial_weight=None, radial_bias=None):
        if not len(bias):
            bias = None
        return edge_tensor_product(x, radial, linear_weight, onsite, *arguments, radial_weight, radial_bias, bias)

    def plain(x, radial, linear_weight, bias, onsite, radial_weight=None, radial_bias=None):
        if radial_weight is None:
            radial_weight, radial_bias = x.new_empty(0, 0), x.new_empty(0)
        return reference.edge_tensor_product(
            x, radial, linear_weight, onsite, radial_weight, radial_bias, bias, *arguments
        )

    if not len(given["bias"]):
        del given["bias"]
        kernel, plain = (functools.partial(f, bias=torch.empty(0)) for f in (kernel, plain))
    ops = "edge_tensor_product edge_tensor_product_backward"
    harness.assert_gpu_kernel(ops, kernel, plain, given, second=case == "tiny")
