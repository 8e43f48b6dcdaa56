"""H of step zero: against quadrature with self-made atoms, its symmetries, and against ABACUS."""

import functools
import math
from dataclasses import replace

import harness
import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.transform
import scipy.special
import torch
from basis_files import orb_text, upf_text
from gaussian_orbitals import harmonics, radial

from nextham.h0 import AtomicFiles, build_h0, build_pieces, local, local_potential, overlap_and_kinetic
from nextham.h0.grid import AtomsOfBricks
from nextham.h0.local_settings import default_energy
from nextham.io.csr import read_blocks
from nextham.io.packed_sample import read_packed
from nextham.io.stru import read_stru
from nextham.metrics import band_error, gauge_mae
from nextham.structure import Structure
from nextham.units import BOHR, RYDBERG, SYMBOLS
from nextham_kernels.clebsch_gordan import wigner_d
from nextham_kernels.ops.xc_potential import reference

# A cell that is smaller than the orbitals reach.
CELL = np.array([[3.9, 0.2, 0.1], [0.4, 4.1, -0.3], [-0.2, 0.3, 3.4]])
POSITIONS = np.array([[0.1, 0.2, 0.3], [1.6, 1.4, 1.9], [2.4, 3.3, 2.2]])
STRUCTURE = Structure(CELL, POSITIONS, np.array([14, 1, 14]))

SHELLS = {1: ((0, 0.7), (1, 0.7)), 14: ((0, 0.6), (1, 0.6), (2, 0.6))}
RADIUS = {1: 7.0, 14: 7.0}
VALENCE = {1: 1.0, 14: 3.0}
WIDTH = {1: 0.35, 14: 0.3}
"""Exponent of the density, Bohr⁻²; the charge of nucleus and core has three times as much."""

PROJECTORS = {1: ((0, 0.5, 1.5),), 14: ((0, 0.5, 1.3), (1, 0.5, 1.6), (1, 1.5, 1.4))}


def density(z, r2):
    """Valence density and, for silicon, a core."""
    n = VALENCE[z] * (WIDTH[z] / math.pi) ** 1.5 * torch.exp(-WIDTH[z] * r2)
    return n + 0.03 * torch.exp(-0.9 * r2) if z == 14 else n


def neutral(z, r):
    """The potential of the density and of the charge that it screens, Ry."""
    a = WIDTH[z]
    return 2 * VALENCE[z] * (scipy.special.erf(math.sqrt(a) * r) - scipy.special.erf(math.sqrt(3 * a) * r)) / r


def write(folder, spin_orbit=True):
    for z, shells in SHELLS.items():
        symbol = SYMBOLS[z]
        text = orb_text(symbol, [(l, radial(l, exponent)) for l, exponent in shells], RADIUS[z])
        (folder / f"{symbol}_gaussian.orb").write_text(text)
        betas = [
            (l, j if spin_orbit else None, lambda r, l=l, exponent=exponent: r * radial(l, exponent)(r))
            for l, j, exponent in PROJECTORS[z]
        ]

        def local(r, z=z):
            safe = np.maximum(r, 1e-9)
            return -2 * VALENCE[z] * scipy.special.erf(math.sqrt(3 * WIDTH[z]) * safe) / safe

        def shell(r, z=z):
            return VALENCE[z] * 4 * np.pi * r**2 * (WIDTH[z] / np.pi) ** 1.5 * np.exp(-WIDTH[z] * r**2)

        extra = {"core": lambda r: 0.03 * np.exp(-0.9 * r**2)} if z == 14 else {}
        d = np.eye(len(betas))
        text = upf_text(symbol, VALENCE[z], betas, d, radius=10.0, local=local, rho=shell, **extra)
        (folder / f"{symbol}.upf").write_text(text)
    return AtomicFiles.read(folder, SHELLS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return write(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def pieces(files):
    return build_pieces(STRUCTURE, files, energy_cutoff=100.0)


def images(centre, reach):
    """Positions (Bohr) and elements of the atoms around a place."""
    n = 5
    shifts = np.array(list(np.ndindex(2 * n + 1, 2 * n + 1, 2 * n + 1))) - n
    positions = (POSITIONS[None] + (shifts @ CELL)[:, None]).reshape(-1, 3) / BOHR
    numbers = np.tile(STRUCTURE.numbers, len(shifts))
    near = np.linalg.norm(positions - centre, axis=1) < reach
    return positions[near], numbers[near]


def potential_at(points, functional):
    """The whole local potential at points [p, 3], Ry, but for the constant; derivatives by autograd."""
    positions, numbers = images(points.mean(axis=0), 14.0)
    r = torch.from_numpy(points).requires_grad_()
    n, v = torch.zeros(len(points), dtype=torch.float64), np.zeros(len(points))
    for place, z in zip(positions, numbers, strict=True):
        d2 = (r - torch.from_numpy(place)).square().sum(1)
        n = n + density(int(z), d2)
        v += neutral(int(z), np.sqrt(d2.detach().numpy()))
    (g,) = torch.autograd.grad(n.sum(), r, create_graph=True)
    rows = [torch.autograd.grad(g[:, k].sum(), r, retain_graph=True)[0] for k in range(3)]
    hessian, g = torch.stack(rows, dim=1), g.detach()
    curved = torch.einsum("pi,pij,pj->p", g, hessian, g)
    laplacian = hessian.diagonal(dim1=1, dim2=2).sum(1)
    fields = torch.stack([n.detach(), g.square().sum(1), laplacian, curved], dim=1)
    return v + reference.xc_potential(fields, functional).numpy()


def expected_block(i, j, R, functional="pbe"):
    """⟨φ_i|V|φ_j⟩ by Gauss-Hermite quadrature around the product of the Gaussians, Ry; all shells share an exponent."""
    first, second = POSITIONS[i] / BOHR, (POSITIONS[j] + R @ CELL) / BOHR
    left, right = SHELLS[STRUCTURE.numbers[i]], SHELLS[STRUCTURE.numbers[j]]
    a, b = left[0][1], right[0][1]
    node, weight = np.polynomial.hermite.hermgauss(24)
    grid = np.stack(np.meshgrid(node, node, node, indexing="ij"), axis=-1).reshape(-1, 3)
    weights = np.einsum("i,j,k->ijk", weight, weight, weight).reshape(-1) * (a + b) ** -1.5
    kept = weights > 1e-16 * weights.max()
    points = grid[kept] / math.sqrt(a + b) + (a * first + b * second) / (a + b)
    factor = weights[kept] * math.exp(-a * b / (a + b) * float(((first - second) ** 2).sum()))
    factor = factor * potential_at(points, functional)
    phi, psi = (
        np.concatenate([radial(l, x)(1.0) * math.exp(x) * harmonics(l, points - place) for l, x in shells], axis=1)
        for shells, place in ((left, first), (right, second))
    )
    return np.einsum("p,pa,pb->ab", factor, phi, psi)


def zero_of_energy():
    """ABACUS's constant, 4π/3Ω Σ ∫ r²ρ d³r, where ∫ r²ρ = 3Z/2α of a Gaussian."""
    volume = abs(np.linalg.det(CELL / BOHR))
    moments = sum(1.5 * VALENCE[z] / WIDTH[z] for z in STRUCTURE.numbers)
    return 4 * math.pi / (3 * volume) * moments


def test_local_potential(files, pieces):
    """Against another quadrature of potentials in closed form."""
    local, graph = pieces.local, pieces.local.graph
    order = np.argsort(graph.distance(), kind="stable")
    chosen = [order[0], order[1], order[4], order[12]]
    for e in chosen:
        i, j = int(graph.src[e]), int(graph.dst[e])
        expected = expected_block(i, j, graph.R[e]) + zero_of_energy() * pieces.overlap.block(e)[0]
        np.testing.assert_allclose(local.block(e)[0] / RYDBERG, expected, rtol=0, atol=3e-6)
    assert np.abs(local.block(order[12])).max() > 0.05


def test_a_functional_of_libxc(files, pieces, monkeypatch):
    """PBEsol, in closed form PBE with two other constants."""
    settings = {"energy_cutoff": 100.0, "functional": "pbesol"}
    local = local_potential(pieces.overlap, files.orbitals, files.pseudopotentials, **settings)
    monkeypatch.setitem(reference.FUNCTIONALS, "pbesol", functools.partial(reference.pbe, beta=0.046, mu=10 / 81))
    graph = local.graph
    e = int(np.argsort(graph.distance(), kind="stable")[4])
    i, j = int(graph.src[e]), int(graph.dst[e])
    expected = expected_block(i, j, graph.R[e], "pbesol") + zero_of_energy() * pieces.overlap.block(e)[0]
    np.testing.assert_allclose(local.block(e)[0] / RYDBERG, expected, rtol=0, atol=3e-6)
    assert np.abs(local.block(e) - pieces.local.block(e)).max() > 1e-3


def test_egg_box(files, pieces):
    """Moved by a third of the grid's spacing, and on a finer grid: what the grid is good for."""
    moved = Structure(CELL, POSITIONS + np.array([0.03, 0.05, -0.04]), STRUCTURE.numbers)
    for other in (
        build_pieces(moved, files, energy_cutoff=100.0).local,
        local_potential(pieces.overlap, files.orbitals, files.pseudopotentials, energy_cutoff=220.0),
    ):
        np.testing.assert_allclose(other.data, pieces.local.data, rtol=0, atol=1e-5)
    coarse = local_potential(pieces.overlap, files.orbitals, files.pseudopotentials, energy_cutoff=6.0)
    assert np.abs(coarse.data - pieces.local.data).max() > 1e-3


def test_hermitian(pieces):
    hamiltonian = pieces.hamiltonian()
    assert hamiltonian.n_spin == 4 and pieces.local.n_spin == 1
    assert pieces.local.hermitian_error() < 1e-12 and hamiltonian.hermitian_error() < 1e-10


def test_sum(files, pieces):
    hamiltonian, overlap = build_h0(STRUCTURE, files)
    graph = hamiltonian.graph
    parts = [x.on(graph).with_spin(4).data for x in (pieces.kinetic, pieces.local, pieces.nonlocal_part)]
    np.testing.assert_allclose(hamiltonian.data, sum(parts), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(overlap.data, pieces.overlap.on(graph).data)


def test_translation_permutation_and_budget(files, pieces):
    """Positions outside the cell, atoms in another order, the grid in pieces: the same Hamiltonian."""
    calls = []
    elsewhere = Structure(CELL, POSITIONS + np.array([[1, 0, -2], [0, 3, 0], [-1, -1, 1]]) @ CELL, STRUCTURE.numbers)
    found = build_pieces(
        elsewhere, files, energy_cutoff=100.0, memory_budget=10**6, progress=lambda *x: calls.append(x)
    )
    np.testing.assert_allclose(found.local.data, pieces.local.data, rtol=0, atol=1e-9)
    assert len(calls) > 1 and calls[-1][0] == calls[-1][1] and all(x[1] == calls[-1][1] for x in calls)
    order = np.array([2, 0, 1])
    found = build_pieces(STRUCTURE.permuted(order), files, energy_cutoff=100.0).local
    first, k = pieces.local.basis.offsets(STRUCTURE.numbers), np.array([0.3, 0.1, -0.2])
    index = np.concatenate([np.arange(first[i], first[i + 1]) for i in order])
    np.testing.assert_allclose(found.to_dense(k), pieces.local.to_dense(k)[np.ix_(index, index)], rtol=0, atol=1e-9)


def test_supercell(files, pieces):
    """Twice the cell, whose grid is another one."""
    found = build_pieces(STRUCTURE.supercell(2, 1, 1), files, energy_cutoff=100.0).local
    expected = pieces.local.supercell(2, 1, 1)
    np.testing.assert_allclose(found.on(expected.graph).data, expected.data, rtol=0, atol=1e-5)


@pytest.mark.parametrize("improper", [False, True])
def test_rotation(files, pieces, improper):
    turn = scipy.spatial.transform.Rotation.from_euler("zyx", [0.3, 1.1, -0.7])
    rotation, sign = turn.as_matrix(), -1 if improper else 1
    structure = Structure(sign * CELL @ rotation.T, sign * POSITIONS @ rotation.T, STRUCTURE.numbers)
    d = [x.numpy() for x in wigner_d(torch.from_numpy(rotation), 3)]
    of_element = {z: scipy.linalg.block_diag(*(sign**l * d[l] for l, _ in SHELLS[z])) for z in SHELLS}
    sigma = np.array([[[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]])
    spin = scipy.linalg.expm(-0.5j * np.einsum("k,kst->st", turn.as_rotvec(), sigma))
    hamiltonian = pieces.hamiltonian()
    expected = hamiltonian.like(hamiltonian.data.copy())
    for z_a, z_b, edges, blocks in hamiltonian.groups():
        wide = blocks.reshape(len(edges), 2, 2, *blocks.shape[2:])
        wide = np.einsum("su,euvab,tv->estab", spin, wide, spin.conj()).reshape(blocks.shape)
        expected.put(edges, of_element[z_a] @ wide @ of_element[z_b].T)
    found = build_pieces(structure, files, energy_cutoff=100.0).hamiltonian()
    np.testing.assert_array_equal(found.graph.R, expected.graph.R)
    np.testing.assert_allclose(found.data, expected.data, rtol=0, atol=1e-8)


@pytest.mark.triton
def test_gpu_kernels_make_the_same(files, monkeypatch):
    """The whole path on a GPU, or by the interpreter, with bricks as a GPU has them; single precision on the grid."""
    structure = Structure(np.diag([9.0, 9.5, 9.2]), np.array([[0.1, 0.2, 0.3], [1.2, 0.6, 0.9]]), np.array([14, 1]))
    expected = build_pieces(structure, files, energy_cutoff=2.0)
    monkeypatch.setattr(local, "BRICK", local.BRICK_ON_GPU // 2)
    with harness.on_gpu() as device:
        found = build_pieces(structure, files, energy_cutoff=2.0, device=device)
        single = local_potential(
            expected.overlap,
            files.orbitals,
            files.pseudopotentials,
            energy_cutoff=2.0,
            device=device,
            dtype=torch.float32,
        )
    for name in ("overlap", "kinetic", "nonlocal_part", "local"):
        actual, exact = getattr(found, name).data, getattr(expected, name).data
        np.testing.assert_allclose(actual, exact, rtol=0, atol=1e-11 * np.abs(exact).max(), err_msg=name)
    error = np.abs(single.data - expected.local.data).max()
    assert 0 < error < 1e-4


def test_bricks_fit_the_memory():
    """On a GPU bricks are worked on in pieces that fit the budget; on the CPU, and without any, there are no pieces."""
    near = AtomsOfBricks(np.array([0, 3, 3, 5, 9]), np.array([0, 1, 2, 1, 4, 0, 1, 3, 4]))
    alive, gpu = np.array([0, 2, 3]), torch.device("cuda")
    one = 8 * (20 * (512 + 20) + 5 * 16) + 400 * 512
    for budget, lengths in ((1, [1, 1, 1]), (2 * one, [2, 1]), (3 * one, [3])):
        assert [len(x) for x in local._pieces(alive, near, 512, 5, budget, gpu)] == lengths
    assert [len(x) for x in local._pieces(alive, near, 512, 5, 1, torch.device("cpu"))] == [3]
    assert local._pieces(alive[:0], near, 512, 5, 1, gpu) == []
    part = near.select(alive[1:])
    assert part.starts.tolist() == [0, 2, 6] and part.image.tolist() == [1, 4, 0, 1, 3, 4]


def test_open_directions(files):
    """A molecule across the edge of a box without periodicity: the orbitals go on outside the box."""
    box = np.diag([4.0, 30.0, 30.0])
    positions = np.array([[-0.6, 15.0, 15.0], [0.7, 15.3, 14.8]])
    numbers = np.array([14, 1])
    wide = Structure(np.diag([30.0, 30.0, 30.0]), positions + np.array([14.0, 0, 0]), numbers)
    narrow = Structure(box, positions, numbers, (False, True, True))
    locals_, zeros = [], []
    for structure in (wide, narrow):
        found = build_pieces(structure, files, energy_cutoff=60.0)
        volume = abs(np.linalg.det(structure.cell / BOHR))
        zero = 4 * math.pi / (3 * volume) * sum(1.5 * VALENCE[z] / WIDTH[z] for z in numbers) * RYDBERG
        locals_.append(found.local - found.overlap * zero)
        zeros.append(zero)
    assert locals_[0].n_edges == locals_[1].n_edges == 4
    np.testing.assert_allclose(locals_[1].data, locals_[0].data, rtol=0, atol=1e-5)
    assert abs(zeros[0] - zeros[1]) > 1e-3


def test_vacuum_costs_nothing(files):
    """A molecule in a larger and larger cell: the same bricks of the grid, the same matrix."""
    positions, numbers, totals, locals_ = np.array([[1.1, 2.0, 1.5], [2.4, 2.3, 1.3]]), np.array([14, 1]), [], []
    for height in (16.0, 48.0, 480.0):
        structure = Structure(np.diag([9.0, 9.0, height]), positions, numbers)
        overlap, _ = overlap_and_kinetic(structure, files.orbitals)
        calls = []
        settings = {"energy_cutoff": 60.0, "progress": lambda *x, calls=calls: calls.append(x)}
        found = local_potential(overlap, files.orbitals, files.pseudopotentials, **settings)
        volume = abs(np.linalg.det(structure.cell / BOHR))
        zero = 4 * math.pi / (3 * volume) * sum(1.5 * VALENCE[z] / WIDTH[z] for z in numbers) * RYDBERG
        locals_.append((found - overlap * zero).data)
        totals.append(calls[-1][1])
    assert totals[0] == totals[1] == totals[2]
    np.testing.assert_allclose(locals_[2], locals_[0], rtol=0, atol=2e-5)


def test_without_spin_orbit_coupling(tmp_path, pieces):
    hamiltonian, _ = build_h0(STRUCTURE, write(tmp_path, spin_orbit=False))
    assert hamiltonian.n_spin == 1 and hamiltonian.data.dtype == np.float64
    assert hamiltonian.graph.n_edges == pieces.hamiltonian().graph.n_edges


def test_contract(files, tmp_path):
    overlap, _ = overlap_and_kinetic(STRUCTURE, files.orbitals)
    only_silicon = {14: files.pseudopotentials[14]}
    with pytest.raises(ValueError, match=r"pseudopotentials: none for H$"):
        local_potential(overlap, files.orbitals, only_silicon)
    with pytest.raises(ValueError, match=r"orbitals: none for H$"):
        build_h0(STRUCTURE, AtomicFiles({14: files.orbitals[14]}, files.pseudopotentials))
    with pytest.raises(ValueError, match="energy_cutoff: expected a positive energy in Ry, got -1"):
        build_pieces(STRUCTURE, files, energy_cutoff=-1.0)
    with pytest.raises(ValueError, match="memory_budget: expected a positive number of bytes, got 0"):
        build_h0(STRUCTURE, files, memory_budget=0)
    with pytest.raises(ValueError, match=r"functional: expected pbe or lda, or one of libxc's .*, got 'scan'"):
        build_pieces(STRUCTURE, files, functional="scan", energy_cutoff=30.0)
    for beyond, words in ((0.0, r"0\.000"), (0.05, r"0\.050")):
        twice = Structure(CELL, np.array([[0.1, 0.2, 0.3], [4.0 + beyond, 0.4, 0.4]]), np.array([1, 14]))
        with pytest.raises(ValueError, match=f"structure: atoms 0 and 1 are at the same place \\({words} Å apart"):
            build_h0(twice, files)
    with pytest.raises(ValueError, match="cell: the three lattice vectors span no volume"):
        Structure(np.ones((3, 3)), POSITIONS, STRUCTURE.numbers)
    with pytest.raises(OSError, match="there is no orbital file for Si"):
        AtomicFiles.read(tmp_path, [14])


def test_default_grid(files):
    """Soft atoms take half the usual energy; a density with a sharp peak takes more."""
    assert default_energy(files.orbitals, files.pseudopotentials, [1, 14]) == 200.0
    hydrogen = files.pseudopotentials[1]
    r = hydrogen.r
    sharp = replace(hydrogen, rho=hydrogen.rho + 4 * np.pi * r**2 * 30 * np.exp(-40 * r**2), valence=1.0)
    assert default_energy(files.orbitals, {1: sharp}, [1]) > 400.0


@pytest.mark.shared
def test_default_grid_of_elements(shared):
    files = AtomicFiles.read(shared / "data/basis", [6, 11, 14])
    found = [default_energy(files.orbitals, files.pseudopotentials, [z]) for z in (6, 11, 14)]
    assert found == [400.0, 600.0, 200.0]
    assert default_energy(files.orbitals, files.pseudopotentials, [14, 6]) == 400.0


def compare(structure, reference, directory, kpoints):
    """Gauge MAE and bands within 10 eV of the middle of the spectrum."""
    pieces = build_pieces(structure, AtomicFiles.read(directory, structure.numbers))
    hamiltonian = pieces.hamiltonian()
    report = gauge_mae(hamiltonian, reference, pieces.overlap, cutoff=None)
    bands = band_error(hamiltonian, reference, pieces.overlap, kpoints, efermi=0.0, window=(-60.0, 20.0))
    return report, bands


KPOINTS = np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 0.5], [0.2, 0.3, -0.1]])


@pytest.mark.shared
@pytest.mark.parametrize("name", ["Si-1", "GaAs-1"])
def test_hamiltonian_is_that_of_abacus(shared, name):
    folder = shared / "data/abacus" / name
    structure = read_stru(folder / "STRU").structure
    files = AtomicFiles.read(shared / "data/basis", structure.numbers)
    basis = overlap_and_kinetic(structure, files.orbitals)[0].basis
    reference = read_blocks(folder / "hrs0_nao.csr.xz", structure, basis)
    report, bands = compare(structure, reference, shared / "data/basis", KPOINTS)
    assert report.mae_meV < 1e-3 and report.max_meV < 0.2
    assert bands.max_meV < 0.2 and abs(report.mu_eV) < 1e-3  # the zero of energy is ABACUS's too


@pytest.mark.shared
@pytest.mark.parametrize("name", ["graphene-0", "LiH-1", "AlN-1"])
def test_hamiltonian_of_packed_samples(shared, name):
    sample = read_packed(shared / f"data/packed/{name}.npz.xz")
    report, bands = compare(sample.structure, sample.matrices["H0"], shared / "data/basis", KPOINTS)
    assert report.mae_meV < 2e-3 and report.max_meV < 0.5
    assert bands.max_meV < 0.5 and abs(report.mu_eV) < 1e-3


@pytest.mark.shared
def test_grid_of_a_cubic_cell(shared):
    """At the same energy a cubic cell has a coarser grid than a primitive one, whose reciprocal lattice is skew."""
    a = 5.43
    face = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    positions = a * np.concatenate([face, face + 0.25]) + 0.05 * np.random.default_rng(0).standard_normal((8, 3))
    structure = Structure(a * np.eye(3), positions, [14] * 8)
    files = AtomicFiles.read(shared / "data/basis", [14])
    usual, overlap = build_h0(structure, files)
    fine = build_pieces(structure, files, energy_cutoff=1600.0).hamiltonian()
    report = gauge_mae(usual, fine, overlap)
    assert 0.03 < report.max_meV < 0.1
    assert report.mae_meV < 0.001
