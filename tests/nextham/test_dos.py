"""Densities of states: counts that must be exact, and closed forms."""

import numpy as np
import pytest
from block_cases import real_matrices

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.dos import density_of_states, orbital_groups
from nextham.graph import neighbour_graph
from nextham.kspace import eigenvectors_at
from nextham.spectra_plot import plot_dos
from nextham.structure import Structure
from nextham.tetrahedra import corner_weights, states_in_bins, tetrahedra


def chain(n_spin=1, shift=0.5):
    """ε = −2 cos 2πk, one orbital per atom."""
    graph = neighbour_graph(Structure(np.diag([2.0, 20.0, 20.0]), [[0, 0, 0]], [1]), 2.02)
    h, s = Blocks.zeros(graph, Basis({1: (0,)}), 1), Blocks.zeros(graph, Basis({1: (0,)}), 1)
    h.data[:] = np.where(graph.onsite(), 0.0, -1.0)
    s.data[:] = np.where(graph.onsite(), 1.0, 0.0)
    return (Blocks.collinear(h, h.shift_gauge(s, shift)) if n_spin == 2 else h), s


def test_corner_weights():
    """Shares of random points of a tetrahedron below an energy, and their mean barycentric coordinates."""
    rng = np.random.default_rng(0)
    points = rng.dirichlet(np.ones(4), 400_000)
    levels = np.array([[0.0, 0.3, 0.5, 1.0], [0.0, 0.0, 0.7, 1.0], [0.0, 0.4, 0.4, 1.0], [0.0, 0.6, 1.0, 1.0]])
    for energies in (0.1, 0.35, 0.45, 0.8):
        found = corner_weights(levels, np.full(4, energies))
        below = points @ levels.T < energies
        expected = np.array([points[inside].sum(0) / len(points) for inside in below.T])
        np.testing.assert_allclose(found, expected, atol=2e-3)
    np.testing.assert_allclose(corner_weights(levels, levels[:, 3] - 1e-12), 0.25, atol=1e-9)
    assert (
        np.abs(corner_weights(levels, np.full(4, 1e-9))).max() < 1e-12 + corner_weights(levels, np.full(4, 1e-9))[1, 0]
    )


def test_tetrahedra_fill_the_cell():
    """A level linear in k between the points of a mesh: the volume below is exact for a mesh of one cell's corners."""
    cell = np.array([[2.0, 0, 0], [0.7, 3.0, 0], [0.1, -0.4, 2.5]])
    corners = tetrahedra((3, 4, 2), cell)
    assert corners.shape == (144, 4) and (np.bincount(corners.reshape(-1)) == 24).all()
    levels = np.random.default_rng(1).standard_normal((24, 3))
    edges = np.array([-100.0, *np.linspace(-2, 2, 7), 100.0])
    counted = states_in_bins(levels, np.ones((24, 3, 1)), corners, edges)
    assert counted.min() >= 0 and counted.sum() == pytest.approx(3.0, abs=1e-12)


@pytest.mark.parametrize("method", ["tetrahedron", "gaussian"])
def test_chain(method):
    """N(E) = 2 arccos(−E/2)/π, both spins; the mesh is halved by time reversal."""
    dos = density_of_states(*chain(), (-1.8, 1.8), 0.05, (400, 1, 1), method, width=0.02, efermi=0.0)
    top = dos.energies + dos.step / 2
    np.testing.assert_allclose(dos.integrated()[0], 2 / np.pi * np.arccos(-top / 2), atol=1e-3)
    assert dos.below[0] == pytest.approx(2 / np.pi * np.arccos(0.9), abs=1e-3)
    whole = density_of_states(*chain(), step=0.05, size=(9, 1, 1), method=method)
    assert whole.integrated()[0, -1] == pytest.approx(2.0, abs=1e-9)


def test_collinear_spin():
    one, two = (density_of_states(*chain(n), (-3, 3), 0.1, (40, 1, 1)) for n in (1, 2))
    np.testing.assert_allclose(two.total[0], one.total[0] / 2, atol=1e-9)
    np.testing.assert_allclose(two.total[1, 5:], two.total[0, :-5], atol=1e-9)


@pytest.mark.parametrize("method", ["tetrahedron", "gaussian"])
def test_every_level_is_counted(method):
    """Real silicon with spin-orbit coupling: 52 levels, of them 8 s, 24 p, 20 d (Mulliken weights of all levels)."""
    matrices = real_matrices()
    dos = density_of_states(matrices["H"], matrices["S"], size=(2, 2, 1), method=method, step=0.1)
    assert dos.integrated()[0, -1] == pytest.approx(52, abs=1e-9)
    counts = {name: part.sum() * dos.step for name, part in dos.projected.items()}
    assert counts == pytest.approx({"Si s": 8, "Si p": 24, "Si d": 20}, abs=1e-9)
    np.testing.assert_allclose(sum(dos.projected.values()), dos.total, atol=1e-12)


def test_mulliken_weights_of_one_point():
    """One k-point: bins of the Gaussian method far apart hold single levels with their weights."""
    matrices = real_matrices()
    levels, c = eigenvectors_at(matrices["H"], matrices["S"], np.zeros((1, 3)))
    names, member = orbital_groups(matrices["H"], "atom")
    assert names == ["Si 1", "Si 2"]
    share = (c[0].conj() * (matrices["S"].spinor().to_dense([0, 0, 0]) @ c[0])).real
    first = share[np.repeat(member, 2) == 0].sum(0)
    edges = (levels[0, 1:] + levels[0, :-1]) / 2
    dos = density_of_states(
        matrices["H"], matrices["S"], (-10.0, edges[9]), 0.01, (1, 1, 1), "gaussian", width=1e-3, by="atom"
    )
    assert dos.projected["Si 1"].sum() * dos.step == pytest.approx(first[:10].sum(), abs=1e-6)


def test_dropped_combinations_have_no_states():
    matrices = real_matrices()
    dos = density_of_states(matrices["H"], matrices["S"], step=0.1, size=(1, 1, 1), method="gaussian", threshold=1e-2)
    kept = (np.linalg.eigvalsh(matrices["S"].to_dense([0, 0, 0])) > 1e-2).sum()
    assert kept < 52 and dos.integrated()[0, -1] == pytest.approx(kept, abs=1e-9)


@pytest.mark.parametrize("n_spin", [1, 2])
def test_file_and_picture(n_spin, tmp_path):
    import matplotlib.image

    dos = density_of_states(*chain(n_spin), (-3, 3), 0.1, (20, 1, 1), efermi=0.25)
    dos.to_csv(tmp_path / "dos.csv")
    lines = (tmp_path / "dos.csv").read_text().splitlines()
    columns = ["total", "integrated", "H_s"]
    names = columns if n_spin == 1 else [f"{c}_{spin}" for c in columns for spin in ("up", "down")]
    assert lines[0] == "# method: tetrahedron, mesh 20 x 1 x 1" and lines[1] == "# efermi_eV: 0.250000000"
    assert lines[3] == ",".join(["energy_eV", *names])
    table = np.loadtxt(tmp_path / "dos.csv", delimiter=",", skiprows=4)
    np.testing.assert_allclose(table[:, 1 : 1 + n_spin].T, dos.total, rtol=1e-8)
    plot_dos(dos, tmp_path / "dos.png", (-2, 2), "chain")
    image = matplotlib.image.imread(tmp_path / "dos.png")
    assert (image[..., :3].max(axis=2) < 0.1).sum() > 500  # black: the total


def test_arguments():
    for change, sentence in (
        ({"method": "comb"}, "method, by: expected tetrahedron or gaussian"),
        ({"by": "colour"}, "method, by: expected"),
        ({"step": 0.0}, "step, width: expected positive energies"),
        ({"window": (1.0, 1.0)}, "window: expected two ascending energies"),
    ):
        with pytest.raises(ValueError, match=sentence):
            density_of_states(*chain(), **change)
