"""Real spherical harmonics of edge vectors, and the polynomials that they are.

Y_e,lm = √(4π) × the usual real spherical harmonic of the direction r/|r|, components m = −l … l with the usual signs,
so that Σ_m Y_lm² = 2l + 1 (e3nn's `component` normalisation). It is e3nn's function at (r_y, r_z, r_x), which makes
e3nn's component order the usual one. The irrep of degree l has parity (−1)^l.

`solid_harmonics` are the same polynomials at any vector, r^l Y_lm, with e3nn's axes. Their derivative is a tensor
product with harmonics of one degree less, ∂Y_l,i/∂r_k = ± (2l + 1) √l Σ_j wigner_3j(l, l − 1, 1)_ijk Y_l−1,j, so
derivatives of any order are compositions of two kernels.

At r = 0 there is no direction: Y_00 = 1 and all others are 0, with zero derivative. Elsewhere every derivative exists.
Source: e3nn, `o3.spherical_harmonics`.
"""

from __future__ import annotations

import functools

import torch

from nextham_kernels.checks import check_shapes, check_tensors
from nextham_kernels.clebsch_gordan import irreps_of, wigner_3j
from nextham_kernels.ops.spherical_harmonics import cpu, reference
from nextham_kernels.ops.tensor_product import Path, Product, tensor_product
from nextham_kernels.registration import define

__all__ = ["solid_harmonics", "spherical_harmonics"]


def _gradient(grad: torch.Tensor, vector: torch.Tensor, l_max: int) -> tuple[torch.Tensor]:
    if l_max == 0:
        return (torch.zeros_like(vector),)
    return (tensor_product(grad.contiguous(), _op(vector, l_max - 1), None, _derivative(l_max)),)


_op = define(
    "solid_harmonics",
    "Tensor vector, int l_max",
    reference.solid_harmonics,
    cpu.forward,
    None,
    lambda vector, l_max: vector.new_empty(vector.shape[0], (l_max + 1) ** 2),
    gradient=_gradient,
    vmap="rows",
    gpu=("spherical_harmonics.kernel.forward",),
)


def spherical_harmonics(vector: torch.Tensor, l_max: int) -> torch.Tensor:
    """Returns the real spherical harmonics l = 0 … l_max of the directions of vectors.

    Args:
        vector: [e, 3], cartesian (x, y, z) in any unit, float32 or float64; for an edge i→j, r = τ_j + R − τ_i.
        l_max: largest degree, 0 to 11.

    Returns:
        [e, (l_max + 1)²], degree after degree.

    Raises:
        ValueError: a wrong shape or degree.
        TypeError: a wrong dtype.

    Example:
        >>> import torch
        >>> spherical_harmonics(torch.tensor([[0.0, 0.0, 2.0]]), 1).round(decimals=4) + 0.0
        tensor([[1.0000, 0.0000, 1.7321, 0.0000]])
    """
    _check(vector, l_max)
    return solid_harmonics(reference.direction(vector), l_max)


def solid_harmonics(vector: torch.Tensor, l_max: int) -> torch.Tensor:
    """Returns the homogeneous polynomials |r|^l Y_lm(r/|r|), l = 0 … l_max, with e3nn's axes.

    Args:
        vector: [e, 3], float32 or float64, in the order of an irrep 1o of e3nn, whose polar axis is the second.
        l_max: largest degree, 0 to 11.

    Returns:
        [e, (l_max + 1)²], degree after degree; of a unit vector, e3nn's component normalisation.

    Raises:
        ValueError: a wrong shape or degree.
        TypeError: a wrong dtype.
    """
    _check(vector, l_max)
    return _op(vector, l_max)


def _check(vector: torch.Tensor, l_max: int) -> None:
    check_tensors(vector=vector)
    check_shapes(vector=(vector, "e 3"))
    if not 0 <= l_max <= 11:
        raise ValueError(f"l_max: expected 0 to 11, got {l_max}")


@functools.cache
def _derivative(l_max: int) -> Product:
    """The product of the gradient's irreps with harmonics of one degree less that gives vectors."""
    degrees = [f"1x{l}{'eo'[l % 2]}" for l in range(l_max + 1)]
    grad, harmonics = irreps_of("+".join(degrees)), irreps_of("+".join(degrees[:-1]))
    paths = []
    for l in range(1, l_max + 1):
        # At the pole both harmonics have one component, √(2l + 1) and √(2l − 1), and the derivative along it is l.
        scale = l * ((2 * l + 1) / (2 * l - 1)) ** 0.5 / float(wigner_3j(l, l - 1, 1)[l, l - 1, 1])
        paths.append(Path(l, l - 1, 0, "uuu", False, scale))
    return Product(grad, harmonics, irreps_of("1x1o"), tuple(paths))
