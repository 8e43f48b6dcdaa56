"""Gaussian orbitals R(r) = N r^l exp(−α r²), whose integrals Gauss-Hermite quadrature gives exactly."""

import math

import numpy as np

SHELLS = {1: ((0, 0.5), (0, 1.2), (1, 0.6)), 14: ((0, 0.4), (1, 0.5), (2, 0.6), (3, 0.8))}
"""Atomic number → (l, exponent in Bohr⁻²) of each shell."""

RADIUS = {1: 8.0, 14: 9.0}
"""Bohr; beyond, exp(−α r²) is below 1e-13."""


def radial(l, exponent):
    norm = math.sqrt(2 * (2 * exponent) ** (l + 1.5) / math.gamma(l + 1.5))
    return lambda r: norm * r**l * np.exp(-exponent * r**2)


def harmonics(l, v):
    """Real solid harmonics r^l Y_lm, m = −l … l, from their table in cartesian coordinates [..., 2l + 1]."""
    x, y, z = np.moveaxis(v, -1, 0)
    r2 = x * x + y * y + z * z
    pi = math.pi
    if l == 0:
        parts = [np.full(x.shape, math.sqrt(1 / (4 * pi)))]
    elif l == 1:
        parts = [math.sqrt(3 / (4 * pi)) * c for c in (y, z, x)]
    elif l == 2:
        c = math.sqrt(15 / (4 * pi))
        parts = [c * x * y, c * y * z, math.sqrt(5 / (16 * pi)) * (3 * z * z - r2), c * x * z, c / 2 * (x * x - y * y)]
    else:
        c3, c2, c1 = math.sqrt(35 / (32 * pi)), math.sqrt(105 / (4 * pi)), math.sqrt(21 / (32 * pi))
        parts = [c3 * y * (3 * x * x - y * y), c2 * x * y * z, c1 * y * (5 * z * z - r2)]
        parts += [math.sqrt(7 / (16 * pi)) * z * (5 * z * z - 3 * r2)]
        parts += [c1 * x * (5 * z * z - r2), c2 / 2 * z * (x * x - y * y), c3 * x * (x * x - 3 * y * y)]
    return np.stack(parts, axis=-1)


def polynomial(shell, v, kinetic=False):
    """The orbitals of a shell, or −∇² of them, at v [..., 3] without their Gaussian [..., 2l + 1]."""
    l, exponent = shell
    r2 = (v * v).sum(axis=-1, keepdims=True)
    factor = 2 * exponent * (2 * l + 3) - 4 * exponent**2 * r2 if kinetic else 1.0
    return radial(l, exponent)(1.0) * math.exp(exponent) * factor * harmonics(l, v)


def integrals(first, second, vector):
    """S and T (Ry) of two shells, the second at `vector` from the first (Bohr), each [2 l_a + 1, 2 l_b + 1]."""
    (_, a), (_, b) = first, second
    node, weight = np.polynomial.hermite.hermgauss(10)
    grid = np.stack(np.meshgrid(node, node, node, indexing="ij"), axis=-1).reshape(-1, 3) / math.sqrt(a + b)
    weights = np.einsum("i,j,k->ijk", weight, weight, weight).reshape(-1) * (a + b) ** -1.5
    weights *= math.exp(-a * b / (a + b) * float(vector @ vector))
    r = grid + vector * b / (a + b)
    left = polynomial(first, r) * weights[:, None]
    right = polynomial(second, r - vector)
    kinetic = polynomial(second, r - vector, kinetic=True)
    return left.T @ right, left.T @ kinetic


def position(first, second, vector):
    """x, y and z counted from the first shell's atom, between two shells [3, 2 l_a + 1, 2 l_b + 1]."""
    (_, a), (_, b) = first, second
    node, weight = np.polynomial.hermite.hermgauss(10)
    grid = np.stack(np.meshgrid(node, node, node, indexing="ij"), axis=-1).reshape(-1, 3) / math.sqrt(a + b)
    weights = np.einsum("i,j,k->ijk", weight, weight, weight).reshape(-1) * (a + b) ** -1.5
    weights *= math.exp(-a * b / (a + b) * float(vector @ vector))
    r = grid + vector * b / (a + b)
    return np.einsum("pk,pa,pb,p->kab", r, polynomial(first, r), polynomial(second, r - vector), weights)
