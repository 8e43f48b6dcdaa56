"""Bands, paths and Fermi levels: real samples against scipy and ABACUS, synthetic ones against closed forms."""

import json

import numpy as np
import pytest
import scipy.linalg

from nextham import data
from nextham.bands import BandStructure, band_structure, band_structure_near
from nextham.bands_plot import plot_bands
from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.fermi import fermi_level, fermi_level_of, mesh_size, monkhorst_pack, smeared_level
from nextham.graph import neighbour_graph
from nextham.io.csr import read_blocks, read_csr
from nextham.io.errors import FileError
from nextham.io.stru import read_stru
from nextham.kpath import BandPath, band_path, path_through
from nextham.kspace import bands_at, eigenvectors_at, has_time_reversal, overlap_with_spin
from nextham.levels import levels_around_fermi, levels_near
from nextham.structure import Structure
from nextham.units import BOHR, RYDBERG

K = np.array([[0.0, 0.0, 0.0], [0.11, -0.23, 0.37], [0.5, 0.5, 0.0]])
VALENCE = {14: 4, 31: 13, 33: 5}
FCC = 5.43 * np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def real(folder):
    """Converged H and S of an ABACUS run."""
    structure = read_stru(folder / "STRU").structure
    basis = Basis.published(structure.numbers)
    return tuple(read_blocks(folder / f"{kind}_nao.csr.xz", structure, basis) for kind in ("hrs1", "srs1"))


def by_hand(folder):
    """Eigenvalues at K of the file's own sparse matrices, in ABACUS's order."""
    (h, s) = (read_csr(folder / f"{kind}_nao.csr.xz") for kind in ("hrs1", "srs1"))
    levels = []
    for k in K:
        h_k, s_k = (
            sum(np.exp(2j * np.pi * (R @ k)) * m.toarray() for R, m in zip(f.R, f.matrices, strict=True))
            for f in (h, s)
        )
        levels.append(scipy.linalg.eigh(RYDBERG * h_k, s_k, eigvals_only=True))
    return np.array(levels)


def check_sample(folder):
    """Measured: 1e-11 eV."""
    seen = []
    levels = bands_at(*real(folder), K, progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_allclose(levels, by_hand(folder), rtol=0, atol=1e-9)
    assert seen[-1] == (3, 3)


def test_bundled_sample_equals_scipy():
    check_sample(data.sample("Si-1"))


@pytest.mark.shared
@pytest.mark.parametrize("name", ["GaAs-1", "Si-0"])
def test_sample_equals_scipy(shared, name):
    check_sample(shared / "data" / "abacus" / name)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["GaAs-1", "Si-0", "Si-1"])
def test_fermi_level_of_abacus(shared, name):
    """ABACUS's own mesh and smearing (Gaussian, 0.01 Ry) give its Fermi level: 2e-7 eV apart at most (Si-0)."""
    folder = shared / "data" / "abacus" / name
    info = json.loads((folder / "info.json").read_text())
    h, s = real(folder)
    structure = h.graph.structure
    reciprocal = 2 * np.pi * np.linalg.norm(np.linalg.inv(structure.cell), axis=0) * BOHR
    size = tuple(int(n) for n in reciprocal / info["kspacing_per_Bohr"] + 1)
    kpoints, weights = monkhorst_pack(size, has_time_reversal(h))
    n_electrons = sum(VALENCE[int(z)] for z in structure.numbers)
    levels = bands_at(h, s, kpoints)
    assert smeared_level(levels, weights, n_electrons, 1, 0.01 * RYDBERG) == pytest.approx(info["efermi_eV"], abs=1e-6)
    fermi = fermi_level(levels, weights, n_electrons, 1)
    assert fermi.energy == pytest.approx(info["efermi_eV"], abs=0.025)
    assert fermi.is_metal == (name == "Si-1")  # this run converged to a spin-polarised metal
    assert has_time_reversal(h) == (name != "Si-1")


@pytest.mark.shared
def test_time_reversal_halves_the_mesh(shared):
    h, s = real(shared / "data" / "abacus" / "Si-0")
    half, whole = (monkhorst_pack((3, 2, 2), reduce) for reduce in (True, False))
    assert len(half[0]) < len(whole[0])
    energies = [fermi_level(bands_at(h, s, k), w, 8, 1).energy for k, w in (half, whole)]
    assert energies[0] == pytest.approx(energies[1], abs=1e-6)
    assert fermi_level_of(h, s, 8, (3, 2, 2)).energy == energies[0]


# --- a chain with one s orbital per atom: ε = 2t cos 2πk / (1 + 2σ cos 2πk)


def chain(n_spin=1, shift=0.0, hop=-1.0, overlap=0.2, a=2.0):
    structure = Structure(np.diag([a, 20.0, 20.0]), [[0, 0, 0]], [1])
    graph = neighbour_graph(structure, a * 1.01)
    h, s = Blocks.zeros(graph, Basis({1: (0,)}), 1), Blocks.zeros(graph, Basis({1: (0,)}), 1)
    h.data[:] = np.where(graph.onsite(), 0.0, hop)
    s.data[:] = np.where(graph.onsite(), 1.0, overlap)
    if n_spin == 2:
        return Blocks.collinear(h, h.shift_gauge(s, shift)), s
    return (h if n_spin == 1 else h.spinor()), s


def chain_levels(k):
    c = np.cos(2 * np.pi * k[:, 0])
    return -2 * c / (1 + 0.4 * c)


def test_spin_forms():
    k = np.array([[0.0, 0, 0], [0.3, 0.1, 0], [0.5, 0, 0.2]])
    expected = chain_levels(k)
    np.testing.assert_allclose(bands_at(*chain(1), k)[:, 0], expected, atol=1e-12)
    up, down = bands_at(*chain(2, shift=0.3), k)
    np.testing.assert_allclose(up[:, 0], expected, atol=1e-12)
    np.testing.assert_allclose(down[:, 0], expected + 0.3, atol=1e-12)
    h, s = chain(4)
    for overlap in (s, s.spinor()):
        np.testing.assert_allclose(bands_at(h, overlap, k), np.repeat(expected[:, None], 2, axis=1), atol=1e-12)
    assert overlap_with_spin(s.spinor(), 1).data.dtype == np.float64
    assert bands_at(h, s, np.empty((0, 3))).shape == (0, 2)


def test_memory_bound_changes_nothing():
    h, s = real(data.sample("Si-1"))
    np.testing.assert_allclose(bands_at(h, s, K[:2], memory=1), bands_at(h, s, K[:2]), rtol=0, atol=1e-10)


@pytest.fixture(scope="module")
def crystals():
    """(H, S, k, electrons): a crystal with spin–orbit coupling; a larger cell without spin, complex and at Γ real."""
    h, s = real(data.sample("Si-1"))
    wide = h.channel(0).supercell(2, 1, 1), s.spinless().supercell(2, 1, 1)
    wide = wide[0].like(wide[0].data.real.copy()), wide[1]
    return (h, s, K[1], 8), (*wide, np.array([0.1, 0.2, 0.3]), 16), (*wide, np.zeros(3), 15)


def test_levels_near(crystals):
    """Those of the whole spectrum, and their numbers."""
    for (h, s, k, _), energy, count in zip(crystals, (6.7, 30.0, -8.0), (9, 11, 50), strict=True):
        whole = bands_at(h, s, k[None])[0]
        found = levels_near(h, s, k, energy, count)
        expected = np.sort(np.argsort(np.abs(whole - energy))[:count])
        assert found.first == expected[0]
        np.testing.assert_allclose(found.values, whole[expected], rtol=0, atol=1e-9)
    with pytest.raises(ValueError, match="count: expected 1 to 50 of 52 levels, got 51"):
        levels_near(*crystals[0][:2], K[0], 6.7, 51)
    with pytest.raises(ValueError, match="n_spin 2 is two matrices"):
        levels_near(*chain(2), K[0], 0.0, 1)
    # An energy that is a level, to rounding and exactly.
    h, s, k, _ = crystals[0]
    whole = bands_at(h, s, k[None])[0]
    nearest = np.sort(np.argsort(np.abs(whole - whole[7]))[:3])
    np.testing.assert_allclose(levels_near(h, s, k, whole[7], 3).values, whole[nearest], rtol=0, atol=1e-9)
    h, s = (m.supercell(4, 1, 1) for m in chain(1, overlap=0.0))
    found = levels_near(h, s, np.zeros(3), 0.0, 2)  # −2, 0, 0, 2
    assert found.first == 1 and np.abs(found.values).max() < 1e-9


def test_degenerate_levels_near():
    """Of an ideal crystal in eight cells, whose levels are up to 24-fold: none is missed."""
    graph = neighbour_graph(Structure(FCC, [[0, 0, 0]], [14]), 4.0)
    h, s = Blocks.zeros(graph, Basis({14: (0,)}), 1), Blocks.zeros(graph, Basis({14: (0,)}), 1)
    h.data[:] = np.where(graph.onsite(), 0.0, -1.0)
    s.data[:] = np.where(graph.onsite(), 1.0, 0.05)
    h, s = (m.spinor().supercell(4, 4, 4) for m in (h, s))
    whole = bands_at(h, s, np.zeros((1, 3)))[0]
    found = levels_near(h, s, np.zeros(3), 1.3, 100)
    np.testing.assert_allclose(found.values, whole[found.first : found.first + 100], rtol=0, atol=1e-9)


def test_levels_around_fermi(crystals):
    """As the levels of this k-point alone say: an insulator, a metal, and half a filled level."""
    for (h, s, k, electrons), count in zip(crystals, (6, 40, 9), strict=True):
        whole = bands_at(h, s, k[None])[0]
        filled = electrons if h.n_spin == 4 else electrons / 2
        top, bottom = whole[int(np.ceil(filled)) - 1], whole[int(filled)]
        found, fermi = levels_around_fermi(h, s, k, electrons, count)
        assert fermi.energy == pytest.approx((top + bottom) / 2, abs=1e-9)
        assert fermi.gap == pytest.approx(bottom - top if bottom - top > 0.05 else 0.0, abs=1e-9)
        expected = np.sort(np.argsort(np.abs(whole - fermi.energy))[:count])
        np.testing.assert_allclose(found.values, whole[found.first : found.first + count], rtol=0, atol=1e-9)
        assert found.first <= filled <= found.first + count and abs(found.first - expected[0]) <= 1
    # Forty levels, then a wide gap: those nearest to the search's energy are all on one side of it.
    graph = neighbour_graph(Structure(np.eye(3) * 60, np.arange(60)[:, None] * [0.9, 0, 0], [1] * 40 + [2] * 20), 0.5)
    basis = Basis({1: (0,), 2: (0,)})
    h, s = Blocks.zeros(graph, basis, 1), Blocks.zeros(graph, basis, 1)
    h.data[:], s.data[:] = np.where(graph.structure.numbers == 1, 4.9 - 1e-3 * np.arange(60), 50.0), 1.0
    found, fermi = levels_around_fermi(h, s, np.zeros(3), 80, 4)
    assert fermi.valence_top == pytest.approx(4.9) and fermi.conduction_bottom == pytest.approx(50.0)
    assert len(found.values) == 4 and 38 <= found.first <= 40
    with pytest.raises(ValueError, match="n_electrons: expected more than 0 and at most 51, got 60"):
        levels_around_fermi(*crystals[0][:2], K[0], 60, 4)


def test_too_large_for_the_memory(monkeypatch):
    h, s = real(data.sample("Si-1"))
    monkeypatch.setattr("nextham.kspace.free_memory", lambda: 200_000)
    with pytest.raises(ValueError, match=r"all 52 levels at a k-point need some 0.0 GB .*nextham bands --levels N"):
        bands_at(h, s, K)
    monkeypatch.setattr("nextham.kspace.free_memory", lambda: None)
    assert bands_at(h, s, K[:1]).shape == (1, 52)


def test_bands_near(tmp_path, crystals):
    """Along a path, those bands that every k-point has; their numbers survive the file."""
    h, s = crystals[0][:2]
    path = band_path(h.graph.structure, "G=0,0,0 X=0.5,0,0.5", 5)
    whole, near = band_structure(h, s, path, 6.9), band_structure_near(h, s, path, 6.9, 12)
    n = near.eigenvalues.shape[1]
    assert 4 <= n <= 12 and near.first > 0
    np.testing.assert_allclose(near.eigenvalues, whole.eigenvalues[:, near.first : near.first + n], atol=1e-9)
    near.to_csv(tmp_path / "near.csv")
    assert f"band_{near.first + 1}," in (tmp_path / "near.csv").read_text()
    assert BandStructure.from_csv(tmp_path / "near.csv").first == near.first


def test_eigenvectors():
    h, s = real(data.sample("Si-1"))
    epsilon, c = eigenvectors_at(h, s, K[1:2])
    h_k, s_k = h.to_dense(K[1]), s.to_dense(K[1])
    np.testing.assert_allclose(c[0].conj().T @ s_k @ c[0], np.eye(len(h_k)), atol=1e-9)
    np.testing.assert_allclose(h_k @ c[0], s_k @ c[0] * epsilon[0], atol=1e-8)
    with pytest.raises(ValueError, match="n_spin 2"):
        eigenvectors_at(*chain(2), K)


def test_threshold_drops_what_is_nearly_dependent():
    """λ_min(S) of silicon is 5e-4. Without those combinations the low bands hardly move, and never down (Ritz)."""
    h, s = real(data.sample("Si-1"))
    whole, part = bands_at(h, s, K), bands_at(h, s, K, threshold=1e-3)
    assert 0 < part.shape[1] < whole.shape[1]
    change = part[:, :12] - whole[:, :12]
    assert -1e-10 < change.min() and 1e-6 < change.max() < 0.1
    np.testing.assert_allclose(bands_at(h, s, K, threshold=1e-5), whole, atol=1e-9)
    with pytest.raises(ValueError, match=r"threshold: at some k-point no eigenvalue of S\(k\) is above 0.001"):
        bands_at(*chain(1, overlap=0.6), np.array([[0.5, 0, 0]]), threshold=1e-3)


def test_time_reversal():
    rng = np.random.default_rng(0)
    graph = neighbour_graph(Structure(np.eye(3) * 2.5, [[0, 0, 0]], [14]), 3.0)
    h = Blocks.zeros(graph, Basis({14: (0, 1)}), 4, np.complex128)
    for _, _, edges, blocks in h.groups():
        x = rng.standard_normal((2, 2, *blocks[:, 0].shape)) @ np.eye(4)
        uu, ud = x[0] + 1j * x[1]
        h.put(edges, np.stack([uu, ud, -ud.conj(), uu.conj()], axis=1))
    h = h.symmetrised()
    s = Blocks.zeros(graph, h.basis, 1)
    s.block(int(np.flatnonzero(graph.onsite())[0]))[0] = np.eye(4)
    assert has_time_reversal(h)
    np.testing.assert_allclose(bands_at(h, s, K), bands_at(h, s, -K), atol=1e-10)
    h.block(int(np.flatnonzero(graph.onsite())[0]))[0] += np.eye(4)  # a magnetic field breaks it
    assert not has_time_reversal(h)
    assert has_time_reversal(chain(2)[0]) and not has_time_reversal(chain(1)[0].astype(np.complex128) * 1j)


def test_unsound_matrices_are_refused():
    h, s = chain(1, overlap=0.6)  # 1 + 1.2 cos 2πk < 0 at k = 1/2
    with pytest.raises(ValueError, match=r"k = \(0.5, 0, 0\) has the eigenvalue -0.2, too small"):
        bands_at(h, s, np.array([[0.0, 0, 0], [0.5, 0, 0]]))
    h, s = chain(1, overlap=0.5)  # exactly singular there
    with pytest.raises(ValueError, match=r"k = \(0.5, 0, 0\)"):
        bands_at(h, s, np.array([[0.5, 0, 0]]))
    h, s = chain(1)
    nan = Blocks(h.graph, h.basis, np.full_like(h.data, np.nan), 1)
    with pytest.raises(ValueError, match="hamiltonian: contains numbers that are not finite"):
        bands_at(nan, s, K)
    half = h.select((h.graph.R[:, 0] >= 0).nonzero()[0])
    with pytest.raises(ValueError, match="hamiltonian: 1 edges lack their reverse"):
        bands_at(half, s, K)
    with pytest.raises(ValueError, match=r"kpoints: .* shape \(q, 3\)"):
        bands_at(h, s, K[0])
    with pytest.raises(ValueError, match="overlap: expected the atoms and the basis"):
        bands_at(h, real(data.sample("Si-1"))[1], K)


# --- Fermi level


def test_insulator():
    levels = np.array([[-2.0, -1.0, 1.0, 3.0], [-2.5, -0.5, 0.7, 3.0]])
    fermi = fermi_level(levels, np.array([0.25, 0.75]), 4, 2)
    assert (fermi.valence_top, fermi.conduction_bottom) == (-0.5, 0.7)
    assert fermi.energy == pytest.approx(0.1) and fermi.gap == pytest.approx(1.2) and not fermi.is_metal
    assert fermi.to_dict()["gap"] == fermi.gap
    # Two electrons more up than down: different numbers of bands, each the same at every k.
    magnetic = np.stack([levels, levels + 1.0])
    fermi = fermi_level(magnetic, np.ones(2), 3, 1)
    assert (fermi.valence_top, fermi.conduction_bottom) == (-0.5, 0.0)
    # A gap below the width is none, nor is a band edge that happens to lie where the electrons end.
    assert fermi_level(levels, np.ones(2), 4, 2, width=1.3).is_metal
    assert fermi_level(np.array([[0.0, 1.0], [2.0, 3.0]]), np.ones(2), 1, 1).is_metal


def test_metal():
    """The half-filled chain: by symmetry E_F = 0 without overlap, whatever the mesh and the width."""
    h, s = chain(1, overlap=0.0)
    fermi = fermi_level_of(h, s, 1, (16, 1, 1), width=0.1)
    assert fermi.is_metal and fermi.gap == 0.0
    assert fermi.energy == pytest.approx(0.0, abs=1e-9)
    # A quarter filled at σ → 0: cos 2πk_F = cos(π/4) and ε = −√2.
    assert fermi_level_of(h, s, 0.5, (4001, 1, 1), width=0.01).energy == pytest.approx(-np.sqrt(2), abs=1e-3)


def test_fermi_arguments():
    levels, weights = np.zeros((2, 3)), np.ones(2)
    with pytest.raises(ValueError, match="between 0 and the 6"):
        fermi_level(levels, weights, 6, 2)
    with pytest.raises(ValueError, match="eigenvalues, weights"):
        fermi_level(levels, np.ones(3), 1, 2)
    with pytest.raises(ValueError, match="positive"):
        fermi_level(levels, weights, 1, 2, width=0.0)
    with pytest.raises(ValueError, match="size"):
        monkhorst_pack((2, 0, 1))


def test_mesh():
    whole, weights = monkhorst_pack((4, 3, 1))
    assert len(whole) == 12 and weights.sum() == pytest.approx(1.0)
    half, weights = monkhorst_pack((4, 3, 1), time_reversal=True)
    assert weights.sum() == pytest.approx(1.0) and len(half) == 7
    found = {tuple(np.round(k % 1, 6) % 1) for k in np.concatenate([half, -half])}
    assert found == {tuple(np.round(k, 6)) for k in whole}
    slab = Structure(np.diag([2.0, 4.0, 20.0]), [[0, 0, 0]], [1], pbc=(True, True, False))
    assert mesh_size(slab, np.pi / 5) == (5, 3, 1)
    with pytest.raises(ValueError, match="spacing"):
        mesh_size(slab, 0.0)


# --- paths


def corners(path):
    return {label: path.kpoints[q] for q, label in enumerate(path.labels) if label}


@pytest.mark.parametrize("change", [np.eye(3), [[1, 0, 0], [1, 1, 0], [0, 0, 1]], [[0, 1, 0], [1, 0, 0], [0, 0, 1]]])
def test_corners_belong_to_the_given_cell(change):
    """Whatever lattice vectors span an fcc crystal, |X| = 2π/a, |L| = √3π/a, |W| = √5π/a, |K| = |U| = 3π/√2a."""
    structure = Structure(np.array(change) @ FCC, [[0, 0, 0]], [14])
    path = band_path(structure, "GXWKGLU")
    reciprocal = 2 * np.pi * np.linalg.inv(structure.cell).T
    length = {name: np.linalg.norm(k @ reciprocal) * 5.43 / np.pi for name, k in corners(path).items()}
    expected = {"G": 0, "X": 2, "W": np.sqrt(5), "K": 3 / np.sqrt(2), "L": np.sqrt(3), "U": 3 / np.sqrt(2)}
    assert length == pytest.approx(expected, abs=1e-9)
    assert path.lattice.startswith("FCC")
    between = np.linalg.norm(np.diff(path.kpoints @ reciprocal, axis=0), axis=1)
    np.testing.assert_allclose(np.diff(path.distance), between, atol=1e-12)


def test_auto_path_has_jumps():
    path = band_path(Structure(FCC, [[0, 0, 0]], [14]), n_points=100)
    assert "".join(path.labels) == "GXWKGLUWLKUX"
    assert [label for _, label in path.ticks()] == ["G", "X", "W", "K", "G", "L", "U", "W", "L", "K|U", "X"]
    assert len(path.kpoints) == pytest.approx(100, abs=6)
    first, second = path.pieces()
    assert path.labels[first][-1] == "K" and path.labels[second][0] == "U"
    assert path.distance[first][-1] == path.distance[second][0]


def test_path_of_a_strained_crystal():
    """Si-1 is strained by some per cent: triclinic by itself, fcc where fcc's corners are asked for."""
    structure = read_stru(data.sample("Si-1") / "STRU").structure
    assert band_path(structure).lattice.startswith("TRI")
    path = band_path(structure, "ΓXWKΓL")
    assert path.lattice.startswith("FCC") and "".join(path.labels) == "GXWKGL"
    assert band_path(structure, "auto", tolerance=0.1).lattice.startswith("FCC")
    reciprocal = 2 * np.pi * np.linalg.inv(structure.cell).T
    ideal = 2 * np.pi / 5.43 * np.array([0, 1, np.sqrt(5) / 2, 1.5 / np.sqrt(2), np.sqrt(3) / 2])
    found = [np.linalg.norm(corners(path)[name] @ reciprocal) for name in "GXWKL"]
    np.testing.assert_allclose(found, ideal, rtol=0.06)


def test_slab_path_stays_in_the_plane():
    graphene = Structure([[2.46, 0, 0], [-1.23, 2.1304, 0], [0, 0, 15]], [[0, 0, 0]], [6], pbc=(True, True, False))
    path = band_path(graphene)
    assert np.all(path.kpoints[:, 2] == 0) and {"G", "K", "M"} <= set(path.labels)


def test_given_points():
    structure = Structure(FCC, [[0, 0, 0]], [14])
    path = band_path(structure, "A=0,0,0 B=0.5,0,0.5 | C=0,0.5,0 Γ=0,0,0", 50)
    assert [label for _, label in path.ticks()] == ["A", "B|C", "G"]
    np.testing.assert_array_equal(corners(path)["B"], [0.5, 0, 0.5])
    same = path_through(
        structure, [[("A", (0, 0, 0)), ("B", (0.5, 0, 0.5))], [("C", (0, 0.5, 0)), ("G", (0, 0, 0))]], 50
    )
    np.testing.assert_array_equal(path.kpoints, same.kpoints)
    assert len(path_through(structure, [[("A", (0, 0, 0)), ("B", (0.5, 0, 0.5))]], 2).kpoints) == 2


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("GXQ", "'GXQ' names corners"),
        ("X", "expected auto, G, corners"),
        ("", "expected auto, G, corners"),
        ("G=0,0 X=0.5,0,0.5", "got 'G=0,0'"),
        ("G=0,0,0 X", "got 'X'"),
        ("G=0,0,0", "two or more corners"),
        ("G=0,0,0 H=0,0,0", "no length"),
    ],
)
def test_bad_paths(spec, sentence):
    with pytest.raises(ValueError, match=sentence):
        band_path(Structure(FCC, [[0, 0, 0]], [14]), spec)


# --- files and pictures


def example(n_spin=1):
    h, s = chain(n_spin, shift=0.4)
    path = band_path(h.graph.structure, "G=0,0,0 X=0.5,0,0 | Y=0,0.5,0 G=0,0,0", 40)
    return band_structure(h, s, path, efermi=-0.25)


@pytest.mark.parametrize("n_spin", [1, 2, 4])
def test_csv(tmp_path, n_spin):
    bands = example(n_spin)
    bands.to_csv(tmp_path / "bands.csv")
    again = BandStructure.from_csv(tmp_path / "bands.csv")
    assert again.efermi == -0.25 and again.path.labels == bands.path.labels and again.path.lattice == "given points"
    np.testing.assert_allclose(again.eigenvalues, bands.eigenvalues, atol=5.1e-10)
    np.testing.assert_allclose(again.path.kpoints, bands.path.kpoints, atol=5.1e-11)
    again.to_csv(tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "bands.csv").read_text()
    BandStructure(bands.path, bands.eigenvalues).to_csv(tmp_path / "bare.csv")
    assert BandStructure.from_csv(tmp_path / "bare.csv").efermi is None


def test_damaged_csv(tmp_path):
    path = tmp_path / "bands.csv"
    example().to_csv(path)
    good = path.read_text().splitlines()
    for line, text, sentence in (
        (1, "hello", "expected a band structure"),
        (2, "# efermi_eV: much", "expected finite numbers"),
        (7, good[6] + ",1", "expected 6 columns, got 7"),
        (9, good[8].rsplit(",", 1)[0] + ",nan", "expected finite numbers"),
    ):
        path.write_text("\n".join([*good[: line - 1], text, *good[line:]]))
        with pytest.raises(FileError, match=f"line {line}: {sentence}"):
            BandStructure.from_csv(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FileError, match="is no text"):
        BandStructure.from_csv(path)


def test_picture(tmp_path):
    import matplotlib.image
    import matplotlib.pyplot

    one, two = example(1), example(2)
    plot_bands([one, two], ["DFT", "NextHAM"], tmp_path / "bands.png", window=(-3, 3), title="chain")
    image = matplotlib.image.imread(tmp_path / "bands.png")
    assert image.shape[0] > 1000 and image[..., :3].std() > 0.01
    red = (image[..., 0] > 0.7) & (image[..., 1] < 0.4)
    black = image[..., :3].max(axis=2) < 0.1
    assert red.sum() > 1000 and black.sum() > 1000
    assert matplotlib.pyplot.get_fignums() == []
    for bands, labels, sentence in (
        ([], [], "at least 1"),
        ([one], ["a", "b"], "at least 1"),
        (
            [one, band_structure(*chain(), band_path(one_structure(), "G=0,0,0 X=0.5,0,0"))],
            ["a", "b"],
            "'b' is on another",
        ),
        ([BandStructure(one.path, one.eigenvalues)], ["a"], "'a' has no Fermi level"),
    ):
        with pytest.raises(ValueError, match=sentence):
            plot_bands(bands, labels, tmp_path / "no.png")
    with pytest.raises(ValueError, match="got 'blue'"):
        plot_bands([one], ["a"], tmp_path / "no.png", styles=["blue"])


def one_structure():
    return chain()[0].graph.structure


def test_shapes_of_a_band_structure():
    path = BandPath(np.zeros((2, 3)), np.zeros(2), ("", ""))
    with pytest.raises(ValueError, match="eigenvalues: expected"):
        BandStructure(path, np.zeros((3, 4)))
    assert BandStructure(path, np.zeros((2, 4))).with_fermi(1).efermi == 1.0
