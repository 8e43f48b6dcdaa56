"""two_center against Gaussians, and its kernel against its reference."""

import math

import harness
import numpy as np
import pytest
import scipy.special
import torch

from nextham_kernels.clebsch_gordan import gaunt
from nextham_kernels.ops.spherical_harmonics import spherical_harmonics
from nextham_kernels.ops.two_center import reference, two_center, two_center_columns

# Degrees of the functions of both atoms, in any order; operators.
CASES = {
    "s-s": ([0], [0], 1),
    "spd": ([0, 0, 1, 1, 2], [0, 0, 1, 1, 2], 2),
    "mixed": ([2, 0, 1], [3, 1, 1], 3),
}
SPACING, CUTOFF = 0.25, 4.9


def inputs(case, n_edges=harness.EDGES, dtype=torch.float64):
    left, right, parts = CASES[case]
    vector = harness.random(n_edges, 3) * 1.7
    vector[:1], vector[1:2] = 0, torch.tensor([9.0, 0, 0])  # on site; beyond the cutoff
    table = harness.random(int(CUTOFF / SPACING) + 6, len(two_center_columns(left, right, parts)), seed=1)
    harmonics = spherical_harmonics(vector, max(left) + max(right))
    return [t.to(dtype) for t in (vector.norm(dim=1), harmonics, table)]


def kernel(case):
    left, right, parts = CASES[case]
    return lambda distance, harmonics, table: two_center(
        distance, harmonics, table, left, right, SPACING, CUTOFF, parts
    )


def plain(case):
    left, right, parts = CASES[case]
    words = (",".join(map(str, degrees)) for degrees in (left, right))
    settings = (*words, parts, SPACING, CUTOFF)
    return lambda distance, harmonics, table: reference.two_center(distance, harmonics, table, *settings)


def test_reference_is_the_definition():
    """⟨Y_lm e^(−αr²) | Y_lm' e^(−αr²)⟩ of Gaussians, by quadrature on a grid in space."""
    exponent, cutoff, spacing = 1.1, 6.0, 0.05
    node, weight = np.polynomial.hermite.hermgauss(16)
    node, weight = node / math.sqrt(2 * exponent), weight / math.sqrt(2 * exponent)
    grid = np.stack(np.meshgrid(node, node, node, indexing="ij"), axis=-1).reshape(-1, 3)
    weights = np.einsum("i,j,k->ijk", weight, weight, weight).reshape(-1)
    solid = lambda v: spherical_harmonics(torch.from_numpy(v), 2).numpy() / math.sqrt(4 * math.pi)  # noqa: E731
    power = lambda v: np.linalg.norm(v, axis=1)[:, None]  # noqa: E731

    def functions(v):
        """r^l Y_lm of l = 1 and 2, without their Gaussian."""
        y = solid(v)
        return np.concatenate([y[:, 1:4] * power(v), y[:, 4:9] * power(v) ** 2], axis=1)

    def exact(vector):
        half = vector / 2
        scale = math.exp(-exponent / 2 * float(vector @ vector))
        return scale * (functions(grid + half) * weights[:, None]).T @ functions(grid - half)

    left = right = [1, 2]
    columns = two_center_columns(left, right)
    # Along the polar axis z only Y_L0 = √((2L + 1)/4π) is left, and the numbers with m = m' give the columns.
    table = np.zeros((int(cutoff / spacing) + 6, len(columns)))
    for row in range(len(table)):
        block = exact(np.array([0.0, 0.0, (row - 2) * spacing]))
        for i, j in ((0, 0), (0, 1), (1, 0), (1, 1)):
            la, lb = left[i], right[j]
            degrees = range(abs(la - lb), la + lb + 1, 2)
            first_a, first_b = ([0, 3][k] for k in (i, j))
            m = range(-min(la, lb), min(la, lb) + 1)
            rows = [
                [gaunt(la, lb, L)[la + x, lb + x, L] * math.sqrt((2 * L + 1) / 4 / math.pi) for L in degrees] for x in m
            ]
            values = [block[first_a + la + x, first_b + lb + x] for x in m]
            found = np.linalg.lstsq(np.array(rows), np.array(values), rcond=None)[0]
            for L, value in zip(degrees, found, strict=True):
                table[row, columns.index((L, 0, i, j))] = value
    vector = harness.random(6, 3)
    distance, harmonics = vector.norm(dim=1), spherical_harmonics(vector, 4)
    found = two_center(distance, harmonics, torch.from_numpy(table), left, right, spacing, cutoff)[0]
    expected = torch.from_numpy(np.stack([exact(v) for v in vector.numpy()]))
    harness.assert_close(found, expected, 1e-7)


@pytest.mark.parametrize("degrees", [(0, 0, 0), (1, 2, 1), (2, 2, 4), (3, 2, 5), (3, 3, 4)])
def test_gaunt(degrees):
    """Quadrature over the sphere, in z by Gauss-Legendre and around it by equal steps."""
    z, weight = scipy.special.roots_legendre(12)
    angle = 2 * math.pi * np.arange(24) / 24
    z, angle, weight = (x.reshape(-1) for x in (*np.meshgrid(z, angle), np.tile(weight, 24)))
    around = np.sqrt(1 - z**2)
    points = torch.from_numpy(np.stack([around * np.cos(angle), around * np.sin(angle), z], axis=1))
    y = spherical_harmonics(points, max(degrees)) / math.sqrt(4 * math.pi)
    first, second, third = (y[:, l**2 : (l + 1) ** 2] for l in degrees)
    weights = torch.from_numpy(weight * 2 * math.pi / 24)
    harness.assert_close(gaunt(*degrees), torch.einsum("p,pa,pb,pc->abc", weights, first, second, third))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_forward(case, dtype):
    harness.assert_as_exact_as_reference(kernel(case), plain(case), inputs(case, dtype=dtype))


def test_instruction_sets_agree(instruction_set):
    harness.assert_close(kernel("mixed")(*inputs("mixed", 301)), plain("mixed")(*inputs("mixed", 301)))


@pytest.mark.triton
@pytest.mark.parametrize("case", CASES)
def test_gpu_kernel(case):
    names = ("distance", "harmonics", "table")
    run, expected = kernel(case), plain(case)
    harness.assert_gpu_kernel(
        "two_center",
        lambda **x: run(*x.values()),
        lambda **x: expected(*x.values()),
        dict(zip(names, inputs(case, 5), strict=True)),
    )


def test_threads_agree():
    harness.assert_threads_agree(lambda: [kernel("spd")(*inputs("spd", 400))])


def test_backward():
    names = ("distance", "harmonics", "table")
    given = dict(zip(names, inputs("mixed"), strict=True))
    harness.assert_same_gradients(
        lambda **x: kernel("mixed")(*x.values()), lambda **x: plain("mixed")(*x.values()), given
    )


def test_gradcheck():
    given = inputs("s-s", 3)
    given[0] = torch.tensor([0.3, 1.1, 9.0], dtype=torch.float64)
    harness.gradcheck(kernel("s-s"), *given)


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion):
    left, right, parts = CASES["mixed"]
    rotation = harness.random_rotation(3)
    irreps = ("+".join(f"1x{l}{'eo'[l % 2]}" for l in degrees) for degrees in (left, right))
    d_a, d_b = (harness.representation(i, rotation, inversion) for i in irreps)
    distance, _, table = inputs("mixed")
    vector = harness.random(len(distance), 3)
    distance, turned = vector.norm(dim=1), vector @ rotation.T * (-1 if inversion else 1)
    run = lambda v: kernel("mixed")(distance, spherical_harmonics(v, 5), table)  # noqa: E731
    harness.assert_close(run(turned), d_a @ run(vector) @ d_b.T)
    assert parts == 3


def test_contract():
    distance, harmonics, table = inputs("s-s")
    run = kernel("s-s")
    assert run(distance[:0], harmonics[:0], table).shape == (1, 0, 1, 1)
    harness.assert_close(run(distance, harmonics, table.T.contiguous().T), run(distance, harmonics, table))
    assert run(distance, harmonics, table)[0, 1] == 0  # beyond the cutoff
    arguments = (harness.leaf(distance + 0.1), harmonics, table, "0", "0", 1, SPACING, CUTOFF)
    torch.library.opcheck(torch.ops.nextham.two_center, arguments)
    with harness.raises(ValueError, "harmonics: expected shape [e, 4] with e = 17, got [17, 1]"):
        two_center(distance, harmonics, table, [0], [1], SPACING, CUTOFF)
    with harness.raises(ValueError, "left: expected degrees l >= 0 of one function or more, got ()"):
        two_center(distance, harmonics, table, [], [0], SPACING, CUTOFF)
    with harness.raises(ValueError, "table: expected 25 rows or more up to 4.9, got 24"):
        run(distance, harmonics, table[:-1])
    with harness.raises(ValueError, "distance: expected numbers >= 0"):
        run(torch.where(distance == 0, -1.0, distance), harmonics, table)
    with harness.raises(ValueError, "parts, spacing, cutoff: expected positive numbers, got 1, 0, 4.9"):
        two_center(distance, harmonics, table, [0], [0], 0, CUTOFF)
    with harness.raises(TypeError, "harmonics: expected dtype float64 as distance, got float32"):
        run(distance, harmonics.float(), table)
