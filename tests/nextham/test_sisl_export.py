import numpy as np
import pytest
import scipy.linalg
import sisl
import torch
from block_cases import BASIS, matrices, random_values, real_matrices
from e3nn import o3
from hypothesis import given, settings

from nextham.blocks import Blocks
from nextham.graph import neighbour_graph
from nextham.io.sisl_export import to_sisl
from nextham.structure import Structure

KS = ([0.0, 0.0, 0.0], [0.11, -0.27, 0.43], [0.5, 0.5, 0.0])


def test_bands_of_a_real_sample():
    found = real_matrices()
    exported = to_sisl(found["H"], found["S"], fermi=6.93)
    assert exported.spin.is_spinorbit and not exported.orthogonal
    assert exported.geometry.no == 26
    for k in KS:
        ours = scipy.linalg.eigh(found["H"].to_dense(k), found["S"].to_dense(k), eigvals_only=True)
        np.testing.assert_allclose(exported.eigh(k), ours - 6.93, atol=1e-9)


def sisl_signs(blocks):
    shells = [blocks.basis[z] for z in blocks.graph.structure.numbers]
    return np.concatenate([(-1.0) ** np.arange(-l, l + 1) for ls in shells for l in ls])


@settings(deadline=None, max_examples=25)
@given(H=matrices(dtypes=(np.float64, np.complex128), min_edges=1))
def test_matrices_are_ours(H):
    """H(k) element by element, in the gauge of lattice vectors: also where nothing is Hermitian."""
    if H.n_spin == 2:
        H = H.astype(np.float64) if not np.any(H.data.imag) else H.like(H.data.real.copy())
    S = random_values(H.graph, 1, np.float64, np.random.default_rng(0))
    exported = to_sisl(H, S, fermi=0.7)
    sign = sisl_signs(H)
    for k in KS:
        shifted = H.shift_gauge(S, -0.7)
        channels = [shifted.channel(s) for s in range(2)] if H.n_spin == 2 else [shifted]
        for s, channel in enumerate(channels):
            which = {"spin": s} if H.n_spin == 2 else {}
            found = exported.Hk(k, gauge="lattice", format="array", **which)
            signs = np.repeat(sign, 2) if H.n_spin == 4 else sign
            np.testing.assert_allclose(found, channel.to_dense(k) * np.outer(signs, signs), atol=1e-12)
        overlap = exported.Sk(k, gauge="lattice", format="array")
        signs = np.repeat(sign, len(overlap) // len(sign))
        expected = np.kron(S.to_dense(k), np.eye(len(overlap) // len(sign)))
        np.testing.assert_allclose(overlap, expected * np.outer(signs, signs), atol=1e-12)


def test_orbitals_are_what_sisl_calls_them():
    """Its harmonics are (−1)^m times those of e3nn, whose order m = −l … l the orbitals have."""
    structure = Structure(5 * np.eye(3), [[0, 0, 0], [2, 0, 0]], [31, 1])
    graph = neighbour_graph(structure, 3.0)
    exported = to_sisl(Blocks.zeros(graph, BASIS, 1), Blocks.zeros(graph, BASIS, 1))
    rng = np.random.default_rng(0)
    v = rng.standard_normal((9, 3))
    v /= np.linalg.norm(v, axis=1)[:, None]
    usual = o3.spherical_harmonics([0, 1, 2, 3], torch.tensor(v[:, [1, 2, 0]]), True, "integral").numpy()
    gallium, hydrogen = exported.geometry.atoms[0], exported.geometry.atoms[1]
    assert [o.l for o in gallium.orbitals] == [0, *[1] * 3, *[2] * 5, *[3] * 7]
    assert [o.zeta for o in hydrogen.orbitals] == [1, 2, 1, 1, 1]
    for i, orbital in enumerate(gallium.orbitals):
        radial = (np.linspace(0, 1, 9), np.ones(9))
        named = sisl.AtomicOrbital(orbital.n, orbital.l, orbital.m, orbital.zeta, radial)
        found = named.spher(np.arctan2(v[:, 1], v[:, 0]), v[:, 2], cos_phi=True)
        np.testing.assert_allclose(found, (-1) ** orbital.m * usual[:, i], atol=1e-6)


def test_sisl_can_work_with_it():
    """Bands of its own doubled cell are the folded ones."""
    found = real_matrices()
    exported = to_sisl(found["H0"], found["S"])
    k = np.array([0.2, 0.1, -0.3])
    folded = np.sort(np.concatenate([exported.eigh((k + np.array([i, 0, 0])) / [2, 1, 1]) for i in (0, 1)]))
    np.testing.assert_allclose(exported.tile(2, 0).eigh(k), folded, atol=1e-8)


def test_wrong_pairs():
    found = real_matrices()
    with pytest.raises(ValueError, match="depends on spin"):
        to_sisl(found["H"], found["H"])
    with pytest.raises(ValueError, match="structure and basis of H"):
        to_sisl(found["H"], found["S"].supercell(1, 1, 2))
    real = found["S"].spinless()
    with pytest.raises(ValueError, match="real overlap"):
        to_sisl(found["H"], Blocks(real.graph, real.basis, real.data + 1j, 1))
