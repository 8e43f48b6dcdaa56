"""Exchange-correlation potentials at points on the GPU (Triton).

A program takes 256 points, a thread two. Numbers carry the derivatives that the potential needs as tuples: functions of
n alone (v, d/dn), functions of n and σ (v, d/dn, d/dσ, d²/dn dσ, d²/dσ²).

Per point: 40 bytes in double precision; some 400 flops, two exponentials and three logarithms for PBE. In double
precision an exponential is some 20 operations more: bound by memory and arithmetic alike.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

from nextham_kernels.cost import Cost, nbytes
from nextham_kernels.ops.xc_potential.reference import VACUUM

POINTS = 256
"""Points of a program."""

_BETA, _GAMMA = tl.constexpr(0.06672455060314922), tl.constexpr((1 - math.log(2)) / math.pi**2)
_KAPPA, _MU = tl.constexpr(0.804), tl.constexpr(0.2195149727645171)
_FERMI = tl.constexpr((3 * math.pi**2) ** (1 / 3))
_SLATER = tl.constexpr(-0.75 * (3 / math.pi) ** (1 / 3))
_RADIUS = tl.constexpr((3 / (4 * math.pi)) ** (1 / 3))
_T2 = tl.constexpr(math.pi / 16)
_PW, _PW_SLOPE = tl.constexpr(2 * 0.0310907), tl.constexpr(0.21370)


@triton.jit
def _times(a, b):
    """Product of two functions of n."""
    return a[0] * b[0], a[1] * b[0] + a[0] * b[1]


@triton.jit
def _inverse(a):
    x = 1.0 / a[0]
    return x, -x * x * a[1]


@triton.jit
def _times_sigma(a, sigma, k):
    """k·σ·a(n), a function of n and σ."""
    return k * sigma * a[0], k * sigma * a[1], k * a[0], k * a[1], tl.zeros_like(sigma)


@triton.jit
def _times_both(a, b):
    """Product of a function of n with one of n and σ."""
    return a[0] * b[0], a[1] * b[0] + a[0] * b[1], a[0] * b[2], a[1] * b[2] + a[0] * b[3], a[0] * b[4]


@triton.jit
def _product(a, b):
    """Product of two functions of n and σ."""
    return (
        a[0] * b[0],
        a[1] * b[0] + a[0] * b[1],
        a[2] * b[0] + a[0] * b[2],
        a[3] * b[0] + a[1] * b[2] + a[2] * b[1] + a[0] * b[3],
        a[4] * b[0] + 2.0 * a[2] * b[2] + a[0] * b[4],
    )


@triton.jit
def _chain(a, g, first, second):
    """g(a), of whose value and first two derivatives at a."""
    return g, first * a[1], first * a[2], second * a[1] * a[2] + first * a[3], second * a[2] * a[2] + first * a[4]


@triton.jit
def _basics(n):
    """n^(1/3), Slater's exchange and the radius of Wigner and Seitz, as functions of n."""
    root = tl.exp(tl.log(n) * (1.0 / 3.0))
    cube_root = (root, root / (3.0 * n))
    exchange = (_SLATER * n * root, _SLATER * (4.0 / 3.0) * root)
    radius = _RADIUS / root
    return cube_root, exchange, (radius, -radius / (3.0 * n))


@triton.jit
def _perdew_wang(rs):
    """Correlation energy per electron of a radius that is a function of n."""
    q = tl.sqrt(rs[0])
    series = _PW * q * (7.5957 + q * (3.5876 + q * (1.6382 + 0.49294 * q)))
    of_q = _PW * (7.5957 + q * (2.0 * 3.5876 + q * (3.0 * 1.6382 + 4.0 * 0.49294 * q)))
    argument = 1.0 + 1.0 / series
    logarithm = tl.log(argument)
    slope = -of_q / (series * series * argument) / (2.0 * q)
    front = -_PW * (1.0 + _PW_SLOPE * rs[0])
    return front * logarithm, (-_PW * _PW_SLOPE * logarithm + front * slope) * rs[1]


@triton.jit
def _pbe(n, sigma):
    """∂f/∂n, ∂f/∂σ, ∂²f/∂n∂σ and ∂²f/∂σ² of the energy per volume, Ry."""
    cube_root, exchange, rs = _basics(n)
    over_fermi = _inverse((_FERMI * cube_root[0], _FERMI * cube_root[1]))
    over_n = (1.0 / n, -1.0 / (n * n))
    over_fn = _times(over_fermi, over_n)
    s2 = _times_sigma(_times(over_fn, over_fn), sigma, 0.25)
    x = 1.0 / (1.0 + _MU / _KAPPA * s2[0])
    enhancement = _chain(s2, 1.0 + _KAPPA - _KAPPA * x, _MU * x * x, -2.0 * _MU * _MU / _KAPPA * x * x * x)
    correlation = _perdew_wang(rs)
    e = tl.exp(correlation[0] * (-1.0 / _GAMMA))
    inverse = _inverse((e - 1.0, e * correlation[1] * (-1.0 / _GAMMA)))
    t2 = _times_sigma(_times(over_fn, over_n), sigma, _T2)
    y = _times_both((_BETA / _GAMMA * inverse[0], _BETA / _GAMMA * inverse[1]), t2)
    v = y[0]
    den = 1.0 / (1.0 + v + v * v)
    num = -v * (2.0 + v)
    second = (-2.0 * (1.0 + v) - 2.0 * num * (1.0 + 2.0 * v) * den) * den * den
    w = _product(t2, _chain(y, (1.0 + v) * den, num * den * den, second))
    argument = 1.0 + _BETA / _GAMMA * w[0]
    slope = _BETA / argument
    gradient = _chain(w, _GAMMA * tl.log(argument), slope, -slope * slope / _GAMMA)
    both = (gradient[0] + correlation[0], gradient[1] + correlation[1], gradient[2], gradient[3], gradient[4])
    a = _times_both(exchange, enhancement)
    b = _times_both((n, tl.full(n.shape, 1.0, n.dtype)), both)
    return 2.0 * (a[1] + b[1]), 2.0 * (a[2] + b[2]), 2.0 * (a[3] + b[3]), 2.0 * (a[4] + b[4])


@triton.jit
def _lda(n):
    """∂f/∂n, Ry."""
    _, exchange, rs = _basics(n)
    r = rs[0]
    logarithm, root = tl.log(r), tl.sqrt(r)
    dense = 0.0311 * logarithm - 0.048 + 0.0020 * r * logarithm - 0.0116 * r
    of_dense = 0.0311 / r + 0.0020 * logarithm + (0.0020 - 0.0116)
    den = 1.0 / (1.0 + 1.0529 * root + 0.3334 * r)
    thin, of_thin = -0.1423 * den, 0.1423 * den * den * (0.5 * 1.0529 / root + 0.3334)
    value, slope = tl.where(r < 1.0, dense, thin), tl.where(r < 1.0, of_dense, of_thin)
    return 2.0 * (exchange[1] + value + n * slope * rs[1])


@triton.jit(do_not_specialize=["n_points"])
def _forward(fields, y, n_points, VACUUM: tl.constexpr, PBE: tl.constexpr, POINTS: tl.constexpr):
    p = tl.program_id(0).to(tl.int64) * POINTS + tl.arange(0, POINTS)
    live = p < n_points
    n = tl.load(fields + 4 * p, mask=live, other=0.0)
    there = n > VACUUM
    safe = tl.where(there, n, 1.0)
    if PBE:
        sigma = tl.where(there, tl.load(fields + 4 * p + 1, mask=live, other=0.0), 0.0)
        of_n, of_sigma, mixed, second = _pbe(safe, sigma)
        v = of_n - 2.0 * of_sigma * tl.load(fields + 4 * p + 2, mask=live, other=0.0)
        v = v - 2.0 * mixed * sigma - 4.0 * second * tl.load(fields + 4 * p + 3, mask=live, other=0.0)
    else:
        v = _lda(safe)
    tl.store(y + p, tl.where(there, v, 0.0), mask=live)


def forward(fields: torch.Tensor, functional: str) -> torch.Tensor:
    """Runs one functional."""
    y = fields.new_empty(len(fields))
    if len(fields):
        grid = (triton.cdiv(len(fields), POINTS),)
        _forward[grid](fields, y, len(fields), VACUUM, functional == "pbe", POINTS, num_warps=4)
    return y


def forward_cost(fields: torch.Tensor, functional: str) -> Cost:
    """Counts `forward`; an exponential or logarithm as 20."""
    flops = 500 if functional == "pbe" else 80
    return Cost(nbytes(fields) + len(fields) * fields.element_size(), flops * len(fields))
