"""Two-center integrals: tables of radial integrals, interpolated, times Gaunt coefficients and harmonics.

An operator that commutes with rotations, between functions f_i(r) Y_la,ma around one atom and g_j(r) Y_lb,mb around
another, the vector R from the first to the second:

    y_p,e,(i ma),(j mb) = Σ_L f_p,ij,L(|R_e|) Σ_M G(la ma, lb mb, LM) Y_LM(R̂_e)

with L = |la − lb|, … la + lb in steps of 2 and G = ∫ Y Y Y (`gaunt`); f is read off a uniform table by Lagrange's
polynomial through the six points around |R|. The harmonics are those of `spherical_harmonics`, so that Y_LM is √(4π)
times less. Several operators p share everything but the table.

Linear in the table and the harmonics, smooth in the distance but for jumps of the interpolation error; derivatives
exist up to second order (they are the reference's). Source: any text on atomic orbitals in solids; J. M. Soler et al.,
J. Phys.: Condens. Matter 14, 2745 (2002), appendix A.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from nextham_kernels.checks import check_shapes, check_tensors, check_true
from nextham_kernels.ops.two_center import cpu, reference
from nextham_kernels.registration import define

__all__ = ["two_center", "two_center_columns"]

_op = define(
    "two_center",
    "Tensor distance, Tensor harmonics, Tensor table, str left, str right, int parts, float spacing, float cutoff",
    reference.two_center,
    cpu.forward,
    None,
    lambda distance, harmonics, table, left, right, parts, spacing, cutoff: distance.new_empty(
        parts, len(distance), *(reference.components(reference.degrees(word)) for word in (left, right))
    ),
    gpu=("two_center.kernel.forward",),
)


def two_center(
    distance: torch.Tensor,
    harmonics: torch.Tensor,
    table: torch.Tensor,
    left: Sequence[int],
    right: Sequence[int],
    spacing: float,
    cutoff: float,
    parts: int = 1,
) -> torch.Tensor:
    """Interpolates the table and puts it together with the harmonics; the formula is on the op's page.

    Args:
        distance: |R| [e], float32 or float64, not negative, in the unit of `spacing`.
        harmonics: `spherical_harmonics(R, l_max)` [e, (l_max + 1)²], same dtype, l_max = max(left) + max(right).
        table: [k, c], same dtype: row n holds the values at (n − 2)·spacing; it needs six rows more than there are
            whole spacings below the cutoff. The columns are those of `two_center_columns`.
        left: degree of each function of the first atom, in any order.
        right: degree of each function of the second atom.
        spacing: of the table.
        cutoff: from this distance on the result is zero.
        parts: P, number of operators.

    Returns:
        [P, e, a, b]: function after function, m = −l … l in each.

    Raises:
        ValueError: a wrong shape, no function, a negative degree or distance, a distance that is not a number, or a
            table that ends before the cutoff.
        TypeError: a wrong or mixed dtype or device.

    Example:
        >>> import torch
        >>> table = torch.ones(8, 1)
        >>> two_center(torch.tensor([0.5, 3.0]), torch.ones(2, 1), table, [0], [0], 1.0, 2.0)[0, :, 0, 0] * 4 * torch.pi
        tensor([1., 0.])
    """
    check_tensors(distance=distance, harmonics=harmonics, table=table)
    for name, degrees in (("left", left), ("right", right)):
        if not len(degrees) or min(degrees) < 0:
            raise ValueError(f"{name}: expected degrees l >= 0 of one function or more, got {tuple(degrees)}")
    if parts < 1 or not spacing > 0 or not cutoff > 0:
        raise ValueError(f"parts, spacing, cutoff: expected positive numbers, got {parts}, {spacing:g}, {cutoff:g}")
    n_harmonics = (max(left) + max(right) + 1) ** 2
    columns = len(two_center_columns(left, right, parts))
    check_shapes(distance=(distance, "e"), harmonics=(harmonics, f"e {n_harmonics}"), table=(table, f"k {columns}"))
    check_true(distance >= 0, "distance: expected numbers >= 0")
    if len(table) < int(cutoff / spacing) + 6:
        raise ValueError(f"table: expected {int(cutoff / spacing) + 6} rows or more up to {cutoff:g}, got {len(table)}")
    words = (",".join(str(int(l)) for l in degrees) for degrees in (left, right))
    return _op(distance, harmonics, table, *words, parts, float(spacing), float(cutoff))


def two_center_columns(left: Sequence[int], right: Sequence[int], parts: int = 1) -> list[tuple[int, int, int, int]]:
    """Returns what each column of a table is: (L, p, i, j), i and j counting the functions of either atom.

    Example:
        >>> two_center_columns([0, 1], [1])
        [(1, 0, 0, 0), (0, 0, 1, 0), (2, 0, 1, 0)]
    """
    return list(reference.columns(tuple(map(int, left)), tuple(map(int, right)), parts))
