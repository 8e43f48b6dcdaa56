"""Errors between Hamiltonians: each mean against sums over single elements."""

import json

import numpy as np
import pytest

from nextham import data
from nextham.bands_plot import plot_error_against_distance
from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.fermi import monkhorst_pack
from nextham.graph import Graph, neighbour_graph
from nextham.io.csr import read_blocks
from nextham.io.stru import read_stru
from nextham.kspace import bands_at
from nextham.metrics import band_error, gauge_mae, gauge_mu, overlap_condition
from nextham.structure import Structure
from nextham.units import SYMBOLS

BASIS = Basis({14: (0, 0, 1), 1: (0,)})
K = np.array([[0.0, 0.0, 0.0], [0.2, -0.1, 0.4]])


@pytest.fixture(scope="module")
def graph():
    structure = Structure(np.diag([2.6, 2.9, 3.1]), [[0.1, 0.2, 0.3], [1.3, 1.5, 1.4], [0.2, 1.4, 0.1]], [14, 1, 1])
    return neighbour_graph(structure, 3.5)


def matrix(graph, n_spin=1, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    blocks = Blocks.zeros(graph, BASIS, n_spin, np.complex128 if n_spin == 4 else np.float64)
    blocks.data[:] = scale * rng.standard_normal(len(blocks.data))
    if n_spin == 4:
        blocks.data += 1j * scale * rng.standard_normal(len(blocks.data))
    return blocks.symmetrised()


def overlap(graph):
    s = matrix(graph, seed=7, scale=0.005)
    for e in np.flatnonzero(graph.onsite()):
        s.block(e)[0] += np.eye(s.block(e).shape[1])
    return s


@pytest.mark.parametrize("n_spin", [1, 2, 4])
def test_gauge_shift_is_the_best_one(graph, n_spin):
    error, s = matrix(graph, n_spin), overlap(graph)
    mu = gauge_mu(error, s)

    def squares(shift):
        return np.linalg.norm(error.shift_gauge(s, -shift).data) ** 2

    assert squares(mu) < min(squares(mu + 1e-3), squares(mu - 1e-3))
    assert squares(mu + 0.1) == pytest.approx(squares(mu - 0.1), rel=1e-9)


@pytest.mark.parametrize("n_spin", [1, 2, 4])
def test_every_part_is_its_mean(graph, n_spin):
    """All groups summed element by element."""
    hamiltonian, reference, s = matrix(graph, n_spin, 1), matrix(graph, n_spin, 2), overlap(graph)
    edges = (0.0, 1.0, 2.0, 3.0)
    report = gauge_mae(hamiltonian, reference, s, distance_edges=edges)
    shift = s.with_spin(n_spin)
    spins = {1: [""], 2: ["up ", "down "], 4: ["uu ", "ud ", "du ", "dd "]}[n_spin]
    shells = {14: ["1s", "2s", "1p", "1p", "1p"], 1: ["1s"]}
    numbers, found = graph.structure.numbers, {"spin": {}, "distance": {}, "elements": {}, "shells": {}, "all": {}}

    def add(group, name, value):
        found[group].setdefault(name, []).append(1e3 * value)

    for e, distance in enumerate(graph.distance()):
        block = hamiltonian.block(e) - reference.block(e) - report.mu_eV * shift.block(e)
        i, j = int(numbers[graph.src[e]]), int(numbers[graph.dst[e]])
        bin_ = int(np.searchsorted(edges, distance, side="right"))
        for (spin, a, b), x in np.ndenumerate(block):
            add("all", "", abs(x))
            add("distance", f"{edges[bin_ - 1]:g}-{edges[bin_]:g} Å" if bin_ < len(edges) else "from 3 Å", abs(x))
            add("elements", f"{SYMBOLS[i]}-{SYMBOLS[j]}", abs(x))
            add("shells", f"{shells[i][a]}-{shells[j][b]}", abs(x))
            add("spin", f"{spins[spin]}real", abs(x.real))
            if n_spin == 4:
                add("spin", f"{spins[spin]}imaginary", abs(x.imag))
    assert report.mu_eV == pytest.approx(gauge_mu(hamiltonian - reference, s))
    assert report.max_meV == pytest.approx(max(found["all"][""]))
    rows = report.rows()
    assert len(rows) == sum(len(names) for names in found.values())
    for group, name, mae, count in rows:
        assert mae == pytest.approx(np.mean(found[group][name])) and count == len(found[group][name]), (group, name)
    assert list(report.by_distance) == ["0-1 Å", "1-2 Å", "2-3 Å", "from 3 Å"]
    written = json.loads(json.dumps(report.to_dict()))
    assert written["by_elements"]["Si-H"] == {
        "mae_meV": report.by_elements["Si-H"].mae_meV,
        "n_elements": report.by_elements["Si-H"].n_elements,
    }


def test_gauge_is_taken_off(graph):
    h, s = matrix(graph, 4), overlap(graph)
    report = gauge_mae(h.shift_gauge(s, 0.7), h, s)
    assert report.mu_eV == pytest.approx(0.7) and report.max_meV < 1e-9


def test_edges_of_both_sides_count(graph):
    """An edge that one matrix lacks counts as zero there; the cutoff takes edges out; spin is made equal."""
    h, s = matrix(graph), overlap(graph)
    short = h.within(0.0, 3.0)
    one, other = gauge_mae(h, short, s), gauge_mae(short, h, s)
    assert one.n_elements == other.n_elements == len(h.data)
    assert one.mae_meV == pytest.approx(other.mae_meV) and one.mu_eV == pytest.approx(-other.mu_eV)
    assert one.mae_meV > 100
    assert gauge_mae(h, short, s, cutoff=3.0).max_meV < 1e-12
    assert gauge_mae(h, short, s, cutoff=None).n_elements == len(h.data)
    assert gauge_mae(h, h.spinor(), s).n_elements == 4 * len(h.data)


def test_bad_arguments(graph):
    h, s = matrix(graph), overlap(graph)
    other = Blocks.zeros(graph, Basis({14: (0, 0, 1), 1: (0, 0)}), 1)
    with pytest.raises(ValueError, match="reference: expected the atoms and the basis"):
        gauge_mae(h, other, s)
    atoms = graph.structure
    moved = Structure(atoms.cell, atoms.positions + np.array([0.02, 0, 0]), atoms.numbers)
    away = Blocks(Graph(moved, graph.src, graph.dst, graph.R), h.basis, h.data, h.n_spin)
    with pytest.raises(
        ValueError, match=r"reference: expected the positions of the Hamiltonian, got others, by up to 0\.02 Å"
    ):
        gauge_mae(h, away, s)
    with pytest.raises(ValueError, match="distance_edges"):
        gauge_mae(h, h, s, distance_edges=(1.0, 1.0))
    with pytest.raises(ValueError, match="no edges"):
        gauge_mae(h.select(np.array([], dtype=int)), h.select(np.array([], dtype=int)), s)
    with pytest.raises(ValueError, match="S is zero"):
        gauge_mu(h, s * 0.0)
    with pytest.raises(ValueError, match="no level"):
        band_error(h, h, s, K, 1e4)
    with pytest.raises(ValueError, match="kpoints"):
        overlap_condition(s, K[:0])


def test_overlap_condition(graph):
    s = overlap(graph)
    values = [np.linalg.eigvalsh(s.to_dense(k)) for k in K]
    found = overlap_condition(s.spinor(), K)
    assert found.smallest == pytest.approx(min(v[0] for v in values))
    assert found.largest == pytest.approx(max(v[-1] for v in values))
    assert found.condition == pytest.approx(max(v[-1] / v[0] for v in values))
    assert found.at == tuple(K[int(np.argmin([v[0] for v in values]))])
    indefinite = overlap_condition(s.shift_gauge(s, -2.0), K)
    assert indefinite.condition == np.inf and indefinite.to_dict()["condition"] is None
    json.dumps(found.to_dict())


def test_band_error(graph):
    h, s, k = matrix(graph, 1, 3), overlap(graph), K
    exact = bands_at(h, s, k)
    moved = h.shift_gauge(s, 0.4)
    assert band_error(moved, h, s, k, 0.0).max_meV < 1e-8  # the gauge costs nothing
    # S itself as the reference's unit: scaling H scales its bands about zero.
    scaled = band_error(h * 1.01, h, s, k, 0.0, window=(-2.0, 2.0))
    inside = np.abs(exact) <= 2.0
    difference = np.abs(1.01 * exact - scaled.mu_eV - exact)[inside]
    assert scaled.n_levels == inside.sum() and 0 < scaled.n_levels < exact.size
    assert scaled.mean_meV == pytest.approx(1e3 * difference.mean())
    assert scaled.max_meV == pytest.approx(1e3 * difference.max())
    json.dumps(scaled.to_dict())


def test_real_sample(tmp_path):
    """H⁽⁰⁾ of the bundled sample: about a meV off per element, a hundred in the bands."""
    folder = data.sample("Si-1")
    structure = read_stru(folder / "STRU").structure
    basis = Basis.published(structure.numbers)
    h0, h, s = (read_blocks(folder / f"{kind}_nao.csr.xz", structure, basis) for kind in ("hrs0", "hrs1", "srs1"))
    report = gauge_mae(h0, h, s)
    assert report.mae_meV == pytest.approx(1.5269, abs=1e-4) and report.mu_eV == pytest.approx(-0.4968, abs=1e-4)
    assert (
        report.by_distance["0-1 Å"].mae_meV > report.by_distance["4-6 Å"].mae_meV > report.by_distance["6-8 Å"].mae_meV
    )
    kpoints, _ = monkhorst_pack((2, 1, 1))
    bands = band_error(h0, h, s, kpoints, json.loads((folder / "info.json").read_text())["efermi_eV"])
    assert 50 < bands.mean_meV < 300
    assert 1e3 < overlap_condition(s, kpoints).condition < 1e5
    plot_error_against_distance([report], ["H0"], tmp_path / "distance.png")
    assert (tmp_path / "distance.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="one label for each"):
        plot_error_against_distance([report], [], tmp_path / "no.png")
