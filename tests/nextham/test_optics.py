"""Optical conductivity against plain loops, a two-band chain in closed form, and a rotated crystal."""

import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from scipy.spatial.transform import Rotation

from nextham.basis import Basis
from nextham.blocks import Blocks
from nextham.graph import neighbour_graph
from nextham.optics import APPROXIMATION, optical_conductivity
from nextham.spectra_plot import plot_optics
from nextham.structure import Structure

COULOMB = 14.3996454784936  # e²/4πε₀ in eV Å
RESISTANCE = 4108.235902  # ħ/e² in Ω
CELL = np.array([[3.0, 0.2, 0.0], [0.0, 3.4, 0.3], [0.4, 0.0, 3.9]])
ENERGIES = np.linspace(0.5, 12, 40)


def crystal(is_complex, rotation=None):
    """Two atoms with s and p, random H and a small random overlap."""
    rng = np.random.default_rng(4)
    structure = Structure(CELL, np.array([[0.1, 0.2, 0.3], [0.55, 0.6, 0.8]]) @ CELL, [6, 14]).wrapped()[0]
    graph, basis = neighbour_graph(structure, 3.5), Basis({6: (0, 1), 14: (0, 0, 1)})
    kind = np.complex128 if is_complex else np.float64
    h, s = Blocks.zeros(graph, basis, 1, kind), Blocks.zeros(graph, basis, 1)
    h.data[:] = rng.standard_normal(len(h.data)) + (1j * rng.standard_normal(len(h.data)) if is_complex else 0)
    s.data[:] = 0.02 * rng.standard_normal(len(s.data))
    h, s = h.symmetrised(), s.symmetrised()
    for e in np.flatnonzero(graph.onsite()):
        s.block(e)[0] += np.eye(len(s.block(e)[0]))
    if rotation is None:
        return h, s
    # Components of p are y, z, x.
    turn = {0: np.eye(1), 1: rotation[[1, 2, 0]][:, [1, 2, 0]]}
    turned = Structure(structure.cell @ rotation.T, structure.positions @ rotation.T, structure.numbers)
    other = type(graph)(turned, graph.src, graph.dst, graph.R)
    result = []
    for matrix in (h, s):
        new = Blocks(other, basis, matrix.data.copy(), 1)
        for z_a, z_b, edges, blocks in matrix.groups():
            d_a, d_b = (scipy.linalg.block_diag(*(turn[l] for l in basis[z])) for z in (z_a, z_b))
            new.put(edges, d_a @ blocks @ d_b.T)
        result.append(new)
    return tuple(result)


def by_loops(h, s, efermi, size, width, smearing):
    """ε₂ = 4π² e²/V Σ w (f_m − f_n) P_mn P_nm/(ε_n − ε_m)² δ …, one transition, one component at a time."""
    structure = h.graph.structure
    points = [np.array([a, b, c]) / size for a in range(size[0]) for b in range(size[1]) for c in range(size[2])]
    start = h.basis.offsets(structure.numbers)
    epsilon = np.zeros((len(ENERGIES), 3, 3), dtype=complex)
    for k in points:
        sums = np.zeros((2, 4, start[-1], start[-1]), dtype=complex)  # H, S: value and slopes
        for which, matrix in enumerate((h, s)):
            for e, r in enumerate(matrix.graph.vector()):
                i, j = matrix.graph.src[e], matrix.graph.dst[e]
                phase = np.exp(1j * r @ (2 * np.pi * np.linalg.inv(structure.cell) @ k))
                for c, factor in enumerate((1, *(1j * r))):
                    sums[which, c, start[i] : start[i + 1], start[j] : start[j + 1]] += (
                        factor * phase * matrix.block(e)[0]
                    )
        levels, c = scipy.linalg.eigh(sums[0, 0], sums[1, 0])
        f = 0.5 * scipy.special.erfc((levels - efermi) / smearing)
        for m in range(len(levels)):
            for n in range(len(levels)):
                gap = levels[n] - levels[m]
                if gap <= 1e-6:
                    continue
                mean = (levels[n] + levels[m]) / 2
                p = np.array([c[:, m].conj() @ (sums[0, x] - mean * sums[1, x]) @ c[:, n] for x in (1, 2, 3)])
                line = np.exp(-(((gap - ENERGIES) / width) ** 2)) / (width * np.sqrt(np.pi))
                strength = 2 * (f[m] - f[n]) / gap / len(points) * np.outer(p, p.conj())
                epsilon += strength * (line / ENERGIES)[:, None, None]
    return 4 * np.pi**2 * COULOMB / abs(np.linalg.det(structure.cell)) * epsilon


@pytest.mark.parametrize("is_complex", [False, True])
def test_plain_loops(is_complex):
    """Real H: time reversal halves the mesh and the tensor is real; complex H: Hermitian."""
    h, s = crystal(is_complex)
    optics = optical_conductivity(h, s, 0.3, ENERGIES, (2, 3, 2), width=0.4, smearing=0.2)
    expected = by_loops(h, s, 0.3, np.array([2, 3, 2]), 0.4, 0.2)
    np.testing.assert_allclose(optics.epsilon2(), expected, atol=1e-8 * np.abs(expected).max())
    assert np.abs(optics.conductivity.imag).max() > 1e3 if is_complex else not optics.conductivity.imag.any()
    hermitian = optics.conductivity.conj().swapaxes(1, 2)
    np.testing.assert_allclose(optics.conductivity, hermitian, atol=1e-9 * np.abs(hermitian).max())


def test_rotated_crystal():
    rotation = Rotation.from_rotvec([0.4, -1.1, 0.7]).as_matrix()
    plain, turned = (
        optical_conductivity(*crystal(True, r), 0.3, ENERGIES, (2, 2, 2), width=0.4).conductivity
        for r in (None, rotation)
    )
    np.testing.assert_allclose(turned, rotation @ plain @ rotation.T, atol=1e-9 * np.abs(plain).max())


# --- a chain of atoms A, B with levels ±Δ and hopping t: ε = ±√(Δ² + 4t² cos²(ka/2)), |P| = t a |sin(ka/2)| Δ/ε

A, DELTA, T, AREA = 3.0, 0.8, 1.1, 400.0


def two_bands():
    structure = Structure(np.diag([A, 20.0, 20.0]), [[0, 0, 0], [A / 2, 0, 0]], [6, 14])
    graph = neighbour_graph(structure, A / 2 * 1.01)
    h, s = (Blocks.zeros(graph, Basis({6: (0,), 14: (0,)}), 1) for _ in range(2))
    onsite = graph.onsite()
    h.data[:] = np.where(onsite, np.where(graph.src == 0, -DELTA, DELTA), T)
    s.data[:] = onsite
    return h, s


def test_two_bands_in_closed_form():
    """σ(E) = (2 e²/ħ) (π/V) (P²/E) · 2 · (a/2π) dk/dE: two k-points ±k for each E, both spins; area 400 Å²."""
    photons = np.linspace(1.8, 2.2, 9)
    optics = optical_conductivity(*two_bands(), 0.0, photons, (4000, 1, 1), width=0.01)
    level = photons / 2
    cos2 = (level**2 - DELTA**2) / (4 * T**2)
    half = np.arccos(np.sqrt(cos2))  # ka/2
    p = T * A * np.sin(half) * DELTA / level
    slope = 2 * T**2 * A * np.sin(half) * np.cos(half) / level  # dε/dk
    density = 2 * (A / (2 * np.pi)) / (2 * slope)  # of k-points per photon energy
    expected = 2 * np.pi / (RESISTANCE * A * AREA) * 1e10 * p**2 / photons * density
    np.testing.assert_allclose(optics.conductivity[:, 0, 0].real, expected, rtol=2e-3)
    assert not optics.conductivity[:, 1:, 1:].any()


def test_sum_rule_of_two_bands():
    """∫σ dE, whatever the width: 2 π e²/(ħV) ⟨P²/(2ε)⟩ over the zone."""
    photons = np.linspace(0.01, 8, 4000)
    optics = optical_conductivity(*two_bands(), 0.0, photons, (60, 1, 1), width=0.1)

    def weight(half):
        level = np.sqrt(DELTA**2 + 4 * T**2 * np.cos(half) ** 2)
        return (T * A * np.sin(half) * DELTA / level) ** 2 / (2 * level) / np.pi

    mean = scipy.integrate.quad(weight, 0, np.pi)[0]
    expected = 2 * np.pi / (RESISTANCE * A * AREA) * 1e10 * mean
    found = np.trapezoid(optics.conductivity[:, 0, 0].real, photons)
    assert found == pytest.approx(expected, rel=1e-4)
    # n = 2 m V/(π e²) ∫ tr σ/3 dω with ħ²/m = 7.61996 eV Å²: n = ⅔ · 2 mean · m/ħ².
    assert optics.electrons()[-1] == pytest.approx(2 / 3 * 2 * mean / 7.6199642, rel=1e-4)


def test_file_and_picture(tmp_path):
    import matplotlib.image

    optics = optical_conductivity(*crystal(True), 0.3, ENERGIES, (2, 2, 2), width=0.4)
    optics.to_csv(tmp_path / "optics.csv")
    lines = (tmp_path / "optics.csv").read_text().splitlines()
    assert lines[0] == f"# {APPROXIMATION}" and lines[2].startswith("energy_eV,sigma_xx_S/m,")
    table = np.loadtxt(tmp_path / "optics.csv", delimiter=",", skiprows=3)
    assert table.shape == (len(ENERGIES), 17)
    np.testing.assert_allclose(table[:, 4], optics.conductivity[:, 0, 1].real, rtol=1e-8)
    np.testing.assert_allclose(table[:, 13], optics.conductivity[:, 0, 1].imag, rtol=1e-8)
    np.testing.assert_allclose(table[:, 9], optics.epsilon2()[:, 2, 2].real, rtol=1e-8)
    plot_optics(optics, tmp_path / "optics.png", "model")
    assert matplotlib.image.imread(tmp_path / "optics.png")[..., :3].std() > 0.05


def test_arguments():
    h, s = two_bands()
    for energies, change, sentence in (
        ([0.0, 1.0], {}, "energies: expected one or more positive photon energies"),
        ([], {}, "energies: expected one or more"),
        ([1.0], {"width": 0.0}, "width, smearing: expected positive energies, got 0 and 0.05"),
    ):
        with pytest.raises(ValueError, match=sentence):
            optical_conductivity(h, s, 0.0, np.array(energies), **change)
