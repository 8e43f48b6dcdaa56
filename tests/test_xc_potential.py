"""xc_potential against published energies of the uniform gas and functional derivatives on a periodic grid."""

import math

import harness
import numpy as np
import pytest
import torch

from nextham_kernels.ops.xc_potential import reference, xc_potential


def energy_of(name, n, gradient):
    return reference.FUNCTIONALS[name](torch.tensor([n]).double(), torch.tensor([gradient**2]).double()).item()


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
        return float(reference.FUNCTIONALS[name](torch.from_numpy(n), torch.from_numpy(sigma)).sum())

    n, bump = density(0.0)
    g = np.stack([derivative(n, a) for a in range(3)])
    hessian = np.stack([[derivative(n, a, b) for b in range(3)] for a in range(3)])
    curved = np.einsum("axyz,abxyz,bxyz->xyz", g, hessian, g)
    fields = np.stack([n, (g**2).sum(axis=0), np.einsum("aaxyz->xyz", hessian), curved], axis=-1)
    v = xc_potential(torch.from_numpy(fields.reshape(-1, 4)), name).numpy()
    e = 1e-5
    expected = (energy(e) - energy(-e)) / (2 * e)
    assert float(v @ bump.flatten()) == pytest.approx(expected, rel=1e-6)


def some_fields(n_points=83):
    """Densities from 1e-9 to 30, gradients from weak to strong."""
    u = torch.rand(n_points, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    n = 10 ** (10.5 * u[:, 0] - 9)
    sigma = n ** (8 / 3) * 10 ** (6 * u[:, 1] - 4)
    laplacian = (2 * u[:, 2] - 1) * n ** (5 / 3) * 10
    return torch.stack([n, sigma, laplacian, (2 * u[:, 3] - 1) * sigma * n ** (5 / 3) * 10], dim=1)


@pytest.mark.parametrize("name", ["pbe", "lda"])
def test_instruction_sets_agree(instruction_set, name):
    fields = some_fields()
    found, expected = xc_potential(fields, name), reference.xc_potential(fields, name)
    # Point by point: the densities differ by ten orders of magnitude.
    assert float(((found - expected) / expected).abs().max()) < 1e-9
    single = xc_potential(fields[fields[:, 0] > 1e-6].float(), name)
    harness.assert_close(single.double(), expected[fields[:, 0] > 1e-6], 1e-4)


@pytest.mark.triton
@pytest.mark.parametrize("name", ["pbe", "lda"])
def test_gpu_kernel(name):
    fields = some_fields()
    fields[0, 0] = 1e-12  # vacuum
    expected = reference.xc_potential(fields, name)
    with harness.on_gpu() as device:
        found = xc_potential(fields.to(device), name).cpu()
        single = xc_potential(fields[fields[:, 0] > 1e-6].float().to(device), name).cpu()
    assert found[0] == 0
    # Point by point: the densities differ by ten orders of magnitude.
    assert float(((found - expected) / expected)[1:].abs().max()) < 1e-9
    harness.assert_close(single.double(), expected[fields[:, 0] > 1e-6], 1e-4)
    ordinary = some_fields(9)
    ordinary[:, 0] += 0.1
    harness.assert_gpu_kernel(
        "xc_potential",
        lambda fields: xc_potential(fields, name),
        lambda fields: reference.xc_potential(fields, name),
        {"fields": ordinary},
        float32=1e-5,
    )


def test_threads_agree():
    harness.assert_threads_agree(lambda: [xc_potential(some_fields(9001), "pbe")])


@pytest.mark.parametrize("name", ["pbe", "lda"])
def test_backward_and_gradcheck(name):
    fields = some_fields(9).clamp_min(-5)
    fields[:, 0] += 0.1
    torch.autograd.gradcheck(lambda x: xc_potential(x, name), harness.leaf(fields), atol=1e-4)
    harness.assert_same_gradients(
        lambda x: xc_potential(x, name), lambda x: reference.xc_potential(x, name), {"x": fields}
    )


def test_vacuum_and_contract():
    one = torch.tensor([1e-12, 0.0, 1e-3], dtype=torch.float64)
    for name in ("pbe", "lda"):
        v = xc_potential(torch.stack([one, one**2, one, one], dim=1), name)
        assert not v[:2].any() and v[2] != 0 and torch.isfinite(v).all()
    assert xc_potential(torch.zeros(0, 4), "pbe").shape == (0,)
    strided = some_fields().repeat(1, 2)[:, :4]
    harness.assert_close(xc_potential(strided, "pbe"), xc_potential(some_fields(), "pbe"))
    torch.library.opcheck(torch.ops.nextham.xc_potential, (harness.leaf(some_fields()), "pbe"))
    with harness.raises(ValueError, "functional: expected one of pbe, lda, got 'b3lyp'"):
        xc_potential(torch.zeros(1, 4), "b3lyp")
    with harness.raises(ValueError, "fields: expected shape [p, 4], got [1, 3]"):
        xc_potential(torch.zeros(1, 3), "pbe")
    with harness.raises(TypeError, "fields: expected dtype float32 or float64, got int64"):
        xc_potential(torch.zeros(1, 4, dtype=torch.int64), "pbe")
