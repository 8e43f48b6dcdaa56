"""Wigner 3j symbols and D matrices against scipy's spherical harmonics and e3nn."""

import harness
import pytest
import torch
from e3nn import o3

from nextham_kernels.clebsch_gordan import irreps_of, wigner_3j, wigner_d

TRIPLES = [(a, b, c) for a in range(5) for b in range(6) for c in range(5) if abs(a - b) <= c <= a + b]


@pytest.mark.parametrize("degrees", TRIPLES)
def test_wigner_3j_is_invariant_and_normalised(degrees):
    c = wigner_3j(*degrees)
    assert c.dtype == torch.float64
    assert float(c.square().sum()) == pytest.approx(1, abs=1e-14)
    d = wigner_d(harness.random_rotation(1), 5)
    turned = torch.einsum("abc,ia,jb,kc->ijk", c, *(d[l] for l in degrees))
    harness.assert_close(turned, c)


def test_wigner_3j_is_e3nns():
    high = [(7, 6, 1), (10, 9, 8), (12, 5, 9)]
    for degrees in [*TRIPLES, *high]:
        expected = o3.wigner_3j(*degrees, dtype=torch.float64)
        difference = wigner_3j(*degrees) - expected
        assert float(difference.abs().max()) < 1e-15, degrees
        assert torch.equal(wigner_3j(*degrees) != 0, expected.abs() > 1e-12), degrees


def test_wigner_3j_is_exact_in_float64():
    # (1 1 0): δ_ij/√3; (1 1 1): ε_ijk/√6
    eye = torch.eye(3, dtype=torch.float64)
    assert torch.allclose(wigner_3j(1, 1, 0)[:, :, 0], eye / 3**0.5, rtol=0, atol=2e-16)
    epsilon = torch.linalg.cross(eye[:, None].expand(3, 3, 3), eye[None].expand(3, 3, 3))
    assert torch.allclose(wigner_3j(1, 1, 1), epsilon / 6**0.5, rtol=0, atol=2e-16)


def test_wigner_3j_dtype_and_cache():
    assert wigner_3j(2, 1, 1, torch.float32).dtype == torch.float32
    assert wigner_3j(2, 1, 1) is wigner_3j(2, 1, 1)


def test_wigner_d_rotates_spherical_harmonics():
    rotation, vector = harness.random_rotation(2), harness.random(harness.EDGES, 3)
    for l, d in enumerate(wigner_d(rotation, 6)):
        before = o3.spherical_harmonics(l, vector[:, [1, 2, 0]], normalize=True)
        after = o3.spherical_harmonics(l, (vector @ rotation.T)[:, [1, 2, 0]], normalize=True)
        harness.assert_close(before @ d.T, after)


def test_wigner_d_batches_and_differentiates():
    rotations = torch.stack([harness.random_rotation(s) for s in range(3)])
    batch = wigner_d(rotations, 3)
    assert [m.shape[1:] for m in batch] == [(2 * l + 1, 2 * l + 1) for l in range(4)]
    harness.assert_close(batch[3][1], wigner_d(rotations[1], 3)[3])
    torch.autograd.gradcheck(lambda r: wigner_d(r, 2)[2], rotations[0].clone().requires_grad_())


def test_irreps_of():
    assert irreps_of("2x1o") is irreps_of("2x1o")
    assert irreps_of(o3.Irreps("2x1o")) == o3.Irreps("2x1o")


def test_contract():
    with harness.raises(ValueError, "l3: expected |l1 - l2| <= l3 <= l1 + l2, got l1 = 1, l2 = 1, l3 = 3"):
        wigner_3j(1, 1, 3)
    with harness.raises(ValueError, "rotation: expected shape [..., 3, 3], got [3, 2]"):
        wigner_d(torch.zeros(3, 2), 1)
    with pytest.raises(ValueError):
        irreps_of("nonsense")
