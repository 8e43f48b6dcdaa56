"""norm against loops in numpy."""

import harness
import numpy as np
import pytest
import torch

from nextham_kernels.clebsch_gordan import irreps_of
from nextham_kernels.edge_layout import edge_layout
from nextham_kernels.ops.norm import norm, reference

CASES = {
    "plain": "4x0e+2x1o+3x1e+1x2e",
    "odd_scalar": "2x0e+3x0o+1x1o",
    "two_scalars": "3x0e+1x1o+2x0e",
    "production": "32x0e+16x1o+16x1e+8x2e+8x2o+8x3e+8x3o+8x4e",
}


def inputs(case, n_edges=harness.EDGES):
    irreps = irreps_of(CASES[case])
    n_scalars = sum(mul for mul, ir in irreps if ir.is_scalar())
    return {
        "x": harness.random(n_edges, irreps.dim, seed=1) + 0.3,
        "weight": harness.random(irreps.num_irreps, seed=2),
        "bias": harness.random(n_scalars, seed=3),
    }


def definition(x, weight, bias, irreps, eps, floor):
    result = np.array(x)
    for e, row in enumerate(result):
        start, blocks = 0, []
        for mul, ir in irreps_of(irreps):
            block = row[start : start + mul * ir.dim].reshape(mul, ir.dim)
            if str(ir) == "0e":
                block = block - sum(block) / mul
            blocks.append(block)
            start += mul * ir.dim
        channels = [np.mean(v**2) for block in blocks for v in block]
        weights, biases, out = iter(weight), iter(bias), []
        for block, (_, ir) in zip(blocks, irreps_of(irreps), strict=True):
            size = np.sqrt(np.mean([np.mean(v**2) for v in block]) + floor**2 * np.mean(channels) + eps)
            for vector in block:
                shift = next(biases) if str(ir) == "0e" else 0.0
                out.append(next(weights) * vector / size + shift)
        result[e] = np.concatenate(out)
    return torch.tensor(result)


@pytest.mark.parametrize("floor", [0.0, 0.5])
@pytest.mark.parametrize("case", CASES)
def test_reference_is_the_definition(case, floor):
    tensors = inputs(case)
    expected = definition(*(t.numpy() for t in tensors.values()), CASES[case], 1e-5, floor)
    harness.assert_close(norm(**tensors, irreps=CASES[case], floor=floor), expected)


def both_layouts(case, edge):
    """The op and its reference, and inputs laid out as they read them."""
    tensors = inputs(case)
    if edge:
        tensors["x"] = edge_layout(CASES[case]).to_row(tensors["x"])

    def kernel(x, weight, bias, floor=0.5):
        return norm(x, weight, bias, CASES[case], floor=floor, edge=edge)

    def plain(x, weight, bias, floor=0.5):
        return reference.norm(x, weight, bias, CASES[case], edge, 1e-5, floor)

    return kernel, plain, tensors


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_forward(case, edge, dtype):
    kernel, plain, tensors = both_layouts(case, edge)
    harness.assert_as_exact_as_reference(kernel, plain, [t.to(dtype) for t in tensors.values()])


@pytest.mark.triton
@pytest.mark.parametrize("floor", [0.0, 0.5])
@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_gpu_kernel(case, edge, floor):
    kernel, plain, tensors = both_layouts(case, edge)
    tensors["x"] = tensors["x"][:5]
    harness.assert_gpu_kernel(
        "norm norm_backward",
        lambda **t: kernel(**t, floor=floor),
        lambda **t: plain(**t, floor=floor),
        tensors,
    )


@pytest.mark.parametrize("edge", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_kernel_gradients(case, edge):
    kernel, plain, tensors = both_layouts(case, edge)
    harness.assert_same_gradients(kernel, plain, tensors)


def test_instruction_sets_agree(instruction_set):
    kernel, plain, tensors = both_layouts("production", True)
    harness.assert_close(kernel(**tensors), plain(**tensors))
    harness.assert_same_gradients(kernel, plain, tensors)


@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_backward(floor):
    """Without scalars, one block and weight 1 the derivative is (1 − x xᵀ/(n s))/√s with s the mean square."""
    x = harness.random(1, 6).requires_grad_()
    ones, none = torch.ones(2, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: norm(x, ones, none, "2x1o", 1e-5, floor), x)[0, :, 0]
    v = x.detach()[0]
    s = (1 + floor**2) * v.square().mean() + 1e-5
    expected = (torch.eye(6) - (1 + floor**2) * torch.outer(v, v) / (6 * s)) / s.sqrt()
    harness.assert_close(jacobian, expected)


@pytest.mark.parametrize("floor", [0.0, 0.5])
def test_gradcheck(floor):
    tensors = inputs("plain", 2)
    harness.gradcheck(lambda x, w, b: norm(x, w, b, CASES["plain"], floor=floor), *tensors.values())


@pytest.mark.parametrize("floor", [0.0, 0.5])
@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion, floor):
    x, weight, bias = inputs("odd_scalar").values()
    d = harness.representation(CASES["odd_scalar"], harness.random_rotation(1), inversion)
    y = norm(x, weight, bias, CASES["odd_scalar"], floor=floor)
    harness.assert_close(norm(x @ d.T, weight, bias, CASES["odd_scalar"], floor=floor), y @ d.T)


def test_noise_in_a_block():
    """A block of rounding noise comes out 316 times larger from the published norm, and as noise with a floor."""
    x = torch.cat([harness.random(1, 8), 1e-12 * harness.random(1, 6, seed=1)], dim=1)
    weight, bias = torch.ones(10, dtype=torch.float64), torch.zeros(8, dtype=torch.float64)
    noise = float(x[:, 8:].norm())
    assert float(norm(x, weight, bias, "8x0e+2x1o")[:, 8:].norm()) == pytest.approx(noise / 1e-5**0.5, rel=1e-3)
    assert float(norm(x, weight, bias, "8x0e+2x1o", floor=1.0)[:, 8:].norm()) < 5 * noise


def test_contract():
    tensors = inputs("plain")
    irreps = CASES["plain"]
    x, weight, bias = tensors.values()
    assert norm(x[:0], weight, bias, irreps).shape == (0, 24)
    harness.assert_close(norm(x.T.contiguous().T, weight, bias, irreps), norm(x, weight, bias, irreps))
    torch.library.opcheck(torch.ops.nextham.norm, (*map(harness.leaf, (x, weight, bias)), irreps, False, 1e-5, 0.0))
    with harness.raises(ValueError, "x: expected shape [e, 24]"):
        norm(x[:, 1:], weight, bias, irreps)
    with harness.raises(ValueError, "weight: expected shape [10], got [9]"):
        norm(x, weight[1:], bias, irreps)
    with harness.raises(ValueError, "bias: expected shape [4], got [3]"):
        norm(x, weight, bias[1:], irreps)
    with harness.raises(ValueError, "eps: expected a positive number, got 0"):
        norm(x, weight, bias, irreps, eps=0)
    with harness.raises(ValueError, "floor: expected 0 or a positive number, got -1"):
        norm(x, weight, bias, irreps, floor=-1)
    with harness.raises(TypeError, "bias: expected dtype float64 as x, got float32"):
        norm(x, weight, bias.float(), irreps)
