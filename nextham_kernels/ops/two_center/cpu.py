"""Two-center integrals: the C++ kernel's tables and calls."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch

from nextham_kernels.clebsch_gordan import gaunt
from nextham_kernels.loading import kernels
from nextham_kernels.ops.two_center.reference import columns, components, degrees


@functools.cache
def plan(left: str, right: str, parts: int, dtype: torch.dtype) -> tuple[np.ndarray, ...]:
    """What the kernel asks of a pair of atoms; sums over k of (place, factor) are cut at ends.

    An angular factor Σ_M G Y_LM for each (la, lb, L, ma, mb) that is not zero: ends, places in the harmonics and
    coefficients. A number of the result for each (p, a, b), Σ_L angular factor × column: ends and [k, 2] places.
    """
    left_l, right_l = degrees(left), degrees(right)
    angular: dict[tuple[int, ...], int] = {}
    ends, places, factors = [], [], []
    for la in sorted(set(left_l)):
        for lb in sorted(set(right_l)):
            for degree in range(abs(la - lb), la + lb + 1, 2):
                table = gaunt(la, lb, degree).numpy() / math.sqrt(4 * math.pi)
                for x, y in zip(*np.nonzero(np.abs(table).max(axis=2) > 1e-14), strict=True):
                    (m,) = np.nonzero(np.abs(table[x, y]) > 1e-14)
                    angular[la, lb, degree, int(x), int(y)] = len(ends)
                    places += (degree**2 + m).tolist()
                    factors += table[x, y, m].tolist()
                    ends.append(len(places))
    first_a, first_b = (np.cumsum([0, *(2 * l + 1 for l in ls)]) for ls in (left_l, right_l))
    n_a, n_b = components(left_l), components(right_l)
    terms: list[list[tuple[int, int]]] = [[] for _ in range(parts * n_a * n_b)]
    for column, (degree, p, i, j) in enumerate(columns(left_l, right_l, parts)):
        la, lb = left_l[i], right_l[j]
        for x in range(2 * la + 1):
            for y in range(2 * lb + 1):
                which = angular.get((la, lb, degree, x, y))
                if which is not None:
                    number = (p * n_a + int(first_a[i]) + x) * n_b + int(first_b[j]) + y
                    terms[number].append((which, column))
    flat = [pair for number in terms for pair in number]
    return (
        np.array(ends, dtype=np.int32),
        np.array(places, dtype=np.int32),
        np.array(factors, dtype=str(dtype).removeprefix("torch.")),
        np.cumsum([len(number) for number in terms]).astype(np.int32),
        np.array(flat, dtype=np.int32).reshape(-1, 2),
    )


def forward(
    distance: torch.Tensor,
    harmonics: torch.Tensor,
    table: torch.Tensor,
    left: str,
    right: str,
    parts: int,
    spacing: float,
    cutoff: float,
) -> torch.Tensor:
    """Runs `two_center_forward`."""
    shape = (components(degrees(left)), components(degrees(right)))
    y = distance.new_empty(parts, len(distance), *shape)
    arrays = (t.numpy() for t in (distance, harmonics, table))
    kernels().two_center_forward(*arrays, *plan(left, right, parts, distance.dtype), spacing, cutoff, y.numpy())
    return y
