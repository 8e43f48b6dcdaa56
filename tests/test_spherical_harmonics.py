"""spherical_harmonics against Legendre functions of scipy and against closed forms."""

import math

import harness
import numpy as np
import pytest
import scipy.special
import torch

from nextham_kernels.clebsch_gordan import wigner_d
from nextham_kernels.ops.spherical_harmonics import reference, solid_harmonics, spherical_harmonics

L_MAX = 7


def definition(vector, l_max):
    """√(4π) × the usual real spherical harmonics, without the Condon-Shortley phase."""
    x, y, z = vector.numpy().T
    cos_theta, phi = z / np.sqrt(x * x + y * y + z * z), np.arctan2(y, x)
    columns = []
    for l in range(l_max + 1):
        for m in range(-l, l + 1):
            k = abs(m)
            scale = math.sqrt((2 * l + 1) * math.factorial(l - k) / math.factorial(l + k)) * (-1) ** k
            angle = 1 if m == 0 else math.sqrt(2) * (np.cos(k * phi) if m > 0 else np.sin(k * phi))
            columns.append(scale * scipy.special.lpmv(k, l, cos_theta) * angle)
    return torch.tensor(np.stack(columns, axis=1))


def test_reference_is_the_definition():
    vector = harness.random(harness.EDGES, 3)
    harness.assert_close(spherical_harmonics(vector, L_MAX), definition(vector, L_MAX))


def test_axes():
    """Y_1 is √3 (y, z, x)/r and Y_2 at z is √5 in m = 0."""
    y = spherical_harmonics(torch.tensor([[1.0, 2.0, 2.0]], dtype=torch.float64), 1)
    harness.assert_close(y[0, 1:], 3**0.5 * torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64) / 3)
    pole = spherical_harmonics(torch.tensor([[0.0, 0.0, 3.0]], dtype=torch.float64), 2)
    harness.assert_close(pole[0, 4:], torch.tensor([0, 0, 5**0.5, 0, 0], dtype=torch.float64))


def test_backward():
    """Against central differences of the definition; the gradient along r is zero."""
    vector = harness.random(harness.EDGES, 3).requires_grad_()
    weight = harness.random(harness.EDGES, (L_MAX + 1) ** 2, seed=1)
    (grad,) = torch.autograd.grad((spherical_harmonics(vector, L_MAX) * weight).sum(), vector)
    expected = torch.empty_like(grad)
    for i in range(3):
        step = torch.zeros(3, dtype=torch.float64)
        step[i] = 1e-5
        plus, minus = (definition(vector.detach() + s * step, L_MAX) for s in (1, -1))
        expected[:, i] = ((plus - minus) * weight).sum(1) / 2e-5
    harness.assert_close(grad, expected, 1e-7)
    assert float((grad * vector.detach()).sum(1).abs().max()) < 1e-11


def test_gradcheck():
    harness.gradcheck(lambda v: spherical_harmonics(v, 3), harness.random(3, 3))


def test_zero_vector():
    vector = torch.zeros(2, 3, dtype=torch.float64)
    vector[1] = 1.0
    vector.requires_grad_()
    y = spherical_harmonics(vector, 5)
    assert y[0].tolist() == [1.0] + [0.0] * 35
    (grad,) = torch.autograd.grad(y.square().sum() + y.sum(), vector)
    assert grad[0].tolist() == [0.0, 0.0, 0.0]
    assert bool(torch.isfinite(grad).all())


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion):
    vector, rotation = harness.random(harness.EDGES, 3), harness.random_rotation(1)
    turned = spherical_harmonics(vector @ rotation.T * (-1 if inversion else 1), 5)
    blocks = [d * ((-1) ** l if inversion else 1) for l, d in enumerate(wigner_d(rotation, 5))]
    harness.assert_close(turned, spherical_harmonics(vector, 5) @ torch.block_diag(*blocks).T)


def test_length_does_not_matter():
    vector = harness.random(harness.EDGES, 3)
    harness.assert_close(spherical_harmonics(7 * vector, 4), spherical_harmonics(vector, 4))


def test_contract():
    assert spherical_harmonics(torch.zeros(0, 3), 5).shape == (0, 36)
    vector = harness.random(3, harness.EDGES)
    harness.assert_close(spherical_harmonics(vector.T, 3), spherical_harmonics(vector.T.contiguous(), 3))
    with harness.raises(ValueError, "vector: expected shape [e, 3], got [3, 17]"):
        spherical_harmonics(vector, 3)
    with harness.raises(ValueError, "l_max: expected 0 to 11, got 12"):
        spherical_harmonics(vector.T, 12)
    with harness.raises(TypeError, "vector: expected dtype float32 or float64, got int64"):
        spherical_harmonics(torch.zeros(1, 3, dtype=torch.int64), 3)


@pytest.mark.triton
@pytest.mark.parametrize("l_max", [1, 5])
def test_gpu_kernel(l_max):
    harness.assert_gpu_kernel(
        "solid_harmonics tensor_product" + " tensor_product_backward" * (l_max == 5),
        lambda vector: solid_harmonics(vector, l_max),
        lambda vector: reference.solid_harmonics(vector, l_max),
        {"vector": harness.random(5, 3)},
        float32=2e-6,
        second=l_max == 5,
    )


@pytest.mark.triton
def test_gpu_kernel_at_zero_and_without_rows():
    with harness.on_gpu() as device:
        y = spherical_harmonics(torch.zeros(2, 3, device=device), 3)
        assert solid_harmonics(torch.ones(2, 3, device=device), 0).eq(1).all()
        assert spherical_harmonics(torch.zeros(0, 3, device=device), 3).shape == (0, 16)
    assert y[:, 0].eq(1).all() and not y[:, 1:].any()
