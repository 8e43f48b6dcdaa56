"""Two-center integrals: the definition."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

from nextham_kernels.clebsch_gordan import gaunt


def degrees(word: str) -> tuple[int, ...]:
    """The degrees in a setting such as `0,0,1`."""
    return tuple(map(int, word.split(",")))


def components(ls: Sequence[int]) -> int:
    """Σ (2l + 1)."""
    return sum(2 * l + 1 for l in ls)


@functools.cache
def columns(left: tuple[int, ...], right: tuple[int, ...], parts: int) -> tuple[tuple[int, int, int, int], ...]:
    """(L, p, i, j) of each column: pairs of degrees ascending, then L, p, i, j."""
    return tuple(
        (degree, p, i, j)
        for la in sorted(set(left))
        for lb in sorted(set(right))
        for degree in range(abs(la - lb), la + lb + 1, 2)
        for p in range(parts)
        for i in (i for i, l in enumerate(left) if l == la)
        for j in (j for j, l in enumerate(right) if l == lb)
    )


def interpolated(distance: torch.Tensor, table: torch.Tensor, spacing: float, cutoff: float) -> torch.Tensor:
    """Σ_i w_i(t) table[row + i] of Lagrange's polynomial through six points [e, c]; zero from the cutoff on."""
    inside = distance < cutoff
    x = torch.where(inside, distance, torch.zeros_like(distance)) / spacing
    row = x.detach().floor().long()
    t, total = x - row, 0.0
    for i in range(6):  # row + i is the point at row + i − 2
        weight = math.prod([(t + 2 - j) / (i - j) for j in range(6) if j != i])
        total = total + (weight * inside)[:, None] * table[row + i]
    return total


def two_center(
    distance: torch.Tensor,
    harmonics: torch.Tensor,
    table: torch.Tensor,
    left: str,
    right: str,
    parts: int,
    spacing: float,
    cutoff: float,
) -> torch.Tensor:
    """Σ_L f_L Σ_M G Y_LM, one pair of functions after the other."""
    values = interpolated(distance, table, spacing, cutoff)
    left_l, right_l = degrees(left), degrees(right)
    blocks = {}
    for column, (degree, p, i, j) in enumerate(columns(left_l, right_l, parts)):
        of_degree = harmonics[:, degree**2 : (degree + 1) ** 2] / math.sqrt(4 * math.pi)
        angular = torch.einsum("xym,em->exy", gaunt(left_l[i], right_l[j], degree).to(of_degree), of_degree)
        term = values[:, column, None, None] * angular
        blocks[p, i, j] = blocks[p, i, j] + term if (p, i, j) in blocks else term
    rows = [
        torch.stack([torch.cat([blocks[p, i, j] for j in range(len(right_l))], dim=2) for p in range(parts)])
        for i in range(len(left_l))
    ]
    return torch.cat(rows, dim=2)
