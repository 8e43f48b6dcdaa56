"""radial_basis against a double loop."""

import math

import harness
import pytest
import torch

from nextham_kernels.ops.radial_basis import radial_basis


def test_reference_is_the_definition():
    distance = harness.random(harness.EDGES).abs() * 4
    basis = radial_basis(distance, 64, 10.0)
    for e, r in enumerate(distance.tolist()):
        for c in range(64):
            centre, sigma = 10.0 * c / 63, 0.5 * 10.0 / 64
            expected = math.exp(-((r - centre) ** 2) / (2 * sigma**2))
            assert float(basis[e, c]) == pytest.approx(expected, rel=1e-10, abs=1e-300)


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
    with harness.raises(ValueError, "distance: expected shape [e], got [2, 1]"):
        radial_basis(torch.zeros(2, 1), 64, 10.0)
    with harness.raises(ValueError, "n: expected at least 2 Gaussians, got 1"):
        radial_basis(torch.zeros(2), 1, 10.0)
    with harness.raises(ValueError, "stop: expected a positive distance, got 0.0"):
        radial_basis(torch.zeros(2), 64, 0.0)
    with harness.raises(TypeError, "distance: expected dtype float32 or float64, got int64"):
        radial_basis(torch.zeros(2, dtype=torch.int64), 64, 10.0)
