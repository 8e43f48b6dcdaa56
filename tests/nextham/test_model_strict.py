"""Strict targets are exactly equivariant, the published one is not; the floor norm keeps the symmetry of a crystal."""

import dataclasses
import itertools

import harness
import numpy as np
import pytest
import torch

from nextham.basis import Basis
from nextham.data import sample
from nextham.io.csr import read_blocks
from nextham.io.stru import read_stru
from nextham.model import Ensemble, NextHAMConfig
from nextham_kernels.clebsch_gordan import wigner_d
from nextham_kernels.ops.spherical_harmonics import spherical_harmonics


def real_structure(folder, within):
    """Padded H⁽⁰⁾ blocks and edges of an ABACUS run, as tensors."""
    structure = read_stru(folder / "STRU").structure
    blocks = read_blocks(folder / "hrs0_nao.csr.xz", structure, Basis.published(structure.numbers)).within(0.0, within)
    edges = (blocks.graph.src, blocks.graph.dst, blocks.graph.vector())
    return torch.tensor(blocks.padded()), *(torch.tensor(x) for x in edges)


def ensemble_of(**changes):
    """The published sizes, random weights, float64; two networks cover 0 to 4.6 Å."""
    torch.manual_seed(0)
    return Ensemble(dataclasses.replace(NextHAMConfig(), ranges=((0.0, 2.0), (2.0, 6.0)), **changes)).double()


def predict(ensemble, blocks, src, dst, vector):
    with torch.no_grad():
        irreps = ensemble.irreps_of_blocks(blocks)
        return ensemble.correction(ensemble(irreps, src, dst, vector, with_trace=False).irreps)


def turned(blocks, shells, rotation, inversion):
    """(D ⊗ U) H (D ⊗ U)†, each orbital with its parity (−1)^l; the spin has none."""
    matrices = wigner_d(rotation, max(shells))
    d = torch.block_diag(*(matrices[l] * ((-1) ** l if inversion else 1) for l in shells)).to(blocks.dtype)
    u = harness.spin_representation(rotation)
    spin = (d @ blocks @ d.T).unflatten(1, (2, 2))
    return torch.einsum("xs,estab,yt->exyab", u, spin, u.conj()).flatten(1, 2)


@pytest.fixture(scope="module")
def silicon():
    return real_structure(sample("Si-1"), 4.6)


def equivariance_error(ensemble, structure, rotation, inversion):
    blocks, src, dst, vector = structure
    shells = ensemble.config.shells
    there = predict(
        ensemble,
        turned(blocks, shells, rotation, inversion),
        src,
        dst,
        vector @ rotation.T * (-1 if inversion else 1),
    )
    return harness.relative_error(there, turned(predict(ensemble, *structure), shells, rotation, inversion))


@pytest.mark.parametrize("norm", ["published", "floor"])
@pytest.mark.parametrize("target", ["scalar", "scalar+vector"])
def test_strict_targets_are_equivariant(silicon, target, norm):
    ensemble = ensemble_of(target=target, norm=norm)
    for seed, inversion in ((1, False), (2, True)):
        assert equivariance_error(ensemble, silicon, harness.random_rotation(seed), inversion) < 1e-10
    assert equivariance_error(ensemble, silicon, torch.eye(3, dtype=torch.float64), True) < 1e-10


def test_the_published_target_is_not(silicon):
    """Re ↑↑ mixes in the vector component h_z, so turning the crystal changes the answer."""
    assert equivariance_error(ensemble_of(target="uu"), silicon, harness.random_rotation(1), False) > 0.1


def test_vector_part_is_there(silicon):
    scalar, both = (predict(ensemble_of(target=t), *silicon) for t in ("scalar", "scalar+vector"))
    same = (both[:, 0] + both[:, 3]) / 2
    harness.assert_close(same, scalar[:, 0])
    assert float(both[:, 1].abs().max()) > 0.1 * float(both[:, 0].abs().max())


# --- the trap of ideal crystals


def diamond():
    """An ideal crystal: diamond's edges below 4.6 Å, and a spinless H with every component that symmetry allows.

    Block irreps are x_LM = c_L(|r|) Y_LM(r̂) where the parity fits and 0 elsewhere, so what keeps the lattice keeps H.
    """
    config = NextHAMConfig(
        hidden="8x0e+4x1o+4x1e+4x2e+4x2o+4x3o",
        l_max=3,
        tracegrad_forms=32,
        tracegrad_forms_last=32,
        tracegrad_widths=(16, 16),
        trace_widths=(16,),
        ranges=((0.0, 4.6),),
        shells=(0, 1, 2),
        spinor=False,
        target="scalar",
    )
    cell = 2.715 * (np.ones((3, 3)) - np.eye(3))
    positions = np.array([[0.0, 0.0, 0.0], [1.3575] * 3])
    src, dst, vector = [], [], []
    for i, j, *shift in itertools.product((0, 1), (0, 1), *[range(-3, 4)] * 3):
        r = positions[j] - positions[i] + np.array(shift) @ cell
        if np.linalg.norm(r) < 4.6:
            src, dst, vector = [*src, i], [*dst, j], [*vector, r]
    vector = torch.tensor(np.array(vector))
    distance = vector.norm(dim=1, keepdim=True)
    harmonics = spherical_harmonics(vector, 4)
    h0 = []
    for number, (_, ir) in enumerate(config.block_irreps):
        radial = torch.cos(0.7 * number + distance) * torch.exp(-0.5 * distance)
        h0.append(radial * harmonics[:, ir.l**2 : (ir.l + 1) ** 2] * (ir.p == (-1) ** ir.l))
    return config, (torch.cat(h0, 1), torch.tensor(src), torch.tensor(dst), vector)


def response_to_noise(config, h0, src, dst, vector, noise):
    """By how much of the largest output a noise of that size, relative to the largest input, changes the output."""
    torch.manual_seed(0)
    ensemble = Ensemble(config).double()
    with torch.no_grad():
        clean = ensemble(h0, src, dst, vector).irreps
        noisy = ensemble(h0 + noise * h0.abs().max() * harness.random(*h0.shape), src, dst, vector).irreps
    return harness.relative_error(noisy, clean)


def test_an_ideal_crystal_keeps_its_symmetry_with_the_floor_norm():
    config, inputs = diamond()
    floor = dataclasses.replace(config, norm="floor")
    assert response_to_noise(floor, *inputs, noise=1e-10) < 1e-6
    # a linear response, not a lucky number
    assert response_to_noise(floor, *inputs, noise=1e-8) < 1e-4
    assert response_to_noise(floor, *inputs, noise=1e-12) < 1e-8


def test_and_not_with_the_published_norm():
    config, inputs = diamond()
    assert response_to_noise(config, *inputs, noise=1e-10) > 0.01


@pytest.mark.shared
def test_ideal_silicon(shared):
    """The published sizes on a real crystal: C₃ about [111] keeps each atom, so it must keep its on-site block."""
    structure = real_structure(shared / "data" / "abacus" / "Si-0", 4.6)
    rotation = torch.tensor([[0.0, 0, 1], [1, 0, 0], [0, 1, 0]], dtype=torch.float64)
    errors = {}
    for norm in ("published", "floor"):
        ensemble = ensemble_of(target="scalar", norm=norm)
        onsite = predict(ensemble, *structure)[structure[3].norm(dim=1) == 0]
        errors[norm] = harness.relative_error(turned(onsite, ensemble.config.shells, rotation, False), onsite)
    assert errors["floor"] < 1e-8
    assert errors["published"] > 0.1
