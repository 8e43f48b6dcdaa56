"""Exchange-correlation potentials against published numbers, finite differences and a functional derivative."""

import math

import numpy as np
import pytest
import torch

from nextham.h0 import xc


def energy_of(name, n, gradient):
    return xc.FUNCTIONALS[name](torch.tensor([n]).double(), torch.tensor([gradient**2]).double()).item()


def test_energies_of_the_uniform_gas():
    """Exchange −0.4582/rs, correlation of Perdew and Wang and of Perdew and Zunger, Hartree per electron."""
    for rs, pw, pz in (
        (1.0, -0.0598, -0.0596),
        (2.0, -0.0448, -0.0451),
        (5.0, -0.0282, -0.0285),
        (10.0, -0.0185, -0.0186),
    ):
        n = 3 / (4 * math.pi * rs**3)
        for name, correlation in (("pbe", pw), ("lda", pz)):
            found = energy_of(name, n, 0.0) / 2 / n + 0.458165 / rs
            assert found == pytest.approx(correlation, abs=5e-4)


def test_limits_of_pbe():
    """Strong gradients: exchange grows by 1.804 at most and correlation vanishes."""
    n = 0.3
    slater = energy_of("lda", n, 0.0) / energy_of("lda", n, 0.0) * -1.5 * (3 / math.pi) ** (1 / 3) * n ** (4 / 3)
    assert energy_of("pbe", n, 1e6) == pytest.approx(1.804 * slater, rel=1e-6)
    # Weak gradients cancel between exchange and correlation where both are slowly varying: μ = β π²/3.
    small = energy_of("pbe", 5.0, 0.1) - energy_of("pbe", 5.0, 0.0)
    exchange_alone = 0.2195149727645171 * 0.1**2 / (2 * (3 * math.pi**2 * 5.0) ** (1 / 3) * 5.0) ** 2
    assert abs(small) < 0.1 * exchange_alone * 1.5 * (3 / math.pi) ** (1 / 3) * 5.0 ** (4 / 3)


@pytest.mark.parametrize("name", ["pbe", "lda"])
def test_potential_is_the_functional_derivative(name):
    """d/dε E[n + ε δ] = ∫ v δ on a periodic grid with derivatives by FFT."""
    size, length = 40, 6.0
    x = np.arange(size) * length / size
    k = 2 * np.pi * np.fft.fftfreq(size, length / size)
    grid = np.stack(np.meshgrid(x, x, x, indexing="ij"))
    waves = np.stack(np.meshgrid(k, k, k, indexing="ij"))
    phase = 2 * np.pi / length * grid

    def density(e):
        bump = np.cos(phase[0] + 0.3) * np.cos(phase[1]) + np.sin(phase[2] - phase[1])
        return 0.05 + 0.01 * np.cos(phase).sum(axis=0) + 0.008 * np.cos(phase[0] + phase[2]) + e * bump, bump

    def derivative(f, *axes):
        transform = np.fft.fftn(f)
        for a in axes:
            transform = transform * 1j * waves[a]
        return np.fft.ifftn(transform).real

    def energy(e):
        n, _ = density(e)
        sigma = sum(derivative(n, a) ** 2 for a in range(3))
        return float(xc.FUNCTIONALS[name](torch.from_numpy(n), torch.from_numpy(sigma)).sum())

    n, bump = density(0.0)
    g = np.stack([derivative(n, a) for a in range(3)])
    hessian = np.stack([[derivative(n, a, b) for b in range(3)] for a in range(3)])
    curved = np.einsum("axyz,abxyz,bxyz->xyz", g, hessian, g)
    fields = (n, (g**2).sum(axis=0), np.einsum("aaxyz->xyz", hessian), curved)
    v = xc.potential(name, *(torch.from_numpy(np.ascontiguousarray(f)).flatten() for f in fields)).numpy()
    e = 1e-5
    expected = (energy(e) - energy(-e)) / (2 * e)
    assert float(v @ bump.flatten()) == pytest.approx(expected, rel=1e-6)


def test_vacuum_and_contract():
    one = torch.tensor([1e-12, 0.0, 1e-3], dtype=torch.float64)
    v = xc.potential("pbe", one, one**2, one, one)
    assert not v[:2].any() and v[2] != 0 and torch.isfinite(v).all()
    with pytest.raises(ValueError, match="functional: expected one of pbe, lda, got 'b3lyp'"):
        xc.potential("b3lyp", one, one, one, one)
    assert xc.functional_named("SLA-PW-PBX-PBC") == xc.functional_named("pbe") == "pbe"
    assert xc.functional_named("PZ") == "lda"
    with pytest.raises(ValueError, match=r"functional: expected PBE or LDA \(PZ\), got 'SCAN'"):
        xc.functional_named("SCAN")
