"""tensor_product_conv against gather, product and sum."""

import harness
import pytest
import torch
from e3nn import o3

from nextham_kernels import nn
from nextham_kernels.ops.tensor_product import product, reference
from nextham_kernels.ops.tensor_product.conv import edge_orders, tensor_product_conv

UVU = product(
    "5x0e+4x1o",
    "1x0e+1x1o+1x2e",
    "5x0e+4x0e+4x1o+5x1o",
    [(0, 0, 0, "uvu", True), (1, 1, 1, "uvu", True), (1, 2, 2, "uvu", False), (0, 1, 3, "uvu", True)],
)
UVW = product("5x0e+4x1o", "1x0e+1x1o", "3x0e+7x1o", [(0, 0, 0, "uvw", True), (0, 1, 1, "uvw", True)])


def graph(n_edges=61):
    """Unsorted edges; node 2 of the result gets none, node 1 most."""
    generator = torch.Generator().manual_seed(3)
    rows = torch.tensor([0, 1, 1, 1, 3, 4])[torch.randint(6, (n_edges,), generator=generator)]
    return rows, torch.randint(harness.NODES, (n_edges,), generator=generator)


def inputs(paths, shared, n_edges=61):
    weight = (paths.n_weights,) if shared else (n_edges, paths.n_weights)
    shapes = {"x": (harness.NODES, paths.dims[0]), "y": (n_edges, paths.dims[1]), "weight": weight}
    return {name: harness.random(*shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}


def functions(paths, n_edges=61):
    rows, cols = graph(n_edges)
    return (
        lambda x, y, weight: tensor_product_conv(x, y, weight, rows, cols, harness.NODES, paths),
        lambda x, y, weight: reference.tensor_product_conv(
            x, y, weight, rows, cols, *edge_orders(rows, cols), harness.NODES, paths.word
        ),
    )


def test_reference_is_the_definition():
    given, (rows, cols) = inputs(UVU, False), graph()
    expected = torch.zeros(harness.NODES, UVU.dims[2], dtype=torch.float64)
    for e in range(len(rows)):
        one = (given["x"][cols[e]][None], given["y"][e : e + 1], given["weight"][e : e + 1])
        expected[rows[e]] += reference.tensor_product(*one, UVU.word)[0]
    harness.assert_close(functions(UVU)[1](**given), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("paths", [UVU, UVW], ids=["uvu", "uvw"])
def test_forward(paths, shared, dtype):
    given = [t.to(dtype) for t in inputs(paths, shared).values()]
    harness.assert_as_exact_as_reference(*functions(paths), given)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("paths", [UVU, UVW], ids=["uvu", "uvw"])
def test_backward(paths, shared, threads):
    with harness.threads(threads):
        harness.assert_same_gradients(*functions(paths), inputs(paths, shared))


@pytest.mark.parametrize("shared", [False, True])
def test_double_backward(shared):
    harness.gradcheck(functions(UVU, 5)[0], *inputs(UVU, shared, 5).values())


def test_instruction_sets_agree(instruction_set):
    harness.assert_same_gradients(*functions(UVU), inputs(UVU, False))


def test_the_order_of_edges_does_not_matter():
    given, (rows, cols) = inputs(UVU, False), graph()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(1))
    shuffled = given["x"], given["y"][order], given["weight"][order], rows[order], cols[order]
    harness.assert_close(tensor_product_conv(*shuffled, harness.NODES, UVU), functions(UVU)[0](**given))


def test_results_do_not_change_from_run_to_run():
    given = {name: harness.leaf(t.float()) for name, t in inputs(UVU, True).items()}
    runs = []
    for _ in range(3):
        out = functions(UVU)[0](**given)
        runs.append(
            torch.cat([out.flatten(), *(g.flatten() for g in torch.autograd.grad(out.sum(), [*given.values()]))])
        )
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion):
    rotation = harness.random_rotation(1)
    irreps = (UVU.irreps_1, UVU.irreps_2, UVU.irreps_out)
    d_1, d_2, d_out = (harness.representation(i, rotation, inversion).T for i in irreps)
    given, function = inputs(UVU, False), functions(UVU)[0]
    harness.assert_close(function(given["x"] @ d_1, given["y"] @ d_2, given["weight"]), function(**given) @ d_out)


def test_module():
    paths = [(0, 0, 0, "uvu", True), (1, 1, 1, "uvu", True)]
    module = nn.TensorProductConv("5x0e+4x1o", "1x0e+1x1o", "5x0e+4x0e", paths, shared_weights=False).double()
    plain = o3.TensorProduct("5x0e+4x1o", "1x0e+1x1o", "5x0e+4x0e", paths, shared_weights=False).double()
    (rows, cols), x, y = graph(), harness.random(harness.NODES, 17), harness.random(61, 4, seed=1)
    weight = harness.random(61, module.weight_numel, seed=2)
    messages = plain(x[cols], y, weight)
    expected = torch.zeros(harness.NODES, 9, dtype=torch.float64).index_add(0, rows, messages)
    harness.assert_close(module(x, y, weight, rows, cols), expected, harness.GOLDEN)
    harness.assert_close(module(x, y, weight, rows, cols, 7)[:5], expected, harness.GOLDEN)


def test_contract():
    given, (rows, cols) = inputs(UVU, False), graph()
    none = rows[:0]
    empty = {
        **{n: harness.leaf(t) for n, t in given.items() if n == "x"},
        "y": given["y"][:0],
        "weight": given["weight"][:0],
    }
    out = tensor_product_conv(**empty, rows=none, cols=none, n_rows=3, product=UVU)
    assert out.shape == (3, UVU.dims[2]) and not out.any()
    assert not torch.autograd.grad(out.sum(), empty["x"])[0].any()
    leaves = [harness.leaf(t) for t in given.values()]
    orders = edge_orders(rows, cols)
    torch.library.opcheck(
        torch.ops.nextham.tensor_product_conv, (*leaves, rows, cols, *orders, harness.NODES, UVU.word)
    )
    with harness.raises(ValueError, "rows: expected 0 <= index < 3, got 0 to 4"):
        tensor_product_conv(**given, rows=rows, cols=cols, n_rows=3, product=UVU)
    with harness.raises(ValueError, "cols: expected shape [e] with e = 61, got [60]"):
        tensor_product_conv(**given, rows=rows, cols=cols[1:], n_rows=5, product=UVU, orders=orders)
    with harness.raises(ValueError, "weight: expected shape [e, 14] with e = 61, got [61, 13]"):
        tensor_product_conv(given["x"], given["y"], given["weight"][:, 1:], rows, cols, 5, UVU)
    with harness.raises(TypeError, "rows: expected dtype int64, got int32"):
        tensor_product_conv(**given, rows=rows.int(), cols=cols, n_rows=5, product=UVU)
