"""depthwise_tensor_product against e3nn's TensorProduct, as the published network uses it, and against loops."""

import harness
import pytest
import torch
from e3nn import o3

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.ops.depthwise_tensor_product import depthwise_irreps, depthwise_tensor_product

HIDDEN = "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e"
HARMONICS = "1x0e+1x1o+1x2e+1x3o+1x4e+1x5o"
# (x, y, keep)
CASES = {
    "small": ("3x0e+2x1o", "1x0e+1x1o", "0e+1o+1e"),
    "several_channels": ("2x1o+1x2e", "2x1o+1x0e", "0e+1e+2e+1o+3o"),
    "repeated": ("2x1o+1x0e+3x1o", "1x1o+1x1o", "1e+0e"),
    "none": ("0x1o+2x1o+0x0e", "1x1o+0x2e", "1e+0e+1o"),
    "production": (HIDDEN, HARMONICS, HIDDEN),
}


def inputs(case, shared, n_edges=harness.EDGES):
    irreps_x, irreps_y, _ = (irreps_of(i) for i in CASES[case])
    n_weights = depthwise_irreps(*CASES[case])[1]
    return {
        "x": harness.random(n_edges, irreps_x.dim, seed=1),
        "y": harness.random(n_edges, irreps_y.dim, seed=2),
        "weight": harness.random(*([n_weights] if shared else [n_edges, n_weights]), seed=3),
    }


def definition(x, y, weight, irreps_x, irreps_y, keep):
    """e3nn's 'uvu' product; its output sorted by l, even parity first."""
    irreps_x, irreps_y, keep = o3.Irreps(irreps_x), o3.Irreps(irreps_y), o3.Irreps(keep)
    found = [
        (i, j, mul, ir)
        for i, (mul, ir_x) in enumerate(irreps_x)
        for j, (_, ir_y) in enumerate(irreps_y)
        for ir in ir_x * ir_y
        if ir in keep
    ]
    order = sorted(range(len(found)), key=lambda p: (found[p][3].l, -found[p][3].p))
    irreps_out = o3.Irreps([(found[p][2], found[p][3]) for p in order])
    instructions = [(i, j, order.index(p), "uvu", True) for p, (i, j, _, _) in enumerate(found)]
    module = o3.TensorProduct(
        irreps_x,
        irreps_y,
        irreps_out,
        instructions,
        irrep_normalization="component",
        path_normalization="none",
        internal_weights=False,
        shared_weights=weight.ndim == 1,
    )
    return module.double()(x, y, weight)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_definition(case, shared):
    tensors = inputs(case, shared)
    expected = definition(*tensors.values(), *CASES[case])
    harness.assert_close(depthwise_tensor_product(*tensors.values(), *CASES[case]), expected, harness.GOLDEN)


def test_loops():
    """2x1o with 1x1o to 0e and 1e: dot and cross products, up to the sign and scale of wigner_3j."""
    x, y, w = harness.random(3, 6), harness.random(3, 3, seed=1), harness.random(4, seed=2)
    t = depthwise_tensor_product(x, y, w, "2x1o", "1x1o", "0e+1e")
    for e in range(3):
        for u in range(2):
            a, b = x[e, 3 * u : 3 * u + 3], y[e]
            assert float(t[e, u]) == pytest.approx(float(w[u] * a @ b / 3**0.5))
            # √3 · ε_ijk/√6
            expected = w[2 + u] * torch.linalg.cross(a, b) / 2**0.5
            harness.assert_close(t[e, 2 + 3 * u : 5 + 3 * u], expected)


def test_production_layout():
    irreps, n_weights = depthwise_irreps(HIDDEN, HARMONICS, HIDDEN)
    assert (irreps.dim, n_weights) == (6408, 1160)
    assert str(irreps) == "72x0e+104x1e+144x1o+176x2e+144x2o+152x3e+192x3o+176x4e"


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_backward(case, shared):
    harness.assert_same_gradients(
        lambda x, y, weight: depthwise_tensor_product(x, y, weight, *CASES[case]),
        lambda x, y, weight: definition(x, y, weight, *CASES[case]),
        inputs(case, shared),
        harness.GOLDEN,
    )


@pytest.mark.parametrize("shared", [True, False])
def test_gradcheck(shared):
    tensors = inputs("several_channels", shared, 2)
    harness.gradcheck(lambda *t: depthwise_tensor_product(*t, *CASES["several_channels"]), *tensors.values())


@pytest.mark.parametrize("inversion", [False, True])
@pytest.mark.parametrize("case", ["several_channels", "production"])
def test_equivariance(case, inversion):
    x, y, weight = inputs(case, False).values()
    rotation = harness.random_rotation(1)
    layouts = CASES[case][0], CASES[case][1], depthwise_irreps(*CASES[case])[0]
    d_x, d_y, d_t = (harness.representation(irreps, rotation, inversion) for irreps in layouts)
    t = depthwise_tensor_product(x, y, weight, *CASES[case])
    harness.assert_close(depthwise_tensor_product(x @ d_x.T, y @ d_y.T, weight, *CASES[case]), t @ d_t.T)


def test_contract():
    case = CASES["small"]
    x, y, weight = inputs("small", False).values()
    assert depthwise_tensor_product(x[:0], y[:0], weight[:0], *case).shape == (0, depthwise_irreps(*case)[0].dim)
    harness.assert_close(
        depthwise_tensor_product(x.T.contiguous().T, y, weight, *case), depthwise_tensor_product(x, y, weight, *case)
    )
    with harness.raises(ValueError, "x: expected shape [e, 9] for irreps 3x0e+2x1o, got [17, 8]"):
        depthwise_tensor_product(x[:, 1:], y, weight, *case)
    with harness.raises(ValueError, "y: expected shape [e, 4] for irreps 1x0e+1x1o, got [17, 3]"):
        depthwise_tensor_product(x, y[:, 1:], weight, *case)
    with harness.raises(ValueError, "y: expected 17 edges as x, got 16"):
        depthwise_tensor_product(x, y[1:], weight, *case)
    n = weight.shape[1]
    with harness.raises(ValueError, f"weight: expected shape [{n}] or [e, {n}] with e = 17, got [16, {n}]"):
        depthwise_tensor_product(x, y, weight[1:], *case)
    with harness.raises(TypeError, "weight: expected dtype float64 as x, got float32"):
        depthwise_tensor_product(x, y, weight.float(), *case)
