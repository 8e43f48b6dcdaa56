"""The position matrix of Gaussian orbitals and of hydrogen, its identities, its file, and what optics makes of it."""

import math

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.transform
import torch
from basis_files import orb_text
from gaussian_orbitals import RADIUS, SHELLS, position, radial

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.cli import main
from nextham.graph import Graph
from nextham.h0 import overlap_and_kinetic, position_matrix
from nextham.io.basis_directory import read_orbitals
from nextham.io.errors import FileError
from nextham.io.hdf5 import write_blocks_h5
from nextham.io.position_file import read_position, write_position
from nextham.optics import APPROXIMATION, EXACT, optical_conductivity
from nextham.structure import Structure
from nextham.units import BOHR, SYMBOLS
from nextham_kernels.clebsch_gordan import wigner_d

CELL = np.array([[4.9, 0.2, 0.1], [0.4, 5.1, -0.3], [-0.2, 0.3, 5.4]])
POSITIONS = np.array([[0.1, 0.2, 0.3], [2.6, 2.4, 2.9]])
STRUCTURE = Structure(CELL, POSITIONS, np.array([14, 1]))
MOLECULE = Structure(20 * np.eye(3), np.array([[3.1, 4.2, 5.3], [4.0, 5.0, 5.9]]), np.array([14, 1]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orbitals")
    for z, shells in SHELLS.items():
        text = orb_text(SYMBOLS[z], [(l, radial(l, exponent)) for l, exponent in shells], RADIUS[z])
        (folder / f"{SYMBOLS[z]}_gaussian.orb").write_text(text)
    return folder


@pytest.fixture(scope="module")
def orbitals(folder):
    return read_orbitals(folder, SHELLS)


@pytest.fixture(scope="module")
def matrices(orbitals):
    return position_matrix(STRUCTURE, orbitals), overlap_and_kinetic(STRUCTURE, orbitals)[0]


def test_gaussians(matrices):
    """Gauss-Hermite quadrature in space, which is exact for Gaussians."""
    found, overlap = matrices
    graph = overlap.graph
    vectors = graph.vector() / BOHR
    chosen = [*np.argsort(graph.distance())[:6], *np.random.default_rng(0).choice(graph.n_edges, 12, replace=False)]
    for e in chosen:
        i, j = graph.src[e], graph.dst[e]
        left, right = SHELLS[STRUCTURE.numbers[i]], SHELLS[STRUCTURE.numbers[j]]
        pairs = [[position(a, b, vectors[e]) for b in right] for a in left]
        expected = np.concatenate([np.concatenate(row, axis=2) for row in pairs], axis=1) * BOHR
        for k in range(3):
            around_atom = found[k].block(e)[0] - POSITIONS[i, k] * overlap.block(e)[0]
            np.testing.assert_allclose(around_atom, expected[k], rtol=0, atol=1e-8)
    assert max(np.abs(found[0].block(e)).max() for e in chosen) > 1


def test_hermitian(matrices):
    """r_ba(−R) = r_ab(R) − R S_ab(R)."""
    found, overlap = matrices
    shift = np.repeat(overlap.graph.R @ CELL, overlap.sizes, axis=0)
    for k, matrix in enumerate(found):
        other = matrix.adjoint().on(matrix.graph).data
        np.testing.assert_allclose(other, matrix.data - shift[:, k] * overlap.data, rtol=0, atol=1e-9)
    assert np.abs(shift).max() > 5


def test_shift_of_the_origin(orbitals, matrices):
    found, overlap = matrices
    shift = np.array([0.3, -0.05, 0.4])
    moved = Structure(CELL, POSITIONS + shift, STRUCTURE.numbers)
    assert not moved.wrapped()[1].any()
    for k, matrix in enumerate(position_matrix(moved, orbitals)):
        np.testing.assert_allclose(matrix.data, found[k].data + shift[k] * overlap.data, rtol=0, atol=1e-9)


def test_wrapped_atoms(orbitals, matrices):
    elsewhere = Structure(CELL, POSITIONS + np.array([[1, 0, -2], [0, 3, 0]]) @ CELL, STRUCTURE.numbers)
    for matrix, expected in zip(position_matrix(elsewhere, orbitals), matrices[0], strict=True):
        np.testing.assert_allclose(matrix.data, expected.data, rtol=0, atol=1e-9)


def test_equivariance(orbitals, matrices):
    rotation = scipy.spatial.transform.Rotation.from_euler("zyx", [0.3, 1.1, -0.7]).as_matrix()
    turned = Structure(CELL @ rotation.T, POSITIONS @ rotation.T, STRUCTURE.numbers)
    d = [x.numpy() for x in wigner_d(torch.from_numpy(rotation), 3)]
    of_element = {z: scipy.linalg.block_diag(*(d[l] for l, _ in SHELLS[z])) for z in SHELLS}
    stacked = np.stack([matrix.data for matrix in matrices[0]])
    start = matrices[0][0]
    for k, matrix in enumerate(position_matrix(turned, orbitals)):
        expected = start.like(rotation[k] @ stacked)
        for z_a, z_b, edges, blocks in expected.groups():
            expected.put(edges, of_element[z_a] @ blocks @ of_element[z_b].T)
        np.testing.assert_allclose(matrix.data, expected.data, rtol=0, atol=1e-9)


def test_hydrogen(tmp_path):
    """⟨1s|z|2p_z⟩ = 2^7.5/3^5 Bohr."""
    radials = [(0, lambda r: 2 * np.exp(-r)), (1, lambda r: r * np.exp(-r / 2) / math.sqrt(24))]
    (tmp_path / "H_1s1p.orb").write_text(orb_text("H", radials, 40.0, 0.02))
    atom = Structure(50 * np.eye(3), np.zeros((1, 3)), np.array([1]), (False, False, False))
    found = position_matrix(atom, read_orbitals(tmp_path, [1]))
    for matrix, column in zip(found, (3, 1, 2), strict=True):
        expected = np.zeros((4, 4))
        expected[0, column] = expected[column, 0] = 2**7.5 / 3**5 * BOHR
        np.testing.assert_allclose(matrix.block(0)[0], expected, rtol=0, atol=1e-6)


def test_contract(orbitals):
    with pytest.raises(ValueError, match=r"orbitals: none for H$"):
        position_matrix(STRUCTURE, {14: orbitals[14]})


# --- the file


@pytest.mark.parametrize("spinor", [False, True])
def test_file(tmp_path, matrices, spinor):
    found, _ = matrices
    write_position(tmp_path / "rr.csr", found, spinor=spinor, digits=12)
    lines = (tmp_path / "rr.csr").read_text().splitlines()
    size = found[0].n_orbitals * (2 if spinor else 1)
    assert lines[:2] == ["STEP: 0", f"Matrix Dimension of r(R): {size}"]
    again = read_position(tmp_path / "rr.csr", STRUCTURE, found[0].basis)
    for matrix, expected in zip(again, found, strict=True):
        for one, other in ((matrix, expected), (expected, matrix)):
            np.testing.assert_allclose(other.on(one.graph).data, one.data, rtol=0, atol=1e-9)


def test_file_is_what_abacus_writes(tmp_path):
    """One atom with one s orbital at (1, 2, 3) Bohr, and a second lattice vector without elements."""
    structure = Structure(9 * np.eye(3), np.array([[1, 2, 3]]) * BOHR, np.array([1]))
    graph, basis = Graph(structure, [0], [0], [[0, 0, 0]]), Basis({1: (0,)})
    found = [Blocks(graph, basis, np.array([c * BOHR]), 1) for c in (1.0, 2.0, 3.0)]
    write_position(tmp_path / "rr.csr", found, R=np.array([[0, 0, -1], [0, 0, 0]]), digits=3)
    expected = "STEP: 0\nMatrix Dimension of r(R): 1\nMatrix number of r(R): 2\n0 0 -1\n0\n0\n0\n0 0 0\n"
    expected += "".join(f"1\n {c}.000e+00\n 0\n 0 1\n" for c in (1, 2, 3))
    assert (tmp_path / "rr.csr").read_text() == expected
    with pytest.raises(ValueError, match=r"R: the matrices have the lattice vector \(0, 0, 0\)"):
        write_position(tmp_path / "rr.csr", found, R=np.array([[0, 0, 1]]))
    with pytest.raises(ValueError, match="position: expected three real matrices"):
        write_position(tmp_path / "rr.csr", found[:2])


@pytest.mark.parametrize(
    ("change", "sentence", "line"),
    [
        (("Dimension of r(R)", "Dimension of H(R)"), r"expected 'Matrix Dimension of r\(R\): n'", 2),
        (("r(R): 1\nM", "r(R): 7\nM"), "has matrices of 7 rows, but H with", None),
        (("0 0 0\n1", "0 0\n1"), "expected the three integers of a lattice vector, got '0 0'", 4),
        (("1.000e+00", "1.0e+00x"), "expected 1 numbers, found '1.0e", 6),
        (("\n 0\n 0 1\n1", "\n 5\n 0 1\n1"), "column index 5 is outside", 5),
        (("0 0 0\n1", "0 0 0\n9"), "a matrix of 1 rows cannot have 9 elements", 5),
        (("3.000e+00\n 0\n 0 1\n", "3.000e+00\n 0\n"), "expected 2 numbers", None),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, change, sentence, line):
    text = "STEP: 0\nMatrix Dimension of r(R): 1\nMatrix number of r(R): 1\n0 0 0\n"
    text += "".join(f"1\n {c}.000e+00\n 0\n 0 1\n" for c in (1, 2, 3))
    structure = Structure(9 * np.eye(3), np.zeros((1, 3)), np.array([1]))
    path = tmp_path / "rr.csr"
    path.write_text(text)
    assert read_position(path, structure, Basis({1: (0,)}))[1].data == pytest.approx([2 * BOHR])
    path.write_text(text.replace(*change, 1))
    with pytest.raises(FileError, match=sentence) as caught:
        read_position(path, structure, Basis({1: (0,)}))
    assert line is None or f":{line}:" in str(caught.value) or f"line {line}" in str(caught.value)


# --- optics


def random_hamiltonian(overlap):
    h = overlap.like(np.random.default_rng(5).standard_normal(len(overlap.data)) * np.abs(overlap.data) ** 0.5)
    return h.symmetrised()


def test_a_molecule_absorbs_by_its_dipoles(orbitals):
    """Alone in a large cell P = −i (ε_n − ε_m) C_m† r C_n, whatever H: no derivative with respect to k is left."""
    position, overlap = position_matrix(MOLECULE, orbitals), overlap_and_kinetic(MOLECULE, orbitals)[0]
    h = random_hamiltonian(overlap)
    photons, width = np.linspace(0.2, 6, 30), 0.3
    gamma = [m.to_dense([0.0, 0.0, 0.0]).real for m in (h, overlap, *position)]
    levels, c = scipy.linalg.eigh(gamma[0], gamma[1])
    fermi = (levels[6] + levels[7]) / 2
    assert levels[7] - levels[6] > 0.1
    found = optical_conductivity(h, overlap, fermi, photons, (1, 1, 1), width, 0.01, position=position)
    gap = levels[None] - levels[:, None]
    moment = np.stack([c.T @ m @ c for m in gamma[2:]])
    m, n = np.nonzero((levels[:, None] < fermi) & (levels[None] > fermi))
    line = np.exp(-(((gap[m, n, None] - photons) / width) ** 2)) / (width * np.sqrt(np.pi))
    strength = 2 * gap[m, n] * moment[:, None, m, n] * moment[None, :, m, n]
    expected = np.pi / 4108.235902 * 1e10 / 8000.0 * np.einsum("cdt,tp->pcd", strength, line)
    np.testing.assert_allclose(found.conductivity.real, expected, rtol=0, atol=1e-6 * expected.max())
    assert found.method == EXACT
    approximate = optical_conductivity(h, overlap, fermi, photons, (1, 1, 1), width, 0.01)
    assert approximate.method == APPROXIMATION
    assert np.abs(approximate.conductivity.real - expected).max() > 0.1 * expected.max()


def test_spinors_and_translations(orbitals, matrices):
    """The spectrum does not see where the origin is, and is the same with both spins in one matrix."""
    found, overlap = matrices
    h = random_hamiltonian(overlap)
    photons = np.linspace(0.5, 8, 10)
    arguments = (0.0, photons, (2, 1, 1), 0.5)
    plain = optical_conductivity(h, overlap, *arguments, position=found).conductivity
    spinor = optical_conductivity(h.spinor(), overlap.spinor(), *arguments, position=found).conductivity
    np.testing.assert_allclose(spinor, plain, atol=1e-8 * np.abs(plain).max())
    moved = [matrix.like(matrix.data + 1.7 * overlap.data) for matrix in found]
    structure = Structure(CELL, POSITIONS + 1.7, STRUCTURE.numbers)
    elsewhere = Graph(structure, overlap.graph.src, overlap.graph.dst, overlap.graph.R)
    there = [Blocks(elsewhere, overlap.basis, m.data, 1) for m in (h, overlap, *moved)]
    again = optical_conductivity(there[0], there[1], *arguments, position=there[2:]).conductivity
    np.testing.assert_allclose(again, plain, atol=1e-8 * np.abs(plain).max())
    with pytest.raises(
        ValueError, match="position: expected three matrices with n_spin 1 of the atoms and basis of the Ham"
    ):
        optical_conductivity(h, overlap, *arguments, position=found[:2])


def test_command(tmp_path, folder, orbitals, matrices, capsys):
    found, overlap = matrices
    (tmp_path / "run").mkdir()
    write_blocks_h5(tmp_path / "run" / "hamiltonian.h5", {"H": random_hamiltonian(overlap), "S": overlap})
    command = ["optics", str(tmp_path / "run"), "--fermi", "0", "--mesh", "2", "1", "1", "--step", "0.5"]
    tables = []
    for more, method in ((["--basis", str(folder)], EXACT), ([], APPROXIMATION)):
        assert main([*command, *more, "-o", str(tmp_path / "out")]) == 0
        assert method in capsys.readouterr().out
        tables.append(np.loadtxt(tmp_path / "out.csv", delimiter=",", skiprows=3))
    write_position(tmp_path / "run" / "rr.csr", found, digits=12)
    assert main([*command, "-o", str(tmp_path / "out")]) == 0
    table = np.loadtxt(tmp_path / "out.csv", delimiter=",", skiprows=3)
    np.testing.assert_allclose(table[:, 1:], tables[0][:, 1:], atol=1e-6 * np.abs(table[:, 1:7]).max())
    assert np.abs(table[:, 1:7] - tables[1][:, 1:7]).max() > 0.01 * np.abs(table[:, 1:7]).max()
    assert main([*command, "--basis", str(folder), "--position", "rr.csr", "-o", str(tmp_path / "out")]) == 1
    assert "basis, position: give one of them" in capsys.readouterr().err
