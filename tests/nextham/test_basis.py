import numpy as np
import pytest
import torch
from e3nn import o3
from scipy.special import sph_harm_y

from nextham.basis import PUBLISHED_SHELLS_PADDED, Basis, order_permutation, published_slots
from nextham.units import atomic_number


def test_published_basis():
    basis = Basis.published()
    assert len(basis.shells) == 68
    assert basis.label(14) == "2s2p1d"
    assert basis.n_orbitals(14) == 13
    assert max(basis.n_orbitals(z) for z in basis.shells) == 27 == sum(2 * l + 1 for l in PUBLISHED_SHELLS_PADDED)
    assert Basis.published([31, 33]).offsets(np.array([31, 33, 31])).tolist() == [0, 25, 38, 63]
    with pytest.raises(ValueError, match="no orbitals for U"):
        Basis.published([92])


def test_bad_shells():
    with pytest.raises(ValueError, match="ascending"):
        Basis({14: (1, 0)})
    with pytest.raises(ValueError, match="no orbitals for Ga"):
        Basis.published([14])[31]


def test_slots_of_silicon():
    assert published_slots((0, 0, 1, 1, 2)).tolist() == [0, 1, *range(4, 10), *range(10, 15)]
    with pytest.raises(ValueError, match="does not fit"):
        published_slots((0, 3, 3))


def real_harmonic(l, m, theta, phi):
    """The usual real harmonics (no Condon-Shortley phase), from scipy's complex ones."""
    if m == 0:
        return sph_harm_y(l, 0, theta, phi).real
    part = sph_harm_y(l, abs(m), theta, phi)
    return np.sqrt(2) * (-1) ** m * (part.real if m > 0 else part.imag)


@pytest.fixture(scope="module")
def directions():
    rng = np.random.default_rng(0)
    return rng.standard_normal((20, 3))


@pytest.mark.parametrize("l", range(4))
def test_e3nn_order_is_the_usual_order(l, directions):
    x, y, z = directions.T
    theta, phi = np.arccos(z / np.linalg.norm(directions, axis=1)), np.arctan2(y, x)
    usual = np.stack([real_harmonic(l, m, theta, phi) for m in range(-l, l + 1)], axis=1)
    e3nn = o3.spherical_harmonics(l, torch.tensor(directions[:, [1, 2, 0]]), normalize=True, normalization="integral")
    np.testing.assert_allclose(e3nn.numpy(), usual, atol=1e-7)


@pytest.mark.parametrize("l", range(5))
def test_abacus_order(l, directions):
    index, sign = order_permutation((l,), "abacus")
    m = index - l
    assert m.tolist() == [0, *(s * k for k in range(1, l + 1) for s in (1, -1))]
    assert sign.tolist() == [(-1.0) ** k for k in m]


def test_deeph_order(directions):
    x, y, z = directions.T
    r2 = x * x + y * y + z * z
    one = np.ones_like(x)
    polynomials = {
        0: [one],
        1: [x, y, z],
        2: [(3 * z * z - r2) / 2, np.sqrt(3) / 2 * (x * x - y * y), *(np.sqrt(3) * p for p in (x * y, x * z, y * z))],
        3: [
            z * (5 * z * z - 3 * r2) / 2,
            np.sqrt(3 / 8) * x * (5 * z * z - r2),
            np.sqrt(3 / 8) * y * (5 * z * z - r2),
            np.sqrt(15) / 2 * z * (x * x - y * y),
            np.sqrt(15) * x * y * z,
            np.sqrt(5 / 8) * x * (x * x - 3 * y * y),
            np.sqrt(5 / 8) * y * (3 * x * x - y * y),
        ],
    }
    for l, values in polynomials.items():
        e3nn = o3.spherical_harmonics(l, torch.tensor(directions[:, [1, 2, 0]]), normalize=False, normalization="norm")
        index, sign = order_permutation((l,), "deeph")
        np.testing.assert_allclose(sign[:, None] * e3nn.numpy().T[index], values, atol=1e-6)


@pytest.mark.parametrize("order", ["e3nn", "abacus", "deeph"])
def test_orders_are_permutations_with_signs(order):
    shells = PUBLISHED_SHELLS_PADDED
    index, sign = order_permutation(shells, order)
    assert sorted(index) == list(range(27))
    assert set(np.abs(sign)) == {1.0}
    with pytest.raises(ValueError, match="expected one of"):
        order_permutation(shells, "openmx")


def test_every_published_element_is_an_element():
    assert all(atomic_number(s) in Basis.published().shells for s in ("H", "Hg", "Bi", "Si"))
