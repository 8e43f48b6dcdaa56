import numpy as np
import pytest
import scipy.interpolate
import scipy.linalg
import scipy.spatial.transform
import torch
from basis_files import orb_text
from gaussian_orbitals import RADIUS, SHELLS, integrals, radial

from nextham.basis import Basis
from nextham.h0 import TwoCenterTable, overlap_and_kinetic, two_center
from nextham.h0.radial import Radial
from nextham.io.basis_directory import read_orbitals
from nextham.io.csr import read_blocks
from nextham.io.orb import read_orb
from nextham.io.packed_sample import read_packed
from nextham.io.stru import read_stru
from nextham.structure import Structure
from nextham.units import BOHR, RYDBERG, SYMBOLS
from nextham_kernels.clebsch_gordan import wigner_d

# A cell that is smaller than the orbitals reach (8 and 9 Bohr).
CELL = np.array([[2.9, 0.2, 0.1], [0.4, 3.1, -0.3], [-0.2, 0.3, 3.4]])
POSITIONS = np.array([[0.1, 0.2, 0.3], [1.6, 1.4, 1.9], [2.4, 0.3, 1.2]])
STRUCTURE = Structure(CELL, POSITIONS, np.array([14, 1, 14]))


@pytest.fixture(scope="module")
def orbitals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orbitals")
    for z, shells in SHELLS.items():
        text = orb_text(SYMBOLS[z], [(l, radial(l, exponent)) for l, exponent in shells], RADIUS[z])
        (folder / f"{SYMBOLS[z]}_gaussian.orb").write_text(text)
    return read_orbitals(folder, SHELLS)


@pytest.fixture(scope="module")
def matrices(orbitals):
    return overlap_and_kinetic(STRUCTURE, orbitals)


def assert_same(found, expected, tolerance=1e-12):
    """Blocks with the same numbers on every edge that either has."""
    assert found.basis == expected.basis
    for this, other in ((found, expected), (expected, found)):
        np.testing.assert_allclose(other.on(this.graph).data, this.data, rtol=0, atol=tolerance)


def test_gaussians(matrices):
    overlap, kinetic = matrices
    graph = overlap.graph
    vectors, numbers = graph.vector() / BOHR, STRUCTURE.numbers
    near = np.argsort(graph.distance())[:60]  # on-site blocks are among them
    far = np.random.default_rng(0).choice(graph.n_edges, 40, replace=False)
    for e in np.concatenate([near, far]):
        left, right = SHELLS[numbers[graph.src[e]]], SHELLS[numbers[graph.dst[e]]]
        blocks = [[integrals(a, b, vectors[e]) for b in right] for a in left]
        for found, which, tolerance in ((overlap, 0, 1e-9), (kinetic, 1, 2e-7)):
            expected = np.block([[pair[which] for pair in row] for row in blocks])
            unit = RYDBERG if which else 1.0
            np.testing.assert_allclose(found.block(e)[0] / unit, expected, rtol=0, atol=tolerance)
    largest = np.abs(overlap.data)[graph.distance().repeat(overlap.sizes) > 1.5].max()
    assert largest > 0.1  # what was compared is not small


def test_every_pair_within_reach_is_there(matrices):
    graph = matrices[0].graph
    reach = np.array([RADIUS[z] for z in STRUCTURE.numbers]) * BOHR
    n = 5
    expected = set()
    for R in np.ndindex(2 * n + 1, 2 * n + 1, 2 * n + 1):
        shift = np.array(R) - n
        distance = np.linalg.norm(POSITIONS[None] + shift @ CELL - POSITIONS[:, None], axis=2)
        expected |= {(int(i), int(j), *map(int, shift)) for i, j in np.argwhere(distance < reach[:, None] + reach)}
    found = {(int(i), int(j), *map(int, R)) for i, j, R in zip(graph.src, graph.dst, graph.R, strict=True)}
    assert found == expected and len(found) == graph.n_edges
    assert max(abs(x) for edge in expected for x in edge[2:]) < n


def test_hermitian_and_positive(matrices):
    overlap, kinetic = matrices
    assert overlap.hermitian_error() < 1e-13 and kinetic.hermitian_error() < 1e-12
    k = np.array([0.1, 0.2, 0.3])
    s, t = overlap.to_dense(k), kinetic.to_dense(k)
    assert np.linalg.eigvalsh(s)[0] > 0
    assert scipy.linalg.eigh(t, s, eigvals_only=True)[0] > 0


@pytest.mark.parametrize("improper", [False, True])
def test_equivariance(orbitals, matrices, improper):
    rotation = scipy.spatial.transform.Rotation.from_euler("zyx", [0.3, 1.1, -0.7]).as_matrix()
    turned = -rotation if improper else rotation
    structure = Structure(CELL @ turned.T, POSITIONS @ turned.T, STRUCTURE.numbers)
    d = [x.numpy() for x in wigner_d(torch.from_numpy(rotation), 3)]
    sign = -1 if improper else 1
    of_element = {z: scipy.linalg.block_diag(*(sign**l * d[l] for l, _ in SHELLS[z])) for z in SHELLS}
    for found, start in zip(overlap_and_kinetic(structure, orbitals), matrices, strict=True):
        expected = start.like(start.data.copy())
        for z_a, z_b, edges, blocks in start.groups():
            expected.put(edges, of_element[z_a] @ blocks @ of_element[z_b].T)
        np.testing.assert_array_equal(found.graph.R, expected.graph.R)
        np.testing.assert_allclose(found.data, expected.data, rtol=0, atol=1e-11)


def test_permutation_translation_and_supercell(orbitals, matrices):
    order = np.array([2, 0, 1])
    for found, start in zip(overlap_and_kinetic(STRUCTURE.permuted(order), orbitals), matrices, strict=True):
        k = np.array([0.3, 0.1, -0.2])
        first = start.basis.offsets(STRUCTURE.numbers)
        index = np.concatenate([np.arange(first[i], first[i + 1]) for i in order])
        np.testing.assert_allclose(found.to_dense(k), start.to_dense(k)[np.ix_(index, index)], rtol=0, atol=1e-10)
    elsewhere = Structure(CELL, POSITIONS + np.array([[1, 0, -2], [0, 3, 0], [-1, -1, 1]]) @ CELL, STRUCTURE.numbers)
    for found, start in zip(overlap_and_kinetic(elsewhere, orbitals), matrices, strict=True):
        assert_same(found, start, 1e-11)
    for found, start in zip(overlap_and_kinetic(STRUCTURE.supercell(2, 1, 1), orbitals), matrices, strict=True):
        assert_same(found, start.supercell(2, 1, 1), 1e-11)


def test_pieces_of_edges(orbitals, matrices, monkeypatch):
    monkeypatch.setattr(two_center, "_CHUNK", 7)
    for found, start in zip(overlap_and_kinetic(STRUCTURE, orbitals), matrices, strict=True):
        np.testing.assert_allclose(found.data, start.data, rtol=0, atol=1e-13)


def test_gradcheck(orbitals):
    table = TwoCenterTable(Radial.of_orbitals(orbitals[1]), Radial.of_orbitals(orbitals[14]))
    vector = torch.tensor([[0.3, -0.8, 1.7], [2.0, 3.1, -1.3], [10.0, 10.0, 10.0]], dtype=torch.float64)
    assert not table(vector)[:, 2].any()
    torch.autograd.gradcheck(table, vector.requires_grad_(), atol=1e-6)


def test_contract(orbitals):
    with pytest.raises(ValueError, match=r"orbitals: none for H$"):
        overlap_and_kinetic(STRUCTURE, {14: orbitals[14]})
    with pytest.raises(ValueError, match="structure: atoms 0 and 1 are at the same place"):
        overlap_and_kinetic(Structure(CELL, np.zeros((2, 3)), np.array([1, 1])), orbitals)
    with pytest.raises(ValueError, match="structure: expected at least one atom"):
        overlap_and_kinetic(Structure(CELL, np.zeros((0, 3)), np.array([])), orbitals)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["Si-0", "Si-1", "GaAs-1"])
def test_overlap_is_that_of_abacus(shared, name):
    folder = shared / "data/abacus" / name
    structure = read_stru(folder / "STRU").structure
    overlap, _ = overlap_and_kinetic(structure, read_orbitals(shared / "data/basis", structure.numbers))
    expected = read_blocks(folder / "srs1_nao.csr.xz", structure, overlap.basis).spinless()
    assert_same(overlap, expected, 1e-7)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["Bi2Se3-0", "TiO2-0", "graphene-0", "LiH-1", "PbS-2"])
def test_overlap_of_packed_samples(shared, name):
    sample = read_packed(shared / f"data/packed/{name}.npz.xz")
    orbitals = read_orbitals(shared / "data/basis", sample.structure.numbers)
    overlap, _ = overlap_and_kinetic(sample.structure, orbitals)
    assert_same(overlap, sample.matrices["S"], 2e-7)  # they are rounded to float32


@pytest.mark.shared
@pytest.mark.parametrize("element", ["Si", "Bi", "Ti"])
def test_kinetic_energy_of_one_atom(shared, element):
    """Two-center integrals at R = 0 against ∫ (rR)′² + l(l + 1) R² dr."""
    orb = read_orb(next(shared.glob(f"data/basis/{element}_*.orb.xz")))
    radial = Radial.of_orbitals(orb)
    found = TwoCenterTable(radial, radial, (0, 1))(torch.zeros(1, 3, dtype=torch.float64))[:, 0]
    for i, l in enumerate(orb.shells):
        first = sum(2 * x + 1 for x in orb.shells[:i])
        slope = scipy.interpolate.CubicSpline(orb.r, radial.r_f[i])(orb.r, 1)
        expected = np.trapezoid(slope**2 + l * (l + 1) * orb.radial[i] ** 2, orb.r)
        for m in range(2 * l + 1):
            assert found[0, first + m, first + m] == pytest.approx(1, abs=1e-8)
            assert found[1, first + m, first + m] == pytest.approx(expected, rel=2e-5)


def test_basis_of_the_result(matrices):
    assert matrices[0].basis == Basis({z: [l for l, _ in shells] for z, shells in SHELLS.items()})
    assert matrices[0].n_spin == 1 and matrices[0].data.dtype == np.float64
