"""linear against e3nn's weighted tensor product with a scalar, and against loops."""

import harness
import pytest
import torch
from e3nn import o3

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.ops.linear import linear, linear_fan_in, linear_sizes

# (in, out): unsorted, repeated blocks, an irrep that only one side has
CASES = {
    "plain": ("3x0e+2x1o+2x1e", "4x0e+5x1o+1x1e"),
    "repeated": ("2x0e+3x1o+1x0e+2x1o+1x2e", "1x1o+2x0e+2x1o+3x0e+1x3o"),
    "odd_scalar": ("2x0o+2x0e", "3x0e+1x0o"),
    "production": ("32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e", "104x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e"),
}


def inputs(case, n_edges=harness.EDGES):
    irreps_in, irreps_out = (irreps_of(i) for i in CASES[case])
    n_weights, n_bias = linear_sizes(irreps_in, irreps_out)
    tensors = {
        "x": harness.random(n_edges, irreps_in.dim, seed=1),
        "weight": harness.random(n_weights, seed=2),
        "bias": harness.random(n_bias, seed=3),
    }
    return tensors, irreps_in, irreps_out


def definition(x, weight, bias, irreps_in, irreps_out):
    """e3nn's fully connected product with the scalar 1, then the bias, channel by channel."""
    product = o3.FullyConnectedTensorProduct(
        irreps_in,
        "1x0e",
        irreps_out,
        irrep_normalization="component",
        path_normalization="none",
        internal_weights=False,
        shared_weights=True,
    )
    y = product.double()(x, torch.ones(len(x), 1, dtype=x.dtype), weight)
    columns, start = [], 0
    for (mul, ir), s in zip(irreps_out, irreps_out.slices(), strict=True):
        if ir == o3.Irrep("0e"):
            columns.append(y[:, s] + bias[start : start + mul])
            start += mul
        else:
            columns.append(y[:, s])
    return torch.cat(columns, dim=1)


@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_definition(case):
    tensors, irreps_in, irreps_out = inputs(case)
    expected = definition(**tensors, irreps_in=irreps_in, irreps_out=irreps_out)
    harness.assert_close(linear(**tensors, irreps_in=irreps_in, irreps_out=irreps_out), expected, harness.GOLDEN)


def test_loops():
    irreps_in, irreps_out = irreps_of("2x0e+1x1o"), irreps_of("1x1o+2x0e")
    x, weight = harness.random(3, 5), harness.random(5, seed=1)
    y = linear(x, weight, None, irreps_in, irreps_out)
    for e in range(3):
        for i in range(3):
            assert float(y[e, i]) == pytest.approx(float(weight[4] * x[e, 2 + i]))
        for v in range(2):
            assert float(y[e, 3 + v]) == pytest.approx(float(sum(weight[2 * u + v] * x[e, u] for u in range(2))))


@pytest.mark.parametrize("case", CASES)
def test_backward(case):
    tensors, irreps_in, irreps_out = inputs(case)
    harness.assert_same_gradients(
        lambda **k: linear(**k, irreps_in=irreps_in, irreps_out=irreps_out),
        lambda **k: definition(**k, irreps_in=irreps_in, irreps_out=irreps_out),
        tensors,
        harness.GOLDEN,
    )


def test_gradcheck():
    tensors, irreps_in, irreps_out = inputs("repeated", 2)
    harness.gradcheck(lambda x, w, b: linear(x, w, b, irreps_in, irreps_out), *tensors.values())


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion):
    tensors, irreps_in, irreps_out = inputs("repeated")
    x, weight, bias = tensors.values()
    d_in, d_out = (harness.representation(i, harness.random_rotation(1), inversion) for i in (irreps_in, irreps_out))
    y = linear(x, weight, bias, irreps_in, irreps_out)
    harness.assert_close(linear(x @ d_in.T, weight, bias, irreps_in, irreps_out), y @ d_out.T)


def test_fan_in():
    assert linear_fan_in("2x0e+1x1o+1x0e", "1x0e+2x1o").tolist() == [3, 3, 1, 1, 3]


def test_contract():
    tensors, irreps_in, irreps_out = inputs("plain")
    x, weight, bias = tensors.values()
    assert linear(x[:0], weight, bias, irreps_in, irreps_out).shape == (0, irreps_out.dim)
    strided = torch.stack([x, x], dim=2)[:, :, 0]
    assert not strided.is_contiguous()
    harness.assert_close(
        linear(strided, weight, bias, irreps_in, irreps_out), linear(x, weight, bias, irreps_in, irreps_out)
    )
    assert linear(x.float(), weight.float(), None, irreps_in, irreps_out).dtype == torch.float32
    with harness.raises(ValueError, "x: expected shape [e, 15] for irreps 3x0e+2x1o+2x1e, got [17, 14]"):
        linear(x[:, 1:], weight, bias, irreps_in, irreps_out)
    with harness.raises(ValueError, "weight: expected shape [24], got [23]"):
        linear(x, weight[1:], bias, irreps_in, irreps_out)
    with harness.raises(ValueError, "bias: expected shape [4], got [3]"):
        linear(x, weight, bias[1:], irreps_in, irreps_out)
    with harness.raises(TypeError, "weight: expected dtype float64 as x, got float32"):
        linear(x, weight.float(), bias, irreps_in, irreps_out)
