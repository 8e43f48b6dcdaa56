"""Linear maps of edge rows and their folding, against the same maps in the global frame."""

import functools

import harness
import pytest
import torch
from e3nn import o3

from nextham_kernels.clebsch_gordan import irreps_of, wigner_d
from nextham_kernels.edge_layout import edge_layout, edge_rotation
from nextham_kernels.ops.depthwise_tensor_product import depthwise_irreps, depthwise_tensor_product
from nextham_kernels.ops.edge_linear import edge_linear, head_linear, reference
from nextham_kernels.ops.edge_linear.folding import flat, linear_matrices, product_matrices, through_heads
from nextham_kernels.ops.linear import linear, linear_sizes
from nextham_kernels.ops.spherical_harmonics import spherical_harmonics

CASES = {
    "plain": ("3x0e+2x1o+1x1e+2x2e", "2x0e+1x1o+3x2e+1x1e", 2),
    "missing": ("2x0e+1x0o+2x1e", "1x1e+2x3o+1x0e", 1),
    "repeated": ("2x0e+1x1o+1x0e+2x1o", "1x1o+2x0e+1x1o", 1),
    "production": ("32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e",) * 2 + (5,),
}
VECTORS = harness.random(harness.EDGES, 3, seed=7)


def rows_of(x, irreps, vectors=VECTORS):
    """Features [e, d] of the global frame as rows of the edge frame."""
    irreps = irreps_of(irreps)
    d = wigner_d(edge_rotation(vectors), max(ir.l for _, ir in irreps))
    parts = [
        (x[:, s].unflatten(1, (mul, ir.dim)) @ d[ir.l].mT).flatten(1)
        for (mul, ir), s in zip(irreps, irreps.slices(), strict=True)
    ]
    return edge_layout(irreps).to_row(torch.cat(parts, dim=1))


def n_weights(irreps_in, irreps_out):
    names = str(irreps_of(irreps_in)), str(irreps_of(irreps_out))
    return sum(piece.c_in * piece.c_out for piece in reference.pieces(*names))


def scalars(irreps):
    return len(edge_layout(irreps_of(irreps)).scalars)


def plain(x, heads, matrix, bias, onsite, irreps_in, irreps_out):
    """The reference, with what the public functions fill in."""
    names = str(irreps_of(irreps_in)), str(irreps_of(irreps_out))
    onsite = torch.zeros(0, dtype=torch.bool) if onsite is None else onsite
    return reference.edge_linear(x, heads, matrix, bias, onsite, *names)


@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_definition(case):
    """The irreps-wise linear map, before and after the rotation into the edge frame."""
    irreps_in, irreps_out, _ = CASES[case]
    x = harness.random(harness.EDGES, irreps_of(irreps_in).dim, seed=1)
    weight = harness.random(linear_sizes(irreps_in, irreps_out)[0], seed=2)
    bias = harness.random(scalars(irreps_out), seed=3)
    matrix = flat(linear_matrices(weight, irreps_in, irreps_out))
    expected = rows_of(linear(x, weight, bias, irreps_in, irreps_out), irreps_out)
    row = rows_of(x, irreps_in)
    harness.assert_close(edge_linear(row, matrix, irreps_in, irreps_out, bias), expected)
    none = x.new_empty(len(x), 0)
    harness.assert_close(plain(row, none, matrix[None], bias[None], None, irreps_in, irreps_out), expected)


@pytest.mark.parametrize("onsite", [False, True])
@pytest.mark.parametrize("case", ["plain", "missing", "production"])
def test_product_matrices_are_the_product_and_the_linear_map(case, onsite):
    irreps_x, irreps_out, l_max = CASES[case]
    harmonics = str(o3.Irreps.spherical_harmonics(l_max))
    product, n_paths = depthwise_irreps(irreps_x, harmonics, irreps_x)
    x = harness.random(harness.EDGES, irreps_of(irreps_x).dim, seed=1)
    path_weight = harness.random(n_paths, seed=2)
    weight = harness.random(linear_sizes(product, irreps_out)[0], seed=3)
    vectors = VECTORS * 0 if onsite else VECTORS
    y = depthwise_tensor_product(x, spherical_harmonics(vectors, l_max), path_weight, irreps_x, harmonics, irreps_x)
    expected = rows_of(linear(y, weight, None, product, irreps_out), irreps_out, vectors)
    matrix = flat(product_matrices(path_weight, weight, irreps_x, l_max, irreps_out, onsite))
    # e3nn's harmonics carry float32 constants.
    harness.assert_close(edge_linear(rows_of(x, irreps_x, vectors), matrix, irreps_x, irreps_out), expected, 1e-6)


@pytest.mark.parametrize("case", ["plain", "missing"])
def test_heads_are_value_scale_and_projection(case, n_heads=3):
    irreps_in, irreps_out, l_max = CASES[case]
    heads = "+".join(f"{n_heads * mul}x{ir}" for mul, ir in irreps_of(irreps_in))
    harmonics = str(o3.Irreps.spherical_harmonics(l_max))
    product, n_paths = depthwise_irreps(irreps_in, harmonics, irreps_in)
    x = harness.random(harness.EDGES, irreps_of(irreps_in).dim, seed=1)
    a = harness.random(harness.EDGES, n_heads, seed=2)
    weights = harness.random(n_paths, seed=3), harness.random(linear_sizes(product, heads)[0], seed=4)
    values = product_matrices(*weights, irreps_in, l_max, heads)
    projection = linear_matrices(harness.random(linear_sizes(heads, irreps_out)[0], seed=5), heads, irreps_out)
    scale = [
        torch.cat([a.repeat_interleave((c.stop - c.start) // n_heads, 1) for c in block.channels], 1).repeat(1, block.n)
        for block in edge_layout(heads).blocks
    ]
    value = edge_linear(x, flat(values), irreps_in, heads) * torch.cat(scale, 1)
    expected = edge_linear(value, flat(projection), heads, irreps_out)
    matrix = flat(through_heads(values, projection, heads, n_heads))
    harness.assert_close(head_linear(x, a, matrix[None], irreps_in, irreps_out), expected)


def head_inputs(case, n_edges=harness.EDGES, n_heads=3, n_bias=4):
    irreps_in, irreps_out, _ = CASES[case]
    return {
        "x": harness.random(n_edges, irreps_of(irreps_in).dim, seed=1),
        "heads": harness.random(n_edges, n_heads, seed=2),
        "matrix": harness.random(2, n_heads * n_weights(irreps_in, irreps_out), seed=3),
        "bias": harness.random(n_bias, scalars(irreps_out), seed=4),
    }


def head_functions(case, n_edges=harness.EDGES):
    """The op and its reference, with on-site edges alone, side by side and at both ends."""
    irreps = CASES[case][:2]
    onsite = torch.arange(n_edges) % 7 == 2
    onsite[[0, 1, -1]] = True
    return (
        lambda x, heads, matrix, bias: head_linear(x, heads, matrix, *irreps, bias, onsite),
        lambda x, heads, matrix, bias: plain(x, heads, matrix, bias, onsite, *irreps),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("n_edges", [3, harness.EDGES, 230])
@pytest.mark.parametrize("case", CASES)
def test_forward(case, n_edges, dtype):
    for n_bias in (3, 4):
        tensors = [t.to(dtype) for t in head_inputs(case, n_edges, n_bias=n_bias).values()]
        harness.assert_as_exact_as_reference(*head_functions(case, n_edges), tensors)


@pytest.mark.parametrize("n_edges", [harness.EDGES, 230])
@pytest.mark.parametrize("case", CASES)
def test_backward(case, n_edges):
    harness.assert_same_gradients(*head_functions(case, n_edges), head_inputs(case, n_edges))
    irreps, inputs = CASES[case][:2], head_inputs(case, n_edges, n_heads=1)
    none = torch.empty(n_edges, 0, dtype=torch.float64)
    harness.assert_same_gradients(
        lambda x, matrix, bias: edge_linear(x, matrix, *irreps, bias),
        lambda x, matrix, bias: plain(x, none, matrix[None], bias[None], None, *irreps),
        {"x": inputs["x"], "matrix": inputs["matrix"][0], "bias": inputs["bias"][0]},
    )


@pytest.mark.parametrize("name", ["x", "heads", "matrix", "bias"])
def test_backward_of_one(name):
    """What is not asked for is not made, and what is asked for does not depend on the rest."""
    kernel, reference_ = head_functions("plain")
    tensors = head_inputs("plain")
    one = {name: tensors.pop(name)}
    harness.assert_same_gradients(lambda **a: kernel(**a, **tensors), lambda **a: reference_(**a, **tensors), one)


def test_double_backward():
    def gradient(function):
        def of(**tensors):
            return torch.autograd.grad(function(**tensors).square().sum(), list(tensors.values()), create_graph=True)

        return of

    kernel, reference_ = head_functions("missing", 4)
    harness.assert_same_gradients(gradient(kernel), gradient(reference_), head_inputs("missing", 4))


def test_gradcheck():
    harness.gradcheck(head_functions("missing", 4)[0], *head_inputs("missing", 4).values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_instruction_sets_agree(instruction_set, dtype):
    functions, tensors = head_functions("production", 70), head_inputs("production", 70)
    harness.assert_as_exact_as_reference(*functions, [t.to(dtype) for t in tensors.values()])
    if dtype == torch.float64:
        harness.assert_same_gradients(*functions, tensors)


def test_threads():
    """Any number of threads gives the same result; the same number, the same bits."""
    kernel, _ = head_functions("plain", 500)

    def run():
        leaves = [harness.leaf(t.float()) for t in head_inputs("plain", 500).values()]
        y = kernel(*leaves)
        return y.detach(), *torch.autograd.grad(y.square().sum(), leaves)

    harness.assert_threads_agree(run, 1e-5)


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion):
    """Under rotations about the edge, and the inversion followed by half a turn about an axis across it."""
    kernel, _ = head_functions("production")
    irreps_in, irreps_out, _ = CASES["production"]
    angle = torch.tensor(0.7, dtype=torch.float64)
    c, s = angle.cos(), angle.sin()
    turn = torch.tensor([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    if inversion:
        turn = turn @ torch.diag(torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64))

    def turned(row, irreps):
        layout = edge_layout(irreps_of(irreps))
        return layout.to_row(layout.from_row(row) @ harness.representation(irreps, turn, inversion).T)

    x, *rest = head_inputs("production").values()
    harness.assert_close(kernel(turned(x, irreps_in), *rest), turned(kernel(x, *rest), irreps_out))


def test_contract():
    irreps = CASES["plain"][:2]
    x, heads, matrix, bias = head_inputs("plain").values()
    onsite = torch.zeros(len(x), dtype=torch.bool)
    weights = matrix[0, : matrix.shape[1] // 3].clone()
    assert edge_linear(x[:0], weights, *irreps).shape == (0, irreps_of(irreps[1]).dim)
    harness.assert_close(edge_linear(x.T.contiguous().T, weights, *irreps), edge_linear(x, weights, *irreps))
    leaves = map(harness.leaf, (x, heads, matrix, bias))
    torch.library.opcheck(torch.ops.nextham.edge_linear, (*leaves, onsite, *(str(irreps_of(i)) for i in irreps)))
    empty = [harness.leaf(t) for t in (x[:0], weights)]
    grads = torch.autograd.grad(edge_linear(*empty, *irreps).sum(), empty)
    assert [g.shape for g in grads] == [t.shape for t in empty] and not grads[1].any()
    with harness.raises(ValueError, "x: expected shape [e, "):
        edge_linear(x[:, 1:], weights, *irreps)
    with harness.raises(ValueError, f"matrix: expected shape [{len(weights)}], got [{len(weights) - 1}]"):
        edge_linear(x, weights[1:], *irreps)
    with harness.raises(ValueError, "bias: expected shape [2], got [4, 2]"):
        edge_linear(x, weights, *irreps, bias)
    with harness.raises(ValueError, "heads: expected shape [17, h]"):
        head_linear(x, heads[1:], matrix[:1], *irreps)
    with harness.raises(ValueError, "heads: expected at least one head"):
        head_linear(x, heads[:, :0], matrix[:1], *irreps)
    with harness.raises(ValueError, f"matrix: expected shape [2, {matrix.shape[1]}], got [1, "):
        head_linear(x, heads, matrix[:1], *irreps, onsite=onsite)
    with harness.raises(ValueError, "bias: expected shape [3, 2], got [2, 2]"):
        head_linear(x, heads, matrix, *irreps, bias[:2], onsite)
    with harness.raises(TypeError, "onsite: expected bool, got torch.int64"):
        head_linear(x, heads, matrix, *irreps, bias, onsite.long())
    with harness.raises(TypeError, "matrix: expected dtype float32 as x, got float64"):
        edge_linear(x.float(), weights, *irreps)


@pytest.mark.triton
@pytest.mark.parametrize(("n_heads", "onsite"), [(0, False), (2, False), (2, True)])
@pytest.mark.parametrize("case", ["plain", "missing", "repeated", "wide"])
def test_gpu_kernel(case, n_heads, onsite, n=harness.EDGES):
    irreps_in, irreps_out, _ = {**CASES, "wide": ("72x0e+3x0o", "40x0e+81x1o", 0)}[case]
    names = str(irreps_of(irreps_in)), str(irreps_of(irreps_out))
    inputs = {
        "x": harness.random(n, irreps_of(irreps_in).dim, seed=1),
        "matrix": harness.random(1 + onsite, max(1, n_heads) * n_weights(irreps_in, irreps_out), seed=3),
        "where": torch.arange(n) % 5 == 2 if onsite else torch.zeros(0, dtype=torch.bool),
    }
    if case != "repeated":
        inputs["bias"] = harness.random(n_heads + 1, scalars(irreps_out), seed=4)
    if n_heads:
        inputs["heads"] = harness.random(n, n_heads, seed=2)

    def run(op, x, matrix, where, bias=None, heads=None):
        bias = x.new_empty(0, scalars(irreps_out)) if bias is None else bias
        return op(x, x.new_empty(n, 0) if heads is None else heads, matrix, bias, where, *names)

    harness.assert_gpu_kernel(
        "edge_linear edge_linear_backward",
        functools.partial(run, torch.ops.nextham.edge_linear),
        functools.partial(run, reference.edge_linear),
        inputs,
        second=case == "plain",
    )
