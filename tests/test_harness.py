"""The harness itself: each of its checks can fail."""

import math

import harness
import pytest
import torch


def test_relative_error():
    one = torch.ones(3)
    assert harness.relative_error(one, one) == 0
    assert harness.relative_error(1.5 * one, one) == pytest.approx(0.5)
    assert harness.relative_error(one, torch.ones(4)) == math.inf
    assert harness.relative_error(one * math.nan, one) == math.inf
    assert harness.relative_error(one, 0 * one) == math.inf
    assert harness.relative_error(0 * one, 0 * one) == 0
    assert harness.relative_error(torch.ones(0), torch.ones(0)) == 0


def test_assert_close_can_fail():
    harness.assert_close(torch.ones(2), torch.ones(2) * (1 + 1e-13))
    with harness.raises(AssertionError, "energy: relative error"):
        harness.assert_close(
            torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64) + 1e-9, what="energy"
        )


def test_a_kernel_may_not_be_much_worse_than_its_reference():
    def reference(x, n):
        return x.cumsum(0) / n

    def sloppy(x, n):
        return reference(x, n) * (1 + 1e-5)

    inputs = (harness.random(1000).float(), 3)
    harness.assert_as_exact_as_reference(reference, reference, inputs)
    with harness.raises(AssertionError, "relative error"):
        harness.assert_as_exact_as_reference(sloppy, reference, inputs)
    with harness.raises(AssertionError, "dtype"):
        harness.assert_as_exact_as_reference(lambda x, n: reference(x.double(), n), reference, inputs)
    with harness.raises(AssertionError, "2 results"):
        harness.assert_as_exact_as_reference(lambda x, n: (x, x), reference, inputs)


def test_gradients_are_compared_by_name():
    inputs = {"x": harness.random(4), "w": harness.random(4, seed=1)}
    harness.assert_same_gradients(lambda x, w: x * w, lambda x, w: w * x, inputs)
    with harness.raises(AssertionError, "grad_w"):
        harness.assert_same_gradients(lambda x, w: x * w, lambda x, w: x * w.detach() + 0 * w, inputs)


def test_gradcheck_can_fail():
    harness.gradcheck(torch.sin, harness.random(3))

    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x**2

        @staticmethod
        def backward(ctx, grad):
            return grad

    with pytest.raises(RuntimeError, match="Jacobian mismatch"):
        harness.gradcheck(Wrong.apply, harness.random(3))


def test_rotations_are_representations():
    a, b = harness.random_rotation(1), harness.random_rotation(2)
    assert float(torch.det(a)) == pytest.approx(1)
    irreps = "2x0o+1x1o+1x2e+1x3e"
    product = harness.representation(irreps, a) @ harness.representation(irreps, b)
    harness.assert_close(harness.representation(irreps, a @ b), product)
    identity = harness.representation(irreps, torch.eye(3, dtype=torch.float64), inversion=True)
    harness.assert_close(identity, torch.diag(torch.tensor([-1.0] * 5 + [1.0] * 12, dtype=torch.float64)))


def test_spin_rotates_the_pauli_matrices_as_a_vector():
    rotation = harness.random_rotation(3)
    u = harness.spin_representation(rotation)
    sigma = torch.tensor([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]], dtype=torch.complex128)
    harness.assert_close(u @ u.mH, torch.eye(2, dtype=torch.complex128))
    turned = torch.stack([u @ s @ u.mH for s in sigma])
    harness.assert_close(turned, torch.einsum("ji,jab->iab", rotation + 0j, sigma))
    assert harness.relative_error(turned, sigma) > 0.1
