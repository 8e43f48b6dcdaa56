import dataclasses
import itertools

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.transform
import scipy.special
import torch
from basis_files import orb_text, upf_text
from gaussian_orbitals import RADIUS, SHELLS, harmonics, integrals, radial

from nextham.blocks import Blocks
from nextham.graph import neighbour_graph
from nextham.h0 import nonlocal_potential, overlap_and_kinetic
from nextham.h0.nonlocal_part import angular_momentum
from nextham.h0.radial import Radial
from nextham.io.basis_directory import read_orbitals, read_pseudopotentials
from nextham.io.csr import read_blocks
from nextham.io.packed_sample import read_packed
from nextham.io.stru import read_stru
from nextham.structure import Structure
from nextham.units import BOHR, RYDBERG, SYMBOLS
from nextham_kernels.clebsch_gordan import wigner_d

CELL = np.array([[4.9, 0.2, 0.1], [0.4, 5.1, -0.3], [-0.2, 0.3, 4.4]])
POSITIONS = np.array([[0.1, 0.2, 0.3], [1.6, 1.4, 1.9], [2.4, 3.3, 3.2]])
STRUCTURE = Structure(CELL, POSITIONS, np.array([14, 1, 14]))

# (l, j, exponent) of each projector: not sorted, two with the same l and j.
PROJECTORS = {
    1: ((0, 0.5, 1.5),),
    14: ((1, 1.5, 1.4), (0, 0.5, 1.3), (1, 0.5, 1.6), (2, 2.5, 1.7), (1, 1.5, 2.2), (2, 1.5, 1.7)),
}
REACH = 4.8
D = {1: np.array([[2.0]]), 14: np.diag([1.5, -3.0, 2.5, 0.5, -1.0, 0.7])}
D[14][0, 4] = D[14][4, 0] = 0.4


def r_beta(l, exponent):
    return lambda r: r * radial(l, exponent)(r)


def write(folder, spin_orbit):
    for z, shells in SHELLS.items():
        text = orb_text(SYMBOLS[z], [(l, radial(l, exponent)) for l, exponent in shells], RADIUS[z])
        (folder / f"{SYMBOLS[z]}_gaussian.orb").write_text(text)
        betas = [(l, j if spin_orbit else None, r_beta(l, exponent)) for l, j, exponent in PROJECTORS[z]]
        d = D[z] if spin_orbit else np.diag(np.diag(D[z]))
        (folder / f"{SYMBOLS[z]}.upf").write_text(upf_text(SYMBOLS[z], 1.0, betas, d, radius=REACH))
    return read_orbitals(folder, SHELLS), read_pseudopotentials(folder, SHELLS)


@pytest.fixture(scope="module")
def relativistic(tmp_path_factory):
    return write(tmp_path_factory.mktemp("relativistic"), True)


@pytest.fixture(scope="module")
def scalar(tmp_path_factory):
    return write(tmp_path_factory.mktemp("scalar"), False)


@pytest.fixture(scope="module")
def matrix(relativistic):
    return nonlocal_potential(STRUCTURE, *relativistic)


def spin_angle_projector(l, j):
    """Σ_mj |l 1/2 j mj⟩⟨l 1/2 j mj| from Clebsch-Gordan coefficients, in real harmonics [m, s, m', s']."""
    v = np.random.default_rng(0).normal(size=(40, 3))
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    polar, azimuth = np.arccos(v[:, 2]), np.arctan2(v[:, 1], v[:, 0])
    of_complex = np.stack([scipy.special.sph_harm_y(l, m, polar, azimuth) for m in range(-l, l + 1)], axis=1)
    # Y_complex = Y_real · change
    change = np.linalg.lstsq(harmonics(l, v).astype(complex), of_complex, rcond=None)[0]
    total = np.zeros((2 * l + 1, 2, 2 * l + 1, 2), dtype=complex)
    for twice in range(-round(2 * j), round(2 * j) + 1, 2):
        mj = twice / 2
        state = np.zeros((2 * l + 1, 2), dtype=complex)
        plus, minus = np.sqrt((l + mj + 0.5) / (2 * l + 1)), np.sqrt((l - mj + 0.5) / (2 * l + 1))
        up, down = (plus, minus) if j > l else (-minus, plus)
        if abs(mj - 0.5) <= l:
            state[:, 0] = up * change[:, round(mj - 0.5) + l]
        if abs(mj + 0.5) <= l:
            state[:, 1] = down * change[:, round(mj + 0.5) + l]
        total += np.einsum("ms,nt->msnt", state, state.conj())
    return total


def expected_block(i, j, R, spin_orbit):
    """V_NL between atom i and atom j in cell R by a loop over all projectors [4, a, b], Ry."""
    numbers, tau = STRUCTURE.numbers, POSITIONS
    place_i, place_j = tau[i], tau[j] + R @ CELL
    total = 0.0
    for atom, shift in itertools.product(range(len(numbers)), itertools.product(range(-4, 5), repeat=3)):
        place = tau[atom] + np.array(shift) @ CELL
        z = numbers[atom]
        from_i, from_j = (place - place_i) / BOHR, (place - place_j) / BOHR
        if max(np.linalg.norm(from_i) - RADIUS[numbers[i]], np.linalg.norm(from_j) - RADIUS[numbers[j]]) > REACH:
            continue
        for (n, (l, jn, a)), (k, (lk, jk, b)) in itertools.product(enumerate(PROJECTORS[z]), repeat=2):
            if D[z][n, k] == 0 or (not spin_orbit and n != k):
                continue
            assert (l, jn) == (lk, jk)
            bra = np.concatenate([integrals(shell, (l, a), from_i)[0] for shell in SHELLS[numbers[i]]])
            ket = np.concatenate([integrals(shell, (l, b), from_j)[0] for shell in SHELLS[numbers[j]]])
            p = spin_angle_projector(l, jn) if spin_orbit else np.einsum("mn,st->msnt", np.eye(2 * l + 1), np.eye(2))
            total = total + D[z][n, k] * np.einsum("am,msnt,bn->stab", bra, p, ket)
    return total.reshape(4, *total.shape[2:])


def test_gaussian_projectors(matrix, scalar):
    simple = nonlocal_potential(STRUCTURE, *scalar)
    assert (matrix.n_spin, matrix.data.dtype) == (4, np.complex128)
    assert (simple.n_spin, simple.data.dtype) == (1, np.float64)
    graph = matrix.graph
    chosen = [*np.argsort(graph.distance())[[0, 1, 2, 3, 6]], *np.random.default_rng(1).choice(graph.n_edges, 2)]
    for e in chosen:
        where = int(graph.src[e]), int(graph.dst[e]), graph.R[e]
        np.testing.assert_allclose(matrix.block(e) / RYDBERG, expected_block(*where, True), rtol=0, atol=1e-8)
        assert simple.graph.find(graph.select(np.array([e])))[0] == e
        np.testing.assert_allclose(simple.block(e)[0] / RYDBERG, expected_block(*where, False)[0], rtol=0, atol=1e-8)
    assert max(np.abs(matrix.block(e)[1:3]).max() for e in chosen) > 0.1


@pytest.mark.parametrize("l", [0, 1, 2, 3])
def test_angular_momentum(l):
    m = angular_momentum(l)
    np.testing.assert_allclose(m + m.swapaxes(1, 2), 0, atol=1e-14)
    np.testing.assert_allclose(sum(x @ x for x in m), -l * (l + 1) * np.eye(2 * l + 1), atol=1e-13)
    # exp(−i θ L) turns the harmonics by θ.
    axis = np.array([0.3, -0.5, 0.8])
    rotation = scipy.spatial.transform.Rotation.from_rotvec(axis).as_matrix()
    turned = scipy.linalg.expm(np.einsum("k,kab->ab", axis, m))
    np.testing.assert_allclose(turned, wigner_d(torch.from_numpy(rotation), 3)[l].numpy(), atol=1e-12)


def test_hermitian_and_equivariant(relativistic, matrix):
    assert matrix.hermitian_error() < 1e-11
    turn = scipy.spatial.transform.Rotation.from_euler("zyx", [0.3, 1.1, -0.7])
    rotation = turn.as_matrix()
    structure = Structure(CELL @ rotation.T, POSITIONS @ rotation.T, STRUCTURE.numbers)
    d = [x.numpy() for x in wigner_d(torch.from_numpy(rotation), 3)]
    of_element = {z: scipy.linalg.block_diag(*(d[l] for l, _ in SHELLS[z])) for z in SHELLS}
    sigma = np.array([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])
    spin = scipy.linalg.expm(-0.5j * np.einsum("k,kst->st", turn.as_rotvec(), sigma))
    expected = matrix.like(matrix.data.copy())
    for z_a, z_b, edges, blocks in matrix.groups():
        wide = blocks.reshape(len(edges), 2, 2, *blocks.shape[2:])
        wide = np.einsum("su,euvab,tv->estab", spin, wide, spin.conj())
        expected.put(edges, of_element[z_a] @ wide.reshape(blocks.shape) @ of_element[z_b].T)
    found = nonlocal_potential(structure, *relativistic)
    np.testing.assert_array_equal(found.graph.R, expected.graph.R)
    np.testing.assert_allclose(found.data, expected.data, rtol=0, atol=1e-10)


def test_translation_and_pieces(relativistic, matrix, monkeypatch):
    monkeypatch.setattr("nextham.h0.nonlocal_part._CHUNK", 501)
    elsewhere = Structure(CELL, POSITIONS + np.array([[1, 0, -2], [0, 3, 0], [-1, -1, 1]]) @ CELL, STRUCTURE.numbers)
    found = nonlocal_potential(elsewhere, *relativistic)
    np.testing.assert_array_equal(found.graph.R, matrix.graph.R)
    np.testing.assert_allclose(found.data, matrix.data, rtol=0, atol=1e-10)


def test_plus(relativistic, matrix):
    wide = neighbour_graph(STRUCTURE, 15.0)
    some = wide.select(np.arange(0, wide.n_edges, 3))
    lonely = matrix.graph.find(some) < 0
    assert 0 < lonely.sum() < some.n_edges
    size = len(Blocks.zeros(some, matrix.basis, 1).data)
    plus = Blocks(some, matrix.basis, np.random.default_rng(3).standard_normal(size), 1)
    found = nonlocal_potential(STRUCTURE, *relativistic, plus=plus)
    assert found.n_edges == matrix.n_edges + lonely.sum()
    expected = matrix.on(found.graph) + plus.on(found.graph).with_spin(4)
    np.testing.assert_array_equal(found.data, expected.data)


def test_contract(relativistic):
    orbitals, pseudopotentials = relativistic
    with pytest.raises(ValueError, match=r"orbitals: none for H$"):
        nonlocal_potential(STRUCTURE, {14: orbitals[14]}, pseudopotentials)
    with pytest.raises(ValueError, match=r"pseudopotentials: none for Si$"):
        nonlocal_potential(STRUCTURE, orbitals, {1: pseudopotentials[1]})


@pytest.mark.shared
@pytest.mark.parametrize("name", ["Si-1", "GaAs-1"])
def test_spin_orbit_part_is_that_of_abacus(shared, name):
    folder = shared / "data/abacus" / name
    structure = read_stru(folder / "STRU").structure
    orbitals = read_orbitals(shared / "data/basis", structure.numbers)
    found = nonlocal_potential(structure, orbitals, read_pseudopotentials(shared / "data/basis", structure.numbers))
    h0 = read_blocks(folder / "hrs0_nao.csr.xz", structure, found.basis)
    # Only V_NL depends on spin or is imaginary; between orbitals that do not overlap, H0 is V_NL.
    apart = overlap_and_kinetic(structure, orbitals)[0].graph.find(found.graph) < 0
    assert apart.sum() > 50
    assert (found.graph.find(h0.graph) >= 0).all()  # all that ABACUS has
    expected = h0.on(found.graph)
    largest = 0.0
    for _, _, edges, blocks in found.groups():
        difference = blocks - expected.data[expected.index(edges)]
        spin = np.stack([difference[:, 1], difference[:, 2], difference[:, 0] - difference[:, 3]], axis=1)
        assert np.abs(spin).max() < 1e-8
        assert np.abs(difference.imag).max() < 1e-8
        assert np.abs(difference[apart[edges]]).max(initial=0.0) < 2e-8
        largest = max(largest, float(np.abs(blocks[:, 1]).max()))
    assert largest > 1e-3


@pytest.mark.shared
@pytest.mark.parametrize("name", ["CdTe-1", "CdTe-2"])
def test_projectors_with_a_jagged_end(shared, name):
    """Cd's d projectors end with steps of 1e-3; all their elements, 0.27 eV, depend on where they are cut."""
    sample = read_packed(shared / "data/packed" / f"{name}.npz.xz")
    numbers = sample.structure.numbers
    orbitals = read_orbitals(shared / "data/basis", numbers)
    pseudopotentials = read_pseudopotentials(shared / "data/basis", numbers)
    found = nonlocal_potential(sample.structure, orbitals, pseudopotentials)
    cadmium = int(np.flatnonzero(numbers == 48)[0])
    edge = int(np.flatnonzero(found.graph.onsite() & (found.graph.src == cadmium))[0])
    expected = sample.matrices["H0"].on(found.graph).block(edge)
    d = np.flatnonzero(np.repeat(orbitals[48].shells, [2 * l + 1 for l in orbitals[48].shells]) == 2)
    for a, b in itertools.product(d.reshape(2, 5), repeat=2):
        ours, theirs = (matrix[:, a][:, :, b].imag for matrix in (found.block(edge), expected))
        # The sample keeps H to 2.7e-6 eV; over a block of 5 × 5 the error of a common factor is far smaller.
        assert abs((ours * theirs).sum() / (ours * ours).sum() - 1) < 1e-6
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=3e-6)


def test_where_projectors_end(scalar):
    """0.02 · 69 exceeds 1.38 in floating point, and 0.02 · 68 does not exceed 1.36: as in ABACUS."""
    pseudo = scalar[1][1]
    for last, kept in ((139, 68), (138, 68), (137, 68), (136, 68), (135, 67)):
        r_beta = np.where(pseudo.r <= pseudo.dr * (last + 0.5), pseudo.r + 1.0, 0.0)
        radial = Radial.of_projectors(dataclasses.replace(pseudo, r_beta=np.stack([r_beta] * len(pseudo.l))))
        assert radial.dr == 0.02
        np.testing.assert_allclose(radial.r_f[0], [*(0.02 * np.arange(kept + 1) + 1), 0], atol=1e-13)
    # A mesh that 0.02 Bohr is no multiple of: between its points a spline.
    fine = dataclasses.replace(pseudo, dr=0.0125, r_beta=np.sin(0.0125 * np.arange(401))[None], l=(0,))
    radial = Radial.of_projectors(fine)
    np.testing.assert_allclose(radial.r_f[0, :-1], np.sin(0.02 * np.arange(251)), atol=1e-9)
    empty = Radial.of_projectors(dataclasses.replace(pseudo, r_beta=np.zeros_like(pseudo.r_beta)))
    assert not empty.r_f.any()
