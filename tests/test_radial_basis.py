"""radial_basis against a double loop."""

import math

import harness
import pytest
import torch

from nextham_kernels.ops.radial_basis import radial_basis, reference


def test_reference_is_the_definition():
    distance = harness.random(harness.EDGES).abs() * 4
    basis = radial_basis(distance, 64, 10.0)
    for e, r in enumerate(distance.tolist()):
        for c in range(64):
            centre, sigma = 10.0 * c / 63, 0.5 * 10.0 / 64
            expected = math.exp(-((r - centre) ** 2) / (2 * sigma**2))
            assert float(basis[e, c]) == pytest.approx(expected, rel=1e-10, abs=1e-290)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_forward(dtype):
    distance = 8 * torch.rand(harness.EDGES, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    harness.assert_as_exact_as_reference(
        lambda r: radial_basis(r, 64, 10.0), lambda r: reference.radial_basis(r, 64, 10.0), [distance]
    )


@pytest.mark.triton
@pytest.mark.parametrize("n", [2, 9, 64])
def test_gpu_kernel(n):
    harness.assert_gpu_kernel(
        "radial_basis radial_basis_backward",
        lambda r: radial_basis(r, n, 10.0),
        lambda r: reference.radial_basis(r, n, 10.0),
        {"r": 4 * harness.random(5).abs()},
    )


def test_instruction_sets_agree(instruction_set):
    kernel, plain = lambda r: radial_basis(r, 9, 3.0), lambda r: reference.radial_basis(r, 9, 3.0)
    distance = harness.random(harness.EDGES).abs()
    harness.assert_close(kernel(distance), plain(distance))
    harness.assert_same_gradients(kernel, plain, {"r": distance})


def test_double_backward():
    def derivative(function):
        def of(r):
            (grad,) = torch.autograd.grad(function(r).square().sum(), r, create_graph=True)
            return grad

        return of

    harness.assert_same_gradients(
        derivative(lambda r: radial_basis(r, 8, 3.0)),
        derivative(lambda r: reference.radial_basis(r, 8, 3.0)),
        {"r": harness.random(harness.EDGES).abs()},
    )


def test_backward():
    """∂B/∂r = −(r − μ) B/σ²."""
    distance = harness.random(harness.EDGES).abs().requires_grad_()
    basis = radial_basis(distance, 8, 3.0)
    (grad,) = torch.autograd.grad(basis.sum(), distance)
    centres, sigma = torch.linspace(0, 3.0, 8, dtype=torch.float64), 0.5 * 3.0 / 8
    expected = (-(distance[:, None] - centres) / sigma**2 * basis).sum(1)
    harness.assert_close(grad, expected.detach())


def test_gradcheck():
    harness.gradcheck(lambda r: radial_basis(r, 5, 2.0), harness.random(4).abs())


def test_contract():
    assert radial_basis(torch.zeros(0), 64, 10.0).shape == (0, 64)
    assert radial_basis(torch.zeros(2), 64, 10.0).dtype == torch.float32
    strided = torch.rand(4, 3, dtype=torch.float64)[:, 1]
    harness.assert_close(radial_basis(strided, 5, 2.0), reference.radial_basis(strided, 5, 2.0))
    torch.library.opcheck(torch.ops.nextham.radial_basis, (harness.leaf(strided), 5, 2.0))
    with harness.raises(ValueError, "distance: expected shape [e], got [2, 1]"):
        radial_basis(torch.zeros(2, 1), 64, 10.0)
    with harness.raises(ValueError, "n: expected at least 2 Gaussians, got 1"):
        radial_basis(torch.zeros(2), 1, 10.0)
    with harness.raises(ValueError, "stop: expected a positive distance, got 0.0"):
        radial_basis(torch.zeros(2), 64, 0.0)
    with harness.raises(TypeError, "distance: expected dtype float32 or float64, got int64"):
        radial_basis(torch.zeros(2, dtype=torch.int64), 64, 10.0)
