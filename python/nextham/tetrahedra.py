"""Linear tetrahedra: how many states of a mesh of k-points lie below an energy, and on which corners they count.

Each cell of the mesh is cut into six tetrahedra along its shortest diagonal, inside which levels are linear. Source:
P. E. Blöchl, O. Jepsen, O. K. Andersen, Phys. Rev. B 49, 16223 (1994), appendix B, without its correction term.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

__all__ = ["corner_weights", "states_in_bins", "tetrahedra"]

_PAIRS = 1 << 20
"""Pairs of a tetrahedron and an energy that are held at a time."""


def tetrahedra(size: tuple[int, int, int], cell: np.ndarray) -> np.ndarray:
    """Returns the corners of the tetrahedra [6 n₁n₂n₃, 4] as places in the flat mesh.

    Args:
        size: points of the mesh along each reciprocal vector.
        cell: lattice vectors as rows [3, 3], Å.
    """
    steps = np.linalg.inv(cell).T / np.array(size)[:, None]
    flips = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    lengths = np.linalg.norm((1 - 2 * flips) @ steps, axis=1)
    flip = flips[int(np.argmin(lengths.round(9)))]
    ways = [np.cumsum([[0, 0, 0], *(np.eye(3, dtype=int)[list(order)])], axis=0) for order in permutations(range(3))]
    corners = np.abs(np.array(ways) - flip)  # [6, 4, 3]
    first = np.stack(np.meshgrid(*(np.arange(n) for n in size), indexing="ij"), axis=-1).reshape(-1, 1, 1, 3)
    return np.ravel_multi_index(np.moveaxis((first + corners) % size, -1, 0), size).reshape(-1, 4)


def corner_weights(levels: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Returns how much each corner counts of the part of a tetrahedron below an energy [t, 4]; 1/4 each when full.

    Args:
        levels: at the corners, ascending [t, 4].
        energy: one for each [t], between the first and the last level.
    """
    e1, e2, e3, e4 = levels.T
    weights = np.empty_like(levels)
    low, high = energy < e2, energy >= e3
    middle = ~low & ~high
    i = np.flatnonzero(low)
    x, a, b, c = (y[i] for y in (energy - e1, e2 - e1, e3 - e1, e4 - e1))
    part = x**3 / (4 * a * b * c)
    weights[i] = np.stack([part * (4 - x * (1 / a + 1 / b + 1 / c)), part * x / a, part * x / b, part * x / c], axis=1)
    i = np.flatnonzero(middle)
    e, e1, e2, e3, e4 = energy[i], e1[i], e2[i], e3[i], e4[i]
    c1 = (e - e1) ** 2 / (4 * (e4 - e1) * (e3 - e1))
    c2 = (e - e1) * (e - e2) * (e3 - e) / (4 * (e4 - e1) * (e3 - e2) * (e3 - e1))
    c3 = (e - e2) ** 2 * (e4 - e) / (4 * (e4 - e2) * (e3 - e2) * (e4 - e1))
    weights[i] = np.stack(
        [
            c1 + (c1 + c2) * (e3 - e) / (e3 - e1) + (c1 + c2 + c3) * (e4 - e) / (e4 - e1),
            c1 + c2 + c3 + (c2 + c3) * (e3 - e) / (e3 - e2) + c3 * (e4 - e) / (e4 - e2),
            (c1 + c2) * (e - e1) / (e3 - e1) + (c2 + c3) * (e - e2) / (e3 - e2),
            (c1 + c2 + c3) * (e - e1) / (e4 - e1) + c3 * (e - e2) / (e4 - e2),
        ],
        axis=1,
    )
    i = np.flatnonzero(high)
    x, a, b, c = (levels[i, 3] - y for y in (energy[i], levels[i, 0], levels[i, 1], levels[i, 2]))
    part = x**3 / (4 * a * b * c)
    left = np.stack([part * x / a, part * x / b, part * x / c, part * (4 - x * (1 / a + 1 / b + 1 / c))], axis=1)
    weights[i] = 0.25 - left
    return weights


def states_in_bins(levels: np.ndarray, weights: np.ndarray, corners: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns the number of states between consecutive energies [g, m − 1], exactly for linear levels.

    Args:
        levels: on the flat mesh [q, s], eV.
        weights: what each state counts for, in several columns [q, s, g].
        corners: `tetrahedra`.
        edges: ascending energies [m], eV.
    """
    n_columns, n_edges = weights.shape[2], len(edges)
    found = np.zeros((n_columns, n_edges + 1))
    group = max(1, _PAIRS // max(1, len(corners)))
    for s in range(levels.shape[1]):
        order = np.argsort(levels[corners, s], axis=1)
        corner = np.take_along_axis(corners, order, axis=1)
        e = levels[corner, s]
        first = np.searchsorted(edges, e[:, 0], side="right")  # the first energy above the lowest corner
        last = np.searchsorted(edges, e[:, 3], side="left")  # the first that is not below the highest one
        count = weights[corner, s]  # [t, 4, g]
        for g in range(n_columns):
            found[g] += np.bincount(last, count[:, :, g].sum(1) / 4, n_edges + 1)
        for start in range(0, int((last - first).max(initial=0)), group):
            inside = np.minimum(last - first - start, group).clip(0)
            t = np.repeat(np.arange(len(e)), inside)
            at = (first + start)[t] + np.arange(len(t)) - (np.cumsum(inside) - inside)[t]
            part = corner_weights(e[t], edges[at])
            for g in range(n_columns):
                below = np.einsum("ti,ti->t", part, count[t, :, g])
                found[g] += np.bincount(at, below, n_edges + 1) - np.bincount(at + 1, below, n_edges + 1)
    # Entry j now holds the states between edges j − 1 and j.
    return found[:, 1:n_edges] / len(corners)
