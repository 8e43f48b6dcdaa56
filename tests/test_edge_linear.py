"""Linear maps of edge rows and their folding, against the same maps in the global frame."""

import harness
import pytest
import torch
from e3nn import o3

from nextham_kernels.clebsch_gordan import irreps_of, wigner_d
from nextham_kernels.edge_layout import edge_layout, edge_rotation
from nextham_kernels.ops.depthwise_tensor_product import depthwise_irreps, depthwise_tensor_product
from nextham_kernels.ops.edge_linear import edge_linear, head_linear, reference
from nextham_kernels.ops.edge_linear.folding import linear_matrices, product_matrices, through_heads
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


@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_definition(case):
    """The irreps-wise linear map, before and after the rotation into the edge frame."""
    irreps_in, irreps_out, _ = CASES[case]
    x = harness.random(harness.EDGES, irreps_of(irreps_in).dim, seed=1)
    weight = harness.random(linear_sizes(irreps_in, irreps_out)[0], seed=2)
    matrices = linear_matrices(weight, irreps_in, irreps_out)
    expected = rows_of(linear(x, weight, None, irreps_in, irreps_out), irreps_out)
    for f in (reference.edge_linear, edge_linear):
        harness.assert_close(f(rows_of(x, irreps_in), matrices, irreps_in, irreps_out), expected)


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
    matrices = product_matrices(path_weight, weight, irreps_x, l_max, irreps_out, onsite)
    # e3nn's harmonics carry float32 constants.
    harness.assert_close(edge_linear(rows_of(x, irreps_x, vectors), matrices, irreps_x, irreps_out), expected, 1e-6)


def heads_case(case, n_heads=3):
    irreps_in, irreps_out, l_max = CASES[case]
    heads = "+".join(f"{n_heads * mul}x{ir}" for mul, ir in irreps_of(irreps_in))
    harmonics = str(o3.Irreps.spherical_harmonics(l_max))
    product, n_paths = depthwise_irreps(irreps_in, harmonics, irreps_in)
    tensors = {
        "x": harness.random(harness.EDGES, irreps_of(irreps_in).dim, seed=1),
        "heads": harness.random(harness.EDGES, n_heads, seed=2),
        "path_weight": harness.random(n_paths, seed=3),
        "weight": harness.random(linear_sizes(product, heads)[0], seed=4),
        "projection": harness.random(linear_sizes(heads, irreps_out)[0], seed=5),
    }

    def folded(f):
        def run(x, heads_, path_weight, weight, projection):
            values = product_matrices(path_weight, weight, irreps_in, l_max, heads)
            matrices = through_heads(values, linear_matrices(projection, heads, irreps_out), heads, n_heads)
            return f(x, heads_, matrices, irreps_in, irreps_out)

        return lambda x, heads, path_weight, weight, projection: run(x, heads, path_weight, weight, projection)

    def unfolded(x, heads_, path_weight, weight, projection):
        y = edge_linear(x, product_matrices(path_weight, weight, irreps_in, l_max, heads), irreps_in, heads)
        scale = torch.cat(
            [
                torch.cat(
                    [heads_.repeat_interleave(c.stop // n_heads - c.start // n_heads, 1) for c in b.channels], 1
                ).repeat(1, b.n)
                for b in edge_layout(heads).blocks
            ],
            1,
        )
        return edge_linear(y * scale, linear_matrices(projection, heads, irreps_out), heads, irreps_out)

    return tensors, folded(head_linear), folded(reference.head_linear), unfolded


@pytest.mark.parametrize("case", ["plain", "missing"])
def test_heads_are_value_scale_and_projection(case):
    tensors, fast, plain, unfolded = heads_case(case)
    expected = unfolded(*tensors.values())
    harness.assert_close(plain(*tensors.values()), expected)
    harness.assert_close(fast(*tensors.values()), expected)


@pytest.mark.parametrize("case", ["plain", "missing", "production"])
def test_backward(case):
    tensors, fast, plain, _ = heads_case(case)
    harness.assert_same_gradients(fast, plain, tensors)
    irreps_in, irreps_out, _ = CASES[case]
    weight = harness.random(linear_sizes(irreps_in, irreps_out)[0], seed=2)
    harness.assert_same_gradients(
        lambda x, weight: edge_linear(x, linear_matrices(weight, irreps_in, irreps_out), irreps_in, irreps_out),
        lambda x, weight: reference.edge_linear(
            x, linear_matrices(weight, irreps_in, irreps_out), irreps_in, irreps_out
        ),
        {"x": tensors["x"], "weight": weight},
    )


def test_gradcheck():
    tensors, fast, _, _ = heads_case("missing", n_heads=2)
    leaves = [harness.leaf(t[:2] if t.ndim == 2 else t) for t in tensors.values()]
    torch.autograd.gradcheck(fast, leaves)


def test_contract():
    tensors, _, _, _ = heads_case("plain")
    irreps_in, irreps_out, _ = CASES["plain"]
    x, heads = tensors["x"], tensors["heads"]
    matrices = linear_matrices(harness.random(linear_sizes(irreps_in, irreps_out)[0]), irreps_in, irreps_out)
    assert edge_linear(x[:0], matrices, irreps_in, irreps_out).shape == (0, irreps_of(irreps_out).dim)
    harness.assert_close(
        edge_linear(x.T.contiguous().T, matrices, irreps_in, irreps_out),
        edge_linear(x, matrices, irreps_in, irreps_out),
    )
    with harness.raises(ValueError, "x: expected shape [e, "):
        edge_linear(x[:, 1:], matrices, irreps_in, irreps_out)
    with harness.raises(ValueError, "matrices: expected 4, one for each block"):
        edge_linear(x, matrices[1:], irreps_in, irreps_out)
    with harness.raises(ValueError, "matrices[0]: expected shape ["):
        edge_linear(x, [matrices[0][1:], *matrices[1:]], irreps_in, irreps_out)
    with harness.raises(ValueError, "heads: expected shape [17, h]"):
        head_linear(x, heads[1:], [m[None] for m in matrices], irreps_in, irreps_out)
    with harness.raises(TypeError, "float32"):
        edge_linear(x.float(), matrices, irreps_in, irreps_out)
